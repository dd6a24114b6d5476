package control

import (
	"errors"
	"net"

	"golang.org/x/sys/unix"
)

// peer returns the user at the other end.
func peer(conn net.Conn) (uid int, err error) {
	c, isUnix := conn.(*net.UnixConn)
	if !isUnix {
		return 0, errors.New("no Unix socket")
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	if e := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); e != nil {
		err = e
	}
	if err != nil {
		return 0, err
	}
	return int(cred.Uid), nil
}
