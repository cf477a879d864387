package restore_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pitr/internal/postgres"
	"pitr/internal/postgres/pgtest"
)

// TestCalledAgain: what an administrator does whose session broke away, or who starts a copy by hand.
func TestCalledAgain(t *testing.T) {
	t.Parallel()
	s := newSite(t, pgtest.Options{SegSizeMB: 1}, "")
	s.Exec("CREATE TABLE t (n serial, v text)", "INSERT INTO t (v) VALUES ('1')")
	s.backup(t)
	s.Exec("INSERT INTO t (v) VALUES ('2')")
	s.flush(t)

	t.Run("killed after the copying", func(t *testing.T) { s.killedLate(t) })
	t.Run("started by hand", func(t *testing.T) { s.byHand(t) })
	t.Run("archived late", func(t *testing.T) { s.archivedLate(t) }) // the last one: it kills the server
}

// killedLate kills restores that have copied everything, at several moments of what comes then. The same call, with and
// without more WAL archived since, with the server of the first call running or killed as well, comes to the end.
func (s *site) killedLate(t *testing.T) {
	for i, sign := range []string{"global/pg_control", "postmaster.pid", "backup_label.old"} {
		for _, down := range []bool{false, true} {
			what := fmt.Sprintf("killed at %s, machine down: %t", sign, down)
			to := filepath.Join(pgtest.TempDir(t), "copy")
			args := []string{"restore", "--to", to, "--start", "--json"}
			cmd := s.command(t.Context(), args...)
			pgtest.AsServerUser(cmd)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
				if _, err := os.Stat(filepath.Join(to, sign)); err == nil {
					break
				}
			}
			cmd.Process.Kill() // it may have ended
			cmd.Wait()
			if down {
				kill(t, to)
			}
			want := rows(s.Server)
			if i == 1 {
				// Whether that is reached depends on whether the server runs on.
				s.Exec(fmt.Sprintf("INSERT INTO t (v) VALUES ('%t')", down))
				s.flush(t)
				want = rows(s.Server)
			}
			r := s.pitr(t, args...)
			if down && r.code == 7 && strings.Contains(r.err, "a server has been opened on what was restored to") {
				t.Logf("%s: it had come to the end", what)
				continue
			}
			var d done
			if err := json.Unmarshal([]byte(r.out), &d); r.code != 0 || err != nil || d.Started == nil {
				t.Fatalf("%s: exit status %d: %v\n%s%s", what, r.code, err, r.out, r.err)
			}
			c := pgtest.Attach(t, to, pgtest.Options{Bin: s.Bin})
			if got := rows(c); got != want && (down || i != 1 || !strings.HasPrefix(want, got)) {
				t.Errorf("%s: rows %q, want %q", what, got, want)
			}
			c.CheckPages()
		}
	}
}

// kill ends the server that runs in dir, if one does, as a power cut would.
func kill(t *testing.T, dir string) {
	t.Helper()
	postmaster := 0
	eventually(t, "the server is gone", func() bool {
		pid, running, err := postgres.Running(dir)
		if err != nil {
			t.Fatal(err)
		}
		if running {
			if post, err := postgres.ReadPostmaster(dir); err == nil {
				postmaster = post.PID
			}
			syscall.Kill(pid, syscall.SIGKILL) // it may be gone by now
			return false
		}
		// PostgreSQL does not start as long as nobody has taken note of the end of the one before.
		return postmaster == 0 || syscall.Kill(postmaster, 0) == syscall.ESRCH
	})
}

// byHand starts a copy with pg_ctl beside the server it comes from, whose configuration would have them collide, and names
// files that are not there.
func (s *site) byHand(t *testing.T) {
	listen := "127.0.0.1"
	s.Conf(map[string]string{"listen_addresses": listen, "ssl_cert_file": "/nonexistent/cert.pem", "ssl_key_file": "/nonexistent/key.pem",
		"log_directory": filepath.Join(s.base, "log"), "external_pid_file": filepath.Join(s.base, "pid")})
	s.Restart()
	s.Conf(map[string]string{"ssl": "on"}) // not in force here
	s.backup(t)
	s.flush(t)
	to := filepath.Join(pgtest.TempDir(t), "it's a copy")
	out := s.must(t, "restore", "--to", to)
	_, tail, ok := strings.Cut(out, "start it with: ")
	lines := strings.Split(tail, "\n")
	if !ok || len(lines) != 5 || lines[3] != "it archives nothing (--archive off)" ||
		lines[2] != "it is a copy apart: a socket of its own and no TCP, by settings at the end of "+postgres.ShellQuote(filepath.Join(to, "postgresql.auto.conf")) {
		t.Fatalf("%s", out)
	}
	// Asked once more, it says the same of what it finds.
	again := s.must(t, "restore", "--to", to)
	first, rest, _ := strings.Cut(again, "\n")
	if s.plain(first, to, "$TO") != "an earlier call, on TIME, has restored backup ID to $TO" || !strings.Contains(rest, lines[0]) {
		t.Errorf("%s", again)
	}
	lines = strings.Split(again[strings.Index(again, "start it with: ")+len("start it with: "):], "\n")
	shellAs := func(line string) string {
		cmd := s.command(t.Context())
		cmd.Path, cmd.Args = "/bin/sh", []string{"sh", "-c", line}
		cmd.Env = append(cmd.Env, "PATH="+s.Bin.Dir+":"+os.Getenv("PATH"))
		cmd.Dir = "/"
		pgtest.AsServerUser(cmd)
		r := run(t, cmd)
		if r.code != 0 {
			log, _ := os.ReadFile(filepath.Join(to, "pitr_server.log"))
			t.Fatalf("%s: exit status %d\n%s%s%s", line, r.code, r.out, r.err, log)
		}
		return r.out
	}
	shellAs(strings.Replace(lines[0], "pg_ctl", "pg_ctl -w", 1) + " >/dev/null 2>&1")
	c := pgtest.Attach(t, to, pgtest.Options{Bin: s.Bin})
	c.AwaitPrimary()
	if got, want := rows(c), rows(s.Server); got != want {
		t.Errorf("rows %q, want %q", got, want)
	}
	connect, ok := strings.CutPrefix(lines[1], "connect with: ")
	if got := shellAs(connect + " -d postgres -XAtc 'SHOW listen_addresses'"); !ok || got != "\n" {
		t.Errorf("%s: listens at %q", lines[1], got)
	}
	for _, outside := range []string{"log"} {
		if _, err := os.Stat(filepath.Join(s.base, outside)); err == nil {
			t.Errorf("the copy has written %s outside of its directory", outside)
		}
	}
	// Now it is in use.
	s.expect(t, s.pitr(t, "restore", "--to", to), 7,
		"pitr: refused: a server runs in $TO (process PID)\nHINT: an earlier call has restored this: with --start the same command waits for the server\n", to, "$TO")
	if out := s.must(t, "restore", "--to", to, "--start"); !strings.Contains(out, "the server has reached the target at ") {
		t.Errorf("%s", out)
	}
	c.Restart()
	s.expect(t, s.pitr(t, "restore", "--to", to, "--start", "--quiet"), 7,
		"pitr: wait for the server that runs in $TO (process PID, which is left alone): refused: the server that was restored to $TO has been opened\n"+
			"HINT: it is in use: stop it and remove the directory, or choose another one\n", to, "$TO")
	c.Stop(postgres.Fast)
	s.expect(t, s.pitr(t, "restore", "--to", to), 7,
		"pitr: refused: a server has been opened on what was restored to $TO\nHINT: choose a directory that is empty or does not exist yet\n", to, "$TO")

	// What is to replace the parent keeps its place on the network.
	heir := filepath.Join(pgtest.TempDir(t), "heir")
	out = s.must(t, "restore", "--to", heir, "--archive", "on")
	if auto := string(read(t, filepath.Join(heir, "postgresql.auto.conf"))); strings.Contains(auto, "port") || !strings.HasSuffix(out, "beside its parent, change them first\n") {
		t.Errorf("%s\n%s", out, auto)
	}
}

// archivedLate restores a server that died with WAL of its own in its place, while the store can't be written at first: what
// becomes archived only after the plan was shown is restored all the same.
func (s *site) archivedLate(t *testing.T) {
	s.Conf(map[string]string{"ssl": "off"})
	s.backup(t)
	s.Conf(map[string]string{"archive_command": "false"})
	s.Reload()
	s.Exec("INSERT INTO t (v) VALUES ('late')", "SELECT pg_switch_wal()", "INSERT INTO t (v) VALUES ('last')")
	want := rows(s.Server)
	s.Kill()
	writable := func(mode os.FileMode) {
		t.Helper()
		for _, dir := range append(glob(t, s.repo, "*", "wal", "*"), glob(t, s.repo, "*", "wal", "*", "*")...) {
			if info, err := os.Stat(dir); err == nil && info.IsDir() {
				if err := os.Chmod(dir, mode); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	writable(0o500)
	defer writable(0o700)

	terminal, side := openTerminal(t)
	cmd := s.command(t.Context(), "restore")
	cmd.Stdin = side
	var out bytes.Buffer
	cmd.Stdout = &out
	complaint, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	pgtest.AsServerUser(cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	answered := false
	for buf := make([]byte, 4096); ; {
		n, err := complaint.Read(buf)
		said.Write(buf[:n])
		if !answered && strings.Contains(said.String(), "[y/N]") {
			answered = true
			writable(0o700)
			if _, err := terminal.Write([]byte("y\n")); err != nil {
				t.Fatal(err)
			}
		}
		if err != nil {
			break
		}
	}
	if err := cmd.Wait(); err != nil || !answered {
		t.Fatalf("%v\n%s%s", err, out.String(), said.String())
	}
	for _, text := range []string{"WAL of the old directory could not be archived", "the plan is made anew"} {
		if !strings.Contains(said.String(), text) {
			t.Errorf("it does not say %q:\n%s", text, said.String())
		}
	}
	s.Start()
	s.AwaitPrimary()
	if got := rows(s.Server); got != want {
		t.Errorf("rows %q, want %q\n%s", got, want, said.String())
	}
}

// openTerminal gives the two ends of a pseudo-terminal.
func openTerminal(t *testing.T) (terminal, side *os.File) {
	t.Helper()
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { terminal.Close() })
	fd := int(terminal.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	side, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { side.Close() })
	return terminal, side
}
