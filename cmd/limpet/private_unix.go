//go:build unix

package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
)

// listenPrivate listens on a Unix socket that only its owner can connect to,
// in a directory that nobody else can write to. A socket that was left behind
// is replaced.
func listenPrivate(path string) (net.Listener, error) {
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
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		return nil, fmt.Errorf("another server listens on %s", path)
	}
	if fi, err := os.Lstat(path); err == nil && fi.Mode().Type() == os.ModeSocket {
		os.Remove(path) // what stops us is told by Listen
	}
	old := syscall.Umask(0o177) // mode 0600 from its first moment
	defer syscall.Umask(old)
	return net.Listen("unix", path)
}

var hangup os.Signal = syscall.SIGHUP
