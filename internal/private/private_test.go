//go:build unix

package private_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/limpet-auth/limpet/internal/private"
)

// TestOwnerOnly: the modes decide, but for systemd's credentials.
func TestOwnerOnly(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "secret")
	if err := os.WriteFile(path, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	check := func(what, credentials string, mode os.FileMode, ok bool) {
		t.Helper()
		t.Setenv("CREDENTIALS_DIRECTORY", credentials)
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if err := private.OwnerOnly(path); (err == nil) != ok {
			t.Errorf("%s: %v", what, err)
		}
	}
	check("its owner's", "", 0o600, true)
	check("its group's", "", 0o640, false)
	check("everybody's", "", 0o604, false)
	check("a credential", dir+"/", 0o440, true)
	check("below the directory of credentials", filepath.Dir(dir), 0o440, false)
	if err := private.OwnerOnly(filepath.Join(dir, "none")); !os.IsNotExist(err) {
		t.Errorf("no file: %v", err)
	}
}
