package basebackup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"pitr/internal/hint"
	"pitr/internal/repo"
	"pitr/internal/wal"
)

// maxHistory bounds what is read as a timeline's history: a line has some 100 bytes, and a cluster as many as promotions.
const maxHistory = 1 << 20

// awaitHistory returns when the history of the timeline is in the repository, and is the server's: without it nobody could
// tell what the timeline has in common with others. Timeline 1 has none.
func (w *walWaiter) awaitHistory(ctx context.Context, dataDir string) error {
	if w.tli == 1 {
		return nil
	}
	pause := walPollFirst
	for deadline := time.Now().Add(w.timeout); ; pause = min(pause*2, walPollMost) {
		data, found, err := w.history(ctx)
		if err != nil {
			return err
		}
		file := filepath.Join(dataDir, walDir, wal.HistoryName(w.tli))
		if found {
			return w.compareHistory(data, file)
		}
		if !time.Now().Before(deadline) {
			err := fmt.Errorf("%s was not archived within %v", wal.HistoryName(w.tli), w.timeout)
			if _, serr := os.Stat(file); serr != nil {
				return hint.Wrap(err, "the server has no %s any more either: find the file (an older archive has it) and archive it with `pitr wal push`", file)
			}
			return hint.Wrap(err, "the server has archived it elsewhere, or before archiving was set up: `pitr wal push %s`", file)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// history reads the archived history of the timeline.
func (w *walWaiter) history(ctx context.Context) (data []byte, found bool, err error) {
	name := wal.HistoryName(w.tli)
	var there, chosen []repo.Digest
	for o, err := range w.repo.List(ctx, repo.WALPrefix+name, "") {
		if err != nil {
			return nil, false, fmt.Errorf("look for archived WAL: %w", err)
		}
		switch obj, ok := repo.ParseWALKey(o.Key); {
		case !ok || obj.Name != name:
		case obj.Resolved:
			chosen = append(chosen, obj.Digest)
		default:
			there = append(there, obj.Digest)
		}
	}
	if len(chosen) == 0 {
		chosen = there
	}
	switch len(chosen) {
	case 0:
		return nil, false, nil
	case 1:
	default:
		return nil, false, hint.Wrap(fmt.Errorf("%s was archived twice, with different contents", name),
			"two servers archive into one place; end that, then settle it with `pitr wal resolve %s DIGEST`", name)
	}
	key := repo.HistoryKey(w.tli, chosen[0])
	if data, err = w.repo.ReadAll(ctx, key, maxHistory); err != nil {
		return nil, false, err
	}
	if repo.DigestOf(data) != chosen[0] {
		return nil, false, w.repo.Damaged(key, "its digest is wrong")
	}
	return data, true, nil
}

// compareHistory makes sure that what is archived tells what the server's own file does, if it has one still.
func (w *walWaiter) compareHistory(archived []byte, file string) error {
	theirs, err := wal.ParseHistory(w.tli, archived)
	if err != nil {
		return fmt.Errorf("read the archived history of the server's timeline: %w", err)
	}
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return readFailed(err)
	}
	own, err := wal.ParseHistory(w.tli, data)
	if err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	if !own.Agrees(theirs) {
		return hint.Wrap(fmt.Errorf("timeline %d of this server is not the one that is archived: another server has made one of that number", w.tli),
			"promote the server to a timeline of its own: restart it as a standby that sees all archived histories, and promote that")
	}
	return nil
}
