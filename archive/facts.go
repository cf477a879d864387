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
	// not known), *wal.Stop, which says that the records end before the segment does, at Start, and,
	// from Skim only, *Skimmed.
	What any
}

// Skimmed stands for the commits and aborts of a segment that Skim did not give one by one. It
// follows the segment's other facts.
type Skimmed struct {
	// Commits and Aborts count them.
	Commits, Aborts int
	// MinTime and MaxTime are the least and the greatest time of all that ended in the segment, those
	// included that were given.
	MinTime, MaxTime wal.Timestamp
	// Step is the segment, and the one in front of it if a record crosses from there: the path on
	// which Facts gives what was left out.
	Step Step
}

// Facts gives what the WAL of the path tells from position from on, in the order of the records:
// everything that recovery can stop at or that changes what it can do. Files and pages that changed
// are with Indexes. The first error ends it.
func (a *Archive) Facts(ctx context.Context, path []Step, from wal.LSN) iter.Seq2[Fact, error] {
	return a.Skim(ctx, path, from, nil)
}

// Skim gives what Facts does, but of segments of which enough says so, it may leave out the commits
// and aborts that were not prepared before, and gives Skimmed in their place. These segments are not
// read where their indexes are rolled up (RollUp); where they are not, everything is given.
//
// enough is asked with a brief index (wal.Index.Shorten) that has absorbed the record that crosses
// into its segment, in the order of the path, but ahead of what was given, and from another
// goroutine.
func (a *Archive) Skim(ctx context.Context, path []Step, from wal.LSN, enough func(*wal.Index) bool) iter.Seq2[Fact, error] {
	return factsOf(a.indexes(ctx, a.segments(ctx, path), from, enough), from)
}

func factsOf(pieces iter.Seq2[Piece, error], from wal.LSN) iter.Seq2[Fact, error] {
	return func(yield func(Fact, error) bool) {
		for p, err := range pieces {
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
	if p.Index.Brief {
		out = p.skimmed(out)
	}
	if s := &p.Index.Stop; s.Kind != wal.StopMore {
		out = append(out, Fact{s.LSN, s.LSN, p.Index.Timeline, s})
	}
	return out
}

// skimmed adds what stands for the transactions that the brief index has left out, if there are any.
func (p *Piece) skimmed(out []Fact) []Fact {
	ix := p.Index
	s := &Skimmed{Commits: ix.Commits, Aborts: ix.Aborts, MinTime: ix.MinTime, MaxTime: ix.MaxTime}
	for i := range ix.Transactions {
		if ix.Transactions[i].Kind.Committed() {
			s.Commits--
		} else {
			s.Aborts--
		}
	}
	if s.Commits+s.Aborts == 0 {
		return out
	}
	no := wal.SegmentOf(ix.Start, ix.SegSize)
	s.Step = Step{Timeline: ix.Timeline, First: no, Last: no}
	if ix.Head.Joined {
		s.Step.First--
	}
	at := max(ix.Start, ix.Last)
	return append(out, Fact{at, ix.ValidEnd, ix.Timeline, s})
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
