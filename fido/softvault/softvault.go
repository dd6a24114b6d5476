// Package softvault keeps a FIDO token's keys in files: for tests, and for machines
// without a TPM whose owner says so. It is not secure in the way that a token is:
// whoever copies the files has the keys that need no PIN, and can try PINs for the
// others as fast as their computers are. What counts the PIN's tries is a file too.
package softvault

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/crypto/argon2"

	"github.com/limpet-auth/limpet/fido"
	"github.com/limpet-auth/limpet/internal/private"
)

const (
	tries     = 8
	countStep = 1000 // of the signature counter, between two writes
)

// Vault is a fido.Vault in a directory.
type Vault struct {
	dir  string
	seal cipher.AEAD // of the file, by the key that lies beside it
	lock *private.Locked

	mu    sync.Mutex
	s     contents
	count uint32
}

// contents are what the file holds.
type contents struct {
	Generation []byte `json:"generation"` // root of all keys that need no PIN
	Count      uint32 `json:"count"`      // no value of the counter above it has been given out
	Retries    int    `json:"retries"`
	Salt       []byte `json:"salt,omitempty"`   // of the PIN
	Locked     []byte `json:"locked,omitempty"` // root of the keys that need the PIN, sealed by it
}

var _ fido.Vault = (*Vault)(nil)

// Open opens the vault of a directory, and makes one if there is none. It is locked
// until Close.
func Open(dir string) (*Vault, error) {
	lock, err := private.Lock(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, fmt.Errorf("limpet: softvault: %s: %w", dir, err)
	}
	v := &Vault{dir: dir, lock: lock}
	if err := v.load(); err != nil {
		lock.Close()
		return nil, fmt.Errorf("limpet: softvault: %w", err)
	}
	return v, nil
}

func (v *Vault) load() error {
	path := filepath.Join(v.dir, "key")
	key, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(v.path()); err == nil {
			return fmt.Errorf("%s is missing, which opens %s", path, v.path())
		}
		key = make([]byte, 32)
		rand.Read(key)
		err = private.Create(path, key)
	}
	if err == nil {
		err = private.OwnerOnly(path)
	}
	if err != nil {
		return err
	}
	if len(key) != 32 {
		return fmt.Errorf("%s is no key", path)
	}
	v.seal = aead(key)
	sealed, err := os.ReadFile(v.path())
	if errors.Is(err, fs.ErrNotExist) {
		return v.save(contents{Generation: random(32), Retries: tries})
	}
	if err != nil {
		return err
	}
	plain, err := open(v.seal, sealed, nil)
	if err == nil {
		err = json.Unmarshal(plain, &v.s)
	}
	if err != nil {
		return fmt.Errorf("%s cannot be opened with %s", v.path(), path)
	}
	v.count = v.s.Count
	return nil
}

func (v *Vault) path() string { return filepath.Join(v.dir, "vault") }

// save makes next the contents, in the file first.
func (v *Vault) save(next contents) error {
	plain, err := json.Marshal(next)
	if err != nil {
		return err
	}
	if err := private.Write(v.path(), seal(v.seal, plain, nil)); err != nil {
		return fmt.Errorf("limpet: softvault: %w", err)
	}
	v.s = next
	return nil
}

// unlocked is the root of the keys that need the PIN.
type unlocked struct {
	generation []byte

	mu   sync.Mutex
	root []byte
}

func (u *unlocked) Forget() {
	u.mu.Lock()
	defer u.mu.Unlock()
	clear(u.root)
	u.root = nil
}

// PIN reports whether one is set, and the tries.
func (v *Vault) PIN(ctx context.Context) (bool, int, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return false, 0, err
	}
	return v.s.Locked != nil, v.s.Retries, nil
}

// SetPIN sets the first PIN.
func (v *Vault) SetPIN(ctx context.Context, pin [16]byte) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if v.s.Locked != nil {
		return errors.New("limpet: softvault: a PIN is set")
	}
	return v.save(v.locked(pin, random(32)))
}

// locked returns the contents with a root sealed by a PIN.
func (v *Vault) locked(pin [16]byte, root []byte) contents {
	next := v.s
	next.Retries, next.Salt = tries, random(16)
	next.Locked = seal(v.byPIN(next.Salt, pin), root, nil)
	return next
}

// byPIN derives from a PIN: slowly, which a PIN of few digits is still no match for.
func (v *Vault) byPIN(salt []byte, pin [16]byte) cipher.AEAD {
	return aead(argon2.IDKey(pin[:], salt, 1, 16<<10, 1, 32))
}

// try opens the root with a PIN. The try is written down before it is made.
func (v *Vault) try(pin [16]byte) ([]byte, error) {
	if v.s.Locked == nil {
		return nil, errors.New("limpet: softvault: no PIN is set")
	}
	if v.s.Retries <= 0 {
		return nil, fido.ErrPINBlocked
	}
	next := v.s
	next.Retries--
	if err := v.save(next); err != nil {
		return nil, err
	}
	root, err := open(v.byPIN(v.s.Salt, pin), v.s.Locked, nil)
	if err != nil {
		if v.s.Retries == 0 {
			return nil, fido.ErrPINBlocked
		}
		return nil, fido.ErrPINInvalid
	}
	return root, nil
}

// ChangePIN replaces the PIN.
func (v *Vault) ChangePIN(ctx context.Context, old, new [16]byte) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	root, err := v.try(old)
	if err != nil {
		return err
	}
	return v.save(v.locked(new, root))
}

// Unlock checks the PIN.
func (v *Vault) Unlock(ctx context.Context, pin [16]byte) (fido.Unlocked, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	root, err := v.try(pin)
	if err != nil {
		return nil, err
	}
	next := v.s
	next.Retries = tries
	if err := v.save(next); err != nil {
		return nil, err
	}
	return &unlocked{generation: v.s.Generation, root: root}, nil
}

// A handle: whether it needs the PIN, what it holds, sealed, and a MAC that tells a
// handle of this vault without the PIN.
const (
	overhead = 12 + 16 // of what is sealed
	macSize  = 16
)

func (v *Vault) wrap(kind string, tie [32]byte, u fido.Unlocked, plain []byte) ([]byte, error) {
	handle := []byte{0}
	if u != nil {
		handle[0] = 1
	}
	root, err := v.root(u)
	if err != nil {
		return nil, err
	}
	handle = append(handle, seal(aead(derive(root, kind)), plain, tie[:])...)
	return append(handle, v.mac(kind, tie, handle)...), nil
}

// root returns the root of the keys that u is for.
func (v *Vault) root(u fido.Unlocked) ([]byte, error) {
	if u == nil {
		return v.s.Generation, nil
	}
	own, isOurs := u.(*unlocked)
	if !isOurs {
		return nil, fido.ErrLocked
	}
	own.mu.Lock()
	defer own.mu.Unlock()
	if own.root == nil || !bytes.Equal(own.generation, v.s.Generation) {
		return nil, fido.ErrLocked
	}
	return bytes.Clone(own.root), nil
}

func (v *Vault) mac(kind string, tie [32]byte, handle []byte) []byte {
	mac := hmac.New(sha256.New, derive(v.s.Generation, "handles of "+kind))
	mac.Write(tie[:])
	mac.Write(handle)
	return mac.Sum(nil)[:macSize]
}

// known reports whether a handle is of this vault, and needs the PIN.
func (v *Vault) known(kind string, tie [32]byte, handle []byte) (uv bool, err error) {
	if len(handle) < 1+overhead+macSize {
		return false, fido.ErrNoKey
	}
	body := handle[:len(handle)-macSize]
	if !hmac.Equal(v.mac(kind, tie, body), handle[len(body):]) {
		return false, fido.ErrNoKey
	}
	return handle[0] == 1, nil
}

// unwrap opens a handle.
func (v *Vault) unwrap(kind string, tie [32]byte, handle []byte, u fido.Unlocked) ([]byte, error) {
	uv, err := v.known(kind, tie, handle)
	if err != nil {
		return nil, err
	}
	root, err := v.root(u)
	switch {
	case err != nil:
		return nil, err
	case uv && u == nil:
		return nil, fido.ErrLocked
	case !uv:
		root = v.s.Generation
	}
	plain, err := open(aead(derive(root, kind)), handle[1:len(handle)-macSize], tie[:])
	if err != nil {
		return nil, fido.ErrNoKey
	}
	return plain, nil
}

// Create makes a key.
func (v *Vault) Create(ctx context.Context, tie [32]byte, u fido.Unlocked) ([]byte, *ecdsa.PublicKey, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	d, err := key.Bytes()
	if err != nil {
		return nil, nil, err
	}
	handle, err := v.wrap("keys", tie, u, d)
	return handle, &key.PublicKey, err
}

// Verified tells whether a handle is of this vault.
func (v *Vault) Verified(ctx context.Context, tie [32]byte, handle []byte) (bool, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return false, err
	}
	return v.known("keys", tie, handle)
}

// Sign signs.
func (v *Vault) Sign(ctx context.Context, tie [32]byte, handle []byte, u fido.Unlocked, digest [32]byte) ([]byte, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	d, err := v.unwrap("keys", tie, handle, u)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), d)
	if err != nil {
		return nil, err
	}
	return ecdsa.SignASN1(rand.Reader, key, digest[:])
}

// CreateSecret makes two secrets, for users who were not verified and who were.
func (v *Vault) CreateSecret(ctx context.Context, tie [32]byte, u fido.Unlocked) ([]byte, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return v.wrap("secrets", tie, u, random(64))
}

// Secret uses one.
func (v *Vault) Secret(ctx context.Context, tie [32]byte, handle []byte, u fido.Unlocked, salt []byte) (out [32]byte, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return out, err
	}
	secrets, err := v.unwrap("secrets", tie, handle, u)
	if err != nil {
		return out, err
	}
	secret := secrets[:32]
	if u != nil {
		secret = secrets[32:]
	}
	mac := hmac.New(sha256.New, secret)
	mac.Write(salt)
	return [32]byte(mac.Sum(nil)), nil
}

// Count steps the counter. The file is ahead of it, so that it never goes back.
func (v *Vault) Count(ctx context.Context) (uint32, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if v.count == v.s.Count {
		next := v.s
		next.Count += countStep
		if err := v.save(next); err != nil {
			return 0, err
		}
	}
	v.count++
	return v.count, nil
}

// Seal protects what the token keeps in files.
func (v *Vault) Seal(ctx context.Context, plain []byte) ([]byte, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return seal(aead(derive(v.s.Generation, "files")), plain, nil), nil
}

// Open opens it.
func (v *Vault) Open(ctx context.Context, sealed []byte) ([]byte, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	plain, err := open(aead(derive(v.s.Generation, "files")), sealed, nil)
	if err != nil {
		return nil, fido.ErrNoKey
	}
	return plain, nil
}

// Reset begins a new generation.
func (v *Vault) Reset(ctx context.Context) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	return v.save(contents{Generation: random(32), Count: v.s.Count, Retries: tries})
}

// Close lets others open the vault.
func (v *Vault) Close() error { return v.lock.Close() }

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func derive(root []byte, what string) []byte {
	key, err := hkdf.Key(sha256.New, root, nil, "limpet softvault "+what, 32)
	if err != nil {
		panic(err) // a length that fits
	}
	return key
}

func aead(key []byte) cipher.AEAD {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // a key of 32 bytes
	}
	a, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err)
	}
	return a
}

func seal(a cipher.AEAD, plain, more []byte) []byte { return a.Seal(nil, nil, plain, more) }

func open(a cipher.AEAD, sealed, more []byte) ([]byte, error) { return a.Open(nil, nil, sealed, more) }
