package recovery_test

import (
	"errors"
	"path/filepath"
	"testing"

	"pitr/internal/postgres/pgtest"
	"pitr/recovery"
)

// WAL of the replaced directory that is archived only after the plan was made must not be left out of a recovery to the end
// of the archive. A target before it is none of its business.
func TestWALArchivedBehindThePlan(t *testing.T) {
	for name, c := range map[string]struct {
		target   recovery.Target
		others   bool // it is somebody else that archives it in between
		outdated bool
		want     string
	}{
		"end":            {recovery.Target{}, false, true, "a late"},
		"end, by others": {recovery.Target{}, true, true, "a late"},
		"name":           {recovery.Target{Kind: recovery.Name, Name: "here"}, false, false, "a"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t, pgtest.Options{SegSizeMB: 1})
			h.Exec("CREATE TABLE t (v text)")
			h.backup()
			h.Exec("INSERT INTO t VALUES ('a')", "SELECT pg_create_restore_point('here')")
			h.flush()
			h.Conf(map[string]string{"archive_command": "false"})
			h.Reload()
			h.Exec("SELECT pg_switch_wal()", "INSERT INTO t VALUES ('late')", "SELECT pg_switch_wal()")
			h.Kill()
			d := recovery.Destination{Dir: h.Dir, InPlace: true}
			w, p, err := h.plan(c.target, d)
			if err != nil {
				t.Fatal(err)
			}
			if c.others {
				other, _, err := h.plan(c.target, d)
				if err != nil {
					t.Fatal(err)
				}
				if names, err := other.ArchiveLeftovers(t.Context(), h.Dir); err != nil || len(names) == 0 {
					t.Fatalf("archived %q: %v", names, err)
				}
			}
			before := tree(t, h.Dir)
			report, err := w.Restore(t.Context(), p, options())
			h.give(filepath.Join(h.base, "repo"))
			if c.outdated {
				if !errors.Is(err, recovery.ErrOutdated) || !errors.Is(err, recovery.ErrRefused) {
					t.Fatalf("restored short of what is archived: %v", err)
				}
				compareTrees(t, "refused", tree(t, h.Dir), before)
				// A plan made anew has it.
				if w, p, err = h.plan(c.target, d); err != nil {
					t.Fatal(err)
				}
				_, err = w.Restore(t.Context(), p, options())
			} else if err == nil && len(report.PushedWAL) == 0 {
				t.Error("nothing was archived")
			}
			if err != nil {
				t.Fatal(err)
			}
			h.Start()
			h.AwaitPrimary()
			if got := rows(h.Server); got != c.want {
				t.Errorf("rows %q, want %q", got, c.want)
			}
		})
	}
}
