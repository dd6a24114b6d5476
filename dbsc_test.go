package limpet

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/dbsc"
	"github.com/limpet-auth/limpet/proof/httpsig"
	"github.com/limpet-auth/limpet/store/memstore"
)

// chromium is a browser that keeps a key for a session.
type chromium struct {
	site      *site
	token     string // the app's cookie
	bound     string // ours; "" if there is none
	key       *ecdsa.PrivateKey
	challenge string
	id        string // of the session, as the server calls it
}

func newBrowserSite(t testing.TB, cfg Config) *site {
	cfg.Session, cfg.Browsers = Cookie("sid"), true
	return newSite(t, cfg)
}

// browse logs in with a browser, which has not registered its key yet.
func (s *site) browse(token, user string) *chromium {
	s.t.Helper()
	c := &chromium{site: s, token: token, key: newECDSA(s.t)}
	r, w := httptest.NewRequest("POST", "/login", nil), httptest.NewRecorder()
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	if err := s.Bind(w, r, token, user); err != nil {
		s.t.Fatal(err)
	}
	offer := w.Header().Get(dbsc.RegistrationField)
	_, rest, ok := strings.Cut(offer, `(ES256 RS256);path="/.well-known/limpet/dbsc";challenge="`)
	if c.challenge = strings.TrimSuffix(rest, `"`); !ok {
		s.t.Fatalf("offered %q", offer)
	}
	return c
}

func (c *chromium) request(method, target string) *http.Request {
	r := httptest.NewRequest(method, target, nil)
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	cookie := "other=x"
	if c.token != "" {
		cookie += "; sid=" + c.token
	}
	if c.bound != "" {
		cookie += "; " + boundCookie.Name + "=" + c.bound
	}
	r.Header.Set("Cookie", cookie)
	return r
}

// send sends a JWT to where keys are registered and cookies refreshed.
func (c *chromium) send(jwt string) *httptest.ResponseRecorder {
	r := c.request("POST", "https://app.test"+dbscPath)
	if jwt != "" {
		r.Header.Set(dbsc.ResponseField, jwt)
	}
	if c.id != "" {
		r.Header.Set(dbsc.IDField, c.id)
	}
	return c.take(c.site.serve(r))
}

// take does with an answer what a browser does.
func (c *chromium) take(w *httptest.ResponseRecorder) *httptest.ResponseRecorder {
	c.site.t.Helper()
	for _, cookie := range w.Result().Cookies() {
		if cookie.Name == boundCookie.Name {
			if c.bound = cookie.Value; cookie.MaxAge < 0 {
				c.bound = ""
			}
		}
	}
	if next := w.Header().Get(dbsc.ChallengeField); next != "" {
		challenge, id, ok := strings.Cut(strings.TrimPrefix(next, `"`), `";id="`)
		if !ok || c.id != "" && id != c.id+`"` {
			c.site.t.Errorf("challenge %q of session %q", next, c.id)
		}
		c.challenge = challenge
	}
	return w
}

func (c *chromium) registration() string {
	c.site.t.Helper()
	pub, err := proof.NewPublicKey(proof.ECDSAP256, &c.key.PublicKey)
	if err != nil {
		c.site.t.Fatal(err)
	}
	jwt, err := dbsc.NewRegistration(c.key, proof.ECDSAP256, pub, c.challenge)
	if err != nil {
		c.site.t.Fatal(err)
	}
	return jwt
}

func (c *chromium) refresh() string {
	c.site.t.Helper()
	jwt, err := dbsc.NewRefresh(c.key, proof.ECDSAP256, c.challenge)
	if err != nil {
		c.site.t.Fatal(err)
	}
	return jwt
}

func (c *chromium) register() *httptest.ResponseRecorder {
	c.site.t.Helper()
	w := c.send(c.registration())
	if w.Code == 200 {
		c.id = documentIn(c.site.t, w).ID
	}
	return w
}

func (c *chromium) get(header ...string) *httptest.ResponseRecorder {
	r := c.request("GET", "/me")
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	return c.take(c.site.serve(r))
}

type document struct {
	ID          string `json:"session_identifier"`
	Continue    *bool  `json:"continue"`
	RefreshURL  string `json:"refresh_url"`
	Credentials []struct{ Type, Name, Attributes string }
	Scope       map[string]any
}

func documentIn(t testing.TB, w *httptest.ResponseRecorder) (d document) {
	t.Helper()
	if err := json.Unmarshal(w.Body.Bytes(), &d); err != nil {
		t.Fatalf("%d %q: %v", w.Code, w.Body, err)
	}
	return d
}

// bound logs in and registers, long enough ago that the cookie is needed.
func (s *site) bound(token string) *chromium {
	s.t.Helper()
	c := s.browse(token, "alice")
	expect(s.t, "registration", c.register(), "")
	s.pass(grace)
	return c
}

func TestBrowserBinds(t *testing.T) {
	s := newBrowserSite(t, Config{})
	c := s.browse("token", "alice")
	expect(t, "before", c.get(), "")
	if s.seen.Level != None || s.seen.User != "alice" {
		t.Errorf("before it registers: %+v", s.seen)
	}
	thief := &chromium{site: s, token: "token"}
	w := c.register()
	expect(t, "registration", w, "")
	d := documentIn(t, w)
	set := w.Header()["Set-Cookie"]
	if d.ID != Cookie("sid").ID("token").String() || d.RefreshURL != dbscPath || d.Continue != nil || d.Scope["include_site"] != false || len(d.Credentials) != 1 || len(set) != 1 {
		t.Fatalf("%s, %q", w.Body, set)
	}
	cookie, attributes, _ := strings.Cut(set[0], "; ")
	if credential := d.Credentials[0]; credential.Type != "cookie" || !strings.HasPrefix(cookie, credential.Name+"=") || attributes != credential.Attributes+"; Max-Age=600" {
		t.Errorf("the document says %+v, and %q is set", d.Credentials[0], set[0])
	}

	// What was sent before the browser had the cookie is admitted as it was then.
	expect(t, "just registered", thief.get(), "")
	if s.seen.Level != None || s.seen.Key != "" {
		t.Errorf("without a proof: %+v", s.seen)
	}
	s.pass(grace)
	expect(t, "without the cookie", thief.get(), proof.Required)
	expect(t, "with another's", (&chromium{site: s, token: "token", bound: s.bound("other").bound}).get(), proof.Required)
	expect(t, "with the cookie", c.get(), "")
	if b := s.seen; b.Level != Browser || b.User != "alice" || len(b.Key) != 43 || b.Session.String() != d.ID {
		t.Errorf("with the cookie: %+v", b)
	}
	if log := s.log.String(); !strings.Contains(log, "limpet: completed") || strings.Contains(log, c.bound) || strings.Contains(log, "token ") {
		t.Errorf("log: %s", log)
	}

	// Ten minutes later: with the challenge that it has, or in two steps.
	s.pass(cookieLife + cookieSpare - grace)
	c.bound = ""
	for name, header := range map[string]string{"quoted": `"` + c.id + `"`, "not": c.id} {
		r := c.request("POST", dbscPath)
		r.Header.Set(dbsc.IDField, header)
		w := c.take(s.serve(r))
		if w.Code != 403 || w.Header().Get(dbsc.ChallengeField) == "" {
			t.Errorf("first step, %s: %d, %v", name, w.Code, w.Header())
		}
	}
	expect(t, "second step", c.send(c.refresh()), "")
	expect(t, "refreshed", c.get(), "")
	s.pass(cookieLife)
	expect(t, "early challenge", c.send(`"`+c.refresh()+`"`), "")
	s.pass(challengeLife)
	before := c.challenge
	if w := c.send(c.refresh()); w.Code != 403 || c.challenge == before {
		t.Errorf("after a long sleep: %d, %s", w.Code, w.Body)
	}
	expect(t, "with the new challenge", c.send(c.refresh()), "")

	var listed []*Binding
	if err := s.Sessions(context.Background(), func(b *Binding) bool { listed = append(listed, b); return true }); err != nil {
		t.Fatal(err)
	}
	if len(listed) != 2 || listed[0].Level != Browser || listed[1].Level != Browser || listed[0].Key == listed[1].Key {
		t.Errorf("listed: %+v", listed)
	}
}

// The cookie is good for one session and for its time, and every bit of it counts.
func TestBoundCookieIsForOneSession(t *testing.T) {
	s := newBrowserSite(t, Config{})
	c := s.bound("token")
	good := c.bound
	for i := range good {
		for _, with := range "A_" {
			c.bound = good[:i] + string(with) + good[i+1:]
			if c.bound != good {
				expect(t, c.bound, c.get(), proof.Required)
			}
		}
	}
	for _, c.bound = range []string{"", "x", good[:54], good + "A", good + "=", `"` + good + `"`} {
		expect(t, c.bound, c.get(), proof.Required)
	}
	// Nor does room that another request left its cookie in make up for one of nothing:
	// base64 skips these, and who calls Check need not be net/http.
	for _, skipped := range []string{strings.Repeat("\n", len(good)), good[:12] + strings.Repeat("\r", len(good)-12)} {
		c.bound = good
		expect(t, "good", c.get(), "")
		c.bound = skipped
		expect(t, skipped, c.get(), proof.Required)
	}
	// A browser that has one does not refresh: so it must not keep one that is refused.
	c.bound = "stale"
	if c.get(); c.bound != "" {
		t.Error("the browser keeps a cookie that is refused")
	}
	c.bound = good
	s.pass(cookieLife + cookieSpare - grace - time.Second)
	expect(t, "in its last second", c.get(), "")
	s.pass(time.Second)
	expect(t, "when it is over", c.get(), proof.Required)

	other := newBrowserSite(t, Config{Store: s.store}) // with another seal key
	other.clock.Store(s.clock.Load())
	expect(t, "of another server", (&chromium{site: other, token: "token", bound: good}).get(), proof.Required)
}

// What the cookie cannot show asks for a proof.
func TestBoundCookieIsNoProof(t *testing.T) {
	s := newBrowserSite(t, Config{})
	c := s.bound("token")
	for want, rules := range map[proof.Reason][]Rule{
		"":                {{}, {Mode: Require}, {MinLevel: Browser}, {Freshness: Timestamp}, {Body: 10}, {Body: StreamBody}},
		proof.Required:    {{Freshness: StrictNonce}, {Freshness: BodyHash}, {Challenge: true}, {Channel: true}},
		proof.LevelTooLow: {{MinLevel: Hardware}, {MinLevel: HardwareAttested}},
	} {
		for _, rule := range rules {
			_, err := s.Admit(make(http.Header), c.request("GET", "/"), rule)
			if err == nil && want != "" || err != nil && reasonFor(err) != want {
				t.Errorf("%+v: %v, want %q", rule, err, want)
			}
		}
	}
	// One that comes as well decides.
	r := c.request("GET", "/")
	r.Header.Set("Signature-Input", `limpet=("@method");tag="limpet"`)
	r.Header.Set("Signature", "limpet=:AA==:")
	expect(t, "a bad proof beside the cookie", s.serve(r), proof.Malformed)
}

func TestRegistrationIsRefused(t *testing.T) {
	s := newBrowserSite(t, Config{})
	for name, tt := range map[string]struct {
		spoil func(c *chromium)
		want  proof.Reason
	}{
		"without the cookie":            {func(c *chromium) { c.token = "" }, proof.SessionRequired},
		"of a session that is unknown":  {func(c *chromium) { c.token = "unknown" }, proof.SessionUnbound},
		"of another login":              {func(c *chromium) { c.token = s.browse("another", "bob").token }, proof.Stale},
		"with two cookies":              {func(c *chromium) { c.token += "; sid=other" }, proof.Malformed},
		"with a made-up challenge":      {func(c *chromium) { c.challenge = strings.Repeat("A", len(c.challenge)) }, proof.Stale},
		"with no challenge":             {func(c *chromium) { c.challenge = "" }, proof.Malformed},
		"with the challenge of another": {func(c *chromium) { c.challenge = s.browse("more", "alice").challenge }, proof.Stale},
		"with a refresh's challenge": {func(c *chromium) {
			c.challenge = s.browsers.challenge(forRefresh, Cookie("sid").ID(c.token), s.time())
		}, proof.Stale},
		"too late":                  {func(*chromium) { s.pass(offerLife) }, proof.Stale},
		"of a session that is over": {func(c *chromium) { s.Revoke(context.Background(), Cookie("sid").ID(c.token)) }, proof.SessionEnded},
		"a second time, with another key": {func(c *chromium) {
			other := *c
			other.key = newECDSA(t)
			expect(t, "first", other.register(), "")
		}, proof.Invalid},
		"of a session with a device key": {func(c *chromium) { c.token = "by-device"; s.login("by-device", "alice") }, proof.SessionUnbound},
	} {
		t.Run(name, func(t *testing.T) {
			c := s.browse(rand.Text(), "alice")
			tt.spoil(c)
			w := c.register()
			expect(t, name, w, tt.want)
			if w.Code != 403 || c.bound != "" {
				t.Errorf("%d, cookie %q", w.Code, c.bound)
			}
		})
	}
	t.Run("signed by another key", func(t *testing.T) {
		c := s.browse(rand.Text(), "alice")
		jwt := c.registration()
		c.key = newECDSA(t)
		other := c.registration()
		expect(t, "", c.send(jwt[:strings.LastIndexByte(jwt, '.')]+other[strings.LastIndexByte(other, '.'):]), proof.Invalid)
	})
	t.Run("RSA", func(t *testing.T) {
		c := s.browse(rand.Text(), "alice")
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		pub, err := proof.NewPublicKey(proof.RSAPKCS1, &key.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		jwt, err := dbsc.NewRegistration(key, proof.RSAPKCS1, pub, c.challenge)
		if err != nil {
			t.Fatal(err)
		}
		w := c.send(jwt)
		expect(t, "registration", w, "")
		c.id = documentIn(t, w).ID
		if jwt, err = dbsc.NewRefresh(key, proof.RSAPKCS1, c.challenge); err != nil {
			t.Fatal(err)
		}
		expect(t, "refresh", c.send(jwt), "")
	})
}

// A JWT whose answer was lost comes again and gets the answer again; what comes
// later is a replay.
func TestBrowserRepeatsItself(t *testing.T) {
	s := newBrowserSite(t, Config{})
	c := s.browse("token", "alice")
	challenge, registration := c.challenge, c.registration()
	for range 3 {
		expect(t, "registration", c.send(registration), "")
	}
	c.challenge = challenge
	again := c.registration() // signed anew, by the same key
	expect(t, "by the same key", c.send(again), "")
	c.id = Cookie("sid").ID("token").String()
	jwt, other := c.refresh(), c.refresh()
	for range 3 {
		expect(t, "refresh", c.send(jwt), "")
		s.pass(3 * time.Second)
	}
	cookie := c.bound
	if w := c.send(other); w.Code != 403 || w.Header().Get(dbsc.ChallengeField) == "" {
		t.Errorf("another signature: %d", w.Code)
	}
	s.pass(2 * time.Second)
	c.bound = ""
	if w := c.send(jwt); w.Code != 403 || w.Header().Get(dbsc.ChallengeField) == "" || c.bound != "" {
		t.Errorf("later: %d", w.Code)
	}
	c.id, c.challenge = "", challenge
	expect(t, "registration, later", c.send(registration), proof.Invalid)
	// The cookie is as old as the proof, however late its answer came.
	s.pass(cookieLife + cookieSpare - 11*time.Second)
	expect(t, "the cookie that came last", (&chromium{site: s, token: "token", bound: cookie}).get(), proof.Required)
}

// A session that refreshes all the time is slowed down, with what costs a browser
// nothing.
func TestBrowserRefreshesTooOften(t *testing.T) {
	s := newBrowserSite(t, Config{})
	s.clock.Store(s.clock.Load() / int64(time.Minute) * int64(time.Minute))
	c, other := s.bound("token"), s.bound("another")
	for n := range maxRefreshes + 3 {
		want := proof.Reason("")
		if n >= maxRefreshes {
			want = proof.Unavailable
		}
		expect(t, fmt.Sprint("refresh ", n), c.send(c.refresh()), want)
	}
	expect(t, "another session", other.send(other.refresh()), "")
	s.pass(time.Minute)
	expect(t, "a minute later", c.send(c.refresh()), "")
}

// broken is a store that does not answer.
type broken struct {
	Store
	down atomic.Bool
}

func (b *broken) Get(ctx context.Context, key string) ([]byte, bool, error) {
	if b.down.Load() {
		return nil, false, errors.New("down")
	}
	return b.Store.Get(ctx, key)
}

func (b *broken) Add(ctx context.Context, key string, val []byte, ttl time.Duration) (bool, error) {
	if b.down.Load() {
		return false, errors.New("down")
	}
	return b.Store.Add(ctx, key, val, ttl)
}

// A browser deletes its session at nearly every status. It must be told only those
// that let it go on, unless the session is really over.
func TestBrowserKeepsItsSession(t *testing.T) {
	store := &broken{Store: memstore.New(nil)}
	s := newBrowserSite(t, Config{Store: store})
	c := s.bound("token")
	thief := newECDSA(t)
	for name, jwt := range map[string]string{
		"nothing":             "",
		"garbage":             "x.y.z",
		"two kinds of quote":  `"x`,
		"too long":            strings.Repeat("A", 9<<10),
		"another key":         (&chromium{site: s, key: thief, challenge: c.challenge}).refresh(),
		"another key inside":  (&chromium{site: s, key: thief, challenge: c.challenge}).registration(),
		"a made-up challenge": (&chromium{site: s, key: c.key, challenge: "AAAA"}).refresh(),
		"another session's": func() string {
			return (&chromium{site: s, key: c.key, challenge: s.bound("other").challenge}).refresh()
		}(),
		"a registration's": (&chromium{site: s, key: c.key, challenge: s.browsers.challenge(forRegistration, Cookie("sid").ID("token"), s.time())}).refresh(),
	} {
		c.bound = ""
		w := c.send(jwt)
		if w.Code != 403 || w.Header().Get(dbsc.ChallengeField) == "" || c.bound != "" {
			t.Errorf("%s: %d %s, cookie %q", name, w.Code, w.Body, c.bound)
		}
	}
	store.down.Store(true)
	for name, w := range map[string]*httptest.ResponseRecorder{"first step": c.send(""), "refresh": c.send(c.refresh()),
		"registration": (&chromium{site: s, token: "token", key: c.key, challenge: c.challenge}).register(), "request": c.get()} {
		if w.Code != 503 || w.Header().Get("Set-Cookie") != "" {
			t.Errorf("store down, %s: %d, %v", name, w.Code, w.Header())
		}
	}
	store.down.Store(false)
	expect(t, "afterwards", c.send(c.refresh()), "")

	// Of one that is not registered as far as this server knows, it may be early to say so.
	young := s.browse("young", "alice")
	young.id = Cookie("sid").ID("young").String()
	if w := young.send(""); w.Code != 503 {
		t.Errorf("not registered yet: %d", w.Code)
	}
	s.pass(2 * offerLife)
	if d := documentIn(t, young.send("")); d.Continue == nil || *d.Continue {
		t.Error("a session that was never registered goes on")
	}
}

func TestBrowserForgetsItsSession(t *testing.T) {
	var told []string
	s := newBrowserSite(t, Config{Decided: func(_ context.Context, d *Decision) {
		if d.Result == Ended {
			told = append(told, d.Cause)
		}
	}})
	ends := func(name, cause string, c *chromium) {
		t.Helper()
		told = nil
		w := c.send(c.refresh())
		if d := documentIn(t, w); w.Code != 200 || d.Continue == nil || *d.Continue || d.ID != c.id || w.Header()["Set-Cookie"] != nil {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
		if !slices.Equal(told, []string{cause}) {
			t.Errorf("%s: %q", name, told)
		}
	}
	older := s.bound("older")
	newer := s.bound("newer")
	expect(t, "without a cookie", (&chromium{site: s, key: older.key, id: older.id, challenge: older.challenge}).send(older.refresh()), "")
	older.token = newer.token
	ends("an older login", causeLogin, older)
	expect(t, "the newer", newer.send(newer.refresh()), "")
	if err := s.Rebind(context.Background(), make(http.Header), "newer", "newest"); err != nil {
		t.Fatal(err)
	}
	newer.token = "newest"
	expect(t, "with its token replaced", newer.send(newer.refresh()), "")
	s.Revoke(context.Background(), Cookie("sid").ID("newest"))
	ends("revoked", causeEnded, newer)
	expect(t, "revoked, with a cookie", newer.get(), proof.SessionEnded)
	for _, newer.id = range []string{"unknown", Cookie("sid").ID("unknown").String(), Cookie("sid").ID("newest").String()} {
		ends("unknown", causeUnknown, newer)
	}
	over := s.bound("over")
	s.pass(30 * 24 * time.Hour)
	ends("over", causeEnded, over)
}

// An app's new token is its session's, whenever the browser registers.
func TestRebindKeepsTheBrowsersKey(t *testing.T) {
	for _, late := range []bool{false, true} {
		s := newBrowserSite(t, Config{})
		c := s.browse("token", "alice")
		if !late {
			expect(t, "registration", c.register(), "")
		}
		h := make(http.Header)
		if err := s.Rebind(context.Background(), h, "token", "next"); err != nil || len(h) > 0 {
			t.Fatal(err, h)
		}
		c.token = "next"
		if late {
			expect(t, "registration", c.register(), "")
		}
		if c.id != Cookie("sid").ID("token").String() {
			t.Errorf("the browser's session is %q", c.id)
		}
		s.pass(grace)
		for _, token := range []string{"token", "next"} {
			expect(t, "thief", (&chromium{site: s, token: token}).get(), proof.Required)
			expect(t, "browser", (&chromium{site: s, token: token, bound: c.bound}).get(), "")
			if s.seen.Level != Browser {
				t.Errorf("%+v", s.seen)
			}
		}
		expect(t, "refresh", c.send(c.refresh()), "")
	}
}

// A session that is revoked while its browser registers stays revoked.
func TestRegistrationDoesNotBringBack(t *testing.T) {
	s := newBrowserSite(t, Config{})
	for range 50 {
		c := s.browse(rand.Text(), "alice")
		jwt := c.registration()
		var both sync.WaitGroup
		both.Go(func() {
			if err := s.Revoke(context.Background(), Cookie("sid").ID(c.token)); err != nil {
				t.Error(err)
			}
		})
		r := c.request("POST", dbscPath)
		r.Header.Set(dbsc.ResponseField, jwt)
		w := httptest.NewRecorder()
		both.Go(func() { s.Protect(http.NotFoundHandler()).ServeHTTP(w, r) })
		both.Wait()
		c.take(w)
		expect(t, "afterwards", c.get(), proof.SessionEnded)
		c.id = Cookie("sid").ID(c.token).String()
		if d := documentIn(t, c.send(c.refresh())); d.Continue == nil || *d.Continue {
			t.Error("it is refreshed")
		}
	}
}

func TestWhoIsOffered(t *testing.T) {
	if _, err := New(Config{Session: Cookie("__host-Limpet"), Store: memstore.New(nil), Browsers: true}); err == nil {
		t.Error("a session in the bound cookie is accepted")
	}
	if _, err := New(Config{Session: Bearer(), Store: memstore.New(nil), Browsers: true}); err == nil {
		t.Error("bearer tokens can be bound by browsers")
	}
	login := func(s *site, browser bool) http.Header {
		r, w := httptest.NewRequest("POST", "/login", nil), httptest.NewRecorder()
		if browser {
			r.Header.Set("Sec-Fetch-Site", "none")
		}
		if err := s.Bind(w, r, rand.Text(), "alice"); err != nil {
			t.Fatal(err)
		}
		return w.Header()
	}
	s := newBrowserSite(t, Config{})
	if login(s, false).Get(dbsc.RegistrationField) != "" {
		t.Error("offered to no browser, or by plain HTTP")
	}
	if login(s, true).Get(dbsc.RegistrationField) == "" {
		t.Error("not offered to a browser")
	}
	w := httptest.NewRecorder()
	h := &holder{site: s, device: newECDSA(t)}
	r := h.loginRequest(h.device)
	r.Header.Set("Sec-Fetch-Site", "none")
	if err := s.Bind(w, r, "device", "alice"); err != nil || w.Header().Get(dbsc.RegistrationField) != "" {
		t.Error("offered beside a device key", err)
	}
	off := newSite(t, Config{Session: Cookie("sid")})
	if login(off, true).Get(dbsc.RegistrationField) != "" {
		t.Error("offered by a guard that does not know browsers")
	}
	for _, path := range []string{dbscPath, cookiePath, forgetPath, scriptPath} {
		off.seen = nil
		if w := off.serve(httptest.NewRequest("POST", path, nil)); w.Code != 200 || off.seen == nil {
			t.Errorf("%s does not reach the app: %d", path, w.Code)
		}
	}
}

// A guard that does not know browsers any more does not take their sessions for
// unbound.
func TestBrowsersTakenBack(t *testing.T) {
	s := newBrowserSite(t, Config{})
	c, waiting := s.bound("token"), s.browse("waiting", "alice")
	off := newSite(t, Config{Session: Cookie("sid"), Store: s.store})
	c.site, waiting.site = off, off
	expect(t, "bound by a browser", c.get(), proof.SessionEnded)
	if b, err := off.Find(context.Background(), Cookie("sid").ID("token")); err != nil || b.Level != Browser || !b.Ended.IsZero() {
		t.Errorf("%+v, %v", b, err)
	}
	expect(t, "never bound", waiting.get(), "")
}

// A client with a key of its own gets the cookie for a proof.
func TestCookieForAProof(t *testing.T) {
	s := newBrowserSite(t, Config{})
	h := s.hold("token")
	w := s.serve(h.request("POST", cookiePath, "", true))
	c := (&chromium{site: s, token: "token"})
	if c.take(w); w.Code != 204 || w.Header().Get("Limpet-Cookie") != "max-age=600" || c.bound == "" {
		t.Fatalf("%d %v", w.Code, w.Header())
	}
	expect(t, "with the cookie", c.get(), "")
	if s.seen.Level != Software {
		t.Errorf("%+v", s.seen)
	}
	r := c.request("POST", cookiePath)
	expect(t, "for the cookie", s.serve(r), proof.Required)
	again := h.request("POST", cookiePath, "", false)
	s.serve(again.Clone(context.Background()))
	expect(t, "for a proof that was used", s.serve(again), proof.NonceSpent)
	moved := h.request("POST", "/me", "", false)
	moved.URL.Path = cookiePath
	expect(t, "for the proof of another request", s.serve(moved), proof.Invalid)
	d := s.login("hw-sign", "alice")
	r = httptest.NewRequest("POST", cookiePath, nil)
	r.Header = d.introduction(newECDH(t), s.value())
	r.Header.Set("Cookie", "sid=hw-sign")
	expect(t, "on another wire", s.serve(r), proof.Required)
	if w := s.serve(httptest.NewRequest("GET", cookiePath, nil)); w.Code != 405 {
		t.Errorf("GET: %d", w.Code)
	}
	w = s.serve(httptest.NewRequest("GET", httpsig.WellKnownPath, nil))
	if !strings.Contains(w.Body.String(), `"refresh":"/.well-known/limpet/cookie"`) {
		t.Errorf("%s", w.Body)
	}
}

// A browser that follows a link without the cookie gets a page of ours, and
// nothing else does.
func TestComeBack(t *testing.T) {
	s := newBrowserSite(t, Config{Routes: []Route{{Pattern: "/bound", Rule: Rule{MinLevel: Browser}}}})
	c := s.bound("token")
	c.bound = ""
	link := []string{"Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document", "Sec-Fetch-Site", "cross-site"}
	w := c.get(link...)
	page := w.Body.String()
	if h := w.Header(); w.Code != 401 || h.Get("Content-Type") != "text/html; charset=utf-8" || h.Get("Cache-Control") != "no-store" ||
		!strings.HasPrefix(h.Get("Content-Security-Policy"), "default-src 'none'; ") || !strings.Contains(page, "<title>") || strings.Contains(page, "data-sdk") || strings.Contains(page, "{{") {
		t.Errorf("%d %v %s", w.Code, w.Header(), page)
	}
	expect(t, "a fetch", c.get("Sec-Fetch-Mode", "cors", "Sec-Fetch-Dest", "empty"), proof.Required)
	expect(t, "a frame", c.get("Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "iframe"), proof.Required)
	if w := c.get("Secure-Session-Skipped", "unreachable;session_identifier=\""+c.id+`"`); w.Code != 503 {
		t.Errorf("skipped: %d", w.Code)
	}
	h := s.hold("sdk")
	sdk := &chromium{site: s, token: h.token}
	if w := sdk.get(link...); !strings.Contains(w.Body.String(), `<html lang="en" data-sdk="yes">`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	// The page after a login may be there before its key.
	pending := s.browse("pending", "alice")
	to := func(path string) *httptest.ResponseRecorder {
		r := pending.request("GET", path)
		r.Header.Set("Sec-Fetch-Mode", "navigate")
		r.Header.Set("Sec-Fetch-Dest", "document")
		return s.serve(r)
	}
	if w := to("/bound"); w.Code != 403 || !strings.Contains(w.Body.String(), ` data-waits="yes">`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	s.pass(offerLife)
	expect(t, "when the browser has not registered", to("/bound"), proof.LevelTooLow)

	// The script is there, and cached.
	w = s.serve(httptest.NewRequest("GET", scriptPath, nil))
	if w.Code != 200 || w.Header().Get("Content-Type") != "text/javascript; charset=utf-8" || !strings.Contains(w.Body.String(), "export") {
		t.Errorf("%d %v", w.Code, w.Header())
	}
	r := httptest.NewRequest("GET", scriptPath, nil)
	r.Header.Set("If-None-Match", w.Header().Get("Etag"))
	if w := s.serve(r); w.Code != 304 {
		t.Errorf("cached: %d", w.Code)
	}
}

// Who has no key for a session gets rid of its cookie, if a page of ours asks.
func TestForget(t *testing.T) {
	s := newBrowserSite(t, Config{})
	ask := func(site, from string) *httptest.ResponseRecorder {
		r := httptest.NewRequest("POST", forgetPath, strings.NewReader(url.Values{"from": {from}}.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Sec-Fetch-Site", site)
		return s.serve(r)
	}
	w := ask("same-origin", "/a/b?c=d")
	set := strings.Join(w.Header()["Set-Cookie"], "\n")
	if w.Code != 303 || w.Header().Get("Location") != "/a/b?c=d" || !strings.Contains(set, "sid=; Path=/a/b; ") || !strings.Contains(set, "__Host-limpet=; ") {
		t.Errorf("%d %v", w.Code, w.Header())
	}
	for _, from := range []string{"", "//evil.test/", "https://evil.test/", `/\evil.test`, "/\t/evil.test", "/" + strings.Repeat("a", 3000)} {
		if w := ask("same-origin", from); w.Header().Get("Location") != "/" {
			t.Errorf("%q leads to %q", from, w.Header().Get("Location"))
		}
	}
	for _, site := range []string{"cross-site", "same-site", "none", ""} {
		if w := ask(site, "/"); w.Code != 403 || w.Header()["Set-Cookie"] != nil {
			t.Errorf("asked from %q: %d", site, w.Code)
		}
	}
}
