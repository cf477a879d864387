package archive

import (
	"context"
	"errors"
	"fmt"
	"os"

	"pitr/internal/repo"
	"pitr/internal/wal"
)

// FetchOptions say what else a fetch may give.
type FetchOptions struct {
	// Partial: where the segment is not archived, its longest partial content does, filled up with
	// zeros to the size of a segment. Right only where recovery is known to end within it.
	Partial bool
	// Moved, if not nil, is called whenever something of the file has come from the store, so that who waits can tell a
	// slow store from one that hangs. It must not block.
	Moved func()
}

// Fetch writes the file that the server knows as name to path, replacing what is there: whole and
// verified, or not at all. It is not synced to disk, since a server that comes back from a crash
// asks again.
//
// ErrNotArchived means that the archive, asked and answering, has no such file. ErrConflict means
// that it has several and nobody has recorded which one holds; repo.ErrDamaged that what is there
// is not what was stored. Anything else says nothing of what is archived. Fetch creates nothing in
// the store. One Fetch at a time can write to a path; another one fails.
func (a *Archive) Fetch(ctx context.Context, name, path string, o FetchOptions) error {
	if err := a.fetch(ctx, name, path, o); err != nil {
		return fmt.Errorf("fetch %s: %w", name, err)
	}
	return nil
}

func (a *Archive) fetch(ctx context.Context, name, path string, opt FetchOptions) error {
	segment, partial := wal.PartialBase(name)
	if !partial {
		segment = name
	}
	switch wal.Classify(name) {
	case wal.TimelineHistory, wal.BackupHistory:
		data, err := a.small(ctx, name)
		if err != nil {
			return err
		}
		return replaceFile(path, func(f *os.File) error {
			_, err := f.Write(data)
			return err
		})
	case wal.Segment, wal.Partial:
		if _, _, err := wal.ParseSegmentName(segment, a.segSize()); err != nil {
			return err
		}
	default:
		return fmt.Errorf("the server archives no file of that name")
	}
	c, err := a.listSurely(ctx, segment)
	if err != nil {
		return err
	}
	var o object
	err = ErrNotArchived
	if !partial {
		o, err = c.choose()
	}
	if errors.Is(err, ErrNotArchived) && (partial || opt.Partial) {
		o, err = c.longest()
	}
	if err != nil {
		return err
	}
	return replaceFile(path, func(f *os.File) error { return a.extract(ctx, o, f, a.segSize(), opt.Moved) })
}

// extract writes the verified content of a segment's object to f, and zeros up to size.
func (a *Archive) extract(ctx context.Context, o object, f *os.File, size int64, moved func()) error {
	k, err := a.borrow()
	if err != nil {
		return err
	}
	defer a.giveBack(k)
	first := true
	t, err := a.decode(ctx, o, k, moved, func(raw []byte) error {
		if first {
			if err := a.checkFirst(o, raw); err != nil {
				return err
			}
			first = false
		}
		_, err := f.Write(raw)
		return err
	})
	if err != nil {
		return err
	}
	if t.meta.Size > size || o.Kind == wal.Segment && t.meta.Size != size {
		return a.repo.Damaged(o.key, "it has %d bytes, a segment has %d", t.meta.Size, size)
	}
	return f.Truncate(size)
}

// checkFirst compares the header of the first page with what the object's name promises. The other
// pages were checked when the segment was archived, and the digest proves them unchanged.
func (a *Archive) checkFirst(o object, raw []byte) error {
	segment, partial := wal.PartialBase(o.Name)
	if !partial {
		segment = o.Name
	}
	tli, no, err := wal.ParseSegmentName(segment, a.segSize())
	if err != nil {
		return err
	}
	h, err := wal.ParseSegmentHeader(raw)
	switch start := wal.SegmentStart(no, a.segSize()); {
	case err != nil:
		return a.repo.Damaged(o.key, "%v", err)
	case h.SystemID != a.repo.SystemID() || int64(h.SegSize) != a.segSize() || h.Addr != start || h.Timeline > tli:
		return a.repo.Damaged(o.key, "it holds WAL of timeline %d from %s on, system identifier %d", h.Timeline, h.Addr, h.SystemID)
	}
	return nil
}

// small returns the bytes of an archived history or backup history file.
func (a *Archive) small(ctx context.Context, name string) ([]byte, error) {
	c, err := a.listSurely(ctx, name)
	if err != nil {
		return nil, err
	}
	o, err := c.choose()
	if err != nil {
		return nil, err
	}
	return a.readSmall(ctx, o)
}

func (a *Archive) readSmall(ctx context.Context, o object) ([]byte, error) {
	data, err := a.repo.ReadAll(ctx, o.key, maxSmall)
	if err != nil {
		return nil, err
	}
	if repo.DigestOf(data) != o.Digest {
		return nil, a.repo.Damaged(o.key, "its content has another digest than its name")
	}
	return data, nil
}

// History returns the bytes of a timeline's archived history: ErrNotArchived, ErrConflict,
// repo.ErrDamaged as Fetch.
func (a *Archive) History(ctx context.Context, tli wal.Timeline) ([]byte, error) {
	data, err := a.small(ctx, wal.HistoryName(tli))
	if err != nil {
		return nil, fmt.Errorf("history of timeline %d: %w", tli, err)
	}
	return data, nil
}
