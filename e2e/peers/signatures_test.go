package peers_test

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
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/httpsig"
	"github.com/limpet-auth/limpet/store/memstore"
)

var signers = []string{"http-message-signatures", "http-message-sig"}

// newGuard returns a guard with a store of its own.
func newGuard(t *testing.T, cfg limpet.Config) *limpet.Guard {
	t.Helper()
	cfg.Session, cfg.Store = limpet.Bearer(), memstore.New(nil)
	cfg.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	guard, err := limpet.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return guard
}

// seen is what the app behind a guard says it was told.
type seen struct{ User, Level, Path, Body string }

func app(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	b := limpet.FromContext(r.Context())
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(seen{b.User, string(b.Level), r.RequestURI, string(body)})
}

// newSite is an app with logins, behind a guard that demands proofs.
func newSite(t *testing.T) *httptest.Server {
	t.Helper()
	guard := newGuard(t, limpet.Config{Rule: limpet.Rule{Mode: limpet.Require}})
	login := guard.CheckBody(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token := rand.Text()
		if err := guard.Bind(w, r, token, "alice"); err != nil {
			limpet.Refuse(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"token":%q}`, token)
	}))
	protected := guard.Protect(http.HandlerFunc(app))
	// No http.ServeMux, which redirects some of the paths.
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost && r.URL.Path == "/login" {
			login.ServeHTTP(w, r)
			return
		}
		protected.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	return server
}

// outcome is what a peer's request came to.
type outcome struct {
	Status int
	Reason proof.Reason
	Seen   seen
}

func (o outcome) expect(t *testing.T, what string, want proof.Reason) {
	t.Helper()
	if o.Reason != want || (o.Status == 200) != (want == "") {
		t.Errorf("%s: %d %q, want %q", what, o.Status, o.Reason, want)
	}
}

// A client that is written in another language and signs with another's package
// is admitted, and what is changed on its way is not.
func TestTheySign(t *testing.T) {
	server := newSite(t)
	for _, name := range signers {
		t.Run(name, func(t *testing.T) {
			p := start(t, "limpet.mjs", server)
			for _, alg := range []string{"hmac-sha256", "ecdsa-p256-sha256", "ed25519", "rsa-pss-sha512", "rsa-v1_5-sha256"} {
				t.Run(alg, func(t *testing.T) { theySign(t, p, server.URL, name, alg) })
			}
		})
	}
}

func theySign(t *testing.T, p *program, base, name, alg string) {
	device := alg
	if alg == "hmac-sha256" {
		device = "ecdsa-p256-sha256" // an agreed key is no device key
	}
	request := func(q question) (o outcome) {
		t.Helper()
		p.ask(t, "request", q, &o)
		return o
	}
	p.ask(t, "start", question{"name": name, "base": base, "device": device, "ephemeral": alg}, nil)
	var o outcome
	p.ask(t, "login", nil, &o)
	o.expect(t, "login", "")
	if o.Status != 200 {
		return
	}
	request(question{"method": "GET", "path": "/me"}).expect(t, "a key nobody has introduced", proof.KeyUnknown)
	o = request(question{"method": "GET", "path": "/me", "introduce": true})
	o.expect(t, "introduction", "")
	if want := (seen{User: "alice", Level: "software", Path: "/me"}); o.Seen != want {
		t.Errorf("the app was told %+v, want %+v", o.Seen, want)
	}
	for _, path := range []string{
		"/me", "/", "/?", "/?x", "/a|b^c", "/a%2Fb/c%20d/%7Ee?q=%26&r=a+b&r=%C3%A4", "/a//b;c=d,e/(f)*'!$/@:x/[g]?y=/?:@&z=[]{}|^~", "/me?a=b?c&&=",
	} {
		o := request(question{"method": "GET", "path": path})
		o.expect(t, path, "")
	}
	for _, method := range []string{"DELETE", "PUT", "PATCH"} {
		request(question{"method": method, "path": "/x", "body": "a bödy"}).expect(t, method, "")
	}
	request(question{"method": "POST", "path": "/x", "stranger": true}).expect(t, "with a signature of a stranger's", "")
	more := question{"method": "GET", "path": "/me?a=1&b=c+d%2F", "headers": question{"x-note": " a,  b ", "accept": "text/plain"}}
	more["cover"] = []string{"@scheme", "x-note", "@target-uri", "accept"}
	if name == "http-message-signatures" { // the other has not all of them
		more["cover"] = []string{"@scheme", "x-note", "@target-uri", "accept", "@request-target", `@query-param;name="b"`, `"x-note";bs`}
	}
	request(more).expect(t, "with more covered", "")
	more["change"] = question{"replace": [][3]string{{"x-note", "b", "c"}}}
	request(more).expect(t, "with more covered, another field", proof.Invalid)

	post := question{"method": "POST", "path": "/transfer?to=bob", "body": "a body"}
	o = request(post)
	o.expect(t, "with a body", "")
	if o.Seen.Body != "a body" {
		t.Errorf("the app read %q", o.Seen.Body)
	}
	p.ask(t, "again", nil, &o)
	o.expect(t, "replayed", proof.NonceSpent)
	for _, tt := range []struct {
		name   string
		change question
		want   proof.Reason
	}{
		{"method", question{"method": "PUT"}, proof.Invalid},
		{"path", question{"path": "/transfes?to=bob"}, proof.Invalid},
		{"query", question{"path": "/transfer?to=rob"}, proof.Invalid},
		{"no query", question{"path": "/transfer"}, proof.Invalid},
		{"body", question{"body": "a bodz"}, proof.BodyDiffer},
		{"digest", question{"flip": "content-digest"}, proof.Invalid},
		{"token", question{"flip": "authorization"}, proof.SessionUnbound},
		{"signature", question{"flip": "signature"}, proof.Invalid},
		{"nonce", question{"replace": [][3]string{{"signature-input", `nonce="`, `nonce="x`}}}, proof.Invalid},
		{"order", question{"replace": [][3]string{{"signature-input", `"@path" "@query"`, `"@query" "@path"`}}}, proof.Invalid},
		{"query not covered", question{"replace": [][3]string{{"signature-input", ` "@query"`, ""}}}, proof.Malformed},
		{"expires", question{"replace": [][3]string{{"signature-input", ";created", ";expires=253402300799;created"}}}, proof.Malformed},
	} {
		changed := maps.Clone(post)
		changed["change"] = tt.change
		request(changed).expect(t, "another "+tt.name, tt.want)
	}
	request(post).expect(t, "after all that", "")
}

// RFC 9421, 3.3.1: the salt has 64 octets.
func TestOtherSaltIsRefused(t *testing.T) {
	server := newSite(t)
	p := start(t, "limpet.mjs", server)
	p.ask(t, "start", question{"name": "http-message-signatures", "base": server.URL, "device": "rsa-pss-sha512", "ephemeral": "ed25519"}, nil)
	var o outcome
	p.ask(t, "login", question{"ownSalt": true}, &o)
	o.expect(t, "the longest salt that fits", proof.Invalid)
}

// signingKey is a key of ours and what others verify it with.
type signingKey struct {
	alg    proof.Algorithm
	name   string // of alg
	public []byte // SubjectPublicKeyInfo, or the secret of an HMAC
	keyID  string
	sign   func(base []byte) ([]byte, error)
}

func newSigningKey(t *testing.T, alg proof.Algorithm, name string, key crypto.Signer) *signingKey {
	t.Helper()
	public, err := proof.NewPublicKey(alg, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	der, err := public.SPKI()
	if err != nil {
		t.Fatal(err)
	}
	thumbprint := public.Thumbprint()
	return &signingKey{alg, name, der, base64.RawURLEncoding.EncodeToString(thumbprint[:]), func(base []byte) ([]byte, error) {
		sum256, sum512 := sha256.Sum256(base), sha512.Sum512(base)
		switch alg {
		case proof.Ed25519:
			return key.Sign(rand.Reader, base, crypto.Hash(0))
		case proof.RSAPKCS1:
			return key.Sign(rand.Reader, sum256[:], crypto.SHA256)
		case proof.RSAPSSSHA512:
			return key.Sign(rand.Reader, sum512[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA512})
		}
		sig, err := key.Sign(rand.Reader, sum256[:], crypto.SHA256)
		if err != nil {
			return nil, err
		}
		var rs struct{ R, S *big.Int }
		if _, err := asn1.Unmarshal(sig, &rs); err != nil {
			return nil, err
		}
		return append(rs.R.FillBytes(make([]byte, 32)), rs.S.FillBytes(make([]byte, 32))...), nil
	}}
}

// signingKeys has one of each algorithm.
func signingKeys(t *testing.T) []*signingKey {
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
	secret := make([]byte, 32)
	rand.Read(secret) // never fails
	mac := proof.NewMACKey(secret)
	keys := []*signingKey{
		newSigningKey(t, proof.ECDSAP256, "ecdsa-p256-sha256", ec),
		newSigningKey(t, proof.Ed25519, "ed25519", ed),
		newSigningKey(t, proof.RSAPSSSHA512, "rsa-pss-sha512", rsaKey),
		newSigningKey(t, proof.RSAPKCS1, "rsa-v1_5-sha256", rsaKey),
	}
	return append(keys, &signingKey{proof.HMACSHA256, "hmac-sha256", secret, keys[0].keyID,
		func(base []byte) ([]byte, error) { return mac.Append(nil, base), nil }})
}

// message is a request as a program takes it.
type message struct {
	Method  string            `json:"method"`
	URL     string            `json:"url"`
	Headers map[string]string `json:"headers"`
}

// messageOf returns a request of ours. No field of it occurs twice.
func messageOf(r *http.Request) message {
	m := message{Method: r.Method, URL: r.URL.String(), Headers: make(map[string]string)}
	for name, lines := range r.Header {
		m.Headers[strings.ToLower(name)] = strings.Join(lines, ", ")
	}
	return m
}

// ours returns a request that is signed with httpsig.Sign.
func ours(t *testing.T, key *signingKey, method, target, body string, header map[string]string) message {
	t.Helper()
	r, err := http.NewRequest(method, target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range header {
		r.Header.Set(name, value)
	}
	if body != "" {
		r.Header.Set(httpsig.DigestField, httpsig.FormatDigest(sha256.Sum256([]byte(body))))
	}
	m := proof.Message{
		Method: r.Method, Scheme: r.URL.Scheme, Authority: proof.Authority(r.URL.Scheme, r.URL.Host),
		Path: r.URL.EscapedPath(), RawQuery: r.URL.RawQuery, Header: r.Header, HasBody: body != "",
	}
	s := httpsig.Signing{KeyID: key.keyID, Algorithm: key.alg, Created: time.Now(), Nonce: rand.Text()}
	if err := httpsig.Sign(&m, &s, key.sign); err != nil {
		t.Fatal(err)
	}
	return messageOf(r)
}

// verifies asks a package whether a signature of ours holds.
func verifies(t *testing.T, p *program, name, alg string, public []byte, m message) (holds bool, why string) {
	t.Helper()
	var answer struct {
		Holds bool
		Why   string
	}
	p.ask(t, "verify", question{"name": name, "algorithm": alg, "key": public, "request": m}, &answer)
	return answer.Holds, answer.Why
}

// wantHolds wants a signature of ours to hold, and not to do so after one byte of
// anything that it covers was changed.
func wantHolds(t *testing.T, p *program, name, alg string, public []byte, m message) {
	t.Helper()
	if holds, why := verifies(t, p, name, alg, public, m); !holds {
		t.Errorf("%s %s: the signature does not hold: %s\n%v", m.Method, m.URL, why, m.Headers)
		return
	}
	for what, changed := range changes(t, m) {
		if holds, _ := verifies(t, p, name, alg, public, changed); holds {
			t.Errorf("%s %s: the signature holds after a change of %s", m.Method, m.URL, what)
		}
	}
}

// changes returns copies of a request, each with one byte changed.
func changes(t *testing.T, m message) map[string]message {
	t.Helper()
	all := make(map[string]message)
	all["the method"] = message{flip(m.Method, 1), m.URL, m.Headers}
	u, err := url.Parse(m.URL)
	if err != nil {
		t.Fatal(err)
	}
	host := strings.Index(m.URL, "://") + 3
	all["the authority"] = message{m.Method, flip(m.URL, host+1), m.Headers}
	if len(u.Path) > 1 {
		all["the path"] = message{m.Method, flip(m.URL, host+len(u.Host)+1), m.Headers}
	}
	if u.RawQuery != "" {
		all["the query"] = message{m.Method, flip(m.URL, len(m.URL)-1), m.Headers}
	}
	input := m.Headers["signature-input"]
	for name, value := range m.Headers {
		if strings.Contains(input, `"`+name+`"`) {
			for _, i := range []int{0, len(value) / 2, len(value) - 1} {
				all[fmt.Sprintf("%s at %d", name, i)] = m.with(name, flip(value, i))
			}
		}
	}
	for _, name := range []string{"created=", `nonce="`, `keyid="`} {
		at := strings.Index(input, ";"+name) + len(name) + 3
		all["the parameter "+name] = m.with("signature-input", flip(input, at))
	}
	// The base64 of a signature begins after its label.
	signature := m.Headers["signature"]
	for _, i := range []int{strings.Index(signature, ":") + 1, len(signature) / 2} {
		all[fmt.Sprintf("the signature at %d", i)] = m.with("signature", flip(signature, i))
	}
	return all
}

func (m message) with(name, value string) message {
	m.Headers = maps.Clone(m.Headers)
	m.Headers[name] = value
	return m
}

// flip changes the byte at i to another one of its kind.
func flip(s string, i int) string {
	b := []byte(s)
	switch b[i] {
	case '9', 'z', 'Z':
		b[i]--
	default:
		b[i]++
		if !strings.ContainsRune("0123456789", rune(b[i])) && !('a' <= b[i]|0x20 && b[i]|0x20 <= 'z') {
			b[i] = 'a'
		}
	}
	return string(b)
}

func TestWeSign(t *testing.T) {
	server := newSite(t)
	keys := signingKeys(t)
	p := start(t, "limpet.mjs", server)
	for _, name := range signers {
		for _, key := range keys {
			t.Run(name+"/"+key.name, func(t *testing.T) {
				for _, m := range []message{
					ours(t, key, "POST", "https://api.example.com:8443/a%2Fb/c?x=1&y=%20z", "a body", map[string]string{
						"Authorization": "Bearer token", httpsig.ChallengeField: "c-123",
					}),
					ours(t, key, "GET", "https://example.com/", "", map[string]string{"Authorization": "Bearer token"}),
					ours(t, key, "DELETE", "http://EXAMPLE.com:80/x?", "", map[string]string{
						"Authorization": "Bearer token", httpsig.SessionField: httpsig.FormatSession(sha256.Sum256(nil)), httpsig.ChannelField: httpsig.Channel,
					}),
					ours(t, key, "PATCH", "https://127.0.0.1?q=a+b&r=%C3%A4", "", nil),
				} {
					wantHolds(t, p, name, key.name, key.public, m)
				}
				other := ours(t, keys[(slices.Index(keys, key)+1)%len(keys)], "GET", "https://example.com/", "", nil)
				if holds, _ := verifies(t, p, name, key.name, key.public, other); holds {
					t.Error("a signature by another key holds")
				}
			})
		}
	}
}

// fieldBytes returns the byte sequence that a field is, or begins with.
func fieldBytes(t *testing.T, field string) []byte {
	t.Helper()
	text, _, _ := strings.Cut(strings.TrimPrefix(field, ":"), ":")
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func spkiOf(t *testing.T, key crypto.PublicKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}
