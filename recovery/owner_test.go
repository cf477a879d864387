package recovery_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"pitr/internal/hint"
	"pitr/internal/postgres/pgtest"
	"pitr/recovery"
)

// What root has made for the restore becomes the server's: the directory, and those that tablespaces and the WAL go to.
func TestDirectoriesOfRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files to others")
	}
	t.Parallel()
	h := newHouse(t, pgtest.Options{SegSizeMB: 1, Tablespaces: 1})
	h.Exec("CREATE TABLE a TABLESPACE ts1 AS SELECT generate_series(1, 1000) AS x")
	h.backup()
	h.flush()
	dir, space := filepath.Join(pgtest.TempDir(t), "copy"), filepath.Join(pgtest.TempDir(t), "ts")
	for _, made := range []string{dir, space} { // mkdir /srv/copy
		if err := os.Mkdir(made, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r := h.restore(recovery.Target{}, recovery.Destination{Dir: dir, Tablespaces: []recovery.Mapping{{Old: "ts1", New: space}}})
	if n := pgtest.QueryOne[int64](r.Server, "SELECT count(*) FROM a"); n != 1000 {
		t.Errorf("%d rows", n)
	}
	uid, gid := pgtest.User()
	for _, root := range []string{dir, space} {
		for path := range tree(t, root) {
			info, err := os.Lstat(root + path)
			if err != nil {
				continue // the server's own coming and going
			}
			if st := info.Sys().(*syscall.Stat_t); int(st.Uid) != uid || int(st.Gid) != gid {
				t.Errorf("%s%s belongs to %d:%d", root, path, st.Uid, st.Gid)
			}
		}
	}
	r.Server.CheckPages()
}

// What the server's user can't do is said before anything is touched.
func TestConfigurationOfRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can keep a file from others and restore for them")
	}
	t.Parallel()
	h := newHouse(t, pgtest.Options{SegSizeMB: 1})
	h.backup()
	h.flush()
	dir := filepath.Join(pgtest.TempDir(t), "copy")
	w, p, err := h.plan(recovery.Target{}, recovery.Destination{Dir: dir})
	if err != nil || p.Err() != nil {
		t.Fatal(err, p.Err())
	}
	for _, path := range []string{h.config, h.program} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Restore(t.Context(), p, options()); !errors.Is(err, recovery.ErrRefused) || !strings.Contains(err.Error(), "permission denied") || hint.Of(err) == "" {
			t.Errorf("%s is root's alone: %v", path, err)
		}
		if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
			t.Errorf("%s is root's alone, and %d files were written", path, len(entries))
		}
		if err := os.Chmod(path, info.Mode()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Restore(t.Context(), p, options()); err != nil {
		t.Error(err)
	}
}
