package basebackup

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/zeebo/blake3"

	"pitr/internal/repo"
)

// magic begins and ends a manifest.
const magic = "PITRMAN1"

const (
	chunkTarget = 256 << 10 // raw bytes after which a chunk is closed
	maxChunk    = 1 << 20   // raw bytes that no chunk exceeds
	// partExtents is how many extents one entry holds at most; more follow in continuations. An extent takes at most
	// 65 bytes.
	partExtents = 8 << 10
	maxHeader   = 16 << 20 // bytes of JSON
	preface     = len(magic) + 4
	digestLen   = len(repo.Digest{})
	trailerLen  = 32 + len(magic)
)

// Writer collects the entries of a manifest in a file of its own, so that its memory does not grow with their number,
// and stores the manifest at the end. It is not safe for concurrent use. Close removes the file.
type Writer struct {
	dir   string
	spool *os.File
	out   *bufio.Writer
	enc   *repo.Encoder
	chunk entryEncoder
	comp  []byte

	any      bool
	lastType EntryType
	lastPath string
}

// NewWriter starts an empty manifest. dir takes the temporary file; empty: the system's directory for such files.
func NewWriter(dir string) (*Writer, error) {
	f, err := spoolFile(dir)
	if err != nil {
		return nil, fmt.Errorf("write a manifest: %w", err)
	}
	enc, err := repo.NewEncoder(3)
	if err != nil {
		f.Close()
		return nil, err
	}
	return &Writer{dir: dir, spool: f, out: bufio.NewWriterSize(f, 256<<10), enc: enc}, nil
}

// spoolFile makes a file without a name: it is gone when it is closed, however the process ends.
func spoolFile(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "pitr-manifest-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Close frees what the writer holds. The manifest need not have been stored.
func (w *Writer) Close() {
	w.spool.Close()
	w.enc.Close()
}

// Add appends an entry, which must follow the last one in the order of the manifest and be complete.
func (w *Writer) Add(e *Entry) error {
	if e.Type == continuation {
		return fmt.Errorf("add %.80q to a manifest: unknown type", e.Path)
	}
	if err := e.check(); err != nil {
		return fmt.Errorf("add to a manifest: %w", err)
	}
	if n := length(e.Extents); n != e.Size {
		return fmt.Errorf("add %.80q to a manifest: the extents give %d of %d bytes", e.Path, n, e.Size)
	}
	if w.any && !precedes(w.lastType, w.lastPath, e.Type, e.Path) {
		return fmt.Errorf("add %.80q to a manifest: it does not follow %.80q", e.Path, w.lastPath)
	}
	w.any, w.lastType, w.lastPath = true, e.Type, e.Path
	part, rest := *e, []Extent(nil)
	if len(part.Extents) > partExtents {
		part.Extents, rest = part.Extents[:partExtents:partExtents], part.Extents[partExtents:]
	}
	if err := w.add(&part); err != nil {
		return err
	}
	for len(rest) > 0 {
		n := min(len(rest), partExtents)
		if err := w.add(&Entry{Type: continuation, Path: e.Path, Extents: rest[:n]}); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return nil
}

func (w *Writer) add(part *Entry) error {
	before := len(w.chunk.buf)
	w.chunk.entry(part)
	if len(w.chunk.buf) > maxChunk && before > 0 {
		// It did not fit behind the others: the next chunk begins with it.
		w.chunk.buf = w.chunk.buf[:before]
		if err := w.flush(); err != nil {
			return err
		}
		w.chunk.entry(part)
	}
	if len(w.chunk.buf) > maxChunk {
		return fmt.Errorf("add %.80q to a manifest: its description takes more than %d bytes", part.Path, maxChunk)
	}
	if len(w.chunk.buf) >= chunkTarget {
		return w.flush()
	}
	return nil
}

// flush closes the chunk.
func (w *Writer) flush() error {
	if len(w.chunk.buf) == 0 {
		return nil
	}
	comp, err := w.enc.Append(w.comp[:0], w.chunk.buf)
	if err != nil {
		return fmt.Errorf("write a manifest: %w", err)
	}
	w.comp = comp
	var head [8]byte
	binary.LittleEndian.PutUint32(head[:], uint32(len(comp)))
	binary.LittleEndian.PutUint32(head[4:], uint32(len(w.chunk.buf)))
	w.chunk.reset()
	// A bufio.Writer keeps its first error.
	w.out.Write(head[:])
	if _, err := w.out.Write(comp); err != nil {
		return fmt.Errorf("write a manifest: %w", err)
	}
	return nil
}

// Commit stores the manifest under the header's ID, durably: from then on the backup exists. After an error it may or may
// not, and Commit may be repeated. Nothing may be added after the first Commit.
func (w *Writer) Commit(ctx context.Context, r *repo.Repo, h *Header) error {
	if err := w.flush(); err != nil {
		return err
	}
	if err := h.check(); err != nil {
		return fmt.Errorf("write manifest %s: %w", h.ID, err)
	}
	f, err := w.assemble(h)
	if err != nil {
		return fmt.Errorf("write manifest %s: %w", h.ID, err)
	}
	defer f.Close()
	if err := r.Create(ctx, h.key(), f); err != nil {
		return fmt.Errorf("store manifest %s: %w", h.ID, err)
	}
	return nil
}

// assemble makes the object: the header is known only now, and the digest covers it.
func (w *Writer) assemble(h *Header) (_ *os.File, err error) {
	if err := w.out.Flush(); err != nil {
		return nil, err
	}
	text, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	if len(text) > maxHeader {
		return nil, fmt.Errorf("a header of %d bytes", len(text))
	}
	head := binary.LittleEndian.AppendUint32([]byte(magic), uint32(len(text)))
	head = append(head, text...)
	d := repo.DigestOf(head)
	head = append(head, d[:]...)

	f, err := spoolFile(w.dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	size, err := w.spool.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	sum := blake3.New()
	to := io.MultiWriter(f, sum)
	if _, err := to.Write(head); err != nil {
		return nil, err
	}
	if _, err := io.Copy(to, io.NewSectionReader(w.spool, 0, size)); err != nil {
		return nil, err
	}
	if _, err := to.Write(make([]byte, 8)); err != nil { // the end of the chunks
		return nil, err
	}
	if _, err := f.Write(append(sum.Sum(nil), magic...)); err != nil {
		return nil, err
	}
	_, err = f.Seek(0, io.SeekStart)
	return f, err
}
