package wal_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pitr/internal/wal"
)

const globalSpc = 1664 // the tablespace of global/

var mainFork = regexp.MustCompile(`^(\d+)(?:\.(\d+))?$`)

// files reads the main forks of all relations in base and global.
func (s *server) files() map[wal.RelFile][]byte {
	s.t.Helper()
	out := map[wal.RelFile][]byte{}
	read := func(dir string, spc, db uint32) {
		entries, err := os.ReadDir(filepath.Join(s.data, dir))
		if err != nil {
			s.t.Fatal(err)
		}
		for _, e := range entries {
			m := mainFork.FindStringSubmatch(e.Name())
			if m == nil {
				continue
			}
			if m[2] != "" {
				s.t.Fatalf("%s/%s: the test's relations were to fit one file", dir, e.Name())
			}
			rel, _ := strconv.ParseUint(m[1], 10, 32)
			out[wal.RelFile{Spc: spc, DB: db, Rel: uint32(rel)}] = s.read(dir + "/" + e.Name())
		}
	}
	read("global", globalSpc, 0)
	dbs, err := os.ReadDir(filepath.Join(s.data, "base"))
	if err != nil {
		s.t.Fatal(err)
	}
	for _, d := range dbs {
		if db, err := strconv.ParseUint(d.Name(), 10, 32); err == nil {
			read("base/"+d.Name(), 1663, uint32(db))
		}
	}
	return out
}

// changedBy reports whether the blocks of an index say that a page changed.
func changedBy(blocks []wal.RelBlocks, rel wal.RelFile, page uint32) bool {
	for _, b := range blocks {
		whole := b.Rel == wal.RelFile{Spc: rel.Spc, DB: rel.DB} && b.Limit == 0
		if whole || b.Rel == rel && b.Fork == wal.ForkMain && (page >= b.Limit || slices.Contains(b.Blocks, page)) {
			return true
		}
	}
	return false
}

// TestChangedBlocks compares the files of a stopped server before and after much
// work: each page that changed must be told of by the indexes of what was logged
// between. Where the server summarizes WAL itself, both must tell the same.
func TestChangedBlocks(t *testing.T) {
	eachServer(t, func(t *testing.T, bin string, segMB int) {
		s := newServer(t, bin, segMB, "")
		if s.major >= 17 {
			s.configure("summarize_wal=on")
		}
		s.start()
		s.sql(`create table acc0 as select g as id, repeat('y', 200) as v from generate_series(1, 30000) g`, `create index on acc0 (id)`,
			`create table doomed0 as select g from generate_series(1, 9000) g`, `vacuum acc0`)
		s.stop("fast")
		before := s.files()
		from := s.control().Checkpoint
		s.start()
		s.sql(`update acc0 set v = repeat('z', 200) where id % 2000 = 0`, `delete from acc0 where id > 29000`, `vacuum acc0`, `truncate doomed0`)
		s.mixedLoad()
		s.stop("fast")
		after := s.files()

		late := s.indexedFrom(from)
		_, blocks := all(t, late)
		changed, unchanged, missed := 0, 0, 0
		for rel, now := range after {
			old := before[rel]
			unlogged := s.unlogged(rel)
			for page := 0; page*pageSize < len(now); page++ {
				a := now[page*pageSize : (page+1)*pageSize]
				if (page+1)*pageSize <= len(old) && string(a) == string(old[page*pageSize:(page+1)*pageSize]) {
					unchanged++
					continue
				}
				changed++
				fresh := (page+1)*pageSize > len(old) // its length tells: an extension by zeros is not logged
				if !changedBy(blocks, rel, uint32(page)) && !unlogged && !(fresh && allZeros(a)) && !onlyHints(a, old, page) {
					missed++
					t.Errorf("page %d of %s changed, and the WAL index does not say so", page, rel)
				}
			}
		}
		if changed < 1000 || unchanged < 300 || missed > 0 {
			t.Errorf("%d pages changed, %d did not, %d were missed", changed, unchanged, missed)
		}
		if s.major >= 17 {
			s.compareSummaries(from, late[len(late)-1].ix.ValidEnd)
		}
	})
}

// indexedFrom indexes the segments that end behind from.
func (s *server) indexedFrom(from wal.LSN) []pgSegment {
	s.t.Helper()
	segs := s.indexed(1, wal.History{})
	return segs[slices.IndexFunc(segs, func(seg pgSegment) bool { return seg.ix.Start+wal.LSN(seg.ix.SegSize) > from }):]
}

// unlogged tells an unlogged relation by its init fork.
func (s *server) unlogged(rel wal.RelFile) bool {
	dir := fmt.Sprintf("base/%d", rel.DB)
	if rel.Spc == globalSpc {
		dir = "global"
	}
	_, err := os.Stat(filepath.Join(s.data, dir, fmt.Sprintf("%d_init", rel.Rel)))
	return err == nil
}

func allZeros(b []byte) bool { return strings.Trim(string(b), "\x00") == "" }

// onlyHints reports whether a page's LSN is what it was: then only hints were set
// in it, which without checksums are not logged, and which a backup may lack.
func onlyHints(now, file []byte, page int) bool {
	if (page+1)*pageSize > len(file) {
		return false
	}
	return string(now[:8]) == string(file[page*pageSize:page*pageSize+8])
}

// compareSummaries checks that the indexes tell of every page and limit that the
// server's own summarizer found in the WAL from one checkpoint to the end.
func (s *server) compareSummaries(from, end wal.LSN) {
	s.t.Helper()
	s.start()
	s.sql("checkpoint")
	var done wal.LSN
	for range 100 {
		if out := s.sql(`select max(end_lsn) from pg_available_wal_summaries()`); out != "" {
			done, _ = wal.ParseLSN(out)
		}
		if done >= end {
			break
		}
		s.sql("select pg_sleep(0.1)")
	}
	if done < end {
		s.t.Fatalf("the server summarized WAL to %s only, not %s", done, end)
	}
	type key struct {
		rel   wal.RelFile
		page  uint32
		limit bool
	}
	theirs := map[key]bool{}
	for line := range strings.Lines(s.sql(`select reltablespace, reldatabase, relfilenode, relblocknumber, is_limit_block
		from pg_available_wal_summaries() a, pg_wal_summary_contents(a.tli, a.start_lsn, a.end_lsn) c
		where a.start_lsn >= '` + from.String() + `' and relforknumber = 0`)) {
		f := strings.Split(strings.TrimSpace(line), "|")
		var n [4]uint32
		for i := range n {
			v, err := strconv.ParseUint(f[i], 10, 32)
			if err != nil {
				s.t.Fatal(err)
			}
			n[i] = uint32(v)
		}
		theirs[key{wal.RelFile{Spc: n[0], DB: n[1], Rel: n[2]}, n[3], f[4] == "t"}] = true
	}
	s.stop("fast")
	_, ours := all(s.t, s.indexedFrom(from))
	missing := 0
	for k := range theirs {
		if k.limit {
			i := slices.IndexFunc(ours, func(b wal.RelBlocks) bool { return b.Rel == k.rel && b.Fork == wal.ForkMain })
			if i < 0 || ours[i].Limit > k.page {
				missing++
				s.t.Errorf("the server's summary has limit %d of %s", k.page, k.rel)
			}
		} else if !changedBy(ours, k.rel, k.page) {
			missing++
			s.t.Errorf("the server's summary has page %d of %s", k.page, k.rel)
		}
	}
	if len(theirs) < 1000 || missing > 0 {
		s.t.Errorf("%d pages and limits in the server's summaries, %d are missing", len(theirs), missing)
	}
}
