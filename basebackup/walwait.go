package basebackup

import (
	"context"
	"fmt"
	"time"

	"pitr/internal/hint"
	"pitr/internal/postgres"
	"pitr/internal/repo"
	"pitr/internal/wal"
)

const (
	walPollFirst = 50 * time.Millisecond
	walPollMost  = 2 * time.Second
)

// walWaiter waits until the server has archived segments, by looking for them in the repository: only what is there
// counts, not what the server says.
type walWaiter struct {
	repo    *repo.Repo
	server  Source
	tli     wal.Timeline
	segSize int64
	timeout time.Duration // without progress
}

// await returns when all segments from first to last are in the repository.
func (w *walWaiter) await(ctx context.Context, first, last uint64) error {
	pause := walPollFirst
	deadline := time.Now().Add(w.timeout)
	for {
		missing, err := w.missing(ctx, first, last)
		if err != nil {
			return err
		}
		if missing > last {
			return nil
		}
		if missing > first {
			first, pause, deadline = missing, walPollFirst, time.Now().Add(w.timeout)
		}
		if !time.Now().Before(deadline) {
			return w.late(ctx, missing)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		pause = min(pause*2, walPollMost)
	}
}

// missing returns the number of the first segment from first on that is not in the repository, last+1 if none up to last
// is missing.
func (w *walWaiter) missing(ctx context.Context, first, last uint64) (uint64, error) {
	next := first // all before are there
	digests, resolved := 0, false
	for o, err := range w.repo.List(ctx, repo.TimelineDir(w.tli), repo.SegmentPrefix(wal.SegmentName(w.tli, first, w.segSize))) {
		if err != nil {
			return 0, fmt.Errorf("look for archived WAL: %w", err)
		}
		obj, ok := repo.ParseWALKey(o.Key)
		if !ok || obj.Kind != wal.Segment {
			continue
		}
		_, no, err := wal.ParseSegmentName(obj.Name, w.segSize)
		if err != nil {
			continue // of another segment size
		}
		switch {
		case no > next || no > last:
			return next, nil
		case no == next-1 && no >= first: // another content of the one before, or the record of which holds
		default:
			next, digests, resolved = no+1, 0, false
		}
		if obj.Resolved {
			resolved = true
		} else {
			digests++
		}
		if digests > 1 && !resolved {
			// The record, if there is one, sorts behind "-": it may be to come.
			settled, err := w.settled(ctx, obj.Name)
			if err != nil {
				return 0, err
			}
			if !settled {
				return 0, hint.Wrap(fmt.Errorf("segment %s was archived twice, with different contents", obj.Name),
					"two servers archive into one place; end that, then settle it with `pitr wal resolve %s DIGEST`", obj.Name)
			}
			resolved = true
		}
	}
	return next, nil
}

// settled tells whether one content is recorded as the one that holds. Two records that differ settle nothing.
func (w *walWaiter) settled(ctx context.Context, name string) (bool, error) {
	n := 0
	for o, err := range w.repo.List(ctx, repo.SegmentPrefix(name)+".resolved-", "") {
		if err != nil {
			return false, fmt.Errorf("look for archived WAL: %w", err)
		}
		if obj, ok := repo.ParseWALKey(o.Key); ok && obj.Resolved {
			n++
		}
	}
	return n == 1, nil
}

// late makes the error of a segment that does not come.
func (w *walWaiter) late(ctx context.Context, missing uint64) error {
	name := wal.SegmentName(w.tli, missing, w.segSize)
	err := fmt.Errorf("segment %s was not archived within %v", name, w.timeout)
	stats, serr := w.server.ArchiverStats(ctx)
	switch {
	case serr != nil:
		return hint.Wrap(err, "the server's archive_command must be 'pitr wal push %%p', for this repository; see the server's log")
	case stats.Failing():
		return hint.Wrap(err, "the server's archiver failed %d times, last at %s with %s: its log says why, or run `pitr check`",
			stats.Failed, stats.FailedAt.UTC().Format(time.RFC3339), stats.LastFailed)
	case stats.LastArchived >= name && wal.Classify(stats.LastArchived) == wal.Segment:
		return hint.Wrap(err, "the server says that it has archived %s: is its archive_command 'pitr wal push %%p', for this repository?", stats.LastArchived)
	}
	return hint.Wrap(err, "the server's archiver is behind (last: %s at %s): wait, or raise archive.timeout", orNone(stats.LastArchived), when(stats.ArchivedAt))
}

func orNone(s string) string {
	if s == "" {
		return "nothing"
	}
	return s
}

func when(t time.Time) string {
	if t.IsZero() {
		return "no time"
	}
	return t.UTC().Format(time.RFC3339)
}

// checkArchiving returns an error if the server, by its settings, archives nothing.
func checkArchiving(info postgres.Info) error {
	const advice = "set archive_mode = on and archive_command = 'pitr wal push %%p' in the server's configuration, and restart it; `pitr check` proves the result"
	switch {
	case info.ArchiveMode == "off":
		return hint.Wrap(fmt.Errorf("the server archives no WAL (archive_mode is off): a backup could not be restored"), advice)
	case info.ArchiveMode == "always":
		return nil
	case (info.ArchiveCommand == "" || info.ArchiveCommand == "(disabled)") && info.ArchiveLibrary == "":
		return hint.Wrap(fmt.Errorf("the server archives no WAL (archive_command is empty): a backup could not be restored"), advice)
	}
	return nil
}
