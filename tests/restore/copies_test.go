package restore_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pitr/internal/postgres/pgtest"
)

// plan is what the tests want to know of the JSON of a plan, and done that of a restore.
type plan struct {
	Target     string
	Backup     struct{ ID string }
	Timeline   int
	Stop       struct{ LSN string }
	StopRecord string                `json:"stop_record"`
	LastCommit *struct{ XID uint32 } `json:"last_commit"`
	InDoubt    []struct {
		XID uint32
		GID string
	} `json:"in_doubt"`
	Segments int
	Why      []string
}

type done struct {
	Plan   plan
	Report struct {
		Fetched  int64    `json:"fetched_bytes"`
		Kept     int64    `json:"kept_bytes"`
		Removed  int64    `json:"removed_files"`
		Pushed   []string `json:"pushed_wal"`
		Aside    string   `json:"wal_aside"`
		Warnings []string
	}
	Started *struct {
		PID      int
		Timeline int
		Replayed string `json:"replayed_lsn"`
	}
}

// restored is a copy that was restored and started, or has run and shut down at its target.
type restored struct {
	*pgtest.Server
	done
	dir string
}

// restore restores beside the server, starts, and attaches to what runs then.
func (s *site) restore(t *testing.T, args ...string) restored {
	t.Helper()
	return s.restoreTo(t, filepath.Join(pgtest.TempDir(t), "copy"), args...)
}

func (s *site) restoreTo(t *testing.T, dir string, args ...string) restored {
	t.Helper()
	r := restored{dir: dir}
	out := s.must(t, append([]string{"restore", "--to", dir, "--start", "--json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &r.done); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if r.Started == nil {
		t.Fatalf("nothing was started:\n%s", out)
	}
	if r.Started.PID != 0 {
		r.Server = pgtest.Attach(t, dir, pgtest.Options{Bin: s.Bin})
	}
	return r
}

// plan asks for one.
func (s *site) plan(t *testing.T, args ...string) plan {
	t.Helper()
	var p plan
	out := s.must(t, append([]string{"restore", "--to", filepath.Join(pgtest.TempDir(t), "copy"), "--plan", "--json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &p); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return p
}

// unchanged compares that a command leaves a directory as it is.
func unchanged(t *testing.T, dir string, do func()) {
	t.Helper()
	before := listing(t, dir)
	do()
	if after := listing(t, dir); !slices.Equal(before, after) {
		t.Errorf("%s is not what it was: %d entries, then %d", dir, len(before), len(after))
	}
}

// listing is every file below dir with its size and time of change.
func listing(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil {
			all = append(all, fmt.Sprintf("%s %d %s", path, info.Size(), info.ModTime()))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// contents describes everything that users can see of a server: databases, roles, settings, and each table and
// large object with the digest of what is in it.
func contents(t *testing.T, s *pgtest.Server) string {
	t.Helper()
	var b strings.Builder
	global := pgtest.Query[string](s, `SELECT 'database ' || datname::text FROM pg_database UNION ALL SELECT 'role ' || rolname::text FROM pg_roles
		UNION ALL SELECT 'tablespace ' || spcname::text FROM pg_tablespace ORDER BY 1`)
	fmt.Fprintf(&b, "%q\n", global)
	for _, db := range pgtest.Query[string](s, "SELECT datname::text FROM pg_database WHERE datallowconn AND datname <> 'template1' ORDER BY 1") {
		conn := s.Connect(db)
		list := func(sql string) []string {
			rows, err := conn.Query(t.Context(), sql)
			if err != nil {
				t.Fatalf("%s: %v", sql, err)
			}
			defer rows.Close()
			var all []string
			for rows.Next() {
				var v string
				if err := rows.Scan(&v); err != nil {
					t.Fatal(err)
				}
				all = append(all, v)
			}
			if rows.Err() != nil {
				t.Fatalf("%s: %v", sql, rows.Err())
			}
			return all
		}
		var parts []string
		for _, rel := range list(`SELECT c.oid::regclass::text FROM pg_class c WHERE relkind IN ('r', 'm') AND relpersistence = 'p'
			AND relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace, 'pg_toast'::regnamespace) ORDER BY 1`) {
			parts = append(parts, fmt.Sprintf("SELECT %s || count(*) || ' ' || coalesce(md5(string_agg(md5(x::text), '' ORDER BY md5(x::text))), '') FROM %s AS x", literal(rel+" "), rel))
		}
		parts = append(parts,
			"SELECT 'large objects ' || count(*) || ' ' || coalesce(md5(string_agg(oid::text || md5(lo_get(oid)), '' ORDER BY oid)), '') FROM pg_largeobject_metadata",
			"SELECT 'catalog ' || count(*) || ' ' || md5(string_agg(relname::text || relkind::text || relnatts::text, '' ORDER BY oid)) FROM pg_class WHERE relpersistence <> 't'")
		for _, part := range parts {
			fmt.Fprintf(&b, "%q %q\n", db, list(part))
		}
		if err := conn.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

func literal(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// same compares two servers' contents and shows the lines that differ.
func same(t *testing.T, got, want string) {
	t.Helper()
	if got == want {
		return
	}
	other := strings.Split(want, "\n")
	for _, line := range strings.Split(got, "\n") {
		if !slices.Contains(other, line) {
			t.Errorf("content differs: got %s", line)
		}
	}
	other = strings.Split(got, "\n")
	for _, line := range strings.Split(want, "\n") {
		if !slices.Contains(other, line) {
			t.Errorf("content differs: want %s", line)
		}
	}
}

// rows are those of the table that tells the story.
func rows(s *pgtest.Server) string {
	return strings.Join(pgtest.Query[string](s, "SELECT v FROM t ORDER BY n"), " ")
}
