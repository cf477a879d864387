package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"pitr/internal/hint"
	"pitr/internal/repo"
	"pitr/internal/wal"
	"pitr/storage"
	"pitr/storage/storagetest"
)

func TestRoundTrip(t *testing.T) {
	for _, mb := range []int{1, 16, 64, 128} {
		c := wals(t, mb)
		for name, open := range buckets(t) {
			if mb > 1 && name == "no capabilities" || mb > 16 && name == "memory" {
				continue // differ in nothing that the size of a segment could change
			}
			t.Run(fmt.Sprintf("%d MB/%s", mb, name), func(t *testing.T) {
				a := c.archive(t, open())
				for _, name := range c.names {
					p, err := a.Push(context.Background(), c.path(name), c.control.SystemID)
					if err != nil || p.Already || p.Raw == 0 || p.Stored == 0 {
						t.Fatalf("%+v %v", p, err)
					}
					again, err := a.Push(context.Background(), c.path(name), c.control.SystemID)
					if err != nil || !again.Already || again.Key != p.Key || again.Stored != p.Stored {
						t.Fatalf("again: %+v %v", again, err)
					}
				}
				for _, name := range c.names {
					if wal.Classify(name) != wal.Partial {
						c.wantFetched(t, a, name)
					}
				}
				r, err := a.Verify(context.Background(), VerifyOptions{})
				if err != nil || !r.OK() || len(r.Unindexed) > 0 || r.Segments != len(c.segments)+1 || r.Files != len(c.names)-r.Segments {
					t.Fatalf("%+v %v", r, err)
				}
			})
		}
	}
}

func TestObjectIsPlainZstd(t *testing.T) {
	c := wals(t, 16)
	a := c.archive(t, storagetest.Memory())
	c.push(t, a, c.segments[0])
	key := keys(t, a.repo, "wal/")[0]
	object, err := a.repo.ReadAll(context.Background(), key, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	dec, err := zstd.NewReader(bytes.NewReader(object))
	if err != nil {
		t.Fatal(err)
	}
	defer dec.Close()
	var got bytes.Buffer
	if _, err := got.ReadFrom(dec); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), c.read(t, c.segments[0])) {
		t.Error("zstd gives another content")
	}
	m, ix, err := a.ReadIndex(context.Background(), key)
	if err != nil || m.Node != "n1" || m.Name != c.segments[0] || m.Major != c.control.Major || len(m.Frames) != 4 || m.End != ix.ValidEnd || !ix.Complete {
		t.Errorf("%+v %v", m, err)
	}
}

func TestPartial(t *testing.T) {
	c := wals(t, 1)
	a := c.archive(t, storagetest.Memory())
	c.push(t, a, c.partial)
	segment := strings.TrimSuffix(c.partial, ".partial")
	if _, err := fetched(t, a, segment, FetchOptions{}); !errors.Is(err, ErrNotArchived) {
		t.Fatalf("a partial segment was served unasked: %v", err)
	}
	got, err := fetched(t, a, segment, FetchOptions{Partial: true})
	if err != nil {
		t.Fatal(err)
	}
	raw := c.read(t, c.partial)
	o, ok := repo.ParseWALKey(keys(t, a.repo, "wal/")[0])
	if !ok || o.End == 0 || o.End > c.switched {
		t.Fatalf("%+v, timeline 1 was left at %s", o, c.switched)
	}
	used := (int(o.End)%(1<<20) + 8191) / 8192 * 8192
	if len(got) != 1<<20 || !bytes.Equal(got[:used], raw[:used]) || !allZero(got[used:]) {
		t.Error("it is not the beginning, filled up with zeros")
	}
	// The segment of timeline 2 has the same WAL up to the fork.
	if two := c.read(t, "00000002"+segment[8:]); !bytes.Equal(two[:used-8192], got[:used-8192]) {
		t.Error("it differs from the copy on the new timeline")
	}
	// A longer one is taken before a shorter one, and a whole one before both.
	short := bytes.Clone(raw)
	clear(short[len(short)/8:])
	if _, err := a.PushPartial(context.Background(), write(t, filepath.Join(t.TempDir(), segment), short), c.control.SystemID); err != nil {
		t.Fatal(err)
	}
	if n := len(keys(t, a.repo, "wal/")); n != 2 && used > len(short)/8 {
		t.Fatalf("%d objects", n)
	}
	again, err := fetched(t, a, segment, FetchOptions{Partial: true})
	if err != nil || !bytes.Equal(again, got) {
		t.Errorf("the shorter one is served: %v", err)
	}
}

func TestUnfinishedSegmentIsRefused(t *testing.T) {
	c := wals(t, 1)
	a := c.archive(t, storagetest.Memory())
	data := c.read(t, c.segments[0])
	clear(data[len(data)/2:])
	path := write(t, filepath.Join(t.TempDir(), c.segments[0]), data)
	_, err := a.Push(context.Background(), path, c.control.SystemID)
	if !errors.Is(err, ErrSource) || !strings.Contains(err.Error(), "has not finished this segment") || hint.Of(err) == "" {
		t.Fatal(err)
	}
	if _, err := a.PushPartial(context.Background(), path, c.control.SystemID); err != nil {
		t.Fatal(err)
	}
}

func TestRefusedFiles(t *testing.T) {
	c := wals(t, 1)
	a := c.archive(t, storagetest.Memory())
	first, second := c.segments[0], c.segments[1]
	sys := c.control.SystemID
	dir := t.TempDir()
	page := c.read(t, first)
	page[5*8192+8] ^= 1 // the address of a page in the middle
	magic := c.read(t, first)
	magic[0] = 0x19
	otherSystem := c.read(t, first)
	otherSystem[24] ^= 1
	for name, tc := range map[string]struct {
		path string
		sys  uint64
		want string
	}{
		"other server":          {c.path(first), sys + 1, "the server has system identifier"},
		"other server's WAL":    {write(t, filepath.Join(dir, first), otherSystem), sys, "belongs to the cluster with system identifier"},
		"name of another one":   {write(t, filepath.Join(dir, second), c.read(t, first)), sys, "it begins at"},
		"name of no segment":    {write(t, filepath.Join(dir, "000000010000000000000ABC"[:24]+"F"), page), sys, "no file of that name"},
		"impossible number":     {write(t, filepath.Join(dir, "0000000100000000FFFFFFFF"), c.read(t, first)), sys, "no segment of 1048576 bytes has this name"},
		"short":                 {write(t, filepath.Join(dir, c.segments[2]), page[:8192]), sys, "8192 bytes, want 1048576"},
		"a page out of place":   {write(t, filepath.Join(t.TempDir(), first), page), sys, "the page at"},
		"unknown version":       {write(t, filepath.Join(t.TempDir(), first), magic), sys, "magic D119"},
		"not a timeline's past": {write(t, filepath.Join(dir, "00000002.history"), []byte("nonsense\n")), sys, "want a timeline number"},
		"odd label":             {write(t, filepath.Join(dir, first+".FFFFFFFF.backup"), nil), sys, "offset lies beyond"},
		"a directory":           {filepath.Dir(write(t, mkdir(t, dir, c.segments[3])+"/x", nil)), sys, "not a regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := a.Push(context.Background(), tc.path, tc.sys)
			if !errors.Is(err, ErrSource) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
	if got := keys(t, a.repo, ""); len(got) != 1 {
		t.Errorf("something was stored: %v", got)
	}
	if _, err := a.Push(context.Background(), c.path("000000090000000000000001"), sys); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
}

func mkdir(t *testing.T, dir, name string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// The first segment of a timeline begins with pages of the one before: its history is needed, from
// beside it or from the archive.
func TestFirstSegmentOfTimeline(t *testing.T) {
	c := wals(t, 1)
	first := ofTimeline(c.segments, "00000002")[0]
	alone := write(t, filepath.Join(t.TempDir(), first), c.read(t, first))
	a := c.archive(t, storagetest.Memory())
	if _, err := a.Push(context.Background(), alone, c.control.SystemID); !errors.Is(err, ErrSource) {
		t.Fatalf("without any history: %v", err)
	}
	c.push(t, a, c.history)
	if _, err := a.Push(context.Background(), alone, c.control.SystemID); err != nil {
		t.Fatal(err)
	}
}

func TestConflict(t *testing.T) {
	ctx := context.Background()
	c := wals(t, 1)
	name := c.segments[1]
	for bname, open := range buckets(t) {
		t.Run(bname, func(t *testing.T) {
			a := c.archive(t, open())
			c.push(t, a, name)
			other := c.changed(t, name, 1)
			var conflict *ConflictError
			for range 2 {
				_, err := a.Push(ctx, other, c.control.SystemID)
				if !errors.As(err, &conflict) || !errors.Is(err, ErrConflict) || !strings.Contains(hint.Of(err), "pitr wal resolve "+name) {
					t.Fatal(err)
				}
			}
			c.wantFetched(t, a, name)
			cov, err := a.Coverage(ctx)
			if err != nil || len(cov.Conflicts) != 1 || cov.Conflicts[0].Name != name ||
				!slices.Equal(cov.Conflicts[0].Aside, []repo.Digest{conflict.Ours}) || !slices.Equal(cov.Conflicts[0].Archived, conflict.Archived) {
				t.Fatalf("%+v %v", cov.Conflicts, err)
			}
			if err := a.Resolve(ctx, name, repo.DigestOf([]byte("no")), "me"); err == nil || !strings.Contains(err.Error(), "there is no content with digest") {
				t.Fatal(err)
			}
			// The refused one turns out to be right.
			if err := a.Resolve(ctx, name, conflict.Ours, "me"); err != nil {
				t.Fatal(err)
			}
			got, err := fetched(t, a, name, FetchOptions{})
			if err != nil || repo.DigestOf(got) != conflict.Ours {
				t.Fatalf("%s %v", repo.DigestOf(got), err)
			}
			if p, err := a.Push(ctx, other, c.control.SystemID); err != nil || !p.Already {
				t.Fatal(p, err)
			}
			if _, err := a.Push(ctx, c.path(name), c.control.SystemID); !errors.Is(err, ErrConflict) {
				t.Fatal(err)
			}
			if err := a.Resolve(ctx, name, conflict.Ours, "me again"); err != nil {
				t.Fatal(err)
			}
			if err := a.Resolve(ctx, name, conflict.Archived[0], "you"); !errors.Is(err, ErrConflict) {
				t.Fatal(err)
			}
			// What was changed is no record any more.
			r, err := a.Verify(ctx, VerifyOptions{})
			if err != nil || len(r.Conflicts)+len(r.Gaps) != 0 || len(r.Damaged) != 1 || !strings.Contains(r.Damaged[0].Key, conflict.Ours.String()) {
				t.Fatalf("%+v %v", r, err)
			}
		})
	}
}

func TestConflictOfHistories(t *testing.T) {
	ctx := context.Background()
	c := wals(t, 1)
	a := c.archive(t, storagetest.Memory())
	c.push(t, a, c.history)
	other := write(t, filepath.Join(t.TempDir(), c.history), []byte("1\t0/5000000\tno recovery target specified\n"))
	var conflict *ConflictError
	if _, err := a.Push(ctx, other, c.control.SystemID); !errors.As(err, &conflict) {
		t.Fatal(err)
	}
	c.wantFetched(t, a, c.history)
	if err := a.Resolve(ctx, c.history, conflict.Ours, "me"); err != nil {
		t.Fatal(err)
	}
	cov, err := a.Coverage(ctx)
	if err != nil || len(cov.Conflicts) != 0 {
		t.Fatalf("%+v %v", cov.Conflicts, err)
	}
	if h, err := cov.History(2); err != nil || h.Switches[0].At != 0x5000000 {
		t.Errorf("%+v %v", h, err)
	}
}

// Writers that race with different contents under one name: both-or-one. Whoever gets a success
// while others have written something else can be told so only later; but then everybody who asks
// is told, and nothing that was written is lost.
func TestRace(t *testing.T) {
	ctx := context.Background()
	c := wals(t, 1)
	name := c.segments[1]
	const writers, contents = 16, 4
	var paths [contents]string
	var digests [contents]repo.Digest
	for i := range paths {
		paths[i] = c.changed(t, name, byte(i))
		data, err := os.ReadFile(paths[i])
		if err != nil {
			t.Fatal(err)
		}
		digests[i] = repo.DigestOf(data)
	}
	for bname, open := range buckets(t) {
		t.Run(bname, func(t *testing.T) {
			for round := range 3 {
				a := c.archive(t, storage.Prefix(open(), fmt.Sprint("round", round)))
				var errs [writers]error
				var all sync.WaitGroup
				for w := range writers {
					all.Go(func() { _, errs[w] = a.Push(ctx, paths[w%contents], c.control.SystemID) })
				}
				all.Wait()
				acknowledged := make(map[repo.Digest]bool)
				for w, err := range errs {
					switch {
					case err == nil:
						acknowledged[digests[w%contents]] = true
					case !errors.Is(err, ErrConflict):
						t.Fatal(err)
					}
				}
				if len(acknowledged) > 1 {
					t.Fatalf("%d different contents were acknowledged", len(acknowledged))
				}
				l, err := a.list(ctx, name)
				if err != nil {
					t.Fatal(err)
				}
				got, err := fetched(t, a, name, FetchOptions{})
				switch {
				case len(l.whole) > 1:
					if !errors.Is(err, ErrConflict) {
						t.Fatalf("%d contents and %v", len(l.whole), err)
					}
					for _, path := range paths {
						if _, err := a.Push(ctx, path, c.control.SystemID); !errors.Is(err, ErrConflict) {
							t.Fatalf("a later push: %v", err)
						}
					}
				case err != nil:
					t.Fatal(err)
				case len(acknowledged) == 1 && !acknowledged[repo.DigestOf(got)]:
					t.Fatal("what was acknowledged is not what is served")
				}
				var kept []repo.Digest
				for _, k := range keys(t, a.repo, "") {
					if o, ok := repo.ParseWALKey(k); ok {
						kept = append(kept, o.Digest)
					} else if _, d, ok := parseAsideKey(k); ok {
						kept = append(kept, d)
					}
				}
				for i, d := range digests {
					if !slices.Contains(kept, d) {
						t.Errorf("content %d was lost", i)
					}
				}
				// A choice ends it.
				if err := a.Resolve(ctx, name, digests[2], "test"); err != nil {
					t.Fatal(err)
				}
				if got, err = fetched(t, a, name, FetchOptions{}); err != nil || repo.DigestOf(got) != digests[2] {
					t.Fatalf("after the choice: %v", err)
				}
			}
		})
	}
}

// Whichever operation of the store fails, at whatever moment: an acknowledged push can be fetched,
// what is listed is right, and the next try succeeds.
func TestFaultsInPush(t *testing.T) {
	ctx := context.Background()
	c := wals(t, 1)
	for _, mode := range []storagetest.Mode{storagetest.Blip, storagetest.Dead} {
		for _, name := range []string{c.segments[0], c.partial, c.history} {
			for n := 1; ; n++ {
				if n > 50 {
					t.Fatal("the push never ends")
				}
				b := storagetest.Memory()
				healthy := c.archive(t, b)
				counter := storagetest.FailNth(n, mode)
				a := New(c.faulty(t, b, counter), Options{})
				_, err := a.Push(ctx, c.path(name), c.control.SystemID)
				a.Close()
				if err != nil && !errors.Is(err, storagetest.ErrFault) {
					t.Fatalf("%s, operation %d: %v", name, n, err)
				}
				if err == nil && wal.Classify(name) != wal.Partial {
					c.wantFetched(t, healthy, name)
				}
				r, verr := healthy.Verify(ctx, VerifyOptions{})
				if verr != nil || !r.OK() {
					t.Fatalf("%s, operation %d: %+v %v", name, n, r, verr)
				}
				c.push(t, healthy, name)
				if got := keys(t, healthy.repo, "wal/"); len(got) != 1 {
					t.Fatalf("%s, operation %d: %v", name, n, got)
				}
				if !counter.Fired() {
					break
				}
			}
		}
	}
}

// faulty opens the repository before the faults begin.
func (c *corpus) faulty(t *testing.T, b storage.Bucket, counter *storagetest.Counter) *repo.Repo {
	t.Helper()
	on := false
	r := c.repo(t, storagetest.Faulty(b, func(op storagetest.Op, key string) error {
		if !on {
			return nil
		}
		return counter.Fault(op, key)
	}))
	on = true
	return r
}

// A store that shows a new object late must not make a push or a fetch believe what is not so.
func TestLaggingStore(t *testing.T) {
	ctx := context.Background()
	c := wals(t, 1)
	name := c.segments[0]
	b := storagetest.Memory()
	c.push(t, c.archive(t, b), name)
	late := &lagging{Bucket: weak{b}, asked: make(map[string]int)}
	a := New(c.repo(t, late), Options{ListLag: 50 * time.Millisecond})
	defer a.Close()
	c.wantFetched(t, a, name)
	c.push(t, a, c.segments[3])
	c.wantFetched(t, a, c.segments[3])
	begin := time.Now()
	if _, err := fetched(t, a, c.segments[1], FetchOptions{}); !errors.Is(err, ErrNotArchived) || time.Since(begin) < 50*time.Millisecond {
		t.Errorf("%v after %s", err, time.Since(begin))
	}
	short, cancel := context.WithTimeout(ctx, time.Millisecond)
	defer cancel()
	if err := a.Fetch(short, c.segments[2], filepath.Join(t.TempDir(), "x"), FetchOptions{}); err == nil || errors.Is(err, ErrNotArchived) {
		t.Errorf("absence was believed before its time: %v", err)
	}
}

// lagging shows nothing at the first time that a segment is asked for.
type lagging struct {
	storage.Bucket
	asked map[string]int
}

func (l *lagging) List(ctx context.Context, prefix, after string) iter.Seq2[storage.Object, error] {
	if strings.Contains(prefix, "/wal/") {
		if l.asked[prefix]++; l.asked[prefix] == 1 {
			return func(func(storage.Object, error) bool) {}
		}
	}
	return l.Bucket.List(ctx, prefix, after)
}
