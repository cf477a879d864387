package recovery_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"pitr/internal/hint"
	"pitr/internal/postgres"
	"pitr/internal/postgres/pgtest"
	"pitr/recovery"
)

// put is a restore that is not started.
func (h *house) put(target recovery.Target, d recovery.Destination) (*recovery.World, *recovery.Plan, *recovery.Report) {
	h.t.Helper()
	if d.Dir == "" {
		d.Dir = filepath.Join(pgtest.TempDir(h.t), "copy")
	}
	w, p, err := h.plan(target, d)
	if err != nil {
		h.t.Fatal(err)
	}
	report, err := w.Restore(h.t.Context(), p, options())
	if err != nil {
		h.t.Fatal(err)
	}
	return w, p, report
}

// stop stops a server and archives what it has handed over, and what it has not.
func (h *house) stop(s *pgtest.Server) {
	h.t.Helper()
	s.Stop(postgres.Fast)
	if err := h.drain(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	w, err := recovery.Observe(h.t.Context(), h.archive, recovery.Surroundings{})
	if err != nil {
		h.t.Fatal(err)
	}
	defer w.Close()
	if _, err := w.ArchiveLeftovers(h.t.Context(), s.Dir); err != nil {
		h.t.Fatal(err)
	}
	h.give(filepath.Join(h.base, "repo"))
}

// attach makes sure that what was started is stopped in the end, and gives the log it has written.
func (h *house) attach(p *recovery.Plan) (*pgtest.Server, string) {
	h.t.Helper()
	log, err := os.ReadFile(filepath.Join(p.Layout.Dir, recovery.ServerLog))
	if err != nil {
		h.t.Fatal(err)
	}
	return pgtest.Attach(h.t, p.Layout.Dir, pgtest.Options{Bin: h.Bin}), string(log)
}

// moveConfig takes the configuration out of the data directory of a stopped server, as Debian has it.
func (h *house) moveConfig() (etc string) {
	h.t.Helper()
	etc = mkdir(h.t, filepath.Join(pgtest.TempDir(h.t), "e t'c"))
	for _, name := range []string{"postgresql.conf", "pg_hba.conf", "pg_ident.conf"} {
		if err := os.Rename(filepath.Join(h.Dir, name), filepath.Join(etc, name)); err != nil {
			h.t.Fatal(err)
		}
	}
	h.appendTo(filepath.Join(etc, "postgresql.conf"), "data_directory = '%s'\nhba_file = '%s'\n", h.Dir, strings.ReplaceAll(etc, "'", "''")+"/pg_hba.conf")
	return etc
}

func (h *house) appendTo(path, format string, args ...any) {
	h.t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	defer f.Close()
	if _, err := fmt.Fprintf(f, format, args...); err != nil {
		h.t.Fatal(err)
	}
}

// A server whose configuration is outside of its data directory is told so when it is started in place. That configuration
// stays its administrator's: where it gives less than the WAL wants, the last word is in the data directory.
func TestConfigurationOutsideInPlace(t *testing.T) {
	t.Parallel()
	h := newHouse(t, pgtest.Options{SegSizeMB: 1, Conf: map[string]string{"max_connections": "40"}})
	h.Exec("CREATE TABLE t (v text)", "INSERT INTO t VALUES ('a')")
	h.Stop(postgres.Fast)
	etc := h.moveConfig()
	// pg_ident.conf is known from the command line only.
	s := pgtest.OpenDir(t, h.Dir, pgtest.Options{Bin: h.Bin, Conf: map[string]string{"config_file": etc + "/postgresql.conf", "ident_file": etc + "/pg_ident.conf"}})
	h.backupOf(s)
	h.flushOf(s)
	h.stop(s)
	h.appendTo(filepath.Join(etc, "postgresql.conf"), "max_connections = 30\n")

	w, p, report := h.put(recovery.Target{}, recovery.Destination{Dir: h.Dir, InPlace: true, Start: true})
	want := []string{"-c", "config_file=" + etc + "/postgresql.conf", "-c", "data_directory=" + h.Dir, "-c", "hba_file=" + etc + "/pg_hba.conf", "-c", "ident_file=" + etc + "/pg_ident.conf"}
	if got := p.ServerOptions(); strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("options %q\nwant %q", got, want)
	}
	if notes := strings.Join(report.Warnings, "; "); !strings.Contains(notes, "max_connections") || !strings.Contains(notes, "30") || !strings.Contains(notes, "40") {
		t.Errorf("warnings %q", notes)
	}
	if _, err := w.Start(t.Context(), p, "postgres"); err != nil {
		t.Fatal(err)
	}
	s, _ = h.attach(p)
	if got := rows(s) + " " + pgtest.QueryOne[string](s, "SHOW config_file") + " " + pgtest.QueryOne[string](s, "SHOW max_connections"); got != "a "+etc+"/postgresql.conf 40" {
		t.Errorf("%s", got)
	}
}

// A link in the data directory is restored as such: nothing has to be told, and what it leads to includes others from there.
func TestConfigurationLinked(t *testing.T) {
	t.Parallel()
	h := newHouse(t, pgtest.Options{SegSizeMB: 1})
	h.Exec("CREATE TABLE t (v text)", "INSERT INTO t VALUES ('a')")
	h.Stop(postgres.Fast)
	etc := mkdir(t, filepath.Join(pgtest.TempDir(t), "etc"))
	conf := filepath.Join(h.Dir, "postgresql.conf")
	if err := os.Rename(conf, filepath.Join(etc, "main.conf")); err != nil {
		t.Fatal(err)
	}
	h.appendTo(filepath.Join(etc, "main.conf"), "include 'beside.conf'\n")
	if err := os.WriteFile(filepath.Join(h.Dir, "beside.conf"), []byte("work_mem = '5MB'\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(etc, "main.conf"), conf); err != nil {
		t.Fatal(err)
	}
	h.Start()
	h.backup()
	h.flush()
	h.stop(h.Server)
	w, p, _ := h.put(recovery.Target{}, recovery.Destination{Dir: h.Dir, InPlace: true, Start: true})
	if len(p.ServerOptions()) != 0 {
		t.Errorf("options %q", p.ServerOptions())
	}
	if _, err := w.Start(t.Context(), p, "postgres"); err != nil {
		t.Fatal(err)
	}
	s, _ := h.attach(p)
	if got := rows(s) + " " + pgtest.QueryOne[string](s, "SHOW work_mem"); got != "a 5MB" {
		t.Error(got)
	}
}

// Settings that a server in recovery may not have below its parent's: what the WAL to replay brings counts.
func TestSettingsRaisedOnTheWay(t *testing.T) {
	for _, bin := range pgtest.Bins(t) {
		t.Run(fmt.Sprint(bin.Major), func(t *testing.T) {
			t.Parallel()
			h := newHouse(t, pgtest.Options{Bin: bin, SegSizeMB: 1, Conf: map[string]string{"max_connections": "30", "max_worker_processes": "9"}})
			h.Exec("CREATE TABLE t (v text)", "INSERT INTO t VALUES ('a')")
			// Lowered, but not in force yet when the backup is taken.
			h.Conf(map[string]string{"max_worker_processes": "4"})
			h.backup()
			h.Exec("SELECT pg_create_restore_point('before')")
			h.Conf(map[string]string{"max_connections": "50", "max_wal_senders": "12"})
			h.Restart()
			h.Conf(map[string]string{"max_connections": "20"})
			h.Restart()
			h.Exec("INSERT INTO t VALUES ('b')")
			h.flush()
			show := func(s *pgtest.Server) string {
				return pgtest.QueryOne[string](s, "SELECT string_agg(setting, ' ' ORDER BY name) FROM pg_settings WHERE name IN ('max_connections', 'max_wal_senders', 'max_worker_processes')")
			}
			r := h.restore(recovery.Target{}, recovery.Destination{})
			if got := rows(r.Server) + ": " + show(r.Server); got != "a b: 50 12 9" {
				t.Errorf("%s", got)
			}
			if notes := fmt.Sprint(r.plan.Obstacles); !strings.Contains(notes, "max_connections becomes 50") || strings.Contains(notes, "max_prepared") {
				t.Errorf("notes %s", notes)
			}
			if notes := strings.Join(r.report.Warnings, "; "); !strings.Contains(notes, "max_worker_processes") || strings.Contains(notes, "max_connections") {
				t.Errorf("warnings %q", notes)
			}
			before := h.restore(recovery.Target{Kind: recovery.Name, Name: "before"}, recovery.Destination{})
			if got := rows(before.Server) + ": " + show(before.Server); got != "a: 30 10 9" || len(before.plan.Obstacles) != 0 {
				t.Errorf("before: %s, %+v", got, before.plan.Obstacles)
			}
			// If recovery pauses for it all the same, that is said. Until version 13 the server ended.
			w, p, _ := h.put(recovery.Target{}, recovery.Destination{Start: true})
			if err := postgres.EditAutoConf(p.Layout.Dir, nil, []postgres.Setting{{Name: "max_connections", Value: "30"}}); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			_, err := w.Start(ctx, p, "postgres")
			if err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), "max_connections = 30 is a lower setting than on the primary server, where its value was 50") {
				t.Errorf("with too low a setting: %v", err)
			}
			if _, running, err := postgres.Running(p.Layout.Dir); running || err != nil {
				t.Errorf("it runs: %v, %v", running, err)
			}
		})
	}
}

// A server that lets nobody in is not waited for without end, and not stopped either.
func TestStartedButNotLetIn(t *testing.T) {
	t.Parallel()
	h := newHouse(t, pgtest.Options{SegSizeMB: 1})
	h.Exec("CREATE TABLE t (v text)", "INSERT INTO t VALUES ('a')")
	h.backup()
	h.Exec("INSERT INTO t SELECT repeat('x', 1000) FROM generate_series(1, 8000)", "CREATE ROLE later LOGIN SUPERUSER")
	h.flush()
	for _, c := range []struct {
		name, user, hba, fails string
		action                 recovery.Action
		standby                bool
	}{
		{"promote", "postgres", "local all all scram-sha-256\n", "has been opened", recovery.Promote, false},
		{"pause", "postgres", "local all all reject\n", "it recovers", recovery.Pause, false},
		{"standby", "nobody", "", "it recovers", recovery.Promote, true},
		{"a role that the WAL brings", "later", "", "", recovery.Promote, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := h.in(t)
			var log syncBuffer
			d := recovery.Destination{Start: true, Dir: filepath.Join(pgtest.TempDir(t), "copy"), Standby: c.standby}
			w, p, err := h.planLogged(recovery.Surroundings{BinDir: h.Bin.Dir, Log: slog.New(slog.NewTextHandler(&log, nil))}, recovery.Target{Action: c.action}, d)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Restore(t.Context(), p, options()); err != nil {
				t.Fatal(err)
			}
			if c.hba != "" {
				if err := os.WriteFile(filepath.Join(p.Layout.Dir, "pitr_scratch_hba.conf"), []byte(c.hba), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if c.action == recovery.Promote && !c.standby {
				h.slowFetch(p, 1) // so that it takes a while
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			_, err = w.Start(ctx, p, c.user)
			if told := strings.Count(log.String(), "can't be asked yet"); told > 4 || (told > 0) != (c.action == recovery.Promote && !c.standby) {
				t.Errorf("logged %s", log.String())
			}
			if c.fails == "" {
				if err != nil {
					t.Fatal(err)
				}
				h.attach(p)
				return
			}
			if err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), c.fails) || !strings.Contains(err.Error(), "left running") || hint.Of(err) == "" {
				t.Errorf("%v (hint %q)", err, hint.Of(err))
			}
			_, serverLog := h.attach(p) // it runs
			if n := strings.Count(serverLog, "FATAL"); n > 100 {
				t.Errorf("%d refusals in the server's log", n)
			}
		})
	}
}

// slowFetch makes each file that a restored server fetches take its time.
func (h *house) slowFetch(p *recovery.Plan, seconds float64) {
	h.t.Helper()
	path := filepath.Join(p.Layout.Dir, postgres.AutoConf)
	text, err := os.ReadFile(path)
	if err != nil {
		h.t.Fatal(err)
	}
	slow := bytes.Replace(text, []byte("restore_command = '"), fmt.Appendf(nil, "restore_command = 'sleep %g; ", seconds), 1)
	if bytes.Equal(slow, text) {
		h.t.Fatalf("no restore_command in %s", text)
	}
	if err := os.WriteFile(path, slow, 0o600); err != nil {
		h.t.Fatal(err)
	}
}

// A standby that is to be started has to let sessions in, to be asked.
func TestColdStandby(t *testing.T) {
	t.Parallel()
	h := newHouse(t, pgtest.Options{SegSizeMB: 1, Conf: map[string]string{"hot_standby": "off"}})
	h.Exec("CREATE TABLE t (v text)", "INSERT INTO t VALUES ('a')")
	h.backup()
	h.flush()
	r := h.restore(recovery.Target{}, recovery.Destination{Standby: true})
	r.Await("SELECT count(*) = 1 FROM t")
}

// A server that was told to shut down at the target, and is stopped before it gets there, has not got there. The same call
// goes on.
func TestStoppedBeforeItsTarget(t *testing.T) {
	t.Parallel()
	h := newHouse(t, pgtest.Options{SegSizeMB: 1})
	h.Exec("CREATE TABLE t (v text)")
	h.backup()
	for range 8 {
		h.Exec("INSERT INTO t SELECT repeat('x', 1000) FROM generate_series(1, 500)")
	}
	// Records that change no page: pg_control does not follow them.
	h.Exec("CHECKPOINT", "SELECT pg_current_xact_id()", "SELECT pg_current_xact_id()", "SELECT pg_create_restore_point('here')")
	h.flush()
	target := recovery.Target{Kind: recovery.Name, Name: "here", Action: recovery.Shutdown}
	d := recovery.Destination{Dir: filepath.Join(pgtest.TempDir(t), "copy"), Start: true}
	w, p, _ := h.put(target, d)
	h.slowFetch(p, 0.5)
	stopped := make(chan error, 1)
	go func() { stopped <- interrupt(t.Context(), p.Layout.Dir, 3*time.Second) }()
	started, err := w.Start(t.Context(), p, "postgres")
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	if err == nil || !strings.Contains(err.Error(), "before "+p.Stop.LSN.String()) || !strings.Contains(hint.Of(err), "goes on") {
		t.Fatalf("%+v, %v (hint %q)", started, err, hint.Of(err))
	}
	w, p, report := h.put(target, d)
	if report.Before == nil {
		t.Error("all was copied again")
	}
	started, err = w.Start(t.Context(), p, "postgres")
	if err != nil || started.PID != 0 || started.Replayed < p.Stop.LSN {
		t.Errorf("%+v, %v", started, err)
	}
}

// interrupt stops the server of a directory as its administrator would, some time after it has started.
func interrupt(ctx context.Context, dir string, after time.Duration) error {
	for {
		pid, running, err := postgres.Running(dir)
		if err != nil {
			return err
		}
		if running {
			time.Sleep(after)
			return syscall.Kill(pid, syscall.SIGINT)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// syncBuffer takes what is logged.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
