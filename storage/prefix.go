package storage

import (
	"context"
	"io"
	"iter"
	"strings"
)

// Prefix gives the part of b below prefix as a bucket of its own: its object KEY is b's object prefix/KEY. An empty prefix
// gives b.
func Prefix(b Bucket, prefix string) Bucket {
	if prefix == "" {
		return b
	}
	return prefixed{b, strings.TrimSuffix(prefix, "/") + "/"}
}

type prefixed struct {
	b      Bucket
	prefix string // ends in "/"
}

func (p prefixed) Create(ctx context.Context, key string, r io.Reader) error {
	return p.b.Create(ctx, p.prefix+key, r)
}

func (p prefixed) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	return p.b.Get(ctx, p.prefix+key)
}

func (p prefixed) GetRange(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	return p.b.GetRange(ctx, p.prefix+key, off, n)
}

func (p prefixed) Stat(ctx context.Context, key string) (Object, error) {
	o, err := p.b.Stat(ctx, p.prefix+key)
	o.Key = strings.TrimPrefix(o.Key, p.prefix)
	return o, err
}

func (p prefixed) List(ctx context.Context, prefix, after string) iter.Seq2[Object, error] {
	if after != "" {
		after = p.prefix + after
	}
	return func(yield func(Object, error) bool) {
		for o, err := range p.b.List(ctx, p.prefix+prefix, after) {
			o.Key = strings.TrimPrefix(o.Key, p.prefix)
			if !yield(o, err) {
				return
			}
		}
	}
}

func (p prefixed) Delete(ctx context.Context, keys ...string) error {
	full := make([]string, len(keys))
	for i, key := range keys {
		full[i] = p.prefix + key
	}
	return p.b.Delete(ctx, full...)
}

func (p prefixed) Settle(ctx context.Context, key string) error {
	return Settle(ctx, p.b, p.prefix+key)
}

func (p prefixed) Capabilities() Capabilities { return p.b.Capabilities() }
func (p prefixed) String() string             { return p.b.String() + "/" + strings.TrimSuffix(p.prefix, "/") }
func (p prefixed) Unwrap() Bucket             { return p.b }
