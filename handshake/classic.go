package handshake

import (
	"context"
	"crypto/hmac"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha3"
	"crypto/sha512"
	"crypto/subtle"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"

	"github.com/limpet-auth/limpet/keyring"
)

// The classic wire: 16 letters and digits one way, their HMAC the other way,
// neither with a frame.

const classicSize = 16 // bytes of a challenge

const letters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// classicChallenge fills b, each letter as likely as any other.
func classicChallenge(b []byte) {
	var random [64]byte
	for n := 0; n < len(b); {
		rand.Read(random[:]) // never fails
		for _, r := range random {
			// 248 is the largest multiple of 62 in a byte.
			if r < 248 && n < len(b) {
				b[n] = letters[int(r)%len(letters)]
				n++
			}
		}
	}
}

// checkChallenge refuses to make a MAC of anything but what a server of this wire
// sends: a client is nobody's oracle.
func checkChallenge(b []byte) error {
	for _, c := range b {
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return errMessage
		}
	}
	if len(b) != classicSize {
		return errMessage
	}
	return nil
}

// digests are the hashes that HMAC is used with on the wires that have names
// for them.
var digests = map[string]func() hash.Hash{
	"md5": md5.New, "sha256": sha256.New, "sha384": sha512.New384,
	"sha3_256": func() hash.Hash { return sha3.New256() },
	"sha3_384": func() hash.Hash { return sha3.New384() },
}

// tag returns the HMAC of a message under a key that has no transcript.
func (k *Key) tag(ctx context.Context, cfg *Config, digest string, message []byte) ([]byte, error) {
	if k.HMAC != nil {
		if digest != "sha256" {
			return nil, errors.New("a secret in a TPM has HMAC-SHA256 only")
		}
		return k.hardwareHMAC(ctx, cfg, message)
	}
	if k.Secret == nil {
		return nil, errors.New("a public key cannot be used on this wire")
	}
	if err := keyring.CheckSecret(k.Secret); err != nil {
		return nil, err
	}
	mac := hmac.New(digests[digest], k.Secret)
	mac.Write(message)
	return mac.Sum(nil), nil
}

func classicDigest(w Wire) string {
	if w == ClassicSHA256 {
		return "sha256"
	}
	return "md5"
}

func clientClassic(ctx context.Context, conn net.Conn, cfg *Config) (*Conn, error) {
	challenge := make([]byte, classicSize)
	if _, err := io.ReadFull(conn, challenge); err != nil {
		return nil, refused(err)
	}
	if err := checkChallenge(challenge); err != nil {
		return nil, err
	}
	live := cfg.Keys(cfg.Peer)
	if len(live) == 0 {
		return nil, errNoKey
	}
	tag, err := live[0].tag(ctx, cfg, classicDigest(cfg.Wire), challenge)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write(tag); err != nil {
		return nil, refused(err)
	}
	return &Conn{Conn: conn}, nil // without a name: the server has proven nothing
}

var errNoKey = errors.New("no key for this wire: Keys has none for Peer")

func serverClassic(ctx context.Context, conn net.Conn, cfg *Config) (*Conn, error) {
	var challenge [classicSize]byte
	classicChallenge(challenge[:])
	if _, err := conn.Write(challenge[:]); err != nil {
		return nil, err
	}
	digest := classicDigest(cfg.Wire)
	size := md5.Size
	if digest == "sha256" {
		size = sha256.Size
	}
	tag, began, err := readHeard(conn, make([]byte, size))
	if err != nil {
		return nil, err
	}
	if err := anyTag(ctx, cfg, digest, challenge[:], tag); err != nil {
		linger(ctx, began, err)
		return nil, err
	}
	return &Conn{Conn: conn, peer: cfg.Peer}, nil
}

// anyTag checks a tag with each of the live keys.
func anyTag(ctx context.Context, cfg *Config, digest string, message, tag []byte) error {
	live := cfg.Keys(cfg.Peer)
	if len(live) == 0 {
		return errNoKey
	}
	ok := 0
	for i := range live {
		want, err := live[i].tag(ctx, cfg, digest, message)
		if err != nil {
			return err
		}
		ok |= subtle.ConstantTimeCompare(want, tag)
	}
	if ok != 1 {
		return fmt.Errorf("%w: a wrong answer to the challenge", ErrUnauthenticated)
	}
	return nil
}
