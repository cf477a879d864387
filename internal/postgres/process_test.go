package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"pitr/internal/postgres"
	"pitr/internal/postgres/pgtest"
)

func startConfig(s *pgtest.Server) postgres.StartConfig {
	return postgres.StartConfig{BinDir: s.Bin.Dir, DataDir: s.Dir, LogFile: s.LogFile}
}

// start starts a server and sees to its end.
func start(t *testing.T, c postgres.StartConfig) *postgres.Process {
	t.Helper()
	p, err := postgres.Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := p.Stop(ctx, postgres.Immediate); err != nil {
			t.Error(err)
		}
	})
	return p
}

func TestStartStop(t *testing.T) {
	forEachBin(t, func(t *testing.T, bin pgtest.Bin) {
		s := pgtest.Start(t, pgtest.Options{Bin: bin, NotYet: true})
		c := startConfig(s)
		c.Options = []string{"-c", "work_mem=7MB"}
		c.Env = append(os.Environ(), "NOTIFY_SOCKET=/nowhere", "PITR_TEST=seen")
		p := start(t, c)
		if got := pgtest.QueryOne[string](s, "SHOW work_mem"); got != "7MB" {
			t.Errorf("work_mem %s", got)
		}
		pid, running, err := postgres.Running(s.Dir)
		if pid != p.PID() || !running || err != nil {
			t.Errorf("process %d, running %v, %v; want %d", pid, running, err, p.PID())
		}
		env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.PID()))
		if err != nil || strings.Contains(string(env), "NOTIFY_SOCKET") || !strings.Contains(string(env), "PITR_TEST=seen\x00") {
			t.Errorf("environment %q, %v", env, err)
		}
		uid, _ := pgtest.User()
		if info, err := os.Stat(s.LogFile); err != nil || info.Mode().Perm() != 0o600 || int(info.Sys().(*syscall.Stat_t).Uid) != uid {
			t.Errorf("log: %v, %v", info, err)
		}

		second, err := postgres.Start(t.Context(), startConfig(s))
		exit, ok := errors.AsType[*postgres.ExitError](err)
		if !ok || exit.Code != 1 || !strings.Contains(err.Error(), `lock file "postmaster.pid" already exists`) {
			t.Errorf("a second server: %v, %v", second, err)
		}

		// A smart stop waits for the session; a fast one does not.
		conn := s.Connect("postgres")
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if err := p.Stop(ctx, postgres.Smart); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("smart stop with a session: %v", err)
		}
		if _, err := p.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("wait: %v", err)
		}
		if err := conn.Ping(t.Context()); err != nil {
			t.Error(err)
		}
		if err := p.Stop(t.Context(), postgres.Fast); err != nil {
			t.Error(err)
		}
		if exit, err := p.Wait(t.Context()); err != nil || exit.Code != 0 || exit.Signal != 0 || !strings.Contains(exit.Log, "database system is shut down") {
			t.Errorf("after a fast stop: %+v, %v", exit, err)
		}
		if err := p.Stop(t.Context(), postgres.Immediate); err != nil {
			t.Errorf("stop of a stopped server: %v", err)
		}

		p = start(t, startConfig(s))
		if err := p.Stop(t.Context(), postgres.Immediate); err != nil {
			t.Error(err)
		}
		p = start(t, startConfig(s))
		s.Kill()
		if exit, err := p.Wait(t.Context()); err != nil || exit.Signal != syscall.SIGKILL || exit.Code != -1 {
			t.Errorf("after SIGKILL: %+v, %v", exit, err)
		}
	})
}

func TestStartFails(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{NotYet: true, Conf: map[string]string{"work_mem": "oops"}})
	fails := func(why string) {
		t.Helper()
		p, err := postgres.Start(t.Context(), startConfig(s))
		exit, ok := errors.AsType[*postgres.ExitError](err)
		if !ok {
			t.Fatalf("got %v, %v", p, err)
		}
		if exit.Code != 1 || exit.Signal != 0 || !strings.Contains(exit.Log, why) || !strings.HasPrefix(err.Error(), "start server on "+s.Dir+": server exited with status 1; its last words:\n") {
			t.Errorf("got %v", err)
		}
	}
	fails(`invalid value for parameter "work_mem": "oops"`)
	s.Conf(map[string]string{"work_mem": "4MB", "port": "1", "listen_addresses": "203.0.113.1"})
	fails("could not create any TCP/IP sockets")
	// Only this attempt's words, though the log holds the earlier ones too.
	_, err := postgres.Start(t.Context(), startConfig(s))
	if err == nil || strings.Contains(err.Error(), "work_mem") {
		t.Errorf("got %v", err)
	}
	// With the logging collector the reason stands elsewhere.
	s.Conf(map[string]string{"listen_addresses": "", "port": strconv.Itoa(s.Port), "logging_collector": "on", "log_directory": "logs", "recovery_target_xid": "5"})
	write(t, filepath.Join(s.Dir, "recovery.signal"), "")
	fails("when standby mode is not enabled")

	c := startConfig(s)
	c.BinDir = "/nowhere"
	if _, err := postgres.Start(t.Context(), c); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a program: %v", err)
	}
	c = startConfig(s)
	c.LogFile = "/nowhere/log"
	if _, err := postgres.Start(t.Context(), c); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a log: %v", err)
	}
	c = startConfig(s)
	c.DataDir = "/nowhere"
	if _, err := postgres.Start(t.Context(), c); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a directory: %v", err)
	}
	c = startConfig(s)
	c.User = "no such user"
	if _, err := postgres.Start(t.Context(), c); err == nil || !strings.Contains(err.Error(), `look up user "no such user"`) {
		t.Errorf("without a user: %v", err)
	}
}

func TestRunning(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{NoFsync: true})
	is := func(what string, dir string, want int) {
		t.Helper()
		pid, running, err := postgres.Running(dir)
		if pid != want || running != (want != 0) || err != nil {
			t.Errorf("%s: process %d, running %v, %v; want %d", what, pid, running, err, want)
		}
	}
	is("running", s.Dir, s.PID())
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(s.Dir, link); err != nil {
		t.Fatal(err)
	}
	is("by another path", link, s.PID())
	post, err := postgres.ReadPostmaster(s.Dir)
	if err != nil || post.PID != s.PID() || post.DataDir != s.Dir || post.Port != s.Port || post.SocketDir != s.SocketDir || post.Listen != "" || post.ShmID < 0 || post.Status != "ready" || time.Since(post.Started).Abs() > time.Minute {
		t.Errorf("postmaster.pid: %+v, %v", post, err)
	}

	// A postmaster.pid that somebody removed hides nothing.
	pidFile := filepath.Join(s.Dir, "postmaster.pid")
	saved, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(pidFile, pidFile+".away"); err != nil {
		t.Fatal(err)
	}
	if _, running, err := postgres.Running(s.Dir); !running || err != nil {
		t.Errorf("without postmaster.pid: running %v, %v", running, err)
	}
	if err := os.Rename(pidFile+".away", pidFile); err != nil {
		t.Fatal(err)
	}
	s.Kill()
	is("killed", s.Dir, 0)

	// Stale files: of a process that is gone, a zombie, this process, one that works elsewhere.
	child := exec.Command("sleep", "60")
	child.Dir = "/"
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer child.Wait()
	defer child.Process.Kill()
	zombie := exec.Command("true")
	zombie.Dir = s.Dir
	if err := zombie.Start(); err != nil {
		t.Fatal(err)
	}
	defer zombie.Wait()
	time.Sleep(100 * time.Millisecond)
	shell := exec.Command("sleep", "60")
	shell.Dir = s.Dir
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	defer shell.Wait()
	defer shell.Process.Kill()
	_, rest, _ := strings.Cut(string(saved), "\n")
	for what, pid := range map[string]int{"another process": child.Process.Pid, "a zombie": zombie.Process.Pid, "this process": os.Getpid(), "init": 1} {
		if err := os.WriteFile(pidFile, []byte(strconv.Itoa(pid)+"\n"+rest), 0o600); err != nil {
			t.Fatal(err)
		}
		is(what, s.Dir, 0)
	}
	// One that works in the directory could be a server by another name.
	if err := os.WriteFile(pidFile, []byte(strconv.Itoa(-shell.Process.Pid)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	is("in the directory", s.Dir, shell.Process.Pid)

	if err := os.WriteFile(pidFile, []byte("x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := postgres.Running(s.Dir); err == nil {
		t.Error("a senseless postmaster.pid passes for none")
	}
	if err := os.Remove(pidFile); err != nil {
		t.Fatal(err)
	}
	is("a shell in the directory", s.Dir, 0)
	is("no directory", "/nowhere", 0)
}

// A server whose postmaster was killed may have processes that still work.
// A line feed in the name of the data directory moves the lines of postmaster.pid, also those that the server counts.
func TestPostmasterOfOddDirectory(t *testing.T) {
	t.Parallel()
	made := pgtest.Start(t, pgtest.Options{NoFsync: true})
	made.Stop(postgres.Fast)
	for _, name := range []string{"a\nb", "\n1\n2\n3\n4\n5\n6\n"} {
		dir := filepath.Join(filepath.Dir(made.Dir), name)
		if err := os.Rename(made.Dir, dir); err != nil {
			t.Fatal(err)
		}
		s := pgtest.OpenDir(t, dir, pgtest.Options{})
		post, err := postgres.ReadPostmaster(dir)
		if err != nil || post.PID != s.PID() || post.DataDir != dir || post.Port != s.Port || post.SocketDir != s.SocketDir || post.ShmID < 0 || post.Status != "ready" {
			t.Errorf("%q: %+v, %v; want port %d in %s", name, post, err, s.Port, s.SocketDir)
		}
		s.Stop(postgres.Fast)
		if err := os.Rename(dir, made.Dir); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRunningOrphan(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{NoFsync: true})
	conn := s.Connect("postgres")
	pid := conn.PgConn().PID()
	// Stopped, it can't notice that its postmaster dies.
	if err := syscall.Kill(int(pid), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(s.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		got, running, err := postgres.Running(s.Dir)
		if !running || err != nil {
			t.Fatalf("process %d, running %v, %v", got, running, err)
		}
		if got == int(pid) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d stays, want %d alone", got, pid)
		}
	}
	s.Kill()
	if got, running, err := postgres.Running(s.Dir); running || err != nil {
		t.Fatalf("process %d, running %v, %v", got, running, err)
	}
}

func TestAccount(t *testing.T) {
	t.Parallel()
	dir := pgtest.TempDir(t)
	uid, gid := pgtest.User()
	a, err := postgres.AccountOf(dir)
	if err != nil || int(a.UID) != uid || int(a.GID) != gid || len(a.Groups) == 0 || a.Groups[0] != a.GID {
		t.Fatalf("owner %+v, %v; want %d, %d", a, err, uid, gid)
	}
	cmd := exec.Command("sh", "-c", `echo "$(id -u) $(id -g) $HOME"`)
	if err := a.RunAs(cmd); err != nil {
		t.Fatal(err)
	}
	home := a.Home
	if os.Geteuid() != 0 {
		home = os.Getenv("HOME")
	}
	if out, err := cmd.Output(); err != nil || string(out) != fmt.Sprintf("%d %d %s\n", uid, gid, home) {
		t.Errorf("runs as %q, %v; want %d, %d, %s", out, err, uid, gid, home)
	}
	if err := (postgres.Account{}).RunAs(exec.Command("true")); err == nil {
		t.Error("root is accepted")
	}
	if os.Geteuid() != 0 {
		if err := (postgres.Account{UID: uint32(uid) + 1}).RunAs(exec.Command("true")); err == nil {
			t.Error("becoming another user is accepted")
		}
	}
	if b, err := postgres.LookupAccount(a.Name); a.Name != "" && (err != nil || fmt.Sprint(a) != fmt.Sprint(b) || a.UID != b.UID) {
		t.Errorf("by name %+v, %v", b, err)
	}
	if _, _, err := postgres.OwnerOf(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("owner of nothing: %v", err)
	}
	if _, _, err := postgres.OwnerOf("/dev/null"); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("owner of no directory: %v", err)
	}
}
