package storagetest

import (
	"context"
	"errors"
	"io"
	"iter"
	"sync"

	"pitr/storage"
)

// An Op is a moment at which a Faulty bucket can fail.
type Op int

const (
	Create     Op = iota // before anything is stored, with part of the reader consumed
	CreateDone           // the object is stored and durable, but the answer is lost
	Get                  // Get or GetRange, before any byte
	Read                 // in the middle of what Get or GetRange gave, after some bytes
	List                 // after the first object of a listing, or instead of its end
	Delete               // before a key is deleted: those before it are gone, those after it are not
	Stat
)

func (o Op) String() string {
	return [...]string{"create", "create done", "get", "read", "list", "delete", "stat"}[o]
}

// ErrFault is the cause of the errors that FailNth makes.
var ErrFault = errors.New("injected fault")

// Faulty returns b with faults: fault is asked at each Op, with its key (of a listing, the prefix), and the error that
// it returns is the operation's. It is called from the goroutine of the operation, many at once.
func Faulty(b storage.Bucket, fault func(op Op, key string) error) storage.Bucket {
	return faulty{b, fault}
}

type faulty struct {
	storage.Bucket
	fault func(op Op, key string) error
}

func (f faulty) Unwrap() storage.Bucket { return f.Bucket }

func (f faulty) Create(ctx context.Context, key string, r io.Reader) error {
	if err := f.fault(Create, key); err != nil {
		r.Read(make([]byte, 1000)) // what it says does not matter any more
		return failed(f, "create", key, err)
	}
	if err := f.Bucket.Create(ctx, key, r); err != nil {
		return err
	}
	if err := f.fault(CreateDone, key); err != nil {
		return failed(f, "create", key, err)
	}
	return nil
}

func (f faulty) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	return f.read(key, func() (io.ReadCloser, error) { return f.Bucket.Get(ctx, key) })
}

func (f faulty) GetRange(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	return f.read(key, func() (io.ReadCloser, error) { return f.Bucket.GetRange(ctx, key, off, n) })
}

func (f faulty) read(key string, get func() (io.ReadCloser, error)) (io.ReadCloser, error) {
	if err := f.fault(Get, key); err != nil {
		return nil, failed(f, "get", key, err)
	}
	r, err := get()
	if err != nil {
		return nil, err
	}
	return &faultyReader{ReadCloser: r, bucket: f, key: key}, nil
}

type faultyReader struct {
	io.ReadCloser
	bucket faulty
	key    string
	asked  bool
	err    error
}

func (r *faultyReader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	if !r.asked {
		r.asked = true
		if err := r.bucket.fault(Read, r.key); err != nil {
			r.err = failed(r.bucket, "get", r.key, err)
			n, _ := r.ReadCloser.Read(p[:(len(p)+1)/2])
			return n, r.err
		}
	}
	return r.ReadCloser.Read(p)
}

func (f faulty) Stat(ctx context.Context, key string) (storage.Object, error) {
	if err := f.fault(Stat, key); err != nil {
		return storage.Object{}, failed(f, "stat", key, err)
	}
	return f.Bucket.Stat(ctx, key)
}

func (f faulty) List(ctx context.Context, prefix, after string) iter.Seq2[storage.Object, error] {
	return func(yield func(storage.Object, error) bool) {
		fault := f.fault(List, prefix)
		for o, err := range f.Bucket.List(ctx, prefix, after) {
			if !yield(o, err) {
				return
			}
			if fault != nil {
				break
			}
		}
		if fault != nil {
			yield(storage.Object{}, failed(f, "list", prefix, fault))
		}
	}
}

func (f faulty) Delete(ctx context.Context, keys ...string) error {
	for _, key := range keys {
		if err := f.fault(Delete, key); err != nil {
			return failed(f, "delete", key, err)
		}
		if err := f.Bucket.Delete(ctx, key); err != nil {
			return err
		}
	}
	return nil
}

// A Mode says what comes after the failure of the n-th operation.
type Mode int

const (
	Blip Mode = iota // everything works again
	Dead             // nothing works any more
)

// FailNth makes the n-th operation fail, counted from 1 over all Ops. To let each operation of something fail in turn:
//
//	for n := 1; ; n++ {
//		c := storagetest.FailNth(n, storagetest.Dead)
//		something(storagetest.Faulty(b, c.Fault))
//		if !c.Fired() {
//			break // it has fewer than n operations
//		}
//	}
func FailNth(n int, mode Mode) *Counter { return &Counter{n: n, mode: mode} }

// Counter counts operations and makes some fail: see FailNth. Many goroutines may use it at once.
type Counter struct {
	n    int
	mode Mode

	mu   sync.Mutex
	seen int
}

// Fault is for Faulty.
func (c *Counter) Fault(Op, string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen++
	if c.seen == c.n || c.mode == Dead && c.seen > c.n {
		return ErrFault
	}
	return nil
}

// Fired says whether any operation failed.
func (c *Counter) Fired() bool { return c.Count() >= c.n }

// Count returns how many operations there were.
func (c *Counter) Count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seen
}
