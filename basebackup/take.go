package basebackup

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"pitr/internal/hint"
	"pitr/internal/postgres"
	"pitr/internal/repo"
	"pitr/internal/wal"
)

// Source is the server that a backup is taken of: one session with it. *postgres.Conn is one.
type Source interface {
	Info(ctx context.Context) (postgres.Info, error)
	BackupStart(ctx context.Context, label string, fast bool) (postgres.BackupStart, error)
	BackupStop(ctx context.Context) (postgres.BackupStop, error)
	CurrentLSN(ctx context.Context) (wal.LSN, error)
	SwitchWAL(ctx context.Context) (wal.LSN, error)
	ArchiverStats(ctx context.Context) (postgres.ArchiverStats, error)
	Ping(ctx context.Context) error
}

// Options say how to take a backup. Zero values but DataDir's work.
type Options struct {
	DataDir string // the server's data directory, on this machine
	Workers int    // that read and compress; 0: 2
	Level   int    // of compression (repo.MinLevel to repo.MaxLevel); 0: 1
	Label   string // in the server's backup_label; empty: "pitr" and the ID
	Node    string // where the backup is taken, for people
	Term    uint64 // of a managed cluster's leader, else 0
	Spread  bool   // let the server take its time for the first checkpoint
	// ArchiveTimeout is how long to wait for the server to archive one more segment; 0: 60 s.
	ArchiveTimeout time.Duration
	// SpoolDir takes temporary files of a size with the manifest; empty: the system's directory for these.
	SpoolDir string
	// Progress, if not nil, is called when a phase begins and a few times a second, never twice at once.
	Progress func(Progress)
	Log      *slog.Logger     // nil: nothing is logged
	Now      func() time.Time // nil: time.Now
}

const (
	defaultWorkers        = 2
	defaultArchiveTimeout = time.Minute
	pingEvery             = 10 * time.Second
	// removeTimeout bounds the tidying up after a failure.
	removeTimeout = 30 * time.Second
)

// Take takes a full backup and returns when it is in the repository, durable, with all the WAL that it needs: its header.
// Otherwise no backup exists, unless the very last step had an uncertain end; what is left of it is Sweep's to remove.
//
// The server must be a primary, archiving into r with its own archive_command. The session is used by Take alone, and
// must be closed afterwards, which also makes the server forget a backup that failed.
func Take(ctx context.Context, r *repo.Repo, server Source, o Options) (*Header, error) {
	return take(ctx, r, server, o, openData)
}

func take(ctx context.Context, r *repo.Repo, server Source, o Options, open func(path string) (dataFile, error)) (*Header, error) {
	if o.Workers <= 0 {
		o.Workers = defaultWorkers
	}
	if o.Level == 0 {
		o.Level = 1
	}
	if o.ArchiveTimeout <= 0 {
		o.ArchiveTimeout = defaultArchiveTimeout
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	t := &taker{repo: r, server: server, o: o, open: open}
	h, err := t.take(ctx)
	if err != nil {
		return nil, fmt.Errorf("take a backup: %w", err)
	}
	return h, nil
}

// taker is one backup being taken.
type taker struct {
	repo   *repo.Repo
	server Source
	o      Options
	open   func(path string) (dataFile, error)

	info  postgres.Info
	h     *Header
	sign  *renewer
	copy  *copier
	packs *packs
	total int64 // about

	mu    sync.Mutex // held while Progress is called
	phase Phase
}

func (t *taker) take(ctx context.Context) (_ *Header, err error) {
	control, err := t.prepare(ctx)
	if err != nil {
		return nil, err
	}
	t.sign = &renewer{repo: t.repo, now: t.o.Now, log: t.o.Log, sign: Pending{
		ID: t.h.ID, Host: t.h.Host, Node: t.h.Node, PID: os.Getpid(), Process: processName(os.Getpid()), Started: t.h.Started,
	}}
	if err := t.sign.renew(ctx); err != nil {
		return nil, err
	}
	manifest, err := NewWriter(t.o.SpoolDir)
	if err != nil {
		return nil, err
	}
	defer manifest.Close()
	t.packs = newPacks(t.repo, t.h.ID, t.o.Level, t.o.Workers)
	t.copy = &copier{
		open: t.open, log: t.o.Log, checksums: control.DataChecksumVersion != 0, blockSize: int(control.BlockSize),
		segBlocks: control.RelSegSize, packs: t.packs, manifest: manifest, workers: t.o.Workers,
	}

	// The signs of life and the progress go on beside the work.
	beside, stop := context.WithCancelCause(ctx)
	var side sync.WaitGroup
	side.Go(func() { stop(t.sign.run(beside)) })
	if t.o.Progress != nil {
		side.Go(func() { t.report(beside) })
	}
	err = t.work(beside, manifest)
	if err != nil && ctx.Err() == nil && beside.Err() != nil {
		err = context.Cause(beside)
	}
	stop(nil)
	side.Wait()

	// Without a manifest the packs are nobody's now; with one they need no sign.
	tidy, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	if rerr := t.sign.remove(tidy); rerr != nil {
		t.o.Log.Warn("signs of a backup being taken stay behind, for `pitr prune` to remove", "error", rerr)
	}
	if err != nil {
		return nil, err
	}
	return t.h, nil
}

// prepare makes sure that the server and the repository are those meant and fills the header with what is known before
// the start.
func (t *taker) prepare(ctx context.Context) (control wal.Control, err error) {
	if t.info, err = t.server.Info(ctx); err != nil {
		return control, err
	}
	if control, err = postgres.ReadControl(ctx, t.o.DataDir); err != nil {
		return control, err
	}
	switch {
	case t.info.InRecovery:
		return control, hint.Wrap(errors.New("the server is a standby"), "take the backup of the primary")
	case control.SystemID != t.info.SystemID:
		return control, hint.Wrap(fmt.Errorf("%s is of system identifier %d, the server of %d", t.o.DataDir, control.SystemID, t.info.SystemID),
			"postgres.data_dir must be the data directory of the server at postgres.host and postgres.port, on this machine")
	case t.info.SystemID != t.repo.SystemID():
		return control, fmt.Errorf("the server's system identifier is %d, that of the repository %d", t.info.SystemID, t.repo.SystemID())
	}
	if err := checkArchiving(t.info); err != nil {
		return control, err
	}
	var random [4]byte
	if _, err := rand.Read(random[:]); err != nil {
		return control, err
	}
	host, err := os.Hostname()
	if err != nil {
		return control, fmt.Errorf("ask for the host's name: %w", err)
	}
	started := t.o.Now().UTC()
	id := NewID(started, binary.LittleEndian.Uint32(random[:]))
	if t.o.Label == "" {
		t.o.Label = "pitr " + id
	}
	t.h = &Header{
		Format: Format, ID: id, Type: TypeFull, Label: Text(t.o.Label),
		SystemID: t.info.SystemID, ServerVersion: t.info.Version, Node: t.o.Node, Host: host, Term: t.o.Term, From: "primary",
		Started: started, DataChecksums: control.DataChecksumVersion != 0, BlockSize: int(control.BlockSize),
		WALSegSize: int64(control.WALSegSize), RelSegBlocks: control.RelSegSize,
		CatalogVersion: control.CatalogVersion, ControlVersion: control.Version,
		PacksOf: []string{id}, Compression: Compression{Codec: "zstd", Level: t.o.Level},
		Settings: Settings{
			WALLevel: t.info.WALLevel, MaxConnections: t.info.MaxConnections, MaxWorkerProcesses: t.info.MaxWorkerProcesses,
			MaxWALSenders: t.info.MaxWALSenders, MaxPreparedXacts: t.info.MaxPreparedXacts, MaxLocksPerXact: t.info.MaxLocksPerXact,
			TrackCommitTimestamp: control.TrackCommitTimestamp,
		},
		Why: []string{"full: incremental backups are not taken"},
	}
	return control, nil
}

// work goes from the server's start of the backup to the manifest in the repository.
func (t *taker) work(ctx context.Context, manifest *Writer) error {
	t.enter(PhaseStart)
	start, err := t.server.BackupStart(ctx, t.o.Label, !t.o.Spread)
	if err != nil {
		return err
	}
	t.h.StartLSN, t.h.Timeline = start.LSN, start.Timeline
	if err := t.sign.began(ctx, start.Timeline, start.LSN); err != nil {
		return err
	}
	if err := t.proveStorage(ctx); err != nil {
		return err
	}
	if t.info, err = t.server.Info(ctx); err != nil { // with the tablespaces that there are now
		return err
	}
	wait := &walWaiter{repo: t.repo, server: t.server, tli: t.h.Timeline, segSize: t.h.WALSegSize, timeout: t.o.ArchiveTimeout}
	if err := t.proveArchiving(ctx, wait); err != nil {
		return err
	}
	t.enter(PhaseCopy)
	if err := t.copyAll(ctx); err != nil {
		return err
	}
	stop, err := t.server.BackupStop(ctx)
	if err != nil {
		return err
	}
	if err := t.finish(stop); err != nil {
		return err
	}
	t.enter(PhaseStop)
	first, last := t.h.SegmentRange()
	if err := wait.await(ctx, first, last); err != nil {
		return err
	}
	t.enter(PhaseStore)
	return t.commit(ctx, manifest, wait)
}

// proveStorage makes sure that the data directory is the very one that the server has written its checkpoint to, and not
// a copy of it.
func (t *taker) proveStorage(ctx context.Context) error {
	control, err := postgres.ReadControl(ctx, t.o.DataDir)
	if err != nil {
		return err
	}
	// A standby's directory on this machine may have come as far, but never says that it is in production.
	if control.State != wal.StateInProduction {
		return hint.Wrap(fmt.Errorf("%s belongs to a server that is %s", t.o.DataDir, control.State),
			"postgres.data_dir must be the data directory of the server at postgres.host and postgres.port itself")
	}
	if redo := control.CheckpointCopy.Redo; redo < t.h.StartLSN || control.CheckpointCopy.Timeline != t.h.Timeline {
		return hint.Wrap(fmt.Errorf("%s does not show the checkpoint that the server has just written (%s on timeline %d, want %s on %d)",
			t.o.DataDir, redo, control.CheckpointCopy.Timeline, t.h.StartLSN, t.h.Timeline),
			"postgres.data_dir must be the data directory of the server itself, not a copy of it")
	}
	return nil
}

// proveArchiving returns when the segment that the backup begins in is in the repository, and the history of its timeline:
// if archiving does not work, that shows before anything is copied.
func (t *taker) proveArchiving(ctx context.Context, wait *walWaiter) error {
	t.enter(PhaseWAL)
	first, _ := t.h.SegmentRange()
	at, err := t.server.CurrentLSN(ctx)
	if err != nil {
		return err
	}
	if wal.SegmentOf(at, t.h.WALSegSize) <= first {
		// The checkpoint's record is in it: there is something to switch from.
		if _, err := t.server.SwitchWAL(ctx); err != nil {
			return err
		}
	}
	if err := wait.await(ctx, first, first); err != nil {
		return err
	}
	return wait.awaitHistory(ctx, t.o.DataDir)
}

// copyAll copies the data directory, and notices on the way if the server ends the backup by ending the session.
func (t *taker) copyAll(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	over, done := context.WithCancel(gctx)
	defer done()
	g.Go(func() error { return t.keepSession(over) })
	if t.o.Progress != nil {
		g.Go(func() error { return t.estimate(over) })
	}
	g.Go(func() error {
		defer done()
		return t.copy.run(gctx, t.feed)
	})
	return g.Wait()
}

// keepSession fails when the session is lost, and keeps it from looking idle to whatever is between here and the server.
func (t *taker) keepSession(ctx context.Context) error {
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		// Not ctx: being cancelled in the middle could break the session, which is still needed.
		ping, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		err := t.server.Ping(ping)
		cancel()
		if err != nil {
			return err
		}
	}
}

func (t *taker) newWalker(visit func(e *Entry, file string, info fs.FileInfo) error) *walker {
	return &walker{
		dir: t.o.DataDir, log: t.o.Log, visit: visit,
		versionDir: fmt.Sprintf("PG_%d_%d", t.info.Version/10000, t.h.CatalogVersion),
	}
}

// feed gives everything to the copier, in the manifest's order.
func (t *taker) feed(ctx context.Context) error {
	give := func(e *Entry, file string, info fs.FileInfo) error {
		size := int64(0)
		if info != nil {
			size = info.Size()
		}
		return t.copy.entry(ctx, e, file, size)
	}
	w := t.newWalker(give)
	if err := w.walk(ctx); err != nil {
		return err
	}
	t.h.WALDirLink, t.h.Tablespaces = Text(w.walLink), w.spaces
	for i, s := range t.h.Tablespaces {
		for _, known := range t.info.Tablespaces {
			if known.OID == s.OID {
				t.h.Tablespaces[i].Name = Text(known.Name)
			}
		}
	}
	for _, x := range findExternal(t.info, t.o.DataDir, t.o.Log) {
		e := &Entry{Type: External, Path: x.path, Name: x.name, Mode: mode(x.info)}
		if err := give(e, resolve(x.path), x.info); err != nil {
			return err
		}
	}
	return t.feedControl(ctx)
}

// feedControl gives pg_control, read after everything else has been, as PostgreSQL's own backups do: what it says of the
// state of the cluster must not be older than anything that was copied.
func (t *taker) feedControl(ctx context.Context) error {
	if err := t.copy.barrier(ctx); err != nil {
		return err
	}
	if _, err := postgres.ReadControl(ctx, t.o.DataDir); err != nil {
		return err
	}
	path := filepath.Join(t.o.DataDir, filepath.FromSlash(controlPath))
	for {
		info, err := os.Lstat(path)
		if err != nil {
			return readFailed(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return readFailed(err)
		}
		if _, err := wal.ParseControl(data); err == nil {
			e := &Entry{Type: File, Path: controlPath, Mode: mode(info), ModTime: info.ModTime().UnixNano()}
			t.copy.item(&item{entry: e, content: data}, int64(len(data)))
			return nil
		}
		// The server was writing it. It can't always be: that it can be read at all was seen above.
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// finish fills the header with what is known after the server's end of the backup.
func (t *taker) finish(stop postgres.BackupStop) error {
	label, err := postgres.ParseLabel(stop.Label)
	if err != nil {
		return err
	}
	if label.Start != t.h.StartLSN || label.Timeline != t.h.Timeline {
		return fmt.Errorf("the server's backup_label says start %s on timeline %d, but it said %s on %d at the start",
			label.Start, label.Timeline, t.h.StartLSN, t.h.Timeline)
	}
	h := t.h
	h.CheckpointLSN, h.StopLSN = label.Checkpoint, stop.LSN
	h.BackupLabel, h.TablespaceMap = Text(stop.Label), Text(stop.TablespaceMap)
	h.Finished = t.o.Now().UTC()
	h.Size, h.Files, h.BadPages = t.copy.size.Load(), t.copy.files.Load(), t.copy.badPages.Load()
	h.Stored, h.Frames, h.Packs = t.packs.stored.Load(), t.packs.frames.Load(), int(t.packs.last.Load())
	return nil
}

// commit stores the manifest, unless somebody has taken the backup for dead, as after the machine was asleep for days.
func (t *taker) commit(ctx context.Context, manifest *Writer, wait *walWaiter) error {
	if err := checkMarks(ctx, t.repo, t.h.PacksOf); err != nil {
		return err
	}
	if err := manifest.Commit(ctx, t.repo, t.h); err != nil {
		return err
	}
	// Between that look and now may lie any time.
	err := checkMarks(ctx, t.repo, t.h.PacksOf)
	if err == nil {
		err = checkPacks(ctx, t.repo, t.h)
	}
	if err == nil {
		// From now on the manifest keeps the WAL. What was seen before it may be gone by somebody's hand.
		first, last := t.h.SegmentRange()
		err = wait.await(ctx, first, last)
	}
	if err == nil {
		return nil
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	return errors.Join(err, t.repo.Delete(undo, t.h.key()))
}

// checkPacks makes sure that all of the backup's own packs are listed.
func checkPacks(ctx context.Context, r *repo.Repo, h *Header) error {
	n := 0
	for _, err := range r.List(ctx, packsOf(h.ID), "") {
		if err != nil {
			return fmt.Errorf("look for the packs of backup %s: %w", h.ID, err)
		}
		n++
	}
	if n < h.Packs && r.Capabilities().StrongList {
		return fmt.Errorf("backup %s: %d of its %d packs were deleted while it was being taken", h.ID, h.Packs-n, h.Packs)
	}
	return nil
}

// packsOf is the prefix of a backup's packs.
func packsOf(id string) string { return repo.PackPrefix + id + "/" }
