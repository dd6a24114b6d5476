//go:build unix

package softvault_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/limpet-auth/limpet/fido"
	"github.com/limpet-auth/limpet/fido/softvault"
)

func open(t *testing.T, dir string) *softvault.Vault {
	t.Helper()
	v, err := softvault.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	return v
}

// TestFiles: a vault is its owner's alone, and is not made anew where one was.
func TestFiles(t *testing.T) {
	dir := t.TempDir()
	v := open(t, dir)
	if _, err := softvault.Open(dir); err == nil {
		t.Error("two have it open")
	}
	handle, _, err := v.Create(t.Context(), [32]byte{1}, nil)
	if err != nil {
		t.Fatal(err)
	}
	v.Close()
	for _, name := range []string{"key", "vault"} {
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, err, fi.Mode())
		}
	}
	key := filepath.Join(dir, "key")
	refused := func(what string) {
		t.Helper()
		if v, err := softvault.Open(dir); err == nil {
			v.Close()
			t.Errorf("opened: %s", what)
		}
	}
	os.Chmod(key, 0o640)
	refused("others can read the key")
	os.Chmod(key, 0o600)
	old, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	os.WriteFile(key, bytes.Repeat([]byte{1}, 32), 0o600)
	refused("another key")
	os.WriteFile(key, old[:31], 0o600)
	refused("half a key")
	os.Remove(key)
	refused("no key")
	os.WriteFile(key, old, 0o600)
	v = open(t, dir)
	if _, err := v.Sign(t.Context(), [32]byte{1}, handle, nil, [32]byte{}); err != nil {
		t.Error(err)
	}
}

// TestTriesAreCounted: a try counts before it is made, so that ending the process
// gives none back.
func TestTriesAreCounted(t *testing.T) {
	dir, ctx := t.TempDir(), t.Context()
	v := open(t, dir)
	if err := v.SetPIN(ctx, [16]byte{1}); err != nil {
		t.Fatal(err)
	}
	for left := 7; left >= 0; left-- {
		want := fido.ErrPINInvalid
		if left == 0 {
			want = fido.ErrPINBlocked
		}
		if _, err := v.Unlock(ctx, [16]byte{2}); !errors.Is(err, want) {
			t.Errorf("%d tries left: %v", left, err)
		}
		v.Close()
		v = open(t, dir)
		if _, n, err := v.PIN(ctx); err != nil || n != left {
			t.Errorf("%d tries left, want %d: %v", n, left, err)
		}
	}
	if _, err := v.Unlock(ctx, [16]byte{1}); !errors.Is(err, fido.ErrPINBlocked) {
		t.Errorf("the right one: %v", err)
	}
}

// TestCounter goes on after an end that nobody announced, and after a reset.
func TestCounter(t *testing.T) {
	dir, ctx := t.TempDir(), t.Context()
	last := uint32(0)
	for range 3 {
		v := open(t, dir)
		for range 1500 { // more than one step of the file
			n, err := v.Count(ctx)
			if err != nil || n <= last {
				t.Fatalf("%d after %d, %v", n, last, err)
			}
			last = n
		}
		if err := v.Reset(ctx); err != nil {
			t.Fatal(err)
		}
		v.Close()
	}
}
