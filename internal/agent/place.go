package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"pitr/internal/agent/client"
	"pitr/internal/durable"
	"pitr/internal/hint"
	"pitr/internal/postgres"
)

// What the agent has in the service directory. Everything below aheadDir and SpoolDir is left over when it starts.
const (
	lockName = "agent.lock"
	aheadDir = "ahead"
	// SpoolDir holds what backups put aside while they run.
	SpoolDir = "spool"
	// RepositoryMemory is the file by which the host remembers that it has used a repository (repo.EnsureRemembered).
	RepositoryMemory = "repository"
)

// A place is the service directory, held by one agent at a time.
type place struct {
	dir  string
	lock *os.File
}

// takePlace makes the service directory if it is missing and locks it. The lock ends with the process, however it ends.
func takePlace(dir string) (*place, error) {
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return nil, placeError(dir, err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return nil, placeError(dir, err)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return nil, hint.Wrap(fmt.Errorf("use service directory %s: others than its owner may write there (mode %04o)", dir, info.Mode().Perm()),
			"whoever can replace the agent's socket can make WAL disappear: `chmod go-w %s`, or name a directory of pitr's own in `service.dir`", dir)
	}
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, placeError(dir, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		return nil, hint.Wrap(fmt.Errorf("an agent runs already in %s (process %s)", dir, holder(f)),
			"one agent serves one server; stop that one first, or give this one its own `service.dir`")
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = fmt.Fprintln(f, os.Getpid())
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	return &place{dir, f}, nil
}

func holder(f *os.File) string {
	b := make([]byte, 20)
	n, _ := f.ReadAt(b, 0)
	if pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n]))); err == nil {
		return strconv.Itoa(pid)
	}
	return "unknown"
}

func placeError(dir string, err error) error {
	err = fmt.Errorf("use service directory: %w", err)
	if errors.Is(err, fs.ErrPermission) {
		return hint.Wrap(err, "`service.dir` must belong to the server's user, or be made by root: `install -d -m 0700 -o postgres %s`", dir)
	}
	return err
}

// clean removes what an agent that was killed left behind.
func (p *place) clean() error {
	for _, name := range []string{aheadDir, SpoolDir, client.SocketName} {
		if err := os.RemoveAll(filepath.Join(p.dir, name)); err != nil {
			return fmt.Errorf("remove what the last agent left behind: %w", err)
		}
	}
	for _, name := range []string{aheadDir, SpoolDir} {
		if err := os.Mkdir(filepath.Join(p.dir, name), 0o700); err != nil {
			return fmt.Errorf("make the agent's directories: %w", err)
		}
	}
	return nil
}

// release lets another agent in. The lock's file stays: removing it could let two in.
func (p *place) release() error { return p.lock.Close() }

// PrepareAsRoot makes the service directory and gives it, and what the agent has there, to the account, before root
// becomes that account. A directory that was there before, holds what is not pitr's and belongs to somebody else is
// refused.
func PrepareAsRoot(dir string, a postgres.Account) error {
	_, err := os.Stat(dir)
	fresh := errors.Is(err, fs.ErrNotExist)
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return placeError(dir, err)
	}
	uid, _, err := postgres.OwnerOf(dir)
	if err != nil {
		return placeError(dir, err)
	}
	if uid != a.UID && !fresh {
		if err := onlyOurs(dir, a); err != nil {
			return err
		}
	}
	if err := os.Lchown(dir, int(a.UID), int(a.GID)); err != nil {
		return placeError(dir, err)
	}
	for _, name := range []string{lockName, client.SocketName, aheadDir, SpoolDir, RepositoryMemory} {
		err := filepath.WalkDir(filepath.Join(dir, name), func(path string, _ fs.DirEntry, err error) error {
			if err == nil {
				err = os.Lchown(path, int(a.UID), int(a.GID))
			}
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return placeError(dir, err)
		}
	}
	return nil
}

// onlyOurs returns an error if dir holds anything that pitr did not put there.
func onlyOurs(dir string, a postgres.Account) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return placeError(dir, err)
	}
	for _, e := range entries {
		switch e.Name() {
		case lockName, client.SocketName, aheadDir, SpoolDir, RepositoryMemory, "repo": // the last is the default place of the store
		default:
			return hint.Wrap(fmt.Errorf("use service directory %s: it does not belong to %s, and %q in it is not pitr's", dir, a, e.Name()),
				"name a directory of pitr's own in `service.dir`, or give this one away: `chown %s %s`", owner(a), dir)
		}
	}
	return nil
}

// owner is how chown(1) is told of the account.
func owner(a postgres.Account) string {
	if a.Name != "" {
		return a.Name
	}
	return strconv.FormatUint(uint64(a.UID), 10)
}
