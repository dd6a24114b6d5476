// Package hwkey says what a device key can do, whoever keeps it.
//
// A device key is a non-exportable key pair made for one login session. The
// packages beneath this one each know one keeper of such keys: softkey an
// encrypted file, tpmkey a TPM 2.0. Programs ask [Auto] for the best keystore
// of the machine they run on, or open one by name.
//
// Both keepers also keep HMAC keys, for protocols in which two parties share a
// secret: see [HMACKeystore].
package hwkey

import (
	"context"
	"crypto"
	"errors"
	"time"
)

// Level says what keeps a key. Software is never called hardware.
type Level string

const (
	Hardware Level = "hardware" // the private key exists only inside a security chip; of an imported secret, this copy
	Software Level = "software" // the private key is in a file or in memory
)

// Algorithm names a key type and, with it, the one scheme the key is used for.
// The values are the names that are written to files and shown to people.
type Algorithm string

const (
	ECDSAP256 Algorithm = "ecdsa-p256" // ECDSA over SHA-256, ASN.1 DER signatures (FIPS 186-5)
	RSA2048   Algorithm = "rsa-2048"   // RSA-PSS over SHA-256, MGF1-SHA-256 (RFC 8017)
	Ed25519   Algorithm = "ed25519"    // PureEdDSA (RFC 8032)
)

// Info describes a key without touching it.
type Info struct {
	ID        string    // names the key within its keystore; safe as a file name
	Level     Level     // what keeps it
	Detail    string    // the keeper: "tpm2", "file"
	Algorithm Algorithm // what it signs with, or HMACSHA256
	Label     string    // what its maker called it, such as the server it logs in to; may be empty
	Created   time.Time // when it was made, to the second
	Imported  bool      // a secret that came from outside its keeper, so that others may have it; only HMAC keys
}

// Key is a device key that is ready to sign.
//
// Sign takes the SHA-256 digest of the message for ECDSAP256 and RSA2048, and
// the message itself (crypto.Hash(0)) for Ed25519. A caller passes
// crypto.SHA256 as opts for RSA2048 too; the key applies PSS by itself.
// Sign is safe for concurrent use. rand is ignored.
type Key interface {
	crypto.Signer
	Info() Info
	Close() error // releases the key's resources; the key stays in its keystore
}

// CreateOptions say what key to make. The zero value asks for an ECDSAP256
// key without a label.
type CreateOptions struct {
	Algorithm Algorithm
	Label     string // at most 256 bytes
}

// Keystore keeps device keys. All its methods are safe for concurrent use.
type Keystore interface {
	// Create makes a new key, stores it and returns it ready to sign.
	// It returns ErrUnsupported for an algorithm the keystore cannot do.
	Create(ctx context.Context, opts CreateOptions) (Key, error)

	// Load returns the key with this ID. It returns ErrNotFound if there is
	// none, ErrLost if there is but it can never sign again, and ErrUnsupported
	// if it is not a key that signs.
	Load(ctx context.Context, id string) (Key, error)

	// List describes all keys, oldest first.
	List(ctx context.Context) ([]Info, error)

	// Delete removes a key. Deleting a key that is not there returns ErrNotFound.
	Delete(ctx context.Context, id string) error
}

var (
	// ErrNotFound means the keystore has no key with that ID.
	ErrNotFound = errors.New("hwkey: no such key")

	// ErrLost means the key's record is there but its keeper can no longer use
	// it: the TPM was cleared or replaced, the file is damaged. Losing a key
	// is normal; the answer is to log in again.
	ErrLost = errors.New("hwkey: the key is lost, log in again")

	// ErrUnsupported means the keystore cannot make keys of that algorithm, or
	// that a stored key is of one that the call is not for.
	ErrUnsupported = errors.New("hwkey: algorithm not supported")
)
