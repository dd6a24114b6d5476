// Package private has files that are their owner's alone.
package private

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// ErrLocked means that another process has a file locked.
var ErrLocked = errors.New("locked by another process")

// Locked is a file that this process has locked.
type Locked struct{ file *os.File }

// Close unlocks the file. To close it would not do at once: a process that is being
// started has what this one has open, until it runs its program.
func (l *Locked) Close() error { return errors.Join(unlock(l.file), l.file.Close()) }

// Lock makes a file and locks it until it is closed or the process ends, however
// that comes. If another process has it locked the error is ErrLocked. A link is not
// followed.
func Lock(path string) (*Locked, error) {
	if err := makeDir(filepath.Dir(path)); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	switch {
	case err == nil:
		err = giveAway(f)
	case errors.Is(err, fs.ErrExist):
		f, err = openThere(path)
	}
	if err == nil {
		err = lock(f)
	}
	if err != nil {
		f.Close() // also nil
		return nil, err
	}
	return &Locked{f}, nil
}

// openThere opens a file that was there, and nothing else, which whoever can write to
// the directory may have put in its place.
func openThere(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|noFollow, 0)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Write writes a file that only its owner can read, whole or not at all: also a power
// cut leaves the one before or, once Write has returned, this one. What root
// writes belongs to the owner of the directory, whose program has to read it.
func Write(path string, data []byte) error { return place(path, data, giveAway, os.Rename) }

// Create is Write for a file that must not exist; else the error is
// fs.ErrExist. It belongs to who wrote it.
func Create(path string, data []byte) error { return place(path, data, keep, link) }

func link(from, to string) error {
	err := os.Link(from, to)
	if err == nil || errors.Is(err, fs.ErrExist) {
		return err
	}
	return claim(from, to)
}

// claim is for file systems without links, as memory sticks have them: the name is
// taken first. A power cut may leave an empty file.
func claim(from, to string) error {
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	f.Close()
	if err := os.Rename(from, to); err != nil {
		os.Remove(to)
		return err
	}
	return nil
}

func keep(*os.File) error { return nil }

func place(path string, data []byte, own func(*os.File) error, move func(from, to string) error) error {
	dir := filepath.Dir(path)
	if err := makeDir(dir); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if err = own(f); err == nil {
		_, err = f.Write(data)
	}
	if err = errors.Join(err, syncFile(f), f.Close()); err != nil {
		return err
	}
	if err := move(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

// makeDir makes a directory, and those above it, to last through a power cut. Each
// that root makes belongs to the owner of the one above.
func makeDir(dir string) error {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return os.MkdirAll(dir, 0o700) // which says what is wrong
	}
	above := filepath.Dir(dir)
	if err := makeDir(above); err != nil {
		return err
	}
	err := os.Mkdir(dir, 0o700)
	if err == nil {
		err = giveAwayDir(dir)
	} else {
		err = os.MkdirAll(dir, 0o700) // perhaps another process was faster
	}
	if err != nil {
		return err
	}
	return syncDir(above)
}

// syncFile is replaced by a test.
var syncFile = (*os.File).Sync

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
