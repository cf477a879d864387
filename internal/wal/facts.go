package wal

import (
	"fmt"
	"math"
	"time"
)

// Timestamp is a moment as WAL holds it: microseconds since 2000-01-01 UTC
// (TimestampTz).
type Timestamp int64

// epoch is where Timestamp counts from, in microseconds since 1970.
const epoch = 946684800 * 1_000_000

// Time returns the moment in UTC.
func (t Timestamp) Time() time.Time {
	if int64(t) > math.MaxInt64-epoch {
		return time.UnixMicro(math.MaxInt64).UTC()
	}
	return time.UnixMicro(int64(t) + epoch).UTC()
}

// TimestampOf returns t as WAL would hold it, cut to microseconds.
func TimestampOf(t time.Time) Timestamp { return Timestamp(t.UnixMicro() - epoch) }

// TxnKind says how a transaction ended.
type TxnKind uint8

const (
	Commit TxnKind = iota
	Abort
	CommitPrepared
	AbortPrepared
)

// Committed reports whether the transaction's changes stand.
func (k TxnKind) Committed() bool { return k == Commit || k == CommitPrepared }

// String names the kind as pg_waldump names the record.
func (k TxnKind) String() string {
	switch k {
	case Commit:
		return "COMMIT"
	case Abort:
		return "ABORT"
	case CommitPrepared:
		return "COMMIT_PREPARED"
	case AbortPrepared:
		return "ABORT_PREPARED"
	}
	return fmt.Sprintf("transaction end %d", uint8(k))
}

// Txn is the end of a transaction: the record at which recovery can stop.
type Txn struct {
	Start  LSN // of the record
	End    LSN // where the next record is looked for
	Time   Timestamp
	XID    uint32 // of the top-level transaction; for prepared ones, of the transaction that was prepared
	DB     uint32 // database, 0: the record does not tell
	Kind   TxnKind
	Detail *TxnDetail // nil where there is nothing to tell
}

// TxnDetail is what few transactions have.
type TxnDetail struct {
	Subxids []uint32  // subtransactions that ended with it
	Dropped []RelFile // files removed with it: by DROP, TRUNCATE or a rewrite, or those made in vain
	GID     string    // name of the prepared transaction, where wal_level is logical

	OriginLSN  LSN // where the transaction comes from another server
	OriginTime Timestamp
}

// Prepared is a PREPARE TRANSACTION.
type Prepared struct {
	Start, End LSN
	Time       Timestamp
	XID        uint32
	DB         uint32
	GID        string
	Subxids    []uint32
}

// RestorePoint is a pg_create_restore_point.
type RestorePoint struct {
	Start, End LSN
	Time       Timestamp
	Name       string
}

// CheckpointRecord is the record that completes a checkpoint.
type CheckpointRecord struct {
	Start, End LSN
	Shutdown   bool // written by a server going down, or at the end of recovery
	Checkpoint
}

// EndOfRecovery is where a promoted server began its timeline without a
// checkpoint.
type EndOfRecovery struct {
	Start, End   LSN
	Time         Timestamp
	Timeline     Timeline
	PrevTimeline Timeline
	Level        Level // PostgreSQL 17 and later
}

// Parameters are the settings that a standby has to follow, logged when they
// change.
type Parameters struct {
	Start, End           LSN
	MaxConnections       int32
	MaxWorkerProcesses   int32
	MaxWALSenders        int32
	MaxPreparedXacts     int32
	MaxLocksPerXact      int32
	Level                Level
	WALLogHints          bool
	TrackCommitTimestamp bool
}

// BackupEnd is the end of a base backup that was taken of a primary.
type BackupEnd struct {
	Start, End  LSN
	BackupStart LSN // the backup's own start, as its label has it
}

// Overwrite marks a record that a crash left unfinished.
type Overwrite struct {
	Start, End  LSN
	Overwritten LSN // start of the unfinished record
	Time        Timestamp
}

// FileCreate is a new fork of a relation.
type FileCreate struct {
	LSN  LSN
	XID  uint32
	Rel  RelFile
	Fork uint8
}

// FileTruncate is a relation cut down to Blocks pages. Flags are SMGR_TRUNCATE_*:
// 1 the main fork, 2 the visibility map, 4 the free-space map.
type FileTruncate struct {
	LSN    LSN
	XID    uint32
	Rel    RelFile
	Blocks uint32
	Flags  uint32
}

// TableTruncate is a TRUNCATE as logical decoding sees it: tables by OID. It is
// logged where wal_level is logical.
type TableTruncate struct {
	LSN  LSN
	XID  uint32
	DB   uint32
	OIDs []uint32
}

// DBKind says what happened to a database's directory.
type DBKind uint8

const (
	DBCopied  DBKind = iota // created by copying files: no page of it was logged
	DBLogged                // created page by page, in the log
	DBDropped               // removed, or moved away
)

// DBChange is a database's directory that came or went.
type DBChange struct {
	LSN    LSN
	XID    uint32
	Kind   DBKind
	DB     uint32
	Spc    []uint32 // tablespaces: one but for DBDropped
	SrcDB  uint32   // DBCopied: what was copied
	SrcSpc uint32
}

// Tablespace is a tablespace that came (with its path) or went (without).
type Tablespace struct {
	LSN     LSN
	XID     uint32
	OID     uint32
	Dropped bool
	Path    string
}

// Running is what a checkpoint, or the background writer, logs of the
// transactions that run.
type Running struct {
	LSN           LSN
	NextXID       uint32
	OldestRunning uint32
}

// RelMap is a new mapping of system catalogs to files; DB 0: the shared ones.
type RelMap struct {
	LSN LSN
	XID uint32
	DB  uint32
	Spc uint32
}
