package main

import (
	"context"
	"errors"
	"testing"
	"time"

	"pitr/archive"
	"pitr/basebackup"
	"pitr/internal/repo"
	"pitr/recovery"
	"pitr/storage/storagetest"
)

// TestPrunePlanOutOfDate: while the question waits for its answer, somebody deletes the backup that was to stay.
func TestPrunePlanOutOfDate(t *testing.T) {
	ctx := context.Background()
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	b := storagetest.Memory()
	r, err := repo.Ensure(ctx, b, repo.Facts{SystemID: 7, Major: 15, SegmentSize: 16 << 20, BlockSize: 8192}, now)
	if err != nil {
		t.Fatal(err)
	}
	ids := []string{"20261101T000000Z-0000000a", "20261122T000000Z-0000000b"}
	for i, id := range ids {
		w, err := basebackup.NewWriter(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		at := now.AddDate(0, 0, i-2)
		err = w.Commit(ctx, r, &basebackup.Header{Format: basebackup.Format, ID: id, Type: basebackup.TypeFull, SystemID: 7, Timeline: 1,
			Started: at, Finished: at, StartLSN: 1 << 24, StopLSN: 2 << 24, BlockSize: 8192, WALSegSize: 16 << 20, PacksOf: []string{id}})
		if err != nil {
			t.Fatal(err)
		}
	}
	ar := archive.New(r, archive.Options{})
	defer ar.Close()
	p := &prunePlan{bucket: b, archive: ar, now: now, backups: []basebackup.Verdict{{ID: ids[0]}, {ID: ids[1], Keep: true}}}
	if err := basebackup.Delete(ctx, r, ids[1]); err != nil {
		t.Fatal(err)
	}
	if _, err := p.run(ctx); !errors.Is(err, recovery.ErrRefused) {
		t.Errorf("%v", err)
	}
	if all, _, err := basebackup.List(ctx, r); err != nil || len(all) != 1 {
		t.Errorf("%d backups are left, %v", len(all), err)
	}
	p.backups = []basebackup.Verdict{{ID: ids[0], Keep: true}}
	if _, err := p.run(ctx); err != nil {
		t.Error(err)
	}
}
