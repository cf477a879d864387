// Package crash holds the tests that break things in the middle: every single operation of the store fails in turn, and
// processes are killed at random moments. What is listed afterwards has to be whole and to restore, and the same call
// again has to go on.
//
// Servers, their WAL and their backups are real. Moments are drawn from a seed that is printed; PITR_CRASH_SEED repeats
// it, as far as a machine's timing can be repeated.
package crash

import (
	"context"
	"fmt"
	"io/fs"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pitr/archive"
	"pitr/basebackup"
	"pitr/internal/postgres/pgtest"
	"pitr/internal/repo"
	"pitr/storage"
	"pitr/storage/storagetest"
)

// seedEnv names the environment variable that repeats a run.
const seedEnv = "PITR_CRASH_SEED"

// random gives a source of moments and prints its seed.
func random(t *testing.T) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if s := os.Getenv(seedEnv); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("%s: %v", seedEnv, err)
		}
	}
	t.Logf("%s=%d", seedEnv, seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// upTo draws a length of time.
func upTo(r *rand.Rand, most time.Duration) time.Duration {
	return time.Duration(r.Int64N(int64(most)))
}

// small makes a server's directory small: backups and restores of it take a third of the time.
func small(s *pgtest.Server) {
	s.Exec("ALTER DATABASE template0 IS_TEMPLATE false", "ALTER DATABASE template1 IS_TEMPLATE false", "DROP DATABASE template0", "DROP DATABASE template1")
}

// content tells what is in all tables of the schema public.
func content(s *pgtest.Server) string {
	var all []string
	for _, table := range pgtest.Query[string](s, "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1") {
		all = append(all, table+": "+pgtest.QueryOne[string](s, "SELECT count(*) || ' rows, ' || coalesce(sum(hashtextextended(x::text, 0)), 0) FROM "+table+" x"))
	}
	return strings.Join(all, "; ")
}

// open opens the archive and the repository that a bucket holds.
func open(ctx context.Context, b storage.Bucket) (*archive.Archive, error) {
	ids, err := repo.Systems(ctx, b)
	if err != nil {
		return nil, err
	}
	if len(ids) != 1 {
		return nil, fmt.Errorf("%d clusters in the store", len(ids))
	}
	r, err := repo.Open(ctx, b, ids[0])
	if err != nil {
		return nil, err
	}
	return archive.New(r, archive.Options{}), nil
}

// mustOpen is open for a store that nothing is wrong with.
func mustOpen(t *testing.T, b storage.Bucket) *archive.Archive {
	t.Helper()
	a, err := open(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

// openFiles opens a store in a directory.
func openFiles(t *testing.T, dir string) storage.Bucket {
	t.Helper()
	b, err := storage.Open(t.Context(), storage.Config{URL: "file://" + dir})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// keys lists everything in a bucket.
func keys(t *testing.T, b storage.Bucket) []string {
	t.Helper()
	var all []string
	for o, err := range b.List(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, o.Key)
	}
	return all
}

// transfer stores everything of one bucket in another.
func transfer(t *testing.T, from, to storage.Bucket) {
	t.Helper()
	ctx := t.Context()
	for _, key := range keys(t, from) {
		r, err := from.Get(ctx, key)
		if err == nil {
			err = to.Create(ctx, key, r)
			r.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// dated is a bucket some of whose objects are older than it is: retention looks at the store's clock, too.
type dated struct {
	storage.Bucket
	at map[string]time.Time
}

func (d dated) date(o storage.Object) storage.Object {
	if at, ok := d.at[o.Key]; ok {
		o.Modified = at
	}
	return o
}

func (d dated) List(ctx context.Context, prefix, after string) iter.Seq2[storage.Object, error] {
	return func(yield func(storage.Object, error) bool) {
		for o, err := range d.Bucket.List(ctx, prefix, after) {
			if !yield(d.date(o), err) {
				return
			}
		}
	}
}

func (d dated) Stat(ctx context.Context, key string) (storage.Object, error) {
	o, err := d.Bucket.Stat(ctx, key)
	return d.date(o), err
}

// times tells when each object was stored.
func times(t *testing.T, b storage.Bucket) map[string]time.Time {
	t.Helper()
	at := map[string]time.Time{}
	for o, err := range b.List(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		at[o.Key] = o.Modified
	}
	return at
}

// clone copies a bucket into memory.
func clone(t *testing.T, b storage.Bucket) storage.Bucket {
	t.Helper()
	m := storagetest.Memory()
	transfer(t, b, m)
	return dated{m, times(t, b)}
}

// wholeBackups verifies every backup that is listed, with the WAL that it needs, and returns their headers.
func wholeBackups(t *testing.T, what string, a *archive.Archive) []*basebackup.Header {
	t.Helper()
	ctx := t.Context()
	all, problems, err := basebackup.List(ctx, a.Repo())
	if err != nil || len(problems) > 0 {
		t.Fatalf("%s: backups: %v %v", what, problems, err)
	}
	for _, h := range all {
		report, err := basebackup.Verify(ctx, a.Repo(), h.ID, basebackup.VerifyOptions{WAL: func(ctx context.Context, h *basebackup.Header) ([]string, error) {
			c, err := a.Coverage(ctx)
			if err != nil {
				return nil, err
			}
			line, err := c.History(h.Timeline)
			if err != nil {
				return nil, err
			}
			if _, missing := c.Path(line, h.StartLSN, h.StopLSN); missing != nil {
				return []string{missing.Error()}, nil
			}
			return nil, nil
		}})
		if err != nil || len(report.Damaged) > 0 || report.Frames == 0 {
			t.Fatalf("%s: backup %s is listed: %+v %v", what, h.ID, report, err)
		}
	}
	return all
}

// wholeWAL reads all archived WAL back. Gaps may be allowed: workers don't finish in order.
func wholeWAL(t *testing.T, what string, a *archive.Archive, gaps bool) *archive.Report {
	t.Helper()
	r, err := a.Verify(t.Context(), archive.VerifyOptions{})
	if err != nil {
		t.Fatalf("%s: verify the WAL: %v", what, err)
	}
	if len(r.Damaged) > 0 || len(r.Conflicts) > 0 || len(r.Gaps) > 0 && !gaps {
		t.Fatalf("%s: the WAL: %+v", what, r)
	}
	return r
}

// give lets the servers' user have a directory with everything in it.
func give(t *testing.T, dir string) {
	t.Helper()
	uid, gid := pgtest.User()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, uid, gid)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// swift makes a directory as pgtest.TempDir does, but in memory where the machine has enough: for tests that write much
// and in which no machine crashes.
func swift(t *testing.T) string {
	t.Helper()
	const memory, enough = "/dev/shm", 1 << 30
	var at unix.Statfs_t
	if err := unix.Statfs(memory, &at); err != nil || at.Bavail*uint64(at.Bsize) < enough {
		return pgtest.TempDir(t)
	}
	dir, err := os.MkdirTemp(memory, "crash")
	if err != nil {
		return pgtest.TempDir(t)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	give(t, dir)
	return dir
}

// A fault lets one operation of the store fail, and remembers which it was.
type fault struct {
	*storagetest.Counter
	op  storagetest.Op
	key string
	hit chan struct{} // holds one until the fault is used up
}

func newFault(n int, mode storagetest.Mode) *fault {
	f := &fault{Counter: storagetest.FailNth(n, mode), hit: make(chan struct{}, 1)}
	f.hit <- struct{}{}
	return f
}

// on puts the fault under a bucket.
func (f *fault) on(b storage.Bucket) storage.Bucket {
	return storagetest.Faulty(b, func(op storagetest.Op, key string) error {
		err := f.Fault(op, key)
		if err != nil {
			select {
			case <-f.hit:
				f.op, f.key = op, key
			default:
			}
			return storage.MarkTemporary(err)
		}
		return nil
	})
}

// modes are what may follow a failed operation.
var modes = map[storagetest.Mode]string{storagetest.Blip: "blip", storagetest.Dead: "dead"}

// eachFault lets every operation of what try does on the bucket fail in turn, until there are no more. It makes sure that
// those kinds of operations were among them that are given.
func eachFault(t *testing.T, try func(what string, n int, mode storagetest.Mode, f *fault), kinds ...storagetest.Op) {
	t.Helper()
	seen := map[storagetest.Op]int{}
	for mode, name := range modes {
		n := 1
		for ; ; n++ {
			f := newFault(n, mode)
			try(fmt.Sprintf("%s at operation %d", name, n), n, mode, f)
			if !f.Fired() {
				break
			}
			seen[f.op]++
		}
		t.Logf("%s: %d operations", name, n-1)
	}
	for _, op := range kinds {
		if seen[op] == 0 {
			t.Errorf("no %s failed: %v", op, seen)
		}
	}
}

// quick tries again at once.
var quick = storage.Backoff{Attempts: 3, First: time.Microsecond, Most: time.Microsecond}

// sameKeys compares what two stores list.
func sameKeys(t *testing.T, what string, got, want []string) {
	t.Helper()
	for _, k := range got {
		if !slices.Contains(want, k) {
			t.Errorf("%s: %s is there", what, k)
		}
	}
	for _, k := range want {
		if !slices.Contains(got, k) {
			t.Errorf("%s: %s is not there", what, k)
		}
	}
}
