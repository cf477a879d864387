package storage_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pitr/storage"
	"pitr/storage/storagetest"
)

func TestPrefix(t *testing.T) {
	inner := storagetest.Memory()
	b := storage.Prefix(storage.Prefix(inner, "a/b"), "c/")
	create(t, b, "k", "x")
	wantKeys(t, inner, "a/b/c/k")
	wantKeys(t, b, "k")
	if got := b.String(); got != inner.String()+"/a/b/c" {
		t.Errorf("name is %s", got)
	}
	if storage.Prefix(inner, "") != inner {
		t.Error("the empty prefix makes another bucket")
	}
	if err := storage.Prefix(inner, "../up").Create(t.Context(), "k", strings.NewReader("x")); !errors.Is(err, storage.ErrInvalidKey) {
		t.Errorf("a prefix that leads out: %v, want ErrInvalidKey", err)
	}
}

func TestLimit(t *testing.T) {
	const size = 10 << 20
	for _, c := range []struct {
		name     string
		up, down int64
		op       func(ctx context.Context, b storage.Bucket) error
		want     time.Duration
	}{
		{"up", 1 << 20, 0, func(ctx context.Context, b storage.Bucket) error {
			return b.Create(ctx, "new", io.LimitReader(zeros{}, size))
		}, 10 * time.Second},
		{"down does not hold up", 0, 1 << 20, func(ctx context.Context, b storage.Bucket) error {
			return b.Create(ctx, "new", io.LimitReader(zeros{}, size))
		}, 0},
		{"down", 0, 1 << 20, func(ctx context.Context, b storage.Bucket) error {
			_, err := read(b, "old")
			return err
		}, 10 * time.Second},
		{"down, by range", 0, 1 << 20, func(ctx context.Context, b storage.Bucket) error {
			r, err := b.GetRange(ctx, "old", 0, size/2)
			if err != nil {
				return err
			}
			_, err = io.Copy(io.Discard, r)
			return err
		}, 5 * time.Second},
		{"up does not hold down", 1 << 20, 0, func(ctx context.Context, b storage.Bucket) error {
			_, err := read(b, "old")
			return err
		}, 0},
		{"several together", 1 << 20, 0, func(ctx context.Context, b storage.Bucket) error {
			var wg sync.WaitGroup
			for _, key := range []string{"x", "y", "z"} {
				wg.Go(func() { b.Create(ctx, key, io.LimitReader(zeros{}, size/2)) })
			}
			wg.Wait()
			return nil
		}, 15 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				inner := storagetest.Memory()
				if err := inner.Create(t.Context(), "old", io.LimitReader(zeros{}, size)); err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				if err := c.op(t.Context(), storage.Limit(inner, c.up, c.down)); err != nil {
					t.Fatal(err)
				}
				if d := time.Since(start); d > c.want || d < c.want-150*time.Millisecond {
					t.Errorf("took %v, want %v less at most the first tenth of a second", d, c.want)
				}
			})
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func TestNoLimit(t *testing.T) {
	inner := storagetest.Memory()
	if storage.Limit(inner, 0, 0) != inner {
		t.Error("no limit makes another bucket")
	}
}

func TestLimitEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := storage.Limit(storagetest.Memory(), 100, 100)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if err := b.Create(ctx, "a", io.LimitReader(zeros{}, 1<<20)); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := b.Create(ctx, "a", io.LimitReader(zeros{}, 1<<20)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("with a deadline that the limit cannot meet: %v", err)
		}
		wantKeys(t, b)
	})
}

// Below a limit, Retry still can set the reader back.
func TestLimitKeepsReadersThatGoBack(t *testing.T) {
	faults := script{storagetest.Create: times(2, errPasses)}
	b := storage.Limit(storage.Retry(storagetest.Faulty(storagetest.Memory(), faults.fault), quick), 1<<30, 0)
	create(t, b, "a", "content")
	if got, err := read(b, "a"); err != nil || got != "content" {
		t.Errorf("stored %q, %v", got, err)
	}
}

// overwriting is a store without create-if-absent: it looks first, as Swift does, and replaces then.
type overwriting struct {
	storage.Bucket
	declared storage.Capabilities
}

func (o overwriting) Capabilities() storage.Capabilities { return o.declared }

func (o overwriting) Create(ctx context.Context, key string, r io.Reader) error {
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	for {
		if err = o.Delete(ctx, key); err != nil {
			return err
		}
		if err = o.Bucket.Create(ctx, key, bytes.NewReader(data)); !errors.Is(err, storage.ErrExists) {
			return err
		}
	}
}

// lagging is a store whose listings miss what was created last, or still show what is gone.
type lagging struct {
	storage.Bucket
	ghost bool
}

func (l lagging) List(ctx context.Context, prefix, after string) iter.Seq2[storage.Object, error] {
	return func(yield func(storage.Object, error) bool) {
		if l.ghost {
			yield(storage.Object{Key: prefix + "0"}, nil)
		}
	}
}

func TestProbe(t *testing.T) {
	all := storage.Capabilities{CreateIfAbsent: true, StrongList: true}
	none := storage.Capabilities{}
	for _, c := range []struct {
		name string
		make func(b storage.Bucket) storage.Bucket
		want storage.Capabilities
	}{
		{"good", func(b storage.Bucket) storage.Bucket { return b }, all},
		{"overwrites", func(b storage.Bucket) storage.Bucket { return overwriting{b, all} }, storage.Capabilities{StrongList: true}},
		{"says that it overwrites", func(b storage.Bucket) storage.Bucket { return overwriting{b, none} }, none},
		{"lists late", func(b storage.Bucket) storage.Bucket { return lagging{b, false} }, storage.Capabilities{CreateIfAbsent: true}},
		{"lists too long", func(b storage.Bucket) storage.Bucket { return lagging{b, true} }, storage.Capabilities{CreateIfAbsent: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			inner := storagetest.Memory()
			create(t, inner, "other", "x")
			got, err := storage.Probe(t.Context(), c.make(inner))
			if err != nil {
				t.Fatal(err)
			}
			if got != c.want {
				t.Errorf("found %+v, want %+v", got, c.want)
			}
			wantKeys(t, inner, "other")
		})
	}
}

func TestProbeOfWrongBytes(t *testing.T) {
	inner := storagetest.Memory()
	_, err := storage.Probe(t.Context(), storagetest.Corrupt(inner, func(_ string, data []byte) []byte {
		data[len(data)-1] ^= 0x80
		return data
	}))
	if err == nil || !strings.Contains(err.Error(), "came back different from what was written") {
		t.Errorf("error is %v", err)
	}
	wantKeys(t, inner)
}

// Whichever operation fails, the probe says so, and leaves nothing.
func TestProbeFails(t *testing.T) {
	for n := 1; ; n++ {
		inner := storagetest.Memory()
		c := storagetest.FailNth(n, storagetest.Blip)
		var at storagetest.Op
		_, err := storage.Probe(t.Context(), storagetest.Faulty(inner, func(op storagetest.Op, key string) error {
			err := c.Fault(op, key)
			if err != nil {
				at = op
			}
			return err
		}))
		if !c.Fired() {
			if err != nil {
				t.Errorf("without a fault: %v", err)
			}
			break
		}
		// A listing in which the key came before the fault has answered the question.
		if !errors.Is(err, storagetest.ErrFault) && (err != nil || at != storagetest.List) {
			t.Errorf("operation %d, %v, fails: error is %v", n, at, err)
		}
		wantKeys(t, inner)
	}
}

func TestProbeCleansUpAfterACancel(t *testing.T) {
	inner := storagetest.Memory()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	b := storagetest.Faulty(inner, func(op storagetest.Op, _ string) error {
		if op == storagetest.CreateDone {
			cancel()
		}
		return nil
	})
	if _, err := storage.Probe(ctx, b); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	wantKeys(t, inner)
}
