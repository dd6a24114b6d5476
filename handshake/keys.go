package handshake

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"sync"

	"github.com/limpet-auth/limpet/keyring"
)

// Key is one key of a peer. One of Secret, HMAC and Public is set.
type Key struct {
	// Version names a secret, so that a peer can have an old one and a new one.
	// It is the same at both ends.
	Version int

	// Secret is shared with the peer, by the rules of [keyring.CheckSecret].
	Secret keyring.Secret

	// HMAC returns the HMAC-SHA256 of a message of up to 1024 bytes, under a
	// secret that a TPM keeps: the method of an hwkey.HMACKey.
	HMAC func(ctx context.Context, message []byte) ([]byte, error)

	// Public is the peer's own: an *ecdsa.PublicKey on P-256, or an
	// ed25519.PublicKey. This end needs a Config.Signer then.
	Public crypto.PublicKey
}

// LogValue keeps the key out of logs.
func (k Key) LogValue() slog.Value { return slog.IntValue(k.Version) }

// FromRing makes Config.Keys of a ring, whose file can change at any time.
func FromRing(ring *keyring.Ring) func(peer string) []Key {
	return func(peer string) []Key {
		live := ring.Lookup(peer)
		keys := make([]Key, len(live))
		for i, k := range live {
			keys[i] = Key{Version: k.Version, Secret: k.Secret}
			switch {
			case k.Public != nil:
				keys[i].Public = k.Public
			case k.Secret == nil:
				keys[i].HMAC = k.HMAC
			}
		}
		return keys
	}
}

// Shared makes Config.Keys of one secret that all members of a group have. Each
// of them can then take the name of any other.
func Shared(secret []byte) func(peer string) []Key {
	keys := []Key{{Version: 1, Secret: append(keyring.Secret(nil), secret...)}}
	return func(string) []Key { return keys }
}

// id is how a message names the key: by the version of a secret, or the beginning
// of the SHA-256 of a public key.
func (k *Key) id() (id [keyIDSize]byte) {
	if k.Public != nil {
		id, _ = publicID(k.Public)
		return id
	}
	binary.BigEndian.PutUint64(id[:], uint64(k.Version))
	return id
}

// publicID fails for keys that this package does not know.
func publicID(public crypto.PublicKey) (id [keyIDSize]byte, err error) {
	var encoded []byte
	switch public := public.(type) {
	case ed25519.PublicKey:
		if len(public) == ed25519.PublicKeySize {
			encoded = public
		}
	case *ecdsa.PublicKey:
		if public.Curve == elliptic.P256() {
			if encoded, err = public.Bytes(); err != nil {
				return id, err
			}
		}
	}
	if encoded == nil {
		return id, errors.New("a public key that is neither ECDSA P-256 nor Ed25519")
	}
	sum := sha256.Sum256(encoded)
	copy(id[:], sum[:])
	return id, nil
}

// secret reports whether the key is one that both ends have.
func (k *Key) secret() bool { return k.Secret != nil || k.HMAC != nil }

// find returns the peer's key of that name and kind.
func find(keys []Key, id [keyIDSize]byte, s suite) *Key {
	for i := range keys {
		k := &keys[i]
		if (s == signatures) == (k.Public != nil) && (s == signatures) != k.secret() && k.id() == id {
			return k
		}
	}
	return nil
}

// decoys stand in for the keys of peers that are not known: what is sent to such
// a peer cannot be checked, and takes as long to find out.
var decoys = sync.OnceValue(func() map[suite]*Key {
	secret := &Key{Secret: keyring.NewSecret()}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err) // never
	}
	return map[suite]*Key{hmacSHA256: secret, hmacSHA512: secret, signatures: {Public: &private.PublicKey}}
})

// secretSize is the length of the handshake's own secret.
func (s suite) secretSize() int {
	if s == hmacSHA512 {
		return sha512.Size
	}
	return sha256.Size
}

// derive sets the secret of the handshake, HKDF-Expand(key, transcript) (RFC 5869,
// 2.3) to the length of the hash, which is one HMAC: a TPM is asked once. The
// transcript has room for one byte more.
func (k *Key) derive(ctx context.Context, cfg *Config, s suite, transcript []byte, secret *[sha512.Size]byte) error {
	info := append(transcript, 1)
	if k.HMAC == nil {
		if err := keyring.CheckSecret(k.Secret); err != nil {
			return err
		}
		s.hmac(secret, k.Secret, info)
		return nil
	}
	if s != hmacSHA256 {
		return errors.New("a secret in a TPM has HMAC-SHA256 only")
	}
	sum, err := k.hardwareHMAC(ctx, cfg, info)
	if err != nil {
		return err
	}
	copy(secret[:], sum)
	clear(sum)
	return nil
}

// hardwareHMAC calls k.HMAC, and does not wait longer than the peer would.
func (k *Key) hardwareHMAC(ctx context.Context, cfg *Config, message []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, cfg.timeout())
	defer cancel()
	sum, err := k.HMAC(ctx, message)
	if err == nil && len(sum) != sha256.Size {
		err = errors.New("a key that does not make HMAC-SHA256")
	}
	return sum, err
}

// hmac is HMAC (RFC 2104) of a key and message of at most maxTranscript bytes
// each. Unlike crypto/hmac it allocates nothing.
func (s suite) hmac(sum *[sha512.Size]byte, key, message []byte) {
	block := sha256.BlockSize
	if s == hmacSHA512 {
		block = sha512.BlockSize
	}
	var pad [sha512.BlockSize]byte
	if len(key) > block {
		s.hash(sum, key)
		key = sum[:s.secretSize()]
	}
	copy(pad[:], key)
	var b [sha512.BlockSize + maxTranscript]byte
	for i := range block {
		b[i] = pad[i] ^ 0x36
	}
	n := copy(b[block:], message)
	s.hash(sum, b[:block+n])
	for i := range block {
		b[i] = pad[i] ^ 0x5c
	}
	n = copy(b[block:], sum[:s.secretSize()])
	s.hash(sum, b[:block+n])
	clear(pad[:])
	clear(b[:block])
}

func (s suite) hash(sum *[sha512.Size]byte, b []byte) {
	if s == hmacSHA512 {
		*sum = sha512.Sum512(b)
		return
	}
	half := sha256.Sum256(b)
	copy(sum[:], half[:])
}

// keys are what a handshake's secret is expanded to.
type keys struct {
	suite  suite
	secret [sha512.Size]byte
}

// What a handshake's secret is expanded for. No direction has what the other has.
const (
	forClient        = "limpet handshake 1 client"
	forServer        = "limpet handshake 1 server"
	forSession       = "limpet handshake 1 session"
	forClientRecords = "limpet handshake 1 client records"
	forServerRecords = "limpet handshake 1 server records"
)

// expand returns the first 32 bytes of HKDF-Expand(secret, purpose).
func (k *keys) expand(purpose string) [32]byte {
	var (
		info [64]byte
		sum  [sha512.Size]byte
	)
	n := copy(info[:], purpose)
	info[n] = 1
	k.suite.hmac(&sum, k.secret[:k.suite.secretSize()], info[:n+1])
	return [32]byte(sum[:32])
}

// conn returns the connection that the handshake has authenticated.
func (k *keys) conn(conn net.Conn, peer string, withRecords, client bool) (*Conn, error) {
	c := &Conn{Conn: conn, peer: peer, session: k.expand(forSession)}
	if !withRecords {
		return c, nil
	}
	ours, theirs := k.expand(forServerRecords), k.expand(forClientRecords)
	if client {
		ours, theirs = theirs, ours
	}
	var err error
	c.records, err = newRecords(conn, &ours, &theirs)
	return c, err
}
