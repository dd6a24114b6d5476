package fido

import (
	"context"
	"crypto/ecdsa"
	"errors"
)

// Vault keeps a token's keys and counts the tries of its PIN. A vault whose keys
// are in hardware never has a private key in memory. A [Token] calls it from one
// goroutine at a time. What it returns for a context that is done wraps that
// context's error.
type Vault interface {
	// PIN reports whether a PIN is set and how many more tries there are; at 0 only
	// Reset helps.
	PIN(ctx context.Context) (set bool, retries int, err error)

	// SetPIN sets the first PIN, by the first 16 bytes of its SHA-256.
	SetPIN(ctx context.Context, pin [16]byte) error

	// ChangePIN replaces it; keys stay. ErrPINInvalid if old is wrong, which counts;
	// ErrPINBlocked if there is no further try.
	ChangePIN(ctx context.Context, old, new [16]byte) error

	// Unlock checks the PIN, and returns what makes keys usable that were created
	// with user verification. Errors are those of ChangePIN. The right PIN gives back
	// all tries.
	Unlock(ctx context.Context, pin [16]byte) (Unlocked, error)

	// Create makes a P-256 key that works for tie alone: 32 bytes that the token
	// derives from the relying party and from what else the credential ID says. With
	// u, it can be used with an Unlocked alone; u may be nil. handle is all that the
	// vault wants back to find the key again, at most MaxHandle bytes, and useless
	// elsewhere.
	Create(ctx context.Context, tie [32]byte, u Unlocked) (handle []byte, public *ecdsa.PublicKey, err error)

	// Verified tells whether handle is of this vault, of this generation and for tie,
	// and whether it was created with user verification. It costs little, and needs
	// nobody's consent. ErrNoKey if it is not.
	Verified(ctx context.Context, tie [32]byte, handle []byte) (uv bool, err error)

	// Sign returns the signature, ASN.1 DER, of a SHA-256 by handle's key.
	// ErrNoKey, or ErrLocked if u is nil and the key needs one.
	Sign(ctx context.Context, tie [32]byte, handle []byte, u Unlocked, digest [32]byte) ([]byte, error)

	// CreateSecret makes the two secrets of extension hmac-secret: one for users who
	// were verified, one for those who were not. With u, both can be used with an
	// Unlocked alone. handle is like that of a key, of at most MaxSecretHandle bytes.
	CreateSecret(ctx context.Context, tie [32]byte, u Unlocked) (handle []byte, err error)

	// Secret returns HMAC-SHA256(secret, salt); the one for verified users if u is
	// not nil. Errors are those of Sign.
	Secret(ctx context.Context, tie [32]byte, handle []byte, u Unlocked, salt []byte) ([32]byte, error)

	// Count steps the signature counter and returns its new value. It never goes
	// back, nor starts anew after Reset.
	Count(ctx context.Context) (uint32, error)

	// Seal and Open protect what the token keeps in files (user names, discoverable
	// credentials, large blobs, settings): worthless without this vault, and after
	// Reset. At most a few MB. Open's error is ErrNoKey for what another vault or
	// another generation sealed.
	Seal(ctx context.Context, plain []byte) ([]byte, error)
	Open(ctx context.Context, sealed []byte) ([]byte, error)

	// Reset makes all that the vault ever made worthless, also in backups, and removes
	// the PIN.
	Reset(ctx context.Context) error

	Close() error
}

// Limits of a Vault's handles, in bytes. U2F has room for 255 in all.
const (
	MaxHandle       = 250
	MaxSecretHandle = 512
)

// Unlocked is a vault's proof that the PIN was right, for as long as the token
// holds it. Forget makes it useless; ChangePIN and Reset may too.
type Unlocked interface{ Forget() }

// Errors of a Vault.
var (
	ErrPINInvalid = errors.New("limpet: fido: wrong PIN")
	ErrPINBlocked = errors.New("limpet: fido: the PIN is blocked")
	ErrNoKey      = errors.New("limpet: fido: no such key")
	ErrLocked     = errors.New("limpet: fido: the key needs the PIN")
)
