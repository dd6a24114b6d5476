package e2e

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"math/big"
	"strings"
	"sync"
)

// key is a key of the peer's and the way it signs and writes itself.
type key struct {
	typeName string // as the wire names it, in whatever case
	private  crypto.Signer

	spki    bool // EC, Ed25519: written as SubjectPublicKeyInfo, not bare
	rs      bool // ECDSA: signatures are r‖s, not DER
	hashed  bool // Ed25519: signs SHA-256(message), not the message
	maxSalt bool // RSA-PSS: the longest salt that fits, not 32 bytes
}

// RSA keys take long to make: one for devices, one for ephemeral keys.
var (
	deviceRSA    = sync.OnceValue(newRSA)
	ephemeralRSA = sync.OnceValue(newRSA)
)

func newRSA() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
}

func newKey(typeName string, rsaKey func() *rsa.PrivateKey) *key {
	k := &key{typeName: typeName}
	switch name := strings.ToLower(typeName); {
	case name == "ed25519":
		_, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			panic(err)
		}
		k.private = private
	case strings.HasPrefix(name, "ec"):
		k.private = newP256()
	case strings.HasPrefix(name, "rsa"):
		k.private = rsaKey()
	default:
		panic("no key of type " + typeName)
	}
	return k
}

func newP256() *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return k
}

// public returns the key's encoding on the wire.
func (k *key) public() []byte {
	if !k.spki {
		switch pub := k.private.Public().(type) {
		case ed25519.PublicKey:
			return pub
		case *ecdsa.PublicKey:
			b, err := pub.Bytes()
			if err != nil {
				panic(err)
			}
			return b
		}
	}
	return spki(k.private.Public())
}

func spki(pub crypto.PublicKey) []byte {
	b, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		panic(err)
	}
	return b
}

func (k *key) sign(message []byte) []byte {
	sum := sha256.Sum256(message)
	var sig []byte
	var err error
	switch private := k.private.(type) {
	case ed25519.PrivateKey:
		if k.hashed {
			message = sum[:]
		}
		return ed25519.Sign(private, message)
	case *ecdsa.PrivateKey:
		if k.rs {
			r, s, err := ecdsa.Sign(rand.Reader, private, sum[:])
			if err != nil {
				panic(err)
			}
			return rawSignature(r, s)
		}
		sig, err = ecdsa.SignASN1(rand.Reader, private, sum[:])
	case *rsa.PrivateKey:
		if strings.HasSuffix(strings.ToLower(k.typeName), "pkcs1") {
			sig, err = rsa.SignPKCS1v15(rand.Reader, private, crypto.SHA256, sum[:])
			break
		}
		opts := &rsa.PSSOptions{SaltLength: 32}
		if k.maxSalt {
			opts.SaltLength = rsa.PSSSaltLengthAuto
		}
		sig, err = rsa.SignPSS(rand.Reader, private, crypto.SHA256, sum[:], opts)
	}
	if err != nil {
		panic(err)
	}
	return sig
}

func rawSignature(r, s *big.Int) []byte {
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return sig
}

// agree returns Z of ECDH P-256 with the server's half, whose encoding the
// dialect prescribes.
func (k *key) agree(server []byte, long bool) ([]byte, error) {
	var pub *ecdh.PublicKey
	if long {
		parsed, err := x509.ParsePKIXPublicKey(server)
		if err != nil {
			return nil, fmt.Errorf("LONG wants the server's key as SPKI: %w", err)
		}
		if pub, err = parsed.(*ecdsa.PublicKey).ECDH(); err != nil {
			return nil, err
		}
	} else {
		var err error
		if pub, err = ecdh.P256().NewPublicKey(server); err != nil {
			return nil, fmt.Errorf("SHORT wants the server's key as 65 bytes, got %d: %w", len(server), err)
		}
	}
	private, err := k.private.(*ecdsa.PrivateKey).ECDH()
	if err != nil {
		return nil, err
	}
	return private.ECDH(pub)
}
