package durable

import (
	"io/fs"
	"os"
	"path/filepath"
)

// tempPattern names files that are being written. The name does not repeat the final one, which may be as long as a name
// can be.
const tempPattern = ".pitr-*.tmp"

// File is a file being written that nobody sees under its name before Commit. One goroutine at a time may use it, as with
// os.File, whose methods write it.
//
// Exactly one of Commit and Abort takes effect: the first. `defer f.Abort()` after Create is therefore always right.
type File struct {
	*os.File
	sys  system
	path string
	done bool
}

// Create begins a file that Commit will show at path, with exactly the mode given. Until then it lives in the same
// directory under a hidden name, `.pitr-<random>.tmp`, which a killed process leaves behind.
func Create(path string, mode fs.FileMode) (*File, error) { return kernel().create(path, mode) }

func (s system) create(path string, mode fs.FileMode) (*File, error) {
	f, err := os.CreateTemp(filepath.Dir(path), tempPattern)
	if err != nil {
		return nil, err
	}
	file := &File{File: f, sys: s, path: path}
	if err := f.Chmod(mode); err != nil {
		file.Abort()
		return nil, err
	}
	return file, nil
}

// Commit makes the content durable and then shows it at the path given to Create, replacing what was there. After an
// error in the writing, call Abort instead. If Commit fails, the old content stays, unless only the last step, the
// syncing of the directory, failed.
func (f *File) Commit() error {
	if f.done {
		return &fs.PathError{Op: "commit", Path: f.path, Err: fs.ErrClosed}
	}
	if err := f.sys.sync(f.File); err != nil {
		f.Abort()
		return err
	}
	if err := f.File.Close(); err != nil {
		f.Abort()
		return err
	}
	if err := f.sys.rename(f.Name(), f.path); err != nil {
		f.Abort()
		return err
	}
	f.done = true
	return f.sys.syncDir(filepath.Dir(f.path))
}

// Abort throws the file away. After Commit or Abort it does nothing.
func (f *File) Abort() {
	if f.done {
		return
	}
	f.done = true
	// Nothing was promised about this file, so it does not matter if closing or removing it fails: what stays is a
	// hidden name.
	f.File.Close()
	f.sys.remove(f.Name())
}

// Close is Abort, so that a File handed to code that closes what it has written never shows half of it.
func (f *File) Close() error {
	f.Abort()
	return nil
}
