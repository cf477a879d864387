package basebackup

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pitr/internal/postgres/pgtest"
	"pitr/storage/storagetest"
)

// TestBackupUnderLoad takes a backup while pgbench writes, tables are made, truncated and dropped, and restores it.
func TestBackupUnderLoad(t *testing.T) {
	var options []pgtest.Options
	for _, bin := range pgtest.Bins(t) {
		options = append(options, pgtest.Options{Bin: bin, Tablespaces: 2, WALDir: true})
	}
	options = append(options, pgtest.Options{SegSizeMB: 1, NoChecksums: true})
	for _, o := range options {
		t.Run(fmt.Sprintf("%d with segments of %d MB", o.Bin.Major, o.SegSizeMB), func(t *testing.T) {
			s := newSite(t, storagetest.Memory(), o)
			s.Run("pgbench", "-q", "-i", "-s", "5")
			s.Exec("CREATE UNLOGGED TABLE u AS SELECT generate_series(1, 1000) AS i", "CREATE TABLE ledger (n bigint PRIMARY KEY)")
			for i := range s.Tablespaces {
				s.Exec(fmt.Sprintf("CREATE TABLE spaced%d TABLESPACE ts%d AS SELECT generate_series(1, 50000) AS i", i+1, i+1))
			}
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			var load sync.WaitGroup
			load.Go(func() { s.TryRun(ctx, "pgbench", "-n", "-c", "2", "-T", "600") })
			load.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					for _, sql := range []string{
						"CREATE TABLE scratch AS SELECT generate_series(1, 20000) AS i, repeat('x', 100)", "TRUNCATE scratch", "DROP TABLE scratch",
						fmt.Sprintf("INSERT INTO ledger VALUES (%d)", i),
					} {
						s.Try(ctx, "postgres", sql)
					}
				}
			})
			h := s.take(s.options(), nil)
			cancel()
			load.Wait()
			s.intact(h)
			if h.BadPages != 0 || h.Status() != "ok" || h.Stored == 0 || h.Files < 500 || h.Packs == 0 || h.StopLSN <= h.StartLSN {
				t.Errorf("header: %+v", h)
			}
			if len(h.Tablespaces) != len(s.Tablespaces) || (h.WALDirLink != "") != o.WALDir || string(h.WALDirLink) != s.WALDir {
				t.Errorf("header: tablespaces %+v, pg_wal at %q", h.Tablespaces, h.WALDirLink)
			}
			for i, ts := range h.Tablespaces {
				if string(ts.Name) != fmt.Sprintf("ts%d", i+1) || string(ts.Path) != s.Tablespaces[i] {
					t.Errorf("tablespace %d: %+v", i, ts)
				}
			}
			s.archived()
			r := s.restore(h)
			for _, sql := range []string{
				"SELECT coalesce(sum(abalance), 0)::text || ' ' || count(*) FROM pgbench_accounts", "SELECT count(*)::text FROM pgbench_history",
				"SELECT count(*)::text || ' ' || coalesce(max(n), -1) FROM ledger",
			} {
				if got, want := pgtest.QueryOne[string](r, sql), pgtest.QueryOne[string](s.Server, sql); got != want {
					t.Errorf("%s: %s, want %s", sql, got, want)
				}
			}
			if n := pgtest.QueryOne[int64](r, "SELECT count(*) FROM u"); n != 0 {
				t.Errorf("the unlogged table has %d rows", n)
			}
			for i := range s.Tablespaces {
				if n := pgtest.QueryOne[int64](r, fmt.Sprintf("SELECT count(*) FROM spaced%d", i+1)); n != 50000 {
					t.Errorf("spaced%d has %d rows", i+1, n)
				}
			}
			r.Exec("CREATE EXTENSION amcheck")
			r.Run("pg_amcheck", "--all", "--heapallindexed")
			if !o.NoChecksums {
				r.Stop(0)
				pagesRight(t, r)
			}
			if left := s.keys("pending/"); len(left) > 0 {
				t.Errorf("signs of life are left: %v", left)
			}
		})
	}
}

// pagesRight checks the checksums of all pages of a stopped server, with PostgreSQL's own tool where its installation has
// that one.
func pagesRight(t *testing.T, r *pgtest.Server) {
	t.Helper()
	if r.Bin.Has("pg_checksums") {
		r.Run("pg_checksums", "--check", "-D", r.Dir)
		return
	}
	c := &copier{checksums: true, blockSize: 8192, segBlocks: 131072}
	files := 0
	w := walker{dir: r.Dir, log: slog.New(slog.DiscardHandler), visit: func(e *Entry, file string, _ fs.FileInfo) error {
		pages := c.pagesOf(e.Path)
		if pages.size == 0 {
			return nil
		}
		files++
		data, err := os.ReadFile(file)
		if bad := badPages(data, pages.size, pages.first); bad != nil {
			t.Errorf("%s: bad pages %v", e.Path, bad)
		}
		return err
	}}
	if err := w.walk(context.Background()); err != nil || files < 500 {
		t.Errorf("the pages of %d files were checked: %v", files, err)
	}
}

func (s *site) keys(prefix string) []string {
	s.t.Helper()
	var keys []string
	for o, err := range s.repo.List(context.Background(), prefix, "") {
		if err != nil {
			s.t.Fatal(err)
		}
		keys = append(keys, o.Key)
	}
	return keys
}

// paths returns the entries of a backup by path.
func (s *site) paths(h *Header) map[string]*Entry {
	s.t.Helper()
	_, entries, err := readAll(s.t, s.repo, h.ID)
	if err != nil {
		s.t.Fatal(err)
	}
	by := make(map[string]*Entry)
	for _, e := range entries {
		by[e.Path] = e
	}
	return by
}

// TestWhatIsTaken puts everything into a data directory that must or must not be in a backup.
func TestWhatIsTaken(t *testing.T) {
	s := newSite(t, storagetest.Memory(), pgtest.Options{Tablespaces: 1})
	s.Exec("CREATE UNLOGGED TABLE u AS SELECT generate_series(1, 100000) AS i", "CREATE TABLE k AS SELECT 1 AS i")
	s.Exec("VACUUM u", "CREATE UNLOGGED TABLE us TABLESPACE ts1 AS SELECT 1", "CREATE TABLE ks TABLESPACE ts1 AS SELECT 1", "CHECKPOINT")
	unlogged := pgtest.QueryOne[string](s.Server, "SELECT pg_relation_filepath('u')")
	unlogged2 := pgtest.QueryOne[string](s.Server, "SELECT pg_relation_filepath('us')")
	kept := pgtest.QueryOne[string](s.Server, "SELECT pg_relation_filepath('k')")
	kept2 := pgtest.QueryOne[string](s.Server, "SELECT pg_relation_filepath('ks')")
	db := filepath.Dir(kept)
	outside := pgtest.TempDir(t)
	var taken, left []string
	put := func(list *[]string, paths ...string) {
		for _, p := range paths {
			*list = append(*list, p)
			full := filepath.Join(s.Dir, p)
			if err := os.MkdirAll(filepath.Dir(full), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(full, []byte(p), 0o640); err != nil {
				t.Fatal(err)
			}
		}
	}
	put(&left, "backup_label.old", "backup_manifest", "tablespace_map.old", "postgresql.auto.conf.tmp", "current_logfiles",
		"pitr.restored", "lost+found/x", ".s.PGSQL.5432.lock", "pg_notify/0000", "pg_serial/0000", "pg_snapshots/1",
		"pg_stat_tmp/x", "pg_subtrans/0000", "pg_replslot/a/state", "pg_dynshmem/mmap.1", "base/pgsql_tmp/pgsql_tmp1.0", db+"/pg_internal.init",
		db+"/pg_internal.init.123", db+"/t3_99999", db+"/t3_99999_fsm", db+"/t3_99999.1", "pg_wal/000000010000000000000099", "pg_wal/archive_status/x.ready",
		filepath.Dir(unlogged2)+"/pgsql_tmp/x")
	put(&taken, "log/postgresql.log", "base.x", "base-x/y", "odd name\n'\"\xff", "sub/backup_label", "sub/postmaster.pid", db+"/t3_x", db+"/12x", "empty.conf")
	taken = append(taken, "PG_VERSION", "global/pg_filenode.map", controlPath, kept, kept2, unlogged+"_init", unlogged2+"_init", db+"/pg_filenode.map", "postgresql.conf",
		".", "base", "pg_wal", "pg_wal/archive_status", "pg_notify", "pg_replslot", "pg_tblspc", "pg_stat_tmp", "pg_subtrans", "pg_dynshmem", "pg_xact/0000")
	left = append(left, "postmaster.pid", "postmaster.opts", unlogged, unlogged+"_fsm", unlogged+"_vm", unlogged2, "lost+found")
	if err := os.WriteFile(filepath.Join(s.Dir, "empty.conf"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(s.Dir, "outside")); err != nil {
		t.Fatal(err)
	}
	// A configuration file that is a link out of the directory, with two that it includes.
	conf := filepath.Join(outside, "main.conf")
	data, err := os.ReadFile(filepath.Join(s.Dir, "pg_hba.conf"))
	if err != nil {
		t.Fatal(err)
	}
	more := filepath.Join(outside, "more.conf")
	subdir := filepath.Join(outside, "it's.d")
	text := fmt.Sprintf("# none\n include_if_exists = 'more.conf' # yes\ninclude_if_exists 'gone.conf'\ninclude_dir '%s'\n", strings.ReplaceAll(subdir, "'", "''"))
	confs := map[string]string{more: "work_mem = '5MB'\n", conf: text, filepath.Join(subdir, "a.conf"): "", filepath.Join(subdir, ".b.conf"): "x", filepath.Join(subdir, "c"): "x"}
	if err := os.Mkdir(subdir, 0o755); err != nil {
		t.Fatal(err)
	}
	for path, text := range confs {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	hba := filepath.Join(outside, "hba")
	users, more2 := filepath.Join(outside, "users"), filepath.Join(outside, "more users")
	data = append(data, fmt.Sprintf("\nlocal all nobody,@%s reject # @none\n", users)...)
	for path, text := range map[string]string{hba: string(data), users: "eve\n@\"more users\"\n", more2: "mallory\n"} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(s.Dir, "pg_hba.conf")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(hba, filepath.Join(s.Dir, "pg_hba.conf")); err != nil {
		t.Fatal(err)
	}
	main, err := os.OpenFile(filepath.Join(s.Dir, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(main, "\ninclude '%s'\n", conf)
	if err := main.Close(); err != nil {
		t.Fatal(err)
	}
	s.Reload()
	if got := pgtest.QueryOne[string](s.Server, "SHOW work_mem"); got != "5MB" {
		t.Fatalf("the server does not read the files: %s", got)
	}

	var log logged
	o := s.options()
	o.Log = log.logger()
	h := s.take(o, nil)
	s.intact(h)
	by := s.paths(h)
	for _, p := range taken {
		if by[p] == nil {
			t.Errorf("%q is not in the backup", p)
		}
	}
	for _, p := range left {
		if by[p] != nil {
			t.Errorf("%q is in the backup", p)
		}
	}
	oid := pgtest.QueryOne[string](s.Server, "SELECT oid::text FROM pg_tablespace WHERE spcname = 'ts1'")
	if l := by["pg_tblspc/"+oid]; l == nil || l.Type != Symlink || l.Target != s.Tablespaces[0] {
		t.Errorf("the link of the tablespace: %+v", l)
	}
	if l := by["outside"]; l == nil || l.Type != Symlink || l.Target != outside || !strings.Contains(log.String(), filepath.Join(s.Dir, "outside")) {
		t.Errorf("a link out of the directory: %+v; logged: %s", l, log.String())
	}
	external := map[string]string{}
	for p, e := range by {
		if e.Type == External {
			external[p] = e.Name
		}
	}
	want := map[string]string{conf: "include", more: "include", filepath.Join(subdir, "a.conf"): "include", hba: "hba_file", users: "include", more2: "include"}
	if !reflect.DeepEqual(external, want) {
		t.Errorf("configuration outside: %v, want %v", external, want)
	}
	if e := by[kept]; e.Flags&PagesChecked == 0 || e.Mode != 0o600 || e.Size != 8192 || e.ModTime == 0 {
		t.Errorf("a relation: %+v", e)
	}
	if e := by["log/postgresql.log"]; e.Flags != 0 || e.Mode != 0o640 {
		t.Errorf("a file: %+v", e)
	}
}

// TestLinkedData does what must not be passed over in silence.
func TestLinkedData(t *testing.T) {
	s := newSite(t, storagetest.Memory(), pgtest.Options{})
	elsewhere := filepath.Join(pgtest.TempDir(t), "moved")
	from := filepath.Join(s.Dir, "pg_xact")
	s.Stop(0)
	if err := os.Rename(from, elsewhere); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(elsewhere, from); err != nil {
		t.Fatal(err)
	}
	s.StartAgain()
	_, err := s.try(context.Background(), s.repo, s.options(), nil)
	if err == nil || !strings.Contains(err.Error(), from+" is a link to "+elsewhere) {
		t.Errorf("a link in place of pg_xact: %v", err)
	}
}

// TestChangingFiles makes files vanish, shrink, grow and become something else while they are being read.
func TestChangingFiles(t *testing.T) {
	s := newSite(t, storagetest.Memory(), pgtest.Options{})
	dir := filepath.Join(s.Dir, "changing")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	const mb = 1 << 20
	pattern := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(i>>8) + byte(i) | 1
		}
		return b
	}
	write := func(name string, n int) {
		if err := os.WriteFile(filepath.Join(dir, name), pattern(n), 0o600); err != nil {
			t.Error(err)
		}
	}
	sizes := map[string]int{
		"big-gone": 3 * mb, "big-grow": 3*mb + 5, "big-empty": 2 * mb, "big-same": 2*mb + 1, "big-shrink": 5 * mb, "big-zeros": 4 * mb, "big-exact": mb,
		"small-empty": 100, "small-gone": 100, "small-grow": 100, "small-grow-big": 100, "small-same": 100, "small-shrink": 60_000,
	}
	for name, n := range sizes {
		write(name, n)
	}
	zeros := pattern(4*mb + 7)
	clear(zeros[mb : 3*mb])
	if err := os.WriteFile(filepath.Join(dir, "big-zeros"), zeros, 0o600); err != nil {
		t.Fatal(err)
	}
	truncate := func(path string, n int64) func() {
		return func() {
			if err := os.Truncate(path, n); err != nil {
				t.Error(err)
			}
		}
	}
	h := s.take(s.options(), func(path string) func() {
		if filepath.Dir(path) != dir {
			return nil
		}
		switch name := filepath.Base(path); name {
		case "big-gone", "small-gone":
			os.Remove(path)
		case "big-grow", "small-grow":
			write(name, sizes[name]+1000)
		case "small-grow-big":
			write(name, 3*mb+11)
		case "small-empty":
			return truncate(path, 0)
		case "small-shrink":
			return truncate(path, 1001)
		case "big-shrink":
			return truncate(path, 2*mb+77)
		case "big-empty":
			return truncate(path, 0)
		case "big-same", "small-same":
			// What is written behind the end that was seen is not the backup's.
			return func() { write(name, sizes[name]+5000) }
		}
		return nil
	})
	s.intact(h)
	by := s.paths(h)
	for name, want := range map[string]int64{
		"big-grow": 3*mb + 1005, "big-same": 2*mb + 1, "big-shrink": 2*mb + 77, "big-empty": 0, "big-zeros": 4*mb + 7, "big-exact": mb,
		"small-empty": 0, "small-grow": 1100, "small-grow-big": 3*mb + 11, "small-same": 100, "small-shrink": 1001,
	} {
		e := by["changing/"+name]
		if e == nil {
			t.Errorf("%s is not in the backup", name)
			continue
		}
		if e.Size != want {
			t.Errorf("%s: %d bytes, want %d", name, e.Size, want)
		}
		out := filepath.Join(t.TempDir(), name)
		fr, err := NewFrameReader(s.repo)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.unpackFile(fr, h, e, out); err != nil {
			t.Fatal(err)
		}
		fr.Close()
		got, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		content := pattern(int(want))
		if name == "big-zeros" {
			content = zeros
		}
		if !slices.Equal(got, content) {
			t.Errorf("%s: the content is not right", name)
		}
	}
	for _, name := range []string{"big-gone", "small-gone"} {
		if by["changing/"+name] != nil {
			t.Errorf("%s is in the backup", name)
		}
	}
	if x := by["changing/big-zeros"].Extents; len(x) != 4 || !x[1].Zeros || x[1].Length != 2*mb {
		t.Errorf("zeros: %+v", x)
	}
}

// TestManySmallFiles takes 20,000 of them, and looks that they share frames.
func TestManySmallFiles(t *testing.T) {
	s := newSite(t, storagetest.Memory(), pgtest.Options{})
	dir := filepath.Join(s.Dir, "many")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range 20_000 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), fmt.Appendf(nil, "content of %d", i), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	h := s.take(s.options(), nil)
	t.Logf("%d files, %d frames, in %v", h.Files, h.Frames, time.Since(began))
	s.intact(h)
	if h.Files < 20_000 || h.Frames > 200 {
		t.Errorf("%d files in %d frames", h.Files, h.Frames)
	}
}
