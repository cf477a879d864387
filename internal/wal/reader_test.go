package wal_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pitr/internal/wal"
)

// collect reads consecutive segments and returns where the records begin.
func collect(t *testing.T, segs ...[]byte) ([]wal.LSN, wal.Stop) {
	t.Helper()
	var r wal.Reader
	var out []wal.LSN
	for _, seg := range segs {
		if err := r.Feed(seg); err != nil {
			t.Fatal(err)
		}
		for r.Next() {
			out = append(out, r.Record().LSN)
		}
	}
	return out, r.Stop()
}

func buildAll(t *testing.T, segs [][]byte) []*wal.Index {
	t.Helper()
	var out []*wal.Index
	for _, seg := range segs {
		ix, err := wal.BuildIndex(seg, 1)
		if err != nil {
			t.Fatal(err)
		}
		back, err := wal.DecodeIndex(ix.Encode())
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(ix, back) {
			t.Fatalf("the index changes in storage:\n%+v\n%+v", ix, back)
		}
		out = append(out, back)
	}
	return out
}

// TestRandomRecords lets records of all lengths fall onto page and segment borders
// in every way, and reads them whole, and segment by segment.
func TestRandomRecords(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	w := newWriter(16, 5)
	var want []wal.LSN
	var txns []wal.Txn
	blocks := map[uint32]bool{}
	for len(w.buf) < 12*testSegSize {
		var lsn wal.LSN
		switch n := rnd.IntN(100); {
		case n < 60:
			num := rnd.Uint32N(5000)
			blocks[num] = true
			lsn = w.record(wal.RmgrHeap, 0x00, 100, make([]byte, rnd.IntN(300)), block{rel: wal.RelFile{Spc: 1663, DB: 5, Rel: 16384}, num: num, data: make([]byte, rnd.IntN(700))})
		case n < 90:
			txn := wal.Txn{XID: 1000 + rnd.Uint32N(100000), Time: wal.Timestamp(rnd.Int64N(1e15))}
			lsn = w.commit(txn.XID, txn.Time)
			txn.Start, txn.End = lsn, w.pos()
			txns = append(txns, txn)
		case n < 99:
			lsn = w.record(wal.RmgrXLOG, 0x20, 0, make([]byte, rnd.IntN(20000)))
		default:
			lsn = w.record(wal.RmgrXLOG, 0x20, 0, make([]byte, rnd.IntN(wal.MaxFragment)))
		}
		want = append(want, lsn)
	}
	segs := w.segments()
	got, stop := collect(t, segs...)
	if !reflect.DeepEqual(got, want) || stop.Kind != wal.StopZero || stop.Later != 0 {
		t.Fatalf("read %d records of %d, stop %+v", len(got), len(want), stop)
	}
	var (
		j      wal.Joiner
		all    []wal.Txn
		merged []wal.RelBlocks
		joined int
	)
	for i, ix := range buildAll(t, segs) {
		s, err := j.Add(ix)
		if err != nil {
			t.Fatalf("segment %d: %v", i, err)
		}
		if s.LSN != 0 {
			joined++
		}
		all = append(append(all, s.Transactions...), ix.Transactions...)
		merged = wal.MergeBlocks(wal.MergeBlocks(merged, s.Blocks), ix.Blocks)
		alone := len(ix.Transactions)
		ix.Absorb(s)
		if len(ix.Transactions) != alone+len(s.Transactions) || ix.Commits != len(ix.Transactions) {
			t.Errorf("segment %d: %d transactions after absorbing %d, %d before", i, len(ix.Transactions), len(s.Transactions), alone)
		}
	}
	if !reflect.DeepEqual(all, txns) {
		t.Errorf("%d transactions by way of the indexes, %d were written", len(all), len(txns))
	}
	if joined < 8 {
		t.Errorf("only %d records crossed segments", joined)
	}
	if len(merged) != 1 || len(merged[0].Blocks) != len(blocks) || merged[0].Limit != wal.NoLimit {
		t.Fatalf("changed blocks: %d forks, %d blocks, want %d", len(merged), len(merged[0].Blocks), len(blocks))
	}
	for i, b := range merged[0].Blocks {
		if !blocks[b] || i > 0 && merged[0].Blocks[i-1] >= b {
			t.Errorf("block %d at %d", b, i)
		}
	}
}

// TestLongRecord puts one record over several segments.
func TestLongRecord(t *testing.T) {
	w := newWriter(15, 1)
	w.commit(7, 70)
	long := w.record(wal.RmgrXLOG, 0x20, 0, make([]byte, 5*testSegSize/2))
	w.commit(8, 80)
	segs := w.segments()
	if got, _ := collect(t, segs...); len(got) != 3 || got[1] != long {
		t.Fatalf("records at %v", got)
	}
	ixs := buildAll(t, segs)
	if f := ixs[0].Tail; !f.Omitted || f.Record != long || int(f.Total) != 5*testSegSize/2+29 {
		t.Errorf("tail: %+v", f)
	}
	if f := ixs[1].Head; !f.Omitted || f.Len >= f.Rest || ixs[1].First != 0 || !ixs[1].Complete {
		t.Errorf("head of the segment between: %+v", f)
	}
	var j wal.Joiner
	for i, ix := range ixs {
		_, err := j.Add(ix)
		if last := i == len(ixs)-1; errors.Is(err, wal.ErrNotJoined) != last || err != nil && !last {
			t.Errorf("segment %d: %v", i, err)
		}
	}
	// Begun in the middle, the rest of the record is nobody's.
	j = wal.Joiner{}
	for i, ix := range ixs[1:] {
		if s, err := j.Add(ix); err != nil || s.LSN != 0 {
			t.Errorf("segment %d, from the middle: %+v, %v", i+1, s, err)
		}
	}
	if ix := ixs[len(ixs)-1]; len(ix.Transactions) != 1 || ix.Transactions[0].XID != 8 {
		t.Errorf("transactions behind the long record: %+v", ix.Transactions)
	}
	// With the bytes from the segments, it is joined as any other record.
	if err := ixs[0].Fill(segs[1]); err == nil {
		t.Error("filled from another segment")
	}
	j = wal.Joiner{}
	for i, ix := range ixs {
		if err := ix.Fill(segs[i]); err != nil {
			t.Fatal(err)
		}
		s, err := j.Add(ix)
		if last := i == len(ixs)-1; err != nil || (s.LSN == long) != last {
			t.Errorf("segment %d, filled: %+v, %v", i, s, err)
		}
	}
	if err := (&wal.Index{Start: ixs[0].Start, Tail: wal.Fragment{Record: long, Len: 3 * testSegSize, Omitted: true}}).Fill(segs[0]); err == nil {
		t.Error("filled beyond the segment")
	}
}

// TestSwitchAcrossSegments lets the 24 bytes of an XLOG_SWITCH begin so late that
// the segment it leaves empty is the next one.
func TestSwitchAcrossSegments(t *testing.T) {
	for _, left := range []int{8, 16, 24} {
		t.Run(fmt.Sprint(left), func(t *testing.T) {
			w := newWriter(15, 3)
			w.commit(5, 50)
			w.fill(left)
			at := w.switchSegment()
			if left < 24 {
				w.pad()
			}
			next := w.commit(6, 60)
			segs := w.segments()
			got, _ := collect(t, segs...)
			if got[len(got)-1] != next || got[len(got)-2] != at {
				t.Fatalf("last records at %v, want %s and %s", got[len(got)-2:], at, next)
			}
			ixs := buildAll(t, segs)
			var j wal.Joiner
			for i, ix := range ixs {
				if last := i == len(ixs)-1; ix.Complete == last {
					t.Errorf("segment %d: complete %v, stop %+v", i, ix.Complete, ix.Stop)
				}
				if _, err := j.Add(ix); err != nil {
					t.Error(err)
				}
			}
			if left < 24 && (!ixs[1].Switched || ixs[0].Switched) || left == 24 && !ixs[0].Switched {
				t.Errorf("switched: %v, %v", ixs[0].Switched, ixs[1].Switched)
			}
		})
	}
}

// TestOverwrittenRecord has records that a crash left unfinished, with other WAL
// written on from the next page.
func TestOverwrittenRecord(t *testing.T) {
	for _, room := range []int{8, 16, 24, 2000, pageSize} {
		for _, atSegment := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d/%v", room, atSegment), func(t *testing.T) {
				w := newWriter(15, 9)
				w.commit(5, 50)
				left := min(room, pageSize-24)
				if atSegment {
					w.fill(left)
				} else {
					w.fillPage(0)
					w.fillPage(left)
				}
				w.page(0)
				broken := w.pos()
				raw := w.raw(wal.RmgrXLOG, 0x20, 0, make([]byte, 100000))
				w.put(raw, pageSize-len(w.buf)%pageSize)
				w.flags = 8
				over := w.record(wal.RmgrXLOG, 0xD0, 0, le.AppendUint64(le.AppendUint64(nil, uint64(broken)), 55))
				w.commit(6, 60)
				segs := w.segments()
				got, stop := collect(t, segs...)
				if n := len(got); got[n-2] != over || stop.Kind != wal.StopZero {
					t.Fatalf("last records at %v, want %s, stop %+v", got[n-2:], over, stop)
				}
				var j wal.Joiner
				var overs []wal.Overwrite
				var xids []uint32
				for _, ix := range buildAll(t, segs) {
					s, err := j.Add(ix)
					if err != nil || s.LSN != 0 {
						t.Errorf("join: %+v, %v", s, err)
					}
					overs = append(overs, ix.Overwrites...)
					for _, x := range ix.Transactions {
						xids = append(xids, x.XID)
					}
				}
				if len(overs) != 1 || overs[0].Overwritten != broken || overs[0].Time != 55 || !reflect.DeepEqual(xids, []uint32{5, 6}) {
					t.Errorf("overwrites %+v, transactions %v", overs, xids)
				}
			})
		}
	}
}

// TestStops damages WAL and looks at what the reader makes of it.
func TestStops(t *testing.T) {
	w := newWriter(15, 4)
	var lsns []wal.LSN
	for range 2000 {
		lsns = append(lsns, w.record(wal.RmgrXLOG, 0x20, 0, make([]byte, 94)))
	}
	end := w.pos()
	clean := w.segments()[0]
	page := func(n int) wal.LSN { return w.start + wal.LSN(n*pageSize) }
	used := int(end-w.start)/pageSize + 1
	for _, c := range []struct {
		name   string
		damage func(b []byte)
		kind   wal.StopKind
		before wal.LSN // the stop is at most here
		later  bool
		reason string
	}{
		{"none", func([]byte) {}, wal.StopZero, end, false, "not written"},
		{"bit in a record", func(b []byte) { b[lsns[700]-w.start+30] ^= 4 }, wal.StopDamaged, lsns[700], true, "checksum"},
		{"link", func(b []byte) {
			r := b[lsns[700]-w.start:]
			r[9] ^= 1
			seal(r[:le.Uint32(r)])
		}, wal.StopDamaged, lsns[700], true, "link"},
		{"length", func(b []byte) { le.PutUint32(b[lsns[700]-w.start:], 5) }, wal.StopDamaged, lsns[700], true, "length is 5"},
		{"huge length", func(b []byte) { le.PutUint32(b[lsns[700]-w.start:], 1<<31) }, wal.StopDamaged, lsns[700], true, "length"},
		{"resource manager", func(b []byte) { b[lsns[700]-w.start+17] = 99 }, wal.StopDamaged, lsns[700], true, "resource manager"},
		{"empty page between", func(b []byte) { clear(b[3*pageSize : 4*pageSize]) }, wal.StopZero, page(3), true, "not written"},
		{"old page", func(b []byte) { le.PutUint64(b[3*pageSize+8:], uint64(page(3))-testSegSize*3) }, wal.StopRecycled, page(3), true, "old one"},
		{"old tail", func(b []byte) {
			for i := 3; i < used; i++ {
				le.PutUint64(b[i*pageSize+8:], uint64(page(i))-testSegSize*3)
			}
		}, wal.StopRecycled, page(3), false, "old one"},
		{"magic", func(b []byte) { b[3*pageSize] ^= 1 }, wal.StopDamaged, page(3), true, "magic"},
		{"flags", func(b []byte) { b[3*pageSize+3] = 1 }, wal.StopDamaged, page(3), true, "flags"},
		{"not continued", func(b []byte) { b[3*pageSize+2] = 0 }, wal.StopDamaged, page(3), true, "not continued"},
		{"continued by another length", func(b []byte) { b[3*pageSize+16]++ }, wal.StopDamaged, page(3), true, "expected"},
		{"higher address", func(b []byte) { b[3*pageSize+14] = 1 }, wal.StopDamaged, page(3), true, "says that it is"},
		{"older timeline", func(b []byte) { b[3*pageSize+4] = 0 }, wal.StopDamaged, page(3), true, "timeline 0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			seg := bytes.Clone(clean)
			c.damage(seg)
			got, stop := collect(t, seg)
			if stop.Kind != c.kind || stop.LSN > c.before || c.before-stop.LSN > 200 || (stop.Later != 0) != c.later || !strings.Contains(stop.Reason, c.reason) {
				t.Errorf("stop %+v, want kind %d before %s: %s", stop, c.kind, c.before, c.reason)
			}
			for i, l := range got {
				if l != lsns[i] {
					t.Fatalf("record %d at %s, was written at %s", i, l, lsns[i])
				}
			}
		})
	}
}

// TestCutShort gives the reader every length of the beginning of a segment: it
// finds the records that are whole, and calls nothing damaged.
func TestCutShort(t *testing.T) {
	w := newWriter(15, 4)
	var lasts []int // offset behind each record's last byte
	for i := range 200 {
		w.record(wal.RmgrXLOG, 0x20, 0, make([]byte, 94+i%8))
		lasts = append(lasts, len(w.buf)-(8-(120+i%8)%8)%8)
	}
	seg := w.segments()[0]
	for n := wal.LongHeaderLen; n < lasts[len(lasts)-1]; n++ {
		got, stop := collect(t, seg[:n])
		whole, _ := slices.BinarySearch(lasts, n+1)
		if len(got) != whole || stop.Kind != wal.StopMore {
			t.Fatalf("%d bytes: %d records, want %d, stop %+v", n, len(got), whole, stop)
		}
	}
}

func TestFeedRefuses(t *testing.T) {
	w := newWriter(15, 4)
	w.fill(0)
	w.fill(0)
	segs := w.segments()
	other := newWriter(16, 5)
	other.commit(5, 5)
	var r wal.Reader
	if err := r.Feed(segs[0]); err != nil {
		t.Fatal(err)
	}
	if err := r.Feed(segs[1]); err == nil || !strings.Contains(err.Error(), "not read to its end") {
		t.Errorf("fed early: %v", err)
	}
	for r.Next() {
	}
	if err := r.Feed(segs[0]); err == nil || !strings.Contains(err.Error(), "does not follow") {
		t.Errorf("fed again: %v", err)
	}
	if err := r.Feed(other.segments()[0]); err == nil || !strings.Contains(err.Error(), "another cluster") {
		t.Errorf("another version: %v", err)
	}
	if err := r.Feed(segs[1]); err != nil {
		t.Error(err)
	}
}
