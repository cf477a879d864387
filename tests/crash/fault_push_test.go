package crash

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"pitr/archive"
	"pitr/internal/repo"
	"pitr/internal/wal"
	"pitr/storage"
	"pitr/storage/storagetest"
)

// Files of every kind are archived while each operation of the store fails in turn. What was acknowledged is there, what is
// listed is whole, and the same push again goes on.
func TestPushFaults(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.Exec("CREATE TABLE notes (v int)")
	all := storagetest.Memory()
	stop := s.archiving(all)
	s.mustTake(all)
	for v := range 2 {
		s.note(v)
		s.flush()
	}
	s.fork() // archives a history and a partial segment
	s.note(2)
	s.flush()
	stop()
	s.note(3)
	want := content(s.Server)
	s.flush()
	s.Stop(0)

	kinds := map[wal.Kind]int{}
	for _, name := range s.files() {
		kinds[wal.Classify(name)]++
	}
	for _, k := range []wal.Kind{wal.Segment, wal.Partial, wal.TimelineHistory, wal.BackupHistory} {
		if kinds[k] == 0 {
			t.Fatalf("the server archived no %v: %v", k, s.files())
		}
	}
	ctx := t.Context()
	dest := filepath.Join(t.TempDir(), "fetched")
	// there makes sure that files are archived as they are.
	there := func(what string, a *archive.Archive, names map[string]bool) {
		t.Helper()
		for name := range names {
			o := archive.FetchOptions{}
			asked := name
			if base, partial := wal.PartialBase(name); partial {
				asked, o.Partial = base, true
			}
			err := a.Fetch(ctx, asked, dest, o)
			if err != nil {
				t.Fatalf("%s: %s was acknowledged: %v", what, name, err)
			}
			got, err := os.ReadFile(dest)
			file, err2 := os.ReadFile(filepath.Join(s.drop, name))
			if err != nil || err2 != nil || !o.Partial && !bytes.Equal(got, file) {
				t.Fatalf("%s: %s is not what was pushed (%v, %v)", what, name, err, err2)
			}
		}
	}
	eachFault(t, func(what string, n int, mode storagetest.Mode, f *fault) {
		b := storagetest.Memory()
		done := map[string]bool{}
		err := s.push(ctx, f.on(b), done)
		if f.Fired() != errors.Is(err, storagetest.ErrFault) || !f.Fired() && err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if err != nil {
			what = fmt.Sprintf("%s (%s %s)", what, f.op, f.key)
		}
		// Nothing is there before the repository is.
		if a, err := open(ctx, b); err == nil {
			wholeWAL(t, what, a, false)
			there(what, a, done)
			a.Close()
		} else if len(done) > 0 || !errors.Is(err, repo.ErrNoRepository) && len(keys(t, b)) > 0 {
			t.Fatalf("%s: %v, after %d files were acknowledged", what, err, len(done))
		}
		if err := s.push(ctx, b, done); err != nil {
			t.Fatalf("%s, again: %v", what, err)
		}
		a, err := open(ctx, b)
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		wholeWAL(t, what, a, false)
		there(what, a, done)

		if mode == storagetest.Blip {
			// Behind Retry, nobody sees it.
			b := storagetest.Memory()
			f := newFault(n, mode)
			if err := s.push(ctx, storage.Retry(f.on(b), quick), map[string]bool{}); err != nil {
				t.Fatalf("%s, tried again by the store: %v", what, err)
			}
		}
	}, storagetest.Create, storagetest.CreateDone, storagetest.Get, storagetest.Read, storagetest.List, storagetest.Stat)

	// What is archived in the end is the server's.
	b := clone(t, all)
	if err := s.push(ctx, b, map[string]bool{}); err != nil {
		t.Fatal(err)
	}
	r := fromMemory(t, b).restore()
	if got := content(r); got != want {
		t.Errorf("restored %q, want %q", got, want)
	}
	r.CheckPages()
}
