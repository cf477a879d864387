package pgtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"pitr/internal/postgres"
)

// Conn returns a connection string for the database postgres, as the superuser.
func (s *Server) Conn() string { return s.ConnTo("postgres") }

// ConnTo returns a connection string for the database.
func (s *Server) ConnTo(database string) string {
	quote := strings.NewReplacer(`\`, `\\`, "'", `\'`)
	return fmt.Sprintf("host='%s' port=%d user=postgres dbname='%s' sslmode=disable target_session_attrs=any", quote.Replace(s.SocketDir), s.Port, quote.Replace(database))
}

// Exec runs statements in the database postgres, each in a session and a transaction of its own.
func (s *Server) Exec(statements ...string) {
	s.t.Helper()
	s.ExecIn("postgres", statements...)
}

// ExecIn is Exec in another database.
func (s *Server) ExecIn(database string, statements ...string) {
	s.t.Helper()
	for _, sql := range statements {
		if err := s.Try(context.Background(), database, sql); err != nil {
			s.t.Fatalf("%s: %v", sql, err)
		}
	}
}

// Try runs a statement in the database, and may be called by any goroutine, at any time.
func (s *Server) Try(ctx context.Context, database, sql string) error {
	conn, err := pgx.Connect(ctx, s.ConnTo(database))
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, sql)
	return errors.Join(err, conn.Close(context.WithoutCancel(ctx)))
}

// Connect opens a session with the database. It is closed when the test is over.
func (s *Server) Connect(database string) *pgx.Conn {
	s.t.Helper()
	conn, err := pgx.Connect(context.Background(), s.ConnTo(database))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		// The server may be gone, and then this fails, as it may.
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		conn.Close(ctx)
	})
	return conn
}

// Query returns the rows of a query of one column in the database postgres.
func Query[T any](s *Server, sql string, args ...any) []T {
	s.t.Helper()
	return QueryIn[T](s, "postgres", sql, args...)
}

// QueryIn is Query in another database.
func QueryIn[T any](s *Server, database, sql string, args ...any) []T {
	s.t.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, s.ConnTo(database))
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		s.t.Fatalf("%s: %v", sql, err)
	}
	got, err := pgx.CollectRows(rows, pgx.RowTo[T])
	if err != nil {
		s.t.Fatalf("%s: %v", sql, err)
	}
	return got
}

// QueryOne returns the one value of a query of one row and one column.
func QueryOne[T any](s *Server, sql string, args ...any) T {
	s.t.Helper()
	got := Query[T](s, sql, args...)
	if len(got) != 1 {
		s.t.Fatalf("%s: %d rows, want 1", sql, len(got))
	}
	return got[0]
}

// AwaitPrimary waits until the server, started in recovery, has ended it.
func (s *Server) AwaitPrimary() {
	s.t.Helper()
	s.Await("SELECT NOT pg_is_in_recovery()")
}

// Await waits until the query of one boolean gives true.
func (s *Server) Await(sql string, args ...any) {
	s.t.Helper()
	for deadline := time.Now().Add(startTimeout); !QueryOne[bool](s, sql, args...); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("%s: still false after %v", sql, startTimeout)
		}
	}
}

// Run runs one of PostgreSQL's tools as the servers' user, with an environment that makes clients find this server, and
// returns what it prints to its standard output.
func (s *Server) Run(tool string, args ...string) string {
	s.t.Helper()
	out, err := s.TryRun(context.Background(), tool, args...)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// TryRun is Run for tools that may fail; the error then holds what they print to their standard error. Any goroutine may
// call it. When ctx ends, the tool is killed.
func (s *Server) TryRun(ctx context.Context, tool string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, s.tool(tool), args...)
	cmd.Env = append(os.Environ(), "PGHOST="+s.SocketDir, "PGPORT="+strconv.Itoa(s.Port), "PGUSER=postgres", "PGDATABASE=postgres", "LC_ALL=C")
	AsServerUser(cmd)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s %q: %w\n%s", tool, args, err, stderr.String())
	}
	return string(out), err
}

// CheckPages checks the pages and the indexes of the server, with pg_amcheck and pg_checksums, and stops it. An installation
// of the server alone compares the checksums of the pages of all tables, by reading them.
func (s *Server) CheckPages() {
	s.t.Helper()
	if s.Bin.Has("pg_amcheck") {
		s.Run("pg_amcheck", "--all", "--install-missing", "--heapallindexed")
	} else {
		for _, rel := range Query[string](s, "SELECT oid::regclass::text FROM pg_class WHERE relkind IN ('r', 't', 'm') ORDER BY oid") {
			QueryOne[int64](s, "SELECT count(*) FROM "+rel)
		}
	}
	s.Stop(postgres.Fast)
	if !s.Bin.Has("pg_checksums") {
		return
	}
	if out := s.Run("pg_checksums", "--check", s.Dir); !strings.Contains(out, "Bad checksums:  0") {
		s.t.Errorf("pg_checksums: %s", out)
	}
}

// tool returns the path of one of PostgreSQL's tools: the server's own, or, where its installation lacks that one, as
// some do, that of the newest installation that has it.
func (s *Server) tool(name string) string {
	if s.Bin.Has(name) {
		return filepath.Join(s.Bin.Dir, name)
	}
	if others, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name); len(others) > 0 { // the pattern is right
		// A longer version number is a newer one: 9 and 10.
		return slices.MaxFunc(others, func(a, b string) int {
			return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
		})
	}
	return name // from the PATH
}
