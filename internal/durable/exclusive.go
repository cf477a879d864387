package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// renameExclusive moves old to a name that must be free, by the atomic rename where kernel and file system have it.
func renameExclusive(old, new string) error {
	err := renameNoReplace(old, new)
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, errors.ErrUnsupported) {
		return linkExclusive(old, new)
	}
	return err
}

// linkExclusive does it by a second name, which is as atomic (NFS has only this).
func linkExclusive(old, new string) error {
	err := os.Link(old, new)
	switch {
	case err == nil:
	case errors.Is(err, fs.ErrExist):
		// A link request that NFS sends again after a lost answer finds its own work: then it is our file that is there.
		if !sameFile(old, new) {
			return err
		}
	case errors.Is(err, syscall.EPERM), errors.Is(err, errors.ErrUnsupported):
		// EPERM is what link(2) says on a file system without hard links.
		return fmt.Errorf("%w: the file system has no atomic way to name a file only if the name is free: %w", errors.ErrUnsupported, err)
	default:
		return err
	}
	return os.Remove(old)
}

func sameFile(a, b string) bool {
	x, err := os.Lstat(a)
	if err != nil {
		return false
	}
	y, err := os.Lstat(b)
	return err == nil && os.SameFile(x, y)
}
