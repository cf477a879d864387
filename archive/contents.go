package archive

import (
	"context"
	"fmt"
	"slices"
	"time"

	"pitr/internal/repo"
	"pitr/internal/wal"
)

// object is an object under "wal/": what its key says, and its size.
type object struct {
	repo.WALObject
	key  string
	size int64
}

// contents is what lies under one name.
type contents struct {
	name     string
	whole    []object // several: see choose
	partial  []object // of the segment of that name
	resolved []repo.Digest
}

// namePrefix begins the keys of everything that belongs to a name.
func namePrefix(name string) string {
	if wal.Classify(name) == wal.TimelineHistory {
		return repo.WALPrefix + name
	}
	return repo.SegmentPrefix(name)
}

// list asks the store what lies under the name of a segment, a history or a backup history file.
func (a *Archive) list(ctx context.Context, name string) (contents, error) {
	c := contents{name: name}
	for o, err := range a.repo.List(ctx, namePrefix(name), "") {
		if err != nil {
			return c, fmt.Errorf("look for %s in the archive: %w", name, err)
		}
		if w, ok := repo.ParseWALKey(o.Key); ok {
			c.add(object{w, o.Key, o.Size})
		}
	}
	return c, nil
}

// add takes in an object if it belongs to the name.
func (c *contents) add(o object) {
	switch {
	case o.Name == c.name+".partial":
		c.partial = append(c.partial, o)
	case o.Name != c.name:
	case o.Resolved:
		c.resolved = append(c.resolved, o.Digest)
	default:
		c.whole = append(c.whole, o)
	}
}

// listSurely is list for those who will believe in absence: where the store's listings lag, nothing
// found is asked for again after the lag.
func (a *Archive) listSurely(ctx context.Context, name string) (contents, error) {
	c, err := a.list(ctx, name)
	if err != nil || len(c.whole) > 0 || a.repo.Capabilities().StrongList {
		return c, err
	}
	select {
	case <-ctx.Done():
		return c, fmt.Errorf("look for %s in the archive: %w", name, ctx.Err())
	case <-time.After(a.o.ListLag):
	}
	return a.list(ctx, name)
}

func (c *contents) digests() []repo.Digest {
	d := make([]repo.Digest, len(c.whole))
	for i, o := range c.whole {
		d[i] = o.Digest
	}
	return d
}

// find returns the content with that digest.
func (c *contents) find(d repo.Digest) (object, bool) {
	i := slices.IndexFunc(c.whole, func(o object) bool { return o.Digest == d })
	if i < 0 {
		return object{}, false
	}
	return c.whole[i], true
}

// choose returns the content that holds: the only one, or the one that was recorded. It is
// ErrNotArchived where there is none and a ConflictError where nobody has chosen.
func (c *contents) choose() (object, error) {
	if len(c.resolved) > 1 {
		// Two people settled it differently: that is as unsettled as before.
		return object{}, (&ConflictError{Name: c.name, Archived: c.resolved}).withHint()
	}
	if len(c.resolved) == 1 {
		if o, ok := c.find(c.resolved[0]); ok {
			return o, nil
		}
		return object{}, fmt.Errorf("%w: %s: the content that was recorded as the right one, %s, is not there",
			repo.ErrDamaged, c.name, c.resolved[0])
	}
	switch len(c.whole) {
	case 0:
		return object{}, fmt.Errorf("%s: %w", c.name, ErrNotArchived)
	case 1:
		return c.whole[0], nil
	}
	return object{}, (&ConflictError{Name: c.name, Archived: c.digests()}).withHint()
}

// longest returns the partial segment that reaches farthest, ErrConflict where two do with
// different contents.
func (c *contents) longest() (object, error) {
	var best object
	var same []repo.Digest
	for _, o := range c.partial {
		switch {
		case o.End > best.End:
			best, same = o, []repo.Digest{o.Digest}
		case o.End == best.End:
			same = append(same, o.Digest)
		}
	}
	switch len(same) {
	case 0:
		return object{}, fmt.Errorf("%s: %w", c.name, ErrNotArchived)
	case 1:
		return best, nil
	}
	return object{}, (&ConflictError{Name: c.name + ".partial", Archived: same}).withHint()
}
