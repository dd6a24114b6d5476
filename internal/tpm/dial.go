package tpm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"strings"
	"syscall"
	"time"
)

// dial opens the connection that addr names. exclusive means that nobody else
// can be talking to the TPM while it is open.
func dial(ctx context.Context, addr string) (rw io.ReadWriteCloser, exclusive bool, err error) {
	network, target, ok := strings.Cut(addr, ":")
	switch {
	case addr == "" || strings.HasPrefix(addr, "/dev/"):
		rw, err = openDevice(addr)
		return rw, false, err
	case ok && (network == "unix" || network == "tcp"):
		d := net.Dialer{Timeout: 5 * time.Second}
		conn, err := d.DialContext(ctx, network, target)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
			return nil, false, fmt.Errorf("no TPM listens on %s: is swtpm running? (%w)", addr, err)
		}
		if errors.Is(err, fs.ErrPermission) {
			return nil, false, fmt.Errorf("no permission to use the TPM on %s: its socket belongs to another user (%w)", addr, err)
		}
		if err != nil {
			return nil, false, fmt.Errorf("connecting to the TPM on %s: %w", addr, err)
		}
		return conn, true, nil // swtpm serves one connection at a time
	}
	return nil, false, fmt.Errorf("%q is not the address of a TPM: want /dev/..., unix:PATH or tcp:HOST:PORT", addr)
}
