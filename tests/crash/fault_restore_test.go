package crash

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"pitr/internal/postgres"
	"pitr/internal/postgres/pgtest"
	"pitr/internal/wal"
	"pitr/recovery"
	"pitr/storage"
	"pitr/storage/storagetest"
)

// crashed is a server that ended without a word, with WAL in its directory that nobody has archived, and the store.
type crashed struct {
	*site
	bucket storage.Bucket
	stored string  // rows of which the WAL is archived
	whole  wal.LSN // end of the WAL of a further one, in a segment that is whole
	last   wal.LSN // end of what was written, with yet another row
}

func newCrashed(t *testing.T) *crashed {
	t.Helper()
	x := &crashed{site: newSite(t), bucket: storagetest.Memory()}
	x.Exec("CREATE TABLE notes (v int)")
	stop := x.archiving(x.bucket)
	x.mustTake(x.bucket)
	x.note(1)
	x.flush()
	x.note(2)
	x.flush()
	stop()
	if err := x.push(t.Context(), x.bucket, map[string]bool{}); err != nil {
		t.Fatal(err)
	}
	x.stored = notes(x.Server)
	// A whole segment and the beginning of one that nobody archives.
	x.Conf(map[string]string{"archive_command": "false"})
	x.Reload()
	end := func() wal.LSN {
		lsn, err := wal.ParseLSN(pgtest.QueryOne[string](x.Server, "SELECT pg_current_wal_flush_lsn()::text"))
		if err != nil {
			t.Fatal(err)
		}
		return lsn
	}
	x.note(3)
	x.whole = end()
	x.Exec("SELECT pg_switch_wal()")
	x.note(4)
	x.last = end()
	x.Stop(postgres.Immediate)
	return x
}

// directory copies the server's.
func (x *crashed) directory() string {
	x.t.Helper()
	dir := filepath.Join(swift(x.t), "data")
	if out, err := exec.Command("cp", "-a", "--reflink=auto", x.Dir, dir).CombinedOutput(); err != nil {
		x.t.Fatalf("%v: %s", err, out)
	}
	return dir
}

// restore restores in place to the end of the archive, in the order in which `pitr restore` does.
func (x *crashed) restore(ctx context.Context, b storage.Bucket, dir string, delta bool) (*recovery.Plan, *recovery.Report, error) {
	a, err := open(ctx, b)
	if err != nil {
		return nil, nil, err
	}
	defer a.Close()
	observe := func() (*recovery.World, error) {
		return recovery.Observe(ctx, a, recovery.Surroundings{BinDir: x.Bin.Dir})
	}
	w, err := observe()
	if err != nil {
		return nil, nil, err
	}
	_, _ = w.ArchiveLeftovers(ctx, dir) // the restore keeps what this can't archive
	if err := w.Close(); err != nil {
		return nil, nil, err
	}
	attempt := func() (_ *recovery.Plan, _ *recovery.Report, err error) {
		w, err := observe()
		if err != nil {
			return nil, nil, err
		}
		defer w.Close()
		p, err := recovery.MakePlan(w.View, recovery.Target{Action: recovery.Promote},
			recovery.Destination{Dir: dir, InPlace: true, Delta: delta, Program: "/bin/true", Config: "/nowhere"}) // the servers below are told another restore_command
		if err != nil {
			return nil, nil, err
		}
		report, err := w.Restore(ctx, p, recovery.Options{Workers: 2})
		return p, report, err
	}
	p, report, err := attempt()
	if errors.Is(err, recovery.ErrOutdated) {
		// What could not be archived before the plan was made was archived after it.
		return attempt()
	}
	return p, report, err
}

// saved tells whether the WAL that was only in the directory is somewhere else now: in the archive, or set aside.
func (x *crashed) saved(what string, b storage.Bucket, dir string) {
	x.t.Helper()
	a, err := open(x.t.Context(), b)
	if err != nil {
		x.t.Fatal(err)
	}
	defer a.Close()
	c, err := a.Coverage(x.t.Context())
	if err != nil {
		x.t.Fatal(err)
	}
	if len(c.Gaps()) > 0 {
		x.t.Fatalf("%s: the archive has gaps: %v", what, c.Gaps())
	}
	for _, end := range []wal.LSN{x.whole, x.last} {
		if c.End(wal.History{Timeline: 1}) >= end {
			continue
		}
		segment := wal.SegmentName(1, wal.SegmentOf(end-1, x.facts.SegmentSize), x.facts.SegmentSize)
		asides, err := filepath.Glob(dir + ".wal-aside-*/" + segment)
		if err != nil || len(asides) == 0 {
			x.t.Fatalf("%s: %s is neither archived nor set aside: %v", what, segment, err)
		}
		for _, path := range asides {
			got, err := os.ReadFile(path)
			want, err2 := os.ReadFile(filepath.Join(x.Dir, "pg_wal", segment))
			if err != nil || err2 != nil || string(got) != string(want) {
				x.t.Fatalf("%s: %s is not what it was (%v, %v)", what, path, err, err2)
			}
		}
	}
}

// A crashed server is restored in place while each operation of the store fails in turn: reading the backup, looking at the
// WAL, and archiving what the server had not. No server can start then unless the old one could, the WAL that was nowhere
// else is lost at no moment, and the same call again goes on.
func TestRestoreFaults(t *testing.T) {
	t.Parallel()
	x := newCrashed(t)
	ctx := t.Context()
	type sample struct {
		what, dir, want string
		b               storage.Bucket
	}
	var samples []sample
	tries := 0
	eachFault(t, func(what string, n int, mode storagetest.Mode, f *fault) {
		tries++
		b := clone(t, x.bucket)
		dir := x.directory()
		under := f.on(b)
		behind := mode == storagetest.Blip && n%2 == 0
		if behind {
			under = storage.Retry(under, quick)
		}
		delta := n%3 == 0
		p, _, err := x.restore(ctx, under, dir, delta)
		if f.Fired() {
			what = fmt.Sprintf("%s (%s %s)", what, f.op, f.key)
		}
		if behind && err != nil {
			t.Fatalf("%s, tried again by the store: %v", what, err)
		}
		if err != nil && !errors.Is(err, storagetest.ErrFault) {
			t.Fatalf("%s: %v", what, err)
		}
		if err != nil {
			journal, jerr := recovery.ReadJournal(dir)
			_, cerr := os.Stat(filepath.Join(dir, "global", "pg_control"))
			switch {
			case jerr != nil:
				t.Fatalf("%s: %v", what, jerr)
			case journal != nil && cerr == nil:
				t.Fatalf("%s: a restore began, and there is a pg_control", what)
			case journal == nil && cerr != nil:
				t.Fatalf("%s: no restore began, and there is no pg_control", what)
			case journal != nil:
				x.saved(what, b, dir)
			}
			if p, _, err = x.restore(ctx, b, dir, delta); err != nil {
				t.Fatalf("%s, again: %v", what, err)
			}
		}
		x.saved(what, b, dir)
		a := mustOpen(t, b)
		wholeWAL(t, what, a, false)
		// What could not be archived is not replayed.
		want := x.stored
		if p.Stop.End >= x.whole {
			want += " 3"
		}
		all := p.Stop.End >= x.last
		if all {
			want += " 4"
		}
		if !f.Fired() && !all {
			t.Fatalf("%s: the plan ends at %s, and WAL was written up to %s", what, p.Stop.End, x.last)
		}
		if !f.Fired() || tries%40 == 0 || !all && len(samples) < 3 {
			samples = append(samples, sample{what, dir, want, b})
		} else if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}, storagetest.Create, storagetest.CreateDone, storagetest.Get, storagetest.Read, storagetest.List)
	for _, s := range samples {
		l := fromMemory(t, s.b)
		r := pgtest.OpenDir(t, s.dir, pgtest.Options{Conf: map[string]string{
			"fsync": "off", "restore_command": fmt.Sprintf("%s --config %s wal fetch %%f %%p", l.pitr, l.config),
		}})
		r.AwaitPrimary()
		if got := notes(r); got != s.want {
			t.Errorf("%s: rows %q, want %q", s.what, got, s.want)
		}
		r.CheckPages()
	}
}
