package fido_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
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

// halfReset is a vault whose Reset fails, before it did anything or after, and which
// is out of order then for a while.
type halfReset struct {
	fido.Vault
	done, broken bool
}

var errHalf = errors.New("the power of the vault went")

func (h *halfReset) Reset(ctx context.Context) error {
	h.broken = true
	if h.done {
		if err := h.Vault.Reset(ctx); err != nil {
			return err
		}
	}
	return errHalf
}

func (h *halfReset) PIN(ctx context.Context) (bool, int, error) {
	if h.broken {
		return false, 0, fido.ErrNoKey
	}
	return h.Vault.PIN(ctx)
}

func (h *halfReset) Seal(ctx context.Context, plain []byte) ([]byte, error) {
	if h.broken {
		return nil, errHalf
	}
	return h.Vault.Seal(ctx, plain)
}

// TestHalfReset: after a reset that failed the token has what the vault has, nothing
// of what it had before, and while it cannot know that, nothing is lost.
func TestHalfReset(t *testing.T) {
	t.Parallel()
	for _, done := range []bool{false, true} {
		b := newBench(t, t.TempDir())
		b.make(m{7: m{"rk": true}})
		if err := b.SetPIN(t.Context(), []byte("1234")); err != nil {
			t.Fatal(err)
		}
		h := &halfReset{Vault: b.vault.Vault, done: done}
		b.vault.Vault = h
		if err := b.Reset(t.Context()); !errors.Is(err, errHalf) {
			t.Fatalf("reset: %v", err)
		}
		if _, err := b.Status(t.Context()); !errors.Is(err, fido.ErrNoKey) || !strings.Contains(err.Error(), "a reset failed") {
			t.Errorf("done %v, out of order: %v", done, err)
		}
		b.want("out of order", 0x7f, request(t, 1, create(m{7: m{"rk": true}})))
		b.want("getInfo", 0, []byte{4})
		if answer := b.Message(t.Context(), 1, []byte{0, 3, 0, 0}); !bytes.Equal(answer, []byte{0x6f, 0}) {
			t.Errorf("out of order, U2F: %x", answer)
		}
		if err := b.Reset(t.Context()); !errors.Is(err, errHalf) {
			t.Errorf("reset again: %v", err)
		}
		h.broken = false
		s, err := b.Status(t.Context())
		if err != nil || s.PIN == done || s.Credentials != map[bool]int{true: 0, false: 1}[done] {
			t.Errorf("done %v: %+v, %v", done, s, err)
		}
		list, err := b.List(t.Context(), []byte("1234"))
		if err != nil || len(list) != s.Credentials {
			t.Errorf("done %v: %v, %v", done, list, err)
		}
		b.vault.Vault = h.Vault
		b.want("reset", 0, []byte{7})
		b.make(m{7: m{"rk": true}})
		b = b.reopen()
		if s, err := b.Status(t.Context()); err != nil || s.PIN || s.Credentials != 1 {
			t.Errorf("%+v, %v", s, err)
		}
	}
}
