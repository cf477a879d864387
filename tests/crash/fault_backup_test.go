package crash

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pitr/basebackup"
	"pitr/internal/repo"
	"pitr/storage"
	"pitr/storage/storagetest"
)

// A backup is taken while each operation of the store fails in turn. What is listed then is whole, and the same call again
// gives a backup.
func TestBackupFaults(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.Exec("CREATE TABLE notes (v int)", "CREATE TABLE load AS SELECT g, md5(g::text) FROM generate_series(1, 20000) g")
	b := storagetest.Memory()
	a, err := s.ensure(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	stop := s.archiving(b)
	defer stop()
	ctx := t.Context()
	kept := map[string]bool{}
	fresh := func(what string) []*basebackup.Header {
		t.Helper()
		return slices.DeleteFunc(wholeBackups(t, what, a), func(h *basebackup.Header) bool { return kept[h.ID] })
	}
	unsure := 0
	eachFault(t, func(what string, n int, mode storagetest.Mode, f *fault) {
		under := f.on(b)
		behind := mode == storagetest.Blip && n%2 == 0
		if behind {
			under = storage.Retry(under, quick)
		}
		h, err := s.take(under)
		if f.Fired() {
			what = fmt.Sprintf("%s (%s %s)", what, f.op, f.key)
		}
		listed := fresh(what)
		switch {
		case behind && err != nil:
			t.Fatalf("%s, tried again by the store: %v", what, err)
		case err == nil && (len(listed) != 1 || listed[0].ID != h.ID):
			t.Fatalf("%s: %s was taken, and %d are listed", what, h.ID, len(listed))
		case err != nil && (h != nil || len(listed) > 1 || !errors.Is(err, storagetest.ErrFault)):
			t.Fatalf("%s: %d are listed: %v", what, len(listed), err)
		}
		if err != nil {
			again, err := s.take(b)
			if err != nil {
				t.Fatalf("%s, again: %v", what, err)
			}
			if now := fresh(what); len(now) != len(listed)+1 {
				t.Fatalf("%s: %d backups are listed after %s was taken, and %d were before", what, len(now), again.ID, len(listed))
			}
			if len(listed) == 1 {
				unsure++
				kept[listed[0].ID] = true
			}
		}
		for _, h := range fresh(what) {
			if !f.Fired() {
				kept[h.ID] = true
			} else if err := basebackup.Delete(ctx, a.Repo(), h.ID); err != nil {
				t.Fatal(err)
			}
		}
	}, storagetest.Create, storagetest.CreateDone, storagetest.List)
	if unsure == 0 {
		t.Error("no backup was stored whose answer was lost")
	}

	// What is left of the others goes, and nothing else does. This process lives, so that its backups count as being taken
	// for a day.
	const day = 25 * time.Hour
	for _, later := range []time.Duration{day, day + 2*basebackup.SweepGrace} {
		now := time.Now().Add(later)
		left, err := basebackup.Leftovers(ctx, a.Repo(), now)
		if err == nil {
			_, err = basebackup.Sweep(ctx, a.Repo(), left, now)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range keys(t, b) {
		_, key, _ := strings.Cut(key, "/")
		kind, id, _ := strings.Cut(key, "/")
		id, _, _ = strings.Cut(id, "/")
		switch kind + "/" {
		case repo.MarkPrefix:
			t.Errorf("%s is left", key)
		case repo.PackPrefix, repo.PendingPrefix:
			if !kept[id] || kind+"/" == repo.PendingPrefix {
				t.Errorf("%s is left", key)
			}
		}
	}

	// Each of those that stay leads to the end.
	s.note(1)
	want := content(s.Server)
	s.flush()
	stop()
	if err := s.push(ctx, b, map[string]bool{}); err != nil {
		t.Fatal(err)
	}
	l := fromMemory(t, b)
	for i, id := range slices.Sorted(maps.Keys(kept)) {
		if i == 3 {
			break // of the rest it is known that they are whole
		}
		r := l.restore("--backup", id)
		if got := content(r); got != want {
			t.Errorf("backup %s: restored %q, want %q", id, got, want)
		}
		if i == 0 {
			r.CheckPages()
		}
	}
}
