package storage_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// stranger is whom a store is given to that root writes to. For anybody else it is himself: then the tests say only that
// nothing goes wrong.
func stranger() (uid, gid int) {
	if os.Geteuid() != 0 {
		return os.Geteuid(), os.Getegid()
	}
	return 65534, 65533
}

func wantOwner(t *testing.T, path string, uid, gid int) {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*syscall.Stat_t); int(st.Uid) != uid || int(st.Gid) != gid {
		t.Errorf("%s belongs to %d:%d, not %d:%d", path, st.Uid, st.Gid, uid, gid)
	}
}

func wantAllOwned(t *testing.T, dir string, uid, gid int) {
	t.Helper()
	n := 0
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			wantOwner(t, path, uid, gid)
			n++
		}
		return err
	})
	if err != nil || n < 5 {
		t.Errorf("%d files: %v", n, err)
	}
}

// What root stores belongs to the owner of the store.
func TestFileOfRootIsTheOwners(t *testing.T) {
	uid, gid := stranger()
	dir := t.TempDir() + "/store"
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, uid, gid); err != nil {
		t.Fatal(err)
	}
	b := open(t, dir)
	create(t, b, "a/b/c", "x")
	create(t, b, "a/d", "x")
	wantAllOwned(t, dir, uid, gid)

	// Directories that root left there, killed in the middle or by an older pitr, become his too.
	if err := os.MkdirAll(dir+"/left/behind", 0o700); err != nil {
		t.Fatal(err)
	}
	create(t, b, "left/behind/x", "x")
	wantAllOwned(t, dir, uid, gid)
	create(t, b, "left/x", "x")
	if err := b.Delete(t.Context(), "a/b/c"); err != nil {
		t.Fatal(err)
	}
	create(t, b, "a/b/c", "x")
	wantAllOwned(t, dir, uid, gid)
}

// A store that root begins belongs to the owner of the directory that it lies in.
func TestFileBegunByRoot(t *testing.T) {
	uid, gid := stranger()
	parent := t.TempDir()
	if err := os.Chown(parent, uid, gid); err != nil {
		t.Fatal(err)
	}
	b := open(t, parent+"/store")
	create(t, b, "a/b/c", "x")
	wantAllOwned(t, parent, uid, gid)
}

// A link that the store's owner has put into it leads root nowhere else.
func TestFileOwnerLinksAway(t *testing.T) {
	uid, gid := stranger()
	base := t.TempDir()
	dir, outside := base+"/store", base+"/outside"
	for _, d := range []string{dir, outside, outside + "/deep"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(dir, uid, gid); err != nil {
		t.Fatal(err)
	}
	b := open(t, dir)
	create(t, b, "a/b", "x")
	if err := os.RemoveAll(dir + "/.tmp"); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"wal", "x/y", ".tmp"} {
		if err := os.MkdirAll(filepath.Dir(dir+"/"+key), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(outside, dir+"/"+key); err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range []string{"plain", "wal/deep/1", "wal/new/1", "x/y/deep/1", "x/y/new/1"} {
		if key != "plain" && os.Remove(dir+"/.tmp") == nil {
			if err := os.Mkdir(dir+"/.tmp", 0o700); err != nil {
				t.Fatal(err)
			}
		}
		err := b.Create(t.Context(), key, strings.NewReader("x"))
		if os.Geteuid() == 0 && err == nil {
			t.Errorf("%s was stored", key)
		}
	}
	wantOwner(t, outside, os.Geteuid(), os.Getegid())
	wantOwner(t, outside+"/deep", os.Geteuid(), os.Getegid())
	if left, err := os.ReadDir(outside); os.Geteuid() == 0 && (err != nil || len(left) != 1) {
		t.Errorf("root made %v there, %v", left, err)
	}
}
