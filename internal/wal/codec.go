package wal

import (
	"encoding/binary"
	"errors"
	"time"
)

// codec writes or reads the fields of an encoded index. One description of each
// structure serves both directions, so that they cannot differ. Reading, every
// field that is not there is zero and err is set; nothing is allocated that the
// bytes at hand cannot fill.
type codec struct {
	reading bool
	buf     []byte // written so far, or still to read
	err     error
}

var errIndexShort = errors.New("its fields do not fit its length")

func (c *codec) fail() {
	if c.err == nil {
		c.err = errIndexShort
	}
	c.buf = nil
}

// unsigned is a number written as a varint of seven bits a byte, lowest first.
func unsigned[T ~uint8 | ~uint16 | ~uint32 | ~uint64 | ~int | ~int64](c *codec, v *T) {
	if !c.reading {
		c.buf = binary.AppendUvarint(c.buf, uint64(*v))
		return
	}
	x, n := binary.Uvarint(c.buf)
	*v = T(x)
	if n <= 0 || uint64(*v) != x || *v < 0 {
		*v = 0
		c.fail()
		return
	}
	c.buf = c.buf[n:]
}

// delta is a number written as the zigzag varint of its difference, modulo 2^64,
// to base.
func delta[T ~uint32 | ~uint64 | ~int32 | ~int64](c *codec, base T, v *T) {
	if !c.reading {
		c.buf = binary.AppendVarint(c.buf, int64(*v)-int64(base))
		return
	}
	x, n := binary.Varint(c.buf)
	if n <= 0 {
		*v = 0
		c.fail()
		return
	}
	*v = T(int64(base) + x)
	c.buf = c.buf[n:]
}

// flags is a byte of eight truth values, the first in the lowest bit.
func (c *codec) flags(bits ...*bool) {
	var b uint8
	if !c.reading {
		for i, p := range bits {
			if *p {
				b |= 1 << i
			}
		}
		c.buf = append(c.buf, b)
		return
	}
	if len(c.buf) == 0 {
		c.fail()
		return
	}
	b, c.buf = c.buf[0], c.buf[1:]
	if b>>len(bits) != 0 {
		c.fail()
		return
	}
	for i, p := range bits {
		*p = b&(1<<i) != 0
	}
}

// bytes is a length and as many bytes.
func (c *codec) bytes(v *[]byte) {
	n := len(*v)
	unsigned(c, &n)
	if !c.reading {
		c.buf = append(c.buf, *v...)
		return
	}
	if n > len(c.buf) {
		c.fail()
		return
	}
	if n > 0 {
		*v = append([]byte(nil), c.buf[:n]...)
	}
	c.buf = c.buf[n:]
}

// str is a string, as bytes.
func (c *codec) str(v *string) {
	b := []byte(*v)
	c.bytes(&b)
	if c.reading {
		*v = string(b)
	}
}

// seconds is a time in whole seconds since 1970, as a zigzag varint.
func (c *codec) seconds(v *time.Time) {
	s := v.Unix()
	delta(c, 0, &s)
	if c.reading {
		*v = time.Unix(s, 0).UTC()
	}
}

func (c *codec) rel(v *RelFile) {
	unsigned(c, &v.Spc)
	unsigned(c, &v.DB)
	unsigned(c, &v.Rel)
}

// list is a count and as many elements, of which each takes at least min bytes.
func list[T any](c *codec, min int, v *[]T, element func(*codec, *T)) {
	n := len(*v)
	unsigned(c, &n)
	if !c.reading {
		for i := range *v {
			element(c, &(*v)[i])
		}
		return
	}
	if n > len(c.buf)/min {
		c.fail()
		return
	}
	if n == 0 {
		return
	}
	out := make([]T, n)
	for i := range out {
		element(c, &out[i])
		if c.err != nil {
			return
		}
	}
	*v = out
}
