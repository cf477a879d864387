package archive

import (
	"context"
	"errors"
	"fmt"
	"time"

	"pitr/internal/repo"
	"pitr/internal/wal"
	"pitr/storage"
)

// Need is WAL that has to stay, for a backup.
type Need struct {
	// Timeline is that of the backup, From its start.
	Timeline wal.Timeline
	From     wal.LSN
	// To is the end of what is needed, on Timeline or its ancestors; 0 keeps everything that can be
	// replayed from From on, on every timeline that goes on from there.
	To wal.LSN
	// Why is printed with what is kept, for example "backup 20261122T214500Z-3fa9c1d2".
	Why string
}

// PruneItem is a stretch of a timeline's segments, with what belongs to them, that is kept or
// deleted.
type PruneItem struct {
	Delete      bool         `json:"delete"`
	Timeline    wal.Timeline `json:"timeline"`
	First, Last uint64       `json:"-"`
	// From and To are the names of the first and the last segment.
	From string `json:"first"`
	To   string `json:"last"`
	Why  string `json:"why"`
}

// PlanPrune decides which archived WAL can go, and why. It is pure; deleting is Prune's part.
// Timeline histories always stay. Without any need nothing is deleted: a cluster without a backup
// may be about to get its first one.
func PlanPrune(c *Coverage, needs []Need) []PruneItem {
	var out []PruneItem
	for _, tli := range c.TimelinesInOrder() {
		t := c.Timelines[tli]
		var last *PruneItem
		for _, r := range t.any {
			last = nil
			for no := r.First; ; {
				del, why, until := c.judge(tli, no, needs)
				until = min(until, r.Last)
				if last != nil && last.Delete == del && last.Why == why {
					last.Last = until
				} else {
					out = append(out, PruneItem{Delete: del, Timeline: tli, First: no, Last: until, Why: why})
					last = &out[len(out)-1]
				}
				if until == r.Last {
					break
				}
				no = until + 1
			}
		}
	}
	for i := range out {
		out[i].From = wal.SegmentName(out[i].Timeline, out[i].First, c.SegSize)
		out[i].To = wal.SegmentName(out[i].Timeline, out[i].Last, c.SegSize)
	}
	return out
}

// judge says what becomes of a segment and up to which number the same holds.
func (c *Coverage) judge(tli wal.Timeline, no uint64, needs []Need) (del bool, why string, until uint64) {
	const forever = ^uint64(0)
	if len(needs) == 0 {
		return false, "there is no backup yet", forever
	}
	h, err := c.History(tli)
	if err != nil {
		return false, fmt.Sprintf("the history of timeline %d is not known", tli), forever
	}
	until = forever
	for _, n := range needs {
		for _, keep := range c.needed(n, tli, h) {
			switch {
			case no < keep.First:
				until = min(until, keep.First-1)
			case no <= keep.Last:
				return false, "needed by " + n.Why, keep.Last
			}
		}
	}
	return true, "no backup needs it", until
}

// needed returns the segments of a timeline that a need keeps.
func (c *Coverage) needed(n Need, tli wal.Timeline, h wal.History) []Run {
	first := wal.SegmentOf(n.From, c.SegSize)
	if n.To != 0 {
		own, err := c.History(n.Timeline)
		if err != nil {
			// Where the backup's WAL came from is not known: anything in that range may be it.
			return []Run{{first, wal.SegmentOf(n.To-1, c.SegSize)}}
		}
		var out []Run
		for _, w := range c.way(own, n.To) {
			if w.tli == tli && w.Last >= first {
				out = append(out, Run{max(w.First, first), w.Last})
			}
		}
		return out
	}
	// Everything from From on that recovery can get to: the timeline itself, its descendants that
	// left it behind From, and the timelines in between, each from the segment in which it begins.
	if tli == n.Timeline {
		return []Run{{first, ^uint64(0)}}
	}
	if at, ok := h.SwitchPoint(n.Timeline); ok && at >= n.From && h.Owner(n.From) == n.Timeline {
		return []Run{{first, ^uint64(0)}}
	}
	// The backup's own way may begin on an ancestor, in the segment in which the timelines meet.
	if own, err := c.History(n.Timeline); err == nil && own.Ancestor(tli) && own.Owner(n.From) == tli {
		return []Run{{first, ^uint64(0)}}
	}
	return nil
}

// pruneRecord says that segments were removed on purpose.
type pruneRecord struct {
	Timeline wal.Timeline `json:"timeline"`
	First    string       `json:"first"`
	Last     string       `json:"last"`
	At       time.Time    `json:"at"`
}

// deleteBatch is how many objects one request deletes.
const deleteBatch = 500

// Prune deletes what the plan says: segments, partial ones, backup history files, records of
// choices, refused contents, and roll-ups of nothing else. What stays is whole at every moment: the deletion is recorded
// first, so that no gap is seen where nothing is needed, and goes from the oldest to the newest.
// After an error it can be repeated. It returns the number and the size of the objects that went.
func (a *Archive) Prune(ctx context.Context, plan []PruneItem) (objects int, bytes int64, err error) {
	for _, it := range plan {
		if !it.Delete {
			continue
		}
		n, b, err := a.prune(ctx, it)
		objects, bytes = objects+n, bytes+b
		if err != nil {
			return objects, bytes, fmt.Errorf("prune the WAL of timeline %d: %w", it.Timeline, err)
		}
	}
	return objects, bytes, nil
}

func (a *Archive) prune(ctx context.Context, it PruneItem) (objects int, bytes int64, err error) {
	if err := a.recordPruned(ctx, it); err != nil {
		return 0, 0, err
	}
	first, last := wal.SegmentName(it.Timeline, it.First, a.segSize()), wal.SegmentName(it.Timeline, it.Last, a.segSize())
	// What was refused goes first: with the segments gone, the next plan would not lead here again.
	for _, dir := range []string{repo.AsidePrefix, repo.TimelineDir(it.Timeline)} {
		var batch []string
		var size int64
		flush := func() error {
			if len(batch) == 0 {
				return nil
			}
			if err := a.repo.Delete(ctx, batch...); err != nil {
				return err
			}
			objects, bytes = objects+len(batch), bytes+size
			batch, size = nil, 0
			return nil
		}
		after := repo.AsidePrefix + first
		if dir != repo.AsidePrefix {
			after = repo.SegmentPrefix(first)
		}
		for o, err := range a.repo.List(ctx, dir, after) {
			if err != nil {
				return objects, bytes, err
			}
			name, ok := segmentOfKey(o.Key)
			if !ok {
				continue
			}
			if name > last {
				break
			}
			batch, size = append(batch, o.Key), size+o.Size
			if len(batch) == deleteBatch {
				if err := flush(); err != nil {
					return objects, bytes, err
				}
			}
		}
		if err := flush(); err != nil {
			return objects, bytes, err
		}
	}
	n, size, err := a.pruneRollUps(ctx, it)
	return objects + n, bytes + size, err
}

// segmentOfKey returns the name of the segment that an object belongs to.
func segmentOfKey(key string) (string, bool) {
	name, _, ok := parseAsideKey(key)
	if !ok {
		w, isWAL := repo.ParseWALKey(key)
		name, ok = w.Name, isWAL
	}
	if !ok || wal.Classify(name) == wal.TimelineHistory {
		return "", false
	}
	const segmentLen = 24
	return name[:segmentLen], true
}

// recordPruned stores that the segments go on purpose. Records that touch become one, so that their
// number does not grow with the years.
func (a *Archive) recordPruned(ctx context.Context, it PruneItem) error {
	r := Run{it.First, it.Last}
	var old []string
	for o, err := range a.repo.List(ctx, repo.WALPrefix+it.Timeline.String()+".pruned-", "") {
		if err != nil {
			return err
		}
		_, first, last, ok := repo.ParsePrunedKey(o.Key)
		switch {
		case !ok:
		case first <= r.First && r.Last <= last:
			return nil
		case first <= r.Last+1 && r.First <= last+1:
			r = Run{min(first, r.First), max(last, r.Last)}
			old = append(old, o.Key)
		}
	}
	doc := pruneRecord{
		Timeline: it.Timeline,
		First:    wal.SegmentName(it.Timeline, r.First, a.segSize()), Last: wal.SegmentName(it.Timeline, r.Last, a.segSize()),
		At: a.o.Now().UTC().Truncate(time.Second),
	}
	key := repo.PrunedKey(it.Timeline, r.First, r.Last)
	if err := a.repo.PutDocument(ctx, key, doc); err != nil && !errors.Is(err, storage.ErrExists) {
		return err
	}
	return a.repo.Delete(ctx, old...)
}
