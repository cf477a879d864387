package archive

import (
	"context"
	"errors"
	"fmt"
	"os"

	"pitr/internal/hint"
	"pitr/internal/repo"
	"pitr/internal/wal"
	"pitr/storage"
)

// pushPart archives the beginning of a segment that another timeline goes on from. Of the file
// only the bytes up to the end of the last whole record are kept: what follows is left over from
// whatever the file was before, and differs from server to server.
func (a *Archive) pushPart(ctx context.Context, j *job) (Pushed, error) {
	index, err := a.buildIndex(j)
	if err != nil {
		return Pushed{}, err
	}
	m := &j.meta
	if m.End == 0 {
		// The records can't be read: keep everything.
		m.End = m.Start + wal.LSN(m.Size)
	} else {
		const page = wal.DefaultBlockSize
		used := max(int64(m.End-m.Start), 1)
		m.Size = min(m.Size, (used+page-1)/page*page)
		if err := j.src.guarded(func(data []byte) error { clear(data[m.End-m.Start : m.Size]); return nil }); err != nil {
			return Pushed{}, err
		}
	}
	if err := a.check(ctx, j); err != nil {
		return Pushed{}, err
	}
	d, err := j.digest()
	if err != nil {
		return Pushed{}, err
	}
	segment, _ := wal.PartialBase(m.Name)
	p := Pushed{Key: repo.PartialKey(segment, m.End, d), Raw: m.Size}
	o, err := a.own(ctx, p.Key)
	switch {
	case err == nil:
		p.Already = true
		if err := a.repo.Settle(ctx, p.Key); err != nil {
			return Pushed{}, err
		}
	case !errors.Is(err, storage.ErrNotFound):
		return Pushed{}, err
	default:
		if err := a.repo.Create(ctx, p.Key, newObjectReader(j.k, j.src, *m, index)); err != nil && !errors.Is(err, storage.ErrExists) {
			return Pushed{}, err
		}
		if o, err = a.own(ctx, p.Key); err != nil {
			return Pushed{}, err
		}
	}
	p.Stored = o.size
	return p, a.whole(ctx, o, m.Size)
}

// pushAbandoned is for a segment that was refused under its whole name, for the reason given: where the server has left
// its timeline within it, the segment will never be finished, and what is in it is archived as a partial one.
//
// A server that is promoted calls such a segment ".partial" itself (CleanupAfterArchiveRecovery in
// src/backend/access/transam/xlog.c), but not one that it has asked to archive before. A standby with
// archive_mode=always asks for it under its whole name: as its WAL receiver meets the end of the timeline, having stored
// the new timeline's history first (WalReceiverMain in src/backend/replication/walreceiver.c), or at a restart point, where
// the file has been lying since the server was a primary (XLogArchiveCheckDone in xlogarchive.c). Behind the place where the
// timeline was left are zeros, or what the file held before.
func (a *Archive) pushAbandoned(ctx context.Context, j *job, refused error) (Pushed, error) {
	left := j.left()
	if left == 0 {
		return Pushed{}, refused
	}
	var ix *wal.Index
	err := a.work(ctx, func() error {
		return j.src.guarded(func(data []byte) (err error) { ix, err = wal.BuildIndex(data, j.meta.Timeline); return err })
	})
	switch {
	case err != nil || !endsEarly(ix):
		return Pushed{}, refused
	case ix.ValidEnd < left:
		return Pushed{}, hint.Wrap(
			fmt.Errorf("%w: its WAL ends at %s (%s), but the server followed the timeline up to %s", ErrSource, ix.ValidEnd, ix.Stop.Reason, left),
			"the file is damaged; the server keeps it and goes on asking to archive it. If another server has archived this WAL, or the segment on the "+
				"timeline that followed, remove the file's .ready file from pg_wal/archive_status")
	}
	j.meta.Name += ".partial"
	j.meta.End, j.meta.Switched, j.meta.IndexError = 0, false, ""
	return a.pushPart(ctx, j)
}

// endsEarly tells whether the WAL of a segment ends before the segment does, with no page behind the end that belongs
// there: then it is not finished, or its last page is damaged.
func endsEarly(ix *wal.Index) bool {
	return !ix.Complete && ix.Stop.Kind != wal.StopMore && ix.Stop.Later == 0
}

// left returns where the server left the timeline of the segment, by the histories beside the file, if that was before
// the segment's end; 0 if it was not. A server never writes on a timeline of which it knows a descendant. Of several places
// it is the first: which of the ways the server itself went is not known.
func (j *job) left() wal.LSN {
	entries, err := os.ReadDir(j.dir)
	if err != nil {
		return 0
	}
	var first wal.LSN
	for _, e := range entries {
		tli, err := wal.ParseHistoryName(e.Name())
		if err != nil || tli <= j.meta.Timeline {
			continue
		}
		h, err := readHistory(j.dir, tli)
		if err != nil {
			continue // it proves nothing
		}
		if at, ok := h.SwitchPoint(j.meta.Timeline); ok && at < j.meta.Start+wal.LSN(j.meta.Size) && (first == 0 || at < first) {
			first = at
		}
	}
	return first
}
