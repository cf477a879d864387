package wal_test

import (
	"path/filepath"
	"testing"

	"pitr/internal/wal"
)

// BenchmarkBuildIndex indexes a full 16 MB segment that pgbench wrote: one soon
// after a checkpoint, mostly page images, and a later one, mostly small records.
// The target is 25 ms each on one core.
func BenchmarkBuildIndex(b *testing.B) {
	var bin string
	for _, d := range binDirs(b) {
		if matches, _ := filepath.Glob(filepath.Join(d, "pgbench")); len(matches) > 0 {
			bin = d
		}
	}
	if bin == "" {
		b.Fatal("no server with pgbench")
	}
	s := newServer(b, bin, 16, "synchronous_commit=off\ncheckpoint_timeout='1h'")
	s.start()
	s.run("pgbench", "-i", "-q", "-s", "20", "-h", s.dir, "-U", "test", "postgres")
	s.sql("checkpoint", "select pg_switch_wal()")
	first := len(s.segments()) - 1
	var full [][]byte
	for len(full) < 12 {
		s.run("pgbench", "-n", "-c", "4", "-t", "20000", "-h", s.dir, "-U", "test", "postgres")
		full = full[:0]
		current, err := wal.ParseLSN(s.sql("select pg_current_wal_insert_lsn()"))
		if err != nil {
			b.Fatal(err)
		}
		for _, name := range s.segments()[first:] {
			if _, no, _ := wal.ParseSegmentName(name, 16<<20); no < wal.SegmentOf(current, 16<<20) {
				full = append(full, s.read("pg_wal/"+name))
			}
		}
	}
	s.stop("fast")
	for _, c := range []struct {
		name string
		seg  []byte
	}{{"images", full[1]}, {"small", full[len(full)-1]}} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(int64(len(c.seg)))
			b.ReportAllocs()
			var ix *wal.Index
			for b.Loop() {
				var err error
				if ix, err = wal.BuildIndex(c.seg, 1); err != nil || !ix.Complete {
					b.Fatal(err, ix.Stop)
				}
			}
			b.ReportMetric(float64(len(ix.Transactions)), "transactions")
			b.ReportMetric(float64(len(ix.Encode())), "index-bytes")
		})
		b.Run(c.name+"/encode", func(b *testing.B) {
			ix, err := wal.BuildIndex(c.seg, 1)
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				ix.Encode()
			}
		})
		b.Run(c.name+"/decode", func(b *testing.B) {
			ix, err := wal.BuildIndex(c.seg, 1)
			if err != nil {
				b.Fatal(err)
			}
			data := ix.Encode()
			for b.Loop() {
				if _, err := wal.DecodeIndex(data); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
