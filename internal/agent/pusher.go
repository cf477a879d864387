package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"pitr/internal/hint"
	"pitr/internal/wal"
)

const (
	// sweepEvery is how often the agent looks for WAL that nobody has asked it to archive yet.
	sweepEvery = time.Second
	// sweepApart is how close two looks may follow each other when there is reason to look early.
	sweepApart = 50 * time.Millisecond
	// sweepLimit bounds what is planned by one look.
	sweepLimit = 256
	// firstPause and longestPause bound how long pushing ahead rests after a failure. What a hook asks for is tried all
	// the same: the server itself waits between its tries (PGARCH_RESTART_INTERVAL of pgarch.c).
	firstPause   = time.Second
	longestPause = 30 * time.Second
)

// A pusher archives the files of one pg_wal: those that the server's hook asks for at once, and those that are ready
// while workers are idle. Of one name there is never more than one push under way.
//
// What it remembers as stored is only a shortcut: it holds a name no longer than the server keeps its ".ready" file, and
// is believed only while the file is the same one.
type pusher struct {
	walDir  string
	push    func(ctx context.Context, path string) (raw, stored int64, err error)
	workers int
	timeout time.Duration // of one file
	// allowed is asked before each file: an error forbids archiving from this directory for now.
	allowed func() error
	// onlyThis tells whether an error is about this file alone, so that others need not wait for it.
	onlyThis func(error) bool
	log      *slog.Logger
	now      func() time.Time

	kick chan struct{} // of capacity 1: look soon

	mu     sync.Mutex
	wake   *sync.Cond // on mu: a worker may find something to do
	jobs   map[string]*pushJob
	asked  []*pushJob // wanted by a hook, not begun
	ahead  []string   // ready, wanted by nobody yet
	more   bool       // the last look found more than it took
	stored map[string]fileID
	failed map[string]failedPush
	pause  time.Duration // the current one; 0: the last push went well
	resume time.Time     // no pushing ahead before
	closed bool
	stats  pushStats
}

// pushJob is one push under way or wanted.
type pushJob struct {
	name  string
	ahead bool // began with nobody asking
	done  chan struct{}
	err   error // once done is closed
}

// errNotReady ends a push ahead of a file that needs none any more.
var errNotReady = errors.New("not ready any more")

type failedPush struct {
	pause  time.Duration
	resume time.Time
}

func newPusher(walDir string, workers int, timeout time.Duration) *pusher {
	p := &pusher{
		walDir: walDir, workers: workers, timeout: timeout,
		kick: make(chan struct{}, 1),
		jobs: map[string]*pushJob{}, stored: map[string]fileID{}, failed: map[string]failedPush{},
	}
	p.wake = sync.NewCond(&p.mu)
	return p
}

// run works until ctx ends, and then lets what has begun go on until hurry ends.
func (p *pusher) run(ctx, hurry context.Context) {
	var all sync.WaitGroup
	for range p.workers {
		all.Go(func() {
			for j := p.next(); j != nil; j = p.next() {
				p.finish(j, p.one(hurry, j))
			}
		})
	}
	all.Go(func() { p.sweep(ctx) })
	<-ctx.Done()
	p.close()
	all.Wait()
}

// close lets workers end and those who wait for what has not begun know.
func (p *pusher) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, j := range p.asked {
		j.err = errStopping
		delete(p.jobs, j.name)
		close(j.done)
	}
	p.asked, p.ahead = nil, nil
	p.wake.Broadcast()
}

// ask has the file at path archived. It waits for that, at most as long as one file may take or ctx lasts.
func (p *pusher) ask(ctx context.Context, path string) error {
	name := filepath.Base(path)
	if wal.Classify(name) == wal.Other {
		return hint.Wrap(fmt.Errorf("push %s: this is not a file that PostgreSQL archives", path),
			"`pitr wal push` takes the path of a WAL segment, a timeline history or a backup history file")
	}
	if err := p.allowed(); err != nil {
		return err
	}
	id, err := identify(filepath.Join(p.walDir, name))
	if err != nil {
		return fmt.Errorf("push %s: %w", path, err)
	}
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	var j *pushJob
	for {
		var known bool
		if j, known = p.want(name, id); known {
			return nil
		}
		select {
		case <-j.done:
			if j.err == errNotReady {
				continue // that was before somebody asked
			}
			return j.err
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return ctx.Err()
			}
			return hint.Wrap(fmt.Errorf("push %s: not stored after %v", path, p.timeout),
				"the store is slow or does not answer; the agent's log and `pitr status` say more. The server keeps the segment and tries again")
		}
	}
}

// want returns the push of name to wait for, or known if that very file is stored.
func (p *pusher) want(name string, id fileID) (j *pushJob, known bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.ahead) == 0 {
		p.lookSoon()
	}
	if was, ok := p.stored[name]; ok && was == id {
		return nil, true
	}
	if j = p.jobs[name]; j != nil {
		return j, false
	}
	j = &pushJob{name: name, done: make(chan struct{})}
	if p.closed {
		j.err = errStopping
		close(j.done)
		return j, false
	}
	p.jobs[name] = j
	p.asked = append(p.asked, j)
	p.wake.Signal()
	return j, false
}

func (p *pusher) lookSoon() {
	select {
	case p.kick <- struct{}{}:
	default: // somebody else said so
	}
}

// next waits for something to do; nil means the end.
func (p *pusher) next() *pushJob {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		if p.closed {
			return nil
		}
		if len(p.asked) > 0 {
			j := p.asked[0]
			p.asked = p.asked[1:]
			return j
		}
		if j := p.nextAhead(); j != nil {
			return j
		}
		p.wake.Wait()
	}
}

// nextAhead takes the next name that nobody waits for, nil if there is none or pushing ahead rests.
func (p *pusher) nextAhead() *pushJob {
	if p.now().Before(p.resume) {
		return nil
	}
	for len(p.ahead) > 0 {
		name := p.ahead[0]
		p.ahead = p.ahead[1:]
		if len(p.ahead) == 0 && p.more {
			p.lookSoon()
		}
		if _, stored := p.stored[name]; stored || p.jobs[name] != nil {
			continue
		}
		j := &pushJob{name: name, ahead: true, done: make(chan struct{})}
		p.jobs[name] = j
		return j
	}
	return nil
}

// one archives one file.
func (p *pusher) one(ctx context.Context, j *pushJob) pushResult {
	// A little less than the one who asked waits, so that he hears the reason.
	ctx, cancel := context.WithTimeout(ctx, p.timeout*9/10)
	defer cancel()
	r := pushResult{path: filepath.Join(p.walDir, j.name)}
	if j.ahead {
		// While its ".ready" file is there, the server does not give the segment a new name and content.
		if _, err := os.Lstat(readyFile(p.walDir, j.name)); err != nil {
			r.err = errNotReady
			return r
		}
	}
	if r.err = p.allowed(); r.err != nil {
		return r
	}
	if r.id, r.err = identify(r.path); r.err != nil {
		r.err = fmt.Errorf("push %s: %w", r.path, r.err)
		return r
	}
	if r.raw, r.stored, r.err = p.push(ctx, r.path); r.err != nil {
		if errors.Is(r.err, context.DeadlineExceeded) {
			r.err = hint.Wrap(fmt.Errorf("%w (after %v)", r.err, p.timeout),
				"the store is slow or does not answer; `archive.timeout` says how long one file may take")
		}
		return r
	}
	// What was stored may be remembered only if the name stood for the same file from before to after.
	if id, err := identify(r.path); err != nil || id != r.id {
		r.err = fmt.Errorf("push %s: the file changed meanwhile", r.path)
	}
	return r
}

type pushResult struct {
	path        string
	id          fileID
	raw, stored int64
	err         error
}

// finish tells everybody how a push ended.
func (p *pusher) finish(j *pushJob, r pushResult) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	j.err = r.err
	delete(p.jobs, j.name)
	close(j.done)
	switch {
	case r.err == nil:
		p.stored[j.name] = r.id
		delete(p.failed, j.name)
		if p.pause != 0 {
			p.log.Info("archiving works again", "file", j.name)
		}
		p.pause, p.resume = 0, time.Time{}
		p.stats.succeeded(now, j.name, r)
		p.wake.Broadcast() // a rest may be over
	case r.err == errNotReady, errors.Is(r.err, context.Canceled) && p.closed:
		// Nobody did anything wrong.
	default:
		f := p.failed[j.name]
		f.pause = min(max(2*f.pause, firstPause), longestPause)
		f.resume = now.Add(f.pause)
		p.failed[j.name] = f
		if !p.onlyThis(r.err) && !now.Before(p.resume) { // several workers' failures at once count as one
			p.pause = min(max(2*p.pause, firstPause), longestPause)
			p.resume = now.Add(p.pause)
		}
		if p.stats.failed(now, j.name, r.err) {
			p.log.Error("archiving failed", "file", j.name, "error", r.err, "hint", hint.Of(r.err))
		}
	}
}

// sweep looks for files that are ready, until ctx ends.
func (p *pusher) sweep(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		began := time.Now()
		p.look()
		rest := time.NewTimer(sweepApart - time.Since(began))
		select {
		case <-ctx.Done():
		case <-rest.C:
		}
		rest.Stop()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-p.kick:
		}
	}
}

// look plans what can be pushed ahead.
func (p *pusher) look() {
	now := p.now()
	if err := p.allowed(); err != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.stats.looked(now, 0, err, p.log)
		p.ahead, p.more = nil, false
		return
	}
	p.mu.Lock()
	remembered := make([]string, 0, len(p.stored)+len(p.failed))
	skip := make(map[string]bool, cap(remembered))
	for name := range p.stored {
		remembered, skip[name] = append(remembered, name), true
	}
	for name, f := range p.failed {
		remembered = append(remembered, name)
		skip[name] = skip[name] || now.Before(f.resume)
	}
	p.mu.Unlock()

	r, err := readReady(p.walDir, sweepLimit, remembered, func(name string) bool { return !skip[name] })

	p.mu.Lock()
	defer p.mu.Unlock()
	p.stats.looked(now, r.total, err, p.log)
	if err != nil {
		p.ahead, p.more = nil, false
		return
	}
	for name, ready := range r.known {
		if !ready {
			// The server is done with it, or has never asked. Whatever comes under this name again is looked at anew.
			delete(p.stored, name)
			delete(p.failed, name)
		}
	}
	p.ahead, p.more = r.first, r.more
	p.wake.Broadcast()
}
