package archive

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"pitr/internal/repo"
	"pitr/internal/wal"
)

// VerifyOptions say what Verify reads.
type VerifyOptions struct {
	// Names restricts it to files that the server knows by these names; empty: everything. Gaps and
	// conflicts are always those of the whole archive.
	Names []string
	// Progress, if there, is called after each object, from one goroutine at a time.
	Progress func(VerifyProgress)
}

// VerifyProgress counts what is done.
type VerifyProgress struct {
	Objects int
	Bytes   int64 // read from the store
}

// Report is what Verify found.
type Report struct {
	// Segments counts the objects of segments, whole and partial, and Files the others; Bytes is
	// what was read of the store.
	Segments  int        `json:"segments"`
	Files     int        `json:"files"`
	Bytes     int64      `json:"bytes"`
	Gaps      []Gap      `json:"gaps"`
	Damaged   []Damage   `json:"damaged"`
	Conflicts []Conflict `json:"conflicts"`
	// Unindexed are the names of segments that carry no index, or one that this pitr can't read.
	// They are whole; reading them takes longer.
	Unindexed []string `json:"unindexed"`
}

// OK reports whether nothing is wrong.
func (r *Report) OK() bool { return len(r.Gaps)+len(r.Damaged)+len(r.Conflicts) == 0 }

// Damage is an object that is not what was stored, or that should not have been.
type Damage struct {
	Key    string `json:"key"`
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

// Verify reads everything back: each object's bytes, the content's pages, the index's identity, and
// whether anything is missing in between. What is found wrong is in the report; an error means that
// the store could not be read to the end.
func (a *Archive) Verify(ctx context.Context, o VerifyOptions) (*Report, error) {
	c, err := a.Coverage(ctx)
	damaged := errors.Is(err, repo.ErrDamaged)
	if err != nil && !damaged {
		return nil, err
	}
	r := &Report{Gaps: []Gap{}, Damaged: []Damage{}, Conflicts: []Conflict{}, Unindexed: []string{}}
	if damaged {
		// A damaged history: it is found again below. Without it nothing can be said of gaps.
		c = &Coverage{SegSize: a.segSize(), Histories: map[wal.Timeline]wal.History{}}
	}
	r.Gaps = append(r.Gaps, c.Gaps()...)
	r.Conflicts = append(r.Conflicts, c.Conflicts...)

	v := verifier{a: a, c: c, o: o, report: r}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(a.o.Workers)
	found := make(map[string]bool)
	for obj, err := range v.objects(gctx) {
		if err != nil {
			group.Go(func() error { return err })
			break
		}
		found[obj.Name] = true
		group.Go(func() error { return v.verify(gctx, obj) })
	}
	if err := group.Wait(); err != nil {
		return nil, fmt.Errorf("verify the archive: %w", err)
	}
	for _, name := range o.Names {
		if !found[name] {
			return nil, fmt.Errorf("verify %s: %w", name, ErrNotArchived)
		}
	}
	slices.SortFunc(r.Damaged, func(x, y Damage) int { return strings.Compare(x.Key, y.Key) })
	slices.Sort(r.Unindexed)
	return r, nil
}

type verifier struct {
	a      *Archive
	c      *Coverage
	o      VerifyOptions
	report *Report

	mu   sync.Mutex
	done VerifyProgress
}

// objects gives what is to be read: of all names, or of those asked for.
func (v *verifier) objects(ctx context.Context) iter.Seq2[object, error] {
	return func(yield func(object, error) bool) {
		prefixes := []string{repo.WALPrefix}
		if len(v.o.Names) > 0 {
			prefixes = nil
			for _, name := range v.o.Names {
				segment, _ := wal.PartialBase(name)
				if segment == "" {
					segment = name
				}
				if wal.Classify(segment) == wal.Other {
					yield(object{}, fmt.Errorf("the server archives no file with the name %q", name))
					return
				}
				prefixes = append(prefixes, namePrefix(segment))
			}
		}
		for _, prefix := range prefixes {
			for o, err := range v.a.repo.List(ctx, prefix, "") {
				if err != nil {
					yield(object{}, err)
					return
				}
				w, ok := repo.ParseWALKey(o.Key)
				if !ok || len(v.o.Names) > 0 && !slices.Contains(v.o.Names, w.Name) {
					continue
				}
				if !yield(object{w, o.Key, o.Size}, nil) {
					return
				}
			}
		}
	}
}

// verify reads one object. What is wrong with it goes to the report.
func (v *verifier) verify(ctx context.Context, o object) error {
	var err error
	indexed := true
	segment := o.Kind == wal.Segment || o.Kind == wal.Partial
	switch {
	case o.Resolved:
		if err = v.a.checkResolution(ctx, o); err == nil {
			err = v.chosen(ctx, o)
		}
	case segment:
		indexed, err = v.segment(ctx, o)
	default:
		err = v.small(ctx, o)
	}
	if err != nil && !errors.Is(err, repo.ErrDamaged) {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	r := v.report
	if err != nil {
		r.Damaged = append(r.Damaged, Damage{Key: o.key, Name: o.Name, Reason: err.Error()})
	}
	if !indexed {
		r.Unindexed = append(r.Unindexed, o.Name)
	}
	if segment && !o.Resolved {
		r.Segments++
	} else {
		r.Files++
	}
	r.Bytes += o.size
	v.done.Objects++
	v.done.Bytes += o.size
	if v.o.Progress != nil {
		v.o.Progress(v.done)
	}
	return nil
}

// chosen verifies that the content that was chosen is there.
func (v *verifier) chosen(ctx context.Context, o object) error {
	c, err := v.a.list(ctx, o.Name)
	if err != nil {
		return err
	}
	if _, err := c.choose(); errors.Is(err, repo.ErrDamaged) {
		return v.a.repo.Damaged(o.key, "%v", err)
	}
	return nil // a conflict is reported as such
}

// small verifies a history or backup history file.
func (v *verifier) small(ctx context.Context, o object) error {
	data, err := v.a.readSmall(ctx, o)
	if err != nil || o.Kind != wal.TimelineHistory {
		return err
	}
	if _, err := wal.ParseHistory(o.Timeline, data); err != nil {
		return v.a.repo.Damaged(o.key, "%v", err)
	}
	return nil
}

// passable verifies that recovery can get through the records of a whole segment. A content that
// was not chosen is not asked for.
func (v *verifier) passable(ctx context.Context, o object, ix *wal.Index) error {
	if ix.Complete {
		return nil
	}
	c, err := v.a.list(ctx, o.Name)
	if err != nil {
		return err
	}
	if chosen, err := c.choose(); err == nil && chosen.key != o.key {
		return nil
	}
	return v.a.repo.Damaged(o.key, "it was archived so: recovery can't pass %s, %s", ix.Stop.LSN, ix.Stop.Reason)
}

// segment verifies object, pages, records and index of a segment, and reports whether it has an index.
func (v *verifier) segment(ctx context.Context, o object) (indexed bool, err error) {
	a := v.a
	name, partial := wal.PartialBase(o.Name)
	if !partial {
		name = o.Name
	}
	hist := v.c.Histories[o.Timeline]
	err = a.withContent(ctx, o, func(t trailer, data []byte) error {
		_, err := wal.CheckSegment(data, wal.Expect{
			Name: name, SystemID: a.repo.SystemID(), SegSize: a.segSize(), Partial: partial, History: hist,
		})
		h, herr := wal.ParseSegmentHeader(data)
		if err != nil && herr == nil && hist.Timeline == 0 && h.Timeline < o.Timeline {
			err = nil // it begins with pages of ancestors, whose history is not archived
		}
		if err != nil {
			return a.repo.Damaged(o.key, "%v", err)
		}
		ix, err := a.decodeIndex(o, t)
		if errors.Is(err, repo.ErrDamaged) {
			return err
		}
		if indexed = ix != nil; !indexed {
			ix, err = wal.BuildIndex(data, o.Timeline)
		}
		if partial || err != nil {
			return nil // what pitr can't index, a server may still know
		}
		return v.passable(ctx, o, ix)
	})
	return indexed, err
}
