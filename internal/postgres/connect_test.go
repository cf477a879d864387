package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pitr/internal/hint"
	"pitr/internal/postgres"
	"pitr/internal/postgres/pgtest"
)

// refusal is what Connect answers: the error's text and its hint.
func refusal(t *testing.T, cfg postgres.Config) string {
	t.Helper()
	c, err := postgres.Connect(t.Context(), cfg)
	if err == nil {
		c.Close()
		t.Fatal("connected")
	}
	return err.Error() + "\nHINT: " + hint.Of(err)
}

func expect(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func hba(t *testing.T, s *pgtest.Server, lines string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.Dir, "pg_hba.conf"), []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestConnectNobodyListens(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{NoFsync: true})
	cfg := s.Config()
	cfg.Port = 1
	expect(t, refusal(t, cfg), fmt.Sprintf(`connect to PostgreSQL at %[1]s/.s.PGSQL.1 as role "postgres": no server listens there: no such file or directory
HINT: the server on %[2]s runs with port %[3]d, socket directory %[1]s: set postgres.host and postgres.port accordingly`, s.SocketDir, s.Dir, s.Port))
	cfg.Host = "127.0.0.1"
	expect(t, refusal(t, cfg), fmt.Sprintf(`connect to PostgreSQL at 127.0.0.1 port 1 as role "postgres": no server listens there: connection refused
HINT: the server on %s runs with port %d, socket directory %s: set postgres.host and postgres.port accordingly`, s.Dir, s.Port, s.SocketDir))
	s.Kill() // leaves its socket and postmaster.pid behind
	expect(t, refusal(t, s.Config()), fmt.Sprintf(`connect to PostgreSQL at %s/.s.PGSQL.%d as role "postgres": no server listens there: connection refused
HINT: start the server: none runs on %s`, s.SocketDir, s.Port, s.Dir))

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := postgres.Connect(ctx, s.Config()); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that is over: %v", err)
	}
}

func TestConnectRefused(t *testing.T) {
	// Not parallel: it sets the environment.
	const password, wrong = "correct horse", "wrong battery"
	s := pgtest.Start(t, pgtest.Options{NoFsync: true, Conf: map[string]string{"max_connections": "4", "superuser_reserved_connections": "0", "max_wal_senders": "0"}})
	s.Exec("CREATE ROLE pass LOGIN PASSWORD '"+password+"'", "CREATE ROLE nologin", "CREATE ROLE alone LOGIN", "CREATE ROLE pee LOGIN", "CREATE ROLE many LOGIN",
		"CREATE ROLE monitor LOGIN", "GRANT pg_monitor TO monitor", "CREATE DATABASE other", "REVOKE CONNECT ON DATABASE postgres FROM public", "GRANT CONNECT ON DATABASE postgres TO monitor")
	hba(t, s, "local all alone reject\nlocal all pass scram-sha-256\nlocal all pee peer\nlocal all postgres,nologin,nosuch,many,monitor trust\n")
	s.Reload()
	at := fmt.Sprintf("connect to PostgreSQL at %s/.s.PGSQL.%d as role ", s.SocketDir, s.Port)
	as := func(user string) postgres.Config {
		cfg := s.Config()
		cfg.User = user
		return cfg
	}
	t.Setenv("HOME", t.TempDir()) // no .pgpass
	t.Setenv("PGPASSWORD", wrong)
	passwordRefusal := at + `"pass": FATAL: password authentication failed for user "pass" (SQLSTATE 28P01)
HINT: put the right password for role "pass" into ~/.pgpass, into the file that PGPASSFILE names, or into PGPASSWORD`
	expect(t, refusal(t, as("pass")), passwordRefusal)
	t.Setenv("PGPASSWORD", "")
	expect(t, refusal(t, as("pass")), passwordRefusal)

	// With the right password it gets as far as the privilege that it lacks; so does the password from a file.
	lacks := at + `"pass": FATAL: permission denied for database "postgres" (SQLSTATE 42501)
HINT: grant role "pass" CONNECT on the database postgres`
	t.Setenv("PGPASSWORD", password)
	expect(t, refusal(t, as("pass")), lacks)
	t.Setenv("PGPASSWORD", "")
	passfile := filepath.Join(t.TempDir(), "pgpass")
	if err := os.WriteFile(passfile, []byte("localhost:*:*:pass:"+password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PGPASSFILE", passfile)
	expect(t, refusal(t, as("pass")), lacks)

	expect(t, refusal(t, as("alone")), at+`"alone": FATAL: pg_hba.conf rejects connection for host "[local]", user "alone", database "postgres", no encryption (SQLSTATE 28000)
HINT: allow role "alone" in the server's pg_hba.conf, for example by the first line `+"`local all alone peer`"+`, and reload the server`)
	expect(t, refusal(t, as("missing")), at+`"missing": FATAL: no pg_hba.conf entry for host "[local]", user "missing", database "postgres", no encryption (SQLSTATE 28000)
HINT: allow role "missing" in the server's pg_hba.conf, for example by the first line `+"`local all missing peer`"+`, and reload the server`)
	expect(t, refusal(t, as("pee")), at+`"pee": FATAL: Peer authentication failed for user "pee" (SQLSTATE 28000)
HINT: run pitr as the operating system user that pg_hba.conf lets in as role "pee" (for `+"`peer`"+`, the user of the same name), or change that line`)
	expect(t, refusal(t, as("nosuch")), at+`"nosuch": FATAL: role "nosuch" does not exist (SQLSTATE 28000)
HINT: set postgres.user to a role that exists and may log in`)
	for user, want := range map[string]bool{"alone": true, "nosuch": true, "pass": true, "monitor": false} {
		c, err := postgres.Connect(t.Context(), as(user))
		if err == nil {
			c.Close()
		}
		if got := postgres.Refused(err); got != want {
			t.Errorf("%s: refused: %t (%v)", user, got, err)
		}
	}
	expect(t, refusal(t, as("nologin")), at+`"nologin": FATAL: role "nologin" is not permitted to log in (SQLSTATE 28000)
HINT: set postgres.user to a role that exists and may log in`)

	// The environment leads nowhere else.
	for name, value := range map[string]string{"PGHOST": "/nowhere", "PGPORT": "1", "PGUSER": "nosuch", "PGDATABASE": "other", "PGOPTIONS": "-c work_mem=64kB", "PGAPPNAME": "x", "PGTARGETSESSIONATTRS": "standby"} {
		t.Setenv(name, value)
	}
	monitor := connect(t, as("monitor"))
	if got, _, err := monitor.Setting(t.Context(), "work_mem"); got != "4MB" || err != nil {
		t.Errorf("work_mem %s, %v", got, err)
	}
	if _, err := monitor.Info(t.Context()); err != nil {
		t.Errorf("pg_monitor is not enough: %v", err)
	}
	_, err := monitor.BackupStart(t.Context(), "x", true)
	if want := "start backup on PostgreSQL at " + s.SocketDir; err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(hint.Of(err), `role "monitor" lacks a privilege`) {
		t.Errorf("backup by pg_monitor: %v, hint %q", err, hint.Of(err))
	}

	// postgres is gone, template1 is not.
	s.ExecIn("other", "DROP DATABASE postgres WITH (FORCE)")
	connect(t, s.Config())
	if err := monitor.Ping(t.Context()); err == nil {
		t.Error("a session lives on in a database that was dropped")
	}
}

func TestConnectTooMany(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{NoFsync: true, Conf: map[string]string{"max_connections": "2", "superuser_reserved_connections": "0", "max_wal_senders": "0"}})
	for range 2 {
		connect(t, s.Config())
	}
	if _, err := postgres.Connect(t.Context(), s.Config()); err == nil || postgres.Refused(err) {
		t.Errorf("too many count as a refusal: %v", err)
	}
	expect(t, refusal(t, s.Config()), fmt.Sprintf(`connect to PostgreSQL at %s/.s.PGSQL.%d as role "postgres": FATAL: sorry, too many clients already (SQLSTATE 53300)
HINT: end sessions that are not needed, raise max_connections, or make role "postgres" a superuser, for whom superuser_reserved_connections are kept`, s.SocketDir, s.Port))
}

// A server that recovers without hot standby says so, and Start waits for the end of its recovery.
func TestConnectInRecovery(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{NoFsync: true, NotYet: true, Conf: map[string]string{"hot_standby": "off", "restore_command": "false"}})
	write(t, filepath.Join(s.Dir, "standby.signal"), "")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := postgres.Start(ctx, startConfig(s))
		ended <- err
	}()
	var got string
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(got, "57P03"); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("last answer: %s", got)
		}
		got = refusal(t, s.Config())
	}
	if !strings.HasSuffix(got, "\nHINT: the server is starting, stopping or recovering: try again when its log says that it accepts connections; during recovery that takes hot_standby = on") {
		t.Errorf("got %s", got)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("start that was given up: %v", err)
	}
	if pid, running, err := postgres.Running(s.Dir); running || err != nil {
		t.Errorf("after that: process %d, running %v, %v", pid, running, err)
	}
}

func TestValidate(t *testing.T) {
	good := postgres.Config{DataDir: "/data", BinDir: "/bin", Host: "/tmp", Port: 5432, User: "postgres", Parameters: map[string]string{"my.work_mem": "it's\n"}}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for want, spoil := range map[string]func(*postgres.Config){
		"data_dir: missing; it must be the server's data directory":                          func(c *postgres.Config) { c.DataDir = "" },
		`data_dir: "data" is not an absolute path`:                                           func(c *postgres.Config) { c.DataDir = "data" },
		`bin_dir: "bin" is not an absolute path`:                                             func(c *postgres.Config) { c.BinDir = "bin" },
		"host: missing; it must be the server's socket directory, or a host name or address": func(c *postgres.Config) { c.Host = "" },
		`host: "a,b" must name one server; it can't hold a comma`:                            func(c *postgres.Config) { c.Host = "a,b" },
		"port: 0 is not between 1 and 65535":                                                 func(c *postgres.Config) { c.Port = 0 },
		"port: 65536 is not between 1 and 65535":                                             func(c *postgres.Config) { c.Port = 65536 },
		`user: "" can't be the name of a role`:                                               func(c *postgres.Config) { c.User = "" },
		`parameters.a b: "a b" can't be the name of a setting`:                               func(c *postgres.Config) { c.Parameters = map[string]string{"a b": ""} },
		"parameters.a: holds a NUL character, which PostgreSQL's configuration files can't hold": func(c *postgres.Config) {
			c.Parameters = map[string]string{"a": "\x00"}
		},
	} {
		c := good
		spoil(&c)
		if err := c.Validate(); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
		if _, err := postgres.Connect(t.Context(), c); err == nil || err.Error() != want {
			t.Errorf("Connect: got %v, want %s", err, want)
		}
	}
}
