package repo

import (
	"errors"
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// Every compressed piece of the repository is one zstd frame (RFC 8878) with its content size in
// the frame header and without a dictionary, so that any zstd reads it. There are two encoders
// behind one interface: the C library where a C compiler was at hand (cgo), and a Go one.

// MaxFrame is the most raw bytes that a frame of this format may hold.
const MaxFrame = 16 << 20

// ErrFrame reports a frame that can't be decompressed to what it should be: damage.
var ErrFrame = errors.New("damaged compressed frame")

// Encoder compresses frames, one after the other. It is not safe for concurrent use; Close frees
// its memory.
type Encoder struct {
	impl  encoderImpl
	level int
}

// MinLevel and MaxLevel bound the compression level, as zstd counts it.
const (
	MinLevel = 1
	MaxLevel = 19
)

// NewEncoder makes an encoder of the level (MinLevel to MaxLevel).
func NewEncoder(level int) (*Encoder, error) {
	if level < MinLevel || level > MaxLevel {
		return nil, fmt.Errorf("compression level %d: want %d to %d", level, MinLevel, MaxLevel)
	}
	impl, err := newEncoderImpl(level)
	if err != nil {
		return nil, fmt.Errorf("start compression: %w", err)
	}
	return &Encoder{impl: impl, level: level}, nil
}

// Append compresses raw (at most MaxFrame) as one frame behind dst and returns the longer slice.
// The frame never takes more than Bound(len(raw)) bytes.
func (e *Encoder) Append(dst, raw []byte) ([]byte, error) {
	if len(raw) > MaxFrame {
		return dst, fmt.Errorf("compress a frame of %d bytes: the most is %d", len(raw), MaxFrame)
	}
	return e.impl.append(dst, raw)
}

// Close frees the encoder.
func (e *Encoder) Close() { e.impl.close() }

// Bound is the most bytes that compressing n raw bytes can give.
func Bound(n int) int { return n + n>>8 + 128 }

// RawLen is the length of a frame's content as the frame itself tells it, at most MaxFrame.
func RawLen(frame []byte) (int, error) {
	var h zstd.Header
	if err := h.Decode(frame); err != nil || !h.HasFCS || h.Skippable || h.FrameContentSize > MaxFrame {
		return 0, fmt.Errorf("%w: it does not tell its length", ErrFrame)
	}
	return int(h.FrameContentSize), nil
}

// Decoder decompresses frames. It is not safe for concurrent use; Close frees its memory.
type Decoder struct{ impl decoderImpl }

// NewDecoder makes one.
func NewDecoder() (*Decoder, error) {
	impl, err := newDecoderImpl()
	if err != nil {
		return nil, fmt.Errorf("start decompression: %w", err)
	}
	return &Decoder{impl: impl}, nil
}

// Decode decompresses one frame that must give exactly rawLen bytes, into dst's memory where it
// suffices. The error is ErrFrame if the frame is anything else.
func (d *Decoder) Decode(dst, frame []byte, rawLen int) ([]byte, error) {
	if rawLen < 0 || rawLen > MaxFrame {
		return nil, fmt.Errorf("%w: it claims %d bytes, the most is %d", ErrFrame, rawLen, MaxFrame)
	}
	if cap(dst) < rawLen {
		dst = make([]byte, rawLen)
	}
	return d.impl.decode(dst[:rawLen], frame)
}

// Close frees the decoder.
func (d *Decoder) Close() { d.impl.close() }
