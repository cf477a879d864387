package restore_test

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pitr/internal/postgres"
	"pitr/internal/postgres/pgtest"
)

// TestStory tells one story on one server and goes back to its moments, from its repository or from copies of that which
// were harmed.
func TestStory(t *testing.T) {
	t.Parallel()
	s := tell(t)
	for name, test := range map[string]func(*testing.T, *story){
		"targets": testTargets, "in doubt": testInDoubt, "pause": testPause, "shutdown": testShutdown, "standby": testStandby,
		"unreachable": testUnreachable, "which backup": testWhichBackup, "beside": testBeside, "killed": testKilled,
		"last segment": testLastSegment, "missing segment": testMissingSegment, "store away": testStoreAway, "every object": testEveryObject,
		"two contents": testTwoContents, "other cluster": testOtherCluster, "private": testPrivate, "names": testNames,
		"two agents": testTwoAgents, "root": testRoot, "configuration": testConfiguration, "password": testPassword, "read-only": testReadOnly, "no space": testNoSpace,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, s)
		})
	}
}

func testTargets(t *testing.T, s *story) {
	for name, x := range map[string]struct {
		args   []string
		want   moment
		backup string
	}{
		"time, at the backup's end": {[]string{"--target-time", stamp(s.edge.at)}, s.edge, s.first},
		"time, between commits":     {[]string{"--target-time", stamp(s.b.at)}, s.b, s.first},
		"time, of a commit":         {[]string{"--target-time", stamp(s.cTime)}, s.c, s.first},
		"time, exclusive":           {[]string{"--target-time", stamp(s.cTime), "--exclusive"}, s.b, s.first},
		"time, after all commits":   {[]string{"--target-time", stamp(s.end.at)}, s.end, s.second},
		"xid":                       {[]string{"--target-xid", fmt.Sprint(s.cXID)}, s.c, s.first},
		"xid, exclusive":            {[]string{"--target-xid", fmt.Sprint(s.cXID), "--exclusive"}, s.b, s.first},
		"xid, prepared":             {[]string{"--target-xid", fmt.Sprint(s.late)}, s.lateAt, s.second},
		"lsn":                       {[]string{"--target-lsn", s.cLSN}, s.c, s.first},
		"lsn, exclusive":            {[]string{"--target-lsn", s.cLSN, "--exclusive"}, s.b, s.first},
		"name":                      {[]string{"--target-name", oddPoint}, s.point, s.first},
		"name, given twice":         {[]string{"--target-name", "twice"}, s.twice, s.first},
		"immediate":                 {[]string{"--target-immediate", "--backup", s.first}, s.edge, s.first},
		"none":                      {nil, s.end, s.second},
		"none, from the first":      {[]string{"--backup", s.first}, s.end, s.first},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := s.restore(t, x.args...)
			if got := rows(r.Server); got != x.want.rows {
				t.Errorf("rows %q, want %q: stop %s", got, x.want.rows, r.Plan.StopRecord)
			}
			if r.Plan.Backup.ID != x.backup {
				t.Errorf("from backup %s, want %s: %q", r.Plan.Backup.ID, x.backup, r.Plan.Why)
			}
			if tli := pgtest.QueryOne[int32](r.Server, "SELECT timeline_id FROM pg_control_checkpoint()"); r.Started.Timeline != 2 || tli > 2 {
				t.Errorf("timeline %d, by pg_control %d, want 2", r.Started.Timeline, tli)
			}
			if x.want.full != "" {
				same(t, contents(t, r.Server), x.want.full)
				if n := pgtest.QueryOne[int64](r.Server, "SELECT count(*) FROM passing"); n != 0 {
					t.Errorf("the unlogged table has %d rows", n)
				}
				if n := pgtest.QueryOne[int64](r.Server, "SELECT nextval('counter')"); n <= 150 {
					t.Errorf("the sequence gives %d again", n)
				}
			}
			if got := pgtest.QueryOne[string](r.Server, "SHOW archive_mode"); got != "off" {
				t.Errorf("archive_mode %s in a copy", got)
			}
			r.Exec("INSERT INTO t (v) VALUES ('after')")
			r.Server.CheckPages()
		})
	}
}

func testInDoubt(t *testing.T, s *story) {
	r := s.restore(t, "--target-time", stamp(s.end.at))
	var xids []uint64
	for _, d := range r.Plan.InDoubt {
		xids = append(xids, uint64(d.XID))
	}
	if want := slices.Sorted(maps.Values(s.doubts)); !slices.Equal(xids, want) {
		t.Errorf("in doubt: %v, want %v", xids, want)
	}
	if got, want := pgtest.Query[string](r.Server, "SELECT gid FROM pg_prepared_xacts ORDER BY gid"), slices.Sorted(maps.Keys(s.doubts)); !slices.Equal(got, want) {
		t.Errorf("prepared %q, want %q", got, want)
	}
	r.Exec("COMMIT PREPARED "+literal(oddGID), "ROLLBACK PREPARED 'before the backup'")
	if got := pgtest.Query[string](r.Server, "SELECT v FROM doubt ORDER BY v"); !slices.Equal(got, []string{oddGID, "late"}) {
		t.Errorf("rows of prepared transactions: %q", got)
	}
	r.Stop(postgres.Fast)

	// People are told, too, and at an earlier moment it is another matter.
	text := s.must(t, "restore", "--to", filepath.Join(pgtest.TempDir(t), "copy"), "--plan", "--target-time", stamp(s.c.at))
	note := fmt.Sprintf("note         transaction %d (prepared before the backup) is neither committed nor rolled back at the target\n", s.doubts["before the backup"])
	if !strings.Contains(text, note) || strings.Count(text, "nor rolled back at the target") != 1 {
		t.Errorf("%s\nwant once\n%s", text, note)
	}
}

func testPause(t *testing.T, s *story) {
	r := s.restore(t, "--target-xid", fmt.Sprint(s.cXID), "--target-action", "pause")
	if got := rows(r.Server); got != s.c.rows || !pgtest.QueryOne[bool](r.Server, "SELECT pg_is_in_recovery() AND pg_is_wal_replay_paused()") {
		t.Errorf("rows %q, want %q, or not paused", got, s.c.rows)
	}
	r.Exec("SELECT pg_wal_replay_resume()")
	r.AwaitPrimary()
	if got := rows(r.Server); got != s.c.rows {
		t.Errorf("rows %q after going on, want %q", got, s.c.rows)
	}
}

func testShutdown(t *testing.T, s *story) {
	r := s.restore(t, "--target-lsn", s.cLSN, "--target-action", "shutdown")
	if r.Started.PID != 0 || r.Started.Timeline != 1 {
		t.Errorf("%+v", r.Started)
	}
	if _, running, err := postgres.Running(r.dir); running || err != nil {
		t.Errorf("the server runs (%v)", err)
	}
	// It may be looked at before it is promoted, by a server that stays in recovery.
	c := pgtest.OpenDir(t, r.dir, pgtest.Options{Bin: s.Bin, Conf: map[string]string{"recovery_target_action": "pause"}})
	if got := rows(c); got != s.c.rows || !pgtest.QueryOne[bool](c, "SELECT pg_is_in_recovery()") {
		t.Errorf("rows %q, want %q, or not in recovery", got, s.c.rows)
	}
}

func testStandby(t *testing.T, s *story) {
	r := s.restore(t, "--standby")
	eventually(t, "the standby is where the archive ends", func() bool { return rows(r.Server) == s.end.rows })
	if !pgtest.QueryOne[bool](r.Server, "SELECT pg_is_in_recovery()") {
		t.Error("not in recovery")
	}
}

// What can't be reached is refused before anything is touched, and the message has the range.
func testUnreachable(t *testing.T, s *story) {
	const reach = "reachable on timeline 1: from TIME (LSN, the end of a backup) to TIME (LSN), WAL up to LSN\n"
	future := s.end.at.Add(24 * time.Hour)
	for name, x := range map[string]struct {
		args []string
		want string
	}{
		"early": {[]string{"--target-time", "2001-01-01 00:00:00"}, "pitr: time TIME: target not reachable: it lies before the start of backup ID, TIME; " + reach +
			"HINT: the earliest that can be had is the end of the first backup: --target-immediate --backup ID\n"},
		"future": {[]string{"--target-time", future.Format(time.RFC3339)}, "pitr: time TIME: target not reachable: no transaction ended after it, and nothing of a later time is archived; " + reach +
			"HINT: without a target everything archived is restored; if the server still runs, `SELECT pg_switch_wal()` there has its newest WAL archived\n"},
		"low lsn": {[]string{"--target-lsn", "0/100"}, "pitr: WAL position LSN: target not reachable: it lies before the end of the first backup, LSN; " + reach +
			"HINT: the earliest that can be had is the end of the first backup: --target-immediate --backup ID\n"},
		"high lsn": {[]string{"--target-lsn", "FFF/0"}, "pitr: WAL position LSN: target not reachable: it lies behind the end of the archived WAL, LSN; " + reach},
		"xid":      {[]string{"--target-xid", "4000000000"}, "pitr: transaction XID: target not reachable: no commit or abort of that number is archived; " + reach},
		"sub xid": {[]string{"--target-xid", fmt.Sprint(s.inner)}, "pitr: transaction XID: target not reachable: it was a subtransaction of " + fmt.Sprint(s.outer) + "; " + reach +
			"HINT: PostgreSQL knows top-level transactions only: --target-xid " + fmt.Sprint(s.outer) + ", whose COMMIT is at LSN (TIME)\n"},
		"name":     {[]string{"--target-name", "it's not there"}, "pitr: restore point \"it's not there\": target not reachable: no restore point of that name is archived; " + reach},
		"timeline": {[]string{"--target-timeline", "7"}, "pitr: the end of the archive: target not reachable: timeline 7 is not in the archive, which has timelines 1\n"},
		"backup":   {[]string{"--backup", "20010101T000000Z-00000000"}, "pitr: backup ID: no such backup\nHINT: `pitr backup list` shows those there are\n"},
	} {
		to := filepath.Join(pgtest.TempDir(t), "copy")
		code := 4
		if name == "backup" {
			code = 1
		}
		r := s.pitr(t, append([]string{"restore", "--to", to, "--start"}, x.args...)...)
		t.Run(name, func(t *testing.T) { s.expect(t, r, code, x.want) })
		if found, _ := filepath.Glob(to + "*"); len(found) > 0 { // the pattern is right
			t.Errorf("%s: left %q", name, found)
		}
	}
}

// A target is served by the newest backup that leads to it, whatever number of newer ones there are.
func testWhichBackup(t *testing.T, s *story) {
	for _, x := range []struct{ flag, value, backup string }{
		{"--target-xid", fmt.Sprint(s.abort), s.first},
		{"--target-xid", fmt.Sprint(s.outer), s.first},
		{"--target-xid", fmt.Sprint(s.late), s.second},
		{"--target-name", oddPoint, s.first},
		{"--target-name", "twice", s.first},
		{"--target-lsn", s.cLSN, s.first},
		{"--target-time", s.c.at.Format(time.RFC3339Nano), s.first},
		{"--target-time", s.lateAt.at.Format(time.RFC3339Nano), s.second},
	} {
		if p := s.plan(t, x.flag, x.value); p.Backup.ID != x.backup {
			t.Errorf("%s %q: backup %s, want %s: %q", x.flag, x.value, p.Backup.ID, x.backup, p.Why)
		}
	}
	// One who insists on a backup that is too new hears so.
	r := s.pitr(t, "restore", "--to", filepath.Join(pgtest.TempDir(t), "copy"), "--backup", s.second, "--target-xid", fmt.Sprint(s.cXID))
	if r.code != 4 {
		t.Errorf("exit status %d: %s", r.code, r.err)
	}
}
