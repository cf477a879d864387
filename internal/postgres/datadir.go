package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"pitr/internal/hint"
	"pitr/internal/wal"
	"sync"
)

const (
	controlTries = 50
	controlPause = 100 * time.Millisecond
)

// ReadControl reads dataDir's global/pg_control. A server may be writing it at that moment, so that a file that does not
// make sense is read again for up to 5 s before it counts as damaged.
func ReadControl(ctx context.Context, dataDir string) (wal.Control, error) {
	_, control, err := ReadControlFile(ctx, dataDir)
	return control, err
}

// ReadControlFile is ReadControl that also returns the bytes of the file, those that the control was read from.
func ReadControlFile(ctx context.Context, dataDir string) ([]byte, wal.Control, error) {
	path := filepath.Join(dataDir, "global", "pg_control")
	for try := 1; ; try++ {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, wal.Control{}, fmt.Errorf("read pg_control: %w", err)
		}
		control, err := wal.ParseControl(data)
		if err == nil {
			return data, control, nil
		}
		if try == controlTries {
			return nil, wal.Control{}, fmt.Errorf("read %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			return nil, wal.Control{}, errors.Join(ctx.Err(), err)
		case <-time.After(controlPause):
		}
	}
}

// MajorOfDir returns the major version of the server that dataDir belongs to, from its PG_VERSION.
func MajorOfDir(dataDir string) (int, error) {
	path := filepath.Join(dataDir, "PG_VERSION")
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, hint.Wrap(fmt.Errorf("find version of data directory: %w", err), "is %s the data directory of a PostgreSQL server?", dataDir)
	}
	if err != nil {
		return 0, fmt.Errorf("find version of data directory: %w", err)
	}
	text := strings.TrimSpace(string(data))
	major, err := strconv.Atoi(text)
	if err != nil {
		return 0, fmt.Errorf("find version of data directory: %s holds %q, not the number of a major version", path, text)
	}
	return major, nil
}

// FindBinDir returns the directory that holds the programs of the given major version: where the distributions put them,
// in the order of Debian, Red Hat's PostgreSQL repository, Alpine, self-built, else where the PATH leads.
func FindBinDir(ctx context.Context, major int) (string, error) {
	dirs := []string{
		fmt.Sprintf("/usr/lib/postgresql/%d/bin", major),
		fmt.Sprintf("/usr/pgsql-%d/bin", major),
		fmt.Sprintf("/usr/libexec/postgresql%d", major),
		"/usr/local/pgsql/bin",
	}
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		if filepath.IsAbs(dir) {
			dirs = append(dirs, dir)
		}
	}
	return findBinDir(ctx, major, dirs)
}

func findBinDir(ctx context.Context, major int, dirs []string) (string, error) {
	var tried []string
	for _, dir := range dirs {
		got, err := MajorOfBinDir(ctx, dir)
		switch {
		case err == nil && got == major:
			return dir, nil
		case err == nil:
			tried = append(tried, fmt.Sprintf("%s (version %d)", dir, got))
		case errors.Is(err, fs.ErrNotExist):
			tried = append(tried, dir)
		default:
			tried = append(tried, fmt.Sprintf("%s (%v)", dir, err))
		}
	}
	return "", hint.Wrap(fmt.Errorf("find the programs of PostgreSQL %d: not in %s", major, strings.Join(tried, ", ")),
		"install PostgreSQL %d's server, or set postgres.bin_dir to the directory that holds its `postgres`", major)
}

var versionOutput = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`\(PostgreSQL\) (\d+)`) })

// MajorOfBinDir returns the major version of the server program in dir, by asking it.
func MajorOfBinDir(ctx context.Context, dir string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	path := filepath.Join(dir, "postgres")
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return 0, fmt.Errorf("ask %s for its version: %w", path, err)
	}
	m := versionOutput().FindSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("ask %s for its version: it says %q", path, strings.TrimSpace(string(out)))
	}
	return strconv.Atoi(string(m[1]))
}
