package proof

import (
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"hash"
	"log/slog"
	"sync"
)

// MACKey is an HMAC-SHA256 key with its state ready to use: checking a tag
// costs the hash of the message and allocates nothing. It is safe for
// concurrent use.
type MACKey struct {
	mu  sync.Mutex
	mac hash.Hash
	sum [sha256.Size]byte
}

// NewMACKey returns the key for secret, of which it keeps no copy of its own.
func NewMACKey(secret []byte) *MACKey {
	return &MACKey{mac: hmac.New(sha256.New, secret)}
}

// Append appends the tag of message to dst.
func (k *MACKey) Append(dst, message []byte) []byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	return append(dst, k.tag(message)...)
}

// Verify reports, in constant time, whether tag is the tag of message.
func (k *MACKey) Verify(message, tag []byte) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return subtle.ConstantTimeCompare(k.tag(message), tag) == 1
}

func (k *MACKey) tag(message []byte) []byte {
	k.mac.Reset()
	k.mac.Write(message)
	return k.mac.Sum(k.sum[:0])
}

// OnChannel returns the key that k becomes on one TLS connection, given 32 bytes
// of keying material exported from it (RFC 9266, 2, with a label of Limpet's).
// Neither end can be made to use it on another connection.
func (k *MACKey) OnChannel(exported []byte) *MACKey {
	secret := k.Append(nil, append([]byte("limpet channel key 1\x00"), exported...))
	defer clear(secret)
	return NewMACKey(secret)
}

// RequestSecret returns the HMAC key that proves requests, from the secret z of
// a key agreement (see [Agree]) by HKDF-SHA256 (RFC 5869). It depends on the
// whole transcript: the statement of the delegation, which names session,
// audience and times, and both keys.
func RequestSecret(z, statement []byte, client, server *PublicKey) []byte {
	sum := sha256.Sum256(statement)
	info := append([]byte("limpet request key 1\x00"), sum[:]...)
	info = append(append(info, client.enc...), server.enc...)
	secret, err := hkdf.Key(sha256.New, z, nil, string(info), sha256.Size)
	if err != nil {
		panic(err) // 32 bytes are never too many
	}
	return secret
}

// LogValue keeps the key out of logs.
func (k *MACKey) LogValue() slog.Value { return slog.StringValue("[secret]") }

// String keeps the key out of formatted text.
func (k *MACKey) String() string { return "[secret]" }

// GoString keeps the key out of %#v.
func (k *MACKey) GoString() string { return "[secret]" }

// Agree returns the secret that private shares with peer: the 32-byte
// x-coordinate of ECDH P-256 (SP 800-56A, 5.7.1.2). [RequestSecret] makes a key
// of it; the hw-sign wire uses it as an HMAC key as it is, without a KDF.
func Agree(private *ecdh.PrivateKey, peer *PublicKey) ([]byte, error) {
	if peer.ec == nil {
		return nil, fmt.Errorf("%w: no P-256 key", errKey)
	}
	pub, err := peer.ec.ECDH()
	if err != nil {
		return nil, fmt.Errorf("%w: not a point on P-256", errKey)
	}
	secret, err := private.ECDH(pub)
	if err != nil {
		return nil, fmt.Errorf("limpet: proof: key agreement: %w", err)
	}
	return secret, nil
}
