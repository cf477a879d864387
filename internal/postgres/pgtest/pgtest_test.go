package pgtest_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"pitr/internal/postgres"
	"pitr/internal/postgres/pgtest"
)

func TestServer(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{SegSizeMB: 1, Tablespaces: 2, WALDir: true, Conf: map[string]string{"work_mem": "5MB", "application_name": `it's \ odd`}})
	for sql, want := range map[string]string{
		"SHOW wal_segment_size": "1MB", "SHOW work_mem": "5MB", "SHOW data_checksums": "on", "SHOW fsync": "on", "SHOW application_name": `it's \ odd`,
	} {
		if got := pgtest.QueryOne[string](s, sql); got != want {
			t.Errorf("%s: %q, want %q", sql, got, want)
		}
	}
	if got := pgtest.Query[string](s, "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname LIKE 'ts%' ORDER BY 1"); len(got) != 2 || got[0] != s.Tablespaces[0] {
		t.Errorf("tablespaces %q, want %q", got, s.Tablespaces)
	}
	if dest, err := os.Readlink(filepath.Join(s.Dir, "pg_wal")); err != nil || dest != s.WALDir {
		t.Errorf("pg_wal leads to %q (%v), want %q", dest, err, s.WALDir)
	}

	s.Exec("CREATE TABLE t AS SELECT generate_series(1, 1000) AS a")
	s.Conf(map[string]string{"work_mem": "6MB"})
	s.Reload()
	if got := pgtest.QueryOne[string](s, "SHOW work_mem"); got != "6MB" {
		t.Errorf("work_mem after reload: %s", got)
	}
	s.Kill()
	if pid, running, err := postgres.Running(s.Dir); running || err != nil {
		t.Fatalf("after Kill: process %d, running %v, %v", pid, running, err)
	}
	s.StartAgain()
	s.Restart()
	if got := pgtest.QueryOne[int64](s, "SELECT count(*) FROM t"); got != 1000 {
		t.Errorf("%d rows after crash and restart", got)
	}
	s.Run("pgbench", "-i", "-q")
	if got := s.Run("psql", "-XAtc", "SELECT count(*) FROM pgbench_accounts"); strings.TrimSpace(got) != "100000" {
		t.Errorf("psql says %q", got)
	}
	if _, err := s.TryRun(t.Context(), "psql", "-XAtc", "SELECT nonsense"); err == nil || !strings.Contains(err.Error(), `column "nonsense" does not exist`) {
		t.Errorf("psql with a wrong statement: %v", err)
	}
	s.Stop(postgres.Fast)
	if !s.Bin.Has("pg_checksums") {
		t.Skip("all but the page checksums: this installation has no pg_checksums, and that of another version refuses")
	}
	if got := s.Run("pg_checksums", "--check", s.Dir); !strings.Contains(got, "Bad checksums:  0") {
		t.Errorf("pg_checksums: %s", got)
	}
}

func TestOpenDir(t *testing.T) {
	t.Parallel()
	a := pgtest.Start(t, pgtest.Options{NoFsync: true})
	a.Exec("CREATE TABLE t AS SELECT 1 AS a")
	a.Stop(postgres.Immediate)
	dir := filepath.Join(pgtest.TempDir(t), "copy")
	if out, err := exec.Command("cp", "-a", a.Dir, dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b := pgtest.OpenDir(t, dir, pgtest.Options{Conf: map[string]string{"work_mem": "7MB"}})
	if got := pgtest.QueryOne[int32](b, "SELECT a FROM t"); got != 1 {
		t.Errorf("copy holds %d", got)
	}
	if got := pgtest.QueryOne[string](b, "SHOW work_mem"); got != "7MB" {
		t.Errorf("work_mem: %s", got)
	}
	c := pgtest.Attach(t, dir, pgtest.Options{})
	if c.PID() != b.PID() {
		t.Errorf("attached to %d, want %d", c.PID(), b.PID())
	}
	c.Exec("INSERT INTO t VALUES (2)")
	_, err := pgtest.TryOpenDir(t, pgtest.TempDir(t), pgtest.Options{})
	if _, ok := errors.AsType[*postgres.ExitError](err); !ok {
		t.Errorf("server on an empty directory: %v, want an ExitError", err)
	}
}

func TestNewSystem(t *testing.T) {
	t.Parallel()
	const q = "SELECT system_identifier FROM pg_control_system()"
	a := pgtest.Start(t, pgtest.Options{NoFsync: true})
	b := pgtest.Start(t, pgtest.Options{NoFsync: true, NewSystem: true, NoChecksums: true, NotYet: true})
	b.Start()
	if x, y := pgtest.QueryOne[int64](a, q), pgtest.QueryOne[int64](b, q); x == y {
		t.Errorf("both servers have the system identifier %d", x)
	}
	if got := pgtest.QueryOne[string](b, "SHOW data_checksums"); got != "off" {
		t.Errorf("data_checksums: %s", got)
	}
}

// childEnv makes TestChild start a server, name it, and wait to be killed.
const childEnv = "PITR_PGTEST_CHILD"

func TestChild(t *testing.T) {
	if os.Getenv(childEnv) == "" {
		return // it is part of TestKilledTest
	}
	s := pgtest.Start(t, pgtest.Options{NoFsync: true})
	os.Stdout.WriteString("dir " + s.Dir + "\n")
	io.Copy(io.Discard, os.Stdin)
}

// A test process that is killed leaves nothing behind.
func TestKilledTest(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestChild$")
	cmd.Env = append(os.Environ(), childEnv+"=1")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var dir string
	for lines := bufio.NewScanner(stdout); dir == "" && lines.Scan(); {
		if d, ok := strings.CutPrefix(lines.Text(), "dir "); ok {
			dir = d
		}
	}
	pid, running, err := postgres.Running(dir)
	if dir == "" || err != nil || !running {
		t.Fatalf("child's server on %q: running %v, %v", dir, running, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait() // killed, as wanted
	root := filepath.Dir(filepath.Dir(dir))
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		_, err := os.Stat(root)
		if errors.Is(err, os.ErrNotExist) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is still there", root)
		}
	}
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("postmaster %d is still there: %v", pid, err)
	}
}
