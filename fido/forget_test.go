package fido_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/limpet-auth/limpet/fido"
	"github.com/limpet-auth/limpet/fido/softvault"
)

// TestResetWindow: a host can reset a token in the ten seconds after it appeared for the
// first time, however long the token took for that, and appears again.
func TestResetWindow(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		vault, err := softvault.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer vault.Close()
		token, err := fido.New(t.Context(), fido.Config{Vault: vault, Prompt: &asker{allow: true}, File: filepath.Join(dir, "credentials"), Logger: quiet})
		if err != nil {
			t.Fatal(err)
		}
		reset := func(when string, want byte) {
			t.Helper()
			if got := token.CBOR(t.Context(), 1, []byte{7}, func(bool) {}); !bytes.Equal(got, []byte{want}) {
				t.Errorf("%s: status %#02x, want %#02x", when, got, want)
			}
		}
		reset("before it appeared", 0x30)
		time.Sleep(time.Minute)
		token.Appear()
		time.Sleep(9 * time.Second)
		reset("after nine seconds", 0)
		token.Forget()
		token.Appear()
		time.Sleep(2 * time.Second)
		reset("after eleven, in which it appeared again", 0x30)
	})
}

// pinSession is what a host has of a right PIN, by PIN protocol one.
func (b *bench) pinSession(pin string, permissions int) (token []byte) {
	b.t.Helper()
	theirs := b.want("key agreement", 0, request(b.t, 6, m{1: 1, 2: 2}))[uint64(1)].(m)
	point := append(append([]byte{4}, theirs[int64(-2)].([]byte)...), theirs[int64(-3)].([]byte)...)
	public, err := ecdh.P256().NewPublicKey(point)
	if err != nil {
		b.t.Fatal(err)
	}
	key, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		b.t.Fatal(err)
	}
	z, err := key.ECDH(public)
	if err != nil {
		b.t.Fatal(err)
	}
	shared := sha256.Sum256(z)
	block, err := aes.NewCipher(shared[:])
	if err != nil {
		b.t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(pin))
	sealed := make([]byte, 16)
	cipher.NewCBCEncrypter(block, make([]byte, 16)).CryptBlocks(sealed, sum[:16])
	ours := key.PublicKey().Bytes()
	answer := b.want("PIN", 0, request(b.t, 6, m{1: 1, 2: 9, 3: m{1: 2, 3: -25, -1: 1, -2: ours[1:33], -3: ours[33:]}, 6: sealed, 9: permissions}))
	token = bytes.Clone(answer[uint64(2)].([]byte))
	cipher.NewCBCDecrypter(block, make([]byte, 16)).CryptBlocks(token, token)
	return token
}

// TestForget: nothing that a host began goes on for the next user.
func TestForget(t *testing.T) {
	t.Parallel()
	b := newBench(t, t.TempDir())
	for _, site := range []string{"one.example", "two.example"} {
		for _, user := range []string{"1", "2"} {
			b.make(m{2: m{"id": site}, 3: m{"id": []byte(user)}, 7: m{"rk": true}})
		}
	}
	if err := b.SetPIN(t.Context(), []byte("1234")); err != nil {
		t.Fatal(err)
	}
	const manage, blobs = 4, 16
	prove := func(token []byte, message ...byte) []byte {
		mac := hmac.New(sha256.New, token)
		mac.Write(message)
		return mac.Sum(nil)[:16]
	}
	for name, test := range map[string]struct {
		begin func(token []byte)
		goOn  func(token []byte) []byte
		gone  byte
	}{
		"a PIN's session": {
			func([]byte) {},
			func(token []byte) []byte { return request(t, 10, m{1: 1, 3: 1, 4: prove(token, 1)}) }, 0x33,
		},
		"a list": {
			func(token []byte) { b.want("first", 0, request(t, 10, m{1: 2, 3: 1, 4: prove(token, 2)})) },
			func([]byte) []byte { return request(t, 10, m{1: 3}) }, 0x30,
		},
		"assertions": {
			func([]byte) { b.want("first", 0, request(t, 2, m{1: "one.example", 2: hash})) },
			func([]byte) []byte { return []byte{8} }, 0x30,
		},
		"large blobs": {
			func(token []byte) {
				sum := sha256.Sum256(hash)
				message := append(append(bytes.Repeat([]byte{0xff}, 32), 12, 0, 0, 0, 0, 0), sum[:]...)
				b.want("first", 0, request(t, 12, m{2: hash, 3: 0, 4: 100, 5: prove(token, message...), 6: 1}))
			},
			func(token []byte) []byte {
				sum := sha256.Sum256(hash)
				message := append(append(bytes.Repeat([]byte{0xff}, 32), 12, 0, 32, 0, 0, 0), sum[:]...)
				return request(t, 12, m{2: hash, 3: 32, 5: prove(token, message...), 6: 1})
			}, 0x04,
		},
	} {
		for _, forget := range []bool{false, true} {
			token := b.pinSession("1234", manage|blobs)
			test.begin(token)
			want := byte(0)
			if forget {
				b.Forget()
				want = test.gone
			}
			if got, _ := b.send(test.goOn(token)); got != want {
				t.Errorf("%s, forgotten %v: status %#02x, want %#02x", name, forget, got, want)
			}
		}
	}
}

// patient waits for an answer that does not come.
type patient struct{ asked, gone chan struct{} }

func (p patient) Ask(ctx context.Context, _ fido.Request) (bool, error) {
	p.asked <- struct{}{}
	<-ctx.Done()
	p.gone <- struct{}{}
	return false, ctx.Err()
}

// TestForgetU2F: what a U2F request asks is taken back.
func TestForgetU2F(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		vault, err := softvault.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer vault.Close()
		p := patient{make(chan struct{}), make(chan struct{})}
		token, err := fido.New(t.Context(), fido.Config{Vault: vault, Prompt: p, File: filepath.Join(dir, "credentials"), Logger: quiet})
		if err != nil {
			t.Fatal(err)
		}
		register := append([]byte{0, 1, 0, 0, 0, 0, 64}, make([]byte, 64)...)
		for range 2 {
			start := time.Now()
			if got := token.Message(t.Context(), 1, register); !bytes.Equal(got, []byte{0x69, 0x85}) {
				t.Fatalf("%x", got)
			}
			<-p.asked
			token.Forget()
			<-p.gone
			if waited := time.Since(start); waited > 0 {
				t.Errorf("taken back after %v", waited)
			}
		}
	})
}
