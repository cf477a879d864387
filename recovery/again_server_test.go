package recovery_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pitr/internal/hint"
	"pitr/internal/postgres"
	"pitr/internal/postgres/pgtest"
	"pitr/recovery"
)

// A call whose process was killed after the copying is made again: what it has put into place is used, its server is waited
// for, and where the archive has grown meanwhile, recovery goes on to its new end. What was opened is left alone.
func TestCalledAgain(t *testing.T) {
	t.Parallel()
	h := newHouse(t, pgtest.Options{SegSizeMB: 1, Tablespaces: 1})
	h.Exec("CREATE TABLE t (v text) TABLESPACE ts1")
	h.backup()
	h.Exec("INSERT INTO t VALUES ('a')")
	h.flush()
	base := pgtest.TempDir(t)
	d := recovery.Destination{Dir: filepath.Join(base, "copy"), Start: true, Tablespaces: []recovery.Mapping{{Old: "ts1", New: filepath.Join(base, "ts")}}}
	target := recovery.Target{Action: recovery.Pause}
	call := func() (*recovery.World, *recovery.Plan, *recovery.Report) {
		t.Helper()
		w, p, err := h.plan(target, d)
		if err != nil {
			t.Fatal(err)
		}
		report, err := w.Restore(t.Context(), p, options())
		if err != nil {
			t.Fatal(err)
		}
		return w, p, report
	}
	start := func(w *recovery.World, p *recovery.Plan, want string) *pgtest.Server {
		t.Helper()
		started, err := w.Start(t.Context(), p, "postgres")
		if err != nil {
			log, _ := os.ReadFile(filepath.Join(d.Dir, "pitr_server.log"))
			t.Fatalf("%v\n%s", err, log)
		}
		s := pgtest.Attach(t, d.Dir, pgtest.Options{Bin: h.Bin})
		if got := rows(s); got != want || started.PID != s.PID() || started.Replayed < p.Stop.LSN {
			t.Errorf("rows %q, want %q; %+v", got, want, started)
		}
		return s
	}
	refused := func(d recovery.Destination, target recovery.Target, want string) {
		t.Helper()
		w, p, err := h.plan(target, d)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Err(); !errors.Is(err, recovery.ErrRefused) || !strings.Contains(err.Error(), want) || hint.Of(err) == "" {
			t.Errorf("%v (hint: %s), want %q", err, hint.Of(err), want)
		}
		if _, err := w.Restore(t.Context(), p, options()); !errors.Is(err, recovery.ErrRefused) {
			t.Errorf("restored: %v", err)
		}
	}

	if _, p, report := call(); p.Layout.Restored || report.Before != nil {
		t.Errorf("the first call: %+v, %+v", p.Layout, report)
	}
	// Nothing was started. Another backup and more WAL since don't make it another call.
	first := tree(t, filepath.Join(d.Dir, "base"))
	h.backup()
	h.Exec("INSERT INTO t VALUES ('b')")
	h.flush()
	w, p, report := call()
	if !p.Layout.Restored || report.Before == nil || report.Fetched+report.Kept != 0 || p.Write != 0 {
		t.Errorf("the second call: %+v, %+v", p.Layout, report)
	}
	compareTrees(t, "called again", tree(t, filepath.Join(d.Dir, "base")), first)
	refused(d, recovery.Target{Action: recovery.Promote}, d.Dir+" holds backup ")
	s := start(w, p, "a b")

	// Its server runs, and the archive grows: the server is taken for what it was told.
	h.Exec("INSERT INTO t VALUES ('c')")
	h.flush()
	pid := s.PID()
	w, p, _ = call()
	if !p.Layout.Restored || p.Layout.PID != pid || len(p.Obstacles) != 1 || !strings.Contains(p.Obstacles[0].What, "by now the archive leads") {
		t.Errorf("onto its own server: %+v, %+v", p.Layout, p.Obstacles)
	}
	start(w, p, "a b")
	plain := d
	plain.Start = false
	refused(plain, target, "a server runs in "+d.Dir)
	refused(d, recovery.Target{Kind: recovery.Immediate, Action: recovery.Pause}, "a server runs in "+d.Dir)

	// The machine went down. Recovery goes on, to the new end.
	s.Kill()
	w, p, report = call()
	if !p.Layout.Restored || report.Before == nil {
		t.Errorf("after a crash in recovery: %+v, %+v", p.Layout, report)
	}
	s = start(w, p, "a b c")
	// And not back.
	s.Stop(postgres.Fast)
	refused(d, recovery.Target{Kind: recovery.Immediate, Action: recovery.Pause}, d.Dir+" holds backup ")

	// Once it was opened it is somebody's.
	w, p, _ = call()
	s = start(w, p, "a b c")
	s.Exec("SELECT pg_promote()")
	s.AwaitPrimary()
	w, p, _ = call()
	if _, err := w.Start(t.Context(), p, "postgres"); !errors.Is(err, recovery.ErrRefused) || !strings.Contains(err.Error(), "has been opened") {
		t.Errorf("for one that was opened: %v", err)
	}
	s.Exec("INSERT INTO t VALUES ('mine')")
	s.Stop(postgres.Fast)
	opened := "a server has been opened on what was restored to " + d.Dir
	refused(d, target, opened)
	// A signal put there by hand does not make it ours again, nor does recovery begun with it.
	signal := filepath.Join(d.Dir, "recovery.signal")
	if err := os.WriteFile(signal, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	refused(d, target, d.Dir+" is not empty")
	if err := os.Remove(signal); err != nil {
		t.Fatal(err)
	}
	refused(d, target, opened)
	s.Start()
	if got := rows(s); got != "a b c mine" {
		t.Errorf("rows %q", got)
	}
}

// In place it is the same, but for what was opened: that is the server proper, and a call means to replace it.
func TestCalledAgainInPlace(t *testing.T) {
	t.Parallel()
	h := newHouse(t, pgtest.Options{SegSizeMB: 1, WALDir: true})
	h.Exec("CREATE TABLE t (v text)", "INSERT INTO t VALUES ('a')")
	h.backup()
	h.Exec("INSERT INTO t VALUES ('b')", "SELECT pg_create_restore_point('here')")
	h.flush()
	h.Kill()
	d := recovery.Destination{Dir: h.Dir, InPlace: true, Start: true}
	target := recovery.Target{Kind: recovery.Name, Name: "here", Action: recovery.Pause}
	call := func(d recovery.Destination, restored, start bool) *recovery.Plan {
		t.Helper()
		w, p, err := h.plan(target, d)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Restore(t.Context(), p, options()); err != nil {
			t.Fatal(err)
		}
		if p.Layout.Restored != restored {
			t.Errorf("layout %+v", p.Layout)
		}
		if start {
			started, err := w.Start(t.Context(), p, "postgres")
			if err != nil {
				t.Fatal(err)
			}
			if got := rows(h.Server); got != "a b" || started.PID == 0 {
				t.Errorf("rows %q, %+v", got, started)
			}
		}
		return p
	}
	call(d, false, false)
	call(d, true, true)
	if p := call(d, true, true); p.Layout.PID == 0 {
		t.Errorf("its server runs: %+v", p.Layout)
	}
	h.Kill()
	call(d, true, true)
	h.Kill()
	delta := d
	delta.Delta = true
	if p := call(delta, false, false); !p.Layout.Replaces {
		t.Errorf("to compare every block: %+v", p.Layout)
	}
	call(d, true, true)
	h.Exec("SELECT pg_promote()")
	h.AwaitPrimary()
	if _, p, err := h.plan(target, d); err != nil || !errors.Is(p.Err(), recovery.ErrRefused) {
		t.Errorf("onto the open server: %v, %v", err, p.Err())
	}
	h.Exec("INSERT INTO t VALUES ('c')")
	h.Stop(postgres.Fast)
	if p := call(d, false, true); !p.Layout.Replaces {
		t.Errorf("back once more: %+v", p.Layout)
	}
}
