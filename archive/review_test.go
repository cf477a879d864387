package archive

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"pitr/internal/repo"
	"pitr/internal/wal"
	"pitr/storage"
	"pitr/storage/storagetest"
)

// settled notes what is made durable, and can fail at it.
type settled struct {
	storage.Bucket
	keys []string
	err  error
}

func (s *settled) Settle(_ context.Context, key string) error {
	s.keys = append(s.keys, key)
	return s.err
}

// What another process has stored and not made durable yet must not be acknowledged before it is.
func TestFoundIsMadeDurable(t *testing.T) {
	ctx := context.Background()
	c := wals(t, 1)
	b := &settled{Bucket: storagetest.Memory()}
	a := c.archive(t, b)
	for _, name := range []string{c.segments[0], c.partial, c.history} {
		b.keys, b.err = nil, nil
		c.push(t, a, name)
		if len(b.keys) != 0 {
			t.Errorf("%s: settled %v though it was created here", name, b.keys)
		}
		p, err := a.Push(ctx, c.path(name), c.control.SystemID)
		if err != nil || !p.Already || len(b.keys) != 1 || !strings.HasSuffix(b.keys[0], "/"+p.Key) {
			t.Errorf("%s: %+v %v, settled %v", name, p, err, b.keys)
		}
		b.err = errors.New("no disk")
		if _, err := a.Push(ctx, c.path(name), c.control.SystemID); !errors.Is(err, b.err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A choice whose content is gone is a missing segment, and no reason to say nothing of the others.
func TestChosenContentIsGone(t *testing.T) {
	ctx := context.Background()
	c := wals(t, 1)
	a := c.archive(t, storagetest.Memory())
	c.push(t, a, c.segments[0])
	c.push(t, a, c.segments[1])
	c.push(t, a, c.segments[2])
	d := repo.DigestOf(c.read(t, c.segments[1]))
	if err := a.Resolve(ctx, c.segments[1], d, "me"); err != nil {
		t.Fatal(err)
	}
	if err := a.repo.Delete(ctx, repo.SegmentKey(c.segments[1], d)); err != nil {
		t.Fatal(err)
	}
	r, err := a.Verify(ctx, VerifyOptions{})
	if err != nil || r.OK() || len(r.Gaps) != 1 || r.Gaps[0].First != c.segments[1] ||
		len(r.Damaged) != 1 || r.Damaged[0].Name != c.segments[1] || !strings.Contains(r.Damaged[0].Reason, d.String()) {
		t.Fatalf("%+v %v", r, err)
	}
	if _, err := fetched(t, a, c.segments[1], FetchOptions{}); err == nil || errors.Is(err, ErrNotArchived) {
		t.Errorf("fetched: %v", err)
	}
}

// The archive ends behind its last segment also where that has several contents, or the one that was chosen is gone: who
// wants everything must be told that it can't be had.
func TestEndThatCannotBeRead(t *testing.T) {
	ctx := context.Background()
	c := wals(t, 1)
	for name, spoil := range map[string]func(a *Archive, last string, d repo.Digest) error{
		"conflict": func(a *Archive, last string, d repo.Digest) error {
			d[0] ^= 1
			return a.repo.Create(ctx, repo.SegmentKey(last, d), strings.NewReader("of a writer that raced"))
		},
		"chosen, and gone": func(a *Archive, last string, d repo.Digest) error {
			return errors.Join(a.Resolve(ctx, last, d, "me"), a.repo.Delete(ctx, repo.SegmentKey(last, d)))
		},
	} {
		a := c.archive(t, storagetest.Memory())
		last := c.segments[2]
		c.push(t, a, c.segments[0], c.segments[1], last)
		if err := spoil(a, last, repo.DigestOf(c.read(t, last))); err != nil {
			t.Fatal(err)
		}
		cov, err := a.Coverage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		tli, no, err := wal.ParseSegmentName(last, cov.SegSize)
		if err != nil {
			t.Fatal(err)
		}
		h := wal.History{Timeline: tli}
		if got, want := cov.End(h), wal.SegmentStart(no+1, cov.SegSize); got != want {
			t.Errorf("%s: the archive ends at %s, want %s", name, got, want)
		}
		_, missing := cov.Path(h, wal.SegmentStart(no-2, cov.SegSize), cov.End(h))
		if missing == nil || missing.Segment != last || missing.Conflict != (name == "conflict") || missing.Reachable != wal.SegmentStart(no, cov.SegSize) {
			t.Errorf("%s: on the way there is missing %+v", name, missing)
		}
	}
}

// Pages that are right around records that are not: the server keeps no other copy, so it is archived, but nobody may
// be told that all is well.
func TestVerifyFindsWhatRecoveryCannotPass(t *testing.T) {
	ctx := context.Background()
	c := wals(t, 1)
	path := c.changed(t, c.segments[1], 1)
	a, bare := c.archive(t, storagetest.Memory()), c.archive(t, storagetest.Memory())
	p, err := a.Push(ctx, path, c.control.SystemID)
	if err != nil {
		t.Fatal(err)
	}
	m, _, err := a.ReadIndex(ctx, p.Key)
	if err != nil {
		t.Fatal(err)
	}
	k, err := bare.borrow()
	if err != nil {
		t.Fatal(err)
	}
	defer bare.giveBack(k)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := bare.repo.Create(ctx, p.Key, newObjectReader(k, &source{data: data}, *m, nil)); err != nil {
		t.Fatal(err)
	}
	for name, a := range map[string]*Archive{"with an index": a, "without": bare} {
		c.push(t, a, c.segments[2])
		r, err := a.Verify(ctx, VerifyOptions{})
		if err != nil || r.OK() || len(r.Damaged) != 1 || r.Damaged[0].Name != c.segments[1] || !strings.Contains(r.Damaged[0].Reason, "recovery can't pass") {
			t.Errorf("%s: %+v %v", name, r, err)
		}
	}
}

// A history whose bytes are those that were stored, but which no server can read.
func TestVerifyReadsHistories(t *testing.T) {
	ctx := context.Background()
	c := wals(t, 1)
	a := c.archive(t, storagetest.Memory())
	text := []byte("no history\n")
	if err := a.repo.Create(ctx, repo.HistoryKey(2, repo.DigestOf(text)), strings.NewReader(string(text))); err != nil {
		t.Fatal(err)
	}
	r, err := a.Verify(ctx, VerifyOptions{})
	if err != nil || len(r.Damaged) != 1 || r.Damaged[0].Name != wal.HistoryName(2) {
		t.Fatalf("%+v %v", r, err)
	}
}
