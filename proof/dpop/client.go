package dpop

import (
	"crypto"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/internal/jose"
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
	header, err := jose.NewHeader("dpop+jwt", alg, pub)
	if err != nil {
		return "", fmt.Errorf("limpet: dpop: %w", err)
	}
	var ath string
	if claims.AccessToken != "" {
		sum := sha256.Sum256([]byte(claims.AccessToken))
		ath = jose.Base64.EncodeToString(sum[:])
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
	jwt, err := jose.Sign(key, alg, header, payload)
	if err != nil {
		return "", fmt.Errorf("limpet: dpop: sign: %w", err)
	}
	return jwt, nil
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
