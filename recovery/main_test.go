package recovery_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"pitr/archive"
	"pitr/internal/repo"
	"pitr/recovery"
	"pitr/storage"
)

// TestMain makes this test binary the program that restored servers call to fetch their WAL: what package recovery has to
// do with that is the marker, and the program proper is not its own.
func TestMain(m *testing.M) {
	if len(os.Args) == 7 && os.Args[1] == "--config" && os.Args[3] == "wal" && os.Args[4] == "fetch" {
		os.Exit(fetchWAL(os.Args[2], os.Args[5], os.Args[6]))
	}
	if len(os.Args) == 5 && os.Args[1] == "--config" && os.Args[3] == "config" && os.Args[4] == "show" {
		if _, err := os.ReadFile(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if dir := os.Getenv(childEnv); dir != "" {
		if err := restoreInPlace(dir, os.Getenv(childEnv+"_CONFIG")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// childEnv makes this binary a process that restores to the end of the archive, in place, to be killed meanwhile.
const childEnv = "PITR_RECOVERY_TEST_CHILD"

func restoreInPlace(dir, config string) error {
	ctx := context.Background()
	r, err := openRepo(ctx, config)
	if err != nil {
		return err
	}
	w, err := recovery.Observe(ctx, archive.New(r, archive.Options{}), recovery.Surroundings{})
	if err != nil {
		return err
	}
	defer w.Close()
	if _, err := w.ArchiveLeftovers(ctx, dir); err != nil {
		return err
	}
	if w, err = recovery.Observe(ctx, archive.New(r, archive.Options{}), recovery.Surroundings{}); err != nil {
		return err
	}
	defer w.Close()
	p, err := recovery.MakePlan(w.View, recovery.Target{Action: recovery.Promote},
		recovery.Destination{Dir: dir, InPlace: true, Program: os.Getenv(childEnv + "_PROGRAM"), Config: config})
	if err != nil {
		return err
	}
	_, err = w.Restore(ctx, p, options())
	return err
}

// openRepo opens the repository that a config of these tests names: the URL of the store and the system identifier.
func openRepo(ctx context.Context, config string) (*repo.Repo, error) {
	text, err := os.ReadFile(config)
	if err != nil {
		return nil, err
	}
	url, id, _ := strings.Cut(strings.TrimSpace(string(text)), "\n")
	systemID, err := strconv.ParseUint(id, 10, 64)
	if err != nil {
		return nil, err
	}
	b, err := storage.Open(ctx, storage.Config{URL: url})
	if err != nil {
		return nil, err
	}
	return repo.Open(ctx, b, systemID)
}

// fetchWAL answers a server as `pitr wal fetch` has to: 0 fetched, 1 not there, 200 anything else. See openRepo for config.
func fetchWAL(config, name, path string) int {
	fail := func(err error) int {
		fmt.Fprintf(os.Stderr, "fetch %s: %v\n", name, err)
		return 200
	}
	m, err := recovery.ReadMarker(".")
	if err != nil {
		return fail(err)
	}
	promise := recovery.Ordinary
	if m != nil {
		promise = m.Of(name)
	}
	if promise == recovery.Beyond {
		return 1
	}
	ctx := context.Background()
	r, err := openRepo(ctx, config)
	if err != nil {
		return fail(err)
	}
	path, err = filepath.Abs(path)
	if err != nil {
		return fail(err)
	}
	err = archive.New(r, archive.Options{}).Fetch(ctx, name, path, archive.FetchOptions{Partial: promise == recovery.PromisedPartial})
	switch {
	case err == nil:
		return 0
	case errors.Is(err, archive.ErrNotArchived) && promise == recovery.Ordinary:
		return 1
	}
	return fail(err)
}
