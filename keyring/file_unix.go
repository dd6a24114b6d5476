//go:build unix

package keyring

import (
	"fmt"
	"os"
	"syscall"
)

// ownerOnly refuses a file that others than its owner have access to.
func ownerOnly(path string) error {
	fi, err := os.Stat(path)
	if err != nil {
		return err
	}
	if mode := fi.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("others have access to %s: its mode is %#o, make it 0600", path, mode)
	}
	return nil
}

// exclusively waits until nobody else has the file locked, and locks it.
func exclusively(f *os.File) error {
	for {
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != syscall.EINTR {
			return err
		}
	}
}
