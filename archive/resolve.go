package archive

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"pitr/internal/hint"
	"pitr/internal/repo"
	"pitr/internal/wal"
	"pitr/storage"
)

// resolution is the record of a choice between several contents of one name.
type resolution struct {
	Name   string    `json:"segment"`
	Digest string    `json:"digest"`
	By     string    `json:"by"`
	At     time.Time `json:"at"`
}

// Resolve records that of several contents under a name (of a segment, a timeline history, a backup
// history file) the one with digest d holds. It may also be one that was refused when it was
// pushed. by says who chose. All contents stay. The same choice again is a success, another one a
// ConflictError: a choice is made once.
func (a *Archive) Resolve(ctx context.Context, name string, d repo.Digest, by string) error {
	if err := a.resolve(ctx, name, d, by); err != nil {
		return fmt.Errorf("resolve %s: %w", name, err)
	}
	return nil
}

func (a *Archive) resolve(ctx context.Context, name string, d repo.Digest, by string) error {
	switch wal.Classify(name) {
	case wal.Segment, wal.TimelineHistory, wal.BackupHistory:
	default:
		return errors.New("it is not the name of a segment, a timeline history or a backup history file")
	}
	c, err := a.list(ctx, name)
	if err != nil {
		return err
	}
	if slices.Contains(c.resolved, d) && len(c.resolved) == 1 {
		return nil
	}
	if len(c.resolved) > 0 {
		return &ConflictError{Name: name, Ours: d, Archived: c.resolved}
	}
	if _, ok := c.find(d); !ok {
		if err := a.takeBack(ctx, &c, d); err != nil {
			return err
		}
	}
	r := resolution{Name: name, Digest: d.String(), By: by, At: a.o.Now().UTC().Truncate(time.Second)}
	err = a.repo.PutDocument(ctx, repo.ResolvedKey(name, d), r)
	if err != nil && !errors.Is(err, storage.ErrExists) {
		return err
	}
	return nil
}

// takeBack stores a refused content under the name.
func (a *Archive) takeBack(ctx context.Context, c *contents, d repo.Digest) error {
	aside := repo.AsideKey(c.name, d)
	s, err := a.repo.Stat(ctx, aside)
	if errors.Is(err, storage.ErrNotFound) {
		return hint.Wrap(fmt.Errorf("there is no content with digest %s; there are %v", d, c.digests()),
			"`pitr wal list` shows the conflicts with all their digests")
	}
	if err != nil {
		return err
	}
	var key string
	if wal.Classify(c.name) == wal.Segment {
		key = repo.SegmentKey(c.name, d)
		w, _ := repo.ParseWALKey(key)
		o := object{w, aside, s.Size}
		// Not a bit of it may be other than what was pushed.
		if err := a.withContent(ctx, o, func(trailer, []byte) error { return nil }); err != nil {
			return err
		}
		body, err := a.repo.Get(ctx, aside)
		if err != nil {
			return err
		}
		defer body.Close()
		err = a.repo.Create(ctx, key, body)
		if err != nil && !errors.Is(err, storage.ErrExists) {
			return err
		}
		copied, err := a.stat(ctx, key)
		if err != nil {
			return err
		}
		return a.whole(ctx, copied, a.segSize())
	}
	data, err := a.readAside(ctx, aside, d)
	if err != nil {
		return err
	}
	key = repo.LabelKey(c.name, d)
	if tli, err := wal.ParseHistoryName(c.name); err == nil {
		key = repo.HistoryKey(tli, d)
	}
	return a.repo.CreateSame(ctx, key, data)
}

// readAside reads a refused history or backup history file, which is one zstd frame.
func (a *Archive) readAside(ctx context.Context, key string, d repo.Digest) ([]byte, error) {
	frame, err := a.repo.ReadAll(ctx, key, int64(repo.Bound(maxSmall)))
	if err != nil {
		return nil, err
	}
	k, err := a.borrow()
	if err != nil {
		return nil, err
	}
	defer a.giveBack(k)
	n, err := repo.RawLen(frame)
	if err != nil {
		return nil, a.repo.Damaged(key, "%v", err)
	}
	data, err := k.dec.Decode(nil, frame, n)
	if err != nil {
		return nil, a.repo.Damaged(key, "%v", err)
	}
	if repo.DigestOf(data) != d {
		return nil, a.repo.Damaged(key, "its content has another digest than its name")
	}
	return data, nil
}

// checkResolution verifies the record of a choice.
func (a *Archive) checkResolution(ctx context.Context, o object) error {
	var r resolution
	if err := a.repo.GetDocument(ctx, o.key, &r); err != nil {
		return err
	}
	if r.Name != o.Name || r.Digest != o.Digest.String() {
		return a.repo.Damaged(o.key, "it records a choice for %s", r.Name)
	}
	return nil
}

// parseAsideKey reads a key under "aside/".
func parseAsideKey(key string) (name string, d repo.Digest, ok bool) {
	base, ok := strings.CutPrefix(key, repo.AsidePrefix)
	if !ok {
		return "", d, false
	}
	base, ok = strings.CutSuffix(base, ".zst")
	i := strings.LastIndexByte(base, '-')
	if !ok || i < 0 || wal.Classify(base[:i]) == wal.Other {
		return "", d, false
	}
	d, err := repo.ParseDigest(base[i+1:])
	return base[:i], d, err == nil
}
