package recovery

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pitr/archive"
	"pitr/basebackup"
	"pitr/internal/hint"
	"pitr/internal/postgres"
	"pitr/internal/wal"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// at is noon and so many milliseconds.
func at(ms int) wal.Timestamp { return wal.TimestampOf(noon.Add(time.Duration(ms) * time.Millisecond)) }

func fact(start, end wal.LSN, what any) archive.Fact {
	return archive.Fact{Start: start, End: end, Timeline: 1, What: what}
}

func txn(kind wal.TxnKind, lsn wal.LSN, xid uint32, ms int, sub ...uint32) archive.Fact {
	x := &wal.Txn{Start: lsn, End: lsn + 0x30, XID: xid, Kind: kind, Time: at(ms)}
	if sub != nil {
		x.Detail = &wal.TxnDetail{Subxids: sub}
	}
	return fact(x.Start, x.End, x)
}

func commit(lsn wal.LSN, xid uint32, ms int, sub ...uint32) archive.Fact {
	return txn(wal.Commit, lsn, xid, ms, sub...)
}

func point(lsn wal.LSN, name string, ms int) archive.Fact {
	return fact(lsn, lsn+0x30, &wal.RestorePoint{Start: lsn, End: lsn + 0x30, Name: name, Time: at(ms)})
}

func checkpoint(lsn wal.LSN, ms int) archive.Fact {
	return fact(lsn, lsn+0x78, &wal.CheckpointRecord{Start: lsn, End: lsn + 0x78, Checkpoint: wal.Checkpoint{Time: at(ms).Time()}})
}

const testSeg = 1 << 20

// fake is a world whose WAL is a list of facts for each timeline.
type fake struct {
	backups   []*basebackup.Header
	histories map[wal.Timeline]wal.History
	facts     map[wal.Timeline][]archive.Fact
	end       map[wal.Timeline]wal.LSN // of the archived WAL
	gap       map[wal.Timeline]uint64  // segment missing
	conflict  bool                     // it is there, with several contents
	refused   []string
	places    map[string]Place
	contents  Contents
	skim      bool // all indexes are rolled up
}

// skimmed gives the facts as archive.Archive.Skim may.
func (f *fake) skimmed(path []archive.Step, facts []archive.Fact, from wal.LSN, enough func(*wal.Index) bool) Facts {
	return func(yield func(archive.Fact, error) bool) {
		for len(facts) > 0 {
			no := wal.SegmentOf(facts[0].Start, testSeg)
			n := slices.IndexFunc(facts, func(x archive.Fact) bool { return wal.SegmentOf(x.Start, testSeg) != no })
			if n < 0 {
				n = len(facts)
			}
			var those []archive.Fact
			those, facts = facts[:n], facts[n:]
			ix := index(no, those)
			if start := wal.SegmentStart(no, testSeg); start < from || no == path[0].First || ix.Stop.Kind != wal.StopMore || !enough(ix) {
				for _, x := range those {
					if x.Start >= from && !yield(x, nil) {
						return
					}
				}
				continue
			}
			p := archive.Piece{Index: ix}
			for _, x := range p.Facts() {
				if s, ok := x.What.(*archive.Skimmed); ok {
					s.Step.Timeline = path[0].Timeline // the fake's paths name histories
				}
				if !yield(x, nil) {
					return
				}
			}
		}
	}
}

// index makes the brief index of a segment with these facts.
func index(no uint64, facts []archive.Fact) *wal.Index {
	ix := &wal.Index{Timeline: facts[0].Timeline, Start: wal.SegmentStart(no, testSeg), SegSize: testSeg, Complete: true, Last: facts[len(facts)-1].Start}
	for _, x := range facts {
		switch x := x.What.(type) {
		case *wal.Txn:
			ix.Transactions = append(ix.Transactions, *x)
			for _, xid := range append([]uint32{x.XID}, detail(x).Subxids...) {
				if ix.MinXID == 0 || xid < ix.MinXID {
					ix.MinXID = xid
				}
				ix.MaxXID = max(ix.MaxXID, xid)
			}
			if !ix.HasTime() || x.Time < ix.MinTime {
				ix.MinTime = x.Time
			}
			if !ix.HasTime() || x.Time > ix.MaxTime {
				ix.MaxTime = x.Time
			}
			if x.Kind.Committed() {
				ix.Commits++
			} else {
				ix.Aborts++
			}
		case *wal.Prepared:
			ix.Prepared = append(ix.Prepared, *x)
		case *wal.RestorePoint:
			ix.RestorePoints = append(ix.RestorePoints, *x)
		case *wal.CheckpointRecord:
			ix.Checkpoints = append(ix.Checkpoints, *x)
		case *wal.EndOfRecovery:
			ix.EndsOfRecovery = append(ix.EndsOfRecovery, *x)
		case *wal.Parameters:
			ix.Parameters = append(ix.Parameters, *x)
		case *wal.Stop:
			ix.Stop = *x
		default:
			panic(fmt.Sprintf("%T", x))
		}
	}
	return ix.Shorten()
}

func detail(x *wal.Txn) wal.TxnDetail {
	if x.Detail == nil {
		return wal.TxnDetail{}
	}
	return *x.Detail
}

func backup(id int, tli wal.Timeline, start, stop wal.LSN, finishedMS int) *basebackup.Header {
	return &basebackup.Header{
		ID: basebackup.NewID(noon.Add(time.Duration(finishedMS)*time.Millisecond-time.Second), uint32(id)), SystemID: 77, ServerVersion: 150004,
		Timeline: tli, StartLSN: start, StopLSN: stop, Finished: at(finishedMS).Time(), WALSegSize: testSeg, CatalogVersion: 202209061,
	}
}

// along gives the facts of a history in order.
func (f *fake) along(h wal.History) []archive.Fact {
	var out []archive.Fact
	for tli, facts := range f.facts {
		for _, x := range facts {
			if h.Owner(x.Start) == tli {
				out = append(out, x)
			}
		}
	}
	slices.SortFunc(out, func(a, b archive.Fact) int { return int(int64(a.Start) - int64(b.Start)) })
	return out
}

func (f *fake) view() View {
	if f.histories == nil {
		f.histories = map[wal.Timeline]wal.History{1: {Timeline: 1}}
	}
	// A path names the history it was made for by its first step's timeline, and the range by segment numbers.
	byPath := func(path []archive.Step) []archive.Fact {
		if len(path) == 0 {
			return nil
		}
		var out []archive.Fact
		for _, x := range f.along(f.histories[path[0].Timeline]) {
			if x.Start >= wal.SegmentStart(path[0].First, testSeg) && x.Start < wal.SegmentStart(path[len(path)-1].Last+1, testSeg) {
				out = append(out, x)
			}
		}
		return out
	}
	return View{
		SystemID: 77, SegSize: testSeg, Backups: f.backups, Histories: f.histories, Refused: f.refused,
		Reach: func(h wal.History, from wal.LSN) (Reach, error) {
			end := f.end[h.Timeline]
			r := Reach{End: end}
			if no, ok := f.gap[h.Timeline]; ok && no >= wal.SegmentOf(from, testSeg) {
				r.End, r.Gap, r.Conflict = max(from, wal.SegmentStart(no, testSeg)), wal.SegmentName(h.Timeline, no, testSeg), f.conflict
			}
			if r.End > from {
				r.Path = []archive.Step{{Timeline: h.Timeline, First: wal.SegmentOf(from, testSeg), Last: wal.SegmentOf(r.End-1, testSeg)}}
			}
			return r, nil
		},
		Facts: func(path []archive.Step, from wal.LSN, enough func(*wal.Index) bool) Facts {
			if enough != nil && f.skim {
				return f.skimmed(path, byPath(path), from, enough)
			}
			return func(yield func(archive.Fact, error) bool) {
				for _, x := range byPath(path) {
					if x.Start >= from && !yield(x, nil) {
						return
					}
				}
			}
		},
		RecordAt: func(path []archive.Step, lsn wal.LSN) (Stop, bool, error) {
			for _, x := range byPath(path) {
				if x.Start >= lsn {
					return Stop{LSN: x.Start, End: x.End}, true, nil
				}
			}
			return Stop{}, false, nil
		},
		LastRecord: func(path []archive.Step) (Stop, bool, error) {
			all := byPath(path)
			if len(all) == 0 {
				return Stop{}, false, nil
			}
			x := all[len(all)-1]
			return Stop{LSN: x.Start, End: x.End}, true, nil
		},
		Contents: func(*basebackup.Header) (Contents, error) { return f.contents, nil },
		Look: func(path string) (Place, error) {
			p, ok := f.places[path]
			if !ok {
				p.Free = 1 << 40
			}
			return p, nil
		},
		Server: func(int) error { return nil },
	}
}

func plan(t *testing.T, f *fake, target Target) (*Plan, error) {
	t.Helper()
	if target.Action == "" {
		target.Action = Promote
	}
	d := Destination{Dir: "/restored", Program: "/usr/bin/pitr", Config: "/etc/pitr.yaml"}
	p, err := MakePlan(f.view(), target, d)
	// Rolled-up indexes change nothing.
	f.skim = true
	q, qerr := MakePlan(f.view(), target, d)
	f.skim = false
	if fmt.Sprint(err) != fmt.Sprint(qerr) || hint.Of(err) != hint.Of(qerr) || !reflect.DeepEqual(p, q) {
		t.Errorf("%s: %+v, %v\nwith rolled-up indexes: %+v, %v", target, p, err, q, qerr)
	}
	return p, err
}

// check plans and compares "backup stop[=]" or the error.
func check(t *testing.T, f *fake, target Target, want string) *Plan {
	t.Helper()
	p, err := plan(t, f, target)
	var got string
	if err != nil {
		got = err.Error()
		if h := hint.Of(err); h != "" {
			got += " HINT: " + h
		}
		if !strings.HasPrefix(got, want) && !strings.Contains(got, want) || !errors.Is(err, ErrUnreachable) {
			t.Errorf("%s: %s\nwant %s", target, got, want)
		}
		return nil
	}
	sign := ""
	if p.Stop.Inclusive {
		sign = "="
	}
	no := slices.IndexFunc(f.backups, func(b *basebackup.Header) bool { return b.ID == p.Backup.ID }) + 1
	if got = fmt.Sprintf("backup %d, timeline %d, %s%s", no, p.Timeline, sign, p.Stop.LSN); got != want {
		t.Errorf("%s: %s\nwant %s", target, got, want)
	}
	return p
}

func atTime(ms int) Target     { return Target{Kind: Time, Time: at(ms).Time()} }
func beforeTime(ms int) Target { return Target{Kind: Time, Time: at(ms).Time(), Exclusive: true} }

// line is one timeline with two backups: the first at 0/100000 to 0/100100, the second at 0/300000 to 0/300100.
func line() *fake {
	return &fake{
		backups: []*basebackup.Header{backup(1, 1, 0x100000, 0x100100, 1000), backup(2, 1, 0x300000, 0x300100, 30000)},
		end:     map[wal.Timeline]wal.LSN{1: 0x500000},
		facts: map[wal.Timeline][]archive.Fact{1: {
			commit(0x100080, 700, 900), // while the first backup was taken
			commit(0x110000, 701, 10000),
			commit(0x110100, 702, 10100), // 100 ms later
			commit(0x120000, 704, 12000),
			commit(0x120100, 703, 11000), // its time is earlier than that of the one before
			txn(wal.Abort, 0x130000, 705, 15000),
			point(0x140000, "twice", 16000),
			fact(0x150000, 0x150100, &wal.Prepared{Start: 0x150000, End: 0x150100, Time: at(17000), XID: 706, GID: "g1"}),
			txn(wal.CommitPrepared, 0x160000, 706, 18000),
			commit(0x170000, 707, 19000, 708, 709),
			commit(0x300080, 710, 29000), // while the second backup was taken
			commit(0x310000, 711, 40000),
			point(0x320000, "twice", 41000),
			fact(0x330000, 0x330100, &wal.Prepared{Start: 0x330000, End: 0x330100, Time: at(42000), XID: 712, GID: "g2"}),
			commit(0x340000, 713, 43000),
			checkpoint(0x350000, 50000),
		}},
	}
}

func TestTimeTargets(t *testing.T) {
	f := line()
	for _, c := range []struct {
		target Target
		want   string
	}{
		// Inclusive: up to the last transaction of that microsecond; exclusive: before the first.
		{atTime(10000), "backup 1, timeline 1, 0/110100"},
		{beforeTime(10000), "backup 1, timeline 1, 0/110000"},
		{atTime(10050), "backup 1, timeline 1, 0/110100"},
		{beforeTime(10100), "backup 1, timeline 1, 0/110100"},
		{atTime(10100), "backup 1, timeline 1, 0/120000"},
		// Times don't rise with positions: the first record counts.
		{atTime(11000), "backup 1, timeline 1, 0/120000"},
		{atTime(11500), "backup 1, timeline 1, 0/120000"},
		{atTime(12000), "backup 1, timeline 1, 0/130000"},
		// An abort stops as well, and so does the commit of a prepared transaction; preparing does not.
		{atTime(14000), "backup 1, timeline 1, 0/130000"},
		{atTime(16500), "backup 1, timeline 1, 0/160000"},
		{atTime(17500), "backup 1, timeline 1, 0/160000"},
		// Within the second backup: only the first can serve.
		{atTime(28000), "backup 1, timeline 1, 0/300080"},
		{beforeTime(29000), "backup 1, timeline 1, 0/300080"},
		{atTime(29000), "backup 2, timeline 1, 0/310000"},
		// The second backup was over at 30000 by the clock, and the stop is later in any case.
		{atTime(29500), "backup 2, timeline 1, 0/310000"},
		{atTime(40000), "backup 2, timeline 1, 0/340000"},
		// After the last transaction: the checkpoint proves that nothing is missing.
		{atTime(43000), "backup 2, timeline 1, 0/350000"},
		{atTime(49999), "backup 2, timeline 1, 0/350000"},
		{beforeTime(50000), "backup 2, timeline 1, 0/350000"},
	} {
		check(t, f, c.target, c.want)
	}
	check(t, f, atTime(50000), "time 2026-11-22T12:00:50Z: target not reachable: no transaction ended after it, and nothing of a later time is archived; "+
		"reachable on timeline 1: from 2026-11-22T12:00:01Z (0/100100, the end of a backup) to 2026-11-22T12:00:50Z (0/350000), WAL up to 0/500000")
	check(t, f, atTime(500), "recovery would stop before the COMMIT of transaction 700 at 0/100080 (2026-11-22T12:00:00.9Z), and that is not later than the end of the first backup, 0/100100")
	// A backup of the user's choice.
	late := atTime(10000)
	late.Backup = f.backups[1].ID
	check(t, f, late, "recovery would stop before the COMMIT of transaction 710 at 0/300080")
	late = atTime(41000)
	late.Backup = f.backups[0].ID
	check(t, f, late, "backup 1, timeline 1, 0/340000")
}

// A transaction that noted its time before the target, and wrote its record after what proves the target passed, counts.
func TestTimeBehindTheProof(t *testing.T) {
	f := line()
	f.facts[1] = append(f.facts[1], commit(0x360000, 714, 49000))
	p := check(t, f, atTime(49500), "backup 2, timeline 1, =0/360000")
	if p != nil && (p.LastCommit == nil || p.LastCommit.XID != 714) {
		t.Errorf("last commit %v", p.LastCommit)
	}
	f.facts[1] = append(f.facts[1], point(0x370000, "p", 60000))
	check(t, f, atTime(49500), "backup 2, timeline 1, 0/370000")
	// Also where it is in another segment.
	f = line()
	f.facts[1] = append(f.facts[1], commit(0x460000, 714, 49000))
	check(t, f, atTime(49500), "backup 2, timeline 1, =0/460000")
}

// The clock of a backup's host decides nothing.
func TestTimeGuessIsVerified(t *testing.T) {
	for _, finished := range []int{0, 30000, 9999999} {
		f := line()
		f.backups[1].Finished = at(finished).Time()
		check(t, f, atTime(28000), "backup 1, timeline 1, 0/300080")
		check(t, f, atTime(40000), "backup 2, timeline 1, 0/340000")
	}
}

func TestXIDTargets(t *testing.T) {
	f := line()
	xid := func(n uint32, exclusive bool) Target { return Target{Kind: XID, XID: n, Exclusive: exclusive} }
	check(t, f, xid(702, false), "backup 1, timeline 1, =0/110100")
	check(t, f, xid(702, true), "backup 1, timeline 1, 0/110100")
	check(t, f, xid(705, false), "backup 1, timeline 1, =0/130000")
	check(t, f, xid(706, true), "backup 1, timeline 1, 0/160000") // where it was committed, not prepared
	check(t, f, xid(710, false), "backup 1, timeline 1, =0/300080")
	check(t, f, xid(711, false), "backup 2, timeline 1, =0/310000")
	check(t, f, xid(700, false), "recovery would stop after the COMMIT of transaction 700 at 0/100080 (2026-11-22T12:00:00.9Z), and that is not later")
	check(t, f, xid(708, false), "it was a subtransaction of 707")
	check(t, f, xid(708, false), "HINT: PostgreSQL knows top-level transactions only: --target-xid 707, whose COMMIT is at 0/170000 (2026-11-22T12:00:19Z)")
	check(t, f, xid(712, false), "no commit or abort of that number is archived")
	// The same number again after the numbers wrapped: the newest backup's is meant.
	f.facts[1] = append(f.facts[1], commit(0x360000, 702, 60000))
	check(t, f, xid(702, false), "backup 2, timeline 1, =0/360000")
	old := xid(702, false)
	old.Backup = f.backups[0].ID
	p := check(t, f, old, "backup 1, timeline 1, =0/110100")
	if !slices.ContainsFunc(p.Why, func(s string) bool { return strings.HasPrefix(s, "1 more of the kind") }) {
		t.Errorf("why: %q", p.Why)
	}
}

func TestNameTargets(t *testing.T) {
	f := line()
	p := check(t, f, Target{Kind: Name, Name: "twice"}, "backup 1, timeline 1, =0/140000")
	if !slices.ContainsFunc(p.Why, func(s string) bool { return strings.Contains(s, "first one holds") }) {
		t.Errorf("why: %q", p.Why)
	}
	check(t, f, Target{Kind: Name, Name: "twice", Backup: f.backups[1].ID}, "backup 2, timeline 1, =0/320000")
	check(t, f, Target{Kind: Name, Name: "Twice"}, "no restore point of that name is archived")
}

func TestLSNTargets(t *testing.T) {
	f := line()
	lsn := func(n wal.LSN, exclusive bool) Target { return Target{Kind: LSN, LSN: n, Exclusive: exclusive} }
	check(t, f, lsn(0x110000, false), "backup 1, timeline 1, =0/110000")
	check(t, f, lsn(0x110000, true), "backup 1, timeline 1, 0/110000")
	// The first record that starts there or later.
	check(t, f, lsn(0x110001, false), "backup 1, timeline 1, =0/110100")
	check(t, f, lsn(0x300099, true), "backup 1, timeline 1, 0/310000")
	check(t, f, lsn(0x300100, true), "backup 2, timeline 1, 0/310000")
	check(t, f, lsn(0x1000ff, false), "HINT: the earliest that can be had is the end of the first backup: --target-immediate --backup "+f.backups[0].ID)
	check(t, f, lsn(0x1000ff, false), "it lies before the end of the first backup, 0/100100")
	check(t, f, lsn(0x500001, false), "it lies behind the end of the archived WAL, 0/500000")
	check(t, f, lsn(0x350078, false), "backup 2, timeline 1, =0/350000") // the end of the last record
	check(t, f, lsn(0x350079, false), "it lies behind the end of the last archived record, 0/350078")
}

func TestEndAndImmediate(t *testing.T) {
	f := line()
	check(t, f, Target{}, "backup 2, timeline 1, =0/350000")
	check(t, f, Target{Backup: f.backups[0].ID}, "backup 1, timeline 1, =0/350000")
	p := check(t, f, Target{Kind: Immediate}, "backup 2, timeline 1, 0/310000")
	if i := slices.IndexFunc(p.Settings, func(s postgres.Setting) bool { return s.Name == "recovery_target" }); i < 0 || p.Settings[i].Value != "immediate" {
		t.Errorf("settings %v", p.Settings)
	}
	f.backups = nil
	check(t, f, Target{}, "the end of the archive: target not reachable: there is no backup HINT: WAL alone can't be restored: take a backup with `pitr backup create`")
}

func TestGap(t *testing.T) {
	f := line()
	f.gap = map[wal.Timeline]uint64{1: 2} // 0/200000 to 0/2FFFFF
	gap := "000000010000000000000002"
	// It lies before the second backup, which does not need it.
	check(t, f, Target{}, "backup 2, timeline 1, =0/350000")
	check(t, f, atTime(10000), "backup 1, timeline 1, 0/110100")
	check(t, f, atTime(28000), "no transaction ended after it before segment "+gap+", which is missing")
	check(t, f, Target{Kind: LSN, LSN: 0x210000}, "segment "+gap+", which lies before it, is missing")
	f.gap = map[wal.Timeline]uint64{1: 4} // 0/400000 on, and there is more behind it
	gap = "000000010000000000000004"
	check(t, f, Target{}, "segment "+gap+" is missing, and later WAL is archived: the end of the archive can't be reached from backup")
	check(t, f, Target{}, "WAL up to 0/400000, where segment "+gap+" is missing")
	check(t, f, atTime(40000), "backup 2, timeline 1, 0/340000")
	check(t, f, atTime(60000), "no transaction ended after it before segment "+gap+", which is missing")
	check(t, f, Target{Kind: XID, XID: 999}, "it is not in the archived WAL that joins a backup, and segment "+gap+" is missing")
	check(t, f, Target{Kind: Name, Name: "none"}, "segment "+gap+" is missing")
}

// forks adds timeline 2, which left timeline 1 at 0/180000 (before the second backup), with a backup of its own.
func forks() *fake {
	f := line()
	f.histories = map[wal.Timeline]wal.History{
		1: {Timeline: 1},
		2: {Timeline: 2, Switches: []wal.Switch{{Timeline: 1, At: 0x180000}}},
	}
	f.backups = append(f.backups, backup(3, 2, 0x280000, 0x280100, 120000))
	f.end[2] = 0x600000
	f.facts[2] = []archive.Fact{
		fact(0x180000, 0x180100, &wal.EndOfRecovery{Start: 0x180000, End: 0x180100, Time: at(100000), Timeline: 2, PrevTimeline: 1}),
		commit(0x190000, 800, 101000),
		commit(0x290000, 801, 130000),
		point(0x2a0000, "new", 131000),
	}
	for i := range f.facts[2] {
		f.facts[2][i].Timeline = 2
	}
	return f
}

func TestTimelines(t *testing.T) {
	f := forks()
	on := func(target Target, tli string) Target {
		target.Timeline, _ = parseTimeline(tli)
		return target
	}
	// The end of the newest line; the abandoned branch; its end.
	check(t, f, Target{}, "backup 3, timeline 2, =0/2A0000")
	check(t, f, on(Target{}, "1"), "backup 2, timeline 1, =0/350000")
	check(t, f, on(Target{}, "latest"), "backup 3, timeline 2, =0/2A0000")
	check(t, f, on(Target{}, "current"), "backup 3, timeline 2, =0/2A0000")
	check(t, f, on(Target{Backup: f.backups[1].ID}, "current"), "backup 2, timeline 1, =0/350000")
	// The second backup lies behind the fork: latest from it is its own timeline.
	check(t, f, Target{Backup: f.backups[1].ID}, "backup 2, timeline 1, =0/350000")
	check(t, f, Target{Backup: f.backups[0].ID}, "backup 1, timeline 2, =0/2A0000")
	check(t, f, on(Target{Backup: f.backups[1].ID}, "2"), "does not lie on the history of timeline 2")
	// Before the fork both lines are one. On the new line, backup 2 does not exist.
	check(t, f, atTime(10000), "backup 1, timeline 2, 0/110100")
	check(t, f, atTime(20000), "backup 1, timeline 2, 0/190000")
	check(t, f, on(atTime(30000), "1"), "backup 2, timeline 1, 0/310000")
	// What is on the other line only.
	check(t, f, Target{Kind: XID, XID: 711}, "HINT: it can be reached on another timeline: --target-timeline 1")
	check(t, f, on(Target{Kind: Name, Name: "new"}, "1"), "HINT: it can be reached on another timeline: --target-timeline 2")
	p := check(t, f, Target{Kind: LSN, LSN: 0x290000}, "backup 3, timeline 2, =0/290000")
	if !slices.ContainsFunc(p.Why, func(s string) bool { return strings.Contains(s, "--target-timeline 1 would take the other branch") }) {
		t.Errorf("why: %q", p.Why)
	}
	f.end[2] = 0x300000
	check(t, f, Target{Kind: LSN, LSN: 0x310000}, "HINT: it can be reached on another timeline: --target-timeline 1")
	check(t, f, on(Target{}, "9"), "timeline 9 is not in the archive, which has timelines 1, 2")
	check(t, f, Target{Kind: Immediate}, "backup 3, timeline 2, 0/290000")
	check(t, f, on(Target{Kind: Immediate}, "1"), "backup 2, timeline 1, 0/310000")
}

func TestSurvey(t *testing.T) {
	f := line()
	f.contents.Prepared = []uint32{699, 706}
	p := check(t, f, atTime(17500), "backup 1, timeline 1, 0/160000")
	if p.LastCommit == nil || p.LastCommit.XID != 703 || p.Last.XID != 705 || p.Replayed != 6 {
		t.Errorf("last commit %v, last %v, %d replayed", p.LastCommit, p.Last, p.Replayed)
	}
	want := []InDoubt{{XID: 699}, {XID: 706, GID: "g1", Prepared: at(17000).Time()}}
	if !slices.Equal(p.InDoubt, want) {
		t.Errorf("in doubt %v, want %v", p.InDoubt, want)
	}
	p = check(t, f, atTime(18000), "backup 1, timeline 1, 0/170000")
	if !slices.Equal(p.InDoubt, want[:1]) || p.LastCommit.XID != 706 {
		t.Errorf("in doubt %v, last commit %v", p.InDoubt, p.LastCommit)
	}
	if p.Segments != 1 || len(p.Path) != 1 || p.Path[0] != (archive.Step{Timeline: 1, First: 1, Last: 1}) {
		t.Errorf("path %v, %d segments", p.Path, p.Segments)
	}

	f.facts[1] = append(f.facts[1], fact(0x115000, 0x115050, &wal.Parameters{Start: 0x115000, End: 0x115050, Level: wal.LevelMinimal}))
	check(t, f, atTime(10000), "backup 1, timeline 1, 0/110100")
	check(t, f, atTime(14000), "at 0/115000 the server ran with wal_level = minimal, over which no recovery goes")
	f.facts[1][len(f.facts[1])-1] = fact(0x115000, 0x115000, &wal.Stop{Kind: wal.StopZero, LSN: 0x115000, Reason: "zeros"})
	check(t, f, Target{Kind: LSN, LSN: 0x120000, Backup: f.backups[0].ID}, "the records end at 0/115000, before the one to stop at (zeros)")
	check(t, f, Target{Kind: Name, Name: "twice", Backup: f.backups[0].ID}, "no restore point of that name is archived")
}
