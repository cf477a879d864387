package recovery

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// syncer makes everything durable that was written under some directories. syncfs(2) writes out whole file systems, which
// for many files takes a fraction of what syncing each of them does. From Linux 5.8 on it reports what went wrong with
// writing since the directory was opened, which is why they are opened before anything is written.
type syncer struct{ dirs []*os.File }

func openSyncer(dirs []string) (*syncer, error) {
	s := new(syncer)
	for _, dir := range dirs {
		d, err := os.Open(dir)
		if err != nil {
			s.close()
			return nil, err
		}
		s.dirs = append(s.dirs, d)
	}
	return s, nil
}

func (s *syncer) sync(ctx context.Context) error {
	for _, d := range s.dirs {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := unix.Syncfs(int(d.Fd())); err != nil {
			return fmt.Errorf("sync the file system of %s: %w", d.Name(), err)
		}
	}
	return nil
}

func (s *syncer) close() {
	for _, d := range s.dirs {
		d.Close()
	}
}

// syncEach says whether each file is to be synced when it is closed.
const syncEach = false
