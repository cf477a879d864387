package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"pitr/internal/wal"
)

// Position is where a server is in the WAL. Positions are 0 where the server has none.
type Position struct {
	InRecovery bool
	Insert     wal.LSN // end of what was written to the buffers; 0 in recovery
	Flush      wal.LSN // end of what is on the disk; 0 in recovery
	Received   wal.LSN // end of what streaming has brought to the disk; 0 without streaming
	// Replayed is the end of the last record replayed. After recovery it stays what it was at its end.
	Replayed   wal.LSN
	ReplayedTo time.Time // when the last transaction replayed had committed or aborted; zero: none
	Paused     bool      // recovery stands still, as by recovery_target_action = pause
}

// Position asks the server where it is.
func (c *Conn) Position(ctx context.Context) (Position, error) {
	paused := "pg_get_wal_replay_pause_state() = 'paused'"
	if c.version < 140000 {
		paused = "pg_is_wal_replay_paused()"
	}
	var p Position
	var insert, flush, received, replayed *string
	var replayedTo *time.Time
	err := c.pg.QueryRow(ctx, `SELECT r, CASE WHEN NOT r THEN pg_current_wal_insert_lsn()::text END, CASE WHEN NOT r THEN pg_current_wal_flush_lsn()::text END,
		pg_last_wal_receive_lsn()::text, pg_last_wal_replay_lsn()::text, pg_last_xact_replay_timestamp(),
		CASE WHEN r THEN `+paused+` ELSE false END FROM pg_is_in_recovery() AS r`).Scan(
		&p.InRecovery, &insert, &flush, &received, &replayed, &replayedTo, &p.Paused)
	if err != nil {
		return Position{}, c.failed("ask for the position in the WAL", err)
	}
	p.ReplayedTo = orZero(replayedTo)
	var errs [4]error
	p.Insert, errs[0] = lsn(insert)
	p.Flush, errs[1] = lsn(flush)
	p.Received, errs[2] = lsn(received)
	p.Replayed, errs[3] = lsn(replayed)
	return p, errors.Join(errs[:]...)
}

// CurrentLSN returns the end of the WAL that the server has on its disk; in recovery, of what it has replayed.
func (c *Conn) CurrentLSN(ctx context.Context) (wal.LSN, error) {
	p, err := c.Position(ctx)
	if p.InRecovery {
		return p.Replayed, err
	}
	return p.Flush, err
}

// SwitchWAL ends the current segment, so that it is archived, and returns the position after the last record in it; the
// finished segment is the one that holds the byte before. If nothing was written to the current segment, nothing is done,
// and the position is the segment's beginning: write something first, such as a restore point.
func (c *Conn) SwitchWAL(ctx context.Context) (wal.LSN, error) {
	return c.askLSN(ctx, "switch to a new WAL segment", "SELECT pg_switch_wal()::text")
}

// maxRestorePoint is the greatest length of a restore point's name in bytes, MAXFNAMELEN less its NUL
// (src/include/access/xlog_internal.h).
const maxRestorePoint = 63

// CreateRestorePoint writes a restore point of that name to the WAL and returns the end of its record. The record
// is on the disk with the next commit, switch of segments, or moment of the WAL writer.
func (c *Conn) CreateRestorePoint(ctx context.Context, name string) (wal.LSN, error) {
	switch {
	case name == "" || strings.ContainsRune(name, 0):
		return 0, fmt.Errorf("create restore point %q: not a name", name)
	case len(name) > maxRestorePoint:
		return 0, fmt.Errorf("create restore point %q: name of %d bytes, at most %d are possible", name, len(name), maxRestorePoint)
	}
	return c.askLSN(ctx, fmt.Sprintf("create restore point %q", name), "SELECT pg_create_restore_point($1)::text", name)
}

// WALFileName returns the name of the segment that holds the byte before lsn, on the server's current timeline, which is
// the file that must be archived for everything up to lsn to be. Servers in recovery can't tell.
func (c *Conn) WALFileName(ctx context.Context, lsn wal.LSN) (string, error) {
	var name string
	if err := c.pg.QueryRow(ctx, "SELECT pg_walfile_name($1::text::pg_lsn)", lsn.String()).Scan(&name); err != nil {
		return "", c.failed("ask for the WAL segment of "+lsn.String(), err)
	}
	return name, nil
}

// Checkpoint makes the server write a checkpoint, at once; in recovery, a restart point if there is a new checkpoint to
// make one of. It returns when that is done.
func (c *Conn) Checkpoint(ctx context.Context) error {
	if _, err := c.pg.Exec(ctx, "CHECKPOINT"); err != nil {
		return c.failed("write a checkpoint", err)
	}
	return nil
}

func (c *Conn) askLSN(ctx context.Context, attempt, query string, args ...any) (wal.LSN, error) {
	var text string
	if err := c.pg.QueryRow(ctx, query, args...).Scan(&text); err != nil {
		return 0, c.failed(attempt, err)
	}
	return lsn(&text)
}
