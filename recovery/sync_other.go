//go:build !linux

package recovery

import (
	"context"
	"io/fs"
	"path/filepath"

	"pitr/internal/durable"
)

// syncer makes the names of everything under some directories durable. The files are synced when they are closed.
type syncer struct{ dirs []string }

func openSyncer(dirs []string) (*syncer, error) { return &syncer{dirs}, nil }

func (s *syncer) sync(ctx context.Context) error {
	for _, dir := range s.dirs {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil {
				err = ctx.Err()
			}
			if err != nil || !d.IsDir() {
				return err
			}
			return durable.SyncDir(path)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (*syncer) close() {}

// syncEach says whether each file is to be synced when it is closed.
const syncEach = true
