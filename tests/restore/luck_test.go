package restore_test

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"pitr/internal/postgres"
	"pitr/internal/postgres/pgtest"
)

// testBeside: a restore goes only where nothing is in its way.
func testBeside(t *testing.T, s *story) {
	base := pgtest.TempDir(t)
	full, file := filepath.Join(base, "full"), filepath.Join(base, "file")
	makeDir(t, full)
	write(t, filepath.Join(full, "precious"), "mine")
	write(t, file, "mine")
	inside := filepath.Join(s.Dir, "base", "copy")
	for _, x := range []struct{ to, want string }{
		{full, "pitr: refused: $BASE/full is not empty\nHINT: choose a directory that is empty or does not exist yet\n"},
		{file, "pitr: refused: $BASE/file is not a directory\nHINT: choose a directory that is empty or does not exist yet\n"},
		{s.Dir, "pitr: refused: a server runs in $DATA (process PID)\nHINT: stop it first, for example with `pg_ctl stop -D $DATA`, or restore beside it with --to\n"},
		{inside, "pitr: refused: $DATA/base/copy belongs to the server that runs in $DATA\nHINT: choose a directory of its own\n"},
	} {
		unchanged(t, base, func() {
			s.expect(t, s.pitr(t, "restore", "--to", x.to, "--yes"), 7, x.want, base, "$BASE")
		})
	}
	if _, err := os.Stat(inside); err == nil {
		t.Error("a directory was made inside the server's")
	}
	// In place, under the running server: neither with nor without --yes.
	for _, yes := range []string{"--yes", "--delta"} {
		s.expect(t, s.pitr(t, "restore", yes), 7, "pitr: refused: a server runs in $DATA (process PID)\nHINT: stop it first, for example with `pg_ctl stop -D $DATA`, or restore beside it with --to\n")
	}
	s.Exec("SELECT 1")
}

// testKilled: a restore that is killed at whatever moment leaves nothing that starts, and the same call finishes it.
func testKilled(t *testing.T, s *story) {
	for i := range 5 {
		to := filepath.Join(pgtest.TempDir(t), "copy")
		cmd := s.command(t.Context(), "restore", "--to", to, "--target-xid", fmt.Sprint(s.cXID))
		pgtest.AsServerUser(cmd)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// At the first sign of each of these, some way into the work.
		sign := []string{"pitr.restore", "base/1", "PG_VERSION", "pg_xact/0000", "backup_label"}[i]
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		killed := false
		eventually(t, "the restore is under way or done", func() bool {
			if _, err := os.Stat(filepath.Join(to, sign)); err == nil {
				killed = cmd.Process.Kill() == nil
				return true
			}
			select {
			case err := <-ended:
				ended <- err
				return true
			default:
				return false
			}
		})
		<-ended
		if _, err := os.Stat(filepath.Join(to, "pitr.restore")); killed && err == nil {
			if c, err := pgtest.TryOpenDir(t, to, pgtest.Options{Bin: s.Bin}); err == nil {
				t.Errorf("killed at %s: the server starts on half of it: %q", sign, rows(c))
			}
			// Another restore is not let in.
			r := s.pitr(t, "restore", "--to", to, "--backup", s.second)
			s.expect(t, r, 7, "pitr: refused: $TO holds an unfinished restore of backup ID to transaction XID\nHINT: call that one again to finish it, or remove the directory\n", to, "$TO")
			r = s.pitr(t, "restore", "--to", to, "--target-xid", fmt.Sprint(s.cXID))
			if r.code != 0 {
				t.Fatalf("killed at %s, then called again: exit status %d: %s", sign, r.code, r.err)
			}
		}
		c := pgtest.OpenDir(t, to, pgtest.Options{Bin: s.Bin})
		c.AwaitPrimary()
		if got := rows(c); got != s.c.rows {
			t.Errorf("killed at %s: rows %q, want %q", sign, got, s.c.rows)
		}
		if i == 1 {
			c.CheckPages()
		} else {
			c.Stop(postgres.Fast)
		}
	}
}

// testOtherCluster: WAL of another cluster does not get into this one's archive, and backups never mix.
func testOtherCluster(t *testing.T, story *story) {
	s := story.copyRepo(t)
	other := newSite(t, pgtest.Options{SegSizeMB: 1, NewSystem: true}, "")
	other.repo = s.repo // one store for both
	other.configure(t, other.config, s.repo, other.Dir, other.SocketDir, other.Port, other.service)
	other.Exec("CREATE TABLE t (n serial, v text)", "INSERT INTO t (v) VALUES ('theirs')")
	id := other.backup(t)
	segment := other.flush(t)
	s.must(t, "wal", "verify")
	if r := s.restore(t, "--target-time", stamp(story.end.at)); rows(r.Server) != story.end.rows {
		t.Errorf("rows %q, want %q", rows(r.Server), story.end.rows)
	}
	if r := other.restore(t); rows(r.Server) != "theirs" || r.Plan.Backup.ID != id {
		t.Errorf("rows %q from %s, want theirs from %s", rows(r.Server), r.Plan.Backup.ID, id)
	}
	// Its file under a name of ours.
	foreign := filepath.Join(pgtest.TempDir(t), "0000000100000000000000F0")
	overwriteNew(t, foreign, read(t, filepath.Join(other.Dir, "pg_wal", segment)))
	r := s.pitr(t, "wal", "push", foreign)
	if want := "pitr: archive SEGMENT: not archived because the file is not right: "; r.code != 1 || !strings.HasPrefix(s.plain(r.err), want) ||
		!strings.HasSuffix(r.err, "HINT: the file is damaged or of another server; the server keeps it and goes on asking to archive it. If its disk is faulty, replace it and take a new base backup\n") {
		t.Errorf("exit status %d: %s\nwant %s…", r.code, r.err, want)
	}
	// The server of one, the directory of the other.
	mixed := filepath.Join(s.base, "mixed.yaml")
	s.configure(t, mixed, s.repo, s.Dir, other.SocketDir, other.Port, s.service)
	r = s.with(mixed).pitr(t, "backup", "create")
	if r.code != 1 || !strings.Contains(s.plain(r.err), "$DATA is of system identifier SYSTEM, the server of SYSTEM\nHINT: ") {
		t.Errorf("exit status %d: %s", r.code, r.err)
	}
	// On a fresh machine somebody has to say which one is meant.
	fresh := filepath.Join(s.base, "fresh.yaml")
	data := filepath.Join(s.base, "fresh")
	s.configure(t, fresh, s.repo, data, s.SocketDir, s.Port, s.service)
	r = s.with(fresh).pitr(t, "restore")
	s.expect(t, r, 1, "pitr: open the repository: file://$REPO holds 2 clusters (system identifiers [SYSTEM SYSTEM]), and there is no data directory at $BASE/fresh to tell which one is meant\nHINT: name it with --system-id\n")
	sysid := pgtest.QueryOne[string](other.Server, "SELECT system_identifier::text FROM pg_control_system()")
	s.with(fresh).must(t, "restore", "--system-id", sysid)
	c := pgtest.OpenDir(t, data, pgtest.Options{Bin: s.Bin})
	c.AwaitPrimary()
	if got := rows(c); got != "theirs" {
		t.Errorf("rows %q, want theirs", got)
	}
}

// testPrivate: what is stored and what is restored is not for everybody to read.
func testPrivate(t *testing.T, s *story) {
	n := 0
	err := filepath.WalkDir(s.repo, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o007 != 0 {
			t.Errorf("%s has mode %04o", path, info.Mode().Perm())
		}
		n++
		return err
	})
	if err != nil || n < 10 {
		t.Errorf("%d files and directories looked at: %v", n, err)
	}
}

// testRoot: what root restores belongs to whom the server belongs.
func testRoot(t *testing.T, s *story) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files to others")
	}
	to := filepath.Join(pgtest.TempDir(t), "copy")
	if r := run(t, s.command(t.Context(), "restore", "--to", to)); r.code != 0 {
		t.Fatalf("exit status %d: %s", r.code, r.err)
	}
	uid, _ := pgtest.User()
	err := filepath.WalkDir(to, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && int(info.Sys().(*syscall.Stat_t).Uid) != uid {
			t.Errorf("%s does not belong to user %d", path, uid)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	c := pgtest.OpenDir(t, to, pgtest.Options{Bin: s.Bin})
	c.AwaitPrimary()
	if got := rows(c); got != s.end.rows {
		t.Errorf("rows %q, want %q", got, s.end.rows)
	}
}

// testTwoAgents: a second agent for one service directory is refused; one with a directory of its own does no harm.
func testTwoAgents(t *testing.T, s *story) {
	r := s.pitr(t, "agent")
	if want := "pitr: an agent runs already in $SERVICE (process PID)\nHINT: "; r.code != 1 || !strings.Contains(s.plain(r.err), want) {
		t.Errorf("exit status %d: %s\nwant %s…", r.code, r.err, want)
	}

	a := newSite(t, pgtest.Options{SegSizeMB: 1}, "")
	a.agent(t)
	b := *a
	b.service, b.config = filepath.Join(a.base, "service2"), filepath.Join(a.base, "pitr2.yaml")
	makeDir(t, b.service)
	b.configure(t, b.config, b.repo, b.Dir, b.SocketDir, b.Port, b.service)
	b.agent(t)
	a.Exec("CREATE TABLE t (n serial, v text)")
	id := a.backup(t)
	for i := range 8 {
		a.Exec(fmt.Sprintf("INSERT INTO t (v) VALUES ('%d')", i), "SELECT pg_switch_wal()")
	}
	a.flush(t)
	b.must(t, "wal", "verify")
	b.must(t, "backup", "verify", id)
	c := b.restore(t)
	if got := rows(c.Server); got != "0 1 2 3 4 5 6 7" {
		t.Errorf("rows %q", got)
	}
}

func testConfiguration(t *testing.T, s *story) {
	wrong := filepath.Join(pgtest.TempDir(t), "pitr.yaml")
	s.configure(t, wrong, s.repo, s.Dir, s.SocketDir, s.Port, s.service, "backup: {levle: 3}")
	w := s.with(wrong)
	first := ""
	for _, command := range []string{"restore", "backup create", "backup list", "wal list", "wal verify", "wal push x", "prune", "status", "check", "agent", "config check"} {
		r := w.pitr(t, strings.Fields(command)...)
		if first == "" {
			first = r.err
		}
		if r.code != 3 || r.err != first || !strings.Contains(r.err, "backup.levle") || !strings.Contains(r.err, "level") {
			t.Errorf("%s: exit status %d: %s", command, r.code, r.err)
		}
	}
	if r := w.pitr(t, "wal", "fetch", s.last, filepath.Join(filepath.Dir(wrong), "x")); r.code != 200 || !strings.Contains(r.err, "backup.levle") {
		t.Errorf("wal fetch: exit status %d: %s", r.code, r.err)
	}
	// No configuration at all.
	if r := s.with(wrong+".not").pitr(t, "restore"); r.code != 3 || !strings.Contains(r.err, "pitr.yaml.not") {
		t.Errorf("exit status %d: %s", r.code, r.err)
	}
}

// testPassword: a server that does not let pitr in, and none at all.
func testPassword(t *testing.T, s *story) {
	o := newSite(t, pgtest.Options{SegSizeMB: 1}, "")
	const secret, wrong = "s3cret-of-the-test", "n0t-it"
	o.Exec("CREATE ROLE keeper SUPERUSER LOGIN PASSWORD '" + secret + "'")
	hba := filepath.Join(o.Dir, "pg_hba.conf")
	write(t, hba, "local all keeper scram-sha-256\n"+string(read(t, hba)))
	o.Reload()
	config := filepath.Join(o.base, "keeper.yaml")
	write(t, config, strings.Replace(string(read(t, o.config)), "postgres: {", "postgres: {user: keeper, ", 1))
	k := o.with(config)
	const at = "pitr: connect to PostgreSQL at $SOCKET/.s.PGSQL.PORT as role \"keeper\": "
	r := k.pitrIn(t, "", []string{"PGPASSWORD=" + wrong}, "backup", "create")
	o.expect(t, r, 1, at+"FATAL: password authentication failed for user \"keeper\" (SQLSTATE 28P01)\n"+
		"HINT: put the right password for role \"keeper\" into ~/.pgpass, into the file that PGPASSFILE names, or into PGPASSWORD\n")
	if strings.Contains(r.out+r.err, wrong) {
		t.Error("the password is shown")
	}
	r = k.pitrIn(t, "", []string{"PGPASSWORD=" + secret}, "backup", "create")
	if r.code != 0 || strings.Contains(r.out+r.err, secret) {
		t.Errorf("exit status %d: %s%s", r.code, r.out, r.err)
	}
	o.Stop(postgres.Fast)
	o.expect(t, o.pitr(t, "backup", "create"), 1,
		"pitr: connect to PostgreSQL at $SOCKET/.s.PGSQL.PORT as role \"postgres\": no server listens there: no such file or directory\nHINT: start the server: none runs on $DATA\n")
	o.must(t, "backup", "list")
}

// testReadOnly: a store that may only be read serves restores. What it says of a file system that is read-only is part of
// testNoSpace, which has one.
func testReadOnly(t *testing.T, story *story) {
	s := story.copyRepo(t)
	fresh := pgtest.Start(t, pgtest.Options{SegSizeMB: 1, NoFsync: true, Conf: map[string]string{"archive_mode": "off"}})
	fresh.Exec("SELECT pg_logical_emit_message(false, 'x', '')")
	segment := pgtest.QueryOne[string](fresh, "SELECT pg_walfile_name(pg_switch_wal())")
	if err := os.Remove(s.object(t, segment)); err != nil { // the story's own
		t.Fatal(err)
	}
	shell(t, "chmod", "-R", "a-w", s.repo)
	t.Cleanup(func() { shell(t, "chmod", "-R", "u+w", s.repo) })
	// It can be read and restored from.
	if r := s.restore(t, "--target-time", stamp(story.c.at)); rows(r.Server) != story.c.rows {
		t.Errorf("rows %q, want %q", rows(r.Server), story.c.rows)
	}
	s.must(t, "backup", "list")
	s.must(t, "backup", "verify")
	// But not written: the server keeps its WAL.
	r := s.pitr(t, "wal", "push", filepath.Join(fresh.Dir, "pg_wal", segment))
	if r.code != 1 || !strings.Contains(s.plain(r.err), "permission denied\nHINT: give user ") {
		t.Errorf("exit status %d: %s", r.code, r.err)
	}
}

// mount puts a small file system of its own at dir, or says why that is not possible here.
func mount(t *testing.T, dir, size string) {
	t.Helper()
	uid, gid := pgtest.User()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=%s,mode=0700,uid=%d,gid=%d", size, uid, gid), "tmpfs", dir).CombinedOutput(); err != nil {
		t.Skipf("no small file system to fill: mount: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

func remount(t *testing.T, dir, options string) {
	t.Helper()
	shell(t, "mount", "-o", "remount,"+options, dir)
}

// testNoSpace: a full store loses nothing, a restore sees beforehand that there is too little room, and one that is cut
// off goes on when there is more. A read-only file system is told apart.
func testNoSpace(t *testing.T, story *story) {
	base := pgtest.TempDir(t)
	store, target := filepath.Join(base, "store"), filepath.Join(base, "target")
	makeDir(t, store)
	makeDir(t, target)
	mount(t, store, "4m")
	mount(t, target, "16m")

	to := filepath.Join(target, "copy")
	story.expect(t, story.pitr(t, "restore", "--to", to), 7,
		"pitr: refused: $BASE/target/copy has room for N bytes, and N are needed\nHINT: free some space, or choose another directory with --to\n", base, "$BASE")
	if _, err := os.Stat(to); err == nil {
		t.Error("something was written")
	}
	// Room for bytes, but not for that many files.
	remount(t, target, "size=256m,nr_inodes=400")
	r := story.pitr(t, "restore", "--to", to)
	story.expect(t, result{r.code, r.out, reason(r.err)}, 1, "no space left on device\nHINT: free some space and call the same command again: it goes on where it was\n")
	remount(t, target, "nr_inodes=0")
	story.must(t, "restore", "--to", to)
	c := pgtest.OpenDir(t, to, pgtest.Options{Bin: story.Bin})
	c.AwaitPrimary()
	same(t, contents(t, c), story.end.full)
	c.Stop(postgres.Fast)

	// A store without room.
	s := newSite(t, pgtest.Options{SegSizeMB: 1}, "")
	s.Exec("CREATE TABLE t (n serial, v text)")
	s.repo = filepath.Join(store, "repo")
	s.configure(t, s.config, s.repo, s.Dir, s.SocketDir, s.Port, s.service, "archive: {timeout: 3s}")
	// What can't be compressed.
	fill := "SELECT pg_logical_emit_message(false, 'fill', decode(string_agg(md5(random()::text), ''), 'hex')) FROM generate_series(1, 60000)"
	eventually(t, "the store is full", func() bool {
		s.Exec(fill)
		return pgtest.QueryOne[int64](s.Server, "SELECT failed_count FROM pg_stat_archiver") > 0
	})
	waiting := pgtest.QueryOne[string](s.Server, "SELECT last_failed_wal FROM pg_stat_archiver")
	r = s.pitr(t, "wal", "push", filepath.Join(s.Dir, "pg_wal", waiting))
	if r.code != 1 || !strings.HasSuffix(s.plain(r.err), "no space left on device\nHINT: free space (or inodes, or quota) on the file system of $REPO, enlarge it, or shorten backup.retention and run pitr prune\n") {
		t.Errorf("exit status %d: %s", r.code, r.err)
	}
	if r := s.pitr(t, "backup", "create"); r.code != 1 {
		t.Errorf("backup: exit status %d: %s", r.code, r.err)
	}
	if got := s.must(t, "backup", "list", "--quiet"); got != "" {
		t.Errorf("a backup is listed: %s", got)
	}
	remount(t, store, "size=256m,ro")
	r = s.pitr(t, "wal", "push", filepath.Join(s.Dir, "pg_wal", waiting))
	if r.code != 1 || !strings.HasSuffix(s.plain(r.err), "read-only file system\nHINT: the file system of $REPO is read-only: if it was not mounted so, look in the kernel's log for the error that made it so\n") {
		t.Errorf("exit status %d: %s", r.code, r.err)
	}
	remount(t, store, "size=256m,rw")
	s.flush(t)
	s.backup(t)
	s.must(t, "wal", "verify")
}

// reason is the complaint, behind lines of progress, from the last reason on.
func reason(s string) string {
	_, complaint, _ := strings.Cut(s, "pitr: ")
	first, rest, _ := strings.Cut(complaint, "\n")
	return first[strings.LastIndex(first, ": ")+2:] + "\n" + rest
}
