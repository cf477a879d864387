package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	"pitr/archive"
	"pitr/basebackup"
	"pitr/internal/config"
	"pitr/internal/repo"
	"pitr/internal/wal"
	"pitr/recovery"
	"pitr/storage"
	"pitr/storage/storagetest"
)

// storeBench is a store with two timelines: 2 left 1 at segment 5, and both go on to segment 30. There are two backups on
// timeline 2, of which retention keeps the newer one, from segment 10 on. Nothing needs timeline 1.
type storeBench struct {
	*env
	repo     *repo.Repo
	archive  *archive.Archive
	now      time.Time
	old, new string // backups
}

const pruneSegment = 16 << 20

func newStoreBench(t *testing.T, b storage.Bucket) *storeBench {
	t.Helper()
	s := &storeBench{now: time.Now(), old: "20261101T000000Z-0000000a", new: "20261122T000000Z-0000000b"}
	s.env = &env{bucket: b, Config: &config.Config{}}
	s.Backup.Retention = config.Retention{Keep: 1}
	var err error
	s.repo, err = repo.Ensure(t.Context(), b, repo.Facts{SystemID: 7, Major: 15, SegmentSize: pruneSegment, BlockSize: 8192}, s.now)
	if err != nil {
		t.Fatal(err)
	}
	s.archive = archive.New(s.repo, archive.Options{})
	t.Cleanup(s.archive.Close)
	s.backup(t, s.old, 2, 6, s.now.AddDate(0, 0, -2))
	s.backup(t, s.new, 2, 10, s.now.AddDate(0, 0, -1))
	for tli, first := range map[wal.Timeline]uint64{1: 1, 2: 5} {
		for no := first; no <= 30; no++ {
			s.put(t, repo.SegmentKey(wal.SegmentName(tli, no, pruneSegment), repo.DigestOf(fmt.Append(nil, tli, no))), "x")
		}
	}
	history := fmt.Sprintf("1\t%s\tx\n", wal.SegmentStart(5, pruneSegment)+100)
	s.put(t, repo.HistoryKey(2, repo.DigestOf([]byte(history))), history)
	return s
}

func (s *storeBench) put(t *testing.T, key, content string) {
	t.Helper()
	if err := s.repo.Create(t.Context(), key, strings.NewReader(content)); err != nil {
		t.Fatal(err)
	}
}

// backup makes one that begins and ends in a segment.
func (s *storeBench) backup(t *testing.T, id string, tli wal.Timeline, segment uint64, at time.Time) {
	t.Helper()
	w, err := basebackup.NewWriter(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	start := wal.SegmentStart(segment, pruneSegment) + 40
	err = w.Commit(t.Context(), s.repo, &basebackup.Header{Format: basebackup.Format, ID: id, Type: basebackup.TypeFull, SystemID: 7, Timeline: tli,
		Started: at, Finished: at, StartLSN: start, StopLSN: start + 1000, BlockSize: 8192, WALSegSize: pruneSegment, PacksOf: []string{id}})
	if err != nil {
		t.Fatal(err)
	}
}

// running makes a sign of a backup that is being taken.
func (s *storeBench) running(t *testing.T, id string, tli wal.Timeline, segment uint64) {
	t.Helper()
	p := basebackup.Pending{ID: id, N: 1, Host: "elsewhere", Started: s.now, Renewed: s.now, Timeline: tli, StartLSN: wal.SegmentStart(segment, pruneSegment) + 40}
	if err := s.repo.PutDocument(t.Context(), repo.PendingKey(id, 1), p); err != nil {
		t.Fatal(err)
	}
}

func (s *storeBench) plan(t *testing.T) *prunePlan {
	t.Helper()
	p, err := s.planPrune(t.Context(), s.archive, s.now)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (s *storeBench) keys(t *testing.T) []string {
	t.Helper()
	var keys []string
	for o, err := range s.bucket.List(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, o.Key)
	}
	return keys
}

// While the question waits for its answer, the world goes on. What was shown is deleted, or nothing.
func TestPruneAnsweredLate(t *testing.T) {
	for what, c := range map[string]struct {
		change func(*storeBench)
		want   string // why nothing is deleted; empty: it is
	}{
		"nothing happens": {func(*storeBench) {}, ""},
		"more WAL is archived": {func(s *storeBench) {
			s.put(t, repo.SegmentKey(wal.SegmentName(2, 31, pruneSegment), repo.Digest{1}), "x")
		}, ""},
		"a backup begins":         {func(s *storeBench) { s.running(t, "20261122T100000Z-0000000c", 2, 30) }, ""},
		"one begins elsewhere":    {func(s *storeBench) { s.running(t, "20261122T100000Z-0000000c", 1, 20) }, "wal 000000010000000000000014..00000001000000000000001E would stay now"},
		"one is pinned":           {func(s *storeBench) { s.pin(t, s.old) }, "backup 20261101T000000Z-0000000a would stay now"},
		"the one that stays goes": {func(s *storeBench) { s.delete(t, s.new) }, "backup 20261101T000000Z-0000000a would stay now"},
		"the one that goes is gone": {func(s *storeBench) { s.delete(t, s.old) },
			"backup 20261101T000000Z-0000000a would stay now"},
		"a newer backup": {func(s *storeBench) { s.backup(t, "20261122T110000Z-0000000d", 2, 20, s.now.Add(-time.Minute)) },
			"backup 20261122T000000Z-0000000b would be deleted now"},
		"a backup on the other line": {func(s *storeBench) {
			s.backup(t, "20261122T110000Z-0000000d", 1, 20, s.now.AddDate(0, 0, -3))
			s.pin(t, "20261122T110000Z-0000000d")
		},
			"wal 000000010000000000000014..00000001000000000000001E would stay now"},
		"the history is in doubt": {func(s *storeBench) { s.put(t, repo.HistoryKey(2, repo.Digest{1}), "x") }, "would stay now"},
		"a manifest is damaged":   {func(s *storeBench) { s.put(t, repo.BackupKey("20261122T110000Z-0000000d"), "x") }, "would stay now"},
		"packs are left":          {func(s *storeBench) { s.put(t, repo.PackKey("20261120T110000Z-0000000e", 1), "x") }, ""},
	} {
		t.Run(what, func(t *testing.T) {
			s := newStoreBench(t, storagetest.Memory())
			shown := s.plan(t)
			if n := shown.deletions(); n < 3 { // the backup, and WAL of each timeline
				t.Fatalf("%d things go: %v", n, shown.lines())
			}
			c.change(s)
			before := s.keys(t)
			_, err := s.pruneShown(t.Context(), shown, s.now)
			if c.want == "" {
				if err != nil || slices.Equal(s.keys(t), before) {
					t.Errorf("not deleted: %v", err)
				}
				return
			}
			if !errors.Is(err, recovery.ErrRefused) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v", err)
			}
			if !slices.Equal(s.keys(t), before) {
				t.Errorf("something was deleted")
			}
		})
	}
}

func (s *storeBench) pin(t *testing.T, id string) {
	t.Helper()
	if err := basebackup.SetPin(t.Context(), s.repo, basebackup.Pin{ID: id, At: s.now}); err != nil {
		t.Fatal(err)
	}
}

func (s *storeBench) delete(t *testing.T, id string) {
	t.Helper()
	if err := basebackup.Delete(t.Context(), s.repo, id); err != nil {
		t.Fatal(err)
	}
}

// listed calls after when a listing has ended, with how many had ended before.
type listed struct {
	storage.Bucket
	n     int
	after func(n int)
}

func (l *listed) List(ctx context.Context, prefix, from string) iter.Seq2[storage.Object, error] {
	return func(yield func(storage.Object, error) bool) {
		for o, err := range l.Bucket.List(ctx, prefix, from) {
			if !yield(o, err) {
				return
			}
		}
		l.n++
		if l.after != nil {
			l.after(l.n)
		}
	}
}

// A backup that becomes complete while the plan is made is seen as running or as complete.
func TestPruneWhileABackupEnds(t *testing.T) {
	for n := 1; ; n++ {
		l := &listed{Bucket: storagetest.Memory()}
		s := newStoreBench(t, l)
		id := "20261122T110000Z-0000000d"
		s.running(t, id, 1, 20)
		l.n, l.after = 0, func(now int) {
			if now != n {
				return
			}
			l.after = nil
			s.backup(t, id, 1, 20, s.now)
			if err := s.repo.Delete(t.Context(), repo.PendingKey(id, 1)); err != nil {
				t.Error(err)
			}
		}
		p := s.plan(t)
		if l.after != nil {
			if n < 5 {
				t.Fatalf("a plan takes %d listings", n)
			}
			return
		}
		for _, w := range p.wal {
			if w.Delete && w.Timeline == 1 && w.Last >= 20 {
				t.Errorf("it ends after listing %d: %s..%s would be deleted", n, w.From, w.To)
			}
		}
	}
}

// Where nobody can answer, nobody has agreed.
func TestConfirmWithoutATerminal(t *testing.T) {
	a := &app{out: new(bytes.Buffer), err: new(bytes.Buffer), in: strings.NewReader("y\n")}
	if err := a.confirm(false, "delete these 3?"); !errors.Is(err, recovery.ErrRefused) {
		t.Errorf("%v", err)
	}
	if err := a.confirm(true, "delete these 3?"); err != nil {
		t.Errorf("%v", err)
	}
}
