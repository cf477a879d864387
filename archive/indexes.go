package archive

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"

	"pitr/internal/repo"
	"pitr/internal/wal"
)

// Piece is one segment of a path: its description, what its index tells, and what the record tells
// that began in an earlier segment of the path and ends in this one (in WAL order it comes before
// the index's own facts).
type Piece struct {
	Key string
	// Meta is nil where the index is a brief one.
	Meta     *Meta
	Index    *wal.Index
	Straddle wal.Straddle
}

// Indexes gives the pieces of a path, in order. Up to Options.Workers objects are read at once,
// ahead of the consumer. An index that is missing, or of a version that this pitr does not know, is
// made from the segment, and so is a record that the indexes don't hold. The first error ends it.
func (a *Archive) Indexes(ctx context.Context, path []Step) iter.Seq2[Piece, error] {
	return a.indexes(ctx, a.segments(ctx, path), 0, nil)
}

// indexes is Indexes of the path whose objects are given, but where the brief index of a segment is
// enough, that is given if it is rolled up: see Skim.
func (a *Archive) indexes(ctx context.Context, path iter.Seq2[object, error], from wal.LSN, enough func(*wal.Index) bool) iter.Seq2[Piece, error] {
	return func(yield func(Piece, error) bool) {
		var f follower
		for p, err := range a.readAhead(ctx, a.briefly(ctx, path, from, enough), a.index) {
			if err == nil {
				err = a.follow(ctx, &f, &p)
			}
			if !yield(p, err) || err != nil {
				return
			}
		}
	}
}

// A reading is an index on its way.
type reading struct {
	piece Piece
	err   error
	done  chan struct{}
}

// readAhead reads the indexes of objects with several workers and gives them in order.
func (a *Archive) readAhead(ctx context.Context, objects iter.Seq2[wanted, error],
	read func(context.Context, object) (*Meta, *wal.Index, error)) iter.Seq2[Piece, error] {
	return func(yield func(Piece, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		var workers sync.WaitGroup
		defer workers.Wait()
		defer cancel()

		// Each reading is in order from its place in the line on; its worker runs meanwhile.
		line := make(chan *reading, a.o.Workers-1)
		workers.Go(func() {
			defer close(line)
			for o, err := range objects {
				r := &reading{piece: Piece{Key: o.key, Index: o.brief}, err: err, done: make(chan struct{})}
				// Only what stands in the line, or is waited for, is read: so many as there are workers.
				select {
				case line <- r:
				case <-ctx.Done():
					return
				}
				if err != nil {
					close(r.done)
					return
				}
				if o.brief != nil {
					close(r.done)
					continue
				}
				workers.Go(func() {
					defer close(r.done)
					r.piece.Meta, r.piece.Index, r.err = read(ctx, o.object)
				})
			}
		})
		for r := range line {
			<-r.done
			if !yield(r.piece, r.err) || r.err != nil {
				return
			}
		}
		if err := ctx.Err(); err != nil {
			yield(Piece{}, err)
		}
	}
}

// index reads an object's index, or makes it from the content.
func (a *Archive) index(ctx context.Context, o object) (*Meta, *wal.Index, error) {
	t, err := a.readTrailer(ctx, o)
	if err != nil {
		return nil, nil, err
	}
	ix, err := a.decodeIndex(o, t)
	switch {
	case ix != nil:
		return t.meta, ix, nil
	case errors.Is(err, repo.ErrDamaged):
		return nil, nil, err
	}
	ix, err = a.RebuildIndex(ctx, o.key)
	return t.meta, ix, err
}

// RebuildIndex makes the index of an archived segment, or partial one, from its content.
func (a *Archive) RebuildIndex(ctx context.Context, key string) (ix *wal.Index, err error) {
	err = a.WithContent(ctx, key, func(m *Meta, data []byte) error {
		ix, err = wal.BuildIndex(data, m.Timeline)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make the index: %w", err)
	}
	return ix, nil
}

// segments lists the objects that hold the segments of a path, in order. One that is not there, any
// more, is an error.
func (a *Archive) segments(ctx context.Context, path []Step) iter.Seq2[object, error] {
	return func(yield func(object, error) bool) {
		for _, st := range path {
			next, going := st.First, true
			give := func(c *contents) error {
				o, err := c.choose()
				if errors.Is(err, ErrNotArchived) && st.Partial {
					o, err = c.longest()
				}
				if err != nil {
					return err
				}
				next++
				going = yield(o, nil)
				return nil
			}
			fail := func(err error) { yield(object{}, fmt.Errorf("list the WAL of timeline %d: %w", st.Timeline, err)) }
			now := contents{name: wal.SegmentName(st.Timeline, next, a.segSize())}
			after := repo.SegmentPrefix(now.name)
			for s, err := range a.repo.List(ctx, repo.TimelineDir(st.Timeline), after) {
				if err != nil {
					fail(err)
					return
				}
				w, ok := repo.ParseWALKey(s.Key)
				if !ok || w.Kind != wal.Segment && w.Kind != wal.Partial {
					continue
				}
				for segment := w.Name[:len(now.name)]; segment != now.name && next <= st.Last; {
					// The listing went on: what it had of the segment is all there is.
					if err := give(&now); err != nil {
						fail(err)
						return
					}
					if !going {
						return
					}
					now = contents{name: wal.SegmentName(st.Timeline, next, a.segSize())}
				}
				if next > st.Last {
					break
				}
				now.add(object{w, s.Key, s.Size})
			}
			for next <= st.Last {
				if err := give(&now); err != nil {
					fail(err)
					return
				}
				if !going {
					return
				}
				now = contents{name: wal.SegmentName(st.Timeline, next, a.segSize())}
			}
		}
	}
}
