package pgtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"pitr/internal/postgres"
)

// serverAccount looks the account up once: the lookup reads the user database.
var serverAccount = sync.OnceValue(func() postgres.Account {
	if uid := os.Geteuid(); uid != 0 {
		return postgres.Account{UID: uint32(uid), GID: uint32(os.Getegid())}
	}
	for _, name := range []string{"postgres", "nobody"} {
		if a, err := postgres.LookupAccount(name); err == nil && a.UID != 0 {
			return a
		}
	}
	const nobody = 65534
	return postgres.Account{UID: nobody, GID: nobody, Groups: []uint32{nobody}}
})

// User returns the user and group that servers run as.
func User() (uid, gid int) {
	a := serverAccount()
	return int(a.UID), int(a.GID)
}

// AsServerUser makes cmd run as the user that servers run as, in a directory that this user may enter unless cmd has one.
func AsServerUser(cmd *exec.Cmd) {
	if os.Geteuid() != 0 {
		return
	}
	if cmd.Dir == "" {
		cmd.Dir = "/"
	}
	if err := serverAccount().RunAs(cmd); err != nil {
		cmd.Err = err // shown by whatever starts cmd
	}
}

// TempDir makes a directory that belongs to the servers' user and that this user can reach, which is not so of t.TempDir
// under root. It is short enough to hold a socket, and removed when the test is over.
func TempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(scratch(t), "d")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	uid, gid := User()
	if err := os.Chown(dir, uid, gid); err != nil {
		t.Fatal(err)
	}
	return dir
}

// reachable tells whether any user can enter dir.
func reachable(dir string) bool {
	for {
		info, err := os.Stat(dir)
		if err != nil || !info.IsDir() {
			return false
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if uid, _ := User(); info.Mode().Perm()&0o001 == 0 && !(ok && int(st.Uid) == uid && info.Mode().Perm()&0o100 != 0) {
			return false
		}
		if dir == "/" {
			return true
		}
		dir = filepath.Dir(dir)
	}
}
