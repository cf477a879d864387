package pgtest

import (
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"pitr/internal/postgres"
)

// startTimeout is how long a server may take to start or stop, crash recovery included.
const startTimeout = 2 * time.Minute

// Options say what server a test wants. The zero value is an ordinary one: checksums, 16 MB segments, fsync, no TCP.
type Options struct {
	Bin         Bin               // zero: the newest of Bins that has PostgreSQL's tools beside the server, or the newest
	SegSizeMB   int               // of a WAL segment; 0: 16
	NoChecksums bool              // without page checksums
	NoFsync     bool              // for tests that crash neither server nor machine
	Conf        map[string]string // settings; values as the server should see them, unquoted
	Tablespaces int               // that many, called ts1, ts2, …
	WALDir      bool              // pg_wal is a link to a directory elsewhere
	Initdb      []string          // more arguments for initdb
	// NewSystem makes a server with a system identifier of its own. Others are copies, with that of their template.
	NewSystem bool
	NotYet    bool // leave the server stopped: Start begins it
}

// Server is a PostgreSQL server of a test. The superuser is postgres, and everybody is trusted.
type Server struct {
	Dir         string // data directory
	SocketDir   string
	Port        int
	Bin         Bin
	LogFile     string
	WALDir      string   // where a linked pg_wal leads, else empty
	Tablespaces []string // directories of ts1, ts2, …

	t       testing.TB
	args    []string // of the command line
	pidFile string   // tells the keeper
	pid     int
	shmID   int // of its System V segment
}

// Start makes a server and starts it. It is stopped and removed when the test is over.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	s := newServer(t, o)
	base := TempDir(t)
	s.Dir = filepath.Join(base, "data")
	newDataDir(t, s.Bin, o, s.Dir)
	t.Cleanup(s.end) // runs before the removal of the directories
	if o.WALDir {
		s.WALDir = filepath.Join(base, "wal")
		wal := filepath.Join(s.Dir, "pg_wal")
		if err := os.Rename(wal, s.WALDir); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(s.WALDir, wal); err != nil {
			t.Fatal(err)
		}
	}
	conf := map[string]string{
		"listen_addresses": "", "port": strconv.Itoa(s.Port), "unix_socket_directories": s.SocketDir,
		"shared_buffers": "32MB",
		// Segments of shared memory as files in the data directory, so that a killed server leaves none elsewhere.
		"dynamic_shared_memory_type": "mmap",
	}
	if o.NoFsync {
		conf["fsync"] = "off"
	}
	maps.Copy(conf, o.Conf)
	s.Conf(conf)
	if o.NotYet && o.Tablespaces == 0 {
		return s
	}
	s.Start()
	for n := range o.Tablespaces {
		dir := filepath.Join(base, fmt.Sprintf("ts%d", n+1))
		uid, gid := User()
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(dir, uid, gid); err != nil {
			t.Fatal(err)
		}
		s.Exec(fmt.Sprintf("CREATE TABLESPACE ts%d LOCATION '%s'", n+1, dir))
		s.Tablespaces = append(s.Tablespaces, dir)
	}
	if o.NotYet {
		s.Stop(postgres.Fast)
	}
	return s
}

// OpenDir starts a server on a data directory that something else has made, a restore for one, with a socket and port of
// its own. It changes no file: what it has to say, o.Conf included, it says on the command line. When the test is over,
// the server is stopped; the directory stays. The other options but Bin don't matter.
func OpenDir(t testing.TB, dir string, o Options) *Server {
	t.Helper()
	s, err := TryOpenDir(t, dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TryOpenDir is OpenDir for servers that may fail to start: an *postgres.ExitError then.
func TryOpenDir(t testing.TB, dir string, o Options) (*Server, error) {
	t.Helper()
	s := newServer(t, o)
	s.Dir = dir
	conf := map[string]string{
		"listen_addresses": "", "port": strconv.Itoa(s.Port), "unix_socket_directories": s.SocketDir,
		"dynamic_shared_memory_type": "mmap",
	}
	maps.Copy(conf, o.Conf)
	for _, name := range slices.Sorted(maps.Keys(conf)) {
		s.args = append(s.args, "-c", name+"="+conf[name])
	}
	t.Cleanup(s.end)
	return s, s.TryStart()
}

// Attach returns the server that something else has started on dir, `pitr restore --start` for one. When the test is
// over, the server is stopped; the directory stays.
func Attach(t testing.TB, dir string, o Options) *Server {
	t.Helper()
	pid, running, err := postgres.Running(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !running {
		t.Fatalf("no server runs on %s", dir)
	}
	post, err := postgres.ReadPostmaster(dir)
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(t, o)
	s.Dir, s.Port, s.SocketDir = dir, post.Port, post.SocketDir
	t.Cleanup(s.end)
	s.started(pid)
	return s
}

func newServer(t testing.TB, o Options) *Server {
	t.Helper()
	s := &Server{t: t, Bin: o.Bin, SocketDir: TempDir(t), Port: freePort(t)}
	if s.Bin.Dir == "" {
		s.Bin = usual(Bins(t))
	}
	s.LogFile = filepath.Join(s.SocketDir, "log")
	s.pidFile = filepath.Join(scratch(t), "pids", filepath.Base(s.SocketDir))
	return s
}

// freePort returns a TCP port that nobody listens on now. Servers here mostly don't use it but in their socket's name.
func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// Start starts the server, which must be stopped, and waits until it accepts connections.
func (s *Server) Start() {
	s.t.Helper()
	if err := s.TryStart(); err != nil {
		s.t.Fatal(err)
	}
}

// TryStart is Start for a server that may fail to: an *postgres.ExitError then.
func (s *Server) TryStart() error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	p, err := postgres.Start(ctx, postgres.StartConfig{BinDir: s.Bin.Dir, DataDir: s.Dir, Options: s.args, LogFile: s.LogFile})
	if err != nil {
		return err
	}
	s.started(p.PID())
	return nil
}

// StartAgain is Start, for tests that read better so after a Stop or Kill.
func (s *Server) StartAgain() {
	s.t.Helper()
	s.Start()
}

func (s *Server) started(pid int) {
	s.t.Helper()
	post, err := postgres.ReadPostmaster(s.Dir)
	if err != nil {
		s.t.Fatal(err)
	}
	s.pid, s.shmID = pid, post.ShmID
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		s.t.Fatalf("server died at once: %v", err)
	}
	const startTime = 22 - 3 // field 22 (proc(5)), counted from the third, behind the name in parentheses
	after := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if err := os.WriteFile(s.pidFile, fmt.Appendf(nil, "%d %s\n", pid, after[startTime]), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// PID is the postmaster's process id, as of the last start.
func (s *Server) PID() int { return s.pid }

// Stop stops the server in the way given and waits until its last process is gone.
func (s *Server) Stop(mode postgres.StopMode) {
	s.t.Helper()
	sig := map[postgres.StopMode]syscall.Signal{postgres.Fast: syscall.SIGINT, postgres.Smart: syscall.SIGTERM, postgres.Immediate: syscall.SIGQUIT}[mode]
	if err := s.stop(sig); err != nil {
		s.t.Fatal(err)
	}
}

// Kill ends the server as a power cut would, as far as that goes without one: all its processes get SIGKILL.
func (s *Server) Kill() {
	s.t.Helper()
	if err := s.stop(syscall.SIGKILL); err != nil {
		s.t.Fatal(err)
	}
}

// stop sends sig to the postmaster, SIGKILL to all of the server's processes, and waits until none is left.
func (s *Server) stop(sig syscall.Signal) error {
	pid, running, err := postgres.Running(s.Dir)
	if err != nil {
		return err
	}
	if running {
		if post, err := postgres.ReadPostmaster(s.Dir); err == nil && post.PID == pid {
			s.pid, s.shmID = pid, post.ShmID // it may be others that have started it
		}
		if err := syscall.Kill(pid, sig); err != nil && err != syscall.ESRCH {
			return err
		}
	}
	for deadline := time.Now().Add(startTimeout); running; {
		if time.Now().After(deadline) {
			return fmt.Errorf("server on %s did not stop on %v within %v", s.Dir, sig, startTimeout)
		}
		time.Sleep(10 * time.Millisecond)
		if pid, running, err = postgres.Running(s.Dir); err != nil {
			return err
		}
		if running && sig == syscall.SIGKILL {
			// It may be gone by now, and then that is fine.
			syscall.Kill(pid, sig)
		}
	}
	return os.RemoveAll(s.pidFile)
}

// end stops the server for good. It may be stopped, killed, or never have run.
func (s *Server) end() {
	s.t.Helper()
	if err := s.stop(syscall.SIGQUIT); err != nil {
		s.t.Error(err)
		if err := s.stop(syscall.SIGKILL); err != nil {
			s.t.Error(err)
		}
	}
	if s.pid != 0 {
		removeShm(s.shmID, s.pid)
	}
	if s.t.Failed() {
		if log, err := os.ReadFile(s.LogFile); err == nil {
			s.t.Logf("log of the server on %s:\n%s", s.Dir, log[max(0, len(log)-8<<10):])
		}
	}
}

// Restart stops the server and starts it again.
func (s *Server) Restart() {
	s.t.Helper()
	s.Stop(postgres.Fast)
	s.Start()
}

// Conf adds settings to the server's postgresql.conf; values are as the server should see them, unquoted. They come into
// force by Start, Restart or Reload.
func (s *Server) Conf(settings map[string]string) {
	s.t.Helper()
	var add []postgres.Setting
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		add = append(add, postgres.Setting{Name: name, Value: settings[name]})
	}
	path := filepath.Join(s.Dir, "postgresql.conf")
	data, err := os.ReadFile(path)
	if err != nil {
		s.t.Fatal(err)
	}
	if data, err = postgres.EditConf(data, nil, add); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil { // keeps its owner
		s.t.Fatal(err)
	}
}

// Reload makes the server read its configuration and waits until new sessions see it.
func (s *Server) Reload() {
	s.t.Helper()
	before := QueryOne[time.Time](s, "SELECT pg_conf_load_time()")
	// The time of the last load has microseconds; two loads never share one.
	s.Exec("SELECT pg_reload_conf()")
	for deadline := time.Now().Add(startTimeout); !QueryOne[time.Time](s, "SELECT pg_conf_load_time()").After(before); {
		if time.Now().After(deadline) {
			s.t.Fatalf("server on %s does not reload its configuration", s.Dir)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// Config returns what pitr's configuration says of this server.
func (s *Server) Config() postgres.Config {
	return postgres.Config{DataDir: s.Dir, BinDir: s.Bin.Dir, Host: s.SocketDir, Port: s.Port, User: "postgres"}
}
