package main

import (
	"strings"
	"testing"
	"time"

	"pitr/archive"
	"pitr/basebackup"
	"pitr/recovery"
)

func examplePlan() *recovery.Plan {
	noon := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	commit := &recovery.Moment{LSN: 0x3000060, Time: noon.Add(5 * time.Second), XID: 742, Kind: "COMMIT"}
	return &recovery.Plan{
		Asked: "time 2026-11-22T12:00:06Z",
		Backup: &basebackup.Header{ID: "20261122T114500Z-3fa9c1d2", Type: basebackup.TypeFull, Finished: noon.Add(-time.Minute), Files: 964, WALSegSize: 16 << 20,
			ServerVersion: 150004},
		Timeline: 1, What: "before the COMMIT of transaction 743 at 0/30000C0 (2026-11-22T12:00:07Z)",
		Last: commit, LastCommit: commit, Replayed: 17,
		Path: []archive.Step{{Timeline: 1, First: 2, Last: 3}}, Segments: 2,
		Destination: recovery.Destination{Dir: "/copies/it's 100%", SocketDir: "/copies/it's 100%", Port: 5433},
		Layout:      recovery.Layout{Dir: "/copies/it's 100%", Tablespaces: []recovery.Location{{OID: 16384, Name: "fast\n", Path: "/ssd"}}},
		Fetch:       3_200_000, Write: 26_800_000,
		Why:       []string{"backup 20261122T114500Z-3fa9c1d2: the newest on the history that is complete before the stop"},
		Obstacles: []recovery.Obstacle{{What: "/ssd is not empty", Hint: "choose another", Fatal: true}, {What: "transaction 740 is prepared"}},
	}
}

func TestPlanText(t *testing.T) {
	const want = `target       time 2026-11-22T12:00:06Z
stop         before the COMMIT of transaction 743 at 0/30000C0 (2026-11-22T12:00:07Z)
last commit  2026-11-22T12:00:05Z (COMMIT of transaction 742 at 0/3000060)
timeline     1
backup       20261122T114500Z-3fa9c1d2, full, finished 2026-11-22T11:59:00Z
fetch        3.2 MB, to write 26.8 MB in 964 files
WAL          2 segments (33.6 MB), 000000010000000000000002 to 000000010000000000000003; 17 transactions
directory    /copies/it's 100% (new)
tablespace   "fast\n" (16384): /ssd
because      backup 20261122T114500Z-3fa9c1d2: the newest on the history that is complete before the stop
obstacle     /ssd is not empty
             HINT: choose another
note         transaction 740 is prepared
`
	if got := planText(examplePlan()); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	p := examplePlan()
	p.Layout.Restored = true
	again := strings.Replace(strings.Replace(want, "fetch        3.2 MB, to write 26.8 MB in 964 files\n", "", 1), "(new)", "(restored already)", 1)
	if got := planText(p); got != again {
		t.Errorf("%s\nwant\n%s", got, again)
	}
	p.Layout.PID = 7
	if got := planText(p); got != strings.Replace(again, "restored already", "restored already, the server runs", 1) {
		t.Errorf("%s", got)
	}
}

func TestRestoreResultText(t *testing.T) {
	p := examplePlan()
	r := &restoreResult{Plan: p, Report: &recovery.Report{Files: 964, Fetched: 26_800_000, Took: 1500 * time.Millisecond}}
	const done = `restored backup 20261122T114500Z-3fa9c1d2 to /copies/it's 100%: 964 files, 26.8 MB written in 1.5s
target: time 2026-11-22T12:00:06Z; stop before the COMMIT of transaction 743 at 0/30000C0 (2026-11-22T12:00:07Z)
last commit: 2026-11-22T12:00:05Z (COMMIT of transaction 742 at 0/3000060)
note: /ssd is not empty
note: transaction 740 is prepared
`
	const connect = `connect with: psql -h '/copies/it'\''s 100%' -p 5433 -U postgres
`
	const apart = `it is a copy apart: a socket of its own and no TCP, by settings at the end of '/copies/it'\''s 100%/postgresql.auto.conf'
`
	const copied = `start it with: pg_ctl -D '/copies/it'\''s 100%' -l '/copies/it'\''s 100%/pitr_server.log' start
` + connect + apart + `it archives nothing (--archive off)
`
	if got := resultText(r, "postgres"); got != done+copied {
		t.Errorf("%s\nwant\n%s", got, done+copied)
	}
	p.Destination.Archive = true
	const own = `start it with: pg_ctl -D '/copies/it'\''s 100%' start
port, addresses and files outside of the directory are as the configuration that was backed up names them: beside its parent, change them first
`
	if got := resultText(r, "postgres"); got != done+own {
		t.Errorf("%s\nwant\n%s", got, done+own)
	}
	p.Destination.InPlace = true
	if got, want := resultText(r, "postgres"), done+"start it with: pg_ctl -D '/copies/it'\\''s 100%' start\n"; got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	p.Destination.InPlace, p.Destination.Start = false, true
	r.Started = &recovery.Started{PID: 7, SocketDir: "/copies/it's 100%", Port: 5433, Timeline: 2, Replayed: 0x30000C0, Took: 700 * time.Millisecond, BinDir: "/usr/lib/postgresql/15/bin"}
	const started = `the server has reached the target at 0/30000C0 in 700ms, timeline 2
` + connect + `stop it with: /usr/lib/postgresql/15/bin/pg_ctl -D '/copies/it'\''s 100%' stop
` + apart
	if got := resultText(r, "postgres"); got != done+started {
		t.Errorf("%s\nwant\n%s", got, done+started)
	}
	before := time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)
	r.Report = &recovery.Report{Before: &before}
	const again = `an earlier call, on 2026-11-23T03:00:00Z, has restored backup 20261122T114500Z-3fa9c1d2 to /copies/it's 100%
`
	_, rest, _ := strings.Cut(done+started, "\n")
	if got := resultText(r, "postgres"); got != again+rest {
		t.Errorf("%s\nwant\n%s", got, again+rest)
	}
	p.Destination.InPlace = true
	if got := resultText(r, "postgres"); !strings.HasPrefix(got, again+"with --delta every block is compared with the backup once more\n") {
		t.Errorf("%s", got)
	}
}
