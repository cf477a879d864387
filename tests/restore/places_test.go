package restore_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pitr/internal/postgres"
	"pitr/internal/postgres/pgtest"
)

// TestPlaces: a server with tablespaces and a linked pg_wal, restored beside it and in its place.
func TestPlaces(t *testing.T) {
	t.Parallel()
	s := newSite(t, pgtest.Options{Tablespaces: 2, WALDir: true}, "")
	s.Exec("CREATE TABLE t (n serial, v text) TABLESPACE ts1", "INSERT INTO t (v) VALUES ('1')",
		"CREATE TABLE big TABLESPACE ts2 AS SELECT g AS id, md5(g::text) AS a FROM generate_series(1, 30000) g", "CREATE INDEX ON big (a) TABLESPACE ts1")
	first := s.backup(t)
	s.Exec("INSERT INTO t (v) VALUES ('2')", "DELETE FROM big WHERE id % 3 = 0", "CREATE TABLE later TABLESPACE ts2 AS SELECT 1 AS v")
	s.flush(t)
	full := contents(t, s.Server)

	t.Run("beside", func(t *testing.T) {
		r := s.restore(t)
		same(t, contents(t, r.Server), full)
		for _, at := range pgtest.Query[string](r.Server, "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname LIKE 'ts%'") {
			if filepath.Dir(at) != filepath.Join(r.dir, "pitr_tablespaces") {
				t.Errorf("a tablespace is at %s", at)
			}
		}
		if info, err := os.Lstat(filepath.Join(r.dir, "pg_wal")); err != nil || !info.IsDir() {
			t.Errorf("pg_wal: %v, %v", info, err)
		}
		r.Server.CheckPages()
	})
	t.Run("remapped", func(t *testing.T) {
		base := pgtest.TempDir(t)
		a, b := filepath.Join(base, "a"), filepath.Join(base, "b")
		r := s.restore(t, "--tablespace", "ts1="+a, "--tablespace", s.Tablespaces[1]+"="+b)
		same(t, contents(t, r.Server), full)
		if got := pgtest.Query[string](r.Server, "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname LIKE 'ts%' ORDER BY spcname"); len(got) != 2 || got[0] != a || got[1] != b {
			t.Errorf("tablespaces at %q", got)
		}
		r.Server.CheckPages()

		to := filepath.Join(base, "copy")
		for _, x := range []struct {
			mapping string
			code    int
			want    string
		}{
			{"ts1=" + s.Tablespaces[0], 7, "pitr: refused: $TS1, for tablespace \"ts1\", belongs to the server that runs in $DATA\nHINT: --tablespace OID=DIR puts it elsewhere\n"},
			{"ts1=" + b, 7, "pitr: refused: $B, for tablespace \"ts1\", is not empty\nHINT: --tablespace OID=DIR puts it elsewhere\n"},
			{"no=" + filepath.Join(base, "no"), 1, "pitr: --tablespace no=$BASE/no: backup ID has no such tablespace\n"},
		} {
			r := s.pitr(t, "restore", "--to", to, "--tablespace", x.mapping)
			oid := pgtest.QueryOne[string](s.Server, "SELECT oid::text FROM pg_tablespace WHERE spcname = 'ts1'")
			s.expect(t, r, x.code, x.want, s.Tablespaces[0], "$TS1", b, "$B", base, "$BASE", oid, "OID")
		}
		if _, err := os.Stat(to); err == nil {
			t.Error("something was written")
		}
	})
	t.Run("in place", func(t *testing.T) { s.inPlace(t, first) })
}

func (s *site) restoreInPlace(t *testing.T, args ...string) done {
	t.Helper()
	var d done
	out := s.must(t, append([]string{"restore", "--json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &d); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return d
}

// start starts the restored server and waits until it is open.
func (s *site) start(t *testing.T) {
	t.Helper()
	s.Start()
	s.AwaitPrimary()
	if dest, err := os.Readlink(filepath.Join(s.Dir, "pg_wal")); err != nil || dest != s.WALDir {
		t.Errorf("pg_wal leads to %q (%v), want %q", dest, err, s.WALDir)
	}
	for i, dir := range s.Tablespaces {
		if got := pgtest.QueryOne[string](s.Server, fmt.Sprintf("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'ts%d'", i+1)); got != dir {
			t.Errorf("tablespace %d is at %q, want %q", i+1, got, dir)
		}
	}
}

func (s *site) inPlace(t *testing.T, first string) {
	// What was written last is not archived when the server dies.
	s.Exec("INSERT INTO t (v) VALUES ('3')", "SELECT pg_switch_wal()", "INSERT INTO t (v) VALUES ('last')")
	full := contents(t, s.Server)
	s.Kill()
	unchanged(t, s.Dir, func() {
		r := s.pitr(t, "restore")
		// What was left is archived before anybody is asked.
		r.err = r.err[max(0, strings.Index(r.err, "pitr: ")):]
		s.expect(t, r, 7, "pitr: refused: everything in $DATA would be replaced\nHINT: --yes says that this is meant; --plan shows what would be done\n")
	})
	// Targets that can't be had change nothing, in place either.
	for _, target := range [][]string{{"--target-time", "2199-01-01"}, {"--target-time", "2199-01-01 00:00:00"}, {"--target-xid", "4000000000"}, {"--target-lsn", "FFF/0"}, {"--target-name", "none"}, {"--target-timeline", "9"}} {
		unchanged(t, s.Dir, func() {
			r := s.pitr(t, append([]string{"restore", "--yes"}, target...)...)
			if want := 4; r.code != want && !(target[1] == "2199-01-01" && r.code == 2) {
				t.Errorf("%q: exit status %d: %s", target, r.code, r.err)
			}
		})
	}
	s.must(t, "restore", "--yes", "--archive", "on")
	s.start(t)
	same(t, contents(t, s.Server), full)
	if got := rows(s.Server); got != "1 2 3 last" {
		t.Errorf("rows %q: the WAL that was not archived is lost", got)
	}
	s.Exec("INSERT INTO t (v) VALUES ('on timeline 2')")
	s.flush(t)
	full = contents(t, s.Server)
	s.Stop(postgres.Fast)

	// Delta: a page that went bad, a file too many and one too few, and one that is too long.
	var largest string
	var size int64
	for _, path := range glob(t, s.Tablespaces[1], "PG_*", "*", "*") {
		if info, err := os.Stat(path); err == nil && info.Size() > size {
			largest, size = path, info.Size()
		}
	}
	data := read(t, largest)
	overwriteNew(t, largest, append(flipped(data, len(data)/2), make([]byte, 8192)...))
	write(t, filepath.Join(s.Dir, "base", "4711"), "not the server's")
	if err := os.Remove(filepath.Join(s.Dir, "global", "1262")); err != nil {
		t.Fatal(err)
	}
	d := s.restoreInPlace(t, "--yes", "--delta", "--archive", "on")
	if d.Report.Kept < d.Report.Fetched || d.Report.Fetched == 0 {
		t.Errorf("kept %d bytes and fetched %d", d.Report.Kept, d.Report.Fetched)
	}
	if _, err := os.Stat(filepath.Join(s.Dir, "base", "4711")); err == nil {
		t.Error("a file that is not the backup's is still there")
	}
	s.start(t)
	same(t, contents(t, s.Server), full)
	s.Server.CheckPages()

	// Back to the first backup's end, killed in the middle, on a machine where everything is gone but the store.
	for _, dir := range append([]string{s.Dir, s.WALDir}, s.Tablespaces...) {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		if dir != s.Dir {
			makeDir(t, dir)
		}
	}
	cmd := s.command(t.Context(), "restore", "--target-immediate", "--backup", first)
	pgtest.AsServerUser(cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	eventually(t, "the restore writes, or is done", func() bool {
		select {
		case err := <-ended:
			ended <- err
			return true
		default:
			_, err := os.Stat(filepath.Join(s.Dir, "global"))
			return err == nil
		}
	})
	cmd.Process.Kill() // it may have ended
	<-ended
	s.must(t, "restore", "--target-immediate", "--backup", first, "--yes")
	s.start(t)
	if got := rows(s.Server); got != "1" {
		t.Errorf("rows %q, want 1", got)
	}
	// What is restored without --archive on, archives nothing, whatever it is told.
	for _, x := range []string{"ALTER SYSTEM SET archive_mode = on", "INSERT INTO t (v) VALUES ('mine')"} {
		s.Exec(x)
	}
	s.Restart()
	s.Exec("SELECT pg_switch_wal()")
	eventually(t, "the archiver fails", func() bool {
		return pgtest.QueryOne[int64](s.Server, "SELECT failed_count FROM pg_stat_archiver") > 0
	})
	if n := pgtest.QueryOne[int64](s.Server, "SELECT archived_count FROM pg_stat_archiver"); n > 0 {
		t.Errorf("%d files were archived", n)
	}
	segment := glob(t, s.Dir, "pg_wal", "0000000?00000000????????")[0]
	r := s.pitr(t, "wal", "push", segment)
	if r.code != 1 || !strings.HasSuffix(s.plain(r.err), "$DATA was restored from backup ID and archives nothing until it is adopted\n"+
		"HINT: a restored copy must not write into its parent's archive; restore with --archive on what is to replace the parent\n") {
		t.Errorf("exit status %d: %s", r.code, r.err)
	}
	s.Server.CheckPages()
}
