package peers_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/client"
	"github.com/limpet-auth/limpet/oauth"
	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/dpop"
)

const (
	issuer   = "https://issuer.example"
	audience = "https://api.example"
)

// resourceServer is an app behind a guard that admits the tokens of an issuer,
// and that issuer's keys. Routes under /nonce want the server's nonce.
type resourceServer struct {
	*httptest.Server
	program *program // of the issuer, and of clients
}

func newResourceServer(t *testing.T, algorithms ...string) *resourceServer {
	t.Helper()
	var jwks json.RawMessage
	mux := http.NewServeMux()
	mux.HandleFunc("GET /jwks", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Write(jwks)
	})
	server := httptest.NewTLSServer(mux)
	t.Cleanup(server.Close)
	tokens, err := oauth.NewJWT(oauth.JWTConfig{Issuer: issuer, Audience: audience, JWKS: server.URL + "/jwks", Client: server.Client()})
	if err != nil {
		t.Fatal(err)
	}
	require := limpet.Rule{Mode: limpet.Require}
	nonce := require
	nonce.Challenge = true
	guard := newGuard(t, limpet.Config{Tokens: tokens, Rule: require, Routes: []limpet.Route{{Pattern: "/nonce/", Rule: nonce}}})
	mux.Handle("/", guard.Protect(http.HandlerFunc(app)))

	s := &resourceServer{server, start(t, "oauth.mjs", server)}
	var issued struct{ JWKS json.RawMessage }
	s.program.ask(t, "issue", question{"algorithms": algorithms}, &issued)
	jwks = issued.JWKS
	return s
}

// mint has the issuer make a token for the holder of a key, "" for a bearer.
func (s *resourceServer) mint(t *testing.T, algorithm, jkt string, life time.Duration) string {
	t.Helper()
	var minted struct{ Token string }
	s.program.ask(t, "mint", question{
		"algorithm": algorithm, "issuer": issuer, "audience": audience, "jkt": jkt, "seconds": int(life.Seconds()),
	}, &minted)
	return minted.Token
}

// fetched is what a peer's client came to.
type fetched struct {
	Status     int
	Body       string
	Sent       []map[string]string // headers, of each try
	Challenges []struct {          // as the peer read them, where its package does
		Scheme     string
		Parameters map[string]string
	}
}

func (f *fetched) reason(t *testing.T) proof.Reason {
	t.Helper()
	if f.Status == 200 {
		return ""
	}
	var refusal struct{ Reason proof.Reason }
	if err := json.Unmarshal([]byte(f.Body), &refusal); err != nil || refusal.Reason == "" {
		t.Errorf("%d without the JSON of a refusal: %q", f.Status, f.Body)
	}
	return refusal.Reason
}

// expect also wants the peer to have read the challenge with this error; "" for
// any.
func (f *fetched) expect(t *testing.T, what string, want proof.Reason, tries int, challenge string) {
	t.Helper()
	if got := f.reason(t); got != want || len(f.Sent) != tries {
		t.Errorf("%s: %d %q after %d tries, want %q after %d", what, f.Status, got, len(f.Sent), want, tries)
	}
	if f.Challenges == nil {
		return
	}
	for _, c := range f.Challenges {
		if c.Scheme == "dpop" && (challenge == "" || c.Parameters["error"] == challenge) && strings.Contains(c.Parameters["algs"], "ES256") {
			return
		}
	}
	t.Errorf("%s: no challenge for DPoP with error %q in %v", what, challenge, f.Challenges)
}

// send sends a request with headers that a peer has made.
func (s *resourceServer) send(t *testing.T, method, path string, header map[string]string) *fetched {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range header {
		r.Header.Set(name, value)
	}
	resp, err := s.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return &fetched{Status: resp.StatusCode, Body: string(body), Sent: []map[string]string{header}}
}

// The issuer's tokens are signed by one package, the requests by three.
func TestTheyProveByDPoP(t *testing.T) {
	issuers := []string{"ES256", "EdDSA", "PS256", "RS256"}
	s := newResourceServer(t, issuers...)
	for _, name := range []string{"dpop", "oauth4webapi", "openid-client"} {
		for i, alg := range []string{"ES256", "Ed25519", "PS256", "RS256"} {
			t.Run(name+"/"+alg, func(t *testing.T) { s.theyProve(t, name, alg, issuers[i]) })
		}
	}
}

func (s *resourceServer) theyProve(t *testing.T, name, alg, issuerAlg string) {
	var key struct{ JKT string }
	s.program.ask(t, "client", question{"name": name, "algorithm": alg}, &key)
	token := s.mint(t, issuerAlg, key.JKT, time.Hour)
	fetch := func(token, method, path string, body any) *fetched {
		t.Helper()
		f := new(fetched)
		s.program.ask(t, "fetch", question{"token": token, "method": method, "url": s.URL + path, "body": body}, f)
		return f
	}

	f := fetch(token, "GET", "/me?x=1", nil)
	f.expect(t, "honest", "", 1, "")
	var got seen
	if err := json.Unmarshal([]byte(f.Body), &got); err != nil {
		t.Errorf("%v in %q", err, f.Body)
	}
	if want := (seen{User: "alice", Level: "software", Path: "/me?x=1"}); got != want {
		t.Errorf("the app was told %+v, want %+v", got, want)
	}
	s.send(t, "GET", "/me?x=1", f.Sent[0]).expect(t, "replayed", proof.NonceSpent, 1, "")
	fetch(token, "POST", "/a%2Fb/c%20d;e=(f)*!$/@:x|y^z?y=z", "a body").expect(t, "another path, with a body", "", 1, "")

	f = fetch(token, "GET", "/nonce/x", nil)
	f.expect(t, "the nonce dance", "", 2, "")
	if len(f.Sent) != 2 {
		return
	}
	s.send(t, "GET", "/nonce/x", f.Sent[0]).expect(t, "without the nonce", proof.Stale, 1, "")
	s.send(t, "GET", "/nonce/x", f.Sent[1]).expect(t, "replayed with the nonce", proof.NonceSpent, 1, "")
	tries := 1 // the other packages remember the nonce
	if name == "dpop" {
		tries = 2
	}
	fetch(token, "GET", "/nonce/z", nil).expect(t, "with the nonce at hand", "", tries, "")

	// What is captured before it arrives holds for nothing but its own request.
	f = new(fetched)
	s.program.ask(t, "fetch", question{"token": token, "method": "GET", "url": s.URL + "/x", "held": true}, f)
	captured := f.Sent[0]
	jwt := captured["dpop"]
	s.send(t, "GET", "/y", captured).expect(t, "on another path", proof.Invalid, 1, "")
	s.send(t, "PUT", "/x", captured).expect(t, "by another method", proof.Invalid, 1, "")
	with := func(authorization, proof string) map[string]string {
		return map[string]string{"authorization": authorization, "dpop": proof}
	}
	s.send(t, "GET", "/x", with("DPoP "+token, flip(jwt, len(jwt)-20))).expect(t, "with another signature", proof.Invalid, 1, "")
	s.send(t, "GET", "/x", with("DPoP "+s.mint(t, issuerAlg, key.JKT, time.Minute), jwt)).expect(t, "with another token", proof.Invalid, 1, "")
	s.send(t, "GET", "/x", with("Bearer "+token, jwt)).expect(t, "as a bearer token", proof.Invalid, 1, "")
	s.send(t, "GET", "/x", map[string]string{"authorization": "DPoP " + token}).expect(t, "without a proof", proof.Required, 1, "")
	s.send(t, "GET", "/x", map[string]string{"authorization": "Bearer " + token}).expect(t, "a bearer token alone", proof.Required, 1, "")
	s.send(t, "GET", "/x", captured).expect(t, "as it was", "", 1, "")

	var other struct{ JKT string }
	s.program.ask(t, "client", question{"name": name, "algorithm": alg}, &other)
	fetch(token, "GET", "/me", nil).expect(t, "another's token", proof.Invalid, 1, "")
	forged := flip(s.mint(t, issuerAlg, other.JKT, time.Hour), len(token)-20)
	fetch(forged, "GET", "/me", nil).expect(t, "a token that the issuer did not sign", proof.Invalid, 1, "")
	over := s.mint(t, issuerAlg, other.JKT, -time.Minute)
	fetch(over, "GET", "/me", nil).expect(t, "a token that is over", proof.SessionEnded, 1, "invalid_token")
	unbound := s.mint(t, issuerAlg, "", time.Hour)
	fetch(unbound, "GET", "/me", nil).expect(t, "a token that is not bound", proof.SessionUnbound, 1, "invalid_token")
}

// verdict is what oauth4webapi makes of a request.
type verdict struct {
	User, Code, Claim, Message string
}

func newVerifier(t *testing.T) (s *resourceServer, base string) {
	t.Helper()
	s = newResourceServer(t, "ES256")
	var served struct{ URL string }
	s.program.ask(t, "serve", question{"issuer": issuer, "audience": audience, "jwks": s.URL + "/jwks"}, &served)
	return s, served.URL
}

func verdictOf(t *testing.T, resp *http.Response, err error) (v verdict) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&v); err != nil {
		t.Fatal(err)
	}
	if (resp.StatusCode == 200) != (v.User != "") {
		t.Fatalf("%d with %+v", resp.StatusCode, v)
	}
	return v
}

// dpopKey is a key of ours that makes proofs.
type dpopKey struct {
	crypto.Signer
	alg    proof.Algorithm
	public *proof.PublicKey
}

func (k *dpopKey) jkt() string {
	sum := k.public.Thumbprint()
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func newDPoPKeys(t *testing.T) []*dpopKey {
	t.Helper()
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	keys := []*dpopKey{{ec, proof.ECDSAP256, nil}, {ed, proof.Ed25519, nil}, {rsaKey, proof.RSAPSS, nil}, {rsaKey, proof.RSAPKCS1, nil}}
	for _, k := range keys {
		if k.public, err = proof.NewPublicKey(k.alg, k.Public()); err != nil {
			t.Fatal(err)
		}
	}
	return keys
}

func TestWeProveByDPoP(t *testing.T) {
	s, base := newVerifier(t)
	keys := newDPoPKeys(t)
	for i, key := range keys {
		t.Run(key.alg.String(), func(t *testing.T) {
			token := s.mint(t, "ES256", key.jkt(), time.Hour)
			honest := func() dpop.Claims {
				return dpop.Claims{JTI: rand.Text(), Method: "GET", URL: base + "/a%2Fb/c?x=1", IssuedAt: time.Now(), AccessToken: token}
			}
			send := func(by *dpopKey, scheme string, c dpop.Claims, change func(jwt string) string) verdict {
				t.Helper()
				jwt, err := dpop.NewProof(by, by.alg, by.public, c)
				if err != nil {
					t.Fatal(err)
				}
				if change != nil {
					jwt = change(jwt)
				}
				r, err := http.NewRequestWithContext(t.Context(), "GET", base+"/a%2Fb/c?x=1", nil)
				if err != nil {
					t.Fatal(err)
				}
				r.Header.Set("Authorization", scheme+" "+token)
				r.Header.Set("DPoP", jwt)
				resp, err := http.DefaultClient.Do(r)
				return verdictOf(t, resp, err)
			}
			if v := send(key, "DPoP", honest(), nil); v.User != "alice" {
				t.Fatalf("honest: %+v", v)
			}
			for _, tt := range []struct {
				claim  string // that the peer must find fault with
				change func(c *dpop.Claims)
			}{
				{"htu", func(c *dpop.Claims) { c.URL = base + "/a%2Fb/d" }},
				{"htu", func(c *dpop.Claims) { c.URL = strings.Replace(c.URL, "127.0.0.1", "localhost", 1) }},
				{"htu", func(c *dpop.Claims) { c.URL = strings.Replace(c.URL, "http:", "https:", 1) }},
				{"htm", func(c *dpop.Claims) { c.Method = "POST" }},
				{"ath", func(c *dpop.Claims) { c.AccessToken = flip(token, len(token)-9) }},
				{"iat", func(c *dpop.Claims) { c.IssuedAt = time.Now().Add(-10 * time.Minute) }},
			} {
				c := honest()
				tt.change(&c)
				if v := send(key, "DPoP", c, nil); v.User != "" || v.Claim != tt.claim {
					t.Errorf("another %s: %+v", tt.claim, v)
				}
			}
			c := honest()
			c.AccessToken = "" // as at a login
			if v := send(key, "DPoP", c, nil); v.User != "" || !strings.Contains(v.Message, "ath") {
				t.Errorf("no ath: %+v", v)
			}
			if v := send(keys[(i+1)%3], "DPoP", honest(), nil); v.User != "" || v.Claim != "cnf.jkt" {
				t.Errorf("another key: %+v", v)
			}
			if v := send(key, "DPoP", honest(), func(jwt string) string { return flip(jwt, len(jwt)-20) }); v.User != "" || !strings.Contains(v.Message, "signature") {
				t.Errorf("another signature: %+v", v)
			}
			if v := send(key, "Bearer", honest(), nil); v.User != "" {
				t.Errorf("as a bearer token: %+v", v)
			}
		})
	}
}

func TestOurClientProvesByDPoP(t *testing.T) {
	s, base := newVerifier(t)
	for _, key := range slices.DeleteFunc(newDPoPKeys(t), func(k *dpopKey) bool { return k.alg == proof.RSAPKCS1 }) {
		t.Run(key.alg.String(), func(t *testing.T) {
			d, err := client.NewDPoP(key.Signer)
			if err != nil {
				t.Fatal(err)
			}
			token := s.mint(t, "ES256", key.jkt(), time.Hour)
			sent := &recorder{RoundTripper: http.DefaultTransport}
			web := &http.Client{Transport: d.Transport(sent, func(context.Context) (string, error) { return token, nil })}
			for _, path := range []string{"", "/", "/a%2Fb/c%20d;e=(f)*!$/@:x/[g]?y=z", "/a//b/./c/"} {
				resp, err := web.Get(base + path)
				if v := verdictOf(t, resp, err); v.User != "alice" {
					t.Errorf("%q: %+v", path, v)
				}
			}
			sent.requests = nil
			resp, err := web.Post(base+"/nonce", "text/plain", strings.NewReader("a body"))
			if v := verdictOf(t, resp, err); v.User != "alice" || len(sent.requests) != 2 {
				t.Errorf("the nonce dance: %+v after %d tries", v, len(sent.requests))
			}
			sent.requests = nil
			resp, err = web.Get(base + "/nonce")
			if v := verdictOf(t, resp, err); v.User != "alice" || len(sent.requests) != 1 {
				t.Errorf("with the nonce at hand: %+v after %d tries", v, len(sent.requests))
			}
			other, err := client.NewDPoP(newDPoPKeys(t)[0].Signer)
			if err != nil {
				t.Fatal(err)
			}
			web.Transport = other.Transport(nil, func(context.Context) (string, error) { return token, nil })
			resp, err = web.Get(base + "/")
			if v := verdictOf(t, resp, err); v.User != "" || v.Claim != "cnf.jkt" {
				t.Errorf("another's token: %+v", v)
			}
		})
	}
}
