package pgtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// templates holds one data directory for each way of calling initdb that this test process has used. They are made once
// and only copied after that.
var templates sync.Map // of the command's words, joined, to func() (dir string, err error)

// initdbArgs returns initdb's command line for o, without the directory.
func (o Options) initdbArgs(bin Bin) []string {
	args := []string{filepath.Join(bin.Dir, "initdb"), "-N", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C"}
	switch {
	case !o.NoChecksums:
		args = append(args, "--data-checksums")
	case bin.Major >= 18:
		args = append(args, "--no-data-checksums")
	}
	if o.SegSizeMB != 0 {
		args = append(args, "--wal-segsize="+strconv.Itoa(o.SegSizeMB))
	}
	return append(args, o.Initdb...)
}

// newDataDir makes dir the data directory of a new server.
func newDataDir(t testing.TB, bin Bin, o Options, dir string) {
	t.Helper()
	args := o.initdbArgs(bin)
	if o.NewSystem {
		if err := initdb(args, dir); err != nil {
			t.Fatal(err)
		}
		return
	}
	root := scratch(t)
	made, _ := templates.LoadOrStore(strings.Join(args, "\x00"), sync.OnceValues(func() (string, error) {
		parent, err := os.MkdirTemp(root, "t")
		if err != nil {
			return "", err
		}
		uid, gid := User()
		if err := os.Chown(parent, uid, gid); err != nil {
			return "", err
		}
		template := filepath.Join(parent, "data")
		return template, initdb(args, template)
	}))
	template, err := made.(func() (string, error))()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", "-a", "--reflink=auto", template, dir).CombinedOutput(); err != nil {
		t.Fatalf("copy template of a data directory: %v\n%s", err, out)
	}
}

func initdb(args []string, dir string) error {
	cmd := exec.Command(args[0], append(slices.Clone(args[1:]), "-D", dir)...)
	AsServerUser(cmd)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, out)
	}
	return nil
}
