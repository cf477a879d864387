package wal

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"time"
)

// ControlFileSize is the size of global/pg_control, in bytes. Only its first
// few hundred hold anything.
const ControlFileSize = 8192

// castagnoli is the polynomial of PostgreSQL's pg_crc32c.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ControlState is what the server was doing when it last wrote pg_control
// (DBState in src/include/catalog/pg_control.h).
type ControlState int32

const (
	StateStartingUp ControlState = iota
	StateShutDown
	StateShutDownInRecovery
	StateShuttingDown
	StateInCrashRecovery
	StateInArchiveRecovery
	StateInProduction
)

// String prints the state in pg_controldata's words.
func (s ControlState) String() string {
	switch s {
	case StateStartingUp:
		return "starting up"
	case StateShutDown:
		return "shut down"
	case StateShutDownInRecovery:
		return "shut down in recovery"
	case StateShuttingDown:
		return "shutting down"
	case StateInCrashRecovery:
		return "in crash recovery"
	case StateInArchiveRecovery:
		return "in archive recovery"
	case StateInProduction:
		return "in production"
	}
	return fmt.Sprintf("unrecognized status code %d", int32(s))
}

// Level is a value of wal_level as WAL and pg_control hold it.
type Level int32

const (
	LevelMinimal Level = iota
	LevelReplica
	LevelLogical
)

// String prints the level as the server's setting does.
func (l Level) String() string {
	switch l {
	case LevelMinimal:
		return "minimal"
	case LevelReplica:
		return "replica"
	case LevelLogical:
		return "logical"
	}
	return fmt.Sprintf("unknown wal_level %d", int32(l))
}

// Control holds the facts of global/pg_control (ControlFileData in
// src/include/catalog/pg_control.h) that do not depend on the server's build.
type Control struct {
	SystemID       uint64
	Version        uint32 // layout of the file: 1300 for PostgreSQL 13 to 16, 1700, 1800
	CatalogVersion uint32
	Major          int // PostgreSQL's major version, from the catalog version
	State          ControlState
	Time           time.Time // when the file was last written, whole seconds, UTC
	Checkpoint     LSN       // of the last checkpoint's record
	CheckpointCopy Checkpoint

	MinRecovery       LSN // a standby must replay up to here before it is consistent
	MinRecoveryTLI    Timeline
	BackupStart       LSN
	BackupEnd         LSN
	BackupEndRequired bool

	WALLevel             Level
	WALLogHints          bool
	MaxConnections       int
	MaxWorkerProcesses   int
	MaxWALSenders        int
	MaxPreparedXacts     int
	MaxLocksPerXact      int
	TrackCommitTimestamp bool

	MaxAlign            uint32
	BlockSize           uint32 // bytes in a page of data
	RelSegSize          uint32 // pages in a file of a relation
	WALBlockSize        uint32 // bytes in a page of WAL
	WALSegSize          uint32 // bytes
	DataChecksumVersion uint32 // 0: off
}

// Checkpoint is the body of a checkpoint record (CheckPoint in pg_control.h).
// Transaction and multixact numbers are as the server counts them; NextXID is
// the full 64-bit number.
type Checkpoint struct {
	Redo           LSN
	Timeline       Timeline
	PrevTimeline   Timeline // other than Timeline where the record begins a timeline
	FullPageWrites bool
	WALLevel       Level // PostgreSQL 17 and later; before, it is not known here
	NextXID        uint64
	NextOID        uint32
	NextMulti      uint32
	NextMultiOff   uint32
	OldestXID      uint32
	OldestXIDDB    uint32
	OldestMulti    uint32
	OldestMultiDB  uint32
	Time           time.Time // whole seconds, UTC
	OldestCommitTS uint32
	NewestCommitTS uint32
	OldestActive   uint32
}

const checkpointLen = 84 // up to and with oldestActiveXid

// parseCheckpoint reads the body of a checkpoint record of the given major
// version. The layout is the same from 13 to 18, but for wal_level, which 17
// put into a hole.
func parseCheckpoint(b []byte, major int) (Checkpoint, bool) {
	if len(b) < checkpointLen {
		return Checkpoint{}, false
	}
	le := binary.LittleEndian
	c := Checkpoint{
		Redo:           LSN(le.Uint64(b)),
		Timeline:       Timeline(le.Uint32(b[8:])),
		PrevTimeline:   Timeline(le.Uint32(b[12:])),
		FullPageWrites: b[16] != 0,
		NextXID:        le.Uint64(b[24:]),
		NextOID:        le.Uint32(b[32:]),
		NextMulti:      le.Uint32(b[36:]),
		NextMultiOff:   le.Uint32(b[40:]),
		OldestXID:      le.Uint32(b[44:]),
		OldestXIDDB:    le.Uint32(b[48:]),
		OldestMulti:    le.Uint32(b[52:]),
		OldestMultiDB:  le.Uint32(b[56:]),
		Time:           time.Unix(int64(le.Uint64(b[64:])), 0).UTC(),
		OldestCommitTS: le.Uint32(b[72:]),
		NewestCommitTS: le.Uint32(b[76:]),
		OldestActive:   le.Uint32(b[80:]),
	}
	if major >= 17 {
		c.WALLevel = Level(le.Uint32(b[20:]))
	}
	return c, true
}

// Offsets in pg_control. All but the checksum's are the same in every version
// from 13 to 18; 18 inserted default_char_signedness before the nonce.
const (
	ctlCheckpoint     = 32
	ctlCheckpointCopy = 40
	ctlMinRecovery    = 136
	ctlParams         = 168
	ctlSizes          = 204
	ctlChecksums      = 252
	ctlCRC            = 288
	ctlCRC18          = 292
	ctlMinLen         = 512 // PG_CONTROL_MAX_SAFE_SIZE: what the server writes atomically
)

// controlCRCOffset returns where the checksum of a control file lies, and the
// number of bytes it covers, which is the same.
func controlCRCOffset(version uint32) (int, error) {
	switch version {
	case 1300, 1700:
		return ctlCRC, nil
	case 1800:
		return ctlCRC18, nil
	}
	if version%65536 == 0 && version != 0 {
		return 0, fmt.Errorf("pg_control: version number %d is byte-swapped: written on a big-endian machine", version)
	}
	return 0, fmt.Errorf("pg_control: version %d is not one of PostgreSQL 13 to 18", version)
}

// majorOfCatalog tells the major version by CATALOG_VERSION_NO, which is fixed
// with each major release's first version and tells 13 to 16 apart, whose
// pg_control has the same version number.
func majorOfCatalog(v uint32) (int, bool) {
	switch v {
	case 202007201:
		return 13, true
	case 202107181:
		return 14, true
	case 202209061:
		return 15, true
	case 202307071:
		return 16, true
	case 202406281:
		return 17, true
	case 202506291:
		return 18, true
	}
	return 0, false
}

// ParseControl reads global/pg_control. At least the first 512 bytes are needed.
// The checksum is verified: a file that is being written concurrently fails here
// and is to be read again.
func ParseControl(data []byte) (Control, error) {
	if len(data) < ctlMinLen {
		return Control{}, fmt.Errorf("pg_control: %d bytes, want %d", len(data), ControlFileSize)
	}
	le := binary.LittleEndian
	c := Control{
		SystemID:       le.Uint64(data),
		Version:        le.Uint32(data[8:]),
		CatalogVersion: le.Uint32(data[12:]),
	}
	crcAt, err := controlCRCOffset(c.Version)
	if err != nil {
		return Control{}, err
	}
	if got, want := crc32.Checksum(data[:crcAt], castagnoli), le.Uint32(data[crcAt:]); got != want {
		return Control{}, fmt.Errorf("pg_control: checksum is %08X, but the contents give %08X", want, got)
	}
	major, ok := majorOfCatalog(c.CatalogVersion)
	if !ok {
		return Control{}, fmt.Errorf("pg_control: catalog version %d is not that of a released PostgreSQL 13 to 18", c.CatalogVersion)
	}
	c.Major = major
	c.State = ControlState(le.Uint32(data[16:]))
	c.Time = time.Unix(int64(le.Uint64(data[24:])), 0).UTC()
	c.Checkpoint = LSN(le.Uint64(data[ctlCheckpoint:]))
	c.CheckpointCopy, _ = parseCheckpoint(data[ctlCheckpointCopy:], major)

	b := data[ctlMinRecovery:]
	c.MinRecovery = LSN(le.Uint64(b))
	c.MinRecoveryTLI = Timeline(le.Uint32(b[8:]))
	c.BackupStart = LSN(le.Uint64(b[16:]))
	c.BackupEnd = LSN(le.Uint64(b[24:]))

	b = data[ctlParams:]
	c.BackupEndRequired = b[0] != 0
	c.WALLevel = Level(le.Uint32(b[4:]))
	c.WALLogHints = b[8] != 0
	c.MaxConnections = int(int32(le.Uint32(b[12:])))
	c.MaxWorkerProcesses = int(int32(le.Uint32(b[16:])))
	c.MaxWALSenders = int(int32(le.Uint32(b[20:])))
	c.MaxPreparedXacts = int(int32(le.Uint32(b[24:])))
	c.MaxLocksPerXact = int(int32(le.Uint32(b[28:])))
	c.TrackCommitTimestamp = b[32] != 0

	b = data[ctlSizes:]
	c.MaxAlign = le.Uint32(b)
	c.BlockSize = le.Uint32(b[12:])
	c.RelSegSize = le.Uint32(b[16:])
	c.WALBlockSize = le.Uint32(b[20:])
	c.WALSegSize = le.Uint32(b[24:])
	c.DataChecksumVersion = le.Uint32(data[ctlChecksums:])

	switch {
	case !ValidSegSize(int64(c.WALSegSize)):
		return Control{}, fmt.Errorf("pg_control: impossible WAL segment size %d", c.WALSegSize)
	case !validBlockSize(c.WALBlockSize):
		return Control{}, fmt.Errorf("pg_control: impossible WAL page size %d", c.WALBlockSize)
	case !validBlockSize(c.BlockSize) || c.BlockSize > 32768:
		return Control{}, fmt.Errorf("pg_control: impossible page size %d", c.BlockSize)
	case c.RelSegSize == 0:
		return Control{}, fmt.Errorf("pg_control: relation files of 0 pages")
	}
	return c, nil
}

// PatchControlCheckpoint returns a copy of a valid control file whose last
// checkpoint is said to be at lsn, with the checksum made good. A server started
// on it looks for that record and, not finding one, refuses to run: at a
// position that no WAL holds, an unfinished restore cannot be started by
// mistake. A backup_label overrides this: a server that finds one takes its
// checkpoint instead.
func PatchControlCheckpoint(data []byte, lsn LSN) ([]byte, error) {
	c, err := ParseControl(data)
	if err != nil {
		return nil, err
	}
	crcAt, err := controlCRCOffset(c.Version)
	if err != nil {
		return nil, err
	}
	out := append([]byte(nil), data...)
	binary.LittleEndian.PutUint64(out[ctlCheckpoint:], uint64(lsn))
	binary.LittleEndian.PutUint32(out[crcAt:], crc32.Checksum(out[:crcAt], castagnoli))
	return out, nil
}
