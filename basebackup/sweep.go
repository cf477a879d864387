package basebackup

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"pitr/archive"
	"pitr/internal/hint"
	"pitr/internal/repo"
	"pitr/storage"
)

// SweepGrace is how long packs that nothing refers to stay after they were marked: longer than any listing of a store
// lags behind, and than a backup takes from its last look for marks to its manifest.
const SweepGrace = time.Hour

// deleteBatch is how many objects are deleted in one call.
const deleteBatch = 500

// Leftover is what the packs of one backup, or the signs of its being taken, are to the repository.
type Leftover struct {
	ID      string
	Packs   int   // number
	Stored  int64 // bytes
	Marked  time.Time
	Delete  bool   // the time to delete has come
	Reason  string // why it goes, or when it will
	pending []string
}

// Leftovers finds packs that no backup refers to, and signs of backups that nobody takes any more. It changes nothing.
//
// The packs that a manifest refers to are known from the manifest alone: while one is damaged, none can be found.
func Leftovers(ctx context.Context, r *repo.Repo, now time.Time) ([]Leftover, error) {
	packs, err := listIDs(ctx, r, repo.PackPrefix)
	if err != nil {
		return nil, fmt.Errorf("list packs: %w", err)
	}
	// Signs come before packs, and manifests before the signs are taken back. Reading in this order, nothing of a backup
	// that becomes complete meanwhile is taken for a leftover.
	signs, err := readSigns(ctx, r, now)
	if err != nil {
		return nil, err
	}
	referred, complete, err := references(ctx, r)
	if err != nil {
		return nil, err
	}
	var left []Leftover
	for _, id := range packs {
		if referred[id] || signs[id].alive {
			continue
		}
		l, err := leftover(ctx, r, id, now)
		if err != nil {
			return nil, err
		}
		l.pending = signs[id].keys
		left = append(left, l)
		delete(signs, id)
	}
	for id, s := range signs { // what is left of them
		switch {
		case complete[id]:
			left = append(left, Leftover{ID: id, Delete: true, Reason: "signs of a backup being taken, which is complete", pending: s.keys})
		case !s.alive && !referred[id]:
			left = append(left, Leftover{ID: id, Delete: true, Reason: "signs of a backup being taken, which ended before it had data", pending: s.keys})
		}
	}
	marks, err := staleMarks(ctx, r, now, packs, referred)
	if err != nil {
		return nil, err
	}
	left = append(left, marks...)
	slices.SortStableFunc(left, func(a, b Leftover) int { return strings.Compare(a.ID, b.ID) })
	return left, nil
}

// staleMarks finds marks of packs that are gone, and those of packs that are referred to all the same, once nobody can be
// at work on their word any more: the next backup that refers to the packs would shy at them.
func staleMarks(ctx context.Context, r *repo.Repo, now time.Time, packs []string, referred map[string]bool) ([]Leftover, error) {
	var left []Leftover
	for o, err := range r.List(ctx, repo.MarkPrefix, "") {
		if err != nil {
			return nil, fmt.Errorf("list marks: %w", err)
		}
		id := strings.TrimPrefix(o.Key, repo.MarkPrefix)
		switch {
		case CheckID(id) != nil:
		case referred[id] && now.Sub(o.Modified) > pendingLife:
			left = append(left, Leftover{ID: id, Marked: o.Modified, Delete: true, Reason: "a mark on packs that a backup refers to"})
		case !referred[id] && !slices.Contains(packs, id):
			left = append(left, Leftover{ID: id, Marked: o.Modified, Delete: true, Reason: "the mark of packs that are deleted"})
		}
	}
	return left, nil
}

// leftover counts the packs of a backup that has no manifest and looks when they may go.
func leftover(ctx context.Context, r *repo.Repo, id string, now time.Time) (Leftover, error) {
	l := Leftover{ID: id}
	for o, err := range r.List(ctx, packsOf(id), "") {
		if err != nil {
			return l, fmt.Errorf("list packs: %w", err)
		}
		l.Packs, l.Stored = l.Packs+1, l.Stored+o.Size
	}
	for o, err := range r.List(ctx, repo.MarkKey(id), "") {
		if err != nil {
			return l, fmt.Errorf("list marks: %w", err)
		}
		if o.Key != repo.MarkKey(id) {
			continue
		}
		var m mark
		if err := r.GetDocument(ctx, o.Key, &m); err != nil && !errors.Is(err, repo.ErrDamaged) {
			return l, err
		}
		// The later of the two clocks' times counts.
		if l.Marked = m.At; o.Modified.After(m.At) {
			l.Marked = o.Modified
		}
	}
	switch {
	case l.Marked.IsZero():
		l.Reason = fmt.Sprintf("no backup refers to its packs: marked now, to be deleted after %v", SweepGrace)
	case now.Sub(l.Marked) < SweepGrace:
		l.Reason = fmt.Sprintf("no backup refers to its packs: to be deleted after %s", l.Marked.Add(SweepGrace).UTC().Format(time.RFC3339))
	default:
		l.Delete, l.Reason = true, fmt.Sprintf("no backup refers to its packs, marked %s", l.Marked.UTC().Format(time.RFC3339))
	}
	return l, nil
}

// mark says since when the packs of a backup are about to be deleted.
type mark struct {
	ID string    `json:"id"`
	At time.Time `json:"at"`
}

// Sweep does what left says: it marks what is not marked, and deletes what was marked long enough ago, after a second
// look at what refers to it. It may be ended at any point, and be run by several at once.
func Sweep(ctx context.Context, r *repo.Repo, left []Leftover, now time.Time) (deleted int64, err error) {
	var due []Leftover
	for _, l := range left {
		switch {
		case l.Delete:
			due = append(due, l)
		case l.Marked.IsZero():
			err := r.PutDocument(ctx, repo.MarkKey(l.ID), mark{ID: l.ID, At: now.UTC()})
			if err != nil && !errors.Is(err, storage.ErrExists) {
				return deleted, fmt.Errorf("mark the packs of %s: %w", l.ID, err)
			}
		}
	}
	if len(due) == 0 {
		return 0, nil
	}
	again, err := Leftovers(ctx, r, now)
	if err != nil {
		return 0, err
	}
	still := make(map[string]bool)
	for _, l := range again {
		still[l.ID] = l.Delete
	}
	for _, l := range due {
		if !still[l.ID] {
			continue
		}
		if err := remove(ctx, r, l); err != nil {
			return deleted, fmt.Errorf("delete what is left of %s: %w", l.ID, err)
		}
		deleted += l.Stored
	}
	return deleted, nil
}

// remove deletes the packs, and only then what says that they may be deleted.
func remove(ctx context.Context, r *repo.Repo, l Leftover) error {
	var keys []string
	flush := func() error {
		err := r.Delete(ctx, keys...)
		keys = keys[:0]
		return err
	}
	if l.Packs > 0 {
		for o, err := range r.List(ctx, packsOf(l.ID), "") {
			if err != nil {
				return err
			}
			if keys = append(keys, o.Key); len(keys) == deleteBatch {
				if err := flush(); err != nil {
					return err
				}
			}
		}
		if err := flush(); err != nil {
			return err
		}
	}
	keys = append(keys, l.pending...)
	if !l.Marked.IsZero() {
		keys = append(keys, repo.MarkKey(l.ID))
	}
	return flush()
}

// references returns the backups whose packs a manifest refers to, and those that have a manifest.
func references(ctx context.Context, r *repo.Repo) (referred, complete map[string]bool, err error) {
	all, problems, err := List(ctx, r)
	if err != nil {
		return nil, nil, err
	}
	if len(problems) > 0 {
		p := problems[0]
		return nil, nil, hint.Wrap(fmt.Errorf("look for packs that nothing refers to: the manifest of %s can't be read: %w", p.ID, p.Err),
			"what it refers to is not known, so no packs are deleted; if the backup is lost anyway, `pitr backup delete %s`", p.ID)
	}
	referred, complete = make(map[string]bool), make(map[string]bool)
	for _, h := range all {
		complete[h.ID] = true
		for _, id := range h.PacksOf {
			referred[id] = true
		}
	}
	return referred, complete, nil
}

// signOf is what the signs of life of one backup say together.
type signOf struct {
	alive bool
	keys  []string
	last  Pending
}

// readSigns reads all signs of life. One that can't be read counts as long as the store says that it is young.
func readSigns(ctx context.Context, r *repo.Repo, now time.Time) (map[string]signOf, error) {
	signs := make(map[string]signOf)
	ids, err := listIDs(ctx, r, repo.PendingPrefix)
	if err != nil {
		return nil, fmt.Errorf("list backups being taken: %w", err)
	}
	for _, id := range ids {
		var s signOf
		var last time.Time
		var key string
		for o, err := range r.List(ctx, repo.PendingPrefix+id+"/", "") {
			if err != nil {
				return nil, fmt.Errorf("list backups being taken: %w", err)
			}
			s.keys, key, last = append(s.keys, o.Key), o.Key, o.Modified
		}
		if key == "" {
			continue // taken back
		}
		var p Pending
		if err := r.GetDocument(ctx, key, &p); err != nil {
			if !errors.Is(err, repo.ErrDamaged) && !errors.Is(err, storage.ErrNotFound) {
				return nil, fmt.Errorf("list backups being taken: %w", err)
			}
			p = Pending{ID: id}
		}
		s.alive, s.last = p.alive(now, last), p
		signs[id] = s
	}
	return signs, nil
}

// Running returns what WAL the backups need that are being taken. Asked for after the coverage from which it is decided
// which WAL goes, and before the complete backups are listed, it misses none that any of that may be for: a backup says
// where it begins before the server ends the segment that it begins in, and one that ends meanwhile is listed afterwards.
func Running(ctx context.Context, r *repo.Repo, now time.Time) ([]archive.Need, error) {
	signs, err := readSigns(ctx, r, now)
	if err != nil {
		return nil, err
	}
	var needs []archive.Need
	for _, id := range slices.Sorted(maps.Keys(signs)) {
		if p := signs[id].last; signs[id].alive && p.StartLSN != 0 && p.Timeline != 0 {
			needs = append(needs, archive.Need{Timeline: p.Timeline, From: p.StartLSN, Why: "backup " + id + ", which is being taken"})
		}
	}
	return needs, nil
}
