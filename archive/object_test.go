package archive

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"pitr/internal/repo"
	"pitr/storage/storagetest"
)

// The object of a segment can be produced again from its beginning, byte by byte the same, also
// after half of it was read.
func TestObjectIsReadAgain(t *testing.T) {
	c := wals(t, 16)
	a := c.archive(t, storagetest.Memory())
	k, err := a.borrow()
	if err != nil {
		t.Fatal(err)
	}
	defer a.giveBack(k)
	data := c.read(t, c.segments[0])
	m := Meta{Name: c.segments[0], Size: int64(len(data)), Digest: repo.DigestOf(data).String()}
	r := newObjectReader(k, &source{data: data}, m, []byte("index"))
	half := make([]byte, 1<<20)
	if _, err := io.ReadFull(r, half); err != nil {
		t.Fatal(err)
	}
	if at, err := r.Seek(0, io.SeekCurrent); err != nil || at != 1<<20 {
		t.Fatal(at, err)
	}
	if _, err := r.Seek(5, io.SeekStart); err == nil {
		t.Error("it can be read from the middle on")
	}
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	first, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	second, err := io.ReadAll(iotest.HalfReader(r))
	if err != nil || !bytes.Equal(first, second) || !bytes.Equal(first[:len(half)], half) {
		t.Errorf("it differs: %v", err)
	}
	n, err := trailerLen(first)
	if err != nil {
		t.Fatal(err)
	}
	got, index, raw, err := parseTrailer(first[int64(len(first))-n:])
	if err != nil || got.Digest != m.Digest || len(got.Frames) != 4 || raw != len("index") || len(index) == 0 {
		t.Errorf("%+v %v", got, err)
	}
}

// A large file that is written to while it is archived makes no object.
func TestSourceChanges(t *testing.T) {
	c := wals(t, 16)
	a := c.archive(t, storagetest.Memory())
	k, err := a.borrow()
	if err != nil {
		t.Fatal(err)
	}
	defer a.giveBack(k)
	data := c.read(t, c.segments[0])
	m := Meta{Name: c.segments[0], Size: int64(len(data)), Digest: repo.DigestOf(data).String()}
	data[len(data)-1] ^= 1
	if _, err := io.ReadAll(newObjectReader(k, &source{data: data, mapped: true}, m, nil)); !errors.Is(err, errSourceChanged) {
		t.Error(err)
	}
}

// A mapped file that is cut off is an error, not the end of the process.
func TestMappedFileIsCutOff(t *testing.T) {
	path := write(t, filepath.Join(t.TempDir(), "x"), make([]byte, 1<<20))
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data, err := mapFile(f, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	src := &source{data: data, mapped: true}
	if err := os.Truncate(path, 4096); err != nil {
		t.Fatal(err)
	}
	var buf []byte
	if _, err := src.part(0, 4096, &buf); err != nil {
		t.Error(err)
	}
	_, err = src.part(512<<10, 1000, &buf)
	gerr := src.guarded(func(data []byte) error { repo.DigestOf(data); return nil })
	for _, err := range []error{err, gerr} {
		if err == nil || !strings.Contains(err.Error(), "the file was cut off or the disk fails") {
			t.Error(err)
		}
	}
	if err := src.close(); err != nil {
		t.Error(err)
	}
}

func FuzzTrailer(f *testing.F) {
	enc, err := repo.NewEncoder(1)
	if err != nil {
		f.Fatal(err)
	}
	defer enc.Close()
	for _, index := range [][]byte{nil, []byte("index")} {
		t, err := encodeTrailer(&Meta{Name: "x", Frames: []Frame{{1, 2, repo.Check{3}}}}, index, enc)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(t[skippableLen : len(t)-trailerEnd])
	}
	// The digest is made right, so that what stands behind it is reached.
	f.Fuzz(func(t *testing.T, body []byte) {
		trailer := sealed(body)
		if len(trailer) < trailerMin+skippableLen {
			return
		}
		if n, err := trailerLen(trailer); err != nil || n != int64(len(trailer)) {
			t.Fatal(n, err)
		}
		m, _, raw, err := parseTrailer(trailer)
		if err == nil {
			_ = m.check(repo.WALObject{Name: m.Name}, 100)
			if raw > repo.MaxFrame {
				t.Error(raw)
			}
		}
	})
}

// sealed puts the frame of a trailer around a body.
func sealed(body []byte) []byte {
	le := binary.LittleEndian
	out := le.AppendUint32(nil, skippableMagic)
	out = le.AppendUint32(out, uint32(len(body)+trailerEnd))
	out = append(out, body...)
	d := repo.DigestOf(body)
	out = append(out, d[:]...)
	out = le.AppendUint32(out, uint32(len(body)+trailerEnd))
	return append(out, trailerMagic...)
}
