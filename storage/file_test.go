package storage_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"pitr/internal/hint"
	"pitr/storage"
)

func create(t *testing.T, b storage.Bucket, key, content string) {
	t.Helper()
	if err := b.Create(t.Context(), key, strings.NewReader(content)); err != nil {
		t.Fatal(err)
	}
}

func read(b storage.Bucket, key string) (string, error) {
	r, err := b.Get(context.Background(), key)
	if err != nil {
		return "", err
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	return string(data), err
}

func keys(b storage.Bucket) (all []string, err error) {
	for o, e := range b.List(context.Background(), "", "") {
		if e != nil {
			return all, e
		}
		all = append(all, o.Key)
	}
	return all, nil
}

func wantKeys(t *testing.T, b storage.Bucket, want ...string) {
	t.Helper()
	if got, err := keys(b); err != nil || !slices.Equal(got, want) {
		t.Errorf("the bucket holds %q, %v, want %q", got, err, want)
	}
}

// wantText compares an error and its hint whole.
func wantText(t *testing.T, err error, text, advice string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want %q", text)
	}
	if err.Error() != text {
		t.Errorf("error is\n%s, want\n%s", err, text)
	}
	if got := hint.Of(err); got != advice {
		t.Errorf("hint is\n%s, want\n%s", got, advice)
	}
}

func temps(t *testing.T, dir string) []string {
	t.Helper()
	got, err := filepath.Glob(dir + "/.tmp/*")
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestFileModes(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	dir := t.TempDir() + "/store"
	create(t, open(t, dir), "a/b/c", "x")
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		want := fs.FileMode(0o640)
		if d.IsDir() {
			want = fs.ModeDir | 0o750
		}
		if info.Mode() != want {
			t.Errorf("%s has mode %v, want %v", path, info.Mode(), want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Who only reads creates nothing: a store that does not exist is empty, until somebody writes to it.
func TestFileOpenCreatesNothing(t *testing.T) {
	parent := t.TempDir()
	b, other := open(t, parent+"/store"), open(t, parent+"/store")
	wantKeys(t, b)
	if _, err := b.Stat(t.Context(), "a"); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("stat: %v, want ErrNotFound", err)
	}
	if err := b.Delete(t.Context(), "a"); err != nil {
		t.Error(err)
	}
	if n, err := storage.Sweep(t.Context(), b, 0); n != 0 || err != nil {
		t.Errorf("swept %d, %v", n, err)
	}
	if c := b.Capabilities(); !c.CreateIfAbsent || !c.StrongList {
		t.Errorf("capabilities %+v", c)
	}
	if entries, err := os.ReadDir(parent); err != nil || len(entries) != 0 {
		t.Errorf("made %v, %v", entries, err)
	}
	create(t, b, "a", "x")
	wantKeys(t, other, "a")
	if _, err := os.Stat(parent + "/store/.pitr-store"); err != nil {
		t.Errorf("no marker: %v", err)
	}
	// Now it is a store like any other: when it goes, nothing makes it anew.
	if err := os.RemoveAll(parent + "/store"); err != nil {
		t.Fatal(err)
	}
	for _, b := range []storage.Bucket{b, other} {
		if err := b.Create(t.Context(), "b", strings.NewReader("x")); !errors.Is(err, storage.ErrVanished) {
			t.Errorf("create: %v, want ErrVanished", err)
		}
	}

	// The file system above goes while nothing is begun.
	above := parent + "/above"
	if err := os.Mkdir(above, 0o700); err != nil {
		t.Fatal(err)
	}
	b = open(t, above+"/store")
	if err := os.Remove(above); err != nil {
		t.Fatal(err)
	}
	if _, err := keys(b); err == nil {
		t.Error("a store whose parent went is listed as empty")
	}

	_, err := storage.Open(t.Context(), storage.Config{URL: "file://" + parent + "/none/store"})
	wantText(t, err, fmt.Sprintf("open file://%[1]s/none/store: stat %[1]s/none: no such file or directory", parent),
		fmt.Sprintf("mount the file system that %[1]s/none/store belongs to, or create %[1]s/none: pitr creates only the last directory of storage.url", parent))
	if _, err := os.Stat(parent + "/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the parent was made: %v", err)
	}

	if err := os.WriteFile(parent+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = storage.Open(t.Context(), storage.Config{URL: "file://" + parent + "/file"})
	wantText(t, err, fmt.Sprintf("open file://%[1]s/file: open %[1]s/file: not a directory", parent),
		"storage.url names a file where the directory of the store should be")
}

func TestFileOpenThroughALink(t *testing.T) {
	dir := t.TempDir()
	create(t, open(t, dir+"/real"), "a", "x")
	if err := os.Symlink("real", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	b := open(t, dir+"/link")
	create(t, b, "b", "x")
	wantKeys(t, b, "a", "b")
}

// Reading leaves a directory as it was, so that a copy of a store on a read-only medium can be read.
func TestFileReadingWritesNothing(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/a", []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	b := open(t, dir)
	wantKeys(t, b, "a")
	if got, err := read(b, "a"); err != nil || got != "x" {
		t.Errorf("a is %q, %v", got, err)
	}
	if _, err := read(b, "b"); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("b: %v, want ErrNotFound", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("the directory holds %v, %v", entries, err)
	}
	create(t, b, "b", "x")
	if _, err := os.Stat(dir + "/.pitr-store"); err != nil {
		t.Errorf("no marker after the first object: %v", err)
	}
}

// The file system of the store is unmounted under a running process: what is left is an empty directory, which must
// neither be written to nor believed.
func TestFileVanishes(t *testing.T) {
	vanish := map[string]func(t *testing.T, dir string){
		"the directory": func(t *testing.T, dir string) {
			if err := os.Rename(dir, dir+".away"); err != nil {
				t.Fatal(err)
			}
		},
		"what is in it": func(t *testing.T, dir string) {
			if err := os.Rename(dir, dir+".away"); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(dir, 0o750); err != nil {
				t.Fatal(err)
			}
		},
	}
	prepare := map[string]func(t *testing.T, dir string) storage.Bucket{
		"marked": func(t *testing.T, dir string) storage.Bucket {
			b := open(t, dir)
			create(t, b, "a/b", "x")
			return b
		},
		"without a marker": func(t *testing.T, dir string) storage.Bucket {
			if err := os.MkdirAll(dir+"/a", 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(dir+"/a/b", nil, 0o600); err != nil {
				t.Fatal(err)
			}
			return open(t, dir)
		},
	}
	for what, vanish := range vanish {
		for state, prepare := range prepare {
			t.Run(what+" of a store "+state, func(t *testing.T) {
				dir := t.TempDir() + "/store"
				b := prepare(t, dir)
				wantKeys(t, b, "a/b")
				vanish(t, dir)

				_, getErr := b.Get(t.Context(), "a/b")
				_, statErr := b.Stat(t.Context(), "a/b")
				_, rangeErr := b.GetRange(t.Context(), "a/b", 0, 1)
				_, listErr := keys(b)
				_, sweepErr := storage.Sweep(t.Context(), b, 0)
				for op, err := range map[string]error{
					"get": getErr, "stat": statErr, "range": rangeErr, "list": listErr, "sweep": sweepErr,
					"delete": b.Delete(t.Context(), "a/b"),
					"create": b.Create(t.Context(), "c", strings.NewReader("x")),
				} {
					if !errors.Is(err, storage.ErrVanished) || errors.Is(err, storage.ErrNotFound) {
						t.Errorf("%s: %v, want ErrVanished", op, err)
					}
				}
				wantText(t, getErr, fmt.Sprintf("get a/b in file://%[1]s: the store has vanished: %[1]s/.pitr-store is missing", dir),
					fmt.Sprintf("mount the file system of %[1]s again; if the store is there and only lacks this file, create it: touch %[1]s/.pitr-store", dir))
				if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
					t.Errorf("the empty directory now holds %v", entries)
				}

				// Mounted again, it goes on.
				os.Remove(dir)
				if err := os.Rename(dir+".away", dir); err != nil {
					t.Fatal(err)
				}
				create(t, b, "c", "x")
				wantKeys(t, b, "a/b", "c")
			})
		}
	}
}

// A listing during which the store goes must not end as if all the rest had been deleted.
func TestFileVanishesInAListing(t *testing.T) {
	dir := t.TempDir() + "/store"
	b := open(t, dir)
	for _, key := range []string{"a/1", "b/2", "c/3"} {
		create(t, b, key, "x")
	}
	var got []string
	var last error
	for o, err := range b.List(t.Context(), "", "") {
		if last = err; err != nil {
			continue
		}
		if got = append(got, o.Key); len(got) == 1 {
			if err := os.Rename(dir, dir+".away"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !errors.Is(last, storage.ErrVanished) || !slices.Equal(got, []string{"a/1"}) {
		t.Errorf("listed %q, then %v, want ErrVanished", got, last)
	}
}

// Files that the file system or its tools put into a store are no objects.
func TestFileForeignFiles(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
	create(t, b, "a/b", "x")
	for _, name := range []string{".nfs0001", "a/.nfs0002", ".snapshot/x", "a/.dir/x", "lost+found/x"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	wantKeys(t, b, "a/b")
	for _, key := range []string{"lost+found", "lost+found/x"} {
		if err := b.Create(t.Context(), key, strings.NewReader("x")); !errors.Is(err, storage.ErrInvalidKey) {
			t.Errorf("%s: %v, want ErrInvalidKey", key, err)
		}
	}
	for range b.List(t.Context(), "lost+found/", "") {
		t.Error("lost+found is listed when asked for")
	}
	create(t, b, "a/lost+found", "x") // only the root's is special
	wantKeys(t, b, "a/b", "a/lost+found")

	// Something linked into the store would be read but not listed, and so be lost some day: better to stop.
	if err := os.Symlink("/", dir+"/a/link"); err != nil {
		t.Fatal(err)
	}
	_, err := keys(b)
	wantText(t, err, fmt.Sprintf("list file://%[1]s: %[1]s/a/link is neither a file nor a directory (L---------)", dir),
		"move it out of the store; to keep the store elsewhere, link or mount its root as a whole")
}

func TestFileDeleteRemovesEmptyDirectories(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
	create(t, b, "a/b/c/1", "x")
	create(t, b, "a/2", "x")
	if err := b.Delete(t.Context(), "a/b/c/1"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir + "/a/b"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a/b is still there: %v", err)
	}
	if err := b.Delete(t.Context(), "a/2"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir + "/a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a is still there: %v", err)
	}
	// A Delete that was killed before it got so far leaves an empty directory, in whose place an object can be.
	if err := os.Mkdir(dir+"/rest", 0o700); err != nil {
		t.Fatal(err)
	}
	create(t, b, "rest", "x")
	wantKeys(t, b, "rest")
}

func TestFileSweep(t *testing.T) {
	dir := t.TempDir()
	inner := open(t, dir)
	b := storage.Limit(storage.Retry(storage.Prefix(inner, "p"), storage.Backoff{}), 1<<30, 0)
	if n, err := storage.Sweep(t.Context(), b, 0); n != 0 || err != nil {
		t.Errorf("of nothing: %d, %v", n, err)
	}
	create(t, b, "a", "x")
	write := func(name string, age time.Duration) {
		t.Helper()
		path := dir + "/.tmp/" + name
		if err := os.WriteFile(path, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(-age)
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	write("young", 23*time.Hour)
	write("old", 25*time.Hour)
	write("older", 1000*time.Hour)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if n, err := storage.Sweep(ended, b, 24*time.Hour); n != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("with an ended context: %d, %v", n, err)
	}
	if n, err := storage.Sweep(t.Context(), b, 24*time.Hour); n != 2 || err != nil {
		t.Errorf("removed %d, %v, want 2", n, err)
	}
	if got := temps(t, dir); len(got) != 1 || filepath.Base(got[0]) != "young" {
		t.Errorf("left: %q", got)
	}
	wantKeys(t, b, "a")
}

func TestFileFailedCreateLeavesNoTemporaryFile(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
	create(t, b, "a/b", "x")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for key, err := range map[string]error{
		"taken":    b.Create(t.Context(), "a/b", strings.NewReader("y")),
		"conflict": b.Create(t.Context(), "a/b/c", strings.NewReader("y")),
		"ended":    b.Create(ctx, "c", strings.NewReader("y")),
		"reader":   b.Create(t.Context(), "c", io.MultiReader(strings.NewReader("y"), failing{})),
		"idle":     b.Create(t.Context(), "c", idle{}),
	} {
		if err == nil {
			t.Errorf("%s: no error", key)
		}
	}
	if got := temps(t, dir); len(got) > 0 {
		t.Errorf("left: %q", got)
	}
	wantKeys(t, b, "a/b")
	err := b.Create(t.Context(), "a/b/c", strings.NewReader("y"))
	wantText(t, err, fmt.Sprintf("create a/b/c in file://%s: the key and another object's key exclude each other: one is the other's beginning", dir), "")
	err = b.Create(t.Context(), "a", strings.NewReader("y"))
	wantText(t, err, fmt.Sprintf("create a in file://%s: the key and another object's key exclude each other: one is the other's beginning", dir), "")
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("gone") }

// idle never gives anything, nor ends.
type idle struct{}

func (idle) Read([]byte) (int, error) { return 0, nil }

// A Create that comes too late says so without reading what may be gigabytes.
func TestFileCreateOfATakenKeyReadsNothing(t *testing.T) {
	b := open(t, t.TempDir())
	create(t, b, "a", "x")
	r := strings.NewReader("content")
	if err := b.Create(t.Context(), "a", r); !errors.Is(err, storage.ErrExists) || r.Len() != 7 {
		t.Errorf("%v, with %d bytes unread", err, r.Len())
	}
}

func TestFileOpenWithEndedContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := t.TempDir() + "/store"
	if _, err := storage.Open(ctx, storage.Config{URL: "file://" + dir}); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the root was made: %v", err)
	}
}
