package storage

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"pitr/internal/hint"
)

func (s *swift) Stat(ctx context.Context, key string) (Object, error) {
	o, err := s.stat(ctx, key)
	if err != nil {
		return Object{}, s.failed("stat", key, err)
	}
	return o, nil
}

func (s *swift) stat(ctx context.Context, key string) (Object, error) {
	if err := s.check(ctx, key); err != nil {
		return Object{}, err
	}
	resp, err := s.fetch(ctx, http.MethodHead, key, nil)
	if err != nil {
		return Object{}, err
	}
	defer resp.Body.Close()
	return Object{key, resp.ContentLength, swiftTime(resp.Header)}, nil
}

// swiftTime is when an object was created: Last-Modified is rounded up to a second, unlike the time in listings.
func swiftTime(h http.Header) time.Time {
	whole, part, _ := strings.Cut(h.Get("X-Timestamp"), ".")
	sec, err := strconv.ParseInt(whole, 10, 64)
	if err != nil {
		t, _ := http.ParseTime(h.Get("Last-Modified"))
		return t
	}
	nsec, _ := strconv.ParseInt((part + "000000000")[:9], 10, 64)
	return time.Unix(sec, nsec)
}

// fetch asks for an object, or a range of it, and returns an answer that is a success, or says that the range lies behind
// the end.
func (s *swift) fetch(ctx context.Context, method, key string, header http.Header) (*http.Response, error) {
	resp, err := s.do(ctx, swiftRequest{method: method, name: s.name(key), header: header})
	if err != nil {
		return nil, err
	}
	switch resp.StatusCode {
	case http.StatusOK, http.StatusNoContent, http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable:
		s.seen.Store(true)
		return resp, nil
	case http.StatusNotFound:
		swiftDrain(resp)
		return nil, s.notFound(ctx)
	case http.StatusConflict:
		defer resp.Body.Close()
		return nil, hint.Wrap(fmt.Errorf("a segment of the object is missing or damaged: %w", &swiftRefusal{resp.StatusCode, "the server says 409 Conflict"}),
			"the object is lost unless the store's operator finds the segment again: look below %s%s%s", s.prefix, swiftSegments, key)
	}
	defer resp.Body.Close()
	return nil, s.refused(resp)
}

func (s *swift) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	err := s.check(ctx, key)
	if err != nil {
		return nil, s.failed("get", key, err)
	}
	resp, err := s.fetch(ctx, http.MethodGet, key, nil)
	if err != nil {
		return nil, s.failed("get", key, err)
	}
	if resp.StatusCode == http.StatusRequestedRangeNotSatisfiable {
		defer resp.Body.Close()
		return nil, s.failed("get", key, s.refused(resp))
	}
	return &swiftBody{ctx: ctx, s: s, key: key, r: resp.Body, comes: resp.ContentLength, digest: newSwiftDigest(resp.Header)}, nil
}

func (s *swift) GetRange(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	b, err := s.getRange(ctx, key, off, n)
	if err != nil {
		return nil, s.failed("get", key, err)
	}
	return b, nil
}

func (s *swift) getRange(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	if off < 0 || n < 0 {
		return nil, fmt.Errorf("%d bytes from %d: negative", n, off)
	}
	if err := s.check(ctx, key); err != nil {
		return nil, err
	}
	b := &swiftBody{ctx: ctx, s: s, key: key, r: io.NopCloser(strings.NewReader("")), need: n}
	if n == 0 {
		_, err := s.stat(ctx, key) // a range cannot be empty
		return b, err
	}
	last := int64(math.MaxInt64)
	if off <= math.MaxInt64-n {
		last = off + n - 1
	}
	resp, err := s.fetch(ctx, http.MethodGet, key, http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", off, last)}})
	if err != nil {
		return nil, err
	}
	switch resp.StatusCode {
	case http.StatusRequestedRangeNotSatisfiable:
		swiftDrain(resp)
		return b, nil
	case http.StatusPartialContent:
		var first int64
		if _, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-", &first); err != nil || first != off {
			resp.Body.Close()
			return nil, fmt.Errorf("the server gave another range than asked for: %q", resp.Header.Get("Content-Range"))
		}
		b.r, b.comes = resp.Body, resp.ContentLength
		return b, nil
	case http.StatusOK: // all of an empty object
		if resp.ContentLength == 0 {
			swiftDrain(resp)
			return b, nil
		}
	}
	resp.Body.Close()
	return nil, fmt.Errorf("the server gave the whole object, or nothing, instead of a range (%d)", resp.StatusCode)
}

// swiftBody is the content of an object, or of a range.
type swiftBody struct {
	ctx    context.Context
	s      *swift
	key    string
	r      io.ReadCloser
	comes  int64 // what the server has announced and not yet sent; -1: not announced
	need   int64 // what was asked for and has not yet come
	digest *swiftDigest
}

func (b *swiftBody) Read(p []byte) (int, error) {
	n, err := b.read(p)
	if err != nil && err != io.EOF {
		err = b.s.failed("get", b.key, err)
	}
	return n, err
}

var errSwiftBroken = errors.New("the connection broke in the middle of the object")

func (b *swiftBody) read(p []byte) (int, error) {
	if b.ctx.Err() != nil {
		return 0, b.ctx.Err()
	}
	n, err := b.r.Read(p)
	b.need -= int64(n)
	if b.comes >= 0 {
		b.comes -= int64(n)
	}
	if b.digest != nil {
		b.digest.add(p[:n])
	}
	switch {
	case err == nil:
		return n, nil
	case b.ctx.Err() != nil:
		return n, b.ctx.Err()
	case err == io.EOF && b.comes > 0, errors.Is(err, io.ErrUnexpectedEOF):
		return n, MarkTemporary(errSwiftBroken) // what was announced did not come: not what GetRange calls short
	case err != io.EOF:
		return n, b.s.unreachable(b.ctx, err)
	case b.need > 0:
		return n, io.ErrUnexpectedEOF
	case b.digest != nil && !b.digest.right():
		// Not temporary: the wrong bytes are out.
		return n, hint.Wrap(errors.New("the content does not have the checksum that the store announced"),
			"read it again; if it stays, the object is damaged in the store, and what it holds must come from another copy")
	}
	return n, io.EOF
}

func (b *swiftBody) Close() error { return b.r.Close() }

// swiftDigest checks a whole object against its ETag while it is read.
type swiftDigest struct {
	want    string
	segment hash.Hash // of the object, or of the segment that is being read
	large   hash.Hash // of the ETags of the segments before; nil: the object has no segments
	n       int       // of the segment
	left    int64     // in the segment
}

// newSwiftDigest is nil where the ETag says nothing: of large objects that pitr did not write.
func newSwiftDigest(h http.Header) *swiftDigest {
	d := &swiftDigest{want: swiftETag(h), segment: md5.New()}
	if h.Get("X-Static-Large-Object") == "" {
		if len(d.want) != 2*md5.Size || h.Get("X-Object-Manifest") != "" {
			return nil
		}
		return d
	}
	if !strings.HasPrefix(h.Get(swiftUploadHeader), "1") {
		return nil
	}
	d.large, d.left = md5.New(), swiftSegmentSize(0)
	return d
}

func (d *swiftDigest) add(p []byte) {
	for d.large != nil && int64(len(p)) >= d.left {
		d.segment.Write(p[:d.left])
		p = p[d.left:]
		d.close()
	}
	d.segment.Write(p)
	d.left -= int64(len(p))
}

// close ends a segment.
func (d *swiftDigest) close() {
	io.WriteString(d.large, hex.EncodeToString(d.segment.Sum(nil)))
	d.segment.Reset()
	d.n++
	d.left = swiftSegmentSize(d.n)
}

func (d *swiftDigest) right() bool {
	sum := d.segment
	if d.large != nil {
		if d.left < swiftSegmentSize(d.n) {
			d.close()
		}
		sum = d.large
	}
	return hex.EncodeToString(sum.Sum(nil)) == d.want
}
