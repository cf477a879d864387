package restore_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pitr/internal/postgres/pgtest"
)

// Names that have to survive configuration files, shells, command lines and listings.
const (
	oddDatabase = "it's \"my\" db\nü%$`\\"
	oddPoint    = "it's \"b\"\n% ü \\ $(x)"
	oddGID      = "doubt 'n' \"gid\"\nü"
)

// moment is a point in a server's life that a restore can go back to.
type moment struct {
	at   time.Time // by the server's clock
	rows string
	full string // contents, if they were taken
}

// story is what happened on the server that most tests restore from. Nobody changes server or repository after it was
// told: harm is done to copies.
type story struct {
	*site
	first, second string // backups

	edge   moment // right after the first backup, before the next commit
	b      moment // between two commits that are 100 ms apart
	c      moment // after the second of them, which has this time and number,
	cTime  time.Time
	cXID   uint64
	cLSN   string // and begins its commit record here
	point  moment // the restore point with the odd name
	abort  uint64 // a transaction that was rolled back
	outer  uint64 // a transaction with
	inner  uint64 // this subtransaction
	twice  moment // the first of two restore points of one name
	late   uint64 // a transaction prepared before and committed behind the second backup
	lateAt moment // right after it was committed
	end    moment // after the last commit; what follows is a checkpoint
	last   string // segment

	doubts map[string]uint64 // transactions that are prepared at the end, by name
}

func tell(t *testing.T) *story {
	t.Helper()
	s := &story{site: newSite(t, pgtest.Options{SegSizeMB: 1}, ""), doubts: map[string]uint64{}}
	s.site.agent(t)
	s.Exec("CREATE TABLE t (n serial, v text PRIMARY KEY)", "CREATE TABLE doubt (v text)",
		"CREATE TABLE big AS SELECT g AS id, md5(g::text) AS a, repeat(md5((g*7)::text), 1 + g % 40) AS b FROM generate_series(1, 4000) g", "CREATE INDEX ON big (a)",
		"CREATE TABLE wide AS SELECT string_agg(md5(g::text), '') AS v FROM generate_series(1, 10000) g", // goes to the table's TOAST
		"CREATE TABLE parts (id int, v text) PARTITION BY RANGE (id)", "CREATE TABLE parts1 PARTITION OF parts FOR VALUES FROM (0) TO (100)",
		"INSERT INTO parts SELECT g, g::text FROM generate_series(1, 99) g", "CREATE MATERIALIZED VIEW summary AS SELECT count(*) FROM big",
		"CREATE UNLOGGED TABLE passing (v text PRIMARY KEY)", "INSERT INTO passing SELECT g::text FROM generate_series(1, 1000) g",
		"SELECT lo_from_bytea(0, decode(repeat('00ff42', 30000), 'hex'))", `CREATE ROLE "o'dd ""role"""`, "CREATE SEQUENCE counter", "SELECT nextval('counter') FROM generate_series(1, 100)",
		`CREATE DATABASE "`+strings.ReplaceAll(oddDatabase, `"`, `""`)+`"`, "INSERT INTO t (v) VALUES ('0')")
	s.ExecIn(oddDatabase, `CREATE TABLE "odd "" table" AS SELECT g FROM generate_series(1, 1000) g`)
	s.prepare(t, "before the backup")

	s.first = s.backup(t)
	s.edge = s.now()
	s.Exec("INSERT INTO t (v) VALUES ('a')", "INSERT INTO t (v) VALUES ('b')")
	time.Sleep(50 * time.Millisecond)
	s.b = s.now()
	time.Sleep(50 * time.Millisecond)
	s.cXID, s.cLSN = s.transaction(t, "INSERT INTO t (v) VALUES ('c')", "COMMIT")
	s.cTime = pgtest.QueryOne[time.Time](s.Server, fmt.Sprintf("SELECT pg_xact_commit_timestamp('%d'::xid)", s.cXID))
	s.c = s.now()
	s.Exec("SELECT lo_from_bytea(0, 'later')", "UPDATE big SET a = a || 'x' WHERE id % 10 = 0", "SELECT nextval('counter') FROM generate_series(1, 50)",
		"REFRESH MATERIALIZED VIEW summary", "INSERT INTO passing VALUES ('more')")
	s.point = s.full(t)
	s.Exec("SELECT pg_create_restore_point(" + literal(oddPoint) + ")")
	s.abort, _ = s.transaction(t, "INSERT INTO t (v) VALUES ('lost')", "ROLLBACK")
	s.outer, _ = s.transaction(t, "INSERT INTO t (v) VALUES ('d'); SAVEPOINT s; INSERT INTO t (v) VALUES ('e')", "COMMIT")
	s.inner = uint64(pgtest.QueryOne[int64](s.Server, "SELECT xmin::text::int8 FROM t WHERE v = 'e'"))
	s.twice = s.now()
	s.Exec("SELECT pg_create_restore_point('twice')", "INSERT INTO t (v) VALUES ('f')")
	s.prepare(t, oddGID)
	s.prepare(t, "late")
	s.second = s.backup(t)
	s.Exec("INSERT INTO t (v) VALUES ('g')", "COMMIT PREPARED 'late'")
	s.lateAt = s.now()
	s.late = s.doubts["late"]
	delete(s.doubts, "late")
	s.Exec("SELECT pg_create_restore_point('twice')", "INSERT INTO t (v) VALUES ('h')")
	s.ExecIn(oddDatabase, `INSERT INTO "odd "" table" VALUES (-1)`)
	s.end = s.full(t)
	// A checkpoint's time is cut to the second.
	next := s.end.at.Truncate(time.Second).Add(time.Second)
	eventually(t, "the next second begins", func() bool { return s.now().at.After(next) })
	s.Exec("CHECKPOINT")
	s.last = s.flush(t)
	return s
}

func (s *story) now() moment {
	return moment{at: pgtest.QueryOne[time.Time](s.Server, "SELECT clock_timestamp()"), rows: rows(s.Server)}
}

func (s *story) full(t *testing.T) moment {
	t.Helper()
	m := s.now()
	m.full = contents(t, s.Server)
	return m
}

// prepare leaves a prepared transaction behind.
func (s *story) prepare(t *testing.T, gid string) {
	t.Helper()
	s.doubts[gid], _ = s.transaction(t, "INSERT INTO doubt VALUES ("+literal(gid)+")", "PREPARE TRANSACTION "+literal(gid))
}

// transaction runs one and gives its number and where the record of its end begins.
func (s *site) transaction(t *testing.T, body, end string) (xid uint64, lsn string) {
	t.Helper()
	conn := s.Connect("postgres")
	ctx := t.Context()
	for _, sql := range []string{"BEGIN", body} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	if err := conn.QueryRow(ctx, "SELECT pg_current_xact_id()::text::int8, pg_current_wal_insert_lsn()::text").Scan(&xid, &lsn); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(ctx, end); err != nil {
		t.Fatalf("%s: %v", end, err)
	}
	if err := conn.Close(ctx); err != nil {
		t.Fatal(err)
	}
	return xid, lsn
}

// stamp writes a time as the server would print it, with all of its microseconds.
func stamp(at time.Time) string { return at.UTC().Format("2006-01-02 15:04:05.000000+00") }
