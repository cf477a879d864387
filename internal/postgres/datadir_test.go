package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pitr/internal/hint"
	"pitr/internal/postgres"
	"pitr/internal/postgres/pgtest"
	"pitr/internal/wal"
)

func TestReadControl(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{NoFsync: true, SegSizeMB: 4, NoChecksums: true})
	// A server that writes the file again and again does not spoil reading it.
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c, err := postgres.Connect(ctx, s.Config())
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		for ctx.Err() == nil {
			if err := c.Checkpoint(ctx); err != nil && ctx.Err() == nil {
				t.Error(err)
				return
			}
		}
	}()
	id := uint64(pgtest.QueryOne[int64](s, "SELECT system_identifier FROM pg_control_system()"))
	last := wal.LSN(0)
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		c, err := postgres.ReadControl(t.Context(), s.Dir)
		if err != nil || c.SystemID != id || c.WALSegSize != 4<<20 || c.DataChecksumVersion != 0 || c.Checkpoint < last || c.State != wal.StateInProduction {
			t.Fatalf("%+v, %v", c, err)
		}
		last = c.Checkpoint
	}
	cancel()
	<-ended

	// A torn file is read again.
	dir := t.TempDir()
	path := filepath.Join(dir, "global", "pg_control")
	good, err := os.ReadFile(filepath.Join(s.Dir, "global", "pg_control"))
	if err != nil {
		t.Fatal(err)
	}
	torn := append([]byte(nil), good...)
	torn[40] ^= 1
	if err := errors.Join(os.Mkdir(filepath.Dir(path), 0o700), os.WriteFile(path, torn, 0o600)); err != nil {
		t.Fatal(err)
	}
	repaired := time.AfterFunc(300*time.Millisecond, func() { os.WriteFile(path, good, 0o600) })
	defer repaired.Stop()
	if data, c, err := postgres.ReadControlFile(t.Context(), dir); err != nil || c.SystemID != id || string(data) != string(good) {
		t.Errorf("torn for a while: %+v, %v", c, err)
	}
	if err := os.WriteFile(path, torn, 0o600); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if _, err := postgres.ReadControl(t.Context(), dir); err == nil || !strings.Contains(err.Error(), path) || time.Since(began) < 4*time.Second {
		t.Errorf("damaged: %v after %v", err, time.Since(began))
	}
	soon, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := postgres.ReadControl(soon, dir); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("in no time: %v", err)
	}
	if _, err := postgres.ReadControl(t.Context(), "/nowhere"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
}

func TestMajorOfDir(t *testing.T) {
	dir := t.TempDir()
	_, err := postgres.MajorOfDir(dir)
	if !errors.Is(err, os.ErrNotExist) || hint.Of(err) != fmt.Sprintf("is %s the data directory of a PostgreSQL server?", dir) {
		t.Errorf("empty directory: %v", err)
	}
	for text, want := range map[string]int{"15\n": 15, "18": 18, "9.6\n": 0, "": 0} {
		if err := os.WriteFile(filepath.Join(dir, "PG_VERSION"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := postgres.MajorOfDir(dir); got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
}

func TestFindBinDir(t *testing.T) {
	bins := pgtest.Bins(t)
	bin := bins[len(bins)-1]
	t.Setenv("PATH", "relative:/nowhere:"+bin.Dir)
	if dir, err := postgres.FindBinDir(t.Context(), bin.Major); err != nil || filepath.Base(dir) == "relative" {
		t.Errorf("%d: %s, %v", bin.Major, dir, err)
	} else if got, err := postgres.MajorOfBinDir(t.Context(), dir); got != bin.Major || err != nil {
		t.Errorf("%s holds %d, %v", dir, got, err)
	}

	fake := func(script string) string {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "postgres"), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	old, odd, broken, right := fake("echo 'postgres (PostgreSQL) 9.6.24'"), fake("echo hello"), fake("exit 3"), fake("echo 'postgres (PostgreSQL) 99beta1 (Debian)'")
	t.Setenv("PATH", strings.Join([]string{old, odd, broken, right}, ":"))
	if dir, err := postgres.FindBinDir(t.Context(), 99); dir != right || err != nil {
		t.Errorf("99: %s, %v; want %s", dir, err, right)
	}
	_, err := postgres.FindBinDir(t.Context(), 98)
	if err == nil {
		t.Fatal("98 was found")
	}
	for _, want := range []string{
		"find the programs of PostgreSQL 98: not in /usr/lib/postgresql/98/bin, /usr/pgsql-98/bin, /usr/libexec/postgresql98, /usr/local/pgsql/bin",
		old + " (version 9), " + odd + " (ask " + odd + `/postgres for its version: it says "hello"), ` + broken + " (ask " + broken + "/postgres for its version: exit status 3), " + right + " (version 99)",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	if want := "install PostgreSQL 98's server, or set postgres.bin_dir to the directory that holds its `postgres`"; hint.Of(err) != want {
		t.Errorf("hint %q, want %q", hint.Of(err), want)
	}
}
