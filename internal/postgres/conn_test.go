package postgres_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pitr/internal/postgres"
	"pitr/internal/postgres/pgtest"
	"pitr/internal/wal"
)

func connect(t *testing.T, cfg postgres.Config) *postgres.Conn {
	t.Helper()
	c, err := postgres.Connect(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// must returns v, and fails the test on an error.
func must[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// forEachBin runs the test against each PostgreSQL that is to be tested with.
func forEachBin(t *testing.T, test func(t *testing.T, bin pgtest.Bin)) {
	for _, bin := range pgtest.Bins(t) {
		t.Run(fmt.Sprint(bin.Major), func(t *testing.T) {
			t.Parallel()
			test(t, bin)
		})
	}
}

func TestInfo(t *testing.T) {
	forEachBin(t, func(t *testing.T, bin pgtest.Bin) {
		s := pgtest.Start(t, pgtest.Options{Bin: bin, SegSizeMB: 64, Tablespaces: 2, Conf: map[string]string{
			"archive_mode": "on", "archive_command": "test %% = '%' && exit 1", "archive_timeout": "90s", "max_connections": "37"}})
		s.Exec(`ALTER TABLESPACE ts2 RENAME TO "it's ""odd"""`, "CREATE DATABASE \"line\nfeed\"")
		c := connect(t, s.Config())
		got := must[postgres.Info](t)(c.Info(t.Context()))
		control := must[wal.Control](t)(postgres.ReadControl(t.Context(), s.Dir))
		major := must[int](t)(postgres.MajorOfDir(s.Dir))

		if age := time.Since(got.Now).Abs(); age > 10*time.Second {
			t.Errorf("the server's clock is %v off", age)
		}
		want := postgres.Info{
			Version: c.Version(), SystemID: control.SystemID, Timeline: 1, WALSegSize: 64 << 20, BlockSize: 8192, DataChecksums: true,
			DataDir: s.Dir, ConfigFile: filepath.Join(s.Dir, "postgresql.conf"), HBAFile: filepath.Join(s.Dir, "pg_hba.conf"), IdentFile: filepath.Join(s.Dir, "pg_ident.conf"),
			WALLevel: "replica", ArchiveMode: "on", ArchiveCommand: "test %% = '%' && exit 1", ArchiveTimeout: 90 * time.Second,
			FullPageWrites: true, Fsync: true, HotStandby: true,
			MaxConnections: 37, MaxWorkerProcesses: 8, MaxWALSenders: 10, MaxLocksPerXact: 64,
			Tablespaces: []postgres.Tablespace{{Name: "ts1", Path: s.Tablespaces[0]}, {Name: `it's "odd"`, Path: s.Tablespaces[1]}},
			Now:         got.Now,
		}
		for i := range want.Tablespaces {
			want.Tablespaces[i].OID = pgtest.QueryOne[uint32](s, "SELECT oid FROM pg_tablespace WHERE spcname = $1", want.Tablespaces[i].Name)
		}
		if g, w := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want); g != w {
			t.Errorf("got  %s\nwant %s", g, w)
		}
		if c.Version()/10000 != bin.Major || major != bin.Major || control.Major != bin.Major {
			t.Errorf("versions %d (session), %d (directory), %d (control), want %d", c.Version(), major, control.Major, bin.Major)
		}
		if uint32(got.WALSegSize) != control.WALSegSize {
			t.Errorf("segment size %d in the control file", control.WALSegSize)
		}

		names := []string{}
		for _, d := range must[[]postgres.Database](t)(c.Databases(t.Context())) {
			names = append(names, fmt.Sprintf("%s %s %v %v", d.Name, d.Encoding, d.Template, d.AllowsConn))
		}
		slices.Sort(names)
		if want := []string{"line\nfeed UTF8 false true", "postgres UTF8 false true", "template0 UTF8 true false", "template1 UTF8 true true"}; !slices.Equal(names, want) {
			t.Errorf("databases %q, want %q", names, want)
		}
		if v, ok, err := c.Setting(t.Context(), "wal_segment_size"); v != "64MB" || !ok || err != nil {
			t.Errorf("setting: %q, %v, %v", v, ok, err)
		}
		if _, ok, err := c.Setting(t.Context(), "no_such.setting"); ok || err != nil {
			t.Errorf("unknown setting: %v, %v", ok, err)
		}
	})
}

// Paths are bytes: a database in another encoding must not change them.
func TestEncoding(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{Initdb: []string{"-E", "LATIN1"}})
	dir := filepath.Join(pgtest.TempDir(t), "Tür")
	uid, gid := pgtest.User()
	if err := errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, uid, gid)); err != nil {
		t.Fatal(err)
	}
	// Said in LATIN1, these bytes are those of the path in UTF-8.
	db := s.Connect("postgres")
	for _, sql := range []string{"SET client_encoding = LATIN1", fmt.Sprintf("CREATE TABLESPACE t LOCATION '%s'", dir)} {
		if _, err := db.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	c := connect(t, s.Config())
	info := must[postgres.Info](t)(c.Info(t.Context()))
	if len(info.Tablespaces) != 1 || info.Tablespaces[0].Path != dir {
		t.Errorf("tablespaces %+v, want one in %s", info.Tablespaces, dir)
	}
	must[postgres.BackupStart](t)(c.BackupStart(t.Context(), "Übung", true))
	stop := must[postgres.BackupStop](t)(c.BackupStop(t.Context()))
	if want := fmt.Sprintf("%d %s\n", info.Tablespaces[0].OID, dir); string(stop.TablespaceMap) != want {
		t.Errorf("tablespace map %q, want %q", stop.TablespaceMap, want)
	}
	if !bytes.Contains(stop.Label, []byte("\nLABEL: Übung\n")) {
		t.Errorf("label %q", stop.Label)
	}
	point := must[wal.LSN](t)(c.CreateRestorePoint(t.Context(), "vor der Übung"))
	must[wal.LSN](t)(c.SwitchWAL(t.Context())) // brings it to the disk
	if !s.Bin.Has("pg_waldump") {
		t.Skip("all but the restore point in the WAL: this installation has no pg_waldump, and that of another version can't read it")
	}
	// pg_waldump is content with the end of WAL where that is the end given.
	out := s.Run("pg_waldump", "-p", filepath.Join(s.Dir, "pg_wal"), "-r", "XLOG", "-s", stop.LSN.String(), "-e", point.String())
	if !strings.Contains(out, "desc: RESTORE_POINT vor der Übung\n") {
		t.Errorf("no such restore point in\n%s", out)
	}
}

// Settings of roles and databases, and what users put in the way, leave pitr's session alone.
func TestSessionIsItsOwn(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{NoFsync: true})
	// The time-out comes last: it holds for what follows, here too.
	s.Exec("CREATE SCHEMA evil", "CREATE FUNCTION evil.pg_is_in_recovery() RETURNS bool LANGUAGE sql AS 'SELECT true'",
		"ALTER ROLE postgres SET search_path = evil, pg_catalog", "ALTER ROLE postgres SET idle_session_timeout = '100ms'",
		"ALTER ROLE postgres SET statement_timeout = '1ms'")
	c := connect(t, s.Config())
	time.Sleep(300 * time.Millisecond)
	if err := c.Ping(t.Context()); err != nil {
		t.Errorf("after the idle time limit: %v", err)
	}
	if info, err := c.Info(t.Context()); err != nil || info.InRecovery {
		t.Errorf("in recovery: %v, %v", info.InRecovery, err)
	}
	for name, want := range map[string]string{"statement_timeout": "0", "search_path": "pg_catalog, pg_temp", "application_name": "pitr"} {
		if got, _, err := c.Setting(t.Context(), name); got != want || err != nil {
			t.Errorf("%s = %q, want %q (%v)", name, got, want, err)
		}
	}
	s.Stop(postgres.Immediate)
	if err := c.Ping(t.Context()); err == nil {
		t.Error("session outlives its server")
	}
}

// copyOf copies the files of a running server.
func copyOf(t *testing.T, s *pgtest.Server) string {
	t.Helper()
	dir := filepath.Join(pgtest.TempDir(t), "copy")
	if out, err := exec.Command("sh", "-c", `cp -a "$1" "$2" && rm "$2/postmaster.pid"`, "sh", s.Dir, dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return dir
}

// write makes a file that belongs to the servers' user.
func write(t *testing.T, path, text string) {
	t.Helper()
	uid, gid := pgtest.User()
	if err := errors.Join(os.WriteFile(path, []byte(text), 0o600), os.Chown(path, uid, gid)); err != nil {
		t.Fatal(err)
	}
}

// A backup made with nothing but a copy of the files between start and stop is one that PostgreSQL recovers from.
func TestBackup(t *testing.T) {
	forEachBin(t, func(t *testing.T, bin pgtest.Bin) {
		s := pgtest.Start(t, pgtest.Options{Bin: bin, SegSizeMB: 1, Conf: map[string]string{"wal_keep_size": "100MB"}})
		s.Exec("CREATE TABLE t AS SELECT generate_series(1, 1000) AS a", "CHECKPOINT")
		c := connect(t, s.Config())
		start := must[postgres.BackupStart](t)(c.BackupStart(t.Context(), "START TIMELINE: 7", true))
		if b, err := c.BackupStart(t.Context(), "a\nSTART TIMELINE: 7", true); err == nil || !strings.Contains(err.Error(), "is not one line") {
			t.Errorf("label of two lines: %+v, %v", b, err)
		}
		s.Exec("INSERT INTO t SELECT generate_series(1001, 20000)")
		dir := copyOf(t, s)
		stop := must[postgres.BackupStop](t)(c.BackupStop(t.Context()))
		if start.Timeline != 1 || stop.LSN <= start.LSN || len(stop.TablespaceMap) != 0 {
			t.Errorf("start %+v, stop %+v", start, stop)
		}
		label := must[postgres.Label](t)(postgres.ParseLabel(stop.Label))
		if label.Start != start.LSN || label.Timeline != 1 || label.Checkpoint < label.Start || label.Standby {
			t.Errorf("label %+v of start %+v", label, start)
		}
		if now := must[wal.LSN](t)(c.CurrentLSN(t.Context())); now < stop.LSN {
			t.Errorf("WAL is on the disk up to %v, but the backup's stop is %v", now, stop.LSN)
		}
		s.Stop(postgres.Fast)
		// All the WAL is in the server's directory; what stands in the copy's is older.
		if out, err := exec.Command("sh", "-c", `cp -a "$1/pg_wal/." "$2/pg_wal/"`, "sh", s.Dir, dir).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		file := filepath.Join(dir, "backup_label")
		write(t, file, string(stop.Label))
		restored := pgtest.OpenDir(t, dir, pgtest.Options{Bin: bin})
		if n := pgtest.QueryOne[int64](restored, "SELECT count(*) FROM t"); n != 20000 {
			t.Errorf("%d rows restored", n)
		}
		if _, err := os.Stat(file + ".old"); err != nil {
			t.Errorf("the server did not use the label: %v", err)
		}
	})
}

func TestParseLabelBad(t *testing.T) {
	const good = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\nCHECKPOINT LOCATION: 0/2000060\nBACKUP METHOD: streamed\nBACKUP FROM: standby\nSTART TIME: 2024-01-01 00:00:00 UTC\nLABEL: x\nSTART TIMELINE: 3\n"
	l, err := postgres.ParseLabel([]byte(good))
	if want := (postgres.Label{Start: 0x2000028, Timeline: 3, Checkpoint: 0x2000060, Standby: true}); err != nil || l != want {
		t.Fatalf("got %+v, %v, want %+v", l, err, want)
	}
	for _, bad := range []string{
		"", good[1:], strings.Replace(good, "0/2000028", "2000028", 1), strings.Replace(good, "CHECKPOINT", "CHECK", 1),
		strings.Replace(good, "TIMELINE: 3", "TIMELINE: 0", 1), strings.Replace(good, "TIMELINE: 3", "TIMELINE: 99999999999", 1), "\n" + good,
	} {
		if l, err := postgres.ParseLabel([]byte(bad)); err == nil {
			t.Errorf("%q gives %+v", bad, l)
		}
	}
}

// A backup given up while its checkpoint is spread over minutes ends at once, and another one can begin.
func TestBackupStartCancelled(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{Conf: map[string]string{"checkpoint_timeout": "1h"}})
	s.Exec("CREATE TABLE t AS SELECT generate_series(1, 100000) AS a")
	c := connect(t, s.Config())
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	began := time.Now()
	if b, err := c.BackupStart(ctx, "slow", false); err == nil {
		t.Fatalf("the checkpoint took no time: %+v", b)
	} else if !strings.Contains(err.Error(), "start backup on PostgreSQL at "+s.SocketDir) {
		t.Errorf("error %q", err)
	}
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("giving up took %v", took)
	}
	c = connect(t, s.Config())
	must[postgres.BackupStart](t)(c.BackupStart(t.Context(), "fast", true))
	must[postgres.BackupStop](t)(c.BackupStop(t.Context()))
	if _, err := c.BackupStop(t.Context()); err == nil {
		t.Error("stopped a backup that was stopped already")
	}
}

func TestArchiver(t *testing.T) {
	t.Parallel()
	archive := filepath.Join(pgtest.TempDir(t), `it's 100% "odd" $HOME\`)
	uid, gid := pgtest.User()
	s := pgtest.Start(t, pgtest.Options{SegSizeMB: 1, Conf: map[string]string{"archive_mode": "on", "archive_command": "cp %p " + postgres.ShellQuote(archive) + "/%f"}})
	c := connect(t, s.Config())
	await := func(what string, ok func(postgres.ArchiverStats) bool) postgres.ArchiverStats {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			got := must[postgres.ArchiverStats](t)(c.ArchiverStats(t.Context()))
			if ok(got) {
				return got
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s never happened: %+v", what, got)
			}
		}
	}
	if got := must[postgres.ArchiverStats](t)(c.ArchiverStats(t.Context())); got.Archived != 0 || got.LastArchived != "" || !got.ArchivedAt.IsZero() || got.Failing() || got.Since.IsZero() {
		t.Errorf("at first: %+v", got)
	}
	point := must[wal.LSN](t)(c.CreateRestorePoint(t.Context(), "here"))
	end := must[wal.LSN](t)(c.SwitchWAL(t.Context()))
	if end <= point || wal.SegmentOf(end-1, 1<<20) != wal.SegmentOf(point-1, 1<<20) {
		t.Errorf("restore point ends at %v, segment at %v", point, end)
	}
	name := must[string](t)(c.WALFileName(t.Context(), end))
	if want := wal.SegmentName(1, wal.SegmentOf(end-1, 1<<20), 1<<20); name != want {
		t.Errorf("segment %s, want %s", name, want)
	}
	failed := await("a failure", func(a postgres.ArchiverStats) bool { return a.Failed > 0 })
	if !failed.Failing() || failed.LastFailed == "" || failed.Archived != 0 {
		t.Errorf("without a directory: %+v", failed)
	}
	if err := errors.Join(os.Mkdir(archive, 0o700), os.Chown(archive, uid, gid)); err != nil {
		t.Fatal(err)
	}
	// A failed attempt is repeated after a minute, or when the archiver is woken, as the end of a segment does.
	await("success", func(a postgres.ArchiverStats) bool {
		must[wal.LSN](t)(c.CreateRestorePoint(t.Context(), "again"))
		must[wal.LSN](t)(c.SwitchWAL(t.Context()))
		return a.LastArchived >= name && !a.Failing()
	})
	if _, err := os.Stat(filepath.Join(archive, name)); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"", "a\x00b", strings.Repeat("x", 64)} {
		if _, err := c.CreateRestorePoint(t.Context(), bad); err == nil {
			t.Errorf("restore point %q was created", bad)
		}
	}
	must[wal.LSN](t)(c.CreateRestorePoint(t.Context(), strings.Repeat("x", 63)))
}

func TestStandby(t *testing.T) { forEachBin(t, testStandby) }

func testStandby(t *testing.T, bin pgtest.Bin) {
	s := pgtest.Start(t, pgtest.Options{Bin: bin, SegSizeMB: 1, Conf: map[string]string{"wal_keep_size": "100MB"}})
	primary := connect(t, s.Config())
	must[postgres.BackupStart](t)(primary.BackupStart(t.Context(), "standby", true))
	dir := copyOf(t, s)
	label := must[postgres.BackupStop](t)(primary.BackupStop(t.Context())).Label
	write(t, filepath.Join(dir, "backup_label"), string(label))
	write(t, filepath.Join(dir, "standby.signal"), "")
	b := pgtest.OpenDir(t, dir, pgtest.Options{Bin: bin, Conf: map[string]string{"primary_conninfo": s.Conn()}})
	c := connect(t, b.Config())

	s.Exec("CREATE TABLE t AS SELECT generate_series(1, 1000) AS a")
	to := must[postgres.Position](t)(primary.Position(t.Context()))
	if to.InRecovery || to.Insert < to.Flush || to.Flush == 0 || to.Replayed != 0 || to.Received != 0 || !to.ReplayedTo.IsZero() || to.Paused {
		t.Errorf("primary at %+v", to)
	}
	b.Await("SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", to.Flush.String())
	at := must[postgres.Position](t)(c.Position(t.Context()))
	if !at.InRecovery || at.Insert != 0 || at.Flush != 0 || at.Replayed < to.Flush || at.Received < to.Flush || at.ReplayedTo.IsZero() || at.Paused {
		t.Errorf("standby at %+v, primary was at %+v", at, to)
	}
	if got := must[wal.LSN](t)(c.CurrentLSN(t.Context())); got < to.Flush {
		t.Errorf("standby's current position %v", got)
	}
	if info := must[postgres.Info](t)(c.Info(t.Context())); !info.InRecovery || info.Timeline != 1 {
		t.Errorf("standby says %+v", info)
	}
	b.Exec("SELECT pg_wal_replay_pause()")
	for deadline := time.Now().Add(30 * time.Second); !must[postgres.Position](t)(c.Position(t.Context())).Paused; {
		if time.Now().After(deadline) {
			t.Fatal("replay never pauses")
		}
	}
	b.Exec("SELECT pg_wal_replay_resume()")

	if err := errors.Join(primary.Checkpoint(t.Context()), c.Checkpoint(t.Context())); err != nil {
		t.Fatal(err)
	}
	start := must[postgres.BackupStart](t)(c.BackupStart(t.Context(), "standby", true))
	stop := must[postgres.BackupStop](t)(c.BackupStop(t.Context()))
	if label := must[postgres.Label](t)(postgres.ParseLabel(stop.Label)); !label.Standby || label.Start != start.LSN || label.Timeline != start.Timeline {
		t.Errorf("label %+v, start %+v", label, start)
	}

	// Promoted, it is on timeline 2 at once, though its pg_control learns that only with the next checkpoint.
	must[postgres.BackupStart](t)(c.BackupStart(t.Context(), "standby", true))
	b.Exec("SELECT pg_promote()")
	if info := must[postgres.Info](t)(c.Info(t.Context())); info.InRecovery || info.Timeline != 2 {
		t.Errorf("after promotion: %+v", info)
	}
	if got := must[postgres.Position](t)(c.Position(t.Context())); got.InRecovery || got.Replayed == 0 || got.Flush < got.Replayed {
		t.Errorf("after promotion at %+v", got)
	}
	if stop, err := c.BackupStop(t.Context()); err == nil {
		t.Errorf("a backup across a promotion succeeded: %+v", stop)
	}
}
