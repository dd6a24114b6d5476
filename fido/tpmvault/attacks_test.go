//go:build unix

package tpmvault

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/limpet-auth/limpet/fido"
	"github.com/limpet-auth/limpet/fido/vaulttest"
	"github.com/limpet-auth/limpet/internal/tpm"
	"github.com/limpet-auth/limpet/limpettest"
)

// lockLockout gives the TPM a lockout password, as limpet fido setup does.
func (r *rig) lockLockout() {
	r.Helper()
	_, err := tpm2.HierarchyChangeAuth{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHLockout, Auth: tpm2.PasswordAuth(nil)},
		NewAuth:    tpm2.TPM2BAuth{Buffer: []byte("nobody knows")},
	}.Execute(r.bus)
	r.must(err)
}

// attack runs f with the TPM, as whoever may use the TPM and has the vault's files
// and its program, but not the PIN.
func (r *rig) attack(f func() error) error { return r.do(r.Context(), f) }

// ownIndex removes the PIN's index and makes one of the same name that takes this PIN.
func (r *rig) ownIndex(pin string) {
	r.Helper()
	i := pinIndex(pinHandle)
	r.must(r.attack(func() error {
		there, written, err := r.look(i)
		if err == nil && there {
			err = r.undefine(i, written)
		}
		if err == nil {
			err = r.define(i, authOf(vaulttest.PIN(pin), r.state.PIN.Current.Salt))
		}
		if err == nil {
			err = r.writeLimit(i)
		}
		return err
	}))
}

// Typos are the index's to count, and leave the lockout that all programs share alone.
func TestTypos(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.setPIN("1234")
	k := r.create("a.example", r.unlock("1234"))
	for range vaulttest.Retries - 1 {
		_, err := r.Unlock(t.Context(), vaulttest.PIN("0000"))
		r.wantErr(err, fido.ErrPINInvalid)
	}
	r.wantFailures(0)
	r.mustSign(k, r.unlock("1234"))
	r.wantErr(r.ChangePIN(t.Context(), vaulttest.PIN("0000"), vaulttest.PIN("5678")), fido.ErrPINInvalid)
	r.wantFailures(0)
}

// TestTriesOfOthers: what another program guesses is told at once.
func TestTriesOfOthers(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.setPIN("1234")
	r.wantPIN(true, pinLimit)
	r.countUp(3)
	r.wantPIN(true, pinLimit-3)
	k := r.create("a.example", r.unlock("1234"))
	r.wantPIN(true, pinLimit)
	u := r.unlock("1234")
	r.countUp(pinLimit)
	r.wantPIN(true, 0)
	r.wantErr(k.Sign(t.Context(), r.Vault, u), fido.ErrLocked)
}

// Who has the TPM and the files, and guesses the PIN, gets eight tries from the
// index, whatever copies of the files say; nobody sets its count back; and past it
// the TPM's lockout counts.
func TestBruteForce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.setPIN("1234")
	r.lockLockout()
	k := r.create("a.example", r.unlock("1234"))
	backup := r.files()
	for n := range vaulttest.Retries {
		r.restore(backup)
		_, err := r.Unlock(t.Context(), vaulttest.PIN("0000"))
		if n < vaulttest.Retries-1 {
			r.wantErr(err, fido.ErrPINInvalid)
		} else {
			r.wantErr(err, fido.ErrPINBlocked)
		}
	}
	r.wantFailures(0)
	r.restore(backup)
	_, err := r.Unlock(t.Context(), vaulttest.PIN("1234"))
	r.wantErr(err, fido.ErrPINBlocked)

	pin := pinIndex(pinHandle).named(true)
	zero := tpm2.TPM2BMaxNVBuffer{Buffer: make([]byte, 8)}
	for what, auth := range map[string]tpm2.AuthHandle{
		"the owner": {Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		"the PIN":   {Handle: pin.Handle, Name: pin.Name, Auth: tpm2.PasswordAuth(authOf(vaulttest.PIN("1234"), r.state.PIN.Current.Salt))},
	} {
		if _, err := (tpm2.NVWrite{AuthHandle: auth, NVIndex: pin, Data: zero}).Execute(r.bus); err == nil {
			t.Errorf("%s wrote the count", what)
		}
	}
	if err := r.attack(func() error { return r.writeLimit(pinIndex(pinHandle)) }); err == nil {
		t.Error("the count was written a second time")
	}
	// A session bound to the index would prove the PIN with each use, and count nothing.
	bound := tpm2.HMAC(tpm2.TPMAlgSHA256, 16, tpm2.Bound(pin.Handle, pin.Name, authOf(vaulttest.PIN("1234"), r.state.PIN.Current.Salt)))
	gen := counterIndex(genHandle).named(true)
	if _, err := (tpm2.NVRead{AuthHandle: tpm2.AuthHandle{Handle: gen.Handle, Name: gen.Name, Auth: bound}, NVIndex: gen, Size: 8}).Execute(r.bus); err == nil {
		t.Error("a session was bound to the index")
	}
	r.wantPIN(true, 0)

	// An index of one's own, of the same name: the parent still wants the PIN.
	most := r.property(tpm2.TPMPTMaxAuthFail)
	for guess := range most {
		r.ownIndex("0000")
		_, err := r.Unlock(t.Context(), vaulttest.PIN("0000"))
		if err == nil {
			t.Fatal("unlocked with the PIN of another index")
		}
		r.wantFailures(guess + 1)
	}
	r.ownIndex("1234")
	_, err = r.Unlock(t.Context(), vaulttest.PIN("1234"))
	if err == nil || errors.Is(err, fido.ErrPINInvalid) || !strings.Contains(err.Error(), "locked") {
		t.Errorf("error %v, want the TPM to be locked", err)
	}
	right := &unlocked{vault: r.Vault, epoch: r.epoch, auth: authOf(vaulttest.PIN("1234"), r.state.PIN.Current.Salt)}
	if err := k.Sign(t.Context(), r.Vault, right); err == nil {
		t.Error("a key was used while the TPM was locked")
	}
	// Nobody but who has the lockout password ends that early.
	if err := dictionaryAttackLockReset(r.bus); err == nil {
		t.Error("the lockout was reset without its password")
	}
}

// dictionaryAttackLockReset is TPM2_DictionaryAttackLockReset with an empty password.
func dictionaryAttackLockReset(bus *limpettest.TPMBus) error {
	rsp, err := bus.Send([]byte{0x80, 0x02, 0, 0, 0, 27, 0, 0, 0x01, 0x39, 0x40, 0, 0, 0x0a, 0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0})
	if err == nil && !bytes.Equal(rsp[6:10], make([]byte, 4)) {
		err = errors.New("refused")
	}
	return err
}

// With an empty lockout password the lockout is anybody's to reset: what status
// warns of.
func TestEmptyLockoutPassword(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.setPIN("1234")
	r.ownIndex("0000")
	_, err := r.Unlock(t.Context(), vaulttest.PIN("0000"))
	r.wantErr(err, fido.ErrPINInvalid)
	r.wantFailures(1)
	r.must(dictionaryAttackLockReset(r.bus))
	r.wantFailures(0)
}

// The parent's own password, guessed with other commands than those that its
// policy is for.
func TestGuessingTheParent(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.setPIN("1234")
	r.unlock("1234")
	guess := authOf(vaulttest.PIN("0000"), r.state.PIN.Current.Salt)
	err := r.attack(func() error {
		if err := r.bring(r.uv); err != nil {
			return err
		}
		return r.prepareChange(guess, vaulttest.PIN("0000"))
	})
	if err == nil {
		t.Fatal("the parent's PIN was changed with a guess")
	}
	r.wantFailures(1)
	// Proven without the index, even by the right PIN, it is refused.
	right := authOf(vaulttest.PIN("1234"), r.state.PIN.Current.Salt)
	without := *r.uv
	without.index = false
	probe, err := r.state.PIN.Current.Probe.object()
	r.must(err)
	if err := r.attack(func() error {
		return r.with(&without, right, probe, func(tpm2.NamedHandle) error { return nil })
	}); err == nil {
		t.Error("a key was loaded past the index")
	}
	// As a password of the parent's it is nothing either.
	if err := r.attack(func() error {
		if err := r.bring(r.uv); err != nil {
			return err
		}
		hmac, err := r.hmacSession()
		if err != nil {
			return err
		}
		_, err = tpm2.Load{ParentHandle: tpm2.AuthHandle{Handle: r.uv.handle, Name: r.uv.named, Auth: hmac.with(right)},
			InPrivate: tpm2.TPM2BPrivate{Buffer: probe.private}, InPublic: tpm2.New2B(probe.public)}.Execute(r.conn)
		return err
	}); err == nil {
		t.Error("a key was loaded without the policy")
	}
}

// files returns the vault's files, restore puts them back before another process opens it.
func (r *rig) files() map[string][]byte {
	r.Helper()
	m := map[string][]byte{}
	entries, err := os.ReadDir(r.dir)
	r.must(err)
	for _, e := range entries {
		m[e.Name()], err = os.ReadFile(filepath.Join(r.dir, e.Name()))
		r.must(err)
	}
	return m
}

func (r *rig) restore(files map[string][]byte) {
	r.Helper()
	r.Close()
	for name, data := range files {
		r.must(os.WriteFile(filepath.Join(r.dir, name), data, 0o600))
	}
	r.reopen()
}

// Files from a backup bring nothing back that a reset or a change of PIN ended.
func TestBackups(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	r.setPIN("1234")
	up, uv := r.create("a.example", nil), r.create("a.example", r.unlock("1234"))
	sealed, err := r.Seal(ctx, []byte("alice"))
	r.must(err)

	before := r.files()
	r.must(r.ChangePIN(ctx, vaulttest.PIN("1234"), vaulttest.PIN("5678")))
	now := r.files()
	r.restore(before)
	for _, pin := range []string{"1234", "5678"} {
		_, err := r.Unlock(ctx, vaulttest.PIN(pin))
		r.wantErr(err, fido.ErrPINInvalid)
	}
	r.wantFailures(0)
	r.restore(now)
	r.mustSign(uv, r.unlock("5678"))

	before = r.files()
	r.must(r.Reset(ctx))
	r.setPIN("5678")
	r.restore(before)
	r.wantErr(up.Sign(ctx, r.Vault, nil), fido.ErrNoKey)
	_, err = r.Unlock(ctx, vaulttest.PIN("5678"))
	r.wantErr(err, fido.ErrNoKey)
	if !strings.Contains(err.Error(), "another generation") {
		t.Errorf("it does not say why: %v", err)
	}
	_, err = r.Open(ctx, sealed)
	r.wantErr(err, fido.ErrNoKey)
	// Not even with the generation made anew.
	gen := counterIndex(genHandle)
	r.must(r.conn.Do(ctx, func() error {
		if err := r.findStorageKey(false); err != nil {
			return err
		}
		if err := r.undefine(gen, true); err != nil {
			return err
		}
		_, err := r.counter(genHandle)
		return err
	}))
	r.wantErr(up.Sign(ctx, r.Vault, nil), fido.ErrNoKey)
	r.must(r.Reset(ctx))
	r.mustSign(r.create("a.example", nil), nil)
}

// The files are worth nothing at another TPM, and a reset makes a token there.
func TestOtherTPM(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.setPIN("1234")
	k := r.create("a.example", nil)
	for _, used := range []bool{false, true} {
		r.bus.TPM = limpettest.SoftTPM(t)
		r.powerCut()
		if used {
			other := &rig{T: t, bus: r.bus, dir: t.TempDir()}
			other.reopen()
			other.create("a.example", nil)
			other.Close()
			r.tpm = other.tpm
		}
		err := k.Sign(t.Context(), r.Vault, nil)
		r.wantErr(err, fido.ErrNoKey)
		if !strings.Contains(err.Error(), "another TPM") {
			t.Errorf("it does not say why: %v", err)
		}
		_, _, err = r.PIN(t.Context())
		r.wantErr(err, fido.ErrNoKey)
		files := r.files()
		r.must(r.Reset(t.Context()))
		r.wantErr(k.Sign(t.Context(), r.Vault, nil), fido.ErrNoKey)
		r.setPIN("1234")
		r.mustSign(r.create("a.example", r.unlock("1234")), r.unlock("1234"))
		r.restore(files)
	}
}

// Nobody on the bus hears the PIN, what is made of it, what is signed, a salt or a
// secret.
func TestVaultBus(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	old, next := vaulttest.PIN("1234"), vaulttest.PIN("5678")
	digest, salt := sha256.Sum256([]byte("what is signed")), sha256.Sum256([]byte("salt"))
	r.must(r.SetPIN(ctx, old))
	secrets := map[string][]byte{"PIN": old[:], "next PIN": next[:], "digest": digest[:], "salt": salt[:],
		"PIN's authValue": authOf(old, r.state.PIN.Current.Salt)}
	u := r.unlock("1234")
	k := r.create("a.example", u)
	r.mustSign(k, u)
	tie := vaulttest.Tie("a.example")
	handle, err := r.CreateSecret(ctx, tie, u)
	r.must(err)
	out, err := r.Secret(ctx, tie, handle, u, salt[:])
	r.must(err)
	r.must(r.ChangePIN(ctx, old, next))
	secrets["next PIN's authValue"] = authOf(next, r.state.PIN.Current.Salt)
	secrets["secret"], secrets["MAC key"], secrets["seal key"] = out[:], r.macKey, r.sealKey
	if r.bus.Log.Len() < 10000 {
		t.Fatalf("only %d bytes were heard", r.bus.Log.Len())
	}
	for what, secret := range secrets {
		for i := 0; i+8 <= len(secret); i += 8 {
			if bytes.Contains(r.bus.Log.Bytes(), secret[i:i+8]) {
				t.Errorf("bytes %d to %d of the %s are on the bus", i, i+8, what)
			}
		}
	}
}

// Nobody on the bus changes a bit of what uses a key or a PIN unseen. What a
// changed bit spoils may be put right by doing it again.
func TestBitFlips(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.setPIN("1234")
	u := r.unlock("1234")
	uv, up := r.create("a.example", u), r.create("a.example", nil)
	for _, at := range []tpm2.TPMCC{tpm2.TPMCCPolicyNV, tpm2.TPMCCPolicySecret, tpm2.TPMCCLoad, tpm2.TPMCCSign} {
		k := up
		if at == tpm2.TPMCCPolicySecret {
			k = uv
		}
		for _, answer := range []bool{false, true} {
			failed := 0
			for i := 18; i < 140; i += 7 {
				flip := func(cc tpm2.TPMCC, b []byte) []byte {
					if cc == at && i < len(b) {
						b[i] ^= 1
					}
					return b
				}
				if answer {
					r.bus.Response = flip
				} else {
					r.bus.Command = func(cc tpm2.TPMCC, b []byte) []byte { flip(cc, b); return nil }
				}
				err := k.Sign(t.Context(), r.Vault, u)
				r.bus.Command, r.bus.Response = nil, nil
				if errors.Is(err, vaulttest.ErrWrongSignature) {
					t.Errorf("%v, byte %d (of the answer: %v): it signed something else", at, i, answer)
				}
				if err != nil {
					failed++
					r.flushAll() // what was loaded in an answer that nobody believed
				}
				r.mustSign(k, u)
			}
			if failed < 5 {
				t.Errorf("%v (answer: %v): only %d changes were noticed", at, answer, failed)
			}
		}
	}
}

// Something between the program and the TPM shows a storage key of its own.
func TestStorageKeySwapped(t *testing.T) {
	t.Parallel()
	swap := func(r *rig) {
		made, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHNull, InPublic: tpm2.New2B(tpm.PrimaryTemplate)}.Execute(r.bus)
		r.must(err)
		_, err = tpm2.FlushContext{FlushHandle: made.ObjectHandle}.Execute(r.bus)
		r.must(err)
		attackers := tpm2.Marshal(made.OutPublic)
		r.bus.Response = func(cc tpm2.TPMCC, b []byte) []byte {
			if i := bytes.Index(b, attackers[:20]); cc == tpm2.TPMCCReadPublic && i >= 0 {
				b = slices.Clone(b)
				copy(b[i:], attackers)
			}
			return b
		}
	}
	r := newRig(t)
	k := r.create("a.example", nil)
	r.reopen()
	swap(r)
	err := k.Sign(t.Context(), r.Vault, nil)
	r.wantErr(err, fido.ErrNoKey)
	if !strings.Contains(err.Error(), "pretends to be it") {
		t.Errorf("it does not say why: %v", err)
	}
	r.bus.Response = nil
	r.reopen()
	r.mustSign(k, nil)

	// Nor at the first use: the TPM cannot read the salt of the sessions.
	other := &rig{T: t, bus: r.bus, dir: t.TempDir(), tpm: r.tpm}
	r.Close()
	swap(r)
	other.reopen()
	defer other.Close()
	if _, err := vaulttest.Create(t.Context(), other.Vault, "a.example", nil); err == nil {
		t.Error("a key was made with the attacker's storage key")
	}
}
