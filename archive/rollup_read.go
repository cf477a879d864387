package archive

import (
	"context"
	"errors"
	"iter"
	"slices"

	"pitr/internal/repo"
	"pitr/internal/wal"
	"pitr/storage"
)

// wanted is an object whose index is to be read, unless the brief one does.
type wanted struct {
	object
	brief *wal.Index
}

// briefly gives the objects of a path, which are in order, and for those whose roll-up holds an index that is
// enough, that index. The listing alone says which objects there are. Brief indexes leave nothing
// out that lies before from and nothing that could not be told from the pieces around: the first
// segment always is to be read.
func (a *Archive) briefly(ctx context.Context, path iter.Seq2[object, error], from wal.LSN, enough func(*wal.Index) bool) iter.Seq2[wanted, error] {
	return func(yield func(wanted, error) bool) {
		var s shelf
		var before object
		for o, err := range path {
			w := wanted{object: o}
			if err == nil && enough != nil && before.key != "" {
				if o.Timeline != s.timeline {
					s = a.openShelf(ctx, o.Timeline)
				}
				if ix := a.lookUp(ctx, &s, o, before); ix != nil && ix.Start >= from && (!ix.Head.Joined || ix.Start-wal.LSN(ix.SegSize) >= from) && enough(ix) {
					w.brief = ix
				}
			}
			if !yield(w, err) || err != nil {
				return
			}
			before = o
		}
	}
}

// A shelf holds the roll-ups of a timeline of which one at a time is open.
type shelf struct {
	timeline wal.Timeline
	names    []rollUpName
	open     *rollUp
	openName rollUpName
}

// openShelf lists the roll-ups of a timeline. Where that fails there are none: reading goes on
// without them.
func (a *Archive) openShelf(ctx context.Context, tli wal.Timeline) shelf {
	names, err := a.listRollUps(ctx, repo.RollUpDir(tli))
	if err != nil {
		a.o.Log.Warn("the rolled-up WAL indexes can't be listed, so that the segments' own are read", "timeline", tli, "error", err)
		return shelf{timeline: tli}
	}
	return shelf{timeline: tli, names: names}
}

// lookUp finds the brief index of a segment's object; nil where no roll-up has it.
func (a *Archive) lookUp(ctx context.Context, s *shelf, o, before object) *wal.Index {
	if o.Kind != wal.Segment {
		return nil
	}
	_, no, err := wal.ParseSegmentName(o.Name, a.segSize())
	if err != nil {
		return nil
	}
	var digest repo.Digest // of the content in front, if it is of this timeline
	if before.Kind == wal.Segment && before.Timeline == o.Timeline {
		digest = before.Digest
	}
	for {
		if !a.pick(ctx, s, no) {
			return nil
		}
		ix, err := s.open.index(no, o.Digest, digest, a.repo.SystemID(), a.segSize())
		if err == nil {
			return ix
		}
		a.useless(s.openName, err)
		s.drop()
	}
}

// pick opens the roll-up for a segment number, the one that reaches farthest, and passes over what
// can't be read.
func (a *Archive) pick(ctx context.Context, s *shelf, no uint64) bool {
	for s.open == nil || no < s.openName.first || no > s.openName.last {
		best := -1
		for i, n := range s.names {
			if n.first > no {
				break
			}
			if no <= n.last && (best < 0 || n.last > s.names[best].last) {
				best = i
			}
		}
		if best < 0 {
			return false
		}
		s.openName = s.names[best]
		var err error
		if s.open, err = a.readRollUp(ctx, s.openName); err != nil {
			a.useless(s.openName, err)
			s.drop()
		}
	}
	return true
}

// drop forgets the open one.
func (s *shelf) drop() {
	s.names = slices.DeleteFunc(s.names, func(n rollUpName) bool { return n.key == s.openName.key })
	s.open = nil
}

// useless tells of a roll-up that is passed over. One that is gone was replaced or pruned meanwhile.
func (a *Archive) useless(n rollUpName, err error) {
	if errors.Is(err, storage.ErrNotFound) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return
	}
	a.o.Log.Warn("rolled-up WAL indexes can't be used, so that the segments' own are read", "object", a.repo.Where(n.key), "error", err)
}
