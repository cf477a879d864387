package archive

import (
	"context"
	"encoding/binary"
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"pitr/internal/repo"
	"pitr/internal/wal"
	"pitr/storage/storagetest"
)

// Each synthetic segment holds so many commits, one a millisecond.
const syntheticCommits = 40

// synthetic archives n segments that have nothing but an index, from number 1 on, and counts reads.
func synthetic(t testing.TB, n int) (*Archive, *counting) {
	t.Helper()
	const segSize, system = 16 << 20, 7
	ctx := context.Background()
	b := &counting{Bucket: storagetest.Memory()}
	r, err := repo.Ensure(ctx, b, repo.Facts{SystemID: system, Major: 15, SegmentSize: segSize, BlockSize: 8192}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	a := New(r, Options{Workers: 4})
	t.Cleanup(a.Close)
	k, err := a.borrow()
	if err != nil {
		t.Fatal(err)
	}
	defer a.giveBack(k)
	for no := uint64(1); no <= uint64(n); no++ {
		start := wal.SegmentStart(no, segSize)
		ix := &wal.Index{SystemID: system, Timeline: 1, Start: start, SegSize: segSize, Major: 15, Complete: true,
			First: start + 40, ValidEnd: start + segSize, Stop: wal.Stop{LSN: start + segSize}}
		for i := range syntheticCommits {
			at := start + 40 + wal.LSN(i)*400_000
			ix.Transactions = append(ix.Transactions, wal.Txn{Start: at, End: at + 40, Time: wal.Timestamp(no*syntheticCommits+uint64(i)) * 1000, XID: uint32(no*syntheticCommits) + uint32(i), DB: 5})
		}
		last := ix.Transactions[syntheticCommits-1]
		ix.Last, ix.Commits = last.Start, syntheticCommits
		ix.MinTime, ix.MaxTime, ix.MinXID, ix.MaxXID = ix.Transactions[0].Time, last.Time, ix.Transactions[0].XID, last.XID
		content := binary.LittleEndian.AppendUint64(nil, no)
		name, d := wal.SegmentName(1, no, segSize), repo.DigestOf(content)
		m := Meta{Name: name, Size: int64(len(content)), Digest: d.String(), SystemID: system, Timeline: 1, Start: start, Major: 15}
		if err := r.Create(ctx, repo.SegmentKey(name, d), newObjectReader(k, &source{data: content}, m, ix.Encode())); err != nil {
			t.Fatal(err)
		}
	}
	return a, b
}

// findTime resolves a time the way a plan does: it finds the first commit behind it, then counts what is replayed up to there.
func findTime(t testing.TB, a *Archive, path []Step, want wal.Timestamp) (stop wal.LSN, replayed int) {
	t.Helper()
	from := wal.SegmentStart(path[0].First, a.segSize())
	for f, err := range a.Skim(context.Background(), path, from, func(ix *wal.Index) bool { return ix.MaxTime <= want }) {
		if err != nil {
			t.Fatal(err)
		}
		if txn, ok := f.What.(*wal.Txn); ok && txn.Time > want {
			stop = f.Start
			break
		}
	}
	before := func(ix *wal.Index) bool { return ix.Start+wal.LSN(ix.SegSize) <= stop }
	for f, err := range a.Skim(context.Background(), path, from, before) {
		if err != nil {
			t.Fatal(err)
		}
		if f.Start >= stop {
			break
		}
		switch x := f.What.(type) {
		case *wal.Txn:
			replayed++
		case *Skimmed:
			replayed += x.Commits + x.Aborts
		}
	}
	return stop, replayed
}

// Of many segments a plan reads those that matter.
func TestRollUpsSpareReads(t *testing.T) {
	const n = 3000
	a, b := synthetic(t, n)
	if done, err := a.RollUp(context.Background(), false); err != nil || done.Written != 2+(n-2048)/32 {
		t.Fatalf("%+v, %v", done, err)
	}
	path := []Step{{Timeline: 1, First: 1, Last: n}}
	for _, at := range []int{1, 700, 1024, 2000, 2990} {
		b.reads.Store(0)
		stop, replayed := findTime(t, a, path, wal.Timestamp(at*syntheticCommits+7)*1000)
		if want := wal.SegmentStart(uint64(at), a.segSize()) + 40 + 8*400_000; stop != want || replayed != (at-1)*syntheticCommits+8 {
			t.Errorf("time in segment %d: %s, %d replayed, want %s, %d", at, stop, replayed, want, (at-1)*syntheticCommits+8)
		}
		// Twice the first one, the one it lies in, and what stands in the line behind it; the newest are in no roll-up.
		if reads := b.reads.Load(); reads > 2*(1+1+6) && at < n-64 {
			t.Errorf("time in segment %d: %d reads", at, reads)
		}
	}
	// What is new since is all that is read.
	b.reads.Store(0)
	if done, err := a.RollUp(context.Background(), false); err != nil || done != (RolledUp{}) || b.reads.Load() > 0 {
		t.Errorf("again: %+v, %v, %d reads", done, err, b.reads.Load())
	}
}

// BenchmarkPlan100k resolves a time among 100,000 segments.
func BenchmarkPlan100k(b *testing.B) {
	const n = 100_000
	a, c := synthetic(b, n)
	began := time.Now()
	if _, err := a.RollUp(context.Background(), false); err != nil {
		b.Fatal(err)
	}
	took := time.Since(began)
	var size int64
	objects := 0
	for o, err := range a.repo.List(context.Background(), repo.IndexPrefix, "") {
		if err != nil {
			b.Fatal(err)
		}
		size += o.Size
		objects++
	}
	path := []Step{{Timeline: 1, First: 1, Last: n}}
	c.reads.Store(0)
	runs := 0
	for b.Loop() {
		if _, replayed := findTime(b, a, path, wal.Timestamp(70_000*syntheticCommits)*1000); replayed != (70_000-1)*syntheticCommits+1 {
			b.Fatal(replayed)
		}
		runs++
	}
	b.ReportMetric(took.Seconds(), "roll-up-s")
	b.ReportMetric(float64(c.reads.Load())/float64(runs), "segments-read/op")
	b.ReportMetric(float64(objects), "roll-ups")
	b.ReportMetric(float64(size)/(1<<20), "roll-up-MiB")
	b.ReportMetric(float64(peak(func() { findTime(b, a, path, 70_000*syntheticCommits*1000) }))/(1<<20), "peak-heap-MiB")
}

// peak is by how much the heap grows while f runs, with the collector close behind.
func peak(f func()) uint64 {
	defer debug.SetGCPercent(debug.SetGCPercent(5))
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	before, most := m.HeapAlloc, m.HeapAlloc
	done, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		for {
			select {
			case <-done:
				return
			case <-time.After(10 * time.Millisecond):
				runtime.ReadMemStats(&m)
				most = max(most, m.HeapAlloc)
			}
		}
	}()
	f()
	close(done)
	<-watched
	return most - before
}
