package storage

import (
	"errors"
	"os"
	"os/user"
	"strconv"
	"syscall"

	"pitr/internal/hint"
)

// explain adds to an error of the file system what can be done about it, and marks those that pass by themselves.
func (f *file) explain(err error) error {
	switch {
	case err == nil, hint.Of(err) != "":
		return err
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return hint.Wrap(err, "free space (or inodes, or quota) on the file system of %s, enlarge it, or shorten backup.retention and run pitr prune", f.root)
	case errors.Is(err, syscall.EROFS):
		return hint.Wrap(err, "the file system of %s is read-only: if it was not mounted so, look in the kernel's log for the error that made it so", f.root)
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return hint.Wrap(err, "give user %s read, write and search permission for %s and everything below it", whoami(), f.root)
	case errors.Is(err, syscall.EIO):
		return hint.Wrap(err, "the disk or network below %s fails: look in the kernel's log", f.root)
	case errors.Is(err, syscall.ENAMETOOLONG):
		return hint.Wrap(err, "the file system of %s allows only shorter names: choose another one for storage.url", f.root)
	case errors.Is(err, errors.ErrUnsupported):
		return hint.Wrap(err, "the file system of %s cannot do what a store needs: choose another one for storage.url", f.root)
	case errors.Is(err, syscall.ESTALE), errors.Is(err, syscall.ETIMEDOUT), errors.Is(err, syscall.EAGAIN):
		return MarkTemporary(hint.Wrap(err, "the server of the network file system below %s does not answer as it should: look at it and at the network", f.root))
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return MarkTemporary(hint.Wrap(err, "too many files are open: raise the limit (LimitNOFILE in the systemd unit, ulimit -n, fs.file-max)"))
	}
	return err
}

// whoami is the user that the kernel checks permissions for.
func whoami() string {
	id := strconv.Itoa(os.Geteuid())
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return id
}
