package storage_test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"pitr/internal/hint"
	"pitr/storage"
)

// childVariable tells the test binary, run by one of the tests below, that it is the child, and where to work.
const childVariable = "PITR_TEST_CHILD_DIR"

// selfNamed is the key of content: it says what must be under it.
func selfNamed(content []byte) string {
	sum := sha256.Sum256(content)
	return fmt.Sprintf("d%x/%x", sum[:1], sum)
}

// A writer is killed at any moment: what is listed is whole, and what it had acknowledged is listed.
func TestFileKilled(t *testing.T) {
	if dir := os.Getenv(childVariable); dir != "" {
		writeForEver(t, dir)
		return
	}
	dir := t.TempDir() + "/store"
	acknowledged := make(map[string]bool)
	for range 12 {
		killWriter(t, dir, rand.N(150*time.Millisecond), acknowledged)
	}
	b := open(t, dir)
	listed, err := keys(b)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range listed {
		content, err := read(b, key)
		if err != nil {
			t.Fatal(err)
		}
		if selfNamed([]byte(content)) != key {
			t.Errorf("%s holds %d other bytes", key, len(content))
		}
		delete(acknowledged, key)
	}
	if len(acknowledged) > 0 {
		t.Errorf("lost: %v", acknowledged)
	}
	if _, err := storage.Sweep(t.Context(), b, 0); err != nil {
		t.Fatal(err)
	}
	if left := temps(t, dir); len(left) > 0 {
		t.Errorf("left behind after a Sweep: %q", left)
	}
	t.Logf("%d objects listed", len(listed))
}

// killWriter runs a writer and kills it some time after its first object.
func killWriter(t *testing.T, dir string, after time.Duration, acknowledged map[string]bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFileKilled$")
	cmd.Env = append(os.Environ(), childVariable+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var timer *time.Timer
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			break // a line cut off by the kill was not acknowledged
		}
		if key, ok := strings.CutPrefix(strings.TrimSpace(line), "stored "); ok {
			acknowledged[key] = true
			if timer == nil {
				timer = time.AfterFunc(after, func() { cmd.Process.Kill() })
				defer timer.Stop()
			}
		} else {
			t.Errorf("the writer said %q", line)
		}
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("the writer ended by itself: %v", err)
	}
}

func writeForEver(t *testing.T, dir string) {
	b := open(t, dir)
	rng := rand.NewChaCha8(sha256.Sum256([]byte(time.Now().String())))
	for i := 0; ; i++ {
		content := make([]byte, 1+int(rng.Uint64()%(2<<20)))
		rng.Read(content)
		key := selfNamed(content)
		if err := b.Create(t.Context(), key, bytes.NewReader(content)); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("stored", key)
		if i%5 == 4 { // directories go and come
			if err := b.Delete(t.Context(), "none/x", "none/y"); err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
		}
	}
}

// On file systems of their own, mounted in a namespace: a full one, a read-only one, and one that is unmounted.
func TestFileOnRealFileSystems(t *testing.T) {
	if dir := os.Getenv(childVariable); dir != "" {
		t.Run("full", func(t *testing.T) { testFull(t, dir) })
		t.Run("read-only", func(t *testing.T) { testReadOnly(t, dir) })
		t.Run("unmounted", func(t *testing.T) { testUnmounted(t, dir) })
		return
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFileOnRealFileSystems$", "-test.v")
	cmd.Env = append(os.Environ(), childVariable+"="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, fs.ErrPermission) {
		t.Skipf("this kernel lets only root mount file systems (%v): run it as root", err)
	}
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	for _, name := range []string{"full", "read-only", "unmounted"} {
		if !strings.Contains(string(out), "--- PASS: TestFileOnRealFileSystems/"+name+" ") {
			t.Errorf("%s did not run:\n%s", name, out)
		}
	}
}

// mount puts an empty file system of one megabyte at a new directory below dir.
func mount(t *testing.T, dir, name string) string {
	t.Helper()
	if err := syscall.Mount("", "/", "", syscall.MS_PRIVATE|syscall.MS_REC, ""); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, name)
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", path, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	return path
}

func testFull(t *testing.T, dir string) {
	root := mount(t, dir, "full")
	b := open(t, root)
	create(t, b, "small", "x")
	err := b.Create(t.Context(), "large", io.LimitReader(zeros{}, 2<<20))
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(hint.Of(err), "free space (or inodes, or quota) on the file system of "+root) {
		t.Errorf("error is %v, hint %q", err, hint.Of(err))
	}
	wantKeys(t, b, "small")
	if left := temps(t, root); len(left) > 0 {
		t.Errorf("left behind, in what room there is: %q", left)
	}
	create(t, b, "other", "x")
	if err := b.Delete(t.Context(), "small"); err != nil {
		t.Error(err)
	}
}

func testReadOnly(t *testing.T, dir string) {
	root := mount(t, dir, "read-only")
	create(t, open(t, root), "a", "x")
	if err := syscall.Mount("", root, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	b := open(t, root) // a restore must be able to
	if got, err := read(b, "a"); err != nil || got != "x" {
		t.Errorf("a is %q, %v", got, err)
	}
	for op, err := range map[string]error{
		"create": b.Create(t.Context(), "b", strings.NewReader("x")),
		"delete": b.Delete(t.Context(), "a"),
	} {
		if !errors.Is(err, syscall.EROFS) || !strings.Contains(hint.Of(err), "is read-only") {
			t.Errorf("%s: error is %v, hint %q", op, err, hint.Of(err))
		}
	}
	if !b.Capabilities().CreateIfAbsent {
		t.Error("CreateIfAbsent is denied because nothing can be written")
	}
	wantKeys(t, b, "a")
}

func testUnmounted(t *testing.T, dir string) {
	root := mount(t, dir, "unmounted")
	b := open(t, root)
	create(t, b, "a", "x")
	if err := syscall.Unmount(root, 0); err != nil {
		t.Fatalf("an open bucket keeps its file system busy: %v", err)
	}
	if _, err := read(b, "a"); !errors.Is(err, storage.ErrVanished) {
		t.Errorf("Get: %v, want ErrVanished", err)
	}
	if err := b.Create(t.Context(), "b", strings.NewReader("x")); !errors.Is(err, storage.ErrVanished) {
		t.Errorf("Create: %v, want ErrVanished", err)
	}
	if entries, err := os.ReadDir(root); err != nil || len(entries) > 0 {
		t.Errorf("the mount point holds %v, %v", entries, err)
	}
}
