package storagetest

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"pitr/storage"
)

// testOrder compares listings with the plain definition, for keys in which names are the beginnings of others and
// characters stand on both sides of "/".
func testOrder(t *testing.T, b storage.Bucket) {
	rng := rand.New(rand.NewPCG(1, 2))
	word := func(letters string, most int) string {
		s := make([]byte, 1+rng.IntN(most))
		for i := range s {
			s[i] = letters[rng.IntN(len(letters))]
		}
		return string(s)
	}
	keys := []string{"a/b", "a.b", "a-b", "a0b", "a b", "a/b.c", "a.b.c", "b/a/x", "b/a.x", "b/a-/x", "b/a0"}
	for range 150 {
		parts := make([]string, 1+rng.IntN(3))
		for i := range parts {
			parts[i] = "x" + word("x.-0 ä", 3) // a dot may not come first
		}
		// Ends of its own, so that no key is the beginning of another.
		keys = append(keys, strings.ToValidUTF8(strings.Join(parts, "/"), "é")+"!")
	}
	slices.Sort(keys)
	keys = slices.Compact(keys)
	for _, i := range rng.Perm(len(keys)) {
		create(t, b, keys[i], "x")
	}
	check := func(prefix, after string) {
		t.Helper()
		var want []string
		for _, key := range keys {
			if strings.HasPrefix(key, prefix) && key > after {
				want = append(want, key)
			}
		}
		if got := list(t, b, prefix, after); !slices.Equal(got, want) {
			t.Errorf("List(%q, %q) =\n%q, want\n%q", prefix, after, got, want)
		}
	}
	check("", "")
	for range 400 {
		prefix, after := keys[rng.IntN(len(keys))], keys[rng.IntN(len(keys))]
		prefix, after = prefix[:rng.IntN(len(prefix)+1)], after[:rng.IntN(len(after)+1)]
		if rng.IntN(4) == 0 {
			after += word("x./~", 2)
		}
		check(prefix, after)
		check(prefix, "")
		check("", after)
	}
}

// testListStops ends listings early, at each place: nothing may be yielded after that.
func testListStops(t *testing.T, b storage.Bucket) {
	keys := []string{"a/1", "a/2", "b/c/3", "d"}
	for _, key := range keys {
		create(t, b, key, key)
	}
	for stop := range keys {
		var got []string
		for o, err := range b.List(t.Context(), "", "") {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, o.Key)
			if len(got) == stop+1 {
				break
			}
		}
		if !slices.Equal(got, keys[:stop+1]) {
			t.Errorf("stopped after %d: %q", stop+1, got)
		}
	}
	// A listing can be gone through twice.
	seq := b.List(t.Context(), "", "")
	for range 2 {
		n := 0
		for _, err := range seq {
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
		if n != len(keys) {
			t.Errorf("listed %d objects, want %d", n, len(keys))
		}
	}
}

// testListWhileDeleting: what goes after the listing has begun, from its place or with all that is around it, is in it or
// not, and disturbs nothing.
func testListWhileDeleting(t *testing.T, b storage.Bucket) {
	for _, key := range []string{"a/1/x", "a/2/x", "a/2/y/z", "a/3", "a/4/x", "b"} {
		create(t, b, key, key)
	}
	var got []string
	for o, err := range b.List(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		if o.Key == "a/1/x" {
			if err := b.Delete(t.Context(), "a/1/x", "a/2/x", "a/2/y/z", "a/3"); err != nil {
				t.Fatal(err)
			}
		}
		if !strings.HasPrefix(o.Key, "a/2") && o.Key != "a/3" {
			got = append(got, o.Key)
		}
	}
	if want := []string{"a/1/x", "a/4/x", "b"}; !slices.Equal(got, want) {
		t.Errorf("of what was there all the time %q was listed, want %q", got, want)
	}
	wantKeys(t, b, "a/4/x", "b")
}

// testListWhileWriting: what is there all the time is listed once, in order, whatever comes and goes around it.
func testListWhileWriting(t *testing.T, b storage.Bucket) {
	var stay []string
	for i := range 60 {
		stay = append(stay, fmt.Sprintf("s/%02d/stay-%02d", i/3, i))
	}
	for _, key := range stay {
		create(t, b, key, key)
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 3 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				default:
				}
				keys := []string{
					fmt.Sprintf("s/%02d/go-%d-%d", i%20, w, i),   // beside what stays
					fmt.Sprintf("s/%02d-%d/go/%d", i%20, w, i%7), // in directories that come and go
				}
				for _, key := range keys {
					if err := b.Create(t.Context(), key, strings.NewReader(key)); err != nil {
						t.Error(err)
						return
					}
				}
				if err := b.Delete(t.Context(), keys...); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 40 {
		var got []string
		last := ""
		for o, err := range b.List(t.Context(), "s/", "") {
			if err != nil {
				t.Errorf("List: %v", err)
				break
			}
			if o.Key <= last {
				t.Errorf("%q is listed after %q", o.Key, last)
			}
			last = o.Key
			if strings.Contains(o.Key, "stay") {
				got = append(got, o.Key)
			}
		}
		if !slices.Equal(got, stay) {
			t.Errorf("of what stays %d objects were listed, want %d", len(got), len(stay))
		}
	}
	close(done)
	wg.Wait()
}

// testMany lists many objects, which must not be held at once.
func (c Contract) testMany(t *testing.T, b storage.Bucket) {
	many, plant := c.Many, c.Plant
	if many == 0 {
		many = 100_000
	}
	if plant == nil {
		plant = plantByCreate
	}
	const perDir = 250
	keys := make([]string, many)
	for i := range keys {
		keys[i] = fmt.Sprintf("wal/%08X/%016X/%024X-digest.zst", i/perDir/16, i/perDir, i)
	}
	plant(t, b, keys)

	base := heap()
	var most uint64
	n := 0
	for o, err := range b.List(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		if n == many || o.Key != keys[n] || o.Size != 1 {
			t.Fatalf("object %d of %d is %v", n, many, o)
		}
		if n++; n%(many/8) == 0 {
			most = max(most, heap())
		}
	}
	if n != many {
		t.Errorf("%d of %d objects were listed", n, many)
	}
	// All keys alone would be some 10 MB.
	if limit := base + 3<<20; most > limit {
		t.Errorf("the listing holds %d bytes", most-base)
	}

	at := many * 2 / 3
	if got := list(t, b, "wal/", keys[at-1]); !slices.Equal(got, keys[at:]) {
		t.Errorf("after two thirds %d objects follow, want %d", len(got), many-at)
	}
}

func plantByCreate(t *testing.T, b storage.Bucket, keys []string) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(keys)); i = next.Add(1) - 1 {
				if err := b.Create(t.Context(), keys[i], strings.NewReader("x")); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// heap is what is in use after a collection, in bytes.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
