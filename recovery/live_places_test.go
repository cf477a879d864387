package recovery_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pitr/internal/hint"
	"pitr/internal/postgres"
	"pitr/internal/postgres/pgtest"
	"pitr/recovery"
)

// clone copies the data directory of a running server as `cp -a` or a snapshot does: its links lead to what the server uses.
func clone(t *testing.T, h *house) string {
	t.Helper()
	h.Exec("CHECKPOINT")
	dir := filepath.Join(pgtest.TempDir(t), "clone")
	// The server removes files meanwhile, which cp minds.
	out, _ := exec.Command("cp", "-a", h.Dir, dir).CombinedOutput()
	if err := os.Remove(filepath.Join(dir, "postmaster.pid")); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return dir
}

// files names all files under a directory.
func files(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	for path := range tree(t, dir) {
		all = append(all, path)
	}
	return all
}

// The WAL of a running server is not emptied through the link of a clone's pg_wal.
func TestLinkedWALOfARunningServer(t *testing.T) {
	t.Parallel()
	h := newHouse(t, pgtest.Options{SegSizeMB: 1, WALDir: true})
	h.backup()
	h.flush()
	h.Exec("CREATE TABLE precious AS SELECT 1 AS x")
	dir := clone(t, h)
	w, p, err := h.plan(recovery.Target{}, recovery.Destination{Dir: dir, InPlace: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Err(); !errors.Is(err, recovery.ErrRefused) || !strings.Contains(err.Error(), h.WALDir+", where pg_wal leads, belongs to the server that runs in "+h.Dir) || hint.Of(err) == "" {
		t.Errorf("onto a clone: %v (hint: %s)", err, hint.Of(err))
	}
	if names, err := w.ArchiveLeftovers(t.Context(), dir); err != nil || len(names) > 0 {
		t.Errorf("the running server's WAL was archived as what the clone left: %v, %v", names, err)
	}
	h.Kill()
	h.Start()
	if got := pgtest.QueryOne[int32](h.Server, "SELECT x FROM precious"); got != 1 {
		t.Errorf("%d", got)
	}
}

// Nor are its tablespaces: not as part of the plan, and not where the plan puts them elsewhere.
func TestTablespacesOfARunningServer(t *testing.T) {
	for _, delta := range []bool{false, true} {
		t.Run(fmt.Sprintf("delta %v", delta), func(t *testing.T) {
			t.Parallel()
			h := newHouse(t, pgtest.Options{SegSizeMB: 1, Tablespaces: 2})
			h.Exec("CREATE TABLE a TABLESPACE ts1 AS SELECT generate_series(1, 1000) AS x")
			h.backup()
			h.flush()
			dir := clone(t, h)
			d := recovery.Destination{Dir: dir, InPlace: true, Delta: delta}
			_, p, err := h.plan(recovery.Target{}, d)
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Err(); !errors.Is(err, recovery.ErrRefused) || !strings.Contains(err.Error(), "belongs to the server that runs in "+h.Dir) || !strings.Contains(hint.Of(err), "=DIR puts it elsewhere") {
				t.Errorf("onto a clone: %v (hint: %s)", err, hint.Of(err))
			}
			// As the hint says.
			for i := range h.Tablespaces {
				d.Tablespaces = append(d.Tablespaces, recovery.Mapping{Old: fmt.Sprintf("ts%d", i+1), New: filepath.Join(pgtest.TempDir(t), "new")})
			}
			w, _, err := h.plan(recovery.Target{}, d)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.ArchiveLeftovers(t.Context(), dir); err != nil {
				t.Fatal(err)
			}
			h.give(filepath.Join(h.base, "repo"))
			w, p, err = h.plan(recovery.Target{}, d)
			if err != nil || p.Err() != nil {
				t.Fatal(err, p.Err())
			}
			noted := 0
			for _, o := range p.Obstacles {
				if strings.Contains(o.What, "is left as it is") && (strings.Contains(o.What, h.Tablespaces[0]) || strings.Contains(o.What, h.Tablespaces[1])) {
					noted++
				}
			}
			if noted != 2 {
				t.Errorf("obstacles %+v", p.Obstacles)
			}
			before := len(files(t, h.Tablespaces[0]))
			if _, err := w.Restore(t.Context(), p, options()); err != nil {
				t.Fatal(err)
			}
			if after := len(files(t, h.Tablespaces[0])); before < 4 || after != before {
				t.Errorf("the running server's tablespace had %d files, and has %d", before, after)
			}
			h.Exec("CHECKPOINT", "INSERT INTO a VALUES (1)")
			if link, err := os.Readlink(filepath.Join(dir, "pg_tblspc", fmt.Sprint(p.Layout.Tablespaces[0].OID))); err != nil || link != d.Tablespaces[0].New {
				t.Errorf("the link leads to %s (%v)", link, err)
			}
		})
	}
}

// What changes between the plan and the restore is noticed: the directory's links, and who uses what they lead to.
func TestPlacesChangeAfterThePlan(t *testing.T) {
	t.Parallel()
	h := newHouse(t, pgtest.Options{SegSizeMB: 1, Tablespaces: 1, WALDir: true})
	h.Exec("CREATE TABLE a TABLESPACE ts1 AS SELECT generate_series(1, 1000) AS x")
	h.backup()
	h.flush()
	dir := clone(t, h)
	h.Stop(postgres.Fast)
	if err := h.drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.give(filepath.Join(h.base, "repo"))
	w, p, err := h.plan(recovery.Target{}, recovery.Destination{Dir: dir, InPlace: true})
	if err != nil || p.Err() != nil {
		t.Fatal(err, p.Err())
	}
	h.Start()
	if _, err := w.Restore(t.Context(), p, options()); !errors.Is(err, recovery.ErrRefused) || !strings.Contains(err.Error(), "belongs to the server that runs in "+h.Dir) {
		t.Errorf("with the original started: %v", err)
	}
	h.Exec("INSERT INTO a VALUES (1)", "CHECKPOINT")
	h.Stop(postgres.Fast)
	link := filepath.Join(dir, "pg_wal")
	if err := errors.Join(os.Remove(link), os.Symlink(mkdir(t, filepath.Join(pgtest.TempDir(t), "wal")), link)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Restore(t.Context(), p, options()); !errors.Is(err, recovery.ErrRefused) || !strings.Contains(err.Error(), "has changed since the plan was made") {
		t.Errorf("with another link: %v", err)
	}
	h.Start()
	h.Exec("INSERT INTO a VALUES (1)")
}

// A server that is started while WAL is saved, or at the very last moment, keeps its directory.
func TestServerStartedMeanwhile(t *testing.T) {
	t.Parallel()
	h := newHouse(t, pgtest.Options{SegSizeMB: 1})
	h.Exec("CREATE TABLE t (v text)")
	h.backup()
	h.flush()
	h.Stop(postgres.Fast)
	if err := h.drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.give(filepath.Join(h.base, "repo"))
	plan := func() (*recovery.World, *recovery.Plan) {
		t.Helper()
		w, _, err := h.plan(recovery.Target{}, recovery.Destination{Dir: h.Dir, InPlace: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.ArchiveLeftovers(t.Context(), h.Dir); err != nil {
			t.Fatal(err)
		}
		h.give(filepath.Join(h.base, "repo"))
		w, p, err := h.plan(recovery.Target{}, recovery.Destination{Dir: h.Dir, InPlace: true})
		if err != nil || p.Err() != nil {
			t.Fatal(err, p.Err())
		}
		return w, p
	}
	w, p := plan()
	o := options()
	n := 0
	o.Now = func() time.Time {
		if n++; n == 2 { // for the journal, behind all that looks whether a server runs and before it is written
			h.Start()
			h.Exec("INSERT INTO t VALUES ('acknowledged')")
		}
		return time.Now()
	}
	if _, err := w.Restore(t.Context(), p, o); !errors.Is(err, recovery.ErrRefused) || !strings.Contains(err.Error(), "a server was started in "+h.Dir) || n != 2 {
		t.Errorf("under a server that was started meanwhile: %v", err)
	}
	h.Exec("INSERT INTO t VALUES ('more')", "CHECKPOINT")
	if _, err := os.Lstat(filepath.Join(h.Dir, recovery.JournalFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the journal is still there: %v", err)
	}
	h.Restart()
	if got := rows(h.Server); got != "acknowledged more" {
		t.Errorf("rows %q", got)
	}
	h.Stop(postgres.Fast)
	if err := h.drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	w, p = plan()
	if _, err := w.Restore(t.Context(), p, options()); err != nil {
		t.Fatal(err)
	}
	h.Start()
	h.AwaitPrimary()
	if got := rows(h.Server); got != "acknowledged more" {
		t.Errorf("restored rows %q", got)
	}
}
