package crash

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pitr/archive"
	"pitr/basebackup"
	"pitr/internal/postgres"
	"pitr/internal/postgres/pgtest"
	"pitr/internal/repo"
	"pitr/internal/wal"
	"pitr/storage"
)

// site is a small server that leaves its WAL in a directory, from where tests archive it.
type site struct {
	*pgtest.Server
	t     *testing.T
	drop  string
	facts repo.Facts
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, drop: pgtest.TempDir(t)}
	s.Server = pgtest.Start(t, pgtest.Options{SegSizeMB: 1, NoFsync: true, Conf: map[string]string{
		"archive_mode":    "on",
		"archive_command": fmt.Sprintf("cp %%p %s/.%%f && mv %[1]s/.%%f %[1]s/%%f", s.drop),
		"restore_command": fmt.Sprintf("cp %s/%%f %%p", s.drop),
		// Nothing happens but what the test does.
		"autovacuum": "off", "checkpoint_timeout": "1h",
	}})
	small(s.Server)
	c, err := postgres.ReadControl(t.Context(), s.Dir)
	if err != nil {
		t.Fatal(err)
	}
	s.facts = repo.Facts{SystemID: c.SystemID, Major: c.Major, SegmentSize: int64(c.WALSegSize), BlockSize: int(c.BlockSize)}
	return s
}

// files are what the server has handed over, in the order in which it was.
func (s *site) files() []string {
	s.t.Helper()
	entries, err := os.ReadDir(s.drop)
	if err != nil {
		s.t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if wal.Classify(e.Name()) != wal.Other {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names
}

// flush ends the segment and waits until the server has handed it over.
func (s *site) flush() {
	s.t.Helper()
	s.Exec("SELECT pg_create_restore_point('flush')")
	name := pgtest.QueryOne[string](s.Server, "SELECT pg_walfile_name(pg_switch_wal())")
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(s.drop, name)); err == nil {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%s was not archived", name)
		}
	}
}

// fork makes the server go on on a new timeline, from the end of its WAL.
func (s *site) fork() {
	s.t.Helper()
	s.Stop(postgres.Fast)
	uid, gid := pgtest.User()
	signal := filepath.Join(s.Dir, "recovery.signal")
	if err := errors.Join(os.WriteFile(signal, nil, 0o600), os.Chown(signal, uid, gid)); err != nil {
		s.t.Fatal(err)
	}
	s.Start()
	s.AwaitPrimary()
}

// ensure opens the repository in a bucket for writing.
func (s *site) ensure(ctx context.Context, b storage.Bucket) (*archive.Archive, error) {
	r, err := repo.Ensure(ctx, b, s.facts, time.Now())
	if err != nil {
		return nil, err
	}
	return archive.New(r, archive.Options{}), nil
}

// push archives the files from the first on that is not in done, and stops where one fails.
func (s *site) push(ctx context.Context, b storage.Bucket, done map[string]bool) error {
	a, err := s.ensure(ctx, b)
	if err != nil {
		return err
	}
	defer a.Close()
	for _, name := range s.files() {
		if done[name] {
			continue
		}
		if _, err := a.Push(ctx, filepath.Join(s.drop, name), s.facts.SystemID); err != nil {
			return err
		}
		done[name] = true
	}
	return nil
}

// archiving archives what the server hands over until the function returned is called.
func (s *site) archiving(b storage.Bucket) (stop func()) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	var wg sync.WaitGroup
	done := map[string]bool{}
	wg.Go(func() {
		for ctx.Err() == nil {
			if err := s.push(ctx, b, done); err != nil && ctx.Err() == nil {
				s.t.Errorf("archive: %v", err)
				return
			}
			time.Sleep(3 * time.Millisecond)
		}
	})
	return func() {
		cancel()
		wg.Wait()
	}
}

// take takes a backup into a bucket, which may fail. The WAL must be on its way into the repository.
func (s *site) take(b storage.Bucket) (*basebackup.Header, error) {
	ctx := s.t.Context()
	a, err := s.ensure(ctx, b)
	if err != nil {
		return nil, err
	}
	defer a.Close()
	conn, err := postgres.Connect(ctx, s.Config())
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	return basebackup.Take(ctx, a.Repo(), conn, basebackup.Options{DataDir: s.Dir, SpoolDir: s.t.TempDir(), ArchiveTimeout: time.Minute})
}

// mustTake takes a backup into a bucket that nothing is wrong with.
func (s *site) mustTake(b storage.Bucket) *basebackup.Header {
	s.t.Helper()
	h, err := s.take(b)
	if err != nil {
		s.t.Fatal(err)
	}
	return h
}

// note adds a row that tells how far the server was.
func (s *site) note(v int) {
	s.t.Helper()
	s.Exec(fmt.Sprintf("INSERT INTO notes VALUES (%d)", v))
}

// notes tells which rows are there.
func notes(s *pgtest.Server) string {
	return strings.Join(pgtest.Query[string](s, "SELECT v::text FROM notes ORDER BY v"), " ")
}
