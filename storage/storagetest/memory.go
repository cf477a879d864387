// Package storagetest has what tests need of storage: the contract that every driver and decorator must keep
// (TestBucket), a bucket in memory, and decorators that fail on purpose or give wrong bytes. Only tests import it.
package storagetest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"sync"
	"time"

	"pitr/storage"
)

// Memory returns an empty bucket that lives in memory and keeps the whole contract. Its keys exclude each other as those
// of the file driver do: "a" and "a/b" cannot both be objects.
func Memory() storage.Bucket { return &memory{objects: make(map[string]object)} }

type object struct {
	data     []byte
	modified time.Time
}

type memory struct {
	mu      sync.RWMutex
	objects map[string]object
	keys    []string // of objects, in order
}

// failed is the error of an operation, as Bucket wants it.
func failed(b storage.Bucket, op, key string, err error) error {
	return fmt.Errorf("%s %s in %s: %w", op, key, b, err)
}

func (m *memory) Create(ctx context.Context, key string, r io.Reader) error {
	if err := check(ctx, key); err != nil {
		return failed(m, "create", key, err)
	}
	data, err := io.ReadAll(contextReader{ctx, r})
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = m.put(key, data)
	}
	if err != nil {
		return failed(m, "create", key, err)
	}
	return nil
}

func (m *memory) put(key string, data []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, taken := m.objects[key]; taken {
		return storage.ErrExists
	}
	for i := range len(key) {
		if key[i] == '/' {
			if _, taken := m.objects[key[:i]]; taken {
				return fmt.Errorf("%s is an object", key[:i])
			}
		}
	}
	if below, _ := slices.BinarySearch(m.keys, key+"/"); below < len(m.keys) && strings.HasPrefix(m.keys[below], key+"/") {
		return fmt.Errorf("%s is an object", m.keys[below])
	}
	at, _ := slices.BinarySearch(m.keys, key)
	m.keys = slices.Insert(m.keys, at, key)
	m.objects[key] = object{data, time.Now()}
	return nil
}

func (m *memory) find(ctx context.Context, key string) (object, error) {
	if err := check(ctx, key); err != nil {
		return object{}, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	o, ok := m.objects[key]
	if !ok {
		return object{}, storage.ErrNotFound
	}
	return o, nil
}

func (m *memory) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	o, err := m.find(ctx, key)
	if err != nil {
		return nil, failed(m, "get", key, err)
	}
	return io.NopCloser(contextReader{ctx, bytes.NewReader(o.data)}), nil
}

func (m *memory) GetRange(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	o, err := m.find(ctx, key)
	if err == nil && (off < 0 || n < 0) {
		err = fmt.Errorf("%d bytes from %d: negative", n, off)
	}
	if err != nil {
		return nil, failed(m, "get", key, err)
	}
	return io.NopCloser(contextReader{ctx, slice(o.data, off, n)}), nil
}

// slice reads n bytes of data from off on, or ends in io.ErrUnexpectedEOF.
func slice(data []byte, off, n int64) io.Reader {
	rest := data[min(off, int64(len(data))):]
	if int64(len(rest)) >= n {
		return bytes.NewReader(rest[:n])
	}
	return io.MultiReader(bytes.NewReader(rest), errorReader{io.ErrUnexpectedEOF})
}

func (m *memory) Stat(ctx context.Context, key string) (storage.Object, error) {
	o, err := m.find(ctx, key)
	if err != nil {
		return storage.Object{}, failed(m, "stat", key, err)
	}
	return storage.Object{Key: key, Size: int64(len(o.data)), Modified: o.modified}, nil
}

func (m *memory) List(ctx context.Context, prefix, after string) iter.Seq2[storage.Object, error] {
	return func(yield func(storage.Object, error) bool) {
		for last := after; ; {
			if err := ctx.Err(); err != nil {
				yield(storage.Object{}, failed(m, "list", prefix, err))
				return
			}
			o, ok := m.next(prefix, last)
			if !ok || !yield(o, nil) {
				return
			}
			last = o.Key
		}
	}
}

func (m *memory) next(prefix, after string) (storage.Object, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	at, _ := slices.BinarySearch(m.keys, max(prefix, after))
	if at < len(m.keys) && after != "" && m.keys[at] == after {
		at++
	}
	if at == len(m.keys) || !strings.HasPrefix(m.keys[at], prefix) {
		return storage.Object{}, false
	}
	key := m.keys[at]
	o := m.objects[key]
	return storage.Object{Key: key, Size: int64(len(o.data)), Modified: o.modified}, true
}

func (m *memory) Delete(ctx context.Context, keys ...string) error {
	for _, key := range keys {
		if err := check(ctx, key); err != nil {
			return failed(m, "delete", key, err)
		}
		m.mu.Lock()
		if at, ok := slices.BinarySearch(m.keys, key); ok {
			m.keys = slices.Delete(m.keys, at, at+1)
			delete(m.objects, key)
		}
		m.mu.Unlock()
	}
	return nil
}

func (m *memory) Capabilities() storage.Capabilities {
	return storage.Capabilities{CreateIfAbsent: true, StrongList: true}
}

func (m *memory) String() string { return "memory:" }

func check(ctx context.Context, key string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return storage.CheckKey(key)
}

// contextReader ends with the context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

type errorReader struct{ err error }

func (e errorReader) Read([]byte) (int, error) { return 0, e.err }
