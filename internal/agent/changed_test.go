package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"pitr/archive"
	"pitr/internal/repo"
	"pitr/internal/wal"
	"pitr/storage"
	"pitr/storage/storagetest"
)

// withSegments opens the archive of system 7, whose server has segments of the given size.
func withSegments(t *testing.T, b storage.Bucket, size int64) *archive.Archive {
	t.Helper()
	r, err := repo.Ensure(t.Context(), b, repo.Facts{SystemID: 7, Major: 15, SegmentSize: size, BlockSize: 8192}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return archive.New(r, archive.Options{})
}

// pg_resetwal changes the size of segments and nothing else: an agent that went on meanwhile must not hold the new ones for
// damaged, nor archive them with what the old size makes of their names.
func TestSegmentSizeChanges(t *testing.T) {
	b := storagetest.Memory()
	size := int64(16 << 20)
	a := &agent{reading: map[uint64]*archive.Archive{}, d: Deps{
		Archive: func(context.Context) (*archive.Archive, error) { return withSegments(t, b, size), nil },
		Read: func(ctx context.Context, system uint64) (*archive.Archive, error) {
			r, err := repo.Open(ctx, b, system)
			if err != nil {
				return nil, err
			}
			return archive.New(r, archive.Options{}), nil
		},
	}}
	before, err := a.open(t.Context(), wal.Control{SystemID: 7, WALSegSize: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if again, err := a.open(t.Context(), wal.Control{SystemID: 7, WALSegSize: 16 << 20}); err != nil || again != before {
		t.Errorf("opened anew for nothing: %v", err)
	}
	if _, err := a.read(t.Context(), 7); err != nil {
		t.Fatal(err)
	}
	if _, err := a.open(t.Context(), wal.Control{SystemID: 7, WALSegSize: 1 << 20}); err == nil {
		t.Error("an archive of larger segments was opened for a server with smaller ones")
	}
	size = 1 << 20
	after, err := a.open(t.Context(), wal.Control{SystemID: 7, WALSegSize: 1 << 20})
	if err != nil || after.Repo().Facts().SegmentSize != 1<<20 {
		t.Errorf("%v", err)
	}
	// With 16 MiB no segment has this name, with 1 MiB it has.
	dest := filepath.Join(t.TempDir(), "x")
	err = a.fetch(t.Context(), 7, "0000000100000000000001FF", dest, false, func() {})
	if _, serr := os.Stat(dest); !errors.Is(err, archive.ErrNotArchived) || serr == nil {
		t.Errorf("%v", err)
	}
	if got := a.segSize(7); got != 1<<20 {
		t.Errorf("fetches ahead go by segments of %d bytes", got)
	}
}
