package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"pitr/internal/hint"
	"pitr/internal/repo"
	"pitr/internal/wal"
	"pitr/storage"
)

// maxSmall bounds .history and .backup files, which have a few hundred bytes.
const maxSmall = 1 << 20

// Pushed tells what a push did. Sizes are in bytes.
type Pushed struct {
	// Key is the object that holds the content.
	Key string
	// Raw is the length of the content, Stored that of the object.
	Raw, Stored int64
	// Already: the content was archived before, nothing was written.
	Already bool
}

// Push archives the file at path, whose name says what it is: a segment, a partial segment, a
// timeline history or a backup history file. systemID is that of the server whose file it is, from
// its pg_control. It returns nil only when the store has the content, durable.
//
// Pushing the same content again is a success. With another content under the same name it is a
// [ConflictError]: nothing is overwritten, and the refused content is kept beside the archive.
// A file that is not what its name says, or not of this cluster, is ErrSource. A segment that the
// server asks for but will never finish, since it has left the timeline, is archived as a partial
// one, never under its whole name. Push may be repeated
// after any error, and may run for the same file in several processes at once.
func (a *Archive) Push(ctx context.Context, path string, systemID uint64) (Pushed, error) {
	return a.push(ctx, path, filepath.Base(path), systemID)
}

// PushPartial archives what a segment that is not finished holds: that of a server that will not
// finish it any more. It is stored as a partial segment, up to the end of its last whole record.
func (a *Archive) PushPartial(ctx context.Context, path string, systemID uint64) (Pushed, error) {
	return a.push(ctx, path, strings.TrimSuffix(filepath.Base(path), ".partial")+".partial", systemID)
}

func (a *Archive) push(ctx context.Context, path, name string, systemID uint64) (p Pushed, err error) {
	if systemID != a.repo.SystemID() {
		return p, hint.Wrap(
			fmt.Errorf("archive %s: %w: the server has system identifier %d, the repository is of %d", name, ErrSource, systemID, a.repo.SystemID()),
			"point `storage.url` and `postgres.data_dir` to the same cluster")
	}
	k, err := a.borrow()
	if err != nil {
		return p, err
	}
	defer a.giveBack(k)
	switch wal.Classify(name) {
	case wal.Segment:
		p, err = a.pushSegment(ctx, k, path, name, a.pushWhole)
	case wal.Partial:
		p, err = a.pushSegment(ctx, k, path, name, a.pushPart)
	case wal.TimelineHistory, wal.BackupHistory:
		p, err = a.pushSmall(ctx, k, path, name)
	default:
		err = fmt.Errorf("%w: the server archives no file of that name", ErrSource)
	}
	if err != nil {
		return Pushed{}, fmt.Errorf("archive %s: %w", name, err)
	}
	return p, nil
}

// A job is a segment, or a partial one, on its way into the archive.
type job struct {
	k    *kit
	src  *source
	dir  string // of the file
	meta Meta
}

func (a *Archive) pushSegment(ctx context.Context, k *kit, path, name string, push func(context.Context, *job) (Pushed, error)) (p Pushed, err error) {
	tli, no, err := wal.ParseSegmentName(strings.TrimSuffix(name, ".partial"), a.segSize())
	if err != nil {
		return p, fmt.Errorf("%w: %w", ErrSource, err)
	}
	var src *source
	if err := a.work(ctx, func() (err error) { src, err = readSource(path, a.segSize(), 0, k); return err }); err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, src.close()) }()
	j := &job{k: k, src: src, dir: filepath.Dir(path), meta: Meta{
		Name: name, Size: a.segSize(), SystemID: a.repo.SystemID(),
		Timeline: tli, Start: wal.SegmentStart(no, a.segSize()),
		Term: a.o.Origin.Term, Node: a.o.Origin.Node, Pushed: a.o.Now().UTC(),
	}}
	p, err = push(ctx, j)
	if errors.Is(err, ErrSource) && wal.Classify(name) == wal.Segment {
		return a.pushAbandoned(ctx, j, err)
	}
	return p, err
}

// check verifies the pages of the content. The first segment of a timeline begins with pages of its ancestors, which only
// the history proves right: that beside the file, else the archived one. It is read each time, since another one may take
// its place: a server that was restored can begin a timeline anew whose history was never archived.
func (a *Archive) check(ctx context.Context, j *job) error {
	tli := j.meta.Timeline
	hist, herr := wal.History{Timeline: tli}, error(nil)
	if tli > 1 {
		if hist, herr = readHistory(j.dir, tli); herr != nil {
			hist = wal.History{Timeline: tli}
		}
	}
	err := a.checkPages(j, hist)
	if errors.Is(err, ErrSource) && herr != nil {
		// Not there, or damaged: the archive's will do as well.
		data, aerr := a.History(ctx, tli)
		if aerr == nil {
			hist, aerr = wal.ParseHistory(tli, data)
		}
		switch {
		case aerr == nil:
			err = a.checkPages(j, hist)
		case errors.Is(aerr, ErrNotArchived) && errors.Is(herr, fs.ErrNotExist):
		default:
			return errors.Join(herr, aerr)
		}
	}
	if errors.Is(err, ErrSource) {
		return hint.Wrap(err, "the file is damaged or of another server; the server keeps it and goes on asking to archive it. "+
			"If its disk is faulty, replace it and take a new base backup")
	}
	return err
}

func (a *Archive) checkPages(j *job, hist wal.History) error {
	return j.src.guarded(func(data []byte) error {
		segment, partial := wal.PartialBase(j.meta.Name)
		if !partial {
			segment = j.meta.Name
		}
		h, err := wal.CheckSegment(data[:j.meta.Size], wal.Expect{
			Name: segment, SystemID: a.repo.SystemID(), SegSize: a.segSize(), History: hist, Partial: partial,
		})
		if err != nil {
			return fmt.Errorf("%w: %w", ErrSource, err)
		}
		j.meta.Major = h.Major
		return nil
	})
}

func readHistory(dir string, tli wal.Timeline) (wal.History, error) {
	data, err := os.ReadFile(filepath.Join(dir, wal.HistoryName(tli)))
	if err != nil {
		return wal.History{}, err
	}
	return wal.ParseHistory(tli, data)
}

// buildIndex sets what the index tells of the segment in the description and returns its stored
// form. WAL that is right is archived also where the index fails: then the description says why,
// and readers make it from the segment.
func (a *Archive) buildIndex(j *job) ([]byte, error) {
	var ix *wal.Index
	var encoded []byte
	m := &j.meta
	err := j.src.guarded(func(data []byte) (err error) {
		if ix, err = wal.BuildIndex(data, m.Timeline); err != nil {
			m.IndexError = err.Error()
			return nil
		}
		whole := wal.Classify(m.Name) == wal.Segment
		if whole && endsEarly(ix) && (ix.Stop.Kind == wal.StopZero || j.left() != 0) {
			return hint.Wrap(fmt.Errorf("%w: its WAL ends at %s: the server has not finished this segment", ErrSource, ix.ValidEnd),
				"a segment is archived by the server when it is full; SELECT pg_switch_wal() ends it early")
		}
		m.End, m.Switched = ix.ValidEnd, ix.Switched
		if whole && !ix.Complete {
			a.o.Log.Warn("a segment was archived whose records can't all be read: recovery can't pass this place",
				"segment", m.Name, "lsn", ix.Stop.LSN.String(), "reason", ix.Stop.Reason)
		}
		if encoded = ix.Encode(); len(encoded) > repo.MaxFrame {
			m.IndexError = fmt.Sprintf("the index has %d bytes, the most is %d", len(encoded), repo.MaxFrame)
			encoded = nil
		}
		return nil
	})
	if err == nil && m.IndexError != "" {
		a.o.Log.Warn("a segment is archived without an index", "segment", m.Name, "reason", m.IndexError)
	}
	return encoded, err
}

func allZero(data []byte) bool {
	for _, b := range data {
		if b != 0 {
			return false
		}
	}
	return true
}

// digest hashes the content.
func (j *job) digest() (d repo.Digest, err error) {
	err = j.src.guarded(func(data []byte) error {
		d = repo.DigestOf(data[:j.meta.Size])
		return nil
	})
	j.meta.Digest = d.String()
	return d, err
}

func (a *Archive) pushWhole(ctx context.Context, j *job) (Pushed, error) {
	var d repo.Digest
	if err := a.work(ctx, func() (err error) {
		if err = a.check(ctx, j); err == nil {
			d, err = j.digest()
		}
		return err
	}); err != nil {
		return Pushed{}, err
	}
	return a.settle(ctx, j.meta.Name, d, j.meta.Size, repo.SegmentKey(j.meta.Name, d), func(bool) (body io.ReadSeeker, err error) {
		err = a.work(ctx, func() error { body, err = a.pack(j); return err })
		return body, err
	})
}

// pack makes the object of a segment: in memory, so that storing it takes no processor and trying
// again compresses nothing; one that is mapped is compressed while it is stored.
func (a *Archive) pack(j *job) (io.ReadSeeker, error) {
	index, err := a.buildIndex(j)
	if err != nil {
		return nil, err
	}
	body := newObjectReader(j.k, j.src, j.meta, index)
	if j.src.mapped {
		return body, nil
	}
	j.k.packed.Reset()
	if _, err := j.k.packed.ReadFrom(body); err != nil {
		return nil, err
	}
	return bytes.NewReader(j.k.packed.Bytes()), nil
}

// settle archives one content under a name: it stores it unless it is there, refuses it where
// another one holds, and believes only what the store lists afterwards. make gives the object's
// bytes, or those that are kept aside where it is refused; it is called once at most.
func (a *Archive) settle(ctx context.Context, name string, d repo.Digest, raw int64, key string, make func(aside bool) (io.ReadSeeker, error)) (Pushed, error) {
	c, err := a.list(ctx, name)
	if err != nil {
		return Pushed{}, err
	}
	p := Pushed{Key: key, Raw: raw}
	if o, ok := c.find(d); ok {
		if err := a.accept(ctx, &c, o, raw); err != nil {
			return Pushed{}, err
		}
		// Whoever stored it may have been killed before it was durable.
		if err := a.repo.Settle(ctx, o.key); err != nil {
			return Pushed{}, err
		}
		p.Stored, p.Already = o.size, true
		return p, nil
	}
	refused := len(c.whole) > 0 || len(c.resolved) > 0
	body, err := make(refused)
	if err != nil {
		return Pushed{}, err
	}
	if refused {
		return Pushed{}, a.refuse(ctx, &c, d, body)
	}
	if err := a.repo.Create(ctx, key, body); err != nil && !errors.Is(err, storage.ErrExists) {
		return Pushed{}, err
	}
	if c, err = a.list(ctx, name); err != nil {
		return Pushed{}, err
	}
	o, ok := c.find(d)
	if !ok {
		if a.repo.Capabilities().StrongList {
			return Pushed{}, fmt.Errorf("%s was stored, but %s does not list it", key, a.repo.Where(""))
		}
		if o, err = a.own(ctx, key); err != nil {
			return Pushed{}, err
		}
		c.add(o)
	}
	if err := a.accept(ctx, &c, o, raw); err != nil {
		return Pushed{}, err
	}
	p.Stored = o.size
	return p, nil
}

// own describes an object that was just stored and that the store's listing still hides.
func (a *Archive) own(ctx context.Context, key string) (object, error) {
	s, err := a.repo.Stat(ctx, key)
	if err != nil {
		return object{}, fmt.Errorf("look for what was just stored: %w", err)
	}
	w, _ := repo.ParseWALKey(key)
	return object{w, key, s.Size}, nil
}

// accept says whether the content that lies in the archive as o holds under its name, and makes
// sure that the object is whole as far as its end tells.
func (a *Archive) accept(ctx context.Context, c *contents, o object, raw int64) error {
	chosen, err := c.choose()
	var conflict *ConflictError
	switch {
	case errors.As(err, &conflict):
		conflict.Ours = o.Digest
		return err
	case err != nil:
		return err
	case chosen.Digest != o.Digest:
		return (&ConflictError{Name: c.name, Ours: o.Digest, Archived: []repo.Digest{chosen.Digest}, Aside: o.key}).withHint()
	}
	if o.Kind != wal.Segment && o.Kind != wal.Partial {
		if o.size != raw {
			return a.repo.Damaged(o.key, "it has %d bytes, not %d", o.size, raw)
		}
		return nil
	}
	return a.whole(ctx, o, raw)
}

// whole verifies the end of a stored object, which tells whether it is complete and of raw bytes.
func (a *Archive) whole(ctx context.Context, o object, raw int64) error {
	t, err := a.readTrailer(ctx, o)
	if err == nil && t.meta.Size != raw {
		err = a.repo.Damaged(o.key, "it is of %d bytes, not %d", t.meta.Size, raw)
	}
	return err
}

// refuse keeps a content aside that must not get the name, and says so.
func (a *Archive) refuse(ctx context.Context, c *contents, d repo.Digest, body io.Reader) error {
	archived := c.digests()
	if len(c.resolved) > 0 {
		archived = c.resolved
	}
	slices.SortFunc(archived, func(x, y repo.Digest) int { return bytes.Compare(x[:], y[:]) })
	e := &ConflictError{Name: c.name, Ours: d, Archived: archived, Aside: repo.AsideKey(c.name, d)}
	if err := a.repo.Create(ctx, e.Aside, body); err != nil && !errors.Is(err, storage.ErrExists) {
		e.Aside = ""
		return errors.Join(e.withHint(), fmt.Errorf("keep the refused content: %w", err))
	}
	return e.withHint()
}

// pushSmall archives a .history or .backup file, as it is.
func (a *Archive) pushSmall(ctx context.Context, k *kit, path, name string) (Pushed, error) {
	src, err := readSource(path, -1, maxSmall, k)
	if err != nil {
		return Pushed{}, err
	}
	d := repo.DigestOf(src.data)
	var key string
	if tli, err := wal.ParseHistoryName(name); err == nil {
		if _, err := wal.ParseHistory(tli, src.data); err != nil {
			return Pushed{}, fmt.Errorf("%w: %w", ErrSource, err)
		}
		key = repo.HistoryKey(tli, d)
	} else {
		if _, _, _, err := wal.ParseBackupHistoryName(name, a.segSize()); err != nil {
			return Pushed{}, fmt.Errorf("%w: %w", ErrSource, err)
		}
		key = repo.LabelKey(name, d)
	}
	return a.settle(ctx, name, d, int64(len(src.data)), key, func(aside bool) (io.ReadSeeker, error) {
		if !aside {
			return bytes.NewReader(src.data), nil
		}
		frame, err := k.enc.Append(nil, src.data)
		return bytes.NewReader(frame), err
	})
}
