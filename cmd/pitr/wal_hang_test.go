package main

import (
	"bufio"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"pitr/internal/agent/client"
	"pitr/internal/repo"
	"pitr/recovery"
)

// pipe makes every reader of path wait for ever, in the kernel, where no context ends it: as a network file system does
// whose server is gone.
func pipe(t *testing.T, path string) {
	t.Helper()
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Lets go of those who still wait.
		if f, err := os.OpenFile(path, os.O_RDWR, 0); err == nil {
			f.Close()
		}
	})
}

// A file system that hangs must not hang the hooks of the server for longer than archive.timeout.
func TestHooksDoNotHang(t *testing.T) {
	b := newWALBench(t)
	text, err := os.ReadFile(b.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(b.config, []byte(strings.Replace(string(text), "timeout: 20s", "timeout: 1s", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	hung := filepath.Join(b.dir, "pg_wal", "0000000100000000000000FF")
	pipe(t, hung)
	if code, text := b.hook(t, "wal", "push", hung); code != 1 || !strings.Contains(text, "archive.timeout") {
		t.Errorf("push: %d %s", code, text)
	}
	pipe(t, filepath.Join(b.dir, recovery.MarkerFile))
	if code, text := b.hook(t, "wal", "fetch", "00000002.history", filepath.Join(t.TempDir(), "x")); code != fetchFailed || !strings.Contains(text, "archive.timeout") {
		t.Errorf("fetch: %d %s", code, text)
	}
	if took := time.Since(begin); took > 15*time.Second {
		t.Errorf("it took %s", took)
	}
}

// The marker of a restore promises what that recovery needs. A standby made of the directory later needs other WAL, which
// is not "beyond" anything.
func TestWALFetchOnStandbyOfRestoredCopy(t *testing.T) {
	b := newWALBench(t)
	if code, text := b.hook(t, "wal", "push", b.segments[1]); code != exitDone {
		t.Fatal(text)
	}
	marker, err := repo.MarshalDocument(recovery.Marker{Format: 1, Archive: true, Backup: "x", Timeline: 1, SegSize: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.dir, recovery.MarkerFile), marker, 0o600); err != nil {
		t.Fatal(err)
	}
	dest := filepath.Join(t.TempDir(), "RECOVERYXLOG")
	name := filepath.Base(b.segments[1])
	if code, text := b.hook(t, "wal", "fetch", name, dest); code != fetchAbsent || !strings.Contains(text, "beyond its proven path") {
		t.Errorf("the recovery itself: %d %s", code, text)
	}
	if err := os.WriteFile(filepath.Join(b.dir, "standby.signal"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if code, text := b.hook(t, "wal", "fetch", name, dest); code != fetchDone {
		t.Errorf("the standby: %d %s", code, text)
	}
}

// An agent writes to a name that is this file's alone. Frozen and come to after the server went on, it would otherwise put
// one segment where the server looks for the next.
func TestAgentWritesBesideThePath(t *testing.T) {
	b := newWALBench(t)
	service := filepath.Join(filepath.Dir(b.config), "service")
	if err := os.Mkdir(service, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(service, client.SocketName))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	asked := make(chan client.Request, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		line, _ := bufio.NewReader(conn).ReadBytes('\n')
		var r client.Request
		answer := client.Answer{Version: client.Version, OK: true}
		if json.Unmarshal(line, &r) != nil || os.WriteFile(r.Dest, []byte("content"), 0o600) != nil {
			answer = client.Answer{Version: client.Version, Kind: client.KindFailed}
		}
		asked <- r
		text, _ := json.Marshal(answer)
		conn.Write(append(text, '\n'))
	}()
	dir := t.TempDir()
	dest, name := filepath.Join(dir, "RECOVERYXLOG"), filepath.Base(b.segments[0])
	code, text := b.hook(t, "wal", "fetch", name, dest)
	if r := <-asked; code != fetchDone || r.Name != name || r.Dest == dest || filepath.Dir(r.Dest) != dir || !strings.Contains(r.Dest, name) {
		t.Errorf("%d %s: the agent was asked for %+v", code, text, r)
	}
	if got, err := os.ReadFile(dest); err != nil || string(got) != "content" {
		t.Errorf("%q %v", got, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v %v", left, err)
	}
}
