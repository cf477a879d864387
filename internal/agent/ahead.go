package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"pitr/archive"
	"pitr/internal/agent/client"
	"pitr/internal/hint"
	"pitr/internal/wal"
)

const (
	// aheadSegments and aheadBytes bound what is fetched ahead of one recovery, whichever is less, but at least one
	// segment.
	aheadSegments = 16
	aheadBytes    = 512 << 20
	// aheadSessions is how many recoveries are fetched ahead of at once; of more, the one longest idle is given up.
	aheadSessions = 4
	// aheadIdle is how long a recovery may ask for nothing before its files are given up.
	aheadIdle = 2 * time.Minute
	// aheadFresh is how long a file may lie here: a conflict over a name, or its settling, is heeded after that at the
	// latest.
	aheadFresh = 5 * time.Minute
	// aheadRest is how long nothing is fetched ahead after the end of the archive, or an error, was met.
	aheadRest = 5 * time.Second
)

// recoveryID names a recovery: where it runs and of which lineage. Files fetched for one are never given to another.
type recoveryID struct {
	system uint64
	dir    string
}

// A fetcher gives WAL to recoveries on this host, and fetches what they will ask for next while they replay. The files
// lie below dir and are nobody else's; they are gone when run returns.
//
// A file that was fetched ahead was verified like any other. Absence is never remembered: each request for what has not
// been fetched asks the archive.
type fetcher struct {
	dir string
	// fetch verifies the archived file called name and puts it at path. With partial, the beginning of a segment will do.
	// moved is called as it comes.
	fetch func(ctx context.Context, system uint64, name, path string, partial bool, moved func()) error
	// route returns at most n names that the recovery will ask for after name.
	route   func(id recoveryID, name string, n int) ([]string, error)
	segSize func(system uint64) int64
	workers int
	timeout time.Duration // for how long nothing of a file may come
	log     *slog.Logger
	now     func() time.Time

	slots chan struct{} // one for each fetch ahead at once
	all   sync.WaitGroup
	ctx   context.Context // of what is fetched ahead
	stop  context.CancelFunc

	mu     sync.Mutex
	serial int
	open   map[recoveryID]*recoveryAhead
	stats  fetchStats
}

// recoveryAhead is what is kept for one recovery.
type recoveryAhead struct {
	dir     string
	used    time.Time
	files   map[string]*aheadFile
	restAt  string    // no further than this name
	restEnd time.Time // until then
}

// aheadFile is a file that is being fetched ahead, or was.
type aheadFile struct {
	path   string
	at     time.Time
	cancel context.CancelFunc
	begun  chan struct{} // closed when it has a slot
	done   chan struct{}
	err    error         // once done is closed
	moved  atomic.Uint64 // grows as it comes
}

type fetchStats struct {
	asked, ahead, absent, failures int64
	last                           string
	lastAt                         time.Time
	lastFailure                    *Failure
}

func newFetcher(dir string, workers int, timeout time.Duration) *fetcher {
	f := &fetcher{dir: dir, workers: workers, timeout: timeout, slots: make(chan struct{}, workers), open: map[recoveryID]*recoveryAhead{}}
	f.ctx, f.stop = context.WithCancel(context.Background())
	return f
}

// run gives up recoveries that went quiet, until ctx ends, and then everything.
func (f *fetcher) run(ctx context.Context) error {
	tick := time.NewTicker(aheadIdle / 4)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			f.mu.Lock()
			for id, r := range f.open {
				if f.now().Sub(r.used) > aheadIdle {
					f.giveUp(id)
				}
			}
			f.mu.Unlock()
		case <-ctx.Done():
			f.stop()
			f.mu.Lock()
			for id := range f.open {
				f.giveUp(id)
			}
			f.mu.Unlock()
			f.all.Wait()
			if err := os.RemoveAll(f.dir); err != nil {
				return fmt.Errorf("remove what was fetched ahead: %w", err)
			}
			return nil
		}
	}
}

// giveUp forgets a recovery and removes its files, once what is under way has ended. The lock is held.
func (f *fetcher) giveUp(id recoveryID) {
	r := f.open[id]
	delete(f.open, id)
	files := r.files
	r.files = nil
	for _, a := range files {
		a.cancel()
	}
	f.all.Go(func() {
		for _, a := range files {
			<-a.done
		}
		// A file that is just being handed over may make this fail; what is left is removed when the agent ends.
		if err := os.RemoveAll(r.dir); err != nil {
			f.log.Warn("can't remove what was fetched ahead", "error", err)
		}
	})
}

// drop forgets one file of a recovery and removes it, once its fetch has ended. The lock is held.
func (f *fetcher) drop(r *recoveryAhead, name string) {
	a := r.files[name]
	delete(r.files, name)
	a.cancel()
	f.all.Go(func() {
		<-a.done
		os.Remove(a.path)
	})
}

// get puts the file called name at dest for the recovery id. It is archive.ErrNotArchived only if the archive says so now.
// With partial, the beginning of a segment will do where the segment is not archived. It takes as long as it takes, calling
// moved as something comes, and gives up when nothing does.
func (f *fetcher) get(ctx context.Context, id recoveryID, name, dest string, partial bool, moved func()) error {
	segment := wal.Classify(name) == wal.Segment
	served := segment && f.serve(ctx, id, name, dest, moved)
	var err error
	if !served {
		err = f.unlessStuck(ctx, func(ctx context.Context, own func()) error {
			return f.fetch(ctx, id.system, name, dest, partial, func() { own(); moved() })
		})
	}
	f.note(name, served, err)
	if segment && err == nil {
		f.plan(id, name)
	}
	return err
}

// unlessStuck runs fetch until it ends, or nothing has come for the time that is allowed.
func (f *fetcher) unlessStuck(ctx context.Context, fetch func(ctx context.Context, moved func()) error) error {
	stuck := fmt.Errorf("nothing came from the store for %v", f.timeout)
	watched, moved, stop := client.WhileMoving(ctx, f.timeout, f.timeout, stuck)
	defer stop()
	err := fetch(watched, moved)
	if err != nil && ctx.Err() == nil && watched.Err() != nil {
		return hint.Wrap(fmt.Errorf("%w: %v", stuck, err), "the store does not answer; `archive.timeout` says how long that is borne")
	}
	return err
}

func (f *fetcher) note(name string, served bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := &f.stats
	s.asked++
	switch {
	case err == nil:
		s.last, s.lastAt = name, f.now()
		if served {
			s.ahead++
		}
	case errors.Is(err, archive.ErrNotArchived):
		s.absent++
	default:
		s.failures++
		s.lastFailure = failureOf(f.now(), name, err)
	}
}

// serve hands over the file if it was fetched ahead, or is being. Whatever goes wrong, the caller fetches it, and so it does
// where the fetch has not begun: others that are slow may be in front of it.
func (f *fetcher) serve(ctx context.Context, id recoveryID, name, dest string, moved func()) bool {
	f.mu.Lock()
	r := f.open[id]
	if r == nil {
		f.mu.Unlock()
		return false
	}
	r.used = f.now()
	a := r.files[name]
	delete(r.files, name) // ours alone from here on
	f.mu.Unlock()
	if a == nil {
		return false
	}
	defer a.cancel()
	if !f.awaitAhead(ctx, a, moved) {
		f.all.Go(func() {
			<-a.done
			os.Remove(a.path)
		})
		return false
	}
	if a.err != nil {
		return false
	}
	if f.now().Sub(a.at).Abs() > aheadFresh {
		os.Remove(a.path)
		return false
	}
	if err := handOver(a.path, dest); err != nil {
		os.Remove(a.path)
		f.log.Warn("can't hand over a file that was fetched ahead", "file", name, "error", err)
		return false
	}
	return true
}

// awaitAhead waits for a file that is being fetched ahead; false if it has not begun or ctx ends.
func (f *fetcher) awaitAhead(ctx context.Context, a *aheadFile, moved func()) bool {
	select {
	case <-a.begun:
	case <-a.done:
	default:
		return false
	}
	look := time.NewTicker(heartbeat / 2)
	defer look.Stop()
	for last := a.moved.Load(); ; {
		select {
		case <-a.done:
			return true
		case <-look.C:
			if now := a.moved.Load(); now != last {
				last = now
				moved()
			}
		case <-ctx.Done():
			return false
		}
	}
}

// plan fetches what the recovery will ask for after name, and drops what it will not.
func (f *fetcher) plan(id recoveryID, name string) {
	window := aheadSegments
	if size := f.segSize(id.system); size > 0 {
		window = int(min(int64(window), max(1, aheadBytes/size)))
	}
	next, err := f.route(id, name, window)
	if err != nil {
		f.log.Warn("can't tell which WAL a recovery needs next", "directory", id.dir, "error", err)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ctx.Err() != nil {
		return
	}
	r := f.open[id]
	if r == nil {
		if r = f.begin(id); r == nil {
			return
		}
	}
	r.used = f.now()
	wanted := make(map[string]bool, len(next))
	for _, n := range next {
		wanted[n] = true
	}
	for n := range r.files {
		if !wanted[n] {
			f.drop(r, n)
		}
	}
	for _, n := range next {
		if n == r.restAt && f.now().Before(r.restEnd) {
			break
		}
		if r.files[n] == nil {
			f.fetchAhead(id, r, n)
		}
	}
}

// begin makes room for a recovery; nil if that is not possible. The lock is held.
func (f *fetcher) begin(id recoveryID) *recoveryAhead {
	for len(f.open) >= aheadSessions {
		var oldest recoveryID
		for o, r := range f.open {
			if f.open[oldest] == nil || r.used.Before(f.open[oldest].used) {
				oldest = o
			}
		}
		f.giveUp(oldest)
	}
	f.serial++
	r := &recoveryAhead{dir: filepath.Join(f.dir, fmt.Sprintf("%d-%d", id.system, f.serial)), files: map[string]*aheadFile{}}
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		f.log.Warn("can't fetch WAL ahead", "error", err)
		return nil
	}
	f.open[id] = r
	return r
}

// fetchAhead begins to fetch a file. The lock is held.
func (f *fetcher) fetchAhead(id recoveryID, r *recoveryAhead, name string) {
	ctx, cancel := context.WithCancel(f.ctx)
	a := &aheadFile{path: filepath.Join(r.dir, name), at: f.now(), cancel: cancel, begun: make(chan struct{}), done: make(chan struct{})}
	r.files[name] = a
	f.all.Go(func() {
		defer close(a.done)
		defer cancel()
		select {
		case f.slots <- struct{}{}:
			defer func() { <-f.slots }()
		case <-ctx.Done():
			a.err = ctx.Err()
			return
		}
		if a.err = ctx.Err(); a.err == nil {
			close(a.begun)
			a.err = f.unlessStuck(ctx, func(ctx context.Context, own func()) error {
				return f.fetch(ctx, id.system, name, a.path, false, func() { own(); a.moved.Add(1) })
			})
		}
		if a.err != nil && f.ctx.Err() == nil {
			f.restFrom(r, name, a)
		}
	})
}

// restFrom is for a file that could not be fetched ahead: it can be asked for or planned again, but not at once.
func (f *fetcher) restFrom(r *recoveryAhead, name string, a *aheadFile) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.files[name] != a || errors.Is(a.err, context.Canceled) {
		return // dropped, or being waited for
	}
	delete(r.files, name)
	if now := f.now(); r.restAt == "" || now.After(r.restEnd) || name < r.restAt {
		r.restAt, r.restEnd = name, now.Add(aheadRest)
	}
	if !errors.Is(a.err, archive.ErrNotArchived) {
		f.log.Info("WAL could not be fetched ahead", "file", name, "error", a.err)
	}
}

// handOver moves a file to dest, also onto another file system. As with any fetched file its content is not synced:
// after a crash the server asks again.
func handOver(path, dest string) error {
	err := os.Rename(path, dest)
	if !errors.Is(err, syscall.EXDEV) {
		return err
	}
	from, err := os.Open(path)
	if err != nil {
		return err
	}
	defer from.Close()
	info, err := from.Stat()
	if err != nil {
		return err
	}
	to, err := os.CreateTemp(filepath.Dir(dest), ".pitr-*.tmp")
	if err != nil {
		return err
	}
	n, err := io.Copy(to, from)
	if err == nil && n != info.Size() {
		err = fmt.Errorf("copied %d of %d bytes", n, info.Size())
	}
	if cerr := to.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(to.Name(), dest)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("copy %s to %s: %w", path, dest, err), os.Remove(to.Name()))
	}
	return os.Remove(path)
}
