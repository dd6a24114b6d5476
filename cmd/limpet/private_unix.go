//go:build unix

package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
)

// listenPrivate listens on a Unix socket that only its owner can connect to,
// in a directory that nobody else can write to. A socket that was left behind
// is replaced.
func listenPrivate(path string) (net.Listener, error) { return listenUnix(path, 0o177) }

// listenPublic is listenPrivate for a socket that every user can connect to.
func listenPublic(path string) (net.Listener, error) { return listenUnix(path, 0o111) }

func listenUnix(path string, umask int) (net.Listener, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	fi, err := os.Stat(dir)
	if err != nil {
		return nil, err
	}
	if mode := fi.Mode().Perm(); mode&0o022 != 0 {
		return nil, fmt.Errorf("others can write to %s: its mode is %#o, make it 0700", dir, mode)
	}
	conn, err := net.Dial("unix", path)
	if err == nil {
		conn.Close()
		return nil, fmt.Errorf("another server listens on %s", path)
	}
	// Other errors are those of a server that is there, and too busy for us.
	if fi, e := os.Lstat(path); e == nil && fi.Mode().Type() == os.ModeSocket && errors.Is(err, syscall.ECONNREFUSED) {
		os.Remove(path) // what stops us is told by Listen
	}
	old := syscall.Umask(umask) // the mode that it has from its first moment
	defer syscall.Umask(old)
	return net.Listen("unix", path)
}

var hangup os.Signal = syscall.SIGHUP
