package main

import (
	"testing"
	"time"

	"pitr/archive"
	"pitr/internal/agent"
)

func TestStatusText(t *testing.T) {
	at := func(s string) time.Time {
		v, err := time.Parse(time.RFC3339, s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	lag := int64(96)
	s := &agent.Status{
		Time: at("2026-11-22T22:30:00Z"), Cluster: "main", Node: "n1",
		Server: &agent.ServerStatus{Running: true, Version: 150014, Role: "primary", Timeline: 1, LSN: 0x5000060, Ready: 2},
		Archive: &agent.ArchiveStatus{
			Store: "file:///repo", Last: "000000010000000000000004", LastAt: at("2026-11-22T22:29:50Z"), LagBytes: &lag,
			Timelines: []agent.TimelineStatus{{Timeline: 1, Segments: 3, First: "000000010000000000000001", Last: "000000010000000000000004", Stored: 5 << 20}},
			Gaps:      []archive.Gap{{Timeline: 1, First: "000000010000000000000002", Last: "000000010000000000000002"}},
		},
		Backups: &agent.BackupsStatus{
			Count:  2,
			Newest: &agent.BackupStatus{ID: "20261122T212500Z-00000002", Type: "full", Finished: at("2026-11-22T21:30:00Z")},
			Oldest: &agent.BackupStatus{ID: "20261121T212500Z-00000001", Type: "full", Finished: at("2026-11-21T21:30:00Z")},
		},
		Window: &agent.WindowStatus{Timeline: 1, From: at("2026-11-22T21:30:00Z"), To: at("2026-11-22T22:29:48Z"), ToLSN: 0x5000000},
		Agent: &agent.Running{
			PID: 123, Started: at("2026-11-20T08:00:00Z"), Push: agent.Pushing{Files: 7, PerSecond: 1.25}, Fetch: agent.Fetching{Files: 3, Ahead: 2},
			Jobs: []agent.JobState{
				{Name: "backup", Running: true, Began: at("2026-11-22T22:28:00Z"), Next: at("2026-11-23T01:00:00Z")},
				{Name: "prune", Next: at("2026-11-23T04:30:00Z")},
			},
		},
		Problems: []agent.StatusProblem{
			{What: "WAL is missing\nhere", Hint: "take a backup"},
			{What: "and more"},
		},
	}
	const want = `cluster   main, node n1, 2026-11-22T22:30:00Z
server    PostgreSQL 15.14, primary, timeline 1, at 0/5000060; 2 files wait to be archived
archive   file:///repo: last segment 000000010000000000000004, 10s ago, 96 bytes behind the server
          timeline 1: 3 segments, 000000010000000000000001 to 000000010000000000000004, 5 MB stored
gaps      timeline 1: 000000010000000000000002 to 000000010000000000000002 is missing
backups   2, newest 20261122T212500Z-00000002 (full, 1h0m0s ago), oldest 20261121T212500Z-00000001
window    from 2026-11-22T21:30:00Z to 2026-11-22T22:29:48Z (0/5000000) on timeline 1
agent     process 123 since 2026-11-20T08:00:00Z: 7 files archived, 1.2 per second; 3 fetched, 2 of them ahead
          backup runs since 2026-11-22T22:28:00Z
          prune next at 2026-11-23T04:30:00Z
problems  WAL is missing
  here
          HINT: take a backup
          and more
`
	if got := statusText(s); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	const little = `cluster   main, node n1, 2026-11-22T22:30:00Z
server    can't be asked; 0 files wait to be archived
window    nothing can be restored yet, as far as is known
`
	if got := statusText(&agent.Status{Time: s.Time, Cluster: "main", Node: "n1", Server: &agent.ServerStatus{}}); got != little {
		t.Errorf("got\n%s\nwant\n%s", got, little)
	}
}

func TestFindingText(t *testing.T) {
	for want, f := range map[string]agent.Finding{
		"ok   wal_level: replica\n": {Name: "wal_level", Status: agent.CheckOK, Message: "replica", Hint: "not printed"},
		"fail archive_mode: off: the server archives nothing\nHINT: set archive_mode = on and restart the server\n": {
			Name: "archive_mode", Status: agent.CheckFail, Message: "off: the server archives nothing", Hint: "set archive_mode = on and restart the server"},
	} {
		if got := findingText(f); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
