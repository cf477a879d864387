package archive

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"iter"
	"runtime"
	"slices"
	"strings"
	"testing"

	"pitr/internal/repo"
	"pitr/internal/wal"
	"pitr/storage"
	"pitr/storage/storagetest"
)

const mb = 1 << 20

// sketch makes the coverage of an archive that is drawn in a few lines:
//
//	1: 1-9 12 15p       segments 1 to 9 and 12 of timeline 1, and the first half of 15
//	1: -1-3             removed by retention
//	2 < 1@10.5: 10-14   timeline 2, which left timeline 1 in the middle of segment 10
//	2!: 11              a conflict
func sketch(t *testing.T, text string) *Coverage {
	t.Helper()
	c := &Coverage{SegSize: mb, Timelines: map[wal.Timeline]*TimelineRuns{}, Histories: map[wal.Timeline]wal.History{}}
	for line := range strings.Lines(text) {
		head, tail, _ := strings.Cut(strings.TrimSpace(line), ":")
		if head == "" {
			continue
		}
		var tli wal.Timeline
		conflict := strings.HasSuffix(head, "!")
		if name, parent, ok := strings.Cut(head, " < "); ok {
			var at float64
			var from wal.Timeline
			scan(t, name, "%d", &tli)
			scan(t, parent, "%d@%g", &from, &at)
			h := wal.History{Timeline: tli, Switches: slices.Clone(c.Histories[from].Switches)}
			h.Switches = append(h.Switches, wal.Switch{Timeline: from, At: lsn(at)})
			c.Histories[tli] = h
		} else {
			scan(t, strings.TrimSuffix(head, "!"), "%d", &tli)
		}
		tl := c.timeline(tli)
		for _, word := range strings.Fields(tail) {
			pruned := strings.HasPrefix(word, "-")
			word = strings.TrimPrefix(word, "-")
			var r Run
			if first, last, ok := strings.Cut(word, "-"); ok {
				scan(t, first, "%d", &r.First)
				scan(t, last, "%d", &r.Last)
			} else {
				scan(t, strings.TrimSuffix(word, "p"), "%d", &r.First)
				r.Last = r.First
			}
			switch {
			case conflict:
				c.Conflicts = append(c.Conflicts, Conflict{Name: wal.SegmentName(tli, r.First, mb), Archived: make([]repo.Digest, 2)})
				tl.any, tl.lost = tl.any.with(r), tl.lost.with(r)
			case pruned:
				tl.Pruned = tl.Pruned.with(r)
			case strings.HasSuffix(word, "p"):
				tl.Partials[r.First] = lsn(float64(r.First) + 0.5)
				tl.any = tl.any.with(r)
			default:
				tl.Runs = tl.Runs.with(r)
				tl.any = tl.any.with(r)
			}
		}
	}
	return c
}

func scan(t *testing.T, s, format string, args ...any) {
	t.Helper()
	if _, err := fmt.Sscanf(s, format, args...); err != nil {
		t.Fatalf("%q: %v", s, err)
	}
}

func lsn(segments float64) wal.LSN { return wal.LSN(segments * mb) }

func TestGaps(t *testing.T) {
	for name, tc := range map[string]struct{ archive, want string }{
		"nothing":                   {"", ""},
		"whole":                     {"1: 5-9", ""},
		"holes":                     {"1: 5-9 12 15-16", "1:10-11 1:13-14"},
		"pruned":                    {"1: 5-9 12 15-16\n1: -10-11 -13", "1:14-14"},
		"pruned in the middle":      {"1: 1 9\n1: -3-5", "1:2-2 1:6-8"},
		"conflict":                  {"1: 5-9 12\n1!: 10", "1:11-11"},
		"conflict at the end":       {"1: 5-9\n1!: 10", ""},
		"before a conflict":         {"1: 5-9\n1!: 12", "1:10-11"},
		"fork":                      {"1: 5-10\n2 < 1@10.5: 10-14", ""},
		"fork at a border":          {"1: 5-9\n2 < 1@10: 10-14", ""},
		"before the fork":           {"1: 5-8\n2 < 1@10.5: 10-14", "1:9-9"},
		"after the fork":            {"1: 5-12\n2 < 1@10.5: 12-14", "2:10-11"},
		"around the fork":           {"1: 5-7\n2 < 1@10.5: 12-14", "1:8-9 2:10-11"},
		"nothing before the fork":   {"2 < 1@10.5: 12-14 16", "2:15-15"},
		"old branch goes on":        {"1: 5-20\n2 < 1@10.5: 10-14", ""},
		"old branch has a hole":     {"1: 5-12 14\n2 < 1@10.5: 10-14", "1:13-13"},
		"new timeline just begun":   {"1: 5-7\n2 < 1@10.5:", ""},
		"partial is no gap":         {"1: 5-9 10p\n2 < 1@10.5: 10-14", ""},
		"three timelines":           {"1: 5-9\n2 < 1@10.5: 10-11\n3 < 2@12.5: 12-14", ""},
		"the middle one is missing": {"1: 5-9\n2 < 1@10.5:\n3 < 2@12.5: 12-14", "2:10-11"},
		"two forks in one segment":  {"1: 5-9\n2 < 1@10.25:\n3 < 2@10.5: 10-12", ""},
		"went back":                 {"1: 5-9\n2 < 1@10.5: 10-14\n3 < 1@7.5: 7-9", ""},
		"unknown history":           {"1: 5-9\n4: 3-4 7", "4:5-6"},
		"before a partial":          {"1: 5-7 10p", "1:8-9"},
		"before only a partial":     {"1: 5-7\n2 < 1@10.5: 10p", "1:8-9"},
		"before the fork's partial": {"1: 5-8\n2 < 1@10.5: 12p", "1:9-9 2:10-11"},
		"pruned up to the fork":     {"1: 2\n1: -3-9\n2 < 1@10.5: 14-15\n2: -10-13", ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := sketch(t, tc.archive)
			var got []string
			for _, g := range c.Gaps() {
				_, first, err1 := wal.ParseSegmentName(g.First, mb)
				_, last, err2 := wal.ParseSegmentName(g.Last, mb)
				if err1 != nil || err2 != nil || g.From != lsn(float64(first)) || g.To != lsn(float64(last+1)) {
					t.Errorf("%+v", g)
				}
				got = append(got, fmt.Sprintf("%d:%d-%d", g.Timeline, first, last))
			}
			if s := strings.Join(got, " "); s != tc.want {
				t.Errorf("got %q, want %q", s, tc.want)
			}
		})
	}
}

func TestPath(t *testing.T) {
	const branches = `
		1: 1-20
		2 < 1@10.5: 10-14
		3 < 2@12.25: 12-18 19p
		4 < 1@5: 5-6`
	for name, tc := range map[string]struct {
		archive  string
		tli      wal.Timeline
		from, to float64
		want     string
	}{
		"one timeline":              {branches, 1, 3.5, 7.5, "1:3-7"},
		"to a border":               {branches, 1, 3, 7, "1:3-6"},
		"past a border":             {branches, 1, 3, 7.0001, "1:3-7"},
		"nothing to do":             {branches, 1, 3, 3, ""},
		"over a fork":               {branches, 2, 8, 12, "1:8-9 2:10-11"},
		"ends before the fork":      {branches, 2, 8, 10.25, "1:8-10"},
		"ends at the fork":          {branches, 2, 8, 10.5, "1:8-10"},
		"ends behind the fork":      {branches, 2, 8, 10.75, "1:8-9 2:10-10"},
		"over two forks":            {branches, 3, 8, 13, "1:8-9 2:10-11 3:12-12"},
		"begins behind the fork":    {branches, 3, 13, 15, "3:13-14"},
		"fork at a border":          {branches, 4, 4, 6.5, "1:4-4 4:5-6"},
		"abandoned branch":          {branches, 1, 8, 13, "1:8-12"},
		"into a partial one":        {branches, 3, 17, 19.5, "3:17-18 3:19p"},
		"past the partial one":      {branches, 3, 17, 19.75, "3:17-18 missing 3:19 from 19.5"},
		"past the end":              {branches, 2, 13, 17, "2:13-14 missing 2:15 from 15"},
		"missing at once":           {branches, 2, 16, 17, "missing 2:16 from 16"},
		"missing timeline":          {"1: 1-9\n2 < 1@10.5:\n3 < 2@12.5: 12-14", 3, 8, 13, "1:8-9 missing 2:10 from 10"},
		"two forks in one segment":  {"1: 1-10\n2 < 1@10.25: 10\n3 < 2@10.5: 10-12", 3, 9, 12, "1:9-9 3:10-11"},
		"the older of both":         {"1: 1-10\n2 < 1@10.25: 10\n3 < 2@10.5: 10-12", 3, 9, 10.3, "1:9-9 2:10-10"},
		"conflict on the way":       {"1: 1-5 7-9\n1!: 6", 1, 4, 9, "1:4-5 conflict 1:6 from 6"},
		"hole":                      {"1: 1-5 7-9", 1, 4, 9, "1:4-5 missing 1:6 from 6"},
		"beginning of a conflict":   {"1: 1-5 6p\n1!: 6", 1, 4, 6.5, "1:4-5 conflict 1:6 from 6"},
		"partial in the middle":     {"1: 1-5 6p 7-9", 1, 4, 9, "1:4-5 missing 1:6 from 6.5"},
		"switch points that fall":   {"1: 1-20\n2 < 1@10.5: 10-14\n3 < 2@8.5: 8-9", 3, 5, 9.5, "1:5-7 3:8-9"},
		"timeline without segments": {"1: 1-5", 7, 1, 3, "missing 7:1 from 1"},
	} {
		t.Run(name, func(t *testing.T) {
			c := sketch(t, tc.archive)
			h, ok := c.Histories[tc.tli]
			if !ok {
				h = wal.History{Timeline: tc.tli}
			}
			steps, missing := c.Path(h, lsn(tc.from), lsn(tc.to))
			var got []string
			for _, s := range steps {
				if s.Partial {
					got = append(got, fmt.Sprintf("%d:%dp", s.Timeline, s.First))
					continue
				}
				got = append(got, fmt.Sprintf("%d:%d-%d", s.Timeline, s.First, s.Last))
			}
			if missing != nil {
				_, no, err := wal.ParseSegmentName(missing.Segment, mb)
				if err != nil || missing.Error() == "" {
					t.Error(err)
				}
				word := "missing"
				if missing.Conflict {
					word = "conflict"
				}
				got = append(got, fmt.Sprintf("%s %d:%d from %g", word, missing.Timeline, no, float64(missing.Reachable)/mb))
			}
			if s := strings.Join(got, " "); s != tc.want {
				t.Errorf("got %q, want %q", s, tc.want)
			}
			// At each step, the timeline is the one that owns the last byte of it that is wanted.
			for _, s := range steps {
				last := min(wal.SegmentStart(s.Last+1, mb), lsn(tc.to)) - 1
				if owner := h.Owner(last); owner != s.Timeline {
					t.Errorf("%+v: %s is of timeline %d", s, last, owner)
				}
			}
		})
	}
}

func TestEnd(t *testing.T) {
	for name, tc := range map[string]struct {
		archive string
		tli     wal.Timeline
		want    float64
	}{
		"nothing":                  {"", 1, 0},
		"segments":                 {"1: 3-5 8", 1, 9},
		"partial":                  {"1: 3-5 6p", 1, 6.5},
		"partial of what is there": {"1: 3-6 6p", 1, 7},
		"new timeline":             {"1: 3-9\n2 < 1@5.5: 5-6", 2, 7},
		"no segment of it yet":     {"1: 3-9\n2 < 1@5.5:", 2, 5.5},
		"not up to the fork":       {"1: 3-4\n2 < 1@5.5:", 2, 5},
		"the one in between":       {"1: 3-9\n2 < 1@5.5:\n3 < 2@6.5:", 3, 5.5},
		// A segment of which nobody knows which content holds is part of the archive.
		"conflict":                       {"1: 3-5\n1!: 6", 1, 7},
		"conflicts":                      {"1: 3-5\n1!: 6\n1!: 7", 1, 8},
		"conflict behind a hole":         {"1: 3-5\n1!: 8", 1, 9},
		"conflict on the new timeline":   {"1: 3-9\n2 < 1@5.5:\n2!: 5", 2, 6},
		"conflict on the one left":       {"1: 3-4\n1!: 5\n2 < 1@6.5:", 2, 6},
		"conflict on the abandoned part": {"1: 3-5\n1!: 8\n2 < 1@5.5: 5", 2, 6},
	} {
		t.Run(name, func(t *testing.T) {
			c := sketch(t, tc.archive)
			h, err := c.History(tc.tli)
			if err != nil {
				t.Fatal(err)
			}
			if got := c.End(h); got != lsn(tc.want) {
				t.Errorf("%s, want %s", got, lsn(tc.want))
			}
		})
	}
}

func TestPlanPrune(t *testing.T) {
	for name, tc := range map[string]struct {
		archive string
		needs   []Need
		want    string
	}{
		"no backup":          {"1: 1-9", nil, "keep 1:1-9 there is no backup yet"},
		"from a backup on":   {"1: 1-9", []Need{{1, lsn(4.5), 0, "A"}}, "delete 1:1-3 no backup needs it\nkeep 1:4-9 needed by A"},
		"all of it":          {"1: 4-9", []Need{{1, lsn(4.5), 0, "A"}}, "keep 1:4-9 needed by A"},
		"a pinned one":       {"1: 1-9", []Need{{1, lsn(2.5), lsn(3.5), "P"}, {1, lsn(6), 0, "A"}}, "delete 1:1-1 no backup needs it\nkeep 1:2-3 needed by P\ndelete 1:4-5 no backup needs it\nkeep 1:6-9 needed by A"},
		"both timelines":     {"1: 1-9\n2 < 1@6.5: 6-8", []Need{{1, lsn(4), 0, "A"}}, "delete 1:1-3 no backup needs it\nkeep 1:4-9 needed by A\nkeep 2:6-8 needed by A"},
		"abandoned branch":   {"1: 1-9\n2 < 1@6.5: 6-8", []Need{{2, lsn(7.5), 0, "A"}}, "delete 1:1-9 no backup needs it\ndelete 2:6-6 no backup needs it\nkeep 2:7-8 needed by A"},
		"forked before":      {"1: 1-9\n2 < 1@6.5: 6-8", []Need{{1, lsn(7), 0, "A"}}, "delete 1:1-6 no backup needs it\nkeep 1:7-9 needed by A\ndelete 2:6-8 no backup needs it"},
		"over a fork":        {"1: 1-9\n2 < 1@6.5: 6-8", []Need{{2, lsn(5), lsn(7.5), "P"}}, "delete 1:1-4 no backup needs it\nkeep 1:5-5 needed by P\ndelete 1:6-9 no backup needs it\nkeep 2:6-7 needed by P\ndelete 2:8-8 no backup needs it"},
		"grandchild":         {"1: 1-9\n2 < 1@6.5: 6-8\n3 < 2@7.5: 7-9", []Need{{1, lsn(4), 0, "A"}}, "delete 1:1-3 no backup needs it\nkeep 1:4-9 needed by A\nkeep 2:6-8 needed by A\nkeep 3:7-9 needed by A"},
		"unknown history":    {"1: 1-3\n5: 1-3", []Need{{1, lsn(3), 0, "A"}}, "delete 1:1-2 no backup needs it\nkeep 1:3-3 needed by A\nkeep 5:1-3 the history of timeline 5 is not known"},
		"backup's is gone":   {"1: 1-9", []Need{{7, lsn(4), lsn(5.5), "P"}}, "delete 1:1-3 no backup needs it\nkeep 1:4-5 needed by P\ndelete 1:6-9 no backup needs it"},
		"partials and holes": {"1: 1 3p 5", []Need{{1, lsn(4), 0, "A"}}, "delete 1:1-1 no backup needs it\ndelete 1:3-3 no backup needs it\nkeep 1:5-5 needed by A"},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, it := range PlanPrune(sketch(t, tc.archive), tc.needs) {
				word := "keep"
				if it.Delete {
					word = "delete"
				}
				got = append(got, fmt.Sprintf("%s %d:%d-%d %s", word, it.Timeline, it.First, it.Last, it.Why))
			}
			if s := strings.Join(got, "\n"); s != tc.want {
				t.Errorf("got\n%s\nwant\n%s", s, tc.want)
			}
		})
	}
}

// What is pruned is gone, and nothing else; nothing that was removed on purpose counts as a gap;
// after a failure at any operation the same call ends it.
func TestPrune(t *testing.T) {
	ctx := context.Background()
	c := wals(t, 1)
	first, last := c.segments[0], c.segments[len(ofTimeline(c.segments, "00000001"))-1]
	_, firstNo, _ := wal.ParseSegmentName(first, mb)
	_, lastNo, _ := wal.ParseSegmentName(last, mb)
	pinned := Need{1, wal.SegmentStart(firstNo+2, mb), wal.SegmentStart(firstNo+3, mb), "P"}
	needs := []Need{pinned, {1, wal.SegmentStart(lastNo-1, mb), 0, "A"}}
	label := c.segments[4] + ".00000028.backup"
	for n := 0; ; n++ {
		if n > 200 {
			t.Fatal("pruning never ends")
		}
		b := storagetest.Memory()
		a := c.archive(t, b)
		c.push(t, a, c.names...)
		if _, err := a.Push(ctx, write(t, t.TempDir()+"/"+label, []byte("label")), c.control.SystemID); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Push(ctx, c.changed(t, c.segments[4], 1), c.control.SystemID); err == nil {
			t.Fatal("no conflict")
		}
		cov, err := a.Coverage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		plan := PlanPrune(cov, needs)
		counter := storagetest.FailNth(n, storagetest.Dead)
		if n > 0 {
			f := New(c.faulty(t, b, counter), Options{})
			_, _, err := f.Prune(ctx, plan)
			f.Close()
			if (err != nil) != counter.Fired() {
				t.Fatal(err)
			}
			half, err := a.Coverage(ctx)
			if err != nil || len(half.Gaps()) > 0 {
				t.Fatalf("operation %d: %v %v", n, half.Gaps(), err)
			}
			plan = PlanPrune(half, needs)
		}
		if _, _, err := a.Prune(ctx, plan); err != nil {
			t.Fatal(err)
		}
		after, err := a.Coverage(ctx)
		want := Runs{{firstNo + 2, firstNo + 2}, {lastNo - 1, lastNo}}
		if err != nil || !slices.Equal(after.Timelines[1].Runs, want) || len(after.Gaps()) > 0 || len(after.Conflicts) > 0 {
			t.Fatalf("operation %d: %+v, gaps %v, conflicts %v, %v", n, after.Timelines[1], after.Gaps(), after.Conflicts, err)
		}
		if !slices.Equal(after.Timelines[2].Runs, cov.Timelines[2].Runs) || after.Timelines[1].Labels != 0 || len(after.Histories) != 1 {
			t.Fatalf("operation %d: %+v", n, after)
		}
		r, err := a.Verify(ctx, VerifyOptions{})
		if err != nil || !r.OK() {
			t.Fatalf("operation %d: %+v %v", n, r, err)
		}
		if n > 0 && !counter.Fired() {
			break
		}
	}
}

func TestRecordsOfPruningAreMerged(t *testing.T) {
	ctx := context.Background()
	c := wals(t, 1)
	a := c.archive(t, storagetest.Memory())
	for _, r := range []Run{{1, 3}, {7, 9}, {4, 6}, {2, 5}, {20, 20}} {
		if err := a.recordPruned(ctx, PruneItem{Timeline: 1, First: r.First, Last: r.Last}); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{repo.PrunedKey(1, 1, 9), repo.PrunedKey(1, 20, 20)}
	if got := keys(t, a.repo, "wal/"); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// The coverage of 100,000 segments takes the memory of its gaps.
func TestCoverageOfManySegments(t *testing.T) {
	ctx := context.Background()
	c := wals(t, 1)
	b := many{Bucket: storagetest.Memory(), system: c.control.SystemID, n: 100_000}
	a := c.archive(t, b)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	cov, err := a.Coverage(ctx)
	if err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if want := (Runs{{1, 49_999}, {50_001, 100_000}}); !slices.Equal(cov.Timelines[1].Runs, want) {
		t.Errorf("%v", cov.Timelines[1].Runs)
	}
	if gaps := cov.Gaps(); len(gaps) != 1 || gaps[0].From != lsn(50_000) {
		t.Errorf("%v", gaps)
	}
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 1<<20 {
		t.Errorf("the coverage takes %d bytes", grown)
	}
	runtime.KeepAlive(cov)
}

// many is a bucket that lists the segments 1 to n, but for the one in the middle.
type many struct {
	storage.Bucket
	system uint64
	n      uint64
}

func (m many) List(ctx context.Context, prefix, after string) iter.Seq2[storage.Object, error] {
	base := fmt.Sprintf("%d/", m.system)
	if prefix != base+repo.WALPrefix {
		return m.Bucket.List(ctx, prefix, after)
	}
	return func(yield func(storage.Object, error) bool) {
		for no := uint64(1); no <= m.n; no++ {
			if no == m.n/2 {
				continue
			}
			var d repo.Digest
			binary.BigEndian.PutUint64(d[:], no)
			if !yield(storage.Object{Key: base + repo.SegmentKey(wal.SegmentName(1, no, mb), d), Size: 1000}, nil) {
				return
			}
		}
	}
}

func TestRuns(t *testing.T) {
	var s Runs
	for _, no := range []uint64{5, 6, 7, 9, 7, 3, 4, 20, 8} {
		s.add(no)
	}
	if want := (Runs{{3, 9}, {20, 20}}); !slices.Equal(s, want) {
		t.Fatalf("%v, want %v", s, want)
	}
	for _, tc := range []struct {
		r    Run
		want Runs
	}{
		{Run{0, 30}, Runs{{0, 2}, {10, 19}, {21, 30}}}, {Run{3, 9}, nil}, {Run{4, 12}, Runs{{10, 12}}},
		{Run{10, 19}, Runs{{10, 19}}}, {Run{1, 3}, Runs{{1, 2}}}, {Run{20, 20}, nil}, {Run{30, 31}, Runs{{30, 31}}},
	} {
		if got := s.missing(tc.r); !slices.Equal(got, tc.want) {
			t.Errorf("%v is missing of %v, want %v", got, tc.r, tc.want)
		}
	}
	if s.Has(2) || !s.Has(3) || !s.Has(9) || s.Has(10) || !s.Has(20) {
		t.Error("Has")
	}
}

func TestDamagedHistory(t *testing.T) {
	ctx := context.Background()
	c := wals(t, 1)
	a := c.archive(t, storagetest.Memory())
	key := repo.HistoryKey(2, repo.DigestOf([]byte("x")))
	if err := a.repo.Create(ctx, key, bytes.NewReader([]byte("y"))); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Coverage(ctx); err == nil || !strings.Contains(err.Error(), key) {
		t.Fatal(err)
	}
	r, err := a.Verify(ctx, VerifyOptions{})
	if err != nil || len(r.Damaged) != 1 || r.Damaged[0].Name != "00000002.history" {
		t.Fatalf("%+v %v", r, err)
	}
}
