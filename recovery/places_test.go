package recovery_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pitr/internal/hint"
	"pitr/internal/postgres"
	"pitr/internal/postgres/pgtest"
	"pitr/recovery"
)

// A copy beside a server with tablespaces and a linked pg_wal has everything under its own directory, or where it is told.
func TestTablespacesBeside(t *testing.T) {
	t.Parallel()
	h := newHouse(t, pgtest.Options{SegSizeMB: 1, Tablespaces: 3, WALDir: true})
	h.Exec("CREATE TABLE a TABLESPACE ts1 AS SELECT generate_series(1, 1000) AS x", "CREATE TABLE b TABLESPACE ts2 AS SELECT generate_series(1, 2000) AS x",
		"CREATE UNLOGGED TABLE u TABLESPACE ts1 AS SELECT 1 AS x")
	h.backup()
	h.Exec("INSERT INTO a SELECT generate_series(1001, 3000)", "CREATE INDEX ON b (x) TABLESPACE ts3")
	want := digest(h.Server)
	h.flush()

	elsewhere := filepath.Join(pgtest.TempDir(t), "it's = here")
	r := h.restore(recovery.Target{}, recovery.Destination{Tablespaces: []recovery.Mapping{{Old: "ts2", New: elsewhere}}})
	if got := digest(r.Server); got != want {
		t.Error("contents differ")
	}
	if n := pgtest.QueryOne[int64](r.Server, "SELECT count(*) FROM u"); n != 0 {
		t.Errorf("%d rows in the unlogged table", n)
	}
	for _, at := range pgtest.Query[string](r.Server, "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname LIKE 'ts%' ORDER BY spcname") {
		if !strings.HasPrefix(at, r.Dir+"/") && at != elsewhere {
			t.Errorf("a tablespace is at %s", at)
		}
	}
	if info, err := os.Lstat(filepath.Join(r.Dir, "pg_wal")); err != nil || !info.IsDir() {
		t.Errorf("pg_wal is no directory of the copy: %v", err)
	}
	r.Server.CheckPages()

	// Where the running server has its own, nothing is put.
	_, p, err := h.plan(recovery.Target{}, recovery.Destination{Dir: filepath.Join(pgtest.TempDir(t), "c"), Tablespaces: []recovery.Mapping{{Old: h.Tablespaces[0], New: filepath.Join(h.Tablespaces[1], "x")}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Err(); !errors.Is(err, recovery.ErrRefused) || !strings.Contains(err.Error(), "belongs to the server that runs in "+h.Dir) {
		t.Errorf("into a live tablespace: %v", err)
	}
	if _, _, err := h.plan(recovery.Target{}, recovery.Destination{Dir: filepath.Join(pgtest.TempDir(t), "c"), Tablespaces: []recovery.Mapping{{Old: "nosuch", New: "/x"}}}); err == nil || !strings.Contains(err.Error(), "has no such tablespace") {
		t.Errorf("unknown tablespace: %v", err)
	}
}

// Replaying the creation of a tablespace would empty the directory that the running server has there.
func TestTablespaceCreatedInTheWAL(t *testing.T) {
	t.Parallel()
	h := newHouse(t, pgtest.Options{SegSizeMB: 1})
	h.backup()
	dir := mkdir(t, filepath.Join(pgtest.TempDir(t), "late"))
	h.Exec("SELECT pg_create_restore_point('before')", fmt.Sprintf("CREATE TABLESPACE late LOCATION '%s'", dir), "CREATE TABLE a TABLESPACE late AS SELECT 1 AS x")
	h.flush()
	_, p, err := h.plan(recovery.Target{}, recovery.Destination{Dir: filepath.Join(pgtest.TempDir(t), "copy")})
	if err != nil {
		t.Fatal(err)
	}
	err = p.Err()
	if !errors.Is(err, recovery.ErrRefused) || !strings.Contains(err.Error(), "creates tablespace") || !strings.Contains(err.Error(), dir) {
		t.Errorf("over the creation of a tablespace: %v", err)
	}
	if _, p, err = h.plan(recovery.Target{Kind: recovery.Name, Name: "before"}, recovery.Destination{Dir: filepath.Join(pgtest.TempDir(t), "copy")}); err != nil || p.Err() != nil {
		t.Errorf("to the moment before: %v, %v", err, p.Err())
	}
}

func TestInPlace(t *testing.T) {
	for _, delta := range []bool{false, true} {
		t.Run(fmt.Sprintf("delta %v", delta), func(t *testing.T) {
			t.Parallel()
			h := newHouse(t, pgtest.Options{SegSizeMB: 1, Tablespaces: 1, WALDir: true})
			h.Exec("CREATE TABLE a TABLESPACE ts1 AS SELECT generate_series(1, 1000) AS x", "CREATE TABLE big AS SELECT generate_series(1, 200000) AS x", "CREATE TABLE v (x int)")
			h.backup()
			h.Exec("INSERT INTO a VALUES (-1)", "SELECT pg_create_restore_point('here')", "DELETE FROM big WHERE x % 100000 = 0", "INSERT INTO v SELECT generate_series(1, 1000)")
			h.flush()
			h.Exec("INSERT INTO v VALUES (-7)") // not archived when the server goes down
			want := digest(h.Server)
			d := recovery.Destination{Dir: h.Dir, InPlace: true, Delta: delta}

			_, p, err := h.plan(recovery.Target{}, d)
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Err(); !errors.Is(err, recovery.ErrRefused) || !strings.Contains(err.Error(), "a server runs in") {
				t.Errorf("onto a running server: %v", err)
			}
			h.Conf(map[string]string{"archive_command": "false"})
			h.Reload()
			h.Kill()
			if err := os.WriteFile(filepath.Join(h.Dir, "base", "foreign"), []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}

			w, _, err := h.plan(recovery.Target{}, d)
			if err != nil {
				t.Fatal(err)
			}
			pushed, err := w.ArchiveLeftovers(t.Context(), h.Dir)
			if err != nil || len(pushed) == 0 {
				t.Fatalf("archived %v of what was left: %v", pushed, err)
			}
			h.give(filepath.Join(h.base, "repo"))
			// To the end: with what only the old directory had.
			w, p, err = h.plan(recovery.Target{}, d)
			if err != nil {
				t.Fatal(err)
			}
			if !p.Layout.Replaces || p.Layout.WALDir != h.WALDir || p.Layout.Tablespaces[0].Path != h.Tablespaces[0] {
				t.Errorf("layout %+v", p.Layout)
			}
			report, err := w.Restore(t.Context(), p, options())
			if err != nil {
				t.Fatal(err)
			}
			if delta != (report.Kept > 1<<20) || delta && report.Fetched > report.Kept {
				t.Errorf("report %+v", report)
			}
			if _, err := os.Stat(filepath.Join(h.Dir, "base", "foreign")); err == nil {
				t.Error("a foreign file is still there")
			}
			h.Start()
			h.AwaitPrimary()
			if got := digest(h.Server); got != want {
				t.Error("contents differ")
			}
			if got := pgtest.QueryOne[string](h.Server, "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'ts1'"); got != h.Tablespaces[0] {
				t.Errorf("tablespace at %s", got)
			}
			if target, err := os.Readlink(filepath.Join(h.Dir, "pg_wal")); err != nil || target != h.WALDir {
				t.Errorf("pg_wal leads to %s (%v)", target, err)
			}
			h.Stop(postgres.Fast)

			// Once more, to an earlier moment; this directory is a copy now that must not archive, so that its own WAL is
			// kept beside.
			w, p, err = h.plan(recovery.Target{Kind: recovery.Name, Name: "here"}, d)
			if err != nil {
				t.Fatal(err)
			}
			if report, err = w.Restore(t.Context(), p, options()); err != nil {
				t.Fatal(err)
			}
			if report.Aside == "" || len(report.PushedWAL) > 0 {
				t.Errorf("report %+v", report)
			}
			os.RemoveAll(report.Aside)
			h.Start()
			h.AwaitPrimary()
			if n := pgtest.QueryOne[int64](h.Server, "SELECT count(*) FROM v"); n != 0 {
				t.Errorf("%d rows", n)
			}
			h.Server.CheckPages()
		})
	}
}

func TestRefusedPlaces(t *testing.T) {
	t.Parallel()
	h := newHouse(t, pgtest.Options{SegSizeMB: 1})
	h.backup()
	h.flush()
	full := pgtest.TempDir(t)
	if err := os.WriteFile(filepath.Join(full, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	other := pgtest.Start(t, pgtest.Options{NewSystem: true, NoFsync: true})
	other.Stop(postgres.Fast)
	for name, c := range map[string]struct {
		d    recovery.Destination
		want string
	}{
		"not empty":          {recovery.Destination{Dir: full}, full + " is not empty"},
		"not empty in place": {recovery.Destination{Dir: full, InPlace: true}, full + " holds files, and is no data directory of PostgreSQL"},
		"a file":             {recovery.Destination{Dir: filepath.Join(full, "precious")}, "is not a directory"},
		"another cluster":    {recovery.Destination{Dir: other.Dir, InPlace: true}, other.Dir + " belongs to another cluster"},
		"in a live server":   {recovery.Destination{Dir: filepath.Join(h.Dir, "copy")}, "belongs to the server that runs in " + h.Dir},
		"around it":          {recovery.Destination{Dir: filepath.Dir(h.Dir)}, "belongs to the server that runs in " + h.Dir},
	} {
		w, p, err := h.plan(recovery.Target{}, c.d)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		err = p.Err()
		if !errors.Is(err, recovery.ErrRefused) || !strings.Contains(err.Error(), c.want) || hint.Of(err) == "" {
			t.Errorf("%s: %v (hint: %s)", name, err, hint.Of(err))
		}
		if _, err := w.Restore(t.Context(), p, options()); !errors.Is(err, recovery.ErrRefused) {
			t.Errorf("%s: restored: %v", name, err)
		}
	}
	if entries, err := os.ReadDir(full); err != nil || len(entries) != 1 {
		t.Errorf("the directory changed: %v, %v", entries, err)
	}
}

// Debian keeps the configuration outside of the data directory, with a data_directory in it and an empty directory for
// more files.
func TestConfigurationOutside(t *testing.T) {
	t.Parallel()
	base := mkdir(t, filepath.Join(pgtest.TempDir(t), "etc it's"))
	h := newHouse(t, pgtest.Options{SegSizeMB: 1})
	h.Stop(postgres.Fast)
	uid, gid := pgtest.User()
	put := func(path, text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(filepath.Join(h.Dir, "postgresql.conf"))
	if err != nil {
		t.Fatal(err)
	}
	main, more := filepath.Join(base, "main.conf"), filepath.Join(base, "more.conf")
	hba := filepath.Join(base, "hba.conf")
	mkdir(t, filepath.Join(base, "conf.d"))
	quote := func(s string) string {
		q, err := postgres.QuoteConf(s)
		if err != nil {
			t.Fatal(err)
		}
		return q
	}
	put(hba, "local all all trust\n")
	put(more, "work_mem = '7MB'\n")
	put(main, string(text)+fmt.Sprintf("\ninclude %s # absolute\ninclude_dir 'conf.d'\ninclude_if_exists 'nothing.conf'\ndata_directory = %s\nhba_file = %s\nexternal_pid_file = %s\n",
		quote(more), quote(h.Dir), quote(hba), quote(filepath.Join(base, "pid"))))
	put(filepath.Join(h.Dir, "postgresql.conf"), "include "+quote(main)+"\n")
	h.Start()
	h.backup()
	h.flush()
	h.Exec("SELECT 1")
	h.Stop(postgres.Fast)
	for _, gone := range []string{main, more, hba} { // the copy must not read them
		if err := os.Remove(gone); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(base, "conf.d")); err != nil {
		t.Fatal(err)
	}
	r := h.restore(recovery.Target{}, recovery.Destination{})
	for name, want := range map[string]string{"work_mem": "7MB", "data_directory": r.Dir, "listen_addresses": "", "archive_mode": "off"} {
		if got := pgtest.QueryOne[string](r.Server, "SHOW "+name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if _, err := os.Stat(filepath.Join(base, "pid")); err == nil {
		t.Error("the copy wrote its process id outside of its directory")
	}
	// In place, what is missing is put back.
	w, _, err := h.plan(recovery.Target{}, recovery.Destination{Dir: h.Dir, InPlace: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.ArchiveLeftovers(t.Context(), h.Dir); err != nil {
		t.Fatal(err)
	}
	w, p, err := h.plan(recovery.Target{}, recovery.Destination{Dir: h.Dir, InPlace: true})
	if err != nil {
		t.Fatal(err)
	}
	report, err := w.Restore(t.Context(), p, options())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(more); err != nil || string(got) != "work_mem = '7MB'\n" || len(report.Warnings) != 3 {
		t.Errorf("%q, %v, warnings %q", got, err, report.Warnings)
	}
	if info, err := os.Stat(filepath.Join(base, "conf.d")); err != nil || !info.IsDir() {
		t.Errorf("the directory that is included, and was empty, is missing: %v", err)
	}
}
