package pgtest

import (
	"cmp"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"pitr/internal/postgres"
)

// BinDirsEnv names the environment variable that lists, separated by colons, the directories of the PostgreSQL versions
// to test with.
const BinDirsEnv = "PITR_TEST_PG_BINDIRS"

// Bin is an installation of PostgreSQL.
type Bin struct {
	Dir   string
	Major int
}

// Has says whether the installation has a tool of its own. Some hold only what a server needs.
func (b Bin) Has(tool string) bool {
	_, err := os.Stat(filepath.Join(b.Dir, tool))
	return err == nil
}

// Bins returns the installations to test with, oldest first: those that PITR_TEST_PG_BINDIRS lists, else the newest under
// /usr/lib/postgresql. It fails the test if there is none, or if one can't be run.
func Bins(t testing.TB) []Bin {
	t.Helper()
	dirs := filepath.SplitList(os.Getenv(BinDirsEnv))
	listed := len(dirs) > 0
	if !listed {
		dirs, _ = filepath.Glob("/usr/lib/postgresql/*/bin") // the pattern is right
	}
	var bins []Bin
	for _, dir := range dirs {
		if _, err := os.Stat(filepath.Join(dir, "initdb")); err != nil && !listed {
			continue // only clients installed
		}
		major, err := postgres.MajorOfBinDir(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		bins = append(bins, Bin{Dir: dir, Major: major})
	}
	if len(bins) == 0 {
		t.Fatalf("no PostgreSQL server found under /usr/lib/postgresql: install one (Debian, Ubuntu: apt-get install postgresql), or list directories that hold initdb and postgres in %s", BinDirsEnv)
	}
	slices.SortStableFunc(bins, func(a, b Bin) int { return cmp.Compare(a.Major, b.Major) })
	if !listed {
		bins = bins[len(bins)-1:]
	}
	return bins
}

// usual returns the newest of bins that has tools too, or the newest of all: tools refuse servers newer than they are.
func usual(bins []Bin) Bin {
	for _, bin := range slices.Backward(bins) {
		if bin.Has("pg_basebackup") {
			return bin
		}
	}
	return bins[len(bins)-1]
}
