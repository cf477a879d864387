package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pitr/archive"
	"pitr/internal/hint"
)

// fakeArchive holds segments 0 to last of system 7.
type fakeArchive struct {
	mu    sync.Mutex
	last  int
	calls map[string]int
	fail  error
	delay time.Duration
}

func (f *fakeArchive) fetch(ctx context.Context, system uint64, name, path string, partial bool, moved func()) error {
	f.mu.Lock()
	if f.calls == nil {
		f.calls = map[string]int{}
	}
	f.calls[name]++
	last, fail, delay := f.last, f.fail, f.delay
	f.mu.Unlock()
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if fail != nil {
		return fail
	}
	if name > segment(last) {
		return fmt.Errorf("fetch %s: %w", name, archive.ErrNotArchived)
	}
	return os.WriteFile(path, fmt.Append(nil, system, " ", name), 0o600)
}

func (f *fakeArchive) asked(name string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[name]
}

func (f *fakeArchive) total() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, c := range f.calls {
		n += c
	}
	return n
}

func testFetcher(t *testing.T, a *fakeArchive) *fetcher {
	f := newFetcher(t.TempDir(), 2, time.Minute)
	f.fetch = a.fetch
	f.segSize = func(uint64) int64 { return 16 << 20 }
	f.route = func(_ recoveryID, name string, n int) ([]string, error) {
		var no int
		if _, err := fmt.Sscanf(name[8:], "%X", &no); err != nil {
			return nil, err
		}
		var names []string
		for i := range n {
			names = append(names, segment(no+1+i))
		}
		return names, nil
	}
	f.log = slog.New(slog.DiscardHandler)
	f.now = time.Now
	return f
}

func fetching(t *testing.T, f *fetcher) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- f.run(ctx) }()
	return func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

func files(t *testing.T, dir string) (n int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			n++
		}
		return err
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return n
}

func TestFetchAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &fakeArchive{last: 50}
		f := testFetcher(t, a)
		stop := fetching(t, f)
		id := recoveryID{7, "/data"}
		dest := filepath.Join(t.TempDir(), "RECOVERYXLOG")
		for i := range 51 {
			if err := f.get(t.Context(), id, segment(i), dest, false, func() {}); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(dest); err != nil || string(got) != "7 "+segment(i) {
				t.Fatalf("segment %d: %q, %v", i, got, err)
			}
			synctest.Wait()
			if n := files(t, f.dir); n > aheadSegments {
				t.Fatalf("%d files lie there", n)
			}
			if i == 3 && files(t, f.dir) != aheadSegments {
				t.Errorf("%d files were fetched ahead", files(t, f.dir))
			}
		}
		for i := range 51 {
			if n := a.asked(segment(i)); n != 1 {
				t.Errorf("segment %d was fetched %d times", i, n)
			}
		}
		f.mu.Lock()
		if f.stats.ahead != 50 || f.stats.asked != 51 {
			t.Errorf("stats %+v", f.stats)
		}
		f.mu.Unlock()
		// The end: absent each time it is asked for, and there once it is archived.
		before := a.asked(segment(51))
		for range 3 {
			if err := f.get(t.Context(), id, segment(51), dest, false, func() {}); !errors.Is(err, archive.ErrNotArchived) {
				t.Errorf("behind the end: %v", err)
			}
		}
		if n := a.asked(segment(51)) - before; n != 3 {
			t.Errorf("the archive was asked %d times", n)
		}
		a.mu.Lock()
		a.last = 52
		a.mu.Unlock()
		if err := f.get(t.Context(), id, segment(51), dest, false, func() {}); err != nil {
			t.Errorf("when it came: %v", err)
		}
		stop()
		if _, err := os.Stat(f.dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the directory is still there: %v", err)
		}
	})
}

// At the end of the archive a standby that asks again and again costs one question each time, and few ahead.
func TestFetchAheadRestsAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &fakeArchive{last: 3}
		f := testFetcher(t, a)
		defer fetching(t, f)()
		id, dest := recoveryID{7, "/data"}, filepath.Join(t.TempDir(), "x")
		for i := range 4 {
			if err := f.get(t.Context(), id, segment(i), dest, false, func() {}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		before := a.total()
		for range 100 {
			if err := f.get(t.Context(), id, segment(4), dest, false, func() {}); !errors.Is(err, archive.ErrNotArchived) {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		if n := a.total() - before; n != 100 {
			t.Errorf("%d questions", n)
		}
		if before > 4+3*aheadSegments {
			t.Errorf("%d questions for 4 segments", before)
		}
	})
}

// Each recovery gets only what was fetched for it.
func TestRecoveriesApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &fakeArchive{last: 100}
		f := testFetcher(t, a)
		defer fetching(t, f)()
		dir := t.TempDir()
		for system := range uint64(8) {
			dest := filepath.Join(dir, fmt.Sprint(system))
			for i := range 3 {
				if err := f.get(t.Context(), recoveryID{system, "/data"}, segment(i), dest, false, func() {}); err != nil {
					t.Fatal(err)
				}
				if got, err := os.ReadFile(dest); err != nil || string(got) != fmt.Sprint(system, " ", segment(i)) {
					t.Errorf("system %d got %q, %v", system, got, err)
				}
				time.Sleep(time.Second)
			}
		}
		if n := files(t, f.dir); n > aheadSessions*aheadSegments {
			t.Errorf("%d files lie there", n)
		}
		// A jump within one recovery drops what it passes over.
		if err := f.get(t.Context(), recoveryID{7, "/data"}, segment(60), filepath.Join(dir, "y"), false, func() {}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		f.mu.Lock()
		for name := range f.open[recoveryID{7, "/data"}].files {
			if name <= segment(60) || name > segment(76) {
				t.Errorf("%s is kept", name)
			}
		}
		f.mu.Unlock()
		// Those that ask for nothing more are given up.
		time.Sleep(2 * aheadIdle)
		synctest.Wait()
		if n := files(t, f.dir); n != 0 {
			t.Errorf("%d files lie there", n)
		}
	})
}

func TestFetchAheadGoesStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &fakeArchive{last: 100}
		f := testFetcher(t, a)
		defer fetching(t, f)()
		id, dest := recoveryID{7, "/data"}, filepath.Join(t.TempDir(), "x")
		if err := f.get(t.Context(), id, segment(0), dest, false, func() {}); err != nil {
			t.Fatal(err)
		}
		for range 6 { // keeps the recovery alive, but needs none of the files
			time.Sleep(time.Minute)
			f.serve(t.Context(), id, segment(90), dest, func() {})
		}
		if err := f.get(t.Context(), id, segment(1), dest, false, func() {}); err != nil {
			t.Fatal(err)
		}
		if n := a.asked(segment(1)); n != 2 {
			t.Errorf("fetched %d times", n)
		}
	})
}

// What fails ahead fails nobody; who asks gets the error of then.
func TestFetchAheadFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &fakeArchive{last: 100}
		f := testFetcher(t, a)
		defer fetching(t, f)()
		id, dest := recoveryID{7, "/data"}, filepath.Join(t.TempDir(), "x")
		a.delay = 10 * time.Second
		if err := f.get(t.Context(), id, segment(0), dest, false, func() {}); err != nil {
			t.Fatal(err)
		}
		a.mu.Lock()
		a.fail = errors.New("store away")
		a.mu.Unlock()
		time.Sleep(time.Minute)
		if err := f.get(t.Context(), id, segment(1), dest, false, func() {}); err != nil && err.Error() != "store away" {
			t.Errorf("got %v", err)
		}
		a.mu.Lock()
		a.fail = nil
		a.mu.Unlock()
		if err := f.get(t.Context(), id, segment(4), dest, false, func() {}); err != nil {
			t.Errorf("when the store is back: %v", err)
		}
		// Who gives up waiting for what is under way leaves nothing behind.
		if err := f.get(t.Context(), id, segment(40), dest, false, func() {}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := f.get(ctx, id, segment(42), dest, false, func() {}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		time.Sleep(2 * time.Minute)
		if n := files(t, f.dir); n > aheadSegments {
			t.Errorf("%d files lie there", n)
		}
	})
}

func TestHandOver(t *testing.T) {
	dir := t.TempDir()
	src, dst := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	for p, s := range map[string]string{src: "new", dst: "old and longer"} {
		if err := os.WriteFile(p, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := handOver(src, dst); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(dst); err != nil || string(got) != "new" {
		t.Errorf("got %q, %v", got, err)
	}
	// /dev/shm is another file system than the test's directory wherever both exist.
	other, err := os.MkdirTemp("/dev/shm", "pitr-test")
	if err != nil {
		t.Fatalf("a second file system is needed: %v", err)
	}
	defer os.RemoveAll(other)
	if err := handOver(dst, filepath.Join(other, "c")); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(other, "c")); err != nil || string(got) != "new" {
		t.Errorf("got %q, %v", got, err)
	}
	if n := files(t, dir) + files(t, other); n != 1 {
		t.Errorf("%d files are left", n)
	}
}

// A store that is slow is waited for while something comes, whether the file was asked for or is fetched ahead; one of which
// nothing comes is given up.
func TestFetchSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := testFetcher(t, nil)
		var mu sync.Mutex
		steps, calls := 30, map[string]int{}
		f.fetch = func(ctx context.Context, _ uint64, name, path string, _ bool, moved func()) error {
			mu.Lock()
			calls[name]++
			n := steps
			mu.Unlock()
			for range n {
				select {
				case <-time.After(f.timeout / 2):
					moved()
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			if n == 1 {
				<-ctx.Done()
				return ctx.Err()
			}
			return os.WriteFile(path, nil, 0o600)
		}
		defer fetching(t, f)()
		id, dest := recoveryID{7, "/data"}, filepath.Join(t.TempDir(), "x")
		for _, n := range []int{0, 1} {
			heard := 0
			if err := f.get(t.Context(), id, segment(n), dest, false, func() { heard++ }); err != nil || heard < steps-1 {
				t.Errorf("segment %d: %v, moved %d times", n, err, heard)
			}
		}
		// The workers are busy with others: who asks does not wait for them.
		begin := time.Now()
		if err := f.get(t.Context(), id, segment(16), dest, false, func() {}); err != nil || time.Since(begin) > time.Duration(steps+1)*f.timeout/2 {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
		mu.Lock()
		steps = 1
		mu.Unlock()
		begin = time.Now()
		err := f.get(t.Context(), id, segment(90), dest, false, func() {})
		if err == nil || errors.Is(err, context.Canceled) || hint.Of(err) == "" || time.Since(begin) != f.timeout*3/2 {
			t.Errorf("stuck: %v after %v", err, time.Since(begin))
		}
	})
}
