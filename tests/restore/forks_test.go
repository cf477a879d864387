package restore_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"pitr/internal/postgres"
	"pitr/internal/postgres/pgtest"
)

// TestForks: a restored copy that takes the server's place and archives in its name, its own backup, restores of that,
// and the branch that was abandoned.
func TestForks(t *testing.T) {
	for _, mb := range []int{1, 64} {
		t.Run(fmt.Sprintf("%d MB", mb), func(t *testing.T) {
			t.Parallel()
			s := newSite(t, pgtest.Options{SegSizeMB: mb}, "")
			if mb == 1 {
				s.agent(t) // of the first server: it has to keep its hands off the next ones' WAL
			}
			s.Exec("CREATE TABLE t (n serial, v text)", "INSERT INTO t (v) VALUES ('1')")
			s.backup(t)
			s.Exec("INSERT INTO t (v) VALUES ('2')", "SELECT pg_create_restore_point('fork')")
			oldXID, oldLSN := s.transaction(t, "INSERT INTO t (v) VALUES ('old')", "COMMIT")
			s.Exec("SELECT pg_create_restore_point('same')", "SELECT pg_create_restore_point('only here')")
			s.flush(t)
			abandoned := s.backup(t) // on the branch that will be left
			s.Exec("INSERT INTO t (v) VALUES ('older')")
			s.flush(t)
			s.Stop(postgres.Fast)

			two := s.succeed(t, 2, "--target-name", "fork")
			if got := rows(two.Server); got != "1 2" {
				t.Fatalf("rows %q, want 1 2", got)
			}
			two.Exec("INSERT INTO t (v) VALUES ('new')", "SELECT pg_create_restore_point('same')")
			_, newLSN := two.transaction(t, "INSERT INTO t (v) VALUES ('newer')", "COMMIT")
			two.flush(t)
			own := two.backup(t)
			two.Exec("INSERT INTO t (v) VALUES ('newest')")
			two.flush(t)

			type step struct {
				args   []string
				want   string
				backup string
			}
			check := func(from *site, steps ...step) {
				t.Helper()
				for _, x := range steps {
					r := from.restore(t, x.args...)
					if got := rows(r.Server); got != x.want || x.backup != "" && r.Plan.Backup.ID != x.backup {
						t.Errorf("%q: rows %q from backup %s, want %q from %s: %q", x.args, got, r.Plan.Backup.ID, x.want, x.backup, r.Plan.Why)
					}
					r.Stop(postgres.Fast)
				}
			}
			check(two,
				step{nil, "1 2 new newer newest", own},
				step{[]string{"--target-timeline", "1"}, "1 2 old older", abandoned},
				step{[]string{"--target-timeline", "1", "--target-lsn", oldLSN}, "1 2 old", ""},
				step{[]string{"--target-timeline", "1", "--target-xid", fmt.Sprint(oldXID), "--exclusive"}, "1 2", ""},
				step{[]string{"--target-name", "same"}, "1 2 new", ""},
				step{[]string{"--target-timeline", "1", "--target-name", "same"}, "1 2 old", ""},
				step{[]string{"--target-lsn", newLSN}, "1 2 new newer", ""},
				step{[]string{"--target-name", "fork"}, "1 2", ""},
				step{[]string{"--target-immediate"}, "1 2 new newer", own},
				step{[]string{"--target-timeline", "current", "--backup", abandoned}, "1 2 old older", abandoned},
			)
			if mb == 64 {
				two.Server.CheckPages()
				return
			}
			r := two.pitr(t, "restore", "--to", filepath.Join(two.base, "x"), "--target-name", "only here")
			two.expect(t, r, 4, "pitr: restore point \"only here\": target not reachable: no restore point of that name is archived; "+
				"reachable on timeline 2: from TIME (LSN, the end of a backup) to TIME (LSN), WAL up to LSN\n"+
				"HINT: it can be reached on another timeline: --target-timeline 1\n")
			two.damagedHistory(t)
			// And once more: from the second one's backup, a third takes its place.
			two.Stop(postgres.Fast)
			three := two.succeed(t, 3, "--target-name", "same")
			three.Exec("INSERT INTO t (v) VALUES ('third')")
			three.flush(t)
			check(three, step{nil, "1 2 new third", ""}, step{[]string{"--target-timeline", "2"}, "1 2 new newer newest", own},
				step{[]string{"--target-timeline", "1"}, "1 2 old older", abandoned})
			third := three.backup(t)
			three.Exec("INSERT INTO t (v) VALUES ('end')")
			three.flush(t)
			check(three, step{nil, "1 2 new third end", third})
			three.must(t, "wal", "verify")
			three.must(t, "backup", "verify")
			three.Server.CheckPages()
		})
	}
}

// succeed restores to a new directory what takes the place of the site's server, with a configuration of its own.
func (s *site) succeed(t *testing.T, timeline int, target ...string) *site {
	t.Helper()
	dir := filepath.Join(pgtest.TempDir(t), "data")
	s.must(t, append([]string{"restore", "--to", dir, "--archive", "on"}, target...)...)
	next := *s
	next.base = filepath.Dir(dir)
	next.service, next.config = filepath.Join(next.base, "service"), filepath.Join(next.base, "pitr.yaml")
	makeDir(t, next.service)
	next.Server = pgtest.OpenDir(t, dir, pgtest.Options{Bin: s.Bin, Conf: map[string]string{
		"archive_command": postgres.ShellQuote(s.program) + " --config " + postgres.ShellQuote(s.config) + " wal push %p", // still the first one's
	}})
	next.AwaitPrimary()
	next.configure(t, next.config, s.repo, dir, next.SocketDir, next.Port, next.service)
	if got := pgtest.QueryOne[int32](next.Server, "SELECT timeline_id FROM pg_control_checkpoint()"); int(got) != timeline {
		next.Exec("CHECKPOINT")
		if got = pgtest.QueryOne[int32](next.Server, "SELECT timeline_id FROM pg_control_checkpoint()"); int(got) != timeline {
			t.Errorf("timeline %d, want %d", got, timeline)
		}
	}
	return &next
}

// damagedHistory: a timeline's history with a flipped byte is noticed, and no recovery goes along it.
func (s *site) damagedHistory(t *testing.T) {
	t.Helper()
	c := s.copyRepo(t)
	object := glob(t, c.repo, "*", "wal", "00000002.history-*")[0]
	whole := read(t, object)
	overwrite(t, object, flipped(whole, len(whole)/2))
	if r := c.pitr(t, "wal", "verify"); r.code != 5 {
		t.Errorf("wal verify: exit status %d\n%s%s", r.code, r.out, r.err)
	}
	dest := filepath.Join(c.base, "history")
	if r := c.pitr(t, "wal", "fetch", "00000002.history", dest); r.code != 200 {
		t.Errorf("wal fetch: exit status %d: %s", r.code, r.err)
	}
	to := filepath.Join(c.base, "copy")
	if r := c.pitr(t, "restore", "--to", to); r.code != 5 || !strings.Contains(r.err, "00000002.history") {
		t.Errorf("restore: exit status %d: %s", r.code, r.err)
	}
	if found, _ := filepath.Glob(to + "*"); len(found) > 0 { // the pattern is right
		t.Errorf("left %q", found)
	}
}
