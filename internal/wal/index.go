package wal

import "fmt"

// MaxFragment is how many bytes of a record that crosses segments an index
// keeps. A larger piece is left out, and the segment itself has to be read.
const MaxFragment = 256 << 10

// Fragment is the part of a record that lies in one segment, without page
// headers, where the record also lies in others.
type Fragment struct {
	// Of a tail: where the record begins, and its length in bytes.
	Record LSN
	Total  uint32
	// Of a head: the number of bytes that, by the segment's first page, still
	// belong to the record, and where the next record is looked for, if it ends in
	// the segment.
	Rest uint32
	End  LSN
	// Len is the number of the record's bytes in this segment.
	Len uint32
	// Data holds these bytes, or nothing if Omitted.
	Data    []byte
	Omitted bool
	// Of a head: the record was never finished, other WAL follows in its place.
	Abandoned bool
	// Of a head: the record's facts are among the index's own (Absorb).
	Joined bool
}

// Index tells what is in one WAL segment without its bytes: enough to find every
// point at which recovery can stop, and every page that changed.
//
// A record that crosses segments belongs to none of the indexes until it is
// absorbed; Joiner makes its facts from the fragments of its segments.
type Index struct {
	SystemID uint64
	Timeline Timeline // that the segment is named for; its first pages may be of an ancestor
	Start    LSN
	SegSize  int64 // bytes
	Major    int

	First    LSN // first record that begins in the segment, 0: none
	Last     LSN // start of the last whole record that begins in it, 0: none
	ValidEnd LSN // end of the last whole record; Start if there is none
	Complete bool
	Switched bool // ended early by XLOG_SWITCH
	Stop     Stop // why reading ended; of kind StopMore where Complete

	Head Fragment // of a record begun in an earlier segment; Rest 0: none
	Tail Fragment // of a record that ends in a later one; Record 0: none

	Summary
	Facts
	Blocks []RelBlocks // by relation and fork

	// Brief says that blocks, the bytes of fragments, and all transactions but those
	// that had been prepared were left out. The Summary is of all of them.
	Brief bool
}

// Summary is about the transactions of an index. Times are those of commit and
// abort records, the ones that recovery_target_time is compared with; they need
// not rise along the WAL. Transaction numbers are compared on their circle.
type Summary struct {
	Commits, Aborts  int
	MinTime, MaxTime Timestamp // valid if there is a commit or an abort
	MinXID, MaxXID   uint32    // of what was finished or prepared, subtransactions too; 0: none
}

// HasTime reports whether there is a commit or an abort, and so a time.
func (s Summary) HasTime() bool { return s.Commits+s.Aborts > 0 }

func (s *Summary) addTxn(t *Txn) {
	if !s.HasTime() || t.Time < s.MinTime {
		s.MinTime = t.Time
	}
	if !s.HasTime() || t.Time > s.MaxTime {
		s.MaxTime = t.Time
	}
	if t.Kind.Committed() {
		s.Commits++
	} else {
		s.Aborts++
	}
	s.addXID(t.XID)
	if t.Detail != nil {
		for _, x := range t.Detail.Subxids {
			s.addXID(x)
		}
	}
}

func (s *Summary) addXID(x uint32) {
	const firstNormal = 3 // FirstNormalTransactionId
	if x < firstNormal {
		return
	}
	if s.MinXID == 0 || int32(x-s.MinXID) < 0 {
		s.MinXID = x
	}
	if s.MaxXID == 0 || int32(x-s.MaxXID) > 0 {
		s.MaxXID = x
	}
}

func (s *Summary) add(f *Facts) {
	for i := range f.Transactions {
		s.addTxn(&f.Transactions[i])
	}
	for i := range f.Prepared {
		s.addXID(f.Prepared[i].XID)
		for _, x := range f.Prepared[i].Subxids {
			s.addXID(x)
		}
	}
}

// BuildIndex reads a segment, or the beginning of one, in one pass. tli is the
// timeline that the segment is named for. What is wrong with the WAL does not
// make it fail: reading stops there, and the index says where and why in Stop.
// It fails where the segment's header is unusable, or where a record with a right
// checksum holds what no known server writes.
//
// It does not look at pages behind the end of the records: that is CheckSegment's
// part. The result refers to none of seg's bytes.
func BuildIndex(seg []byte, tli Timeline) (*Index, error) {
	r := Reader{keepSkip: MaxFragment}
	if err := r.Feed(seg); err != nil {
		return nil, err
	}
	h := r.Header()
	ix := &Index{SystemID: h.SystemID, Timeline: tli, Start: h.Addr, SegSize: int64(h.SegSize), Major: h.Major}
	var blocks blockSet
	for r.Next() {
		rec := r.Record()
		if ix.First == 0 {
			ix.First = rec.LSN
		}
		ix.Last = rec.LSN
		if err := ix.Facts.add(rec); err != nil {
			return nil, fmt.Errorf("index WAL segment at %s: %w", h.Addr, err)
		}
		blocks.record(rec)
		ix.Switched = rec.IsSwitch()
	}
	ix.Switched = ix.Switched || r.skipSwitch
	blocks.facts(&ix.Facts)
	ix.Blocks = blocks.list()
	ix.Summary.add(&ix.Facts)

	ix.Stop = r.Stop()
	ix.ValidEnd = ix.Stop.LSN
	ix.Complete = ix.Stop.Kind == StopMore && r.pos >= int(h.SegSize)
	ix.Head = r.head()
	if ix.Complete {
		ix.Tail = r.tail()
	}
	return ix, nil
}

// head returns the rest of a record from before the first segment.
func (r *Reader) head() Fragment {
	f := Fragment{Len: r.skipped, End: r.skipEnd, Abandoned: r.abandoned}
	if r.header.Continues() {
		f.Rest = r.header.RemLen
	}
	f.setData(r.skipBuf)
	return f
}

// tail returns the record in work.
func (r *Reader) tail() Fragment {
	if len(r.partial) == 0 {
		return Fragment{}
	}
	f := Fragment{Record: r.partialStart, Total: r.partialTotal, Len: uint32(len(r.partial))}
	f.setData(r.partial)
	return f
}

// setData copies a fragment's bytes, unless there are too many.
func (f *Fragment) setData(data []byte) {
	if f.Len > MaxFragment {
		f.Omitted = true
		return
	}
	f.Data = append([]byte(nil), data...)
}

// Fill puts the bytes of fragments that were left out back into the index, from the
// segment that it is of.
func (ix *Index) Fill(seg []byte) error {
	h, err := ParseSegmentHeader(seg)
	if err != nil {
		return err
	}
	if h.Addr != ix.Start {
		return fmt.Errorf("the index of the segment at %s can't be filled from the one at %s", ix.Start, h.Addr)
	}
	if err := ix.Head.fill(seg, 0, int(h.BlockSize)); err != nil || ix.Tail.Record == 0 {
		return err
	}
	return ix.Tail.fill(seg, int(ix.Tail.Record-ix.Start), int(h.BlockSize))
}

// fill takes the fragment's bytes from offset at of the segment on, without the
// headers of pages.
func (f *Fragment) fill(seg []byte, at, page int) error {
	if !f.Omitted || f.Joined {
		return nil
	}
	f.Data = make([]byte, 0, f.Len)
	for len(f.Data) < int(f.Len) {
		switch {
		case at == 0:
			at = LongHeaderLen
		case at%page == 0:
			at += shortHeaderLen
		}
		end := min((at/page+1)*page, at+int(f.Len)-len(f.Data))
		if end > len(seg) {
			return fmt.Errorf("the segment ends within a record")
		}
		f.Data = append(f.Data, seg[at:end]...)
		at = end
	}
	f.Omitted = false
	return nil
}

// Shorten returns what a plan over many segments needs to choose the few that it
// looks into: the index without blocks and the bytes of fragments, and of the ends
// of transactions only those of prepared ones, so that which transaction is left in
// doubt can be told without the others.
func (ix *Index) Shorten() *Index {
	short := *ix
	short.Brief = true
	short.Transactions, short.Blocks = nil, nil
	for _, t := range ix.Transactions {
		if t.Kind == CommitPrepared || t.Kind == AbortPrepared {
			short.Transactions = append(short.Transactions, t)
		}
	}
	short.Head.Data, short.Head.Omitted = nil, ix.Head.Len > 0
	short.Tail.Data, short.Tail.Omitted = nil, ix.Tail.Len > 0
	return &short
}
