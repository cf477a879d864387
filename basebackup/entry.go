package basebackup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"

	"pitr/internal/repo"
)

// EntryType says what an entry of a manifest describes. The values stand in the manifest.
type EntryType byte

const (
	Directory EntryType = 'D'
	Symlink   EntryType = 'L'
	File      EntryType = 'F'
	// External is a configuration file outside the data directory.
	External EntryType = 'E'

	// continuation carries more extents of the file before it, so that no chunk grows with a file.
	continuation EntryType = 'C'
)

// FileFlags say more about a file.
type FileFlags uint64

const (
	// PagesChecked: the checksums of all whole pages were compared while copying; the bad ones are in BadPages.
	PagesChecked FileFlags = 1 << iota

	knownFlags = PagesChecked
)

// Entry is one thing that a backup holds. Entries come in this order: "."; what is in the data directory, in byte order of
// the paths; external files, likewise; global/pg_control.
type Entry struct {
	Type EntryType
	// Path is relative to the data directory, with slashes, of any bytes but NUL; files in tablespaces are under
	// "pg_tblspc/<oid>/". The data directory itself is ".". An External entry has the absolute path that the file had.
	Path string
	Mode uint32 // permission bits as in chmod(2); not of symbolic links

	Target string // of a Symlink, as it was on the server
	// Name is, for External, the setting that names the file (config_file, hba_file, ident_file), or "include".
	Name string

	// Of File and External.
	ModTime  int64 // nanoseconds since 1970
	Size     int64 // bytes
	Flags    FileFlags
	Extents  []Extent // in order, together Size bytes
	BadPages []uint32 // block numbers within the relation, ascending; see PagesChecked
}

// Extent is a run of a file's bytes.
type Extent struct {
	Zeros  bool   // Length zero bytes, stored nowhere: Frame and Offset have no meaning
	Frame  Frame  // where the bytes are
	Offset uint32 // of the first byte in the frame's raw content
	Length int64  // bytes; at most the frame's where there is one
}

// Frame is one compressed piece of a pack.
type Frame struct {
	Backup uint32     // index into Header.PacksOf
	Pack   uint32     // number of the pack, from 1
	Offset int64      // of the frame in the pack, bytes
	Stored uint32     // bytes in the pack
	Raw    uint32     // bytes when decompressed
	Check  repo.Check // of the raw bytes
	// StoredCheck is of the stored bytes: there are bits in a zstd frame that change nothing when it is decompressed,
	// and that they changed is to be noticed all the same.
	StoredCheck uint32
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// storedCheckOf is the CRC-32C of a frame's stored bytes.
func storedCheckOf(stored []byte) uint32 { return crc32.Checksum(stored, castagnoli) }

// MaxFrameRaw is the most raw bytes in a frame of a pack.
const MaxFrameRaw = 1 << 20

const (
	extentZeros     = 1 << 0
	extentSameFrame = 1 << 1
)

// maxPath bounds paths and link targets (PATH_MAX of Linux).
const maxPath = 4096

// CheckPath returns an error unless path can be that of an entry inside a data directory: then it never leads out of the
// directory that it is joined to.
func CheckPath(path string) error {
	if path == "." {
		return nil
	}
	if path == "" || len(path) > maxPath || strings.IndexByte(path, 0) >= 0 {
		return fmt.Errorf("impossible path %.80q", path)
	}
	for c := range strings.SplitSeq(path, "/") {
		if c == "" || c == "." || c == ".." {
			return fmt.Errorf("impossible path %.80q", path)
		}
	}
	return nil
}

// check returns what is wrong with the entry itself. Extents of a file that goes on in a continuation are not counted
// against its size here.
func (e *Entry) check() error {
	if e.Type == External {
		if len(e.Path) < 2 || e.Path[0] != '/' || len(e.Path) > maxPath || strings.IndexByte(e.Path, 0) >= 0 {
			return fmt.Errorf("impossible path of an external file %.80q", e.Path)
		}
	} else if err := CheckPath(e.Path); err != nil {
		return err
	}
	switch e.Type {
	case Directory, Symlink, File, External, continuation:
	default:
		return fmt.Errorf("%.80q: unknown type %q", e.Path, byte(e.Type))
	}
	if e.Type == Symlink && (e.Target == "" || len(e.Target) > maxPath || strings.IndexByte(e.Target, 0) >= 0) {
		return fmt.Errorf("%.80q: impossible link target", e.Path)
	}
	if e.Mode > 0o7777 || e.Flags&^knownFlags != 0 || e.Size < 0 {
		return fmt.Errorf("%.80q: mode %o, flags %x, size %d", e.Path, e.Mode, uint64(e.Flags), e.Size)
	}
	for _, x := range e.Extents {
		f := x.Frame
		switch {
		case x.Length <= 0:
		case x.Zeros:
			continue
		case f.Pack == 0 || f.Offset < 0 || f.Raw == 0 || f.Raw > MaxFrameRaw || f.Stored == 0 || int64(f.Stored) > int64(repo.Bound(MaxFrameRaw)):
		case int64(x.Offset)+x.Length > int64(f.Raw):
		default:
			continue
		}
		return fmt.Errorf("%.80q: impossible extent %+v", e.Path, x)
	}
	return nil
}

// length is how many bytes the extents give.
func length(extents []Extent) (n int64) {
	for _, x := range extents {
		n += x.Length
	}
	return n
}

// controlPath is the file that makes a data directory one: it is read last of all, and so restored last of all.
const controlPath = "global/pg_control"

// precedes tells whether an entry of type a and path p comes before one of b and q.
func precedes(a EntryType, p string, b EntryType, q string) bool {
	if r, s := rank(a, p), rank(b, q); r != s {
		return r < s
	}
	return p < q
}

func rank(t EntryType, path string) int {
	switch {
	case path == ".": // which all others are in
		return 0
	case t == External:
		return 2
	case path == controlPath:
		return 3
	}
	return 1
}

// entryEncoder writes entries of one chunk. The frame of an extent is left out where it is that of the extent before.
type entryEncoder struct {
	buf  []byte
	last Frame
}

func (c *entryEncoder) reset() { c.buf, c.last = c.buf[:0], Frame{} }

func (c *entryEncoder) uint(v uint64) { c.buf = binary.AppendUvarint(c.buf, v) }

func (c *entryEncoder) string(s string) {
	c.uint(uint64(len(s)))
	c.buf = append(c.buf, s...)
}

func (c *entryEncoder) entry(e *Entry) {
	c.buf = append(c.buf, byte(e.Type))
	c.string(e.Path)
	switch e.Type {
	case Directory:
		c.uint(uint64(e.Mode))
		return
	case Symlink:
		c.string(e.Target)
		return
	case External:
		c.string(e.Name)
	}
	if e.Type != continuation {
		c.uint(uint64(e.Mode))
		c.buf = binary.AppendVarint(c.buf, e.ModTime)
		c.uint(uint64(e.Size))
		c.uint(uint64(e.Flags))
	}
	c.uint(uint64(len(e.Extents)))
	for i := range e.Extents {
		c.extent(&e.Extents[i])
	}
	if e.Type == continuation {
		return
	}
	c.uint(uint64(len(e.BadPages)))
	next := uint32(0)
	for _, b := range e.BadPages {
		c.uint(uint64(b - next))
		next = b + 1
	}
}

func (c *entryEncoder) extent(x *Extent) {
	if x.Zeros {
		c.uint(extentZeros)
		c.uint(uint64(x.Length))
		return
	}
	if x.Frame == c.last {
		c.uint(extentSameFrame)
	} else {
		f := x.Frame
		c.uint(0)
		c.uint(uint64(f.Backup))
		c.uint(uint64(f.Pack))
		c.uint(uint64(f.Offset))
		c.uint(uint64(f.Stored))
		c.uint(uint64(f.Raw))
		c.buf = append(c.buf, f.Check[:]...)
		c.buf = binary.LittleEndian.AppendUint32(c.buf, f.StoredCheck)
		c.last = f
	}
	c.uint(uint64(x.Offset))
	c.uint(uint64(x.Length))
}

// entryDecoder reads the entries of one chunk. The first error stays.
type entryDecoder struct {
	buf  []byte
	last Frame
	err  error
}

var errEntry = errors.New("impossible entry")

func (c *entryDecoder) fail() {
	if c.err == nil {
		c.err, c.buf = errEntry, nil
	}
}

// uint reads a number that must not exceed limit.
func (c *entryDecoder) uint(limit uint64) uint64 {
	v, n := binary.Uvarint(c.buf)
	if n <= 0 || v > limit {
		c.fail()
		return 0
	}
	c.buf = c.buf[n:]
	return v
}

func (c *entryDecoder) int() int64 {
	v, n := binary.Varint(c.buf)
	if n <= 0 {
		c.fail()
		return 0
	}
	c.buf = c.buf[n:]
	return v
}

func (c *entryDecoder) bytes(n int) []byte {
	if n > len(c.buf) {
		c.fail()
		return nil
	}
	b := c.buf[:n]
	c.buf = c.buf[n:]
	return b
}

func (c *entryDecoder) string() string { return string(c.bytes(int(c.uint(maxPath)))) }

const (
	maxInt64  = 1<<63 - 1
	maxUint32 = 1<<32 - 1
)

// entry reads one entry into e, and checks it. The chunk must not be at its end.
func (c *entryDecoder) entry(e *Entry) error {
	*e = Entry{}
	if t := c.bytes(1); t != nil {
		e.Type = EntryType(t[0])
	}
	e.Path = c.string()
	switch e.Type {
	case Directory:
		e.Mode = uint32(c.uint(maxUint32))
	case Symlink:
		e.Target = c.string()
	case File, External:
		if e.Type == External {
			e.Name = c.string()
		}
		e.Mode = uint32(c.uint(maxUint32))
		e.ModTime = c.int()
		e.Size = int64(c.uint(maxInt64))
		e.Flags = FileFlags(c.uint(1<<64 - 1))
		c.extents(e)
		c.badPages(e)
	case continuation:
		c.extents(e)
	}
	if c.err != nil {
		return c.err
	}
	return e.check()
}

func (c *entryDecoder) extents(e *Entry) {
	// An extent takes at least two bytes: a forged count allocates no more than the chunk's size allows.
	n := c.uint(uint64(len(c.buf) / 2))
	if n > 0 {
		e.Extents = make([]Extent, 0, n)
	}
	for range n {
		var x Extent
		switch flags := c.uint(maxUint32); flags {
		case extentZeros:
			x.Zeros = true
			x.Length = int64(c.uint(maxInt64))
			e.Extents = append(e.Extents, x)
			continue
		case extentSameFrame:
			x.Frame = c.last
		case 0:
			x.Frame.Backup = uint32(c.uint(maxUint32))
			x.Frame.Pack = uint32(c.uint(maxUint32))
			x.Frame.Offset = int64(c.uint(maxInt64))
			x.Frame.Stored = uint32(c.uint(maxUint32))
			x.Frame.Raw = uint32(c.uint(maxUint32))
			copy(x.Frame.Check[:], c.bytes(len(x.Frame.Check)))
			if sum := c.bytes(4); sum != nil {
				x.Frame.StoredCheck = binary.LittleEndian.Uint32(sum)
			}
			c.last = x.Frame
		default:
			c.fail()
		}
		x.Offset = uint32(c.uint(maxUint32))
		x.Length = int64(c.uint(maxInt64))
		if c.err != nil {
			return
		}
		e.Extents = append(e.Extents, x)
	}
}

func (c *entryDecoder) badPages(e *Entry) {
	n := c.uint(uint64(len(c.buf)))
	next := uint64(0)
	for range n {
		b := next + c.uint(maxUint32)
		if c.err != nil {
			return
		}
		if b > maxUint32 {
			c.fail()
			return
		}
		e.BadPages = append(e.BadPages, uint32(b))
		next = b + 1
	}
}
