package basebackup

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pitr/archive"
	"pitr/internal/hint"
	"pitr/internal/postgres/pgtest"
	"pitr/internal/repo"
	"pitr/internal/wal"
	"pitr/storage/storagetest"
)

// TestTablespaceNotThere: the place of a tablespace is not mounted. A backup without it must not come to be.
func TestTablespaceNotThere(t *testing.T) {
	s := newSite(t, storagetest.Memory(), pgtest.Options{Tablespaces: 1})
	away := s.Tablespaces[0] + ".away"
	if err := os.Rename(s.Tablespaces[0], away); err != nil {
		t.Fatal(err)
	}
	defer os.Rename(away, s.Tablespaces[0])
	_, err := s.try(context.Background(), s.repo, s.options(), nil)
	if err == nil || !strings.Contains(err.Error(), "is not there") || !strings.Contains(hint.Of(err), "mounted") {
		t.Errorf("%v; HINT: %s", err, hint.Of(err))
	}
}

// TestTablespacesComeAndGo drops a tablespace while the backup is taken, before and after its turn, and restores; one that
// lies in the data directory itself is among those that stay.
func TestTablespacesComeAndGo(t *testing.T) {
	for name, at := range map[string]string{"before its turn": "PG_VERSION", "in its turn": "pg_tblspc/", "after its turn": controlPath + ".end"} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, storagetest.Memory(), pgtest.Options{Tablespaces: 2})
			inPlace := s.Bin.Major >= 15
			if inPlace {
				s.Conf(map[string]string{"allow_in_place_tablespaces": "on"})
				s.Reload()
				s.Exec("CREATE TABLESPACE inside LOCATION ''", "CREATE TABLE i TABLESPACE inside AS SELECT generate_series(1, 3000) AS i")
			}
			s.Exec("CREATE TABLE a TABLESPACE ts1 AS SELECT generate_series(1, 3000) AS i", "CREATE TABLE b TABLESPACE ts2 AS SELECT generate_series(1, 3000) AS i")
			dropped := false
			drop := func() {
				if !dropped {
					dropped = true
					s.Exec("INSERT INTO b VALUES (1)", "DROP TABLE b", "CHECKPOINT", "DROP TABLESPACE ts2", "INSERT INTO a VALUES (0)")
				}
			}
			o := s.options()
			o.Workers = 1
			h := s.take(o, func(path string) func() {
				if strings.Contains(path, at) || strings.HasSuffix(path, "/postgresql.conf") {
					drop()
				}
				return nil
			})
			if !dropped {
				t.Fatal("nothing was dropped")
			}
			s.intact(h)
			s.archived()
			dir := s.unpack(h)
			// The links are there; whoever restores needs no map.
			if err := os.Remove(filepath.Join(dir, "tablespace_map")); err != nil {
				t.Fatal(err)
			}
			r := pgtest.OpenDir(t, dir, pgtest.Options{Bin: s.Bin, Conf: map[string]string{
				"archive_mode": "off", "restore_command": "cp " + s.drop + "/done.%f %p", "fsync": "off",
			}})
			r.AwaitPrimary()
			if n := pgtest.QueryOne[int64](r, "SELECT count(*) FROM a"); n != 3001 {
				t.Errorf("%d rows", n)
			}
			if inPlace {
				if n := pgtest.QueryOne[int64](r, "SELECT count(*) FROM i"); n != 3000 {
					t.Errorf("%d rows in the tablespace in place", n)
				}
			}
			if n := pgtest.QueryOne[int64](r, "SELECT count(*) FROM pg_tablespace WHERE spcname = 'ts2'"); n != 0 {
				t.Error("the tablespace is there again")
			}
		})
	}
}

// promote brings the server to the next timeline.
func (s *site) promote() {
	s.t.Helper()
	s.Stop(0)
	if err := os.WriteFile(filepath.Join(s.Dir, "standby.signal"), nil, 0o600); err != nil {
		s.t.Fatal(err)
	}
	if out, err := s.chown(filepath.Join(s.Dir, "standby.signal")); err != nil {
		s.t.Fatalf("%v: %s", err, out)
	}
	s.Conf(map[string]string{"restore_command": "false"})
	s.StartAgain()
	s.Exec("SELECT pg_promote()")
	s.AwaitPrimary()
}

// TestHistoryIsArchived: of a timeline that has a history the backup proves that it is archived, before it copies.
func TestHistoryIsArchived(t *testing.T) {
	s := newSite(t, storagetest.Memory(), pgtest.Options{})
	s.promote()
	h := s.take(s.options(), nil)
	if h.Timeline != 2 {
		t.Fatalf("timeline %d", h.Timeline)
	}
	ctx := context.Background()
	keys := s.keys(repo.WALPrefix + wal.HistoryName(2))
	if len(keys) != 1 {
		t.Fatalf("%v", keys)
	}
	if err := s.repo.Delete(ctx, keys...); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(s.Dir, "pg_wal", wal.HistoryName(2))
	try := func(want, advice string) {
		t.Helper()
		o := s.options()
		o.ArchiveTimeout = 5 * time.Second
		_, err := s.try(ctx, s.repo, o, func(path string) func() {
			t.Errorf("copied: %s", path)
			return nil
		})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(hint.Of(err), advice) {
			t.Errorf("%v\nHINT: %s\nwant %s, %s", err, hint.Of(err), want, advice)
		}
	}
	try("00000002.history was not archived within", "`pitr wal push "+file+"`")

	// Another server's.
	other := wal.History{Timeline: 2, Switches: []wal.Switch{{Timeline: 1, At: 1 << 20, Reason: "no recovery target specified"}}}.Encode()
	key := repo.HistoryKey(2, repo.DigestOf(other))
	if err := s.repo.Create(ctx, key, strings.NewReader(string(other))); err != nil {
		t.Fatal(err)
	}
	try("timeline 2 of this server is not the one that is archived", "promote")
	if _, err := s.archive.Push(ctx, file, s.repo.SystemID()); err == nil {
		t.Error("two histories of one timeline")
	}
	if err := s.repo.Delete(ctx, key); err != nil {
		t.Fatal(err)
	}
	if _, err := s.archive.Push(ctx, file, s.repo.SystemID()); err != nil {
		t.Fatal(err)
	}
	s.intact(s.take(s.options(), nil))
}

// TestNotInProduction: a directory that has the server's identity and position, but is not in production.
func TestNotInProduction(t *testing.T) {
	s := newSite(t, storagetest.Memory(), pgtest.Options{})
	s.Stop(0)
	k := &taker{o: Options{DataDir: s.Dir}, h: &Header{Timeline: 1, StartLSN: 1}}
	if err := k.proveStorage(context.Background()); err == nil || !strings.Contains(err.Error(), "shut down") {
		t.Errorf("%v", err)
	}
	s.StartAgain()
	if err := k.proveStorage(context.Background()); err != nil {
		t.Errorf("%v", err)
	}
}

// TestWALTakenAway: somebody deletes the WAL that the backup begins in, after it was proven to be there.
func TestWALTakenAway(t *testing.T) {
	s := newSite(t, storagetest.Memory(), pgtest.Options{})
	done := false
	b := storagetest.Faulty(s.bucket, func(op storagetest.Op, key string) error {
		if op == storagetest.Create && strings.Contains(key, "/"+repo.BackupPrefix) && !done {
			done = true
			keys := s.keys(repo.TimelineDir(1))
			return s.repo.Delete(context.Background(), keys...)
		}
		return nil
	})
	o := s.options()
	o.ArchiveTimeout = 5 * time.Second
	if h, err := s.try(context.Background(), reopen(t, s.repo, b), o, nil); err == nil || !strings.Contains(err.Error(), "was not archived within") || !done {
		t.Errorf("%+v, %v", h, err)
	}
	if n := len(mustList(t, s.repo)); n != 0 {
		t.Errorf("%d backups", n)
	}
}

// TestPruneSparesARunningBackup: the server is on a timeline that left the others before all backups that are left.
// The WAL of the backup that is being taken there stays.
func TestPruneSparesARunningBackup(t *testing.T) {
	s := newSite(t, storagetest.Memory(), pgtest.Options{})
	ctx := context.Background()
	var running []archive.Need
	h := s.take(s.options(), func(string) func() {
		if running == nil {
			var err error
			if running, err = Running(ctx, s.repo, time.Now()); err != nil {
				t.Error(err)
			}
		}
		return nil
	})
	if len(running) != 1 || running[0].Timeline != h.Timeline || running[0].From != h.StartLSN || running[0].To != 0 || !strings.Contains(running[0].Why, h.ID) {
		t.Errorf("%+v", running)
	}
	if now, err := Running(ctx, s.repo, time.Now()); err != nil || len(now) != 0 {
		t.Errorf("when it is over: %+v, %v", now, err)
	}

	l := newLife(t, 1)
	fork := wal.History{Timeline: 2, Switches: []wal.Switch{{Timeline: 1, At: 5 << 20, Reason: "test"}}}
	l.put(repo.HistoryKey(2, repo.DigestOf(fork.Encode())), fork.Encode(), 1)
	for tli, from := range map[wal.Timeline]uint64{1: 1, 2: 5} {
		for no := from; no < 20; no++ {
			name := wal.SegmentName(tli, no, 1<<20)
			l.put(repo.SegmentKey(name, repo.DigestOf([]byte(name))), []byte("x"), 1)
		}
	}
	l.backups = []*Header{{ID: idA, Timeline: 1, WALSegSize: 1 << 20, Finished: lifeTime(1), StartLSN: 12 << 20, StopLSN: 13 << 20}}
	sign(t, l.repo, Pending{ID: idB, N: 2, Renewed: lifeTime(2), Timeline: 2, StartLSN: 9<<20 + 1})
	running, err := Running(ctx, l.repo, lifeTime(3))
	if err != nil || len(running) != 1 {
		t.Fatalf("%+v, %v", running, err)
	}
	c := l.coverage(l.archive)
	needs := Needs(l.backups, Expire(l.backups, nil, Keep{Count: 1}, Lines(c), lifeTime(3)))
	if _, _, err := l.archive.Prune(ctx, archive.PlanPrune(c, append(needs, running...))); err != nil {
		t.Fatal(err)
	}
	c = l.coverage(l.archive)
	for tli, first := range map[wal.Timeline]uint64{1: 12, 2: 9} {
		if r := c.Timelines[tli].Runs; len(r) != 1 || r[0] != (archive.Run{First: first, Last: 19}) {
			t.Errorf("timeline %d: %+v", tli, r)
		}
	}
}
