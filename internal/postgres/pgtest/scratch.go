package pgtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
)

// keeper is the script of the process that cleans up after the tests. It reads a pipe whose other end only the test
// process holds, so that the end of file is the end of that process. Each server has a file in pids/ that holds the
// postmaster's id and start time, the latter so that an id that went to another process is left alone.
const keeper = `
root=$1
read -r _
same() { s=$(cat /proc/$1/stat 2>/dev/null) && s=${s##*) } && set -- "$1" "$2" $s && [ "${22}" = "$2" ]; }
for sig in QUIT KILL; do
	n=0
	while [ $n -lt 80 ]; do
		left=
		for f in "$root"/pids/*; do
			[ -f "$f" ] && read -r pid start <"$f" && same "$pid" "$start" || continue
			left=1
			[ $n -eq 0 ] && kill -$sig "$pid"
		done
		[ -z "$left" ] && break 2
		sleep 0.1
		n=$((n + 1))
	done
done
rm -rf "$root"
`

// scratchRoot makes the directory that everything of this test process lies in, and starts the keeper.
var scratchRoot = sync.OnceValues(func() (string, error) {
	var parent string
	// A socket's path may have 107 bytes. The last of the list is taken for want of a better one.
	for _, parent = range []string{os.TempDir(), "/tmp", "/var/tmp"} {
		if len(parent) <= 40 && reachable(parent) {
			break
		}
	}
	root, err := os.MkdirTemp(parent, "pgt")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(root, 0o755); err != nil {
		return "", err
	}
	if err := os.Mkdir(filepath.Join(root, "pids"), 0o755); err != nil {
		return "", err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer r.Close()
	cmd := exec.Command("/bin/sh", "-c", keeper, "keeper", root)
	cmd.Stdin = r
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // an interrupt at the terminal is not for it
	if err := cmd.Start(); err != nil {
		w.Close()
		return "", fmt.Errorf("start the process that cleans up: %w", err)
	}
	go func() {
		// w must stay open, thus referred to, as long as this process lives; the keeper ends only after that.
		defer w.Close()
		cmd.Wait()
	}()
	return root, nil
})

func scratch(t testing.TB) string {
	t.Helper()
	root, err := scratchRoot()
	if err != nil {
		t.Fatalf("make scratch directory: %v", err)
	}
	return root
}
