// Package durable changes files so that the change outlives a crash of the machine: what a function here has reported
// as done is on the disk, name and content.
//
// A rename is atomic for those who look, but neither the content nor the new name is on the disk before the file and its
// directory were synced (fsync(2); durable_rename in PostgreSQL's src/backend/storage/file/fd.c keeps the same order).
// This package owns that order and nothing else: no locking, no retries, no knowledge of what the files mean.
//
// A failed fsync is final: the kernel may have dropped the dirty pages, and would report success to a second try. So
// nothing here syncs the same file twice; new content is thrown away and the error returned.
//
// Where an error says that a directory could not be synced, the change is visible, but a crash may undo it.
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// system holds the calls whose order this package promises, so that its tests can watch them and make each one fail.
type system struct {
	sync      func(*os.File) error
	rename    func(old, new string) error
	exclusive func(old, new string) error
	remove    func(path string) error
	mkdir     func(path string, mode fs.FileMode) error
}

func kernel() system {
	return system{
		sync:      (*os.File).Sync,
		rename:    os.Rename,
		exclusive: renameExclusive,
		remove:    os.Remove,
		mkdir:     os.Mkdir,
	}
}

// WriteFile makes path hold data, replacing what is there: whoever reads it, also after a crash, sees the old content or
// the new one, whole. The file's mode is exactly the one given, whatever the umask.
func WriteFile(path string, data []byte, mode fs.FileMode) error {
	return kernel().writeFile(path, data, mode)
}

func (s system) writeFile(path string, data []byte, mode fs.FileMode) error {
	f, err := s.create(path, mode)
	if err != nil {
		return err
	}
	defer f.Abort()
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Commit()
}

// Rename gives the file or directory at old the name new, replacing a file of that name. old itself is synced before
// (for a directory that is its list of names, not the content of its files), the directories of both names after.
func Rename(old, new string) error { return kernel().renameSynced(old, new) }

func (s system) renameSynced(old, new string) error {
	if err := s.syncPath(old); err != nil {
		return err
	}
	if err := s.rename(old, new); err != nil {
		return err
	}
	if err := s.syncDir(filepath.Dir(new)); err != nil {
		return err
	}
	if filepath.Dir(old) == filepath.Dir(new) {
		return nil
	}
	return s.syncDir(filepath.Dir(old))
}

// RenameExclusive gives the file at old the name new if that name is free. If it is taken, nothing changes and the error
// is fs.ErrExist; of racing callers exactly one succeeds. On a file system that knows neither renameat2(2) with
// RENAME_NOREPLACE nor link(2), the error is errors.ErrUnsupported.
//
// The caller has synced the file. new's directory is synced, old's is not: after a crash the file may have both names.
func RenameExclusive(old, new string) error { return kernel().renameExclusiveSynced(old, new) }

func (s system) renameExclusiveSynced(old, new string) error {
	if err := s.exclusive(old, new); err != nil {
		return err
	}
	return s.syncDir(filepath.Dir(new))
}

// Remove removes the file or empty directory at path. What is absent already is no error, and its absence is made
// durable too, so that a removal whose end nobody saw can be repeated.
func Remove(path string) error { return kernel().removeSynced(path) }

func (s system) removeSynced(path string) error {
	if err := s.remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return s.syncDir(filepath.Dir(path))
}

// MkdirAll makes the directory dir and those above it that are missing, each with the given mode less the umask, and
// syncs each new name. It may race with itself, in this process and in others; if a directory on the way is removed at the
// same time, the error can be fs.ErrNotExist, and a second call is right.
func MkdirAll(dir string, mode fs.FileMode) error {
	return kernel().mkdirAll(filepath.Clean(dir), mode)
}

func (s system) mkdirAll(dir string, mode fs.FileMode) error {
	info, err := os.Stat(dir)
	if err == nil {
		if !info.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: dir, Err: syscall.ENOTDIR}
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := s.mkdirAll(parent, mode); err != nil {
			return err
		}
	}
	if err := s.mkdir(dir, mode); err != nil {
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
		// Whoever came first may not have synced the name yet, so a racer goes on and syncs it as well.
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if !info.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: dir, Err: syscall.ENOTDIR}
		}
	}
	return s.syncDir(parent)
}

// SyncDir makes the names in dir durable. A file system that knows no syncing of directories (EINVAL, as on some network
// mounts) keeps names durable by itself or not at all, so there it does nothing.
func SyncDir(dir string) error { return kernel().syncDir(dir) }

func (s system) syncDir(dir string) error {
	err := s.syncPath(dir)
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	return err
}

func (s system) syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	defer f.Close()
	return s.sync(f)
}
