package storagetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"

	"pitr/storage"
)

// Corrupt returns b as if its disks gave other bytes than were stored: change is given the key and a copy of the content
// of each object that is read, and returns what is to be there instead, shorter or longer if it likes. Sizes in Stat and
// List are those of the changed content. An object is held in memory while it is read.
func Corrupt(b storage.Bucket, change func(key string, data []byte) []byte) storage.Bucket {
	return corrupt{b, change}
}

type corrupt struct {
	storage.Bucket
	change func(key string, data []byte) []byte
}

func (c corrupt) Unwrap() storage.Bucket { return c.Bucket }

func (c corrupt) load(ctx context.Context, key string) ([]byte, error) {
	r, err := c.Bucket.Get(ctx, key)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	return c.change(key, data), nil
}

func (c corrupt) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	data, err := c.load(ctx, key)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(contextReader{ctx, bytes.NewReader(data)}), nil
}

func (c corrupt) GetRange(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	if off < 0 || n < 0 {
		return c.Bucket.GetRange(ctx, key, off, n)
	}
	data, err := c.load(ctx, key)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(contextReader{ctx, slice(data, off, n)}), nil
}

func (c corrupt) Stat(ctx context.Context, key string) (storage.Object, error) {
	o, err := c.Bucket.Stat(ctx, key)
	if err == nil {
		o.Size, err = c.size(ctx, key)
	}
	return o, err
}

func (c corrupt) size(ctx context.Context, key string) (int64, error) {
	data, err := c.load(ctx, key)
	return int64(len(data)), err
}

func (c corrupt) List(ctx context.Context, prefix, after string) iter.Seq2[storage.Object, error] {
	return func(yield func(storage.Object, error) bool) {
		for o, err := range c.Bucket.List(ctx, prefix, after) {
			if err == nil {
				o.Size, err = c.size(ctx, o.Key)
				if errors.Is(err, storage.ErrNotFound) {
					continue // deleted since it was listed
				}
			}
			if !yield(o, err) || err != nil {
				return
			}
		}
	}
}
