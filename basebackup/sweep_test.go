package basebackup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"pitr/internal/repo"
	"pitr/storage"
	"pitr/storage/storagetest"
)

const (
	idA = "20261122T100000Z-0000000a"
	idB = "20261122T110000Z-0000000b"
	idC = "20261122T120000Z-0000000c"
)

// put stores the packs of a backup that may or may not have a manifest.
func put(t testing.TB, r *repo.Repo, id string, packs int) {
	t.Helper()
	for n := range packs {
		if err := r.Create(context.Background(), repo.PackKey(id, uint32(n+1)), strings.NewReader("data")); err != nil {
			t.Fatal(err)
		}
	}
}

// sign stores a sign of life.
func sign(t testing.TB, r *repo.Repo, p Pending) {
	t.Helper()
	if err := r.PutDocument(context.Background(), repo.PendingKey(p.ID, p.N), p); err != nil {
		t.Fatal(err)
	}
}

func list(t testing.TB, r *repo.Repo, prefix string) string {
	t.Helper()
	var keys []string
	for o, err := range r.List(context.Background(), prefix, "") {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, strings.NewReplacer(idA, "A", idB, "B", idC, "C").Replace(o.Key))
	}
	return strings.Join(keys, " ")
}

func sweepAt(t testing.TB, r *repo.Repo, now time.Time) {
	t.Helper()
	left, err := Leftovers(context.Background(), r, now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Sweep(context.Background(), r, left, now); err != nil {
		t.Fatal(err)
	}
}

func TestSweep(t *testing.T) {
	r := testRepo(t, storagetest.Memory())
	put(t, r, idA, 3)
	commit(t, r, testHeader(idA), nil)
	put(t, r, idB, 2) // without a manifest
	now := time.Now()
	for _, c := range []struct {
		after      time.Duration
		packs, mrk string
	}{
		{0, "pack/A/000001 pack/A/000002 pack/A/000003 pack/B/000001 pack/B/000002", "mark/B"},
		{SweepGrace / 2, "pack/A/000001 pack/A/000002 pack/A/000003 pack/B/000001 pack/B/000002", "mark/B"},
		{2 * SweepGrace, "pack/A/000001 pack/A/000002 pack/A/000003", ""},
		{3 * SweepGrace, "pack/A/000001 pack/A/000002 pack/A/000003", ""},
	} {
		sweepAt(t, r, now.Add(c.after))
		if got := list(t, r, "pack/"); got != c.packs {
			t.Errorf("after %v: packs %s, want %s", c.after, got, c.packs)
		}
		if got := list(t, r, "mark/"); got != c.mrk {
			t.Errorf("after %v: marks %s, want %s", c.after, got, c.mrk)
		}
	}
	if err := Delete(context.Background(), r, idA); err != nil {
		t.Fatal(err)
	}
	sweepAt(t, r, now)
	sweepAt(t, r, now.Add(2*SweepGrace))
	if got := list(t, r, ""); strings.Contains(got, "A") {
		t.Errorf("of a deleted backup is left: %s", got)
	}
}

// TestSweepSparesTheLiving: signs of life of every kind.
func TestSweepSparesTheLiving(t *testing.T) {
	now := time.Now()
	me := processName(os.Getpid())
	if me == "" {
		t.Fatal("this process has no name: is /proc there?")
	}
	gone := strings.TrimSuffix(me, "/"+me[strings.LastIndexByte(me, '/')+1:]) + "/1" // the same id, another start
	for name, c := range map[string]struct {
		process string
		renewed time.Time
		stored  time.Duration // how old the store says that the sign is
		alive   bool
	}{
		"this process":                        {me, now.Add(-time.Hour), time.Hour, true},
		"this process, but not any more":      {me, now.Add(-25 * time.Hour), 25 * time.Hour, false},
		"a process that is gone":              {gone, now, 0, false},
		"another host, a moment ago":          {"b/c/4/5", now, 0, true},
		"another host, hours ago":             {"b/c/4/5", now.Add(-23 * time.Hour), 23 * time.Hour, true},
		"another host, long ago":              {"b/c/4/5", now.Add(-25 * time.Hour), 25 * time.Hour, false},
		"its clock is wrong, the store says":  {"b/c/4/5", now.Add(-1000 * time.Hour), time.Hour, true},
		"the store's is wrong, its own says":  {"b/c/4/5", now.Add(-time.Hour), 1000 * time.Hour, true},
		"an unknown process, not so long ago": {"", now.Add(-23 * time.Hour), 23 * time.Hour, true},
	} {
		p := Pending{ID: idB, N: 7, PID: os.Getpid(), Process: c.process, Renewed: c.renewed}
		if got := p.alive(now, now.Add(-c.stored)); got != c.alive {
			t.Errorf("%s: alive is %v", name, got)
		}
	}

	r := testRepo(t, storagetest.Memory())
	put(t, r, idB, 2)
	sign(t, r, Pending{ID: idB, N: 1, PID: 1, Process: "b/c/4/5", Renewed: now})
	sign(t, r, Pending{ID: idC, N: 1, PID: os.Getpid(), Process: gone, Renewed: now}) // before it had data
	sweepAt(t, r, now)
	sweepAt(t, r, now.Add(2*SweepGrace))
	if got := list(t, r, ""); !strings.HasSuffix(got, "pack/B/000001 pack/B/000002 pending/B/000001 repo/"+got[strings.LastIndexByte(got, '/')+1:]) {
		t.Errorf("left: %s", got)
	}
	// It went quiet.
	sweepAt(t, r, now.Add(25*time.Hour))
	sweepAt(t, r, now.Add(27*time.Hour))
	if got := list(t, r, ""); strings.Contains(got, "B") {
		t.Errorf("left: %s", got)
	}
	// One whose last deed was the manifest.
	put(t, r, idA, 1)
	sign(t, r, Pending{ID: idA, N: 1, PID: 1, Process: "b/c/4/5", Renewed: now})
	commit(t, r, testHeader(idA), nil)
	sweepAt(t, r, now)
	if got := list(t, r, "pending/") + list(t, r, "pack/"); got != "pack/A/000001" {
		t.Errorf("left: %s", got)
	}
}

func TestSweepLooksAgain(t *testing.T) {
	ctx := context.Background()
	r := testRepo(t, storagetest.Memory())
	put(t, r, idA, 1)
	now := time.Now()
	sweepAt(t, r, now)
	later := now.Add(2 * SweepGrace)
	left, err := Leftovers(ctx, r, later)
	if err != nil || len(left) != 1 || !left[0].Delete {
		t.Fatalf("%+v, %v", left, err)
	}
	commit(t, r, testHeader(idA), nil) // it was only slow
	if _, err := Sweep(ctx, r, left, later); err != nil {
		t.Fatal(err)
	}
	if got := list(t, r, "pack/"); got != "pack/A/000001" {
		t.Errorf("packs: %s", got)
	}
	// Its mark would be in the way of whoever refers to it next.
	sweepAt(t, r, now.Add(pendingLife+2*SweepGrace))
	if got := list(t, r, "mark/"); got != "" {
		t.Errorf("marks: %s", got)
	}
}

// TestSweepWithADamagedManifest: what it refers to is not known.
func TestSweepWithADamagedManifest(t *testing.T) {
	ctx := context.Background()
	r := testRepo(t, storagetest.Memory())
	put(t, r, idA, 1)
	put(t, r, idB, 1)
	if err := r.Create(ctx, repo.BackupKey(idA), bytes.NewReader([]byte("PITRMAN1 damaged"))); err != nil {
		t.Fatal(err)
	}
	if _, err := Leftovers(ctx, r, time.Now()); !errors.Is(err, repo.ErrDamaged) {
		t.Errorf("with a damaged manifest: %v", err)
	}
	if err := Delete(ctx, r, idA); err != nil {
		t.Fatal(err)
	}
	sweepAt(t, r, time.Now())
	if got := list(t, r, "mark/"); got != "mark/A mark/B" {
		t.Errorf("marks: %s", got)
	}
}

// TestSweepFaults fails every operation of the store in turn, and looks that no pack of a backup that exists is gone and
// that the next sweep finishes.
func TestSweepFaults(t *testing.T) {
	for _, mode := range []storagetest.Mode{storagetest.Blip, storagetest.Dead} {
		for n := 1; ; n++ {
			b := storagetest.Memory()
			sound := testRepo(t, b)
			put(t, sound, idA, 2)
			commit(t, sound, testHeader(idA), nil)
			put(t, sound, idB, 2)
			sign(t, sound, Pending{ID: idC, N: 1, PID: 1, Process: processName(os.Getpid()) + "9", Renewed: time.Now()})
			now := time.Now()
			sweepAt(t, sound, now)
			counter := storagetest.FailNth(n, mode)
			// The repository's own opening is not the matter.
			r := reopen(t, sound, storagetest.Faulty(b, func(op storagetest.Op, key string) error {
				if strings.Contains(key, "/repo/") {
					return nil
				}
				return counter.Fault(op, key)
			}))
			later := now.Add(2 * SweepGrace)
			left, err := Leftovers(context.Background(), r, later)
			if err == nil {
				_, err = Sweep(context.Background(), r, left, later)
			}
			if err != nil && !counter.Fired() {
				t.Fatal(err)
			}
			if got := list(t, sound, packsOf(idA)); got != "pack/A/000001 pack/A/000002" {
				t.Fatalf("operation %d failed: packs %s", n, got)
			}
			sweepAt(t, sound, later)
			sweepAt(t, sound, later.Add(2*SweepGrace))
			if got := list(t, sound, ""); strings.Contains(got, "B") || strings.Contains(got, "C") {
				t.Fatalf("operation %d failed: left is %s", n, got)
			}
			if !counter.Fired() {
				if n < 10 {
					t.Fatalf("only %d operations", n)
				}
				break
			}
		}
	}
}

// reopen opens a repository through another bucket.
func reopen(t testing.TB, r *repo.Repo, b storage.Bucket) *repo.Repo {
	t.Helper()
	again, err := repo.Open(context.Background(), b, r.SystemID())
	if err != nil {
		t.Fatal(err)
	}
	return again
}

func TestPins(t *testing.T) {
	ctx := context.Background()
	r := testRepo(t, storagetest.Memory())
	commit(t, r, testHeader(idA), nil)
	if err := SetPin(ctx, r, Pin{ID: idB, At: time.Now()}); !errors.Is(err, ErrNoBackup) {
		t.Errorf("pin what is not there: %v", err)
	}
	for i := range 2 {
		if err := SetPin(ctx, r, Pin{ID: idA, At: time.Now(), By: "me", Reason: fmt.Sprint(i)}); err != nil {
			t.Error(err)
		}
	}
	pins, err := Pins(ctx, r)
	if err != nil || len(pins) != 1 || pins[idA].By != "me" || pins[idA].Reason != "0" {
		t.Errorf("pins: %+v, %v", pins, err)
	}
	if err := Delete(ctx, r, idA); !errors.Is(err, ErrPinned) {
		t.Errorf("delete what is pinned: %v", err)
	}
	for range 2 {
		if err := Unpin(ctx, r, idA); err != nil {
			t.Error(err)
		}
	}
	if err := Delete(ctx, r, idA); err != nil {
		t.Error(err)
	}
	if err := Delete(ctx, r, idA); !errors.Is(err, ErrNoBackup) {
		t.Errorf("delete what is not there: %v", err)
	}
	if err := Delete(ctx, r, "../../x"); !errors.Is(err, ErrNoBackup) {
		t.Errorf("delete what is no name: %v", err)
	}
}
