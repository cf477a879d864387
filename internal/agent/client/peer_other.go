//go:build !linux

package client

import "net"

// PeerUID reports known = false: here the modes of directory and socket are the guard.
func PeerUID(net.Conn) (uid int, known bool, err error) { return 0, false, nil }

func trusted(net.Conn) error { return nil }
