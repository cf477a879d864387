package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pitr/internal/postgres"
	"pitr/internal/postgres/pgtest"
	"pitr/internal/repo"
	"pitr/internal/wal"
	"pitr/storage"
	"pitr/storage/storagetest"
)

// A corpus is what a real server archived: two timelines of segments of one size.
type corpus struct {
	dir      string
	control  wal.Control
	names    []string // in the order of their names
	commits  int      // at least so many transactions were committed
	segments []string
	partial  string
	history  string
	switched wal.LSN // where timeline 1 was left
}

// corpora are made once per process.
type corpora struct {
	mu   sync.Mutex
	root string
	made map[kindOfCorpus]*corpus
}

type kindOfCorpus struct {
	mb   int  // of a segment
	busy bool // with many small transactions in many segments
}

var made = &corpora{made: make(map[kindOfCorpus]*corpus)}

func TestMain(m *testing.M) {
	code := m.Run()
	if made.root != "" {
		if err := os.RemoveAll(made.root); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// wals returns the corpus with segments of mb MiB.
func wals(t testing.TB, mb int) *corpus {
	t.Helper()
	return madeOf(t, kindOfCorpus{mb: mb})
}

// busy returns a corpus of small segments with transactions in all of them.
func busy(t testing.TB) *corpus {
	t.Helper()
	return madeOf(t, kindOfCorpus{mb: 1, busy: true})
}

func madeOf(t testing.TB, kind kindOfCorpus) *corpus {
	t.Helper()
	made.mu.Lock()
	defer made.mu.Unlock()
	if c := made.made[kind]; c != nil {
		return c
	}
	if made.root == "" {
		root, err := os.MkdirTemp("", "pitr-archive-test-")
		if err != nil {
			t.Fatal(err)
		}
		made.root = root
	}
	c := makeCorpus(t, kind, filepath.Join(made.root, fmt.Sprint(kind.mb, kind.busy)))
	made.made[kind] = c
	return c
}

func makeCorpus(t testing.TB, kind kindOfCorpus, dir string) *corpus {
	t.Helper()
	mb := kind.mb
	out := filepath.Join(pgtest.TempDir(t), "archived")
	if err := os.Mkdir(out, 0o755); err != nil {
		t.Fatal(err)
	}
	uid, gid := pgtest.User()
	if err := os.Chown(out, uid, gid); err != nil {
		t.Fatal(err)
	}
	s := pgtest.Start(t, pgtest.Options{SegSizeMB: mb, NoFsync: true, Conf: map[string]string{
		"archive_mode": "on", "archive_command": fmt.Sprintf("cp %%p %s/%%f.tmp && mv %s/%%f.tmp %s/%%f", out, out, out),
		"wal_level": "logical", "max_prepared_transactions": "5", "max_wal_size": fmt.Sprintf("%dMB", 10*mb),
	}})
	archived := func(name string) bool {
		_, err := os.Stat(filepath.Join(out, name))
		return err == nil
	}
	await := func(name string) {
		t.Helper()
		for end := time.Now().Add(time.Minute); !archived(name); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s was not archived", name)
			}
		}
	}
	c := &corpus{dir: dir}
	s.Exec("CREATE TABLE t (id int, text text)")
	for i := range 20 {
		s.Exec(fmt.Sprintf("INSERT INTO t SELECT g, repeat(md5(g::text), 4) FROM generate_series(1, %d) g", 500*min(mb, 16)))
		switch i {
		case 5:
			s.Exec("BEGIN; INSERT INTO t VALUES (-4); PREPARE TRANSACTION 'prepared'")
		case 10:
			s.Exec("SELECT pg_create_restore_point('between')")
		case 15:
			s.Exec("COMMIT PREPARED 'prepared'")
		}
	}
	c.commits = 21
	// A record longer than a small segment, and a commit whose subtransactions fill more than an
	// index keeps of a record that crosses segments.
	s.Exec("SELECT pg_logical_emit_message(true, 'test', repeat('x', 2500000))",
		"DO $$ BEGIN FOR i IN 1..75000 LOOP BEGIN INSERT INTO t VALUES (i); EXCEPTION WHEN others THEN NULL; END; END LOOP; END $$")
	if kind.busy {
		// Commits, aborts and those of prepared transactions, of which records cross into most segments.
		s.Exec("ALTER TABLE t ALTER text SET STORAGE EXTERNAL", // locks out prepared transactions
			"BEGIN; INSERT INTO t VALUES (-5); PREPARE TRANSACTION 'left'",
			"BEGIN; INSERT INTO t VALUES (-6); PREPARE TRANSACTION 'undone'")
		s.Exec("DO $$ BEGIN FOR i IN 1..1200 LOOP INSERT INTO t SELECT i, string_agg(md5(i::text || g), '') FROM generate_series(1, 200) g;"+
			" IF i % 7 = 0 THEN ROLLBACK; ELSE COMMIT; END IF; END LOOP; END $$",
			"SELECT pg_create_restore_point('between')",
			// A commit of many subtransactions begins just before each segment's end: a message takes up what is left.
			"DO $$ DECLARE room bigint; BEGIN FOR i IN 1..24 LOOP"+
				" FOR j IN 1..100 LOOP BEGIN INSERT INTO t VALUES (j); EXCEPTION WHEN others THEN NULL; END; END LOOP;"+
				" room := 1048576 - (pg_current_wal_insert_lsn() - '0/0') % 1048576;"+
				" PERFORM pg_logical_emit_message(false, '', repeat('x', greatest(0, room - 260 - 24 * (room / 8192))::int)); COMMIT;"+
				" INSERT INTO t VALUES (i); IF i % 5 = 0 THEN ROLLBACK; ELSE COMMIT; END IF; END LOOP; END $$")
		s.Exec("ROLLBACK PREPARED 'undone'")
	}
	s.Exec("SELECT pg_switch_wal()")
	s.Exec("INSERT INTO t VALUES (-1)")
	last := pgtest.QueryOne[string](s, "SELECT pg_walfile_name(pg_switch_wal())")
	await(last)
	s.Exec("INSERT INTO t VALUES (-2)", "CHECKPOINT")
	// The server as it is becomes a copy of itself that recovers to the end and begins timeline 2.
	s.Stop(postgres.Fast)
	signal := filepath.Join(s.Dir, "recovery.signal")
	if err := os.WriteFile(signal, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(signal, uid, gid); err != nil {
		t.Fatal(err)
	}
	s.Conf(map[string]string{"restore_command": "cp " + out + "/%f %p"})
	s.Start()
	s.AwaitPrimary()
	s.Exec("INSERT INTO t VALUES (-3)")
	last = pgtest.QueryOne[string](s, "SELECT pg_walfile_name(pg_switch_wal())")
	await(last)
	c.history = "00000002.history"
	await(c.history)
	control, err := postgres.ReadControl(context.Background(), s.Dir)
	if err != nil {
		t.Fatal(err)
	}
	c.control = control
	s.Stop(postgres.Fast)

	if err := os.CopyFS(dir, os.DirFS(out)); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		switch wal.Classify(e.Name()) {
		case wal.Segment:
			c.segments = append(c.segments, e.Name())
		case wal.Partial:
			c.partial = e.Name()
		case wal.Other:
			continue
		}
		c.names = append(c.names, e.Name())
	}
	if len(c.segments) < 3 || c.partial == "" {
		t.Fatalf("the server archived %v", c.names)
	}
	h, err := wal.ParseHistory(2, c.read(t, c.history))
	if err != nil {
		t.Fatal(err)
	}
	c.switched, _ = h.SwitchPoint(1)
	return c
}

func (c *corpus) path(name string) string { return filepath.Join(c.dir, name) }

func (c *corpus) read(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(c.path(name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// changed writes a segment with other records but right pages, as another server would have it, to
// a directory of its own, and returns its path. Different n give different contents.
func (c *corpus) changed(t testing.TB, name string, n byte) string {
	t.Helper()
	data := c.read(t, name)
	data[len(data)/2+100] ^= n
	return write(t, filepath.Join(t.TempDir(), name), data)
}

func write(t testing.TB, path string, data []byte) string {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (c *corpus) repo(t testing.TB, b storage.Bucket) *repo.Repo {
	t.Helper()
	r, err := repo.Ensure(context.Background(), b, repo.Facts{
		SystemID: c.control.SystemID, Major: c.control.Major,
		SegmentSize: int64(c.control.WALSegSize), BlockSize: int(c.control.BlockSize),
	}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (c *corpus) archive(t testing.TB, b storage.Bucket) *Archive {
	t.Helper()
	a := New(c.repo(t, b), Options{Workers: 2, Origin: Origin{Node: "n1"}})
	t.Cleanup(a.Close)
	return a
}

func (c *corpus) push(t testing.TB, a *Archive, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := a.Push(context.Background(), c.path(name), c.control.SystemID); err != nil {
			t.Fatal(err)
		}
	}
}

// fetched returns what Fetch gives for a name.
func fetched(t testing.TB, a *Archive, name string, o FetchOptions) ([]byte, error) {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "RECOVERYXLOG")
	err := a.Fetch(context.Background(), name, path, o)
	entries, derr := os.ReadDir(dir)
	if derr != nil {
		t.Fatal(derr)
	}
	if err != nil {
		if len(entries) > 0 {
			t.Fatalf("a failed fetch left %v", entries)
		}
		return nil, err
	}
	if len(entries) != 1 {
		t.Fatalf("a fetch left %v", entries)
	}
	data, rerr := os.ReadFile(path)
	if rerr != nil {
		t.Fatal(rerr)
	}
	return data, nil
}

func (c *corpus) wantFetched(t testing.TB, a *Archive, name string) {
	t.Helper()
	got, err := fetched(t, a, name, FetchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, c.read(t, name)) {
		t.Fatalf("%s came back with another content", name)
	}
}

func keys(t testing.TB, r *repo.Repo, prefix string) []string {
	t.Helper()
	var out []string
	for o, err := range r.List(context.Background(), prefix, "") {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, o.Key)
	}
	return out
}

// buckets are those that tests of the whole run with.
func buckets(t *testing.T) map[string]func() storage.Bucket {
	return map[string]func() storage.Bucket{
		"memory": storagetest.Memory,
		"file": func() storage.Bucket {
			b, err := storage.Open(context.Background(), storage.Config{URL: "file://" + filepath.Join(t.TempDir(), "repo")})
			if err != nil {
				t.Fatal(err)
			}
			return b
		},
		"no capabilities": func() storage.Bucket { return weak{storagetest.Memory()} },
	}
}

// weak is a store that promises nothing: what is created twice is no error, listings lag.
type weak struct{ storage.Bucket }

func (weak) Capabilities() storage.Capabilities { return storage.Capabilities{} }

func (w weak) Create(ctx context.Context, key string, r io.Reader) error {
	err := w.Bucket.Create(ctx, key, r)
	if errors.Is(err, storage.ErrExists) {
		return nil
	}
	return err
}

func ofTimeline(names []string, tli string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(s string) bool { return !strings.HasPrefix(s, tli) })
}
