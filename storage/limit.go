package storage

import (
	"context"
	"io"

	"golang.org/x/time/rate"
)

// limitStep is how many bytes move at a time under a limit, and what the bucket of tokens holds beyond a tenth of a
// second's worth.
const limitStep = 16 << 10

// Limit holds what b stores and reads to so many bytes per second, over all its callers together; 0 is no limit. The
// first tenth of a second's worth passes at once. Where Retry stands below, what is sent again counts again.
func Limit(b Bucket, upBytesPerSec, downBytesPerSec int64) Bucket {
	if upBytesPerSec <= 0 && downBytesPerSec <= 0 {
		return b
	}
	return limited{b, limiter(upBytesPerSec), limiter(downBytesPerSec)}
}

func limiter(perSec int64) *rate.Limiter {
	if perSec <= 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(perSec), int(perSec/10)+limitStep)
}

type limited struct {
	Bucket
	up, down *rate.Limiter // nil: no limit
}

func (l limited) Create(ctx context.Context, key string, r io.Reader) error {
	if l.up == nil {
		return l.Bucket.Create(ctx, key, r)
	}
	slow := slowReader{ctx, r, l.up}
	if s, ok := r.(io.Seeker); ok {
		return l.Bucket.Create(ctx, key, slowSeeker{slow, s})
	}
	return l.Bucket.Create(ctx, key, slow)
}

func (l limited) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	r, err := l.Bucket.Get(ctx, key)
	return l.slowDown(ctx, r, err)
}

func (l limited) GetRange(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	r, err := l.Bucket.GetRange(ctx, key, off, n)
	return l.slowDown(ctx, r, err)
}

func (l limited) slowDown(ctx context.Context, r io.ReadCloser, err error) (io.ReadCloser, error) {
	if err != nil || l.down == nil {
		return r, err
	}
	return slowCloser{slowReader{ctx, r, l.down}, r}, nil
}

func (l limited) Unwrap() Bucket { return l.Bucket }

type slowReader struct {
	ctx   context.Context
	r     io.Reader
	limit *rate.Limiter
}

// Read waits after reading, for as many bytes as came: a large buffer that is filled by little must not pay for itself.
func (s slowReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p[:min(len(p), limitStep)])
	if n > 0 {
		if s.limit.WaitN(s.ctx, n) != nil {
			if err := s.ctx.Err(); err != nil {
				return 0, err
			}
			return 0, context.DeadlineExceeded // it would be, before the tokens are there
		}
	}
	return n, err
}

type slowSeeker struct {
	slowReader
	io.Seeker
}

type slowCloser struct {
	slowReader
	io.Closer
}
