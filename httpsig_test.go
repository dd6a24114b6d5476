package limpet

import (
	"bufio"
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"math"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/limpet-auth/limpet/internal/incoming"
	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/httpsig"
	"github.com/limpet-auth/limpet/proof/hwsign"
	"github.com/limpet-auth/limpet/store/memstore"
)

// holder is a client on Limpet's own wire: a device key, an ephemeral key and
// the HMAC key agreed with the server.
type holder struct {
	site       *site
	token      string
	device     *ecdsa.PrivateKey
	ephemeral  *ecdh.PrivateKey
	public     *proof.PublicKey // of ephemeral
	server     *proof.Server
	session    ID // as the server told it
	delegation *proof.Delegation
	mac        *proof.MACKey
	signing    *ecdsa.PrivateKey // in place of the agreed key; nil without
	challenge  string
	channel    []byte // exporter; nil without
}

func thumbprint(key *proof.PublicKey) string {
	sum := key.Thumbprint()
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// signRaw signs as RFC 9421, 3.3.4 has it: r‖s.
func signRaw(t testing.TB, key *ecdsa.PrivateKey, message []byte) []byte {
	sum := sha256.Sum256(message)
	der, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	var rs struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &rs); err != nil {
		t.Fatal(err)
	}
	return append(rs.R.FillBytes(make([]byte, 32)), rs.S.FillBytes(make([]byte, 32))...)
}

// loginRequest is a login that offers the device key and is signed by signer.
func (h *holder) loginRequest(signer *ecdsa.PrivateKey) *http.Request {
	t := h.site.t
	t.Helper()
	public, err := proof.NewPublicKey(proof.ECDSAP256, &h.device.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest("POST", "/login", strings.NewReader("the password"))
	field, err := httpsig.FormatDevice(public, proof.Software)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set(httpsig.DeviceField, field)
	r.Header.Set(httpsig.DigestField, httpsig.FormatDigest(sha256.Sum256([]byte("the password"))))
	m := incoming.Message(r)
	err = httpsig.Sign(&m, &httpsig.Signing{KeyID: thumbprint(public), Algorithm: proof.ECDSAP256, Created: h.site.time(), Nonce: rand.Text()},
		func(base []byte) ([]byte, error) { return signRaw(t, signer, base), nil })
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// hold logs in and agrees on an HMAC key.
func (s *site) hold(token string) *holder {
	s.t.Helper()
	h := &holder{site: s, token: token, device: newECDSA(s.t)}
	w := httptest.NewRecorder()
	if err := s.Bind(w, h.loginRequest(h.device), token, "alice"); err != nil {
		s.t.Fatal(err)
	}
	h.take(w.Header().Get(httpsig.KeyField))
	h.delegate(h.session)
	return h
}

// take learns what the server says of itself.
func (h *holder) take(text string) {
	h.site.t.Helper()
	server, session, err := httpsig.ParseServer(text)
	if err != nil {
		h.site.t.Fatalf("%q: %v", text, err)
	}
	h.server = server
	if session != nil {
		h.session = *session
	}
	if h.delegation != nil {
		h.agree()
	}
}

// delegate makes a new ephemeral key for a session.
func (h *holder) delegate(session ID) {
	t := h.site.t
	t.Helper()
	h.ephemeral = newECDH(t)
	var err error
	if h.public, err = proof.ParsePublicKey(proof.HMACSHA256, h.ephemeral.PublicKey().Bytes()); err != nil {
		t.Fatal(err)
	}
	scope := &proof.Scope{NotBefore: h.site.time(), Expires: h.site.time().Add(h.server.Lease), Session: session, Audience: "example.com"}
	h.delegation = &proof.Delegation{Algorithm: proof.HMACSHA256, Key: h.public.Bytes(), Scope: scope}
	h.delegation.Signed = httpsig.Statement(proof.HMACSHA256, h.public.Bytes(), scope)
	h.delegation.Signature = signRaw(t, h.device, h.delegation.Signed)
	h.agree()
}

// delegateSigning makes a new ephemeral key that signs.
func (h *holder) delegateSigning() {
	t := h.site.t
	t.Helper()
	h.signing = newECDSA(t)
	var err error
	if h.public, err = proof.NewPublicKey(proof.ECDSAP256, &h.signing.PublicKey); err != nil {
		t.Fatal(err)
	}
	scope := &proof.Scope{NotBefore: h.site.time(), Expires: h.site.time().Add(h.server.Lease), Session: h.session, Audience: "example.com"}
	h.delegation = &proof.Delegation{Algorithm: proof.ECDSAP256, Key: h.public.Bytes(), Scope: scope}
	h.delegation.Signed = httpsig.Statement(proof.ECDSAP256, h.public.Bytes(), scope)
	h.delegation.Signature = signRaw(t, h.device, h.delegation.Signed)
}

func (h *holder) agree() {
	z, err := proof.Agree(h.ephemeral, h.server.Key)
	if err != nil {
		h.site.t.Fatal(err)
	}
	h.delegation.Scope.Server = h.server.Key.ID()
	h.mac = proof.NewMACKey(proof.RequestSecret(z, h.delegation.Signed, h.public, h.server.Key))
}

// request is signed, and brings the delegation if introduce.
func (h *holder) request(method, target, body string, introduce bool) *http.Request {
	h.site.t.Helper()
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	if h.site.cfg.Session.cookie != "" {
		r.AddCookie(&http.Cookie{Name: h.site.cfg.Session.cookie, Value: h.token})
		r.Header.Set(httpsig.SessionField, httpsig.FormatSession(h.session))
	} else {
		r.Header.Set("Authorization", "Bearer "+h.token)
	}
	if body != "" {
		r.Header.Set(httpsig.DigestField, httpsig.FormatDigest(sha256.Sum256([]byte(body))))
	}
	if introduce {
		r.Header.Set(httpsig.DelegationField, httpsig.FormatDelegation(h.delegation))
	}
	if h.challenge != "" {
		r.Header.Set(httpsig.ChallengeField, h.challenge)
	}
	mac := h.mac
	if h.channel != nil {
		r.Header.Set(httpsig.ChannelField, httpsig.Channel)
		mac = mac.OnChannel(h.channel)
	}
	m := incoming.Message(r)
	m.InCookie = h.site.cfg.Session.cookie != ""
	alg := h.delegation.Algorithm
	err := httpsig.Sign(&m, &httpsig.Signing{KeyID: thumbprint(h.public), Algorithm: alg, Created: h.site.time(), Nonce: rand.Text()},
		func(base []byte) ([]byte, error) {
			if h.signing != nil {
				return signRaw(h.site.t, h.signing, base), nil
			}
			return mac.Append(nil, base), nil
		})
	if err != nil {
		h.site.t.Fatal(err)
	}
	return r
}

func (s *site) serve(r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	s.seen = nil
	s.next.ServeHTTP(w, r)
	return w
}

func (h *holder) get(introduce bool) *httptest.ResponseRecorder {
	h.site.t.Helper()
	return h.site.serve(h.request("GET", "/me?x=1", "", introduce))
}

// serverKeyIn reads the key that a refusal tells.
func serverKeyIn(t testing.TB, w *httptest.ResponseRecorder) string {
	t.Helper()
	_, rest, ok := strings.Cut(w.Header().Get("WWW-Authenticate"), `key="`)
	text, _, ok2 := strings.Cut(rest, `"`)
	if !ok || !ok2 {
		t.Fatalf("no key in WWW-Authenticate: %q", w.Header().Get("WWW-Authenticate"))
	}
	return text
}

func TestFirstRequestIsProven(t *testing.T) {
	for _, session := range []Session{Bearer(), Cookie("sid")} {
		s := newSite(t, Config{Session: session})
		h := s.hold("token")
		expect(t, "a key nobody has introduced", h.get(false), proof.KeyUnknown)
		expect(t, "the first request", h.get(true), "")
		if s.seen == nil || s.seen.User != "alice" || s.seen.Level != Software || s.seen.Session != h.session {
			t.Errorf("the app was told %+v", s.seen)
		}
		expect(t, "the second", h.get(false), "")
		expect(t, "the delegation again", h.get(true), "")
		r := h.request("POST", "/x", "a body", false)
		expect(t, "with a body", s.serve(r), "")
		expect(t, "replayed", s.serve(r), proof.NonceSpent)
		replayed := h.request("GET", "/x", "", false)
		expect(t, "once", s.serve(replayed.Clone(t.Context())), "")
		expect(t, "twice", s.serve(replayed), proof.NonceSpent)
		expect(t, "no proof", s.serve(unsigned(replayed)), proof.Required)
	}
}

func unsigned(r *http.Request) *http.Request {
	r = r.Clone(r.Context())
	r.Header.Del("Signature")
	r.Header.Del("Signature-Input")
	return r
}

// A captured proof, unspent, holds for nothing but its own request.
func TestProofCannotBeMoved(t *testing.T) {
	s := newSite(t, Config{})
	h, other := s.hold("token"), s.hold("other")
	expect(t, "introduction", h.get(true), "")
	for _, tt := range []struct {
		name   string
		change func(r *http.Request)
		want   proof.Reason
	}{
		{"nothing", func(r *http.Request) {}, ""},
		{"method", func(r *http.Request) { r.Method = "PUT" }, proof.Invalid},
		{"path", func(r *http.Request) { r.URL.Path = "/transfer2" }, proof.Invalid},
		{"query", func(r *http.Request) { r.URL.RawQuery = "to=mallory" }, proof.Invalid},
		{"host", func(r *http.Request) { r.Host = "admin.example.com" }, proof.Invalid},
		{"body", func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader("another body")) }, proof.BodyDiffer},
		{"digest", func(r *http.Request) {
			r.Header.Set(httpsig.DigestField, httpsig.FormatDigest(sha256.Sum256([]byte("another body"))))
		}, proof.Invalid},
		{"no body", func(r *http.Request) { r.Body, r.ContentLength = http.NoBody, 0 }, proof.BodyDiffer},
		{"session", func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+other.token) }, proof.KeyUnknown},
		{"no digest", func(r *http.Request) { r.Header.Del(httpsig.DigestField) }, proof.Malformed},
		{"two digests", func(r *http.Request) {
			r.Header.Add(httpsig.DigestField, httpsig.FormatDigest(sha256.Sum256(nil)))
		}, proof.Malformed},
		{"two signatures", func(r *http.Request) { r.Header.Add("Signature", r.Header.Get("Signature")) }, proof.Malformed},
	} {
		r := h.request("POST", "/transfer?to=bob", "the body", false)
		tt.change(r)
		expect(t, tt.name, s.serve(r), tt.want)
	}
}

func TestDelegationIsForOneSession(t *testing.T) {
	s := newSite(t, Config{})
	h := s.hold("token")
	// The same device key holds another session, as no client of ours does it.
	second := &holder{site: s, token: "second", device: h.device}
	w := httptest.NewRecorder()
	if err := s.Bind(w, second.loginRequest(h.device), "second", "alice"); err != nil {
		t.Fatal(err)
	}
	second.take(w.Header().Get(httpsig.KeyField))
	second.delegate(h.session)
	expect(t, "a delegation for another session", second.get(true), proof.Invalid)
	second.delegate(second.session)
	expect(t, "its own", second.get(true), "")
}

func TestDelegationEnds(t *testing.T) {
	s := newSite(t, Config{Lease: 10 * time.Minute})
	h := s.hold("token")
	expect(t, "introduction", h.get(true), "")
	s.pass(9 * time.Minute)
	expect(t, "inside the lease", h.get(false), "")
	s.pass(2 * time.Minute)
	expect(t, "after it", h.get(false), proof.KeyUnknown)
	expect(t, "after it, introduced again", h.get(true), proof.KeyUnknown)
	h.delegate(h.session)
	expect(t, "a new delegation", h.get(true), "")

	h.server.Lease = 24 * time.Hour // the client wishes more than it is given
	h.delegate(h.session)
	expect(t, "a long delegation", h.get(true), "")
	s.pass(11 * time.Minute)
	expect(t, "after the server's lease", h.get(true), proof.KeyUnknown)
	s.pass(time.Minute)
	h.delegate(h.session)
	s.pass(-time.Minute)
	expect(t, "before it begins", h.get(true), proof.ClockSkew)
}

// Server keys change, servers restart and share a store: the client learns what
// it needs from the refusal, and never needs the device key for it.
func TestServerKeys(t *testing.T) {
	store, seal := memstore.New(nil), bytes.Repeat([]byte{7}, 32)
	first := newSite(t, Config{Store: store, SealKey: seal, Lease: 24 * time.Hour})
	h := first.hold("token")
	signature := h.delegation.Signature
	expect(t, "introduction", h.get(true), "")

	twin := newSite(t, Config{Store: store, SealKey: seal, Lease: 24 * time.Hour})
	h.site = twin
	expect(t, "another server of the store", h.get(false), "")
	expect(t, "which knows the agreement too", h.get(true), "")

	agreed := *h.delegation.Scope
	restarted := newSite(t, Config{Store: store, Lease: 24 * time.Hour}) // with another seal key
	h.site = restarted
	w := h.get(false)
	expect(t, "a server that lost its seal key", w, proof.KeyUnknown)
	expect(t, "and cannot use the old agreement", h.get(true), proof.KeyUnknown)
	h.take(serverKeyIn(t, w))
	expect(t, "agreed anew", h.get(true), "")
	if !bytes.Equal(signature, h.delegation.Signature) {
		t.Error("the device key was needed")
	}

	for _, tt := range []struct {
		age  time.Duration
		want proof.Reason
	}{{-20 * time.Hour, ""}, {0, ""}, {23 * time.Hour, ""}, {49 * time.Hour, proof.KeyUnknown}, {-49 * time.Hour, proof.KeyUnknown}} {
		_, err := twin.server.agree(&proof.Delegation{Signed: h.delegation.Signed, Scope: &agreed}, h.public, twin.time().Add(tt.age))
		var refusal *proof.Refusal
		if errors.As(err, &refusal); err != nil && (refusal == nil || refusal.Reason != tt.want) || err == nil && tt.want != "" {
			t.Errorf("a server key %v old: %v", tt.age, err)
		}
	}
}

func TestNinthKey(t *testing.T) {
	s := newSite(t, Config{})
	h := s.hold("token")
	first := *h
	for range slots {
		expect(t, "a tab", h.get(true), "")
		h.delegate(h.session)
		s.pass(time.Second)
	}
	expect(t, "the ninth", h.get(true), "")
	expect(t, "the first, whose slot that took", first.get(false), proof.KeyUnknown)
	expect(t, "introduced again", first.get(true), "")
}

func TestLoginNeedsPossession(t *testing.T) {
	s := newSite(t, Config{})
	h := &holder{site: s, token: "token", device: newECDSA(t)}
	bind := func(r *http.Request, token string) proof.Reason {
		w := httptest.NewRecorder()
		if err := s.Bind(w, r, token, "alice"); err != nil {
			Refuse(w, err)
			return reasonIn(t, w)
		}
		return ""
	}
	if got := bind(h.loginRequest(newECDSA(t)), "a"); got != proof.Invalid {
		t.Errorf("signed by another key: %q", got)
	}
	if got := bind(unsigned(h.loginRequest(h.device)), "b"); got != proof.Malformed {
		t.Errorf("unsigned: %q", got)
	}
	r := h.loginRequest(h.device)
	r.URL.Path = "/elsewhere"
	if got := bind(r, "c"); got != proof.Invalid {
		t.Errorf("moved: %q", got)
	}
	r = h.loginRequest(h.device)
	again := r.Clone(t.Context())
	if got := bind(r, "d"); got != "" {
		t.Errorf("honest: %q", got)
	}
	if got := bind(again, "e"); got != proof.NonceSpent {
		t.Errorf("replayed: %q", got)
	}
	r = h.loginRequest(h.device)
	s.pass(5 * time.Minute)
	if got := bind(r, "f"); got != proof.ClockSkew {
		t.Errorf("old: %q", got)
	}
	both := h.loginRequest(h.device)
	d := &device{site: s, key: newECDSA(t)}
	point, err := d.key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	both.Header.Set("X-Rpc-Sec-Bound-Token-Hw-Pub", b64(point))
	both.Header.Set("X-Rpc-Sec-Bound-Token-Hw-Pub-Type", "ecdsa")
	if got := bind(both, "g"); got != proof.Malformed {
		t.Errorf("two device keys: %q", got)
	}
}

func TestCheckBody(t *testing.T) {
	s := newSite(t, Config{})
	h := &holder{site: s, token: "token", device: newECDSA(t)}
	login := s.CheckBody(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if err := s.Bind(w, r, strings.ReplaceAll(string(body), " ", "-"), "alice"); err != nil {
			Refuse(w, err)
		}
	}))
	serve := func(r *http.Request) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		login.ServeHTTP(w, r)
		return w
	}
	expect(t, "honest", serve(h.loginRequest(h.device)), "")
	r := h.loginRequest(h.device)
	r.Body = io.NopCloser(strings.NewReader("another password"))
	expect(t, "another body", serve(r), proof.BodyDiffer)
	expect(t, "no digest", serve(httptest.NewRequest("POST", "/login", strings.NewReader("x"))), "")
}

func TestChallenge(t *testing.T) {
	s := newSite(t, Config{Routes: []Route{{Pattern: "/me", Rule: Rule{Challenge: true}}}})
	h := s.hold("token")
	w := h.get(true)
	expect(t, "no challenge", w, proof.Stale)
	h.challenge = w.Header().Get(httpsig.ChallengeField)
	if len(h.challenge) != 16 || !strings.Contains(w.Header().Get("WWW-Authenticate"), `challenge="`+h.challenge+`"`) {
		t.Fatalf("challenge %q, %q", h.challenge, w.Header().Get("WWW-Authenticate"))
	}
	w = h.get(true)
	expect(t, "the challenge", w, "")
	if w.Header().Get(httpsig.ChallengeField) != h.challenge {
		t.Error("an answer does not say the challenge")
	}
	s.pass(4 * time.Minute)
	expect(t, "minutes later", h.get(false), "")
	s.pass(7 * time.Minute)
	expect(t, "a quarter of an hour later", h.get(true), proof.Stale)
	expect(t, "a hw-sign client", s.login("weak", "bob").introduce(), "")
	r := h.request("GET", "/me?x=1", "", false)
	r.Header.Set(httpsig.ChallengeField, "AAAAAAAAAAAAAAAA")
	expect(t, "another challenge put in", s.serve(r), proof.Stale)
}

func TestStreamedBody(t *testing.T) {
	s := newSite(t, Config{Routes: []Route{{Pattern: "/stream", Rule: Rule{Body: StreamBody}}, {Pattern: "/small", Rule: Rule{Body: 4}}}})
	h := s.hold("token")
	expect(t, "introduction", h.get(true), "")
	var read error
	s.next = s.Protect(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, read = io.Copy(w, r.Body)
	}))
	expect(t, "honest", s.serve(h.request("POST", "/stream", strings.Repeat("x", 3<<20), false)), "")
	if read != nil {
		t.Error(read)
	}
	r := h.request("POST", "/stream", "the body", false)
	r.Body = io.NopCloser(strings.NewReader("the bodY"))
	expect(t, "another body", s.serve(r), "")
	if read == nil {
		t.Error("the app did not learn that the body was another one")
	}
	expect(t, "buffered up to a limit", s.serve(h.request("POST", "/small", "four", false)), "")
	expect(t, "over it", s.serve(h.request("POST", "/small", "fiver", false)), proof.BodyLarge)
	expect(t, "over the default", s.serve(h.request("POST", "/", strings.Repeat("x", 1<<20+1), false)), proof.BodyLarge)
}

// Apps that read no further than they must do not miss that a body was another
// one.
func TestStreamedBodyIsReadByHalves(t *testing.T) {
	const honest, evil = `{"amount":"1"}`, `{"amount":"999"}`
	readers := map[string]func(r *http.Request) error{
		"a JSON decoder": func(r *http.Request) error { return json.NewDecoder(r.Body).Decode(new(any)) },
		"as many bytes as promised": func(r *http.Request) error {
			if r.ContentLength < 0 {
				return json.NewDecoder(r.Body).Decode(new(any))
			}
			_, err := io.ReadFull(r.Body, make([]byte, r.ContentLength))
			return err
		},
		"byte by byte": func(r *http.Request) error { _, err := io.ReadAll(iotest.OneByteReader(r.Body)); return err },
		"with its end": func(r *http.Request) error { _, err := io.ReadAll(iotest.DataErrReader(r.Body)); return err },
		"all":          func(r *http.Request) error { _, err := io.ReadAll(r.Body); return err },
	}
	for name, read := range readers {
		for _, body := range []string{honest, evil, `{"amount":"2"}`} {
			for _, chunked := range []bool{false, true} {
				s := newSite(t, Config{Rule: Rule{Body: StreamBody}})
				h := s.hold("token")
				var got error
				s.next = s.Protect(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { got = read(r) }))
				r := h.request("POST", "/transfer", honest, true)
				r.Body, r.ContentLength = io.NopCloser(iotest.HalfReader(strings.NewReader(body))), int64(len(body))
				if chunked {
					r.ContentLength = -1
				}
				if w := s.serve(r); w.Code != 200 {
					t.Fatal(w.Code, w.Body)
				}
				if (got == nil) != (body == honest) {
					t.Errorf("%s, chunked %v, reads %s: %v", name, chunked, body, got)
				}
			}
		}
	}
	for size := range 5 {
		text := []byte("four")[:min(size, 4)]
		if err := iotest.TestReader(incoming.NewDigestedBody(io.NopCloser(bytes.NewReader(text)), sha256.Sum256(text)), text); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestObservedBody(t *testing.T) {
	for _, limit := range []int64{StreamBody, 0} {
		s := newSite(t, Config{Rule: Rule{Mode: Observe, Body: limit}})
		h := s.hold("token")
		r := h.request("POST", "/transfer", "amount=1", true)
		r.Body = io.NopCloser(strings.NewReader("amount=9"))
		var got []byte
		var err error
		s.next = s.Protect(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { got, err = io.ReadAll(r.Body) }))
		s.serve(r)
		if err != nil || string(got) != "amount=9" {
			t.Errorf("the app reads %q, %v", got, err)
		}
		if want := map[int64]string{StreamBody: "would break off", 0: "would refuse"}[limit]; !strings.Contains(s.log.String(), want) {
			t.Errorf("not logged: %s", s.log)
		}
	}
	s := newSite(t, Config{Rule: Rule{Mode: Observe}, Routes: []Route{{"/admin/", Rule{Mode: Observe, Challenge: true}}}})
	expect(t, "a path that can be read in two ways", s.serve(httptest.NewRequest("GET", "/admin%2Fx", nil)), "")
	if !strings.Contains(s.log.String(), "would refuse") {
		t.Errorf("not logged: %s", s.log)
	}
}

// A length that is promised costs nothing before the bytes are there, and no
// limit is beyond counting.
func TestBodyLimits(t *testing.T) {
	s := newSite(t, Config{Rule: Rule{Body: math.MaxInt64}})
	h := s.hold("token")
	r := h.request("POST", "/x", "a body", true)
	r.ContentLength = -1
	expect(t, "an honest chunked body", s.serve(r), "")
	r = h.request("POST", "/x", "a body", true)
	r.ContentLength = math.MaxInt64
	expect(t, "a length beyond all", s.serve(r), proof.BodyLarge)

	large := httptest.NewRequest("POST", "/login", eternal{})
	large.ContentLength = 512 << 20
	var before, during runtime.MemStats
	runtime.ReadMemStats(&before)
	stop := errors.New("no more")
	large.Body = io.NopCloser(readFunc(func([]byte) (int, error) {
		runtime.ReadMemStats(&during)
		return 0, stop
	}))
	if _, err := incoming.HashBody(large, 1<<30); !errors.Is(err, stop) {
		t.Error(err)
	}
	if n := during.TotalAlloc - before.TotalAlloc; n > 16<<20 {
		t.Errorf("%d MiB for a body of which no byte has come", n>>20)
	}
}

type eternal struct{}

func (eternal) Read(p []byte) (int, error) { return len(p), nil }

type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

// A key that was introduced on the strong wire proves nothing on the weak one.
func TestKeyOfAnotherWire(t *testing.T) {
	s := newSite(t, Config{})
	h := s.hold("token")
	n := hwsign.BoundToken
	for _, sign := range []func(v string) string{
		func(v string) string { return b64(h.mac.Append(nil, []byte(v))) },
		func(v string) string {
			h.delegateSigning()
			expect(t, "introduction", h.get(true), "")
			return sign(t, h.signing, []byte(v))
		},
	} {
		expect(t, "introduction", h.get(true), "")
		v := s.value()
		r := httptest.NewRequest("DELETE", "/anything?x=y", strings.NewReader("any body"))
		sig := sign(v)
		r.Header.Set("Authorization", "Bearer token")
		r.Header.Set(n.EphemeralID, thumbprint(h.public))
		r.Header.Set(n.Data, v)
		r.Header.Set(n.DataSig, sig)
		expect(t, "on hw-sign", s.serve(r), proof.KeyUnknown)
	}
}

// Policy body-hash takes the signed value for the body on hw-sign only.
func TestBodyIsNotTheSignatureBase(t *testing.T) {
	s := newSite(t, Config{Rule: Rule{Freshness: BodyHash}})
	h := s.hold("token")
	expect(t, "honest", s.serve(h.request("POST", "/transfer", "amount=1", true)), "")
	r := h.request("POST", "/transfer", "amount=1", true)
	m := incoming.Message(r)
	m.Session = h.session
	var p proof.Proof
	if found, err := (httpsig.Wire{}).Extract(&m, &p); !found || err != nil {
		t.Fatal(found, err)
	}
	base := string(p.Signed)
	r.Body, r.ContentLength = io.NopCloser(strings.NewReader(base)), int64(len(base))
	expect(t, "the signature base", s.serve(r), proof.BodyDiffer)
}

func TestPathAsSent(t *testing.T) {
	for _, target := range []string{"/", "/a|b", "/a^b", "/a%7Cb", "/[a]", "/a%2Fb", "/a%2fb", "//a", "/a b"} {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader("GET " + target + " HTTP/1.1\r\nHost: example.com\r\n\r\n")))
		if target == "/a b" {
			if err == nil {
				t.Errorf("%q is a target", target)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if m := incoming.Message(r); m.Path != target {
			t.Errorf("%q became %q", target, m.Path)
		}
	}
	// What a middleware made of the path is what the app will see.
	changed := &http.Request{URL: &url.URL{Path: "/admin", RawPath: "/a|b"}}
	if m := incoming.Message(changed); m.Path != "/admin" {
		t.Errorf("a changed path is taken for %q", m.Path)
	}
}

func TestWellKnown(t *testing.T) {
	for _, session := range []Session{Bearer(), Cookie("sid")} {
		s := newSite(t, Config{Session: session, Rule: Rule{Mode: Require}})
		w := s.serve(httptest.NewRequest("GET", httpsig.WellKnownPath, nil))
		var doc struct{ Key, Session, Cookie, Challenge string }
		if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil || w.Code != 200 {
			t.Fatal(w.Code, w.Body)
		}
		if server, _, err := httpsig.ParseServer(doc.Key); err != nil || server.Lease != 15*time.Minute {
			t.Errorf("%q: %v", doc.Key, err)
		}
		if want := map[bool]string{true: "cookie", false: "bearer"}[session.cookie != ""]; doc.Session != want || doc.Cookie != session.cookie || len(doc.Challenge) != 16 {
			t.Errorf("%+v", doc)
		}
		if w := s.serve(httptest.NewRequest("POST", httpsig.WellKnownPath, nil)); w.Code != 405 {
			t.Error(w.Code)
		}
	}
}

// A browser's script learns which session its cookie is the token of, and by which
// key; nobody learns more from a cookie that is none.
func TestWellKnownNamesSession(t *testing.T) {
	s := newSite(t, Config{Session: Cookie("sid")})
	h := s.hold("token")
	if err := s.Bind(httptest.NewRecorder(), httptest.NewRequest("POST", "/login", nil), "unbound", "bob"); err != nil {
		t.Fatal(err)
	}
	ask := func(cookie string) (id, device string) {
		t.Helper()
		r := httptest.NewRequest("GET", httpsig.WellKnownPath, nil)
		if cookie != "" {
			r.Header.Set("Cookie", cookie)
		}
		w := s.serve(r)
		var doc struct{ ID, Device string }
		if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil || w.Code != 200 {
			t.Fatal(w.Code, w.Body)
		}
		return doc.ID, doc.Device
	}
	public, err := proof.NewPublicKey(proof.ECDSAP256, &h.device.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	if id, device := ask("lang=en; sid=token"); id != httpsig.FormatSession(h.session) || device != thumbprint(public) {
		t.Errorf("%q, %q", id, device)
	}
	if err := s.Rebind(t.Context(), http.Header{}, "token", "next"); err != nil {
		t.Fatal(err)
	}
	if id, device := ask("sid=next"); id != httpsig.FormatSession(s.cfg.Session.ID("next")) || device != thumbprint(public) {
		t.Errorf("%q, %q", id, device)
	}
	for _, cookie := range []string{"", "sid=", "sid=unbound", "sid=unknown", "sid=token; sid=next", "other=token"} {
		if id, device := ask(cookie); id+device != "" {
			t.Errorf("%q: %q, %q", cookie, id, device)
		}
	}
	if err := s.Revoke(t.Context(), h.session); err != nil {
		t.Fatal(err)
	}
	if id, device := ask("sid=token"); id+device != "" {
		t.Errorf("%q, %q of a session that is over", id, device)
	}
}
