package tpm

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// openDevice opens a TPM device; with an empty path the one behind the
// kernel's resource manager, which programs can share, or else the raw one.
func openDevice(path string) (io.ReadWriteCloser, error) {
	if path != "" {
		return openPath(path)
	}
	rw, err := openPath("/dev/tpmrm0")
	if errors.Is(err, os.ErrNotExist) {
		rw, err = openPath("/dev/tpm0")
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil, errors.New("this machine has no TPM, or its firmware has it switched off (there is neither /dev/tpmrm0 nor /dev/tpm0)")
	}
	return rw, err
}

func openPath(path string) (io.ReadWriteCloser, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("opening the TPM: %w", err)
	}
	if fi.Mode()&os.ModeCharDevice == 0 {
		return nil, fmt.Errorf("%s is not a TPM device", path)
	}
	// Without os.OpenFile, which would make the descriptor non-blocking where
	// it can: the driver answers a read that comes too early with no bytes.
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, deviceError(path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// deviceError says what to do about an error of opening a device.
func deviceError(path string, err error) error {
	switch {
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Errorf("no permission to use the TPM at %s: join the group of its file (on most systems: sudo usermod -aG tss $USER) and log in again: %w", path, err)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("the TPM is busy: another program holds %s; use /dev/tpmrm0, which programs can share: %w", path, err)
	}
	return fmt.Errorf("opening the TPM at %s: %w", path, err)
}
