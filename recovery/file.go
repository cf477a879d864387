package recovery

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"pitr/basebackup"
)

// file is one that is being written, by several workers at once if it is large.
type file struct {
	entry *basebackup.Entry
	path  string
	there bool   // it is kept where it is right
	right []bool // extents that need nothing; nil: none of them

	mu    sync.Mutex
	f     *os.File
	users int // workers that write now
	left  int // extents to be written; set before the workers begin
	made  bool
}

func (f *file) has(extent int) bool { return f.right != nil && f.right[extent] }

// maxOpen is how many files of several extents stay open between their extents.
const maxOpen = 256

// openFiles counts them.
type openFiles struct {
	most int64
	n    atomic.Int64
}

// closeAll closes what an error left open.
func (o *openFiles) closeAll(files []*file) {
	for _, f := range files {
		if f.f != nil {
			f.f.Close()
			f.f = nil
		}
	}
}

// put writes one extent.
func (r *restorer) put(open *openFiles, f *file, at int64, data []byte) error {
	f.mu.Lock()
	if f.f == nil {
		if err := r.openFile(f); err != nil {
			f.mu.Unlock()
			return err
		}
		open.n.Add(1)
	}
	f.users++
	out := f.f
	f.mu.Unlock()

	_, err := out.WriteAt(data, at)

	f.mu.Lock()
	defer f.mu.Unlock()
	f.users--
	f.left--
	if err != nil || f.users > 0 {
		return err
	}
	switch {
	case f.left == 0:
		f.f = nil
		open.n.Add(-1)
		return r.done(f, out)
	case open.n.Load() > open.most:
		f.f = nil
		open.n.Add(-1)
		return closeSynced(out)
	}
	return nil
}

func closeSynced(f *os.File) error {
	if syncEach {
		if err := f.Sync(); err != nil {
			f.Close()
			return err
		}
	}
	return f.Close()
}

// openFile opens the file for writing; the first time it makes it, with its length, so that what is not written is a hole.
func (r *restorer) openFile(f *file) (err error) {
	flags := os.O_RDWR | unix.O_NOFOLLOW
	if !f.made && !f.there {
		// Whatever has the name is not the file. Nothing has it, mostly, and finding that out costs nothing.
		flags |= os.O_CREATE | os.O_EXCL
	}
	f.f, err = os.OpenFile(f.path, flags, 0o600)
	if errors.Is(err, fs.ErrExist) {
		if err = r.remove(context.Background(), f.path); err == nil {
			f.f, err = os.OpenFile(f.path, flags, 0o600)
		}
	}
	if err != nil || f.made {
		return err
	}
	f.made = true
	if err = f.f.Truncate(f.entry.Size); err == nil {
		err = r.own.take(f.f)
	}
	if err != nil {
		f.f.Close()
		f.f = nil
	}
	return err
}

// done ends a file that is complete, open or not.
func (r *restorer) done(f *file, out *os.File) error {
	if out == nil {
		if err := r.openFile(f); err != nil {
			return err
		}
		out, f.f = f.f, nil
	}
	if err := out.Chmod(fs.FileMode(f.entry.Mode & 0o777)); err != nil {
		out.Close()
		return err
	}
	return closeSynced(out)
}
