//go:build unix

package keyring

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/hwkey/tpmkey"
	"github.com/limpet-auth/limpet/limpettest"
)

// chip is a TPM that counts what is opened and closed there.
type chip struct {
	ks             *tpmkey.Keystore
	opened, closed atomic.Int64
	hold           chan struct{} // if not nil, opening waits for it
}

func newChip(t *testing.T) *chip {
	c := &chip{ks: tpmkey.New(tpmkey.Config{Dir: filepath.Join(t.TempDir(), "keys"), Dial: limpettest.SoftTPM(t).Dial})}
	t.Cleanup(func() { c.ks.Close() })
	return c
}

// pem brings a secret into the TPM.
func (c *chip) pem(t *testing.T, secret []byte) []byte {
	t.Helper()
	key, err := c.ks.ImportHMAC(t.Context(), secret, "")
	if err != nil {
		t.Fatal(err)
	}
	defer key.Close()
	pem, err := c.ks.MarshalHMAC(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem
}

func (c *chip) open(ctx context.Context, pem []byte) (hwkey.HMACKey, error) {
	if c.hold != nil {
		select {
		case <-c.hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	key, err := c.ks.OpenHMAC(ctx, pem)
	if err != nil {
		return nil, err
	}
	c.opened.Add(1)
	return &counted{key, &c.closed}, nil
}

type counted struct {
	hwkey.HMACKey
	closed *atomic.Int64
}

func (k *counted) Close() error {
	k.closed.Add(1)
	return k.HMACKey.Close()
}

func (c *chip) want(t *testing.T, what string, opened, closed int64) {
	t.Helper()
	for range 200 { // a key is unloaded behind the back of who reads the file
		if c.opened.Load() == opened && c.closed.Load() == closed {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%s: opened %d and closed %d, want %d and %d", what, c.opened.Load(), c.closed.Load(), opened, closed)
}

// A secret in the server's TPM computes what it does in software, is loaded when
// it is first needed, once, stays loaded when the file is read again, and is
// unloaded when it is removed.
func TestSecretInTheTPM(t *testing.T) {
	c := newChip(t)
	path := filepath.Join(t.TempDir(), "keys.json")
	pem := c.pem(t, example)
	edit(t, path, func(l *List) error {
		return errors.Join(l.Add("a", TPMKey(pem)), l.Add("twin", TPMKey(pem)), l.Add("b", &Key{Secret: example}))
	})
	r := open(t, path, Options{OpenTPM: c.open})
	if k := r.InTPM(); k == nil || !k.InTPM() {
		t.Errorf("InTPM is %v", k)
	}
	c.want(t, "opened", 0, 0)
	check := func(id string) {
		t.Helper()
		got, err := r.Lookup(id)[0].HMAC(t.Context(), []byte("message"))
		want, _ := (&Key{Secret: example}).HMAC(t.Context(), []byte("message"))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%x, %v, want %x", got, err, want)
		}
	}
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() { check("a"); check("twin") })
	}
	wg.Wait()
	c.want(t, "used", 1, 0)
	for range 3 {
		edit(t, path, func(l *List) error { return l.Rotate("b", &Key{Secret: NewSecret()}) })
		if err := r.Reload(); err != nil {
			t.Fatal(err)
		}
		check("a")
	}
	c.want(t, "reloaded", 1, 0)
	edit(t, path, func(l *List) error { return l.Rotate("a", &Key{Secret: NewSecret()}) })
	if err := r.Reload(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Lookup("a")[1].HMAC(t.Context(), nil); err != nil {
		t.Error(err)
	}
	c.want(t, "rotated", 1, 0)
	edit(t, path, func(l *List) error { return errors.Join(l.Retire("a"), l.Revoke("twin")) })
	if err := r.Reload(); err != nil {
		t.Fatal(err)
	}
	c.want(t, "removed", 1, 1)
	if r.InTPM() != nil {
		t.Error("a key in the TPM after its removal")
	}
	edit(t, path, func(l *List) error { return l.Add("twin", TPMKey(pem)) })
	if err := r.Reload(); err != nil {
		t.Fatal(err)
	}
	check("twin")
	c.want(t, "added anew", 2, 1)
	r.Close()
	c.want(t, "closed", 2, 2)
	check("twin")
	c.want(t, "used after all", 3, 3)
}

// A key that is unloaded while others use it serves them all the same.
func TestUnloadedWhileInUse(t *testing.T) {
	c := newChip(t)
	path := filepath.Join(t.TempDir(), "keys.json")
	edit(t, path, add("a", TPMKey(c.pem(t, example))))
	r := open(t, path, Options{OpenTPM: c.open})
	key := r.Lookup("a")[0]
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 20 {
				if _, err := key.HMAC(t.Context(), []byte("message")); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 20 {
		r.Close()
	}
	wg.Wait()
}

// Who waits for a slow TPM can be called off, and the others go on.
func TestSlowTPM(t *testing.T) {
	c := newChip(t)
	c.hold = make(chan struct{})
	path := filepath.Join(t.TempDir(), "keys.json")
	edit(t, path, add("a", TPMKey(c.pem(t, example))))
	r := open(t, path, Options{OpenTPM: c.open})
	key := r.Lookup("a")[0]
	first := make(chan error, 1)
	go func() { _, err := key.HMAC(t.Context(), nil); first <- err }()
	for len(key.key.lock) == 0 {
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := key.HMAC(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	// Nor does it hold up who reads the file.
	edit(t, path, func(l *List) error { return errors.Join(l.Revoke("a"), l.Add("b", &Key{Secret: example})) })
	if err := r.Reload(); err != nil || len(r.Lookup("b")) != 1 {
		t.Errorf("reloaded: %v", err)
	}
	close(c.hold)
	if err := <-first; err != nil {
		t.Error(err)
	}
	c.want(t, "done", 1, 1)
}

// The trouble of a TPM comes out in words, and passes.
func TestTPMTrouble(t *testing.T) {
	c, other := newChip(t), newChip(t)
	path := filepath.Join(t.TempDir(), "keys.json")
	edit(t, path, func(l *List) error {
		return errors.Join(l.Add("good", TPMKey(c.pem(t, example))), l.Add("other", TPMKey(other.pem(t, example))), l.Add("garbage", TPMKey([]byte("garbage"))))
	})
	r := open(t, path, Options{OpenTPM: c.open})
	for range 2 {
		_, err := r.Lookup("other")[0].HMAC(t.Context(), nil)
		wantWords(t, err, "the key is lost", "another one now")
		if !errors.Is(err, hwkey.ErrLost) {
			t.Errorf("error %v is not ErrLost", err)
		}
		if _, err := r.Lookup("garbage")[0].HMAC(t.Context(), nil); err == nil {
			t.Error("an HMAC of garbage")
		}
		if _, err := r.Lookup("good")[0].HMAC(t.Context(), nil); err != nil {
			t.Error(err)
		}
	}
}

// A key that is of no use is tried once: it may have a password, and then each try
// counts towards the TPM's lockout.
func TestUnfitKeyIsTriedOnce(t *testing.T) {
	c := newChip(t)
	path, tries := filepath.Join(t.TempDir(), "keys.json"), 0
	edit(t, path, func(l *List) error { return l.Add("billing", TPMKey(c.pem(t, example))) })
	r, err := Open(path, Options{OpenTPM: func(context.Context, []byte) (hwkey.HMACKey, error) {
		tries++
		return nil, hwkey.ErrUnsupported
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for range 3 {
		if _, err := r.Lookup("billing")[0].HMAC(t.Context(), nil); !errors.Is(err, hwkey.ErrUnsupported) {
			t.Errorf("error %v", err)
		}
		if err := r.Reload(); err != nil {
			t.Fatal(err)
		}
	}
	if tries != 1 {
		t.Errorf("tried %d times", tries)
	}
}
