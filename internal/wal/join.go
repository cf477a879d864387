package wal

import (
	"errors"
	"fmt"
)

// ErrNotJoined says that the record between two indexes could not be put
// together from them: the pair counts as an index that is missing, and the
// segments have to be read.
var ErrNotJoined = errors.New("the record that crosses into the segment is not in the indexes")

// Straddle is what a record tells that begins in one segment and ends in a later
// one: the same as an Index tells of the records within. It is empty where no
// record crosses, and where one was never finished.
type Straddle struct {
	LSN LSN // start of the record, 0: no record
	End LSN // where the next record is looked for
	Summary
	Facts
	Blocks []RelBlocks
}

// Joiner puts indexes of consecutive segments together. The zero Joiner is
// ready. Of what it is given it keeps the unfinished record only.
type Joiner struct {
	begun    bool
	systemID uint64
	segSize  int64
	major    int
	timeline Timeline
	next     LSN // where the next segment begins

	left    uint32 // bytes of an unfinished record that still follow, 0: none
	record  LSN    // where that record begins, 0: before the first index
	raw     []byte
	omitted bool // pieces of it are not in the indexes
}

// Join returns what the record tells that crosses from prev's segment into
// next's and ends there.
func Join(prev, next *Index) (Straddle, error) {
	var j Joiner
	if _, err := j.Add(prev); err != nil {
		return Straddle{}, err
	}
	return j.Add(next)
}

// Add takes in the next segment's index and returns what the record tells that
// ends in it, having begun in an earlier segment: in WAL order it comes before
// the index's own facts. The rest of a record that began before the first index
// added is passed over, and so is a record whose facts the index has absorbed.
//
// The indexes must be of consecutive segments of one cluster, on timelines that
// don't go back; which segments follow each other on a fork is the caller's
// choice. An error other than ErrNotJoined says that they don't belong together.
// After an error the Joiner is where it would be had the index been the first.
func (j *Joiner) Add(ix *Index) (Straddle, error) {
	s, err := j.add(ix)
	if err != nil {
		*j = Joiner{}
		if !ix.Brief {
			j.follow(ix)
		}
		return Straddle{}, fmt.Errorf("WAL index of segment %s: %w", SegmentName(ix.Timeline, SegmentOf(ix.Start, ix.SegSize), ix.SegSize), err)
	}
	return s, nil
}

func (j *Joiner) add(ix *Index) (Straddle, error) {
	head := &ix.Head
	if !j.begun {
		if ix.Brief && !head.Joined && head.Rest > 0 {
			return Straddle{}, fmt.Errorf("it is brief: %w", ErrNotJoined)
		}
		j.follow(ix)
		return Straddle{}, nil
	}
	switch {
	case ix.SystemID != j.systemID || ix.SegSize != j.segSize || ix.Major != j.major:
		return Straddle{}, errors.New("it is of another cluster than the one before")
	case j.next == 0:
		return Straddle{}, errors.New("the one before is not complete")
	case ix.Start != j.next:
		return Straddle{}, fmt.Errorf("the one before ends at %s", j.next)
	case ix.Timeline < j.timeline:
		return Straddle{}, fmt.Errorf("the one before is of timeline %d", j.timeline)
	case head.Abandoned && head.Rest == 0:
		j.follow(ix)
		return Straddle{}, nil
	case head.Rest != j.left || head.Len > head.Rest:
		return Straddle{}, fmt.Errorf("it continues a record with %d bytes, but %d are missing", head.Rest, j.left)
	case j.left == 0 || head.Joined:
		j.follow(ix)
		return Straddle{}, nil
	}
	if j.record != 0 {
		j.omitted = j.omitted || head.Omitted
		if !j.omitted {
			j.raw = append(j.raw, head.Data...)
		}
	}
	if head.Len < head.Rest {
		// The record fills the segment, or was abandoned, or WAL ends in it.
		left, record, raw, omitted := j.left-head.Len, j.record, j.raw, j.omitted
		j.follow(ix)
		if ix.Complete && !head.Abandoned {
			j.left, j.record, j.raw, j.omitted = left, record, raw, omitted
		}
		return Straddle{}, nil
	}
	s, err := j.finish(ix)
	if err != nil {
		return Straddle{}, err
	}
	j.follow(ix)
	return s, nil
}

// finish decodes the record that ends in ix.
func (j *Joiner) finish(ix *Index) (Straddle, error) {
	if j.record == 0 {
		return Straddle{}, nil
	}
	if j.omitted {
		return Straddle{}, fmt.Errorf("it is too long: %w", ErrNotJoined)
	}
	if len(j.raw) < recordHeaderLen {
		return Straddle{}, fmt.Errorf("it has %d bytes: %w", len(j.raw), ErrNotJoined)
	}
	rec := Record{LSN: j.record, End: ix.Head.End, Major: ix.Major}
	rec.parseHeader(j.raw)
	err := rec.decode(j.raw)
	if le32(j.raw[recordCRCOffset:]) != recordCRC(j.raw) {
		err = errRecordCRC
	}
	if err != nil {
		return Straddle{}, fmt.Errorf("record at %s: %w: %w", rec.LSN, err, ErrNotJoined)
	}
	s := Straddle{LSN: rec.LSN, End: rec.End}
	if rec.IsSwitch() {
		s.End = ix.Start + LSN(ix.SegSize)
	}
	if err := s.Facts.add(&rec); err != nil {
		return Straddle{}, err
	}
	var blocks blockSet
	blocks.record(&rec)
	blocks.facts(&s.Facts)
	s.Blocks = blocks.list()
	s.Summary.add(&s.Facts)
	return s, nil
}

// follow makes ix the index before the next one.
func (j *Joiner) follow(ix *Index) {
	*j = Joiner{begun: true, systemID: ix.SystemID, segSize: ix.SegSize, major: ix.Major, timeline: ix.Timeline}
	if !ix.Complete {
		return // nothing follows
	}
	j.next = ix.Start + LSN(ix.SegSize)
	switch tail, head := &ix.Tail, &ix.Head; {
	case tail.Record != 0 && tail.Total > tail.Len:
		j.left, j.record = tail.Total-tail.Len, tail.Record
		j.omitted = tail.Omitted
		j.raw = append([]byte(nil), tail.Data...)
	case !head.Abandoned && head.Len < head.Rest:
		j.left = head.Rest - head.Len // began before the first index
	}
}

// Absorb makes the facts of the record that ends in the index's segment part of
// the index, so that it stands by itself; s is what a Joiner gave for it. The
// index before has then nothing to add.
func (ix *Index) Absorb(s Straddle) {
	if s.LSN == 0 || ix.Head.Joined {
		return
	}
	ix.Head.Joined = true
	ix.Head.Data, ix.Head.Omitted = nil, true
	ix.Facts = s.Facts.before(&ix.Facts)
	ix.Summary = Summary{}
	ix.Summary.add(&ix.Facts)
	ix.Blocks = MergeBlocks(s.Blocks, ix.Blocks)
}

// before returns the facts of two stretches of WAL, f's first.
func (f *Facts) before(next *Facts) Facts {
	first := func(a, b LSN) LSN {
		if a != 0 {
			return a
		}
		return b
	}
	out := Facts{
		Transactions:   concat(f.Transactions, next.Transactions),
		Prepared:       concat(f.Prepared, next.Prepared),
		RestorePoints:  concat(f.RestorePoints, next.RestorePoints),
		Checkpoints:    concat(f.Checkpoints, next.Checkpoints),
		EndsOfRecovery: concat(f.EndsOfRecovery, next.EndsOfRecovery),
		Parameters:     concat(f.Parameters, next.Parameters),
		BackupEnds:     concat(f.BackupEnds, next.BackupEnds),
		Overwrites:     concat(f.Overwrites, next.Overwrites),
		Creates:        concat(f.Creates, next.Creates),
		Truncates:      concat(f.Truncates, next.Truncates),
		TableTruncates: concat(f.TableTruncates, next.TableTruncates),
		DBChanges:      concat(f.DBChanges, next.DBChanges),
		Tablespaces:    concat(f.Tablespaces, next.Tablespaces),
		RelMaps:        concat(f.RelMaps, next.RelMaps),
		Running:        next.Running,
		Minimal:        first(f.Minimal, next.Minimal),
		FPWOff:         first(f.FPWOff, next.FPWOff),
		Opaque:         first(f.Opaque, next.Opaque),
	}
	if out.Running.LSN == 0 {
		out.Running = f.Running
	}
	return out
}

// concat returns a and b in a new slice, nil if both are empty.
func concat[T any](a, b []T) []T {
	if len(a)+len(b) == 0 {
		return nil
	}
	return append(append(make([]T, 0, len(a)+len(b)), a...), b...)
}
