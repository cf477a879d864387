package storage

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

func TestStallingConn(t *testing.T) {
	here, there := net.Pipe()
	defer there.Close()
	const stall = 200 * time.Millisecond
	conn := stallingConn{here, stall}
	defer conn.Close()
	// What moves, however slowly, may take as long as it wants.
	go func() {
		for range 6 {
			time.Sleep(stall / 2)
			there.Write([]byte("x"))
		}
	}()
	if _, err := io.ReadFull(conn, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	// A reader that waits for the answer to a long body does not give up while that is being sent.
	read := make(chan error, 1)
	go func() {
		_, err := conn.Read(make([]byte, 1))
		read <- err
	}()
	for range 6 {
		time.Sleep(stall / 2)
		go there.Read(make([]byte, 1))
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case err := <-read:
		t.Fatalf("the reader gave up: %v", err)
	default:
	}
	if err := <-read; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("nothing came: %v", err)
	}
	if _, err := conn.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("nothing was taken: %v", err)
	}
}
