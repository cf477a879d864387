package crash

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"pitr/internal/postgres"
	"pitr/internal/postgres/pgtest"
	"pitr/recovery"
)

// Restores are killed at random moments, beside a server and in place of one that has crashed with WAL that nobody had
// archived. Until a call has come to its end no server can start there, and the same call again goes on.
func TestKilledRestore(t *testing.T) {
	t.Parallel()
	r := random(t)
	l := newServerLab(t, nil)
	l.server.Run("pgbench", "-i", "-q", "-s", "4")
	l.run("backup", "create")
	l.server.Run("pgbench", "-n", "-t", "500")
	beside := content(l.server)
	l.server.Exec("SELECT pg_create_restore_point('beside')")
	l.flush()
	// A whole segment and the beginning of one are in the directory only.
	l.server.Conf(map[string]string{"archive_command": "false"})
	l.server.Reload()
	l.server.Run("pgbench", "-n", "-t", "200")
	l.server.Exec("SELECT pg_switch_wal()")
	l.server.Run("pgbench", "-n", "-t", "200")
	want := content(l.server)
	l.server.Kill()

	// harmless makes sure that nothing can start on a directory whose restore was killed, and says whether it began.
	harmless := func(what, dir string) (began bool) {
		t.Helper()
		j, err := recovery.ReadJournal(dir)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		_, err = os.Stat(filepath.Join(dir, "global", "pg_control"))
		if j != nil && j.Phase != "finish" && err == nil {
			t.Fatalf("%s: killed in phase %s, and there is a pg_control", what, j.Phase)
		}
		return j != nil && err != nil
	}
	// done tells whether a restore came to its end there.
	done := func(dir string) bool {
		t.Helper()
		j, err := recovery.ReadJournal(dir)
		m, err2 := recovery.ReadMarker(dir)
		if err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		return j == nil && m != nil
	}
	// through restores with kills on the way, each time into what directory gives.
	through := func(what string, directory func() string, args func(dir string) []string) string {
		t.Helper()
		dir := directory()
		began := time.Now()
		l.run(args(dir)...)
		whole := time.Since(began)
		again := func() {
			t.Helper()
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			dir = directory()
		}
		again()
		killed, started := 0, 0
		for tries := 0; tries < 15 && started < 4; tries++ {
			began := time.Now()
			if !l.kill(upTo(r, whole), args(dir)...) {
				whole = time.Since(began) // the machine is less busy now
				again()
				continue
			}
			killed++
			if harmless(what, dir) {
				if started++; started == 1 {
					if s, err := pgtest.TryOpenDir(t, dir, pgtest.Options{}); err == nil {
						s.Stop(postgres.Immediate)
						t.Fatalf("%s: a server starts on what was killed", what)
					}
				}
			} else if done(dir) {
				again() // it was killed after its last step
			}
		}
		l.run(args(dir)...)
		t.Logf("%s: killed %d times, %d on the way", what, killed, started)
		if started == 0 {
			t.Errorf("%s: none was killed on the way", what)
		}
		return dir
	}

	dir := through("beside", func() string { return filepath.Join(pgtest.TempDir(t), "copy") }, func(dir string) []string {
		return []string{"restore", "--to", dir, "--target-name", "beside"}
	})
	s := l.opened(dir)
	if got := content(s); got != beside {
		t.Errorf("beside: restored %q, want %q", got, beside)
	}
	s.CheckPages()

	crashed := l.server
	for what, delta := range map[string]bool{"in place": false, "in place, delta": true} {
		inPlace := newLab(t, filepath.Join(pgtest.TempDir(t), "store"))
		if out, err := exec.Command("cp", "-a", l.store, inPlace.store).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		old := l
		l = inPlace
		dir := through(what, func() string {
			dir := filepath.Join(pgtest.TempDir(t), "data")
			if out, err := exec.Command("cp", "-a", crashed.Dir, dir).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			l.dataDir = dir
			l.configure("")
			return dir
		}, func(string) []string {
			args := []string{"restore", "--yes"}
			if delta {
				args = append(args, "--delta")
			}
			return args
		})
		s := l.opened(dir)
		if got := content(s); got != want {
			t.Errorf("%s: restored %q, want %q", what, got, want)
		}
		s.CheckPages()
		l = old
	}
}
