package basebackup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"pitr/internal/hint"
	"pitr/internal/repo"
	"pitr/storage"
)

// Problem is a backup whose manifest can't be used. It is listed so that nobody takes it for absent.
type Problem struct {
	ID  string
	Err error
}

// List reads the headers of all backups, oldest first. One whose header is damaged is a Problem, and does not keep the
// others from being listed. That a header is right says nothing yet about the rest: see Verify.
func List(ctx context.Context, r *repo.Repo) ([]*Header, []Problem, error) {
	ids, err := listIDs(ctx, r, repo.BackupPrefix)
	if err != nil {
		return nil, nil, fmt.Errorf("list backups: %w", err)
	}
	var all []*Header
	var problems []Problem
	for _, id := range ids {
		h, err := ReadHeader(ctx, r, id)
		switch {
		case err == nil:
			all = append(all, h)
		case errors.Is(err, repo.ErrDamaged) || errors.As(err, new(formatError)):
			problems = append(problems, Problem{ID: id, Err: err})
		case errors.Is(err, ErrNoBackup): // deleted since it was listed
		default:
			return nil, nil, fmt.Errorf("list backups: %w", err)
		}
	}
	// The names tell no more than the second.
	slices.SortStableFunc(all, func(a, b *Header) int { return a.Started.Compare(b.Started) })
	return all, problems, nil
}

// listIDs gives the backups that there is anything of below prefix, in order. Keys that are no backup's are passed over.
func listIDs(ctx context.Context, r *repo.Repo, prefix string) ([]string, error) {
	var ids []string
	for after := ""; ; {
		var found string
		for o, err := range r.List(ctx, prefix, after) {
			if err != nil {
				return nil, err
			}
			found = strings.TrimPrefix(o.Key, prefix)
			break
		}
		if found == "" {
			return ids, nil
		}
		id, _, deeper := strings.Cut(found, "/")
		if CheckID(id) == nil {
			ids = append(ids, id)
		}
		after = prefix + id
		if deeper {
			after += "0" // behind everything below: '0' follows '/'
		}
	}
}

// Pin protects a backup, and the WAL that it needs, from retention.
type Pin struct {
	ID     string    `json:"id"`
	At     time.Time `json:"at"`
	By     string    `json:"by"`
	Reason string    `json:"reason"`
}

// Pins reads all pins, by the backup's ID. A pin that is damaged still counts.
func Pins(ctx context.Context, r *repo.Repo) (map[string]Pin, error) {
	ids, err := listIDs(ctx, r, repo.PinPrefix)
	if err != nil {
		return nil, fmt.Errorf("list pins: %w", err)
	}
	pins := make(map[string]Pin)
	for _, id := range ids {
		var p Pin
		err := r.GetDocument(ctx, repo.PinKey(id), &p)
		switch {
		case errors.Is(err, storage.ErrNotFound):
			continue
		case errors.Is(err, repo.ErrDamaged):
			p = Pin{Reason: "(the pin can't be read: damaged)"}
		case err != nil:
			return nil, fmt.Errorf("list pins: %w", err)
		}
		p.ID = id
		pins[id] = p
	}
	return pins, nil
}

// SetPin pins a backup that exists. One that is pinned already stays so as it is.
func SetPin(ctx context.Context, r *repo.Repo, p Pin) error {
	if _, err := ReadHeader(ctx, r, p.ID); err != nil {
		return err
	}
	p.At = p.At.UTC()
	if err := r.PutDocument(ctx, repo.PinKey(p.ID), p); err != nil && !errors.Is(err, storage.ErrExists) {
		return fmt.Errorf("pin backup %s: %w", p.ID, err)
	}
	return nil
}

// Unpin takes a backup's pin away, if it has one. The backup need not exist any more.
func Unpin(ctx context.Context, r *repo.Repo, id string) error {
	if err := CheckID(id); err != nil {
		return fmt.Errorf("%w: %w", ErrNoBackup, err)
	}
	if err := r.Delete(ctx, repo.PinKey(id)); err != nil {
		return fmt.Errorf("unpin backup %s: %w", id, err)
	}
	return nil
}

// ErrPinned reports that a backup is protected.
var ErrPinned = errors.New("backup is pinned")

// Delete makes a backup cease to exist, damaged or not: ErrNoBackup, ErrPinned. Its packs stay until Sweep finds that
// nothing refers to them.
func Delete(ctx context.Context, r *repo.Repo, id string) error {
	if err := CheckID(id); err != nil {
		return fmt.Errorf("%w: %w", ErrNoBackup, err)
	}
	// A pin may have come since the decision to delete was made.
	switch _, err := r.Stat(ctx, repo.PinKey(id)); {
	case err == nil:
		return hint.Wrap(fmt.Errorf("delete %s: %w", id, ErrPinned), "`pitr backup unpin %s` lifts that", id)
	case !errors.Is(err, storage.ErrNotFound):
		return fmt.Errorf("delete backup %s: %w", id, err)
	}
	if _, err := r.Stat(ctx, repo.BackupKey(id)); err != nil {
		return readError(r, id, err)
	}
	if err := r.Delete(ctx, repo.BackupKey(id)); err != nil {
		return fmt.Errorf("delete backup %s: %w", id, err)
	}
	return nil
}
