package crash

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"pitr/internal/postgres/pgtest"
	"pitr/storage"
)

// A lab is the program with a configuration, all as the servers' user.
type lab struct {
	t       *testing.T
	pitr    string
	base    string
	config  string
	store   string
	service string
	dataDir string
	extra   string // of the configuration
	server  *pgtest.Server
}

// newLab makes one on the store in a directory. The server comes later, or never.
func newLab(t *testing.T, store string) *lab {
	t.Helper()
	base := pgtest.TempDir(t)
	l := &lab{t: t, pitr: pgtest.Binary(t), base: base, config: filepath.Join(base, "pitr.yaml"), store: store,
		service: filepath.Join(base, "service"), dataDir: filepath.Join(base, "none")}
	l.configure("")
	return l
}

// configure writes the configuration; extra are more lines of it.
func (l *lab) configure(extra string) {
	l.t.Helper()
	l.extra = extra
	text := fmt.Sprintf("cluster: {name: crash, node: n1}\nstorage: {url: %q}\nservice: {dir: %q}\n", "file://"+l.store, l.service)
	if s := l.server; s != nil {
		text += fmt.Sprintf("postgres: {data_dir: %q, bin_dir: %q, host: %q, port: %d}\n", s.Dir, s.Bin.Dir, s.SocketDir, s.Port)
	} else {
		text += fmt.Sprintf("postgres: {data_dir: %q}\n", l.dataDir)
	}
	if extra == "" {
		extra = "backup: {schedule: \"\"}\n"
	}
	// Replaced whole: a hook may be reading it.
	temp := l.config + ".new"
	if err := os.WriteFile(temp, []byte(text+extra), 0o644); err != nil {
		l.t.Fatal(err)
	}
	if err := os.Rename(temp, l.config); err != nil {
		l.t.Fatal(err)
	}
}

// newServerLab makes one with a server that archives by the program into a new store, by way of a script that can kill
// its hooks: see hooks.
func newServerLab(t *testing.T, conf map[string]string) *lab {
	t.Helper()
	l := newLab(t, filepath.Join(pgtest.TempDir(t), "store"))
	hook := filepath.Join(l.base, "hook")
	// A status above 128 would end the archiver, which then starts again after ten seconds only.
	script := fmt.Sprintf("#!/bin/sh\n[ -e %s/deadly ] || exec %s --config %s wal push \"$1\"\n"+
		"timeout -s KILL \"0.0$((10 + $$ %% 80))\" %[2]s --config %[3]s wal push \"$1\" || exit 1\n", l.base, l.pitr, l.config)
	if err := os.WriteFile(hook, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	o := pgtest.Options{SegSizeMB: 1, NotYet: true, Conf: map[string]string{"archive_mode": "on", "archive_command": hook + " %p", "wal_level": "replica"}}
	for k, v := range conf {
		o.Conf[k] = v
	}
	l.server = pgtest.Start(t, o)
	l.configure("")
	l.server.Start()
	small(l.server)
	return l
}

// deadlyHooks makes the hooks be killed after up to 90 ms.
func (l *lab) deadlyHooks(yes bool) {
	l.t.Helper()
	path := filepath.Join(l.base, "deadly")
	var err error
	if yes {
		err = os.WriteFile(path, nil, 0o644)
	} else {
		err = os.RemoveAll(path)
	}
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) command(args ...string) (*exec.Cmd, *bytes.Buffer) {
	cmd := exec.Command(l.pitr, append([]string{"--config", l.config, "--quiet"}, args...)...)
	cmd.Dir = l.base
	pgtest.AsServerUser(cmd)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	return cmd, &out
}

// try runs a command of the program.
func (l *lab) try(args ...string) (string, error) {
	cmd, out := l.command(args...)
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("pitr %q: %w\n%s", args, err, out.String())
	}
	return out.String(), err
}

// run runs a command that must succeed.
func (l *lab) run(args ...string) string {
	l.t.Helper()
	out, err := l.try(args...)
	if err != nil {
		l.t.Fatal(err)
	}
	return out
}

// kill runs a command and kills it after some time, unless it has succeeded by then. Any other end fails the test.
func (l *lab) kill(after time.Duration, args ...string) (killed bool) {
	l.t.Helper()
	cmd, out := l.command(args...)
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	timer := time.AfterFunc(after, func() { cmd.Process.Kill() })
	err := cmd.Wait()
	timer.Stop()
	if err == nil {
		return false
	}
	if cmd.ProcessState.ExitCode() != -1 { // it did not end by a signal
		l.t.Fatalf("pitr %q, before it was killed: %v\n%s", args, err, out.String())
	}
	return true
}

// agent starts the agent and returns what kills it.
func (l *lab) agent() (kill func()) {
	l.t.Helper()
	cmd, out := l.command("agent")
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		cmd.Wait() // it is killed
		close(ended)
	}()
	kill = func() {
		cmd.Process.Kill()
		<-ended
	}
	l.t.Cleanup(kill)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if c, err := net.Dial("unix", filepath.Join(l.service, "agent.sock")); err == nil {
			c.Close()
			return kill
		}
		select {
		case <-ended:
			l.t.Fatalf("the agent ended: %s", out.String())
		default:
		}
		if time.Now().After(deadline) {
			l.t.Fatal("the agent does not come up")
		}
	}
}

// flush ends the segment and waits until all of it is archived.
func (l *lab) flush() {
	l.t.Helper()
	l.server.Exec("SELECT pg_create_restore_point('flush')")
	name := pgtest.QueryOne[string](l.server, "SELECT pg_walfile_name(pg_switch_wal())")
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if pgtest.QueryOne[bool](l.server, "SELECT coalesce((SELECT last_archived_wal >= $1 FROM pg_stat_archiver), false)", name) {
			return
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("%s was not archived", name)
		}
	}
}

// bucket opens the store.
func (l *lab) bucket() storage.Bucket {
	l.t.Helper()
	return openFiles(l.t, l.store)
}

// restore restores beside, starts the server on it, and waits until it is open.
func (l *lab) restore(args ...string) *pgtest.Server {
	l.t.Helper()
	dir := filepath.Join(pgtest.TempDir(l.t), "copy")
	l.run(append([]string{"restore", "--to", dir}, args...)...)
	return l.opened(dir)
}

// opened starts a server on a restored directory and waits until it is open.
func (l *lab) opened(dir string) *pgtest.Server {
	l.t.Helper()
	s := pgtest.OpenDir(l.t, dir, pgtest.Options{Conf: map[string]string{"fsync": "off"}})
	s.AwaitPrimary()
	return s
}

// fromMemory makes a lab with what a bucket holds.
func fromMemory(t *testing.T, b storage.Bucket) *lab {
	t.Helper()
	dir := filepath.Join(pgtest.TempDir(t), "store")
	transfer(t, b, openFiles(t, dir))
	for key, at := range times(t, b) {
		if err := os.Chtimes(filepath.Join(dir, filepath.FromSlash(key)), at, at); err != nil {
			t.Fatal(err)
		}
	}
	give(t, filepath.Dir(dir))
	return newLab(t, dir)
}
