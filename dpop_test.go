package limpet

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/dpop"
)

// dpopProof is a proof for a request to example.com.
func dpopProof(s *site, key *ecdsa.PrivateKey, method, target, token, nonce string) string {
	s.t.Helper()
	public, err := proof.NewPublicKey(proof.ECDSAP256, &key.PublicKey)
	if err != nil {
		s.t.Fatal(err)
	}
	jwt, err := dpop.NewProof(key, proof.ECDSAP256, public, dpop.Claims{
		JTI: rand.Text(), Method: method, URL: target, IssuedAt: s.time(), AccessToken: token, Nonce: nonce,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return jwt
}

func dpopRequest(s *site, key *ecdsa.PrivateKey, token, nonce string) *http.Request {
	s.t.Helper()
	r := httptest.NewRequest("GET", "/me?x=1", nil)
	r.Header.Set("Authorization", "DPoP "+token)
	r.Header.Set("Dpop", dpopProof(s, key, "GET", "https://example.com/me", token, nonce))
	return r
}

func TestDPoPSession(t *testing.T) {
	s := newSite(t, Config{Routes: []Route{{Pattern: "/nonce", Rule: Rule{Challenge: true}}}})
	key := newECDSA(t)
	login := httptest.NewRequest("POST", "/login", nil)
	login.Header.Set("Dpop", dpopProof(s, key, "POST", "https://example.com/login", "", ""))
	if err := s.Bind(httptest.NewRecorder(), login.Clone(t.Context()), "token", "alice"); err != nil {
		t.Fatal(err)
	}
	if err := s.Bind(httptest.NewRecorder(), login, "again", "alice"); err == nil {
		t.Error("a login's proof was good twice")
	}
	r := dpopRequest(s, key, "token", "")
	expect(t, "honest", s.serve(r.Clone(t.Context())), "")
	if s.seen == nil || s.seen.User != "alice" || s.seen.Level != Software {
		t.Errorf("the app was told %+v", s.seen)
	}
	w := s.serve(r)
	expect(t, "replayed", w, proof.NonceSpent)
	if auth := w.Header().Values("WWW-Authenticate"); len(auth) != 2 || !strings.HasPrefix(auth[1], `DPoP error="invalid_dpop_proof"`) {
		t.Errorf("WWW-Authenticate: %q", auth)
	}
	expect(t, "another key", s.serve(dpopRequest(s, newECDSA(t), "token", "")), proof.Invalid)
	r = dpopRequest(s, key, "token", "")
	r.Header.Set("Authorization", "Bearer token")
	if got := reasonIn(t, s.serve(r)); got == "" {
		t.Error("a DPoP token passed as a bearer token")
	}
	r = dpopRequest(s, key, "token", "")
	r.Header.Del("Dpop")
	expect(t, "no proof", s.serve(r), proof.Required)

	r = dpopRequest(s, key, "token", "")
	r.URL.Path = "/nonce"
	r.Header.Set("Dpop", dpopProof(s, key, "GET", "https://example.com/nonce", "token", ""))
	w = s.serve(r)
	expect(t, "no nonce", w, proof.Stale)
	nonce := w.Header().Get("Dpop-Nonce")
	if nonce == "" || !strings.Contains(strings.Join(w.Header().Values("WWW-Authenticate"), " "), `DPoP error="use_dpop_nonce"`) {
		t.Fatalf("%v", w.Header())
	}
	r.Header.Set("Dpop", dpopProof(s, key, "GET", "https://example.com/nonce", "token", nonce))
	expect(t, "the nonce", s.serve(r), "")
}

type issued map[string]*proof.Confirmation

func (i issued) Confirm(_ context.Context, token string) (*proof.Confirmation, error) {
	switch token {
	case "down":
		return nil, &proof.Refusal{Reason: proof.Unavailable}
	case "failing":
		return nil, errors.New("connection refused")
	}
	if c := i[token]; c != nil {
		return c, nil
	}
	return nil, &proof.Refusal{Reason: proof.SessionUnbound}
}

func TestTokens(t *testing.T) {
	key := newECDSA(t)
	public, err := proof.NewPublicKey(proof.ECDSAP256, &key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	jkt, certificate, other := public.Thumbprint(), sha256.Sum256([]byte("DER")), sha256.Sum256([]byte("other"))
	soon := time.Now().Add(time.Hour)
	s := newSite(t, Config{Rule: Rule{Mode: Require}, Tokens: issued{
		"bound":     {User: "alice", Thumbprint: &jkt, Expires: soon},
		"unbound":   {User: "alice", Expires: soon},
		"over":      {User: "alice", Thumbprint: &jkt, Expires: time.Now().Add(-time.Minute)},
		"certified": {User: "alice", Certificate: &certificate, Expires: soon},
		"foreign":   {User: "alice", Certificate: &other, Expires: soon},
	}})
	expect(t, "bound", s.serve(dpopRequest(s, key, "bound", "")), "")
	if s.seen == nil || s.seen.User != "alice" || s.seen.Key != thumbprint(public) {
		t.Errorf("the app was told %+v", s.seen)
	}
	expect(t, "another key", s.serve(dpopRequest(s, newECDSA(t), "bound", "")), proof.Invalid)
	expect(t, "unbound", s.serve(dpopRequest(s, key, "unbound", "")), proof.SessionUnbound)
	expect(t, "over", s.serve(dpopRequest(s, key, "over", "")), proof.SessionEnded)
	expect(t, "unknown", s.serve(dpopRequest(s, key, "unknown", "")), proof.SessionUnbound)
	expect(t, "issuer down", s.serve(dpopRequest(s, key, "down", "")), proof.Unavailable)

	expect(t, "an error of any kind", s.serve(dpopRequest(s, key, "failing", "")), proof.Unavailable)
	hashed := newSite(t, Config{Rule: Rule{Freshness: BodyHash}, Tokens: s.cfg.Tokens})
	r := dpopRequest(s, key, "bound", "")
	signed := r.Header.Get("Dpop")
	signed = signed[:strings.LastIndexByte(signed, '.')]
	r.Body, r.ContentLength = io.NopCloser(strings.NewReader(signed)), int64(len(signed))
	expect(t, "policy body-hash", hashed.serve(r), proof.BodyDiffer)

	h := s.hold("a-session-of-its-own")
	r = h.request("GET", "/me", "", true)
	r.Header.Set("Authorization", "DPoP bound")
	if got := reasonIn(t, s.serve(r)); got == "" {
		t.Error("a proof on another wire passed for an access token")
	}

	for token, want := range map[string]proof.Reason{"certified": "", "foreign": proof.Required} {
		r := httptest.NewRequest("GET", "/me", nil)
		r.Header.Set("Authorization", "Bearer "+token)
		expect(t, token+" without TLS", s.serve(r), proof.Required)
		r.TLS = &tls.ConnectionState{HandshakeComplete: true, PeerCertificates: []*x509.Certificate{{Raw: []byte("DER")}}}
		expect(t, token, s.serve(r), want)
	}
	var refusal *proof.Refusal
	if _, err := s.Check(t.Context(), &Request{Token: "foreign"}, Rule{}, nil); !errors.As(err, &refusal) {
		t.Errorf("mode prefer admits a token that is bound to a certificate: %v", err)
	}
}
