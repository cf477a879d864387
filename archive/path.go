package archive

import (
	"fmt"

	"pitr/internal/wal"
)

// Step is a stretch of archived segments, both ends included, that recovery fetches one after the
// other. A partial step is one segment, of which the beginning is archived.
type Step struct {
	Timeline    wal.Timeline `json:"timeline"`
	First, Last uint64
	Partial     bool `json:"partial,omitempty"`
}

// Missing says that a path can't be walked to its end. It is an error.
type Missing struct {
	Timeline wal.Timeline
	// Segment is the first one that is not there.
	Segment string
	// Reachable is the position up to which WAL is there.
	Reachable wal.LSN
	// Conflict: it has several contents and nobody has chosen.
	Conflict bool
}

func (m *Missing) Error() string {
	if m.Conflict {
		return fmt.Sprintf("WAL segment %s is archived with several contents and none is recorded as the right one; the WAL before it ends at %s", m.Segment, m.Reachable)
	}
	return fmt.Sprintf("WAL segment %s is not archived; the WAL before it ends at %s", m.Segment, m.Reachable)
}

// Path returns what recovery along the history fetches to replay the WAL from from (inclusive) to to
// (exclusive): of a segment in which timelines meet, the newest that has a part in it before to. A
// partial segment serves where what is archived of it reaches as far as is needed. If something is
// missing, the steps before it are returned with it.
func (c *Coverage) Path(h wal.History, from, to wal.LSN) ([]Step, *Missing) {
	if to <= from {
		return nil, nil
	}
	var steps []Step
	first := wal.SegmentOf(from, c.SegSize)
	for _, w := range c.way(h, to) {
		if w.Last < first {
			continue
		}
		next := max(w.First, first)
		have := c.Timelines[w.tli]
		if have == nil {
			return steps, c.missing(w.tli, next)
		}
		for next <= w.Last {
			i := have.Runs.from(next)
			if i < len(have.Runs) && have.Runs[i].First <= next {
				last := min(have.Runs[i].Last, w.Last)
				steps = append(steps, Step{Timeline: w.tli, First: next, Last: last})
				next = last + 1
				continue
			}
			if have.lost.Has(next) || have.Partials[next] < min(to, wal.SegmentStart(next+1, c.SegSize)) {
				return steps, c.missing(w.tli, next)
			}
			steps = append(steps, Step{Timeline: w.tli, First: next, Last: next, Partial: true})
			next++
		}
	}
	return steps, nil
}

func (c *Coverage) missing(tli wal.Timeline, no uint64) *Missing {
	m := &Missing{
		Timeline: tli, Segment: wal.SegmentName(tli, no, c.SegSize),
		Reachable: wal.SegmentStart(no, c.SegSize), Conflict: c.Conflicting(tli, no),
	}
	// The beginning of a segment with several contents is that of one of them.
	if t := c.Timelines[tli]; t != nil && !t.lost.Has(no) {
		m.Reachable = max(m.Reachable, t.Partials[no])
	}
	return m
}

// End returns the position up to which anything is archived along the history: the end of its
// newest segment, or of what is archived of a partial one. Zero where nothing is. A segment that
// can't be fetched, since nobody has chosen between its contents, counts: whether the way there is
// whole is for Path; where the records end, for the index of the last segment.
func (c *Coverage) End(h wal.History) wal.LSN {
	tli, limit := h.Timeline, ^wal.LSN(0)
	for i := len(h.Switches); i >= 0; i-- {
		begin := wal.LSN(0)
		if i > 0 {
			begin = h.Switches[i-1].At
		}
		if t := c.Timelines[tli]; t != nil && begin < limit {
			end := t.wholeEnd(c.SegSize)
			for _, p := range t.Partials {
				end = max(end, p)
			}
			if end > begin {
				return min(end, limit)
			}
		}
		limit = min(limit, begin)
		if i == 0 {
			break
		}
		// With limit at the youngest beginning so far, what an ancestor holds behind it is not ours.
		tli = h.Switches[i-1].Timeline
	}
	return 0
}

// wholeEnd is where the newest of the whole segments ends, whether or not it can be fetched.
func (t *TimelineRuns) wholeEnd(segSize int64) wal.LSN {
	end := wal.LSN(0)
	for _, runs := range []Runs{t.Runs, t.lost} {
		if n := len(runs); n > 0 {
			end = max(end, wal.SegmentStart(runs[n-1].Last+1, segSize))
		}
	}
	return end
}
