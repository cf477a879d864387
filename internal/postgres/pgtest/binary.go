package pgtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// binary builds pitr once for this test process.
var binary = sync.OnceValues(func() (string, error) {
	root, err := scratchRoot()
	if err != nil {
		return "", err
	}
	path := filepath.Join(root, "pitr")
	if out, err := exec.Command("go", "build", "-o", path, "pitr/cmd/pitr").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build pitr: %w\n%s", err, out)
	}
	return path, os.Chmod(path, 0o755)
})

// Binary returns the path of pitr's program, built from the tree under test. The servers' user may execute it.
func Binary(t testing.TB) string {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	return path
}
