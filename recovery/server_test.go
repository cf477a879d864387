package recovery_test

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"pitr/archive"
	"pitr/basebackup"
	"pitr/internal/postgres"
	"pitr/internal/postgres/pgtest"
	"pitr/internal/repo"
	"pitr/internal/wal"
	"pitr/recovery"
	"pitr/storage"
)

// house is a server that archives into a repository, by way of a directory that its archive_command copies to.
type house struct {
	*pgtest.Server
	t       *testing.T
	base    string
	spool   string
	url     string
	config  string
	program string
	bucket  storage.Bucket
	repo    *repo.Repo
	archive *archive.Archive

	mu *sync.Mutex // one drain at a time
}

// copyProgram puts a copy of this test binary where the servers' user can execute it, under a name that has to survive two
// levels of quoting.
func copyProgram(t *testing.T, dir string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(self)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	path := filepath.Join(dir, "it's 100% pitr")
	out, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Close(), os.Chmod(path, 0o755)); err != nil {
		t.Fatal(err)
	}
	return path
}

func newHouse(t *testing.T, o pgtest.Options) *house {
	t.Helper()
	base := pgtest.TempDir(t)
	h := &house{t: t, base: base, spool: filepath.Join(base, "spool"), url: "file://" + filepath.Join(base, "repo"), config: filepath.Join(base, "a config"), mu: new(sync.Mutex)}
	mkdir(t, h.spool)
	if o.Conf == nil {
		o.Conf = map[string]string{}
	}
	o.Conf["archive_mode"] = "on"
	o.Conf["archive_command"] = fmt.Sprintf("cp %%p %s/.%%f && mv %s/.%%f %s/%%f", h.spool, h.spool, h.spool)
	o.Conf["max_prepared_transactions"] = "5"
	o.NoFsync = true
	h.Server = pgtest.Start(t, o)
	ctx := t.Context()
	var err error
	h.program = copyProgram(t, base)
	if h.bucket, err = storage.Open(ctx, storage.Config{URL: h.url}); err != nil {
		t.Fatal(err)
	}
	c, err := postgres.ReadControl(ctx, h.Dir)
	if err != nil {
		t.Fatal(err)
	}
	h.repo, err = repo.Ensure(ctx, h.bucket, repo.Facts{SystemID: c.SystemID, Major: c.Major, SegmentSize: int64(c.WALSegSize), BlockSize: int(c.BlockSize)}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	h.archive = archive.New(h.repo, archive.Options{})
	if err := os.WriteFile(h.config, fmt.Appendf(nil, "%s\n%d\n", h.url, c.SystemID), 0o644); err != nil {
		t.Fatal(err)
	}
	h.give(filepath.Join(base, "repo"))
	return h
}

// in is the house for a subtest.
func (h *house) in(t *testing.T) *house {
	sub := *h
	sub.t = t
	return &sub
}

// give makes the repository readable for the servers' user, who fetches from it.
func (h *house) give(dir string) {
	uid, gid := pgtest.User()
	filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			os.Lchown(path, uid, gid)
		}
		return nil
	})
}

func mkdir(t *testing.T, dir string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	uid, gid := pgtest.User()
	if err := os.Chown(dir, uid, gid); err != nil {
		t.Fatal(err)
	}
	return dir
}

// drain archives what the server has handed over.
func (h *house) drain(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	entries, err := os.ReadDir(h.spool)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		path := filepath.Join(h.spool, e.Name())
		if _, err := h.archive.Push(ctx, path, h.repo.SystemID()); err != nil {
			return err
		}
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return nil
}

// backup takes one of a server while WAL is drained.
func (h *house) backupOf(s *pgtest.Server) *basebackup.Header {
	h.t.Helper()
	ctx, cancel := context.WithCancel(h.t.Context())
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for ctx.Err() == nil {
			if err := h.drain(ctx); err != nil && ctx.Err() == nil {
				h.t.Errorf("archive: %v", err)
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	defer cancel()
	conn, err := postgres.Connect(ctx, s.Config())
	if err != nil {
		h.t.Fatal(err)
	}
	defer conn.Close()
	b, err := basebackup.Take(ctx, h.repo, conn, basebackup.Options{DataDir: s.Dir})
	if err != nil {
		h.t.Fatal(err)
	}
	return b
}

func (h *house) backup() *basebackup.Header { h.t.Helper(); return h.backupOf(h.Server) }

// flush ends the segment of a server and archives it.
func (h *house) flushOf(s *pgtest.Server) {
	h.t.Helper()
	s.Exec("SELECT pg_create_restore_point('flush')")
	name := pgtest.QueryOne[string](s, "SELECT pg_walfile_name(pg_switch_wal())")
	s.Await("SELECT coalesce((SELECT last_archived_wal >= $1 FROM pg_stat_archiver), false)", name)
	if err := h.drain(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	h.give(filepath.Join(h.base, "repo"))
}

func (h *house) flush() { h.t.Helper(); h.flushOf(h.Server) }

// plan makes a plan for a directory beside the server.
func (h *house) plan(target recovery.Target, d recovery.Destination) (*recovery.World, *recovery.Plan, error) {
	h.t.Helper()
	return h.planLogged(recovery.Surroundings{BinDir: h.Bin.Dir}, target, d)
}

func (h *house) planLogged(s recovery.Surroundings, target recovery.Target, d recovery.Destination) (*recovery.World, *recovery.Plan, error) {
	h.t.Helper()
	w, err := recovery.Observe(h.t.Context(), h.archive, s)
	if err != nil {
		return nil, nil, err
	}
	h.t.Cleanup(func() { w.Close() })
	d.Program, d.Config = h.program, h.config
	if d.Scratch() && d.Port == 0 {
		d.SocketDir, d.Port = pgtest.TempDir(h.t), freePort(h.t)
	}
	if target.Action == "" {
		target.Action = recovery.Promote
	}
	p, err := recovery.MakePlan(w.View, target, d)
	return w, p, err
}

func freePort(t *testing.T) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func options() recovery.Options {
	uid, gid := pgtest.User()
	return recovery.Options{Workers: 2, Owner: &postgres.Account{UID: uint32(uid), GID: uint32(gid)}}
}

// restored is a server that was restored and started.
type restored struct {
	*pgtest.Server
	plan    *recovery.Plan
	report  *recovery.Report
	started *recovery.Started
}

// restore restores beside the server, starts, and attaches to what runs then.
func (h *house) restore(target recovery.Target, d recovery.Destination) restored {
	h.t.Helper()
	if d.Dir == "" {
		d.Dir = filepath.Join(pgtest.TempDir(h.t), "copy")
	}
	d.Start = true
	w, p, err := h.plan(target, d)
	if err != nil {
		h.t.Fatalf("plan %s: %v", target, err)
	}
	report, err := w.Restore(h.t.Context(), p, options())
	if err != nil {
		h.t.Fatalf("restore %s: %v", target, err)
	}
	started, err := w.Start(h.t.Context(), p, "postgres")
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(d.Dir, "pitr_server.log"))
		h.t.Fatalf("start %s: %v\n%s", target, err, log)
	}
	r := restored{plan: p, report: report, started: started}
	if started.PID != 0 {
		r.Server = pgtest.Attach(h.t, d.Dir, pgtest.Options{Bin: h.Bin})
	}
	return r
}

// digest of everything in the tables of the database postgres.
func digest(s *pgtest.Server) string {
	var sum strings.Builder
	for _, table := range pgtest.Query[string](s, "SELECT c.oid::regclass::text FROM pg_class c WHERE relkind = 'r' AND relpersistence = 'p' AND relnamespace = 'public'::regnamespace ORDER BY 1") {
		hash := pgtest.QueryOne[string](s, fmt.Sprintf("SELECT coalesce(md5(string_agg(md5(x::text), '' ORDER BY md5(x::text))), '') FROM %s AS x", table))
		fmt.Fprintf(&sum, "%s %s\n", table, hash)
	}
	d := md5.Sum([]byte(sum.String()))
	return hex.EncodeToString(d[:])
}

func rows(s *pgtest.Server) string {
	return strings.Join(pgtest.Query[string](s, "SELECT v FROM t ORDER BY v"), " ")
}

func serverTime(s *pgtest.Server) time.Time {
	return pgtest.QueryOne[time.Time](s, "SELECT clock_timestamp()")
}

// history of one table t with known moments.
type story struct {
	start, between, aborted time.Time
	xidC                    uint32
}

func (h *house) tell() story {
	h.t.Helper()
	var s story
	h.Exec("CREATE TABLE t (v text)", "INSERT INTO t VALUES ('0')")
	s.start = serverTime(h.Server)
	h.Exec("INSERT INTO t VALUES ('a')")
	time.Sleep(50 * time.Millisecond)
	s.between = serverTime(h.Server)
	time.Sleep(50 * time.Millisecond)
	h.Exec("INSERT INTO t VALUES ('b')")
	h.Exec("SELECT pg_create_restore_point('it''s \"b\" \\ %')")
	conn := h.Connect("postgres")
	ctx := h.t.Context()
	if _, err := conn.Exec(ctx, "BEGIN; INSERT INTO t VALUES ('lost'); ROLLBACK"); err != nil {
		h.t.Fatal(err)
	}
	s.aborted = serverTime(h.Server)
	var xid int64
	tx, err := conn.Begin(ctx)
	if err != nil {
		h.t.Fatal(err)
	}
	if _, err := tx.Exec(ctx, "INSERT INTO t VALUES ('c')"); err != nil {
		h.t.Fatal(err)
	}
	if err := tx.QueryRow(ctx, "SELECT pg_current_xact_id()::text::int8").Scan(&xid); err != nil {
		h.t.Fatal(err)
	}
	if err := tx.Commit(ctx); err != nil {
		h.t.Fatal(err)
	}
	s.xidC = uint32(xid)
	h.Exec("INSERT INTO t VALUES ('d')")
	h.flush()
	return s
}

func TestTargetsOnServers(t *testing.T) {
	for _, bin := range pgtest.Bins(t) {
		t.Run(fmt.Sprint(bin.Major), func(t *testing.T) {
			t.Parallel()
			h := newHouse(t, pgtest.Options{Bin: bin, SegSizeMB: 1})
			h.backup()
			s := h.tell()
			// What the server knows of a commit's record, by the archive.
			facts := func(xid uint32) *wal.Txn {
				for f, err := range h.archive.Facts(t.Context(), everything(h), 0) {
					if err != nil {
						t.Fatal(err)
					}
					if x, ok := f.What.(*wal.Txn); ok && x.XID == xid {
						return x
					}
				}
				t.Fatalf("transaction %d is not archived", xid)
				return nil
			}
			c := facts(s.xidC)
			for name, x := range map[string]struct {
				target recovery.Target
				want   string
			}{
				"time":           {recovery.Target{Kind: recovery.Time, Time: s.between}, "0 a"},
				"first time":     {recovery.Target{Kind: recovery.Time, Time: s.start}, "0"},
				"abort":          {recovery.Target{Kind: recovery.Time, Time: s.aborted}, "0 a b"},
				"exact time":     {recovery.Target{Kind: recovery.Time, Time: c.Time.Time()}, "0 a b c"},
				"exact time, ex": {recovery.Target{Kind: recovery.Time, Time: c.Time.Time(), Exclusive: true}, "0 a b"},
				"xid":            {recovery.Target{Kind: recovery.XID, XID: s.xidC}, "0 a b c"},
				"xid, ex":        {recovery.Target{Kind: recovery.XID, XID: s.xidC, Exclusive: true}, "0 a b"},
				"lsn":            {recovery.Target{Kind: recovery.LSN, LSN: c.Start}, "0 a b c"},
				"lsn, ex":        {recovery.Target{Kind: recovery.LSN, LSN: c.Start, Exclusive: true}, "0 a b"},
				"lsn behind, ex": {recovery.Target{Kind: recovery.LSN, LSN: c.End, Exclusive: true}, "0 a b c"},
				"name":           {recovery.Target{Kind: recovery.Name, Name: `it's "b" \ %`}, "0 a b"},
				"end":            {recovery.Target{}, "0 a b c d"},
			} {
				t.Run(name, func(t *testing.T) {
					h := h.in(t)
					r := h.restore(x.target, recovery.Destination{})
					if got := rows(r.Server); got != x.want {
						t.Errorf("%s, which is %s: rows %q, want %q", x.target, r.plan.What, got, x.want)
					}
					if r.started.Timeline != 2 {
						t.Errorf("timeline %d", r.started.Timeline)
					}
					if got := pgtest.QueryOne[string](r.Server, "SHOW archive_mode"); got != "off" {
						t.Errorf("archive_mode %s", got)
					}
					r.Server.CheckPages()
				})
			}
			t.Run("immediate", func(t *testing.T) {
				h := h.in(t)
				r := h.restore(recovery.Target{Kind: recovery.Immediate}, recovery.Destination{})
				if n := pgtest.QueryOne[int64](r.Server, "SELECT count(*) FROM pg_class WHERE relname = 't'"); n != 0 {
					t.Error("the table is there already")
				}
			})
			t.Run("pause", func(t *testing.T) {
				h := h.in(t)
				r := h.restore(recovery.Target{Kind: recovery.XID, XID: s.xidC, Action: recovery.Pause}, recovery.Destination{})
				if got := rows(r.Server); got != "0 a b c" || !pgtest.QueryOne[bool](r.Server, "SELECT pg_is_in_recovery()") {
					t.Errorf("rows %q, or not in recovery", got)
				}
			})
			t.Run("shutdown", func(t *testing.T) {
				h := h.in(t)
				r := h.restore(recovery.Target{Kind: recovery.XID, XID: s.xidC, Action: recovery.Shutdown}, recovery.Destination{})
				if r.started.PID != 0 || r.started.Replayed < c.Start {
					t.Errorf("%+v", r.started)
				}
			})
			t.Run("standby", func(t *testing.T) {
				h := h.in(t)
				r := h.restore(recovery.Target{}, recovery.Destination{Standby: true})
				r.Await("SELECT to_regclass('t') IS NOT NULL") // it is open as soon as it is consistent
				r.Await("SELECT count(*) = 5 FROM t")
				h.Exec("INSERT INTO t VALUES ('e')")
				h.flush()
				r.Await("SELECT count(*) = 6 FROM t") // it follows
			})
		})
	}
}

// everything is the path over all that is archived of timeline 1.
func everything(h *house) []archive.Step {
	c, err := h.archive.Coverage(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	var steps []archive.Step
	for _, r := range c.Timelines[1].Runs {
		steps = append(steps, archive.Step{Timeline: 1, First: r.First, Last: r.Last})
	}
	return steps
}
