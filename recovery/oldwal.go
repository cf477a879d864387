package recovery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"pitr/archive"
	"pitr/internal/durable"
	"pitr/internal/hint"
	"pitr/internal/wal"
)

// saveWAL makes sure that no WAL is lost with the directory that is replaced: what its pg_wal has and the archive has not
// is archived, or, where that is not possible, copied to a directory beside.
func (r *restorer) saveWAL(ctx context.Context) error {
	dir := filepath.Join(r.dir, "pg_wal")
	files, err := r.unarchived(dir)
	if err != nil {
		return refused("find out which WAL in %s is not archived: %v", dir, err)
	}
	if len(files) == 0 {
		return nil
	}
	// A copy that archives nothing is of no use to its parent's archive.
	marker, err := ReadMarker(r.dir)
	mayPush := err == nil && (marker == nil || marker.Archive)
	var aside []string
	why := "the directory is a restored copy"
	if mayPush {
		if r.report.PushedWAL, aside, err = r.pushAll(ctx, dir, files); err != nil {
			why = err.Error()
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	} else {
		for _, f := range files {
			aside = append(aside, f.name)
		}
	}
	// Whoever has archived them, the plan may know nothing of it.
	if archived := len(files) - len(aside); archived > 0 {
		if err := r.planHolds(ctx, archived); err != nil {
			return err
		}
	}
	if len(aside) == 0 {
		return nil
	}
	to := fmt.Sprintf("%s.wal-aside-%s", r.dir, r.o.Now().UTC().Format("20060102T150405Z"))
	if err := r.setAside(ctx, dir, to, aside); err != nil {
		return hint.Wrap(refused("WAL in %s is not archived, could not be (%s), and could not be copied to %s (%v)", dir, why, to, err),
			"copy %s elsewhere yourself, then empty it and call this again", dir)
	}
	r.report.Aside = to
	r.warn("%d files of WAL that could not be archived (%s) are kept in %s", len(aside), why, to)
	return nil
}

// planHolds makes sure that the plan is what it would be with what the archive holds by now.
func (r *restorer) planHolds(ctx context.Context, archived int) error {
	w, err := Observe(ctx, r.archive, Surroundings{BinDir: r.binDir, Spool: r.spool})
	if err != nil {
		return err
	}
	defer w.Close()
	p, err := MakePlan(w.View, r.p.Target, r.p.Destination)
	if err != nil {
		return fmt.Errorf("plan anew with the WAL of the old directory: %w", err)
	}
	if p.Stop != r.p.Stop || p.Timeline != r.p.Timeline || p.Backup.ID != r.p.Backup.ID {
		return hint.Wrap(fmt.Errorf("%w: %d files of WAL of %s were archived only now, and recovery would end at %s instead of %s",
			ErrOutdated, archived, r.dir, r.p.Stop.LSN, p.Stop.LSN), "call the same command again")
	}
	return nil
}

// ArchiveLeftovers archives what the pg_wal of a stopped server's directory has and the archive has not, before a plan is
// made: what was written last may be what is wanted back. It names what it archived. What can't be archived stays where it
// is; a restore in place then sets it aside.
func (w *World) ArchiveLeftovers(ctx context.Context, dataDir string) ([]string, error) {
	at, err := look(ctx, dataDir)
	if err != nil {
		return nil, err
	}
	// The journal of a restore in place is written when this was done.
	if !at.DataDir || at.PID != 0 || at.SystemID != w.SystemID || at.Journal != nil {
		return nil, nil
	}
	if m, err := ReadMarker(dataDir); err != nil || m != nil && !m.Archive {
		return nil, err
	}
	if at.WALLink != "" {
		// That of a clone may lead to what a running server writes, and archives itself.
		if user, err := usedBy(at.WALLink); err != nil || user != "" {
			return nil, err
		}
	}
	r := &restorer{World: w, dir: dataDir}
	dir := filepath.Join(dataDir, "pg_wal")
	files, err := r.unarchived(dir)
	if err != nil {
		return nil, err
	}
	done, _, err := r.pushAll(ctx, dir, files)
	return done, err
}

// pushAll archives files in their order, and names those that it did and those that it could not; one that was archived
// already is neither. Behind a segment that can't be archived no other one is: the archive would have a gap, with an end
// behind it that nothing leads to.
func (r *restorer) pushAll(ctx context.Context, dir string, files []walFile) (done, left []string, err error) {
	var failed []error
	broken := false
	for _, f := range files {
		segment := wal.Classify(f.name) == wal.Segment
		if broken && segment || ctx.Err() != nil {
			left = append(left, f.name)
			continue
		}
		already, err := r.push(ctx, dir, f)
		switch {
		case err != nil:
			failed, left = append(failed, err), append(left, f.name)
			broken = broken || segment
		case !already: // a partial segment, for one, is looked at each time
			done = append(done, f.name)
		}
	}
	return done, left, errors.Join(append(failed, ctx.Err())...)
}

// walFile is a file in pg_wal.
type walFile struct {
	name string
	// cut: it is a segment that was being written, and holds WAL up to somewhere.
	cut bool
}

// push archives a file, and tells whether the archive had it already.
func (r *restorer) push(ctx context.Context, dir string, f walFile) (already bool, err error) {
	push := r.archive.Push
	if f.cut {
		push = r.archive.PushPartial
	}
	p, err := push(ctx, filepath.Join(dir, f.name), r.SystemID)
	if errors.Is(err, archive.ErrSource) && !f.cut && wal.Classify(f.name) == wal.Segment {
		// It ends early after all.
		p, err = r.archive.PushPartial(ctx, filepath.Join(dir, f.name), r.SystemID)
	}
	return p.Already, err
}

// unarchived lists what pg_wal has and the archive has not, in the order in which it was written. Segments that were
// only prepared for later use hold an older segment's content, which their first page tells.
func (r *restorer) unarchived(dir string) ([]walFile, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var files []walFile
	type place struct {
		tli wal.Timeline
		no  uint64
	}
	segments := map[place]bool{}
	for _, e := range entries {
		if tli, no, err := wal.ParseSegmentName(e.Name(), r.SegSize); err == nil {
			if own, err := r.ownContent(filepath.Join(dir, e.Name()), no); err != nil {
				return nil, err
			} else if own {
				segments[place{tli, no}] = true
			}
		}
	}
	for _, e := range entries {
		name := e.Name()
		_, ready := os.Stat(filepath.Join(dir, "archive_status", name+".ready"))
		switch wal.Classify(name) {
		case wal.TimelineHistory:
			tli, err := wal.ParseHistoryName(name)
			if err != nil {
				return nil, err
			}
			if _, err := r.coverage.History(tli); err != nil {
				files = append(files, walFile{name: name})
			}
		case wal.Partial:
			files = append(files, walFile{name: name})
		case wal.BackupHistory:
			if ready == nil {
				files = append(files, walFile{name: name})
			}
		case wal.Segment:
			tli, no, err := wal.ParseSegmentName(name, r.SegSize)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			if !segments[place{tli, no}] || ready != nil && r.archived(tli, no) {
				continue
			}
			// One that was followed by another is full, or was ended.
			files = append(files, walFile{name: name, cut: ready != nil && !segments[place{tli, no + 1}]})
		}
	}
	slices.SortStableFunc(files, func(a, b walFile) int { return strings.Compare(a.name, b.name) })
	return files, nil
}

// archived tells whether a segment is archived, or older than what is: retention has removed it.
func (r *restorer) archived(tli wal.Timeline, no uint64) bool {
	t := r.coverage.Timelines[tli]
	return t != nil && len(t.Runs) > 0 && (t.Runs.Has(no) || no < t.Runs[0].First)
}

// ownContent tells whether a segment's file holds WAL of the segment it is called after.
func (r *restorer) ownContent(path string, no uint64) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	var page [wal.LongHeaderLen]byte
	if n, err := readFull(f, page[:], 0); err != nil || n < len(page) {
		return false, err
	}
	h, err := wal.ParseSegmentHeader(page[:])
	// What has no valid header holds no WAL that anyone could read.
	return err == nil && h.Addr == wal.SegmentStart(no, r.SegSize), nil
}

// setAside copies files durably.
func (r *restorer) setAside(ctx context.Context, from, to string, names []string) error {
	if err := r.makeDir(to, 0o700); err != nil {
		return err
	}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		in, err := os.Open(filepath.Join(from, name))
		if err != nil {
			return err
		}
		err = func() error {
			defer in.Close()
			out, err := durable.Create(filepath.Join(to, name), 0o600)
			if err != nil {
				return err
			}
			defer out.Abort()
			if err := r.own.take(out.File); err != nil {
				return err
			}
			if _, err := io.Copy(out.File, in); err != nil {
				return err
			}
			return out.Commit()
		}()
		if err != nil {
			return err
		}
	}
	return nil
}
