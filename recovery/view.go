package recovery

import (
	"pitr/archive"
	"pitr/basebackup"
	"pitr/internal/wal"
)

// View is the world as MakePlan sees it. Observe makes one; tests make their own. The functions may read from the store,
// and are called only as far as the plan needs them.
type View struct {
	SystemID uint64
	SegSize  int64
	// Backups are those that can be read, in the order of their names, which is that of their starts.
	Backups []*basebackup.Header
	// Unreadable are those that can't, each with the reason.
	Unreadable []string
	// Histories are those of all timelines that the archive knows, the first one included.
	Histories map[wal.Timeline]wal.History
	// Refused are the names under which contents were refused when they were to be archived, since others lay there, and nobody
	// has recorded yet which one holds.
	Refused []string
	// Reach tells which WAL of a history joins on to from, which lies on timeline tli, without a gap.
	Reach func(h wal.History, from wal.LSN) (Reach, error)
	// Facts gives what the WAL of these segments tells from the record at from on, in the order of replay. Of segments whose
	// brief index is enough it may give *archive.Skimmed in place of the ends of transactions, see archive.Archive.Skim; nil
	// is enough for none.
	Facts func(path []archive.Step, from wal.LSN, enough func(*wal.Index) bool) Facts
	// RecordAt gives the first record that starts at or after lsn, if there is one.
	RecordAt func(path []archive.Step, lsn wal.LSN) (Stop, bool, error)
	// LastRecord gives the last whole record.
	LastRecord func(path []archive.Step) (Stop, bool, error)
	// Contents verifies the manifest of a backup and that all it refers to is there.
	Contents func(h *basebackup.Header) (Contents, error)
	// Look tells what is at an absolute path of this machine.
	Look func(path string) (Place, error)
	// Server makes sure that the programs of a major version are there, to start it.
	Server func(major int) error
}

// Reach is the WAL that joins on to a position without a gap.
type Reach struct {
	Path []archive.Step
	End  wal.LSN // of the last segment, or of the valid part of a partial one
	// Gap is the name of the first segment that can't be had although the archive goes on; empty: none.
	Gap string
	// Conflict: it is archived with several contents, and nobody has recorded which one holds. Else it is missing.
	Conflict bool
}

// Contents is what a plan wants to know of a backup's manifest.
type Contents struct {
	Prepared []uint32 // transactions that were prepared when the backup was taken: the names of the files in pg_twophase
	Fetch    int64    // bytes to read from packs
	Write    int64    // bytes to write, less what stays a hole in a file
	Missing  []string // packs that are not there, or too short
	Config   configPlaces
}

// Place is what is found under a path.
type Place struct {
	Exists   bool
	IsDir    bool
	Empty    bool   // no entry but lost+found
	DataDir  bool   // it is a server's data directory (PG_VERSION)
	SystemID uint64 // of that; 0: not known
	PID      int    // of a server that works in it; 0: none
	// Links are where the links in pg_tblspc lead, WALLink where a linked pg_wal does.
	Links   []string
	WALLink string
	// Journal is that of a restore that began here and did not end.
	Journal *Journal
	// Ran: that restore had come so far that a server could start, and one has.
	Ran bool
	// Marker is that of a restore that came to its end here, and Stage how far its server came.
	Marker *Marker
	Stage  Stage
	// UsedBy is a running server's data directory that this path belongs to: its own, or that of a tablespace or of its
	// WAL; empty: none.
	UsedBy string
	Free   int64 // bytes free where it is, or would be
	// Compresses: the file system there may, so that more fits.
	Compresses bool
	Taken      int64 // bytes of what is there already
}
