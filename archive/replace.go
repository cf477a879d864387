package archive

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// temporarySuffix marks the file that becomes the fetched one. The name is always the same, so
// that what a killed fetch leaves behind is used up by the next one.
const temporarySuffix = ".pitr-fetch"

// replaceFile shows at path what write wrote, once it has returned without error. Nobody sees less
// than all of it there, but it is not synced.
func replaceFile(path string, write func(*os.File) error) (err error) {
	temp := path + temporarySuffix
	f, err := openLocked(temp)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			// The lock is still held, so it is our file.
			err = errors.Join(err, os.Remove(temp))
		}
		err = errors.Join(err, f.Close())
	}()
	if err := f.Truncate(0); err != nil {
		return err
	}
	if err := write(f); err != nil {
		return err
	}
	return os.Rename(temp, path)
}

// openLocked opens the file, made if need be, for this process alone: a lock that ends with the
// process tells a live writer from what a dead one left.
func openLocked(path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			return nil, errors.Join(fmt.Errorf("lock %s: %w: is another fetch writing it?", path, err), f.Close())
		}
		mine, err := f.Stat()
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		// Between opening and locking, the one before may have renamed it into place.
		there, err := os.Stat(path)
		if err == nil && os.SameFile(mine, there) {
			return f, nil
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
}
