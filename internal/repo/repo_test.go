package repo

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pitr/internal/hint"
	"pitr/storage"
	"pitr/storage/storagetest"
)

var someFacts = Facts{SystemID: 7000000000000000001, Cluster: "main", Major: 15, SegmentSize: 16 << 20, BlockSize: 8192}

var someTime = time.Date(2026, 11, 22, 21, 45, 0, 0, time.UTC)

func TestEnsureBeginsOnceAndAddsWhatChanged(t *testing.T) {
	ctx, b := context.Background(), storagetest.Memory()
	if _, err := Open(ctx, b, someFacts.SystemID); !errors.Is(err, ErrNoRepository) {
		t.Fatalf("open of nothing: %v", err)
	}
	for i := range 3 {
		r, err := Ensure(ctx, b, someFacts, someTime.Add(time.Duration(i)*time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		if f := r.Facts(); f.Created != someTime || f.Format != Format || f.Encryption != "none" {
			t.Fatalf("facts after %d: %+v", i, f)
		}
	}
	if n := count(t, b); n != 1 {
		t.Fatalf("%d objects after three times the same facts, want 1", n)
	}
	changed := someFacts
	changed.SegmentSize = 64 << 20
	if _, err := Ensure(ctx, b, changed, someTime.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	r, err := Open(ctx, b, someFacts.SystemID)
	if err != nil || r.Facts().SegmentSize != 64<<20 || count(t, b) != 2 {
		t.Fatalf("the newest facts: %+v, %v", r.Facts(), err)
	}
}

func count(t *testing.T, b storage.Bucket) (n int) {
	t.Helper()
	for _, err := range b.List(context.Background(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	return n
}

func TestOpenRefusesWhatItCannotRead(t *testing.T) {
	ctx := context.Background()
	for name, c := range map[string]struct {
		change func(*Facts)
		want   string
	}{
		"a newer format":  {func(f *Facts) { f.Format = 2 }, "its format is 2 (encryption \"none\"), this pitr reads up to 1 (without encryption)"},
		"encryption":      {func(f *Facts) { f.Encryption = "age" }, "its format is 1 (encryption \"age\"), this pitr reads up to 1 (without encryption)"},
		"another lineage": {func(f *Facts) { f.SystemID = 5 }, "it is of system identifier 5"},
	} {
		f := someFacts
		f.Format, f.Encryption, f.Created = Format, "none", someTime
		c.change(&f)
		data, err := MarshalDocument(f)
		if err != nil {
			t.Fatal(err)
		}
		b := storagetest.Memory()
		if err := b.Create(ctx, "7000000000000000001/repo/"+DigestOf(data).String(), strings.NewReader(string(data))); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(ctx, b, 7000000000000000001); err == nil || !strings.Contains(err.Error(), c.want) || hint.Of(err) == "" {
			t.Errorf("%s: %v (hint %q), want %q", name, err, hint.Of(err), c.want)
		}
	}
}

func TestOneFlippedBitInTheFactsIsNoticed(t *testing.T) {
	ctx, b := context.Background(), storagetest.Memory()
	if _, err := Ensure(ctx, b, someFacts, someTime); err != nil {
		t.Fatal(err)
	}
	bad := storagetest.Corrupt(b, func(_ string, data []byte) []byte { data[3] ^= 4; return data })
	if _, err := Open(ctx, bad, someFacts.SystemID); !errors.Is(err, ErrDamaged) {
		t.Fatalf("open: %v", err)
	}
	// And a store that does not answer is no empty one.
	gone := storagetest.Faulty(b, storagetest.FailNth(1, storagetest.Dead).Fault)
	if _, err := Ensure(ctx, gone, someFacts, someTime); err == nil || errors.Is(err, ErrNoRepository) {
		t.Fatalf("ensure on a dead store: %v", err)
	}
}

func TestSystemsAreFoundWithoutReadingEverything(t *testing.T) {
	ctx, b := context.Background(), storagetest.Memory()
	for _, key := range []string{"30/wal/x", "30/wal/y", "7/repo/x", "7000000000000000001/backup/z", "notes", "x/y"} {
		if err := b.Create(ctx, key, strings.NewReader("")); err != nil {
			t.Fatal(err)
		}
	}
	ids, err := Systems(ctx, b)
	if want := []uint64{7, 30, 7000000000000000001}; err != nil || !slices.Equal(ids, want) {
		t.Fatalf("systems %v, %v; want %v", ids, err, want)
	}
}

// A file system that is not mounted is an empty directory: it must not become a second repository.
func TestAnEmptyStoreThatWasUsedIsNotBegunAnew(t *testing.T) {
	ctx := context.Background()
	memory := filepath.Join(t.TempDir(), "repository")
	b := storagetest.Memory()
	ensure := func(b storage.Bucket) error {
		_, err := EnsureRemembered(ctx, b, someFacts, someTime, memory)
		return err
	}
	for range 2 {
		if err := ensure(b); err != nil {
			t.Fatal(err)
		}
	}
	empty := storagetest.Memory()
	err := ensure(empty)
	if !errors.Is(err, ErrNoRepository) || !strings.Contains(hint.Of(err), "mount it") || count(t, empty) != 0 {
		t.Fatalf("an emptied store: %v (hint %q), %d objects", err, hint.Of(err), count(t, empty))
	}
	if err := os.Remove(memory); err != nil {
		t.Fatal(err)
	}
	if err := ensure(empty); err != nil {
		t.Fatalf("after the memory was deleted: %v", err)
	}
}

// Root's memory, which the server's user can't read, must not stop archiving, nor be forgotten.
func TestAMemoryThatCannotBeReadStillGuards(t *testing.T) {
	ctx := context.Background()
	memory := t.TempDir() // a directory, which root can't read as a file either
	b := storagetest.Memory()
	if _, err := EnsureRemembered(ctx, b, someFacts, someTime, memory); !errors.Is(err, ErrNoRepository) || count(t, b) != 0 {
		t.Fatalf("a repository was begun: %v", err)
	}
	if _, err := Ensure(ctx, b, someFacts, someTime); err != nil {
		t.Fatal(err)
	}
	if _, err := EnsureRemembered(ctx, b, someFacts, someTime, memory); err != nil {
		t.Fatal(err)
	}
}

// A clock that was set back must not make the old facts hold again.
func TestNewestFactsHoldWhateverTheClockSays(t *testing.T) {
	ctx, b := context.Background(), storagetest.Memory()
	if _, err := Ensure(ctx, b, someFacts, someTime); err != nil {
		t.Fatal(err)
	}
	changed := someFacts
	changed.Cluster = "renamed"
	for range 3 {
		if _, err := Ensure(ctx, b, changed, someTime.Add(-time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	r, err := Open(ctx, b, someFacts.SystemID)
	if err != nil || r.Facts().Cluster != "renamed" || count(t, b) != 2 {
		t.Fatalf("%+v, %v, %d objects", r.Facts(), err, count(t, b))
	}
}
