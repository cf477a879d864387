package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"pitr/internal/postgres/pgtest"
)

// backupSite is a server that archives with this program, and its configuration.
type backupSite struct {
	*pgtest.Server
	t      *testing.T
	config string
	store  string
}

func newBackupSite(t *testing.T) *backupSite {
	dir := pgtest.TempDir(t)
	s := &backupSite{t: t, config: filepath.Join(dir, "pitr.yaml"), store: filepath.Join(dir, "store")}
	if err := os.Chmod(dir, 0o777); err != nil { // the server's user makes the store
		t.Fatal(err)
	}
	s.Server = pgtest.Start(t, pgtest.Options{NoFsync: true, SegSizeMB: 1, Conf: map[string]string{
		"archive_mode": "on", "archive_command": fmt.Sprintf("%s --config %s wal push %%p", pgtest.Binary(t), s.config),
	}})
	text := fmt.Sprintf("cluster: {name: main, node: n1}\npostgres: {data_dir: %s, host: %s, port: %d}\nstorage: {url: file://%s}\nservice: {dir: %s/service}\nbackup: {retention: {window: 0s, keep: 1}}\n",
		s.Dir, s.SocketDir, s.Port, s.store, dir)
	if err := os.WriteFile(s.config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return s
}

// pitr runs a command, as root where the test is run by root, and fails the test unless it ends with the status.
func (s *backupSite) pitr(status int, args ...string) (out, errOut string) {
	s.t.Helper()
	var o, e bytes.Buffer
	cmd := exec.Command(pgtest.Binary(s.t), append([]string{"--config", s.config}, args...)...)
	cmd.Stdout, cmd.Stderr = &o, &e
	err := cmd.Run()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		s.t.Fatal(err)
	}
	if got := cmd.ProcessState.ExitCode(); got != status {
		s.t.Fatalf("pitr %s: status %d, want %d\n%s%s", strings.Join(args, " "), got, status, o.String(), e.String())
	}
	return o.String(), e.String()
}

func TestBackupCommands(t *testing.T) {
	s := newBackupSite(t)
	s.Exec("CREATE TABLE t AS SELECT generate_series(1, 10000) AS i")
	// A backup needs no repository to be there, and archives nothing itself.
	create := func(args ...string) string {
		t.Helper()
		out, errOut := s.pitr(0, append([]string{"backup", "create"}, args...)...)
		lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
		words := strings.Fields(lines[len(lines)-1])
		id := words[len(words)-1]
		if !regexp.MustCompile(`^\d{8}T\d{6}Z-[0-9a-f]{8}$`).MatchString(id) || len(lines) != 1 || !strings.Contains(errOut, "backup "+id+": copying") {
			t.Fatalf("backup create says %q, %q", out, errOut)
		}
		return id
	}
	first := create()
	second := create("--full", "--label", "a label")
	out, errOut := s.pitr(0, "--quiet", "backup", "create", "--json")
	if errOut != "" {
		t.Errorf("--quiet: %q", errOut)
	}
	var third backupJSON
	if err := json.Unmarshal([]byte(out), &third); err != nil || third.Status != "ok" {
		t.Fatalf("%s: %v", out, err)
	}

	list := func() []map[string]any {
		t.Helper()
		out, _ := s.pitr(0, "backup", "list", "--json")
		var l []map[string]any
		if err := json.Unmarshal([]byte(out), &l); err != nil {
			t.Fatal(err)
		}
		return l
	}
	ids := func() []string {
		t.Helper()
		var got []string
		for _, b := range list() {
			got = append(got, b["id"].(string))
		}
		slices.Sort(got)
		return got
	}
	want := []string{first, second, third.ID}
	slices.Sort(want)
	if !slices.Equal(ids(), want) {
		t.Fatalf("listed: %v, want %v", ids(), want)
	}
	var keys []string
	for k := range list()[0] {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	if got := strings.Join(keys, " "); got != "finished id parent pinned size start_lsn started status stop_lsn stored timeline type" {
		t.Errorf("fields: %s", got)
	}
	if out, _ := s.pitr(0, "backup", "list"); strings.Count(out, "\n") != 4 || !strings.Contains(out, second) {
		t.Errorf("list:\n%s", out)
	}
	if out, _ := s.pitr(0, "backup", "show", second); !strings.Contains(out, "label        a label\n") || !strings.Contains(out, "system identifier") {
		t.Errorf("show:\n%s", out)
	}
	if _, errOut := s.pitr(1, "backup", "show", "20200101T000000Z-00000000"); errOut != "pitr: no such backup: 20200101T000000Z-00000000\nHINT: `pitr backup list` shows what there is\n" {
		t.Errorf("show what is not there: %q", errOut)
	}
	if out, _ := s.pitr(0, "backup", "verify"); strings.Count(out, "ok backup ") != 3 {
		t.Errorf("verify:\n%s", out)
	}

	// Retention: the first is pinned, the last is kept.
	s.pitr(0, "backup", "pin", first, "--reason", "month's end")
	if out, _ := s.pitr(0, "backup", "show", first); !strings.Contains(out, "month's end") {
		t.Errorf("show what is pinned:\n%s", out)
	}
	if _, errOut := s.pitr(7, "backup", "delete", first, "--yes"); !strings.Contains(errOut, "HINT: `pitr backup unpin "+first+"` lifts that\n") {
		t.Errorf("delete what is pinned: %q", errOut)
	}
	if _, errOut := s.pitr(7, "backup", "delete", second); !strings.Contains(errOut, "--yes") {
		t.Errorf("delete without a terminal: %q", errOut)
	}
	out, _ = s.pitr(0, "prune", "--dry-run")
	for _, line := range strings.Split(strings.TrimSuffix(out, "\n"), "\n") {
		if !strings.HasPrefix(line, "keep ") && !strings.HasPrefix(line, "delete ") {
			t.Errorf("prune says %q", line)
		}
	}
	if !strings.Contains(out, "keep backup "+first+": pinned\n") || !strings.Contains(out, "delete backup "+second+": ") || !strings.Contains(out, "keep backup "+third.ID+": one of the newest 1\n") {
		t.Errorf("prune --dry-run:\n%s", out)
	}
	s.pitr(7, "prune")
	if len(ids()) != 3 {
		t.Errorf("nothing was to be deleted, but there are %v", ids())
	}
	s.pitr(0, "prune", "--yes")
	if got := ids(); len(got) != 2 || slices.Contains(got, second) {
		t.Errorf("after prune: %v", got)
	}
	if out, _ := s.pitr(0, "prune", "--dry-run"); !strings.Contains(out, "keep leftovers "+second) {
		t.Errorf("prune again:\n%s", out)
	}
	s.pitr(0, "backup", "verify", first)
	s.pitr(0, "backup", "unpin", first)
	s.pitr(0, "backup", "delete", first, "--yes")

	// Damage is told by every command that meets it.
	packs, err := filepath.Glob(filepath.Join(s.store, "*", "pack", third.ID, "*"))
	if err != nil || len(packs) == 0 {
		t.Fatal(packs, err)
	}
	flipByte(t, packs[0])
	if out, errOut := s.pitr(5, "backup", "verify", "--json"); !strings.Contains(out, `"status": "damaged"`) || !strings.Contains(errOut, "pitr: verify backups: 1 of 1 are damaged\n") {
		t.Errorf("verify a damaged pack: %s%s", out, errOut)
	}
	manifests, err := filepath.Glob(filepath.Join(s.store, "*", "backup", "*"))
	if err != nil || len(manifests) != 1 {
		t.Fatal(manifests, err)
	}
	truncate(t, manifests[0])
	if l := list(); len(l) != 1 || l[0]["status"] != "damaged" {
		t.Errorf("list a damaged manifest: %v", l)
	}
	s.pitr(5, "backup", "verify", third.ID)
	if out, errOut := s.pitr(5, "prune", "--yes"); !strings.Contains(out, "keep backup "+third.ID) || !strings.Contains(errOut, "`pitr backup delete "+third.ID+"`") {
		t.Errorf("prune with a damaged manifest: %s%s", out, errOut)
	}
	s.pitr(0, "backup", "delete", third.ID, "--yes")
	if out, _ := s.pitr(0, "backup", "list"); out != "there is no backup\n" {
		t.Errorf("list: %q", out)
	}
	if out, _ := s.pitr(0, "prune", "--yes"); !strings.Contains(out, "there is no backup yet") {
		t.Errorf("prune without a backup: %q", out)
	}
}

func flipByte(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 4
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o640); err != nil {
		t.Fatal(err)
	}
}

func truncate(t *testing.T, path string) {
	t.Helper()
	if err := os.Truncate(path, 100); err != nil {
		t.Fatal(err)
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 1000: "1.0 kB", 999_949: "999.9 kB", 999_950: "1.0 MB", 1_500_000_000: "1.5 GB", 1 << 62: "4.6 EB"} {
		if got := size(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}
