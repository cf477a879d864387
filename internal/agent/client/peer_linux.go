package client

import (
	"fmt"
	"net"
	"os"
	"syscall"
)

// PeerUID returns the user that the process at the other end of a Unix socket had when it connected or began to listen
// (SO_PEERCRED of unix(7)), and known = true.
func PeerUID(conn net.Conn) (uid int, known bool, err error) {
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return 0, false, fmt.Errorf("ask for the peer of a %T", conn)
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, false, fmt.Errorf("ask for the peer's credentials: %w", err)
	}
	var cred *syscall.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err == nil {
		err = credErr
	}
	if err != nil {
		return 0, false, fmt.Errorf("ask for the peer's credentials: %w", err)
	}
	return int(cred.Uid), true, nil
}

// trusted returns an error unless the agent at the other end is one to believe. A false "it is stored" would lose WAL.
func trusted(conn net.Conn) error {
	uid, known, err := PeerUID(conn)
	if err != nil {
		return err
	}
	if me := os.Geteuid(); known && me != 0 && uid != 0 && uid != me {
		return fmt.Errorf("the agent's socket belongs to user %d, which user %d does not trust", uid, me)
	}
	return nil
}
