package durable_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"pitr/internal/durable"
)

func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return strings.Join(all, " ")
}

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, strings.Repeat("n", 255))
	for i, mode := range []fs.FileMode{0o600, 0o666, 0o640} {
		want := bytes.Repeat([]byte{byte(i)}, 100_000*i)
		if err := durable.WriteFile(path, want, mode); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("write %d: read back %d bytes, %v", i, len(got), err)
		}
		if info, _ := os.Stat(path); info.Mode() != mode {
			t.Errorf("mode is %v, want %v", info.Mode(), mode)
		}
	}
	if got := names(t, dir); got != filepath.Base(path) {
		t.Errorf("directory holds %q", got)
	}
}

func TestWriteFileIntoNothing(t *testing.T) {
	dir := t.TempDir()
	if err := durable.WriteFile(dir+"/none/f", nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error is %v, want fs.ErrNotExist", err)
	}
}

func TestWriteFileOntoADirectory(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(dir+"/f/sub", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := durable.WriteFile(dir+"/f", []byte("x"), 0o600); err == nil {
		t.Error("no error")
	}
	if got := names(t, dir); got != "f" {
		t.Errorf("directory holds %q", got)
	}
}

func TestFileIsHiddenUntilCommit(t *testing.T) {
	dir := t.TempDir()
	f, err := durable.Create(dir+"/f", 0o600)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(f, "content")
	if _, err := os.Lstat(dir + "/f"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before Commit: %v", err)
	}
	if err := f.Commit(); err != nil {
		t.Fatal(err)
	}
	f.Abort()
	f.Close()
	if got, err := os.ReadFile(dir + "/f"); err != nil || string(got) != "content" {
		t.Errorf("after Commit and Abort: %q, %v", got, err)
	}
	if err := f.Commit(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("second Commit: %v, want fs.ErrClosed", err)
	}
}

func TestAbort(t *testing.T) {
	for name, abort := range map[string]func(*durable.File){
		"Abort": (*durable.File).Abort,
		"Close": func(f *durable.File) { f.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			f, err := durable.Create(dir+"/f", 0o600)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprint(f, "half")
			abort(f)
			if got := names(t, dir); got != "" {
				t.Errorf("left behind: %q", got)
			}
			if err := f.Commit(); !errors.Is(err, fs.ErrClosed) {
				t.Errorf("Commit after it: %v, want fs.ErrClosed", err)
			}
		})
	}
}

func TestRename(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(dir+"/d", 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "d/b"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := durable.Rename(dir+"/a", dir+"/d/b"); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(dir + "/d/b"); string(got) != "a" {
		t.Errorf("content is %q", got)
	}
	if err := durable.Rename(dir+"/d", dir+"/e"); err != nil {
		t.Fatal(err)
	}
	if got := names(t, dir); got != "e" {
		t.Errorf("directory holds %q", got)
	}
	if err := durable.Rename(dir+"/none", dir+"/x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of nothing: %v, want fs.ErrNotExist", err)
	}
}

func TestRenameExclusiveHasOneWinner(t *testing.T) {
	dir := t.TempDir()
	for round := range 50 {
		target := fmt.Sprintf("%s/target%d", dir, round)
		var won atomic.Int32
		var winner atomic.Int64
		var wg sync.WaitGroup
		for i := range 8 {
			old := fmt.Sprintf("%s/old%d", dir, i)
			if err := os.WriteFile(old, []byte{byte(i)}, 0o600); err != nil {
				t.Fatal(err)
			}
			wg.Go(func() {
				switch err := durable.RenameExclusive(old, target); {
				case err == nil:
					won.Add(1)
					winner.Store(int64(i))
				case !errors.Is(err, fs.ErrExist):
					t.Errorf("loser's error is %v, want fs.ErrExist", err)
				}
			})
		}
		wg.Wait()
		got, err := os.ReadFile(target)
		if err != nil || won.Load() != 1 || len(got) != 1 || int64(got[0]) != winner.Load() {
			t.Fatalf("round %d: %d winners, last %d, content %v, %v", round, won.Load(), winner.Load(), got, err)
		}
	}
}

func TestRemove(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(dir+"/full/sub", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/f", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := durable.Remove(dir + "/f"); err != nil {
			t.Fatal(err)
		}
	}
	if err := durable.Remove(dir + "/full"); !errors.Is(err, syscall.ENOTEMPTY) {
		t.Errorf("of a full directory: %v, want ENOTEMPTY", err)
	}
	if got := names(t, dir); got != "full" {
		t.Errorf("directory holds %q", got)
	}
	if err := durable.Remove(dir + "/none/f"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("in a directory that is not there: %v, want fs.ErrNotExist", err)
	}
}

func TestMkdirAllRaces(t *testing.T) {
	dir := t.TempDir()
	for round := range 30 {
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				if err := durable.MkdirAll(fmt.Sprintf("%s/%d/a/b/../c/%d", dir, round, i%2), 0o750); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	if got := names(t, dir+"/0/a/c"); got != "0 1" {
		t.Errorf("directory holds %q", got)
	}
}

func TestMkdirAllOverAFile(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/f", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/f", "/f/sub"} {
		if err := durable.MkdirAll(dir+path, 0o700); !errors.Is(err, syscall.ENOTDIR) {
			t.Errorf("%s: %v, want ENOTDIR", path, err)
		}
	}
}
