package archive

import (
	"cmp"
	"context"
	"iter"
	"slices"

	"pitr/internal/repo"
	"pitr/internal/wal"
)

// Listing is what one listing of the archive showed: its coverage, and which object holds each segment, so that paths are
// read without listing again. Of a segment it takes 40 bytes, and as many while it grows.
type Listing struct {
	*Coverage
	archive *Archive
	objects map[wal.Timeline][]placed // rising
}

// placed is an object that holds a segment, or the beginning of one.
type placed struct {
	no     uint64
	end    wal.LSN // of a partial segment; 0: it is a whole one
	size   int64
	digest repo.Digest
}

// Listing lists the archive as Coverage does, with the same errors.
func (a *Archive) Listing(ctx context.Context) (*Listing, error) {
	l := &Listing{archive: a, objects: make(map[wal.Timeline][]placed)}
	var err error
	l.Coverage, err = a.coverage(ctx, func(no uint64, o object) {
		l.objects[o.Timeline] = append(l.objects[o.Timeline], placed{no, o.End, o.size, o.Digest})
	})
	return l, err
}

// Skim is Archive.Skim for a path of this coverage. An object that was deleted since is an error.
func (l *Listing) Skim(ctx context.Context, path []Step, from wal.LSN, enough func(*wal.Index) bool) iter.Seq2[Fact, error] {
	return factsOf(l.archive.indexes(ctx, l.segments(ctx, path), from, enough), from)
}

// segments gives what Archive.segments does. For what can't be had it asks that one, which says why.
func (l *Listing) segments(ctx context.Context, path []Step) iter.Seq2[object, error] {
	return func(yield func(object, error) bool) {
		for _, st := range path {
			have := l.objects[st.Timeline]
			i, _ := slices.BinarySearchFunc(have, st.First, func(p placed, no uint64) int { return cmp.Compare(p.no, no) })
			for no := st.First; no <= st.Last; no++ {
				if i < len(have) && have[i].no == no && (have[i].end == 0 || st.Partial) {
					if !yield(have[i].object(st.Timeline, l.SegSize), nil) {
						return
					}
					i++
					continue
				}
				for o, err := range l.archive.segments(ctx, []Step{{Timeline: st.Timeline, First: no, Last: no, Partial: st.Partial}}) {
					if !yield(o, err) || err != nil {
						return
					}
				}
				for i < len(have) && have[i].no <= no {
					i++
				}
			}
		}
	}
}

func (p placed) object(tli wal.Timeline, segSize int64) object {
	name := wal.SegmentName(tli, p.no, segSize)
	o := object{repo.WALObject{Name: name, Kind: wal.Segment, Timeline: tli, Digest: p.digest}, repo.SegmentKey(name, p.digest), p.size}
	if p.end != 0 {
		o.Name, o.Kind, o.End, o.key = name+".partial", wal.Partial, p.end, repo.PartialKey(name, p.end, p.digest)
	}
	return o
}
