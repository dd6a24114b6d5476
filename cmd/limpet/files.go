package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/limpet-auth/limpet/internal/private"
)

// stateDir returns the directory of everything that the command must find
// again: $XDG_STATE_HOME/limpet, or the system's own place on Windows and macOS.
func stateDir() (string, error) {
	dir, err := findStateDir()
	if err != nil {
		return "", withHint(err, "set HOME or XDG_STATE_HOME")
	}
	return filepath.Join(dir, "limpet"), nil
}

func findStateDir() (string, error) {
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return dir, nil
	}
	if runtime.GOOS == "windows" || runtime.GOOS == "darwin" {
		return os.UserConfigDir()
	}
	home, err := os.UserHomeDir()
	return filepath.Join(home, ".local", "state"), err
}

// writeFile writes a file that only its owner can read, whole or not at all.
func writeFile(path string, data []byte) error { return private.Write(path, data) }

// createFile is writeFile for a file that must not exist; else the error is
// fs.ErrExist.
func createFile(path string, data []byte) error { return private.Create(path, data) }

// missing reports whether an error means that there is no such file.
func missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
