package agent_test

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pitr/internal/agent"
	"pitr/internal/postgres"
	"pitr/internal/postgres/pgtest"
)

// check runs `pitr check --json` and returns its findings by name, and the exit status.
func (h *host) check() (map[string]agent.Finding, int) {
	h.t.Helper()
	out, stderr, err := h.run("check", "--json")
	code := 0
	if e := (*exec.ExitError)(nil); errors.As(err, &e) {
		code = e.ExitCode()
	} else if err != nil {
		h.t.Fatal(err)
	}
	var all []agent.Finding
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		h.t.Fatalf("%v\n%s\n%s", err, out, stderr)
	}
	by := map[string]agent.Finding{}
	for _, f := range all {
		if _, twice := by[f.Name]; twice {
			h.t.Errorf("two findings are called %s", f.Name)
		}
		by[f.Name] = f
	}
	return by, code
}

func (h *host) status() *agent.Status {
	h.t.Helper()
	out, stderr, err := h.run("status", "--json")
	if err != nil {
		h.t.Fatalf("%v\n%s", err, stderr)
	}
	s := new(agent.Status)
	if err := json.Unmarshal([]byte(out), s); err != nil {
		h.t.Fatalf("%v\n%s", err, out)
	}
	return s
}

func (h *host) expectChecks(got map[string]agent.Finding, want map[string]string) {
	h.t.Helper()
	for name, status := range want {
		f := got[name]
		if f.Status != status {
			h.t.Errorf("check %s: %+v, want %s", name, f, status)
		}
		if f.Status == agent.CheckFail && f.Hint == "" {
			h.t.Errorf("check %s fails without a hint: %s", name, f.Message)
		}
	}
}

func TestCheckAndStatus(t *testing.T) {
	h := newHost(t, pgtest.Options{SegSizeMB: 1})
	h.Exec("CREATE TABLE x ()", "SELECT pg_switch_wal()")

	// Without an agent everything works, if not as well.
	got, code := h.check()
	if code != 0 {
		t.Errorf("check exits with %d: %+v", code, got)
	}
	h.expectChecks(got, map[string]string{
		"config": "ok", "store": "ok", "store-create": "ok", "store-list": "ok", "server": "ok", "data-dir": "ok", "clock-server": "ok",
		"wal_level": "ok", "archive_mode": "ok", "archive_command": "ok", "full_page_writes": "ok", "fsync": "warn", "data_checksums": "ok",
		"space-wal": got["space-wal"].Status, "space-service": got["space-service"].Status, "agent": "warn", "archive": "ok", "clock-store": "ok",
	})
	h.drained()
	s := h.status()
	if s.Agent != nil || s.Server == nil || !s.Server.Running || s.Server.Role != "primary" || s.Archive == nil ||
		s.Archive.Last == "" || len(s.Archive.Gaps) != 0 || s.Backups == nil || s.Backups.Count != 0 || s.Window != nil {
		t.Errorf("status without an agent: %+v", s)
	}

	p := h.agent(h.config, h.service, false)
	got, code = h.check()
	h.expectChecks(got, map[string]string{"agent": "ok", "archive": "ok"})
	if code != 0 {
		t.Errorf("check exits with %d", code)
	}
	h.drained()
	s = h.status()
	if s.Agent == nil || s.Agent.PID != p.cmd.Process.Pid || s.Agent.Push.Files == 0 || s.Archive.LagBytes == nil || *s.Archive.LagBytes > 1<<20 {
		t.Errorf("status: %+v, agent %+v", s, s.Agent)
	}

	// A backup opens the window, and a commit behind it moves its end.
	if _, stderr, err := h.run("backup", "create"); err != nil {
		t.Fatalf("%v\n%s", err, stderr)
	}
	h.Exec("CREATE TABLE y ()", "SELECT pg_switch_wal()")
	after := pgtest.QueryOne[time.Time](h.Server, "SELECT clock_timestamp()")
	h.drained()
	s = h.status()
	if w := s.Window; s.Backups.Count != 1 || w == nil || w.Backup != s.Backups.Newest.ID || w.Gap != "" || !w.To.After(w.From) || w.To.After(after) || len(s.Problems) != 0 {
		t.Errorf("status with a backup: window %+v, backups %+v, problems %+v", w, s.Backups, s.Problems)
	}
	out, _, err := h.run("status")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"cluster   test, node n1, ", "server    PostgreSQL ", "archive   file://", "gaps      none\n", "backups   1, newest ", "window    from ", "agent     process "} {
		if !strings.Contains(out, want) {
			t.Errorf("status does not say %q:\n%s", want, out)
		}
	}
	p.stop(t)

	// A gap ends the window of the backup before it.
	for range 4 {
		h.Exec("DROP TABLE IF EXISTS z", "CREATE TABLE z ()", "SELECT pg_switch_wal()")
	}
	h.drained()
	end := pgtest.QueryOne[string](h.Server, "SELECT pg_walfile_name(pg_current_wal_lsn() - 1 - 2 * 1024 * 1024)")
	lost, err := filepath.Glob(filepath.Join(h.store, "*", "wal", "00000001", "*", end+"-*.zst"))
	if err != nil || len(lost) != 1 {
		t.Fatalf("segment %s is stored as %v, %v", end, lost, err)
	}
	if err := os.Rename(lost[0], lost[0]+".lost"); err != nil {
		t.Fatal(err)
	}
	s = h.status()
	if w := s.Window; len(s.Archive.Gaps) != 1 || s.Archive.Gaps[0].First != end || w == nil || w.Gap != end || w.To.Before(w.From) {
		t.Errorf("status with a gap: window %+v, gaps %+v", w, s.Archive.Gaps)
	}
	if err := os.Rename(lost[0]+".lost", lost[0]); err != nil {
		t.Fatal(err)
	}

	// Nothing there to ask: what is known is shown all the same.
	h.Stop(postgres.Fast)
	s = h.status()
	if s.Server.Running || s.Window == nil || len(s.Problems) < 2 {
		t.Errorf("status without a server: %+v", s)
	}
	if err := os.Rename(h.store, h.store+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(h.store, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	got, code = h.check()
	if code != 1 {
		t.Errorf("check exits with %d", code)
	}
	h.expectChecks(got, map[string]string{"store": "fail", "server": "fail", "settings": "warn", "archive": "warn"})
	if s = h.status(); s.Archive != nil || s.Backups != nil {
		t.Errorf("status without a store: %+v", s)
	}
}

// What is wrong with a server is found, with what to do about it.
func TestCheckFinds(t *testing.T) {
	h := newHost(t, pgtest.Options{SegSizeMB: 1, NoChecksums: true})
	h.Conf(map[string]string{"archive_command": "false", "full_page_writes": "off"})
	h.Reload()
	config, err := os.ReadFile(h.config)
	if err != nil {
		t.Fatal(err)
	}
	short := strings.Replace(string(config), "timeout: 20s", "timeout: 2s", 1)
	if err := os.WriteFile(h.config, []byte(short), 0o644); err != nil {
		t.Fatal(err)
	}
	got, code := h.check()
	if code != 1 {
		t.Errorf("check exits with %d", code)
	}
	h.expectChecks(got, map[string]string{"archive_command": "warn", "full_page_writes": "fail", "data_checksums": "warn", "archive": "fail"})
	if f := got["archive"]; !strings.Contains(f.Message, "was not archived within 2s") || !strings.Contains(f.Hint, "wal push %p") {
		t.Errorf("archive: %+v", f)
	}
	h.Conf(map[string]string{"archive_mode": "off", "wal_level": "minimal", "max_wal_senders": "0"})
	h.Restart()
	got, _ = h.check()
	h.expectChecks(got, map[string]string{"archive_mode": "fail", "wal_level": "fail", "archive": "warn"})

	// Another server's data directory.
	other := pgtest.Start(t, pgtest.Options{SegSizeMB: 1, NewSystem: true, NotYet: true})
	wrong := strings.Replace(short, h.Dir, other.Dir, 1)
	if err := os.WriteFile(h.config, []byte(wrong), 0o644); err != nil {
		t.Fatal(err)
	}
	got, code = h.check()
	h.expectChecks(got, map[string]string{"data-dir": "fail"})
	if code != 1 {
		t.Errorf("check exits with %d", code)
	}
}

// The hook of a segment that is stored already costs little more than starting a program.
func TestHookIsFast(t *testing.T) {
	h := newHost(t, pgtest.Options{SegSizeMB: 1})
	p := h.agent(h.config, h.service, false)
	h.Exec("CREATE TABLE x ()", "SELECT pg_switch_wal()")
	h.drained()
	done, err := filepath.Glob(filepath.Join(h.Dir, "pg_wal", "archive_status", "*.done"))
	if err != nil || len(done) == 0 {
		t.Fatal(err)
	}
	// The server's archiver must not do away with it meanwhile.
	h.Conf(map[string]string{"archive_command": "false"})
	h.Reload()
	seg := strings.TrimSuffix(done[0], ".done")
	if err := os.Rename(done[0], seg+".ready"); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(h.Dir, "pg_wal", filepath.Base(seg))
	if _, stderr, err := h.run("wal", "push", path); err != nil {
		t.Fatalf("%v\n%s", err, stderr)
	}
	var took []time.Duration
	for range 50 {
		began := time.Now()
		if _, stderr, err := h.run("wal", "push", path); err != nil {
			t.Fatalf("%v\n%s", err, stderr)
		}
		took = append(took, time.Since(began))
	}
	var version []time.Duration
	for range 50 {
		began := time.Now()
		if _, _, err := h.run("version"); err != nil {
			t.Fatal(err)
		}
		version = append(version, time.Since(began))
	}
	// Other work on the machine slows both down.
	if a, b := median(took), median(version); a > b+10*time.Millisecond {
		t.Errorf("a hook takes %v, the mere start of the program %v", a, b)
	} else {
		t.Logf("a hook takes %v, the mere start of the program %v", a, b)
	}
	if n := h.running().Push.Files; n > 5 {
		t.Errorf("the agent archived %d files", n)
	}
	p.stop(t)
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}
