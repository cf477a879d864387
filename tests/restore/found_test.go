package restore_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"pitr/internal/postgres"
	"pitr/internal/postgres/pgtest"
)

// TestConfigurationOutside: a server as Debian sets it up is restored in place. The line that says how to start it is
// right as it stands.
func TestConfigurationOutside(t *testing.T) {
	t.Parallel()
	s := newSite(t, pgtest.Options{SegSizeMB: 1}, "")
	s.Exec("CREATE TABLE t (n serial, v text)", "INSERT INTO t (v) VALUES ('1')")
	s.Stop(postgres.Fast)
	etc := filepath.Join(pgtest.TempDir(t), "it's $HOME 100%")
	makeDir(t, etc)
	conf := filepath.Join(etc, "postgresql.conf")
	for _, name := range []string{"postgresql.conf", "pg_hba.conf"} {
		if err := os.Rename(filepath.Join(s.Dir, name), filepath.Join(etc, name)); err != nil {
			t.Fatal(err)
		}
	}
	outside, err := pgtest.TryOpenDir(t, s.Dir, pgtest.Options{Bin: s.Bin, Conf: map[string]string{
		"config_file": conf, "hba_file": filepath.Join(etc, "pg_hba.conf")}})
	if err != nil {
		t.Fatal(err)
	}
	s.Server = outside
	s.configure(t, s.config, s.repo, s.Dir, s.SocketDir, s.Port, s.service)
	s.backup(t)
	s.flush(t)
	want := rows(s.Server)
	s.Stop(postgres.Fast)
	out := s.must(t, "restore", "--yes", "--archive", "on")
	_, line, found := strings.Cut(out, "start it with: ")
	line, _, _ = strings.Cut(line, "\n")
	if !found {
		t.Fatal(out)
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-c", strings.Replace(line, " start", " -w -l "+postgres.ShellQuote(filepath.Join(s.base, "log"))+" start", 1))
	cmd.Dir = s.base
	cmd.Env = []string{"PATH=" + s.Bin.Dir + ":" + os.Getenv("PATH")}
	pgtest.AsServerUser(cmd)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", line, err, text)
	}
	r := pgtest.Attach(t, s.Dir, pgtest.Options{Bin: s.Bin})
	r.AwaitPrimary()
	if got := rows(r) + " " + pgtest.QueryOne[string](r, "SHOW config_file"); got != want+" "+conf {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestOtherClusterInTheStore: the same call goes on after a failure, where the store alone could not tell for which cluster.
func TestOtherClusterInTheStore(t *testing.T) {
	t.Parallel()
	s := newSite(t, pgtest.Options{SegSizeMB: 1}, "")
	s.backup(t)
	s.flush(t)
	other := newSite(t, pgtest.Options{SegSizeMB: 1, NewSystem: true}, "")
	other.configure(t, other.config, s.repo, other.Dir, other.SocketDir, other.Port, other.service)
	other.flush(t)
	s.Stop(postgres.Fast)
	pack := glob(t, s.repo, "*", "pack", "*", "*")[0]
	info, err := os.Stat(pack)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(pack, 0); err != nil { // there, and not to be read
		t.Fatal(err)
	}
	if r := s.pitr(t, "restore", "--yes"); r.code == 0 {
		t.Fatalf("without a pack: %s", r.out)
	}
	if err := os.Chmod(pack, info.Mode()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(s.Dir, "global", "pg_control")); err == nil {
		t.Fatal("nothing was touched yet: the test has to fail later")
	}
	s.must(t, "restore", "--yes")
}
