package tpmvault

import (
	"context"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/google/go-tpm/tpm2"

	"github.com/limpet-auth/limpet/fido"
	"github.com/limpet-auth/limpet/internal/tpm"
)

// errForeignPIN: there is a PIN in the TPM that these files do not know of.
var errForeignPIN = errors.New("the TPM has the PIN of another token, whose files are not here (another directory, or lost): a reset removes it and makes that token's keys worthless")

// PIN implements fido.Vault. The tries are read from the TPM each time: who has a
// copy of the files uses them up, too. Where the TPM has no PIN index, what is left of
// the TPM's own lockout is told.
func (v *Vault) PIN(ctx context.Context) (set bool, retries int, err error) {
	err = v.do(ctx, func() (err error) {
		set, retries = v.state.pinSet(), pinLimit
		if !set {
			return nil
		}
		retries, err = v.readRetries()
		return err
	})
	return set, retries, prefix(err)
}

// readRetries returns how many wrong PINs there may still be.
func (v *Vault) readRetries() (int, error) {
	if v.state.PIN.Lockout {
		p, err := tpm.Properties(v.conn, tpm2.TPMPTPermanent)
		if err != nil {
			return 0, tpm.Words("asking the TPM about its lockout", err)
		}
		failures, most := p[tpm2.TPMPTLockoutCounter], p[tpm2.TPMPTMaxAuthFail]
		if failures >= most {
			return 0, nil
		}
		return int(min(most-failures, pinLimit)), nil
	}
	left, err := v.readTries()
	if v.state.PIN.Next != nil {
		left = (left + 1) / 2 // a wrong PIN is tried twice
	}
	return left, err
}

// readTries returns how many wrong authValues the index still takes.
func (v *Vault) readTries() (int, error) {
	pin := pinIndex(pinHandle).named(true)
	var data []byte
	err := v.byBranch(tpm2.TPMCCNVRead, nil, func(policy *session) error {
		rsp, err := tpm2.NVRead{AuthHandle: tpm2.AuthHandle{Handle: pin.Handle, Name: pin.Name, Auth: policy.with(nil)}, NVIndex: pin, Size: 8}.Execute(v.conn)
		if err == nil {
			data = rsp.Data.Buffer
		}
		return err
	})
	if errors.Is(err, tpm2.TPMRCHandle) {
		return 0, nil // somebody removed it, and the keys with it
	}
	if err != nil {
		return 0, tpm.Words("reading the tries that are left", err)
	}
	if len(data) != 8 {
		return 0, errors.New("reading the tries that are left: the TPM's answer has another size")
	}
	count, limit := binary.BigEndian.Uint32(data), binary.BigEndian.Uint32(data[4:])
	if count >= limit {
		return 0, nil
	}
	return int(min(limit-count, pinLimit)), nil
}

// SetPIN implements fido.Vault.
func (v *Vault) SetPIN(ctx context.Context, pin [16]byte) error {
	return prefix(v.do(ctx, func() error { return v.setPIN(pin) }))
}

func (v *Vault) setPIN(pin [16]byte) (err error) {
	if v.state.pinSet() {
		return errors.New("there is a PIN already")
	}
	i := pinIndex(pinHandle)
	there, written, err := v.look(i)
	if err != nil {
		return err
	}
	if there && v.state.PIN == nil {
		return errForeignPIN
	}
	auth, salt := newAuth(pin)
	defer clear(auth)
	s := v.state.copy()
	s.PIN = &pinState{Current: pinParent{Salt: salt}}
	if err := v.save(s); err != nil { // from here on the index is ours
		return err
	}
	if there {
		if err := v.undefine(i, written); err != nil {
			return err
		}
	}
	defer func() {
		if err != nil && !there {
			// As far as the TPM lets: what stays is removed by the next call.
			if v.undefine(i, false) == nil || v.undefine(i, true) == nil {
				s := v.state.copy()
				s.PIN = nil
				err = errors.Join(err, v.save(s))
			}
		}
	}()
	err = v.define(i, auth)
	lockout := noPINIndex(err)
	switch {
	case lockout:
	case err != nil:
		return err
	default:
		if err := v.writeLimit(i); err != nil {
			return err
		}
	}
	v.makeRoom()
	o, err := v.makeParent(uvPolicy(v.state.Generation, !lockout), auth)
	if err != nil {
		return err
	}
	p, err := newParent(o.blob(), true, !lockout)
	if err != nil {
		return err
	}
	probe, err := v.create(p, v.state.Generation, auth, true)
	if err != nil {
		v.drop(p)
		return err
	}
	s = v.state.copy()
	s.PIN = &pinState{Lockout: lockout, Current: pinParent{Salt: salt, Parent: o.blob(), Probe: probe.blob()}}
	if err := v.save(s); err != nil {
		v.drop(p)
		return err
	}
	v.uv = p
	return nil
}

// noPINIndex tells whether a definition failed because the TPM does not know the
// type of the index: TPM_RC_ATTRIBUTES and the like, of the parameter.
func noPINIndex(err error) bool {
	return tpm.Rejected(err) && (errors.Is(err, tpm2.TPMRCAttributes) || errors.Is(err, tpm2.TPMRCValue) || errors.Is(err, tpm2.TPMRCReservedBits))
}

// writeLimit writes the count and the limit, once and for all.
func (v *Vault) writeLimit(i index) error {
	at := i.named(false)
	neverWritten := func(policy tpm2.TPMHandle) error {
		_, err := tpm2.PolicyNVWritten{PolicySession: policy, WrittenSet: false}.Execute(v.conn)
		return err
	}
	err := v.byBranch(tpm2.TPMCCNVWrite, neverWritten, func(policy *session) error {
		_, err := tpm2.NVWrite{
			AuthHandle: tpm2.AuthHandle{Handle: at.Handle, Name: at.Name, Auth: policy.with(nil)},
			NVIndex:    at,
			Data:       tpm2.TPM2BMaxNVBuffer{Buffer: []byte{0, 0, 0, 0, 0, 0, 0, pinLimit}},
		}.Execute(v.conn)
		return err
	})
	if err != nil {
		return tpm.Words("limiting the tries of the PIN", err)
	}
	return nil
}

// newAuth makes an authValue of a PIN, and the salt that makes the same again.
func newAuth(pin [16]byte) (auth, salt []byte) {
	salt = make([]byte, 32)
	rand.Read(salt)
	return authOf(pin, salt), salt
}

// authOf returns the authValue of a PIN. It has no zero byte: TPMs cut them off at
// the end.
func authOf(pin [16]byte, salt []byte) []byte {
	auth, err := hkdf.Key(sha256.New, pin[:], salt, "limpet fido PIN", 32)
	if err != nil {
		panic(err) // cannot be: the length is one that HKDF gives
	}
	for i := range auth {
		auth[i] = max(auth[i], 1)
	}
	return auth
}

// Unlock implements fido.Vault.
func (v *Vault) Unlock(ctx context.Context, pin [16]byte) (fido.Unlocked, error) {
	var u *unlocked
	err := v.do(ctx, func() error {
		auth, err := v.prove(pin)
		if err != nil {
			return err
		}
		u = &unlocked{vault: v, auth: auth, epoch: v.epoch}
		return nil
	})
	if err != nil {
		return nil, prefix(err)
	}
	return u, nil
}

// prove returns the PIN's authValue if the TPM takes it: the index, and the parent
// of the keys. If a change of the PIN was broken off, it is found out here whether
// it came to it. The two PINs have different salts, so that a PIN fits one of them
// even if both are the same, and nothing but the index has to be asked: a wrong
// answer of the parent's would count towards the lockout of the whole TPM. Only where
// the index takes but one more try the parent is asked which of the two it goes to:
// the right PIN must not be what blocks it.
func (v *Vault) prove(pin [16]byte) ([]byte, error) {
	if !v.state.pinSet() {
		return nil, errors.New("there is no PIN")
	}
	current, next := &v.state.PIN.Current, v.state.PIN.Next
	candidates := []*pinParent{current}
	if next != nil {
		candidates = append(candidates, next)
		left, err := v.readTries()
		if err != nil {
			return nil, err
		}
		if left == 1 {
			isNext, err := v.fits(pin, next)
			if err != nil {
				return nil, err
			}
			if isNext {
				candidates = candidates[1:]
			} else {
				candidates = candidates[:1]
			}
		}
	}
	for i, c := range candidates {
		p := v.uv
		if p == nil || c != current {
			var err error
			if p, err = newParent(c.Parent, true, !v.state.PIN.Lockout); err != nil {
				return nil, err
			}
		}
		if c == current {
			v.uv = p
		}
		probe, err := c.Probe.object()
		if err != nil {
			return nil, err
		}
		auth := authOf(pin, c.Salt)
		err = v.with(p, auth, probe, func(tpm2.NamedHandle) error { return nil })
		if err != nil {
			clear(auth)
			if p != v.uv {
				v.drop(p)
			}
		}
		switch {
		case err == nil:
			if p != v.uv {
				v.drop(v.uv)
			}
			v.uv = p
			if next == nil {
				return auth, nil
			}
			s := v.state.copy()
			s.PIN.Current, s.PIN.Next = *c, nil
			if err := v.save(s); err != nil {
				clear(auth)
				return nil, err
			}
			return auth, nil
		case errors.Is(err, errIndexRefuses) && i+1 < len(candidates):
		case errors.Is(err, errIndexRefuses), errors.Is(err, errParentRefuses):
			if left, err := v.readRetries(); err == nil && left == 0 {
				return nil, fido.ErrPINBlocked
			}
			if errors.Is(err, errParentRefuses) && p.index {
				return nil, fmt.Errorf("%w: the PIN that the TPM counts is not the one that the keys were made with: somebody replaced it, and has to guess", fido.ErrPINInvalid)
			}
			return nil, fido.ErrPINInvalid
		case errors.Is(err, errIndexBlocked):
			return nil, fido.ErrPINBlocked
		case errors.Is(err, errParentLocked) && !p.index:
			return nil, fmt.Errorf("%w: %w", fido.ErrPINBlocked, err)
		default:
			return nil, err
		}
	}
	panic("limpet: fido/tpmvault: the last PIN to try has no verdict")
}

// fits tells whether a PIN is the password of a parent of keys.
func (v *Vault) fits(pin [16]byte, c *pinParent) (bool, error) {
	p, err := newParent(c.Parent, true, true)
	if err != nil {
		return false, err
	}
	defer v.drop(p)
	auth := authOf(pin, c.Salt)
	defer clear(auth)
	_, err = v.changeAuth(p, auth, auth) // what it returns is the same again
	if errors.Is(err, errParentRefuses) {
		return false, nil
	}
	return err == nil, err
}

// ChangePIN implements fido.Vault. The new parent is in the file before the index
// takes the new PIN, and the old one until it is known that it did.
func (v *Vault) ChangePIN(ctx context.Context, old, pin [16]byte) error {
	same := subtle.ConstantTimeCompare(old[:], pin[:]) == 1 // which is no change
	err := v.do(ctx, func() error {
		auth, err := v.prove(old)
		if err != nil {
			return err
		}
		defer clear(auth)
		if same {
			return nil
		}
		return v.prepareChange(auth, pin)
	})
	if err != nil || same || v.changed() {
		return prefix(err)
	}
	ctx = context.WithoutCancel(ctx) // there is no way back
	err = v.do(ctx, func() error {
		next := v.state.PIN.Next
		if next == nil {
			return nil
		}
		before, after := authOf(old, v.state.PIN.Current.Salt), authOf(pin, next.Salt)
		defer clear(before)
		defer clear(after)
		if err := v.changeIndex(before, after); err != nil {
			return err
		}
		s := v.state.copy()
		s.PIN.Current, s.PIN.Next = *next, nil
		v.drop(v.uv)
		v.uv = nil
		return v.save(s)
	})
	if err != nil {
		// The command may have reached the TPM all the same.
		again := v.do(ctx, func() error {
			auth, err := v.prove(pin)
			clear(auth)
			return err
		})
		if again == nil {
			err = nil
		}
	}
	return prefix(err)
}

// prepareChange makes the parent that the new PIN will go with.
func (v *Vault) prepareChange(auth []byte, pin [16]byte) error {
	next, salt := newAuth(pin)
	defer clear(next)
	private, err := v.changeAuth(v.uv, auth, next)
	if err != nil {
		return err
	}
	v.epoch++
	s := v.state.copy()
	changed := pinParent{Salt: salt, Parent: object{v.uv.public, private}.blob(), Probe: s.PIN.Current.Probe}
	if !s.PIN.Lockout {
		s.PIN.Next = &changed
		return v.save(s)
	}
	s.PIN.Current = changed // there is no index to change
	v.drop(v.uv)
	v.uv = nil
	return v.save(s)
}

// changeAuth returns a parent's private part with another password. A wrong one counts
// towards the TPM's lockout.
func (v *Vault) changeAuth(p *parent, auth, next []byte) ([]byte, error) {
	hmac, err := v.hmacSession()
	if err != nil {
		return nil, err
	}
	if err := v.bring(p); err != nil {
		return nil, err
	}
	rsp, err := tpm2.ObjectChangeAuth{
		ObjectHandle: tpm2.AuthHandle{Handle: p.handle, Name: p.named, Auth: hmac.secret(auth)},
		ParentHandle: tpm2.NamedHandle{Handle: tpm.SRKHandle, Name: v.srk.name},
		NewAuth:      tpm2.TPM2BAuth{Buffer: next},
	}.Execute(v.conn)
	if err != nil {
		return nil, p.words("changing the PIN", err)
	}
	return rsp.OutPrivate.Buffer, nil
}

// changed tells whether a change of the PIN is done once the file has it.
func (v *Vault) changed() (done bool) {
	v.conn.Locked(func() { done = v.state.PIN.Lockout })
	return done
}

// changeIndex gives the index another authValue.
func (v *Vault) changeIndex(old, next []byte) error {
	proven := func(policy tpm2.TPMHandle) error {
		_, err := tpm2.PolicyAuthValue{PolicySession: policy}.Execute(v.conn)
		return err
	}
	err := v.byBranch(tpm2.TPMCCNVChangeAuth, proven, func(policy *session) error {
		u := policy.secret(old)
		u.after = next
		return nvChangeAuth(v.conn, pinIndex(pinHandle).named(true), u)
	})
	if err != nil {
		return tpm.Words("changing the PIN", err)
	}
	return nil
}

// unlocked is a PIN that the TPM took, as the authValue that it makes.
type unlocked struct {
	vault *Vault
	epoch int // of the PIN; another one's would count as wrong

	mu   sync.Mutex
	auth []byte // nil once forgotten
}

// Forget implements fido.Unlocked.
func (u *unlocked) Forget() {
	u.mu.Lock()
	defer u.mu.Unlock()
	clear(u.auth)
	u.auth = nil
}

// authFor returns the authValue of u, a copy, or fido.ErrLocked if it is nothing to
// this vault.
func (v *Vault) authFor(u fido.Unlocked) ([]byte, error) {
	mine, ok := u.(*unlocked)
	if !ok || mine == nil || mine.vault != v || mine.epoch != v.epoch || !v.state.pinSet() {
		return nil, fido.ErrLocked
	}
	mine.mu.Lock()
	defer mine.mu.Unlock()
	if mine.auth == nil {
		return nil, fido.ErrLocked
	}
	return append([]byte(nil), mine.auth...), nil
}
