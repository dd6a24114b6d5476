package oauth

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/limpet-auth/limpet/proof"
)

const (
	issuer   = "https://as.example.com"
	audience = "https://api.example.com"
)

func reasonOf(err error) proof.Reason {
	var r *proof.Refusal
	if errors.As(err, &r) {
		return r.Reason
	}
	if err != nil {
		return "not a refusal"
	}
	return ""
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// clock is a clock that tests turn.
type clock struct{ offset atomic.Int64 }

func (c *clock) now() time.Time          { return time.Now().Add(time.Duration(c.offset.Load())) }
func (c *clock) advance(d time.Duration) { c.offset.Add(int64(d)) }

// server is an issuer's key endpoint over HTTPS.
type server struct {
	*httptest.Server
	clock
	fetches atomic.Int64
	answer  atomic.Pointer[http.HandlerFunc]
}

func newServer(t testing.TB, keys ...jose.JSONWebKey) *server {
	s := new(server)
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.fetches.Add(1)
		(*s.answer.Load())(w, r)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	s.publish(t, keys...)
	return s
}

func (s *server) handle(h http.HandlerFunc) { s.answer.Store(&h) }

func (s *server) publish(t testing.TB, keys ...jose.JSONWebKey) {
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}}
	for _, key := range keys {
		set.Keys = append(set.Keys, key.Public())
	}
	b, err := json.Marshal(set)
	must(t, err)
	s.handle(func(w http.ResponseWriter, _ *http.Request) { w.Write(b) })
}

func (s *server) tokens(t testing.TB) *JWT {
	t.Helper()
	j, err := NewJWT(JWTConfig{Issuer: issuer, Audience: audience, JWKS: s.URL, Client: s.Client()})
	must(t, err)
	j.now = s.now
	return j
}

var generated = sync.OnceValue(func() map[jose.SignatureAlgorithm]crypto.Signer {
	curve := func(c elliptic.Curve) crypto.Signer {
		key, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			panic(err)
		}
		return key
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	return map[jose.SignatureAlgorithm]crypto.Signer{
		jose.ES256: curve(elliptic.P256()), jose.ES384: curve(elliptic.P384()), jose.ES512: curve(elliptic.P521()), jose.EdDSA: ed,
		jose.RS256: rsaKey, jose.RS384: rsaKey, jose.RS512: rsaKey, jose.PS256: rsaKey, jose.PS384: rsaKey, jose.PS512: rsaKey,
	}
})

// key returns the private key of an algorithm under a name.
func key(alg jose.SignatureAlgorithm, kid string) jose.JSONWebKey {
	return jose.JSONWebKey{Key: generated()[alg], KeyID: kid, Algorithm: string(alg), Use: "sig"}
}

func newKey(t testing.TB, kid string) jose.JSONWebKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return jose.JSONWebKey{Key: k, KeyID: kid, Algorithm: "ES256", Use: "sig"}
}

type set = map[string]any

// issue signs the claims of a good token, with some replaced, or taken away if nil.
func issue(t testing.TB, k jose.JSONWebKey, with set) string {
	t.Helper()
	now := time.Now().Unix()
	all := set{"iss": issuer, "aud": audience, "sub": "alice", "iat": now, "exp": now + 3600}
	maps.Copy(all, with)
	for name, v := range all {
		if v == nil {
			delete(all, name)
		}
	}
	b, err := json.Marshal(all)
	must(t, err)
	return signJSON(t, k, "at+jwt", string(b), nil)
}

func signJSON(t testing.TB, k jose.JSONWebKey, typ, payload string, header map[jose.HeaderKey]any) string {
	t.Helper()
	opts := &jose.SignerOptions{}
	if typ != "" {
		opts.WithType(jose.ContentType(typ))
	}
	for name, v := range header {
		opts.WithHeader(name, v)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.SignatureAlgorithm(k.Algorithm), Key: k}, opts)
	must(t, err)
	sig, err := signer.Sign([]byte(payload))
	must(t, err)
	token, err := sig.CompactSerialize()
	must(t, err)
	return token
}

func TestJWT(t *testing.T) {
	var keys []jose.JSONWebKey
	for alg := range generated() {
		keys = append(keys, key(alg, string(alg)))
	}
	s := newServer(t, keys...)
	sum := sha256.Sum256([]byte("key"))
	text := base64.RawURLEncoding.EncodeToString(sum[:])
	for alg := range generated() {
		t.Run(string(alg), func(t *testing.T) {
			exp := time.Now().Unix() + 600
			for _, tt := range []struct {
				cnf       any
				jkt, x5t  bool
				audiences any
			}{
				{nil, false, false, audience},
				{set{"jkt": text}, true, false, []string{"x", audience}},
				{set{"x5t#S256": text}, false, true, []string{audience}},
				{set{"jkt": text, "x5t#S256": text, "kid": "1"}, true, true, audience},
			} {
				j := s.tokens(t)
				token := issue(t, key(alg, string(alg)), set{"cnf": tt.cnf, "exp": exp, "aud": tt.audiences})
				for range 2 {
					c, err := j.Confirm(t.Context(), token)
					must(t, err)
					if c.User != "alice" || c.Expires.Unix() != exp || (c.Thumbprint != nil) != tt.jkt || (c.Certificate != nil) != tt.x5t {
						t.Errorf("%+v", c)
					}
					if tt.jkt && *c.Thumbprint != sum || tt.x5t && *c.Certificate != sum {
						t.Errorf("%+v", c)
					}
				}
			}
		})
	}
}

func TestJWTRefusals(t *testing.T) {
	k := key(jose.ES256, "1")
	rs := key(jose.RS256, "2")
	anyAlg := rs
	anyAlg.KeyID, anyAlg.Algorithm = "any", ""
	encryption := newKey(t, "enc")
	encryption.Use = "enc"
	s := newServer(t, k, rs, anyAlg, encryption)
	now := time.Now().Unix()
	good := issue(t, k, nil)
	part := strings.Split(good, ".")
	stranger := newKey(t, "1")
	// Whoever knows a public key could make this, if it were taken for a secret.
	secret, err := x509.MarshalPKIXPublicKey(generated()[jose.RS256].Public())
	must(t, err)
	hmac := jose.JSONWebKey{Key: secret, KeyID: "any", Algorithm: "HS256"}
	b64 := base64.RawURLEncoding.EncodeToString
	claims := fmt.Sprintf(`{"iss":%q,"aud":%q,"sub":"alice","exp":%d}`, issuer, audience, now+600)
	const unbound, malformed, invalid, ended = proof.SessionUnbound, proof.Malformed, proof.Invalid, proof.SessionEnded
	for _, tt := range []struct {
		name, token string
		reason      proof.Reason
	}{
		{"as it is", good, ""},
		{"nothing", "", unbound},
		{"an opaque token", "2YotnFZFEjr1zCsicMWpAA", unbound},
		{"what lenient parsers skip", part[0] + "." + part[1] + "." + part[2][:9] + "~" + part[2][9:], malformed},
		{"a line break inside, encoded", part[0] + "%0A." + part[1] + "." + part[2], malformed},
		{"more parts", good + ".AA.AA", malformed},
		{"an app's own JWT", signJSON(t, hmac, "JWT", `{"sub":"alice"}`, nil), unbound},
		{"two parts", part[0] + "." + part[1], unbound},
		{"four parts", good + ".", malformed},
		{"a space", good + " ", malformed},
		{"a line break", good + "\n", malformed},
		{"padding", good + "==", malformed},
		{"spare bits", good[:len(good)-1] + string(good[len(good)-1]+1), malformed},
		{"too large", strings.Repeat("x", 8193), proof.TooLarge},
		{"unsigned", b64([]byte(`{"alg":"none","typ":"at+jwt"}`)) + "." + part[1] + ".", invalid},
		{"no signature", part[0] + "." + part[1] + ".", invalid},
		{"a public key for a secret", signJSON(t, hmac, "at+jwt", claims, nil), invalid},
		{"the signature of another", part[0] + "." + part[1] + "." + strings.Split(issue(t, k, set{"sub": "bob"}), ".")[2], invalid},
		{"other claims", part[0] + "." + b64([]byte(strings.Replace(claims, "alice", "mallory", 1))) + "." + part[2], invalid},
		{"a stranger's key", issue(t, stranger, nil), invalid},
		{"an unknown key", issue(t, newKey(t, "9"), nil), invalid},
		{"no key's name", issue(t, key(jose.ES256, ""), nil), invalid},
		{"another algorithm than the key's", issue(t, jose.JSONWebKey{Key: rs.Key, KeyID: "2", Algorithm: "PS256"}, nil), invalid},
		{"any algorithm of the key's", issue(t, jose.JSONWebKey{Key: rs.Key, KeyID: "any", Algorithm: "PS384"}, nil), ""},
		{"an encryption key", issue(t, jose.JSONWebKey{Key: encryption.Key, KeyID: "enc", Algorithm: "ES256"}, nil), invalid},
		{"its own key", signJSON(t, stranger, "at+jwt", claims, map[jose.HeaderKey]any{"jwk": stranger.Public()}), invalid},

		{"type JWT", signJSON(t, k, "JWT", claims, nil), ""},
		{"type in another case", signJSON(t, k, "AT+JWT", claims, nil), ""},
		{"type in full", signJSON(t, k, "application/at+jwt", claims, nil), ""},
		{"no type", signJSON(t, k, "", claims, nil), invalid},
		{"a proof", signJSON(t, k, "dpop+jwt", claims, nil), invalid},
		{"a logout", signJSON(t, k, "logout+jwt", claims, nil), invalid},
		{"an unknown extension", signJSON(t, k, "at+jwt", claims, map[jose.HeaderKey]any{"crit": []string{"x"}, "x": 1}), invalid},
		{"claims are no object", signJSON(t, k, "at+jwt", "[]", nil), malformed},
		{"claims twice", signJSON(t, k, "at+jwt", `{"sub":"bob",`+claims[1:], nil), malformed},
		{"claims in another case", signJSON(t, k, "at+jwt", strings.Replace(claims, "sub", "SUB", 1), nil), invalid},

		{"no iss", issue(t, k, set{"iss": nil}), unbound},
		{"another iss", issue(t, k, set{"iss": issuer + "/"}), unbound},
		{"no aud", issue(t, k, set{"aud": nil}), invalid},
		{"another aud", issue(t, k, set{"aud": "https://other.example.com"}), invalid},
		{"other auds", issue(t, k, set{"aud": []string{"x", "y"}}), invalid},
		{"no sub", issue(t, k, set{"sub": nil}), invalid},
		{"empty sub", issue(t, k, set{"sub": ""}), invalid},
		{"long sub", issue(t, k, set{"sub": strings.Repeat("a", 257)}), invalid},
		{"no exp", issue(t, k, set{"exp": nil}), invalid},
		{"exp is text", issue(t, k, set{"exp": "1"}), malformed},
		{"over", issue(t, k, set{"exp": now - 31}), ended},
		{"over within skew", issue(t, k, set{"exp": now - 20}), ""},
		{"not yet", issue(t, k, set{"nbf": now + 40}), invalid},
		{"not yet within skew", issue(t, k, set{"nbf": now + 20}), ""},

		{"bound to nothing", issue(t, k, set{"cnf": set{}}), invalid},
		{"bound in an unknown way", issue(t, k, set{"cnf": set{"jwk": set{}}}), invalid},
		{"bound to null", issue(t, k, set{"cnf": set{"jkt": nil}}), invalid},
		{"bound to an empty jkt", issue(t, k, set{"cnf": set{"jkt": ""}}), invalid},
		{"bound to a short jkt", issue(t, k, set{"cnf": set{"jkt": "AAAA"}}), invalid},
		{"bound to a padded jkt", issue(t, k, set{"cnf": set{"jkt": strings.Repeat("A", 43) + "="}}), invalid},
		{"bound to no certificate", issue(t, k, set{"cnf": set{"x5t#S256": "x"}}), invalid},
		{"bound to a key, and no certificate", issue(t, k, set{"cnf": set{"jkt": strings.Repeat("A", 43), "x5t#S256": "x"}}), invalid},
		{"cnf is text", issue(t, k, set{"cnf": "x"}), malformed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			j := s.tokens(t)
			for range 2 {
				c, err := j.Confirm(t.Context(), tt.token)
				if reasonOf(err) != tt.reason || (c == nil) != (err != nil) {
					t.Fatalf("%v, %v, want %q", c, err, tt.reason)
				}
				if err != nil && len(tt.token) > 20 && (strings.Contains(err.Error(), tt.token) || strings.Contains(err.Error(), "alice")) {
					t.Errorf("repeats the token: %v", err)
				}
			}
		})
	}
}

// A token without a key's name is by the only key.
func TestJWTWithoutKeyID(t *testing.T) {
	k := newKey(t, "")
	s := newServer(t, jose.JSONWebKey{Key: k.Key, KeyID: "1"})
	if _, err := s.tokens(t).Confirm(t.Context(), issue(t, k, nil)); err != nil {
		t.Error(err)
	}
}

// A set may name two keys alike if they are of different kinds (RFC 7517, 4.5).
func TestKeysOfOneName(t *testing.T) {
	s := newServer(t, key(jose.ES256, "1"), key(jose.RS256, "1"), key(jose.EdDSA, "1"))
	j := s.tokens(t)
	for _, alg := range []jose.SignatureAlgorithm{jose.ES256, jose.RS256, jose.EdDSA} {
		if _, err := j.Confirm(t.Context(), issue(t, key(alg, "1"), nil)); err != nil {
			t.Errorf("%s: %v", alg, err)
		}
	}
}

// A busy session costs one verification, and the issuer one fetch.
func TestTokensAreRemembered(t *testing.T) {
	k := key(jose.ES256, "1")
	s := newServer(t, k)
	j := s.tokens(t)
	token := issue(t, k, set{"exp": time.Now().Unix() + 120})
	first, err := j.Confirm(t.Context(), token)
	must(t, err)
	for range 10 {
		if c, err := j.Confirm(t.Context(), token); c != first || err != nil {
			t.Fatalf("%v, %v", c, err)
		}
	}
	if n := s.fetches.Load(); n != 1 {
		t.Errorf("%d fetches", n)
	}
	s.advance(145 * time.Second) // exp has no fractions, and the test takes its time
	if c, err := j.Confirm(t.Context(), token); c != first || err != nil {
		t.Errorf("within skew: %v", err)
	}
	s.advance(10 * time.Second)
	if _, err := j.Confirm(t.Context(), token); reasonOf(err) != proof.SessionEnded {
		t.Errorf("after exp: %v", err)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	var m memory
	now := time.Now()
	id := func(n int) (id [32]byte) { copy(id[:], fmt.Sprint(n)); return id }
	busy := &proof.Confirmation{User: "busy"}
	m.put(id(-1), remembered{busy, now.Add(time.Hour), nil})
	for n := range 5 * maxRemembered {
		m.put(id(n), remembered{&proof.Confirmation{}, now.Add(time.Hour), nil})
		if n%1000 == 0 && m.get(id(-1), now, nil) != busy {
			t.Fatal("a busy token was forgotten")
		}
		if len(m.young)+len(m.old) > maxRemembered {
			t.Fatalf("%d tokens", len(m.young)+len(m.old))
		}
	}
	if m.get(id(0), now, nil) != nil || m.get(id(5*maxRemembered-1), now, nil) == nil {
		t.Error("not the oldest was forgotten")
	}
	if m.get(id(-1), now.Add(time.Hour), nil) != nil || m.get(id(-1), now, new(keySet)) != nil {
		t.Error("remembered past its time, or by other keys")
	}
}

// A key that the issuer withdraws counts for five minutes more.
func TestKeyIsWithdrawn(t *testing.T) {
	k, other := newKey(t, "1"), newKey(t, "2")
	s := newServer(t, k, other)
	j := s.tokens(t)
	token := issue(t, k, nil)
	_, err := j.Confirm(t.Context(), token)
	must(t, err)
	s.publish(t, other)
	s.advance(4 * time.Minute)
	if _, err := j.Confirm(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	s.advance(time.Minute)
	if _, err := j.Confirm(t.Context(), token); reasonOf(err) != proof.Invalid {
		t.Fatalf("withdrawn: %v", err)
	}
	s.publish(t)
	s.advance(5 * time.Minute)
	if _, err := j.Confirm(t.Context(), issue(t, other, nil)); reasonOf(err) != proof.Invalid {
		t.Fatalf("all withdrawn: %v", err)
	}
}

// A new key is found at once, but strangers cannot make us ask more than once a
// minute.
func TestUnknownKeyIsFetchedOnceAMinute(t *testing.T) {
	k, next := newKey(t, "1"), newKey(t, "2")
	s := newServer(t, k)
	j := s.tokens(t)
	_, err := j.Confirm(t.Context(), issue(t, k, nil))
	must(t, err)
	for n := range 20 {
		if _, err := j.Confirm(t.Context(), issue(t, newKey(t, fmt.Sprint("x", n)), nil)); reasonOf(err) != proof.Invalid {
			t.Fatal(err)
		}
	}
	if n := s.fetches.Load(); n != 1 {
		t.Errorf("%d fetches", n)
	}
	s.publish(t, k, next)
	s.advance(time.Minute)
	if _, err := j.Confirm(t.Context(), issue(t, next, nil)); err != nil {
		t.Error(err)
	}
	// What says that it is another issuer's makes nobody ask.
	s.advance(time.Minute)
	if _, err := j.Confirm(t.Context(), issue(t, newKey(t, "y"), set{"iss": "other"})); reasonOf(err) != proof.SessionUnbound {
		t.Error(err)
	}
	if n := s.fetches.Load(); n != 2 {
		t.Errorf("%d fetches", n)
	}
}

func TestUnreachableKeys(t *testing.T) {
	k := newKey(t, "1")
	s := newServer(t, k)
	j := s.tokens(t)
	down := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	s.handle(down)
	for range 3 {
		if _, err := j.Confirm(t.Context(), issue(t, k, nil)); reasonOf(err) != proof.Unavailable {
			t.Fatalf("never fetched: %v", err)
		}
	}
	if n := s.fetches.Load(); n != 1 {
		t.Errorf("%d fetches", n)
	}
	if _, err := j.Confirm(t.Context(), "opaque"); reasonOf(err) != proof.SessionUnbound {
		t.Errorf("what is no JWT is none, issuer or not: %v", err)
	}
	s.publish(t, k)
	s.advance(5 * time.Second)
	token := issue(t, k, set{"exp": time.Now().Add(48 * time.Hour).Unix()})
	_, err := j.Confirm(t.Context(), token)
	must(t, err)

	s.handle(down)
	for range 3 { // known keys go on
		s.advance(7 * time.Hour)
		if _, err := j.Confirm(t.Context(), token); err != nil {
			t.Fatalf("stale: %v", err)
		}
	}
	if _, err := j.Confirm(t.Context(), issue(t, newKey(t, "2"), nil)); reasonOf(err) != proof.Unavailable {
		t.Errorf("the key may be new: %v", err)
	}
	s.advance(4 * time.Hour)
	if _, err := j.Confirm(t.Context(), token); reasonOf(err) != proof.Unavailable {
		t.Errorf("after a day: %v", err)
	}
	s.publish(t, k)
	s.advance(time.Minute)
	if _, err := j.Confirm(t.Context(), token); err != nil {
		t.Errorf("back again: %v", err)
	}
}

// An endpoint that takes its time costs those who know their key a second, once.
func TestSlowKeys(t *testing.T) {
	k := newKey(t, "1")
	s := newServer(t, k)
	j := s.tokens(t)
	token := issue(t, k, nil)
	_, err := j.Confirm(t.Context(), token)
	must(t, err)
	release := make(chan struct{})
	s.handle(func(http.ResponseWriter, *http.Request) { <-release })
	defer close(release)
	s.advance(6 * time.Minute)
	begin := time.Now()
	if _, err := j.Confirm(t.Context(), token); err != nil {
		t.Error(err)
	}
	if d := time.Since(begin); d > 3*time.Second {
		t.Errorf("waited %v", d)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := j.Confirm(ctx, issue(t, newKey(t, "2"), nil)); reasonOf(err) != proof.Unavailable || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a request that ends: %v", err)
	}
}

func TestBadKeySets(t *testing.T) {
	k := newKey(t, "1")
	token := issue(t, k, nil)
	public := k.Public()
	one, err := json.Marshal(public)
	must(t, err)
	private, err := json.Marshal(k)
	must(t, err)
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Skip(err) // GODEBUG rsa1024min
	}
	weakJSON, err := json.Marshal(jose.JSONWebKey{Key: weak.Public(), KeyID: "1"})
	must(t, err)
	serve := func(body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, body) }
	}
	for _, tt := range []struct {
		name   string
		answer http.HandlerFunc
		reason proof.Reason
	}{
		{"as it is", serve(`{"keys":[` + string(one) + `]}`), ""},
		{"with others", serve(`{"keys":[{"kty":"new"},{},null,1,"x",{"kty":"oct","k":"AA","kid":"1"},` + string(weakJSON) + `,` + string(one) + `]}`), ""},
		{"private", serve(`{"keys":[` + string(private) + `]}`), proof.Invalid},
		{"weak", serve(`{"keys":[` + string(weakJSON) + `]}`), proof.Invalid},
		{"none", serve(`{"keys":[]}`), proof.Invalid},
		{"no list", serve(`{}`), proof.Unavailable},
		{"null", serve(`{"keys":null}`), proof.Unavailable},
		{"not JSON", serve(`<html>`), proof.Unavailable},
		{"empty", serve(``), proof.Unavailable},
		{"100 keys", serve(`{"keys":[` + strings.Repeat("{},", 99) + string(one) + `]}`), ""},
		{"101 keys", serve(`{"keys":[` + strings.Repeat("{},", 100) + string(one) + `]}`), proof.Unavailable},
		{"256 KiB", serve(`{"keys":[` + string(one) + `]}` + strings.Repeat(" ", 256<<10)), proof.Unavailable},
		{"status 500", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(500)
			fmt.Fprint(w, `{"keys":[`+string(one)+`]}`)
		}, proof.Unavailable},
		{"a redirect", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/", http.StatusFound) }, proof.Unavailable},
		{"a cut connection", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, proof.Unavailable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newServer(t)
			s.handle(tt.answer)
			if _, err := s.tokens(t).Confirm(t.Context(), token); reasonOf(err) != tt.reason {
				t.Errorf("%v, want %q", err, tt.reason)
			}
		})
	}
	// A server whose certificate nobody vouches for is not the issuer.
	s := newServer(t, k)
	j, err := NewJWT(JWTConfig{Issuer: issuer, Audience: audience, JWKS: s.URL})
	must(t, err)
	if _, err := j.Confirm(t.Context(), token); reasonOf(err) != proof.Unavailable {
		t.Errorf("an unknown certificate: %v", err)
	}
}

func TestConcurrentRequests(t *testing.T) {
	k := newKey(t, "1")
	s := newServer(t, k)
	j := s.tokens(t)
	var tokens []string
	for n := range 8 {
		tokens = append(tokens, issue(t, k, set{"sub": fmt.Sprint("user", n)}))
	}
	var wg sync.WaitGroup
	for n := range 64 {
		wg.Go(func() {
			for i := range 20 {
				at := (n + i) % len(tokens)
				c, err := j.Confirm(t.Context(), tokens[at])
				if err != nil || c.User != fmt.Sprint("user", at) {
					t.Errorf("%v, %v", c, err)
				}
				if n == 0 && i%5 == 4 {
					s.advance(6 * time.Minute)
				}
			}
		})
	}
	wg.Wait()
	if n := s.fetches.Load(); n < 1 || n > 5 {
		t.Errorf("%d fetches", n)
	}
}

func TestNewJWTRefuses(t *testing.T) {
	good := JWTConfig{Issuer: issuer, Audience: audience, JWKS: "https://as.example.com/jwks"}
	if _, err := NewJWT(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*JWTConfig){
		"no issuer":   func(c *JWTConfig) { c.Issuer = "" },
		"no audience": func(c *JWTConfig) { c.Audience = "" },
		"no URL":      func(c *JWTConfig) { c.JWKS = "" },
	} {
		c := good
		change(&c)
		if _, err := NewJWT(c); err == nil || !strings.HasPrefix(err.Error(), "limpet: oauth: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEndpoint(t *testing.T) {
	for text, ok := range map[string]bool{
		"https://as.example.com/jwks": true, "https://as.example.com:8443/?a=b": true, "http://localhost:8080/jwks": true,
		"http://127.0.0.1/": true, "http://127.9.9.9:1/": true, "http://[::1]:8080/": true,
		"": false, "/jwks": false, "as.example.com": false, "http://as.example.com/": false, "http://localhost.example.com/": false,
		"http://10.0.0.1/": false, "ftp://localhost/": false, "https://": false, "https:///jwks": false, "https://u:p@as.example.com/": false,
		"https://as.example.com/#f": false, "file:///etc/passwd": false, "https://as.example.com/\x7f": false,
	} {
		if err := endpoint("URL", text); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// Every key signs with its own algorithm, and only an RSA key with several.
func TestFits(t *testing.T) {
	algs := []jose.SignatureAlgorithm{"HS256", "none", "", "MLDSA65"}
	for alg := range generated() {
		algs = append(algs, alg)
	}
	for own, signer := range generated() {
		k := jose.JSONWebKey{Key: signer.Public()}
		for _, alg := range algs {
			want := alg == own
			if _, ok := signer.(*rsa.PrivateKey); ok {
				want = len(alg) == 5 && alg[1] == 'S' && (alg[0] == 'R' || alg[0] == 'P')
			}
			if got := fits(&k, alg); got != want {
				t.Errorf("%s with the key of %s: %v", alg, own, got)
			}
		}
	}
	if fits(&jose.JSONWebKey{Key: "x"}, "ES256") {
		t.Error("fits no key")
	}
}

func BenchmarkConfirm(b *testing.B) {
	k := key(jose.ES256, "1")
	s := newServer(b, k)
	j := s.tokens(b)
	token := issue(b, k, nil)
	b.Run("remembered", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := j.Confirm(b.Context(), token); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("verified", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			j.memory = memory{}
			if _, err := j.Confirm(b.Context(), token); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// Whatever comes in, a token holds or is refused, and nobody is confirmed whom the
// issuer's key did not sign for.
func FuzzConfirm(f *testing.F) {
	k := key(jose.ES256, "1")
	j := newServer(f, k).tokens(f)
	good := issue(f, k, nil)
	part := strings.Split(good, ".")
	f.Add(good)
	f.Add(part[0] + "." + part[1] + ".")
	f.Add(part[0] + ".e30." + part[2])
	f.Add("eyJhbGciOiJub25lIn0.W10.")
	f.Add("opaque")
	f.Fuzz(func(t *testing.T, token string) {
		c, err := j.Confirm(t.Context(), token)
		if (c == nil) == (err == nil) || reasonOf(err) == "not a refusal" {
			t.Fatalf("%v, %v", c, err)
		}
		if c != nil && !strings.HasPrefix(token, part[0]+"."+part[1]+".") {
			t.Fatalf("%+v", c)
		}
	})
}
