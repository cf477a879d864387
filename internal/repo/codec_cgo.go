//go:build cgo

package repo

import (
	"fmt"

	"github.com/DataDog/zstd"
)

// CodecName says which implementation this binary carries.
const CodecName = "zstd (C)"

type encoderImpl struct {
	ctx   zstd.Ctx
	level int
}

func newEncoderImpl(level int) (encoderImpl, error) {
	return encoderImpl{ctx: zstd.NewCtx(), level: level}, nil
}

func (e encoderImpl) append(dst, raw []byte) ([]byte, error) {
	start, need := len(dst), zstd.CompressBound(len(raw))
	if cap(dst)-start < need {
		grown := make([]byte, start, start+need)
		copy(grown, dst)
		dst = grown
	}
	// The library writes into the memory it is given when the bound fits, which it does.
	out, err := e.ctx.CompressLevel(dst[start:start+need], raw, e.level)
	if err != nil {
		return dst[:start], fmt.Errorf("compress %d bytes: %w", len(raw), err)
	}
	return dst[:start+len(out)], nil
}

// The contexts are freed by the library's own finalizer.
func (encoderImpl) close() {}

type decoderImpl struct{ ctx zstd.Ctx }

func newDecoderImpl() (decoderImpl, error) { return decoderImpl{zstd.NewCtx()}, nil }

func (d decoderImpl) decode(dst, frame []byte) ([]byte, error) {
	if len(frame) == 0 {
		return nil, fmt.Errorf("%w: it is empty", ErrFrame)
	}
	if len(dst) == 0 {
		// The C interface wants an address even for nothing.
		dst = make([]byte, 1)[:0]
		n, err := d.ctx.DecompressInto(dst[:1], frame)
		if err != nil || n != 0 {
			return nil, fmt.Errorf("%w: want 0 bytes, got %d (%v)", ErrFrame, n, err)
		}
		return dst, nil
	}
	n, err := d.ctx.DecompressInto(dst, frame)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrFrame, err)
	}
	if n != len(dst) {
		return nil, fmt.Errorf("%w: want %d bytes, got %d", ErrFrame, len(dst), n)
	}
	return dst, nil
}

func (decoderImpl) close() {}
