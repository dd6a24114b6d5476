// Package private knows which files are their owner's alone.
package private

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
)

// OwnerOnly refuses a file that others than its owner have access to. Windows has
// no such mode bits; there the directory's access list decides. Credentials of
// systemd are in a directory that nobody else can enter, and their modes may
// show an access list's mask.
func OwnerOnly(path string) error {
	fi, err := os.Stat(path)
	if err != nil || runtime.GOOS == "windows" {
		return err
	}
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); dir != "" && filepath.Dir(path) == filepath.Clean(dir) {
		return nil
	}
	if mode := fi.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("others can read %s: its mode is %#o, make it 0600", path, mode)
	}
	return nil
}
