package storagetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"pitr/storage"
)

func testCreateAndGet(t *testing.T, b storage.Bucket) {
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	for key, content := range map[string]string{
		"empty":         "",
		"short":         "x",
		"a/b/c/deep":    "deep",
		"a/b/next":      "next",
		"bytes":         string(every),
		"some/megabyte": strings.Repeat(string(every), 4<<10),
	} {
		before := time.Now()
		create(t, b, key, content)
		if got := get(t, b, key); got != content {
			t.Errorf("%s: %d bytes came back for %d, or other ones", key, len(got), len(content))
		}
		o, err := b.Stat(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		if o.Key != key || o.Size != int64(len(content)) {
			t.Errorf("Stat = %q of %d bytes, want %q of %d", o.Key, o.Size, key, len(content))
		}
		// Not a promise about clocks, only that it is a time of creation: half a day covers every zone.
		if d := o.Modified.Sub(before).Abs(); d > 12*time.Hour {
			t.Errorf("Stat: modified %v, %v away from now", o.Modified, d)
		}
		for l, err := range b.List(t.Context(), key, "") {
			if err != nil {
				t.Fatal(err)
			}
			if l.Key != o.Key || l.Size != o.Size || l.Modified.Unix() != o.Modified.Unix() {
				t.Errorf("List says %v, Stat %v", l, o)
			}
		}
	}
	// The reader counts from where it stands.
	r := strings.NewReader("skipped, kept")
	r.Seek(9, io.SeekStart)
	if err := b.Create(t.Context(), "from/the/middle", r); err != nil {
		t.Fatal(err)
	}
	if got := get(t, b, "from/the/middle"); got != "kept" {
		t.Errorf("of a reader in the middle %q was stored", got)
	}
}

// testCreateOnce: what is there is not replaced. That holds in every store as long as nobody writes at the same time.
func testCreateOnce(t *testing.T, b storage.Bucket) {
	create(t, b, "d/key", "first")
	for _, content := range []string{"other", "first", ""} {
		wantError(t, b, "d/key", b.Create(t.Context(), "d/key", strings.NewReader(content)), storage.ErrExists)
	}
	if got := get(t, b, "d/key"); got != "first" {
		t.Errorf("the object is now %q", got)
	}
	wantKeys(t, b, "d/key")
}

// testRace lets writers race for a key. One wins; where the store does not declare that it can see to that, at least one,
// and the object is whole and that of a writer who was told so.
func testRace(t *testing.T, b storage.Bucket) {
	const writers, rounds, size = 16, 20, 100_000
	for round := range rounds {
		// A directory of its own each time, so that making it is part of the race.
		key := fmt.Sprintf("race/%d/key", round)
		var won [writers]bool
		start := make(chan struct{})
		var wg sync.WaitGroup
		for i := range writers {
			wg.Go(func() {
				<-start
				err := b.Create(t.Context(), key, bytes.NewReader(bytes.Repeat([]byte{byte(i)}, size)))
				won[i] = err == nil
				if err != nil && !errors.Is(err, storage.ErrExists) {
					t.Errorf("a loser's error is %v, want ErrExists", err)
				}
			})
		}
		close(start)
		wg.Wait()
		winners := 0
		for _, w := range won {
			if w {
				winners++
			}
		}
		if winners == 0 || winners > 1 && b.Capabilities().CreateIfAbsent {
			t.Fatalf("round %d: %d winners", round, winners)
		}
		got := get(t, b, key)
		if len(got) != size || int(got[0]) >= writers || !won[got[0]] || got != strings.Repeat(got[:1], size) {
			t.Fatalf("round %d: the object is not a winner's", round)
		}
	}
	if got := list(t, b, "", ""); len(got) != rounds {
		t.Errorf("%d objects after %d rounds", len(got), rounds)
	}
}

var errReader = errors.New("the reader fails")

// testWhole lets Create fail in the middle, in different ways, of small and of large objects.
func testWhole(t *testing.T, b storage.Bucket) {
	for _, size := range []int{0, 1000, 20 << 20} {
		key := fmt.Sprintf("half/%d", size)
		half := func() io.Reader { return io.LimitReader(zeros{}, int64(size/2)) }

		err := b.Create(t.Context(), key, io.MultiReader(half(), errorReader{errReader}))
		wantError(t, b, key, err, errReader)

		ctx, cancel := context.WithCancel(t.Context())
		err = b.Create(ctx, key, io.MultiReader(half(), calls(cancel), half()))
		cancel()
		wantError(t, b, key, err, context.Canceled)

		// A reader that knows nothing of the context it depends on must not have the last word.
		ctx, cancel = context.WithCancel(t.Context())
		err = b.Create(ctx, key, io.MultiReader(half(), calls(cancel)))
		cancel()
		wantError(t, b, key, err, context.Canceled)

		wantKeys(t, b)
		_, err = b.Stat(t.Context(), key)
		wantError(t, b, key, err, storage.ErrNotFound)
		create(t, b, key, "whole")
		if got := get(t, b, key); got != "whole" {
			t.Errorf("after failures %q was stored", got)
		}
		if err := b.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// calls is a reader of nothing that calls itself on the way.
type calls func()

func (c calls) Read([]byte) (int, error) {
	c()
	return 0, io.EOF
}

func testDelete(t *testing.T, b storage.Bucket) {
	for _, key := range []string{"a/1", "a/2", "a/b/3", "c", "d/e/f/g"} {
		create(t, b, key, key)
	}
	if err := b.Delete(t.Context()); err != nil {
		t.Errorf("of nothing: %v", err)
	}
	if err := b.Delete(t.Context(), "none", "a", "a/none", "c/none", "none/none", "d/e/f"); err != nil {
		t.Errorf("of keys that are not there: %v", err)
	}
	wantKeys(t, b, "a/1", "a/2", "a/b/3", "c", "d/e/f/g")
	if err := b.Delete(t.Context(), "a/b/3", "none", "a/1", "d/e/f/g", "a/1"); err != nil {
		t.Fatal(err)
	}
	wantKeys(t, b, "a/2", "c")
	_, err := b.Get(t.Context(), "a/1")
	wantError(t, b, "a/1", err, storage.ErrNotFound)
	// The key is free again, and what was a directory can be an object.
	create(t, b, "a/1", "again")
	create(t, b, "d", "object")
	if got := get(t, b, "a/1") + get(t, b, "d"); got != "againobject" {
		t.Errorf("stored again: %q", got)
	}
}

// testCreateWhileDeleting: deleting the last object next to which another one is being created must not disturb that.
func testCreateWhileDeleting(t *testing.T, b storage.Bucket) {
	const workers, rounds = 8, 150
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() {
			for round := range rounds {
				key := fmt.Sprintf("shared/dir/%d-%d", i, round)
				if err := b.Create(t.Context(), key, strings.NewReader(key)); err != nil {
					t.Error(err)
					return
				}
				if got, err := fetch(t.Context(), b, key); err != nil || got != key {
					t.Errorf("%s holds %q, %v", key, got, err)
				}
				if err := b.Delete(t.Context(), key); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	wantKeys(t, b)
}

func testLarge(t *testing.T, b storage.Bucket) {
	const size = 64 << 20
	content := func() io.Reader { return io.LimitReader(rand.NewChaCha8([32]byte{2}), size) }
	if err := b.Create(t.Context(), "large/object", content()); err != nil {
		t.Fatal(err)
	}
	r, err := b.Get(t.Context(), "large/object")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got, want := sha256.New(), sha256.New()
	n, err := io.Copy(got, r)
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(want, content())
	if n != size || !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		t.Errorf("%d bytes came back for %d, or other ones", n, size)
	}
}
