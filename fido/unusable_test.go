package fido_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/limpet-auth/limpet/fido"
	"github.com/limpet-auth/limpet/fido/softvault"
)

// outOfOrder is a vault that finds nothing of its own.
type outOfOrder struct{ fido.Vault }

func (outOfOrder) PIN(context.Context) (bool, int, error) { return false, 0, fido.ErrNoKey }

func (outOfOrder) Open(context.Context, []byte) ([]byte, error) { return nil, fido.ErrNoKey }

// A token that cannot start because of its vault leaves its credentials where they are.
func TestUnusableVault(t *testing.T) {
	dir := t.TempDir()
	vault, err := softvault.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer vault.Close()
	file := filepath.Join(dir, "credentials")
	if err := os.WriteFile(file, []byte("sealed"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = fido.New(t.Context(), fido.Config{Vault: outOfOrder{vault}, File: file, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if !errors.Is(err, fido.ErrNoKey) {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Error("the credentials were put aside: ", err)
	}
}
