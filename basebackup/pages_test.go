package basebackup

import (
	"context"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pitr/internal/postgres"
	"pitr/internal/postgres/pgtest"
	"pitr/storage/storagetest"
)

// flip turns a bit over in a page of a relation's file.
func flip(t *testing.T, path string, block, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], block*8192+at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x10
	if _, err := f.WriteAt(b[:], block*8192+at); err != nil {
		t.Fatal(err)
	}
}

// TestRealPages holds the checksum against the pages that a server has written, and damage against pg_checksums.
func TestRealPages(t *testing.T) {
	bins := pgtest.Bins(t)
	i := slices.IndexFunc(bins, func(b pgtest.Bin) bool { return b.Has("pg_checksums") })
	if i < 0 {
		t.Skipf("none of %v has pg_checksums", bins)
	}
	s := newSite(t, storagetest.Memory(), pgtest.Options{Bin: bins[i]})
	s.Exec("CREATE TABLE small AS SELECT generate_series(1, 2000) AS i", "CREATE TABLE big AS SELECT generate_series(1, 200000) AS i, 'some text' AS t",
		"CREATE INDEX ON big (i)", "VACUUM ANALYZE", "CHECKPOINT")
	small := pgtest.QueryOne[string](s.Server, "SELECT pg_relation_filepath('small')")
	big := pgtest.QueryOne[string](s.Server, "SELECT pg_relation_filepath('big')")
	s.Stop(postgres.Fast)
	flip(t, filepath.Join(s.Dir, small), 3, 8000)
	flip(t, filepath.Join(s.Dir, big), 0, 8) // the checksum itself
	flip(t, filepath.Join(s.Dir, big), 500, 100)
	flip(t, filepath.Join(s.Dir, big+"_vm"), 0, 30)
	_, err := s.TryRun(context.Background(), "pg_checksums", "--check", "-D", s.Dir)
	if err == nil || strings.Count(err.Error(), "checksum verification failed") != 4 {
		t.Fatalf("pg_checksums: %v", err)
	}
	s.StartAgain()
	var log logged
	o := s.options()
	o.Log = log.logger()
	h := s.take(o, nil)
	s.intact(h) // what is in the backup is what was on the disk
	by := s.paths(h)
	if h.BadPages != 4 || h.Status() != "bad-pages" {
		t.Errorf("%d bad pages, status %s", h.BadPages, h.Status())
	}
	for path, want := range map[string][]uint32{small: {3}, big: {0, 500}, big + "_vm": {0}} {
		if got := by[path].BadPages; !reflect.DeepEqual(got, want) {
			t.Errorf("%s: bad pages %v, want %v", path, got, want)
		}
		if !strings.Contains(log.String(), path) {
			t.Errorf("%s is not logged: %s", path, log.String())
		}
	}
	checked := 0
	for _, e := range by {
		if e.Flags&PagesChecked != 0 {
			checked++
		}
	}
	if checked < 500 {
		t.Errorf("the pages of %d files were checked", checked)
	}
}

// torn is a file whose page is read in the middle of its being written, a number of times.
type torn struct {
	page  []byte
	times int
	next  func(page []byte) // what is seen before that
}

func (f *torn) ReadAt(b []byte, _ int64) (int, error) {
	copy(b, f.page)
	if f.times > 0 {
		f.times--
		f.next(b)
	}
	return len(b), nil
}

func TestPagesBeingWritten(t *testing.T) {
	good := make([]byte, 8192)
	good[pageUpperAt], good[500] = 1, 9
	binary.LittleEndian.PutUint16(good[pageChecksumAt:], pageSum(good, 7))
	other := func(page []byte) { page[4000]++ }
	always := byte(0)
	changing := func(page []byte) {
		always++
		page[4000] = always
	}
	for name, c := range map[string]struct {
		file *torn
		bad  []uint32
	}{
		"good at the second look":      {&torn{page: good, times: 0}, nil},
		"good at the third":            {&torn{page: good, times: 1, next: other}, nil},
		"written all the time":         {&torn{page: good, times: 100, next: changing}, nil},
		"damaged":                      {&torn{page: good, times: 100, next: other}, []uint32{7}},
		"cut off since it was read":    {nil, nil},
		"the disk fails at the second": {nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			buf := append([]byte(nil), good...)
			other(buf)
			pages := pageFile{size: 8192, first: 7}
			if c.file == nil {
				f := readerAtFunc(func([]byte, int64) (int, error) { return 100, io.EOF })
				failing := name != "cut off since it was read"
				if failing {
					f = func([]byte, int64) (int, error) { return 0, os.ErrPermission }
				}
				if bad, err := pages.checkPages(context.Background(), f, buf, 0); bad != nil || (err != nil) != failing {
					t.Errorf("bad pages %v, %v", bad, err)
				}
				return
			}
			bad, err := pages.checkPages(context.Background(), c.file, buf, 0)
			if err != nil || !reflect.DeepEqual(bad, c.bad) {
				t.Errorf("bad pages %v, %v, want %v", bad, err, c.bad)
			}
			if c.bad == nil && c.file.times < 50 && !reflect.DeepEqual(buf, good) {
				t.Error("what is copied is not the good page")
			}
		})
	}
}

type readerAtFunc func(b []byte, off int64) (int, error)

func (f readerAtFunc) ReadAt(b []byte, off int64) (int, error) { return f(b, off) }

func TestPagesOf(t *testing.T) {
	c := &copier{checksums: true, blockSize: 8192, segBlocks: 131072}
	for path, want := range map[string]pageFile{
		"global/1262":       {8192, 0},
		"global/1262_fsm":   {8192, 0},
		"base/5/16384.3":    {8192, 3 * 131072},
		"base/5/16384_vm.1": {8192, 131072},
		"base/5/16384_init": {8192, 0},
		"pg_tblspc/16400/PG_15_202209061/5/2601.2": {8192, 2 * 131072},
		"global/pg_control":                        {},
		"global/pg_filenode.map":                   {},
		"base/5/PG_VERSION":                        {},
		"base/5/t3_16384":                          {},
		"base/5/16384_foo":                         {},
		"base/5/16384.0":                           {},
		"base/5/16384.01":                          {},
		"base/5/16384.":                            {},
		"base/16384":                               {},
		"base/5x/16384":                            {},
		"pg_xact/0000":                             {},
		"pg_tblspc/16400/x/5/2601":                 {},
		"12345":                                    {},
	} {
		if got := c.pagesOf(path); got != want {
			t.Errorf("%s: %+v, want %+v", path, got, want)
		}
	}
	c.checksums = false
	if got := c.pagesOf("global/1262"); got != (pageFile{}) {
		t.Errorf("without checksums: %+v", got)
	}
}
