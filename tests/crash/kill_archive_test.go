package crash

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"pitr/archive"
	"pitr/internal/wal"
)

// acknowledged makes sure that all WAL is archived that the server has been told so of.
func (l *lab) acknowledged(what string, a *archive.Archive) {
	l.t.Helper()
	// The files first: what is done by then is listed after that.
	entries, err := os.ReadDir(filepath.Join(l.server.Dir, "pg_wal", "archive_status"))
	if err != nil {
		l.t.Fatal(err)
	}
	c, err := a.Coverage(l.t.Context())
	if err != nil {
		l.t.Fatalf("%s: %v", what, err)
	}
	for _, e := range entries {
		name, done := strings.CutSuffix(e.Name(), ".done")
		if !done || wal.Classify(name) != wal.Segment {
			continue
		}
		tli, no, err := wal.ParseSegmentName(name, c.SegSize)
		if err != nil {
			l.t.Fatal(err)
		}
		if t := c.Timelines[tli]; t == nil || !t.Runs.Has(no) {
			l.t.Fatalf("%s: %s was acknowledged and is not archived", what, name)
		}
	}
}

// The agent and the hooks are killed at random moments while the server is written to. What was acknowledged is archived,
// what is archived is whole, the archive goes on by itself, and each of the moments between is restored.
func TestKilledArchiving(t *testing.T) {
	t.Parallel()
	r := random(t)
	l := newServerLab(t, nil)
	l.server.Run("pgbench", "-i", "-q", "-s", "1")
	stop := l.agent()
	l.run("backup", "create")
	a := mustOpen(t, l.bucket())
	const rounds = 8
	at := map[string]string{}
	for round := range rounds {
		what := fmt.Sprintf("round %d", round)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		var load sync.WaitGroup
		load.Go(func() {
			if _, err := l.server.TryRun(ctx, "pgbench", "-n", "-c", "2", "-T", "2", "--max-tries=1"); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		})
		time.Sleep(upTo(r, 1500*time.Millisecond))
		stop()
		wholeWAL(t, what, a, true)
		l.acknowledged(what, a)
		if round%2 == 1 {
			// The hooks do it themselves for a while, and are killed, too.
			l.deadlyHooks(true)
			time.Sleep(upTo(r, time.Second))
		}
		stop = l.agent()
		load.Wait()
		cancel()
		l.deadlyHooks(false)
		l.acknowledged(what, a)
		name := fmt.Sprintf("round %d's end", round)
		at[name] = content(l.server)
		l.server.Exec("SELECT pg_create_restore_point('" + strings.ReplaceAll(name, "'", "''") + "')")
	}
	stop()
	stop = l.agent()
	want := content(l.server)
	l.flush()
	l.acknowledged("in the end", a)
	report := wholeWAL(t, "in the end", a, false)
	t.Logf("%d segments", report.Segments)
	l.run("wal", "verify")
	l.run("backup", "verify")
	stop()
	l.deadlyHooks(false)
	for _, round := range []int{r.IntN(rounds - 1), rounds - 1} {
		name := fmt.Sprintf("round %d's end", round)
		if got := content(l.restore("--target-name", name)); got != at[name] {
			t.Errorf("%s: restored %q, want %q", name, got, at[name])
		}
	}
	s := l.restore()
	if got := content(s); got != want {
		t.Errorf("restored %q, want %q", got, want)
	}
	s.CheckPages()
}
