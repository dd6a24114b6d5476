package keyring

import (
	"os"

	"golang.org/x/sys/windows"
)

// exclusively waits until nobody else has the file locked, and locks it.
func exclusively(f *os.File) error {
	return windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK, 0, 1, 0, new(windows.Overlapped))
}

// keepOwner has nothing to do: a new file has the access that its directory gives.
func keepOwner(*os.File, string) error { return nil }

// syncDir has nothing to do: directories cannot be synced here.
func syncDir(string) error { return nil }
