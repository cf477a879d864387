package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pitr/internal/repo"
	"pitr/internal/wal"
	"pitr/storage/storagetest"
)

// Every flipped bit of an object is noticed by fetch and by verify, and none is handed over. All
// bytes of headers and trailer are tried, and many of the rest.
func TestFlippedBits(t *testing.T) {
	ctx := context.Background()
	c := wals(t, 1)
	b := storagetest.Memory()
	a := c.archive(t, b)
	segment := c.segments[1]
	c.push(t, a, segment, c.partial, c.history)
	base := strings.TrimSuffix(c.partial, ".partial")
	for _, key := range keys(t, a.repo, "wal/") {
		o, _ := repo.ParseWALKey(key)
		object, err := a.repo.ReadAll(ctx, key, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		var flip func([]byte) []byte
		damaged := New(c.repo(t, storagetest.Corrupt(b, func(k string, data []byte) []byte {
			if strings.HasSuffix(k, key) {
				return flip(bytes.Clone(data))
			}
			return data
		})), Options{})
		defer damaged.Close()
		name, opt := o.Name, FetchOptions{}
		if o.Kind == wal.Partial {
			name, opt = base, FetchOptions{Partial: true}
		}
		check := func(what string, verify bool) {
			t.Helper()
			if _, err := fetched(t, damaged, name, opt); err == nil || errors.Is(err, ErrNotArchived) {
				t.Fatalf("%s: %s: %v", name, what, err)
			}
			if !verify {
				return
			}
			r, err := damaged.Verify(ctx, VerifyOptions{Names: []string{o.Name}})
			if err != nil || r.OK() || len(r.Damaged) != 1 || r.Damaged[0].Key != key {
				t.Fatalf("%s: %s: verify: %+v %v", name, what, r, err)
			}
		}
		step := max(1, len(object)/400)
		frames := int64(len(object))
		if o.Kind != wal.TimelineHistory {
			n, err := trailerLen(object)
			if err != nil {
				t.Fatal(err)
			}
			frames -= n
		}
		tried := 0
		for at := 0; at < len(object); at++ {
			dense := at < 64 || int64(at) >= frames && int64(at) < frames+600 || at > len(object)-64
			if !dense && at%step != 0 {
				continue
			}
			for bit := tried % 3; bit < 8; bit += 3 {
				flip = func(d []byte) []byte { d[at] ^= 1 << bit; return d }
				check(fmt.Sprintf("bit %d of byte %d of %d", bit, at, len(object)), tried%40 == 0)
			}
			tried++
		}
		for _, n := range []int{0, 1, 27, len(object) / 2, len(object) - 1} {
			flip = func(d []byte) []byte { return d[:n] }
			check(fmt.Sprintf("cut to %d bytes", n), true)
		}
		flip = func(d []byte) []byte { return append(d, 0) }
		check("a byte longer", true)
		if tried < 100 && o.Kind != wal.TimelineHistory {
			t.Errorf("only %d bytes of %s were tried", tried, key)
		}
	}
}

// An object under the name of another one is as bad as a damaged one.
func TestSwappedObjects(t *testing.T) {
	ctx := context.Background()
	c := wals(t, 1)
	a := c.archive(t, storagetest.Memory())
	c.push(t, a, c.segments[0])
	from := keys(t, a.repo, "wal/")[0]
	object, err := a.repo.ReadAll(ctx, from, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	o, _ := repo.ParseWALKey(from)
	if err := a.repo.Create(ctx, repo.SegmentKey(c.segments[1], o.Digest), bytes.NewReader(object)); err != nil {
		t.Fatal(err)
	}
	if _, err := fetched(t, a, c.segments[1], FetchOptions{}); !errors.Is(err, repo.ErrDamaged) {
		t.Error(err)
	}
	if _, err := a.Push(ctx, c.path(c.segments[1]), c.control.SystemID); !errors.Is(err, ErrConflict) {
		t.Error(err)
	}
}

func TestFaultsInFetch(t *testing.T) {
	c := wals(t, 1)
	for _, mode := range []storagetest.Mode{storagetest.Blip, storagetest.Dead} {
		for _, name := range []string{c.segments[0], c.segments[5], c.history} {
			b := storagetest.Memory()
			healthy := c.archive(t, b)
			c.push(t, healthy, name)
			before := keys(t, healthy.repo, "")
			for n := 1; ; n++ {
				if n > 50 {
					t.Fatal("the fetch never ends")
				}
				counter := storagetest.FailNth(n, mode)
				a := New(c.faulty(t, b, counter), Options{})
				got, err := fetched(t, a, name, FetchOptions{})
				a.Close()
				switch {
				case err == nil && !bytes.Equal(got, c.read(t, name)):
					t.Fatalf("%s, operation %d: another content", name, n)
				case err != nil && (!errors.Is(err, storagetest.ErrFault) || errors.Is(err, ErrNotArchived)):
					t.Fatalf("%s, operation %d: %v", name, n, err)
				}
				if !counter.Fired() {
					break
				}
			}
			c.wantFetched(t, healthy, name)
			if after := keys(t, healthy.repo, ""); !slices.Equal(before, after) {
				t.Fatalf("a fetch changed the store: %v", after)
			}
		}
	}
}

func TestFetchAbsent(t *testing.T) {
	c := wals(t, 1)
	a := c.archive(t, storagetest.Memory())
	c.push(t, a, c.segments[0])
	for _, name := range []string{c.segments[1], c.history, c.partial, c.segments[0] + ".00000028.backup"} {
		if _, err := fetched(t, a, name, FetchOptions{Partial: true}); !errors.Is(err, ErrNotArchived) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"", "x", "../" + c.segments[0], c.segments[0] + ".gz", "0000000100000000FFFFFFFF"} {
		if _, err := fetched(t, a, name, FetchOptions{}); err == nil || errors.Is(err, ErrNotArchived) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFetchReplacesAndUsesUpLeftovers(t *testing.T) {
	c := wals(t, 1)
	a := c.archive(t, storagetest.Memory())
	c.push(t, a, c.segments[0])
	dir := t.TempDir()
	path := filepath.Join(dir, "RECOVERYXLOG")
	write(t, path, []byte("old"))
	write(t, path+temporarySuffix, bytes.Repeat([]byte("left by a killed one"), 1<<20))
	if err := a.Fetch(context.Background(), c.segments[0], path, FetchOptions{}); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, c.read(t, c.segments[0])) {
		t.Fatalf("another content: %v", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Fatalf("%v %v", entries, err)
	}
	// While one fetch writes, another one to the same place fails and disturbs nothing.
	lock, err := openLocked(path + temporarySuffix)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := a.Fetch(context.Background(), c.segments[0], path, FetchOptions{}); err == nil || !strings.Contains(err.Error(), "is another fetch writing it?") {
		t.Fatal(err)
	}
	if err := a.Fetch(context.Background(), c.segments[0], filepath.Join(dir, "none", "x"), FetchOptions{}); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}

// Who waits for a fetch hears of what comes, piece by piece.
func TestFetchTellsOfProgress(t *testing.T) {
	c := wals(t, 16)
	a := c.archive(t, storagetest.Memory())
	name := c.segments[0]
	c.push(t, a, name)
	moved := 0
	if _, err := fetched(t, a, name, FetchOptions{Moved: func() { moved++ }}); err != nil || moved < 4 {
		t.Errorf("%d times, %v", moved, err)
	}
}
