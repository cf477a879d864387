package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"math/rand/v2"
	"time"
)

// Backoff says how Retry tries again. The zero Backoff gives a store about twenty seconds to come back.
type Backoff struct {
	Attempts int           // how often an operation is tried, the first time included, before its error is returned; 0: 8
	First    time.Duration // the longest wait before the second attempt; it doubles with each further one; 0: 250 ms
	Most     time.Duration // the longest wait there is; 0: 10 s
}

// Retry tries again what fails with an error that is Temporary, after waits of random length between half and all of what
// backoff says. An operation that gets on, such as a listing or a read that breaks off again, but further along, begins to
// count anew.
//
// A Create is repeated only if its reader is an io.Seeker. If an attempt may have succeeded unseen and a later one finds
// the key taken, the object there is compared byte by byte: the same content is a success.
func Retry(b Bucket, backoff Backoff) Bucket {
	if backoff.Attempts == 0 {
		backoff.Attempts = 8
	}
	if backoff.First == 0 {
		backoff.First = 250 * time.Millisecond
	}
	if backoff.Most == 0 {
		backoff.Most = 10 * time.Second
	}
	return retrying{b, backoff}
}

type retrying struct {
	Bucket
	backoff Backoff
}

func (r retrying) Unwrap() Bucket { return r.Bucket }

// attempts counts the tries of one operation.
type attempts struct {
	Backoff
	made int
}

// again waits and returns nil if what ended in err is to be tried again, and otherwise the error to give up with.
func (a *attempts) again(ctx context.Context, err error) error {
	a.made++
	if !Temporary(err) || a.made >= a.Attempts {
		return err
	}
	wait := a.Most
	if shift := a.made - 1; shift < 32 && a.First<<shift>>shift == a.First {
		wait = min(a.Most, a.First<<shift)
	}
	t := time.NewTimer(wait/2 + rand.N(wait/2+1))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return fmt.Errorf("%w; no further attempt: %w", err, ctx.Err())
	case <-t.C:
		return nil
	}
}

func (r retrying) do(ctx context.Context, op func() error) error {
	for a := (attempts{Backoff: r.backoff}); ; {
		err := op()
		if err == nil {
			return nil
		}
		if err := a.again(ctx, err); err != nil {
			return err
		}
	}
}

func (r retrying) Create(ctx context.Context, key string, content io.Reader) error {
	seeker, ok := content.(io.ReadSeeker)
	if !ok {
		return r.Bucket.Create(ctx, key, content)
	}
	start, err := seeker.Seek(0, io.SeekCurrent)
	if err != nil {
		return r.Bucket.Create(ctx, key, content) // a pipe, for example
	}
	a := attempts{Backoff: r.backoff}
	err = r.Bucket.Create(ctx, key, content)
	if err == nil || errors.Is(err, ErrExists) {
		return err // taken before our first attempt
	}
	for {
		if err := a.again(ctx, err); err != nil {
			return err
		}
		if _, err := seeker.Seek(start, io.SeekStart); err != nil {
			return err
		}
		err = r.Bucket.Create(ctx, key, content)
		if err == nil {
			return nil
		}
		if errors.Is(err, ErrExists) {
			return r.ours(ctx, key, seeker, start, err)
		}
	}
}

// ours returns nil if the object under key, which a Create that failed may have stored, has the content that seeker gives
// from start on, and else taken.
func (r retrying) ours(ctx context.Context, key string, seeker io.ReadSeeker, start int64, taken error) error {
	stored, err := r.Get(ctx, key)
	if errors.Is(err, ErrNotFound) {
		return taken
	}
	if err != nil {
		return err
	}
	defer stored.Close()
	// Bucket promises readers to be set back to where they were, and nothing else: their length is not asked for.
	if _, err := seeker.Seek(start, io.SeekStart); err != nil {
		return err
	}
	same, err := equal(stored, seeker)
	if err == nil && !same {
		err = taken
	}
	return err
}

// equal says whether two readers give the same bytes.
func equal(a, b io.Reader) (bool, error) {
	x, y := make([]byte, copyChunk), make([]byte, copyChunk)
	for {
		n, errX := io.ReadFull(a, x)
		m, errY := io.ReadFull(b, y)
		for _, err := range []error{errX, errY} {
			if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
				return false, err
			}
		}
		if !bytes.Equal(x[:n], y[:m]) {
			return false, nil
		}
		if errX != nil { // and so errY, since as many bytes came
			return true, nil
		}
	}
}

func (r retrying) Stat(ctx context.Context, key string) (o Object, err error) {
	err = r.do(ctx, func() error {
		o, err = r.Bucket.Stat(ctx, key)
		return err
	})
	return o, err
}

func (r retrying) Delete(ctx context.Context, keys ...string) error {
	return r.do(ctx, func() error { return r.Bucket.Delete(ctx, keys...) })
}

func (r retrying) List(ctx context.Context, prefix, after string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		last := after
		a := attempts{Backoff: r.backoff}
		for {
			var failed error
			for o, err := range r.Bucket.List(ctx, prefix, last) {
				if err != nil {
					failed = err
					break
				}
				if !yield(o, nil) {
					return
				}
				last, a.made = o.Key, 0
			}
			if failed == nil {
				return
			}
			if err := a.again(ctx, failed); err != nil {
				yield(Object{}, err)
				return
			}
		}
	}
}

func (r retrying) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	body := &resumed{ctx: ctx, r: r, key: key, end: -1}
	if err := body.open(); err != nil {
		return nil, err
	}
	return body, nil
}

func (r retrying) GetRange(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	if off < 0 || n < 0 || off > math.MaxInt64-n {
		return r.Bucket.GetRange(ctx, key, off, n) // no such range: for the driver to refuse
	}
	body := &resumed{ctx: ctx, r: r, key: key, at: off, end: off + n}
	if err := body.open(); err != nil {
		return nil, err
	}
	return body, nil
}

// resumed reads an object and, when that breaks off, goes on from where it was: an object never changes.
type resumed struct {
	ctx  context.Context
	r    retrying
	key  string
	at   int64 // of the next byte
	end  int64 // after the last byte; -1 while it is not known: the whole object
	body io.ReadCloser
	// tried counts since the last byte that came.
	tried attempts
}

// open begins to read at b.at.
func (b *resumed) open() error {
	b.tried.Backoff = b.r.backoff
	for {
		body, err := b.begin()
		if err == nil {
			b.body = body
			return nil
		}
		if err := b.tried.again(b.ctx, err); err != nil {
			return err
		}
	}
}

func (b *resumed) begin() (io.ReadCloser, error) {
	if b.end < 0 && b.at == 0 {
		return b.r.Bucket.Get(b.ctx, b.key)
	}
	if b.end < 0 {
		o, err := b.r.Bucket.Stat(b.ctx, b.key)
		if err != nil {
			return nil, err
		}
		b.end = max(o.Size, b.at)
	}
	return b.r.Bucket.GetRange(b.ctx, b.key, b.at, b.end-b.at)
}

func (b *resumed) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil // which would not be getting on
	}
	for {
		n, err := b.body.Read(p)
		b.at += int64(n)
		if n > 0 {
			b.tried.made = 0
		}
		if err == nil || err == io.EOF {
			return n, err
		}
		if err := b.tried.again(b.ctx, err); err != nil {
			return n, err
		}
		b.body.Close()
		if err := b.open(); err != nil {
			b.body = failedBody{err}
			return n, err
		}
		if n > 0 {
			return n, nil
		}
	}
}

func (b *resumed) Close() error { return b.body.Close() }

// failedBody stands for a body that could not be opened again.
type failedBody struct{ err error }

func (f failedBody) Read([]byte) (int, error) { return 0, f.err }
func (failedBody) Close() error               { return nil }
