package storage

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"time"
)

// swiftChunk is the size of the pieces that contents are buffered in.
const swiftChunk = 256 << 10

// swiftChunks keeps chunks that are not in use.
type swiftChunks struct{ pool sync.Pool }

func (c *swiftChunks) get() *[swiftChunk]byte {
	if b, ok := c.pool.Get().(*[swiftChunk]byte); ok {
		return b
	}
	return new([swiftChunk]byte)
}

// swiftBuffer holds the content of one request, so that it can be sent again, with its digest.
type swiftBuffer struct {
	chunks []*[swiftChunk]byte
	text   []byte // instead of chunks
	size   int64
	md5    string // hexadecimal

	// A server may answer before it has read everything; then the request's body is still being read for a moment.
	mu    sync.Mutex
	freed bool
}

func swiftText(text []byte) *swiftBuffer {
	sum := md5.Sum(text)
	return &swiftBuffer{text: text, size: int64(len(text)), md5: hex.EncodeToString(sum[:])}
}

func (b *swiftBuffer) reader() io.Reader {
	if b.text != nil {
		return &swiftBufferReader{one: b.text}
	}
	return &swiftBufferReader{b: b}
}

type swiftBufferReader struct {
	b   *swiftBuffer
	at  int64
	one []byte
}

func (r *swiftBufferReader) Read(p []byte) (int, error) {
	from := r.one
	if r.b != nil {
		r.b.mu.Lock()
		defer r.b.mu.Unlock()
		if r.b.freed {
			return 0, errSwiftFreed
		}
		if r.at == r.b.size {
			return 0, io.EOF
		}
		chunk, off := r.at/swiftChunk, r.at%swiftChunk
		from = r.b.chunks[chunk][off:min(swiftChunk, r.b.size-chunk*swiftChunk)]
	} else {
		from = from[r.at:]
		if len(from) == 0 {
			return 0, io.EOF
		}
	}
	n := copy(p, from)
	r.at += int64(n)
	return n, nil
}

var errSwiftFreed = errors.New("the content is no longer held")

// swiftSource reads a content piece by piece, each piece only when it is known whether another one follows.
type swiftSource struct {
	ctx    context.Context
	r      io.Reader
	pool   *swiftChunks
	ahead  []byte // a byte of the next piece, if there is one
	ended  bool
	digest hash.Hash
}

// next reads a piece of up to limit bytes, which is the last one if ended is set then. It must be freed.
func (s *swiftSource) next(limit int64) (*swiftBuffer, error) {
	b := &swiftBuffer{}
	if s.digest == nil {
		s.digest = md5.New()
	}
	s.digest.Reset()
	for !s.ended && b.size < limit {
		if err := s.ctx.Err(); err != nil {
			s.free(b)
			return nil, err
		}
		off := b.size % swiftChunk
		if b.size == int64(len(b.chunks))*swiftChunk {
			b.chunks = append(b.chunks, s.pool.get())
		}
		into := b.chunks[len(b.chunks)-1][off:min(swiftChunk, off+limit-b.size)]
		n := copy(into, s.ahead)
		s.ahead = nil
		var err error
		if n == 0 {
			n, err = s.r.Read(into)
		}
		s.digest.Write(into[:n])
		b.size += int64(n)
		if err := s.judge(err); err != nil {
			s.free(b)
			return nil, err
		}
	}
	var one [1]byte
	for !s.ended && s.ahead == nil {
		if err := s.ctx.Err(); err != nil {
			s.free(b)
			return nil, err
		}
		n, err := s.r.Read(one[:])
		if n > 0 {
			s.ahead = one[:n]
		}
		if err == io.EOF && n > 0 {
			break // the next call meets it again
		}
		if err := s.judge(err); err != nil {
			s.free(b)
			return nil, err
		}
	}
	b.md5 = hex.EncodeToString(s.digest.Sum(nil))
	return b, nil
}

// judge takes the end of the content, and returns what else went wrong. The context has the last word: a reader that
// depends on it may just end.
func (s *swiftSource) judge(err error) error {
	if err == nil {
		return nil
	}
	if s.ctx.Err() != nil {
		return s.ctx.Err()
	}
	if err != io.EOF {
		return err
	}
	s.ended = true
	return nil
}

func (s *swiftSource) free(b *swiftBuffer) { b.free(s.pool) }

// free gives the chunks back: nothing may read the buffer any more.
func (b *swiftBuffer) free(pool *swiftChunks) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.freed = true
	for _, c := range b.chunks {
		pool.pool.Put(c)
	}
	b.chunks = nil
}

// swiftOut is what is known of a request that is under way.
type swiftOut struct {
	sent atomic.Bool   // the body is out
	over chan struct{} // closed when there is an answer, or none will come

	mu      sync.Mutex
	waiting time.Time // since when the word to go on is waited for; zero: it is not
	goOn    bool      // it came: perhaps before the wait began
}

func (o *swiftOut) begin() {
	o.sent.Store(false)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.waiting, o.goOn = time.Time{}, false
}

func (o *swiftOut) trace(ctx context.Context) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		Wait100Continue: func() {
			o.mu.Lock()
			defer o.mu.Unlock()
			o.waiting = time.Now()
		},
		Got100Continue: func() {
			o.mu.Lock()
			defer o.mu.Unlock()
			o.goOn = true
		},
	})
}

// refused says that a server has given its answer instead of the word to go on. net/http would now send the body all the
// same, to go on using the connection; but Swift takes what comes then for the next request.
func (o *swiftOut) refused() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return !o.goOn && !o.waiting.IsZero() && time.Since(o.waiting) < swiftContinueTimeout
}

var errSwiftOver = errors.New("the server has answered before the end of the request")

// swiftSending is a body on its way out. It breaks off when the context ends, or when there is an answer before the end:
// since its length was announced, the server then stores nothing.
type swiftSending struct {
	ctx  context.Context
	r    io.Reader
	left int64
	out  *swiftOut
}

func (b *swiftSending) Read(p []byte) (int, error) {
	if b.out.refused() {
		<-b.out.over // an error now would come before the answer
	}
	select {
	case <-b.out.over:
		return 0, errSwiftOver
	default:
	}
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left == 0 {
		b.out.sent.Store(true)
	}
	return n, err
}
