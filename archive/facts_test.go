package archive

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"pitr/internal/repo"
	"pitr/internal/wal"
	"pitr/storage/storagetest"
)

// path is that of everything that was archived of timeline 2 and its past.
func (c *corpus) whole(t *testing.T, a *Archive, tli wal.Timeline) (path []Step, from wal.LSN) {
	t.Helper()
	cov, err := a.Coverage(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	h, err := cov.History(tli)
	if err != nil {
		t.Fatal(err)
	}
	from = wal.SegmentStart(cov.Timelines[1].Runs[0].First, cov.SegSize)
	path, missing := cov.Path(h, from, cov.End(h))
	if missing != nil {
		t.Fatal(missing)
	}
	return path, from
}

// expect reads the same facts straight from the segments, as a server would.
func (c *corpus) expect(t *testing.T, names []string) (ends []wal.LSN, points []string) {
	t.Helper()
	var r wal.Reader
	for _, name := range names {
		data := c.read(t, name)
		if err := r.Feed(data); err != nil {
			t.Fatal(err)
		}
		for r.Next() {
			// src/include/access/xact.h and catalog/pg_control.h: what ends a transaction, restore points.
			switch rec := r.Record(); {
			case rec.Rmgr == wal.RmgrXact && slices.Contains([]uint8{0x00, 0x20, 0x30, 0x40}, rec.Op()&0x70):
				ends = append(ends, rec.LSN)
			case rec.Rmgr == wal.RmgrXLOG && rec.Op() == 0x70:
				name, _, _ := strings.Cut(string(rec.Main[8:]), "\x00")
				points = append(points, name)
			}
		}
	}
	return ends, points
}

func TestFacts(t *testing.T) {
	ctx := context.Background()
	for _, size := range []int{1, 16} {
		c := wals(t, size)
		b := storagetest.Memory()
		a := c.archive(t, b)
		c.push(t, a, c.names...)
		path, from := c.whole(t, a, 2)
		var names []string
		for _, s := range path {
			for no := s.First; no <= s.Last; no++ {
				names = append(names, wal.SegmentName(s.Timeline, no, a.segSize()))
			}
		}
		ends, points := c.expect(t, names)
		if len(ends) < c.commits || !slices.Equal(points, []string{"between"}) {
			t.Fatalf("%d ends of transactions, restore points %q", len(ends), points)
		}
		// The same without any index: made from the segments.
		blind := New(a.repo, Options{Workers: 3})
		defer blind.Close()
		for what, facts := range map[string]func(func(Fact, error) bool){
			"indexes": a.Facts(ctx, path, from), "three workers": blind.Facts(ctx, path, from),
		} {
			var gotEnds []wal.LSN
			var gotPoints []string
			last, subxids, promoted := wal.LSN(0), 0, false
			for f, err := range facts {
				if err != nil {
					t.Fatal(err)
				}
				if f.Start < last {
					t.Fatalf("%s: %s comes after %s", what, f.Start, last)
				}
				last = f.Start
				switch x := f.What.(type) {
				case *wal.Txn:
					gotEnds = append(gotEnds, x.Start)
					if x.Detail != nil {
						subxids = max(subxids, len(x.Detail.Subxids))
					}
				case *wal.RestorePoint:
					gotPoints = append(gotPoints, x.Name)
				case *wal.CheckpointRecord:
					promoted = promoted || x.Timeline == 2 && x.PrevTimeline == 1
				case *wal.EndOfRecovery:
					promoted = true
				case *wal.Stop:
					t.Errorf("%s: the records of timeline %d stop at %s: %s", what, f.Timeline, f.Start, x.Reason)
				}
			}
			if !slices.Equal(gotEnds, ends) || !slices.Equal(gotPoints, points) {
				t.Errorf("%d MB, %s: %d ends of transactions and points %q, want %d and %q", size, what, len(gotEnds), gotPoints, len(ends), points)
			}
			if subxids < 60_000 || !promoted {
				t.Errorf("%d MB, %s: the largest transaction has %d subtransactions, timeline 2 began: %v", size, what, subxids, promoted)
			}
		}
		// From the middle on.
		n := 0
		for f, err := range a.Facts(ctx, path, ends[len(ends)/2]) {
			if err != nil {
				t.Fatal(err)
			}
			if f.Start < ends[len(ends)/2] {
				t.Errorf("%s lies before", f.Start)
			}
			if n++; n == 5 {
				break // must not leave anything running
			}
		}
	}
}

// The abandoned branch ends in a partial segment: the records stop where its WAL does.
func TestFactsOfPartial(t *testing.T) {
	c := wals(t, 1)
	a := c.archive(t, storagetest.Memory())
	c.push(t, a, c.names...)
	path, from := c.whole(t, a, 1)
	if last := path[len(path)-1]; !last.Partial {
		t.Fatalf("%+v", last)
	}
	var stop *wal.Stop
	var end wal.LSN
	for f, err := range a.Facts(context.Background(), path, from) {
		if err != nil {
			t.Fatal(err)
		}
		if s, ok := f.What.(*wal.Stop); ok {
			stop, end = s, f.Start
		}
	}
	o, _ := repo.ParseWALKey(keys(t, a.repo, repo.SegmentPrefix(strings.TrimSuffix(c.partial, ".partial")))[0])
	if stop == nil || end != o.End {
		t.Errorf("%+v at %s, want %s", stop, end, o.End)
	}
}

// Objects without an index are read instead.
func TestIndexesAreRebuilt(t *testing.T) {
	ctx := context.Background()
	c := wals(t, 1)
	a := c.archive(t, storagetest.Memory())
	c.push(t, a, c.segments...)
	c.push(t, a, c.history)
	bare := c.archive(t, storagetest.Memory())
	c.push(t, bare, c.history)
	k, err := bare.borrow()
	if err != nil {
		t.Fatal(err)
	}
	defer bare.giveBack(k)
	for _, key := range keys(t, a.repo, "wal/") {
		o, _ := repo.ParseWALKey(key)
		if o.Kind != wal.Segment {
			continue
		}
		m, _, err := a.ReadIndex(ctx, key)
		if err != nil {
			t.Fatal(err)
		}
		m.IndexError = "left out"
		src := &source{data: c.read(t, o.Name)}
		if err := bare.repo.Create(ctx, key, newObjectReader(k, src, *m, nil)); err != nil {
			t.Fatal(err)
		}
	}
	path, from := c.whole(t, a, 2)
	collect := func(a *Archive) (out []wal.LSN) {
		for f, err := range a.Facts(ctx, path, from) {
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, f.Start, f.End)
		}
		return out
	}
	if want, got := collect(a), collect(bare); len(want) < c.commits || !slices.Equal(want, got) {
		t.Errorf("%d facts with indexes, %d without", len(want)/2, len(got)/2)
	}
	r, err := bare.Verify(ctx, VerifyOptions{})
	if err != nil || !r.OK() || len(r.Unindexed) != len(c.segments) {
		t.Errorf("%+v %v", r, err)
	}
	// One that is gone ends it with an error, not early.
	if err := bare.repo.Delete(ctx, keys(t, bare.repo, "wal/")[5]); err != nil {
		t.Fatal(err)
	}
	n := 0
	var last error
	for _, err := range bare.Indexes(ctx, path) {
		last = err
		n++
	}
	if !errors.Is(last, ErrNotArchived) || n < 2 {
		t.Errorf("after %d pieces: %v", n, last)
	}
}

func TestFactsEndWithTheContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	c := wals(t, 1)
	a := c.archive(t, storagetest.Memory())
	c.push(t, a, c.names...)
	path, _ := c.whole(t, a, 2)
	n := 0
	var last error
	for _, err := range a.Indexes(ctx, path) {
		last = err
		if n++; n == 2 {
			cancel()
		}
	}
	if !errors.Is(last, context.Canceled) {
		t.Errorf("after %d pieces: %v", n, last)
	}
}
