package crash

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"pitr/internal/postgres/pgtest"
)

// Retention is killed at random moments, on the day and again when what was marked may be deleted. What has to stay stays,
// and the same call again comes to the same end.
func TestKilledPrune(t *testing.T) {
	t.Parallel()
	r := random(t)
	x := newRetained(t)
	start := fromMemory(t, x.bucket)
	prune := func(l *lab) []string {
		// The window begins where it is, whatever the time is now.
		l.configure(fmt.Sprintf("backup: {schedule: \"\", retention: {window: %dms, keep: 1}}\n", time.Since(x.begin).Milliseconds()))
		return []string{"prune", "--yes"}
	}
	copyOf := func(l *lab) *lab {
		dir := pgtest.TempDir(t) + "/store"
		if out, err := exec.Command("cp", "-a", l.store, dir).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return newLab(t, dir)
	}
	var sample *lab
	killed := 0
	for phase := range 2 {
		clean := copyOf(start)
		began := time.Now()
		clean.run(prune(clean)...)
		whole := time.Since(began)
		x.survives(t, "pruned", clean.bucket())
		want := keys(t, clean.bucket())
		for n := range 10 {
			what := fmt.Sprintf("phase %d, kill %d", phase+1, n+1)
			l := copyOf(start)
			if l.kill(whole/5+upTo(r, whole), prune(l)...) {
				killed++
			}
			x.survives(t, what, l.bucket())
			if len(keys(t, l.bucket())) != len(want) {
				sample = copyOf(l)
			}
			l.run(prune(l)...)
			x.survives(t, what+", again", l.bucket())
			sameKeys(t, what, keys(t, l.bucket()), want)
			if err := os.RemoveAll(l.store); err != nil {
				t.Fatal(err)
			}
		}
		clean.age()
		start = clean
	}
	t.Logf("killed %d times", killed)
	if killed < 3 {
		t.Errorf("only %d were killed", killed)
	}
	if sample != nil {
		x.restores(t, "killed", sample)
	}
	x.restores(t, "pruned", start)
}
