package limpet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/hwsign"
	"github.com/limpet-auth/limpet/store/memstore"
)

func TestBindIntroduceProve(t *testing.T) {
	s := newSite(t, Config{})
	d := s.login("token", "alice")
	expect(t, "introduction", d.introduce(), "")
	for range 3 {
		expect(t, "proof", d.get(), "")
	}
	b := s.seen
	if b == nil || b.User != "alice" || b.Level != Software || b.Session != Bearer().ID("token") || len(b.Key) != 43 {
		t.Errorf("the app was told %+v", b)
	}
	if b.Created.IsZero() || !b.Expires.Equal(b.Created.Add(30*24*time.Hour)) {
		t.Errorf("created %v, expires %v", b.Created, b.Expires)
	}
	expect(t, "no proof", d.send("GET", "/", "", nil), proof.Required)
	if s.seen != nil {
		t.Error("a refused request reached the app")
	}
}

func TestModes(t *testing.T) {
	for _, tt := range []struct {
		mode                           Mode
		anonymous, none, bound, proven proof.Reason
	}{
		{Prefer, "", "", proof.Required, ""},
		{Require, proof.SessionRequired, proof.SessionUnbound, proof.Required, ""},
		{Observe, "", "", "", ""},
	} {
		t.Run(tt.mode.String(), func(t *testing.T) {
			s := newSite(t, Config{Rule: Rule{Mode: tt.mode}})
			expect(t, "anonymous", (&device{site: s}).send("GET", "/", "", nil), tt.anonymous)
			expect(t, "unbound", (&device{site: s, token: "unbound"}).send("GET", "/", "", nil), tt.none)
			d := s.login("bound", "alice")
			expect(t, "bound, no proof", d.send("GET", "/", "", nil), tt.bound)
			if s.seen != nil && (s.seen.User != "" || s.seen.Level != None) {
				t.Errorf("identity without a proof: %+v", s.seen)
			}
			expect(t, "bound, proof", d.introduce(), tt.proven)
			if s.seen == nil || s.seen.User != "alice" {
				t.Errorf("the app was told %+v", s.seen)
			}
		})
	}
}

func TestObserveLogsWhatItWouldRefuse(t *testing.T) {
	s := newSite(t, Config{Rule: Rule{Mode: Observe}})
	d := s.login("secret-token", "alice")
	s.log.Reset()
	d.send("GET", "/path?query=private", "", nil)
	log := s.log.String()
	for _, want := range []string{"would refuse", "reason=proof_required", "path=/path"} {
		if !strings.Contains(log, want) {
			t.Errorf("log lacks %q: %s", want, log)
		}
	}
	for _, secret := range []string{"secret-token", "private", "alice"} {
		if strings.Contains(log, secret) {
			t.Errorf("log has %q: %s", secret, log)
		}
	}
}

func TestRoutes(t *testing.T) {
	s := newSite(t, Config{
		Rule: Rule{Mode: Prefer, Freshness: Timestamp},
		Routes: []Route{
			{"POST /transfer", Rule{Mode: Require, Freshness: BodyHash}},
			{"/admin/", Rule{Mode: Require, Freshness: StrictNonce, MinLevel: Hardware}},
		},
	})
	d := s.login("token", "alice")
	d.introduce()
	old := d.proof(s.value())
	expect(t, "timestamp route", d.send("GET", "/", "", old), "")
	expect(t, "timestamp route again", d.send("GET", "/", "", old), "")
	body := sha256.Sum256([]byte("amount=1"))
	hashed := d.proof(fmt.Sprintf("%d-%x", s.time().Unix(), body))
	w := d.send("POST", "/transfer", "amount=1", hashed)
	expect(t, "hashed body", w, "")
	if w.Body.String() != "amount=1" {
		t.Errorf("the app read %q", w.Body)
	}
	expect(t, "another body", d.send("POST", "/transfer", "amount=9", hashed), proof.BodyDiffer)
	expect(t, "GET of the same path", d.send("GET", "/transfer", "", d.proof(s.value())), "")
	expect(t, "software key on a hardware route", d.send("GET", "/admin/x", "", d.proof(s.value())), proof.LevelTooLow)
	if w := d.send("GET", "/admin/x", "", d.proof(s.value())); w.Code != 403 {
		t.Errorf("status %d, want 403", w.Code)
	}
	expect(t, "unclean path", d.send("GET", "//admin//x", "", nil), proof.Required)
	expect(t, "unbound session", (&device{site: s, token: "x"}).send("GET", "/admin/x", "", nil), proof.SessionUnbound)
}

func TestRouteSpellings(t *testing.T) {
	s := newSite(t, Config{Routes: []Route{{"/admin/", Rule{Mode: Require}}, {"admin.example/", Rule{Mode: Require}}}})
	stranger := &device{site: s}
	for _, target := range []string{"/admin/x", "/%61dmin/x", "//admin//x", "/admin%2Fx", "/admin%2fx", "/admin/..%2Fx",
		"http://admin.example/", "http://ADMIN.example/", "http://admin.example:8080/", "http://admin.example./"} {
		if w := stranger.send("GET", target, "", nil); w.Code == 200 {
			t.Errorf("%s escapes its route's rule", target)
		}
	}
	for _, target := range []string{"/", "/x", "/a%2Fb", "http://other.example/"} {
		expect(t, target, stranger.send("GET", target, "", nil), "")
	}
}

// A request whose body takes long is judged when it is there.
func TestSlowBody(t *testing.T) {
	s := newSite(t, Config{Rule: Rule{Freshness: BodyHash}})
	d := s.login("token", "alice")
	value := func() string { return fmt.Sprintf("%d-%x", s.time().Unix(), sha256.Sum256([]byte("x"))) }
	d.ephemeral = newECDH(t)
	w := d.send("POST", "/", "x", d.introduction(d.ephemeral, value()))
	expect(t, "introduction", w, "")
	d.take(w)
	for name, meanwhile := range map[string]func(){
		"a day passes": func() { s.pass(24 * time.Hour) },
		"the session is revoked": func() {
			if err := s.Revoke(context.Background(), Bearer().ID("token")); err != nil {
				t.Error(err)
			}
		},
	} {
		r := httptest.NewRequest("POST", "/", &lateBody{strings.NewReader("x"), meanwhile})
		r.Header = d.proof(value())
		r.Header.Set("Authorization", "Bearer token")
		w := httptest.NewRecorder()
		s.next.ServeHTTP(w, r)
		if w.Code != 401 {
			t.Errorf("%s: %d", name, w.Code)
		}
	}
}

type lateBody struct {
	io.Reader
	meanwhile func()
}

func (l *lateBody) Read(b []byte) (int, error) {
	if l.meanwhile != nil {
		l.meanwhile()
		l.meanwhile = nil
	}
	return l.Reader.Read(b)
}

func TestObserveTouchesNothing(t *testing.T) {
	s := newSite(t, Config{Session: Cookie("sid"), Rule: Rule{Mode: Observe, Freshness: BodyHash}, MaxBody: 10})
	stranger := &device{site: s}
	w := stranger.send("GET", "/", "", http.Header{"Cookie": {"sid=a; sid=b"}})
	if w.Code != 200 || !strings.Contains(s.log.String(), "would refuse") {
		t.Errorf("two cookies: %d, log %q", w.Code, s.log)
	}
	d := &device{site: s, token: "abc", key: newECDSA(t)}
	if err := d.bind("alice"); err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest("POST", "/", io.MultiReader(strings.NewReader("0123456789abcdef"))) // length unknown
	r.Header = d.introduction(newECDH(t), s.value())
	r.Header.Set("Cookie", "sid=abc")
	rec := httptest.NewRecorder()
	s.next.ServeHTTP(rec, r)
	if rec.Body.String() != "0123456789abcdef" {
		t.Errorf("the app reads %q", rec.Body)
	}
}

func TestRequestWithoutBody(t *testing.T) {
	s := newSite(t, Config{Rule: Rule{Freshness: BodyHash}})
	d := s.login("token", "alice")
	r, err := http.NewRequest("GET", "/", nil) // as adapters make them: Body is nil
	if err != nil {
		t.Fatal(err)
	}
	r.Header = d.introduction(newECDH(t), fmt.Sprintf("%d-%x", s.time().Unix(), sha256.Sum256(nil)))
	r.Header.Set("Authorization", "Bearer token")
	w := httptest.NewRecorder()
	s.Protect(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})).ServeHTTP(w, r)
	expect(t, "no body", w, "")
}

// Replays of a request that a route admits twice cost the device nothing.
func TestReplaysDoNotShutTheDeviceOut(t *testing.T) {
	s := newSite(t, Config{Rule: Rule{Freshness: Timestamp}})
	d := s.login("token", "alice")
	captured := d.introduction(newECDH(t), s.value())
	for range 100 {
		expect(t, "introduction", d.send("GET", "/", "", captured), "")
	}
	for range slots - 1 {
		expect(t, "the device itself", d.introduce(), "")
	}
}

func TestBodyLimit(t *testing.T) {
	s := newSite(t, Config{Rule: Rule{Freshness: BodyHash}, MaxBody: 10})
	d := s.login("token", "alice")
	d.ephemeral = newECDH(t)
	sum := sha256.Sum256([]byte("0123456789"))
	w := d.send("POST", "/", "0123456789", d.introduction(d.ephemeral, fmt.Sprintf("%x", sum)))
	expect(t, "body at the limit", w, "")
	d.take(w)
	expect(t, "body over the limit", d.send("POST", "/", "0123456789a", d.proof(fmt.Sprintf("%x", sum))), proof.BodyLarge)
	r := httptest.NewRequest("POST", "/", io.MultiReader(strings.NewReader("0123456789a"))) // length unknown
	for name, v := range d.proof(fmt.Sprintf("%x", sum)) {
		r.Header[name] = v
	}
	r.Header.Set("Authorization", "Bearer token")
	rec := httptest.NewRecorder()
	s.next.ServeHTTP(rec, r)
	expect(t, "chunked body over the limit", rec, proof.BodyLarge)
	if rec.Code != 413 {
		t.Errorf("status %d, want 413", rec.Code)
	}
}

func TestReplays(t *testing.T) {
	for name, store := range map[string]Store{"spender": memstore.New(nil), "four methods": plainStore{memstore.New(nil)}} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, Config{Store: store})
			d := s.login("token", "alice")
			d.ephemeral = newECDH(t)
			intro := d.introduction(d.ephemeral, s.value())
			w := d.send("GET", "/", "", intro)
			d.take(w)
			expect(t, "replayed introduction", d.send("GET", "/", "", intro), proof.NonceSpent)
			h := d.proof(s.value())
			expect(t, "proof", d.send("GET", "/", "", h), "")
			expect(t, "replay", d.send("GET", "/", "", h), proof.NonceSpent)
			expect(t, "moved", d.send("DELETE", "/other?q=1", "body", h), proof.NonceSpent)
			untimed := d.proof(`{"amount":1}`)
			expect(t, "value without a time", d.send("POST", "/", "", untimed), "")
			expect(t, "replay of it", d.send("POST", "/", "", untimed), proof.NonceSpent)
			s.pass(10 * time.Minute)
			expect(t, "and ten minutes later", d.send("POST", "/", "", untimed), proof.NonceSpent)
		})
	}
}

// plainStore hides what memstore offers beyond Store.
type plainStore struct{ Store }

// Only a valid proof spends its value: else a stranger spends others' values.
func TestForgedProofSpendsNothing(t *testing.T) {
	s := newSite(t, Config{})
	d := s.login("token", "alice")
	d.introduce()
	h := d.proof(s.value())
	forged := h.Clone()
	forged.Set(hwsign.BoundToken.DataSig, b64(make([]byte, 32)))
	expect(t, "forged", d.send("GET", "/", "", forged), proof.Invalid)
	expect(t, "honest", d.send("GET", "/", "", h), "")
}

func TestConcurrentReplayIsAdmittedOnce(t *testing.T) {
	s := newSite(t, Config{})
	d := s.login("token", "alice")
	d.introduce()
	admit := s.Protect(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	for range 20 {
		h := d.proof(s.value())
		var admitted atomic.Int32
		var wg sync.WaitGroup
		for range 32 {
			wg.Go(func() {
				r := httptest.NewRequest("GET", "/", nil)
				r.Header = h.Clone()
				r.Header.Set("Authorization", "Bearer token")
				w := httptest.NewRecorder()
				admit.ServeHTTP(w, r)
				if w.Code == 200 {
					admitted.Add(1)
				}
			})
		}
		wg.Wait()
		if admitted.Load() != 1 {
			t.Fatalf("admitted %d times", admitted.Load())
		}
	}
}

func TestThief(t *testing.T) {
	s := newSite(t, Config{})
	alice := s.login("alices", "alice")
	alice.introduce()
	mallory := s.login("mallorys", "mallory")
	mallory.introduce()

	thief := *mallory
	thief.token = "alices"
	expect(t, "own ephemeral key, stolen token", thief.get(), proof.KeyUnknown)
	expect(t, "own delegation, stolen token", thief.introduce(), proof.Invalid)
	expect(t, "token alone", thief.send("GET", "/", "", nil), proof.Required)
	other := *alice
	other.token = "mallorys"
	expect(t, "alice's proof in mallory's session", other.get(), proof.KeyUnknown)
	expect(t, "alice's delegation in mallory's session", other.send("GET", "/", "", alice.introduction(newECDH(t), s.value())), proof.Invalid)

	// Two sessions with one device key are still two.
	twin := &device{site: s, token: "twin", key: alice.key}
	if err := twin.bind("alice"); err != nil {
		t.Fatal(err)
	}
	h := alice.introduction(newECDH(t), s.value())
	expect(t, "introduction", alice.send("GET", "/", "", h), "")
	moved := *alice
	moved.token = "twin"
	expect(t, "ephemeral key in the twin session", moved.get(), proof.KeyUnknown)
}

func TestRevoke(t *testing.T) {
	ctx := context.Background()
	s := newSite(t, Config{})
	one, two, other := s.login("1", "alice"), s.login("2", "alice"), s.login("3", "bob")
	for _, d := range []*device{one, two, other} {
		d.introduce()
	}
	if err := s.Revoke(ctx, Bearer().ID("1")); err != nil {
		t.Fatal(err)
	}
	expect(t, "revoked", one.get(), proof.SessionEnded)
	expect(t, "revoked, without a proof", one.send("GET", "/", "", nil), proof.SessionEnded)
	expect(t, "the same user's other session", two.get(), "")
	if err := s.Revoke(ctx, Bearer().ID("1")); err != nil {
		t.Errorf("second time: %v", err)
	}
	if err := s.Revoke(ctx, Bearer().ID("unknown")); !errors.Is(err, ErrNoSession) {
		t.Errorf("unknown session: %v", err)
	}
	if n, err := s.RevokeUser(ctx, "alice"); n != 1 || err != nil {
		t.Errorf("alice's sessions: %d, %v", n, err)
	}
	expect(t, "revoked with the user", two.get(), proof.SessionEnded)
	expect(t, "another user", other.get(), "")
	var left []string
	if err := s.Sessions(ctx, func(b *Binding) bool { left = append(left, b.User); return true }); err != nil || len(left) != 1 || left[0] != "bob" {
		t.Errorf("sessions left: %v, %v", left, err)
	}
	if err := one.bind("alice"); !errors.Is(err, ErrBound) {
		t.Errorf("binding a revoked token again: %v", err)
	}
}

// A session once bound never works unbound, also after its binding is over.
func TestBoundStaysBound(t *testing.T) {
	s := newSite(t, Config{Lifetime: time.Hour})
	d := s.login("token", "alice")
	d.introduce()
	s.pass(2 * time.Hour)
	expect(t, "after the lifetime", d.send("GET", "/", "", nil), proof.SessionEnded)
	expect(t, "with a new key", d.introduce(), proof.SessionEnded)
	thief := &device{site: s, token: "token", key: newECDSA(t)}
	if err := thief.bind("mallory"); !errors.Is(err, ErrBound) {
		t.Errorf("binding to another key: %v", err)
	}
}

func TestRevokeUserGoesOn(t *testing.T) {
	ctx := context.Background()
	s := newSite(t, Config{})
	for i := range 20 {
		s.login(fmt.Sprint(i), "alice")
	}
	if err := s.store.Put(ctx, bindingKey(Bearer().ID("7")), []byte{99}, time.Hour); err != nil {
		t.Fatal(err)
	}
	if n, err := s.RevokeUser(ctx, "alice"); n != 19 || err == nil {
		t.Errorf("with one damaged record: %d, %v", n, err)
	}
}

// The end of a session is remembered beyond the day it would have ended.
func TestRevocationOutlivesTheSession(t *testing.T) {
	store := ttlStore{memstore.New(nil), map[string]time.Duration{}}
	s := newSite(t, Config{Store: store, Lifetime: 3 * 365 * 24 * time.Hour})
	s.login("token", "alice")
	if err := s.Revoke(context.Background(), Bearer().ID("token")); err != nil {
		t.Fatal(err)
	}
	if ttl := store.ttl[bindingKey(Bearer().ID("token"))]; ttl < s.cfg.Lifetime+retention-time.Minute {
		t.Errorf("forgotten after %v", ttl)
	}
}

func TestLevelNone(t *testing.T) {
	ctx := context.Background()
	s := newSite(t, Config{Routes: []Route{{"/bound", Rule{MinLevel: Software}}}})
	r := httptest.NewRequest("POST", "/login", nil)
	if err := s.Bind(httptest.NewRecorder(), r, "plain", "alice"); err != nil {
		t.Fatal(err)
	}
	d := &device{site: s, token: "plain"}
	expect(t, "no device key", d.send("GET", "/", "", nil), "")
	if s.seen.User != "alice" || s.seen.Level != None || s.seen.Key != "" {
		t.Errorf("the app was told %+v", s.seen)
	}
	expect(t, "a route that wants a key", d.send("GET", "/bound", "", nil), proof.LevelTooLow)
	if err := s.Revoke(ctx, Bearer().ID("plain")); err != nil {
		t.Fatal(err)
	}
	expect(t, "revoked", d.send("GET", "/", "", nil), proof.SessionEnded)
}

func TestBindRefusesBadInput(t *testing.T) {
	s := newSite(t, Config{})
	r := httptest.NewRequest("POST", "/login", nil)
	for _, token := range []string{"", strings.Repeat("x", maxToken+1), "two words", "a,b", "tab\t"} {
		if err := s.Bind(httptest.NewRecorder(), r, token, "alice"); err == nil {
			t.Errorf("a token of %d bytes is bound", len(token))
		}
	}
	if err := s.Bind(httptest.NewRecorder(), r, "token", strings.Repeat("x", maxUser+1)); err == nil {
		t.Error("a very long user name is bound")
	}
	r.Header.Set(hwsign.BoundToken.DeviceKey, "AAAA")
	r.Header.Set(hwsign.BoundToken.DeviceKeyType, "ecdsa")
	err := s.Bind(httptest.NewRecorder(), r, "token", "alice")
	var refusal *proof.Refusal
	if !errors.As(err, &refusal) || refusal.Reason != proof.Malformed {
		t.Errorf("bad device key: %v", err)
	}
	w := httptest.NewRecorder()
	Refuse(w, err)
	expect(t, "bad device key", w, proof.Malformed)
	if w.Code != 400 {
		t.Errorf("status %d, want 400", w.Code)
	}
}

// brokenStore fails when told to.
type brokenStore struct {
	Store
	down atomic.Bool
}

var errDown = errors.New("store: connection refused to 10.0.0.1")

func (b *brokenStore) Get(ctx context.Context, key string) ([]byte, bool, error) {
	if b.down.Load() {
		return nil, false, errDown
	}
	return b.Store.Get(ctx, key)
}

func (b *brokenStore) Add(ctx context.Context, key string, val []byte, ttl time.Duration) (bool, error) {
	if b.down.Load() {
		return false, errDown
	}
	return b.Store.Add(ctx, key, val, ttl)
}

// A client that gets 401 drops its session: an outage must not cost it that.
func TestStoreOutageIs503(t *testing.T) {
	store := &brokenStore{Store: plainStore{memstore.New(nil)}}
	s := newSite(t, Config{Store: store})
	d := s.login("token", "alice")
	d.introduce()
	store.down.Store(true)
	w := d.get()
	expect(t, "store down", w, proof.Unavailable)
	if w.Code != 503 || w.Header().Get("Retry-After") == "" || strings.Contains(w.Body.String(), "10.0.0.1") {
		t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
	}
	if err := d.bind("alice"); reasonOf(err) != proof.Unavailable {
		t.Errorf("bind: %v", err)
	}
	if err := s.Revoke(context.Background(), Bearer().ID("token")); reasonOf(err) != proof.Unavailable {
		t.Errorf("revoke: %v", err)
	}
	store.down.Store(false)
	expect(t, "store back", d.get(), "")
}

func reasonOf(err error) proof.Reason {
	var r *proof.Refusal
	if errors.As(err, &r) {
		return r.Reason
	}
	return ""
}

// Two servers on one store, with one seal key: each takes what the other gave.
func TestTwoServers(t *testing.T) {
	store, seal := memstore.New(nil), bytes.Repeat([]byte{7}, 32)
	a, b := newSite(t, Config{Store: store, SealKey: seal}), newSite(t, Config{Store: store, SealKey: seal})
	d := a.login("token", "alice")
	d.introduce()
	expect(t, "here", d.get(), "")
	there := *d
	there.site = b
	expect(t, "there", there.get(), "")
	h := d.proof(a.value())
	expect(t, "spent here", d.send("GET", "/", "", h), "")
	expect(t, "replayed there", there.send("GET", "/", "", h), proof.NonceSpent)
	if err := a.Revoke(context.Background(), Bearer().ID("token")); err != nil {
		t.Fatal(err)
	}
	expect(t, "revoked here", there.get(), proof.SessionEnded)

	// With another seal key, as after a restart without one: a new introduction.
	c := newSite(t, Config{Store: store})
	d2 := a.login("token2", "alice")
	d2.introduce()
	elsewhere := *d2
	elsewhere.site = c
	expect(t, "another seal key", elsewhere.get(), proof.KeyUnknown)
	expect(t, "introduces anew", elsewhere.introduce(), "")
	expect(t, "and proves", elsewhere.get(), "")
}

// A stolen store is not a stolen session: no token and no HMAC key in it.
func TestStoreHoldsNoSecret(t *testing.T) {
	store := memstore.New(nil)
	s := newSite(t, Config{Store: store})
	d := s.login("very-secret-token", "alice")
	d.introduce()
	store.List(context.Background(), "", func(key string, val []byte) bool {
		for _, secret := range [][]byte{[]byte("very-secret-token"), d.secret} {
			if bytes.Contains(val, secret) || strings.Contains(key, string(secret)) {
				t.Errorf("%s holds a secret", key)
			}
		}
		return true
	})
}

// A record that cannot be read is an outage, not an unbound session.
func TestDamagedRecordFailsClosed(t *testing.T) {
	ctx := context.Background()
	s := newSite(t, Config{})
	d := s.login("token", "alice")
	d.introduce()
	rec, _, _ := s.store.Get(ctx, bindingKey(Bearer().ID("token")))
	for i := range rec {
		bad := bytes.Clone(rec[:i])
		if err := s.store.Put(ctx, bindingKey(Bearer().ID("token")), bad, time.Hour); err != nil {
			t.Fatal(err)
		}
		expect(t, fmt.Sprintf("binding cut at %d", i), d.get(), proof.Unavailable)
	}
}

func TestNewRefusesNonsense(t *testing.T) {
	store := memstore.New(nil)
	for name, cfg := range map[string]Config{
		"no session":     {Store: store},
		"no store":       {Session: Bearer()},
		"short seal key": {Session: Bearer(), Store: store, SealKey: []byte("short")},
		"long lease":     {Session: Bearer(), Store: store, Lease: 48 * time.Hour},
		"short lease":    {Session: Bearer(), Store: store, Lease: time.Millisecond},
		"lifetime":       {Session: Bearer(), Store: store, Lifetime: -1},
		"long lifetime":  {Session: Bearer(), Store: store, Lifetime: 1<<63 - 1},
		"body":           {Session: Bearer(), Store: store, MaxBody: -1},
		"mode":           {Session: Bearer(), Store: store, Rule: Rule{Mode: 9}},
		"freshness":      {Session: Bearer(), Store: store, Rule: Rule{Freshness: 9}},
		"level":          {Session: Bearer(), Store: store, Rule: Rule{MinLevel: "gold"}},
		"pattern":        {Session: Bearer(), Store: store, Routes: []Route{{Pattern: "GET"}}},
		"route's level":  {Session: Bearer(), Store: store, Routes: []Route{{"/", Rule{MinLevel: "gold"}}}},
		"same pattern":   {Session: Bearer(), Store: store, Routes: []Route{{"/a", Rule{}}, {"/a", Rule{}}}},
	} {
		if _, err := New(cfg); err == nil || !strings.HasPrefix(err.Error(), "limpet: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestGuardDoesNotPrintItsKey(t *testing.T) {
	s := newSite(t, Config{SealKey: bytes.Repeat([]byte("S"), 32)})
	var out bytes.Buffer
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "guard", s.Guard)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "guard", s.Guard)
	fmt.Fprintf(&out, "%v %+v %#v %s", s.Guard, s.Guard, s.Guard, s.Guard)
	for _, secret := range []string{"SSSS", "83 83 83", "0x53, 0x53", "U1NTU1"} {
		if strings.Contains(out.String(), secret) {
			t.Errorf("the seal key is in %s", out.String())
		}
	}
}
