package agent_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"pitr/archive"
	"pitr/internal/agent"
	"pitr/internal/agent/client"
	"pitr/internal/postgres/pgtest"
	"pitr/internal/repo"
	"pitr/storage"
)

// host is a server with a configuration of pitr for it.
type host struct {
	*pgtest.Server
	t       *testing.T
	pitr    string
	config  string
	service string
	store   string
}

// newHost starts a server that archives with pitr.
func newHost(t *testing.T, o pgtest.Options) *host {
	t.Helper()
	h := &host{t: t, pitr: pgtest.Binary(t), service: filepath.Join(pgtest.TempDir(t), "s"), store: filepath.Join(pgtest.TempDir(t), "repo")}
	h.config = filepath.Join(pgtest.TempDir(t), "pitr.yaml")
	o.Conf = map[string]string{"archive_mode": "on", "archive_command": h.pitr + " --config " + h.config + " wal push %p", "wal_level": "replica"}
	o.NoFsync, o.NotYet = true, true
	h.Server = pgtest.Start(t, o)
	h.write(h.config, h.service)
	h.Start()
	return h
}

// write writes a configuration for a service directory.
func (h *host) write(path, service string) {
	h.t.Helper()
	text := fmt.Sprintf(`cluster: {name: test, node: n1}
postgres: {data_dir: %q, bin_dir: %q, host: %q, port: %d}
storage: {url: %q}
archive: {workers: 2, timeout: 20s}
backup: {schedule: ""}
service: {dir: %q}
`, h.Dir, h.Bin.Dir, h.SocketDir, h.Port, "file://"+h.store, service)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

// run runs a command of pitr as the server's user.
func (h *host) run(args ...string) (stdout, stderr string, err error) {
	h.t.Helper()
	cmd := exec.Command(h.pitr, append([]string{"--config", h.config}, args...)...)
	pgtest.AsServerUser(cmd)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err = cmd.Run()
	return out.String(), errOut.String(), err
}

// process is a running `pitr agent`.
type process struct {
	cmd  *exec.Cmd
	log  *lockedBuffer
	done chan error
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// agent starts an agent and waits until it answers. It is killed when the test is over.
func (h *host) agent(config, service string, asRoot bool) *process {
	h.t.Helper()
	p := &process{cmd: exec.Command(h.pitr, "--config", config, "agent"), log: &lockedBuffer{}, done: make(chan error, 1)}
	if !asRoot {
		pgtest.AsServerUser(p.cmd)
	}
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	if err := p.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	go func() { p.done <- p.cmd.Wait() }()
	h.t.Cleanup(func() {
		p.cmd.Process.Kill()
		if h.t.Failed() {
			h.t.Logf("log of the agent %d:\n%s", p.cmd.Process.Pid, p.log)
		}
	})
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		raw, err := client.Of(service).Status(h.t.Context())
		if err == nil {
			var r agent.Running
			if err := json.Unmarshal(raw, &r); err != nil {
				h.t.Fatal(err)
			}
			if r.PID == p.cmd.Process.Pid {
				return p
			}
		}
		select {
		case err := <-p.done:
			h.t.Fatalf("agent ended: %v\n%s", err, p.log)
		default:
		}
		if time.Now().After(deadline) {
			h.t.Fatalf("agent does not answer: %v\n%s", err, p.log)
		}
	}
}

func (h *host) running() agent.Running {
	h.t.Helper()
	raw, err := client.Of(h.service).Status(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	var r agent.Running
	if err := json.Unmarshal(raw, &r); err != nil {
		h.t.Fatal(err)
	}
	return r
}

// kill ends it as the kernel would.
func (p *process) kill() {
	p.cmd.Process.Kill()
	<-p.done
}

// stop ends it as a service manager would.
func (p *process) stop(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-p.done:
		if err != nil {
			t.Errorf("the agent ended with %v\n%s", err, p.log)
		}
	case <-time.After(15 * time.Second):
		t.Errorf("the agent does not end\n%s", p.log)
	}
}

// load writes WAL and ends segments until stop is called; it returns how many it ended.
func (h *host) load() (stop func() int) {
	h.Exec("CREATE TABLE IF NOT EXISTS load (n bigint, t text)")
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan int)
	go func() {
		n := 0
		for ctx.Err() == nil {
			err := h.Try(context.Background(), "postgres", "INSERT INTO load SELECT g, md5(g::text) FROM generate_series(1, 1000) g")
			if err == nil {
				err = h.Try(context.Background(), "postgres", "SELECT pg_switch_wal()")
			}
			if err != nil {
				h.t.Errorf("load: %v", err)
				break
			}
			n++
		}
		ended <- n
	}()
	return func() int {
		cancel()
		return <-ended
	}
}

// drained waits until nothing waits to be archived.
func (h *host) drained() {
	h.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		left, err := filepath.Glob(filepath.Join(h.Dir, "pg_wal", "archive_status", "*.ready"))
		if err != nil {
			h.t.Fatal(err)
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			h.t.Fatalf("%d files are still not archived, the first is %s", len(left), left[0])
		}
	}
}

func (h *host) archive() *archive.Archive {
	h.t.Helper()
	b, err := storage.Open(h.t.Context(), storage.Config{URL: "file://" + h.store})
	if err != nil {
		h.t.Fatal(err)
	}
	ids, err := repo.Systems(h.t.Context(), b)
	if err != nil || len(ids) != 1 {
		h.t.Fatalf("systems %v, %v", ids, err)
	}
	r, err := repo.Open(h.t.Context(), b, ids[0])
	if err != nil {
		h.t.Fatal(err)
	}
	a := archive.New(r, archive.Options{})
	h.t.Cleanup(a.Close)
	return a
}

// proven checks that every file that the server takes for archived is in the store, with its content, and that nothing is
// missing between the first and the last.
func (h *host) proven() {
	h.t.Helper()
	a, ctx := h.archive(), h.t.Context()
	done, err := filepath.Glob(filepath.Join(h.Dir, "pg_wal", "archive_status", "*.done"))
	if err != nil {
		h.t.Fatal(err)
	}
	got := filepath.Join(h.t.TempDir(), "got")
	compared := 0
	for _, d := range done {
		name := strings.TrimSuffix(filepath.Base(d), ".done")
		want, err := os.ReadFile(filepath.Join(h.Dir, "pg_wal", name))
		if errors.Is(err, os.ErrNotExist) {
			continue // recycled
		}
		if err != nil {
			h.t.Fatal(err)
		}
		if err := a.Fetch(ctx, name, got, archive.FetchOptions{}); err != nil {
			h.t.Errorf("the server takes %s for archived: %v", name, err)
			continue
		}
		content, err := os.ReadFile(got)
		if err != nil {
			h.t.Fatal(err)
		}
		if !bytes.Equal(content, want) {
			h.t.Errorf("%s differs in the archive", name)
		}
		compared++
	}
	if compared == 0 {
		h.t.Error("nothing was compared")
	}
	c, err := a.Coverage(ctx)
	if err != nil {
		h.t.Fatal(err)
	}
	if gaps := c.Gaps(); len(gaps) > 0 || len(c.Conflicts) > 0 || len(c.Timelines[1].Runs) != 1 {
		h.t.Errorf("gaps %+v, conflicts %+v, runs %v", gaps, c.Conflicts, c.Timelines[1].Runs)
	}
	if stats := pgtest.QueryOne[int64](h.Server, "SELECT failed_count FROM pg_stat_archiver"); stats != 0 {
		h.t.Logf("%d failed calls of archive_command", stats)
	}
}

// The agent is killed again and again while the server archives: hooks do the work themselves meanwhile, and nothing is
// lost or stored twice.
func TestKilledAgent(t *testing.T) {
	h := newHost(t, pgtest.Options{SegSizeMB: 1})
	stop := h.load()
	p := h.agent(h.config, h.service, false)
	for range 20 {
		time.Sleep(time.Duration(rand.IntN(400)) * time.Millisecond)
		p.kill()
		time.Sleep(time.Duration(rand.IntN(100)) * time.Millisecond)
		p = h.agent(h.config, h.service, false)
	}
	time.Sleep(time.Second)
	pushed := h.running().Push
	n := stop()
	h.drained()
	h.proven()
	if n < 20 || pushed.Files == 0 {
		t.Errorf("%d segments, %d of them by the last agent", n, pushed.Files)
	}
	if failed := pgtest.QueryOne[int64](h.Server, "SELECT failed_count FROM pg_stat_archiver"); failed != 0 {
		t.Errorf("archive_command failed %d times, though the store was there all the time", failed)
	}
	p.stop(t)
	t.Logf("%d segments", n)
}

// A frozen agent costs a silence, not the archiving.
func TestFrozenAgent(t *testing.T) {
	h := newHost(t, pgtest.Options{SegSizeMB: 1})
	p := h.agent(h.config, h.service, false)
	if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	h.Exec("CREATE TABLE x ()", "SELECT pg_switch_wal()")
	h.drained()
	if err := p.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	h.Exec("CREATE TABLE y ()", "SELECT pg_switch_wal()")
	h.drained()
	h.proven()
	p.stop(t)
}

// The store goes away and comes back: hooks fail meanwhile and say why, and everything is archived afterwards.
func TestStoreAway(t *testing.T) {
	h := newHost(t, pgtest.Options{SegSizeMB: 1})
	p := h.agent(h.config, h.service, false)
	h.Exec("CREATE TABLE x ()", "SELECT pg_switch_wal()")
	h.drained()
	if err := os.Rename(h.store, h.store+".away"); err != nil {
		t.Fatal(err)
	}
	h.Exec("CREATE TABLE y ()", "SELECT pg_switch_wal()")
	seg := pgtest.QueryOne[string](h.Server, "SELECT pg_walfile_name(pg_current_wal_lsn() - 1)")
	began := time.Now()
	_, stderr, err := h.run("wal", "push", filepath.Join(h.Dir, "pg_wal", seg))
	if e := (*exec.ExitError)(nil); !errors.As(err, &e) || e.ExitCode() != 1 || time.Since(began) > 21*time.Second ||
		!strings.HasPrefix(stderr, "pitr: ") || !strings.Contains(stderr, "\nHINT: ") {
		t.Errorf("push without a store: %v after %v\n%s", err, time.Since(began), stderr)
	}
	if f := h.running().Push; !f.Failing || f.Failure == nil {
		t.Errorf("the agent says %+v", f)
	}
	if err := os.Rename(h.store+".away", h.store); err != nil {
		t.Fatal(err)
	}
	h.drained()
	h.proven()
	if f := h.running().Push; f.Failing {
		t.Errorf("the agent says %+v", f)
	}
	p.stop(t)
}

// Two agents on one server and one repository do no harm; two in one service directory there can't be.
func TestTwoAgents(t *testing.T) {
	h := newHost(t, pgtest.Options{SegSizeMB: 1})
	stop := h.load()
	one := h.agent(h.config, h.service, false)
	second := filepath.Join(pgtest.TempDir(t), "s")
	config := h.config + "2"
	h.write(config, second)
	two := h.agent(config, second, false)
	_, stderr, err := h.run("agent")
	want := fmt.Sprintf("pitr: an agent runs already in %s (process %d)\nHINT: one agent serves one server; stop that one first, or give this one its own `service.dir`\n", h.service, one.cmd.Process.Pid)
	if e := (*exec.ExitError)(nil); !errors.As(err, &e) || e.ExitCode() != 1 || stderr != want {
		t.Errorf("a second agent: %v\n%s\nwant %s", err, stderr, want)
	}
	time.Sleep(5 * time.Second)
	stop()
	h.drained()
	h.proven()
	one.stop(t)
	two.stop(t)
}

// Root becomes the server's user.
func TestAgentOfRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become another user")
	}
	h := newHost(t, pgtest.Options{SegSizeMB: 1})
	p := h.agent(h.config, h.service, true)
	uid, _ := pgtest.User()
	if r := h.running(); r.User != uid {
		t.Errorf("the agent runs as user %d, the server's is %d", r.User, uid)
	}
	h.Exec("CREATE TABLE x ()", "SELECT pg_switch_wal()")
	h.drained()
	h.proven()
	if n := h.running().Push.Files; n == 0 {
		t.Error("the agent archived nothing")
	}
	p.stop(t)
}

// TestOtherUserAsks is not a test of its own: it is the client that TestOtherUser runs as another user.
func TestOtherUserAsks(t *testing.T) {
	socket := os.Getenv("PITR_TEST_SOCKET")
	if socket == "" {
		return
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := fmt.Fprintln(conn, `{"v":1,"op":"status"}`); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("ANSWER %s", answer)
}

// A user who is neither the agent's nor root is refused, even where the modes would let him in.
func TestOtherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can run a process as another user")
	}
	h := newHost(t, pgtest.Options{SegSizeMB: 1})
	p := h.agent(h.config, h.service, false)
	socket := filepath.Join(h.service, client.SocketName)
	for path, mode := range map[string]os.FileMode{h.service: 0o755, filepath.Dir(h.service): 0o755, socket: 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	// The test's own program may lie where only root gets.
	self := filepath.Join(pgtest.TempDir(t), "self")
	if out, err := exec.Command("cp", os.Args[0], self).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := errors.Join(os.Chmod(filepath.Dir(self), 0o755), os.Chmod(self, 0o755)); err != nil {
		t.Fatal(err)
	}
	const other = 65533
	cmd := exec.Command(self, "-test.run", "^TestOtherUserAsks$", "-test.v")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "PITR_TEST_SOCKET="+socket)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: other, Gid: other}}
	out, err := cmd.CombinedOutput()
	uid, _ := pgtest.User()
	want := fmt.Sprintf(`ANSWER {"v":1,"kind":"elsewhere","error":"the agent serves user %d and root, not user %d"}`, uid, other)
	if err != nil || !strings.Contains(string(out), want) {
		t.Errorf("%v\n%s\nwant %s", err, out, want)
	}
	if _, err := client.Of(h.service).Status(t.Context()); err != nil {
		t.Errorf("root: %v", err)
	}
	p.stop(t)
}
