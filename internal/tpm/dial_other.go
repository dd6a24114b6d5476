//go:build !linux

package tpm

import (
	"fmt"
	"io"
	"runtime"
)

// openDevice has no device to open outside Linux.
func openDevice(string) (io.ReadWriteCloser, error) {
	return nil, fmt.Errorf("this version cannot use a TPM on %s yet, only on Linux", runtime.GOOS)
}
