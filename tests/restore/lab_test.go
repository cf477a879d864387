// Package restore_test restores as its users do: by the built program, from what real servers have archived, and
// compares what comes back with what was there. It owns no rule: what is right is said by docs/, by the command-line
// contract and by PostgreSQL. How packages behave by themselves is tested beside them.
package restore_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"pitr/internal/postgres"
	"pitr/internal/postgres/pgtest"
)

// patience bounds everything that is waited for; it is generous since machines that test are busy.
const patience = 2 * time.Minute

// site is a server that archives into a repository, and what its administrator works with.
type site struct {
	*pgtest.Server
	base    string // the rest lies here
	repo    string // directory of the store
	service string
	config  string
	program string
}

// newSite starts a server whose archive_command is pitr. What belongs to it lies in a directory called name, if that is not
// empty.
func newSite(t *testing.T, o pgtest.Options, name string) *site {
	t.Helper()
	s := &site{base: filepath.Join(pgtest.TempDir(t), name), program: pgtest.Binary(t)}
	makeDir(t, s.base)
	s.service, s.repo, s.config = filepath.Join(s.base, "service"), filepath.Join(s.base, "repo"), filepath.Join(s.base, "pitr.yaml")
	makeDir(t, s.service)
	conf := map[string]string{
		"archive_mode":              "on",
		"archive_command":           postgres.ShellQuote(s.program) + " --config " + postgres.ShellQuote(s.config) + " wal push %p",
		"max_prepared_transactions": "10",
		"track_commit_timestamp":    "on",
		"autovacuum":                "off", // commits when it likes
	}
	for k, v := range o.Conf {
		conf[k] = v
	}
	o.Conf, o.NoFsync = conf, true
	s.Server = pgtest.Start(t, o)
	s.configure(t, s.config, s.repo, s.Dir, s.SocketDir, s.Port, s.service)
	return s
}

// configure writes a configuration file, of which what is not named here is the default.
func (s *site) configure(t *testing.T, path, repo, dataDir, host string, port int, service string, more ...string) {
	t.Helper()
	text := fmt.Sprintf("postgres: {data_dir: %s, bin_dir: %s, host: %s, port: %d}\nstorage: {url: %s}\nservice: {dir: %s}\n",
		word(dataDir), word(s.Bin.Dir), word(host), port, word((&url.URL{Scheme: "file", Path: repo}).String()), word(service))
	write(t, path, text+strings.Join(more, "\n"))
}

// word writes a text as YAML takes it whatever is in it: JSON's strings are YAML's.
func word(s string) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil {
		panic(err) // a string can always be encoded
	}
	return strings.TrimSpace(b.String())
}

// with is the site seen through another configuration, and in a subtest.
func (s *site) with(config string) *site {
	c := *s
	c.config = config
	return &c
}

// copyRepo gives a copy of the site's repository, to be harmed.
func (s *site) copyRepo(t *testing.T) *site {
	t.Helper()
	c := *s
	c.base = pgtest.TempDir(t)
	c.repo, c.service, c.config = filepath.Join(c.base, "repo"), filepath.Join(c.base, "service"), filepath.Join(c.base, "pitr.yaml")
	shell(t, "cp", "-a", s.repo, c.repo)
	makeDir(t, c.service)
	c.configure(t, c.config, c.repo, c.Dir, c.SocketDir, c.Port, c.service)
	return &c
}

// result is how a command ended.
type result struct {
	code     int // 128 and more: by a signal, as shells say it
	out, err string
}

// pitr runs the program as the servers' user.
func (s *site) pitr(t *testing.T, args ...string) result {
	t.Helper()
	return s.pitrIn(t, "", nil, args...)
}

// pitrIn runs it in a directory, with more environment.
func (s *site) pitrIn(t *testing.T, dir string, env []string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := s.command(ctx, args...)
	cmd.Dir = dir
	cmd.Env = append(cmd.Env, env...)
	pgtest.AsServerUser(cmd)
	return run(t, cmd)
}

// command is the program with its configuration and an environment of its own.
func (s *site) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, s.program, append([]string{"--config", s.config}, args...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "LC_ALL=C.UTF-8", "TMPDIR=" + s.SocketDir} // short, and removed in the end
	return cmd
}

func run(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	err := cmd.Run()
	r := result{out: out.String(), err: complaint.String()}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		r.code = exit.ExitCode()
		if st, ok := exit.Sys().(syscall.WaitStatus); ok && st.Signaled() {
			r.code = 128 + int(st.Signal())
		}
	} else if err != nil {
		t.Fatalf("%q: %v", cmd.Args, err)
	}
	return r
}

// must runs the program, which has to succeed, and returns what it prints.
func (s *site) must(t *testing.T, args ...string) string {
	t.Helper()
	r := s.pitr(t, args...)
	if r.code != 0 {
		t.Fatalf("pitr %q: exit status %d\n%s%s", args, r.code, r.out, r.err)
	}
	return r.out
}

// backup takes one and returns its ID, which is the last word of the last line.
func (s *site) backup(t *testing.T) string {
	t.Helper()
	words := strings.Fields(s.must(t, "backup", "create"))
	return words[len(words)-1]
}

// flush ends the current segment and waits until it is archived.
func (s *site) flush(t *testing.T) string {
	t.Helper()
	// Without a record in it the segment would not end.
	s.Exec("SELECT pg_logical_emit_message(false, 'flush', '')")
	name := pgtest.QueryOne[string](s.Server, "SELECT pg_walfile_name(pg_switch_wal())")
	s.Await("SELECT coalesce((SELECT last_archived_wal >= $1 AND length(last_archived_wal) = 24 FROM pg_stat_archiver), false)", name)
	return name
}

// agent starts the agent of the site and waits until it answers. It is stopped before the test ends, and has to stop
// well.
func (s *site) agent(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := s.command(context.Background(), "agent")
	pgtest.AsServerUser(cmd)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Error(err)
		}
		if err := <-ended; err != nil {
			t.Errorf("agent: %v\n%s", err, log.String())
		} else if t.Failed() {
			t.Logf("agent:\n%s", log.String())
		}
	})
	socket := filepath.Join(s.service, "agent.sock")
	eventually(t, "the agent listens", func() bool {
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("agent: %v\n%s", err, log.String())
		default:
		}
		_, err := os.Stat(socket)
		return err == nil
	})
	return cmd
}

// eventually polls.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still not so after %v: %s", patience, what)
		}
	}
}

// What differs from run to run in messages.
var changing = []struct {
	what *regexp.Regexp
	by   string
}{
	{regexp.MustCompile(`\d{8}T\d{6}Z-[0-9a-f]{8}`), "ID"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)`), "TIME"},
	{regexp.MustCompile(`\b[0-9A-F]{24}\b`), "SEGMENT"},
	{regexp.MustCompile(`\b[0-9A-F]{1,8}/[0-9A-F]{1,8}\b`), "LSN"},
	{regexp.MustCompile(`\b[0-9a-f]{32}\b`), "DIGEST"},
	{regexp.MustCompile(`\b\d{18,20}\b`), "SYSTEM"},
	{regexp.MustCompile(`\bprocess \d+\b`), "process PID"},
	{regexp.MustCompile(`\btransaction \d+\b`), "transaction XID"},
	{regexp.MustCompile(`\bfor \d+ bytes, and \d+\b`), "for N bytes, and N"},
}

// plain makes a message the same for every run. Names of the site's places become words; more are given as pairs.
func (s *site) plain(text string, places ...string) string {
	pairs := append(places, s.Dir, "$DATA", s.repo, "$REPO", s.service, "$SERVICE", s.base, "$BASE", s.SocketDir, "$SOCKET", s.program, "$PITR", fmt.Sprintf(".s.PGSQL.%d", s.Port), ".s.PGSQL.PORT")
	text = strings.NewReplacer(pairs...).Replace(text)
	for _, c := range changing {
		text = c.what.ReplaceAllString(text, c.by)
	}
	return text
}

// expect compares how a command ended, and all that it complained of.
func (s *site) expect(t *testing.T, r result, code int, complaint string, places ...string) {
	t.Helper()
	if got := s.plain(r.err, places...); r.code != code || got != complaint {
		t.Errorf("exit status %d, want %d; complaint\n%s\nwant\n%s\noutput:\n%s", r.code, code, got, complaint, r.out)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	give(t, path)
}

func makeDir(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(path, 0o700); err != nil {
		t.Fatal(err)
	}
	give(t, path)
}

// give makes the servers' user the owner.
func give(t *testing.T, path string) {
	t.Helper()
	uid, gid := pgtest.User()
	if err := os.Chown(path, uid, gid); err != nil {
		t.Fatal(err)
	}
}

func shell(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%q: %v\n%s", args, err, out)
	}
}

// glob gives what matches a pattern of paths, which must be something.
func glob(t *testing.T, parts ...string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(parts...))
	if err != nil || len(found) == 0 {
		t.Fatalf("%q: found %q, %v", parts, found, err)
	}
	return found
}
