package pgtest

import "golang.org/x/sys/unix"

// removeShm removes the System V segment of a server that was killed, which its next start would have removed: the one
// with the id given that process pid has made.
func removeShm(id, pid int) {
	var info unix.SysvShmDesc
	if _, err := unix.SysvShmCtl(id, unix.IPC_STAT, &info); err != nil {
		return // gone, as after a stop in order
	}
	if int(info.Cpid) == pid && info.Nattch == 0 {
		unix.SysvShmCtl(id, unix.IPC_RMID, nil) // a few bytes stay if this fails
	}
}
