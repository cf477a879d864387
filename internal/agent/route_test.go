package agent

import (
	"slices"
	"testing"

	"pitr/archive"
	"pitr/internal/wal"
)

func TestAlong(t *testing.T) {
	const size = 16 << 20
	name := func(tli wal.Timeline, no uint64) string { return wal.SegmentName(tli, no, size) }
	// Timeline 3 began in segment 7, timeline 4 in segment 9, whose beginning alone is archived.
	path := []archive.Step{{Timeline: 1, First: 3, Last: 6}, {Timeline: 3, First: 7, Last: 8}, {Timeline: 4, First: 9, Last: 9, Partial: true}}
	for _, c := range []struct {
		after string
		n     int
		want  []string
	}{
		{name(1, 3), 2, []string{name(1, 4), name(1, 5)}},
		{name(1, 5), 16, []string{name(1, 6), name(3, 7), name(3, 8)}},
		{name(1, 6), 1, []string{name(3, 7)}},
		{name(3, 8), 16, nil},
		{name(4, 9), 16, nil},
		{name(1, 1), 1, []string{name(1, 3)}}, // on the way to the path's beginning
	} {
		got, err := along(path, c.after, size, c.n)
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%d after %s: %v, %v; want %v", c.n, c.after, got, err, c.want)
		}
	}
	if _, err := along(path, "00000002.history", size, 1); err == nil {
		t.Error("a history has a next segment")
	}
}

func TestTail(t *testing.T) {
	path := []archive.Step{{Timeline: 1, First: 3, Last: 6}, {Timeline: 2, First: 7, Last: 8}}
	for n, want := range map[uint64][]archive.Step{
		1:   {{Timeline: 2, First: 8, Last: 8}},
		2:   {{Timeline: 2, First: 7, Last: 8}},
		3:   {{Timeline: 1, First: 6, Last: 6}, {Timeline: 2, First: 7, Last: 8}},
		6:   path,
		100: path,
	} {
		got, all := tail(path, n)
		if !slices.Equal(got, want) || all != (n >= 6) {
			t.Errorf("the last %d: %v, all %v", n, got, all)
		}
	}
}
