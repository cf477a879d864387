package recovery

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pitr/archive"
	"pitr/internal/wal"
)

// A time that two branches lived through is answered on the latest; what the other one has more is told of.
func TestTimeOnAnotherBranch(t *testing.T) {
	notes := func(f *fake, target Target, want ...string) {
		t.Helper()
		p, err := plan(t, f, target)
		if err != nil {
			t.Errorf("%s: %v", target, err)
			return
		}
		var got []string
		for _, o := range p.Obstacles {
			got = append(got, o.What+" HINT: "+o.Hint)
		}
		if !slices.Equal(got, want) || p.Err() != nil {
			t.Errorf("%s: %q\nwant %q", target, got, want)
		}
	}
	note := func(timeline wal.Timeline, at, opened, other string, n int, last string) string {
		return fmt.Sprintf("timeline %d parted from timeline %s at %s, went on at 2026-11-22T%sZ, and has no transaction up to the target; timeline %s has %d more, the last of 2026-11-22T%sZ HINT: --target-timeline %s restores that one",
			timeline, other, at, opened, other, n, last, other)
	}
	f := forks()
	f.backups = f.backups[:2]
	one := func(n int, last string) string { return note(2, "0/180000", "12:01:40", "1", n, last) }
	notes(f, atTime(10000))                         // before the branches parted
	notes(f, atTime(20000))                         // nothing ended on the other one by then
	notes(f, atTime(29000), one(1, "12:00:29"))     // the stop is that of timeline 2 all the same
	notes(f, beforeTime(40000), one(1, "12:00:29")) //
	notes(f, atTime(40000), one(2, "12:00:40"))     //
	notes(f, atTime(99000), one(3, "12:00:43"))     //
	notes(f, atTime(100500))                        // timeline 2 was the server by then
	notes(f, atTime(102000))                        // it has transactions of its own
	f.facts[1] = append(f.facts[1], commit(0x360000, 714, 100200))
	notes(f, atTime(100500), one(4, "12:01:40.2")) // but so was timeline 1
	asked := atTime(40000)
	asked.Timeline.Number = 2
	notes(f, asked)
	// Where the first record past the target only opens the branch.
	f = forks()
	f.backups, f.facts[2] = f.backups[:2], f.facts[2][:1]
	notes(f, atTime(40000), one(2, "12:00:40"))
	if p := check(t, f, atTime(40000), "backup 1, timeline 2, 0/180000"); p != nil && !strings.HasSuffix(p.What, "no transaction ended between the target and that on the history of timeline 2") {
		t.Errorf("%s", p.What)
	}
	// A backup was taken on the new branch before anything happened there.
	f = forks()
	f.backups = append(f.backups[:2], backup(3, 2, 0x180100, 0x188000, 100500))
	if p := check(t, f, atTime(40000), "backup 3, timeline 2, 0/190000"); p != nil {
		notes(f, atTime(40000), one(2, "12:00:40"))
	}
	// A third branch of the same place, and one from further on.
	f = forks()
	f.backups = f.backups[:2]
	f.histories[3] = wal.History{Timeline: 3, Switches: []wal.Switch{{Timeline: 1, At: 0x180000}}}
	f.histories[4] = wal.History{Timeline: 4, Switches: []wal.Switch{{Timeline: 1, At: 0x318000}}}
	f.histories[5] = wal.History{Timeline: 5, Switches: []wal.Switch{{Timeline: 1, At: 0x180000}, {Timeline: 3, At: 0x190000}}}
	opened := func(lsn wal.LSN, tli wal.Timeline, ms int) archive.Fact {
		return fact(lsn, lsn+0x100, &wal.EndOfRecovery{Start: lsn, End: lsn + 0x100, Time: at(ms), Timeline: tli})
	}
	f.facts[3] = []archive.Fact{opened(0x180000, 3, 200000)}
	f.facts[4] = []archive.Fact{opened(0x318000, 4, 300000), commit(0x330000, 900, 301000)}
	f.facts[5] = []archive.Fact{opened(0x190000, 5, 400000), commit(0x198000, 901, 401000)}
	f.end[3], f.end[4], f.end[5] = 0x200000, 0x400000, 0x200000
	on5 := func(other string, n int, last string) string { return note(5, "0/180000", "12:03:20", other, n, last) }
	notes(f, atTime(102000), on5("4", 2, "12:00:40"), on5("2", 1, "12:01:41"), on5("1", 3, "12:00:43"))
}
