package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// walDir makes an empty pg_wal.
func walDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "archive_status"), 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func segment(n int) string { return fmt.Sprintf("00000001%016X", n) }

// ready makes a file of pg_wal that waits for its archiver.
func ready(t *testing.T, dir, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(readyFile(dir, name), nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

func done(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.Rename(readyFile(dir, name), filepath.Join(dir, "archive_status", name+".done")); err != nil {
		t.Fatal(err)
	}
}

func TestReadReady(t *testing.T) {
	dir := walDir(t)
	for _, n := range []string{segment(5), "00000002.history", segment(3), segment(4) + ".00000028.backup", segment(4), "00000001.history", "notes", segment(6) + ".partial"} {
		ready(t, dir, n, "x")
	}
	done(t, dir, segment(3))
	all := func(string) bool { return true }
	r, err := readReady(dir, 10, []string{segment(3), segment(5)}, all)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"00000001.history", "00000002.history", segment(4), segment(4) + ".00000028.backup", segment(5), segment(6) + ".partial"}
	if !slices.Equal(r.first, want) || r.more || r.total != len(want) {
		t.Errorf("got %v, more %v, total %d", r.first, r.more, r.total)
	}
	if r.known[segment(3)] || !r.known[segment(5)] || len(r.known) != 2 {
		t.Errorf("known %v", r.known)
	}
	r, err = readReady(dir, 2, nil, func(n string) bool { return n != "00000002.history" })
	if err != nil || !slices.Equal(r.first, []string{"00000001.history", segment(4)}) || !r.more {
		t.Errorf("bounded: %v, more %v, %v", r.first, r.more, err)
	}
	if _, err := readReady(filepath.Join(dir, "none"), 2, nil, all); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

func TestReadReadyPicksTheOldest(t *testing.T) {
	dir := walDir(t)
	const n = 4000
	for i := range n {
		if err := os.WriteFile(readyFile(dir, segment((i*2654435761)%n)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r, err := readReady(dir, 3, nil, func(string) bool { return true })
	if err != nil || !slices.Equal(r.first, []string{segment(0), segment(1), segment(2)}) || !r.more || r.total != n {
		t.Errorf("%v, more %v, total %d, %v", r.first, r.more, r.total, err)
	}
}

// fakePush is a store: it notes what it was given and fails as told.
type fakePush struct {
	mu     sync.Mutex
	calls  []string
	stored map[string]string
	fail   func(name string) error
	hold   chan struct{} // pushes wait for it if set
	most   int           // pushes under way at once
	now    int
}

func (f *fakePush) push(ctx context.Context, path string) (raw, stored int64, err error) {
	f.mu.Lock()
	f.now++
	f.most = max(f.most, f.now)
	name := filepath.Base(path)
	f.calls = append(f.calls, name)
	hold := f.hold
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		f.now--
		f.mu.Unlock()
	}()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return 0, 0, ctx.Err()
		}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		if err := f.fail(name); err != nil {
			return 0, 0, err
		}
	}
	if f.stored == nil {
		f.stored = map[string]string{}
	}
	f.stored[name] = string(data)
	return int64(len(data)), 1, nil
}

// content is what was stored of name, and how many files were.
func (f *fakePush) content(name string) (string, int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.stored[name], len(f.stored)
}

func (f *fakePush) tries() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.calls)
}

func (f *fakePush) count(name string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, c := range f.calls {
		if c == name {
			n++
		}
	}
	return n
}

var errConflict = errors.New("other content")

func testPusher(dir string, f *fakePush, workers int) *pusher {
	p := newPusher(dir, workers, 10*time.Second)
	p.push = f.push
	p.allowed = func() error { return nil }
	p.onlyThis = func(err error) bool { return errors.Is(err, errConflict) }
	p.log = slog.New(slog.DiscardHandler)
	p.now = time.Now
	return p
}

// running runs p in the bubble until stop is called.
func running(p *pusher) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	hurry, give := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		p.run(ctx, hurry)
	}()
	return func() {
		cancel()
		synctest.Wait()
		give()
		<-ended
	}
}

func TestPushAhead(t *testing.T) {
	dir := walDir(t)
	for i := range 600 {
		ready(t, dir, segment(i), fmt.Sprint("content ", i))
	}
	ready(t, dir, "00000002.history", "1\t0/3000000\tno reason\n")
	synctest.Test(t, func(t *testing.T) {
		f := &fakePush{}
		p := testPusher(dir, f, 3)
		stop := running(p)
		defer stop()
		time.Sleep(sweepApart * 10)
		synctest.Wait()
		f.mu.Lock()
		if len(f.stored) != 601 || f.stored[segment(599)] != "content 599" {
			t.Errorf("%d files stored", len(f.stored))
		}
		if f.most > 3 {
			t.Errorf("%d pushes at once", f.most)
		}
		f.mu.Unlock()
		for i := range 600 {
			if err := p.ask(t.Context(), filepath.Join(dir, segment(i))); err != nil {
				t.Fatal(err)
			}
		}
		if n := f.tries(); n != 601 {
			t.Errorf("%d pushes of 601 files", n)
		}
		// What the server is done with is forgotten.
		done(t, dir, segment(7))
		time.Sleep(2 * sweepEvery)
		p.mu.Lock()
		if _, ok := p.stored[segment(7)]; ok || len(p.stored) != 600 {
			t.Errorf("%d files remembered, the one that is done: %v", len(p.stored), ok)
		}
		p.mu.Unlock()
	})
}

func TestPushOrder(t *testing.T) {
	dir := walDir(t)
	want := []string{"00000002.history", segment(1), segment(2), segment(2) + ".00000028.backup", segment(3)}
	for _, i := range []int{3, 0, 4, 1, 2} {
		ready(t, dir, want[i], "x")
	}
	synctest.Test(t, func(t *testing.T) {
		f := &fakePush{}
		defer running(testPusher(dir, f, 1))()
		synctest.Wait()
		f.mu.Lock()
		defer f.mu.Unlock()
		if !slices.Equal(f.calls, want) {
			t.Errorf("pushed in the order %v", f.calls)
		}
	})
}

// A name that came to stand for another file is pushed again, whatever is remembered.
func TestOtherFileOfTheName(t *testing.T) {
	dir := walDir(t)
	ready(t, dir, segment(1), "one")
	synctest.Test(t, func(t *testing.T) {
		f := &fakePush{}
		p := testPusher(dir, f, 2)
		defer running(p)()
		path := filepath.Join(dir, segment(1))
		if err := p.ask(t.Context(), path); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path+".new", []byte("two"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
		if err := p.ask(t.Context(), path); err != nil {
			t.Fatal(err)
		}
		if c, _ := f.content(segment(1)); c != "two" {
			t.Errorf("stored %q", c)
		}
	})
}

// A file that changes while it is archived is never remembered, and the hook hears of it.
func TestFileChangesMeanwhile(t *testing.T) {
	dir := walDir(t)
	ready(t, dir, segment(1), "one")
	synctest.Test(t, func(t *testing.T) {
		f := &fakePush{}
		path := filepath.Join(dir, segment(1))
		f.fail = func(string) error { return os.WriteFile(path, []byte("other"), 0o600) }
		p := testPusher(dir, f, 1)
		defer running(p)()
		if err := p.ask(t.Context(), path); err == nil || !strings.Contains(err.Error(), "changed meanwhile") {
			t.Errorf("got %v", err)
		}
		p.mu.Lock()
		if len(p.stored) != 0 {
			t.Errorf("remembered %v", p.stored)
		}
		p.mu.Unlock()
	})
}

// One conflict neither stops the others nor is it tried all the time; who asks gets the error each time.
func TestConflict(t *testing.T) {
	dir := walDir(t)
	for i := range 10 {
		ready(t, dir, segment(i), "x")
	}
	synctest.Test(t, func(t *testing.T) {
		f := &fakePush{}
		f.fail = func(name string) error {
			if name == segment(4) {
				return errConflict
			}
			return nil
		}
		p := testPusher(dir, f, 2)
		defer running(p)()
		time.Sleep(5 * time.Minute)
		if _, n := f.content(""); n != 9 {
			t.Errorf("%d files stored", n)
		}
		if n := f.count(segment(4)); n < 5 || n > 16 {
			t.Errorf("%d tries in five minutes", n)
		}
		if err := p.ask(t.Context(), filepath.Join(dir, segment(4))); !errors.Is(err, errConflict) {
			t.Errorf("asked: %v", err)
		}
		// Settled: the next who asks gets it stored.
		f.mu.Lock()
		f.fail = nil
		f.mu.Unlock()
		if err := p.ask(t.Context(), filepath.Join(dir, segment(4))); err != nil {
			t.Errorf("asked after it was settled: %v", err)
		}
	})
}

// A dead store is not hammered, hooks get its error at once, and everything goes on when it is back.
func TestDeadStore(t *testing.T) {
	dir := walDir(t)
	for i := range 100 {
		ready(t, dir, segment(i), "x")
	}
	synctest.Test(t, func(t *testing.T) {
		dead := errors.New("store does not answer")
		f := &fakePush{fail: func(string) error { return dead }}
		p := testPusher(dir, f, 4)
		defer running(p)()
		time.Sleep(10 * time.Minute)
		if n := f.tries(); n > 120 {
			t.Errorf("%d tries in ten minutes", n)
		}
		began := time.Now()
		if err := p.ask(t.Context(), filepath.Join(dir, segment(0))); !errors.Is(err, dead) || time.Since(began) > time.Second {
			t.Errorf("asked: %v after %v", err, time.Since(began))
		}
		f.mu.Lock()
		f.fail = nil
		f.mu.Unlock()
		if err := p.ask(t.Context(), filepath.Join(dir, segment(0))); err != nil {
			t.Errorf("asked when it is back: %v", err)
		}
		time.Sleep(35 * time.Second)
		if _, n := f.content(""); n != 100 {
			t.Errorf("%d files stored", n)
		}
		p.mu.Lock()
		if p.stats.files != 100 || p.stats.lastFailure == nil {
			t.Errorf("stats %+v", p.stats)
		}
		p.mu.Unlock()
	})
}

// A store that hangs does not hold a hook for longer than archive.timeout.
func TestHangingStore(t *testing.T) {
	dir := walDir(t)
	for i := range 4 {
		ready(t, dir, segment(i), "x")
	}
	synctest.Test(t, func(t *testing.T) {
		f := &fakePush{hold: make(chan struct{})}
		p := testPusher(dir, f, 2)
		defer running(p)()
		synctest.Wait()
		for _, n := range []int{0, 3} { // under way, and waiting for a worker
			began := time.Now()
			if err := p.ask(t.Context(), filepath.Join(dir, segment(n))); err == nil || time.Since(began) > 10*time.Second {
				t.Errorf("asked: %v after %v", err, time.Since(began))
			}
		}
		close(f.hold)
	})
}

// Stopping answers who waits for what has not begun, and lets what has begun finish.
func TestStop(t *testing.T) {
	dir := walDir(t)
	ready(t, dir, segment(0), "x")
	ready(t, dir, segment(1), "y")
	synctest.Test(t, func(t *testing.T) {
		f := &fakePush{hold: make(chan struct{})}
		p := testPusher(dir, f, 1)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			p.run(ctx, t.Context())
		}()
		synctest.Wait() // the first is under way
		errs := make(chan error, 1)
		go func() { errs <- p.ask(t.Context(), filepath.Join(dir, segment(1))) }()
		synctest.Wait()
		cancel()
		if err := <-errs; err != errStopping {
			t.Errorf("who waited: %v", err)
		}
		if err := p.ask(t.Context(), filepath.Join(dir, segment(1))); err != errStopping {
			t.Errorf("who asks now: %v", err)
		}
		close(f.hold)
		<-ended
		if f.stored[segment(0)] != "x" || len(f.calls) != 1 {
			t.Errorf("stored %v, pushes %v", f.stored, f.calls)
		}
	})
}

func TestNotAllowed(t *testing.T) {
	dir := walDir(t)
	ready(t, dir, segment(0), "x")
	synctest.Test(t, func(t *testing.T) {
		f := &fakePush{}
		p := testPusher(dir, f, 1)
		no := errors.New("a restored copy archives nothing")
		p.allowed = func() error { return no }
		defer running(p)()
		time.Sleep(time.Minute)
		if err := p.ask(t.Context(), filepath.Join(dir, segment(0))); err != no {
			t.Errorf("got %v", err)
		}
		if len(f.calls) != 0 {
			t.Errorf("pushed %v", f.calls)
		}
	})
}

func TestCounter(t *testing.T) {
	var c counter
	at := time.Unix(1_000_000, 0)
	for i := range 120 {
		c.add(at.Add(time.Duration(i) * time.Second))
	}
	now := at.Add(119 * time.Second)
	if r := c.rate(now); r != 1 {
		t.Errorf("one a second gives %v", r)
	}
	if r := c.rate(now.Add(30 * time.Second)); r != 0.5 {
		t.Errorf("half a minute later %v", r)
	}
	if r := c.rate(now.Add(-time.Hour)); r != 0 {
		t.Errorf("after the clock went back %v", r)
	}
}
