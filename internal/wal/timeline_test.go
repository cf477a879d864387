package wal_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"pitr/internal/wal"
)

// TestPromotion crosses a crash and a change of timeline in the middle of a
// segment.
func TestPromotion(t *testing.T) {
	eachServer(t, func(t *testing.T, bin string, segMB int) {
		s := newServer(t, bin, segMB, "")
		s.start()
		s.sql(`create table x (i int)`, `insert into x select g from generate_series(1, 30000) g`)
		s.stop("immediate")
		s.start()
		s.sql(`insert into x values (1)`)
		s.stop("fast")
		end := s.control().CheckpointCopy.Redo
		if err := os.WriteFile(filepath.Join(s.data, "standby.signal"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if cred := serverCredential(t); cred != nil {
			if err := os.Chown(filepath.Join(s.data, "standby.signal"), int(cred.Uid), int(cred.Gid)); err != nil {
				t.Fatal(err)
			}
		}
		s.start()
		s.ctl("promote")
		s.sql(`insert into x select g from generate_series(1, 30000) g`, `select pg_switch_wal()`, `insert into x values (2)`, `checkpoint`)
		s.stop("fast")

		hist, err := wal.ParseHistory(2, s.read("pg_wal/00000002.history"))
		if err != nil || len(hist.Switches) != 1 || hist.Switches[0].At <= end || hist.Switches[0].Timeline != 1 {
			t.Fatalf("history: %+v, %v", hist, err)
		}
		if got := string(hist.Encode()); got != string(s.read("pg_wal/00000002.history")) {
			t.Errorf("history is encoded as %q", got)
		}
		fork := hist.Switches[0].At
		segs := s.indexed(2, hist)
		first := segs[0]
		if hdr, err := wal.ParseSegmentHeader(first.data); err != nil || hdr.Timeline != 1 || wal.SegmentOf(fork, first.ix.SegSize) != wal.SegmentOf(first.ix.Start, first.ix.SegSize) {
			t.Fatalf("first segment of the new timeline: %+v, %v; the fork is at %s", hdr, err, fork)
		}
		if _, err := wal.CheckSegment(first.data, wal.Expect{Name: first.name, SegSize: first.ix.SegSize}); err == nil {
			t.Error("pages of timeline 1 were accepted on a timeline without ancestors")
		}
		// The line of segments along the history: timeline 1 before the fork, then 2.
		var line []pgSegment
		for _, name := range s.segments() {
			tli, no, err := wal.ParseSegmentName(name, first.ix.SegSize)
			if err != nil {
				t.Fatal(err)
			}
			if start := wal.SegmentStart(no, first.ix.SegSize); tli == 1 && start < first.ix.Start {
				data := s.read("pg_wal/" + name)
				ix, err := wal.BuildIndex(data, tli)
				if err != nil || !ix.Complete {
					t.Fatalf("%s: %+v, %v", name, ix.Stop, err)
				}
				line = append(line, pgSegment{name, data, ix})
			}
		}
		line = append(line, segs...)
		facts, _ := all(t, line)
		if n := len(facts.EndsOfRecovery); n != 1 {
			t.Fatalf("%d ends of recovery", n)
		}
		e := facts.EndsOfRecovery[0]
		if e.Timeline != 2 || e.PrevTimeline != 1 || e.Start < fork || time.Since(e.Time.Time()).Abs() > time.Hour || s.major >= 17 && e.Level != wal.LevelLogical {
			t.Errorf("end of recovery %+v, the fork is at %s", e, fork)
		}
		last := facts.Checkpoints[len(facts.Checkpoints)-1]
		if last.Checkpoint.Timeline != 2 || last.Start != s.control().Checkpoint {
			t.Errorf("last checkpoint %+v", last)
		}
		records := 0
		stop := readAll(t, line, func(*wal.Record) { records++ })
		if records < 60000 || stop.Kind == wal.StopDamaged {
			t.Errorf("%d records along the history, stop %+v", records, stop)
		}
		// The old timeline's copy of the segment ends at the fork.
		old := s.read("pg_wal/" + wal.SegmentName(1, wal.SegmentOf(fork, first.ix.SegSize), first.ix.SegSize) + s.partialSuffix(fork, first.ix.SegSize))
		ix, err := wal.BuildIndex(old, 1)
		if err != nil || ix.Complete || ix.ValidEnd != fork {
			t.Errorf("the end of timeline 1: valid to %s, the fork is at %s, %v", ix.ValidEnd, fork, err)
		}
	})
}

// partialSuffix returns ".partial" if the old timeline's last segment was renamed.
func (s *server) partialSuffix(fork wal.LSN, segSize int64) string {
	name := wal.SegmentName(1, wal.SegmentOf(fork, segSize), segSize)
	if _, err := os.Stat(filepath.Join(s.data, "pg_wal", name)); err == nil {
		return ""
	}
	return ".partial"
}
