package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
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
func writeFile(path string, data []byte) error { return place(path, data, os.Rename) }

// createFile is writeFile for a file that must not exist; else the error is
// fs.ErrExist.
func createFile(path string, data []byte) error { return place(path, data, os.Link) }

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

// missing reports whether an error means that there is no such file.
func missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
