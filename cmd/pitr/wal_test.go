package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"pitr/archive"
	"pitr/internal/postgres"
	"pitr/internal/postgres/pgtest"
)

// walBench is a stopped server with WAL to archive, and a configuration for it.
type walBench struct {
	dir, store, config string
	segments           []string // paths
}

func newWALBench(t *testing.T) *walBench {
	t.Helper()
	s := pgtest.Start(t, pgtest.Options{SegSizeMB: 1, NoFsync: true, Conf: map[string]string{"wal_keep_size": "100MB"}})
	b := &walBench{dir: s.Dir}
	for range 4 {
		s.Exec("CREATE TABLE IF NOT EXISTS t AS SELECT g FROM generate_series(1, 1000) g", "INSERT INTO t SELECT * FROM t LIMIT 1000")
		b.segments = append(b.segments, filepath.Join(s.Dir, "pg_wal", pgtest.QueryOne[string](s, "SELECT pg_walfile_name(pg_switch_wal())")))
	}
	s.Stop(postgres.Fast)
	base := t.TempDir()
	b.store = filepath.Join(base, "store")
	b.config = filepath.Join(base, "pitr.yaml")
	b.configure(t, "file://"+b.store)
	return b
}

func (b *walBench) configure(t *testing.T, url string) {
	t.Helper()
	text := fmt.Sprintf("cluster: {node: n1}\nservice: {dir: %q}\npostgres: {data_dir: %q}\nstorage: {url: %q}\narchive: {timeout: 20s}\n",
		filepath.Join(filepath.Dir(b.config), "service"), b.dir, url)
	if err := os.WriteFile(b.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// hook runs a hook in the data directory, as the server does.
func (b *walBench) hook(t *testing.T, args ...string) (int, string) {
	t.Helper()
	t.Chdir(b.dir)
	var out bytes.Buffer
	code, ok := runHook(append([]string{"--config", b.config}, args...), &out)
	if !ok {
		t.Fatalf("%v is no hook", args)
	}
	return code, out.String()
}

func (b *walBench) app(out *bytes.Buffer) *app {
	return &app{out: out, err: out, configFile: b.config, quiet: true}
}

func TestWALHooks(t *testing.T) {
	ctx := context.Background()
	b := newWALBench(t)
	dest := filepath.Join(t.TempDir(), "RECOVERYXLOG")
	for _, path := range []string{b.segments[0], filepath.Join("pg_wal", filepath.Base(b.segments[1])), b.segments[0], b.segments[3]} {
		if code, text := b.hook(t, "wal", "push", path); code != exitDone || text != "" {
			t.Fatalf("push: %d %s", code, text)
		}
	}
	for _, path := range b.segments[:2] {
		code, text := b.hook(t, "wal", "fetch", filepath.Base(path), dest)
		got, err := os.ReadFile(dest)
		want, err2 := os.ReadFile(path)
		if code != fetchDone || text != "" || err != nil || err2 != nil || !bytes.Equal(got, want) {
			t.Fatalf("fetch: %d %s", code, text)
		}
	}
	gap := filepath.Base(b.segments[2])
	for _, name := range []string{gap, "00000002.history"} {
		if code, text := b.hook(t, "wal", "fetch", name, dest); code != fetchAbsent || text != "" {
			t.Errorf("absent: %d %q", code, text)
		}
	}

	var out bytes.Buffer
	if err := b.app(&out).walList(ctx, 0, true); err != nil {
		t.Fatal(err)
	}
	var l walListing
	if err := json.Unmarshal(out.Bytes(), &l); err != nil || len(l.Timelines) != 1 || l.Timelines[0].Segments != 3 || len(l.Gaps) != 1 || l.Gaps[0].First != gap {
		t.Fatalf("%v %s", err, out.String())
	}
	out.Reset()
	if err := b.app(&out).walList(ctx, 0, false); err != nil || !strings.Contains(out.String(), "gap: "+gap+" is missing") {
		t.Fatal(err, out.String())
	}
	out.Reset()
	err := b.app(&out).walVerify(ctx, 0, true, nil)
	var r archive.Report
	if jerr := json.Unmarshal(out.Bytes(), &r); jerr != nil || !as[*verificationError](err) || len(r.Gaps) != 1 || r.Segments != 3 || r.Gaps[0].From == 0 {
		t.Fatalf("%v %v %s", err, jerr, out.String())
	}
	if code, text := b.hook(t, "wal", "push", b.segments[2]); code != exitDone {
		t.Fatal(text)
	}
	if err := b.app(&out).walVerify(ctx, 0, false, nil); err != nil {
		t.Fatal(err)
	}

	// Another content under the same name.
	data, err := os.ReadFile(b.segments[1])
	if err != nil {
		t.Fatal(err)
	}
	data[9000] ^= 1
	if err := os.WriteFile(b.segments[1], data, 0o600); err != nil {
		t.Fatal(err)
	}
	code, text := b.hook(t, "wal", "push", b.segments[1])
	if code != exitFailed || !strings.Contains(text, "is archived with another content") || !strings.Contains(text, "HINT: two servers archive under one name") {
		t.Fatal(code, text)
	}
	out.Reset()
	if err := b.app(&out).walList(ctx, 0, true); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out.Bytes(), &l); err != nil || len(l.Conflicts) != 1 {
		t.Fatal(err, out.String())
	}
	if err := b.app(&out).walResolve(ctx, 0, l.Conflicts[0].Name, l.Conflicts[0].Aside[0].String()); err != nil {
		t.Fatal(err)
	}
	if code, text := b.hook(t, "wal", "push", b.segments[1]); code != exitDone {
		t.Fatal(code, text)
	}
	if err := b.app(&out).walResolve(ctx, 0, l.Conflicts[0].Name, "x"); err == nil {
		t.Error("a digest of one letter was taken")
	}
}

// Whatever goes wrong in a fetch but proven absence ends with 200, so that the server stops.
func TestWALFetchFails(t *testing.T) {
	b := newWALBench(t)
	name := filepath.Base(b.segments[0])
	dest := filepath.Join(t.TempDir(), "RECOVERYXLOG")
	if code, text := b.hook(t, "wal", "push", b.segments[0]); code != exitDone {
		t.Fatal(text)
	}
	fails := func(what, want string, args ...string) {
		t.Helper()
		code, text := b.hook(t, append([]string{"wal", "fetch"}, args...)...)
		if code != fetchFailed || !strings.Contains(text, want) {
			t.Errorf("%s: %d %s", what, code, text)
		}
		if _, err := os.Stat(dest); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: something was fetched (%v)", what, err)
		}
	}
	fails("too few words", "accepts 2 arg(s), received 1", name)
	fails("too many words", "accepts 2 arg(s), received 3", name, dest, "more")
	fails("a flag that does not exist", "unknown flag: --fast", "--fast", name, dest)
	fails("a name that does not exist", "no file of that name", "nonsense", dest)
	fails("nowhere to write to", "no such file", name, filepath.Join(dest, "deep", "x"))

	var object string
	err := filepath.WalkDir(b.store, func(path string, _ os.DirEntry, err error) error {
		if strings.HasSuffix(path, ".zst") {
			object = path
		}
		return err
	})
	if err != nil || object == "" {
		t.Fatal(err)
	}
	data, err := os.ReadFile(object)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.Chmod(object, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(object, data, 0o600); err != nil {
		t.Fatal(err)
	}
	fails("damaged", "damaged object", name, dest)

	if err := os.WriteFile(filepath.Join(b.dir, "pitr.restored"), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	fails("a marker that can't be read", "pitr.restored", "00000002.history", dest)
	if code, text := b.hook(t, "wal", "push", b.segments[0]); code != exitDamaged || !strings.Contains(text, "pitr.restored") {
		t.Errorf("push with a marker that can't be read: %d %s", code, text)
	}
	if err := os.Remove(filepath.Join(b.dir, "pitr.restored")); err != nil {
		t.Fatal(err)
	}

	b.configure(t, "file://"+filepath.Join(filepath.Dir(b.store), "none", "store"))
	fails("no store", "", name, dest)
	if err := os.WriteFile(b.config, []byte("nonsense: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	fails("configuration", "nonsense", name, dest)
	if code, text := b.hook(t, "wal", "push", b.segments[0]); code != exitConfig {
		t.Errorf("push with a wrong configuration: %d %s", code, text)
	}
}

// On a standby a failure must not be the end of the server.
func TestWALFetchOnStandby(t *testing.T) {
	b := newWALBench(t)
	for name, text := range map[string]string{
		"standby.signal": "",
		// A program that knows no primary_conninfo when it is asked.
		"postmaster.opts": "/bin/true \"-D\" \"/a dir\"\n",
	} {
		if err := os.WriteFile(filepath.Join(b.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	name, dest := filepath.Base(b.segments[0]), filepath.Join(t.TempDir(), "RECOVERYXLOG")

	// Without a primary it waits until it is served.
	b.configure(t, "file://"+filepath.Join(filepath.Dir(b.store), "later", "store"))
	cmd := exec.Command(os.Args[0], "-test.run=^TestHookProcess$")
	cmd.Env = append(os.Environ(), "PITR_TEST_HOOK=--config\n"+b.config+"\nwal\nfetch\n"+name+"\n"+dest)
	cmd.Dir = b.dir
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(standbyPatience + time.Second)
	if err := cmd.Process.Signal(syscall.Signal(0)); err != nil {
		t.Fatal("it did not wait")
	}
	// SIGTERM ends it as SIGTERM does.
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	err := cmd.Wait()
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok || !status.Signaled() || status.Signal() != syscall.SIGTERM {
		t.Fatalf("it ended with %v: %s", err, errOut.String())
	}
	if !strings.Contains(errOut.String(), "this standby waits for it") {
		t.Errorf("it said %q", errOut.String())
	}

	// With one it lets the server go on streaming.
	if err := os.WriteFile(filepath.Join(b.dir, "postmaster.opts"), []byte("/bin/echo \"-D\" \"x\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	code, text := b.hook(t, "wal", "fetch", name, dest)
	if took := time.Since(begin); code != fetchAbsent || !strings.Contains(text, "goes on by streaming alone") || took > standbyPatience+3*time.Second {
		t.Errorf("%d after %s: %s", code, took, text)
	}
}

// TestHookProcess is a hook in a process of its own, for tests that end it.
func TestHookProcess(t *testing.T) {
	line, ok := os.LookupEnv("PITR_TEST_HOOK")
	if !ok {
		return // started by itself it has nothing to test
	}
	code, _ := runHook(strings.Split(line, "\n"), os.Stderr)
	os.Exit(code)
}

func TestParseOpts(t *testing.T) {
	for text, want := range map[string][]string{
		"":                    nil,
		"/usr/bin/postgres\n": {"/usr/bin/postgres"},
		"/a b/postgres \"-D\" \"/x y\" \"-c\" \"a=\"\n": {"/a b/postgres", "-D", "/x y", "-c", "a="},
	} {
		if got := parseOpts(text); fmt.Sprint(got) != fmt.Sprint(want) || len(got) != len(want) {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestParseHook(t *testing.T) {
	for line, want := range map[string]string{
		"wal fetch a b":                   "fetch [a b]",
		"--config x wal fetch a b":        "fetch [a b] x",
		"wal --config=x fetch -q a b":     "fetch [a b] x quiet",
		"wal push p --config x":           "push [p] x",
		"wal push -- -p":                  "push [-p]",
		"wal fetch":                       "fetch [] bad",
		"wal push a b":                    "push [a b] bad",
		"wal fetch --config":              "fetch [] bad",
		"wal fetch a b --help":            "no",
		"wal list":                        "no",
		"wal":                             "no",
		"backup create --config wal push": "no",
	} {
		h, ok := parseHook(strings.Fields(line))
		got := "no"
		if ok {
			got = "push "
			if h.fetch {
				got = "fetch "
			}
			got += fmt.Sprint(h.args)
			if h.configFile != "" {
				got += " " + h.configFile
			}
			if h.quiet {
				got += " quiet"
			}
			if h.bad != nil {
				got += " bad"
			}
		}
		if got != want {
			t.Errorf("%q: %s, want %s", line, got, want)
		}
	}
}
