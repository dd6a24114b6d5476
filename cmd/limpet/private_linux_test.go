package main

import (
	"net"
	"path/filepath"
	"syscall"
	"testing"
)

// TestBusySocket: a server that is too busy to take another connection is not one
// that left its socket behind.
func TestBusySocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	full := false
	for range 8 {
		conn, err := net.Dial("unix", path)
		if full = err != nil; full {
			break
		}
		defer conn.Close()
	}
	if !full {
		t.Fatal("the socket takes any number of connections")
	}
	if l, err := listenPrivate(path); err == nil {
		l.Close()
		t.Error("the socket of another server is taken")
	}
	syscall.Close(fd)
	l, err := listenPrivate(path)
	if err != nil {
		t.Fatalf("one that was left behind: %v", err)
	}
	l.Close()
}
