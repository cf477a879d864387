package crash

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"pitr/basebackup"
	"pitr/internal/repo"
)

// Backups are killed at random moments while the server is written to. What is listed is whole, the same call again gives a
// backup, and what the killed ones left goes.
func TestKilledBackup(t *testing.T) {
	t.Parallel()
	r := random(t)
	l := newServerLab(t, nil)
	l.agent()
	l.server.Run("pgbench", "-i", "-q", "-s", "3")
	ctx, cancel := context.WithCancel(t.Context())
	var load sync.WaitGroup
	load.Go(func() {
		_, err := l.server.TryRun(ctx, "pgbench", "-n", "-c", "1", "-R", "100", "-T", "600")
		if ctx.Err() == nil {
			t.Errorf("the load ended: %v", err)
		}
	})
	defer func() {
		cancel()
		load.Wait()
	}()
	began := time.Now()
	l.run("backup", "create")
	whole := time.Since(began)
	taken, killed := 1, 0
	a := mustOpen(t, l.bucket())
	for tries := 0; tries < 20 && killed < 5; tries++ {
		began := time.Now()
		if l.kill(upTo(r, whole), "backup", "create") {
			killed++
		} else {
			taken++
			whole = time.Since(began) // the machine is less busy now
		}
		listed := len(wholeBackups(t, "killed", a))
		if listed < taken || listed > taken+killed {
			t.Fatalf("%d backups are listed, %d were taken and %d killed", listed, taken, killed)
		}
	}
	id := strings.Fields(l.run("backup", "create"))
	newest := id[len(id)-1]
	if killed < 3 {
		t.Errorf("only %d backups were killed", killed)
	}
	l.run("backup", "verify")
	var listed []struct{ ID, Status string }
	if err := json.Unmarshal([]byte(l.run("backup", "list", "--json")), &listed); err != nil {
		t.Fatal(err)
	}
	for _, b := range listed {
		if b.Status != "ok" {
			t.Errorf("backup %s is listed as %s", b.ID, b.Status)
		}
	}

	// The killed processes are gone, and that shows at once: their packs are marked, and go when the marks are old.
	l.run("prune", "--yes")
	l.age()
	l.run("prune", "--yes")
	exists := map[string]bool{}
	for _, h := range wholeBackups(t, "pruned", a) {
		exists[h.ID] = true
	}
	if !exists[newest] {
		t.Errorf("backup %s is gone", newest)
	}
	for _, key := range keys(t, l.bucket()) {
		parts := strings.Split(key, "/")
		switch kind := parts[1] + "/"; {
		case kind == repo.MarkPrefix, kind == repo.PendingPrefix, kind == repo.PackPrefix && !exists[parts[2]]:
			t.Errorf("%s is left", key)
		}
	}

	cancel()
	load.Wait()
	// What the killed load had sent is done to its end.
	l.server.Await("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'pgbench')")
	want := content(l.server)
	l.flush()
	for _, id := range []string{listed[0].ID, newest} {
		s := l.restore("--backup", id)
		if got := content(s); got != want {
			t.Errorf("from backup %s: restored %q, want %q", id, got, want)
		}
		if id == newest {
			s.CheckPages()
		}
	}
}

// age makes all marks look as if they had been set before the time that packs are given.
func (l *lab) age() {
	l.t.Helper()
	b := l.bucket()
	a := mustOpen(l.t, b)
	ctx, then := l.t.Context(), time.Now().Add(-2*basebackup.SweepGrace)
	for o, err := range a.Repo().List(ctx, repo.MarkPrefix, "") {
		if err != nil {
			l.t.Fatal(err)
		}
		var m map[string]any
		if err := a.Repo().GetDocument(ctx, o.Key, &m); err != nil {
			l.t.Fatal(err)
		}
		m["at"] = then.UTC()
		if err := a.Repo().Delete(ctx, o.Key); err != nil {
			l.t.Fatal(err)
		}
		if err := a.Repo().PutDocument(ctx, o.Key, m); err != nil {
			l.t.Fatal(err)
		}
	}
	for _, key := range keys(l.t, b) {
		if !strings.Contains(key, "/"+repo.MarkPrefix) {
			continue
		}
		if err := os.Chtimes(filepath.Join(l.store, filepath.FromSlash(key)), then, then); err != nil {
			l.t.Fatal(err)
		}
	}
	give(l.t, l.store)
}
