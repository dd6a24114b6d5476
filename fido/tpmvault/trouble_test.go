//go:build unix

package tpmvault

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/limpet-auth/limpet/fido"
	"github.com/limpet-auth/limpet/fido/vaulttest"
	"github.com/limpet-auth/limpet/limpettest"
)

func (r *rig) wantWords(err error, words ...string) {
	r.Helper()
	if err == nil {
		r.Error("no error")
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			r.Errorf("error %q lacks %q", err, w)
		}
	}
}

// connect makes the TPM reachable for others than the vault.
func (r *rig) connect() {
	r.Helper()
	rw, err := r.bus.Dial(r.Context())
	r.must(err)
	r.tpm = rw
}

func (r *rig) ownerPassword(from, to string) {
	r.Helper()
	_, err := tpm2.HierarchyChangeAuth{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth([]byte(from))},
		NewAuth:    tpm2.TPM2BAuth{Buffer: []byte(to)},
	}.Execute(r.bus)
	r.must(err)
}

// rcAnswer is an answer that is nothing but a code.
func rcAnswer(rc tpm2.TPMRC) []byte {
	b := binary.BigEndian.AppendUint32([]byte{0x80, 0x01}, 10)
	return binary.BigEndian.AppendUint32(b, uint32(rc))
}

// An owner's password is said in words, and set after the set-up it only stands in
// the way of a first PIN and of a reset.
func TestOwnerPassword(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	r.connect()
	r.ownerPassword("", "owner")
	_, err := vaulttest.Create(ctx, r.Vault, "a.example", nil)
	r.wantWords(err, "owner password", "tpm2_changeauth")
	r.ownerPassword("owner", "")
	r.setPIN("1234")
	k := r.create("a.example", r.unlock("1234"))
	r.ownerPassword("", "owner")
	r.reopen()
	r.wantPIN(true, vaulttest.Retries)
	_, err = r.Unlock(ctx, vaulttest.PIN("0000"))
	r.wantErr(err, fido.ErrPINInvalid)
	r.wantPIN(true, vaulttest.Retries-1)
	r.must(r.ChangePIN(ctx, vaulttest.PIN("1234"), vaulttest.PIN("5678")))
	r.mustSign(k, r.unlock("5678"))
	r.step()
	r.wantWords(r.Reset(ctx), "owner password")
	r.mustSign(k, r.unlock("5678"))
	r.ownerPassword("owner", "")
	r.must(r.Reset(ctx))
	r.ownerPassword("", "owner")
	r.wantWords(r.SetPIN(ctx, vaulttest.PIN("1234")), "owner password")
	r.wantPIN(false, vaulttest.Retries)
	r.mustSign(r.create("a.example", nil), nil)
	r.must(r.Reset(ctx)) // there is no PIN to remove
	r.ownerPassword("owner", "")
	r.setPIN("1234")
	r.unlock("1234")
}

// noPINFail is a TPM without PIN indices.
func noPINFail(cc tpm2.TPMCC, b []byte) []byte {
	if cc == tpm2.TPMCCNVDefineSpace && len(b) > 0 {
		// handle, authorization, auth, and in the public area after size, index and
		// algorithm the attributes
		rest := b[14:]
		rest = rest[4+binary.BigEndian.Uint32(rest):]
		rest = rest[2+binary.BigEndian.Uint16(rest):]
		if rest[2+4+2+3]>>4 == byte(tpm2.TPMNTPinFail) {
			return rcAnswer(tpm2.TPMRCAttributes | 0x40 | 0x200)
		}
	}
	return nil
}

// Without a PIN index the parent's own password is the PIN, and the TPM's lockout
// counts.
func TestNoPINIndex(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	r.bus.Command = noPINFail
	r.setPIN("1234")
	k := r.create("a.example", r.unlock("1234"))
	r.reopen()
	most := int(r.property(tpm2.TPMPTMaxAuthFail))
	r.wantPIN(true, min(most, pinLimit))
	_, err := r.Unlock(ctx, vaulttest.PIN("0000"))
	r.wantErr(err, fido.ErrPINInvalid)
	r.wantFailures(1)
	r.wantPIN(true, min(most-1, pinLimit))
	r.mustSign(k, r.unlock("1234"))
	r.must(r.ChangePIN(ctx, vaulttest.PIN("1234"), vaulttest.PIN("5678")))
	r.reopen()
	r.mustSign(k, r.unlock("5678"))
	r.wantFailures(1)
	_, err = r.Unlock(ctx, vaulttest.PIN("1234"))
	r.wantErr(err, fido.ErrPINInvalid)
	for range most - 2 {
		_, err = r.Unlock(ctx, vaulttest.PIN("0000"))
	}
	r.wantErr(err, fido.ErrPINBlocked)
	r.wantPIN(true, 0)
	_, err = r.Unlock(ctx, vaulttest.PIN("5678"))
	r.wantErr(err, fido.ErrPINBlocked)
	s, err := Examine(ctx, Config{Dir: r.dir, Dial: r.dial})
	r.must(err)
	if s.Level != Resettable || s.PINIndex || !s.Locked || len(s.Reasons) != 3 {
		t.Errorf("%+v", s)
	}
	r.must(dictionaryAttackLockReset(r.bus))
	r.reopen()
	r.mustSign(k, r.unlock("5678"))
	r.must(r.Reset(ctx))
	r.wantErr(k.Sign(ctx, r.Vault, nil), fido.ErrNoKey)
	r.bus.Command = nil
	r.setPIN("1234") // the firmware was updated
	r.unlock("1234")
	r.wantFailures(0)
}

// A TPM whose memory is full says so, and goes on without what did not fit.
func TestNoSpace(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	full := func(cc tpm2.TPMCC, _ []byte) []byte {
		if cc == tpm2.TPMCCNVDefineSpace {
			return rcAnswer(tpm2.TPMRCNVSpace)
		}
		return nil
	}
	r.bus.Command = full
	_, err := vaulttest.Create(t.Context(), r.Vault, "a.example", nil)
	r.wantWords(err, "memory is full", "tpm2_nvundefine")
	r.bus.Command = nil
	k := r.create("a.example", nil)
	r.bus.Command = full
	r.wantWords(r.SetPIN(t.Context(), vaulttest.PIN("1234")), "memory is full")
	r.wantPIN(false, vaulttest.Retries)
	r.mustSign(k, nil)
	r.bus.Command = nil
	r.reopen()
	r.setPIN("1234")
	r.mustSign(k, r.unlock("1234"))
}

// What other software has in the vault's places is left alone.
func TestForeignIndex(t *testing.T) {
	t.Parallel()
	for _, h := range []tpm2.TPMHandle{countHandle, genHandle, pinHandle} {
		r := newRig(t)
		r.connect()
		define := tpm2.NVDefineSpace{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
			PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{NVIndex: h, NameAlg: tpm2.TPMAlgSHA256, DataSize: 8,
				Attributes: tpm2.TPMANV{OwnerRead: true, OwnerWrite: true}}),
		}
		_, err := define.Execute(r.bus)
		r.must(err)
		r.wantWords(r.SetPIN(t.Context(), vaulttest.PIN("1234")), "other software", "tpm2_nvundefine")
		r.wantWords(r.Reset(t.Context()), "other software")
		s, err := Examine(t.Context(), Config{Dir: r.dir, Dial: r.dial})
		if h == genHandle { // whether there is another token is not known then
			r.wantWords(err, "other software")
		} else if err != nil || s.Level != None {
			t.Errorf("%#x: %+v, %v", uint32(h), s, err)
		}
		if _, err := define.Execute(r.bus); !errors.Is(err, tpm2.TPMRCNVDefined) {
			t.Errorf("%#x: error %v: it is gone", uint32(h), err)
		}
	}
}

// Files that are lost leave a PIN in the TPM, which is removed by a reset only.
func TestLostFiles(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.setPIN("1234")
	k := r.create("a.example", r.unlock("1234"))
	files := r.files()
	r.Close()
	r.must(os.Remove(filepath.Join(r.dir, stateFile)))
	r.reopen()
	r.wantErr(k.Sign(t.Context(), r.Vault, nil), fido.ErrNoKey)
	r.wantWords(r.SetPIN(t.Context(), vaulttest.PIN("5678")), "another token", "reset")
	s, err := Examine(t.Context(), Config{Dir: r.dir, Dial: r.dial})
	r.must(err)
	if !s.PINIndex || s.PINSet || !strings.Contains(s.Reasons[0], "another token") {
		t.Errorf("%+v", s)
	}
	r.restore(files) // found again
	r.mustSign(k, r.unlock("1234"))
	r.Close()
	r.must(os.Remove(filepath.Join(r.dir, stateFile)))
	r.reopen()
	r.must(r.Reset(t.Context()))
	r.setPIN("5678")
	r.mustSign(r.create("a.example", r.unlock("5678")), r.unlock("5678"))

	r.Close()
	for name, data := range map[string]string{"empty": "", "cut off": `{"version": 1, "srk": "AA`, "of a later version": `{"version": 2}`, "nothing": "{}", "too long": strings.Repeat(" ", maxState+1)} {
		r.must(os.WriteFile(filepath.Join(r.dir, stateFile), []byte(data), 0o600))
		if _, err := openAgain(Config{Dir: r.dir, Dial: r.dial}); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
}

// TestOtherToken: a directory's own token is told from that of others.
func TestOtherToken(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	mine, theirs := Config{Dir: r.dir, Dial: r.dial}, Config{Dir: t.TempDir(), Dial: r.dial}
	want := func(what string, c Config, other bool) {
		t.Helper()
		s, err := Examine(ctx, c)
		r.must(err)
		if s.OtherToken != other {
			t.Errorf("%s: %v", what, s.OtherToken)
		}
	}
	want("a new TPM", mine, false)
	r.create("a.example", nil)
	want("the only one", mine, false)
	want("no files", theirs, true)
	v, err := openAgain(theirs)
	r.must(err)
	_, err = v.Count(ctx)
	r.must(err)
	want("beside it", theirs, true)
	want("the first", mine, false)
	r.must(v.Reset(ctx))
	want("the only one", theirs, false)
	want("ended", mine, true)
	// A reset that was broken off is no other's.
	r.bus.Command = func(cc tpm2.TPMCC, _ []byte) []byte {
		if cc == tpm2.TPMCCCreate {
			return rcAnswer(tpm2.TPMRCMemory)
		}
		return nil
	}
	if v.Reset(ctx) == nil {
		t.Error("reset")
	}
	r.bus.Command = nil
	want("broken off", theirs, false)
	r.must(v.Close())
}

// Two processes do not have one token.
func TestInUse(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	_, err := Open(Config{Dir: r.dir, Dial: r.dial})
	r.wantErr(err, ErrInUse)
}

// Other programs flush what is the vault's, and fill the TPM.
func TestOtherPrograms(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	r.setPIN("1234")
	u := r.unlock("1234")
	up, uv := r.create("a.example", nil), r.create("a.example", u)
	for _, what := range []struct {
		name string
		do   func() (undo func())
	}{
		{"flush all", func() func() { r.flushAll(); return func() {} }},
		{"flush all before every command", func() func() {
			n := 0
			r.bus.Command = func(cc tpm2.TPMCC, _ []byte) []byte {
				if n++; n%23 == 0 {
					r.flushAllHeld()
				}
				return nil
			}
			return func() { r.bus.Command = nil }
		}},
		{"fill the objects", func() func() {
			var handles []tpm2.TPMHandle
			for range 3 {
				rsp, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHNull, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(r.bus)
				if err != nil {
					break
				}
				handles = append(handles, rsp.ObjectHandle)
			}
			if len(handles) == 3 {
				t.Error("the vault has nothing loaded")
			}
			return func() {
				for _, h := range handles {
					tpm2.FlushContext{FlushHandle: h}.Execute(r.bus)
				}
			}
		}},
		{"one session", func() func() {
			s, _, err := tpm2.HMACSession(r.bus, tpm2.TPMAlgSHA256, 16)
			r.must(err)
			return func() { tpm2.FlushContext{FlushHandle: s.Handle()}.Execute(r.bus) }
		}},
		{"restart the TPM", func() func() {
			rw, err := r.bus.Dial(ctx)
			r.must(err)
			r.tpm = rw
			return func() {}
		}},
	} {
		r.mustSign(up, nil)
		r.mustSign(uv, u)
		undo := what.do()
		for range 3 {
			for name, err := range map[string]error{
				"a key for anybody":       up.Sign(ctx, r.Vault, nil),
				"a key for verified ones": uv.Sign(ctx, r.Vault, u),
			} {
				if err != nil {
					t.Errorf("%s: %s: %v", what.name, name, err)
				}
			}
			r.step()
		}
		if _, err := r.Unlock(ctx, vaulttest.PIN("1234")); err != nil {
			t.Errorf("%s: %v", what.name, err)
		}
		undo()
	}
	r.wantPIN(true, vaulttest.Retries)

	// Objects and sessions that nobody frees: words, and no end of the world.
	r.reopen()
	r.mustSign(up, nil)
	for {
		if _, err := (tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHNull, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}).Execute(r.bus); err != nil {
			break
		}
	}
	r.wantWords(up.Sign(ctx, r.Vault, nil), "other programs fill", "/dev/tpmrm0")
	r.flushAll()
	r.mustSign(up, nil)
}

func (r *rig) flushAllHeld() {
	for _, first := range []tpm2.TPMHandle{0x80000000, 0x02000000, 0x03000000} {
		for h := first; h < first+3; h++ {
			tpm2.FlushContext{FlushHandle: h}.Execute(sender(r.bus.SendHeld))
		}
	}
}

type sender func([]byte) ([]byte, error)

func (s sender) Send(b []byte) ([]byte, error) { return s(b) }

// A power cut between any two commands of a change of the PIN or a reset. A TPM may
// count it as a wrong password if one was in use.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	for name, op := range map[string]func(r *rig) error{
		"ChangePIN": func(r *rig) error { return r.ChangePIN(r.Context(), vaulttest.PIN("1234"), vaulttest.PIN("5678")) },
		"Reset":     func(r *rig) error { return r.Reset(r.Context()) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for n := 0; ; n += 2 {
				r := newRig(t)
				r.setPIN("1234")
				k := r.create("a.example", r.unlock("1234"))
				r.step()
				r.fuse = fuse{left: n, after: n%4 == 0}
				err := op(r)
				done := !r.fuse.blown
				if done {
					r.must(err)
				}
				r.powerCut()
				r.step()
				set, _, err := r.PIN(t.Context())
				r.must(err)
				if set {
					u, err := r.Unlock(t.Context(), vaulttest.PIN("1234"))
					if errors.Is(err, fido.ErrPINInvalid) {
						u, err = r.Unlock(t.Context(), vaulttest.PIN("5678"))
					}
					r.must(err)
					r.mustSign(k, u)
				} else {
					r.setPIN("1234")
					r.wantErr(k.Sign(t.Context(), r.Vault, r.unlock("1234")), fido.ErrNoKey)
				}
				r.Close()
				if done {
					return
				}
			}
		})
	}
}

// A change of the PIN that is cancelled at any command.
func TestCancelledAmid(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.setPIN("1234")
	k := r.create("a.example", r.unlock("1234"))
	pins := []string{"1234", "5678"}
	for n := 1; ; n++ {
		ctx, cancel := context.WithCancel(t.Context())
		left := n
		r.bus.Command = func(tpm2.TPMCC, []byte) []byte {
			if left--; left == 0 {
				cancel()
			}
			return nil
		}
		err := r.ChangePIN(ctx, vaulttest.PIN(pins[0]), vaulttest.PIN(pins[1]))
		r.bus.Command = nil
		done := left > 0
		cancel()
		if err != nil {
			r.wantErr(err, context.Canceled)
		} else {
			pins[0], pins[1] = pins[1], pins[0]
		}
		r.mustSign(k, r.unlock(pins[0]))
		_, err = r.Unlock(t.Context(), vaulttest.PIN(pins[1]))
		r.wantErr(err, fido.ErrPINInvalid)
		if done {
			if n < 10 {
				t.Errorf("only %d commands", n)
			}
			break
		}
	}
	r.wantFailures(0)
}

// The signature counter goes on when somebody removes it, and skips what was not used.
func TestCounterRemoved(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for range 3 {
		r.step()
		r.must(r.do(t.Context(), func() error { return r.undefine(counterIndex(countHandle), true) }))
		r.reopen()
	}
	r.step()
}

func TestVaultSetup(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	c := Config{Dir: r.dir, Dial: r.dial}
	s, err := Examine(ctx, c)
	r.must(err)
	if s.Level != Resettable || s.StorageKey || s.Token || !s.PINIndex || s.LockoutPassword || len(s.Reasons) != 1 || !strings.Contains(s.Reasons[0], "limpet fido setup") {
		t.Errorf("a new TPM: %+v", s)
	}
	if _, err := os.Stat(filepath.Join(r.dir, stateFile)); err == nil {
		t.Error("Examine made a token")
	}
	r.Close()
	no := errors.New("out of paper")
	if _, err := Setup(ctx, c, func(string) error { return no }); !errors.Is(err, no) {
		t.Errorf("error %v, want the printer's", err)
	}
	s, err = Examine(ctx, c)
	r.must(err)
	if s.LockoutPassword {
		t.Error("the lockout has a password that nobody has seen")
	}
	var password string
	s, err = Setup(ctx, c, func(p string) error { password = p; return nil })
	r.must(err)
	if s.Level != Full || !s.StorageKey || !s.Token || !s.PINIndex || !s.LockoutPassword || len(s.Reasons) != 0 || s.PINSet || s.OwnerPassword {
		t.Errorf("set up: %+v", s)
	}
	if len(password) != 30 {
		t.Errorf("the password is %q", password)
	}
	if bytes.Contains(r.bus.Log.Bytes(), []byte(password[:8])) {
		t.Error("the password is on the bus")
	}
	_, err = tpm2.HierarchyChangeAuth{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHLockout, Auth: tpm2.PasswordAuth([]byte(password))},
		NewAuth: tpm2.TPM2BAuth{Buffer: []byte(password)}}.Execute(r.bus)
	r.must(err)
	s, err = Setup(ctx, c, func(string) error { t.Error("a second password"); return nil })
	r.must(err)
	if s.Level != Full {
		t.Errorf("set up twice: %+v", s)
	}

	// While a token has the vault open.
	r.reopen()
	r.setPIN("1234")
	r.Unlock(ctx, vaulttest.PIN("0000"))
	for _, look := range []func() (Status, error){
		func() (Status, error) { return Examine(ctx, c) },
		func() (Status, error) { return Setup(ctx, c, nil) },
	} {
		s, err = look()
		r.must(err)
		if !s.Token || !s.PINSet || s.Retries != vaulttest.Retries-1 || s.Level != Full {
			t.Errorf("in use: %+v", s)
		}
	}
	r.unlock("1234")

	r.ownerPassword("", "owner")
	s, err = Examine(ctx, c)
	r.must(err)
	if s.Level != Full || !s.OwnerPassword {
		t.Errorf("an owner's password after the set-up: %+v", s)
	}
	other := newRig(t)
	other.connect()
	other.ownerPassword("", "owner")
	s, err = Examine(ctx, Config{Dir: t.TempDir(), Dial: other.dial})
	r.must(err)
	if s.Level != None || len(s.Reasons) != 1 || !strings.Contains(s.Reasons[0], "owner") {
		t.Errorf("an owner's password before the set-up: %+v", s)
	}
	if dictionaryAttackLockReset(r.bus) == nil {
		t.Error("the lockout has no password")
	}
	_, err = Examine(ctx, Config{Dir: r.dir, Addr: "unix:" + filepath.Join(t.TempDir(), "none")})
	r.wantWords(err, "no TPM listens")
}

// TestTrial: to see whether the TPM counts the tries of one PIN, status touches nothing
// but its own places, proves who it is in sessions, and leaves nothing.
func TestTrial(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.connect()
	c := Config{Dir: r.dir, Dial: r.dial}
	r.bus.Command = func(cc tpm2.TPMCC, b []byte) []byte {
		handles := map[tpm2.TPMCC]int{tpm2.TPMCCNVDefineSpace: 1, tpm2.TPMCCNVUndefineSpace: 2}[cc]
		if handles > 0 && binary.BigEndian.Uint32(b[10+4*handles+4:]) == uint32(tpm2.TPMRSPW) {
			t.Errorf("%v with a password", cc)
		}
		return nil
	}
	look := func(what string, index bool, reason string) {
		t.Helper()
		before := r.indices()
		s, err := Examine(t.Context(), c)
		r.must(err)
		if s.PINIndex != index || !strings.Contains(strings.Join(s.Reasons, "\n"), reason) {
			t.Errorf("%s: %+v", what, s)
		}
		for h, name := range before {
			if after := r.indices()[h]; after != name && what != "broken off" {
				t.Errorf("%s: %#x was %x, and is %x", what, h, name, after)
			}
		}
		if n := len(r.indices()); n > len(before) {
			t.Errorf("%s: %d places, there were %d", what, n, len(before))
		}
		if n := len(r.handles(0x80000000)) + len(r.handles(0x02000000)); n > 0 {
			t.Errorf("%s: %d objects and sessions are left", what, n)
		}
	}
	look("a new TPM", true, "")
	if len(r.handles(0x81000000)) > 0 {
		t.Error("a storage key was made")
	}
	trial := pinIndex(firstTrial)
	r.defineIndex(tpm2.TPMSNVPublic(trial))
	look("broken off", true, "")
	if len(r.indices()) > 0 {
		t.Error("a trial that was broken off is still there")
	}
	r.Close()
	_, err := Setup(t.Context(), c, nil)
	r.must(err)
	for h := firstTrial; h <= lastTrial; h++ {
		look("others have places", true, "")
		others := tpm2.TPMSNVPublic{NVIndex: h, NameAlg: tpm2.TPMAlgSHA256, DataSize: 8, Attributes: tpm2.TPMANV{OwnerRead: true, OwnerWrite: true}}
		if h == lastTrial { // ours, but for the policy
			others = tpm2.TPMSNVPublic(pinIndex(h))
			others.AuthPolicy = tpm2.TPM2BDigest{Buffer: make([]byte, 32)}
		}
		r.defineIndex(others)
	}
	look("others have all", false, "cannot be tried while other software")
	r.must(lockoutParameters(r.bus, 3, 1000, 1000))
	r.lockLockout()
	s, err := Examine(t.Context(), c)
	r.must(err)
	if s.Level != Lockout {
		t.Errorf("%+v", s)
	}
}

func (r *rig) defineIndex(public tpm2.TPMSNVPublic) {
	r.Helper()
	hook := r.bus.Command
	r.bus.Command = nil
	_, err := tpm2.NVDefineSpace{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}, PublicInfo: tpm2.New2B(public)}.Execute(r.bus)
	r.must(err)
	r.bus.Command = hook
}

// handles returns what the TPM has of a kind.
func (r *rig) handles(first uint32) []tpm2.TPMHandle {
	r.Helper()
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 64}.Execute(r.bus)
	r.must(err)
	list, err := rsp.CapabilityData.Data.Handles()
	r.must(err)
	return list.Handle
}

// indices returns the names of all places in the TPM's memory.
func (r *rig) indices() map[tpm2.TPMHandle]string {
	r.Helper()
	m := make(map[tpm2.TPMHandle]string)
	for _, h := range r.handles(0x01000000) {
		rsp, err := tpm2.NVReadPublic{NVIndex: h}.Execute(r.bus)
		r.must(err)
		m[h] = string(rsp.NVName.Buffer)
	}
	return m
}

// lockoutParameters is TPM2_DictionaryAttackParameters with an empty password.
func lockoutParameters(bus *limpettest.TPMBus, most, forget, recovery uint32) error {
	b := []byte{0x80, 0x02, 0, 0, 0, 39, 0, 0, 0x01, 0x3a, 0x40, 0, 0, 0x0a, 0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0}
	for _, v := range []uint32{most, forget, recovery} {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	rsp, err := bus.Send(b)
	if err == nil && !bytes.Equal(rsp[6:10], make([]byte, 4)) {
		err = errors.New("refused")
	}
	return err
}

// TestWeakLockout: a lockout that hardly locks is worth no more than one without
// a password, and status says so.
func TestWeakLockout(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		most, forget, recovery uint32
		level                  Level
		reason                 string
	}{
		{32, 600, 86400, Full, ""},
		{10, 7200, 0, Full, ""},
		{maxFailures, 300, 300, Full, ""},
		{maxFailures + 1, 7200, 86400, Resettable, "is weak (101 failures at once"},
		{1 << 31, 7200, 86400, Resettable, "is weak"},
		{32, 1, 86400, Resettable, "one more every 1s"},
		{32, 299, 86400, Resettable, "is weak"},
		{32, 0, 86400, Resettable, "is off"},
		{32, 600, 1, Full, "can be tried every 1s"},
	} {
		t.Run(fmt.Sprint(c.most, c.forget, c.recovery), func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.connect()
			r.must(lockoutParameters(r.bus, c.most, c.forget, c.recovery))
			r.lockLockout()
			s, err := Examine(t.Context(), Config{Dir: r.dir, Dial: r.dial})
			r.must(err)
			if s.Level != c.level || (len(s.Reasons) == 0) != (c.reason == "") || !strings.Contains(strings.Join(s.Reasons, "\n"), c.reason) {
				t.Errorf("%+v, want %s, %q", s, c.level, c.reason)
			}
			if s.Recovery != time.Duration(c.recovery)*time.Second {
				t.Errorf("recovery after %v", s.Recovery)
			}
		})
	}
}

// The recovery print-out is what tpm2-tools take.
func TestRecovery(t *testing.T) {
	t.Parallel()
	addr := limpettest.SoftTPMAt(t, "unix")
	c := Config{Addr: addr, Dir: t.TempDir()}
	var password string
	if _, err := Setup(t.Context(), c, func(p string) error { password = p; return nil }); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{password, "another"} {
		ok := p == password
		cmd := exec.CommandContext(t.Context(), "tpm2_dictionarylockout", "--clear-lockout", "--auth", "file:-")
		cmd.Stdin = strings.NewReader(p + "\n")
		cmd.Env = append(os.Environ(), "TPM2TOOLS_TCTI=swtpm:path="+strings.TrimPrefix(addr, "unix:"))
		if out, err := cmd.CombinedOutput(); (err == nil) != ok {
			t.Errorf("tpm2_dictionarylockout: %v\n%s", err, out)
		}
	}
}

// One vault at each kind of address.
func TestAddresses(t *testing.T) {
	t.Parallel()
	for _, network := range []string{"unix", "tcp"} {
		c := Config{Addr: limpettest.SoftTPMAt(t, network), Dir: t.TempDir()}
		v, err := Open(c)
		if err != nil {
			t.Fatal(err)
		}
		k, err := vaulttest.Create(t.Context(), v, "a.example", nil)
		if err == nil {
			err = k.Sign(t.Context(), v, nil)
		}
		v.Close()
		if err != nil {
			t.Errorf("%s: %v", network, err)
		}
	}
	v, err := Open(Config{Addr: "somewhere", Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if _, err := v.Count(context.Background()); err == nil || !strings.Contains(err.Error(), "not the address") {
		t.Errorf("error %v", err)
	}
}
