package vectors_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"math/big"
	"regexp"
	"strings"
	"testing"
)

// signer makes keys and signatures. RSA keys and PSS signatures are random, so
// those of the stored file are kept as long as they do.
type signer struct {
	testing.TB
	stored     []*key
	signatures [][]byte
}

// rsaSignature finds signatures of 256 bytes in each encoding that files have.
var rsaSignature = regexp.MustCompile(`\b[0-9a-f]{512}\b|[A-Za-z0-9+/]{342}==|\.[A-Za-z0-9_-]{342}\b`)

func newSigner(t testing.TB, stored []*key, file []byte) *signer {
	s := &signer{TB: t, stored: stored}
	for _, text := range rsaSignature.FindAllString(string(file), -1) {
		decode := hex.DecodeString
		switch {
		case text[0] == '.':
			text, decode = text[1:], base64.RawURLEncoding.DecodeString
		case strings.HasSuffix(text, "=="):
			decode = base64.StdEncoding.DecodeString
		}
		if b, err := decode(text); err == nil {
			s.signatures = append(s.signatures, b)
		}
	}
	return s
}

func (s *signer) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// key makes the key pair with a name.
func (s *signer) key(name, algorithm string) *key {
	s.Helper()
	k := &key{Name: name, Algorithm: algorithm, Private: hex.EncodeToString(sum("limpet test key: " + name))}
	switch {
	case strings.HasPrefix(algorithm, "rsa-"):
		k.Private = s.rsaKey(name)
	case algorithm == "ecdsa-p384-sha384":
		k.Private = strings.Repeat("00", 16) + k.Private
	}
	private := s.private(k)
	spki, err := x509.MarshalPKIXPublicKey(private.Public())
	s.must(err)
	k.SPKI = hex.EncodeToString(spki)
	switch pub := private.Public().(type) {
	case *ecdsa.PublicKey:
		point, err := pub.Bytes()
		s.must(err)
		half := 1 + len(point)/2
		k.Public = hex.EncodeToString(point)
		k.JWK = `{"crv":"` + pub.Params().Name + `","kty":"EC","x":"` + b64url(point[1:half]) + `","y":"` + b64url(point[half:]) + `"}`
	case ed25519.PublicKey:
		k.Public = hex.EncodeToString(pub)
		k.JWK = `{"crv":"Ed25519","kty":"OKP","x":"` + b64url(pub) + `"}`
	case *rsa.PublicKey:
		k.Public = k.SPKI
		k.JWK = `{"e":"` + b64url(big.NewInt(int64(pub.E)).Bytes()) + `","kty":"RSA","n":"` + b64url(pub.N.Bytes()) + `"}`
	}
	k.KeyID = b64url(sum(k.JWK))
	return k
}

func (s *signer) rsaKey(name string) string {
	for _, k := range s.stored {
		if k.Name == name {
			return k.Private
		}
	}
	bits := 2048
	if strings.HasSuffix(name, "-1024") {
		bits = 1024
	}
	private, err := rsa.GenerateKey(rand.Reader, bits)
	s.must(err)
	der, err := x509.MarshalPKCS8PrivateKey(private)
	s.must(err)
	return hex.EncodeToString(der)
}

func (s *signer) private(k *key) crypto.Signer {
	s.Helper()
	b := unhex(s, k.Private)
	switch k.Algorithm {
	case "ed25519":
		return ed25519.NewKeyFromSeed(b)
	case "ecdsa-p384-sha384":
		private, err := ecdsa.ParseRawPrivateKey(elliptic.P384(), b)
		s.must(err)
		return private
	case "ecdsa-p256-sha256", "hmac-sha256":
		private, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), b)
		s.must(err)
		return private
	}
	private, err := x509.ParsePKCS8PrivateKey(b)
	s.must(err)
	return private.(*rsa.PrivateKey)
}

// sign signs with the key in the one form that an algorithm has on both wires.
func (s *signer) sign(k *key, algorithm string, message []byte) []byte {
	s.Helper()
	private := s.private(k)
	digest, opts := sha256.Sum256(message), crypto.SignerOpts(crypto.SHA256)
	switch algorithm {
	case "ed25519":
		sig, err := private.Sign(nil, message, crypto.Hash(0))
		s.must(err)
		return sig
	case "ecdsa-p256-sha256":
		return s.raw(s.der(k, message), 32)
	case "ecdsa-p384-sha384":
		digest := sha512.Sum384(message)
		sig, err := private.Sign(nil, digest[:], crypto.SHA384)
		s.must(err)
		return s.raw(sig, 48)
	case "rsa-v1_5-sha256":
		sig, err := private.Sign(nil, digest[:], opts)
		s.must(err)
		return sig
	case "rsa-pss-sha256":
		return s.pss(private.(*rsa.PrivateKey), crypto.SHA256, digest[:])
	case "rsa-pss-sha512":
		digest := sha512.Sum512(message)
		return s.pss(private.(*rsa.PrivateKey), crypto.SHA512, digest[:])
	}
	s.Fatalf("%s makes no signatures", algorithm)
	return nil
}

// der signs with ECDSA P-256, deterministically (RFC 6979).
func (s *signer) der(k *key, message []byte) []byte {
	s.Helper()
	digest := sha256.Sum256(message)
	sig, err := s.private(k).Sign(nil, digest[:], crypto.SHA256)
	s.must(err)
	return sig
}

// raw returns r‖s.
func (s *signer) raw(der []byte, size int) []byte {
	s.Helper()
	var rs struct{ R, S *big.Int }
	_, err := asn1.Unmarshal(der, &rs)
	s.must(err)
	return append(rs.R.FillBytes(make([]byte, size)), rs.S.FillBytes(make([]byte, size))...)
}

func (s *signer) pss(private *rsa.PrivateKey, hash crypto.Hash, digest []byte) []byte {
	s.Helper()
	opts := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash}
	for _, sig := range s.signatures {
		if rsa.VerifyPSS(&private.PublicKey, hash, digest, sig, opts) == nil {
			return sig
		}
	}
	sig, err := rsa.SignPSS(rand.Reader, private, hash, digest, opts)
	s.must(err)
	s.signatures = append(s.signatures, sig)
	return sig
}

// nonce returns 22 characters that are this name's.
func nonce(name string) string { return b64url(sum("limpet test nonce: " + name)[:16]) }

func quoted(parameter, value string) string { return fmt.Sprintf("%s=%q", parameter, value) }
