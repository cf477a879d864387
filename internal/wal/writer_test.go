package wal_test

import (
	"encoding/binary"
	"hash/crc32"

	"pitr/internal/wal"
)

const (
	testSystemID = 7_000_000_000_000_000_001
	testSegSize  = 1 << 20
	pageSize     = 8192
)

var le = binary.LittleEndian

// magics of the versions' pages.
var magics = map[int]uint16{13: 0xD106, 14: 0xD10D, 15: 0xD110, 16: 0xD113, 17: 0xD116, 18: 0xD118}

// writer makes WAL by hand, for what a server cannot be brought to write on
// demand.
type writer struct {
	major int
	tli   wal.Timeline
	start wal.LSN // of buf
	buf   []byte
	prev  wal.LSN
	flags uint16 // for the next page header, once
}

// newWriter begins at the start of segment no.
func newWriter(major int, no uint64) *writer {
	return &writer{major: major, tli: 1, start: wal.SegmentStart(no, testSegSize)}
}

func (w *writer) pos() wal.LSN { return w.start + wal.LSN(len(w.buf)) }

// page writes a page header if one is due, saying that rest bytes of a record
// follow.
func (w *writer) page(rest int) {
	if len(w.buf)%pageSize != 0 {
		return
	}
	h := make([]byte, 24, 40)
	le.PutUint16(h, magics[w.major])
	info := w.flags
	w.flags = 0
	if rest > 0 {
		info |= 1
	}
	if len(w.buf)%testSegSize == 0 {
		info |= 2
		h = h[:40]
		le.PutUint64(h[24:], testSystemID)
		le.PutUint32(h[32:], testSegSize)
		le.PutUint32(h[36:], pageSize)
	}
	le.PutUint16(h[2:], info)
	le.PutUint32(h[4:], uint32(w.tli))
	le.PutUint64(h[8:], uint64(w.pos()))
	le.PutUint32(h[16:], uint32(rest))
	w.buf = append(w.buf, h...)
}

// block is a block reference to write.
type block struct {
	rel  wal.RelFile
	fork uint8
	num  uint32
	data []byte
}

// raw returns the bytes of a record.
func (w *writer) raw(rmgr, info uint8, xid uint32, main []byte, blocks ...block) []byte {
	r := make([]byte, 24)
	var payload []byte
	for i, b := range blocks {
		flags := b.fork
		if len(b.data) > 0 {
			flags |= 0x20
		}
		r = append(r, uint8(i), flags)
		r = le.AppendUint16(r, uint16(len(b.data)))
		for _, x := range []uint32{b.rel.Spc, b.rel.DB, b.rel.Rel, b.num} {
			r = le.AppendUint32(r, x)
		}
		payload = append(payload, b.data...)
	}
	if len(main) > 255 {
		r = le.AppendUint32(append(r, 254), uint32(len(main)))
	} else if len(main) > 0 {
		r = append(r, 255, uint8(len(main)))
	}
	r = append(append(r, payload...), main...)
	le.PutUint32(r, uint32(len(r)))
	le.PutUint32(r[4:], xid)
	le.PutUint64(r[8:], uint64(w.prev))
	r[16], r[17] = info, rmgr
	seal(r)
	return r
}

// seal makes a record's checksum good.
func seal(r []byte) {
	table := crc32.MakeTable(crc32.Castagnoli)
	le.PutUint32(r[20:], crc32.Update(crc32.Checksum(r[24:], table), table, r[:20]))
}

// record writes a record and returns where it begins.
func (w *writer) record(rmgr, info uint8, xid uint32, main []byte, blocks ...block) wal.LSN {
	w.page(0)
	lsn := w.pos()
	raw := w.raw(rmgr, info, xid, main, blocks...)
	w.put(raw, len(raw))
	w.prev = lsn
	return lsn
}

// put writes the first n bytes of a record over as many pages as it takes.
func (w *writer) put(raw []byte, n int) {
	for done := 0; done < n; {
		if done > 0 {
			w.page(len(raw) - done)
		}
		k := min(n-done, pageSize-len(w.buf)%pageSize)
		w.buf = append(w.buf, raw[done:done+k]...)
		done += k
	}
	for len(w.buf)%8 != 0 {
		w.buf = append(w.buf, 0)
	}
}

// fillPage writes records that tell nothing until left bytes remain in the page.
func (w *writer) fillPage(left int) {
	w.page(0)
	for room := pageSize - len(w.buf)%pageSize - left; room > 0; {
		n := room
		if room > 232 {
			n = 200
		}
		w.record(wal.RmgrXLOG, 0x20, 0, make([]byte, n-26))
		room -= n
	}
}

// fill writes such records until left bytes, less than a page, remain in the
// segment.
func (w *writer) fill(left int) {
	for w.page(0); len(w.buf)%testSegSize < testSegSize-pageSize; w.page(0) {
		w.fillPage(0)
	}
	w.fillPage(left)
}

// commit writes a commit record.
func (w *writer) commit(xid uint32, at wal.Timestamp) wal.LSN {
	return w.record(wal.RmgrXact, 0x00, xid, le.AppendUint64(nil, uint64(at)))
}

// switchSegment writes an XLOG_SWITCH and the empty rest of the segment.
func (w *writer) switchSegment() wal.LSN {
	lsn := w.record(wal.RmgrXLOG, 0x40, 0, nil)
	w.pad()
	return lsn
}

// pad fills the segment with zeros.
func (w *writer) pad() {
	if n := len(w.buf) % testSegSize; n != 0 {
		w.buf = append(w.buf, make([]byte, testSegSize-n)...)
	}
}

// segments cuts what was written, the last segment padded with zeros.
func (w *writer) segments() [][]byte {
	w.pad()
	var out [][]byte
	for i := 0; i < len(w.buf); i += testSegSize {
		out = append(out, append([]byte(nil), w.buf[i:i+testSegSize]...))
	}
	return out
}

// controlFile makes a control file by hand, by the offsets of pg_control.h.
func controlFile(major int) []byte {
	b := make([]byte, wal.ControlFileSize)
	le.PutUint64(b, testSystemID)
	version := map[int]uint32{17: 1700, 18: 1800}[major]
	if version == 0 {
		version = 1300
	}
	le.PutUint32(b[8:], version)
	le.PutUint32(b[12:], map[int]uint32{13: 202007201, 14: 202107181, 15: 202209061, 16: 202307071, 17: 202406281, 18: 202506291}[major])
	le.PutUint32(b[16:], 6)
	le.PutUint64(b[32:], 0x1000028)
	le.PutUint32(b[216:], 8192)
	le.PutUint32(b[220:], 131072)
	le.PutUint32(b[224:], 8192)
	le.PutUint32(b[228:], 16<<20)
	return sealControl(b)
}

// sealControl makes a control file's checksum good.
func sealControl(b []byte) []byte {
	at := 288
	if le.Uint32(b[8:]) == 1800 {
		at = 292
	}
	le.PutUint32(b[at:], crc32.Checksum(b[:at], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// rawPage returns a record of the given length of body, having written the header
// of the page in which it is to begin.
func (w *writer) rawPage(rmgr, info uint8, body int) []byte {
	w.page(0)
	return w.raw(rmgr, info, 0, make([]byte, body))
}
