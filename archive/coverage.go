package archive

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"pitr/internal/repo"
	"pitr/internal/wal"
)

// Coverage tells what of the cluster's WAL is archived. It is what one listing of the store showed;
// nothing in it changes afterwards. Its size depends on the number of gaps, not of segments.
type Coverage struct {
	SegSize   int64
	Timelines map[wal.Timeline]*TimelineRuns
	// Histories are those that are archived. Timeline 1 has none.
	Histories map[wal.Timeline]wal.History
	// Conflicts, in the order of their names: contents under one name that nobody has chosen from,
	// and contents that were refused because another one lies under the name. The segments of the
	// first kind are in no run.
	Conflicts []Conflict
}

// TimelineRuns tells what is archived of one timeline.
type TimelineRuns struct {
	// Runs are the segments that can be fetched.
	Runs Runs
	// Pruned are segments that were removed because no backup needed them: no gaps.
	Pruned Runs
	// Partials are the beginnings of segments, by segment number: what each one's longest content
	// reaches to.
	Partials map[uint64]wal.LSN
	// Labels counts backup history files.
	Labels int
	// Stored is the size of all the timeline's objects in bytes.
	Stored int64
	// Written is when, by the store's clock, the newest of its segments, whole or partial, was stored; zero: there is none.
	Written time.Time
	// any holds the numbers under which there is anything at all.
	any Runs
	// lost are the segments that were archived and can't be fetched: nobody has chosen between their contents, or the one
	// that was chosen is gone.
	lost Runs
}

// Conflict is a name with several contents.
type Conflict struct {
	Name     string        `json:"name"`
	Archived []repo.Digest `json:"archived"` // under the name
	Aside    []repo.Digest `json:"aside"`    // refused
}

// PartialRun is the beginning of segment number No, up to End.
type PartialRun struct {
	No  uint64
	End wal.LSN
}

// PartialsInOrder returns the partial segments, rising.
func (t *TimelineRuns) PartialsInOrder() []PartialRun {
	var out []PartialRun
	for _, no := range slices.Sorted(maps.Keys(t.Partials)) {
		out = append(out, PartialRun{no, t.Partials[no]})
	}
	return out
}

func (c *Coverage) timeline(tli wal.Timeline) *TimelineRuns {
	t := c.Timelines[tli]
	if t == nil {
		t = &TimelineRuns{Partials: make(map[uint64]wal.LSN)}
		c.Timelines[tli] = t
	}
	return t
}

// Coverage lists the archive and reads the timeline histories. A damaged history is an error
// (repo.ErrDamaged), since nothing could be said of what it leads to; one with several contents is
// an error only for who asks for it, see Coverage.History.
func (a *Archive) Coverage(ctx context.Context) (*Coverage, error) {
	return a.coverage(ctx, func(uint64, object) {})
}

// coverage tells place of each segment, by number, which object holds it, or the beginning of it where that is all there is.
func (a *Archive) coverage(ctx context.Context, place func(no uint64, o object)) (*Coverage, error) {
	c := &Coverage{
		SegSize:   a.segSize(),
		Timelines: make(map[wal.Timeline]*TimelineRuns),
		Histories: make(map[wal.Timeline]wal.History),
	}
	settled := make(map[string][]repo.Digest) // names with a record of which content holds
	var now contents                          // the name whose objects are being listed
	flush := func() error {
		if now.name == "" {
			return nil
		}
		if len(now.resolved) > 0 {
			settled[now.name] = now.resolved
		}
		err := a.cover(ctx, c, &now, place)
		now = contents{}
		return err
	}
	for o, err := range a.repo.List(ctx, repo.WALPrefix, "") {
		if err != nil {
			return nil, fmt.Errorf("list the archive: %w", err)
		}
		if tli, first, last, ok := repo.ParsePrunedKey(o.Key); ok {
			t := c.timeline(tli)
			t.Pruned = t.Pruned.with(Run{first, last})
			continue
		}
		w, ok := repo.ParseWALKey(o.Key)
		if !ok {
			continue
		}
		name := w.Name
		if segment, partial := wal.PartialBase(name); partial {
			name = segment
		}
		// A segment's backup history files stand between its contents and the record of a choice.
		if w.Kind == wal.BackupHistory {
			if w.Resolved {
				settled[w.Name] = append(settled[w.Name], w.Digest)
			} else if err := c.label(w, o.Size); err != nil {
				return nil, err
			}
			continue
		}
		if name != now.name {
			if err := flush(); err != nil {
				return nil, err
			}
			now.name = name
		}
		t := c.timeline(w.Timeline)
		t.Stored += o.Size
		if w.Kind != wal.TimelineHistory && o.Modified.After(t.Written) {
			t.Written = o.Modified
		}
		now.add(object{w, o.Key, o.Size})
	}
	if err := flush(); err != nil {
		return nil, err
	}
	if err := a.coverAside(ctx, c, settled); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *Coverage) label(w repo.WALObject, size int64) error {
	tli, no, _, err := wal.ParseBackupHistoryName(w.Name, c.SegSize)
	if err != nil {
		return fmt.Errorf("list the archive: %w", err)
	}
	t := c.timeline(tli)
	t.Labels++
	t.Stored += size
	t.any = t.any.with(Run{no, no})
	return nil
}

// cover takes in what lies under one name.
func (a *Archive) cover(ctx context.Context, c *Coverage, have *contents, place func(uint64, object)) error {
	o, err := have.choose()
	conflict := errors.Is(err, ErrConflict)
	if conflict {
		c.Conflicts = append(c.Conflicts, Conflict{Name: have.name, Archived: have.digests()})
	}
	switch wal.Classify(have.name) {
	case wal.TimelineHistory:
		if err != nil {
			return nil // History says so to whoever asks
		}
		data, err := a.readSmall(ctx, o)
		if err != nil {
			return fmt.Errorf("read the history of timeline %d: %w", o.Timeline, err)
		}
		h, err := wal.ParseHistory(o.Timeline, data)
		if err != nil {
			return a.repo.Damaged(o.key, "%v", err)
		}
		c.Histories[o.Timeline] = h
	case wal.Segment:
		tli, no, perr := wal.ParseSegmentName(have.name, c.SegSize)
		if perr != nil {
			return fmt.Errorf("list the archive: %w", perr)
		}
		t := c.timeline(tli)
		t.any.add(no)
		for _, p := range have.partial {
			t.Partials[no] = max(t.Partials[no], p.End)
		}
		switch {
		case err == nil:
			t.Runs.add(no)
			place(no, o)
		case conflict || errors.Is(err, repo.ErrDamaged):
			// A content that was chosen and is gone is missing like any other; Verify says more.
			t.lost.add(no)
		case !errors.Is(err, ErrNotArchived):
			return err
		default:
			if o, err := have.longest(); err == nil { // who reads others is told why they can't be
				place(no, o)
			}
		}
	}
	return nil
}

// coverAside adds the contents that were refused. A choice that was recorded settles them.
func (a *Archive) coverAside(ctx context.Context, c *Coverage, settled map[string][]repo.Digest) error {
	for o, err := range a.repo.List(ctx, repo.AsidePrefix, "") {
		if err != nil {
			return fmt.Errorf("list what was refused: %w", err)
		}
		name, d, ok := parseAsideKey(o.Key)
		if !ok || len(settled[name]) == 1 {
			continue
		}
		i := slices.IndexFunc(c.Conflicts, func(x Conflict) bool { return x.Name == name })
		if i < 0 {
			i = len(c.Conflicts)
			c.Conflicts = append(c.Conflicts, Conflict{Name: name})
			have, err := a.list(ctx, name)
			if err != nil {
				return err
			}
			c.Conflicts[i].Archived = have.digests()
		}
		c.Conflicts[i].Aside = append(c.Conflicts[i].Aside, d)
	}
	slices.SortFunc(c.Conflicts, func(x, y Conflict) int { return strings.Compare(x.Name, y.Name) })
	return nil
}

// TimelinesInOrder returns the timelines of which anything is archived, rising.
func (c *Coverage) TimelinesInOrder() []wal.Timeline {
	return slices.Sorted(maps.Keys(c.Timelines))
}

// History returns the history of a timeline. That of timeline 1 is empty; of another one it must be
// archived: ErrNotArchived, ErrConflict.
func (c *Coverage) History(tli wal.Timeline) (wal.History, error) {
	if tli == 1 {
		return wal.History{Timeline: 1}, nil
	}
	if h, ok := c.Histories[tli]; ok {
		return h, nil
	}
	for _, x := range c.Conflicts {
		if x.Name == wal.HistoryName(tli) {
			return wal.History{}, (&ConflictError{Name: x.Name, Archived: x.Archived}).withHint()
		}
	}
	return wal.History{}, fmt.Errorf("history of timeline %d: %w", tli, ErrNotArchived)
}

// Conflicting reports whether nobody has chosen between contents of the segment.
func (c *Coverage) Conflicting(tli wal.Timeline, no uint64) bool {
	name := wal.SegmentName(tli, no, c.SegSize)
	return slices.ContainsFunc(c.Conflicts, func(x Conflict) bool { return x.Name == name && len(x.Archived) > 1 })
}
