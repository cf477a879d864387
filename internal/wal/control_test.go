package wal_test

import (
	"fmt"
	"strings"
	"testing"

	"pitr/internal/wal"
)

// TestControl compares ParseControl with what the server itself and, where it is
// installed, pg_controldata say.
func TestControl(t *testing.T) {
	compared := false
	for _, bin := range binDirs(t) {
		t.Run(strings.ReplaceAll(strings.Trim(bin, "/"), "/", "_"), func(t *testing.T) {
			s := newServer(t, bin, 1, "max_wal_senders=7\nmax_worker_processes=9\nmax_locks_per_transaction=65\nwal_log_hints=on\nfull_page_writes=off")
			s.start()
			s.sql("create table x as select g from generate_series(1, 100) g", "checkpoint")
			// The server's own reading of the file (pg_controldata.c).
			for query, got := range map[string]func(c wal.Control) string{
				"select system_identifier, pg_control_version, catalog_version_no from pg_control_system()": func(c wal.Control) string {
					return fmt.Sprintf("%d|%d|%d", c.SystemID, c.Version, c.CatalogVersion)
				},
				"select checkpoint_lsn, redo_lsn, timeline_id, prev_timeline_id, full_page_writes, next_xid, next_oid, next_multixact_id, next_multi_offset, oldest_xid, oldest_xid_dbid, oldest_active_xid, oldest_multi_xid, oldest_multi_dbid, oldest_commit_ts_xid, newest_commit_ts_xid, extract(epoch from checkpoint_time)::bigint from pg_control_checkpoint()": func(c wal.Control) string {
					p := c.CheckpointCopy
					return fmt.Sprintf("%s|%s|%d|%d|%.1s|%d:%d|%d|%d|%d|%d|%d|%d|%d|%d|%d|%d|%d", c.Checkpoint, p.Redo, p.Timeline, p.PrevTimeline, fmt.Sprint(p.FullPageWrites), p.NextXID>>32, uint32(p.NextXID), p.NextOID, p.NextMulti, p.NextMultiOff, p.OldestXID, p.OldestXIDDB, p.OldestActive, p.OldestMulti, p.OldestMultiDB, p.OldestCommitTS, p.NewestCommitTS, p.Time.Unix())
				},
				"select min_recovery_end_lsn, min_recovery_end_timeline, backup_start_lsn, backup_end_lsn, end_of_backup_record_required from pg_control_recovery()": func(c wal.Control) string {
					return fmt.Sprintf("%s|%d|%s|%s|%.1s", c.MinRecovery, c.MinRecoveryTLI, c.BackupStart, c.BackupEnd, fmt.Sprint(c.BackupEndRequired))
				},
				"select max_data_alignment, database_block_size, blocks_per_segment, wal_block_size, bytes_per_wal_segment, data_page_checksum_version from pg_control_init()": func(c wal.Control) string {
					return fmt.Sprintf("%d|%d|%d|%d|%d|%d", c.MaxAlign, c.BlockSize, c.RelSegSize, c.WALBlockSize, c.WALSegSize, c.DataChecksumVersion)
				},
			} {
				if got, want := got(s.control()), s.sql(query); got != want {
					t.Errorf("%s:\n%s, the server says\n%s", query, got, want)
				}
			}
			c := s.control()
			if c.State != wal.StateInProduction || c.WALLevel != wal.LevelLogical || c.MaxConnections != 100 || c.MaxWorkerProcesses != 9 || c.MaxWALSenders != 7 ||
				c.MaxPreparedXacts != 10 || c.MaxLocksPerXact != 65 || !c.TrackCommitTimestamp || !c.WALLogHints || c.CheckpointCopy.FullPageWrites {
				t.Errorf("settings: %+v", c)
			}
			s.stop("fast")
			if c = s.control(); c.State != wal.StateShutDown {
				t.Errorf("state: %s", c.State)
			}
			if s.has("pg_controldata") {
				compared = true
				s.compareControldata(c)
			}
			s.refusesPatched(c)
		})
	}
	if !compared && len(installedBinDirs()) > 0 && strings.HasPrefix(binDirs(t)[0], "/usr/lib/") {
		t.Error("no server has pg_controldata")
	}
}

func (s *server) compareControldata(c wal.Control) {
	s.t.Helper()
	said := map[string]string{}
	for line := range strings.Lines(s.run("pg_controldata", s.data)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		said[name] = strings.TrimSpace(value)
	}
	p := c.CheckpointCopy
	const layout = "Mon Jan _2 15:04:05 2006"
	for name, got := range map[string]any{
		"Database system identifier":           c.SystemID,
		"Database cluster state":               c.State,
		"pg_control last modified":             c.Time.Format(layout),
		"Latest checkpoint location":           c.Checkpoint,
		"Latest checkpoint's REDO location":    p.Redo,
		"Latest checkpoint's REDO WAL file":    wal.SegmentName(p.Timeline, wal.SegmentOf(p.Redo, int64(c.WALSegSize)), int64(c.WALSegSize)),
		"Latest checkpoint's TimeLineID":       p.Timeline,
		"Latest checkpoint's NextXID":          fmt.Sprintf("%d:%d", p.NextXID>>32, uint32(p.NextXID)),
		"Latest checkpoint's oldestActiveXID":  p.OldestActive,
		"Time of latest checkpoint":            p.Time.Format(layout),
		"Minimum recovery ending location":     c.MinRecovery,
		"wal_level setting":                    c.WALLevel,
		"max_connections setting":              c.MaxConnections,
		"max_worker_processes setting":         c.MaxWorkerProcesses,
		"max_wal_senders setting":              c.MaxWALSenders,
		"max_prepared_xacts setting":           c.MaxPreparedXacts,
		"max_locks_per_xact setting":           c.MaxLocksPerXact,
		"Database block size":                  c.BlockSize,
		"Blocks per segment of large relation": c.RelSegSize,
		"Bytes per WAL segment":                c.WALSegSize,
		"Data page checksum version":           c.DataChecksumVersion,
	} {
		text := fmt.Sprint(got)
		if name == "Latest checkpoint's TimeLineID" {
			text = fmt.Sprint(uint32(p.Timeline))
		}
		if text != said[name] {
			s.t.Errorf("%s: %q, pg_controldata says %q", name, text, said[name])
		}
	}
}

// refusesPatched checks that a server does not start on a patched control file,
// and does on the original.
func (s *server) refusesPatched(c wal.Control) {
	s.t.Helper()
	patched, err := wal.PatchControlCheckpoint(s.read("global/pg_control"), c.Checkpoint+1<<40)
	if err != nil {
		s.t.Fatal(err)
	}
	again, err := wal.ParseControl(patched)
	if err != nil || again.Checkpoint != c.Checkpoint+1<<40 || len(patched) != wal.ControlFileSize {
		s.t.Fatalf("patched: %s, %v", again.Checkpoint, err)
	}
	s.write("global/pg_control", patched)
	if out := s.startFails(); !strings.Contains(out, "could not locate a valid checkpoint record") {
		s.t.Errorf("the server's reason not to start:\n%s", out)
	}
	back, err := wal.PatchControlCheckpoint(patched, c.Checkpoint)
	if err != nil {
		s.t.Fatal(err)
	}
	s.write("global/pg_control", back)
	s.start()
}

func TestParseControlRefuses(t *testing.T) {
	good := controlFile(15)
	if c, err := wal.ParseControl(good); err != nil || c.Major != 15 {
		t.Fatalf("%+v, %v", c, err)
	}
	for _, c := range []struct {
		name   string
		change func([]byte) []byte
		want   string
	}{
		{"short", func(b []byte) []byte { return b[:511] }, "511 bytes, want 8192"},
		{"empty", func(b []byte) []byte { return nil }, "0 bytes"},
		{"bit", func(b []byte) []byte { b[100] ^= 1; return b }, "checksum"},
		{"version", func(b []byte) []byte { le.PutUint32(b[8:], 1201); return b }, "version 1201"},
		{"newer", func(b []byte) []byte { le.PutUint32(b[8:], 1902); return b }, "version 1902"},
		{"endian", func(b []byte) []byte { le.PutUint32(b[8:], 0x14050000); return b }, "big-endian"},
		{"catalog", func(b []byte) []byte { le.PutUint32(b[12:], 202301011); return sealControl(b) }, "catalog version"},
		{"segment size", func(b []byte) []byte { le.PutUint32(b[228:], 12345); return sealControl(b) }, "segment size 12345"},
		{"page size", func(b []byte) []byte { le.PutUint32(b[216:], 0); return sealControl(b) }, "page size 0"},
	} {
		if got, err := wal.ParseControl(c.change(controlFile(15))); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %+v, %v, want %q", c.name, got, err, c.want)
		}
	}
	for major := 13; major <= 18; major++ {
		if c, err := wal.ParseControl(controlFile(major)); err != nil || c.Major != major || c.WALSegSize != 16<<20 {
			t.Errorf("%d: %+v, %v", major, c, err)
		}
	}
}
