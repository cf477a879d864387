package basebackup

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"pitr/archive"
	"pitr/internal/hint"
	"pitr/internal/postgres"
	"pitr/internal/postgres/pgtest"
	"pitr/internal/repo"
	"pitr/storage"
	"pitr/storage/storagetest"
)

// allIntact verifies every backup that is listed, and returns how many those are.
func (s *site) allIntact() int {
	s.t.Helper()
	all, problems, err := List(context.Background(), s.repo)
	if err != nil || len(problems) > 0 {
		s.t.Fatalf("%+v, %v", problems, err)
	}
	for _, h := range all {
		s.intact(h)
	}
	return len(all)
}

// swept looks that nothing is left of backups that do not exist, once they count as dead.
func (s *site) swept() {
	s.t.Helper()
	later := time.Now().Add(pendingLife + time.Hour)
	sweepAt(s.t, s.repo, later)
	sweepAt(s.t, s.repo, later.Add(2*SweepGrace))
	all, _, err := List(context.Background(), s.repo)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, prefix := range []string{repo.PackPrefix, repo.PendingPrefix, repo.MarkPrefix} {
		for _, key := range s.keys(prefix) {
			if prefix == repo.PackPrefix && slices.ContainsFunc(all, func(h *Header) bool { return strings.HasPrefix(key, packsOf(h.ID)) }) {
				continue
			}
			s.t.Errorf("left behind: %s", key)
		}
	}
}

// TestFaults fails each operation of the store in turn while a backup is taken: what is listed afterwards is whole.
func TestFaults(t *testing.T) {
	s := newSite(t, storagetest.Memory(), pgtest.Options{SegSizeMB: 1})
	failed := 0
	for _, mode := range []storagetest.Mode{storagetest.Blip, storagetest.Dead} {
		for n := 1; ; n++ {
			before := s.allIntact()
			counter := storagetest.FailNth(n, mode)
			r := reopen(t, s.repo, storagetest.Faulty(s.bucket, func(op storagetest.Op, key string) error {
				if strings.Contains(key, "/repo/") {
					return nil
				}
				return counter.Fault(op, key)
			}))
			o := s.options()
			h, err := s.try(context.Background(), r, o, nil)
			after := s.allIntact()
			switch {
			case err == nil && after != before+1:
				t.Fatalf("operation %d failed: the backup was taken, but %d are listed after %d", n, after, before)
			case err == nil && h == nil, err != nil && h != nil, err != nil && after > before+1:
				t.Fatalf("operation %d failed: %v, %v", n, h, err)
			case err != nil && !errors.Is(err, storagetest.ErrFault):
				t.Fatalf("operation %d failed: %v", n, err)
			}
			if err != nil {
				failed++
			}
			for _, id := range mustList(t, s.repo) {
				if err := Delete(context.Background(), s.repo, id); err != nil {
					t.Fatal(err)
				}
			}
			if !counter.Fired() {
				break
			}
		}
	}
	if failed < 10 {
		t.Errorf("only %d backups failed", failed)
	}
	s.swept()
	s.take(s.options(), nil)
	if n := s.allIntact(); n != 1 {
		t.Errorf("%d backups", n)
	}
}

func mustList(t *testing.T, r *repo.Repo) []string {
	t.Helper()
	ids, err := listIDs(context.Background(), r, repo.BackupPrefix)
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

// TestInterrupted cancels a backup at different points: it does not exist, and its session leaves no backup behind.
func TestInterrupted(t *testing.T) {
	s := newSite(t, storagetest.Memory(), pgtest.Options{})
	for _, at := range []int{1, 100, 500} {
		ctx, cancel := context.WithCancel(context.Background())
		n := 0
		o := s.options()
		o.Workers = 1
		h, err := s.try(ctx, s.repo, o, func(string) func() {
			if n++; n == at {
				cancel()
			}
			return nil
		})
		cancel()
		if h != nil || !errors.Is(err, context.Canceled) {
			t.Fatalf("at file %d: %v, %v", at, h, err)
		}
		if n := s.allIntact(); n != 0 {
			t.Fatalf("at file %d: %d backups are listed", at, n)
		}
		if left := s.keys(repo.PendingPrefix); len(left) > 0 {
			t.Errorf("at file %d: signs of life are left: %v", at, left)
		}
	}
	s.swept()
}

// TestTakenForDead: somebody marks the packs while the backup is being taken, or deletes them while its manifest is being
// stored.
func TestTakenForDead(t *testing.T) {
	s := newSite(t, storagetest.Memory(), pgtest.Options{})
	ctx := context.Background()
	_, err := s.try(ctx, s.repo, s.options(), func(string) func() {
		for _, key := range s.keys(repo.PendingPrefix) {
			id := strings.Split(key, "/")[1]
			if err := s.repo.PutDocument(ctx, repo.MarkKey(id), mark{ID: id}); err != nil {
				t.Error(err)
			}
		}
		return nil
	})
	if !errors.Is(err, errMarked) || s.allIntact() != 0 {
		t.Errorf("marked: %v", err)
	}
	for _, what := range []string{repo.PackPrefix, repo.MarkPrefix} {
		r := reopen(t, s.repo, storagetest.Faulty(s.bucket, func(op storagetest.Op, key string) error {
			_, id, manifest := strings.Cut(key, repo.BackupPrefix)
			if op != storagetest.CreateDone || !manifest {
				return nil
			}
			if what == repo.MarkPrefix {
				return s.repo.PutDocument(ctx, repo.MarkKey(id), mark{ID: id})
			}
			return s.repo.Delete(ctx, repo.PackKey(id, 1))
		}))
		if _, err := s.try(ctx, r, s.options(), nil); err == nil || s.allIntact() != 0 {
			t.Errorf("%s after the last look: %v", what, err)
		}
	}
	s.swept()
}

// TestServerCrash kills the server while it is being copied.
func TestServerCrash(t *testing.T) {
	s := newSite(t, storagetest.Memory(), pgtest.Options{})
	n := 0
	o := s.options()
	o.Workers = 1
	_, err := s.try(context.Background(), s.repo, o, func(string) func() {
		if n++; n == 50 {
			s.Kill()
		}
		return nil
	})
	if err == nil || s.allIntact() != 0 {
		t.Errorf("the server was killed: %v", err)
	}
}

// TestKilled kills the process that takes the backup, at random points.
func TestKilled(t *testing.T) {
	if spec := os.Getenv("PITR_TEST_TAKE"); spec != "" {
		takeInChild(t, spec)
		return
	}
	dir := pgtest.TempDir(t)
	b, err := storage.Open(context.Background(), storage.Config{URL: "file://" + dir + "/store"})
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t, b, pgtest.Options{})
	s.Run("pgbench", "-q", "-i", "-s", "10")
	spec, err := json.Marshal(childSpec{Server: s.Config(), Store: dir + "/store", System: s.repo.SystemID()})
	if err != nil {
		t.Fatal(err)
	}
	run := func(after time.Duration) (killed bool) {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
		cmd.Env = append(os.Environ(), "PITR_TEST_TAKE="+string(spec))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(after, func() { cmd.Process.Signal(syscall.SIGKILL) })
		defer timer.Stop()
		return cmd.Wait() != nil
	}
	began := time.Now()
	if run(time.Minute) {
		t.Fatal("a backup that nobody disturbs fails")
	}
	whole := time.Since(began)
	kills := 0
	for i := range 12 {
		before := s.allIntact()
		killed := run(whole * time.Duration(i+1) / 12)
		if killed {
			kills++
		}
		if after := s.allIntact(); !killed && after != before+1 {
			t.Fatalf("%d backups, then %d", before, after)
		}
	}
	if kills < 3 {
		t.Errorf("only %d of 12 were killed", kills)
	}
	// The processes are gone: that shows at once.
	left, err := Leftovers(context.Background(), s.repo, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d kills, %d leftovers", kills, len(left))
	sweepAt(t, s.repo, time.Now())
	sweepAt(t, s.repo, time.Now().Add(2*SweepGrace))
	if signs := s.keys(repo.PendingPrefix); len(signs) > 0 {
		t.Errorf("left: %v", signs)
	}
	s.allIntact()
	s.swept()
	s.archived()
	all, _, err := List(context.Background(), s.repo)
	if err != nil {
		t.Fatal(err)
	}
	r := s.restore(all[len(all)-1])
	if n := pgtest.QueryOne[int64](r, "SELECT count(*) FROM pgbench_accounts"); n != 1_000_000 {
		t.Errorf("%d rows", n)
	}
}

type childSpec struct {
	Server postgres.Config
	Store  string
	System uint64
}

func takeInChild(t *testing.T, spec string) {
	var c childSpec
	if err := json.Unmarshal([]byte(spec), &c); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	b, err := storage.Open(ctx, storage.Config{URL: "file://" + c.Store})
	if err != nil {
		t.Fatal(err)
	}
	r, err := repo.Open(ctx, b, c.System)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := postgres.Connect(ctx, c.Server)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := Take(ctx, r, conn, Options{DataDir: c.Server.DataDir}); err != nil {
		t.Fatal(err)
	}
}

// TestNotArchiving: servers whose WAL does not get where it should. Nothing is copied.
func TestNotArchiving(t *testing.T) {
	s := newSite(t, storagetest.Memory(), pgtest.Options{})
	try := func(want, advice string) {
		t.Helper()
		o := s.options()
		o.ArchiveTimeout = 700 * time.Millisecond
		_, err := s.try(context.Background(), s.repo, o, func(path string) func() {
			t.Errorf("copied: %s", path)
			return nil
		})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(hint.Of(err), advice) {
			t.Errorf("%v\nHINT: %s\nwant %s, %s", err, hint.Of(err), want, advice)
		}
	}
	s.Conf(map[string]string{"archive_command": ""})
	s.Reload()
	try("archive_command is empty", "pitr wal push")
	s.Conf(map[string]string{"archive_command": "false"})
	s.Reload()
	try("was not archived within 700ms", "the server's archiver failed")
	s.Conf(map[string]string{"archive_command": "true"})
	s.Reload()
	s.Exec("SELECT pg_switch_wal()")
	s.Await("SELECT coalesce(last_archived_wal > last_failed_wal, false) FROM pg_stat_archiver")
	try("was not archived within 700ms", "")
	s.Conf(map[string]string{"archive_mode": "off"})
	s.Restart()
	try("archive_mode is off", "archive_mode = on")
	// Another cluster's repository.
	s.Conf(map[string]string{"archive_mode": "on"})
	s.Restart()
	own := s.repo
	s.repo = testRepo(t, storagetest.Memory())
	try("the server's system identifier is", "")
	s.repo = own
	// A data directory that is not the server's.
	other := pgtest.Start(t, pgtest.Options{NewSystem: true, NotYet: true})
	o := s.options()
	o.DataDir = other.Dir
	if _, err := s.try(context.Background(), s.repo, o, nil); err == nil || !strings.Contains(hint.Of(err), "postgres.data_dir must be") {
		t.Errorf("another server's directory: %v", err)
	}
	if n := len(mustList(t, s.repo)); n != 0 {
		t.Errorf("%d backups", n)
	}
}

// TestArchivedTwice: of the first segment there are two contents, and nobody has chosen.
func TestArchivedTwice(t *testing.T) {
	s := newSite(t, storagetest.Memory(), pgtest.Options{})
	h := s.take(s.options(), nil)
	w := &walWaiter{repo: s.repo, tli: h.Timeline, segSize: h.WALSegSize, timeout: time.Second, server: s.session()}
	first, last := h.SegmentRange()
	ctx := context.Background()
	if err := w.await(ctx, first, last); err != nil {
		t.Fatal(err)
	}
	name := walName(h, first)
	other := repo.DigestOf([]byte("another"))
	if err := s.repo.Create(ctx, repo.SegmentKey(name, other), strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	if err := w.await(ctx, first, last); err == nil || !strings.Contains(hint.Of(err), "pitr wal resolve "+name) {
		t.Errorf("two contents: %v", err)
	}
	if err := s.repo.Create(ctx, repo.ResolvedKey(name, other), strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	if err := w.await(ctx, first, last); err != nil {
		t.Errorf("two contents, settled: %v", err)
	}
	third := repo.ResolvedKey(name, repo.DigestOf([]byte("a third")))
	if err := s.repo.Create(ctx, third, strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	if err := w.await(ctx, first, last); err == nil {
		t.Error("two contents, settled in two ways")
	}
	if err := s.repo.Delete(ctx, third); err != nil {
		t.Fatal(err)
	}
	if n, err := w.missing(ctx, first, last+100); err != nil || n <= last || n > last+2 {
		t.Errorf("missing behind %d: %d, %v", last, n, err)
	}
}

// TestVerifyNoticesDamage changes one byte of every pack, cuts, and removes one.
func TestVerifyNoticesDamage(t *testing.T) {
	s := newSite(t, storagetest.Memory(), pgtest.Options{})
	h := s.take(s.options(), nil)
	var change func(data []byte) []byte
	ctx := context.Background()
	r := reopen(t, s.repo, storagetest.Corrupt(s.bucket, func(key string, data []byte) []byte {
		if strings.HasSuffix(key, repo.PackKey(h.ID, 1)) && change != nil {
			return change(data)
		}
		return data
	}))
	verify := func(r *repo.Repo) *VerifyReport {
		t.Helper()
		report, err := Verify(ctx, r, h.ID, VerifyOptions{WAL: func(context.Context, *Header) ([]string, error) { return nil, nil }})
		if err != nil {
			t.Fatal(err)
		}
		return report
	}
	if report := verify(r); len(report.Damaged) != 0 || report.Bytes == 0 {
		t.Fatalf("whole: %+v", report)
	}
	pack, err := s.repo.ReadAll(ctx, repo.PackKey(h.ID, 1), 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 60 {
		at := (len(pack) - 1) * i / 59
		change = func(data []byte) []byte {
			data = slices.Clone(data)
			data[at] ^= 1 << (i % 8)
			return data
		}
		if report := verify(r); len(report.Damaged) != 1 {
			t.Errorf("byte %d of %d: %q", at, len(pack), report.Damaged)
		}
	}
	change = func(data []byte) []byte { return data[:len(data)-1] }
	if report := verify(r); len(report.Damaged) != 1 {
		t.Errorf("a pack one byte short: %q", report.Damaged)
	}
	change = func(data []byte) []byte { return data[:len(data)/2] }
	half := verify(r)
	if len(half.Damaged) < 2 {
		t.Errorf("half a pack: %q", half.Damaged)
	}
	change = nil
	if err := s.repo.Delete(ctx, repo.PackKey(h.ID, 1)); err != nil {
		t.Fatal(err)
	}
	if report := verify(s.repo); len(report.Damaged) < len(half.Damaged) || !strings.Contains(report.Damaged[0], "not found") {
		t.Errorf("a pack is gone: %q", report.Damaged)
	}
	// What is wrong with the WAL belongs to it.
	report, err := Verify(ctx, s.repo, h.ID, VerifyOptions{WAL: func(context.Context, *Header) ([]string, error) { return []string{"it is missing"}, nil }})
	if err != nil || !slices.Contains(report.Damaged, "WAL: it is missing") {
		t.Errorf("missing WAL: %+v, %v", report, err)
	}
	// A store that fails is no damage.
	dead := reopen(t, s.repo, storagetest.Faulty(s.bucket, func(op storagetest.Op, key string) error {
		if strings.Contains(key, repo.PackPrefix) {
			return storagetest.ErrFault
		}
		return nil
	}))
	if _, err := Verify(ctx, dead, h.ID, VerifyOptions{}); !errors.Is(err, storagetest.ErrFault) {
		t.Errorf("the store fails: %v", err)
	}
	if _, err := Verify(ctx, s.repo, idA, VerifyOptions{}); !errors.Is(err, ErrNoBackup) {
		t.Errorf("no backup: %v", err)
	}
}

// TestRetentionLeavesWhatRestores takes three backups, lets retention have the first, and restores both others.
func TestRetentionLeavesWhatRestores(t *testing.T) {
	s := newSite(t, storagetest.Memory(), pgtest.Options{SegSizeMB: 1})
	s.Exec("CREATE TABLE t (i int)")
	var taken []*Header
	for range 3 {
		for range 4 {
			s.Exec("INSERT INTO t SELECT generate_series(1, 5000)", "SELECT pg_switch_wal()")
		}
		taken = append(taken, s.take(s.options(), nil))
		s.Exec("INSERT INTO t VALUES (0)")
	}
	s.archived()
	ctx := context.Background()
	c, err := s.archive.Coverage(ctx)
	if err != nil {
		t.Fatal(err)
	}
	all, _, err := List(ctx, s.repo)
	if err != nil {
		t.Fatal(err)
	}
	verdicts := Expire(all, map[string]bool{taken[0].ID: true}, Keep{Count: 1}, Lines(c), time.Now())
	if verdicts[1].Keep || !verdicts[0].Alone || !verdicts[2].Keep || verdicts[2].Alone {
		t.Fatalf("%+v", verdicts)
	}
	if err := Delete(ctx, s.repo, all[1].ID); err != nil {
		t.Fatal(err)
	}
	n, _, err := s.archive.Prune(ctx, archive.PlanPrune(c, Needs(all, verdicts)))
	if err != nil || n == 0 {
		t.Fatalf("pruned %d, %v", n, err)
	}
	c, err = s.archive.Coverage(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{0, 2} {
		h := taken[i]
		if _, missing := c.Path(Lines(c)[0].History, h.StartLSN, h.StopLSN); missing != nil {
			t.Errorf("backup %d: %v", i, missing)
		}
	}
	if _, missing := c.Path(Lines(c)[0].History, taken[1].StartLSN, taken[1].StopLSN); missing == nil {
		t.Error("the WAL of the backup that went is still there")
	}
	r := s.restore(taken[2])
	if got, want := pgtest.QueryOne[int64](r, "SELECT count(*) FROM t"), pgtest.QueryOne[int64](s.Server, "SELECT count(*) FROM t"); got != want {
		t.Errorf("%d rows, want %d", got, want)
	}
}
