package archive

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"pitr/internal/wal"
)

// A follower goes from index to index along a path.
type follower struct {
	joiner wal.Joiner
	// open are the pieces that hold the beginning of a record that is not finished yet.
	open []Piece
}

// follow sets in p what ends in it.
func (a *Archive) follow(ctx context.Context, f *follower, p *Piece) (err error) {
	p.Straddle, err = f.joiner.Add(p.Index)
	if errors.Is(err, wal.ErrNotJoined) && slices.ContainsFunc(f.open, func(o Piece) bool { return o.Index.Brief }) {
		p.Straddle, err = a.rejoin(ctx, f, p)
	}
	if errors.Is(err, wal.ErrNotJoined) && len(f.open) > 0 {
		p.Straddle, err = a.readStraddle(ctx, append(f.open, *p))
	}
	if err != nil {
		return fmt.Errorf("follow the WAL from segment to segment: %w", err)
	}
	switch ix := p.Index; {
	case ix.Tail.Record != 0:
		f.open = append(f.open[:0], *p)
	case len(f.open) > 0 && ix.Complete && ix.Head.Len < ix.Head.Rest && !ix.Head.Abandoned:
		f.open = append(f.open, *p)
	default:
		f.open = f.open[:0]
	}
	return nil
}

// rejoin reads the whole indexes of the open pieces, of which some are brief, and tries again.
func (a *Archive) rejoin(ctx context.Context, f *follower, p *Piece) (wal.Straddle, error) {
	f.joiner = wal.Joiner{}
	for i := range f.open {
		o, err := a.stat(ctx, f.open[i].Key)
		if err != nil {
			return wal.Straddle{}, err
		}
		if f.open[i].Meta, f.open[i].Index, err = a.index(ctx, o); err != nil {
			return wal.Straddle{}, err
		}
		if _, err := f.joiner.Add(f.open[i].Index); err != nil && !errors.Is(err, wal.ErrNotJoined) {
			return wal.Straddle{}, err
		}
	}
	return f.joiner.Add(p.Index)
}

// readStraddle makes the facts of a record that is too long for the indexes, from the segments in
// which it lies.
func (a *Archive) readStraddle(ctx context.Context, pieces []Piece) (wal.Straddle, error) {
	var joiner wal.Joiner
	var s wal.Straddle
	for _, p := range pieces {
		ix := *p.Index // its fragments' bytes are this function's alone
		err := a.WithContent(ctx, p.Key, func(_ *Meta, data []byte) error { return ix.Fill(data) })
		if err != nil {
			return s, err
		}
		if s, err = joiner.Add(&ix); err != nil {
			return s, err
		}
	}
	return s, nil
}
