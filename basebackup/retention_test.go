package basebackup

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"pitr/archive"
	"pitr/internal/repo"
	"pitr/internal/wal"
	"pitr/storage"
	"pitr/storage/storagetest"
)

// dated is a bucket whose objects are as old as the test says.
type dated struct {
	storage.Bucket
	at map[string]time.Time // by the end of the key
}

func (d *dated) List(ctx context.Context, prefix, after string) iter.Seq2[storage.Object, error] {
	return func(yield func(storage.Object, error) bool) {
		for o, err := range d.Bucket.List(ctx, prefix, after) {
			if _, key, ok := strings.Cut(o.Key, "/"); ok {
				o.Modified = d.at[key]
			}
			if !yield(o, err) {
				return
			}
		}
	}
}

// branch is a timeline of a life, which writes WAL evenly.
type branch struct {
	wal.History
	begin      wal.LSN
	from, till float64 // hours of the life
	stored     uint64  // number of the first segment that is not stored yet
	lost       bool    // the history is not archived
}

const lifeRate = 250_000 // bytes of WAL an hour; segments have 1 MiB

func (b *branch) pos(hour float64) wal.LSN { return b.begin + wal.LSN((hour-b.from)*lifeRate) }

// life is that of a cluster: it is promoted, restored to moments of the window, split, and backed up; WAL is lost, and
// clocks are wrong.
type life struct {
	t        *testing.T
	rnd      *rand.Rand
	window   float64 // hours
	bucket   *dated
	repo     *repo.Repo
	archive  *archive.Archive
	branches []*branch
	backups  []*Header // that exist
	ever     []*Header
	honest   map[string]float64 // when backups truly finished
	all      *archive.Archive   // of another bucket, of which nothing is ever deleted
	allRepo  *repo.Repo
}

var lifeBegin = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func lifeTime(hour float64) time.Time {
	return lifeBegin.Add(time.Duration(hour * float64(time.Hour)))
}

func newLife(t *testing.T, seed uint64) *life {
	l := &life{t: t, rnd: rand.New(rand.NewPCG(seed, 7)), window: 240, honest: map[string]float64{}}
	open := func(b storage.Bucket) (*repo.Repo, *archive.Archive) {
		r, err := repo.Ensure(context.Background(), b, repo.Facts{SystemID: testSystem, Major: 15, SegmentSize: 1 << 20, BlockSize: 8192}, lifeBegin)
		if err != nil {
			t.Fatal(err)
		}
		a := archive.New(r, archive.Options{})
		t.Cleanup(a.Close)
		return r, a
	}
	l.bucket = &dated{Bucket: storagetest.Memory(), at: map[string]time.Time{}}
	l.repo, l.archive = open(l.bucket)
	l.allRepo, l.all = open(storagetest.Memory())
	l.branches = []*branch{{History: wal.History{Timeline: 1}, begin: 1 << 20, till: 1e9, stored: 1}}
	return l
}

func (l *life) put(key string, data []byte, hour float64) {
	l.bucket.at[key] = lifeTime(hour)
	for _, r := range []*repo.Repo{l.repo, l.allRepo} {
		if err := r.Create(context.Background(), key, bytes.NewReader(data)); err != nil {
			l.t.Fatal(err)
		}
	}
}

// hour lets an hour pass.
func (l *life) hour(h float64) {
	for _, b := range l.branches {
		end := min(h, b.till)
		for wal.SegmentStart(b.stored+1, 1<<20) <= b.pos(end) || end == b.till && wal.SegmentStart(b.stored, 1<<20) < b.pos(end) {
			name := wal.SegmentName(b.Timeline, b.stored, 1<<20)
			b.stored++
			if l.rnd.IntN(400) == 0 {
				continue // lost
			}
			l.put(repo.SegmentKey(name, repo.DigestOf([]byte(name))), []byte("x"), h)
		}
		if h < b.till && l.rnd.IntN(40) == 0 {
			l.backup(b, h)
		}
	}
	if l.rnd.IntN(150) == 0 && len(l.branches) < 7 {
		l.fork(h)
	}
}

func (l *life) backup(b *branch, h float64) {
	took := l.rnd.Float64() * 6
	if h-took < b.from {
		return
	}
	id := NewID(lifeTime(h-took), l.rnd.Uint32())
	x := &Header{ID: id, Timeline: b.Timeline, WALSegSize: 1 << 20, Started: lifeTime(h - took), Finished: lifeTime(h), StartLSN: b.pos(h - took), StopLSN: b.pos(h)}
	l.honest[id] = h
	switch l.rnd.IntN(12) {
	case 0:
		x.Finished = x.Finished.AddDate(10, 0, 0)
	case 1:
		// Without one before it whose time is right nothing shows that the clock was wrong.
		if !b.lost && slices.ContainsFunc(onLine(b.History, l.backups), func(h *Header) bool { return h.Finished.Equal(lifeTime(l.honest[h.ID])) }) {
			x.Finished = x.Finished.AddDate(-10, 0, 0)
		}
	}
	l.backups, l.ever = append(l.backups, x), append(l.ever, x)
}

// fork makes a new timeline, at the end of another one or at an earlier moment that is still in the window.
func (l *life) fork(h float64) {
	p := l.branches[l.rnd.IntN(len(l.branches))]
	at := min(h, p.till)
	if at < h-l.window {
		return
	}
	if l.rnd.IntN(2) == 0 {
		at = max(p.from, h-l.window*0.95) + l.rnd.Float64()*(at-max(p.from, h-l.window*0.95))
	}
	if !reachable(l.coverage(l.all), p.History, l.ever, p.pos(at)) {
		return
	}
	tli := wal.Timeline(len(l.branches) + 1)
	begin := p.pos(at)
	n := &branch{begin: begin, from: h, till: 1e9, stored: wal.SegmentOf(begin, 1<<20)}
	n.History = wal.History{Timeline: tli, Switches: append(slices.Clone(p.Switches), wal.Switch{Timeline: p.Timeline, At: begin, Reason: "test"})}
	if n.lost = l.rnd.IntN(8) == 0; !n.lost {
		l.put(repo.HistoryKey(tli, repo.DigestOf(n.Encode())), n.Encode(), h)
	}
	if l.rnd.IntN(3) > 0 {
		for _, b := range l.branches {
			b.till = min(b.till, h)
		}
	}
	l.branches = append(l.branches, n)
}

func (l *life) coverage(a *archive.Archive) *archive.Coverage {
	c, err := a.Coverage(context.Background())
	if err != nil {
		l.t.Fatal(err)
	}
	return c
}

// reachable tries every backup: the brute force that retention is held against.
func reachable(c *archive.Coverage, h wal.History, backups []*Header, at wal.LSN) bool {
	return slices.ContainsFunc(backups, func(b *Header) bool {
		if b.StopLSN > at || h.Owner(b.StartLSN) != b.Timeline || h.Owner(b.StopLSN-1) != b.Timeline {
			return false
		}
		_, missing := c.Path(h, b.StartLSN, at)
		return missing == nil
	})
}

func (l *life) prune(now time.Time, count int) []Verdict {
	c := l.coverage(l.archive)
	verdicts := Expire(l.backups, nil, Keep{Window: time.Duration(l.window * float64(time.Hour)), Count: count}, Lines(c), now)
	if _, _, err := l.archive.Prune(context.Background(), archive.PlanPrune(c, Needs(l.backups, verdicts))); err != nil {
		l.t.Fatal(err)
	}
	var stay []*Header
	for i, v := range verdicts {
		if v.Keep {
			stay = append(stay, l.backups[i])
		}
	}
	l.backups = stay
	return verdicts
}

// check compares what can be reached of the moments between two with what could be if nothing had ever been deleted.
func (l *life) check(from, till float64) (moments int, err error) {
	pruned, all := l.coverage(l.archive), l.coverage(l.all)
	for _, b := range l.branches {
		for m := max(from, b.from); m <= min(till, b.till); m += 3 {
			at := b.pos(m)
			if !reachable(all, b.History, l.ever, at) {
				continue
			}
			moments++
			if !reachable(pruned, b.History, l.backups, at) {
				return moments, fmt.Errorf("hour %.0f of timeline %d (%s) can't be reached any more", m, b.Timeline, at)
			}
		}
	}
	return moments, nil
}

func (l *life) story(verdicts []Verdict) string {
	var s strings.Builder
	for _, b := range l.branches {
		fmt.Fprintf(&s, "timeline %d from hour %.0f till %.0f, %s.., %+v\n", b.Timeline, b.from, b.till, b.begin, b.Switches)
	}
	reasons := map[string]string{}
	for _, v := range verdicts {
		reasons[v.ID] = fmt.Sprint(v.Keep, " ", v.Reason)
	}
	for _, h := range l.ever {
		fmt.Fprintf(&s, "%s timeline %d, hour %.0f, says %s, %s..%s: %s\n", h.ID, h.Timeline, l.honest[h.ID], h.Finished.Format(time.RFC3339), h.StartLSN, h.StopLSN, reasons[h.ID])
	}
	return s.String()
}

// TestNothingInTheWindowIsLost lives many lives and prunes in them: no moment of the window becomes unreachable.
func TestNothingInTheWindowIsLost(t *testing.T) {
	moments, deleted, segments, forks := 0, 0, 0, 0
	for seed := range uint64(120) {
		l := newLife(t, seed)
		for h := 1.0; h <= 1000; h++ {
			l.hour(h)
			if int(h)%130 != 0 {
				continue
			}
			before := len(l.backups)
			verdicts := l.prune(lifeTime(h), 1)
			deleted += before - len(l.backups)
			n, err := l.check(h-l.window, h)
			if err != nil {
				t.Fatalf("seed %d, pruned at hour %.0f: %v\n%s", seed, h, err, l.story(verdicts))
			}
			moments += n
		}
		forks += len(l.branches) - 1
		for _, tl := range l.coverage(l.archive).Timelines {
			for _, r := range tl.Pruned {
				segments += int(r.Last - r.First + 1)
			}
		}
	}
	t.Logf("%d moments, %d backups and %d segments deleted, %d forks", moments, deleted, segments, forks)
	if moments < 50_000 || deleted < 500 || segments < 5000 || forks < 200 {
		t.Error("the lives were dull")
	}
}

// TestClockFarAhead: retention runs with a clock that is ten years ahead. What can be restored stays so.
func TestClockFarAhead(t *testing.T) {
	moments := 0
	for seed := range uint64(60) {
		l := newLife(t, seed)
		for h := 1.0; h <= 700; h++ {
			l.hour(h)
		}
		c := l.coverage(l.archive)
		last := -1.0
		for _, b := range l.backups {
			b.Finished = lifeTime(l.honest[b.ID])
			last = max(last, l.honest[b.ID])
		}
		if !slices.ContainsFunc(l.backups, func(b *Header) bool { return MissingWAL(c, b) == nil }) {
			continue
		}
		verdicts := l.prune(lifeTime(700).AddDate(10, 0, 0), 1)
		n, err := l.check(last-l.window, 700)
		if err != nil {
			t.Fatalf("seed %d: %v\n%s", seed, err, l.story(verdicts))
		}
		moments += n
		c = l.coverage(l.archive)
		if !slices.ContainsFunc(l.backups, func(b *Header) bool { return MissingWAL(c, b) == nil }) {
			t.Fatalf("seed %d: no backup is left that can be restored\n%s", seed, l.story(verdicts))
		}
	}
	if moments < 5000 {
		t.Errorf("%d moments", moments)
	}
}

// TestTheLastThatRestoresStays: the newest backups lack WAL, whatever the rules say about them.
func TestTheLastThatRestoresStays(t *testing.T) {
	for name, keep := range map[string]Keep{"one": {0, 1}, "two": {0, 2}, "a window": {240 * time.Hour, 1}, "nothing": {}} {
		l := newLife(t, 1)
		b := l.branches[0]
		for h := 1.0; h < 60; h++ { // all stored
			for wal.SegmentStart(b.stored+1, 1<<20) <= b.pos(h) {
				segment := wal.SegmentName(1, b.stored, 1<<20)
				b.stored++
				if no := b.stored - 1; no != wal.SegmentOf(b.pos(42), 1<<20) && no != wal.SegmentOf(b.pos(52), 1<<20) {
					l.put(repo.SegmentKey(segment, repo.DigestOf([]byte(segment))), nil, h)
				}
			}
		}
		for i, h := range []float64{20, 30, 42, 52} {
			l.backups = append(l.backups, &Header{
				ID: NewID(lifeTime(h), uint32(i)), Timeline: 1, WALSegSize: 1 << 20, Finished: lifeTime(h + 1), StartLSN: b.pos(h), StopLSN: b.pos(h + 1),
			})
		}
		verdicts := Expire(l.backups, nil, keep, Lines(l.coverage(l.archive)), lifeTime(10000))
		if !verdicts[1].Keep || verdicts[1].Alone {
			t.Errorf("%s: the last one whose WAL is there goes: %+v", name, verdicts)
		}
	}
}
