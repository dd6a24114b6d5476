//go:build !(linux || darwin)

package gateway

import (
	"errors"
	"net"
	"syscall"
)

const canTellQuiet = false // a read that does not wait takes more than the connection here

func rawOf(net.Conn) (syscall.RawConn, error) { return nil, errors.ErrUnsupported }

func (c *directConn) lookOnce(uintptr) bool { return false }
