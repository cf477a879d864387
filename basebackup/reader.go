package basebackup

import (
	"bufio"
	"context"
	"crypto/subtle"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"

	"github.com/zeebo/blake3"

	"pitr/internal/hint"
	"pitr/internal/repo"
	"pitr/storage"
)

// ErrNoBackup reports that there is no backup of a name.
var ErrNoBackup = errors.New("no such backup")

// headerRange is how much of a manifest is asked for at first; headers mostly are smaller.
const headerRange = 32 << 10

// ReadHeader reads the beginning of a manifest, and verifies that much. ErrNoBackup, repo.ErrDamaged.
func ReadHeader(ctx context.Context, r *repo.Repo, id string) (*Header, error) {
	if err := CheckID(id); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoBackup, err)
	}
	key := repo.BackupKey(id)
	start, err := readStart(ctx, r, key, headerRange)
	if err != nil {
		return nil, readError(r, id, err)
	}
	need, err := headerEnd(start)
	if err != nil {
		return nil, r.Damaged(key, "%v", err)
	}
	if need > len(start) {
		if start, err = readStart(ctx, r, key, int64(need)); err != nil {
			return nil, readError(r, id, err)
		}
	}
	h, err := parseHeader(start, id)
	if err != nil {
		return nil, headerError(r, key, err)
	}
	return h, nil
}

// readStart reads up to n bytes from an object's beginning; fewer where it is shorter.
func readStart(ctx context.Context, r *repo.Repo, key string, n int64) ([]byte, error) {
	body, err := r.GetRange(ctx, key, 0, n)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	data, err := io.ReadAll(io.LimitReader(body, n))
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return data, err
}

func readError(r *repo.Repo, id string, err error) error {
	if errors.Is(err, storage.ErrNotFound) {
		return hint.Wrap(fmt.Errorf("%w: %s", ErrNoBackup, id), "`pitr backup list` shows what there is")
	}
	return fmt.Errorf("read the manifest of backup %s: %w", id, err)
}

// headerEnd tells how many bytes of a manifest, of which start are the first, are needed to read its header.
func headerEnd(start []byte) (int, error) {
	if len(start) < preface || string(start[:len(magic)]) != magic {
		return 0, errors.New("it is not a manifest")
	}
	n := binary.LittleEndian.Uint32(start[len(magic):])
	if n > maxHeader {
		return 0, fmt.Errorf("a header of %d bytes", n)
	}
	return preface + int(n) + digestLen, nil
}

// formatError says that a manifest is newer than this program.
type formatError int

func (f formatError) Error() string {
	return fmt.Sprintf("its format is %d, this pitr reads up to %d", int(f), Format)
}

func headerError(r *repo.Repo, key string, err error) error {
	if _, ok := errors.AsType[formatError](err); ok {
		return hint.Wrap(fmt.Errorf("read %s: %w", r.Where(key), err), "use the pitr version that wrote it, or a newer one")
	}
	return r.Damaged(key, "%v", err)
}

// parseHeader reads and verifies the header of backup id at the beginning of data.
func parseHeader(data []byte, id string) (*Header, error) {
	end, err := headerEnd(data)
	if err != nil {
		return nil, err
	}
	if len(data) < end {
		return nil, errors.New("it ends in its header")
	}
	body, sum := data[:end-digestLen], data[end-digestLen:end]
	if repo.DigestOf(body) != repo.Digest(sum) {
		return nil, errors.New("the digest of its header is wrong")
	}
	h := new(Header)
	text := body[preface:]
	// The format first: another one may have other fields.
	var f struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(text, &f); err != nil {
		return nil, err
	}
	if f.Format != Format {
		return nil, formatError(f.Format)
	}
	if err := json.Unmarshal(text, h); err != nil {
		return nil, err
	}
	if err := h.check(); err != nil {
		return nil, err
	}
	if h.ID != id {
		return nil, fmt.Errorf("it is that of backup %s", h.ID)
	}
	return h, nil
}

// Manifest is one that was read as a whole and verified. Entries may be called any number of times, also by several
// goroutines at once. Close frees it.
type Manifest struct {
	Header *Header

	spool    *os.File
	from, to int64 // the chunks, in spool
	damaged  func(format string, args ...any) error
}

// OpenManifest fetches the manifest of a backup into a temporary file in dir (empty: the system's directory for such
// files) and verifies all of it before it gives anything. ErrNoBackup, repo.ErrDamaged.
func OpenManifest(ctx context.Context, r *repo.Repo, id, dir string) (_ *Manifest, err error) {
	if err := CheckID(id); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoBackup, err)
	}
	key := repo.BackupKey(id)
	body, err := r.Get(ctx, key)
	if err != nil {
		return nil, readError(r, id, err)
	}
	defer body.Close()
	f, err := spoolFile(dir)
	if err != nil {
		return nil, fmt.Errorf("read the manifest of backup %s: %w", id, err)
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	// The digest covers all but the last bytes, and where those begin is known only at the end.
	size, err := io.Copy(f, body)
	if err != nil {
		return nil, fmt.Errorf("read the manifest of backup %s: %w", id, err)
	}
	m := &Manifest{spool: f, to: size - int64(trailerLen)}
	m.damaged = func(format string, args ...any) error { return r.Damaged(key, format, args...) }
	if m.to < 0 {
		return nil, m.damaged("it has %d bytes", size)
	}
	var trailer [trailerLen]byte
	if _, err := f.ReadAt(trailer[:], m.to); err != nil {
		return nil, fmt.Errorf("read the manifest of backup %s: %w", id, err)
	}
	sum := blake3.New()
	if _, err := io.Copy(sum, io.NewSectionReader(f, 0, m.to)); err != nil {
		return nil, fmt.Errorf("read the manifest of backup %s: %w", id, err)
	}
	if string(trailer[32:]) != magic || subtle.ConstantTimeCompare(sum.Sum(nil), trailer[:32]) != 1 {
		return nil, m.damaged("its digest is wrong")
	}
	start := make([]byte, min(m.to, maxHeader+int64(preface+digestLen)))
	if _, err := f.ReadAt(start, 0); err != nil {
		return nil, fmt.Errorf("read the manifest of backup %s: %w", id, err)
	}
	if m.Header, err = parseHeader(start, id); err != nil {
		return nil, headerError(r, key, err)
	}
	end, _ := headerEnd(start) // parseHeader has seen that it is there
	m.from = int64(end)
	return m, nil
}

// Close frees the temporary file.
func (m *Manifest) Close() error { return m.spool.Close() }

// Entries gives the entries in the order of the manifest, complete. The first error ends it; nothing after it may be
// taken to be absent.
func (m *Manifest) Entries() iter.Seq2[*Entry, error] {
	return func(yield func(*Entry, error) bool) {
		dec, err := repo.NewDecoder()
		if err != nil {
			yield(nil, err)
			return
		}
		defer dec.Close()
		it := newEntryReader(io.NewSectionReader(m.spool, m.from, m.to-m.from), dec, len(m.Header.PacksOf))
		for {
			e, err := it.next()
			if err == io.EOF {
				return
			}
			if err != nil {
				yield(nil, m.damaged("%v", err))
				return
			}
			if !yield(e, nil) {
				return
			}
		}
	}
}

// entryReader joins continuations to their entries and checks the order.
type entryReader struct {
	in      *bufio.Reader
	dec     *repo.Decoder
	backups uint32

	stored, raw []byte
	chunk       entryDecoder
	ended       bool

	any      bool
	lastType EntryType
	lastPath string
}

func newEntryReader(chunks io.Reader, dec *repo.Decoder, backups int) *entryReader {
	return &entryReader{in: bufio.NewReaderSize(chunks, 256<<10), dec: dec, backups: uint32(backups)}
}

// next gives the next whole entry; io.EOF at the end.
func (r *entryReader) next() (*Entry, error) {
	e, err := r.part()
	if err != nil {
		return nil, err
	}
	if e.Type == continuation {
		return nil, fmt.Errorf("%.80q: it goes on without having begun", e.Path)
	}
	if r.any && !precedes(r.lastType, r.lastPath, e.Type, e.Path) {
		return nil, fmt.Errorf("%.80q does not follow %.80q", e.Path, r.lastPath)
	}
	r.any, r.lastType, r.lastPath = true, e.Type, e.Path
	if e.Type != File && e.Type != External {
		return e, nil
	}
	have := int64(0)
	for p := e; ; {
		for _, x := range p.Extents {
			if have += x.Length; have > e.Size || have < 0 {
				return nil, fmt.Errorf("%.80q: the extents give more than its %d bytes", e.Path, e.Size)
			}
			if !x.Zeros && x.Frame.Backup >= r.backups {
				return nil, fmt.Errorf("%.80q: impossible extent %+v", e.Path, x)
			}
		}
		if p != e {
			e.Extents = append(e.Extents, p.Extents...)
		}
		if have == e.Size {
			return e, nil
		}
		if p, err = r.part(); err != nil && err != io.EOF {
			return nil, err
		}
		if err == io.EOF || p.Type != continuation || p.Path != e.Path || len(p.Extents) == 0 {
			return nil, fmt.Errorf("%.80q: the extents give %d of its %d bytes", e.Path, have, e.Size)
		}
	}
}

// part gives the next entry as it stands; io.EOF at the end.
func (r *entryReader) part() (*Entry, error) {
	for len(r.chunk.buf) == 0 {
		if err := r.open(); err != nil {
			return nil, err
		}
	}
	e := new(Entry)
	return e, r.chunk.entry(e)
}

// open reads the next chunk; io.EOF behind the last one.
func (r *entryReader) open() error {
	if r.ended {
		return io.EOF
	}
	var head [8]byte
	if _, err := io.ReadFull(r.in, head[:]); err != nil {
		return errors.New("it ends without an end")
	}
	stored, raw := binary.LittleEndian.Uint32(head[:]), binary.LittleEndian.Uint32(head[4:])
	if stored == 0 && raw == 0 {
		r.ended = true
		if _, err := r.in.ReadByte(); err != io.EOF {
			return errors.New("something follows its end")
		}
		return io.EOF
	}
	if raw == 0 || raw > maxChunk || int64(stored) > int64(repo.Bound(maxChunk)) {
		return fmt.Errorf("a chunk of %d bytes for %d", stored, raw)
	}
	if cap(r.stored) < int(stored) {
		r.stored = make([]byte, stored)
	}
	if _, err := io.ReadFull(r.in, r.stored[:stored]); err != nil {
		return errors.New("it ends in a chunk")
	}
	var err error
	if r.raw, err = r.dec.Decode(r.raw, r.stored[:stored], int(raw)); err != nil {
		return err
	}
	r.chunk = entryDecoder{buf: r.raw}
	return nil
}
