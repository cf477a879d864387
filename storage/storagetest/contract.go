package storagetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"pitr/storage"
)

// TestBucket runs the contract of storage.Bucket against what open returns: a bucket that is empty, and not the same one
// twice. Every driver and decorator runs it.
func TestBucket(t *testing.T, open func(t *testing.T) storage.Bucket) { Contract{Open: open}.Run(t) }

// Contract is TestBucket with choices, for stores in which it would take too long.
type Contract struct {
	Open func(t *testing.T) storage.Bucket

	// Many is how many objects the large listing has; 0 is 100,000.
	Many int

	// Plant puts an object of one byte under each key, in whatever way is quick; nil is Create.
	Plant func(t *testing.T, b storage.Bucket, keys []string)
}

// Run runs it, each part on a bucket of its own.
func (c Contract) Run(t *testing.T) {
	for _, part := range []struct {
		name string
		run  func(*testing.T, storage.Bucket)
	}{
		{"create and get", testCreateAndGet},
		{"create only once", testCreateOnce},
		{"racing creators", testRace},
		{"whole or not at all", testWhole},
		{"missing", testMissing},
		{"range", testRange},
		{"keys", testKeys},
		{"bad keys", testBadKeys},
		{"keys that exclude each other", testExcluding},
		{"order", testOrder},
		{"list stops", testListStops},
		{"list while deleting", testListWhileDeleting},
		{"list while others write", testListWhileWriting},
		{"delete", testDelete},
		{"create while others delete", testCreateWhileDeleting},
		{"large object", testLarge},
		{"ended context", testEndedContext},
		{"capabilities", testCapabilities},
		{"many objects", c.testMany},
	} {
		t.Run(part.name, func(t *testing.T) { part.run(t, c.Open(t)) })
	}
}

func create(t *testing.T, b storage.Bucket, key, content string) {
	t.Helper()
	if err := b.Create(t.Context(), key, strings.NewReader(content)); err != nil {
		t.Fatalf("Create: %v", err)
	}
}

func get(t *testing.T, b storage.Bucket, key string) string {
	t.Helper()
	content, err := fetch(t.Context(), b, key)
	if err != nil {
		t.Fatalf("Get: %v", err)
	}
	return content
}

func fetch(ctx context.Context, b storage.Bucket, key string) (string, error) {
	r, err := b.Get(ctx, key)
	if err != nil {
		return "", err
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	return string(data), err
}

func list(t *testing.T, b storage.Bucket, prefix, after string) []string {
	t.Helper()
	var keys []string
	for o, err := range b.List(t.Context(), prefix, after) {
		if err != nil {
			t.Fatalf("List(%q, %q): %v", prefix, after, err)
		}
		keys = append(keys, o.Key)
	}
	return keys
}

func wantKeys(t *testing.T, b storage.Bucket, want ...string) {
	t.Helper()
	if got := list(t, b, "", ""); !slices.Equal(got, want) {
		t.Errorf("the bucket holds %q, want %q", got, want)
	}
}

// wantError checks what Bucket promises of every error.
func wantError(t *testing.T, b storage.Bucket, key string, err, want error) {
	t.Helper()
	switch {
	case err == nil:
		t.Errorf("no error, want %v", want)
	case !errors.Is(err, want):
		t.Errorf("error is %v, want %v", err, want)
	case !strings.Contains(err.Error(), key):
		t.Errorf("error %q does not name the key %q", err, key)
	}
}

func testMissing(t *testing.T, b storage.Bucket) {
	create(t, b, "dir/object", "x")
	for _, key := range []string{"none", "dir", "dir/none", "dir/object/below", "none/none"} {
		_, err := b.Get(t.Context(), key)
		wantError(t, b, key, err, storage.ErrNotFound)
		_, err = b.GetRange(t.Context(), key, 0, 1)
		wantError(t, b, key, err, storage.ErrNotFound)
		_, err = b.Stat(t.Context(), key)
		wantError(t, b, key, err, storage.ErrNotFound)
	}
}

func testRange(t *testing.T, b storage.Bucket) {
	const size = 1_000_000
	content := make([]byte, size)
	rng := rand.NewChaCha8([32]byte{1})
	rng.Read(content)
	if err := b.Create(t.Context(), "ranges", bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		off, n int64
		short  bool
	}{
		{0, size, false}, {0, 0, false}, {0, 1, false}, {size - 1, 1, false}, {size, 0, false}, {1234, 567_890, false},
		{0, size + 1, true}, {size - 1, 2, true}, {size, 1, true}, {size + 1, 1, true}, {10 * size, size, true},
	} {
		t.Run(fmt.Sprintf("%d from %d", c.n, c.off), func(t *testing.T) {
			r, err := b.GetRange(t.Context(), "ranges", c.off, c.n)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			got, err := io.ReadAll(r)
			if c.short {
				wantError(t, b, "", err, io.ErrUnexpectedEOF)
			} else if err != nil {
				t.Fatal(err)
			}
			want := content[min(c.off, size):min(c.off+c.n, size)]
			if !bytes.Equal(got, want) {
				t.Errorf("%d bytes came for %d, or other ones", len(got), len(want))
			}
		})
	}
	for _, c := range [][2]int64{{-1, 1}, {0, -1}} {
		if r, err := b.GetRange(t.Context(), "ranges", c[0], c[1]); err == nil {
			r.Close()
			t.Errorf("%d bytes from %d: no error", c[1], c[0])
		}
	}
}

// oddKeys are keys that every store can hold, in order.
func oddKeys() []string {
	keys := []string{
		"spaces in it", " leading and trailing ", "'single' \"double\" `back`", "100%", "%2F", "%00", "a%2fb", "plus+plus",
		"question?mark=1&x#y", "back\\slash", "semi;colon", "tab\tand\nline feed", "*?[a-z]", "$HOME", "~", "-rf", "trailing.",
		"grüße/Ελλάδα/日本語/🐘", "e\u0301 and \u00e9", "UPPER", "upper", "a..b", "x/y..", "\x7f", "<xml>&amp;</xml>",
		strings.Repeat("n", 255), strings.Repeat("ä", 127), strings.Repeat("d/", 100) + "deep",
	}
	slices.Sort(keys)
	return keys
}

func testKeys(t *testing.T, b storage.Bucket) {
	keys := oddKeys()
	for _, key := range keys {
		create(t, b, key, "content of "+key)
	}
	wantKeys(t, b, keys...)
	for _, key := range keys {
		if got := get(t, b, key); got != "content of "+key {
			t.Errorf("%q holds %q", key, got)
		}
		if got := list(t, b, key, ""); !slices.Contains(got, key) {
			t.Errorf("List(%q) = %q", key, got)
		}
	}
	if err := b.Delete(t.Context(), keys...); err != nil {
		t.Fatal(err)
	}
	wantKeys(t, b)
}

func testBadKeys(t *testing.T, b storage.Bucket) {
	for _, key := range []string{
		"/a", "a/", "a//b", ".", "..", "a/..", "../a", "a/../b", "a/./b", ".hidden", "a/.hidden", "nul\x00", "\x01", "a\x1f/b", "a\uffff", "a\xff",
		strings.Repeat("n", 256), strings.Repeat("d/", 400) + "x",
	} {
		t.Run(fmt.Sprintf("%.40q", key), func(t *testing.T) {
			wantError(t, b, "", b.Create(t.Context(), key, strings.NewReader("x")), storage.ErrInvalidKey)
			_, err := b.Get(t.Context(), key)
			wantError(t, b, "", err, storage.ErrInvalidKey)
			_, err = b.GetRange(t.Context(), key, 0, 1)
			wantError(t, b, "", err, storage.ErrInvalidKey)
			_, err = b.Stat(t.Context(), key)
			wantError(t, b, "", err, storage.ErrInvalidKey)
			wantError(t, b, "", b.Delete(t.Context(), key), storage.ErrInvalidKey)
		})
	}
	wantKeys(t, b)
	// As prefix and start of a listing any string is right.
	create(t, b, "a/b", "x")
	for prefix, want := range map[string]int{"/": 0, "a//": 0, "../": 0, "./": 0, "a/": 1, "a/.": 0, "a/b/": 0, ".": 0, "\xff": 0} {
		if got := list(t, b, prefix, ""); len(got) != want {
			t.Errorf("List(%q) = %q", prefix, got)
		}
	}
	for after, want := range map[string]int{"../": 1, "a//": 1, "a/b": 0, "a/.": 1, "\xff": 0} {
		if got := list(t, b, "", after); len(got) != want {
			t.Errorf("List after %q = %q", after, got)
		}
	}
}

// testExcluding: a store that holds both may, but neither must get lost.
func testExcluding(t *testing.T, b storage.Bucket) {
	create(t, b, "a/b", "first")
	for _, key := range []string{"a/b/c", "a/b/c/d", "a"} {
		err := b.Create(t.Context(), key, strings.NewReader("second"))
		if err == nil {
			if got := get(t, b, key); got != "second" {
				t.Errorf("%s holds %q", key, got)
			}
			continue
		}
		if errors.Is(err, storage.ErrExists) || errors.Is(err, storage.ErrNotFound) {
			t.Errorf("Create of %s: %v, which says something else", key, err)
		}
		if got := list(t, b, key+"/", ""); key != "a" && len(got) > 0 {
			t.Errorf("after the failed Create of %s there are %q", key, got)
		}
	}
	if got := get(t, b, "a/b"); got != "first" {
		t.Errorf("a/b holds %q", got)
	}
}

func testEndedContext(t *testing.T, b storage.Bucket) {
	create(t, b, "key", strings.Repeat("x", 1<<20))
	ctx, cancel := context.WithCancel(t.Context())
	body, err := b.Get(ctx, "key")
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	cancel()
	_, err = io.ReadAll(body)
	wantError(t, b, "", err, context.Canceled)

	wantError(t, b, "new", b.Create(ctx, "new", strings.NewReader("x")), context.Canceled)
	_, err = b.Get(ctx, "key")
	wantError(t, b, "key", err, context.Canceled)
	_, err = b.GetRange(ctx, "key", 0, 1)
	wantError(t, b, "key", err, context.Canceled)
	_, err = b.Stat(ctx, "key")
	wantError(t, b, "key", err, context.Canceled)
	wantError(t, b, "key", b.Delete(ctx, "key"), context.Canceled)
	wantKeys(t, b, "key")

	for _, prefix := range []string{"", "none"} {
		err = nil
		for _, err = range b.List(ctx, prefix, "") {
		}
		wantError(t, b, "", err, context.Canceled) // an empty list would say that nothing is there
	}
}

func testCapabilities(t *testing.T, b storage.Bucket) {
	got, err := storage.Probe(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	if want := b.Capabilities(); got != want {
		t.Errorf("declared %+v, found %+v", want, got)
	}
	wantKeys(t, b)
	if b.String() == "" {
		t.Error("no name")
	}
}
