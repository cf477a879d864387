package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"pitr/internal/repo"
	"pitr/internal/wal"
	"pitr/storage"
)

// Stretches of segments that are rolled up together. Their bounds are multiples of their lengths,
// so that all who roll up make the same objects. A stretch is rolled up once a later segment of its
// timeline is archived; the long ones take the place of the short ones in them.
type stretches struct{ short, long uint64 }

var usualStretches = stretches{short: 32, long: rollUpMax}

// RolledUp says what RollUp has done.
type RolledUp struct {
	Written int // objects
	Removed int // objects that others replace, that are damaged, or whose segments are gone
}

// RollUp puts together the indexes of segments that Skim reads in their place. It reads what is new
// since it ran last; with verify also all that it has made, and makes anew what is damaged, or not
// of the segments that are archived now. Several may do it at the same time, on any hosts: all they
// can do to each other is work done twice. After an error it can be repeated.
func (a *Archive) RollUp(ctx context.Context, verify bool) (RolledUp, error) {
	w := roller{archive: a, stretches: usualStretches, verify: verify}
	err := w.run(ctx)
	if err != nil {
		err = fmt.Errorf("roll up the WAL indexes: %w", err)
	}
	return w.done, err
}

type roller struct {
	archive *Archive
	stretches
	verify bool
	done   RolledUp

	have []rollUpName // all there were
	used map[string]bool
	// block is the long stretch that is being listed: its segments, and the one in front of it.
	block  []object
	first  uint64
	tli    wal.Timeline
	before object
}

func (w *roller) run(ctx context.Context) error {
	a := w.archive
	var err error
	if w.have, err = a.listRollUps(ctx, repo.IndexPrefix); err != nil {
		return err
	}
	w.used = make(map[string]bool)
	for o, err := range a.wholeSegments(ctx) {
		if err != nil {
			return err
		}
		_, no, err := wal.ParseSegmentName(o.Name, a.segSize())
		if err != nil {
			return fmt.Errorf("list the archive: %w", err)
		}
		if first := no - no%w.long; w.block == nil || o.Timeline != w.tli || first != w.first {
			if err := w.flush(ctx, o.Timeline == w.tli); err != nil {
				return err
			}
			// What the block before ended with is the one in front of this one.
			w.before = object{}
			if w.block != nil && o.Timeline == w.tli && first == w.first+w.long {
				w.before = w.block[w.long-1]
			}
			w.block, w.first, w.tli = make([]object, w.long), first, o.Timeline
		}
		w.block[no-w.first] = o
	}
	if err := w.flush(ctx, false); err != nil {
		return err
	}
	return w.removeGone(ctx)
}

// wholeSegments lists the segments of all timelines, those that nobody has chosen the content of left
// out.
func (a *Archive) wholeSegments(ctx context.Context) iter.Seq2[object, error] {
	return func(yield func(object, error) bool) {
		var now contents
		give := func() bool {
			o, err := now.choose()
			return err != nil || yield(o, nil) // without a choice it is as if there were none
		}
		for s, err := range a.repo.List(ctx, repo.WALPrefix, "") {
			if err != nil {
				yield(object{}, fmt.Errorf("list the archive: %w", err))
				return
			}
			w, ok := repo.ParseWALKey(s.Key)
			if !ok || w.Kind != wal.Segment {
				continue
			}
			if w.Name != now.name {
				if now.name != "" && !give() {
					return
				}
				now = contents{name: w.Name}
			}
			now.add(object{w, s.Key, s.Size})
		}
		if now.name != "" {
			give()
		}
	}
}

// flush rolls up what can be of the block. over says that the timeline goes on behind it.
func (w *roller) flush(ctx context.Context, over bool) error {
	if w.block == nil {
		return nil
	}
	if over {
		if err := w.stretch(ctx, 0, w.long); err != nil {
			return err
		}
		// The short ones in it have nothing to add.
		var old []string
		for _, n := range w.have {
			if n.timeline == w.tli && n.first >= w.first && n.last < w.first+w.long && n.last-n.first+1 < w.long {
				old = append(old, n.key)
			}
		}
		return w.remove(ctx, old)
	}
	last := w.long - 1
	for w.block[last].key == "" {
		last--
	}
	for at := uint64(0); at+w.short <= last; at += w.short {
		if err := w.stretch(ctx, at, w.short); err != nil {
			return err
		}
	}
	return nil
}

// stretch makes sure that the n segments of the block from at on are rolled up, if there are any.
func (w *roller) stretch(ctx context.Context, at, n uint64) error {
	a := w.archive
	segments := w.block[at : at+n]
	before := w.before
	if at > 0 {
		before = w.block[at-1]
	}
	if !slices.ContainsFunc(segments, func(o object) bool { return o.key != "" }) {
		return nil
	}
	first := w.first + at
	var same []rollUpName
	for _, h := range w.have {
		if h.timeline == w.tli && h.first == first && h.last == first+n-1 {
			same = append(same, h)
		}
	}
	if len(same) == 1 && !w.verify {
		w.used[same[0].key] = true
		return nil
	}
	// Of several, those of two writers or an older listing's, the first that is right stays.
	var stale, damaged []string
	var known []*rollUp
	good := false
	for _, h := range same {
		r, err := a.readRollUp(ctx, h)
		switch {
		case errors.Is(err, repo.ErrDamaged):
			a.o.Log.Warn("rolled-up WAL indexes are damaged and are made anew", "object", a.repo.Where(h.key), "error", err)
			damaged = append(damaged, h.key)
		case errors.Is(err, storage.ErrNotFound):
		case err != nil:
			return err
		case !good && r.fits(segments, before):
			good = true
			w.used[h.key] = true
		default:
			stale = append(stale, h.key)
			known = append(known, r)
		}
	}
	// The new one may have the name of the damaged one, which has to go first.
	if err := w.remove(ctx, damaged); err != nil {
		return err
	}
	if !good {
		for _, h := range w.have {
			if h.timeline != w.tli || h.first < first || h.last >= first+n || h.last-h.first+1 == n {
				continue
			}
			switch r, err := a.readRollUp(ctx, h); {
			case err == nil:
				known = append(known, r)
			case !errors.Is(err, repo.ErrDamaged) && !errors.Is(err, storage.ErrNotFound):
				return err
			}
		}
		r, err := a.makeRollUp(ctx, w.tli, first, segments, before, known)
		if err != nil {
			return err
		}
		key, err := a.writeRollUp(ctx, r)
		if err != nil {
			return err
		}
		w.done.Written++
		w.used[key] = true
		stale = slices.DeleteFunc(stale, func(k string) bool { return k == key })
	}
	return w.remove(ctx, stale)
}

// fits tells whether a roll-up knows all of the segments there are.
func (r *rollUp) fits(segments []object, before object) bool {
	if before.key != "" && before.Digest != r.before {
		return false
	}
	for i, o := range segments {
		if o.key != "" && r.entries[i].digest != o.Digest {
			return false
		}
	}
	return true
}

// makeRollUp rolls up segments from number first on, taking from known what fits.
func (a *Archive) makeRollUp(ctx context.Context, tli wal.Timeline, first uint64, segments []object, before object, known []*rollUp) (*rollUp, error) {
	r := &rollUp{timeline: tli, first: first, before: before.Digest, entries: make([]rollUpItem, len(segments))}
	missing := make([]bool, len(segments))
	room := rollUpBytes
	for i, o := range segments {
		e := &r.entries[i]
		e.digest = o.Digest
		if o.key == "" {
			continue
		}
		missing[i] = true
		no := first + uint64(i)
		for _, k := range known {
			ix, err := k.index(no, o.Digest, r.digestBefore(no), a.repo.SystemID(), a.segSize())
			if err == nil && ix != nil {
				room -= e.hold(k.entries[no-k.first].index, room)
				missing[i] = false
				break
			}
		}
	}
	return r, a.readMissing(ctx, r, segments, before, missing, room)
}

// hold takes in an index if it is short enough, and returns its length then.
func (e *rollUpItem) hold(index []byte, room int) int {
	if len(index) > min(rollUpEntry, room) {
		return 0
	}
	e.index = index
	return len(index)
}

// readMissing makes the entries of the segments that are missing from their indexes and those in
// front of them. A segment without a usable index is left to whoever needs it: no content is read.
func (a *Archive) readMissing(ctx context.Context, r *rollUp, segments []object, before object, missing []bool, room int) error {
	// needed are the objects to read. Each segment follows the one in front of it, if there is one.
	needed := func(yield func(wanted, error) bool) {
		if missing[0] && before.key != "" && !yield(wanted{object: before}, nil) {
			return
		}
		for i, o := range segments {
			read := missing[i] || i+1 < len(segments) && missing[i+1]
			if read && o.key != "" && !yield(wanted{object: o}, nil) {
				return
			}
		}
	}
	usable := func(ctx context.Context, o object) (*Meta, *wal.Index, error) {
		t, err := a.readTrailer(ctx, o)
		if errors.Is(err, repo.ErrDamaged) || errors.Is(err, storage.ErrNotFound) {
			return nil, nil, nil
		}
		if err != nil {
			return nil, nil, err
		}
		ix, err := a.decodeIndex(o, t)
		if err != nil {
			ix = nil
		}
		return t.meta, ix, nil
	}
	var last *wal.Index
	for p, err := range a.readAhead(ctx, needed, usable) {
		if err != nil {
			return err
		}
		front := last
		if last = p.Index; last == nil {
			continue
		}
		i := int(wal.SegmentOf(last.Start, last.SegSize) - r.first) // -1: the one in front of all
		if i < 0 || !missing[i] {
			continue
		}
		if ix := alone(front, last); ix != nil {
			room -= r.entries[i].hold(ix.Shorten().Encode(), room)
		}
	}
	return nil
}

// alone returns a copy of the index that stands alone: with the record absorbed that began in the
// segment in front, whose index is front. Nil: that can't be told.
func alone(front, own *wal.Index) *wal.Index {
	ix := *own
	if h := &ix.Head; !h.Abandoned && h.Rest > 0 && h.Len == h.Rest {
		if front == nil || front.Timeline != ix.Timeline {
			return nil
		}
		s, err := wal.Join(front, &ix)
		if err != nil {
			return nil // it is too long
		}
		ix.Absorb(s) // nothing, if it began still earlier
	}
	if !standsAlone(&ix) {
		return nil
	}
	return &ix
}

// writeRollUp stores a roll-up. An object of its name is one of its content: another writer's.
func (a *Archive) writeRollUp(ctx context.Context, r *rollUp) (key string, err error) {
	raw := r.encode()
	key = repo.RollUpKey(r.timeline, r.first, r.last(), repo.DigestOf(raw))
	k, err := a.borrow()
	if err != nil {
		return "", err
	}
	defer a.giveBack(k)
	stored, err := k.enc.Append(nil, raw)
	if err != nil {
		return "", err
	}
	if err := a.repo.Create(ctx, key, bytes.NewReader(stored)); err != nil && !errors.Is(err, storage.ErrExists) {
		return "", err
	}
	return key, nil
}

// removeGone removes the roll-ups of which no segment is archived any more.
func (w *roller) removeGone(ctx context.Context) error {
	var gone []string
	for _, n := range w.have {
		if w.used[n.key] {
			continue
		}
		left, err := w.archive.anySegment(ctx, n.timeline, n.first, n.last)
		if err != nil {
			return err
		}
		if !left {
			gone = append(gone, n.key)
		}
	}
	return w.remove(ctx, gone)
}

// remove deletes roll-ups, which nothing depends on.
func (w *roller) remove(ctx context.Context, keys []string) error {
	if len(keys) == 0 {
		return nil
	}
	if err := w.archive.repo.Delete(ctx, keys...); err != nil {
		return err
	}
	w.have = slices.DeleteFunc(w.have, func(n rollUpName) bool { return slices.Contains(keys, n.key) })
	w.done.Removed += len(keys)
	return nil
}

// pruneRollUps removes the roll-ups that tell of nothing but what was pruned.
func (a *Archive) pruneRollUps(ctx context.Context, it PruneItem) (objects int, bytes int64, err error) {
	var gone []string
	for o, err := range a.repo.List(ctx, repo.RollUpDir(it.Timeline), "") {
		if err != nil {
			return 0, 0, err
		}
		n, ok := parseRollUpName(o.Key)
		if !ok || n.last < it.First || n.first > it.Last {
			continue
		}
		left, err := a.anySegment(ctx, n.timeline, n.first, n.last)
		if err != nil {
			return 0, 0, err
		}
		if !left {
			gone, bytes = append(gone, n.key), bytes+o.Size
		}
	}
	if len(gone) == 0 {
		return 0, 0, nil
	}
	return len(gone), bytes, a.repo.Delete(ctx, gone...)
}

// anySegment tells whether a segment of a range is archived.
func (a *Archive) anySegment(ctx context.Context, tli wal.Timeline, first, last uint64) (bool, error) {
	end := wal.SegmentName(tli, last, a.segSize())
	for o, err := range a.repo.List(ctx, repo.TimelineDir(tli), repo.SegmentPrefix(wal.SegmentName(tli, first, a.segSize()))) {
		if err != nil {
			return false, fmt.Errorf("list the archive: %w", err)
		}
		if w, ok := repo.ParseWALKey(o.Key); ok && w.Kind == wal.Segment {
			return w.Name <= end, nil
		}
	}
	return false, nil
}
