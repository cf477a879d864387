package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"pitr/internal/repo"
	"pitr/internal/wal"
)

// tailSize is how much of an object's end is read at first: nearly always all of its trailer.
const tailSize = 64 << 10

// trailer is what stands behind the frames of an object.
type trailer struct {
	meta     *Meta
	index    []byte // compressed
	indexRaw int
	frames   int64 // bytes of the object in front of the trailer
}

// readTrailer reads and verifies the end of an object.
func (a *Archive) readTrailer(ctx context.Context, o object) (trailer, error) {
	damaged := func(err error) (trailer, error) { return trailer{}, a.repo.Damaged(o.key, "%v", err) }
	tail := make([]byte, min(tailSize, o.size))
	if err := a.repo.ReadRange(ctx, o.key, o.size-int64(len(tail)), tail); err != nil {
		return trailer{}, err
	}
	n, err := trailerLen(tail)
	if err != nil {
		return damaged(err)
	}
	if n > o.size {
		return damaged(errors.New("its trailer is longer than the object"))
	}
	if n > int64(len(tail)) {
		tail = make([]byte, n)
		if err := a.repo.ReadRange(ctx, o.key, o.size-n, tail); err != nil {
			return trailer{}, err
		}
	}
	t := trailer{frames: o.size - n}
	if t.meta, t.index, t.indexRaw, err = parseTrailer(tail[int64(len(tail))-n:]); err != nil {
		return damaged(err)
	}
	if err := t.meta.check(o.WALObject, t.frames); err != nil {
		return damaged(err)
	}
	if t.meta.SystemID != a.repo.SystemID() {
		return damaged(fmt.Errorf("it is of system identifier %d", t.meta.SystemID))
	}
	return t, nil
}

// decode reads a whole object and hands its content to sink piece by piece, each no longer valid
// when sink returns. moved, if not nil, is called as bytes come from the store. Every byte of the object is verified, the content as a whole only at the
// end: what sink got is not to be used unless decode returns without error.
func (a *Archive) decode(ctx context.Context, o object, k *kit, moved func(), sink func(raw []byte) error) (trailer, error) {
	t, err := a.readTrailer(ctx, o)
	if err != nil {
		return t, err
	}
	if moved == nil {
		moved = func() {}
	}
	moved()
	body, err := a.repo.GetRange(ctx, o.key, 0, t.frames)
	if err != nil {
		return t, err
	}
	defer body.Close()
	from := movingReader{body, moved}
	hasher := repo.NewHasher()
	for i, f := range t.meta.Frames {
		stored := room(&k.stored, f.Stored)
		if _, err := io.ReadFull(from, stored); err != nil {
			return t, fmt.Errorf("read %s: %w", a.repo.Where(o.key), err)
		}
		if repo.CheckOf(stored) != f.Check {
			return t, a.repo.Damaged(o.key, "the check of frame %d does not fit", i)
		}
		raw, err := k.dec.Decode(room(&k.raw, f.Raw), stored, f.Raw)
		if err != nil {
			return t, a.repo.Damaged(o.key, "frame %d: %v", i, err)
		}
		_, _ = hasher.Write(raw)
		if err := sink(raw); err != nil {
			return t, err
		}
	}
	if hasher.Digest() != o.Digest {
		return t, a.repo.Damaged(o.key, "its content has another digest than its name")
	}
	return t, nil
}

// movingReader tells of every read that gave something.
type movingReader struct {
	io.Reader
	moved func()
}

func (r movingReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if n > 0 {
		r.moved()
	}
	return n, err
}

// decodeIndex makes the index from a trailer, which is verified already; nil where it has none.
func (a *Archive) decodeIndex(o object, t trailer) (*wal.Index, error) {
	if t.indexRaw == 0 {
		return nil, nil
	}
	k, err := a.borrow()
	if err != nil {
		return nil, err
	}
	defer a.giveBack(k)
	raw, err := k.dec.Decode(nil, t.index, t.indexRaw)
	if err != nil {
		return nil, a.repo.Damaged(o.key, "its index: %v", err)
	}
	ix, err := wal.DecodeIndex(raw)
	if err != nil {
		return nil, fmt.Errorf("read the index of %s: %w", a.repo.Where(o.key), err)
	}
	if err := checkIndex(ix, t.meta, a.segSize()); err != nil {
		return nil, a.repo.Damaged(o.key, "%v", err)
	}
	return ix, nil
}

// checkIndex verifies that an index is that of the segment it stands behind.
func checkIndex(ix *wal.Index, m *Meta, segSize int64) error {
	if ix.SystemID != m.SystemID || ix.Timeline != m.Timeline || ix.Start != m.Start || ix.Major != m.Major || ix.SegSize != segSize {
		return fmt.Errorf("its index is of another segment (timeline %d, %s, system identifier %d)", ix.Timeline, ix.Start, ix.SystemID)
	}
	return nil
}

// stat makes the object that a key names.
func (a *Archive) stat(ctx context.Context, key string) (object, error) {
	w, ok := repo.ParseWALKey(key)
	if !ok || w.Resolved || w.Kind != wal.Segment && w.Kind != wal.Partial {
		return object{}, fmt.Errorf("%s is not the key of a WAL segment", key)
	}
	s, err := a.repo.Stat(ctx, key)
	return object{w, key, s.Size}, err
}

// ReadIndex reads description and index of a segment's object, or a partial one's, from its end.
// The index is nil where the object has none, for the reason that Meta.IndexError gives. An index
// of a version that this pitr does not know is an error; RebuildIndex helps.
func (a *Archive) ReadIndex(ctx context.Context, key string) (*Meta, *wal.Index, error) {
	o, err := a.stat(ctx, key)
	if err != nil {
		return nil, nil, err
	}
	t, err := a.readTrailer(ctx, o)
	if err != nil {
		return nil, nil, err
	}
	ix, err := a.decodeIndex(o, t)
	return t.meta, ix, err
}

// WithContent verifies the object of a segment, or a partial one, and lends its content to f, which
// must not keep it.
func (a *Archive) WithContent(ctx context.Context, key string, f func(m *Meta, data []byte) error) error {
	o, err := a.stat(ctx, key)
	if err != nil {
		return err
	}
	return a.withContent(ctx, o, func(t trailer, data []byte) error { return f(t.meta, data) })
}

// withContent decodes an object and lends its whole content to f: from memory, or, where it is
// large, from a temporary file.
func (a *Archive) withContent(ctx context.Context, o object, f func(t trailer, data []byte) error) (err error) {
	k, err := a.borrow()
	if err != nil {
		return err
	}
	defer a.giveBack(k)
	if a.segSize() <= wholeMax {
		data := room(&k.whole, int(a.segSize()))[:0]
		t, err := a.decode(ctx, o, k, nil, func(raw []byte) error {
			if len(data)+len(raw) > cap(data) {
				return a.repo.Damaged(o.key, "it is longer than a segment")
			}
			data = append(data, raw...)
			return nil
		})
		if err != nil {
			return err
		}
		return f(t, data)
	}
	file, err := os.CreateTemp("", "pitr-verify-*")
	if err != nil {
		return err
	}
	// Nobody else needs its name.
	defer func() { err = errors.Join(err, file.Close()) }()
	if err := os.Remove(file.Name()); err != nil {
		return err
	}
	t, err := a.decode(ctx, o, k, nil, func(raw []byte) error {
		_, err := file.Write(raw)
		return err
	})
	if err != nil {
		return err
	}
	data, err := mapFile(file, int(t.meta.Size))
	if err != nil {
		return fmt.Errorf("map the content of %s: %w", o.Name, err)
	}
	src := &source{data: data, mapped: true}
	defer func() { err = errors.Join(err, src.close()) }()
	return src.guarded(func(data []byte) error { return f(t, data) })
}
