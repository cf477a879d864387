package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"pitr/internal/repo"
	"pitr/internal/wal"
	"pitr/storage"
	"pitr/storage/storagetest"
)

// rollUp rolls up with stretches of another length than the usual one.
func rollUpWith(t testing.TB, a *Archive, s stretches, verify bool) RolledUp {
	t.Helper()
	w := roller{archive: a, stretches: s, verify: verify}
	if err := w.run(context.Background()); err != nil {
		t.Fatal(err)
	}
	return w.done
}

// place is a segment.
type place struct {
	tli wal.Timeline
	no  uint64
}

// A told is a sequence of facts as a test compares it.
type told struct {
	facts   []Fact
	skimmed map[place]*Skimmed
	err     string
}

func tell(facts func(func(Fact, error) bool)) told {
	x := told{skimmed: make(map[place]*Skimmed)}
	for f, err := range facts {
		if err != nil {
			x.err = err.Error()
			break
		}
		if s, ok := f.What.(*Skimmed); ok {
			x.skimmed[place{f.Timeline, s.Step.Last}] = s
			continue
		}
		x.facts = append(x.facts, f)
	}
	return x
}

// skim leaves out of what Facts told the transactions of the segments, and counts them.
func (x told) skim(segments map[place]*Skimmed, segSize int64) told {
	out := told{skimmed: make(map[place]*Skimmed), err: x.err}
	for _, f := range x.facts {
		txn, ok := f.What.(*wal.Txn)
		at := place{f.Timeline, wal.SegmentOf(f.End-1, segSize)}
		if was, in := segments[at]; ok && in {
			s := out.skimmed[at]
			if s == nil {
				s = &Skimmed{MinTime: txn.Time, MaxTime: txn.Time, Step: was.Step}
				out.skimmed[at] = s
			}
			s.MinTime, s.MaxTime = min(s.MinTime, txn.Time), max(s.MaxTime, txn.Time)
			switch txn.Kind {
			case wal.Commit:
				s.Commits++
				continue
			case wal.Abort:
				s.Aborts++
				continue
			}
		}
		out.facts = append(out.facts, f)
	}
	return out
}

// wantSame fails unless skimming tells the same as reading everything, whatever is enough.
func wantSame(t *testing.T, a *Archive, path []Step, from wal.LSN) (skimmed int) {
	t.Helper()
	ctx := context.Background()
	all := tell(a.Facts(ctx, path, from))
	l, err := a.Listing(ctx)
	if err != nil {
		t.Fatal(err)
	}
	seed := uint64(1)
	for name, enough := range map[string]func(*wal.Index) bool{
		"always": func(*wal.Index) bool { return true },
		"never":  func(*wal.Index) bool { return false },
		"second": func(ix *wal.Index) bool { return wal.SegmentOf(ix.Start, ix.SegSize)%2 == 0 },
		"third":  func(ix *wal.Index) bool { return wal.SegmentOf(ix.Start, ix.SegSize)%3 != 0 },
		"random": func(*wal.Index) bool { seed = seed*6364136223846793005 + 1442695040888963407; return seed>>63 == 0 },
	} {
		got := tell(a.Skim(ctx, path, from, enough))
		want := all.skim(got.skimmed, a.segSize())
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s from %s: %d facts, %d segments skimmed, error %q; want %d, %d, %q", name, from,
				len(got.facts), len(got.skimmed), got.err, len(want.facts), len(want.skimmed), want.err)
			for p, s := range got.skimmed {
				if w := want.skimmed[p]; !reflect.DeepEqual(s, w) {
					t.Errorf("segment %X of timeline %d: %+v, want %+v", p.no, p.tli, s, w)
				}
			}
			for i := range min(len(got.facts), len(want.facts)) {
				if !reflect.DeepEqual(got.facts[i], want.facts[i]) {
					t.Errorf("fact %d at %s (%T), want %s (%T)", i, got.facts[i].Start, got.facts[i].What, want.facts[i].Start, want.facts[i].What)
					break
				}
			}
		}
		if name != "random" && !reflect.DeepEqual(tell(l.Skim(ctx, path, from, enough)), got) {
			t.Errorf("%s from %s: another answer from the listing", name, from)
		}
		if name == "never" && len(got.skimmed) > 0 {
			t.Errorf("skimmed without leave: %v", got.skimmed)
		}
		skimmed += len(got.skimmed)
		// What was left out can be had from the steps.
		for at, s := range got.skimmed {
			commits, aborts := 0, 0
			for f, err := range a.Facts(ctx, []Step{s.Step}, from) {
				if err != nil {
					t.Fatal(err)
				}
				if txn, ok := f.What.(*wal.Txn); ok && wal.SegmentOf(f.End-1, a.segSize()) == at.no {
					switch txn.Kind {
					case wal.Commit:
						commits++
					case wal.Abort:
						aborts++
					}
				}
			}
			if commits != s.Commits || aborts != s.Aborts {
				t.Errorf("step %+v tells %d commits and %d aborts, want %+v", s.Step, commits, aborts, *s)
			}
		}
	}
	return skimmed
}

func TestRollUpsChangeNothing(t *testing.T) {
	for what, c := range map[string]*corpus{"small": wals(t, 1), "usual": wals(t, 16), "busy": busy(t)} {
		for where, open := range buckets(t) {
			if what == "busy" && where != "file" {
				continue
			}
			b := &counting{Bucket: open()}
			a := c.archive(t, b)
			c.push(t, a, c.names...)
			path, from := c.whole(t, a, 2)
			for _, s := range []stretches{{1, 4}, {2, 8}, {8, 16}} {
				if err := a.repo.Delete(context.Background(), keys(t, a.repo, repo.IndexPrefix)...); err != nil {
					t.Fatal(err)
				}
				done := rollUpWith(t, a, s, false)
				all := keys(t, a.repo, repo.IndexPrefix)
				if what != "usual" && done.Written == 0 || len(all) < done.Written-done.Removed {
					t.Errorf("%s, %s, %v: %+v, there are %q", what, where, s, done, all)
				}
				if again := rollUpWith(t, a, s, true); again != (RolledUp{}) {
					t.Errorf("%s, %s, %v: the second time %+v", what, where, s, again)
				}
				skimmed := wantSame(t, a, path, from)
				b.reads.Store(0)
				tell(a.Skim(context.Background(), path, from, func(*wal.Index) bool { return true }))
				reads := b.reads.Load()
				// Whole are the first, the last ones that no stretch ends behind, and the first of timeline 2.
				if most := int64(2*s.short + 12); what == "busy" && (skimmed < len(c.segments) || reads > most) {
					t.Errorf("%v: %d times a segment of %d was skimmed, %d reads, the most is %d", s, skimmed, len(c.segments), reads, most)
				}
				// Also from the middle of anything on, where records that began before do not count.
				for _, f := range []wal.LSN{1, wal.LSN(a.segSize()), wal.LSN(a.segSize())*5/2 + 100} {
					start := from + wal.LSN(a.segSize()) + f
					part, ok := tailOf(path, wal.SegmentOf(start, a.segSize()))
					if what != "usual" && ok {
						wantSame(t, a, part, start)
					}
				}
			}
			if what == "busy" {
				commitsAcross(t, a, b, path)
			}
			// The abandoned branch, which ends in a partial segment.
			path, from = c.whole(t, a, 1)
			wantSame(t, a, path, from)
		}
	}
}

// commitsAcross looks at commits that cross into segments whose indexes are rolled up.
func commitsAcross(t *testing.T, a *Archive, b *counting, path []Step) {
	t.Helper()
	ctx := context.Background()
	across, absorbed := 0, 0
	for p, err := range a.Indexes(ctx, path) {
		if err != nil {
			t.Fatal(err)
		}
		if len(p.Straddle.Transactions) == 0 {
			continue
		}
		across++
		no := wal.SegmentOf(p.Index.Start, a.segSize())
		for _, n := range mustNames(t, keys(t, a.repo, repo.RollUpDir(p.Index.Timeline))) {
			if n.first > no || n.last < no {
				continue
			}
			r, err := a.readRollUp(ctx, n)
			if err != nil {
				t.Fatal(err)
			}
			// It counts only behind the content in which the commit began.
			before, own := r.digestBefore(no), r.entries[no-r.first].digest
			for what, c := range map[string]struct {
				own, before repo.Digest
				counts      bool
			}{"both": {own, before, true}, "another one before": {own, own, false}, "none before": {own, repo.Digest{}, false}, "another": {before, before, false}} {
				ix, err := r.index(no, c.own, c.before, a.repo.SystemID(), a.segSize())
				if err != nil || (ix != nil) != c.counts {
					t.Errorf("segment %X, %s: %v, %v", no, what, ix != nil, err)
				}
				if ix != nil && ix.Commits+ix.Aborts != p.Index.Commits+p.Index.Aborts+len(p.Straddle.Transactions) {
					t.Errorf("segment %X: %d commits, %d aborts", no, ix.Commits, ix.Aborts)
				}
			}
			absorbed++
		}
		// From within the record on: it does not count.
		if part, ok := tailOf(path, no-1); ok && across < 8 {
			wantSame(t, a, part, p.Straddle.LSN+8)
		}
	}
	if across < 10 || absorbed < 8 {
		t.Errorf("%d commits cross into a segment, %d of them are in roll-ups", across, absorbed)
	}
	// What crosses into a segment that is read whole takes one more index, no contents.
	n := int64(0)
	for _, s := range path {
		n += int64(s.Last - s.First + 1)
	}
	b.reads.Store(0)
	tell(a.Skim(ctx, path, 0, func(ix *wal.Index) bool { return wal.SegmentOf(ix.Start, ix.SegSize)%2 == 0 }))
	if reads := b.reads.Load(); reads > n*3/2 {
		t.Errorf("%d reads, with every second one of %d segments skimmed", reads, n)
	}
}

func mustNames(t *testing.T, keys []string) (out []rollUpName) {
	t.Helper()
	for _, key := range keys {
		out = append(out, mustName(t, key))
	}
	return out
}

// tailOf cuts a path off before a segment.
func tailOf(path []Step, first uint64) (out []Step, ok bool) {
	for _, s := range path {
		if s.Last >= first {
			s.First = max(s.First, first)
			out = append(out, s)
		}
	}
	return out, len(out) > 0
}

// counting counts the reads of segments' objects.
type counting struct {
	storage.Bucket
	reads atomic.Int64
}

func (c *counting) GetRange(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	c.reads.Add(1)
	return c.Bucket.GetRange(ctx, key, off, n)
}

// New segments are rolled up as they come, and long stretches take the place of short ones.
func TestRollUpsGrow(t *testing.T) {
	c := busy(t)
	a := c.archive(t, storagetest.Memory())
	c.push(t, a, c.history)
	s := stretches{2, 8}
	for _, name := range c.segments {
		c.push(t, a, name)
		rollUpWith(t, a, s, false)
		seen := make(map[uint64]bool)
		for _, key := range keys(t, a.repo, repo.RollUpDir(1)) {
			n, ok := parseRollUpName(key)
			if !ok {
				t.Fatal(key)
			}
			for no := n.first; no <= n.last; no++ {
				if seen[no] {
					t.Fatalf("with %s: segment %X is in several of %q", name, no, keys(t, a.repo, repo.RollUpDir(1)))
				}
				seen[no] = true
			}
		}
	}
	grown := keys(t, a.repo, repo.IndexPrefix)
	// At once it gives the same objects.
	b := c.archive(t, storagetest.Memory())
	c.push(t, b, c.history)
	c.push(t, b, c.segments...)
	rollUpWith(t, b, s, false)
	if at := keys(t, b.repo, repo.IndexPrefix); !slices.Equal(at, grown) {
		t.Errorf("%q\nwant %q", grown, at)
	}
	if n := len(grown); n < 3 {
		t.Errorf("%q", grown)
	}
	path, from := c.whole(t, a, 2)
	wantSame(t, a, path, from)
}

// Segments that come late, and those that are replaced by another content, are in no roll-up made before: they are read.
func TestRollUpsCountForTheirContentOnly(t *testing.T) {
	ctx := context.Background()
	c := busy(t)
	s := stretches{2, 8}
	first := ofTimeline(c.segments, "00000001")
	for i, name := range first[1 : len(first)-1] {
		// Those that ended early can't be changed where changed does it.
		if half := c.read(t, name)[1<<19:]; i%9 > 0 || bytes.Count(half[:200], []byte{0}) == 200 {
			continue
		}
		a := c.archive(t, storagetest.Memory())
		c.push(t, a, c.names...)
		rollUpWith(t, a, s, false)
		path, from := c.whole(t, a, 2)
		key := keys(t, a.repo, repo.SegmentPrefix(name)+"-")[0]
		if err := a.repo.Delete(ctx, key); err != nil {
			t.Fatal(err)
		}
		// A roll-up is no proof that the segment exists.
		if x := tell(a.Skim(ctx, path, from, func(*wal.Index) bool { return true })); !strings.Contains(x.err, ErrNotArchived.Error()) {
			t.Errorf("without %s: %q", name, x.err)
		}
		if _, err := a.Push(ctx, c.changed(t, name, 1), c.control.SystemID); err != nil {
			t.Fatal(err)
		}
		wantSame(t, a, path, from)
		// They follow what is there.
		if done := rollUpWith(t, a, s, true); done.Written == 0 || done.Removed != done.Written {
			t.Errorf("with another %s: %+v", name, done)
		}
		wantSame(t, a, path, from)
		// Late.
		a = c.archive(t, storagetest.Memory())
		c.push(t, a, slices.DeleteFunc(slices.Clone(c.names), func(n string) bool { return n == name })...)
		rollUpWith(t, a, s, false)
		c.push(t, a, name)
		wantSame(t, a, path, from)
		rollUpWith(t, a, s, true)
		if wantSame(t, a, path, from) < 5 {
			t.Errorf("with %s come late, few segments are skimmed", name)
		}
	}
}

func TestDamagedRollUpsAreIgnoredAndMadeAnew(t *testing.T) {
	ctx := context.Background()
	c := wals(t, 1)
	var log lines
	b := storagetest.Memory()
	a := New(c.repo(t, b), Options{Workers: 2, Log: slog.New(slog.NewTextHandler(&log, nil))})
	defer a.Close()
	c.push(t, a, c.names...)
	s := stretches{2, 8}
	rollUpWith(t, a, s, false)
	path, from := c.whole(t, a, 2)
	want := keys(t, a.repo, repo.IndexPrefix)
	for _, key := range want {
		data, err := a.repo.ReadAll(ctx, key, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		for what, bad := range map[string][]byte{
			"cut": data[:len(data)/2], "empty": nil, "another": []byte("something else"),
			"flipped": append(append(bytes.Clone(data[:len(data)/2]), data[len(data)/2]^4), data[len(data)/2+1:]...),
		} {
			if err := a.repo.Delete(ctx, key); err != nil {
				t.Fatal(err)
			}
			if err := a.repo.Create(ctx, key, bytes.NewReader(bad)); err != nil {
				t.Fatal(err)
			}
			log.reset()
			if _, err := a.readRollUp(ctx, mustName(t, key)); !errors.Is(err, repo.ErrDamaged) {
				t.Errorf("%s: %v", what, err)
			}
			if what == "cut" {
				wantSame(t, a, path, from)
				if !strings.Contains(log.String(), key) {
					t.Errorf("%s: logged %q", what, log.String())
				}
			}
			if done := rollUpWith(t, a, s, true); done != (RolledUp{Written: 1, Removed: 1}) {
				t.Errorf("%s: %+v", what, done)
			}
			if got := keys(t, a.repo, repo.IndexPrefix); !slices.Equal(got, want) {
				t.Fatalf("%s: %q, want %q", what, got, want)
			}
		}
	}
	if done := rollUpWith(t, a, s, true); done != (RolledUp{}) {
		t.Errorf("%+v", done)
	}
}

func mustName(t *testing.T, key string) rollUpName {
	t.Helper()
	n, ok := parseRollUpName(key)
	if !ok {
		t.Fatal(key)
	}
	return n
}

// lines takes a log from several goroutines.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *lines) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf.Reset()
}

func FuzzDecodeRollUp(f *testing.F) {
	r := &rollUp{timeline: 2, first: 7, before: repo.DigestOf([]byte("x")), entries: []rollUpItem{
		{digest: repo.DigestOf([]byte("y")), index: []byte("an index")}, {}, {digest: repo.DigestOf([]byte("z"))},
	}}
	f.Add(r.encode())
	f.Add((&rollUp{timeline: 1, entries: make([]rollUpItem, 1)}).encode())
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := decodeRollUp(data)
		if err != nil {
			return
		}
		again, err := decodeRollUp(r.encode())
		if err != nil || fmt.Sprint(again) != fmt.Sprint(r) {
			t.Fatalf("%+v\nagain: %+v, %v", r, again, err)
		}
		for i := range r.entries {
			// Must end in something.
			no := r.first + uint64(i)
			_, _ = r.index(no, r.entries[i].digest, r.digestBefore(no), 1, 1<<20)
		}
	})
}
