package postgres

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Postmaster is what a server's postmaster.pid says (src/include/utils/pidfile.h). The server writes the file when it
// starts, line by line as it learns, and removes it when it stops; a crash leaves it behind, so that the file alone proves
// nothing: see Running.
type Postmaster struct {
	PID       int
	DataDir   string
	Started   time.Time // whole seconds; zero: not known
	Port      int       // 0 while not yet known
	SocketDir string    // first of unix_socket_directories; empty: none, or not yet known
	Listen    string    // first of listen_addresses that works; empty: none, or not yet known
	ShmID     int       // of the System V segment that guards the directory; -1: not yet known
	// Status is "starting", "stopping", "ready" (it accepts connections, hot standby included), or "standby" (in recovery
	// with hot_standby off).
	Status string
}

// ReadPostmaster reads dataDir/postmaster.pid. It gives fs.ErrNotExist where there is none.
func ReadPostmaster(dataDir string) (Postmaster, error) {
	path := filepath.Join(dataDir, "postmaster.pid")
	data, err := os.ReadFile(path)
	if err != nil {
		return Postmaster{}, err
	}
	lines := strings.Split(string(data), "\n")
	line := func(n int) string {
		if n <= len(lines) {
			return strings.TrimSpace(lines[n-1])
		}
		return ""
	}
	pid, err := strconv.Atoi(line(1))
	if err != nil {
		return Postmaster{}, fmt.Errorf("read %s: first line %q is no process id", path, line(1))
	}
	if pid < 0 { // a server in single-user mode
		pid = -pid
	}
	p := Postmaster{PID: pid, DataDir: line(2), SocketDir: line(5), Listen: line(6), ShmID: -1, Status: line(8)}
	if strings.Contains(dataDir, "\n") {
		// The server counts the lines that it adds, and overwrites with them what the parts of such a name have moved
		// down (AddToDataDirLockFile in src/backend/utils/init/miscinit.c).
		p.DataDir, p.Port = dataDir, portOf(p.SocketDir, pid)
	} else {
		if s, err := strconv.ParseInt(line(3), 10, 64); err == nil {
			p.Started = time.Unix(s, 0)
		}
		if port, err := strconv.Atoi(line(4)); err == nil {
			p.Port = port
		}
	}
	if key := strings.Fields(line(7)); len(key) == 2 {
		if id, err := strconv.Atoi(key[1]); err == nil {
			p.ShmID = id
		}
	}
	return p, nil
}

// portOf finds the port of a server by the lock file of its socket, which begins with the postmaster's process id; 0 if
// there is none.
func portOf(socketDir string, pid int) int {
	const prefix, suffix = ".s.PGSQL.", ".lock"
	// A directory that is not there holds no socket.
	entries, _ := os.ReadDir(socketDir)
	for _, e := range entries {
		middle, ok := strings.CutPrefix(e.Name(), prefix)
		middle, lock := strings.CutSuffix(middle, suffix)
		port, err := strconv.Atoi(middle)
		if !ok || !lock || err != nil {
			continue
		}
		text, err := os.ReadFile(filepath.Join(socketDir, e.Name()))
		if first, _, _ := strings.Cut(string(text), "\n"); err == nil && first == strconv.Itoa(pid) {
			return port
		}
	}
	return 0
}

// Running tells whether processes of a server work on dataDir, and the id of the first of them: the postmaster where it
// lives. Only a proof of absence makes it say no. A postmaster.pid whose process is gone, is a zombie, or has become
// something else in another directory is stale; but processes of a server that outlive their postmaster count, also
// without a postmaster.pid, since they still write. A directory that does not exist has no server.
//
// Every process of a server has the data directory as its working directory; that is what is looked for, in /proc. What
// this process may not look at is judged as PostgreSQL itself judges it (CreateLockFile in
// src/backend/utils/init/miscinit.c): only a process of the directory's owner can be its server. Processes of other
// PID namespaces are seen only from their parent namespaces.
func Running(dataDir string) (pid int, running bool, err error) {
	dir, err := os.Stat(dataDir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("look for a server on %s: %w", dataDir, err)
	}
	post, err := ReadPostmaster(dataDir)
	switch {
	case err == nil:
		if worksIn(post.PID, dir) {
			return post.PID, true, nil
		}
	case !errors.Is(err, fs.ErrNotExist):
		return 0, false, fmt.Errorf("look for a server on %s: %w", dataDir, err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, false, fmt.Errorf("look for a server on %s: %w", dataDir, err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		// Others than servers may stand in the directory too, an administrator's shell for one.
		if cwd, err := os.Stat(procPath(pid, "cwd")); err == nil && os.SameFile(cwd, dir) && alive(pid) && isServer(pid) {
			return pid, true, nil
		}
	}
	return 0, false, nil
}

// worksIn tells whether process pid, which a postmaster.pid names, may be a server on dir.
func worksIn(pid int, dir fs.FileInfo) bool {
	if pid == os.Getpid() || pid == os.Getppid() {
		// Process ids start anew with a machine or container, so that a stale file may name this very process or the
		// one that started it. PostgreSQL excludes the same two.
		return false
	}
	if !alive(pid) {
		return false
	}
	cwd, err := os.Stat(procPath(pid, "cwd"))
	if err == nil {
		return os.SameFile(cwd, dir)
	}
	if errors.Is(err, fs.ErrNotExist) {
		// Gone since, or never to be seen in this /proc; the former is the second look's to tell.
		return alive(pid)
	}
	proc, err := os.Stat(procPath(pid, ""))
	if err != nil {
		return alive(pid)
	}
	return proc.Sys().(*syscall.Stat_t).Uid == dir.Sys().(*syscall.Stat_t).Uid
}

// alive tells whether pid is a process that may still do something: one that exists and is no zombie.
func alive(pid int) bool {
	if pid <= 0 || errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return false
	}
	stat, err := os.ReadFile(procPath(pid, "stat"))
	if err != nil {
		return !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
	}
	// The name in parentheses, which may hold anything, stands before the state (proc(5)).
	_, rest, _ := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')')+1:]), " ")
	return !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}

// isServer tells whether the program that pid executes is PostgreSQL's server. A program that can't be seen counts.
func isServer(pid int) bool {
	exe, err := os.Readlink(procPath(pid, "exe"))
	if err != nil {
		return true
	}
	name := strings.TrimSuffix(filepath.Base(exe), " (deleted)")
	return name == "postgres" || name == "postmaster"
}

func procPath(pid int, file string) string {
	return filepath.Join("/proc", strconv.Itoa(pid), file)
}
