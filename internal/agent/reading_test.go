package agent_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"pitr/internal/postgres/pgtest"
)

// An agent that is asked for WAL begins no repository, and does not take an empty place, as is left where a file system is
// not mounted, for an archive without that WAL.
func TestFetchBeginsNoRepository(t *testing.T) {
	h := newHost(t, pgtest.Options{SegSizeMB: 1})
	h.Exec("CREATE TABLE x ()", "SELECT pg_switch_wal()")
	h.Conf(map[string]string{"archive_command": "false"}) // so that nothing is asked for but by the test
	h.drained()
	h.Reload()

	empty := *h
	empty.store, empty.service, empty.config = filepath.Join(pgtest.TempDir(t), "repo"), filepath.Join(pgtest.TempDir(t), "s"), h.config+"2"
	empty.write(empty.config, empty.service)
	p := empty.agent(empty.config, empty.service, false)
	for _, name := range []string{"00000002.history", "000000010000000000000001"} {
		cmd := exec.Command(h.pitr, "--config", empty.config, "wal", "fetch", name, "pg_wal/RECOVERYTEST")
		pgtest.AsServerUser(cmd)
		cmd.Dir = h.Dir
		var errOut bytes.Buffer
		cmd.Stderr = &errOut
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		cmd.Wait() // the status tells
		if code := cmd.ProcessState.Sys().(syscall.WaitStatus).ExitStatus(); code != 200 || !strings.Contains(errOut.String(), "no repository of this cluster") {
			t.Errorf("fetch of %s: %d\n%s", name, code, errOut.String())
		}
		if _, err := os.Stat(empty.store); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("fetch of %s made the store: %v", name, err)
		}
	}
	p.stop(t)
}
