package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"pitr/internal/durable"
	"pitr/internal/hint"
)

// watch writes down the calls of f whose order matters and makes the n-th fail, counted from 1, with err and without
// effect.
func watch(f *file, n int, err error) *[]string {
	var calls []string
	note := func(call string) error {
		calls = append(calls, call)
		if len(calls) == n {
			return err
		}
		return nil
	}
	rel := func(path string) string {
		if strings.HasPrefix(path, f.root+"/"+tempName+"/") {
			return "TEMP"
		}
		r, _ := filepath.Rel(f.root, path)
		return r
	}
	f.syncFile = func(o *os.File) error {
		if err := note("sync " + rel(o.Name())); err != nil {
			return err
		}
		return o.Sync()
	}
	f.syncDir = func(dir string) error {
		if err := note("sync " + rel(dir)); err != nil {
			return err
		}
		return durable.SyncDir(dir)
	}
	f.publish = func(old, new string) error {
		if err := note("publish " + rel(old) + " " + rel(new)); err != nil {
			return err
		}
		return durable.RenameExclusive(old, new)
	}
	return &calls
}

func testFile(t *testing.T) *file {
	t.Helper()
	b, err := openFile(t.TempDir() + "/store")
	if err != nil {
		t.Fatal(err)
	}
	return b.(*file)
}

func wantCalls(t *testing.T, got *[]string, want ...string) {
	t.Helper()
	if !slices.Equal(*got, want) {
		t.Errorf("calls %q, want %q", *got, want)
	}
	*got = nil
}

func listed(t *testing.T, f *file) string {
	t.Helper()
	var keys []string
	for o, err := range f.List(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, o.Key)
	}
	return strings.Join(keys, " ")
}

// Content before name; directories once for a process; removed directories anew.
func TestFileOrderOfSyncs(t *testing.T) {
	f := testFile(t)
	calls := watch(f, 0, nil)
	put := func(key string) {
		t.Helper()
		if err := f.Create(t.Context(), key, strings.NewReader("x")); err != nil {
			t.Fatal(err)
		}
	}
	put("a/b/1")
	wantCalls(t, calls, "sync TEMP", "sync a", "sync .", "publish TEMP a/b/1")
	put("a/b/2")
	wantCalls(t, calls, "sync TEMP", "publish TEMP a/b/2")
	put("a/c/3")
	wantCalls(t, calls, "sync TEMP", "sync a", "publish TEMP a/c/3")
	if err := f.Delete(t.Context(), "a/b/1"); err != nil {
		t.Fatal(err)
	}
	wantCalls(t, calls, "sync a/b")
	if err := f.Delete(t.Context(), "a/b/1"); err != nil { // the one who deleted it may have died before the sync
		t.Fatal(err)
	}
	wantCalls(t, calls, "sync a/b")
	if err := f.Delete(t.Context(), "a/b/2"); err != nil {
		t.Fatal(err)
	}
	wantCalls(t, calls, "sync a")
	if err := f.Delete(t.Context(), "a/b/2"); err != nil { // in a directory that is gone
		t.Fatal(err)
	}
	wantCalls(t, calls, "sync a/b", "sync a")
	put("a/b/2")
	wantCalls(t, calls, "sync TEMP", "sync a", "publish TEMP a/b/2")
}

// Whichever step fails, the object is not there, nor is anything left of it, and a new Create succeeds.
func TestFileEachStepFails(t *testing.T) {
	steps := []string{"sync TEMP", "sync a", "sync .", "publish TEMP a/b/1"}
	for n, step := range steps {
		t.Run(step, func(t *testing.T) {
			f := testFile(t)
			calls := watch(f, n+1, syscall.EIO)
			err := f.Create(t.Context(), "a/b/1", strings.NewReader("x"))
			if !errors.Is(err, syscall.EIO) {
				t.Fatalf("error is %v, want EIO", err)
			}
			if !slices.Equal(*calls, steps[:n+1]) {
				t.Errorf("calls %q, want %q and no more", *calls, steps[:n+1])
			}
			if got := listed(t, f); got != "" {
				t.Errorf("listed: %s", got)
			}
			if left, _ := filepath.Glob(f.path(tempName) + "/*"); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
			if err := f.Create(t.Context(), "a/b/1", strings.NewReader("x")); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("sync in a Delete", func(t *testing.T) {
		f := testFile(t)
		if err := f.Create(t.Context(), "a/1", strings.NewReader("x")); err != nil {
			t.Fatal(err)
		}
		watch(f, 1, syscall.EIO)
		if err := f.Delete(t.Context(), "a/1"); !errors.Is(err, syscall.EIO) {
			t.Errorf("error is %v, want EIO", err)
		}
	})
}

// What a failed disk says when the data go out at the end, as full ones do under delayed allocation.
func TestFileHints(t *testing.T) {
	f := testFile(t)
	me := whoami()
	for errno, want := range map[syscall.Errno]string{
		syscall.ENOSPC:       "free space (or inodes, or quota) on the file system of ROOT, enlarge it, or shorten backup.retention and run pitr prune",
		syscall.EDQUOT:       "free space (or inodes, or quota) on the file system of ROOT, enlarge it, or shorten backup.retention and run pitr prune",
		syscall.EROFS:        "the file system of ROOT is read-only: if it was not mounted so, look in the kernel's log for the error that made it so",
		syscall.EACCES:       "give user " + me + " read, write and search permission for ROOT and everything below it",
		syscall.EPERM:        "give user " + me + " read, write and search permission for ROOT and everything below it",
		syscall.EIO:          "the disk or network below ROOT fails: look in the kernel's log",
		syscall.ENAMETOOLONG: "the file system of ROOT allows only shorter names: choose another one for storage.url",
		syscall.ENOTSUP:      "the file system of ROOT cannot do what a store needs: choose another one for storage.url",
		syscall.ESTALE:       "the server of the network file system below ROOT does not answer as it should: look at it and at the network",
		syscall.ETIMEDOUT:    "the server of the network file system below ROOT does not answer as it should: look at it and at the network",
		syscall.EMFILE:       "too many files are open: raise the limit (LimitNOFILE in the systemd unit, ulimit -n, fs.file-max)",
		syscall.EINVAL:       "",
	} {
		watch(f, 1, &fs.PathError{Op: "sync", Path: "FILE", Err: errno})
		err := f.Create(t.Context(), "a", strings.NewReader("x"))
		if want := fmt.Sprintf("create a in %s: sync FILE: %v", f, errno); err == nil || err.Error() != want {
			t.Errorf("error is %v, want %s", err, want)
		}
		if got := hint.Of(err); got != strings.ReplaceAll(want, "ROOT", f.root) {
			t.Errorf("%v: hint is %q", errno, got)
		}
		passes := slices.Contains([]syscall.Errno{syscall.ESTALE, syscall.ETIMEDOUT, syscall.EMFILE}, errno)
		if Temporary(err) != passes {
			t.Errorf("%v: Temporary = %v", errno, !passes)
		}
	}
}

// Another process named an object and its directories, and has not synced the names yet: who takes the object for stored
// must do it.
func TestFileSettles(t *testing.T) {
	plant := func(f *file) *[]string {
		if err := f.Create(t.Context(), "x", strings.NewReader("x")); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(f.path("a/b"), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(f.path("a/b/1"), []byte("x"), 0o640); err != nil {
			t.Fatal(err)
		}
		return watch(f, 0, nil)
	}
	t.Run("by a Create that comes second", func(t *testing.T) {
		f := testFile(t)
		calls := plant(f)
		if err := f.Create(t.Context(), "a/b/1", strings.NewReader("x")); !errors.Is(err, ErrExists) {
			t.Errorf("error is %v, want ErrExists", err)
		}
		wantCalls(t, calls, "sync a/b", "sync a", "sync .")
		f.syncDir = func(string) error { return syscall.EIO }
		if err := f.Create(t.Context(), "a/b/1", strings.NewReader("x")); !errors.Is(err, syscall.EIO) || errors.Is(err, ErrExists) {
			t.Errorf("error is %v, want EIO", err)
		}
	})
	t.Run("by Settle", func(t *testing.T) {
		f := testFile(t)
		calls := plant(f)
		b := Retry(Prefix(f, "a"), Backoff{})
		for _, want := range [][]string{{"sync a/b", "sync a", "sync ."}, {"sync a/b"}} {
			if err := Settle(t.Context(), b, "b/1"); err != nil {
				t.Fatal(err)
			}
			wantCalls(t, calls, want...)
		}
		if err := Settle(t.Context(), b, "b/2"); !errors.Is(err, ErrNotFound) {
			t.Errorf("error is %v, want ErrNotFound", err)
		}
		f.syncDir = func(string) error { return syscall.EIO }
		if err := Settle(t.Context(), b, "b/1"); !errors.Is(err, syscall.EIO) {
			t.Errorf("error is %v, want EIO", err)
		}
	})
}

// On a file system without an exclusive way of naming, the store says so and looks before it names.
func TestFileWithoutExclusiveNames(t *testing.T) {
	f := testFile(t)
	f.publish = func(string, string) error { return errors.ErrUnsupported }
	for _, key := range []string{"a", "d/b"} {
		if err := f.Create(t.Context(), key, strings.NewReader("first")); err != nil {
			t.Fatal(err)
		}
		if err := f.Create(t.Context(), key, strings.NewReader("second")); !errors.Is(err, ErrExists) {
			t.Errorf("error is %v, want ErrExists", err)
		}
	}
	if f.Capabilities().CreateIfAbsent {
		t.Error("CreateIfAbsent is declared")
	}
	if err := f.name(f.path("a"), f.path("d/b")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("naming what came in between: %v", err)
	}
	if got := listed(t, f); got != "a d/b" {
		t.Errorf("listed: %s", got)
	}
	if left, _ := filepath.Glob(f.path(tempName) + "/*"); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// A store that has declared exclusive names and then cannot keep that, fails rather than risk an overwriting.
func TestFileLosesExclusiveNames(t *testing.T) {
	f := testFile(t)
	if err := f.Create(t.Context(), "before", strings.NewReader("x")); err != nil || !f.Capabilities().CreateIfAbsent {
		t.Fatalf("CreateIfAbsent is not declared: %v", err)
	}
	f.publish = func(string, string) error { return errors.ErrUnsupported }
	if err := f.Create(t.Context(), "a", strings.NewReader("x")); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("error is %v", err)
	}
	if got := listed(t, f); got != "before" {
		t.Errorf("listed: %s", got)
	}
}

// What happens between the writing and the naming.
func TestFileInTheMeantime(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(f *file, cancel func(), temp string)
		want error
	}{
		{"the temporary file is swept away", func(_ *file, _ func(), temp string) { os.Remove(temp) }, fs.ErrNotExist},
		{"the key is taken", func(f *file, _ func(), _ string) { write(f, "d/key") }, ErrExists},
		{"the key becomes a directory", func(f *file, _ func(), _ string) { write(f, "d/key/x") }, errConflict},
		{"a directory becomes an object", func(f *file, _ func(), _ string) { write(f, "d") }, errConflict},
		{"the store vanishes", func(f *file, _ func(), _ string) { os.Remove(f.path(markerName)) }, ErrVanished},
		{"a directory goes for ever", func(f *file, cancel func(), _ string) {
			publish := f.publish
			f.publish = func(old, new string) error {
				os.RemoveAll(f.path("d"))
				cancel()
				return publish(old, new)
			}
		}, context.Canceled},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := testFile(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			f.syncFile = func(o *os.File) error {
				c.do(f, cancel, o.Name())
				return o.Sync()
			}
			if err := f.Create(ctx, "d/key", strings.NewReader("x")); !errors.Is(err, c.want) {
				t.Errorf("error is %v, want %v", err, c.want)
			}
			if left, _ := filepath.Glob(f.path(tempName) + "/*"); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

func write(f *file, key string) {
	os.MkdirAll(filepath.Dir(f.path(key)), 0o750)
	os.WriteFile(f.path(key), nil, 0o640)
}

// The content of large objects is on its way to the disk before the end, and the whole of it arrives.
func TestFileWritebackOfLargeObjects(t *testing.T) {
	f := testFile(t)
	content := strings.Repeat("0123456789abcdef", (3*flushEvery+12345)/16)
	if err := f.Create(t.Context(), "large", strings.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(f.path("large"))
	if err != nil || string(got) != content {
		t.Errorf("%d bytes were stored for %d, %v", len(got), len(content), err)
	}
}
