package agent

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"pitr/internal/wal"
)

const readySuffix = ".ready"

// readyFile is the file by which the server says that the file of that name waits for its archiver.
func readyFile(walDir, name string) string {
	return filepath.Join(walDir, "archive_status", name+readySuffix)
}

// readyFiles is what a look into archive_status found.
type readyFiles struct {
	first []string        // the names the server will ask for first, in its order
	more  bool            // there are names behind the last of first
	total int             // all of them
	known map[string]bool // of the names asked about, those that are ready
}

// readReady looks which files of pg_wal wait for their archiving: at most limit of those that want accepts, in the order
// of the server (ready_file_comparator in src/backend/postmaster/pgarch.c): timeline histories first, then by name.
// known says of each name of ask whether it is among all that wait. Names that the server's archiver never uses are
// passed over. The directory is read piecewise, so that a hundred thousand files need no memory.
func readReady(walDir string, limit int, ask []string, want func(name string) bool) (readyFiles, error) {
	r := readyFiles{known: make(map[string]bool, len(ask))}
	for _, name := range ask {
		r.known[name] = false
	}
	d, err := os.Open(filepath.Join(walDir, "archive_status"))
	if err != nil {
		return r, fmt.Errorf("look for WAL to archive: %w", err)
	}
	defer d.Close()
	for {
		names, err := d.Readdirnames(1024)
		for _, n := range names {
			name, ok := strings.CutSuffix(n, readySuffix)
			if !ok || wal.Classify(name) == wal.Other {
				continue
			}
			r.total++
			if _, asked := r.known[name]; asked {
				r.known[name] = true
			}
			if want(name) {
				r.first = append(r.first, name)
			}
		}
		// The order of a directory is none, so the best must be picked as they come.
		if len(r.first) > 4*limit+1024 {
			r.cut(limit)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return r, fmt.Errorf("look for WAL to archive: %w", err)
		}
	}
	r.cut(limit)
	return r, nil
}

func (r *readyFiles) cut(limit int) {
	slices.SortFunc(r.first, archiverOrder)
	if len(r.first) > limit {
		r.first, r.more = r.first[:limit], true
	}
}

func archiverOrder(a, b string) int {
	ha, hb := wal.Classify(a) == wal.TimelineHistory, wal.Classify(b) == wal.TimelineHistory
	if ha != hb {
		if ha {
			return -1
		}
		return 1
	}
	return cmp.Compare(a, b)
}

// fileID tells whether a name still stands for the very bytes that it stood for. The server gives old segments new names
// and writes into them, which changes name, times or both.
type fileID struct {
	dev, ino     uint64
	size         int64
	mtime, ctime syscall.Timespec
}

func identify(path string) (fileID, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		return fileID{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return fileID{uint64(st.Dev), st.Ino, st.Size, st.Mtim, st.Ctim}, nil
}
