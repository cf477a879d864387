package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"pitr/archive"
	"pitr/internal/hint"
	"pitr/internal/repo"
	"pitr/internal/wal"
)

// pollArchive is how often it is asked whether a segment has come.
const pollArchive = 200 * time.Millisecond

// roundTrip has the server archive a segment with a mark in it, and reads it back.
func (k *checker) roundTrip(ctx context.Context) {
	const name = "archive"
	switch {
	case k.conn == nil:
		k.untried(name, noServer)
		return
	case k.bucket == nil:
		k.untried(name, "the store does not work")
		return
	case k.info.InRecovery:
		k.untried(name, "the server is a standby, which ends no segments")
		return
	case k.info.ArchiveMode == "off":
		k.untried(name, "archive_mode is off")
		return
	}
	a, err := k.Archive(ctx)
	if err != nil {
		k.err(name, err)
		return
	}
	defer a.Close()
	if id := a.Repo().SystemID(); id != k.info.SystemID {
		k.fail(name, "`postgres.data_dir` must be that of the server", "the repository is of system identifier %d, the server is %d", id, k.info.SystemID)
		return
	}
	began := k.Now()
	mark, segment, err := k.endSegment(ctx)
	if err != nil {
		k.err(name, err)
		return
	}
	if err := k.await(ctx, a, segment); err != nil {
		k.err(name, err)
		return
	}
	took := k.Now().Sub(began)
	if err := k.readBack(ctx, a, segment, mark); err != nil {
		k.err(name, err)
		return
	}
	k.ok(name, "segment %s was archived within %v and read back", segment, took.Round(10*time.Millisecond))
	for o, err := range a.Repo().List(ctx, repo.SegmentPrefix(segment)+"-", "") {
		if err != nil {
			k.err("clock-store", err)
			return
		}
		// It was stored between then and now.
		switch now := k.Now(); {
		case o.Modified.Before(began):
			k.clock("clock-store", "the store's", o.Modified, began)
		case o.Modified.After(now):
			k.clock("clock-store", "the store's", o.Modified, now)
		default:
			k.clock("clock-store", "the store's", now, now)
		}
		return
	}
}

// endSegment writes a restore point and ends the segment that holds it.
func (k *checker) endSegment(ctx context.Context) (mark, segment string, err error) {
	mark = "pitr check " + rand.Text()
	end, err := k.conn.CreateRestorePoint(ctx, mark)
	if err != nil {
		return "", "", err
	}
	if segment, err = k.conn.WALFileName(ctx, end); err != nil {
		return "", "", err
	}
	_, err = k.conn.SwitchWAL(ctx)
	return mark, segment, err
}

// await waits until the archive has the segment, at most archive.timeout.
func (k *checker) await(ctx context.Context, a *archive.Archive, segment string) error {
	timeout := time.Duration(k.Config.Archive.Timeout)
	limit, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		for _, err := range a.Repo().List(limit, repo.SegmentPrefix(segment)+"-", "") {
			if err == nil {
				return nil
			}
			if limit.Err() == nil {
				return err
			}
		}
		select {
		case <-limit.Done():
		case <-time.After(pollArchive):
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return k.notArchived(ctx, segment, timeout)
	}
}

// notArchived says what the server's archiver makes of it.
func (k *checker) notArchived(ctx context.Context, segment string, timeout time.Duration) error {
	err := fmt.Errorf("segment %s was not archived within %v", segment, timeout)
	advice := "the server's log says what its archive_command does; try it by hand, as the server's user: " + k.wantedCommand()
	if s, serr := k.conn.ArchiverStats(ctx); serr == nil && s.Failing() {
		err = fmt.Errorf("%w; the archiver failed with %s at %s", err, s.LastFailed, s.FailedAt.UTC().Format(time.RFC3339))
	}
	return hint.Wrap(err, "%s", advice)
}

// readBack fetches the segment, which verifies it, and looks for the mark in it.
func (k *checker) readBack(ctx context.Context, a *archive.Archive, segment, mark string) (err error) {
	dir, err := os.MkdirTemp("", "pitr-check-*")
	if err != nil {
		return fmt.Errorf("read segment %s back: %w", segment, err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := a.Fetch(ctx, segment, filepath.Join(dir, segment), archive.FetchOptions{}); err != nil {
		return err
	}
	tli, no, err := wal.ParseSegmentName(segment, a.Repo().Facts().SegmentSize)
	if err != nil {
		return err
	}
	for f, err := range a.Facts(ctx, []archive.Step{{Timeline: tli, First: no, Last: no}}, 0) {
		if err != nil {
			return err
		}
		if p, ok := f.What.(*wal.RestorePoint); ok && p.Name == mark {
			return nil
		}
	}
	return hint.Wrap(fmt.Errorf("segment %s is archived, but the mark that the server wrote into it is not in it", segment),
		"another server archives under the same name: `pitr wal list` shows what is there")
}
