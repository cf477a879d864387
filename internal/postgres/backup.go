package postgres

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"pitr/internal/wal"
	"sync"
)

// BackupStart is where a backup begins.
type BackupStart struct {
	LSN wal.LSN // of the redo point: the backup needs all WAL from here
	// Timeline of that position. On a standby it may be a later one than that in the label of BackupStop, which decides.
	Timeline wal.Timeline
}

// BackupStop is where a backup ends.
type BackupStop struct {
	LSN           wal.LSN // the backup is consistent once WAL up to here is replayed
	Label         []byte  // content of backup_label, exact
	TablespaceMap []byte  // content of tablespace_map, exact; empty: none
}

// BackupStart begins a backup in this session, which must stay open until BackupStop: its end ends the backup. The server
// writes a checkpoint, at once if fast, else spread over time. Other backups may run besides. label is any text on one line.
func (c *Conn) BackupStart(ctx context.Context, label string, fast bool) (BackupStart, error) {
	if strings.ContainsAny(label, "\n\r\x00") {
		// The server takes it, and can't read its own backup_label later.
		return BackupStart{}, fmt.Errorf("start backup: label %q is not one line", label)
	}
	query := "SELECT pg_backup_start($1, fast => $2)::text"
	if c.version < 150000 {
		query = "SELECT pg_start_backup($1, fast => $2, exclusive => false)::text"
	}
	start, err := c.askLSN(ctx, "start backup", query, label, fast)
	if err != nil {
		return BackupStart{}, err
	}
	b := BackupStart{LSN: start}
	// A backup of a standby starts from its last restart point, which pg_control describes.
	err = c.pg.QueryRow(ctx, `SELECT CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id::int8 FROM pg_control_checkpoint())
		ELSE `+timelineSQL+` END`).Scan(&b.Timeline)
	if err != nil {
		return BackupStart{}, c.failed("ask for the timeline of the backup's start", err)
	}
	return b, nil
}

// BackupStop ends the backup that this session began. It does not wait for WAL to be archived; whoever takes the backup
// proves that itself. It fails if the server was promoted since.
func (c *Conn) BackupStop(ctx context.Context) (BackupStop, error) {
	query := "SELECT lsn::text, labelfile, spcmapfile FROM pg_backup_stop(wait_for_archive => false)"
	if c.version < 150000 {
		query = "SELECT lsn::text, labelfile, spcmapfile FROM pg_stop_backup(exclusive => false, wait_for_archive => false)"
	}
	var at, label, spcmap *string
	if err := c.pg.QueryRow(ctx, query).Scan(&at, &label, &spcmap); err != nil {
		return BackupStop{}, c.failed("stop backup", err)
	}
	if at == nil || label == nil || *label == "" {
		return BackupStop{}, c.failed("stop backup", errors.New("the server gave no label"))
	}
	end, err := lsn(at)
	if err != nil {
		return BackupStop{}, c.failed("stop backup", err)
	}
	b := BackupStop{LSN: end, Label: []byte(*label)}
	if spcmap != nil {
		b.TablespaceMap = []byte(*spcmap)
	}
	return b, nil
}

// Label is what a backup_label says.
type Label struct {
	Start      wal.LSN // where replay begins
	Timeline   wal.Timeline
	Checkpoint wal.LSN // of the checkpoint's record
	Standby    bool    // the backup was taken from a standby
}

var (
	labelStart = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`^START WAL LOCATION: ([0-9A-F]+/[0-9A-F]+) \(file [0-9A-F]{24}\)$`)
	})
	labelCheckpoint = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^CHECKPOINT LOCATION: ([0-9A-F]+/[0-9A-F]+)$`) })
	labelTimeline   = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^START TIMELINE: ([0-9]+)$`) })
)

// ParseLabel reads a backup_label (build_backup_content in src/backend/access/transam/xlogbackup.c, and before
// PostgreSQL 15 do_pg_start_backup in xlog.c; read_backup_label reads it, and asks for the same order of lines).
func ParseLabel(data []byte) (Label, error) {
	lines := append(strings.Split(string(data), "\n"), make([]string, 7)...)
	var errs [3]error
	field := func(re *regexp.Regexp, line int) string {
		m := re.FindStringSubmatch(lines[line])
		if m == nil {
			return ""
		}
		return m[1]
	}
	l := Label{Standby: lines[3] == "BACKUP FROM: standby"}
	l.Start, errs[0] = wal.ParseLSN(field(labelStart(), 0))
	l.Checkpoint, errs[1] = wal.ParseLSN(field(labelCheckpoint(), 1))
	tli, err := strconv.ParseUint(field(labelTimeline(), 6), 10, 32)
	if err == nil && tli == 0 {
		err = errors.New("0 is no timeline")
	}
	l.Timeline, errs[2] = wal.Timeline(tli), err
	if err := errors.Join(errs[:]...); err != nil {
		return Label{}, fmt.Errorf("read backup label %q: %w", data, err)
	}
	return l, nil
}
