package wal_test

import (
	"reflect"
	"strings"
	"testing"

	"pitr/internal/wal"
)

func TestParseHistory(t *testing.T) {
	text := "# a comment\n\n1\t0/3000000\tno recovery target specified\n\n  3\t0/5000000\tat restore point \"x\"\r\n\t# another\n4 1/0"
	h, err := wal.ParseHistory(7, []byte(text))
	want := wal.History{Timeline: 7, Switches: []wal.Switch{
		{1, 0x3000000, "no recovery target specified"},
		{3, 0x5000000, `at restore point "x"`},
		{4, 1 << 32, ""},
	}}
	if err != nil || !reflect.DeepEqual(h, want) {
		t.Fatalf("%+v, %v", h, err)
	}
	back, err := wal.ParseHistory(7, h.Encode())
	if err != nil || !reflect.DeepEqual(back, h) {
		t.Errorf("after Encode: %+v, %v", back, err)
	}
	if got, want := string(wal.History{Timeline: 3, Switches: want.Switches[:2]}.Encode()), "1\t0/3000000\tno recovery target specified\n\n3\t0/5000000\tat restore point \"x\"\n"; got != want {
		t.Errorf("Encode: %q", got)
	}
	if h, err := wal.ParseHistory(1, nil); err != nil || len(h.Switches) != 0 || h.Owner(5) != 1 {
		t.Errorf("empty: %+v, %v", h, err)
	}
}

func TestParseHistoryRefuses(t *testing.T) {
	for text, why := range map[string]string{
		"x\t0/1\n":            "want a timeline number",
		"-1\t0/1\n":           "want a timeline number",
		"0\t0/1\n":            "want a timeline number",
		"99999999999\t0/1\n":  "want a timeline number",
		"1\n":                 "want the position",
		"1\tzero\n":           "want the position",
		"1\t0\n":              "want the position",
		"2\t0/1\n1\t0/2\n":    "must rise",
		"2\t0/1\n2\t0/2\n":    "must rise",
		"5\t0/1\n":            "as an ancestor",
		"6\t0/1\n":            "as an ancestor",
		"1\t0/1\n\x00\xff\n2": "want a timeline number",
	} {
		if h, err := wal.ParseHistory(5, []byte(text)); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%q: %+v, %v, want %q", text, h, err, why)
		}
	}
}

func TestHistoryOwner(t *testing.T) {
	h := wal.History{Timeline: 4, Switches: []wal.Switch{{1, 100, ""}, {2, 200, ""}}}
	for lsn, want := range map[wal.LSN]wal.Timeline{0: 1, 99: 1, 100: 2, 199: 2, 200: 4, 1000: 4} {
		if got := h.Owner(lsn); got != want || !h.Contains(want, lsn) || h.Contains(want+1, lsn) {
			t.Errorf("Owner(%d) = %d, want %d", lsn, got, want)
		}
	}
	// Timeline 3 was made by a recovery along 2 that stopped before 2 began.
	back := wal.History{Timeline: 3, Switches: []wal.Switch{{1, 100, ""}, {2, 60, ""}}}
	for lsn, want := range map[wal.LSN]wal.Timeline{0: 1, 59: 1, 60: 3, 99: 3, 100: 3, 150: 3} {
		if got := back.Owner(lsn); got != want {
			t.Errorf("going back: Owner(%d) = %d, want %d", lsn, got, want)
		}
	}
	if at, ok := h.SwitchPoint(2); !ok || at != 200 {
		t.Errorf("SwitchPoint(2) = %s, %v", at, ok)
	}
	if _, ok := h.SwitchPoint(4); ok {
		t.Error("a switch point of the timeline itself")
	}
	if p, ok := h.Parent(); !ok || p.Timeline != 2 || !h.Ancestor(1) || !h.Ancestor(4) || h.Ancestor(3) {
		t.Errorf("Parent %+v", p)
	}
}

func TestHistoryAgrees(t *testing.T) {
	a := wal.History{Timeline: 4, Switches: []wal.Switch{{1, 100, "x"}, {2, 200, ""}}}
	same := wal.History{Timeline: 4, Switches: []wal.Switch{{1, 100, "y"}, {2, 200, "z"}}}
	moved := wal.History{Timeline: 4, Switches: []wal.Switch{{1, 100, ""}, {2, 201, ""}}}
	shorter := wal.History{Timeline: 4, Switches: []wal.Switch{{1, 100, ""}}}
	if !a.Agrees(same) || a.Agrees(moved) || a.Agrees(shorter) || shorter.Agrees(a) {
		t.Error("Agrees")
	}
	parent := wal.History{Timeline: 2, Switches: []wal.Switch{{1, 100, ""}}}
	other := wal.History{Timeline: 2, Switches: []wal.Switch{{1, 90, ""}}}
	if !a.Descends(parent) || !a.Descends(a) || !a.Descends(wal.History{Timeline: 1}) || a.Descends(other) || parent.Descends(a) || a.Descends(wal.History{Timeline: 3}) {
		t.Error("Descends")
	}
}
