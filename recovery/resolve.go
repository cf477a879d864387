package recovery

import (
	"fmt"
	"iter"
	"slices"
	"time"

	"pitr/archive"
	"pitr/internal/wal"
)

// Stop is a record at which recovery ends, the way the server is told: recovery_target_lsn and
// recovery_target_inclusive.
//
// The server reads the record in both cases, so that all of it has to be there.
type Stop struct {
	LSN       wal.LSN `json:"lsn"`       // where the record starts
	End       wal.LSN `json:"end"`       // where the next one is looked for
	Inclusive bool    `json:"inclusive"` // the record is replayed
}

// covers tells whether the record that starts at lsn is replayed.
func (s Stop) covers(lsn wal.LSN) bool { return lsn < s.LSN || s.Inclusive && lsn == s.LSN }

// Moment is the end of a transaction, or another record that tells the time.
type Moment struct {
	LSN  wal.LSN   `json:"lsn"` // start of its record
	Time time.Time `json:"time"`
	XID  uint32    `json:"xid,omitempty"` // 0: no transaction
	Kind string    `json:"kind"`          // COMMIT, ABORT, …, CHECKPOINT, RESTORE_POINT, …
}

func (m Moment) String() string {
	if m.XID == 0 {
		return fmt.Sprintf("%s (%s at %s)", formatTime(m.Time), m.Kind, m.LSN)
	}
	return fmt.Sprintf("%s (%s of transaction %d at %s)", formatTime(m.Time), m.Kind, m.XID, m.LSN)
}

// moment tells what a fact says of the time, and whether it ends a transaction.
func moment(f archive.Fact) (m Moment, at wal.Timestamp, ends, ok bool) {
	m.LSN = f.Start
	switch x := f.What.(type) {
	case *wal.Txn:
		m.XID, m.Kind, at, ends = x.XID, x.Kind.String(), x.Time, true
	case *wal.Prepared:
		m.XID, m.Kind, at = x.XID, "PREPARE", x.Time
	case *wal.RestorePoint:
		m.Kind, at = "RESTORE_POINT", x.Time
	case *wal.CheckpointRecord:
		// The moment at which the checkpoint began, cut to the second: never later than the record.
		m.Kind, at = "CHECKPOINT", wal.TimestampOf(x.Time)
	case *wal.EndOfRecovery:
		m.Kind, at = "END_OF_RECOVERY", x.Time
	default:
		return Moment{}, 0, false, false
	}
	m.Time = at.Time()
	return m, at, ends, true
}

// Facts is what WAL tells, in the order of its records: what archive.Archive.Facts and Skim give.
type Facts = iter.Seq2[archive.Fact, error]

// finding is what a search through the WAL has come to.
type finding struct {
	found bool
	stop  Stop
	// atEnd: every record of what was searched is to be replayed. stop is not set then.
	atEnd bool
	what  string   // the record, for people
	also  []Moment // later records that answer the same name or number
	// reached: the time asked for is not before all that was searched. Only of Time.
	reached bool
	// subOf is the transaction that the one asked for was a part of, and where that ended.
	subOf *Moment
}

// search looks for the record at which the server would stop, by the server's own rule. Only targets that are looked for
// record by record come here: Time, XID, Name.
func search(t Target, facts Facts) (finding, error) {
	facts = readable(facts)
	switch t.Kind {
	case Time:
		return searchTime(t, facts)
	case XID:
		return searchXID(t, facts)
	default:
		return searchName(t, facts)
	}
}

// searchTime finds the first end of a transaction after t. Times do not rise with positions: a transaction notes its time
// before it writes its record. So the first record counts, as it does for the server, not the one with the least time.
//
// Where no transaction ended after t, the server would fail. Whatever else was logged with a later time proves that
// nothing is missing, and then recovery stops before it; if transactions of earlier times still follow it, recovery
// goes on to the end of the WAL.
func searchTime(t Target, facts Facts) (finding, error) {
	var r finding
	var proof *Moment // the first later moment since the last end of a transaction
	var proofEnd wal.LSN
	var proofOn wal.Timeline
	proven := false
	for f, err := range facts {
		if err != nil {
			return r, err
		}
		if _, skimmed := f.What.(*archive.Skimmed); skimmed {
			proof = nil // transactions ended, none of them after t
			r.reached = true
			continue
		}
		m, at, ends, ok := moment(f)
		if !ok {
			continue
		}
		switch {
		case ends && t.past(at):
			r.found, r.stop = true, Stop{LSN: m.LSN, End: f.End}
			r.what = "before " + describe(f)
			return r, nil
		case ends:
			proof = nil
			r.reached = true
		case t.past(at):
			proven = true
			if proof == nil {
				proof, proofEnd, proofOn = &m, f.End, f.Timeline
			}
		default:
			// What a checkpoint says is cut to the second.
			_, cut := f.What.(*wal.CheckpointRecord)
			r.reached = r.reached || !cut || !t.past(at+wal.Timestamp(time.Second/time.Microsecond))
		}
	}
	switch {
	case proof != nil:
		r.found, r.stop = true, Stop{LSN: proof.LSN, End: proofEnd}
		r.what = fmt.Sprintf("before the %s at %s, logged at %s: no transaction ended between the target and that on the history of timeline %d",
			proof.Kind, proof.LSN, formatTime(proof.Time), proofOn)
	case proven:
		r.found, r.atEnd = true, true
		r.what = "at the end of the archive, which goes past the target: no transaction in it ended after that"
	}
	return r, nil
}

// searchXID finds the record that ends the transaction. The server compares the number of the top-level transaction only.
func searchXID(t Target, facts Facts) (finding, error) {
	var r finding
	for f, err := range facts {
		if err != nil {
			return r, err
		}
		m, _, ends, ok := moment(f)
		if !ok {
			continue
		}
		if !ends {
			continue
		}
		switch txn := f.What.(*wal.Txn); {
		case txn.XID == t.XID && r.found:
			r.also = append(r.also, m)
		case txn.XID == t.XID:
			r.found, r.stop = true, Stop{m.LSN, f.End, !t.Exclusive}
			r.what = sideOf(r.stop) + describe(f)
		case r.subOf == nil && txn.Detail != nil && slices.Contains(txn.Detail.Subxids, t.XID):
			r.subOf = &m
		}
	}
	return r, nil
}

// searchName finds the first restore point of the name; the server replays it.
func searchName(t Target, facts Facts) (finding, error) {
	var r finding
	for f, err := range facts {
		if err != nil {
			return r, err
		}
		m, _, _, ok := moment(f)
		if !ok {
			continue
		}
		switch point, is := f.What.(*wal.RestorePoint); {
		case !is || point.Name != t.Name:
		case r.found:
			r.also = append(r.also, m)
		default:
			r.found, r.stop = true, Stop{m.LSN, f.End, true}
			r.what = sideOf(r.stop) + describe(f)
		}
	}
	return r, nil
}

func sideOf(s Stop) string {
	if s.Inclusive {
		return "after "
	}
	return "before "
}

// describe names a record for people: "the COMMIT of transaction 742 at 0/3000060 (2026-11-22T14:03:05Z)".
func describe(f archive.Fact) string {
	m, _, _, _ := moment(f)
	if x, ok := f.What.(*wal.RestorePoint); ok {
		return fmt.Sprintf("the restore point %q at %s (%s)", x.Name, m.LSN, formatTime(m.Time))
	}
	if m.XID != 0 {
		return fmt.Sprintf("the %s of transaction %d at %s (%s)", m.Kind, m.XID, m.LSN, formatTime(m.Time))
	}
	return fmt.Sprintf("the %s at %s (%s)", m.Kind, m.LSN, formatTime(m.Time))
}

// InDoubt is a prepared transaction that is neither committed nor rolled back at the target.
type InDoubt struct {
	XID      uint32    `json:"xid"`
	GID      string    `json:"gid,omitempty"` // empty: it was prepared before the backup, whose files alone name it
	Prepared time.Time `json:"prepared,omitzero"`
}

// NewTablespace is one whose creation is replayed: the server then makes its directory where the WAL says.
type NewTablespace struct {
	OID  uint32  `json:"oid"`
	Path string  `json:"path"`
	LSN  wal.LSN `json:"lsn"`
}

// survey is what replay up to the stop brings.
type survey struct {
	last       *Moment // the last transaction whose end is replayed
	lastCommit *Moment // the last one of them that was committed
	ended      int64   // how many
	noted      *Moment // the last one whose time the server notes, see Plan.noted
	// lastIn, commitIn and notedIn are where last, lastCommit and noted lie if they were skimmed: see fill.
	lastIn, commitIn, notedIn archive.Step

	inDoubt     []InDoubt
	tablespaces []NewTablespace
	parameters  []*wal.Parameters
	minimal     wal.LSN   // the first sign of wal_level = minimal, 0: none
	broken      *wal.Stop // the records end here, before the stop; nil: they don't
}

// surveyUntil goes through the WAL up to and with what stop covers. prepared holds the numbers of the transactions that the
// backup itself has prepared.
func surveyUntil(stop Stop, prepared []uint32, facts Facts) (survey, error) {
	var s survey
	for _, xid := range prepared {
		s.inDoubt = append(s.inDoubt, InDoubt{XID: xid})
	}
	resolved := func(xid uint32) {
		s.inDoubt = slices.DeleteFunc(s.inDoubt, func(d InDoubt) bool { return d.XID == xid })
	}
	for f, err := range facts {
		if err != nil {
			return s, err
		}
		if !stop.covers(f.Start) {
			break
		}
		if m, _, ends, ok := moment(f); ok {
			if ends {
				s.ended++
				s.last, s.lastIn = &m, archive.Step{}
				if m.LSN != stop.LSN {
					s.noted, s.notedIn = &m, archive.Step{}
				}
			}
		}
		switch x := f.What.(type) {
		case *wal.Txn:
			if x.Kind.Committed() {
				s.lastCommit, s.commitIn = s.last, archive.Step{}
			}
			if x.Kind == wal.CommitPrepared || x.Kind == wal.AbortPrepared {
				resolved(x.XID)
			}
		case *archive.Skimmed:
			s.ended += int64(x.Commits + x.Aborts)
			s.lastIn, s.notedIn = x.Step, x.Step
			if x.Commits > 0 {
				s.commitIn = x.Step
			}
		case *wal.Prepared:
			resolved(x.XID) // the backup may hold its file already
			s.inDoubt = append(s.inDoubt, InDoubt{XID: x.XID, GID: x.GID, Prepared: x.Time.Time()})
		case *wal.Tablespace:
			// Dropping it later changes nothing: the directory is needed, and written to, when the creation is replayed.
			if !x.Dropped {
				s.tablespaces = append(s.tablespaces, NewTablespace{x.OID, x.Path, x.LSN})
			}
		case *wal.Parameters:
			s.parameters = append(s.parameters, x)
			if x.Level == wal.LevelMinimal && s.minimal == 0 {
				s.minimal = x.Start
			}
		case *wal.Stop:
			// The record to stop at lies behind it: WAL was lost in between.
			s.broken = x
			return s, nil
		}
	}
	return s, nil
}

// readable ends the facts where the records end before a segment does: the server reads nothing behind that either.
func readable(facts Facts) Facts {
	return func(yield func(archive.Fact, error) bool) {
		for f, err := range facts {
			if _, end := f.What.(*wal.Stop); end && err == nil {
				return
			}
			if !yield(f, err) {
				return
			}
		}
	}
}

// before ends the facts where a position is reached.
func before(at wal.LSN, facts Facts) Facts {
	return func(yield func(archive.Fact, error) bool) {
		for f, err := range facts {
			if err == nil && f.Start >= at || !yield(f, err) {
				return
			}
		}
	}
}
