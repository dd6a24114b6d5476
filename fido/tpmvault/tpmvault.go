// Package tpmvault is a fido.Vault in a TPM 2.0: private keys never leave it, and it
// counts wrong PINs.
//
// # What is where
//
// All keys are under the storage key that the machine shares (0x81000001), and
// none stays in the TPM: their encrypted form is in handles, which the relying
// parties keep, and in one file. In the TPM's memory are three places of a few
// bytes: a generation, which a reset steps and every key depends on; the PIN's count
// of wrong tries, which nobody can set back, the owner of the TPM included; and the
// high part of the signature counter.
//
// Keys that were made for verified users have a parent of their own. The TPM uses it
// only if the PIN's index takes the PIN, which counts wrong ones, and if the
// parent's own password is the same PIN, which whoever puts an index of their own in
// its place does not know; guessing that one counts towards the TPM's lockout.
//
// # What protects what
//
// Commands travel in sessions salted with the storage key, checked with HMAC both
// ways, and PINs, secrets and HMACs are encrypted in them. The storage key's name is
// in the file: another in its place is an error. That the user was present is not
// the TPM's to know: whoever may use the TPM and the files uses keys that need no PIN.
package tpmvault

import (
	"cmp"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"

	"github.com/google/go-tpm/tpm2"

	"github.com/limpet-auth/limpet/fido"
	"github.com/limpet-auth/limpet/internal/private"
	"github.com/limpet-auth/limpet/internal/tpm"
)

// Config says which TPM and which files to use.
type Config struct {
	// Addr is the address of the TPM: "/dev/..." for a device, "unix:PATH" or
	// "tcp:HOST:PORT" for swtpm or whatever takes TPM commands on a socket.
	// The default is /dev/tpmrm0, or /dev/tpm0 where there is no other.
	Addr string

	// Dir is the directory of the vault's file. It must be kept: without it all keys
	// are lost, and so they are if an older one is put back after a change of PIN.
	Dir string

	// Dial, if set, connects to the TPM in place of Addr. It is called again
	// when a connection broke.
	Dial func(context.Context) (io.ReadWriteCloser, error)
}

// ErrInUse means that another process has the vault open.
var ErrInUse = errors.New("limpet: tpmvault: another process has this token open")

// Vault is a token's keys in one TPM. It connects to the TPM when it is first
// needed, and makes what is not there: the storage key, the places in the TPM's
// memory, the file. It is safe for concurrent use.
type Vault struct {
	dir  string
	lock *private.Locked
	conn *tpm.Conn

	// Guarded by conn, which runs one sequence of commands at a time.
	closed   bool
	state    *state // nil if there is no file
	macKey   []byte
	sealKey  []byte
	epoch    int    // of the PIN; Unlocked of others are useless
	count    uint32 // the last one given out
	countEnd uint32 // the last one before the TPM's counter must be stepped

	// Of the connection.
	isReady  bool
	srk      *storageKey
	hmac     *session
	policy   *session
	up, uv   *parent
	resident []*parent // loaded, least recently used first
	parents  []*parent // loaded, or with a saved context
}

// Open opens the vault whose file is in c.Dir. It does not talk to the TPM: what is
// wrong with that comes out of the calls that need it.
func Open(c Config) (*Vault, error) {
	lock, err := private.Lock(filepath.Join(c.Dir, lockFile))
	if errors.Is(err, private.ErrLocked) {
		return nil, fmt.Errorf("%w (%s)", ErrInUse, c.Dir)
	}
	if err != nil {
		return nil, prefix(err)
	}
	s, err := readState(c.Dir)
	if err != nil {
		lock.Close()
		return nil, prefix(err)
	}
	v := &Vault{dir: c.Dir, lock: lock, state: s}
	v.conn = tpm.New(c.Addr, c.Dial, (*loaded)(v))
	return v, nil
}

// Close frees all that is loaded in the TPM and forgets what was derived. The vault
// is of no more use.
func (v *Vault) Close() error {
	v.conn.Locked(func() { v.closed = true })
	v.conn.Close()
	v.conn.Locked(v.forgetKeys)
	return v.lock.Close()
}

// Commands returns how many commands of each name were sent to the TPM, such as
// "Sign" or "Load", repeats included.
func (v *Vault) Commands() map[string]int { return v.conn.Commands() }

func (v *Vault) forgetKeys() {
	clear(v.macKey)
	clear(v.sealKey)
	v.macKey, v.sealKey = nil, nil
	v.epoch++
	v.up, v.uv = nil, nil
}

// parentFor returns the parent of keys of this kind, and its authValue from u.
func (v *Vault) parentFor(uv bool, u fido.Unlocked) (*parent, []byte, error) {
	if !uv {
		return v.up, nil, nil
	}
	if u == nil {
		return nil, nil, fido.ErrLocked
	}
	auth, err := v.authFor(u)
	if err != nil {
		return nil, nil, err
	}
	if v.uv == nil {
		if v.uv, err = newParent(v.state.PIN.Current.Parent, true, !v.state.PIN.Lockout); err != nil {
			return nil, nil, err
		}
	}
	return v.uv, auth, nil
}

// Create implements fido.Vault.
func (v *Vault) Create(ctx context.Context, tie [32]byte, u fido.Unlocked) (handle []byte, public *ecdsa.PublicKey, err error) {
	err = v.do(ctx, func() error {
		p, auth, err := v.parentFor(u != nil, u)
		if err != nil {
			return err
		}
		defer clear(auth)
		k := keyUP
		if u != nil {
			k = keyUV
		}
		for range 4 {
			o, err := v.create(p, v.state.Generation, auth, false)
			if err != nil {
				return lockedUnless(err)
			}
			if handle, err = marshalHandle(v.macKey, tie, k, o); err == nil {
				public, err = publicKey(o)
				return err
			} else if !errors.Is(err, errShortPoint) {
				return err
			}
		}
		return errShortPoint
	})
	return handle, public, prefix(err)
}

// Verified implements fido.Vault. It costs the TPM nothing.
func (v *Vault) Verified(ctx context.Context, tie [32]byte, handle []byte) (uv bool, err error) {
	err = v.do(ctx, func() error {
		k, _, err := parseHandle(v.macKey, tie, handle, false)
		uv = k.uv()
		return err
	})
	return uv, prefix(err)
}

// Sign implements fido.Vault.
func (v *Vault) Sign(ctx context.Context, tie [32]byte, handle []byte, u fido.Unlocked, digest [32]byte) (sig []byte, err error) {
	err = v.do(ctx, func() error {
		k, objects, err := parseHandle(v.macKey, tie, handle, false)
		if err != nil {
			return err
		}
		p, auth, err := v.parentFor(k.uv(), u)
		if err != nil {
			return err
		}
		defer clear(auth)
		return lockedUnless(v.with(p, auth, objects[0], func(key tpm2.NamedHandle) error {
			sig, err = v.sign(key, digest)
			return err
		}))
	})
	return sig, prefix(err)
}

func (v *Vault) sign(key tpm2.NamedHandle, digest [32]byte) ([]byte, error) {
	hmac, err := v.hmacSession()
	if err != nil {
		return nil, err
	}
	rsp, err := tpm2.Sign{
		KeyHandle: tpm2.AuthHandle{Handle: key.Handle, Name: key.Name, Auth: hmac.secret(nil)},
		Digest:    tpm2.TPM2BDigest{Buffer: digest[:]},
		InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgECDSA,
			Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256})},
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
	}.Execute(v.conn)
	if err != nil {
		return nil, tpm.Words("signing", err)
	}
	return tpm.ECDSASignature(&rsp.Signature)
}

// lockedUnless says of a PIN that the TPM took before and refuses now that it is
// none: somebody changed it past this vault.
func lockedUnless(err error) error {
	for _, refusal := range []error{errIndexRefuses, errIndexBlocked, errParentRefuses} {
		if errors.Is(err, refusal) {
			return fido.ErrLocked
		}
	}
	return err
}

// CreateSecret implements fido.Vault. The two secrets are objects of their own.
func (v *Vault) CreateSecret(ctx context.Context, tie [32]byte, u fido.Unlocked) (handle []byte, err error) {
	err = v.do(ctx, func() error {
		p, auth, err := v.parentFor(u != nil, u)
		if err != nil {
			return err
		}
		defer clear(auth)
		k := secretUP
		if u != nil {
			k = secretUV
		}
		var objects []object
		for range 2 {
			o, err := v.create(p, v.state.Generation, auth, true)
			if err != nil {
				return lockedUnless(err)
			}
			objects = append(objects, o)
		}
		handle, err = marshalHandle(v.macKey, tie, k, objects...)
		return err
	})
	return handle, prefix(err)
}

// maxSalt is how many bytes of salt Secret takes; the extension has 32.
const maxSalt = 512

// Secret implements fido.Vault.
func (v *Vault) Secret(ctx context.Context, tie [32]byte, handle []byte, u fido.Unlocked, salt []byte) (out [32]byte, err error) {
	if len(salt) > maxSalt {
		return out, prefix(fmt.Errorf("a salt of %d bytes, at most %d are allowed", len(salt), maxSalt))
	}
	err = v.do(ctx, func() error {
		k, objects, err := parseHandle(v.macKey, tie, handle, true)
		if err != nil {
			return err
		}
		if u != nil {
			if _, err := v.authFor(u); err != nil {
				return err // also for a secret that the TPM would give to anybody
			}
		}
		p, auth, err := v.parentFor(k.uv(), u)
		if err != nil {
			return err
		}
		defer clear(auth)
		o := objects[0]
		if u != nil {
			o = objects[1]
		}
		return lockedUnless(v.with(p, auth, o, func(key tpm2.NamedHandle) error {
			mac, err := v.mac(key, salt)
			copy(out[:], mac)
			clear(mac)
			return err
		}))
	})
	return out, prefix(err)
}

// stride is how many signatures go with one step of the TPM's counter, whose
// memory wears out. Those that a process has not used up are passed over: the
// counter never goes back, and no file has to be written for it.
const stride = 256

// Count implements fido.Vault.
func (v *Vault) Count(ctx context.Context) (count uint32, err error) {
	err = v.do(ctx, func() error {
		if v.count == v.countEnd {
			i := counterIndex(countHandle)
			err := v.increment(i, true)
			if errors.Is(err, tpm2.TPMRCHandle) { // somebody removed it: made again, it goes on above all it was
				if _, err = v.counter(countHandle); err == nil {
					err = v.increment(i, true)
				}
			}
			if err != nil {
				return err
			}
			now, err := v.readCounter(i)
			if err != nil {
				return err
			}
			steps := now - min(v.state.CountBase, now)
			if steps == 0 || steps > math.MaxUint32/stride {
				return errors.New("the TPM's counter is used up or went back")
			}
			v.count, v.countEnd = uint32(steps-1)*stride, uint32(steps)*stride
		}
		v.count++
		count = v.count
		return nil
	})
	return count, prefix(err)
}

// sealedV1 is the first byte of what Seal returns; the nonce and the sealed text
// follow.
const sealedV1 = 1

// maxSealed bounds what Seal and Open take, in bytes.
const maxSealed = 16 << 20

// Seal implements fido.Vault: AES-256-GCM under a key that the TPM derives for each
// process, as long as the generation lasts.
func (v *Vault) Seal(ctx context.Context, plain []byte) (sealed []byte, err error) {
	if len(plain) > maxSealed {
		return nil, prefix(fmt.Errorf("%d bytes to seal, at most %d are allowed", len(plain), maxSealed))
	}
	err = v.do(ctx, func() error {
		aead, err := newAEAD(v.sealKey)
		if err != nil {
			return err
		}
		sealed = aead.Seal([]byte{sealedV1}, nil, plain, nil)
		return nil
	})
	return sealed, prefix(err)
}

// Open implements fido.Vault.
func (v *Vault) Open(ctx context.Context, sealed []byte) (plain []byte, err error) {
	err = v.do(ctx, func() error {
		aead, err := newAEAD(v.sealKey)
		if err != nil {
			return err
		}
		if len(sealed) == 0 || len(sealed) > maxSealed+64 || sealed[0] != sealedV1 {
			return fido.ErrNoKey
		}
		if plain, err = aead.Open(nil, nil, sealed[1:], nil); err != nil {
			return fido.ErrNoKey
		}
		return nil
	})
	return plain, prefix(err)
}

func newAEAD(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// Reset implements fido.Vault. It works also where nothing else does: with files of
// another generation or another TPM, damaged ones excepted.
func (v *Vault) Reset(ctx context.Context) error {
	return prefix(v.conn.Do(ctx, func() error {
		if v.closed {
			return errClosed
		}
		if err := v.findStorageKey(true); err != nil {
			return err
		}
		if _, err := v.counter(genHandle); err != nil {
			return err
		}
		if err := v.checkRemovable(pinIndex(pinHandle)); err != nil {
			return err // before it is too late
		}
		if v.state != nil {
			s := v.state.copy()
			s.Resetting = true
			if err := v.save(s); err != nil {
				return err
			}
		}
		v.forgetKeys()
		v.isReady = false
		if err := v.increment(counterIndex(genHandle), true); err != nil {
			return err
		}
		if err := v.renew(); err != nil {
			return err
		}
		return v.ready()
	}))
}

// renew makes a vault anew after the generation was stepped.
func (v *Vault) renew() error {
	i := pinIndex(pinHandle)
	there, written, err := v.look(i)
	if err != nil {
		return err
	}
	if there {
		if err := v.undefine(i, written); err != nil {
			return err
		}
	}
	for _, p := range append([]*parent(nil), v.parents...) {
		v.drop(p)
	}
	s := cmp.Or(v.state, new(state)).copy()
	s.Joined = false
	return v.provision(s)
}

var errClosed = errors.New("the vault is closed")

func prefix(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("limpet: tpmvault: %w", err)
}
