package main

import (
	"bufio"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pitr/internal/agent/client"
)

// slowAgent answers each fetch after it has said so many times, at the pace given, that it works; with moving, that something
// came from the store.
func slowAgent(t *testing.T, service string, pace time.Duration, times int, moving bool) {
	t.Helper()
	if err := os.MkdirAll(service, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(service, client.SocketName))
	if err != nil {
		t.Fatal(err)
	}
	serve := func(conn net.Conn) {
		defer conn.Close()
		line, err := bufio.NewReader(conn).ReadBytes('\n')
		var r client.Request
		if err != nil || json.Unmarshal(line, &r) != nil {
			return
		}
		for i := range times {
			a := client.Answer{Version: client.Version, Working: true}
			if moving {
				a.Moved = uint64(i)
			}
			text, _ := json.Marshal(a)
			if _, err := conn.Write(append(text, '\n')); err != nil {
				return
			}
			time.Sleep(pace)
		}
		if os.WriteFile(r.Dest, []byte("content"), 0o600) == nil {
			text, _ := json.Marshal(client.Answer{Version: client.Version, OK: true})
			conn.Write(append(text, '\n'))
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serve(conn)
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
}

// A fetch that takes longer than the limits goes on while something comes, on a standby as in any recovery; what hangs is
// given up: a standby goes on by streaming, another recovery stops.
func TestSlowFetchGoesOn(t *testing.T) {
	b := newWALBench(t)
	text, err := os.ReadFile(b.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(b.config, []byte(strings.Replace(string(text), "timeout: 20s", "timeout: 1s", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	service, name := filepath.Join(filepath.Dir(b.config), "service"), filepath.Base(b.segments[0])
	signal := filepath.Join(b.dir, "standby.signal")
	// It has a primary to stream from.
	if err := os.WriteFile(filepath.Join(b.dir, "postmaster.opts"), []byte("/bin/echo \"-D\" \"x\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what            string
		standby, moving bool
		code            int
		say             string
	}{
		{"a recovery", false, true, fetchDone, ""},
		{"a standby", true, true, fetchDone, ""},
		{"a recovery that hangs", false, false, fetchFailed, "nothing came from the store within archive.timeout (1s)"},
		{"a standby that hangs", true, false, fetchAbsent, "goes on by streaming alone"},
	} {
		t.Run(c.what, func(t *testing.T) {
			if c.standby {
				if err := os.WriteFile(signal, nil, 0o600); err != nil {
					t.Fatal(err)
				}
				defer os.Remove(signal)
			}
			times := 15
			if !c.moving {
				times = 1000
			}
			slowAgent(t, service, 200*time.Millisecond, times, c.moving)
			dest := filepath.Join(t.TempDir(), "RECOVERYXLOG")
			begin := time.Now()
			code, text := b.hook(t, "wal", "fetch", name, dest)
			if code != c.code || !strings.Contains(text, c.say) {
				t.Errorf("%d: %s", code, text)
			}
			if took := time.Since(begin); took > standbyPatience+5*time.Second {
				t.Errorf("it took %v", took)
			}
			if _, err := os.Stat(dest); (err == nil) != (c.code == fetchDone) {
				t.Errorf("%s: %v", dest, err)
			}
		})
	}
}
