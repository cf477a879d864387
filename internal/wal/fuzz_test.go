package wal_test

import (
	"hash/crc32"
	"reflect"
	"slices"
	"testing"

	"pitr/internal/wal"
)

func FuzzParseHistory(f *testing.F) {
	f.Add(uint32(3), []byte("1\t0/3000000\treason\n\n2\t0/5000000\tother\n"))
	f.Add(uint32(2), []byte("# only a comment\n"))
	f.Add(uint32(9), []byte("1 0/1\n2 0/0\n\xff"))
	f.Fuzz(func(t *testing.T, tli uint32, data []byte) {
		h, err := wal.ParseHistory(wal.Timeline(tli), data)
		if err != nil {
			return
		}
		back, err := wal.ParseHistory(wal.Timeline(tli), h.Encode())
		if err != nil || !h.Agrees(back) {
			t.Fatalf("%+v after Encode: %+v, %v", h, back, err)
		}
		for _, s := range h.Switches {
			if o := h.Owner(s.At); !h.Ancestor(o) || !h.Contains(o, s.At) || o == s.Timeline {
				t.Fatalf("%+v: owner of %s is %d", h, s.At, o)
			}
		}
		if h.Owner(1<<64-1) != h.Timeline {
			t.Fatalf("%+v: owner of the last byte is %d", h, h.Owner(1<<64-1))
		}
	})
}

func FuzzParseControl(f *testing.F) {
	for major := 13; major <= 18; major++ {
		f.Add(controlFile(major)[:512])
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) >= 512 { // so that what is behind the checksum is reached
			sealControl(data)
		}
		c, err := wal.ParseControl(data)
		if err != nil {
			return
		}
		patched, err := wal.PatchControlCheckpoint(data, 5)
		if err != nil {
			t.Fatal(err)
		}
		again, err := wal.ParseControl(patched)
		c.Checkpoint = 5
		if err != nil || c != again {
			t.Fatalf("patched: %+v, %v, want %+v", again, err, c)
		}
	})
}

func FuzzParseSegmentHeader(f *testing.F) {
	for major := 13; major <= 18; major++ {
		w := newWriter(major, 3)
		w.commit(5, 50)
		f.Add(w.buf[:wal.LongHeaderLen])
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := wal.ParseSegmentHeader(data)
		if err != nil {
			return
		}
		if h.Major < 13 || h.Major > 18 || !wal.ValidSegSize(int64(h.SegSize)) || h.Timeline == 0 {
			t.Fatalf("%+v", h)
		}
	})
}

// fuzzSegment is a short beginning of a segment with records of several kinds.
func fuzzSegment(major int) []byte {
	w := newWriter(major, 3)
	w.commit(5, 50)
	w.record(wal.RmgrHeap, 0, 6, []byte("abc"), block{rel: wal.RelFile{Spc: 1663, DB: 5, Rel: 16384}, num: 3, data: []byte("tuple")})
	w.record(wal.RmgrXLOG, 0x20, 0, make([]byte, 9000))
	w.commit(7, 70)
	return w.buf
}

// FuzzReader lets the reader and the index builder loose on damaged pages.
func FuzzReader(f *testing.F) {
	for major := 13; major <= 18; major++ {
		f.Add(fuzzSegment(major))
	}
	over := newWriter(15, 3)
	over.put(over.rawPage(wal.RmgrXLOG, 0x20, 9000), pageSize-40)
	over.flags = 8
	over.record(wal.RmgrXLOG, 0xD0, 0, make([]byte, 16))
	f.Add(over.buf)
	f.Fuzz(func(t *testing.T, data []byte) {
		checkIndex(t, data)
	})
}

// FuzzRecord gives records with a right checksum any body.
func FuzzRecord(f *testing.F) {
	commit := le.AppendUint64(nil, 1)
	commit = le.AppendUint32(commit, 0x1ff)
	for range 12 {
		commit = le.AppendUint32(commit, 1)
	}
	f.Add(uint8(15), uint8(wal.RmgrXact), uint8(0x80), []byte{255, uint8(len(commit))}, commit)
	f.Add(uint8(18), uint8(wal.RmgrXact), uint8(0xA0), []byte{255, uint8(len(commit))}, commit)
	f.Add(uint8(13), uint8(wal.RmgrXact), uint8(0x10), []byte{255, 80}, make([]byte, 80))
	f.Add(uint8(14), uint8(wal.RmgrDatabase), uint8(0x10), []byte{255, 12}, []byte{1, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0})
	f.Add(uint8(16), uint8(wal.RmgrSmgr), uint8(0x20), []byte{255, 20}, make([]byte, 20))
	f.Add(uint8(17), uint8(wal.RmgrXLOG), uint8(0x00), []byte{255, 88}, make([]byte, 88))
	f.Add(uint8(17), uint8(wal.RmgrHeap), uint8(0x30), []byte{255, 16}, make([]byte, 16))
	f.Add(uint8(15), uint8(wal.RmgrHeap), uint8(0x00), []byte{253, 1, 1, 252, 1, 1, 1, 1, 0, 0x30, 4, 0, 8, 0, 1, 0, 5, 9, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 254, 1, 0, 0, 0}, make([]byte, 13))
	f.Fuzz(func(t *testing.T, major, rmgr, info uint8, headers, body []byte) {
		w := newWriter(13+int(major)%6, 3)
		w.commit(5, 50)
		w.page(0)
		raw := append(append(make([]byte, 24), headers...), body...)
		le.PutUint32(raw, uint32(len(raw)))
		le.PutUint64(raw[8:], uint64(w.prev))
		raw[16], raw[17] = info, rmgr
		seal(raw)
		w.put(raw, len(raw))
		checkIndex(t, w.buf)
	})
}

// checkIndex builds an index and checks that it survives storage.
func checkIndex(t *testing.T, data []byte) {
	ix, err := wal.BuildIndex(data, 1)
	if err != nil {
		return
	}
	back, err := wal.DecodeIndex(ix.Encode())
	if err != nil || !reflect.DeepEqual(ix, back) {
		t.Fatalf("%+v\nafter storage: %+v, %v", ix, back, err)
	}
	short, err := wal.DecodeIndex(ix.Shorten().Encode())
	if err != nil || !reflect.DeepEqual(short, ix.Shorten()) || !short.Brief || short.Commits != ix.Commits || short.Blocks != nil {
		t.Fatalf("short: %+v, %v", short, err)
	}
	prepared := func(t wal.Txn) bool { return t.Kind == wal.CommitPrepared || t.Kind == wal.AbortPrepared }
	if want := slices.DeleteFunc(slices.Clone(ix.Transactions), func(t wal.Txn) bool { return !prepared(t) }); len(want)+len(short.Transactions) > 0 && !reflect.DeepEqual(short.Transactions, want) {
		t.Fatalf("short has %+v of %+v", short.Transactions, ix.Transactions)
	}
	if ix.ValidEnd < ix.Start || ix.ValidEnd > ix.Start+wal.LSN(ix.SegSize) {
		t.Fatalf("valid end %s", ix.ValidEnd)
	}
	if _, err := wal.Join(ix, back); err == nil {
		t.Fatal("an index was joined to itself")
	}
}

func FuzzDecodeIndex(f *testing.F) {
	for major := 13; major <= 18; major++ {
		ix, err := wal.BuildIndex(fuzzSegment(major), 1)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(ix.Encode())
		f.Add(ix.Shorten().Encode())
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if n := len(data) - 4; n >= 0 {
			le.PutUint32(data[n:], crc32.Checksum(data[:n], crc32.MakeTable(crc32.Castagnoli)))
		}
		ix, err := wal.DecodeIndex(data)
		if err != nil {
			return
		}
		again, err := wal.DecodeIndex(ix.Encode())
		if err != nil || !reflect.DeepEqual(ix, again) {
			t.Fatalf("%+v\nafter storage: %+v, %v", ix, again, err)
		}
		var j wal.Joiner
		for range 2 {
			// Any outcome is right, but it must end in one.
			if s, err := j.Add(ix); err == nil {
				ix.Absorb(s)
			}
		}
	})
}
