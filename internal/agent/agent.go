// Package agent is the one long-running process on a database host. It archives ahead of the server's hook and fetches
// ahead of a recovery's, both over a socket whose protocol is package client's; it takes backups and applies retention by
// schedule; and it says how all of that goes (Status).
//
// It owns when things are done and by whom, and the service directory. It does not own how WAL is stored and given back
// (package archive), what a backup is (package basebackup) and what may be deleted; these come in by Deps. Nothing depends
// on the agent's being there: hooks whose agent is missing, dies or freezes do the work themselves, and whatever is half
// done when it is killed is invisible and can be done again.
package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"pitr/archive"
	"pitr/internal/agent/client"
	"pitr/internal/postgres"
	"pitr/internal/repo"
	"pitr/internal/wal"
	"pitr/recovery"
)

// stopGrace is how long pushes and answers that have begun may take when the agent is told to stop.
const stopGrace = 10 * time.Second

// pruneSchedule is when retention is applied in any case, beside after each backup.
const pruneSchedule = "30 4 * * *"

// rollUpSchedule is when the indexes of new WAL are rolled up; counted from the start, so that many hosts spread.
const rollUpSchedule = "@every 1h"

var (
	// errStopping says that the agent ends and has not begun what was asked.
	errStopping = errors.New("the agent is stopping")
	// ErrStandby is returned by Deps.Backup where the server is a standby.
	ErrStandby = errors.New("the server is a standby, and backups are taken of the primary")
)

// Options say what the agent serves.
type Options struct {
	Dir      string        // the service directory
	DataDir  string        // the server's data directory
	Workers  int           // files that are fetched ahead at once; twice as many are pushed, half of them waiting for the store
	Timeout  time.Duration // for one file that is archived; of one that is fetched, for how long nothing may come
	Schedule string        // of backups, as cron writes it; empty: none
	Version  string        // of pitr, for Status
}

// Deps are what the agent sets to work. All functions may be called by many goroutines at once and end with their
// context.
type Deps struct {
	// Archive opens the archive of the server in the data directory, for writing: it is begun where it is new. The agent
	// calls it again after an error and when the system identifier or the size of segments has changed, and closes none
	// that it has used.
	Archive func(ctx context.Context) (*archive.Archive, error)
	// Read opens the archive of a lineage, for reading: nothing is begun, and where there is none, that is an error.
	Read func(ctx context.Context, system uint64) (*archive.Archive, error)
	// Backup takes a backup: ErrStandby where the server is none to take it of.
	Backup func(ctx context.Context) error
	// Prune applies retention and removes what interrupted work has left in the store.
	Prune func(ctx context.Context) error
	// RollUp rolls up the indexes of what was archived since. It may run at the same time as Backup and Prune.
	RollUp func(ctx context.Context) error
	// Newest tells when the newest backup began, and where there is none (zero) when the repository did. Both are zero
	// where there is no repository.
	Newest func(ctx context.Context) (backup, began time.Time, err error)
	Log    *slog.Logger
	Now    func() time.Time // the wall clock
}

type agent struct {
	o       Options
	d       Deps
	place   *place
	pusher  *pusher
	fetcher *fetcher
	jobs    *scheduler
	backup  *job // nil: none by schedule
	rollUps *scheduler
	started time.Time

	mu      sync.Mutex
	archive *archive.Archive            // of the server, for writing
	reading map[uint64]*archive.Archive // by lineage
}

// Run serves until ctx ends, and then returns nil once everything has come to its end: pushes that have begun, at most
// stopGrace; backups are given up, which leaves nothing that is listed. ready, if not nil, is called when the socket
// answers. Only one agent runs in a service directory; any number may use one repository.
func Run(ctx context.Context, o Options, d Deps, ready func()) error {
	p, err := takePlace(o.Dir)
	if err != nil {
		return err
	}
	err = run(ctx, p, o, d, ready)
	return errors.Join(err, p.release())
}

func run(ctx context.Context, p *place, o Options, d Deps, ready func()) error {
	if err := p.clean(); err != nil {
		return err
	}
	a := &agent{o: o, d: d, place: p, started: d.Now(), reading: map[uint64]*archive.Archive{}}
	a.pusher = newPusher(filepath.Join(o.DataDir, "pg_wal"), 2*o.Workers, o.Timeout)
	a.pusher.push, a.pusher.onlyThis = a.push, onlyThisFile
	a.pusher.allowed = func() error { return mayArchive(o.DataDir) }
	a.pusher.log, a.pusher.now = d.Log, d.Now
	a.fetcher = newFetcher(filepath.Join(o.Dir, aheadDir), o.Workers, o.Timeout)
	a.fetcher.fetch, a.fetcher.route, a.fetcher.segSize = a.fetch, a.route, a.segSize
	a.fetcher.log, a.fetcher.now = d.Log, d.Now
	if err := a.planJobs(); err != nil {
		return err
	}
	s := &server{push: a.servePush, fetch: a.serveFetch, status: func() any { return a.report() }, log: d.Log, uid: os.Geteuid()}
	l, err := listen(o.Dir)
	if err != nil {
		return err
	}

	// What has begun when ctx ends may go on until hurry does.
	hurry, giveUp := context.WithCancel(context.WithoutCancel(ctx))
	defer giveUp()
	defer context.AfterFunc(ctx, func() {
		l.Close()
		t := time.AfterFunc(stopGrace, giveUp)
		context.AfterFunc(hurry, func() { t.Stop() })
	})()
	var all sync.WaitGroup
	all.Go(func() { a.pusher.run(ctx, hurry) })
	all.Go(func() { a.jobs.run(ctx) })
	all.Go(func() { a.rollUps.run(ctx) })
	var fetchErr error
	fetching, endFetching := context.WithCancel(context.Background())
	fetcherDone := make(chan struct{})
	go func() {
		defer close(fetcherDone)
		fetchErr = a.fetcher.run(fetching)
	}()
	d.Log.Info("agent runs", "service directory", o.Dir, "data directory", o.DataDir, "user", os.Geteuid(), "version", o.Version)
	if ready != nil {
		ready()
	}
	err = s.serve(hurry, l)
	s.wait()
	endFetching() // only now, since conversations use it
	<-fetcherDone
	all.Wait()
	d.Log.Info("agent stopped")
	return errors.Join(err, fetchErr)
}

func (a *agent) planJobs() error {
	now := a.d.Now()
	prune := &job{name: "prune", run: a.d.Prune}
	var err error
	if prune.when, err = newTimetable(pruneSchedule, now); err != nil {
		return err
	}
	a.jobs = &scheduler{jobs: []*job{prune}, log: a.d.Log, now: a.d.Now}
	// Apart from the others, since no backup is to wait for it, nor to be skipped.
	rollUp := &job{name: "roll-up", run: a.d.RollUp}
	if rollUp.when, err = newTimetable(rollUpSchedule, now); err != nil {
		return err
	}
	a.rollUps = &scheduler{jobs: []*job{rollUp}, log: a.d.Log, now: a.d.Now}
	if a.o.Schedule == "" {
		return nil
	}
	a.backup = &job{name: "backup", run: a.takeBackup, then: prune, missed: a.missedBackup}
	if a.backup.when, err = newTimetable(a.o.Schedule, now); err != nil {
		return err
	}
	// The backup stands first: where both are due, retention follows it.
	a.jobs.jobs = []*job{a.backup, prune}
	return nil
}

func (a *agent) takeBackup(ctx context.Context) error {
	err := a.d.Backup(ctx)
	if errors.Is(err, ErrStandby) {
		return fmt.Errorf("%w: %w", errSkip, err)
	}
	return err
}

// missedBackup tells whether a backup was due between the newest one and now.
func (a *agent) missedBackup(ctx context.Context) (bool, string, error) {
	newest, began, err := a.d.Newest(ctx)
	if err != nil {
		return false, "", err
	}
	now := a.d.Now()
	switch {
	case !newest.IsZero() && a.backup.when.missed(newest, now):
		return true, "the newest backup is of " + newest.Format(time.RFC3339), nil
	case newest.IsZero() && !began.IsZero() && a.backup.when.missed(began, now):
		return true, "there is no backup yet", nil
	case newest.IsZero():
		return false, "there is no backup yet, so nothing can be restored: `pitr backup create` takes one", nil
	}
	return false, "", nil
}

// open returns the archive of the server whose control file it is, for writing. It is opened when it is first needed,
// since neither server nor store need be there when the agent starts, and anew when the server is another one, or has
// segments of another size (pg_resetwal --wal-segsize).
func (a *agent) open(ctx context.Context, c wal.Control) (*archive.Archive, error) {
	a.mu.Lock()
	opened := a.archive
	a.mu.Unlock()
	if opened != nil && isOf(opened, c) {
		return opened, nil
	}
	opened, err := a.d.Archive(ctx)
	if err != nil {
		return nil, err
	}
	if !isOf(opened, c) {
		f := opened.Repo().Facts()
		opened.Close()
		return nil, &errElsewhere{fmt.Sprintf("this agent's archive is of system identifier %d with segments of %d bytes, not %d with %d",
			f.SystemID, f.SegmentSize, c.SystemID, c.WALSegSize)}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.archive = opened // pushes that have begun go on with the one before
	return opened, nil
}

func isOf(ar *archive.Archive, c wal.Control) bool {
	f := ar.Repo().Facts()
	return f.SystemID == c.SystemID && f.SegmentSize == int64(c.WALSegSize)
}

// read returns the archive of the lineage for reading: where there is none, none is begun. An archive that was just begun
// holds nothing, and whoever asked it would be told that the WAL does not exist.
func (a *agent) read(ctx context.Context, system uint64) (*archive.Archive, error) {
	if opened := a.opened(system); opened != nil {
		return opened, nil
	}
	opened, err := a.d.Read(ctx, system)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if first := a.reading[system]; first != nil {
		opened.Close()
		return first, nil
	}
	a.reading[system] = opened
	return opened, nil
}

// opened returns the archive of the lineage for reading, nil if it was not opened yet.
func (a *agent) opened(system uint64) *archive.Archive {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.reading[system]
}

// push archives one file of the server.
func (a *agent) push(ctx context.Context, path string) (raw, stored int64, err error) {
	c, err := postgres.ReadControl(ctx, a.o.DataDir)
	if err != nil {
		return 0, 0, err
	}
	ar, err := a.open(ctx, c)
	if err != nil {
		return 0, 0, err
	}
	p, err := ar.Push(ctx, path, c.SystemID)
	return p.Raw, p.Stored, err
}

// onlyThisFile tells the errors that other files need not meet.
func onlyThisFile(err error) bool {
	return errors.Is(err, archive.ErrConflict) || errors.Is(err, archive.ErrSource) || errors.Is(err, fs.ErrNotExist)
}

// servePush is for a hook.
func (a *agent) servePush(ctx context.Context, path string) error {
	if !filepath.IsAbs(path) || !sameDir(filepath.Dir(path), a.pusher.walDir) {
		return &errElsewhere{fmt.Sprintf("this agent archives %s", a.pusher.walDir)}
	}
	return a.pusher.ask(ctx, path)
}

// sameDir tells whether two paths lead to one directory. One that can't be looked at is no directory.
func sameDir(x, y string) bool {
	if filepath.Clean(x) == filepath.Clean(y) {
		return true
	}
	xi, err := os.Stat(x)
	if err != nil {
		return false
	}
	yi, err := os.Stat(y)
	return err == nil && os.SameFile(xi, yi)
}

// serveFetch is for a recovery's hook.
func (a *agent) serveFetch(ctx context.Context, r client.Request, moved func()) error {
	if r.System == 0 || !filepath.IsAbs(r.Dest) || !filepath.IsAbs(r.Dir) {
		return &errElsewhere{"a fetch needs absolute paths and a system identifier"}
	}
	if wal.Classify(r.Name) == wal.Other {
		return &errElsewhere{fmt.Sprintf("%q is not a file of an archive", r.Name)}
	}
	return a.fetcher.get(ctx, recoveryID{r.System, filepath.Clean(r.Dir)}, r.Name, r.Dest, r.Partial, moved)
}

func (a *agent) fetch(ctx context.Context, system uint64, name, path string, partial bool, moved func()) error {
	ar, err := a.read(ctx, system)
	if err != nil {
		return err
	}
	o := archive.FetchOptions{Partial: partial, Moved: moved}
	err = ar.Fetch(ctx, name, path, o)
	_, _, nerr := wal.ParseSegmentName(name, ar.Repo().Facts().SegmentSize)
	if err == nil || !errors.Is(err, repo.ErrDamaged) && (nerr == nil || wal.Classify(name) != wal.Segment) {
		return err
	}
	// What does not fit the size of segments may fit another one, which the server was given since the archive was opened.
	now, changed := a.readAnew(ctx, ar)
	if !changed {
		return err
	}
	return now.Fetch(ctx, name, path, o)
}

// readAnew looks whether the archive for reading is not any more what it was when it was opened, and returns the new one
// if so. One is never closed that others may be reading.
func (a *agent) readAnew(ctx context.Context, was *archive.Archive) (now *archive.Archive, changed bool) {
	system := was.Repo().SystemID()
	now, err := a.d.Read(ctx, system)
	if err != nil {
		return nil, false // the error that led here says more
	}
	if now.Repo().Facts() == was.Repo().Facts() {
		now.Close()
		return nil, false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.reading[system] = now
	return now, true
}

// segSize is the size of the lineage's segments, 0 where it is not known.
func (a *agent) segSize(system uint64) int64 {
	if ar := a.opened(system); ar != nil {
		return ar.Repo().Facts().SegmentSize
	}
	return 0
}

// mayArchive is nil unless the data directory is a restored copy that was not adopted.
func mayArchive(dataDir string) error {
	m, err := recovery.ReadMarker(dataDir)
	if err != nil || m == nil {
		return err
	}
	return m.MayArchive(dataDir)
}

// route is what a recovery needs after name, at most n names: the rest of its proven path, or the numbers that follow.
func (a *agent) route(id recoveryID, name string, n int) ([]string, error) {
	m, err := recovery.ReadMarker(id.dir)
	if err != nil {
		return nil, err
	}
	if m != nil && !m.Standby {
		return along(m.Path, name, m.SegSize, n)
	}
	size := a.segSize(id.system)
	if size == 0 {
		return nil, nil
	}
	tli, no, err := wal.ParseSegmentName(name, size)
	if err != nil {
		return nil, err
	}
	return along([]archive.Step{{Timeline: tli, First: no, Last: no + uint64(n)}}, name, size, n)
}

// along returns the names, at most n, that follow name on a path. What is only partly archived is left to the hook.
func along(path []archive.Step, name string, segSize int64, n int) ([]string, error) {
	tli, no, err := wal.ParseSegmentName(name, segSize)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, s := range path {
		if s.Last <= no || s.Timeline < tli || s.Partial {
			continue
		}
		for next := max(s.First, no+1); next <= s.Last && len(names) < n; next++ {
			names = append(names, wal.SegmentName(s.Timeline, next, segSize))
		}
	}
	return names, nil
}
