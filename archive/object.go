package archive

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"time"

	"pitr/internal/repo"
	"pitr/internal/wal"
)

// The object of a segment is a row of zstd frames, which alone are the segment, and one skippable
// frame behind them, the trailer. docs/format.md describes it byte by byte.
const (
	// frameSize is the raw content of each frame but the last.
	frameSize = 4 << 20

	skippableMagic = 0x184D2A50 // RFC 8878, section 3.1.2
	skippableLen   = 8          // magic and length
	trailerMagic   = "PITRSEG1"
	// trailerEnd is what stands at the very end: the payload's digest, its length, the magic.
	trailerEnd = 16 + 4 + len(trailerMagic)
	// trailerMin is the least payload: magic, three lengths, the end.
	trailerMin = len(trailerMagic) + 4 + 4 + 4 + trailerEnd
	// trailerMax bounds what is read as one: a description of 2048 frames and the largest index.
	trailerMax = 1<<20 + 2*repo.MaxFrame
)

// Meta is what a segment's object says of its content.
type Meta struct {
	// Name is the segment's, or "<segment>.partial".
	Name string `json:"name"`
	// Size is the length of the content in bytes: for a partial segment that of the prefix.
	Size int64 `json:"size"`
	// Digest is that of the content; it stands in the key, too.
	Digest   string       `json:"digest"`
	SystemID uint64       `json:"system_identifier,string"`
	Timeline wal.Timeline `json:"timeline"`
	// Start is the position of the segment's first byte, End that behind its last whole record
	// (absent where that is not known).
	Start wal.LSN `json:"start"`
	End   wal.LSN `json:"end,omitempty"`
	// Major is PostgreSQL's major version.
	Major int `json:"postgresql"`
	// Switched: the segment was ended before it was full.
	Switched bool `json:"switched,omitempty"`
	// Term and Node say who archived it; the term is 0 where no cluster is managed.
	Term   uint64    `json:"term,omitempty"`
	Node   string    `json:"node,omitempty"`
	Pushed time.Time `json:"pushed"`
	// IndexError says why the object carries no index.
	IndexError string  `json:"index_error,omitempty"`
	Frames     []Frame `json:"frames"`
}

// Frame is one zstd frame of an object: its length there, that of its content, and the check
// (repo.CheckOf) of its stored bytes, so that any changed bit shows, also one that decompression
// would pass over. In JSON it is an array of these three.
type Frame struct {
	Stored, Raw int
	Check       repo.Check
}

// MarshalJSON writes [stored, raw, "check"].
func (f Frame) MarshalJSON() ([]byte, error) {
	return fmt.Appendf(nil, "[%d,%d,\"%x\"]", f.Stored, f.Raw, f.Check[:]), nil
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (f *Frame) UnmarshalJSON(data []byte) error {
	var check string
	v := []any{&f.Stored, &f.Raw, &check}
	if err := json.Unmarshal(data, &v); err != nil {
		return err
	}
	d, err := repo.ParseDigest(check)
	f.Check = repo.Check(d)
	return err
}

// encodeTrailer builds the skippable frame. index may be empty.
func encodeTrailer(m *Meta, index []byte, enc *repo.Encoder) ([]byte, error) {
	meta, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("describe %s: %w", m.Name, err)
	}
	le := binary.LittleEndian
	var stored []byte
	if len(index) > 0 {
		if stored, err = enc.Append(nil, index); err != nil {
			return nil, fmt.Errorf("compress the index of %s: %w", m.Name, err)
		}
	}
	out := make([]byte, skippableLen, skippableLen+trailerMin+len(meta)+len(stored))
	out = append(out, trailerMagic...)
	out = le.AppendUint32(out, uint32(len(meta)))
	out = append(out, meta...)
	out = le.AppendUint32(out, uint32(len(stored)))
	out = le.AppendUint32(out, uint32(len(index)))
	out = append(out, stored...)
	digest := repo.DigestOf(out[skippableLen:])
	out = append(out, digest[:]...)
	payload := uint32(len(out) - skippableLen + 4 + len(trailerMagic))
	out = le.AppendUint32(out, payload)
	out = append(out, trailerMagic...)
	le.PutUint32(out, skippableMagic)
	le.PutUint32(out[4:], payload)
	return out, nil
}

// trailerLen returns the length of the whole trailer, skippable header included, of which tail
// holds the end.
func trailerLen(tail []byte) (int64, error) {
	if len(tail) < 4+len(trailerMagic) || string(tail[len(tail)-len(trailerMagic):]) != trailerMagic {
		return 0, fmt.Errorf("the object does not end as a segment's object does")
	}
	n := int64(binary.LittleEndian.Uint32(tail[len(tail)-len(trailerMagic)-4:]))
	if n < int64(trailerMin) || n > trailerMax {
		return 0, fmt.Errorf("its trailer claims %d bytes", n)
	}
	return n + skippableLen, nil
}

// parseTrailer takes the whole trailer apart and verifies every byte of it.
func parseTrailer(t []byte) (m *Meta, index []byte, indexRaw int, err error) {
	bad := func(format string, args ...any) (*Meta, []byte, int, error) {
		return nil, nil, 0, fmt.Errorf(format, args...)
	}
	le := binary.LittleEndian
	n, err := trailerLen(t)
	if err != nil {
		return nil, nil, 0, err
	}
	if n != int64(len(t)) || le.Uint32(t) != skippableMagic || le.Uint32(t[4:]) != uint32(n-skippableLen) {
		return bad("its trailer does not begin as it should")
	}
	body := t[skippableLen : len(t)-trailerEnd]
	if d := repo.DigestOf(body); !bytes.Equal(d[:], t[len(t)-trailerEnd:][:16]) {
		return bad("its trailer's digest does not fit")
	}
	if string(body[:len(trailerMagic)]) != trailerMagic {
		return bad("its trailer has the wrong magic")
	}
	// From here on the bytes are what a writer wrote; still nothing may be read past their end.
	body = body[len(trailerMagic):]
	take := func() []byte {
		if len(body) < 4 {
			return nil
		}
		n := uint64(le.Uint32(body))
		if body = body[4:]; n > uint64(len(body)) {
			return nil
		}
		part := body[:n]
		body = body[n:]
		return part
	}
	meta := take()
	if meta == nil {
		return bad("its description is cut short")
	}
	if len(body) < 8 {
		return bad("its index is cut short")
	}
	indexRaw = int(le.Uint32(body[4:]))
	if uint64(le.Uint32(body)) != uint64(len(body)-8) {
		return bad("its index is cut short")
	}
	index = body[8:]
	if (len(index) == 0) != (indexRaw == 0) || indexRaw > repo.MaxFrame {
		return bad("its index claims %d bytes", indexRaw)
	}
	m = new(Meta)
	if err := json.Unmarshal(meta, m); err != nil {
		return bad("its description can't be read: %v", err)
	}
	return m, index, indexRaw, nil
}

// check verifies a description against the key it was found under and the bytes in front of the
// trailer.
func (m *Meta) check(o repo.WALObject, stored int64) error {
	if m.Name != o.Name || m.Digest != o.Digest.String() || m.Timeline != o.Timeline {
		return fmt.Errorf("it describes %s with digest %s", m.Name, m.Digest)
	}
	if o.Kind == wal.Partial && m.End != o.End {
		return fmt.Errorf("it describes %s up to %s", m.Name, m.End)
	}
	var sum, raw int64
	for i, f := range m.Frames {
		last := i == len(m.Frames)-1
		if f.Stored <= 0 || f.Stored > repo.Bound(frameSize) || f.Raw <= 0 || f.Raw > frameSize || !last && f.Raw != frameSize {
			return fmt.Errorf("frame %d claims %d bytes for %d", i, f.Stored, f.Raw)
		}
		sum += int64(f.Stored)
		raw += int64(f.Raw)
	}
	if sum != stored || raw != m.Size {
		return fmt.Errorf("its frames have %d bytes for %d, it has %d and should give %d", sum, raw, stored, m.Size)
	}
	return nil
}
