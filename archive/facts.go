package archive

import (
	"cmp"
	"context"
	"iter"
	"slices"

	"pitr/internal/wal"
)

// Fact is something that a path's WAL tells, at the record from Start to End.
type Fact struct {
	Start, End wal.LSN
	// Timeline is that of the segment in which the record ends.
	Timeline wal.Timeline
	// What is one of *wal.Txn, *wal.Prepared, *wal.RestorePoint, *wal.CheckpointRecord,
	// *wal.EndOfRecovery, *wal.Parameters, *wal.BackupEnd, *wal.Overwrite, *wal.Tablespace (its End is
	// not known), and *wal.Stop, which says that the records end before the segment does, at Start.
	What any
}

// Facts gives what the WAL of the path tells from position from on, in the order of the records:
// everything that recovery can stop at or that changes what it can do. Files and pages that changed
// are with Indexes. The first error ends it.
func (a *Archive) Facts(ctx context.Context, path []Step, from wal.LSN) iter.Seq2[Fact, error] {
	return func(yield func(Fact, error) bool) {
		for p, err := range a.Indexes(ctx, path) {
			if err != nil {
				yield(Fact{}, err)
				return
			}
			for _, f := range p.Facts() {
				if f.Start >= from && !yield(f, nil) {
					return
				}
			}
		}
	}
}

// Facts are those of the piece, in order. They point into it.
func (p *Piece) Facts() []Fact {
	out := gather(nil, p.Index.Timeline, &p.Straddle.Facts)
	own := len(out)
	out = gather(out, p.Index.Timeline, &p.Index.Facts)
	slices.SortStableFunc(out[own:], func(a, b Fact) int { return cmp.Compare(a.Start, b.Start) })
	if s := &p.Index.Stop; s.Kind != wal.StopMore {
		out = append(out, Fact{s.LSN, s.LSN, p.Index.Timeline, s})
	}
	return out
}

func gather(out []Fact, tli wal.Timeline, f *wal.Facts) []Fact {
	out = slices.Grow(out, len(f.Transactions)+8)
	for i := range f.Transactions {
		x := &f.Transactions[i]
		out = append(out, Fact{x.Start, x.End, tli, x})
	}
	for i := range f.Prepared {
		x := &f.Prepared[i]
		out = append(out, Fact{x.Start, x.End, tli, x})
	}
	for i := range f.RestorePoints {
		x := &f.RestorePoints[i]
		out = append(out, Fact{x.Start, x.End, tli, x})
	}
	for i := range f.Checkpoints {
		x := &f.Checkpoints[i]
		out = append(out, Fact{x.Start, x.End, tli, x})
	}
	for i := range f.EndsOfRecovery {
		x := &f.EndsOfRecovery[i]
		out = append(out, Fact{x.Start, x.End, tli, x})
	}
	for i := range f.Parameters {
		x := &f.Parameters[i]
		out = append(out, Fact{x.Start, x.End, tli, x})
	}
	for i := range f.BackupEnds {
		x := &f.BackupEnds[i]
		out = append(out, Fact{x.Start, x.End, tli, x})
	}
	for i := range f.Overwrites {
		x := &f.Overwrites[i]
		out = append(out, Fact{x.Start, x.End, tli, x})
	}
	for i := range f.Tablespaces {
		x := &f.Tablespaces[i]
		out = append(out, Fact{x.LSN, x.LSN, tli, x})
	}
	return out
}
