package hwkey

import "context"

// HMACSHA256 is HMAC over SHA-256 (RFC 2104, FIPS 198-1): 32 bytes that only
// who holds the secret can compute or check. A key of this algorithm is an
// HMACKey. It has no public half and does not sign, so Keystore's Create and
// Load refuse it with ErrUnsupported.
const HMACSHA256 Algorithm = "hmac-sha256"

const (
	// MaxHMACMessage is the most bytes that HMACKey.HMAC takes. It is what a
	// TPM takes in one command: TPM_PT_INPUT_BUFFER is 1024 on the TPMs known.
	// Hash first what is longer.
	MaxHMACMessage = 1024

	// MinHMACSecret and MaxHMACSecret bound the bytes of a secret that
	// HMACKeystore.ImportHMAC takes: 128 bits, below which a secret can be
	// guessed from one result, and what a TPM holds at most.
	MinHMACSecret = 16
	MaxHMACSecret = 128
)

// HMACKey is an HMAC key that is ready to use.
type HMACKey interface {
	// HMAC returns the HMAC-SHA256 of message, 32 bytes. It fails for a message
	// of more than MaxHMACMessage bytes, if ctx is done, and as soon as the key
	// is closed. It is safe for concurrent use.
	HMAC(ctx context.Context, message []byte) ([]byte, error)

	Info() Info
	Close() error // releases the key's resources; the key stays in its keystore
}

// HMACKeystore is what a Keystore is too if it keeps HMAC keys. Keystore's List
// shows them beside the others, and its Delete deletes them. All methods are
// safe for concurrent use.
type HMACKeystore interface {
	// CreateHMAC makes a key that is known to nobody, stores it and returns it
	// ready to use. The label is at most 256 bytes. It returns ErrUnsupported
	// if the keeper does not do HMAC-SHA256.
	CreateHMAC(ctx context.Context, label string) (HMACKey, error)

	// ImportHMAC stores a secret that is shared with a peer, of MinHMACSecret
	// to MaxHMACSecret bytes, and returns its key. The keystore keeps the
	// secret from being read again; that does not reach the copies of others,
	// so the key's Info says Imported. The caller wipes secret.
	ImportHMAC(ctx context.Context, secret []byte, label string) (HMACKey, error)

	// LoadHMAC returns the HMAC key with this ID. It returns ErrNotFound if
	// there is none, ErrUnsupported if it is a key of another algorithm, and
	// ErrLost if it can never be used again.
	LoadHMAC(ctx context.Context, id string) (HMACKey, error)
}
