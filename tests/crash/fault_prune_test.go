package crash

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pitr/archive"
	"pitr/basebackup"
	"pitr/internal/postgres/pgtest"
	"pitr/internal/repo"
	"pitr/internal/wal"
	"pitr/recovery"
	"pitr/storage"
	"pitr/storage/storagetest"
)

// retained is a store with something of everything that retention decides about, and what has to survive it.
type retained struct {
	bucket storage.Bucket
	// begin is the beginning of the window: a moment between backups.
	begin time.Time
	// pinned stays for itself; opens begins the window; newest is behind it. gone are those that retention deletes.
	pinned, opens, newest *basebackup.Header
	gone                  []string
	half                  string // a backup that was never complete
	atBegin, atEnd        string // rows
	stop, end             recovery.Stop
}

// newRetained makes one: five backups on two timelines, one of them left half, with WAL between them, refused WAL included.
func newRetained(t *testing.T) *retained {
	t.Helper()
	s := newSite(t)
	s.Exec("CREATE TABLE notes (v int)")
	x := &retained{bucket: storagetest.Memory()}
	stop := s.archiving(x.bucket)
	row := 0
	some := func(n int) {
		for range n {
			row++
			s.note(row)
			s.flush()
		}
	}
	x.pinned = s.mustTake(x.bucket)
	some(3)
	x.gone = append(x.gone, s.mustTake(x.bucket).ID)
	some(3)
	_, err := s.take(storagetest.Faulty(x.bucket, func(op storagetest.Op, key string) error {
		if _, id, ok := strings.Cut(key, repo.BackupPrefix); ok && op == storagetest.Create {
			x.half = id
		}
		if x.half != "" {
			return storagetest.ErrFault
		}
		return nil
	}))
	if !errors.Is(err, storagetest.ErrFault) {
		t.Fatal(err)
	}
	some(2)
	s.fork()
	some(2)
	x.opens = s.mustTake(x.bucket)
	some(2)
	// What was written before the window is archived before it.
	if err := s.push(t.Context(), x.bucket, map[string]bool{}); err != nil {
		t.Fatal(err)
	}
	x.atBegin = notes(s.Server)
	x.begin = pgtest.QueryOne[time.Time](s.Server, "SELECT clock_timestamp()")
	time.Sleep(50 * time.Millisecond)
	some(2)
	x.newest = s.mustTake(x.bucket)
	some(2)
	x.atEnd = notes(s.Server)
	stop()
	if err := s.push(t.Context(), x.bucket, map[string]bool{}); err != nil {
		t.Fatal(err)
	}

	a := mustOpen(t, x.bucket)
	ctx := t.Context()
	if err := basebackup.SetPin(ctx, a.Repo(), basebackup.Pin{ID: x.pinned.ID, At: time.Now(), By: "crash"}); err != nil {
		t.Fatal(err)
	}
	// Another content of a segment that will go is refused.
	name := wal.SegmentName(1, wal.SegmentOf(x.pinned.StopLSN, s.facts.SegmentSize)+2, s.facts.SegmentSize)
	data, err := os.ReadFile(filepath.Join(s.drop, name))
	if err != nil {
		t.Fatal(err)
	}
	data[200] ^= 1 // in a record, whose checksum is looked at by nobody but recovery
	other := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(other, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Push(ctx, other, s.facts.SystemID); !errors.Is(err, archive.ErrConflict) {
		t.Fatalf("another content of %s: %v", name, err)
	}
	x.stop = x.plan(t, "before", x.bucket, recovery.Target{Kind: recovery.Time, Time: x.begin.Truncate(time.Microsecond)}).Stop
	x.end = x.plan(t, "before", x.bucket, recovery.Target{}).Stop
	return x
}

// plan proves that a target can be reached from what is there.
func (x *retained) plan(t *testing.T, what string, b storage.Bucket, target recovery.Target) *recovery.Plan {
	t.Helper()
	a, err := open(t.Context(), b)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	defer a.Close()
	w, err := recovery.Observe(t.Context(), a, recovery.Surroundings{})
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	defer w.Close()
	target.Action = recovery.Promote
	p, err := recovery.MakePlan(w.View, target, recovery.Destination{Dir: filepath.Join(t.TempDir(), "copy"), Program: "/pitr"})
	if err == nil {
		err = p.Err()
	}
	if err != nil {
		t.Fatalf("%s: %s: %v", what, target, err)
	}
	return p
}

// survives makes sure that everything is there which has to be.
func (x *retained) survives(t *testing.T, what string, b storage.Bucket) {
	t.Helper()
	a, err := open(t.Context(), b)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	defer a.Close()
	listed, problems, err := basebackup.List(t.Context(), a.Repo())
	if err != nil || len(problems) > 0 {
		t.Fatalf("%s: %v %v", what, problems, err)
	}
	must := map[string]bool{x.pinned.ID: true, x.opens.ID: true, x.newest.ID: true}
	for _, h := range listed {
		delete(must, h.ID)
		if must := h.ID == x.pinned.ID || h.ID == x.opens.ID || h.ID == x.newest.ID; must {
			x.plan(t, what, b, recovery.Target{Kind: recovery.Immediate, Backup: h.ID})
		} else if _, err := basebackup.OpenManifest(t.Context(), a.Repo(), h.ID, t.TempDir()); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	for id := range must {
		t.Fatalf("%s: backup %s is gone", what, id)
	}
	if p := x.plan(t, what, b, recovery.Target{Kind: recovery.Time, Time: x.begin.Truncate(time.Microsecond)}); p.Stop != x.stop {
		t.Fatalf("%s: the window begins at %+v, not %+v", what, p.Stop, x.stop)
	}
	if p := x.plan(t, what, b, recovery.Target{}); p.Stop != x.end {
		t.Fatalf("%s: the archive ends at %+v, not %+v", what, p.Stop, x.end)
	}
	c, err := a.Coverage(t.Context())
	if err != nil || len(c.Gaps()) > 0 {
		t.Fatalf("%s: gaps %v, %v", what, c.Gaps(), err)
	}
}

// prune applies retention, in the order in which `pitr prune` does.
func (x *retained) prune(ctx context.Context, b storage.Bucket, now time.Time) error {
	a, err := open(ctx, b)
	if err != nil {
		return err
	}
	defer a.Close()
	r := a.Repo()
	all, problems, err := basebackup.List(ctx, r)
	if err != nil || len(problems) > 0 {
		return errors.Join(err, fmt.Errorf("%d manifests can't be read", len(problems)))
	}
	pins, err := basebackup.Pins(ctx, r)
	if err != nil {
		return err
	}
	c, err := a.Coverage(ctx)
	if err != nil {
		return err
	}
	pinned := map[string]bool{}
	for id := range pins {
		pinned[id] = true
	}
	verdicts := basebackup.Expire(all, pinned, basebackup.Keep{Window: now.Sub(x.begin), Count: 1}, basebackup.Lines(c), now)
	left, err := basebackup.Leftovers(ctx, r, now)
	if err != nil {
		return err
	}
	for _, v := range verdicts {
		if v.Keep {
			continue
		}
		if err := basebackup.Delete(ctx, r, v.ID); err != nil && !errors.Is(err, basebackup.ErrNoBackup) {
			return err
		}
		if left, err = basebackup.Leftovers(ctx, r, now); err != nil {
			return err
		}
	}
	if _, _, err := a.Prune(ctx, archive.PlanPrune(c, basebackup.Needs(all, verdicts))); err != nil {
		return err
	}
	_, err = basebackup.Sweep(ctx, r, left, now)
	return err
}

// Retention is applied while each operation of the store fails in turn, on the day and again when what was marked may be
// deleted. What has to stay stays, and the same call again comes to the same end.
func TestPruneFaults(t *testing.T) {
	t.Parallel()
	x := newRetained(t)
	ctx := t.Context()
	b := clone(t, x.bucket)
	// The half backup's process is this one, which lives; so a day has to pass before it counts as dead.
	now := time.Now().Add(25 * time.Hour)
	type phase struct {
		now          time.Time
		start        storage.Bucket
		before, want []string
	}
	var phases []phase
	for range 2 {
		p := phase{now: now, start: clone(t, b), before: keys(t, b)}
		if err := x.prune(ctx, b, now); err != nil {
			t.Fatal(err)
		}
		x.survives(t, "pruned", b)
		p.want = keys(t, b)
		phases = append(phases, p)
		now = now.Add(2 * basebackup.SweepGrace)
	}
	before, marked, after := len(keys(t, x.bucket)), len(phases[0].want), len(phases[1].want)
	if t.Logf("%d objects, %d, %d", before, marked, after); before-marked < 6 || marked-after < 4 {
		t.Errorf("%d objects, then %d, then %d: too little was deleted to show anything", before, marked, after)
	}
	for _, key := range phases[1].want {
		for _, gone := range append([]string{repo.AsidePrefix, repo.MarkPrefix, repo.PendingPrefix, x.half}, x.gone...) {
			if strings.Contains(key, gone) {
				t.Errorf("%s is left", key)
			}
		}
	}
	kinds := [][]storagetest.Op{{storagetest.Create, storagetest.CreateDone, storagetest.Delete, storagetest.List}, {storagetest.Delete, storagetest.List}}
	var samples []storage.Bucket
	known := map[string]bool{}
	for i, p := range phases {
		eachFault(t, func(what string, n int, mode storagetest.Mode, f *fault) {
			what = fmt.Sprintf("phase %d, %s", i+1, what)
			b := clone(t, p.start)
			under := f.on(b)
			behind := mode == storagetest.Blip && n%2 == 0
			if behind {
				under = storage.Retry(under, quick)
			}
			err := x.prune(ctx, under, p.now)
			if f.Fired() {
				what = fmt.Sprintf("%s (%s %s)", what, f.op, f.key)
			}
			if behind && err != nil {
				t.Fatalf("%s, tried again by the store: %v", what, err)
			}
			if err != nil && !errors.Is(err, storagetest.ErrFault) {
				t.Fatalf("%s: %v", what, err)
			}
			// Objects never change: what is known of a state is known of all that list the same.
			now := keys(t, b)
			if slices.Equal(now, p.want) || err != nil && slices.Equal(now, p.before) {
				return
			}
			if err == nil {
				t.Fatalf("%s: retention was applied, and there is %q, not %q", what, now, p.want)
			}
			state := strings.Join(now, "\n")
			if known[state] {
				return
			}
			known[state] = true
			x.survives(t, what, b)
			if len(known)%15 == 1 {
				samples = append(samples, b)
			}
			b = clone(t, b)
			if err := x.prune(ctx, b, p.now); err != nil {
				t.Fatalf("%s, again: %v", what, err)
			}
			sameKeys(t, what, keys(t, b), p.want)
		}, kinds[i]...)
	}
	t.Logf("left half done in %d ways", len(known))
	if len(known) < 10 {
		t.Errorf("that is too few")
	}
	for i, b := range append(samples, b) {
		x.restores(t, fmt.Sprintf("sample %d", i+1), fromMemory(t, b))
	}
}

// restores starts servers on what the ends of the window are.
func (x *retained) restores(t *testing.T, what string, l *lab) {
	t.Helper()
	r := l.restore("--target-time", x.begin.UTC().Format(time.RFC3339Nano))
	if got := notes(r); got != x.atBegin {
		t.Errorf("%s: at the beginning of the window there are rows %q, want %q", what, got, x.atBegin)
	}
	r.CheckPages()
	r = l.restore()
	if got := notes(r); got != x.atEnd {
		t.Errorf("%s: at the end there are rows %q, want %q", what, got, x.atEnd)
	}
	r = l.restore("--target-immediate", "--backup", x.pinned.ID)
	if got := notes(r); got != "" {
		t.Errorf("%s: the pinned backup has rows %q", what, got)
	}
}
