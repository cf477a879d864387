package postgres

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"pitr/internal/wal"
)

// Info is what a server says of itself.
type Info struct {
	Version  int    // server_version_num: 150014 for 15.14
	SystemID uint64 // the database system identifier
	// Timeline is the one that WAL is written to; in recovery, the newest that is known to have been replayed or
	// received.
	Timeline      wal.Timeline
	InRecovery    bool
	WALSegSize    int64 // bytes
	BlockSize     int   // bytes in a page of data
	DataChecksums bool

	DataDir    string
	ConfigFile string
	HBAFile    string
	IdentFile  string // may be named without existing

	WALLevel       string // minimal, replica, logical
	ArchiveMode    string // off, on, always
	ArchiveCommand string // "(disabled)" where archive_mode is off
	ArchiveLibrary string // empty before PostgreSQL 15
	ArchiveTimeout time.Duration
	FullPageWrites bool
	Fsync          bool
	HotStandby     bool

	// A server in recovery must not have less of these than its primary.
	MaxConnections     int
	MaxWorkerProcesses int
	MaxWALSenders      int
	MaxPreparedXacts   int
	MaxLocksPerXact    int

	Tablespaces []Tablespace // without the two that lie in the data directory itself
	Now         time.Time    // the server's clock
}

// Tablespace is a tablespace that CREATE TABLESPACE made.
type Tablespace struct {
	OID  uint32
	Name string
	Path string // absolute; relative to the data directory for one made in place (allow_in_place_tablespaces)
}

// Info asks the server for everything in Info. The role needs pg_read_all_settings.
func (c *Conn) Info(ctx context.Context) (Info, error) {
	const query = `SELECT s.system_identifier, pg_is_in_recovery(), ` + timelineSQL + `,
		i.bytes_per_wal_segment, i.database_block_size, i.data_page_checksum_version <> 0,
		current_setting('data_directory'), current_setting('config_file'), current_setting('hba_file'), current_setting('ident_file'),
		current_setting('wal_level'), current_setting('archive_mode'), current_setting('archive_command'),
		coalesce(current_setting('archive_library', true), ''),
		(SELECT setting::int8 FROM pg_settings WHERE name = 'archive_timeout'),
		current_setting('full_page_writes')::bool, current_setting('fsync')::bool, current_setting('hot_standby')::bool,
		current_setting('max_connections')::int4, current_setting('max_worker_processes')::int4, current_setting('max_wal_senders')::int4,
		current_setting('max_prepared_transactions')::int4, current_setting('max_locks_per_transaction')::int4,
		clock_timestamp()
		FROM pg_control_system() s, pg_control_init() i`
	info := Info{Version: c.version}
	var systemID, timeout int64
	err := c.pg.QueryRow(ctx, query).Scan(&systemID, &info.InRecovery, &info.Timeline,
		&info.WALSegSize, &info.BlockSize, &info.DataChecksums,
		&info.DataDir, &info.ConfigFile, &info.HBAFile, &info.IdentFile,
		&info.WALLevel, &info.ArchiveMode, &info.ArchiveCommand, &info.ArchiveLibrary, &timeout,
		&info.FullPageWrites, &info.Fsync, &info.HotStandby,
		&info.MaxConnections, &info.MaxWorkerProcesses, &info.MaxWALSenders, &info.MaxPreparedXacts, &info.MaxLocksPerXact,
		&info.Now)
	if err != nil {
		return Info{}, c.failed("ask for settings", err)
	}
	info.SystemID = uint64(systemID) // SQL has no unsigned numbers
	info.ArchiveTimeout = time.Duration(timeout) * time.Second
	rows, err := c.pg.Query(ctx, `SELECT oid, spcname::text, pg_tablespace_location(oid) FROM pg_tablespace
		WHERE spcname NOT IN ('pg_default', 'pg_global') ORDER BY oid`)
	if err == nil {
		info.Tablespaces, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Tablespace])
	}
	if err != nil {
		return Info{}, c.failed("ask for tablespaces", err)
	}
	return info, nil
}

// timelineSQL gives the timeline as Info describes it, as int8. A server out of recovery has no function for its timeline
// but the name of a segment; what pg_control says is as old as the last checkpoint.
const timelineSQL = `CASE WHEN pg_is_in_recovery() THEN
	(SELECT greatest(c.timeline_id, r.min_recovery_end_timeline, (SELECT max(received_tli) FROM pg_stat_wal_receiver))::int8
		FROM pg_control_checkpoint() c, pg_control_recovery() r)
	ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int8 END`

// Setting returns the value that a setting has in this session, as SHOW prints it, and false if the server's version
// knows no such setting.
func (c *Conn) Setting(ctx context.Context, name string) (string, bool, error) {
	var value *string
	if err := c.pg.QueryRow(ctx, "SELECT current_setting($1, true)", name).Scan(&value); err != nil {
		return "", false, c.failed("ask for setting "+strconv.Quote(name), err)
	}
	if value == nil {
		return "", false, nil
	}
	return *value, true, nil
}

// Database is one database of the server.
type Database struct {
	OID        uint32
	Name       string
	Encoding   string
	Template   bool
	AllowsConn bool
}

// Databases returns all databases, ordered by OID.
func (c *Conn) Databases(ctx context.Context) ([]Database, error) {
	rows, err := c.pg.Query(ctx, `SELECT oid, datname::text, pg_encoding_to_char(encoding)::text, datistemplate, datallowconn FROM pg_database ORDER BY oid`)
	if err != nil {
		return nil, c.failed("list databases", err)
	}
	got, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Database])
	if err != nil {
		return nil, c.failed("list databases", err)
	}
	return got, nil
}

// ArchiverStats is what the server's archiver has done since its counters began (pg_stat_archiver).
type ArchiverStats struct {
	Archived     int64
	LastArchived string    // file name; empty: none
	ArchivedAt   time.Time // zero: never
	Failed       int64     // attempts, not files
	LastFailed   string    // file name; empty: none
	FailedAt     time.Time // zero: never
	Since        time.Time // when the counters began; zero: unknown
}

// Failing tells whether the last thing that the archiver did was to fail.
func (s ArchiverStats) Failing() bool { return s.FailedAt.After(s.ArchivedAt) }

// ArchiverStats asks for the archiver's counters. They may lag by half a second before PostgreSQL 15.
func (c *Conn) ArchiverStats(ctx context.Context) (ArchiverStats, error) {
	var s ArchiverStats
	var archivedAt, failedAt, since *time.Time
	err := c.pg.QueryRow(ctx, `SELECT archived_count, coalesce(last_archived_wal, ''), last_archived_time,
		failed_count, coalesce(last_failed_wal, ''), last_failed_time, stats_reset FROM pg_stat_archiver`).Scan(
		&s.Archived, &s.LastArchived, &archivedAt, &s.Failed, &s.LastFailed, &failedAt, &since)
	if err != nil {
		return ArchiverStats{}, c.failed("ask for the archiver's counters", err)
	}
	s.ArchivedAt, s.FailedAt, s.Since = orZero(archivedAt), orZero(failedAt), orZero(since)
	return s, nil
}

func orZero(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return *t
}

// lsn reads a position that a query gave as text; null is 0, no position.
func lsn(text *string) (wal.LSN, error) {
	if text == nil {
		return 0, nil
	}
	l, err := wal.ParseLSN(*text)
	if err != nil {
		return 0, fmt.Errorf("server gave a position: %w", err)
	}
	return l, nil
}
