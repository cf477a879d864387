package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// watched is the kernel's system with every call written down and, on request, one of them failing without taking
// effect.
type watched struct {
	root  string
	calls []string
	fail  int // the number of the call that fails, counted from 1; 0: none
	err   error
}

func (w *watched) note(call string, paths ...string) error {
	for _, p := range paths {
		rel, _ := filepath.Rel(w.root, p)
		if strings.HasPrefix(filepath.Base(rel), ".pitr-") {
			rel = filepath.Join(filepath.Dir(rel), "TEMP")
		}
		call += " " + rel
	}
	w.calls = append(w.calls, call)
	if len(w.calls) == w.fail {
		return w.err
	}
	return nil
}

func (w *watched) system() system {
	k := kernel()
	one := func(name string, real func(string) error) func(string) error {
		return func(p string) error {
			if err := w.note(name, p); err != nil {
				return err
			}
			return real(p)
		}
	}
	two := func(name string, real func(a, b string) error) func(a, b string) error {
		return func(a, b string) error {
			if err := w.note(name, a, b); err != nil {
				return err
			}
			return real(a, b)
		}
	}
	return system{
		sync: func(f *os.File) error {
			if err := w.note("sync", f.Name()); err != nil {
				return err
			}
			return k.sync(f)
		},
		rename:    two("rename", k.rename),
		exclusive: two("exclusive", k.exclusive),
		remove:    one("remove", k.remove),
		mkdir: func(p string, mode fs.FileMode) error {
			return one("mkdir", func(p string) error { return k.mkdir(p, mode) })(p)
		},
	}
}

func TestOrder(t *testing.T) {
	write := func(t *testing.T, path string) {
		t.Helper()
		if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name    string
		prepare func(t *testing.T, root string)
		do      func(s system, root string) error
		want    []string
	}{
		{
			name: "write a file",
			do:   func(s system, root string) error { return s.writeFile(root+"/f", []byte("new"), 0o600) },
			want: []string{"sync TEMP", "rename TEMP f", "sync ."},
		},
		{
			name:    "rename within a directory",
			prepare: func(t *testing.T, root string) { write(t, root+"/a") },
			do:      func(s system, root string) error { return s.renameSynced(root+"/a", root+"/b") },
			want:    []string{"sync a", "rename a b", "sync ."},
		},
		{
			name: "rename across directories",
			prepare: func(t *testing.T, root string) {
				write(t, root+"/a")
				os.Mkdir(root+"/d", 0o700)
			},
			do:   func(s system, root string) error { return s.renameSynced(root+"/a", root+"/d/b") },
			want: []string{"sync a", "rename a d/b", "sync d", "sync ."},
		},
		{
			name:    "rename to a free name",
			prepare: func(t *testing.T, root string) { write(t, root+"/a") },
			do:      func(s system, root string) error { return s.renameExclusiveSynced(root+"/a", root+"/b") },
			want:    []string{"exclusive a b", "sync ."},
		},
		{
			name:    "remove",
			prepare: func(t *testing.T, root string) { write(t, root+"/a") },
			do:      func(s system, root string) error { return s.removeSynced(root + "/a") },
			want:    []string{"remove a", "sync ."},
		},
		{
			name: "remove what is gone",
			do:   func(s system, root string) error { return s.removeSynced(root + "/a") },
			want: []string{"remove a", "sync ."},
		},
		{
			name:    "make directories",
			prepare: func(t *testing.T, root string) { os.Mkdir(root+"/a", 0o700) },
			do:      func(s system, root string) error { return s.mkdirAll(root+"/a/b/c", 0o700) },
			want:    []string{"mkdir a/b", "sync a", "mkdir a/b/c", "sync a/b"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			if c.prepare != nil {
				c.prepare(t, root)
			}
			w := &watched{root: root}
			if err := c.do(w.system(), root); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(w.calls, c.want) {
				t.Errorf("calls:\n%s\nwant:\n%s", strings.Join(w.calls, "\n"), strings.Join(c.want, "\n"))
			}
		})
		for n := range c.want {
			t.Run(fmt.Sprintf("%s, %q fails", c.name, c.want[n]), func(t *testing.T) {
				root := t.TempDir()
				if c.prepare != nil {
					c.prepare(t, root)
				}
				w := &watched{root: root, fail: n + 1, err: syscall.EIO}
				if err := c.do(w.system(), root); !errors.Is(err, syscall.EIO) {
					t.Fatalf("error is %v, want EIO", err)
				}
				after := slices.DeleteFunc(w.calls[n+1:], func(s string) bool { return s == "remove TEMP" })
				if len(after) > 0 {
					t.Errorf("after the failure it still did %q", after)
				}
				if left, _ := filepath.Glob(root + "/.pitr-*"); len(left) > 0 {
					t.Errorf("left behind: %q", left)
				}
			})
		}
	}
}

// A file whose sync fails must keep its old content: the new one may never have reached the disk.
func TestFailedSyncKeepsTheOldContent(t *testing.T) {
	root := t.TempDir()
	path := root + "/f"
	if err := WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	w := &watched{root: root, fail: 1, err: syscall.EIO}
	if err := w.system().writeFile(path, []byte("new"), 0o600); !errors.Is(err, syscall.EIO) {
		t.Fatalf("error is %v, want EIO", err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "old" {
		t.Errorf("content is %q, %v", got, err)
	}
	if want := []string{"sync TEMP", "remove TEMP"}; !slices.Equal(w.calls, want) {
		t.Errorf("calls %q, want %q: a failed sync is not to be tried again", w.calls, want)
	}
}

// Some network mounts answer EINVAL to the sync of a directory; of a file it is an error like any other.
func TestDirectoriesThatCannotBeSynced(t *testing.T) {
	root := t.TempDir()
	w := &watched{root: root, fail: 3, err: &fs.PathError{Op: "sync", Path: root, Err: syscall.EINVAL}}
	if err := w.system().writeFile(root+"/f", nil, 0o600); err != nil {
		t.Errorf("syncing the directory said EINVAL: %v", err)
	}
	w = &watched{root: root, fail: 1, err: &fs.PathError{Op: "sync", Path: root, Err: syscall.EINVAL}}
	if err := w.system().writeFile(root+"/f", nil, 0o600); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("syncing the file said EINVAL: %v", err)
	}
}

// Both ways of naming a file exclusively, each alone.
func TestExclusive(t *testing.T) {
	for name, rename := range map[string]func(old, new string) error{
		"chosen": renameExclusive, "link": linkExclusive,
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			old, taken, free := root+"/old", root+"/taken", root+"/free"
			os.WriteFile(old, []byte("mine"), 0o600)
			os.WriteFile(taken, []byte("theirs"), 0o600)
			if err := rename(old, taken); !errors.Is(err, fs.ErrExist) {
				t.Fatalf("onto a taken name: %v, want fs.ErrExist", err)
			}
			for path, want := range map[string]string{old: "mine", taken: "theirs"} {
				if got, _ := os.ReadFile(path); string(got) != want {
					t.Errorf("%s holds %q, want %q", path, got, want)
				}
			}
			if err := rename(old, free); err != nil {
				t.Fatal(err)
			}
			if got, _ := os.ReadFile(free); string(got) != "mine" {
				t.Errorf("the new name holds %q", got)
			}
			if _, err := os.Lstat(old); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the old name is still there: %v", err)
			}
			if err := rename(root+"/none", root+"/other"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("of nothing: %v, want fs.ErrNotExist", err)
			}
		})
	}
}

// NFS may repeat a link request whose answer was lost and then says that the name is taken, by the very file.
func TestLinkAlreadyDone(t *testing.T) {
	root := t.TempDir()
	os.WriteFile(root+"/old", []byte("mine"), 0o600)
	if err := os.Link(root+"/old", root+"/new"); err != nil {
		t.Fatal(err)
	}
	if err := linkExclusive(root+"/old", root+"/new"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(root + "/old"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the old name is still there: %v", err)
	}
}
