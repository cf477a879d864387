package wal

import (
	"encoding/binary"
	"fmt"
)

// Expect says which segment CheckSegment should find.
type Expect struct {
	Name     string // of the segment, without suffix
	SystemID uint64 // 0: any
	SegSize  int64  // bytes
	// History is that of the timeline in Name. The zero History stands for one
	// without ancestors.
	History History
	// Partial accepts a segment whose WAL ends before its own end: bytes may be
	// missing, and old pages may follow the last one.
	Partial bool
}

// CheckSegment verifies that data is the segment that it is said to be: that its
// first page has a known version, the right cluster, sizes and address; that
// every page after it has the right address, a short header and a timeline that
// may be there; and that a page that was not written is followed by no other. The
// beginning of a segment on a new timeline is a copy of the old one's, so pages
// may be of an ancestor up to the point where it was left.
//
// It does not read records. A segment that a server archives is whole: that its
// records run to its end, or to a switch, is Index.Complete. The header is
// returned also with an error, if it was readable.
func CheckSegment(data []byte, want Expect) (Header, error) {
	tli, no, err := ParseSegmentName(want.Name, want.SegSize)
	if err != nil {
		return Header{}, err
	}
	h, err := ParseSegmentHeader(data)
	if err != nil {
		return Header{}, fmt.Errorf("WAL segment %s: %w", want.Name, err)
	}
	fail := func(format string, args ...any) (Header, error) {
		return h, fmt.Errorf("WAL segment %s: %s", want.Name, fmt.Sprintf(format, args...))
	}
	history := want.History
	if history.Timeline == 0 {
		history.Timeline = tli
	}
	switch start := SegmentStart(no, want.SegSize); {
	case history.Timeline != tli:
		return fail("checked against the history of timeline %d", history.Timeline)
	case want.SystemID != 0 && h.SystemID != want.SystemID:
		return fail("it belongs to the cluster with system identifier %d, not %d", h.SystemID, want.SystemID)
	case int64(h.SegSize) != want.SegSize:
		return fail("its header says %d bytes per segment, not %d", h.SegSize, want.SegSize)
	case h.Addr != start:
		return fail("its header says that it begins at %s, not %s", h.Addr, start)
	case int64(len(data)) > want.SegSize, int64(len(data)) < want.SegSize && !want.Partial:
		return fail("it has %d bytes, not %d", len(data), want.SegSize)
	}
	size := int(h.BlockSize)
	last := Timeline(0)
	for at := 0; at+shortHeaderLen <= len(data); at += size {
		page := data[at:min(at+size, len(data))]
		magic, info := binary.LittleEndian.Uint16(page), binary.LittleEndian.Uint16(page[2:])
		pageTLI, addr := Timeline(le32(page[4:])), LSN(binary.LittleEndian.Uint64(page[8:]))
		here := h.Addr + LSN(at)
		if want.Partial && addr < here && (knownMagic(magic) || magic == 0) {
			break // whatever follows the end of its WAL
		}
		if magic == 0 && allZero(page) {
			if !allZero(data[at:]) {
				return fail("the page at %s is empty, but others follow it", here)
			}
			break
		}
		switch {
		case magic != h.Magic:
			return fail("the page at %s has magic %04X, not %04X", here, magic, h.Magic)
		case info&^pageAllFlags != 0 || (info&pageLong != 0) != (at == 0):
			return fail("the page at %s has flags %04X", here, info)
		case addr != here:
			return fail("the page at %s says that it is that of %s", here, addr)
		case pageTLI < last:
			return fail("the page at %s is of timeline %d, after one of timeline %d", here, pageTLI, last)
		}
		if left, ancestor := history.SwitchPoint(pageTLI); pageTLI != tli && !ancestor {
			return fail("the page at %s is of timeline %d, which is not in the history of timeline %d", here, pageTLI, tli)
		} else if ancestor && here >= left {
			return fail("the page at %s is of timeline %d, which this history left at %s", here, pageTLI, left)
		}
		last = pageTLI
	}
	return h, nil
}
