package archive

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"pitr/internal/repo"
	"pitr/internal/wal"
	"pitr/storage"
	"pitr/storage/storagetest"
)

// Many may roll up, and delete what they think is replaced, at the same time.
func TestRollUpsOfManyWriters(t *testing.T) {
	c := wals(t, 1)
	for where, open := range buckets(t) {
		b := open()
		a := c.archive(t, b)
		c.push(t, a, c.history)
		path := []Step(nil)
		var from wal.LSN
		for n, name := range c.segments {
			c.push(t, a, name)
			if n%5 != 4 && n != len(c.segments)-1 {
				continue
			}
			var all sync.WaitGroup
			errs := make(chan error, 3)
			for i := range 3 {
				all.Go(func() {
					w := roller{archive: c.archive(t, b), stretches: stretches{2, 8}, verify: i == 0}
					errs <- w.run(context.Background())
				})
			}
			all.Wait()
			for range 3 {
				if err := <-errs; err != nil {
					t.Errorf("%s: %v", where, err)
				}
			}
		}
		path, from = c.whole(t, a, 2)
		wantSame(t, a, path, from)
		rollUpWith(t, a, stretches{2, 8}, true)
		if done := rollUpWith(t, a, stretches{2, 8}, true); done != (RolledUp{}) {
			t.Errorf("%s: it does not come to rest: %+v", where, done)
		}
		if wantSame(t, a, path, from) < 5 {
			t.Errorf("%s: few segments are skimmed", where)
		}
	}
}

func TestPruneRemovesRollUps(t *testing.T) {
	ctx := context.Background()
	c := wals(t, 1)
	a := c.archive(t, storagetest.Memory())
	c.push(t, a, c.names...)
	rollUpWith(t, a, stretches{1, 4}, false)
	first := ofTimeline(c.segments, "00000001")
	_, cut, err := wal.ParseSegmentName(first[len(first)/2], a.segSize())
	if err != nil {
		t.Fatal(err)
	}
	cov, err := a.Coverage(ctx)
	if err != nil {
		t.Fatal(err)
	}
	plan := PlanPrune(cov, []Need{{Timeline: 1, From: wal.SegmentStart(cut, a.segSize()), Why: "a test"}})
	if _, _, err := a.Prune(ctx, plan); err != nil {
		t.Fatal(err)
	}
	for _, key := range keys(t, a.repo, repo.IndexPrefix) {
		if n := mustName(t, key); n.timeline == 1 && n.last < cut {
			t.Errorf("%s is still there, and WAL from number %X on", key, cut)
		}
	}
	// One that came after its segments had gone, as another host's may, goes with the next run.
	stray := &rollUp{timeline: 1, first: 0, entries: make([]rollUpItem, 1)}
	key, err := a.writeRollUp(ctx, stray)
	if err != nil {
		t.Fatal(err)
	}
	if rollUpWith(t, a, stretches{1, 4}, false); slices.Contains(keys(t, a.repo, repo.IndexPrefix), key) {
		t.Errorf("%s is still there", key)
	}
	if done := rollUpWith(t, a, stretches{1, 4}, true); done != (RolledUp{}) {
		t.Errorf("%+v", done)
	}
	h, err := cov.History(2)
	if err != nil {
		t.Fatal(err)
	}
	if cov, err = a.Coverage(ctx); err != nil {
		t.Fatal(err)
	}
	from := wal.SegmentStart(cut, a.segSize())
	path, missing := cov.Path(h, from, cov.End(h))
	if missing != nil {
		t.Fatal(missing)
	}
	wantSame(t, a, path, from)
}

// A store that fails, at any step, leaves roll-ups that the next run completes.
func TestRollUpFailsAtEveryStep(t *testing.T) {
	c := wals(t, 1)
	b := storagetest.Memory()
	a := c.archive(t, b)
	c.push(t, a, c.names...)
	path, from := c.whole(t, a, 2)
	for n := 1; ; n++ {
		if err := a.repo.Delete(context.Background(), keys(t, a.repo, repo.IndexPrefix)...); err != nil {
			t.Fatal(err)
		}
		rollUpWith(t, a, stretches{1, 4}, false)
		f := &failing{Bucket: b}
		f.left.Store(int64(n))
		w := roller{archive: c.archive(t, f), stretches: stretches{2, 8}, verify: true}
		err := w.run(context.Background())
		if err == nil {
			if n < 10 {
				t.Errorf("only %d operations", n)
			}
			break
		}
		if !errors.Is(err, errFailing) {
			t.Fatalf("step %d: %v", n, err)
		}
		if n%7 == 0 {
			wantSame(t, a, path, from)
		}
		rollUpWith(t, a, stretches{2, 8}, true)
		if done := rollUpWith(t, a, stretches{2, 8}, true); done != (RolledUp{}) {
			t.Errorf("after step %d it does not come to rest: %+v", n, done)
		}
	}
}

var errFailing = errors.New("the store fails")

// failing is a store whose operations fail once so many were done.
type failing struct {
	storage.Bucket
	left atomic.Int64
}

func (f *failing) fail() error {
	if f.left.Add(-1) < 0 {
		return errFailing
	}
	return nil
}

func (f *failing) Create(ctx context.Context, key string, r io.Reader) error {
	if err := f.fail(); err != nil {
		return err
	}
	return f.Bucket.Create(ctx, key, r)
}

func (f *failing) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	if err := f.fail(); err != nil {
		return nil, err
	}
	return f.Bucket.Get(ctx, key)
}

func (f *failing) GetRange(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	if err := f.fail(); err != nil {
		return nil, err
	}
	return f.Bucket.GetRange(ctx, key, off, n)
}

func (f *failing) Delete(ctx context.Context, keys ...string) error {
	if err := f.fail(); err != nil {
		return err
	}
	return f.Bucket.Delete(ctx, keys...)
}
