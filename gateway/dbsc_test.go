package gateway_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/gateway"
	"github.com/limpet-auth/limpet/limpettest"
	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/dbsc"
	"github.com/limpet-auth/limpet/store/redisstore"
)

// keeper is a browser that keeps keys for sessions, as far as HTTP goes.
type keeper struct {
	*http.Client
	site      *site
	key       *ecdsa.PrivateKey
	challenge string
	id        string
}

func (s *site) keeper(t testing.TB) *keeper {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &keeper{Client: s.browser(t), site: s, key: key}
}

func (k *keeper) post(t testing.TB, path string, form url.Values, headers ...string) *http.Response {
	t.Helper()
	r, err := http.NewRequest("POST", k.site.front.URL+path, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	resp, err := k.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if challenge, _, ok := strings.Cut(strings.TrimPrefix(resp.Header.Get(dbsc.ChallengeField), `"`), `";id="`); ok {
		k.challenge = challenge
	}
	return resp
}

// login logs in and registers the key.
func (k *keeper) login(t testing.TB) {
	t.Helper()
	path, challenge := k.begin(t)
	k.register(t, path, challenge)
}

// begin logs in and returns where to register, and the challenge for it.
func (k *keeper) begin(t testing.TB) (path, challenge string) {
	t.Helper()
	resp := k.post(t, "/login", url.Values{"username": {"alice"}, "password": {"secret"}})
	path, challenge, ok := strings.Cut(strings.TrimPrefix(resp.Header.Get(dbsc.RegistrationField), `(ES256 RS256);path="`), `";challenge="`)
	if resp.StatusCode != http.StatusSeeOther || !ok {
		t.Fatalf("login: %s, %v", resp.Status, resp.Header)
	}
	return path, strings.TrimSuffix(challenge, `"`)
}

func (k *keeper) register(t testing.TB, path, challenge string) {
	t.Helper()
	pub, err := proof.NewPublicKey(proof.ECDSAP256, &k.key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	jwt, err := dbsc.NewRegistration(k.key, proof.ECDSAP256, pub, challenge)
	if err != nil {
		t.Fatal(err)
	}
	resp := k.post(t, path, nil, dbsc.ResponseField, jwt)
	if resp.StatusCode != 200 {
		t.Fatalf("registration: %s", resp.Status)
	}
	_, id, _ := strings.Cut(resp.Header.Get(dbsc.ChallengeField), `;id="`)
	k.id = strings.TrimSuffix(id, `"`)
}

func (k *keeper) refresh(t testing.TB) *http.Response {
	t.Helper()
	jwt, err := dbsc.NewRefresh(k.key, proof.ECDSAP256, k.challenge)
	if err != nil {
		t.Fatal(err)
	}
	return k.post(t, "/.well-known/limpet/dbsc", nil, dbsc.ResponseField, jwt, dbsc.IDField, k.id)
}

// TestDBSC: the switch is all that an app and its gateway need.
func TestDBSC(t *testing.T) {
	cfg, err := gateway.Parse("app.yaml", []byte("dbsc: true\nlogin: [{route: POST /login, user: form.username}]\nroutes: [{route: /bound, mode: require, min-level: browser}]\n"))
	if err != nil || !cfg.DBSC {
		t.Fatal(err)
	}
	s := newSite(t, cfg)
	k := s.keeper(t)
	k.login(t)
	if code, e := s.ask(t, k.Client, "GET", "/bound", nil); code != 200 || e.User != "alice" || e.Header.Get("Limpet-Level") != "browser" || e.Header.Get("Remote-User") != "alice" {
		t.Errorf("%d %+v", code, e)
	}
	before := s.cookie(t, k.Client)
	if code, _ := s.ask(t, k.Client, "GET", "/rotate", nil); code != 200 || s.cookie(t, k.Client) == before {
		t.Fatalf("rotate: %d", code)
	}
	if code, e := s.ask(t, k.Client, "GET", "/bound", nil); code != 200 || e.Header.Get("Limpet-Session") != k.id {
		t.Errorf("with its token replaced: %d, session %q", code, e.Header.Get("Limpet-Session"))
	}
	if resp := k.refresh(t); resp.StatusCode != 200 || resp.Header.Get("Set-Cookie") == "" {
		t.Errorf("refresh: %s", resp.Status)
	}
	s.wants(t, s.thief(t, s.cookie(t, k.Client)), "GET", "/bound", 401, "proof_required")
	if code, e := s.ask(t, k.Client, "POST", "/logout", nil); code != 200 {
		t.Errorf("logout: %d %+v", code, e)
	}
	if resp := k.refresh(t); resp.StatusCode != 200 || resp.Header.Get("Set-Cookie") != "" {
		t.Errorf("refresh after the logout: %s", resp.Status)
	}
	for _, r := range s.seen {
		if strings.HasPrefix(r.URL.Path, "/.well-known") {
			t.Errorf("the app sees %s", r.URL.Path)
		}
	}
	s.wants(t, k.Client, "GET", "/.well-known/limpet/other", 404, "not_found")
}

// TestDBSCObserved: what the gateway tells a browser stands beside what the app does.
func TestDBSCObserved(t *testing.T) {
	s := newSite(t, gateway.Config{DBSC: true, Rule: limpet.Rule{Mode: limpet.Observe}})
	device := s.device(t)
	s.login(t, device)
	before := s.cookie(t, device)
	thief := s.thief(t, before)
	if code, _ := s.ask(t, thief, "GET", "/rotate", nil, "Cookie", "__Host-limpet=stale"); code != 200 || s.cookie(t, thief) == before {
		t.Errorf("%d: the app's own cookie is lost", code)
	}
}

func TestDBSCIsForCookies(t *testing.T) {
	cfg, err := gateway.Parse("app.yaml", []byte("upstream: http://127.0.0.1:1\nsession: {bearer: true}\ndbsc: true\n"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err = gateway.New(cfg); err == nil || !strings.Contains(err.Error(), "dbsc") {
		t.Error(err)
	}
	s := newSite(t, gateway.Config{})
	resp := s.keeper(t).post(t, "/login", url.Values{"username": {"alice"}, "password": {"secret"}})
	if resp.Header.Get(dbsc.RegistrationField) != "" {
		t.Error("offered without being asked to")
	}
	if code, _ := s.ask(t, s.browser(t), "POST", "/.well-known/limpet/dbsc", nil); code != 200 || s.requests() != 2 {
		t.Errorf("the path is not the app's: %d", code)
	}
}

// TestForwardAuthDBSC: the cookie is in the headers, so a proxy can ask about it.
func TestForwardAuthDBSC(t *testing.T) {
	s := newSite(t, gateway.Config{DBSC: true, Trusted: proxies})
	k := s.keeper(t)
	k.login(t)
	var jar []string
	for _, c := range k.Jar.Cookies(must(url.Parse(s.front.URL))) {
		jar = append(jar, c.Name+"="+c.Value)
	}
	for _, kind := range dialects {
		for _, path := range []string{"/.well-known/limpet", "/.well-known/limpet/dbsc", "/.well-known/limpet/"} {
			method, target, headers := dialect(kind, "POST", "app.example.com", path)
			if w := asks(s.Gateway, method, target, headers...); w.Code != 403 {
				t.Errorf("%s: %s: %d", kind, path, w.Code)
			}
		}
		method, target, headers := dialect(kind, "GET", "app.example.com", "/bound")
		w := asks(s.Gateway, method, target, append(headers, "Cookie", strings.Join(jar, "; "))...)
		if w.Code != 200 || w.Header().Get("Limpet-Level") != "browser" {
			t.Errorf("%s: %d %v", kind, w.Code, w.Header())
		}
	}
	if list := strings.Join(s.Elsewhere(), "; "); !strings.Contains(list, "/.well-known/limpet/ (what browsers ask the gateway)") {
		t.Error(list)
	}
}

// TestDBSCOnTwoGateways: that a session is registered with one is known to the other
// within the time that its store's memory may be old.
func TestDBSCOnTwoGateways(t *testing.T) {
	t.Parallel()
	redis, app, key := "redis://"+limpettest.Redis(t), newApp(t), make([]byte, 32)
	var sites [2]*site
	for i := range sites {
		store, err := redisstore.Open(t.Context(), redis, &redisstore.Options{Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { store.Close() })
		sites[i] = newSiteOf(t, app, gateway.Config{DBSC: true, Store: store, SealKey: key})
	}
	k := sites[0].keeper(t)
	path, challenge := k.begin(t)
	level := func() string {
		code, e := sites[1].ask(t, k.Client, "GET", "/me", nil)
		if code != 200 {
			t.Fatalf("%d %s", code, e.Body)
		}
		return e.Header.Get("Limpet-Level")
	}
	if got := level(); got != "none" { // and it keeps in memory that there is no registration
		t.Fatalf("level %q before it registers", got)
	}
	k.register(t, path, challenge)
	for end := time.Now().Add(5 * time.Second); level() != "browser"; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the other gateway does not hear of it")
		}
	}
	k.site = sites[1]
	if resp := k.refresh(t); resp.StatusCode != 200 {
		t.Errorf("refresh: %s", resp.Status)
	}
}
