package recovery_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"pitr/internal/postgres"
	"pitr/internal/postgres/pgtest"
	"pitr/recovery"
)

// A tablespace that is newer than the backup is replayed from nothing: pages of the old directory that lay there would be
// rows from the future, once the transactions' numbers are given again.
func TestStaleTablespace(t *testing.T) {
	for _, bin := range pgtest.Bins(t) {
		for _, how := range []string{"whole", "delta", "killed", "killed, the link gone"} {
			t.Run(fmt.Sprintf("%d %s", bin.Major, how), func(t *testing.T) {
				t.Parallel()
				h := newHouse(t, pgtest.Options{Bin: bin, SegSizeMB: 1})
				h.backup()
				dir := mkdir(t, filepath.Join(pgtest.TempDir(t), "late"))
				other := mkdir(t, filepath.Join(dir, "PG_9.6_201608131", "1")) // of another cluster, which is none of our business
				h.Exec(fmt.Sprintf("CREATE TABLESPACE late LOCATION '%s'", dir), "CREATE TABLE a (x int) TABLESPACE late", "INSERT INTO a SELECT generate_series(1, 1000)",
					"SELECT pg_create_restore_point('here')", "INSERT INTO a SELECT generate_series(1001, 20000)", "CHECKPOINT")
				oid := pgtest.QueryOne[int64](h.Server, "SELECT oid::int8 FROM pg_tablespace WHERE spcname = 'late'")
				h.flush()
				h.Stop(postgres.Fast)
				if err := h.drain(t.Context()); err != nil {
					t.Fatal(err)
				}
				h.give(filepath.Join(h.base, "repo"))
				restore := func(ctx context.Context, o recovery.Options) error {
					t.Helper()
					w, p, err := h.plan(recovery.Target{Kind: recovery.Name, Name: "here"}, recovery.Destination{Dir: h.Dir, InPlace: true, Delta: how == "delta"})
					if err != nil {
						t.Fatal(err)
					}
					_, err = w.Restore(ctx, p, o)
					return err
				}
				if how[0] == 'k' {
					// As a signal does that comes when the journal is written: clear ends at its first file.
					ctx, cancel := context.WithCancel(t.Context())
					o, n := options(), 0
					o.Now = func() time.Time {
						if n++; n == 2 {
							cancel()
						}
						return time.Now()
					}
					if err := restore(ctx, o); err == nil {
						t.Fatal("it was not cancelled")
					}
				}
				if how == "killed, the link gone" { // with what is there, which is emptied before the links
					for _, path := range []string{filepath.Join(dir, versionDir(t, dir)), filepath.Join(h.Dir, "pg_tblspc", fmt.Sprint(oid))} {
						if err := os.RemoveAll(path); err != nil {
							t.Fatal(err)
						}
					}
				}
				if err := restore(t.Context(), options()); err != nil {
					t.Fatal(err)
				}
				h.Start()
				h.AwaitPrimary()
				h.Exec("CREATE TABLE unrelated (x int)", "INSERT INTO unrelated VALUES (1)", "INSERT INTO unrelated VALUES (2)")
				if n, most := pgtest.QueryOne[int64](h.Server, "SELECT count(*) FROM a"), pgtest.QueryOne[int32](h.Server, "SELECT max(x) FROM a"); n != 1000 || most != 1000 {
					t.Errorf("%d rows, the largest is %d", n, most)
				}
				if _, err := os.Stat(other); err != nil {
					t.Errorf("another cluster's directory: %v", err)
				}
			})
		}
	}
}

// versionDir is the directory of the server under test in a tablespace.
func versionDir(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "PG_9.6_201608131" {
			return e.Name()
		}
	}
	t.Fatalf("no server's directory in %s", dir)
	return ""
}
