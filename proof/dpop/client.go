package dpop

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"time"

	"github.com/limpet-auth/limpet/proof"
)

// Claims are what a proof says (RFC 9449, 4.2).
type Claims struct {
	JTI         string    // unlike that of any other proof: at least 96 random bits, in 8 to 256 bytes
	Method      string    // of the request
	URL         string    // of the request; its query, fragment and user information do not go into the proof
	IssuedAt    time.Time // sent in whole seconds
	AccessToken string    // the token that the request carries, "" at a login; only its hash goes into the proof
	Nonce       string    // what the server last sent in DPoP-Nonce, "" if nothing
}

// NewProof returns the value of the header DPoP for one request. The proof is
// signed by key, whose public half is pub, with alg: ECDSAP256, Ed25519, RSAPSS
// or RSAPKCS1. With RSAPSS the key must obey the salt length that it is asked
// for, which is the hash's (RFC 7518, 3.5).
func NewProof(key crypto.Signer, alg proof.Algorithm, pub *proof.PublicKey, claims Claims) (string, error) {
	if n := len(claims.JTI); n < minJTI || n > maxJTI {
		return "", fmt.Errorf("limpet: dpop: jti of %d bytes, want %d to %d", n, minJTI, maxJTI)
	}
	if claims.Method == "" {
		return "", errors.New("limpet: dpop: no method")
	}
	htu, err := target(claims.URL)
	if err != nil {
		return "", err
	}
	header, err := newHeader(alg, pub)
	if err != nil {
		return "", fmt.Errorf("limpet: dpop: %w", err)
	}
	var ath string
	if claims.AccessToken != "" {
		sum := sha256.Sum256([]byte(claims.AccessToken))
		ath = base64URL.EncodeToString(sum[:])
	}
	payload, err := json.Marshal(struct {
		JTI   string `json:"jti"`
		HTM   string `json:"htm"`
		HTU   string `json:"htu"`
		IAT   int64  `json:"iat"`
		ATH   string `json:"ath,omitempty"`
		Nonce string `json:"nonce,omitempty"`
	}{claims.JTI, claims.Method, htu, claims.IssuedAt.Unix(), ath, claims.Nonce})
	if err != nil {
		return "", fmt.Errorf("limpet: dpop: %w", err)
	}
	signed := base64URL.EncodeToString(header) + "." + base64URL.EncodeToString(payload)
	sig, err := sign(key, alg, []byte(signed))
	if err != nil {
		return "", fmt.Errorf("limpet: dpop: sign: %w", err)
	}
	return signed + "." + base64URL.EncodeToString(sig), nil
}

// target returns the htu of a URL. Its error does not repeat the URL, which may
// have secrets in it.
func target(url string) (string, error) {
	scheme, rest, ok := strings.Cut(url, "://")
	if !ok || !strings.EqualFold(scheme, "https") && !strings.EqualFold(scheme, "http") {
		return "", errors.New("limpet: dpop: not an absolute URL of HTTP")
	}
	if i := strings.IndexAny(rest, "?#"); i >= 0 {
		rest = rest[:i]
	}
	authority, path := rest, ""
	if i := strings.IndexByte(rest, '/'); i >= 0 {
		authority, path = rest[:i], rest[i:]
	}
	authority = authority[strings.LastIndexByte(authority, '@')+1:]
	if authority == "" {
		return "", errors.New("limpet: dpop: a URL without a host")
	}
	return scheme + "://" + authority + path, nil
}

// newHeader returns the JOSE header of the proofs that a key makes with alg.
func newHeader(alg proof.Algorithm, pub *proof.PublicKey) ([]byte, error) {
	pub, err := pub.As(alg)
	if err != nil {
		return nil, err
	}
	type jwk struct {
		Kty string `json:"kty"`
		Crv string `json:"crv,omitempty"`
		X   string `json:"x,omitempty"`
		Y   string `json:"y,omitempty"`
		N   string `json:"n,omitempty"`
		E   string `json:"e,omitempty"`
	}
	header := struct {
		Typ string `json:"typ"`
		Alg string `json:"alg"`
		JWK jwk    `json:"jwk"`
	}{Typ: "dpop+jwt"}
	b64, b := base64URL.EncodeToString, pub.Bytes()
	switch alg {
	case proof.ECDSAP256:
		header.Alg = "ES256"
		header.JWK = jwk{Kty: "EC", Crv: "P-256", X: b64(b[1:33]), Y: b64(b[33:])}
	case proof.Ed25519:
		header.Alg = "EdDSA"
		header.JWK = jwk{Kty: "OKP", Crv: "Ed25519", X: b64(b)}
	case proof.RSAPKCS1, proof.RSAPSS:
		header.Alg = "RS256"
		if alg == proof.RSAPSS {
			header.Alg = "PS256"
		}
		parsed, err := x509.ParsePKIXPublicKey(b)
		if err != nil {
			return nil, err
		}
		key, ok := parsed.(*rsa.PublicKey)
		if !ok {
			return nil, errors.New("not an RSA key")
		}
		header.JWK = jwk{Kty: "RSA", N: b64(key.N.Bytes()), E: b64(big.NewInt(int64(key.E)).Bytes())}
	default:
		return nil, fmt.Errorf("%s makes no proofs", alg)
	}
	return json.Marshal(header)
}

// sign signs in the forms of RFC 7518, 3 and RFC 8037, 3.1.
func sign(key crypto.Signer, alg proof.Algorithm, message []byte) ([]byte, error) {
	if alg == proof.Ed25519 {
		return key.Sign(rand.Reader, message, crypto.Hash(0))
	}
	sum := sha256.Sum256(message)
	var opts crypto.SignerOpts = crypto.SHA256
	if alg == proof.RSAPSS {
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}
	}
	sig, err := key.Sign(rand.Reader, sum[:], opts)
	if err != nil || alg != proof.ECDSAP256 {
		return sig, err
	}
	return proof.RawECDSA(sig)
}
