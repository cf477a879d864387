package agent

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"pitr/internal/hint"
	"pitr/internal/postgres"
)

// Become makes this process, which is root's, the account's for good, by starting the same program again in its place: so
// no thread, and nothing that was opened before, keeps root's rights. The service directory is made ready before. It
// returns only errors.
func Become(a postgres.Account, serviceDir string, args []string) error {
	if a.UID == 0 {
		return hint.Wrap(errors.New("the data directory belongs to root, and PostgreSQL refuses to run as root"),
			"give it to the server's own user, for example `chown -R postgres DIR`")
	}
	if err := PrepareAsRoot(serviceDir, a); err != nil {
		return err
	}
	cmd := exec.Cmd{}
	if err := a.RunAs(&cmd); err != nil { // for the environment
		return err
	}
	groups := make([]int, len(a.Groups))
	for i, g := range a.Groups {
		groups[i] = int(g)
	}
	for _, step := range []func() error{
		func() error { return syscall.Setgroups(groups) },
		func() error { return syscall.Setgid(int(a.GID)) },
		func() error { return syscall.Setuid(int(a.UID)) },
	} {
		if err := step(); err != nil {
			return fmt.Errorf("become %s: %w", a, err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("become %s: %w", a, err)
	}
	err = syscall.Exec(self, args, cmd.Env)
	return hint.Wrap(fmt.Errorf("become %s: start %s: %w", a, self, err), "that user must be able to reach and execute the program")
}
