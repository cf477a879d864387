package wal_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pitr/internal/wal"
)

// eachServer runs f for every server and for small and common segments.
func eachServer(t *testing.T, f func(t *testing.T, bin string, segMB int)) {
	for _, bin := range binDirs(t) {
		for _, segMB := range []int{1, 16} {
			t.Run(fmt.Sprintf("%s/%dMB", strings.Trim(strings.ReplaceAll(bin, "/", "_"), "_"), segMB), func(t *testing.T) { f(t, bin, segMB) })
		}
	}
}

// walRecord is what pg_waldump says of a record.
type walRecord struct {
	LSN, Prev string
	XID, Len  uint64
	Rmgr      string
	Desc      string
}

// rmgrNames are those of src/include/access/rmgrlist.h.
var rmgrNames = []string{"XLOG", "Transaction", "Storage", "CLOG", "Database", "Tablespace", "MultiXact", "RelMap", "Standby",
	"Heap2", "Heap", "Btree", "Hash", "Gin", "Gist", "Sequence", "SPGist", "BRIN", "CommitTs", "ReplicationOrigin", "Generic", "LogicalMessage"}

var dumpLine = regexp.MustCompile(`^(\w+) +len \(rec/tot\): +\d+/ *(\d+), tx: +(\d+), lsn: ([0-9A-F/]+), prev ([0-9A-F/]+)`)

// waldump reads pg_waldump's output.
func (s *server) waldump(tli wal.Timeline, start, end wal.LSN) []walRecord {
	s.t.Helper()
	out := s.run("pg_waldump", "-p", filepath.Join(s.data, "pg_wal"), "-t", strconv.Itoa(int(tli)), "-s", start.String(), "-e", end.String())
	var recs []walRecord
	for line := range strings.Lines(out) {
		line = strings.TrimRight(line, "\n")
		rest, ok := strings.CutPrefix(line, "rmgr: ")
		if !ok {
			continue // a hint of pg_waldump, or a further line of a description
		}
		head, desc, _ := strings.Cut(rest, ", desc: ")
		m := dumpLine.FindStringSubmatch(head)
		if m == nil {
			s.t.Fatalf("pg_waldump printed %q", line)
		}
		r := walRecord{Rmgr: m[1], LSN: normal(s.t, m[4]), Prev: normal(s.t, m[5]), Desc: desc}
		r.Len, _ = strconv.ParseUint(m[2], 10, 64)
		r.XID, _ = strconv.ParseUint(m[3], 10, 64)
		recs = append(recs, r)
	}
	return recs
}

// normal brings an LSN with leading zeros into the form that String prints.
func normal(t testing.TB, s string) string {
	t.Helper()
	l, err := wal.ParseLSN(s)
	if err != nil {
		t.Fatal(err)
	}
	return l.String()
}

// pgSegment is a segment of a test server, and its index.
type pgSegment struct {
	name string
	data []byte
	ix   *wal.Index
}

// indexed reads and checks all complete segments of pg_wal, on one timeline.
func (s *server) indexed(tli wal.Timeline, hist wal.History) []pgSegment {
	s.t.Helper()
	control := s.control()
	current := wal.SegmentOf(control.Checkpoint, int64(control.WALSegSize))
	var out []pgSegment
	for _, name := range s.segments() {
		segTLI, no, err := wal.ParseSegmentName(name, int64(control.WALSegSize))
		if err != nil {
			s.t.Fatal(err)
		}
		if segTLI != tli || no > current {
			continue
		}
		data := s.read("pg_wal/" + name)
		_, err = wal.CheckSegment(data, wal.Expect{Name: name, SystemID: control.SystemID, SegSize: int64(control.WALSegSize), History: hist, Partial: no == current})
		if err != nil {
			s.t.Errorf("CheckSegment: %v", err)
		}
		ix, err := wal.BuildIndex(data, segTLI)
		if err != nil {
			s.t.Fatalf("BuildIndex %s: %v", name, err)
		}
		if no != current && !ix.Complete {
			s.t.Errorf("segment %s: not complete: %+v", name, ix.Stop)
		}
		back, err := wal.DecodeIndex(ix.Encode())
		if err != nil {
			s.t.Fatalf("DecodeIndex %s: %v", name, err)
		}
		if a, b := asJSON(s.t, ix), asJSON(s.t, back); a != b {
			s.t.Errorf("segment %s: the index changes in storage:\n%s\n%s", name, a, b)
		}
		out = append(out, pgSegment{name, data, back})
	}
	if len(out) == 0 {
		s.t.Fatal("no segments")
	}
	return out
}

func asJSON(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func (s *server) control() wal.Control {
	s.t.Helper()
	c, err := wal.ParseControl(s.read("global/pg_control"))
	if err != nil {
		s.t.Fatal(err)
	}
	if c.Major != s.major {
		s.t.Fatalf("pg_control says major version %d of PostgreSQL %d", c.Major, s.major)
	}
	return c
}

// all joins the facts of all segments, straddling records included.
func all(t testing.TB, segs []pgSegment) (wal.Facts, []wal.RelBlocks) {
	t.Helper()
	var (
		j      wal.Joiner
		facts  wal.Facts
		blocks []wal.RelBlocks
	)
	tooLong := 0
	for i, s := range segs {
		straddle, err := j.Add(s.ix)
		// mixedLoad writes one record that is longer than an index keeps. It tells
		// nothing of interest.
		if errors.Is(err, wal.ErrNotJoined) && tooLong == 0 && (s.ix.Head.Omitted || segs[i-1].ix.Tail.Omitted || segs[i-1].ix.Head.Omitted) {
			tooLong++
		} else if err != nil {
			t.Errorf("join: %v", err)
		}
		for _, f := range []wal.Facts{straddle.Facts, s.ix.Facts} {
			facts.Transactions = append(facts.Transactions, f.Transactions...)
			facts.Prepared = append(facts.Prepared, f.Prepared...)
			facts.RestorePoints = append(facts.RestorePoints, f.RestorePoints...)
			facts.Checkpoints = append(facts.Checkpoints, f.Checkpoints...)
			facts.EndsOfRecovery = append(facts.EndsOfRecovery, f.EndsOfRecovery...)
			facts.Parameters = append(facts.Parameters, f.Parameters...)
			facts.Creates = append(facts.Creates, f.Creates...)
			facts.Truncates = append(facts.Truncates, f.Truncates...)
			facts.TableTruncates = append(facts.TableTruncates, f.TableTruncates...)
			facts.DBChanges = append(facts.DBChanges, f.DBChanges...)
			facts.Tablespaces = append(facts.Tablespaces, f.Tablespaces...)
		}
		blocks = wal.MergeBlocks(wal.MergeBlocks(blocks, straddle.Blocks), s.ix.Blocks)
	}
	return facts, blocks
}

// readAll reads every record of the segments.
func readAll(t testing.TB, segs []pgSegment, each func(*wal.Record)) wal.Stop {
	t.Helper()
	var r wal.Reader
	for _, s := range segs {
		if err := r.Feed(s.data); err != nil {
			t.Fatal(err)
		}
		for r.Next() {
			each(r.Record())
		}
	}
	return r.Stop()
}

// blkref is how pg_waldump prints a block reference.
var blkref = regexp.MustCompile(`blkref #\d+: rel \d+/\d+/\d+(?: fork \w+)? blk \d+(?: FPW)?`)

// blockRefs prints a record's block references as pg_waldump does.
func blockRefs(r *wal.Record) string {
	var out []string
	for _, b := range r.Blocks {
		s := fmt.Sprintf("blkref #%d: rel %s", b.ID, b.Rel)
		if b.Fork != wal.ForkMain {
			s += " fork " + []string{"", "fsm", "vm", "init"}[b.Fork]
		}
		s += fmt.Sprintf(" blk %d", b.Block)
		if b.HasImage {
			s += " FPW"
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

func TestAgainstWaldump(t *testing.T) {
	compared := false
	eachServer(t, func(t *testing.T, bin string, segMB int) {
		s := newServer(t, bin, segMB, "")
		if !s.has("pg_waldump") {
			t.Logf("%s has no pg_waldump: its WAL is compared in the other tests only", bin)
			return
		}
		compared = true
		s.start()
		s.mixedLoad()
		s.stop("fast")
		segs := s.indexed(1, wal.History{})
		var got []walRecord
		var end wal.LSN
		kinds := map[string]string{}
		refs := map[string]string{}
		stop := readAll(t, segs, func(r *wal.Record) {
			refs[r.LSN.String()] = blockRefs(r)
			got = append(got, walRecord{LSN: r.LSN.String(), Prev: r.Prev.String(), XID: uint64(r.XID), Len: uint64(r.Total), Rmgr: rmgrNames[r.Rmgr]})
			end = r.End
			if txn, ok, err := r.Txn(); err != nil {
				t.Fatal(err)
			} else if ok {
				kinds[r.LSN.String()] = txn.Kind.String() + " " + txn.Time.Time().Format("2006-01-02 15:04:05.000000 UTC")
				if txn.Kind >= wal.CommitPrepared {
					kinds[r.LSN.String()] = fmt.Sprintf("%s %d: %s", txn.Kind, txn.XID, txn.Time.Time().Format("2006-01-02 15:04:05.000000 UTC"))
				}
			}
		})
		if stop.Kind != wal.StopZero && stop.Kind != wal.StopRecycled || stop.LSN != end {
			t.Errorf("reading stopped: %+v, last record ends at %s", stop, end)
		}
		first, _ := wal.ParseLSN(got[0].LSN)
		want := s.waldump(1, first, end)
		if len(want) < 2000 {
			t.Fatalf("pg_waldump printed only %d records", len(want))
		}
		for i := range max(len(got), len(want)) {
			if i >= len(got) || i >= len(want) {
				t.Fatalf("%d records, pg_waldump has %d", len(got), len(want))
			}
			w := want[i]
			w.Desc = ""
			if got[i] != w {
				t.Fatalf("record %d:\n%+v, pg_waldump has\n%+v", i, got[i], want[i])
			}
			if said := strings.Join(blkref.FindAllString(want[i].Desc, -1), " "); said != refs[got[i].LSN] {
				t.Errorf("record at %s: blocks %q, pg_waldump says %q", got[i].LSN, refs[got[i].LSN], said)
			}
			if k := kinds[got[i].LSN]; !strings.HasPrefix(want[i].Desc, k) {
				t.Errorf("record at %s: %q, pg_waldump says %q", got[i].LSN, k, want[i].Desc)
			}
		}
	})
	if !compared {
		if os.Getenv("PITR_TEST_PG_BINDIRS") == "" {
			t.Fatal("the distribution's server comes without pg_waldump")
		}
		t.Skip("no server in PITR_TEST_PG_BINDIRS has pg_waldump")
	}
}

func TestFacts(t *testing.T) {
	eachServer(t, func(t *testing.T, bin string, segMB int) {
		s := newServer(t, bin, segMB, "")
		s.start()
		s.sql(`create table known (i int)`)
		s.mixedLoad()
		// What the server itself says of transactions, by its own commit times.
		type commit struct {
			xid  uint32
			time string
		}
		var commits []commit
		for line := range strings.Lines(s.sql(`select x, to_char(pg_xact_commit_timestamp(x::text::xid) at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')
			from generate_series(pg_snapshot_xmax(pg_current_snapshot())::text::int - 250, pg_snapshot_xmax(pg_current_snapshot())::text::int - 1) x
			where pg_xact_commit_timestamp(x::text::xid) is not null`)) {
			xid, at, _ := strings.Cut(strings.TrimSpace(line), "|")
			n, err := strconv.ParseUint(xid, 10, 32)
			if err != nil {
				t.Fatal(err)
			}
			commits = append(commits, commit{uint32(n), at})
		}
		knownFile := s.sql(`select pg_relation_filenode('known')`)
		beforeDrop := s.sql(`select pg_current_wal_insert_lsn()`)
		s.sql(`drop table known`)
		point := s.sql(`select pg_create_restore_point('last one')`)
		s.stop("fast")
		s.configure("max_connections=77")
		s.start()
		s.stop("fast")

		segs := s.indexed(1, wal.History{})
		facts, _ := all(t, segs)

		times := map[uint32]string{}
		for _, txn := range facts.Transactions {
			if !txn.Kind.Committed() {
				continue
			}
			at := txn.Time.Time().Format("2006-01-02 15:04:05.000000")
			times[txn.XID] = at
			if txn.Detail != nil {
				for _, x := range txn.Detail.Subxids {
					times[x] = at
				}
			}
		}
		if len(commits) < 100 {
			t.Fatalf("the server told of %d commits only", len(commits))
		}
		for _, c := range commits {
			if times[c.xid] != c.time {
				t.Errorf("transaction %d: commit time %q, the server says %q", c.xid, times[c.xid], c.time)
			}
		}

		var names []string
		for _, p := range facts.RestorePoints {
			names = append(names, p.Name)
		}
		if !slices.Equal(names, []string{"first point", "second", "last one"}) {
			t.Errorf("restore points: %q", names)
		}
		if last := facts.RestorePoints[len(facts.RestorePoints)-1]; last.End.String() != point || time.Since(last.Time.Time()).Abs() > time.Hour {
			t.Errorf("last restore point: %+v, the server says that it ends at %s", last, point)
		}

		var gids []string
		prepared := map[uint32]string{}
		for _, p := range facts.Prepared {
			gids = append(gids, p.GID)
			prepared[p.XID] = p.GID
			if p.GID == "two phase é one" && len(p.Subxids) != 1 {
				t.Errorf("prepared transaction %q has subtransactions %v", p.GID, p.Subxids)
			}
		}
		if !slices.Equal(gids, []string{"two phase é one", "two", "stays"}) {
			t.Errorf("prepared transactions: %q", gids)
		}
		finished := map[string]wal.TxnKind{}
		drops := 0
		for _, txn := range facts.Transactions {
			if gid, ok := prepared[txn.XID]; ok {
				finished[gid] = txn.Kind
				if txn.Detail == nil || txn.Detail.GID != gid {
					t.Errorf("%s of %q has detail %+v", txn.Kind, gid, txn.Detail)
				}
			}
			if txn.Detail == nil {
				continue
			}
			for _, rel := range txn.Detail.Dropped {
				if fmt.Sprint(rel.Rel) == knownFile {
					drops++
					if after, _ := wal.ParseLSN(beforeDrop); txn.Start < after || !txn.Kind.Committed() {
						t.Errorf("file %s dropped by %+v", knownFile, txn)
					}
				}
			}
		}
		if len(finished) != 2 || finished["two"] != wal.AbortPrepared || finished["two phase é one"] != wal.CommitPrepared {
			t.Errorf("ends of prepared transactions: %v", finished)
		}
		if drops != 1 {
			t.Errorf("file %s was dropped %d times", knownFile, drops)
		}

		if n := len(facts.Parameters); n == 0 || facts.Parameters[n-1].MaxConnections != 77 || facts.Parameters[n-1].Level != wal.LevelLogical || !facts.Parameters[n-1].TrackCommitTimestamp {
			t.Errorf("parameter changes: %+v", facts.Parameters)
		}
		var dbs []wal.DBKind
		for _, d := range facts.DBChanges {
			dbs = append(dbs, d.Kind)
		}
		wantDBs := []wal.DBKind{wal.DBLogged, wal.DBCopied, wal.DBDropped}
		if s.major < 15 {
			wantDBs = []wal.DBKind{wal.DBCopied, wal.DBCopied, wal.DBDropped}
		}
		if len(dbs) < 3 || !slices.Equal(dbs[len(dbs)-3:], wantDBs) {
			t.Errorf("databases: %v, want at last %v", dbs, wantDBs)
		}
		if n := len(facts.Truncates); n == 0 || facts.Truncates[n-1].Blocks == 0 || facts.Truncates[n-1].Flags&wal.TruncateMain == 0 || len(facts.Creates) == 0 {
			t.Errorf("%d truncations, %d creations", len(facts.Truncates), len(facts.Creates))
		}
		if n := len(facts.TableTruncates); n != 1 || len(facts.TableTruncates[0].OIDs) != 1 {
			t.Errorf("TRUNCATE: %+v", facts.TableTruncates)
		}
		control := s.control()
		last := facts.Checkpoints[len(facts.Checkpoints)-1]
		if last.Start != control.Checkpoint || !last.Shutdown || asJSON(t, last.Checkpoint) != asJSON(t, control.CheckpointCopy) {
			t.Errorf("last checkpoint %s, pg_control has %s at %s", asJSON(t, last), asJSON(t, control.CheckpointCopy), control.Checkpoint)
		}
		if s.major >= 17 && last.WALLevel != wal.LevelLogical {
			t.Errorf("checkpoint's wal_level: %s", last.WALLevel)
		}
	})
}
