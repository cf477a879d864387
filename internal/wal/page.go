package wal

import (
	"encoding/binary"
	"fmt"
)

const (
	shortHeaderLen = 24
	// LongHeaderLen is the size of the header of a segment's first page, in
	// bytes: as much as ParseSegmentHeader needs.
	LongHeaderLen = 40

	// DefaultBlockSize is XLOG_BLCKSZ of every common build, in bytes.
	DefaultBlockSize = 8192
)

// Flags of a page header (xlp_info).
const (
	pageContinues = 0x0001 // XLP_FIRST_IS_CONTRECORD
	pageLong      = 0x0002 // XLP_LONG_HEADER
	pageRemovable = 0x0004 // XLP_BKP_REMOVABLE
	pageOverwrite = 0x0008 // XLP_FIRST_IS_OVERWRITE_CONTRECORD
	pageAllFlags  = pageContinues | pageLong | pageRemovable | pageOverwrite
)

// Header is the header of a segment's first page: XLogLongPageHeaderData in
// src/include/access/xlog_internal.h.
type Header struct {
	Magic     uint16
	Major     int      // PostgreSQL's major version, which the magic names exactly
	Info      uint16   // flags
	Timeline  Timeline // of the page's first record, or of what continues there
	Addr      LSN      // position of the page
	RemLen    uint32   // bytes of a record that began in an earlier segment, 0: none
	SystemID  uint64
	SegSize   uint32 // bytes
	BlockSize uint32 // bytes in a page of WAL
}

// Continues reports whether the segment begins with the rest of a record.
func (h Header) Continues() bool { return h.Info&pageContinues != 0 }

// MajorOfMagic returns the PostgreSQL version whose WAL pages begin with magic
// (XLOG_PAGE_MAGIC of each release), and whether it is one that pitr reads.
func MajorOfMagic(magic uint16) (int, bool) {
	switch magic {
	case 0xD106:
		return 13, true
	case 0xD10D:
		return 14, true
	case 0xD110:
		return 15, true
	case 0xD113:
		return 16, true
	case 0xD116:
		return 17, true
	case 0xD118:
		return 18, true
	}
	return 0, false
}

// ParseSegmentHeader reads the header of a segment's first page from its first
// bytes (LongHeaderLen are enough). It checks what the header says of itself:
// a known magic, a long header, possible sizes, an address at a segment's start.
// Whether it is the header of the segment one wanted is for CheckSegment.
func ParseSegmentHeader(data []byte) (Header, error) {
	if len(data) < LongHeaderLen {
		return Header{}, fmt.Errorf("WAL segment header: %d bytes, want at least %d", len(data), LongHeaderLen)
	}
	h := Header{
		Magic:     binary.LittleEndian.Uint16(data),
		Info:      binary.LittleEndian.Uint16(data[2:]),
		Timeline:  Timeline(binary.LittleEndian.Uint32(data[4:])),
		Addr:      LSN(binary.LittleEndian.Uint64(data[8:])),
		RemLen:    binary.LittleEndian.Uint32(data[16:]),
		SystemID:  binary.LittleEndian.Uint64(data[24:]),
		SegSize:   binary.LittleEndian.Uint32(data[32:]),
		BlockSize: binary.LittleEndian.Uint32(data[36:]),
	}
	major, ok := MajorOfMagic(h.Magic)
	if !ok {
		return Header{}, magicError(h.Magic)
	}
	h.Major = major
	switch {
	case h.Info&^pageAllFlags != 0:
		return Header{}, fmt.Errorf("WAL segment header: unknown flags %04X", h.Info)
	case h.Info&pageLong == 0:
		return Header{}, fmt.Errorf("WAL segment header: the first page has a short header (flags %04X)", h.Info)
	case !ValidSegSize(int64(h.SegSize)):
		return Header{}, fmt.Errorf("WAL segment header: impossible segment size %d", h.SegSize)
	case !validBlockSize(h.BlockSize):
		return Header{}, fmt.Errorf("WAL segment header: impossible page size %d", h.BlockSize)
	case h.Timeline == 0:
		return Header{}, fmt.Errorf("WAL segment header: timeline 0 does not exist")
	case uint64(h.Addr)%uint64(h.SegSize) != 0:
		return Header{}, fmt.Errorf("WAL segment header: address %s is not the start of a segment of %d bytes", h.Addr, h.SegSize)
	}
	return h, nil
}

// validBlockSize reports whether n is a size that --with-wal-blocksize allows.
func validBlockSize(n uint32) bool { return n >= 1024 && n <= 65536 && n&(n-1) == 0 }

// magicError says why a page that begins with magic cannot be read. A magic of
// the same family but unknown is most likely a newer PostgreSQL's.
func magicError(magic uint16) error {
	switch {
	case magic > 0xD118 && magic < 0xD200:
		return fmt.Errorf("WAL page magic %04X: written by a PostgreSQL newer than 18, which this pitr does not know", magic)
	case magic >= 0xD000 && magic < 0xD118:
		return fmt.Errorf("WAL page magic %04X: not of a released PostgreSQL 13 to 18", magic)
	}
	return fmt.Errorf("WAL page magic %04X: these are not the bytes of a WAL page", magic)
}
