package fido_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha256"
	"path/filepath"
	"testing"

	"github.com/limpet-auth/limpet/fido"
	"github.com/limpet-auth/limpet/fido/softvault"
)

// counter is a vault that counts what the PIN unlocked and what of it was forgotten.
type counter struct {
	fido.Vault
	unlocked, forgotten int
}

type counted struct {
	fido.Unlocked
	of *counter
}

func (c *counter) Unlock(ctx context.Context, pin [16]byte) (fido.Unlocked, error) {
	u, err := c.Vault.Unlock(ctx, pin)
	if err != nil {
		return nil, err
	}
	c.unlocked++
	return &counted{u, c}, nil
}

func (c *counted) Forget() {
	c.of.forgotten++
	c.Unlocked.Forget()
}

// TestUnlockedIsForgotten: a right PIN that is to manage, to write blobs or to change
// settings unlocks no key for longer than it is checked.
func TestUnlockedIsForgotten(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	vault, err := softvault.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	c := &counter{Vault: vault}
	token, err := fido.New(t.Context(), fido.Config{Vault: c, Prompt: &asker{allow: true}, File: filepath.Join(dir, "credentials"), Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, Token: token, dir: dir}
	if err := token.SetPIN(t.Context(), []byte("1234")); err != nil {
		t.Fatal(err)
	}
	// As a host of protocol one.
	key := b.want("key agreement", 0, request(t, 6, m{1: 1, 2: 2}))[uint64(1)].(m)
	peer, err := ecdh.P256().NewPublicKey(bytes.Join([][]byte{{4}, key[int64(-2)].([]byte), key[int64(-3)].([]byte)}, nil))
	if err != nil {
		t.Fatal(err)
	}
	own, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	z, err := own.ECDH(peer)
	if err != nil {
		t.Fatal(err)
	}
	shared, pin := sha256.Sum256(z), sha256.Sum256([]byte("1234"))
	block, err := aes.NewCipher(shared[:])
	if err != nil {
		t.Fatal(err)
	}
	cipher.NewCBCEncrypter(block, make([]byte, 16)).CryptBlocks(pin[:16], pin[:16])
	point := own.PublicKey().Bytes()
	for _, test := range []struct {
		permissions int
		left        int
	}{{0x04, 0}, {0x10, 0}, {0x20, 0}, {0x34, 0}, {0x01, 1}, {0x02, 1}, {0x36, 1}} {
		params := m{1: 1, 2: 9, 3: m{1: 2, 3: -25, -1: 1, -2: point[1:33], -3: point[33:]}, 6: pin[:16], 9: test.permissions}
		if test.left > 0 {
			params[10] = "example.com"
		}
		b.want("token", 0, request(t, 6, params))
		if left := c.unlocked - c.forgotten; left != test.left {
			t.Errorf("permissions %#02x: %d are left that were unlocked, want %d", test.permissions, left, test.left)
		}
	}
}
