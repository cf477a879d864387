package repo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"pitr/internal/durable"
	"pitr/internal/hint"
	"pitr/storage"
)

// EnsureRemembered is Ensure for the server's own host, which remembers in the file memory that it
// has used the repository. A store that is empty although it was used before is not begun anew: a
// file system that is not mounted looks just so, and WAL that went under its mount point would be
// acknowledged and then lost to every reader.
//
// The memory is a safeguard, not a promise: that it can't be written is no error.
func EnsureRemembered(ctx context.Context, b storage.Bucket, f Facts, now time.Time, memory string) (*Repo, error) {
	line := fmt.Sprintf("%s %d\n", b, f.SystemID)
	known, err := os.ReadFile(memory)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		known = []byte(line) // another user's, or on a failing disk: the more careful of the two possibilities
	}
	if string(known) == line {
		r, err := Open(ctx, b, f.SystemID)
		if errors.Is(err, ErrNoRepository) {
			return nil, hint.Wrap(fmt.Errorf("%s was used for this cluster before and holds nothing of it now: %w", b, err),
				"if it is a file system that is not mounted, mount it; if the repository was deleted on purpose, delete %s, too, and take a new backup at once", memory)
		}
		if err != nil {
			return nil, err
		}
		if r.facts.sameAs(f) {
			return r, nil
		}
	}
	r, err := Ensure(ctx, b, f, now)
	if err == nil && string(known) != line {
		_ = durable.WriteFile(memory, []byte(line), 0o600)
	}
	return r, err
}
