package agent_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"pitr/internal/postgres"
	"pitr/internal/postgres/pgtest"
	"pitr/internal/wal"
)

// set replaces a piece of the host's configuration.
func (h *host) set(old, new string) {
	h.t.Helper()
	text, err := os.ReadFile(h.config)
	if err != nil {
		h.t.Fatal(err)
	}
	if !strings.Contains(string(text), old) {
		h.t.Fatalf("the configuration does not say %q", old)
	}
	if err := os.WriteFile(h.config, []byte(strings.Replace(string(text), old, new, 1)), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

// backups lists the backups' IDs, and fails the test unless all of them verify.
func (h *host) backups() []string {
	h.t.Helper()
	out, stderr, err := h.run("backup", "list", "--json")
	if err != nil {
		h.t.Fatalf("%v\n%s", err, stderr)
	}
	var list []struct{ ID, Status string }
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		h.t.Fatalf("%v\n%s", err, out)
	}
	var ids []string
	for _, b := range list {
		ids = append(ids, b.ID)
	}
	if len(ids) > 0 {
		if out, stderr, err := h.run("backup", "verify"); err != nil {
			h.t.Errorf("%v\n%s%s", err, out, stderr)
		}
	}
	return ids
}

// until waits for something that the agent does by itself.
func (h *host) until(what string, is func() bool) {
	h.t.Helper()
	for deadline := time.Now().Add(90 * time.Second); !is(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			h.t.Fatalf("waited in vain: %s", what)
		}
	}
}

// Backups are taken by schedule, retention follows them, and agents that are killed or stopped in the middle leave only
// what is whole.
func TestScheduledBackups(t *testing.T) {
	h := newHost(t, pgtest.Options{SegSizeMB: 1})
	h.Exec("CREATE TABLE t AS SELECT g, md5(g::text) FROM generate_series(1, 20000) g")
	h.set(`backup: {schedule: ""}`, `backup: {schedule: "@every 2s", retention: {window: 0s, keep: 2}}`)
	p := h.agent(h.config, h.service, false)
	h.until("two runs of retention", func() bool { return strings.Count(p.log.String(), `msg="scheduled run done" job=prune`) >= 4 })
	if n := len(h.backups()); n < 2 || n > 3 {
		t.Errorf("%d backups, retention keeps 2", n)
	}
	for range 4 {
		h.until("a backup that runs", func() bool {
			for _, j := range h.running().Jobs {
				if j.Name == "backup" && j.Running {
					return true
				}
			}
			return false
		})
		p.kill()
		p = h.agent(h.config, h.service, false)
	}
	h.until("a backup that runs", func() bool {
		for _, j := range h.running().Jobs {
			if j.Running {
				return true
			}
		}
		return false
	})
	p.stop(t)
	if n := len(h.backups()); n < 2 || n > 3+5 {
		t.Errorf("%d backups", n)
	}
	for _, j := range []string{"ERROR", "panic"} {
		if strings.Contains(p.log.String(), j) {
			t.Errorf("the log says %s:\n%s", j, p.log)
		}
	}
}

// A standby's agent takes no backups and says why.
func TestStandbyTakesNoBackup(t *testing.T) {
	h := newHost(t, pgtest.Options{SegSizeMB: 1})
	h.set(`backup: {schedule: ""}`, `backup: {schedule: "@every 1s"}`)
	uid, gid := pgtest.User()
	h.Stop(postgres.Fast)
	signal := filepath.Join(h.Dir, "standby.signal")
	if err := os.WriteFile(signal, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(signal, uid, gid); err != nil {
		t.Fatal(err)
	}
	h.Start()
	p := h.agent(h.config, h.service, false)
	h.until("a reason in the log", func() bool {
		return strings.Contains(p.log.String(), "the server is a standby, and backups are taken of the primary")
	})
	p.stop(t)
}

// A recovery that asks segment by segment is served what was fetched ahead; with the agent gone it is served all the same.
func TestFetch(t *testing.T) {
	h := newHost(t, pgtest.Options{SegSizeMB: 1})
	for range 20 {
		h.Exec("CREATE TABLE x ()", "DROP TABLE x", "SELECT pg_switch_wal()")
	}
	h.drained()
	c, err := h.archive().Coverage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	run := c.Timelines[1].Runs[0]
	p := h.agent(h.config, h.service, false)
	dest := filepath.Join(h.Dir, "pg_wal", "RECOVERYTEST")
	fetch := func(name string) (int, string) {
		cmd := exec.Command(h.pitr, "--config", h.config, "wal", "fetch", name, "pg_wal/RECOVERYTEST")
		pgtest.AsServerUser(cmd)
		cmd.Dir = h.Dir
		var errOut bytes.Buffer
		cmd.Stderr = &errOut
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		cmd.Wait() // the status tells
		return cmd.ProcessState.Sys().(syscall.WaitStatus).ExitStatus(), errOut.String()
	}
	name := func(no uint64) string { return wal.SegmentName(1, no, c.SegSize) }
	for no := run.First; no <= run.Last; no++ {
		if no == run.First+12 {
			if got := h.running().Fetch; got.Ahead < 9 || got.Recoveries != 1 {
				t.Errorf("fetched ahead: %+v", got)
			}
			p.kill()
		}
		if code, stderr := fetch(name(no)); code != 0 {
			t.Fatalf("fetch %s: %d\n%s", name(no), code, stderr)
		}
		got, err := os.ReadFile(dest)
		if err != nil {
			t.Fatal(err)
		}
		if want, err := os.ReadFile(filepath.Join(h.Dir, "pg_wal", name(no))); err == nil && !bytes.Equal(got, want) {
			t.Errorf("%s differs", name(no))
		}
	}
	h.agent(h.config, h.service, false)
	for _, absent := range []string{name(run.Last + 5), "00000009.history"} {
		if code, stderr := fetch(absent); code != 1 {
			t.Errorf("fetch of %s, which is not there: %d\n%s", absent, code, stderr)
		}
	}
	if n, err := filepath.Glob(filepath.Join(h.service, "ahead", "*", "*")); err != nil || len(n) > 16 {
		t.Errorf("%d files lie in the service directory, %v", len(n), err)
	}
	// A store that is away is no absence.
	if err := os.Rename(h.store, h.store+".away"); err != nil {
		t.Fatal(err)
	}
	if code, _ := fetch(name(run.Last + 5)); code != 200 {
		t.Errorf("fetch without a store: %d", code)
	}
	if err := os.Rename(h.store+".away", h.store); err != nil {
		t.Fatal(err)
	}
}

// A restore beside the running server is served by the same agent, ahead along its proven path, and the copy archives
// nothing.
func TestRestoreWithAgent(t *testing.T) {
	h := newHost(t, pgtest.Options{SegSizeMB: 1})
	p := h.agent(h.config, h.service, false)
	h.Exec("CREATE TABLE t (n int)")
	if _, stderr, err := h.run("backup", "create"); err != nil {
		t.Fatalf("%v\n%s", err, stderr)
	}
	for range 30 {
		h.Exec("INSERT INTO t SELECT g FROM generate_series(1, 100) g", "SELECT pg_switch_wal()")
	}
	h.drained()
	dir := filepath.Join(pgtest.TempDir(t), "copy")
	if out, stderr, err := h.run("restore", "--to", dir, "--start"); err != nil {
		t.Fatalf("%v\n%s%s", err, out, stderr)
	}
	copied := pgtest.Attach(t, dir, pgtest.Options{})
	if n := pgtest.QueryOne[int64](copied, "SELECT count(*) FROM t"); n != 3000 {
		t.Errorf("the copy has %d rows", n)
	}
	if f := h.running().Fetch; f.Ahead < 20 || f.Failures != 0 {
		t.Errorf("fetched for the restore: %+v", f)
	}
	before := h.running().Push.Files
	copied.Exec("CREATE TABLE of_the_copy ()", "SELECT pg_switch_wal()")
	cmd := exec.Command(h.pitr, "--config", h.config, "wal", "push", "pg_wal/"+pgtest.QueryOne[string](copied, "SELECT pg_walfile_name(pg_current_wal_lsn() - 1)"))
	pgtest.AsServerUser(cmd)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "archives nothing until it is adopted") {
		t.Errorf("a push of the copy: %v\n%s", err, out)
	}
	if n := h.running().Push.Files; n != before {
		t.Errorf("%d files were archived of the copy", n-before)
	}
	p.stop(t)
}
