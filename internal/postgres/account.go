package postgres

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"syscall"

	"pitr/internal/hint"
)

// Account is an operating system user that a server, or a tool working on its files, runs as.
type Account struct {
	UID, GID uint32
	Groups   []uint32 // all groups, GID among them; a server may need one to read its TLS key
	Name     string   // empty where the user has no entry in the user database, as in containers
	Home     string   // empty where Name is
}

// OwnerOf returns the numbers of the user and group that own dataDir. PostgreSQL refuses to run as anyone but the owner.
func OwnerOf(dataDir string) (uid, gid uint32, err error) {
	info, err := os.Stat(dataDir)
	if err != nil {
		return 0, 0, fmt.Errorf("find owner of data directory: %w", err)
	}
	if !info.IsDir() {
		return 0, 0, fmt.Errorf("find owner of data directory: %w", &fs.PathError{Op: "stat", Path: dataDir, Err: syscall.ENOTDIR})
	}
	st := info.Sys().(*syscall.Stat_t)
	return st.Uid, st.Gid, nil
}

// AccountOf returns the account that owns dataDir.
func AccountOf(dataDir string) (Account, error) {
	uid, gid, err := OwnerOf(dataDir)
	if err != nil {
		return Account{}, err
	}
	u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10))
	if _, unknown := errors.AsType[user.UnknownUserIdError](err); unknown {
		return Account{UID: uid, GID: gid, Groups: []uint32{gid}}, nil
	}
	if err != nil {
		return Account{}, fmt.Errorf("look up owner %d of %s: %w", uid, dataDir, err)
	}
	return account(u)
}

// LookupAccount returns the account of the user called name.
func LookupAccount(name string) (Account, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return Account{}, fmt.Errorf("look up user %q: %w", name, err)
	}
	return account(u)
}

func account(u *user.User) (Account, error) {
	a := Account{Name: u.Username, Home: u.HomeDir}
	uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
	gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(uidErr, gidErr); err != nil {
		return Account{}, fmt.Errorf("look up user %q: %w", u.Username, err)
	}
	a.UID, a.GID, a.Groups = uint32(uid), uint32(gid), []uint32{uint32(gid)}
	ids, err := u.GroupIds()
	if err != nil {
		return Account{}, fmt.Errorf("look up groups of user %q: %w", u.Username, err)
	}
	for _, id := range ids {
		g, err := strconv.ParseUint(id, 10, 32)
		if err != nil {
			return Account{}, fmt.Errorf("look up groups of user %q: %w", u.Username, err)
		}
		if uint32(g) != a.GID {
			a.Groups = append(a.Groups, uint32(g))
		}
	}
	return a, nil
}

// RunAs makes cmd run as the account, with its groups and, in its environment, its HOME, USER and LOGNAME: a server
// whose HOME is root's can't read it. Where this process already is that user, cmd stays as it is. It fails if the
// account is root, or if this process may not become it.
func (a Account) RunAs(cmd *exec.Cmd) error {
	me := uint32(os.Geteuid())
	switch {
	case a.UID == 0:
		return hint.Wrap(errors.New("run as root: PostgreSQL refuses to"),
			"give the data directory to the server's own user, for example `chown -R postgres DIR`")
	case a.UID == me:
		return nil
	case me != 0:
		return hint.Wrap(fmt.Errorf("run as %s: this process is user %d", a, me), "run pitr as that user, or as root")
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: a.UID, Gid: a.GID, Groups: a.Groups}
	env := cmd.Env
	if env == nil {
		env = os.Environ()
	}
	env = without(env, "HOME", "USER", "LOGNAME", "XDG_RUNTIME_DIR")
	if a.Name != "" {
		env = append(env, "HOME="+a.Home, "USER="+a.Name, "LOGNAME="+a.Name)
	}
	cmd.Env = env
	return nil
}

// String is the account's name, or its number where it has none.
func (a Account) String() string {
	if a.Name == "" {
		return fmt.Sprintf("user %d", a.UID)
	}
	return a.Name
}

// without returns env less the variables named, in a slice of its own.
func without(env []string, names ...string) []string {
	kept := make([]string, 0, len(env))
next:
	for _, e := range env {
		for _, n := range names {
			if strings.HasPrefix(e, n+"=") {
				continue next
			}
		}
		kept = append(kept, e)
	}
	return kept
}
