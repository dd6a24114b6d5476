// Package keydir keeps one small file for each key in a private directory. The
// keystores that live in files share it, so that there is one place where ids
// become file names and one way to write a file that survives a power cut.
package keydir

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/limpet-auth/limpet/hwkey"
)

const (
	// MaxFile is the size in bytes above which a file is not read.
	MaxFile = 64 << 10

	maxID   = 64
	maxKeys = 10000 // keys listed from one directory
)

// Dir is a directory of key files. Name is its path and Ext what the file
// names end in, with the dot.
type Dir struct {
	Name string
	Ext  string
}

// NewID returns a fresh random id of 26 upper-case letters and digits.
func NewID() string { return rand.Text() }

// ValidID tells whether id may be used as a file name: 1 to 64 letters, digits,
// '-' and '_', the first of them not a '-'.
func ValidID(id string) bool {
	if id == "" || len(id) > maxID || id[0] == '-' {
		return false
	}
	for _, c := range []byte(id) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_':
		default:
			return false
		}
	}
	return true
}

// CheckLabel refuses labels that cannot be shown or stored: more than 256
// bytes, or control characters.
func CheckLabel(label string) error {
	if len(label) > 256 {
		return fmt.Errorf("label has %d bytes, at most 256 are allowed", len(label))
	}
	if strings.ToValidUTF8(label, "") != label || strings.ContainsFunc(label, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return errors.New("label is not plain text")
	}
	return nil
}

// CheckSecret refuses secrets for HMAC keys that are too short or too long.
func CheckSecret(secret []byte) error {
	if n := len(secret); n < hwkey.MinHMACSecret || n > hwkey.MaxHMACSecret {
		return fmt.Errorf("a secret of %d bytes, want %d (%d bits) to %d", n, hwkey.MinHMACSecret, 8*hwkey.MinHMACSecret, hwkey.MaxHMACSecret)
	}
	return nil
}

// Path returns the file of the key with this id.
func (d Dir) Path(id string) string { return filepath.Join(d.Name, id+d.Ext) }

// Read returns the file of a key. An id that is not there, or could not be,
// gives hwkey.ErrNotFound.
func (d Dir) Read(id string) ([]byte, error) {
	if !ValidID(id) {
		return nil, hwkey.ErrNotFound
	}
	data, err := ReadFile(d.Path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, hwkey.ErrNotFound
	}
	return data, err
}

// IDs returns the ids of all keys in the directory. A directory that does not
// exist holds none.
func (d Dir) IDs() ([]string, error) {
	f, err := os.Open(d.Name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(2 * maxKeys)
	if err != nil && err != io.EOF {
		return nil, err
	}
	var ids []string
	for _, name := range names {
		id, ok := strings.CutSuffix(name, d.Ext)
		if ok && ValidID(id) {
			ids = append(ids, id)
		}
	}
	if len(ids) > maxKeys {
		return nil, fmt.Errorf("%s holds more than %d keys", d.Name, maxKeys)
	}
	return ids, nil
}

// Write stores the file of a key, whole or not at all, readable by its owner
// alone.
func (d Dir) Write(id string, data []byte) error {
	return d.put(d.Path(id), data, os.Rename)
}

// WriteNew stores a file under name in the directory unless there is one
// already: then it returns an error that is fs.ErrExist and changes nothing.
func (d Dir) WriteNew(name string, data []byte) error {
	return d.put(filepath.Join(d.Name, name), data, os.Link)
}

// put writes a temporary file, syncs it, gives it its name and syncs the
// directory, so that after a power cut the name leads to all of data or to
// nothing.
func (d Dir) put(path string, data []byte, place func(from, to string) error) error {
	if err := os.MkdirAll(d.Name, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(d.Name, ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := place(f.Name(), path); err != nil {
		return err
	}
	return syncDir(d.Name)
}

// Remove deletes the file of a key. An id that is not there gives
// hwkey.ErrNotFound.
func (d Dir) Remove(id string) error {
	if !ValidID(id) {
		return hwkey.ErrNotFound
	}
	err := os.Remove(d.Path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return hwkey.ErrNotFound
	}
	if err != nil {
		return err
	}
	return syncDir(d.Name)
}

// ReadFile reads a regular file of at most MaxFile bytes.
func ReadFile(path string) ([]byte, error) {
	if fi, err := os.Stat(path); err != nil {
		return nil, err
	} else if !fi.Mode().IsRegular() { // opening a FIFO would wait for a writer
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > MaxFile {
		return nil, fmt.Errorf("%s has more than %d bytes", path, MaxFile)
	}
	return data, nil
}

// State returns the directory below which a program keeps what it must find
// again and nobody should edit: $XDG_STATE_HOME/limpet, or the system's own
// place on Windows and macOS.
func State() (string, error) {
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "limpet"), nil
	}
	if runtime.GOOS == "windows" || runtime.GOOS == "darwin" {
		dir, err := os.UserConfigDir()
		return filepath.Join(dir, "limpet"), err
	}
	home, err := os.UserHomeDir()
	return filepath.Join(home, ".local", "state", "limpet"), err
}

// syncDir makes a change of names in dir durable. Windows cannot sync a
// directory and does not need to.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
