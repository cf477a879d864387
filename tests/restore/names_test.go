package restore_test

import (
	"path/filepath"
	"strings"
	"testing"

	"pitr/internal/postgres"
	"pitr/internal/postgres/pgtest"
)

// testNames: names of directories and restore points that hold what configuration files, shells and command lines give a
// meaning to. The database and the restore point of the story have such names, too.
func testNames(t *testing.T, story *story) {
	const odd = "it's \"odd\" ü 100%f\n$(x)`\\ =;#,"
	s := newSite(t, pgtest.Options{SegSizeMB: 1}, odd)
	// PostgreSQL takes no single quote here.
	fast := filepath.Join(pgtest.TempDir(t), strings.ReplaceAll("fast "+odd, "'", ""))
	makeDir(t, fast)
	s.Exec(`CREATE TABLESPACE "sp'a""ce ü" LOCATION `+literal(fast), `CREATE TABLE t (n serial, v text) TABLESPACE "sp'a""ce ü"`, "INSERT INTO t (v) VALUES ('1')")
	id := s.backup(t)
	s.Exec("INSERT INTO t (v) VALUES ('2')", "SELECT pg_create_restore_point("+literal(odd)+")", "INSERT INTO t (v) VALUES ('3')")
	s.flush(t)
	if out := s.must(t, "backup", "show", id); !strings.Contains(out, "sp'a\"ce ü") {
		t.Errorf("backup show:\n%s", out)
	}
	to := filepath.Join(s.base, "copy "+odd)
	r := s.restoreTo(t, to, "--target-name", odd)
	if got := rows(r.Server); got != "1 2" {
		t.Errorf("rows %q, want 1 2", got)
	}
	r.Server.CheckPages()

	mapped := filepath.Join(s.base, "mapped "+odd)
	to2 := filepath.Join(s.base, "other "+odd)
	m := s.restoreTo(t, to2, "--tablespace", strings.ReplaceAll(fast, "=", `\=`)+"="+mapped)
	if got := rows(m.Server); got != "1 2 3" {
		t.Errorf("rows %q, want 1 2 3", got)
	}
	if got := pgtest.QueryOne[string](m.Server, "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname LIKE 'sp%'"); got != mapped {
		t.Errorf("the tablespace is at %q, want %q", got, mapped)
	}
	m.Stop(postgres.Fast)
}
