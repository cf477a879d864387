package wal_test

import (
	"bytes"
	"strings"
	"testing"

	"pitr/internal/wal"
)

func TestCheckSegment(t *testing.T) {
	w := newWriter(15, 7)
	for len(w.buf) < 40*pageSize-300 {
		w.record(wal.RmgrXLOG, 0x20, 0, make([]byte, 200))
	}
	clean := w.segments()[0]
	name := wal.SegmentName(1, 7, testSegSize)
	at := func(n int) wal.LSN { return w.start + wal.LSN(n*pageSize) }
	expect := wal.Expect{Name: name, SystemID: testSystemID, SegSize: testSegSize}
	if h, err := wal.CheckSegment(clean, expect); err != nil || h.Major != 15 || h.Addr != w.start || h.SystemID != testSystemID {
		t.Fatalf("%+v, %v", h, err)
	}
	partial := expect
	partial.Partial = true
	onTwo := expect
	onTwo.Name = wal.SegmentName(2, 7, testSegSize)
	onTwo.History = wal.History{Timeline: 2, Switches: []wal.Switch{{Timeline: 1, At: at(10) + 100}}}
	setTLI := func(from, to int, tli uint32) func([]byte) []byte {
		return func(b []byte) []byte {
			for i := from; i < to; i++ {
				le.PutUint32(b[i*pageSize+4:], tli)
			}
			return b
		}
	}
	for _, c := range []struct {
		name   string
		expect wal.Expect
		change func([]byte) []byte
		want   string // "": no error
	}{
		{"another name", wal.Expect{Name: wal.SegmentName(1, 8, testSegSize), SegSize: testSegSize}, nil, "begins at 0/700000, not 0/800000"},
		{"another cluster", wal.Expect{Name: name, SystemID: 5, SegSize: testSegSize}, nil, "system identifier 7000000000000000001, not 5"},
		{"any cluster", wal.Expect{Name: name, SegSize: testSegSize}, nil, ""},
		{"another size", wal.Expect{Name: name, SegSize: 2 << 20}, nil, "1048576 bytes per segment, not 2097152"},
		{"no segment", wal.Expect{Name: "00000002.history", SegSize: testSegSize}, nil, "not the name of a WAL segment"},
		{"short", expect, func(b []byte) []byte { return b[:len(b)-1] }, "it has 1048575 bytes"},
		{"cut short", partial, func(b []byte) []byte { return b[:100] }, ""},
		{"long", partial, func(b []byte) []byte { return append(b, 0) }, "it has 1048577 bytes"},
		{"empty", expect, func(b []byte) []byte { return nil }, "want at least 40"},
		{"zeros", expect, func(b []byte) []byte { return make([]byte, len(b)) }, "magic 0000"},
		{"newer", expect, func(b []byte) []byte { le.PutUint16(b, 0xD121); return b }, "D121: written by a PostgreSQL newer than 18"},
		{"short header", expect, func(b []byte) []byte { b[2] &^= 2; return b }, "short header"},
		{"page of another version", expect, func(b []byte) []byte { le.PutUint16(b[5*pageSize:], 0xD113); return b }, "magic D113, not D110"},
		{"page address", expect, func(b []byte) []byte { b[5*pageSize+10] ^= 1; return b }, "says that it is that of"},
		{"page flags", expect, func(b []byte) []byte { b[5*pageSize+2] |= 2; return b }, "flags 0003"},
		{"hole", expect, func(b []byte) []byte { clear(b[5*pageSize : 6*pageSize]); return b }, "is empty, but others follow"},
		{"garbage behind the end", expect, func(b []byte) []byte { b[len(b)-1] = 1; return b }, "is empty, but others follow"},
		{"old tail", expect, func(b []byte) []byte { le.PutUint64(b[5*pageSize+8:], 8192); return b }, "says that it is that of 0/2000"},
		{"old tail of a partial one", partial, func(b []byte) []byte { le.PutUint64(b[5*pageSize+8:], 8192); return b }, ""},
		{"unknown timeline", expect, setTLI(0, 40, 2), "timeline 2, which is not in the history of timeline 1"},
		{"timeline goes back", expect, setTLI(3, 5, 9), "timeline 9, which is not"},
		{"fork", onTwo, setTLI(11, 40, 2), ""},
		{"fork, no parent's pages", onTwo, setTLI(0, 40, 2), ""},
		{"fork too late", onTwo, setTLI(12, 40, 2), "left at"},
		{"back to the parent", onTwo, func(b []byte) []byte { return setTLI(8, 10, 2)(b) }, "after one of timeline 2"},
		{"fork without its history", wal.Expect{Name: onTwo.Name, SegSize: testSegSize}, setTLI(11, 40, 2), "not in the history"},
		{"wrong history", wal.Expect{Name: name, SegSize: testSegSize, History: onTwo.History}, nil, "history of timeline 2"},
	} {
		b := bytes.Clone(clean)
		if c.change != nil {
			b = c.change(b)
		}
		_, err := wal.CheckSegment(b, c.expect)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}
