package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/dpop"
)

const audience = "https://api.example.com"

// An issuer is an authorization server: its keys, served, and a signer.
type issuer struct {
	*httptest.Server
	signer jose.Signer
}

func newIssuer() (*issuer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	private := jose.JSONWebKey{Key: key, KeyID: "k", Algorithm: "ES256"}
	i := new(issuer)
	if i.signer, err = jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: private}, (&jose.SignerOptions{}).WithType("at+jwt")); err != nil {
		return nil, err
	}
	i.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{private.Public()}})
	}))
	return i, nil
}

// token is an access token bound to a key.
func (i *issuer) token(key *proof.PublicKey) (string, error) {
	jkt := key.Thumbprint()
	return jwt.Signed(i.signer).Claims(map[string]any{
		"iss": i.URL, "aud": audience, "sub": "alice", "exp": time.Now().Add(time.Hour).Unix(), "iat": time.Now().Unix(),
		"cnf": map[string]string{"jkt": base64.RawURLEncoding.EncodeToString(jkt[:])},
	}).Serialize()
}

// dpop gives a new key an access token.
func (p *peer) dpop(tokens *issuer) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	public, err := proof.NewPublicKey(proof.ECDSAP256, &key.PublicKey)
	if err != nil {
		return err
	}
	token, err := tokens.token(public)
	if err != nil {
		return err
	}
	p.users = append(p.users, user{"DPoP", token, func() http.Header {
		proof, err := dpop.NewProof(key, proof.ECDSAP256, public, dpop.Claims{
			JTI: rand.Text(), Method: "GET", URL: "http://" + p.addr + "/api", IssuedAt: time.Now(), AccessToken: token,
		})
		if err != nil {
			log.Fatal(err)
		}
		return http.Header{dpop.Header: {proof}}
	}})
	return nil
}

func fetchKeys(issuer string) (*jose.JSONWebKeySet, error) {
	resp, err := http.Get(issuer + "/jwks")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	keys := new(jose.JSONWebKeySet)
	return keys, json.NewDecoder(resp.Body).Decode(keys)
}

// verifyToken is what a resource server does with an access token anyway.
func verifyToken(keys *jose.JSONWebKeySet, token string) error {
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return err
	}
	if len(keys.Keys) != 1 {
		return fmt.Errorf("%d keys", len(keys.Keys))
	}
	var claims jwt.Claims
	if err := parsed.Claims(keys.Keys[0].Key, &claims); err != nil {
		return err
	}
	return claims.Validate(jwt.Expected{AnyAudience: jwt.Audience{audience}, Time: time.Now()})
}
