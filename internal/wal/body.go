package wal

import (
	"bytes"
	"encoding/binary"
)

// body reads the fixed-width fields of a record's main data in turn. After a
// field that is not there everything is zero and bad is set.
type body struct {
	p   []byte
	bad bool
}

func (b *body) take(n int) []byte {
	if n < 0 || n > len(b.p) {
		b.bad, b.p = true, nil
		return nil
	}
	out := b.p[:n]
	b.p = b.p[n:]
	return out
}

func (b *body) u8() uint8 {
	if p := b.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (b *body) u16() uint16 {
	if p := b.take(2); p != nil {
		return binary.LittleEndian.Uint16(p)
	}
	return 0
}

func (b *body) u32() uint32 {
	if p := b.take(4); p != nil {
		return binary.LittleEndian.Uint32(p)
	}
	return 0
}

func (b *body) u64() uint64 {
	if p := b.take(8); p != nil {
		return binary.LittleEndian.Uint64(p)
	}
	return 0
}

// count reads a number of elements of size bytes each that follow it.
func (b *body) count(size int) int {
	n := int64(int32(b.u32()))
	if n < 0 || n*int64(size) > int64(len(b.p)) {
		b.bad, b.p = true, nil
		return 0
	}
	return int(n)
}

func (b *body) u32s(n int) []uint32 {
	if n <= 0 || n > len(b.p)/4 {
		b.bad = b.bad || n != 0
		return nil
	}
	out := make([]uint32, n)
	for i := range out {
		out[i] = b.u32()
	}
	return out
}

func (b *body) relFile() RelFile {
	return RelFile{Spc: b.u32(), DB: b.u32(), Rel: b.u32()}
}

// text returns p up to its first zero byte.
func text(p []byte) string {
	if i := bytes.IndexByte(p, 0); i >= 0 {
		p = p[:i]
	}
	return string(p)
}
