package main

import (
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
		Destination: recovery.Destination{Dir: "/copies/it's 100%"},
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
	const copied = `start it with: pg_ctl -D '/copies/it'\''s 100%' start
it archives nothing (--archive off)
`
	if got := resultText(r, "postgres"); got != done+copied {
		t.Errorf("%s\nwant\n%s", got, done+copied)
	}
	r.Started = &recovery.Started{PID: 7, SocketDir: "/copies/it's 100%", Port: 5433, Timeline: 2, Replayed: 0x30000C0, Took: 700 * time.Millisecond, BinDir: "/usr/lib/postgresql/15/bin"}
	p.Destination.Archive = true
	const started = `the server has reached the target at 0/30000C0 in 700ms, timeline 2
connect with: psql -h '/copies/it'\''s 100%' -p 5433 -U postgres
stop it with: /usr/lib/postgresql/15/bin/pg_ctl -D '/copies/it'\''s 100%' stop
`
	if got := resultText(r, "postgres"); got != done+started {
		t.Errorf("%s\nwant\n%s", got, done+started)
	}
}
