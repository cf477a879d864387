package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"pitr/archive"
	"pitr/internal/agent/client"
	"pitr/internal/hint"
	"pitr/internal/postgres"
)

func TestPlaceIsForOne(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	p, err := takePlace(dir)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	_, err = takePlace(dir)
	want := fmt.Sprintf("an agent runs already in %s (process %d)", dir, os.Getpid())
	if err == nil || err.Error() != want || !strings.Contains(hint.Of(err), "service.dir") {
		t.Errorf("the second: %v, hint %q", err, hint.Of(err))
	}
	if err := p.release(); err != nil {
		t.Fatal(err)
	}
	p, err = takePlace(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer p.release()
	// What a killed agent left is gone.
	for _, f := range []string{"ahead/7-1/x", "spool/y"} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(f)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, f), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.clean(); err != nil {
		t.Fatal(err)
	}
	if n := files(t, dir); n != 1 { // the lock's
		t.Errorf("%d files are left", n)
	}
}

func TestPlaceOpenToOthers(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := takePlace(dir); err == nil || !strings.Contains(err.Error(), "others than its owner may write there (mode 0777)") {
		t.Errorf("got %v", err)
	}
}

func TestPrepareAsRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		// Nothing is given away, but the directory is made all the same.
		dir := filepath.Join(t.TempDir(), "x")
		me := postgres.Account{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
		if err := PrepareAsRoot(dir, me); err != nil {
			t.Error(err)
		}
		return
	}
	a := postgres.Account{UID: 65534, GID: 65534}
	owner := func(path string) uint32 {
		t.Helper()
		uid, _, err := postgres.OwnerOf(path)
		if err != nil {
			t.Fatal(err)
		}
		return uid
	}
	fileOwner := func(path string) uint32 {
		t.Helper()
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Sys().(*syscall.Stat_t).Uid
	}
	fresh := filepath.Join(t.TempDir(), "a", "b")
	if err := PrepareAsRoot(fresh, a); err != nil || owner(fresh) != a.UID || owner(filepath.Dir(fresh)) != 0 {
		t.Errorf("a new one: %v, owner %d, its parent's %d", err, owner(fresh), owner(filepath.Dir(fresh)))
	}
	ours := t.TempDir()
	for _, d := range []string{"ahead", "repo"} {
		if err := os.Mkdir(filepath.Join(ours, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	memory := filepath.Join(ours, RepositoryMemory)
	if err := os.WriteFile(memory, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := PrepareAsRoot(ours, a); err != nil || owner(ours) != a.UID || fileOwner(memory) != a.UID || owner(filepath.Join(ours, "ahead")) != a.UID || owner(filepath.Join(ours, "repo")) != 0 {
		t.Errorf("one with pitr's things: %v", err)
	}
	foreign := t.TempDir()
	if err := os.WriteFile(filepath.Join(foreign, "passwd"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := PrepareAsRoot(foreign, a); err == nil || owner(foreign) != 0 || !strings.Contains(err.Error(), `"passwd" in it is not pitr's`) {
		t.Errorf("somebody else's: %v, owner %d", err, owner(foreign))
	}
}

func TestSocketPathTooLong(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 100))
	_, err := listen(dir)
	if err == nil || !strings.Contains(err.Error(), "a socket's path can have 107 bytes") || hint.Of(err) != "set `service.dir` to a shorter path" {
		t.Errorf("got %v, hint %q", err, hint.Of(err))
	}
}

// shortDir is a directory in which a socket can be.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ag")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// serving runs s on a socket.
func serving(t *testing.T, s *server) client.Agent {
	t.Helper()
	dir := shortDir(t)
	l, err := listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	s.log = slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- s.serve(ctx, l) }()
	t.Cleanup(func() {
		l.Close()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		s.wait()
	})
	return client.Of(dir)
}

func TestServer(t *testing.T) {
	var got client.Request
	errBroken := hint.Wrap(errors.New("push x: disk on fire"), "call the fire brigade")
	slow := make(chan struct{})
	s := &server{
		uid: os.Geteuid(),
		push: func(ctx context.Context, path string) error {
			switch path {
			case "/broken":
				return errBroken
			case "/elsewhere":
				return &errElsewhere{"not mine"}
			case "/stopping":
				return errStopping
			case "/slow":
				<-ctx.Done()
				close(slow)
				return ctx.Err()
			}
			return nil
		},
		fetch: func(_ context.Context, r client.Request, _ func()) error {
			got = r
			if r.Name == "absent" {
				return fmt.Errorf("fetch: %w", archive.ErrNotArchived)
			}
			return nil
		},
		status: func() any { return map[string]int{"pid": 7} },
	}
	a := serving(t, s)
	ctx := context.Background()
	if err := a.Push(ctx, "/fine"); err != nil {
		t.Errorf("push: %v", err)
	}
	err := a.Push(ctx, "/broken")
	_, ok := errors.AsType[*client.Failure](err)
	if !ok || err.Error() != "push x: disk on fire" || hint.Of(err) != "call the fire brigade" {
		t.Errorf("broken: %v, hint %q", err, hint.Of(err))
	}
	for _, p := range []string{"/elsewhere", "/stopping"} {
		if err := a.Push(ctx, p); !errors.Is(err, client.ErrNoAgent) {
			t.Errorf("%s: %v", p, err)
		}
	}
	if err := a.Fetch(ctx, client.Wanted{Name: "n", Dest: "/d", Dir: "/dir", System: 9, Partial: true}); err != nil || got.Name != "n" || got.System != 9 || !got.Partial {
		t.Errorf("fetch: %v, request %+v", err, got)
	}
	if err := a.Fetch(ctx, client.Wanted{Name: "absent"}); !errors.Is(err, client.ErrAbsent) {
		t.Errorf("absent: %v", err)
	}
	if st, err := a.Status(ctx); err != nil || string(st) != `{"pid":7}` {
		t.Errorf("status: %s, %v", st, err)
	}
	// A client that goes away ends what waits for it.
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	if err := a.Push(short, "/slow"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("given up: %v", err)
	}
	select {
	case <-slow:
	case <-time.After(10 * time.Second):
		t.Error("the agent works on for a client that went away")
	}
}

// Nonsense on the socket hurts nobody.
func TestServerNonsense(t *testing.T) {
	s := &server{uid: os.Geteuid(), push: func(context.Context, string) error { t.Error("pushed"); return nil }, status: func() any { return 1 }}
	a := serving(t, s)
	var all sync.WaitGroup
	for _, say := range []string{"", "\n", "{}\n", `{"v":2,"op":"push"}` + "\n", `{"v":1,"op":"format"}` + "\n", "{", strings.Repeat("x", client.MaxRequest+10) + "\n", "\x00\xff\n"} {
		all.Go(func() {
			conn, err := net.Dial("unix", a.Socket())
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(10 * time.Second))
			conn.Write([]byte(say)) // the agent may have had enough before the end
			conn.(*net.UnixConn).CloseWrite()
			b := make([]byte, 1000)
			n, _ := conn.Read(b)
			if n > 0 && !strings.Contains(string(b[:n]), `"v":1`) {
				t.Errorf("answer to %.20q: %s", say, b[:n])
			}
		})
	}
	all.Wait()
	if got, err := a.Status(context.Background()); err != nil || string(got) != "1" {
		t.Errorf("afterwards: %q, %v", got, err)
	}
}

// A client of another user is told that the agent is not for it.
func TestServerOtherUser(t *testing.T) {
	s := &server{uid: os.Geteuid() + 1, push: func(context.Context, string) error { return nil }}
	a := serving(t, s)
	err := a.Push(context.Background(), "/x")
	if os.Geteuid() == 0 {
		if err != nil {
			t.Errorf("root is refused: %v", err)
		}
		return // another user is tried by a process of its own, see TestOtherUser
	}
	if !errors.Is(err, client.ErrNoAgent) || !strings.Contains(err.Error(), "the agent serves user") {
		t.Errorf("got %v", err)
	}
}

// Stopping leaves nothing behind: no goroutine, no socket, no lock.
func TestRunStops(t *testing.T) {
	before := runtime.NumGoroutine()
	dir, data := shortDir(t), t.TempDir()
	if err := os.MkdirAll(filepath.Join(data, "pg_wal", "archive_status"), 0o700); err != nil {
		t.Fatal(err)
	}
	o := Options{Dir: dir, DataDir: data, Workers: 3, Timeout: time.Minute, Schedule: "0 1 * * *", Version: "test"}
	d := Deps{
		Archive: func(context.Context) (*archive.Archive, error) { return nil, errors.New("no store") },
		Backup:  func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
		Prune:   func(context.Context) error { return nil },
		RollUp:  func(context.Context) error { return nil },
		Newest:  func(context.Context) (time.Time, time.Time, error) { return time.Unix(0, 0), time.Time{}, nil },
		Log:     slog.New(slog.DiscardHandler),
		Now:     time.Now,
	}
	for range 3 {
		ctx, cancel := context.WithCancel(context.Background())
		ended, up := make(chan error, 1), make(chan struct{})
		go func() { ended <- Run(ctx, o, d, func() { close(up) }) }()
		select {
		case <-up:
		case err := <-ended:
			t.Fatal(err)
		}
		a := client.Of(dir)
		if raw, err := a.Status(ctx); err != nil || !strings.Contains(string(raw), `"version":"test"`) {
			t.Errorf("status %s, %v", raw, err)
		}
		seg := filepath.Join(data, "pg_wal", segment(1))
		if err := os.WriteFile(seg, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := a.Push(ctx, seg); err == nil || errors.Is(err, client.ErrNoAgent) {
			t.Errorf("a push without a server: %v", err)
		}
		if err := a.Push(ctx, "/elsewhere/"+segment(1)); !errors.Is(err, client.ErrNoAgent) {
			t.Errorf("another server's file: %v", err)
		}
		if _, err := takePlace(dir); err == nil {
			t.Error("a second agent gets in")
		}
		began := time.Now()
		cancel() // with a backup under way
		if err := <-ended; err != nil || time.Since(began) > 2*time.Second {
			t.Errorf("ended with %v after %v", err, time.Since(began))
		}
		if _, err := os.Stat(filepath.Join(dir, client.SocketName)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the socket is still there: %v", err)
		}
		if err := a.Push(context.Background(), seg); !errors.Is(err, client.ErrNoAgent) {
			t.Errorf("nobody listens, but: %v", err)
		}
	}
	for deadline := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines before, %d after:\n%s", before, runtime.NumGoroutine(), buf[:runtime.Stack(buf, true)])
		}
	}
}
