package recovery

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"pitr/archive"
	"pitr/internal/wal"
)

// Of a segment with several contents nobody knows which one holds: what comes before it can be had, and nothing behind it.
func TestConflictOnTheWay(t *testing.T) {
	f := line()
	f.gap, f.conflict = map[wal.Timeline]uint64{1: 4}, true // 0/400000 on
	f.facts[1] = append(f.facts[1], commit(0x3ffff0, 714, 51000))
	const state = "has several contents, none of them recorded as the right one"
	const resolve = " HINT: `pitr wal list` shows the contents, `pitr wal resolve 000000010000000000000004 DIGEST` records which one holds"
	segment := "segment 000000010000000000000004"
	check(t, f, Target{Kind: Name, Name: "twice"}, "backup 1, timeline 1, =0/140000")
	check(t, f, Target{Kind: Immediate}, "backup 2, timeline 1, 0/310000")
	check(t, f, Target{Kind: XID, XID: 711}, "backup 2, timeline 1, =0/310000")
	check(t, f, Target{Kind: LSN, LSN: 0x340000}, "backup 2, timeline 1, =0/340000")
	check(t, f, atTime(40000), "backup 2, timeline 1, 0/340000")
	for _, c := range []struct {
		target Target
		why    string
	}{
		{Target{}, segment + " " + state + ": the end of the archive can't be reached from backup " + f.backups[1].ID},
		{Target{Kind: LSN, LSN: 0x410000}, segment + ", which lies before it, " + state},
		{Target{Kind: LSN, LSN: 0x3ffff8}, "the record there begins in " + segment + ", which " + state},
		{Target{Kind: Name, Name: "none"}, "it is not in the archived WAL that joins a backup, and " + segment + " " + state},
		{atTime(60000), "no transaction ended after it before " + segment + ", which " + state},
		// The record is not whole without it.
		{Target{Kind: XID, XID: 714}, "the record at 0/3FFFF0, where recovery has to stop, is not archived to its end: " + segment + " " + state},
	} {
		check(t, f, c.target, c.target.String()+": target not reachable: "+c.why+"; reachable on timeline 1: from 2026-11-22T12:00:01Z (0/100100, the end of a backup)"+
			" to 2026-11-22T12:00:51Z (0/3FFFF0), WAL up to 0/400000, where "+segment+" "+state+resolve)
		if _, err := plan(t, f, c.target); !errors.Is(err, archive.ErrConflict) {
			t.Errorf("%s: %v is no conflict", c.target, err)
		}
	}
	// Within a backup.
	f.gap[1] = 3
	check(t, f, Target{Kind: Immediate}, "the WAL behind 0/300100, the end of backup "+f.backups[1].ID+", is not archived: segment 000000010000000000000003 "+state)
	// Another timeline may do.
	f = forks()
	f.gap, f.conflict = map[wal.Timeline]uint64{2: 2}, true
	f.backups = f.backups[:2]
	check(t, f, Target{Kind: XID, XID: 711}, "000000020000000000000002 DIGEST` records which one holds; it can be reached on another timeline: --target-timeline 1")
}

// What was refused under a name of the way is told of.
func TestRefusedContents(t *testing.T) {
	f := line()
	f.refused = []string{"000000010000000000000003", "000000010000000000000005", "00000002.history", "000000020000000000000001"}
	notes := func(target Target) (s []string) {
		p, err := plan(t, f, target)
		if err != nil {
			t.Fatal(err)
		}
		if p.Err() != nil {
			t.Errorf("%s: %v", target, p.Err())
		}
		for _, o := range p.Obstacles {
			if strings.HasPrefix(o.What, "segment") {
				s = append(s, o.What+" HINT: "+o.Hint)
			}
		}
		return s
	}
	const hint = "two servers have written it HINT: `pitr wal list` shows the contents, `pitr wal resolve "
	replayed := "segment 000000010000000000000003, which is replayed, was offered for archiving with another content as well, which was refused: " + hint +
		"000000010000000000000003 DIGEST` records another choice"
	behind := "segment 000000010000000000000005, behind the end of the archived WAL, was refused: " + hint + "000000010000000000000005 DIGEST` has it replayed, too"
	if got, want := notes(Target{}), []string{replayed, behind}; !slices.Equal(got, want) {
		t.Errorf("to the end: %q\nwant %q", got, want)
	}
	if got, want := notes(atTime(40000)), []string{replayed}; !slices.Equal(got, want) {
		t.Errorf("to a time: %q\nwant %q", got, want)
	}
	if got := notes(atTime(10000)); got != nil {
		t.Errorf("to a time before: %q", got)
	}
}
