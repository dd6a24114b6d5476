package proof

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
)

// RSA key sizes admitted, in bits. Smaller keys are weak; larger ones make a
// peer's signature expensive to check.
const (
	minRSABits = 2048
	maxRSABits = 4096
)

// maxPublicKey bounds an encoded public key, in bytes: an RSA-4096 SPKI is 550.
const maxPublicKey = 1024

// pointSize is the length of an uncompressed P-256 point (SEC 1, 2.3.3).
const pointSize = 65

// errKey is what a peer's unusable key comes down to; the wrapping error says
// what was wrong, in words that do not repeat the key.
var errKey = errors.New("limpet: proof: unusable public key")

// PublicKey is a validated public key and the algorithm it is used with.
type PublicKey struct {
	alg Algorithm
	ed  ed25519.PublicKey
	ec  *ecdsa.PublicKey
	rsa *rsa.PublicKey
	enc []byte // canonical encoding, see Bytes
}

// ParsePublicKey reads a public key as the hw-sign wire and Limpet's records
// encode it: a P-256 key as a 65-byte uncompressed point or as SPKI DER
// (RFC 5480), an Ed25519 key as 32 bytes or SPKI DER (RFC 8410), an RSA key as
// SPKI DER (RFC 3279). HMACSHA256 takes the P-256 key of the key agreement.
//
// It refuses points off the curve, other curves, RSA moduli outside 2048 to
// 4096 bit and unusual RSA exponents. Errors never repeat the input.
func ParsePublicKey(alg Algorithm, b []byte) (*PublicKey, error) {
	if len(b) == 0 || len(b) > maxPublicKey {
		return nil, fmt.Errorf("%w: %d bytes", errKey, len(b))
	}
	var pub any
	switch {
	case (alg == ECDSAP256 || alg == HMACSHA256) && len(b) == pointSize:
		return parsePoint(alg, b)
	case alg == Ed25519 && len(b) == ed25519.PublicKeySize:
		pub = ed25519.PublicKey(b)
	default:
		var err error
		if pub, err = x509.ParsePKIXPublicKey(b); err != nil {
			return nil, fmt.Errorf("%w: neither a %s key nor SubjectPublicKeyInfo", errKey, alg)
		}
	}
	return NewPublicKey(alg, pub)
}

// NewPublicKey validates a key of the standard library for use with alg, by
// the rules of [ParsePublicKey].
func NewPublicKey(alg Algorithm, pub crypto.PublicKey) (*PublicKey, error) {
	switch pub := pub.(type) {
	case ed25519.PublicKey:
		if alg != Ed25519 || len(pub) != ed25519.PublicKeySize {
			break
		}
		own := append(ed25519.PublicKey(nil), pub...)
		return &PublicKey{alg: alg, ed: own, enc: own}, nil
	case *ecdsa.PublicKey:
		if (alg != ECDSAP256 && alg != HMACSHA256) || pub.Curve != elliptic.P256() {
			break
		}
		b, err := pub.Bytes()
		if err != nil {
			return nil, fmt.Errorf("%w: not a point on P-256", errKey)
		}
		return &PublicKey{alg: alg, ec: pub, enc: b}, nil
	case *rsa.PublicKey:
		if alg != RSAPSS && alg != RSAPKCS1 && alg != RSAPSSSHA512 {
			break
		}
		return newRSAKey(alg, pub)
	}
	return nil, fmt.Errorf("%w: not a %s key", errKey, alg)
}

func parsePoint(alg Algorithm, b []byte) (*PublicKey, error) {
	pub, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), b)
	if err != nil {
		return nil, fmt.Errorf("%w: not a point on P-256", errKey)
	}
	return &PublicKey{alg: alg, ec: pub, enc: append([]byte(nil), b...)}, nil
}

func newRSAKey(alg Algorithm, pub *rsa.PublicKey) (*PublicKey, error) {
	if n := pub.N.BitLen(); n < minRSABits || n > maxRSABits {
		return nil, fmt.Errorf("%w: RSA modulus of %d bit, want %d to %d", errKey, n, minRSABits, maxRSABits)
	}
	if pub.E < 3 || pub.E&1 == 0 || pub.E > 1<<31-1 || pub.N.Bit(0) == 0 {
		return nil, fmt.Errorf("%w: RSA exponent or modulus out of range", errKey)
	}
	enc, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("%w: RSA key does not encode", errKey)
	}
	return &PublicKey{alg: alg, rsa: pub, enc: enc}, nil
}

// Algorithm returns what the key is used with.
func (k *PublicKey) Algorithm() Algorithm { return k.alg }

// Bytes returns the key's one canonical encoding: the uncompressed point, the
// 32 bytes of an Ed25519 key, or an RSA key's SPKI DER. ParsePublicKey reads
// it back. The caller does not modify it.
func (k *PublicKey) Bytes() []byte { return k.enc }

// SameKey reports whether both are the same key, whatever each is used with.
func (k *PublicKey) SameKey(other *PublicKey) bool { return string(k.enc) == string(other.enc) }

// As returns the same key for use with another algorithm that its kind allows:
// a P-256 key signs (ECDSAP256) and agrees (HMACSHA256).
func (k *PublicKey) As(alg Algorithm) (*PublicKey, error) {
	if k.alg == alg {
		return k, nil
	}
	return ParsePublicKey(alg, k.enc)
}

// SPKI returns the key as SubjectPublicKeyInfo DER (RFC 5280, 4.1.2.7).
func (k *PublicKey) SPKI() ([]byte, error) {
	switch {
	case k.ed != nil:
		return x509.MarshalPKIXPublicKey(k.ed)
	case k.ec != nil:
		return x509.MarshalPKIXPublicKey(k.ec)
	}
	return k.enc, nil
}

// Thumbprint returns the key's JWK thumbprint with SHA-256 (RFC 7638), which
// names the key in logs, records and to people.
func (k *PublicKey) Thumbprint() [sha256.Size]byte {
	b64 := base64.RawURLEncoding.EncodeToString
	var jwk string // members in lexicographic order, no white space (RFC 7638, 3.3)
	switch {
	case k.ed != nil:
		jwk = `{"crv":"Ed25519","kty":"OKP","x":"` + b64(k.ed) + `"}` // RFC 8037, 2
	case k.ec != nil:
		jwk = `{"crv":"P-256","kty":"EC","x":"` + b64(k.enc[1:33]) + `","y":"` + b64(k.enc[33:]) + `"}`
	default:
		jwk = `{"e":"` + b64(big.NewInt(int64(k.rsa.E)).Bytes()) + `","kty":"RSA","n":"` + b64(k.rsa.N.Bytes()) + `"}`
	}
	return sha256.Sum256([]byte(jwk))
}

// Verify reports whether sig is this key's signature over message.
//
// An ECDSA signature is DER or 64 bytes r‖s. For Ed25519 a signature over
// SHA-256(message) is admitted too: one generation of hw-sign peers makes it.
func (k *PublicKey) Verify(message, sig []byte) bool {
	switch k.alg {
	case Ed25519:
		if len(sig) != ed25519.SignatureSize {
			return false
		}
		if !couldBeDigest(message) && ed25519.Verify(k.ed, message, sig) {
			return true
		}
		sum := sha256.Sum256(message)
		return ed25519.Verify(k.ed, sum[:], sig)
	case ECDSAP256:
		rs, ok := parseECDSA(sig)
		if !ok {
			return false
		}
		sum := sha256.Sum256(message)
		return rs.verify(k.ec, sum[:])
	}
	return k.VerifyExact(k.alg, message, sig)
}

// couldBeDigest reports whether message could be the SHA-256 of another one. A
// signature that was made over a digest must not be admitted a second time, with
// the digest in place of the message. 32 random bytes are never all ASCII, and
// what clients sign always is, or has another length.
func couldBeDigest(message []byte) bool {
	if len(message) != sha256.Size {
		return false
	}
	for _, c := range message {
		if c >= 0x80 {
			return true
		}
	}
	return false
}

// VerifyExact is Verify in the one form that standards give an algorithm
// (RFC 9421, 3.3; RFC 7518, 3): ECDSA as r‖s, PureEdDSA. In PSS with SHA-256 the
// salt may have any length, because a TPM chooses it (TPM 2.0 Part 1, B.7). An
// RSA key verifies with any RSA algorithm, an agreement key with none.
func (k *PublicKey) VerifyExact(alg Algorithm, message, sig []byte) bool {
	switch {
	case alg == Ed25519 && k.alg == Ed25519:
		return len(sig) == ed25519.SignatureSize && ed25519.Verify(k.ed, message, sig)
	case alg == ECDSAP256 && k.alg == ECDSAP256:
		if len(sig) != len(ecdsaSignature{}) {
			return false
		}
		sum := sha256.Sum256(message)
		rs := ecdsaSignature(sig)
		return rs.verify(k.ec, sum[:])
	case k.rsa == nil:
		return false
	case alg == RSAPSS:
		sum := sha256.Sum256(message)
		return rsa.VerifyPSS(k.rsa, crypto.SHA256, sum[:], sig, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto}) == nil
	case alg == RSAPSSSHA512:
		sum := sha512.Sum512(message)
		return rsa.VerifyPSS(k.rsa, crypto.SHA512, sum[:], sig, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
	case alg == RSAPKCS1:
		sum := sha256.Sum256(message)
		return rsa.VerifyPKCS1v15(k.rsa, crypto.SHA256, sum[:], sig) == nil
	}
	return false
}

// ID names an agreement key of a server.
func (k *PublicKey) ID() KeyID {
	sum := sha256.Sum256(k.enc)
	return KeyID(sum[:])
}

// canonical appends the one form of sig that all its re-encodings share, so
// that a replay memory cannot be fooled by writing a signature differently.
func (k *PublicKey) canonical(dst, sig []byte) []byte {
	if k.alg != ECDSAP256 {
		return append(dst, sig...)
	}
	rs, ok := parseECDSA(sig)
	if !ok {
		return append(dst, sig...)
	}
	return rs.appendCanonical(dst)
}
