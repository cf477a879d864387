//go:build !cgo

package repo

import (
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// CodecName says which implementation this binary carries.
const CodecName = "zstd (Go)"

type encoderImpl struct{ enc *zstd.Encoder }

func newEncoderImpl(level int) (encoderImpl, error) {
	enc, err := zstd.NewWriter(nil,
		zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(level)),
		zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderCRC(false),
		zstd.WithZeroFrames(true),
		zstd.WithSingleSegment(true), // else the header of a short frame does not tell its length
		zstd.WithLowerEncoderMem(true))
	return encoderImpl{enc}, err
}

func (e encoderImpl) append(dst, raw []byte) ([]byte, error) { return e.enc.EncodeAll(raw, dst), nil }

func (e encoderImpl) close() { _ = e.enc.Close() }

type decoderImpl struct{ dec *zstd.Decoder }

func newDecoderImpl() (decoderImpl, error) {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(MaxFrame))
	return decoderImpl{dec}, err
}

func (d decoderImpl) decode(dst, frame []byte) ([]byte, error) {
	if len(frame) == 0 {
		return nil, fmt.Errorf("%w: it is empty", ErrFrame)
	}
	out, err := d.dec.DecodeAll(frame, dst[:0])
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrFrame, err)
	}
	if len(out) != len(dst) {
		return nil, fmt.Errorf("%w: want %d bytes, got %d", ErrFrame, len(dst), len(out))
	}
	return out, nil
}

func (d decoderImpl) close() { d.dec.Close() }
