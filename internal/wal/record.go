package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// RelFile names the file of a relation as the WAL does: tablespace, database and
// file number. It is not the relation's OID. In an index, a Rel of zero stands
// for every relation of that database in that tablespace.
type RelFile struct {
	Spc, DB, Rel uint32
}

// String prints the three numbers as pg_waldump does.
func (r RelFile) String() string { return fmt.Sprintf("%d/%d/%d", r.Spc, r.DB, r.Rel) }

// Forks of a relation (src/include/common/relpath.h).
const (
	ForkMain = 0
	ForkFSM  = 1
	ForkVM   = 2
	ForkInit = 3
)

// Resource managers whose records the index looks into, by their fixed numbers
// (src/include/access/rmgrlist.h). Those from 128 on belong to extensions.
const (
	RmgrXLOG       = 0
	RmgrXact       = 1
	RmgrSmgr       = 2
	RmgrDatabase   = 4
	RmgrTablespace = 5
	RmgrRelMap     = 7
	RmgrStandby    = 8
	RmgrHeap       = 10

	rmgrMaxBuiltin = 21
	rmgrMinCustom  = 128
)

// BlockRef is one page of a relation that a record changes or carries.
type BlockRef struct {
	Rel      RelFile
	Block    uint32
	ID       uint8 // the record's own number for this reference
	Fork     uint8
	HasImage bool
	WillInit bool   // replay writes the page anew
	Image    []byte // the page's image as stored: perhaps without its hole, perhaps compressed
	Data     []byte
}

// Record is one WAL record: XLogRecord and what follows it
// (src/include/access/xlogrecord.h).
type Record struct {
	LSN   LSN // of the record's first byte
	End   LSN // where the next record's search begins; the segment's end for a switch
	Prev  LSN // of the record before
	XID   uint32
	Total uint32 // bytes of the record, without padding and page headers
	Rmgr  uint8
	Info  uint8 // the resource manager's bits and the common ones
	Major int   // PostgreSQL's major version

	TopXID uint32 // top-level transaction of a subtransaction's record, 0: not given
	Origin uint16 // replication origin, 0: none
	Blocks []BlockRef
	Main   []byte
}

// Op returns the resource manager's own bits of Info.
func (r *Record) Op() uint8 { return r.Info & 0xF0 }

// IsSwitch reports whether the record ends its segment early (XLOG_SWITCH).
func (r *Record) IsSwitch() bool { return r.Rmgr == RmgrXLOG && r.Op() == xlogSwitch }

const (
	recordHeaderLen = 24
	recordCRCOffset = 20

	// maxRecordLen bounds what is believed of a record's length; XLogRecordMaxSize
	// is a little less.
	maxRecordLen = 1 << 30

	maxBlockID    = 32
	idDataShort   = 255
	idDataLong    = 254
	idOrigin      = 253
	idTopLevelXID = 252

	blockForkMask = 0x0F
	blockHasImage = 0x10
	blockHasData  = 0x20
	blockWillInit = 0x40
	blockSameRel  = 0x80

	imageHasHole = 0x01
	// Which bits say that an image is compressed changed in PostgreSQL 15.
	imageCompressed14 = 0x02
	imageCompressed15 = 0x04 | 0x08 | 0x10
)

var (
	errRecordCRC   = errors.New("incorrect checksum")
	errRecordShape = errors.New("record does not hold what its header says")
)

// recordCRC returns the checksum of a whole record: of what follows the header,
// then of the header up to the checksum itself (ValidXLogRecord in xlogreader.c).
func recordCRC(raw []byte) uint32 {
	crc := crc32.Update(0, castagnoli, raw[recordHeaderLen:])
	return crc32.Update(crc, castagnoli, raw[:recordCRCOffset])
}

func le32(p []byte) uint32 { return binary.LittleEndian.Uint32(p) }

// parseHeader fills in what the record's first 24 bytes say.
func (r *Record) parseHeader(raw []byte) {
	r.Total = binary.LittleEndian.Uint32(raw)
	r.XID = binary.LittleEndian.Uint32(raw[4:])
	r.Prev = LSN(binary.LittleEndian.Uint64(raw[8:]))
	r.Info = raw[16]
	r.Rmgr = raw[17]
}

// validRmgr reports whether a server of this major version can have written a
// record of resource manager id. Custom ones came with 15.
func validRmgr(id uint8, major int) bool {
	return id <= rmgrMaxBuiltin || major >= 15 && id >= rmgrMinCustom
}

// decode reads the body of a record whose checksum was found right: raw is the
// whole record without page headers. The slices of the result point into raw;
// Blocks is reused from call to call. (DecodeXLogRecord in xlogreader.c.)
func (r *Record) decode(raw []byte) error {
	r.Blocks = r.Blocks[:0]
	r.Main = nil
	r.TopXID, r.Origin = 0, 0

	le := binary.LittleEndian
	p := raw[recordHeaderLen:]
	compressed := uint8(imageCompressed15)
	if r.Major < 15 {
		compressed = imageCompressed14
	}
	var (
		payload  = 0 // bytes announced so far, which lie behind all the headers
		mainLen  = 0
		lastID   = -1
		rel      RelFile
		haveRel  bool
		imageLen [maxBlockID + 1]uint16
		dataLen  [maxBlockID + 1]uint16
	)
headers:
	for len(p) > payload {
		id := p[0]
		switch {
		case id <= maxBlockID:
			if int(id) <= lastID || len(p) < 4 {
				return errRecordShape
			}
			lastID = int(id)
			flags := p[1]
			n := len(r.Blocks)
			dataLen[n] = le.Uint16(p[2:])
			imageLen[n] = 0
			p = p[4:]
			if (flags&blockHasData != 0) != (dataLen[n] != 0) {
				return errRecordShape
			}
			payload += int(dataLen[n])
			if flags&blockHasImage != 0 {
				if len(p) < 5 {
					return errRecordShape
				}
				imageLen[n] = le.Uint16(p)
				info := p[4]
				p = p[5:]
				if info&compressed != 0 && info&imageHasHole != 0 {
					if len(p) < 2 {
						return errRecordShape
					}
					p = p[2:]
				}
				payload += int(imageLen[n])
			}
			if flags&blockSameRel == 0 {
				if len(p) < 12 {
					return errRecordShape
				}
				rel = RelFile{Spc: le.Uint32(p), DB: le.Uint32(p[4:]), Rel: le.Uint32(p[8:])}
				haveRel = true
				p = p[12:]
			}
			if !haveRel || len(p) < 4 {
				return errRecordShape
			}
			r.Blocks = append(r.Blocks, BlockRef{
				Rel: rel, Block: le.Uint32(p), ID: id, Fork: flags & blockForkMask,
				HasImage: flags&blockHasImage != 0, WillInit: flags&blockWillInit != 0,
			})
			p = p[4:]
		case id == idDataShort:
			if len(p) < 2 {
				return errRecordShape
			}
			mainLen = int(p[1])
			p = p[2:]
			break headers // the main data's header is the last one
		case id == idDataLong:
			if len(p) < 5 {
				return errRecordShape
			}
			n := le.Uint32(p[1:])
			if n > maxRecordLen {
				return errRecordShape
			}
			mainLen = int(n)
			p = p[5:]
			break headers
		case id == idOrigin:
			if len(p) < 3 {
				return errRecordShape
			}
			r.Origin = le.Uint16(p[1:])
			p = p[3:]
		case id == idTopLevelXID:
			if len(p) < 5 {
				return errRecordShape
			}
			r.TopXID = le.Uint32(p[1:])
			p = p[5:]
		default:
			return errRecordShape
		}
	}
	if len(p) != payload+mainLen {
		return errRecordShape
	}
	for i := range r.Blocks {
		b := &r.Blocks[i]
		if n := imageLen[i]; n != 0 {
			b.Image, p = p[:n:n], p[n:]
		}
		if n := dataLen[i]; n != 0 {
			b.Data, p = p[:n:n], p[n:]
		}
	}
	r.Main = p
	return nil
}
