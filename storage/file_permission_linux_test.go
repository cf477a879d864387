package storage_test

import (
	"errors"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"pitr/internal/hint"
	"pitr/storage"
)

// asStranger runs do with the rights of a user who owns nothing. For root that is another user, as the file system sees
// it, on this thread alone (setfsuid(2)); for anybody else the owner's rights are taken away.
func asStranger(t *testing.T, dir string, do func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		if err := os.Chmod(dir, 0); err != nil {
			t.Fatal(err)
		}
		defer os.Chmod(dir, 0o700)
		do()
		return
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Setfsuid(65534); err != nil {
		t.Fatal(err)
	}
	defer unix.Setfsuid(0)
	do()
}

// A store of another user is neither empty nor absent: it is forbidden.
func TestFileWithoutPermission(t *testing.T) {
	dir := t.TempDir() + "/store"
	b := open(t, dir)
	create(t, b, "a/b", "x")
	var errs map[string]error
	asStranger(t, dir, func() {
		_, openErr := storage.Open(t.Context(), storage.Config{URL: "file://" + dir})
		_, getErr := b.Get(t.Context(), "a/b")
		_, missingErr := b.Get(t.Context(), "none")
		_, statErr := b.Stat(t.Context(), "a/b")
		_, listErr := keys(b)
		errs = map[string]error{
			"open": openErr, "get": getErr, "get what is missing": missingErr, "stat": statErr, "list": listErr,
			"create": b.Create(t.Context(), "c", strings.NewReader("x")),
			"delete": b.Delete(t.Context(), "a/b"),
		}
	})
	for op, err := range errs {
		if !errors.Is(err, fs.ErrPermission) || errors.Is(err, storage.ErrNotFound) || errors.Is(err, storage.ErrVanished) {
			t.Errorf("%s: error is %v, want one of permission alone", op, err)
		}
		if !strings.Contains(hint.Of(err), "read, write and search permission for "+dir) {
			t.Errorf("%s: hint is %q", op, hint.Of(err))
		}
	}
	wantKeys(t, b, "a/b")
}
