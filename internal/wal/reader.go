package wal

import (
	"encoding/binary"
	"fmt"
)

// StopKind says why a Reader gives no further record.
type StopKind int

const (
	// StopMore means that everything handed in was right and is read. A record
	// may be unfinished; the next segment goes on.
	StopMore StopKind = iota
	// StopZero means that only zeros follow: nothing was written there yet.
	StopZero
	// StopRecycled means that an older segment's content follows, under addresses
	// of its own: PostgreSQL renames old segments into new ones.
	StopRecycled
	// StopDamaged means that what follows is no record and nothing that a healthy
	// server leaves behind the end of its WAL either, save for a page that was
	// half written when the machine went down.
	StopDamaged
)

// Stop is the place where a Reader stopped, and why.
type Stop struct {
	Kind   StopKind
	LSN    LSN    // end of the last whole record; where the next one is missing
	Reason string // for people; empty for StopMore
	// Later is the address of a later page of the same segment that is in place,
	// 0: none. There is WAL behind the stop then, so bytes in between were lost.
	Later LSN
}

// Reader yields the records of consecutive segments from their bytes, and
// verifies pages, chain and checksums on the way, by the rules of PostgreSQL's
// own reader (src/backend/access/transam/xlogreader.c).
//
// The zero Reader is ready for use. Feed it a segment, call Next until it is
// false, feed the following one. The first segment may begin with the rest of a
// record, which is passed over. A Reader keeps no more than one record, and
// allocates nothing per record once its buffer has grown to the largest one that
// crosses a page. It is not safe for concurrent use.
type Reader struct {
	header  Header // of the current segment
	seg     []byte // its bytes, perhaps only the first of them
	base    LSN    // its first byte's position
	pos     int    // offset of the next unread byte of seg, at most pageEnd
	pageEnd int    // where the page ends whose header was checked last
	begun   bool   // Feed was called

	prev     LSN      // start of the record before, 0: not known
	validEnd LSN      // end of the last whole record
	tli      Timeline // of the last page

	partial      []byte // the record in work, without page headers
	partialStart LSN
	partialTotal uint32

	// The rest of a record that began before the first segment.
	skip      uint32 // bytes that still follow
	skipped   uint32 // bytes passed over
	keepSkip  int    // so many of them are kept in skipBuf
	skipBuf   []byte
	skipEnd   LSN  // where the record ended, 0: not seen
	abandoned bool // the record was given up and other WAL written instead
	// skipSwitch: the record was an XLOG_SWITCH, of which only the last bytes
	// reached into the segment.
	skipSwitch bool

	rec     Record
	stop    Stop
	stopped bool
}

// Header returns the header of the segment that was fed last.
func (r *Reader) Header() Header { return r.header }

// Feed hands over the next segment. Its bytes must not change until the
// following Feed. seg may be cut short: then it is read as far as it goes.
// A segment that does not follow the one before, or one after a stop other than
// StopMore, is an error.
func (r *Reader) Feed(seg []byte) error {
	h, err := ParseSegmentHeader(seg)
	if err != nil {
		return err
	}
	if int64(len(seg)) > int64(h.SegSize) {
		return fmt.Errorf("WAL segment at %s: %d bytes, but its header says %d", h.Addr, len(seg), h.SegSize)
	}
	if r.begun {
		end := r.base + LSN(r.header.SegSize)
		switch {
		case !r.stopped || r.stop.Kind != StopMore || r.pos < int(r.header.SegSize):
			return fmt.Errorf("WAL segment at %s: the segment before was not read to its end", h.Addr)
		case h.Addr != end:
			return fmt.Errorf("WAL segment at %s does not follow the one before, which ends at %s", h.Addr, end)
		case h.SystemID != r.header.SystemID || h.SegSize != r.header.SegSize || h.BlockSize != r.header.BlockSize || h.Magic != r.header.Magic:
			return fmt.Errorf("WAL segment at %s is of another cluster than the one before", h.Addr)
		}
	} else {
		r.begun = true
		r.tli = h.Timeline
		r.validEnd = h.Addr
		if h.Continues() {
			r.skip = h.RemLen
		}
	}
	r.header, r.seg, r.base = h, seg, h.Addr
	r.pos, r.pageEnd = 0, 0
	r.stopped, r.stop = false, Stop{}
	return nil
}

// Record returns the record that Next found. It is valid until the next call of
// Next or Feed.
func (r *Reader) Record() *Record { return &r.rec }

// Stop tells, after Next was false, why there is no further record.
func (r *Reader) Stop() Stop { return r.stop }

// Next goes to the following record and reports whether there is one.
func (r *Reader) Next() bool {
	if r.stopped || !r.begun {
		return false
	}
	for {
		if r.skip > 0 && !r.skipRest() {
			return false
		}
		if len(r.partial) > 0 {
			if r.assemble() {
				return true
			}
			if r.stopped {
				return false
			}
		}
		limit, ok := r.enterPage(false)
		if !ok {
			return false
		}
		raw, lsn := r.seg[r.pos:limit], r.base+LSN(r.pos)
		if len(raw) < 4 {
			return r.halt(StopMore, "")
		}
		total := binary.LittleEndian.Uint32(raw)
		if total < recordHeaderLen || total > maxRecordLen {
			return r.badLength(total, raw)
		}
		if len(raw) >= recordHeaderLen {
			if why := r.checkHeader(raw, lsn); why != "" {
				return r.halt(StopDamaged, why)
			}
		}
		if int(total) <= len(raw) {
			return r.yield(raw[:total], lsn, r.pos+align8(int(total)))
		}
		r.partialStart, r.partialTotal = lsn, total
		r.partial = append(r.partial[:0], raw...)
		r.pos = limit
	}
}

// assemble goes on with the record in work, over as many pages as are there. It
// is false when the Reader has stopped, and also when the record was given up for
// another one, which is then the next to read.
func (r *Reader) assemble() bool {
	for {
		limit, ok := r.enterPage(true)
		if !ok || len(r.partial) == 0 {
			return false
		}
		missing := int(r.partialTotal) - len(r.partial)
		n := min(missing, limit-r.pos)
		checked := len(r.partial) >= recordHeaderLen
		r.partial = append(r.partial, r.seg[r.pos:r.pos+n]...)
		r.pos += n
		if !checked && len(r.partial) >= recordHeaderLen {
			if why := r.checkHeader(r.partial, r.partialStart); why != "" {
				return r.halt(StopDamaged, why)
			}
		}
		if n == missing {
			raw := r.partial
			r.partial = r.partial[:0]
			return r.yield(raw, r.partialStart, align8(r.pos))
		}
	}
}

// skipRest passes over the rest of a record that began before the first segment.
func (r *Reader) skipRest() bool {
	for r.skip > 0 {
		limit, ok := r.enterPage(true)
		if !ok {
			return false
		}
		n := int(min(int64(r.skip), int64(limit-r.pos)))
		if keep := min(n, max(r.keepSkip, recordHeaderLen)-len(r.skipBuf)); keep > 0 {
			r.skipBuf = append(r.skipBuf, r.seg[r.pos:r.pos+keep]...)
		}
		r.pos += n
		r.skip -= uint32(n)
		r.skipped += uint32(n)
	}
	if r.abandoned {
		return true
	}
	r.pos = align8(r.pos)
	if r.skippedSwitch() {
		r.skipSwitch = true
		r.pos = int(r.header.SegSize)
		r.pageEnd = r.pos
	}
	r.skipEnd = r.base + LSN(r.pos)
	r.validEnd = r.skipEnd
	return true
}

// skippedSwitch tells an XLOG_SWITCH record by its last 8 or 16 bytes. Such a
// record has a header only, whose last 8 bytes are info, resource manager, padding
// and checksum; behind it the segment is empty.
func (r *Reader) skippedSwitch() bool {
	n := len(r.skipBuf)
	if r.skipped != r.header.RemLen || n != 8 && n != 16 {
		return false
	}
	last := r.skipBuf[n-8:]
	return last[0]&0xF0 == xlogSwitch && last[1] == RmgrXLOG && allZero(r.seg[min(r.pos, len(r.seg)):min(r.pageEnd, len(r.seg))])
}

// enterPage goes behind the next page's header, checking it, if the current page
// is used up. It returns the offset at which the page's bytes end. continuing
// says that a record goes on there. False: the Reader has stopped.
func (r *Reader) enterPage(continuing bool) (int, bool) {
	if r.pos < r.pageEnd {
		limit := min(r.pageEnd, len(r.seg))
		if r.pos >= limit {
			return 0, r.halt(StopMore, "")
		}
		return limit, true
	}
	start, hlen := r.pageEnd, shortHeaderLen
	if start == 0 {
		hlen = LongHeaderLen
	}
	if start+hlen > len(r.seg) {
		return 0, r.halt(StopMore, "")
	}
	head := r.seg[start:]
	if kind, why := r.checkPage(head, start); why != "" {
		return 0, r.halt(kind, why)
	}
	le := binary.LittleEndian
	info, rem := le.Uint16(head[2:]), le.Uint32(head[16:])
	r.tli = Timeline(le.Uint32(head[4:]))
	switch {
	case info&pageOverwrite != 0 && (continuing || start == 0):
		// The record that should go on here was never finished: the server crashed,
		// and wrote on from here.
		r.abandoned = r.abandoned || len(r.partial) == 0
		r.partial, r.skip = r.partial[:0], 0
	case continuing:
		missing := int64(r.skip)
		if missing == 0 {
			missing = int64(r.partialTotal) - int64(len(r.partial))
		}
		if info&pageContinues == 0 {
			return 0, r.halt(StopDamaged, "the record is not continued on the next page")
		}
		if int64(rem) != missing {
			return 0, r.halt(StopDamaged, fmt.Sprintf("the next page continues a record with %d bytes, expected %d", rem, missing))
		}
	case info&pageContinues != 0:
		return 0, r.halt(StopDamaged, "the page continues a record that is not there")
	}
	r.pos = start + hlen
	r.pageEnd = start + int(r.header.BlockSize)
	if r.pos >= len(r.seg) {
		return 0, r.halt(StopMore, "")
	}
	return min(r.pageEnd, len(r.seg)), true
}

// checkPage says what is wrong with the page header at offset start, and what
// that means. An empty reason: nothing is wrong.
func (r *Reader) checkPage(head []byte, start int) (StopKind, string) {
	le := binary.LittleEndian
	magic, info := le.Uint16(head), le.Uint16(head[2:])
	tli, addr := Timeline(le.Uint32(head[4:])), LSN(le.Uint64(head[8:]))
	want := r.base + LSN(start)
	switch {
	case magic == 0 && allZero(head[:shortHeaderLen]):
		return StopZero, "the page was not written"
	case addr < want && (magic == r.header.Magic || knownMagic(magic)) && int64(addr)%int64(r.header.BlockSize) == 0:
		return StopRecycled, fmt.Sprintf("the page is an old one, of %s", addr)
	case magic != r.header.Magic:
		return StopDamaged, fmt.Sprintf("the page's magic is %04X, expected %04X", magic, r.header.Magic)
	case info&^pageAllFlags != 0 || (info&pageLong != 0) != (start == 0):
		return StopDamaged, fmt.Sprintf("the page has flags %04X", info)
	case addr != want:
		return StopDamaged, fmt.Sprintf("the page says that it is that of %s", addr)
	case tli < r.tli:
		return StopDamaged, fmt.Sprintf("the page is of timeline %d, after one of timeline %d", tli, r.tli)
	}
	return 0, ""
}

// checkHeader says what is wrong with the header of the record at lsn.
func (r *Reader) checkHeader(raw []byte, lsn LSN) string {
	prev := LSN(binary.LittleEndian.Uint64(raw[8:]))
	if rmgr := raw[17]; !validRmgr(rmgr, r.header.Major) {
		return fmt.Sprintf("no resource manager has number %d", rmgr)
	}
	if r.prev != 0 && prev != r.prev || r.prev == 0 && prev >= lsn {
		return fmt.Sprintf("the record's link to the one before is %s", prev)
	}
	return ""
}

// badLength stops at a record length that cannot be. page is the rest of the
// page, from the record on.
func (r *Reader) badLength(total uint32, page []byte) bool {
	if total == 0 && allZero(page) {
		return r.halt(StopZero, "the rest of the page was not written")
	}
	return r.halt(StopDamaged, fmt.Sprintf("the record's length is %d", total))
}

// yield verifies and decodes a whole record and moves on to offset next.
func (r *Reader) yield(raw []byte, lsn LSN, next int) bool {
	if got := binary.LittleEndian.Uint32(raw[recordCRCOffset:]); got != recordCRC(raw) {
		return r.halt(StopDamaged, errRecordCRC.Error())
	}
	r.rec.Major = r.header.Major
	r.rec.parseHeader(raw)
	r.rec.LSN = lsn
	if err := r.rec.decode(raw); err != nil {
		return r.halt(StopDamaged, err.Error())
	}
	if r.rec.IsSwitch() {
		// The rest of the segment is padding. The bytes may be cut short, but there
		// is nothing in what is missing.
		next = int(r.header.SegSize)
		r.pageEnd = next
	}
	r.pos = next
	r.rec.End = r.base + LSN(next)
	r.prev = lsn
	r.validEnd = r.rec.End
	return true
}

// halt stops the Reader.
func (r *Reader) halt(kind StopKind, why string) bool {
	r.stopped = true
	r.stop = Stop{Kind: kind, LSN: r.validEnd, Reason: why}
	if kind != StopMore {
		r.stop.Later = r.laterPage()
	}
	return false
}

// laterPage returns the address of the first page, behind the one that the Reader
// stopped in or before, that is where it belongs.
func (r *Reader) laterPage() LSN {
	size := int(r.header.BlockSize)
	for at := (r.pos/size + 1) * size; at+shortHeaderLen <= len(r.seg); at += size {
		head := r.seg[at:]
		if binary.LittleEndian.Uint16(head) == r.header.Magic && LSN(binary.LittleEndian.Uint64(head[8:])) == r.base+LSN(at) {
			return r.base + LSN(at)
		}
	}
	return 0
}

// align8 rounds up to the alignment of records (MAXALIGN).
func align8(n int) int { return (n + 7) &^ 7 }

func allZero(b []byte) bool {
	for ; len(b) >= 8; b = b[8:] {
		if binary.LittleEndian.Uint64(b) != 0 {
			return false
		}
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// knownMagic reports whether a page begins as a page of WAL of some version does,
// pitr's or not: recycled segments outlive an upgrade by pg_upgrade.
func knownMagic(magic uint16) bool { return magic >= 0xD000 && magic < 0xD200 }
