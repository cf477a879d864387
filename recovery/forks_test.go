package recovery_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pitr/archive"
	"pitr/internal/hint"
	"pitr/internal/postgres"
	"pitr/internal/postgres/pgtest"
	"pitr/internal/repo"
	"pitr/internal/wal"
	"pitr/recovery"
)

// A restore of a restore, the abandoned branch, and the new one.
func TestForks(t *testing.T) {
	for _, mb := range []int{1, 64} {
		t.Run(fmt.Sprintf("%d MB segments", mb), func(t *testing.T) {
			t.Parallel()
			h := newHouse(t, pgtest.Options{SegSizeMB: mb})
			h.Exec("CREATE TABLE t (v text)", "INSERT INTO t VALUES ('1')")
			h.backup()
			h.Exec("INSERT INTO t VALUES ('2')", "SELECT pg_create_restore_point('fork')", "INSERT INTO t VALUES ('old')", "SELECT pg_create_restore_point('same')")
			h.flush()
			h.backup() // on the branch that will be abandoned
			h.Exec("INSERT INTO t VALUES ('older')")
			h.flush()
			h.Stop(postgres.Fast)
			if err := h.drain(t.Context()); err != nil {
				t.Fatal(err)
			}

			// What replaces the server archives under its name.
			b := h.restore(recovery.Target{Kind: recovery.Name, Name: "fork"}, recovery.Destination{Archive: true})
			if got := rows(b.Server); got != "1 2" || b.started.Timeline != 2 {
				t.Fatalf("rows %q, timeline %d", got, b.started.Timeline)
			}
			b.Exec("INSERT INTO t VALUES ('new')", "SELECT pg_create_restore_point('same')")
			h.flushOf(b.Server)
			h.backupOf(b.Server)
			b.Exec("INSERT INTO t VALUES ('newer')")
			h.flushOf(b.Server)

			abandoned := recovery.TimelineSpec{Number: 1}
			for _, c := range []struct {
				target recovery.Target
				want   string
				tli    int
			}{
				{recovery.Target{}, "1 2 new newer", 3},
				{recovery.Target{Timeline: abandoned}, "1 2 old older", 3},
				{recovery.Target{Kind: recovery.Name, Name: "same"}, "1 2 new", 3},
				{recovery.Target{Kind: recovery.Name, Name: "same", Timeline: abandoned}, "1 2 old", 3},
				{recovery.Target{Kind: recovery.Name, Name: "fork"}, "1 2", 3},
				{recovery.Target{Kind: recovery.Immediate}, "1 2 new", 3},
			} {
				r := h.restore(c.target, recovery.Destination{})
				if got := rows(r.Server); got != c.want || int(r.started.Timeline) != c.tli {
					t.Errorf("%s on timeline %s (%s): rows %q, timeline %d, want %q on %d", c.target, c.target.Timeline, r.plan.Why, got, r.started.Timeline, c.want, c.tli)
				}
				r.Stop(postgres.Fast)
			}
			b.Server.CheckPages()
		})
	}
}

// WAL that was there when the restore began and can't be had any more stops the recovery; it never ends it.
func TestLostWAL(t *testing.T) {
	t.Parallel()
	h := newHouse(t, pgtest.Options{SegSizeMB: 1})
	h.Exec("CREATE TABLE t (v text)")
	h.backup()
	h.Exec("INSERT INTO t VALUES ('1')")
	h.flush()
	h.Exec("INSERT INTO t VALUES ('2')")
	h.flush()
	c, err := h.archive.Coverage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	runs := c.Timelines[1].Runs
	last := fmt.Sprintf("00000001%08X%08X", runs[len(runs)-1].Last>>12, runs[len(runs)-1].Last&0xFFF)
	found, err := filepath.Glob(filepath.Join(h.base, "repo", "*", "wal", "00000001", "*", last+"-*"))
	if err != nil || len(found) != 1 {
		t.Fatalf("objects of %s: %v, %v", last, found, err)
	}
	whole, err := os.ReadFile(found[0])
	if err != nil {
		t.Fatal(err)
	}
	for name, harm := range map[string]func() error{
		"removed": func() error { return os.Remove(found[0]) },
		"empty":   func() error { return os.WriteFile(found[0], nil, 0o640) },
		"cut":     func() error { return os.WriteFile(found[0], whole[:len(whole)/2], 0o640) },
		"flipped": func() error {
			bad := append([]byte(nil), whole...)
			bad[len(bad)/3] ^= 4
			return os.WriteFile(found[0], bad, 0o640)
		},
	} {
		w, p, err := h.plan(recovery.Target{}, recovery.Destination{Dir: filepath.Join(pgtest.TempDir(t), "copy"), Start: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Restore(t.Context(), p, options()); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(found[0], 0o640); err != nil {
			t.Fatal(err)
		}
		if err := harm(); err != nil {
			t.Fatal(err)
		}
		s, err := w.Start(t.Context(), p, "postgres")
		if err == nil || !strings.Contains(err.Error(), "recovery failed") {
			t.Errorf("%s: started %+v, %v", name, s, err)
		}
		if _, running, err := postgres.Running(p.Layout.Dir); err != nil || running {
			t.Errorf("%s: the server runs (%v)", name, err)
		}
		if err := os.WriteFile(found[0], whole, 0o640); err != nil {
			t.Fatal(err)
		}
		h.give(filepath.Dir(found[0]))
		// Back again, the same directory recovers.
		if _, err = w.Start(t.Context(), p, "postgres"); err != nil {
			t.Errorf("%s, then repaired: %v", name, err)
			continue
		}
		r := pgtest.Attach(t, p.Layout.Dir, pgtest.Options{Bin: h.Bin})
		if got := rows(r); got != "1 2" {
			t.Errorf("%s, then repaired: rows %q", name, got)
		}
		r.Stop(postgres.Fast)
	}
	// Before anything is touched, a plan sees what is missing.
	if err := os.Remove(found[0]); err != nil {
		t.Fatal(err)
	}
	h.Exec("INSERT INTO t VALUES ('3')")
	h.flush()
	if _, _, err := h.plan(recovery.Target{}, recovery.Destination{Dir: filepath.Join(pgtest.TempDir(t), "copy")}); err == nil || !strings.Contains(err.Error(), last) {
		t.Errorf("plan over a gap: %v", err)
	}
}

// Of the last archived segment two contents are there, as two writers that race leave them: its end can't be had, and what
// lies before it can.
func TestConflictAtTheEnd(t *testing.T) {
	t.Parallel()
	h := newHouse(t, pgtest.Options{SegSizeMB: 1})
	h.Exec("CREATE TABLE t (v text)")
	h.backup()
	h.Exec("INSERT INTO t VALUES ('1')", "SELECT pg_create_restore_point('early')")
	h.flush()
	for _, v := range []string{"2", "3"} {
		h.Exec("INSERT INTO t VALUES ('" + v + "')")
		h.flush()
	}
	c, err := h.archive.Coverage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	runs := c.Timelines[1].Runs
	no := runs[len(runs)-1].Last
	chosen := map[uint64]repo.Digest{}
	// Twice: then the one before as well.
	for _, no := range []uint64{no, no - 1} {
		name := wal.SegmentName(1, no, c.SegSize)
		found, err := filepath.Glob(filepath.Join(h.base, "repo", "*", "wal", "00000001", "*", name+"-*"))
		if err != nil || len(found) != 1 {
			t.Fatalf("objects of %s: %v, %v", name, found, err)
		}
		content, err := os.ReadFile(found[0])
		if err != nil {
			t.Fatal(err)
		}
		o, ok := repo.ParseWALKey(found[0])
		if !ok {
			t.Fatal(found[0])
		}
		chosen[no] = o.Digest
		o.Digest[0] ^= 1
		if err := os.WriteFile(filepath.Join(filepath.Dir(found[0]), filepath.Base(repo.SegmentKey(name, o.Digest))), content, 0o640); err != nil {
			t.Fatal(err)
		}
		copyTo := func() recovery.Destination {
			return recovery.Destination{Dir: filepath.Join(pgtest.TempDir(t), "copy")}
		}
		_, _, err = h.plan(recovery.Target{}, copyTo())
		if !errors.Is(err, archive.ErrConflict) || !errors.Is(err, recovery.ErrUnreachable) || !strings.Contains(err.Error(), name) ||
			!strings.Contains(hint.Of(err), "pitr wal resolve "+name+" DIGEST") {
			t.Errorf("to the end: %v; %s", err, hint.Of(err))
		}
		for _, target := range []recovery.Target{{Kind: recovery.Name, Name: "early"}, {Kind: recovery.Immediate}} {
			if _, p, err := h.plan(target, copyTo()); err != nil || p.Err() != nil || p.Stop.End > wal.SegmentStart(no, c.SegSize) {
				t.Errorf("to %s: %v", target, err)
			}
		}
	}
	// Once people have said which one holds, the end can be had.
	for _, no := range []uint64{no, no - 1} {
		if err := h.archive.Resolve(t.Context(), wal.SegmentName(1, no, c.SegSize), chosen[no], "me"); err != nil {
			t.Fatal(err)
		}
	}
	h.give(filepath.Join(h.base, "repo"))
	if got := rows(h.restore(recovery.Target{}, recovery.Destination{}).Server); got != "1 2 3" {
		t.Errorf("rows %q", got)
	}
}

// A time is asked for again after a restore to an earlier one: the answer is that of the timeline which that opened, and
// the plan says what the other one has.
func TestTimeAfterAnEarlierRestore(t *testing.T) {
	t.Parallel()
	for name, goesOn := range map[string]bool{"idle": false, "in use": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t, pgtest.Options{SegSizeMB: 1})
			pause := func() { time.Sleep(20 * time.Millisecond) }
			h.Exec("CREATE TABLE t (v text)", "INSERT INTO t VALUES ('1')")
			h.backup()
			h.Exec("INSERT INTO t VALUES ('2')", "SELECT pg_create_restore_point('fork')")
			pause()
			h.Exec("INSERT INTO t VALUES ('wanted')")
			pause()
			at := serverTime(h.Server)
			pause()
			h.Exec("INSERT INTO t VALUES ('the mistake')")
			h.flush()
			h.Stop(postgres.Fast)
			if err := h.drain(t.Context()); err != nil {
				t.Fatal(err)
			}
			b := h.restore(recovery.Target{Kind: recovery.Name, Name: "fork"}, recovery.Destination{Archive: true})
			if goesOn {
				b.Exec("INSERT INTO t VALUES ('after the first restore')")
			}
			h.flushOf(b.Server)
			_, p, err := h.plan(recovery.Target{Kind: recovery.Time, Time: at}, recovery.Destination{Dir: filepath.Join(pgtest.TempDir(t), "copy")})
			if err != nil {
				t.Fatal(err)
			}
			if len(p.Obstacles) != 1 || p.Obstacles[0].Fatal || p.Timeline != 2 || p.Obstacles[0].Hint != "--target-timeline 1 restores that one" ||
				!strings.HasPrefix(p.Obstacles[0].What, "timeline 2 parted from timeline 1 at ") || !strings.Contains(p.Obstacles[0].What, "timeline 1 has 1 more, the last of ") {
				t.Errorf("%s, timeline %d: %+v", p.What, p.Timeline, p.Obstacles)
			}
			// Following the hint.
			r := h.restore(recovery.Target{Kind: recovery.Time, Time: at, Timeline: recovery.TimelineSpec{Number: 1}}, recovery.Destination{})
			if got := rows(r.Server); got != "1 2 wanted" || len(r.plan.Obstacles) > 0 {
				t.Errorf("rows %q, obstacles %+v", got, r.plan.Obstacles)
			}
		})
	}
}
