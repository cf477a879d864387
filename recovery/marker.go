package recovery

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"pitr/archive"
	"pitr/internal/durable"
	"pitr/internal/hint"
	"pitr/internal/repo"
	"pitr/internal/wal"
)

// Two documents (repo.MarshalDocument) tell of a restore in the directory it went to. Backups leave both out.
const (
	// MarkerFile stays in a restored data directory: what it was restored from, what WAL it is promised, and whether it
	// may archive.
	MarkerFile = "pitr.restored"
	// JournalFile is there as long as a restore has not ended.
	JournalFile = "pitr.restore"
)

const markerFormat = 1

// Marker is what MarkerFile holds.
type Marker struct {
	Format   int    `json:"format"`
	SystemID uint64 `json:"system_identifier,string"`
	// Archive says whether `wal push` works for this directory: a restored copy archives nothing until it is adopted.
	Archive bool   `json:"archive"`
	Backup  string `json:"backup"`
	Target  string `json:"target"`
	// Call tells restores apart that were asked for something else (Plan.call).
	Call string `json:"call"`
	Stop Stop   `json:"stop"`
	// Timeline is the one recovered along, SegSize the size of a segment in bytes.
	Timeline wal.Timeline   `json:"timeline"`
	SegSize  int64          `json:"wal_segment_size"`
	Path     []archive.Step `json:"path"`
	// Standby: it follows on, so that the path is only where it begins.
	Standby bool      `json:"standby"`
	Created time.Time `json:"created"`
}

// Promise is what a marker says of a file that the server asks for.
type Promise int

const (
	// Ordinary: the marker says nothing of it; the archive has it or has not.
	Ordinary Promise = iota
	// Promised: it was there when the restore began. If it can't be had, recovery must stop, not end.
	Promised
	// PromisedPartial: likewise, its beginning.
	PromisedPartial
	// Beyond: recovery ends before it; the answer is that it does not exist.
	Beyond
)

// Of tells what is promised of the file called name. Histories are never promised nor denied: the server looks for those
// of timelines yet to come.
func (m *Marker) Of(name string) Promise {
	if m.Standby || wal.Classify(name) != wal.Segment {
		return Ordinary
	}
	tli, no, err := wal.ParseSegmentName(name, m.SegSize)
	if err != nil {
		return Ordinary
	}
	for _, s := range m.Path {
		if s.Timeline == tli && s.First <= no && no <= s.Last {
			if s.Partial {
				return PromisedPartial
			}
			return Promised
		}
	}
	return Beyond
}

// MayArchive is nil if the directory may archive, else the refusal.
func (m *Marker) MayArchive(dataDir string) error {
	if m.Archive {
		return nil
	}
	return hint.Wrap(fmt.Errorf("%s was restored from backup %s and archives nothing until it is adopted", dataDir, m.Backup),
		"a restored copy must not write into its parent's archive; restore with --archive on what is to replace the parent")
}

// ReadMarker reads the marker of a data directory; nil where there is none. A marker that can't be read is an error: then
// nothing may be archived from there.
func ReadMarker(dataDir string) (*Marker, error) {
	m := new(Marker)
	if ok, err := readDocument(filepath.Join(dataDir, MarkerFile), m, &m.Format); !ok {
		return nil, err
	}
	return m, nil
}

// Journal is what JournalFile holds.
type Journal struct {
	Format int `json:"format"`
	// SystemID tells which cluster is restored while no pg_control does.
	SystemID uint64    `json:"system_identifier,string"`
	Backup   string    `json:"backup"`
	Target   string    `json:"target"`
	Plan     string    `json:"plan"` // digest of what decides where every byte goes
	Phase    string    `json:"phase"`
	Started  time.Time `json:"started"`
}

// The phases of a restore. In the last one everything but the name of pg_control is in place.
const (
	phaseClear  = "clear"
	phaseCopy   = "copy"
	phaseFinish = "finish"
)

// ReadJournal reads the journal of a data directory; nil where there is none.
func ReadJournal(dataDir string) (*Journal, error) {
	j := new(Journal)
	if ok, err := readDocument(filepath.Join(dataDir, JournalFile), j, &j.Format); !ok {
		return nil, err
	}
	return j, nil
}

// same tells whether a plan is that of the journal.
func (j *Journal) same(p *Plan) bool { return j.Plan == p.fingerprint() }

// fingerprint tells plans apart that would put something else into the directory. What only the settings say, which are
// written anew, does not count, nor what is found there.
func (p *Plan) fingerprint() string {
	text := fmt.Sprintf("%s %d %q %v", p.Backup.ID, p.Backup.SystemID, p.Destination.Dir, p.Destination.InPlace)
	for _, t := range p.Destination.Tablespaces {
		text += fmt.Sprintf(" %q=%q", t.Old, t.New)
	}
	return repo.DigestOf([]byte(text)).String()
}

// readDocument reads a document whose format must be the known one; false without error if it does not exist.
func readDocument(path string, v any, format *int) (bool, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		err = repo.UnmarshalDocument(data, v)
	}
	if err == nil && *format != markerFormat {
		err = fmt.Errorf("its format is %d, this pitr knows %d", *format, markerFormat)
	}
	if err != nil {
		return false, fmt.Errorf("read %s: %w", path, err)
	}
	return true, nil
}

// writeDocument writes one durably, for the account that the directory is given to.
func (o *owner) writeDocument(path string, v any) error {
	data, err := repo.MarshalDocument(v)
	if err != nil {
		return err
	}
	return o.writeFile(path, data, 0o600)
}

// writeFile writes a file durably: whoever reads it sees all of it or what was there before.
func (o *owner) writeFile(path string, data []byte, mode fs.FileMode) error {
	f, err := durable.Create(path, mode)
	if err != nil {
		return err
	}
	defer f.Abort()
	if err := o.take(f.File); err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Commit()
}
