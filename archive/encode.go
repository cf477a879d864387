package archive

import (
	"errors"
	"fmt"
	"io"

	"pitr/internal/repo"
)

var errSourceChanged = errors.New("the file changed while it was being archived")

// objectReader produces the bytes of a segment's object, one frame at a time, so that a segment of
// 1 GiB needs no more memory than one of 16 MiB. It can be set back to its beginning, as
// storage.Bucket.Create wants for trying again; it then compresses again.
type objectReader struct {
	k     *kit
	src   *source
	meta  Meta // all but Frames
	index []byte

	off    int64 // bytes of the source that are done
	total  int64 // bytes given out
	rest   []byte
	hasher repo.Hasher
	frames []Frame
	ended  bool
	err    error
}

func newObjectReader(k *kit, src *source, m Meta, index []byte) *objectReader {
	return &objectReader{k: k, src: src, meta: m, index: index, hasher: repo.NewHasher()}
}

// Read gives the next bytes of the object.
func (r *objectReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 && r.err == nil {
		r.rest, r.err = r.next()
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	r.total += int64(n)
	if len(r.rest) > 0 || n > 0 {
		return n, nil
	}
	return 0, r.err
}

// Seek knows only two ways: to ask for the position, and to go back to the beginning.
func (r *objectReader) Seek(offset int64, whence int) (int64, error) {
	switch {
	case whence == io.SeekCurrent && offset == 0, whence == io.SeekStart && offset == r.total:
		return r.total, nil
	case whence == io.SeekStart && offset == 0:
		*r = *newObjectReader(r.k, r.src, r.meta, r.index)
		return 0, nil
	}
	return r.total, errors.New("an object being compressed can only be read from its beginning")
}

// next gives the next frame, the trailer, io.EOF.
func (r *objectReader) next() ([]byte, error) {
	if r.ended {
		return nil, io.EOF
	}
	if r.off == r.meta.Size {
		r.ended = true
		m := r.meta
		m.Frames = r.frames
		if r.src.mapped && r.hasher.Digest().String() != m.Digest {
			return nil, errSourceChanged
		}
		return encodeTrailer(&m, r.index, r.k.enc)
	}
	raw, err := r.src.part(r.off, int(min(frameSize, r.meta.Size-r.off)), &r.k.raw)
	if err != nil {
		return nil, err
	}
	if r.src.mapped {
		// What was hashed for the name is not what is compressed here if someone wrote in between.
		_, _ = r.hasher.Write(raw)
	}
	stored, err := r.k.enc.Append(room(&r.k.stored, repo.Bound(frameSize))[:0], raw)
	if err != nil {
		return nil, fmt.Errorf("compress %s: %w", r.meta.Name, err)
	}
	r.k.stored = stored[:0]
	r.off += int64(len(raw))
	r.frames = append(r.frames, Frame{Stored: len(stored), Raw: len(raw), Check: repo.CheckOf(stored)})
	return stored, nil
}
