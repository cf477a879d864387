package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"pitr/internal/durable"
	"pitr/internal/hint"
)

const (
	// markerName is the file in the root of a store that tells it from the empty directory that is left when the file
	// system with the store is not mounted.
	markerName = ".pitr-store"
	// tempName is the directory in the root where objects are written until they are whole.
	tempName = ".tmp"

	dirMode  fs.FileMode = 0o750 // less the umask
	fileMode fs.FileMode = 0o640
)

const markerText = "This directory is a pitr repository. This file tells it from an empty mount point: keep it.\n"

// file is a bucket in a directory. The object KEY is the file KEY below the root. Names that begin with a dot are no
// objects: the marker, the files being written, and what network file systems put there. Neither is lost+found in the
// root.
//
// An object is written to a hidden file, synced, and then named, which is atomic and fails where the name is taken. All
// files of the root must be on one file system; the root itself may be a symbolic link. All belong to whom the root belongs
// to, also those that root makes.
type file struct {
	root   string
	opened atomic.Pointer[fs.FileInfo] // the root as it was first seen; nil before there is one
	marked atomic.Bool                 // the marker has been seen

	// exclusive: whether the file system can name a file only if the name is free. The first Create finds out, since
	// only writing tells, and who only reads must write nothing.
	exclusive atomic.Int32

	// synced are the directories whose names, up to the root, this process made durable. Another process may have made a
	// directory and been killed before it synced the name.
	synced sync.Map // map[string]struct{}

	buffers sync.Pool // of *[]byte, copyChunk long

	// The calls whose order matters, so that tests can watch them and make them fail.
	syncFile func(*os.File) error
	syncDir  func(string) error
	publish  func(old, new string) error // with the directory synced
}

func newFile(root string) *file {
	f := &file{
		root:     root,
		buffers:  sync.Pool{New: func() any { b := make([]byte, copyChunk); return &b }},
		syncFile: (*os.File).Sync,
		syncDir:  durable.SyncDir,
		publish:  durable.RenameExclusive,
	}
	return f
}

// The values of exclusive.
const (
	exclusiveUntried int32 = iota
	exclusiveYes
	exclusiveNo
)

func openFile(root string) (Bucket, error) {
	f := newFile(root)
	if err := f.open(); err != nil {
		return nil, fmt.Errorf("open %s: %w", f, f.explain(err))
	}
	return f, nil
}

// open looks at what is there. It writes nothing: a root that is not there yet is made by the first Create.
func (f *file) open() error {
	info, err := os.Stat(f.root)
	if errors.Is(err, fs.ErrNotExist) {
		return f.parent()
	}
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return hint.Wrap(&fs.PathError{Op: "open", Path: f.root, Err: syscall.ENOTDIR}, "storage.url names a file where the directory of the store should be")
	}
	f.opened.Store(&info)
	switch _, err := os.Lstat(f.path(markerName)); {
	case err == nil:
		f.marked.Store(true)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	return nil
}

// parent returns an error if the directory above the root is missing: that is rather a file system that is not mounted.
func (f *file) parent() error {
	parent := filepath.Dir(f.root)
	_, err := os.Stat(parent)
	if errors.Is(err, fs.ErrNotExist) {
		return hint.Wrap(err, "mount the file system that %s belongs to, or create %s: pitr creates only the last directory of storage.url", f.root, parent)
	}
	return err
}

// begin makes the root, but nothing above it, where there has never been one.
func (f *file) begin() error {
	if f.opened.Load() != nil {
		return nil
	}
	if err := f.parent(); err != nil {
		return err
	}
	if err := durable.MkdirAll(f.root, dirMode); err != nil {
		return err
	}
	if err := f.giveRoot(); err != nil {
		return err
	}
	info, err := os.Stat(f.root)
	if err != nil {
		return err
	}
	f.opened.CompareAndSwap(nil, &info)
	return f.mark()
}

// mark writes the marker, if it is not there.
func (f *file) mark() error {
	if f.marked.Load() {
		return nil
	}
	if err := f.writeMarker(); err != nil {
		return err
	}
	f.marked.Store(true)
	return nil
}

// present returns ErrVanished if the directory is no longer the store that was opened. A store that was not begun when it
// was opened is empty until somebody begins it.
func (f *file) present() error {
	// What is known is asked first: another goroutine may begin the store between the two looks.
	marked, opened := f.marked.Load(), f.opened.Load()
	_, err := os.Lstat(f.path(markerName))
	if err == nil {
		f.marked.Store(true)
		return nil
	}
	if !absent(err) {
		return err
	}
	if !marked {
		now, err := os.Stat(f.root)
		if opened == nil && errors.Is(err, fs.ErrNotExist) {
			return f.parent()
		}
		if err == nil && (f.opened.CompareAndSwap(nil, &now) || os.SameFile(now, *f.opened.Load())) {
			return nil
		}
	}
	return hint.Wrap(fmt.Errorf("%w: %s is missing", ErrVanished, f.path(markerName)),
		"mount the file system of %s again; if the store is there and only lacks this file, create it: touch %s", f.root, f.path(markerName))
}

// path is the file of a key, or of another name below the root.
func (f *file) path(key string) string { return f.root + "/" + key }

func (f *file) String() string { return fileURL(f.root) }

// Capabilities: what was named is seen by every later look-up on the same host at once. Network file systems keep
// listings in a cache for some seconds on other hosts; Probe cannot see that from one host.
func (f *file) Capabilities() Capabilities {
	return Capabilities{CreateIfAbsent: f.exclusive.Load() != exclusiveNo, StrongList: true}
}

// failed puts operation and key before an error and says what could be done about it.
func (f *file) failed(op, key string, err error) error {
	if key == "" {
		return fmt.Errorf("%s %s: %w", op, f, f.explain(err))
	}
	return fmt.Errorf("%s %s in %s: %w", op, key, f, f.explain(err))
}

func (f *file) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	o, err := f.openObject(ctx, key)
	if err != nil {
		return nil, f.failed("get", key, err)
	}
	return &fileReader{ctx: ctx, f: f, key: key, o: o, r: o}, nil
}

func (f *file) GetRange(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	if off < 0 || n < 0 {
		return nil, f.failed("get", key, fmt.Errorf("%d bytes from %d: negative", n, off))
	}
	o, err := f.openObject(ctx, key)
	if err != nil {
		return nil, f.failed("get", key, err)
	}
	return &fileReader{ctx: ctx, f: f, key: key, o: o, r: io.NewSectionReader(o, off, n), need: n}, nil
}

func (f *file) Stat(ctx context.Context, key string) (Object, error) {
	if err := f.check(ctx, key); err != nil {
		return Object{}, f.failed("stat", key, err)
	}
	info, err := os.Stat(f.path(key))
	if absent(err) || err == nil && !info.Mode().IsRegular() {
		err = f.notFound()
	}
	if err != nil {
		return Object{}, f.failed("stat", key, err)
	}
	return Object{key, info.Size(), info.ModTime()}, nil
}

// absent: an object cannot be there, because its file or a directory on the way to it is not.
func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}

// openObject opens the object's file.
func (f *file) openObject(ctx context.Context, key string) (*os.File, error) {
	if err := f.check(ctx, key); err != nil {
		return nil, err
	}
	o, err := os.Open(f.path(key))
	if absent(err) {
		return nil, f.notFound()
	}
	if err != nil {
		return nil, err
	}
	info, err := o.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = f.notFound()
	}
	if err != nil {
		o.Close()
		return nil, err
	}
	return o, nil
}

// notFound says ErrNotFound only while the store is there to be asked.
func (f *file) notFound() error {
	if err := f.present(); err != nil {
		return err
	}
	return ErrNotFound
}

func (f *file) check(ctx context.Context, key string) error {
	if err := ctx.Err(); err != nil {
		return ctx.Err()
	}
	if err := CheckKey(key); err != nil {
		return err
	}
	if first, _, _ := strings.Cut(key, "/"); first == lostAndFound {
		return fmt.Errorf("%w %q: the name belongs to the file system", ErrInvalidKey, key)
	}
	return nil
}

// fileReader is an open object. It ends with the context, and puts a name on errors of the disk.
type fileReader struct {
	ctx  context.Context
	f    *file
	key  string
	o    *os.File
	r    io.Reader
	need int64 // bytes that must come before the end
}

func (r *fileReader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, r.f.failed("get", r.key, r.ctx.Err())
	}
	n, err := r.r.Read(p)
	r.need -= int64(n)
	switch {
	case err == io.EOF && r.need > 0:
		return n, r.f.failed("get", r.key, io.ErrUnexpectedEOF)
	case err != nil && err != io.EOF:
		return n, r.f.failed("get", r.key, err)
	}
	return n, err
}

func (r *fileReader) Close() error { return r.o.Close() }

// Delete unlinks the files, removes the directories that it emptied, and then syncs, for every key, the directory that
// lost a name: also for keys that are not there, since whoever removed them may not have come as far.
func (f *file) Delete(ctx context.Context, keys ...string) error {
	dirs := make(map[string]struct{})
	for _, key := range keys {
		if err := f.check(ctx, key); err != nil {
			return f.failed("delete", key, err)
		}
		if err := f.present(); err != nil {
			return f.failed("delete", key, err)
		}
		if err := f.unlink(key); err != nil {
			return f.failed("delete", key, err)
		}
		dirs[filepath.Dir(f.path(key))] = struct{}{}
	}
	for dir := range dirs {
		if err := f.tidy(dir); err != nil {
			return f.failed("delete", "", err)
		}
	}
	return nil
}

func (f *file) unlink(key string) error {
	err := syscall.Unlink(f.path(key)) // os.Remove would also remove a directory
	switch {
	case err == nil, err == syscall.ENOENT, err == syscall.ENOTDIR:
		return nil
	case err == syscall.EISDIR, err == syscall.EPERM:
		// Linux says the one of a directory, POSIX the other.
		if info, statErr := os.Lstat(f.path(key)); statErr == nil && info.IsDir() {
			return nil
		}
	}
	return &fs.PathError{Op: "unlink", Path: f.path(key), Err: err}
}

// tidy removes dir and the directories above it as far as they are empty, and syncs the first that stays. A Create into
// one of them at the same time makes it again.
func (f *file) tidy(dir string) error {
	for {
		if dir != f.root && syscall.Rmdir(dir) == nil {
			f.synced.Delete(dir)
			dir = filepath.Dir(dir)
			continue
		}
		err := f.syncDir(dir)
		if !absent(err) {
			return err
		}
		if dir == f.root {
			return f.present()
		}
		f.synced.Delete(dir)
		dir = filepath.Dir(dir)
	}
}

// Sweep removes files in the temporary directory: see Sweeper.
func (f *file) Sweep(ctx context.Context, olderThan time.Duration) (removed int, err error) {
	if err := f.present(); err != nil {
		return 0, f.failed("sweep", "", err)
	}
	entries, err := os.ReadDir(f.path(tempName))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, f.failed("sweep", "", err)
	}
	limit := time.Now().Add(-olderThan)
	for _, e := range entries {
		if ctx.Err() != nil {
			return removed, f.failed("sweep", "", ctx.Err())
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) || err == nil && !info.ModTime().Before(limit) {
			continue
		}
		if err == nil {
			err = os.Remove(f.path(tempName + "/" + e.Name()))
		}
		if err == nil {
			removed++
		} else if !errors.Is(err, fs.ErrNotExist) {
			return removed, f.failed("sweep", "", err)
		}
	}
	return removed, nil
}
