package recovery

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"pitr/archive"
	"pitr/internal/wal"
)

// recordAt is View.RecordAt. It reads the segment of the position, and those behind it until a record is whole.
func (w *World) recordAt(ctx context.Context, steps []archive.Step, lsn wal.LSN) (Stop, bool, error) {
	var found Stop
	err := w.scan(ctx, steps, wal.SegmentOf(lsn, w.SegSize), func(r *wal.Record) bool {
		if r.LSN < lsn {
			return true
		}
		found = Stop{LSN: r.LSN, End: r.End}
		return false
	})
	return found, found.End != 0, err
}

// lastRecord is View.LastRecord. The last segment may hold no whole record, but only a part of a long one.
func (w *World) lastRecord(ctx context.Context, steps []archive.Step) (Stop, bool, error) {
	if len(steps) == 0 {
		return Stop{}, false, nil
	}
	first, last := steps[0].First, steps[len(steps)-1].Last
	for back := uint64(0); ; back = 2*back + 1 {
		from := first
		if back < last-first {
			from = last - back
		}
		var found Stop
		err := w.scan(ctx, steps, from, func(r *wal.Record) bool {
			found = Stop{LSN: r.LSN, End: r.End}
			return true
		})
		if err != nil || found.End != 0 || from == first {
			return found, found.End != 0, err
		}
	}
}

// scan visits the records of a path from segment number from on, until visit says that it is enough or the records end.
func (w *World) scan(ctx context.Context, steps []archive.Step, from uint64, visit func(*wal.Record) bool) (err error) {
	dir, err := os.MkdirTemp(w.spool, "pitr-wal-*")
	if err != nil {
		return fmt.Errorf("read WAL: %w", err)
	}
	defer os.RemoveAll(dir) // a leftover under the system's directory for such files does no harm
	var reader wal.Reader
	var old []byte
	defer func() { unmap(old) }()
	for _, s := range steps {
		for no := max(from, s.First); no <= s.Last; no++ {
			name := wal.SegmentName(s.Timeline, no, w.SegSize)
			path := filepath.Join(dir, name)
			if err := w.archive.Fetch(ctx, name, path, archive.FetchOptions{Partial: s.Partial}); err != nil {
				return err
			}
			seg, err := mapFile(path)
			if err != nil {
				return fmt.Errorf("read WAL segment %s: %w", name, err)
			}
			err = reader.Feed(seg)
			unmap(old)
			old = seg
			if err != nil {
				return err
			}
			for reader.Next() {
				if !visit(reader.Record()) {
					return nil
				}
			}
			if reader.Stop().Kind != wal.StopMore {
				return nil
			}
		}
	}
	return nil
}

// mapFile maps a file that nobody else knows, and removes its name.
func mapFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := os.Remove(path); err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_PRIVATE)
}

func unmap(b []byte) {
	if b != nil {
		unix.Munmap(b) // it was mapped, so that this can't fail
	}
}
