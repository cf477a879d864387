package basebackup

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"
	"unicode/utf8"

	"pitr/internal/repo"
	"pitr/internal/wal"
)

// Format is the version of the manifest that this package writes, and the newest that it reads.
const Format = 1

// The types of backups.
const (
	// TypeFull: every frame is in the backup's own packs.
	TypeFull = "full"
	// TypeIncremental: frames of older backups are referred to.
	TypeIncremental = "incr"
)

// Header is what a manifest says of the backup as a whole. Its JSON is in the manifest.
type Header struct {
	Format int    `json:"format"`
	ID     string `json:"id"`
	Type   string `json:"type"`
	// Parent is the backup that an incremental one was compared with. Nothing of it is needed beyond PacksOf.
	Parent string `json:"parent,omitempty"`
	Label  Text   `json:"label"`

	SystemID      uint64       `json:"system_identifier,string"`
	ServerVersion int          `json:"postgresql"` // server_version_num: 150004 is 15.4
	Node          string       `json:"node"`
	Host          string       `json:"host"`
	Term          uint64       `json:"term"` // 0: not taken of a managed cluster
	From          string       `json:"from"` // "primary" or "standby"
	Timeline      wal.Timeline `json:"timeline"`

	// StartLSN is where replay begins: the redo position of the checkpoint at CheckpointLSN. At StopLSN the backup is
	// consistent; it is the end of the last record needed, exclusive.
	StartLSN      wal.LSN   `json:"start_lsn"`
	StopLSN       wal.LSN   `json:"stop_lsn"`
	CheckpointLSN wal.LSN   `json:"checkpoint_lsn"`
	Started       time.Time `json:"started"`  // UTC; before the server was asked to begin
	Finished      time.Time `json:"finished"` // UTC; after the server said that the backup is over

	DataChecksums  bool   `json:"data_checksums"`
	BlockSize      int    `json:"block_size"`              // bytes
	WALSegSize     int64  `json:"wal_segment_size"`        // bytes
	RelSegBlocks   uint32 `json:"relation_segment_blocks"` // blocks in one file of a relation
	CatalogVersion uint32 `json:"catalog_version"`         // of pg_control
	ControlVersion uint32 `json:"control_version"`         // of pg_control
	Settings       `json:"settings"`

	Size     int64 `json:"size"`      // bytes of all files
	Stored   int64 `json:"stored"`    // bytes of this backup's own packs
	Files    int64 `json:"files"`     // entries that are files, external ones included
	Frames   int64 `json:"frames"`    // in this backup's own packs
	Packs    int   `json:"packs"`     // own packs, numbered from 1 without a gap
	BadPages int64 `json:"bad_pages"` // pages whose checksum is wrong on the server's disk
	// PacksOf are the backups whose packs hold frames of this one; Frame.Backup is an index into it.
	PacksOf []string `json:"packs_of"`

	BackupLabel   Text         `json:"backup_label"`   // the file's exact content
	TablespaceMap Text         `json:"tablespace_map"` // likewise; empty where there are no tablespaces
	Tablespaces   []Tablespace `json:"tablespaces,omitempty"`
	WALDirLink    Text         `json:"wal_dir_link,omitempty"` // where the server's pg_wal links to; empty if it doesn't

	Compression Compression `json:"compression"`
	// Why says why the backup is of its type, for people.
	Why []string `json:"why,omitempty"`
}

// Settings are those of the server that a standby must not go below (and the WAL level of the backup's time).
type Settings struct {
	WALLevel             string `json:"wal_level"`
	MaxConnections       int    `json:"max_connections"`
	MaxWorkerProcesses   int    `json:"max_worker_processes"`
	MaxWALSenders        int    `json:"max_wal_senders"`
	MaxPreparedXacts     int    `json:"max_prepared_transactions"`
	MaxLocksPerXact      int    `json:"max_locks_per_transaction"`
	TrackCommitTimestamp bool   `json:"track_commit_timestamp"`
}

// Tablespace is one besides pg_default and pg_global.
type Tablespace struct {
	OID  uint32 `json:"oid"`
	Name Text   `json:"name"`
	// Path is where the server keeps it; empty if it is a directory in pg_tblspc itself (allow_in_place_tablespaces).
	Path Text `json:"path"`
}

// Compression is how the packs were made; readers need not know it.
type Compression struct {
	Codec string `json:"codec"`
	Level int    `json:"level"`
}

// Status tells in one word how good the backup is: "ok", or "bad-pages" if the server's disk held pages with wrong
// checksums.
func (h *Header) Status() string {
	if h.BadPages > 0 {
		return "bad-pages"
	}
	return "ok"
}

// Text is a string of any bytes. In JSON it is a string where it is UTF-8, else an object {"hex": "…"}.
type Text string

// MarshalJSON keeps every byte.
func (t Text) MarshalJSON() ([]byte, error) {
	if utf8.ValidString(string(t)) {
		return json.Marshal(string(t))
	}
	return json.Marshal(map[string]string{"hex": hex.EncodeToString([]byte(t))})
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (t *Text) UnmarshalJSON(data []byte) error {
	var s string
	if json.Unmarshal(data, &s) == nil {
		*t = Text(s)
		return nil
	}
	var o struct {
		Hex *string `json:"hex"`
	}
	if err := json.Unmarshal(data, &o); err != nil || o.Hex == nil {
		return fmt.Errorf("want a string or an object with %q, have %.40q", "hex", data)
	}
	raw, err := hex.DecodeString(*o.Hex)
	if err != nil {
		return err
	}
	*t = Text(raw)
	return nil
}

// idTime is the first part of a backup's name: when it started, UTC.
const idTime = "20060102T150405Z"

// NewID makes the name of a backup that starts now. random must be unpredictable: it tells backups of the same second
// apart.
func NewID(now time.Time, random uint32) string {
	return fmt.Sprintf("%s-%08x", now.UTC().Format(idTime), random)
}

// CheckID returns an error unless id has the form of a backup's name. Names sort by their starting time.
func CheckID(id string) error {
	bad := fmt.Errorf("%q is not the name of a backup, such as 20261122T214500Z-3fa9c1d2", id)
	if len(id) != len(idTime)+9 || id[len(idTime)] != '-' {
		return bad
	}
	if _, err := time.Parse(idTime, id[:len(idTime)]); err != nil {
		return bad
	}
	for _, c := range id[len(idTime)+1:] {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return bad
		}
	}
	return nil
}

// check returns what makes a header that was read impossible.
func (h *Header) check() error {
	if err := CheckID(h.ID); err != nil {
		return err
	}
	for _, id := range h.PacksOf {
		if err := CheckID(id); err != nil {
			return err
		}
	}
	switch {
	case h.Type != TypeFull && h.Type != TypeIncremental:
		return fmt.Errorf("type %q", h.Type)
	case h.SystemID == 0, h.Timeline == 0:
		return fmt.Errorf("system identifier %d, timeline %d", h.SystemID, h.Timeline)
	case !wal.ValidSegSize(h.WALSegSize):
		return fmt.Errorf("WAL segment size %d", h.WALSegSize)
	case h.BlockSize < 512 || h.BlockSize > 32768 || h.BlockSize&(h.BlockSize-1) != 0:
		return fmt.Errorf("block size %d", h.BlockSize)
	case h.StartLSN == 0 || h.StopLSN < h.StartLSN:
		return fmt.Errorf("start %s, stop %s", h.StartLSN, h.StopLSN)
	case h.Size < 0 || h.Stored < 0 || h.Files < 0 || h.Frames < 0 || h.Packs < 0 || h.BadPages < 0:
		return fmt.Errorf("a negative count")
	}
	return nil
}

// SegmentRange gives the numbers of the first and the last WAL segment without which the backup can't be restored.
func (h *Header) SegmentRange() (first, last uint64) {
	return wal.SegmentOf(h.StartLSN, h.WALSegSize), wal.SegmentOf(max(h.StopLSN, h.StartLSN+1)-1, h.WALSegSize)
}

// where is the key of the backup's manifest.
func (h *Header) key() string { return repo.BackupKey(h.ID) }
