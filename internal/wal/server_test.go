package wal_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// binDirs returns the servers to test against: PITR_TEST_PG_BINDIRS, a list
// separated by colons, else what the distribution installed.
func binDirs(t testing.TB) []string {
	t.Helper()
	if list := os.Getenv("PITR_TEST_PG_BINDIRS"); list != "" {
		return strings.Split(list, ":")
	}
	dirs := installedBinDirs()
	if len(dirs) == 0 {
		t.Fatal("no PostgreSQL server found: install one (on Debian: apt-get install postgresql) or name its bin directory in PITR_TEST_PG_BINDIRS")
	}
	return dirs
}

func installedBinDirs() []string {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb") // the pattern is right, so no error
	var dirs []string
	for _, f := range found {
		dirs = append(dirs, filepath.Dir(f))
	}
	return dirs
}

// server is a PostgreSQL server of this test's own, reached by a socket in its
// directory.
type server struct {
	t       testing.TB
	bin     string
	psql    string
	major   int
	dir     string // of everything
	data    string
	running bool
}

// newServer makes a cluster; it is stopped and removed with the test.
func newServer(t testing.TB, bin string, segMB int, settings string) *server {
	t.Helper()
	dir, err := os.MkdirTemp("", "pitr-wal-")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, bin: bin, dir: dir, data: filepath.Join(dir, "data")}
	t.Cleanup(func() {
		if s.running {
			s.ctl("stop", "-m", "immediate")
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if attr := serverCredential(t); attr != nil {
		if err := os.Chown(dir, int(attr.Uid), int(attr.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	version := s.run("postgres", "--version")
	m := regexp.MustCompile(`\(PostgreSQL\) (\d+)`).FindStringSubmatch(version)
	if m == nil {
		t.Fatalf("%s/postgres --version: %q", bin, version)
	}
	s.major, _ = strconv.Atoi(m[1])
	for _, d := range append([]string{bin}, installedBinDirs()...) {
		if _, err := os.Stat(filepath.Join(d, "psql")); err == nil {
			s.psql = filepath.Join(d, "psql")
			break
		}
	}
	if s.psql == "" {
		t.Fatal("no psql found: install PostgreSQL's client (on Debian: apt-get install postgresql-client)")
	}
	s.run("initdb", "-D", s.data, "-U", "test", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "--wal-segsize="+strconv.Itoa(segMB))
	s.configure("listen_addresses=''\nunix_socket_directories='" + dir + "'\nfsync=off\nlock_timeout='60s'\nwal_keep_size='2GB'\nmax_wal_size='4GB'\n" +
		"max_prepared_transactions=10\ntrack_commit_timestamp=on\nautovacuum=off\nwal_level=logical\nshared_buffers='16MB'\n" + settings)
	return s
}

// serverCredential is the user to run servers as where the test runs as root,
// which PostgreSQL refuses.
func serverCredential(t testing.TB) *syscall.Credential {
	if os.Geteuid() != 0 {
		return nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		t.Fatalf("running as root, and there is no user to run a server as: %v", err)
	}
	uid, _ := strconv.ParseUint(u.Uid, 10, 32)
	gid, _ := strconv.ParseUint(u.Gid, 10, 32)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

// command prepares a call of one of the server's programs, as the server's user.
func (s *server) command(name string, args ...string) *exec.Cmd {
	s.t.Helper()
	if !filepath.IsAbs(name) {
		name = filepath.Join(s.bin, name)
	}
	cmd := exec.Command(name, args...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC", "PGTZ=UTC")
	if cred := serverCredential(s.t); cred != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	}
	return cmd
}

// run runs one of the server's programs and returns what it prints.
func (s *server) run(name string, args ...string) string {
	s.t.Helper()
	cmd := s.command(name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		s.t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String()
}

func (s *server) configure(settings string) {
	s.t.Helper()
	f, err := os.OpenFile(filepath.Join(s.data, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("\n" + settings + "\n"); err != nil {
		s.t.Fatal(err)
	}
}

// ctl calls pg_ctl and waits. The server's own output goes to a file.
func (s *server) ctl(args ...string) {
	s.t.Helper()
	s.run("pg_ctl", append([]string{"-D", s.data, "-w", "-s", "-l", filepath.Join(s.dir, "log")}, args...)...)
}

func (s *server) start() {
	s.t.Helper()
	s.ctl("start")
	s.running = true
}

func (s *server) stop(mode string) {
	s.t.Helper()
	s.ctl("stop", "-m", mode)
	s.running = false
}

// sql runs statements one by one, and returns the rows, fields separated by |.
func (s *server) sql(statements ...string) string {
	s.t.Helper()
	return s.sqlIn("postgres", statements...)
}

func (s *server) sqlIn(db string, statements ...string) string {
	s.t.Helper()
	args := []string{"-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", s.dir, "-U", "test", "-d", db}
	for _, st := range statements {
		args = append(args, "-c", st)
	}
	return strings.TrimSpace(s.run(s.psql, args...))
}

// segments returns the names of the segments in pg_wal, in order, without those
// that were made for future use.
func (s *server) segments() []string {
	s.t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.data, "pg_wal"))
	if err != nil {
		s.t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if len(e.Name()) == 24 {
			names = append(names, e.Name())
		}
	}
	sort.Strings(names)
	return names
}

func (s *server) read(name string) []byte {
	s.t.Helper()
	b, err := os.ReadFile(filepath.Join(s.data, name))
	if err != nil {
		s.t.Fatal(err)
	}
	return b
}

func (s *server) write(name string, data []byte) {
	s.t.Helper()
	// The file is there and keeps its owner.
	if err := os.WriteFile(filepath.Join(s.data, name), data, 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// startFails starts the server, which must fail, and returns its log.
func (s *server) startFails() string {
	s.t.Helper()
	log := filepath.Join(s.dir, "failed")
	cmd := s.command("pg_ctl", "-D", s.data, "-w", "-s", "-l", log, "start")
	if err := cmd.Run(); err == nil {
		s.running = true
		s.t.Error("the server started")
	}
	b, err := os.ReadFile(log)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(b)
}

// has reports whether the server's directory has this program.
func (s *server) has(program string) bool {
	_, err := os.Stat(filepath.Join(s.bin, program))
	return err == nil
}

// mixedLoad makes WAL of every kind that the index tells of.
func (s *server) mixedLoad() {
	s.t.Helper()
	s.sql(
		`create table acc (id int primary key, bal int, note text)`,
		`insert into acc select g, 0, repeat('x', 100) from generate_series(1, 20000) g`,
		`create table hist (id serial, acc int, at timestamptz)`,
		`create unlogged table unl (id int primary key)`,
		`checkpoint`,
		`select pg_create_restore_point('first point')`,
		`do $$ begin for i in 1..300 loop
			update acc set bal = bal + i where id = (i * 7919) % 20000;
			insert into hist (acc, at) values (i, now());
			commit; end loop; end $$`,
	)
	s.sql(`create table cut as select g, repeat('c', 200) from generate_series(1, 10000) g`, `delete from cut where g > 2000`, `vacuum cut`)
	s.sql(`create table kept as select g from generate_series(1, 3000) g`)
	s.sql(`vacuum full kept`)
	s.sql(`begin; insert into hist (acc) values (-1); savepoint a; insert into hist (acc) values (-2); savepoint b; insert into hist (acc) values (-3); commit`)
	s.sql(`begin; insert into hist (acc) values (-4); create table gone (i int); insert into gone values (1); rollback`)
	s.sql(`begin; insert into hist (acc) values (-5); savepoint x; insert into hist (acc) values (-6); prepare transaction 'two phase é one'`)
	s.sql(`begin; insert into hist (acc) values (-7); prepare transaction 'two'`)
	s.sql(`begin; insert into hist (acc) values (-8); prepare transaction 'stays'`)
	s.sql(`commit prepared 'two phase é one'`, `rollback prepared 'two'`)
	s.sql(`create table doomed as select g from generate_series(1, 5000) g`, `create index on doomed (g)`, `drop table doomed`)
	s.sql(`create table trunc as select g from generate_series(1, 5000) g`, `truncate trunc`)
	s.sql(`select pg_logical_emit_message(false, 'p', repeat('m', 700000))`, `select pg_logical_emit_message(true, 'p', repeat('n', 90000))`)
	s.sql(fmt.Sprintf(`insert into hist (acc) select g from generate_series(1, %d) g`, 40000))
	s.sql(`create sequence sq`, `select count(nextval('sq')) from generate_series(1, 200)`)
	s.sql(`select pg_switch_wal()`)
	s.sql(`create database d1`)
	if s.major >= 15 {
		s.sql(`create database d2 strategy file_copy`)
	} else {
		s.sql(`create database d2`)
	}
	s.sqlIn("d2", `create table t2 as select g from generate_series(1, 1000) g`)
	s.sql(`drop database d1`)
	s.sql(`select pg_create_restore_point('second')`, `select pg_switch_wal()`)
	s.sql(`insert into hist (acc) values (99)`, `checkpoint`)
}
