package wal_test

import (
	"testing"

	"pitr/internal/wal"
)

func TestLSN(t *testing.T) {
	for text, want := range map[string]wal.LSN{"0/0": 0, "16/B374D848": 0x16B374D848, "16/b374d848": 0x16B374D848, "0/01000028": 0x1000028, "FFFFFFFF/FFFFFFFF": 1<<64 - 1} {
		if got, err := wal.ParseLSN(text); err != nil || got != want {
			t.Errorf("ParseLSN(%q) = %s, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "/", "1", "1/", "/1", "1/2/3", "1/G", "123456789/0", "0/123456789", " 1/2", "1/2 ", "0x1/2", "-1/2", "+1/2"} {
		if got, err := wal.ParseLSN(text); err == nil {
			t.Errorf("ParseLSN(%q) = %s", text, got)
		}
	}
	if s := wal.LSN(0x16_0374D848).String(); s != "16/374D848" {
		t.Errorf("String: %s", s)
	}
}

func TestClassify(t *testing.T) {
	for name, want := range map[string]wal.Kind{
		"000000010000000000000001":                 wal.Segment,
		"000000010000000A000000FF.partial":         wal.Partial,
		"00000002.history":                         wal.TimelineHistory,
		"000000010000000000000002.00000028.backup": wal.BackupHistory,
		"":                                           wal.Other,
		"00000002":                                   wal.Other,
		"0000000200000000000000a1":                   wal.Other,
		"00000001000000000000000":                    wal.Other,
		"0000000100000000000000011":                  wal.Other,
		"000000010000000000000001.partial2":          wal.Other,
		"000000010000000000000001.backup":            wal.Other,
		"000000010000000000000001.0000002g.backup":   wal.Other,
		"000000010000000000000001.00000028.backup.x": wal.Other,
		"00000002.history/../x":                      wal.Other,
		"../00000002.history":                        wal.Other,
		"00000002.History":                           wal.Other,
		"xlogtemp.123":                               wal.Other,
	} {
		if got := wal.Classify(name); got != want {
			t.Errorf("Classify(%q) = %s, want %s", name, got, want)
		}
	}
}

func TestSegmentNames(t *testing.T) {
	for _, c := range []struct {
		tli     wal.Timeline
		no      uint64
		segSize int64
		name    string
		start   string
	}{
		{1, 1, 16 << 20, "000000010000000000000001", "0/1000000"},
		{1, 255, 16 << 20, "0000000100000000000000FF", "0/FF000000"},
		{1, 256, 16 << 20, "000000010000000100000000", "1/0"},
		{0xABC, 4095, 1 << 20, "00000ABC0000000000000FFF", "0/FFF00000"},
		{2, 4096, 1 << 20, "000000020000000100000000", "1/0"},
		{2, 7, 1 << 30, "000000020000000100000003", "1/C0000000"},
		{1, 1<<40 - 1, 16 << 20, "00000001FFFFFFFF000000FF", "FFFFFFFF/FF000000"},
	} {
		if got := wal.SegmentName(c.tli, c.no, c.segSize); got != c.name {
			t.Errorf("SegmentName(%d, %d) = %s, want %s", c.tli, c.no, got, c.name)
		}
		tli, no, err := wal.ParseSegmentName(c.name, c.segSize)
		if err != nil || tli != c.tli || no != c.no {
			t.Errorf("ParseSegmentName(%s) = %d, %d, %v", c.name, tli, no, err)
		}
		if start := wal.SegmentStart(c.no, c.segSize); start.String() != c.start || wal.SegmentOf(start, c.segSize) != c.no || wal.SegmentOf(start-1, c.segSize) != c.no-1 {
			t.Errorf("segment %d starts at %s, want %s", c.no, start, c.start)
		}
	}
	for _, c := range []struct {
		name    string
		segSize int64
	}{
		{"000000010000000000000100", 16 << 20}, // no such segment of that size
		{"000000010000000000000004", 1 << 30},
		{"000000000000000000000001", 16 << 20}, // timeline 0
		{"000000010000000000000001.partial", 16 << 20},
		{"000000010000000000000001", 0},
		{"000000010000000000000001", 3 << 20},
	} {
		if tli, no, err := wal.ParseSegmentName(c.name, c.segSize); err == nil {
			t.Errorf("ParseSegmentName(%s, %d) = %d, %d", c.name, c.segSize, tli, no)
		}
	}
	if tli, no, at, err := wal.ParseBackupHistoryName("000000020000000000000003.00000028.backup", 16<<20); err != nil || tli != 2 || no != 3 || at != 0x3000028 {
		t.Errorf("ParseBackupHistoryName: %d %d %s %v", tli, no, at, err)
	}
	if _, _, _, err := wal.ParseBackupHistoryName("000000020000000000000003.01000000.backup", 16<<20); err == nil {
		t.Error("a backup history beyond its segment")
	}
	if tli, err := wal.ParseHistoryName(wal.HistoryName(0x1F)); err != nil || tli != 0x1F {
		t.Errorf("ParseHistoryName: %d, %v", tli, err)
	}
	if base, ok := wal.PartialBase("000000010000000000000001.partial"); !ok || base != "000000010000000000000001" {
		t.Errorf("PartialBase: %q, %v", base, ok)
	}
}
