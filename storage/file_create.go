package storage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"pitr/internal/durable"
)

const (
	// copyChunk is how much is read and written at a time, and between two looks at the context.
	copyChunk = 256 << 10
	// flushEvery is after how many bytes the kernel is asked to begin writing to the disk. Left to the final fsync, the
	// page cache of a large object would go out in one burst at the end, with nothing to overlap it.
	flushEvery = 8 << 20
	// maxPublish is how often Create tries to name a file while others remove the directory it is to lie in. Each of
	// them has to win a race of microseconds.
	maxPublish = 1000
)

// errConflict: in a directory, a name is a file or holds files.
var errConflict = errors.New("the key and another object's key exclude each other: one is the other's beginning")

func (f *file) Create(ctx context.Context, key string, r io.Reader) error {
	err := f.create(ctx, key, r)
	if errors.Is(err, ErrExists) {
		// Whoever hears that takes the object for stored.
		err = cmp.Or(f.settle(key), err)
	}
	if err != nil {
		return f.failed("create", key, err)
	}
	return nil
}

// Settle syncs the names of the object: see Settler. The content was synced before it had one.
func (f *file) Settle(ctx context.Context, key string) error {
	if _, err := f.Stat(ctx, key); err != nil {
		return err
	}
	if err := f.settle(key); err != nil {
		return f.failed("settle", key, err)
	}
	// What vanished with its file system was not settled.
	_, err := f.Stat(ctx, key)
	return err
}

// settle makes the name of a file that is seen durable, up to the root: whoever named it may not have come so far. One
// that is gone is none of its business.
func (f *file) settle(key string) error {
	dir := filepath.Dir(f.path(key))
	if err := f.syncDir(dir); err != nil && !absent(err) {
		return err
	}
	return f.syncNames(dir)
}

func (f *file) create(ctx context.Context, key string, r io.Reader) error {
	if err := f.check(ctx, key); err != nil {
		return err
	}
	if err := f.present(); err != nil {
		return err
	}
	if err := f.begin(); err != nil {
		return err
	}
	// Knowing early saves the writing; what counts is the naming at the end.
	if err := f.free(key); err != nil {
		return err
	}
	temp, err := f.createTemp()
	if err != nil {
		return err
	}
	// Once the file has its name, this one is gone, and the removal finds nothing.
	defer os.Remove(temp.Name())
	if err := f.fill(ctx, temp, r); err != nil {
		temp.Close()
		return err
	}
	if err := temp.Close(); err != nil {
		return err
	}
	if err := f.show(ctx, temp.Name(), key); err != nil {
		return err
	}
	// The file system may have gone in between, and all of this happened in the directory below it.
	return f.present()
}

// free returns ErrExists or errConflict if there can be no new object under key. An empty directory in its place is the
// rest of a Delete that was interrupted.
func (f *file) free(key string) error {
	path := f.path(key)
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, syscall.ENOTDIR):
		return errConflict
	case err != nil:
		return err
	case !info.IsDir():
		return ErrExists
	}
	switch err := syscall.Rmdir(path); err {
	case nil, syscall.ENOENT:
		return nil
	case syscall.ENOTEMPTY, syscall.EEXIST:
		return errConflict
	default:
		return &fs.PathError{Op: "rmdir", Path: path, Err: err}
	}
}

// createTemp creates the file to write to. Its name says who writes it, for those who find it.
func (f *file) createTemp() (*os.File, error) {
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	pattern := fmt.Sprintf("%.64s-%d-%d-*", strings.ReplaceAll(strings.ReplaceAll(host, "/", "_"), "*", "_"), os.Getpid(), time.Now().Unix())
	if err := f.giveDirs(f.path(tempName)); err != nil {
		return nil, err
	}
	temp, err := os.CreateTemp(f.path(tempName), pattern)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.Mkdir(f.path(tempName), dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		temp, err = os.CreateTemp(f.path(tempName), pattern)
	}
	if err != nil {
		return nil, err
	}
	err = temp.Chmod(fileMode)
	if err == nil {
		err = f.give(temp)
	}
	if err != nil {
		temp.Close()
		os.Remove(temp.Name())
		return nil, err
	}
	return temp, nil
}

// fill copies r to temp and syncs it. A failed sync is not tried again: see package durable.
func (f *file) fill(ctx context.Context, temp *os.File, r io.Reader) error {
	buf := f.buffers.Get().(*[]byte)
	defer f.buffers.Put(buf)
	var written, flushed int64
	for empty := 0; ; {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		n, readErr := r.Read(*buf)
		if n > 0 {
			empty = 0
			if _, err := temp.Write((*buf)[:n]); err != nil {
				return err
			}
			written += int64(n)
		}
		if written-flushed >= flushEvery {
			startWriteback(temp, flushed, written-flushed)
			flushed = written
		}
		if readErr == io.EOF {
			break
		}
		if readErr != nil {
			return fmt.Errorf("read the content: %w", readErr)
		}
		if n == 0 {
			if empty++; empty == 100 {
				return fmt.Errorf("read the content: %w", io.ErrNoProgress)
			}
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return f.syncFile(temp)
}

// show gives the finished file its name, and makes the name durable up to the root.
func (f *file) show(ctx context.Context, temp, key string) error {
	if err := f.mark(); err != nil {
		return err
	}
	path := f.path(key)
	dir := filepath.Dir(path)
	for try := 1; ; try++ {
		if err := f.makeDir(dir); err != nil {
			return err
		}
		err := f.name(temp, path)
		if !errors.Is(err, fs.ErrNotExist) || try == maxPublish {
			return f.nameError(key, err)
		}
		// Either a Delete removed the directory just now, or our own file is gone.
		if _, err := os.Lstat(temp); err != nil {
			return err
		}
		f.forget(dir)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

func (f *file) name(temp, path string) error {
	err := f.publish(temp, path)
	if !errors.Is(err, errors.ErrUnsupported) {
		if err == nil {
			f.exclusive.CompareAndSwap(exclusiveUntried, exclusiveYes)
		}
		return err
	}
	f.exclusive.CompareAndSwap(exclusiveUntried, exclusiveNo)
	if f.exclusive.Load() == exclusiveYes {
		return err
	}
	if _, err := os.Lstat(path); err == nil {
		return fs.ErrExist
	}
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	return f.syncDir(filepath.Dir(path))
}

// nameError says what the failed naming means for the object.
func (f *file) nameError(key string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrExist), errors.Is(err, syscall.EISDIR):
		if err := f.free(key); err != nil {
			return err
		}
		return ErrExists // and deleted since
	case errors.Is(err, syscall.ENOTDIR):
		return errConflict
	}
	return err
}

// makeDir makes dir where it is missing, and its name durable up to the root, once in the life of this process.
func (f *file) makeDir(dir string) error {
	if dir == f.root {
		return nil
	}
	if _, known := f.synced.Load(dir); known {
		return nil
	}
	err := f.giveDirs(dir)
	if err == nil {
		err = durable.MkdirAll(dir, dirMode)
	}
	if err != nil {
		if errors.Is(err, syscall.ENOTDIR) {
			return errConflict
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed by a Delete at the same moment; the naming will notice
		}
		return err
	}
	return f.syncNames(dir)
}

// syncNames makes the name of a directory durable, up to the root, once in the life of this process.
func (f *file) syncNames(dir string) error {
	for d := dir; d != f.root; d = filepath.Dir(d) {
		if _, known := f.synced.Load(d); known {
			break
		}
		if err := f.syncDir(filepath.Dir(d)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for d := dir; d != f.root; d = filepath.Dir(d) {
		f.synced.Store(d, struct{}{})
	}
	return nil
}

// forget makes makeDir look again at dir and all above it.
func (f *file) forget(dir string) {
	for ; dir != f.root; dir = filepath.Dir(dir) {
		f.synced.Delete(dir)
	}
}
