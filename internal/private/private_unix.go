//go:build unix

package private

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// syncDir makes a new name in a directory last through a power cut. A directory that
// one may write to and not read cannot be synced, and some file systems have no such
// thing.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if errors.Is(err, fs.ErrPermission) {
		return nil
	}
	if err != nil {
		return err
	}
	err = syncFile(d)
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOTSUP) {
		err = nil
	}
	return errors.Join(err, d.Close())
}

// noFollow has links refused, and pipes not waited for.
const noFollow = syscall.O_NOFOLLOW | syscall.O_NONBLOCK

// giveAwayDir is giveAway for a directory that was just made. The owner of the one
// above may have put something else of root's in its place: only what is empty goes.
func giveAwayDir(path string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	d, err := os.OpenFile(path, os.O_RDONLY|noFollow, 0)
	if err != nil {
		return err
	}
	defer d.Close()
	switch _, err := d.Readdirnames(1); {
	case err == nil:
		return fmt.Errorf("%s was replaced as it was made", path)
	case !errors.Is(err, io.EOF):
		return err
	}
	return giveAway(d)
}

// giveAway gives a file that root has made to the owner of its directory.
func giveAway(f *os.File) error {
	if os.Geteuid() != 0 {
		return nil
	}
	dir, err := os.Stat(filepath.Dir(f.Name()))
	if err != nil {
		return err
	}
	file, err := f.Stat()
	if err != nil {
		return err
	}
	to, is := dir.Sys().(*syscall.Stat_t), file.Sys().(*syscall.Stat_t)
	if to.Uid == is.Uid {
		return nil
	}
	return f.Chown(int(to.Uid), int(to.Gid))
}
