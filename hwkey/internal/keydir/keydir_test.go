package keydir

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/limpet-auth/limpet/hwkey"
)

func TestDir(t *testing.T) {
	d := Dir{Name: filepath.Join(t.TempDir(), "a", "b"), Ext: ".key"}
	if ids, err := d.IDs(); err != nil || len(ids) != 0 {
		t.Errorf("a directory that is not there lists %q, error %v", ids, err)
	}
	for _, data := range []string{"one", "two"} { // the second replaces the first
		if err := d.Write("x", []byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	if data, err := d.Read("x"); string(data) != "two" || err != nil {
		t.Errorf("read %q, error %v", data, err)
	}
	if err := d.WriteNew("x.key", []byte("three")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("error %v, want ErrExist", err)
	}
	if err := d.WriteNew("header", []byte("new")); err != nil {
		t.Error(err)
	}
	// What a power cut leaves is not a key.
	if err := os.WriteFile(filepath.Join(d.Name, ".new-1.key"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if ids, err := d.IDs(); err != nil || !slices.Equal(ids, []string{"x"}) {
		t.Errorf("IDs are %q, error %v", ids, err)
	}
	if err := d.Write("big", make([]byte, MaxFile+1)); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Read("big"); err == nil || errors.Is(err, hwkey.ErrNotFound) {
		t.Errorf("too big: error %v", err)
	}
	if err := os.Mkdir(d.Path("dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Read("dir"); err == nil || !strings.Contains(err.Error(), "regular") {
		t.Errorf("a directory: error %v", err)
	}
	entries, err := os.ReadDir(d.Name)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".new-") && e.Name() != ".new-1.key" {
			t.Errorf("%s was left behind", e.Name())
		}
	}
}

func TestCheckSecret(t *testing.T) {
	for n, ok := range map[int]bool{0: false, 15: false, 16: true, 128: true, 129: false} {
		err := CheckSecret(make([]byte, n))
		if (err == nil) != ok {
			t.Errorf("%d bytes: error %v", n, err)
		}
		if err != nil && !strings.Contains(err.Error(), "16 (128 bits) to 128") {
			t.Errorf("error %q does not say what is wanted", err)
		}
	}
}

func TestState(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", filepath.FromSlash("/state"))
	if dir, err := State(); err != nil || filepath.IsAbs("/state") && dir != "/state/limpet" {
		t.Errorf("state is %q, error %v", dir, err)
	}
	t.Setenv("XDG_STATE_HOME", "relative") // to be ignored, says the XDG specification
	t.Setenv("HOME", t.TempDir())
	if dir, err := State(); err != nil || !filepath.IsAbs(dir) {
		t.Errorf("state is %q, error %v", dir, err)
	}
}
