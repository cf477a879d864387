package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"pitr/internal/hint"
)

// listen serves one service directory by f, which gets each connection after its request was read.
func listen(t *testing.T, f func(net.Conn, Request)) Agent {
	t.Helper()
	dir, err := os.MkdirTemp("", "ac")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, SocketName))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			line, err := bufio.NewReader(conn).ReadBytes('\n')
			var r Request
			if err == nil && json.Unmarshal(line, &r) == nil {
				f(conn, r)
			}
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
		os.RemoveAll(dir)
	})
	a := Of(dir)
	a.silence = 300 * time.Millisecond
	return a
}

func TestAnswers(t *testing.T) {
	var got Request
	var say string
	a := listen(t, func(c net.Conn, r Request) {
		got = r
		c.Write([]byte(say))
	})
	ctx := context.Background()

	say = `{"v":1,"working":true}` + "\n" + `{"v":1,"ok":true,"unknown":3}` + "\n"
	if err := a.Push(ctx, "/data/pg_wal/x"); err != nil {
		t.Errorf("a push that succeeds: %v", err)
	}
	if want := (Request{Version: 1, Op: "push", Path: "/data/pg_wal/x"}); !reflect.DeepEqual(got, want) {
		t.Errorf("request %+v, want %+v", got, want)
	}

	say = `{"v":1,"kind":"failed","error":"push x: other content","hint":"resolve it"}` + "\n"
	err := a.Push(ctx, "/x")
	_, ok := errors.AsType[*Failure](err)
	if !ok || err.Error() != "push x: other content" || hint.Of(err) != "resolve it" {
		t.Errorf("a failed push: %#v, hint %q", err, hint.Of(err))
	}

	say = `{"v":1,"kind":"absent"}` + "\n"
	if err := a.Fetch(ctx, Wanted{Name: "n", Dest: "/d", Dir: "/dir", System: 18446744073709551615}); !errors.Is(err, ErrAbsent) {
		t.Errorf("a fetch of what is absent: %v", err)
	}
	if want := (Request{Version: 1, Op: "fetch", Name: "n", Dest: "/d", Dir: "/dir", System: 18446744073709551615}); !reflect.DeepEqual(got, want) {
		t.Errorf("request %+v, want %+v", got, want)
	}

	say = `{"v":1,"ok":true,"status":{"pid":3}}` + "\n"
	if s, err := a.Status(ctx); err != nil || string(s) != `{"pid":3}` {
		t.Errorf("status %s, %v", s, err)
	}
}

// Whatever is not a clear answer leaves the work to the caller.
func TestNoAgent(t *testing.T) {
	for name, say := range map[string]string{
		"elsewhere":    `{"v":1,"kind":"elsewhere","error":"another data directory"}` + "\n",
		"unknown kind": `{"v":2,"kind":"tired","error":"no"}` + "\n",
		"no answer":    "",
		"half a line":  `{"v":1,"ok":tr`,
		"dies working": `{"v":1,"working":true}` + "\n",
		"not JSON":     "hello\n",
		"empty object": "{}\n",
		"too long":     strings.Repeat("x", MaxAnswer+1),
	} {
		t.Run(name, func(t *testing.T) {
			a := listen(t, func(c net.Conn, _ Request) { c.Write([]byte(say)) })
			if err := a.Push(context.Background(), "/x"); !errors.Is(err, ErrNoAgent) {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Run("nobody listens", func(t *testing.T) {
		if err := Of(t.TempDir()).Push(context.Background(), "/x"); !errors.Is(err, ErrNoAgent) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("no socket can be there", func(t *testing.T) {
		if err := Of("/"+strings.Repeat("d", 200)).Push(context.Background(), "/x"); !errors.Is(err, ErrNoAgent) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a path that JSON can't hold", func(t *testing.T) {
		a := listen(t, func(c net.Conn, _ Request) { c.Write([]byte(`{"v":1,"ok":true}` + "\n")) })
		if err := a.Push(context.Background(), "/\xff"); !errors.Is(err, ErrNoAgent) {
			t.Errorf("got %v", err)
		}
	})
}

// A frozen agent is given up after a silence, a working one is not.
func TestSilence(t *testing.T) {
	frozen := listen(t, func(c net.Conn, _ Request) { time.Sleep(time.Second) })
	began := time.Now()
	if err := frozen.Push(context.Background(), "/x"); !errors.Is(err, ErrNoAgent) || time.Since(began) > 900*time.Millisecond {
		t.Errorf("a frozen agent: %v after %v", err, time.Since(began))
	}
	slow := listen(t, func(c net.Conn, _ Request) {
		for range 5 {
			c.Write([]byte(`{"v":1,"working":true}` + "\n"))
			time.Sleep(150 * time.Millisecond)
		}
		c.Write([]byte(`{"v":1,"ok":true}` + "\n"))
	})
	if err := slow.Push(context.Background(), "/x"); err != nil {
		t.Errorf("a slow agent: %v", err)
	}
}

func TestCancel(t *testing.T) {
	hold := make(chan struct{})
	a := listen(t, func(net.Conn, Request) { <-hold })
	defer close(hold)
	a.silence = time.Minute
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := a.Push(ctx, "/x"); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrNoAgent) {
		t.Errorf("got %v", err)
	}
}
