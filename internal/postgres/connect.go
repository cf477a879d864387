package postgres

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"

	"pitr/internal/hint"
)

// The major versions of PostgreSQL that pitr works with.
const (
	OldestMajor = 13
	NewestMajor = 18
)

const (
	connectTimeout = 10 * time.Second
	// cancelGrace is how long the server may take to end a statement that was cancelled, before the session is cut.
	cancelGrace = 5 * time.Second
)

// Conn is one session with a server. One goroutine at a time may use it. When the context given to a method ends, the
// statement is cancelled on the server; the session may or may not survive that.
//
// What the session reads and writes is bytes as the server has them: paths, and names that another database's encoding
// shaped, come unconverted, since they are used with the file system and with the server again.
type Conn struct {
	pg      *pgx.Conn
	cfg     Config
	version int
}

// Connect opens a session with the server that cfg names, in the database postgres or, where that one was dropped,
// template1. Time limits that the server sets for sessions and statements are off in it.
func Connect(ctx context.Context, cfg Config) (*Conn, error) {
	c, err := connect(ctx, cfg, "postgres")
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && pgErr.Code == "3D000" {
		return connect(ctx, cfg, "template1")
	}
	return c, err
}

func connect(ctx context.Context, cfg Config, database string) (*Conn, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	// Everything that the environment could turn elsewhere is said here; the password, and TLS for hosts that need it,
	// stay the environment's.
	quote := strings.NewReplacer(`\`, `\\`, "'", `\'`)
	pc, err := pgx.ParseConfig(fmt.Sprintf("host='%s' port=%d user='%s' dbname='%s' connect_timeout=%d target_session_attrs=any",
		quote.Replace(cfg.Host), cfg.Port, quote.Replace(cfg.User), database, int(connectTimeout.Seconds())))
	if err != nil {
		return nil, fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	pc.RuntimeParams = map[string]string{
		"application_name": "pitr",
		// This is the server's word for no conversion (pg_server_to_any in src/backend/utils/mb/mbutils.c).
		"client_encoding": "SQL_ASCII",
		// Here, the limits are off from the first statement on, whatever the role's settings.
		"statement_timeout": "0", "lock_timeout": "0", "idle_in_transaction_session_timeout": "0",
	}
	pc.BuildContextWatcherHandler = func(pg *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.CancelRequestContextWatcherHandler{Conn: pg, DeadlineDelay: cancelGrace}
	}
	pg, err := pgx.ConnectConfig(ctx, pc)
	if err != nil {
		return nil, connectError(ctx, cfg, err)
	}
	c := &Conn{pg: pg, cfg: cfg}
	if err := c.prepare(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// prepare sets the session up.
func (c *Conn) prepare(ctx context.Context) error {
	// First of all, and with no operator in it: functions and operators that users have made are out of the way from
	// here on.
	if _, err := c.pg.Exec(ctx, "SELECT pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false)"); err != nil {
		return c.failed("set up session", err)
	}
	// These limits came with PostgreSQL 14 and 17.
	const limits = `SELECT current_setting('server_version_num')::int4, count(set_config(name, '0', false)) FROM pg_settings
		WHERE name IN ('idle_session_timeout', 'transaction_timeout')`
	var count int64
	if err := c.pg.QueryRow(ctx, limits).Scan(&c.version, &count); err != nil {
		return c.failed("set up session", err)
	}
	if major := c.version / 10000; major < OldestMajor || major > NewestMajor {
		return hint.Wrap(fmt.Errorf("connect to %s: it is PostgreSQL %d", c.cfg.place(), major),
			"this version of pitr works with PostgreSQL %d to %d", OldestMajor, NewestMajor)
	}
	return nil
}

// Version is the server's version as server_version_num gives it: 150014 for 15.14.
func (c *Conn) Version() int { return c.version }

// Close ends the session. The server then forgets a backup that was not stopped.
func (c *Conn) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), cancelGrace)
	defer cancel()
	return c.pg.Close(ctx)
}

// Ping fails if the session is lost.
func (c *Conn) Ping(ctx context.Context) error {
	if err := c.pg.Ping(ctx); err != nil {
		return c.failed("look whether the session lives", err)
	}
	return nil
}

// failed makes the error of a statement: what was attempted, and where, and for lack of privileges what to do.
func (c *Conn) failed(attempt string, err error) error {
	wrapped := fmt.Errorf("%s on PostgreSQL at %s: %w", attempt, c.cfg.place(), err)
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	if !ok || pgErr.Code != "42501" {
		return wrapped
	}
	return hint.Wrap(wrapped, "role %q lacks a privilege: make it a superuser, or grant it pg_monitor, pg_checkpoint (PostgreSQL 15 and later) and EXECUTE on the function named", c.cfg.User)
}

// place is where the server listens, in words for messages.
func (c Config) place() string {
	if filepath.IsAbs(c.Host) {
		return filepath.Join(c.Host, ".s.PGSQL."+strconv.Itoa(c.Port))
	}
	return c.Host + " port " + strconv.Itoa(c.Port)
}

// connectError says why no session came about, and what would help.
func connectError(ctx context.Context, cfg Config, err error) error {
	fail := func(why error) error {
		return fmt.Errorf("connect to PostgreSQL at %s as role %q: %w", cfg.place(), cfg.User, why)
	}
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return refused(cfg, pgErr, fail(pgErr))
	}
	if ctx.Err() != nil {
		return fail(ctx.Err())
	}
	if no, ok := errors.AsType[syscall.Errno](err); ok {
		switch no {
		case syscall.ECONNREFUSED, syscall.ENOENT:
			return hint.Wrap(fail(fmt.Errorf("no server listens there: %w", no)), "%s", whereInstead(cfg))
		case syscall.EACCES:
			return hint.Wrap(fail(no), "let this user into the socket directory %s, or run pitr as the server's user", cfg.Host)
		}
		return fail(no)
	}
	// What remains is pgx's own; its text may repeat the connection's parameters, but never the password.
	if pgconn.Timeout(err) {
		return hint.Wrap(fail(fmt.Errorf("no answer within %v", connectTimeout)), "is the server frozen, or a firewall between?")
	}
	if inner, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		err = inner.Unwrap()
	}
	return fail(err)
}

// refused adds to err what would help against the server's refusal. The server's messages may be in any language, so that
// only codes and the names of its source's functions tell cases apart (src/backend/libpq/auth.c,
// src/backend/utils/init/miscinit.c, postinit.c).
func refused(cfg Config, why *pgconn.PgError, err error) error {
	switch why.Code {
	case "28P01": // invalid_password
		return hint.Wrap(err, "put the right password for role %q into ~/.pgpass, into the file that PGPASSFILE names, or into PGPASSWORD", cfg.User)
	case "28000": // invalid_authorization_specification
		switch why.Routine {
		case "InitializeSessionUserId", "InitializeSessionUserIdStandalone":
			return hint.Wrap(err, "set postgres.user to a role that exists and may log in")
		case "ClientAuthentication":
			return hint.Wrap(err, "allow role %q in the server's pg_hba.conf, for example by the first line `local all %s peer`, and reload the server", cfg.User, cfg.User)
		}
		return hint.Wrap(err, "run pitr as the operating system user that pg_hba.conf lets in as role %q (for `peer`, the user of the same name), or change that line", cfg.User)
	case "08P01": // protocol_violation
		return hint.Wrap(err, "set postgres.host and postgres.port to the server itself, not to a connection pooler")
	case "42501": // insufficient_privilege
		return hint.Wrap(err, "grant role %q CONNECT on the database postgres", cfg.User)
	case "57P03": // cannot_connect_now
		return hint.Wrap(err, "the server is starting, stopping or recovering: try again when its log says that it accepts connections; during recovery that takes hot_standby = on")
	case "53300": // too_many_connections
		return hint.Wrap(err, "end sessions that are not needed, raise max_connections, or make role %q a superuser, for whom superuser_reserved_connections are kept", cfg.User)
	}
	return err
}

// Refused tells whether a Connect failed because the server does not let the role in: it answers, and will answer the same
// until somebody changes its access rules, its roles, its databases, or the password that pitr is given.
func Refused(err error) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return false
	}
	switch pgErr.Code {
	case "3D000", "42501", "55000": // no such database, no right to connect to it, one that takes no connections
		return true
	}
	return strings.HasPrefix(pgErr.Code, "28")
}

// whereInstead is the advice where nobody listens: mostly that no server runs, sometimes that it listens elsewhere.
func whereInstead(cfg Config) string {
	pid, running, err := Running(cfg.DataDir)
	if err == nil && !running {
		return fmt.Sprintf("start the server: none runs on %s", cfg.DataDir)
	}
	post, postErr := ReadPostmaster(cfg.DataDir)
	if err != nil || postErr != nil || post.PID != pid || post.Port == 0 {
		return fmt.Sprintf("is the server on %s running, and are postgres.host and postgres.port right?", cfg.DataDir)
	}
	var at []string
	if post.SocketDir != "" {
		at = append(at, fmt.Sprintf("socket directory %s", post.SocketDir))
	}
	if post.Listen != "" {
		at = append(at, fmt.Sprintf("address %s", post.Listen))
	}
	return fmt.Sprintf("the server on %s runs with port %d, %s: set postgres.host and postgres.port accordingly",
		cfg.DataDir, post.Port, strings.Join(at, ", "))
}
