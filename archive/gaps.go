package archive

import (
	"slices"
	"strings"

	"pitr/internal/wal"
)

// Gap is a stretch of WAL that is missing between archived WAL.
type Gap struct {
	Timeline wal.Timeline `json:"timeline"`
	// First and Last are the names of the first and the last missing segment.
	First string `json:"first"`
	Last  string `json:"last"`
	// From is the position of the first missing byte, To that behind the last.
	From wal.LSN `json:"from_lsn"`
	To   wal.LSN `json:"to_lsn"`
}

// Gaps returns what is missing: on the way along each timeline's history, from the oldest archived
// segment of that way to the newest one of the timeline, whole or partial. What is older than that, what retention
// removed, and conflicts are no gaps. A timeline whose history is not archived is looked at by
// itself.
func (c *Coverage) Gaps() []Gap {
	found := make(map[wal.Timeline]Runs)
	for tli, t := range c.Timelines {
		end := t.end(c.SegSize)
		h, err := c.History(tli)
		if err != nil {
			h = wal.History{Timeline: tli}
		}
		begun := false
		for _, w := range c.way(h, end) {
			have := c.Timelines[w.tli]
			if have == nil {
				have = &TimelineRuns{}
			}
			if !begun {
				// What comes before anything archived is not missing.
				i := have.Runs.from(w.First)
				if i == len(have.Runs) || have.Runs[i].First > w.Last {
					continue
				}
				w.First, begun = max(w.First, have.Runs[i].First), true
			}
			for _, m := range have.Runs.missing(w.Run) {
				for _, m := range have.Pruned.missing(m) {
					found[w.tli] = found[w.tli].with(m)
				}
			}
		}
	}
	var out []Gap
	for _, tli := range c.TimelinesInOrder() {
		runs := found[tli]
		for _, x := range c.Conflicts {
			if t, no, err := wal.ParseSegmentName(x.Name, c.SegSize); err == nil && t == tli && len(x.Archived) > 1 {
				runs = without(runs, no)
			}
		}
		for _, r := range runs {
			out = append(out, c.gap(tli, r))
		}
	}
	// A timeline of which nothing is archived can have a gap, too.
	for tli, runs := range found {
		if c.Timelines[tli] == nil {
			for _, r := range runs {
				out = append(out, c.gap(tli, r))
			}
		}
	}
	slices.SortFunc(out, func(x, y Gap) int { return strings.Compare(x.First, y.First) })
	return out
}

// end is where what must be there as whole segments ends: behind the last one that was archived, or
// before the last partial one.
func (t *TimelineRuns) end(segSize int64) wal.LSN {
	end := t.wholeEnd(segSize)
	for no := range t.Partials {
		end = max(end, wal.SegmentStart(no, segSize))
	}
	return end
}

func (c *Coverage) gap(tli wal.Timeline, r Run) Gap {
	return Gap{
		Timeline: tli,
		First:    wal.SegmentName(tli, r.First, c.SegSize), Last: wal.SegmentName(tli, r.Last, c.SegSize),
		From: wal.SegmentStart(r.First, c.SegSize), To: wal.SegmentStart(r.Last+1, c.SegSize),
	}
}

// without takes one number out of a set.
func without(s Runs, no uint64) Runs {
	var out Runs
	for _, r := range s {
		if no < r.First || no > r.Last {
			out = append(out, r)
			continue
		}
		if r.First < no {
			out = append(out, Run{r.First, no - 1})
		}
		if no < r.Last {
			out = append(out, Run{no + 1, r.Last})
		}
	}
	return out
}

// stretch is a part of a way along a history: segments of one timeline.
type stretch struct {
	tli wal.Timeline
	Run
}

// way returns the segments that replay along the history takes, from the first one of the cluster
// to the one that holds the byte before to. A segment in which timelines meet is taken from the
// newest of them that has a part in it before to. (wal.History.Owner says the same of bytes.)
func (c *Coverage) way(h wal.History, to wal.LSN) []stretch {
	if to == 0 {
		return nil
	}
	var out []stretch
	tli, last := h.Timeline, wal.SegmentOf(to-1, c.SegSize)
	for i := len(h.Switches) - 1; i >= 0; i-- {
		begin := h.Switches[i].At
		fork := wal.SegmentOf(begin, c.SegSize) // the first segment of tli
		if begin < to && fork <= last {
			out = append(out, stretch{tli, Run{fork, last}})
			if fork == 0 {
				slices.Reverse(out)
				return out
			}
			last = fork - 1
		}
		tli = h.Switches[i].Timeline
	}
	out = append(out, stretch{tli, Run{0, last}})
	slices.Reverse(out)
	return out
}
