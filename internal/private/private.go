// Package private has files that are their owner's alone.
package private

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
)

// ErrLocked means that another process has a file locked.
var ErrLocked = errors.New("locked by another process")

// Lock makes a file and locks it until it is closed or the process ends, however
// that comes. If another process has it locked the error is ErrLocked.
func Lock(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := lock(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Write writes a file that only its owner can read, whole or not at all.
func Write(path string, data []byte) error { return place(path, data, os.Rename) }

// Create is Write for a file that must not exist; else the error is
// fs.ErrExist.
func Create(path string, data []byte) error { return place(path, data, os.Link) }

func place(path string, data []byte, move func(from, to string) error) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return move(f.Name(), path)
}

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
