package archive

import (
	"context"
	"iter"
	"reflect"
	"strings"
	"testing"

	"pitr/internal/repo"
	"pitr/internal/wal"
	"pitr/storage"
	"pitr/storage/storagetest"
)

// listed counts the listings of WAL.
type listed struct {
	storage.Bucket
	n int
}

func (l *listed) List(ctx context.Context, prefix, after string) iter.Seq2[storage.Object, error] {
	if strings.Contains(prefix, "/"+repo.WALPrefix) {
		l.n++
	}
	return l.Bucket.List(ctx, prefix, after)
}

// Who looks through the archive many times lists it once.
func TestListing(t *testing.T) {
	ctx := context.Background()
	c := wals(t, 1)
	b := &listed{Bucket: storagetest.Memory()}
	a := c.archive(t, b)
	c.push(t, a, c.names...)
	b.n = 0
	l, err := a.Listing(ctx)
	if err != nil || b.n != 1 {
		t.Fatalf("%d listings, %v", b.n, err)
	}
	cov, err := a.Coverage(ctx)
	if err != nil || !reflect.DeepEqual(l.Coverage, cov) {
		t.Errorf("%+v, %v\nwant %+v", l.Coverage, err, cov)
	}
	path, from := c.whole(t, a, 2)
	_, no, err := wal.ParseSegmentName(c.segments[1], l.SegSize)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range [][]Step{path, {{Timeline: 1, First: no, Last: no + 1}}, {path[len(path)-1]}} {
		want := tell(a.Facts(ctx, path, from))
		b.n = 0
		got := tell(l.Skim(ctx, path, from, nil))
		if !reflect.DeepEqual(got, want) || len(got.facts) == 0 || b.n != 0 {
			t.Errorf("%v: %d facts, %q, with %d listings; want %d, %q", path, len(got.facts), got.err, b.n, len(want.facts), want.err)
		}
	}
	for _, path := range [][]Step{{{Timeline: 1, First: no - 1, Last: no + 1000}}, {{Timeline: 9, First: 1, Last: 2}}} {
		if got, want := tell(l.Skim(ctx, path, from, nil)), tell(a.Facts(ctx, path, from)); !reflect.DeepEqual(got, want) || !strings.Contains(got.err, ErrNotArchived.Error()) {
			t.Errorf("%v: %d facts, %q; want %d, %q", path, len(got.facts), got.err, len(want.facts), want.err)
		}
	}
}

// Of beginnings of a segment the longest is read, and two as long as each other are a conflict.
func TestListingOfPartials(t *testing.T) {
	ctx := context.Background()
	c := wals(t, 1)
	b := &listed{Bucket: storagetest.Memory()}
	a := c.archive(t, b)
	c.push(t, a, c.names...)
	segment, _ := wal.PartialBase(c.partial)
	tli, no, err := wal.ParseSegmentName(segment, a.segSize())
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range keys(t, a.repo, repo.SegmentPrefix(segment)+"-") {
		if err := a.repo.Delete(ctx, key); err != nil {
			t.Fatal(err)
		}
	}
	path := []Step{{Timeline: tli, First: no, Last: no, Partial: true}}
	read := func() told {
		l, err := a.Listing(ctx)
		if err != nil {
			t.Fatal(err)
		}
		b.n = 0
		got := tell(l.Skim(ctx, path, 0, nil))
		if want := tell(a.Facts(ctx, path, 0)); !reflect.DeepEqual(got, want) {
			t.Errorf("%d facts, %q; want %d, %q", len(got.facts), got.err, len(want.facts), want.err)
		}
		return got
	}
	if got := read(); len(got.facts) == 0 || got.err != "" || b.n != 1 {
		t.Errorf("%d facts, %q, %d listings", len(got.facts), got.err, b.n)
	}
	var o object
	for _, key := range keys(t, a.repo, repo.SegmentPrefix(segment)+".partial-") {
		if o, err = a.stat(ctx, key); err != nil {
			t.Fatal(err)
		}
	}
	o.Digest[0] ^= 1
	if err := a.repo.Create(ctx, repo.PartialKey(segment, o.End, o.Digest), strings.NewReader("of another server")); err != nil {
		t.Fatal(err)
	}
	if got := read(); !strings.Contains(got.err, "archived with several contents") {
		t.Errorf("with two: %q", got.err)
	}
}
