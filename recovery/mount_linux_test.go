package recovery_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"pitr/internal/postgres"
	"pitr/internal/postgres/pgtest"
)

// mountedEnv names the directories that are to be mount points of a child, which restores in place.
const mountedEnv = "PITR_RECOVERY_TEST_MOUNTS"

func restoreWithMounts(dirs []string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return os.NewSyscallError("mount", err)
	}
	for _, dir := range dirs {
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			return &os.PathError{Op: "mount", Path: dir, Err: err}
		}
	}
	return restoreInPlace(os.Getenv(mountedEnv+"_DIR"), os.Getenv(childEnv+"_CONFIG"))
}

// A directory of the data directory may be a mount point, which can be emptied and not removed.
func TestMountPoints(t *testing.T) {
	if dirs := os.Getenv(mountedEnv); dirs != "" {
		if err := restoreWithMounts(filepath.SplitList(dirs)); err != nil {
			t.Fatal(err)
		}
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("only root can mount file systems")
	}
	t.Parallel()
	h := newHouse(t, pgtest.Options{SegSizeMB: 1})
	h.Exec("CREATE TABLE t AS SELECT generate_series(1, 1000) AS v")
	h.backup()
	h.flush()
	want := digest(h.Server)
	h.Stop(postgres.Fast)
	if err := h.drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	foreign := filepath.Join(h.Dir, "base", "foreign")
	if err := os.WriteFile(foreign, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	mounts := filepath.Join(h.Dir, "pg_wal") + string(filepath.ListSeparator) + filepath.Join(h.Dir, "base")
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestMountPoints$")
	cmd.Env = append(os.Environ(), mountedEnv+"="+mounts, mountedEnv+"_DIR="+h.Dir, childEnv+"_CONFIG="+h.config, childEnv+"_PROGRAM="+h.program)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if _, err := os.Stat(foreign); err == nil {
		t.Error("what was in the mount point is still there")
	}
	h.give(filepath.Join(h.base, "repo"))
	h.Start()
	h.AwaitPrimary()
	if digest(h.Server) != want {
		t.Error("contents differ")
	}
	h.Server.CheckPages()
}
