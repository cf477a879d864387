package recovery

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"pitr/archive"
	"pitr/basebackup"
	"pitr/internal/hint"
	"pitr/internal/postgres"
	"pitr/internal/repo"
	"pitr/internal/wal"
)

// World is a View of a repository and this machine, and what Restore needs of them. It shows the repository as one
// listing showed it. Close frees it. It is not safe for concurrent use.
type World struct {
	View
	repo     *repo.Repo
	archive  *archive.Archive
	coverage *archive.Listing
	binDir   string
	spool    string
	log      *slog.Logger

	manifest *basebackup.Manifest // the one opened last
}

// Surroundings are what Observe has to be told.
type Surroundings struct {
	BinDir string // of the server's programs; empty: found by version
	Spool  string // takes temporary files; empty: the system's directory for them
	// Log takes what is worth knowing of a server that Start waits for; nil: nothing.
	Log *slog.Logger
}

// Observe looks at the repository. ctx is also that of the View's functions.
func Observe(ctx context.Context, a *archive.Archive, s Surroundings) (*World, error) {
	r := a.Repo()
	w := &World{repo: r, archive: a, binDir: s.BinDir, spool: s.Spool, log: s.Log}
	if w.log == nil {
		w.log = slog.New(slog.DiscardHandler)
	}
	backups, problems, err := basebackup.List(ctx, r)
	if err != nil {
		return nil, err
	}
	if w.coverage, err = a.Listing(ctx); err != nil {
		return nil, err
	}
	w.View = View{
		SystemID: r.SystemID(), SegSize: r.Facts().SegmentSize, Backups: backups,
		Histories: map[wal.Timeline]wal.History{1: {Timeline: 1}},
		Reach:     w.reach,
		Facts: func(path []archive.Step, from wal.LSN, enough func(*wal.Index) bool) Facts {
			return w.coverage.Skim(ctx, path, from, enough)
		},
		RecordAt:   func(path []archive.Step, lsn wal.LSN) (Stop, bool, error) { return w.recordAt(ctx, path, lsn) },
		LastRecord: func(path []archive.Step) (Stop, bool, error) { return w.lastRecord(ctx, path) },
		Contents:   func(h *basebackup.Header) (Contents, error) { return w.contents(ctx, h) },
		Look:       func(path string) (Place, error) { return look(ctx, path) },
		Server: func(major int) error {
			_, err := w.programs(ctx, major)
			return err
		},
	}
	for _, p := range problems {
		w.Unreadable = append(w.Unreadable, p.Err.Error())
	}
	maps.Copy(w.Histories, w.coverage.Histories)
	for _, x := range w.coverage.Conflicts {
		if len(x.Aside) > 0 {
			w.Refused = append(w.Refused, x.Name)
		}
	}
	return w, nil
}

// Close frees the temporary files.
func (w *World) Close() error {
	if w.manifest == nil {
		return nil
	}
	return w.manifest.Close()
}

// reach is View.Reach.
func (w *World) reach(h wal.History, from wal.LSN) (Reach, error) {
	for _, s := range h.Switches {
		if s.Timeline == 1 {
			continue
		}
		// Of an ancestor, too, the server wants the history; it also tells whether ours is right.
		own, err := w.coverage.History(s.Timeline)
		if err != nil {
			return Reach{}, err
		}
		if !h.Descends(own) {
			return Reach{}, fmt.Errorf("%w: the archived histories of timelines %d and %d contradict each other", repo.ErrDamaged, h.Timeline, s.Timeline)
		}
	}
	end := w.coverage.End(h)
	steps, missing := w.coverage.Path(h, from, end)
	if missing == nil {
		return Reach{Path: steps, End: max(end, from)}, nil
	}
	r := Reach{Path: steps, End: max(missing.Reachable, from), Gap: missing.Segment, Conflict: missing.Conflict}
	// With the beginning of the missing segment, where that is archived.
	if more, still := w.coverage.Path(h, from, missing.Reachable); still == nil {
		r.Path = more
	}
	return r, nil
}

// open gives the manifest of a backup, verified.
func (w *World) open(ctx context.Context, id string) (*basebackup.Manifest, error) {
	if w.manifest != nil && w.manifest.Header.ID == id {
		return w.manifest, nil
	}
	m, err := basebackup.OpenManifest(ctx, w.repo, id, w.spool)
	if err != nil {
		return nil, err
	}
	if w.manifest != nil {
		w.manifest.Close()
	}
	w.manifest = m
	return m, nil
}

// contents is View.Contents.
func (w *World) contents(ctx context.Context, h *basebackup.Header) (Contents, error) {
	m, err := w.open(ctx, h.ID)
	if err != nil {
		return Contents{}, err
	}
	var c Contents
	type pack struct{ backup, number uint32 }
	need := map[pack]int64{} // how long each pack has to be
	var last basebackup.Frame
	for e, err := range m.Entries() {
		if err != nil {
			return c, err
		}
		if dir, name := path.Split(e.Path); dir == "pg_twophase/" && e.Type == basebackup.File {
			// The number of the transaction, with its epoch from version 17 on.
			if xid, err := strconv.ParseUint(name, 16, 64); err == nil {
				c.Prepared = append(c.Prepared, uint32(xid))
			}
		}
		c.Config.note(e)
		for _, x := range e.Extents {
			if x.Zeros {
				continue
			}
			c.Write += x.Length
			if x.Frame == last {
				continue
			}
			last = x.Frame
			c.Fetch += int64(last.Stored)
			k := pack{last.Backup, last.Pack}
			need[k] = max(need[k], last.Offset+int64(last.Stored))
		}
	}
	have := map[string]int64{}
	for _, id := range m.Header.PacksOf {
		for o, err := range w.repo.List(ctx, repo.PackPrefix+id+"/", "") {
			if err != nil {
				return c, fmt.Errorf("look at the packs of backup %s: %w", id, err)
			}
			have[o.Key] = o.Size
		}
	}
	for k, n := range need {
		if key := repo.PackKey(m.Header.PacksOf[k.backup], k.number); have[key] < n {
			c.Missing = append(c.Missing, strings.TrimPrefix(key, repo.PackPrefix))
		}
	}
	slices.Sort(c.Missing)
	return c, nil
}

// programs finds the server's programs: those configured, if they are of the right version.
func (w *World) programs(ctx context.Context, major int) (string, error) {
	if w.binDir == "" {
		return postgres.FindBinDir(ctx, major)
	}
	got, err := postgres.MajorOfBinDir(ctx, w.binDir)
	if err != nil {
		return "", err
	}
	if got != major {
		return "", hint.Wrap(fmt.Errorf("the programs in %s are those of PostgreSQL %d, and the backup is of %d", w.binDir, got, major),
			"set postgres.bin_dir to where PostgreSQL %d is", major)
	}
	return w.binDir, nil
}
