package recovery

import (
	"slices"

	"pitr/archive"
	"pitr/internal/wal"
)

// What a plan looks for lies in a few segments. Of the others it is enough to know what their brief indexes tell: how many
// transactions ended, between which times and numbers. The functions here say which the others are, and read what turns out
// to be needed of them after all, so that a plan is the same whether or not the indexes are rolled up.

// enough tells whether a segment's brief index shows that a search for the target does not end in it.
func (t Target) enough(ix *wal.Index) bool {
	switch t.Kind {
	case Time:
		if ix.HasTime() && t.past(ix.MaxTime) {
			return false
		}
		// Of what proves that the target passed, the order among the ends of transactions counts.
		p := archive.Piece{Index: ix}
		return !slices.ContainsFunc(p.Facts(), func(f archive.Fact) bool {
			_, at, _, ok := moment(f)
			return ok && t.past(at)
		})
	case XID:
		// Numbers are compared on their circle.
		return ix.MinXID == 0 || int32(t.XID-ix.MinXID) < 0 || int32(ix.MaxXID-t.XID) < 0
	default:
		return true // restore points are in every brief index
	}
}

// past tells whether a transaction that ended at that time is not replayed any more.
func (t Target) past(at wal.Timestamp) bool {
	want := wal.TimestampOf(t.Time)
	return at > want || t.Exclusive && at == want
}

// enoughBefore tells of segments that lie before the one of a position that their brief indexes do for a survey up to there.
func enoughBefore(stop wal.LSN, segSize int64) func(*wal.Index) bool {
	no := wal.SegmentOf(stop, segSize)
	return func(ix *wal.Index) bool { return wal.SegmentOf(ix.Start, segSize) < no }
}

func always(*wal.Index) bool { return true }

// lastEnds gives the last end of a transaction, and the last commit, of segments that were skimmed.
func (v View) lastEnds(in archive.Step, from wal.LSN) (end, commit *Moment, err error) {
	for f, err := range v.Facts([]archive.Step{in}, from, nil) {
		if err != nil {
			return nil, nil, err
		}
		if m, _, ends, ok := moment(f); ok && ends {
			end = &m
			if f.What.(*wal.Txn).Kind.Committed() {
				commit = &m
			}
		}
	}
	return end, commit, nil
}

// fill sets the moments that the survey found to lie in segments that were skimmed.
func (s *survey) fill(v View, from wal.LSN) error {
	known := make(map[archive.Step][2]*Moment)
	for _, x := range []struct {
		to *(*Moment)
		in archive.Step
		n  int
	}{{&s.last, s.lastIn, 0}, {&s.noted, s.notedIn, 0}, {&s.lastCommit, s.commitIn, 1}} {
		if x.in == (archive.Step{}) {
			continue
		}
		if _, ok := known[x.in]; !ok {
			end, commit, err := v.lastEnds(x.in, from)
			if err != nil {
				return err
			}
			known[x.in] = [2]*Moment{end, commit}
		}
		*x.to = known[x.in][x.n]
	}
	return nil
}

// latest gives the latest moment that the WAL of the segments tells; of several of that time the last.
func (v View) latest(path []archive.Step, from wal.LSN) (Moment, error) {
	var last Moment
	var in archive.Step // where it lies, if it was skimmed
	look := func(facts Facts) error {
		for f, err := range facts {
			if err != nil {
				return err
			}
			if x, skimmed := f.What.(*archive.Skimmed); skimmed {
				if at := x.MaxTime.Time(); !at.Before(last.Time) {
					last, in = Moment{Time: at}, x.Step
				}
			} else if m, _, _, ok := moment(f); ok && !m.Time.Before(last.Time) {
				last, in = m, archive.Step{}
			}
		}
		return nil
	}
	if err := look(v.Facts(path, from, always)); err != nil || in == (archive.Step{}) {
		return last, err
	}
	err := look(v.Facts([]archive.Step{in}, from, nil))
	return last, err
}
