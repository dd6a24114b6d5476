//go:build linux || darwin

package gateway

import (
	"errors"
	"net"
	"syscall"

	"github.com/limpet-auth/limpet/internal/relay"
)

const canTellQuiet = true

func rawOf(c net.Conn) (syscall.RawConn, error) {
	if ours, ok := c.(*relay.Conn); ok {
		c = ours.Conn
	}
	if s, ok := c.(syscall.Conn); ok {
		return s.SyscallConn()
	}
	return nil, errors.New("not a socket")
}

func (c *directConn) lookOnce(fd uintptr) bool {
	var b [1]byte
	n, err := syscall.Read(int(fd), b[:]) // does not wait: Go's sockets are all non-blocking
	c.silent, c.spoke = err == syscall.EAGAIN, n > 0
	return true
}
