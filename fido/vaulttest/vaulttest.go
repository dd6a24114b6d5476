// Package vaulttest tests that a fido.Vault does what the interface says.
package vaulttest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/limpet-auth/limpet/fido"
)

// Retries is how many wrong PINs in a row a vault takes (CTAP 2.1, section 6.5: at most 8).
const Retries = 8

// Run tests vaults. fresh makes a place for a new vault and returns how to open it;
// opened again, after it was closed, it is the same vault.
func Run(t *testing.T, fresh func(t *testing.T) (open func() (fido.Vault, error))) {
	for _, test := range []struct {
		name string
		run  func(*place)
	}{
		{"Keys", keys}, {"Handles", handles}, {"PIN", pins}, {"PINAcrossRestarts", pinAcrossRestarts}, {"Blocked", blocked},
		{"ChangePIN", changePIN}, {"Verification", verification}, {"Secrets", secrets}, {"Count", counts}, {"Seal", seals},
		{"Reset", resets}, {"Many", many}, {"AtOnce", atOnce}, {"Cancelled", cancelled},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := &place{T: t, open: fresh(t)}
			t.Cleanup(func() {
				if p.Vault != nil {
					p.Close()
				}
			})
			p.reopen()
			test.run(p)
		})
	}
}

// place is a vault under test.
type place struct {
	*testing.T
	open func() (fido.Vault, error)
	fido.Vault
}

func (p *place) reopen() {
	p.Helper()
	if p.Vault != nil {
		if err := p.Vault.Close(); err != nil {
			p.Fatal(err)
		}
	}
	v, err := p.open()
	if err != nil {
		p.Fatal(err)
	}
	p.Vault = v
}

// PIN returns what stands for a PIN at the vault.
func PIN(s string) [16]byte {
	h := sha256.Sum256([]byte(s))
	return [16]byte(h[:16])
}

// Tie returns what stands for a relying party.
func Tie(s string) [32]byte { return sha256.Sum256([]byte(s)) }

func (p *place) must(err error) {
	p.Helper()
	if err != nil {
		p.Fatal(err)
	}
}

func (p *place) wantErr(err, want error) {
	p.Helper()
	if !errors.Is(err, want) {
		p.Errorf("error %v, want %v", err, want)
	}
}

func (p *place) wantPIN(set bool, retries int) {
	p.Helper()
	s, n, err := p.PIN(p.Context())
	if err != nil || s != set || n != retries {
		p.Errorf("PIN: %v, %d tries, %v; want %v, %d", s, n, err, set, retries)
	}
}

// ErrWrongSignature means that a vault signed, and something else.
var ErrWrongSignature = errors.New("the signature does not verify")

// Key is a key and whom it is for.
type Key struct {
	tie    [32]byte
	handle []byte
	public *ecdsa.PublicKey
}

func (p *place) create(rp string, u fido.Unlocked) Key {
	p.Helper()
	k, err := Create(p.Context(), p.Vault, rp, u)
	p.must(err)
	return k
}

// Create makes a key for a relying party.
func Create(ctx context.Context, v fido.Vault, rp string, u fido.Unlocked) (Key, error) {
	handle, public, err := v.Create(ctx, Tie(rp), u)
	if err != nil {
		return Key{}, err
	}
	if len(handle) > fido.MaxHandle {
		return Key{}, fmt.Errorf("a handle of %d bytes, at most %d are allowed", len(handle), fido.MaxHandle)
	}
	return Key{Tie(rp), handle, public}, nil
}

// Sign signs with a key and verifies.
func (k Key) Sign(ctx context.Context, v fido.Vault, u fido.Unlocked) error {
	digest := sha256.Sum256([]byte("what is signed"))
	sig, err := v.Sign(ctx, k.tie, k.handle, u, digest)
	if err != nil {
		return err
	}
	if !ecdsa.VerifyASN1(k.public, digest[:], sig) {
		return ErrWrongSignature
	}
	return nil
}

func (p *place) mustSign(k Key, u fido.Unlocked) {
	p.Helper()
	p.must(k.Sign(p.Context(), p.Vault, u))
}

func (p *place) unlock(pin string) fido.Unlocked {
	p.Helper()
	u, err := p.Unlock(p.Context(), PIN(pin))
	p.must(err)
	return u
}

func (p *place) secret(tie [32]byte, handle []byte, u fido.Unlocked, salt string) [32]byte {
	p.Helper()
	s, err := p.Secret(p.Context(), tie, handle, u, []byte(salt))
	p.must(err)
	return s
}

func keys(p *place) {
	a, b := p.create("a.example", nil), p.create("a.example", nil)
	if bytes.Equal(a.handle, b.handle) || a.public.Equal(b.public) {
		p.Error("two keys are one")
	}
	p.mustSign(a, nil)
	p.reopen()
	p.mustSign(b, nil)
	p.mustSign(a, nil)
	uv, err := p.Verified(p.Context(), a.tie, a.handle)
	if err != nil || uv {
		p.Errorf("Verified: %v, %v; want a key for anybody", uv, err)
	}
}

// A handle is good for one relying party at one vault, and every bit of it counts.
func handles(p *place) {
	ctx := p.Context()
	k := p.create("a.example", nil)
	secret, err := p.CreateSecret(ctx, k.tie, nil)
	p.must(err)
	var digest [32]byte
	refused := func(what string, tie [32]byte, handle []byte) {
		p.Helper()
		if _, err := p.Verified(ctx, tie, handle); !errors.Is(err, fido.ErrNoKey) {
			p.Errorf("%s: Verified: error %v, want ErrNoKey", what, err)
		}
		if _, err := p.Sign(ctx, tie, handle, nil, digest); !errors.Is(err, fido.ErrNoKey) {
			p.Errorf("%s: Sign: error %v, want ErrNoKey", what, err)
		}
		if _, err := p.Secret(ctx, tie, handle, nil, digest[:]); !errors.Is(err, fido.ErrNoKey) {
			p.Errorf("%s: Secret: error %v, want ErrNoKey", what, err)
		}
	}
	refused("another relying party", Tie("b.example"), k.handle)
	refused("nothing", k.tie, nil)
	refused("one byte", k.tie, []byte{1})
	refused("zeros", k.tie, make([]byte, len(k.handle)))
	refused("64 KiB", k.tie, make([]byte, 64<<10))
	refused("a part", k.tie, k.handle[:len(k.handle)-1])
	refused("more", k.tie, append(slices.Clone(k.handle), 0))
	for i := 0; i < len(k.handle); i += 5 {
		b := slices.Clone(k.handle)
		b[i] ^= 1
		refused(fmt.Sprint("a bit of byte ", i), k.tie, b)
	}
	if _, err := p.Secret(ctx, k.tie, k.handle, nil, digest[:]); !errors.Is(err, fido.ErrNoKey) {
		p.Errorf("a key as a secret: error %v", err)
	}
	if _, err := p.Sign(ctx, k.tie, secret, nil, digest); !errors.Is(err, fido.ErrNoKey) {
		p.Errorf("a secret as a key: error %v", err)
	}
	if _, err := p.Secret(ctx, Tie("b.example"), secret, nil, digest[:]); !errors.Is(err, fido.ErrNoKey) {
		p.Errorf("another one's secret: error %v", err)
	}
	p.mustSign(k, nil)
}

func pins(p *place) {
	ctx := p.Context()
	p.wantPIN(false, Retries)
	if u, err := p.Unlock(ctx, PIN("1234")); err == nil || u != nil {
		p.Error("unlocked without a PIN")
	}
	p.must(p.SetPIN(ctx, PIN("1234")))
	p.wantPIN(true, Retries)
	if err := p.SetPIN(ctx, PIN("4321")); err == nil {
		p.Error("a PIN was set over another")
	}
	for n := Retries - 1; n > Retries-4; n-- {
		_, err := p.Unlock(ctx, PIN("0000"))
		p.wantErr(err, fido.ErrPINInvalid)
		p.wantPIN(true, n)
	}
	p.unlock("1234")
	p.wantPIN(true, Retries)
}

func pinAcrossRestarts(p *place) {
	ctx := p.Context()
	p.must(p.SetPIN(ctx, PIN("1234")))
	k := p.create("a.example", p.unlock("1234"))
	for n := Retries - 1; n > Retries-4; n-- {
		p.reopen()
		_, err := p.Unlock(ctx, PIN("0000"))
		p.wantErr(err, fido.ErrPINInvalid)
		p.reopen()
		p.wantPIN(true, n)
	}
	p.mustSign(k, p.unlock("1234"))
	p.wantPIN(true, Retries)
}

func blocked(p *place) {
	ctx := p.Context()
	p.must(p.SetPIN(ctx, PIN("1234")))
	k := p.create("a.example", p.unlock("1234"))
	for n := Retries - 1; n > 0; n-- {
		_, err := p.Unlock(ctx, PIN("0000"))
		p.wantErr(err, fido.ErrPINInvalid)
	}
	p.wantErr(p.ChangePIN(ctx, PIN("0000"), PIN("1111")), fido.ErrPINBlocked)
	for range 2 {
		_, err := p.Unlock(ctx, PIN("1234"))
		p.wantErr(err, fido.ErrPINBlocked)
		p.wantErr(p.ChangePIN(ctx, PIN("1234"), PIN("1111")), fido.ErrPINBlocked)
		p.wantPIN(true, 0)
		p.reopen()
	}
	p.must(p.Reset(ctx))
	p.wantPIN(false, Retries)
	_, err := p.Verified(ctx, k.tie, k.handle)
	p.wantErr(err, fido.ErrNoKey)
	p.must(p.SetPIN(ctx, PIN("1234")))
	p.mustSign(p.create("a.example", p.unlock("1234")), p.unlock("1234"))
}

func changePIN(p *place) {
	ctx := p.Context()
	p.must(p.SetPIN(ctx, PIN("1234")))
	u := p.unlock("1234")
	k := p.create("a.example", u)
	p.wantErr(p.ChangePIN(ctx, PIN("0000"), PIN("5678")), fido.ErrPINInvalid)
	p.wantPIN(true, Retries-1)
	p.must(p.ChangePIN(ctx, PIN("1234"), PIN("5678")))
	p.wantPIN(true, Retries)
	for range 2 {
		_, err := p.Unlock(ctx, PIN("1234"))
		p.wantErr(err, fido.ErrPINInvalid)
		p.wantPIN(true, Retries-1)
		p.mustSign(k, p.unlock("5678"))
		p.wantPIN(true, Retries)
		p.reopen()
	}
	p.must(p.ChangePIN(ctx, PIN("5678"), PIN("5678"))) // to the same
	p.mustSign(k, p.unlock("5678"))
}

func verification(p *place) {
	ctx := p.Context()
	p.must(p.SetPIN(ctx, PIN("1234")))
	u := p.unlock("1234")
	k := p.create("a.example", u)
	free := p.create("a.example", nil)
	uv, err := p.Verified(ctx, k.tie, k.handle)
	if err != nil || !uv {
		p.Errorf("Verified: %v, %v; want a key for verified users", uv, err)
	}
	p.mustSign(k, u)
	p.mustSign(k, u)
	p.mustSign(free, u)
	p.mustSign(free, nil)
	p.wantErr(k.Sign(ctx, p.Vault, nil), fido.ErrLocked)
	u2 := p.unlock("1234")
	u.Forget()
	u.Forget()
	p.wantErr(k.Sign(ctx, p.Vault, u), fido.ErrLocked)
	_, _, err = p.Vault.Create(ctx, k.tie, u)
	p.wantErr(err, fido.ErrLocked)
	_, err = p.CreateSecret(ctx, k.tie, u)
	p.wantErr(err, fido.ErrLocked)
	p.mustSign(k, u2)
	p.wantErr(k.Sign(ctx, p.Vault, foreign{}), fido.ErrLocked)
	p.wantPIN(true, Retries)
}

type foreign struct{}

func (foreign) Forget() {}

// Secrets are the same for ever, and different for each relying party's each
// credential, and for those who were verified.
func secrets(p *place) {
	ctx := p.Context()
	a := Tie("a.example")
	early, err := p.CreateSecret(ctx, a, nil)
	p.must(err)
	p.must(p.SetPIN(ctx, PIN("1234")))
	u := p.unlock("1234")
	one, err := p.CreateSecret(ctx, a, nil)
	p.must(err)
	two, err := p.CreateSecret(ctx, a, u)
	p.must(err)
	if n := max(len(one), len(two)); n > fido.MaxSecretHandle {
		p.Errorf("a handle of %d bytes", n)
	}
	all := func() (list [][32]byte) {
		u := p.unlock("1234")
		for _, salt := range []string{"salt 1", "salt 2"} {
			list = append(list, p.secret(a, early, nil, salt), p.secret(a, early, u, salt), p.secret(a, one, nil, salt), p.secret(a, one, u, salt), p.secret(a, two, u, salt))
		}
		return list
	}
	first := all()
	for i := range first {
		for j := range i {
			if first[i] == first[j] {
				p.Errorf("outputs %d and %d are one", j, i)
			}
		}
	}
	_, err = p.Secret(ctx, a, two, nil, []byte("salt"))
	p.wantErr(err, fido.ErrLocked)
	p.reopen()
	if again := all(); !slices.Equal(first, again) {
		p.Error("they are others after a restart")
	}
	p.must(p.ChangePIN(ctx, PIN("1234"), PIN("12345")))
	p.must(p.ChangePIN(ctx, PIN("12345"), PIN("1234")))
	if again := all(); !slices.Equal(first, again) {
		p.Error("they are others after a change of PIN")
	}
	u = p.unlock("1234")
	u.Forget()
	_, err = p.Secret(ctx, a, one, u, []byte("salt"))
	p.wantErr(err, fido.ErrLocked)
}

func counts(p *place) {
	var last uint32
	step := func(n int) {
		p.Helper()
		for range n {
			c, err := p.Count(p.Context())
			p.must(err)
			if c <= last {
				p.Fatalf("the counter went from %d to %d", last, c)
			}
			last = c
		}
	}
	step(3)
	p.reopen()
	step(600)
	p.must(p.Reset(p.Context()))
	step(2)
	p.reopen()
	step(2)
}

func seals(p *place) {
	ctx := p.Context()
	plain := bytes.Repeat([]byte("alice@example.com "), 1000)
	sealed, err := p.Seal(ctx, plain)
	p.must(err)
	empty, err := p.Seal(ctx, nil)
	p.must(err)
	if bytes.Contains(sealed, []byte("alice")) {
		p.Error("it is readable")
	}
	again, err := p.Seal(ctx, plain)
	p.must(err)
	if bytes.Equal(sealed, again) {
		p.Error("sealed twice it is the same")
	}
	p.reopen()
	for want, b := range map[string][]byte{string(plain): sealed, "": empty} {
		if got, err := p.Open(ctx, b); err != nil || string(got) != want {
			p.Errorf("opened %d bytes, %v; want %d", len(got), err, len(want))
		}
	}
	for i := 0; i < len(sealed); i += 997 {
		b := slices.Clone(sealed)
		b[i] ^= 1
		_, err := p.Open(ctx, b)
		p.wantErr(err, fido.ErrNoKey)
	}
	for _, b := range [][]byte{nil, {1}, sealed[:20], append(slices.Clone(sealed), 0)} {
		_, err := p.Open(ctx, b)
		p.wantErr(err, fido.ErrNoKey)
	}
	p.must(p.Reset(ctx))
	_, err = p.Open(ctx, sealed)
	p.wantErr(err, fido.ErrNoKey)
}

func resets(p *place) {
	ctx := p.Context()
	p.must(p.SetPIN(ctx, PIN("1234")))
	u := p.unlock("1234")
	up, uv := p.create("a.example", nil), p.create("a.example", u)
	secret, err := p.CreateSecret(ctx, up.tie, nil)
	p.must(err)
	p.must(p.Reset(ctx))
	for range 2 {
		p.wantPIN(false, Retries)
		p.wantErr(up.Sign(ctx, p.Vault, nil), fido.ErrNoKey)
		p.wantErr(uv.Sign(ctx, p.Vault, u), fido.ErrNoKey)
		_, err = p.Secret(ctx, up.tie, secret, nil, []byte("salt"))
		p.wantErr(err, fido.ErrNoKey)
		_, _, err = p.Vault.Create(ctx, up.tie, u)
		p.wantErr(err, fido.ErrLocked)
		p.mustSign(p.create("a.example", nil), nil)
		p.reopen()
	}
	p.must(p.SetPIN(ctx, PIN("1234")))
	p.mustSign(p.create("a.example", p.unlock("1234")), p.unlock("1234"))
	p.must(p.Reset(ctx))
	p.must(p.Reset(ctx))
	p.mustSign(p.create("a.example", nil), nil)
}

func many(p *place) {
	var list []Key
	for i := range 100 {
		list = append(list, p.create(fmt.Sprint(i, ".example"), nil))
	}
	p.reopen()
	for _, k := range list {
		p.mustSign(k, nil)
	}
}

// atOnce has 64 goroutines do what they like.
func atOnce(p *place) {
	ctx := p.Context()
	p.must(p.SetPIN(ctx, PIN("1234")))
	u := p.unlock("1234")
	k := p.create("a.example", u)
	var mu sync.Mutex
	seen := map[uint32]bool{}
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			var err error
			switch i % 4 {
			case 0:
				err = k.Sign(ctx, p.Vault, u)
			case 1:
				var mine Key
				if mine, err = Create(ctx, p.Vault, fmt.Sprint(i), nil); err == nil {
					err = mine.Sign(ctx, p.Vault, nil)
				}
			case 2:
				var c uint32
				c, err = p.Count(ctx)
				mu.Lock()
				if seen[c] {
					p.Errorf("count %d was given out twice", c)
				}
				seen[c] = true
				mu.Unlock()
			case 3:
				var mine fido.Unlocked
				if mine, err = p.Unlock(ctx, PIN("1234")); err == nil {
					err = k.Sign(ctx, p.Vault, mine)
					mine.Forget()
				}
			}
			if err != nil {
				p.Errorf("goroutine %d: %v", i, err)
			}
		})
	}
	wg.Wait()
}

func cancelled(p *place) {
	k := p.create("a.example", nil)
	ctx, cancel := context.WithCancel(p.Context())
	cancel()
	p.wantErr(k.Sign(ctx, p.Vault, nil), context.Canceled)
	_, err := p.Count(ctx)
	p.wantErr(err, context.Canceled)
	p.wantErr(p.SetPIN(ctx, PIN("1234")), context.Canceled)
	p.wantErr(p.Reset(ctx), context.Canceled)
	p.wantPIN(false, Retries)
	p.mustSign(k, nil)
}

// Verified is the vault's Verified for this key.
func (k Key) Verified(ctx context.Context, v fido.Vault) (uv bool, err error) {
	return v.Verified(ctx, k.tie, k.handle)
}
