package gateway_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/client"
	"github.com/limpet-auth/limpet/gateway"
	"github.com/limpet-auth/limpet/hwkey/softkey"
)

// told collects decisions.
type told struct {
	mu  sync.Mutex
	all []limpet.Decision
}

func (c *told) decided(_ context.Context, d *limpet.Decision) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, *d)
}

// wants compares what was decided since the last call: RESULT [REASON] FORMAT each.
func (c *told) wants(t *testing.T, what string, want ...string) []limpet.Decision {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	got := []string{}
	for _, d := range c.all {
		got = append(got, strings.Join(strings.Fields(fmt.Sprint(d.Result, " ", d.Reason, " ", d.Format)), " "))
		if d.Result == limpet.Refused && (d.User != "" || d.Key != "" || d.Level != "") {
			t.Errorf("%s: somebody is named: %+v", what, d)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
	all := c.all
	c.all = nil
	return all
}

// Everything is told, and nothing twice.
func TestDecisions(t *testing.T) {
	var c told
	a := newApp(t)
	a.mux.HandleFunc("POST /two", func(w http.ResponseWriter, _ *http.Request) {
		a.setCookie(w, a.begin("alice"))
		a.setCookie(w, a.begin("bob"))
	})
	s := newSiteOf(t, a, gateway.Config{Decided: c.decided,
		Logins: []gateway.Login{{Pattern: "POST /login", User: "form.username"}, {Pattern: "POST /two"}},
		Routes: []limpet.Route{{Pattern: "/admin/", Rule: limpet.Rule{Mode: limpet.Require}}}})
	stranger := s.browser(t)
	s.ask(t, stranger, "GET", "/me", nil)
	c.wants(t, "nobody", "admitted none")
	s.ask(t, stranger, "GET", "/admin/x", nil)
	c.wants(t, "nobody where somebody must be", "refused session_required none")
	s.ask(t, stranger, "GET", "/admin%2Fx", nil)
	c.wants(t, "a path in two ways", "refused proof_malformed none")
	s.ask(t, stranger, "POST", "/login", strings.NewReader("username=alice"), "Content-Type", "application/x-www-form-urlencoded")
	c.wants(t, "a wrong password")

	keys, err := softkey.Open(t.Context(), t.TempDir(), softkey.KeyFile(""))
	if err != nil {
		t.Fatal(err)
	}
	owner, between := s.browser(t), &meddler{RoundTripper: s.front.Client().Transport}
	owner.Transport = client.New(keys).Transport(between)
	s.login(t, owner)
	bound := c.wants(t, "login", "bound rfc9421")[0]
	if bound.User != "alice" || bound.Level != limpet.Software || bound.Session != limpet.Cookie("sid").ID(s.cookie(t, owner)) || bound.Path != "/login" {
		t.Errorf("login: %+v", bound)
	}
	s.ask(t, owner, "GET", "/me?x=1", nil)
	if d := c.wants(t, "proven", "admitted rfc9421")[0]; d.User != "alice" || d.Key != bound.Key || d.Path != "/me" {
		t.Errorf("proven: %+v", d)
	}
	s.ask(t, s.thief(t, s.cookie(t, owner)), "GET", "/me", nil)
	if d := c.wants(t, "a thief", "refused proof_required none")[0]; d.Session != bound.Session {
		t.Errorf("a thief: %+v", d)
	}
	s.ask(t, s.thief(t, s.cookie(t, owner)), "POST", "/two", nil)
	c.wants(t, "a login with two tokens", "refused internal_error none")

	between.swaps = true
	s.ask(t, owner, "POST", "/me", strings.NewReader("amount=1"))
	c.wants(t, "another body", "admitted rfc9421", "broken-off body_mismatch rfc9421")

	s.ask(t, owner, "GET", "/rotate", nil)
	if all := c.wants(t, "a new token", "admitted rfc9421", "rebound none"); all[1].Session != bound.Session {
		t.Errorf("a new token: %+v", all[1])
	}
	s.ask(t, owner, "POST", "/logout", nil)
	if all := c.wants(t, "logout", "admitted rfc9421", "revoked none"); all[1].Session != bound.Session || all[1].User != "alice" {
		t.Errorf("logout: %+v", all[1])
	}
}

// meddler swaps bodies on their way to the gateway.
type meddler struct {
	http.RoundTripper
	swaps bool
}

func (m *meddler) RoundTrip(r *http.Request) (*http.Response, error) {
	if m.swaps && r.Body != nil {
		r = r.Clone(r.Context())
		r.Body = io.NopCloser(strings.NewReader("amount=9"))
	}
	return m.RoundTripper.RoundTrip(r)
}

// Where all rules observe, each request is told of once, as what would have been.
func TestObservedDecisions(t *testing.T) {
	var c told
	observe := limpet.Rule{Mode: limpet.Observe}
	s := newSite(t, gateway.Config{Decided: c.decided, Rule: observe,
		Routes: []limpet.Route{{Pattern: "/admin/", Rule: limpet.Rule{Mode: limpet.Observe, MinLevel: limpet.Hardware}}}})
	stranger := s.browser(t)
	if code, _ := s.ask(t, stranger, "GET", "/admin%2Fx", nil); code != 200 {
		t.Errorf("status %d", code)
	}
	c.wants(t, "a path in two ways", "would-refuse proof_malformed none")
	resp, err := stranger.PostForm(s.front.URL+"/LOGIN", url.Values{"username": {"alice"}, "password": {"secret"}})
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	c.wants(t, "a login in two ways", "would-refuse proof_malformed none")
	owner := s.device(t)
	s.login(t, owner)
	c.wants(t, "login", "bound rfc9421")
	s.ask(t, owner, "GET", "/admin/x", nil)
	c.wants(t, "level", "would-refuse level_too_low rfc9421")
}

// A proxy's question is decided once as well; what is refused after the guard has
// admitted it broke off.
func TestDecisionsOverQuestions(t *testing.T) {
	var c told
	asked := func(s *site, method, target string, headers ...string) int {
		m, path, say := dialect("nginx", method, "app.example.com", target)
		return asks(s.Gateway, m, path, append(say, headers...)...).Code
	}
	s := newSite(t, gateway.Config{Decided: c.decided, Trusted: proxies})
	asked(s, "GET", "/page")
	c.wants(t, "nobody", "admitted none")
	asked(s, "POST", "/login")
	c.wants(t, "a login", "refused through_gateway none")
	asked(s, "GET", "/page", "Limpet-Session", "x")
	c.wants(t, "a proof for nobody's session", "admitted none", "broken-off session_unbound none")

	observe := limpet.Rule{Mode: limpet.Observe}
	s = newSite(t, gateway.Config{Decided: c.decided, Trusted: proxies, Rule: observe, Routes: []limpet.Route{
		{Pattern: "/admin/", Rule: observe},
		{Pattern: "/hash", Rule: limpet.Rule{Mode: limpet.Observe, Freshness: limpet.BodyHash}},
	}})
	for target, reason := range map[string]string{"/hash": "through_gateway", "/admin%2Fx": "proof_malformed", "/HASH": "proof_malformed"} {
		if code := asked(s, "GET", target, "Cookie", "sid=another"); code != 200 {
			t.Errorf("%s: status %d", target, code)
		}
		c.wants(t, target, "would-refuse "+reason+" none")
	}
}

// A login that two readings make one that would be refused, and what it carries one
// that is, is refused once.
func TestLoginInTwoWaysIsDecided(t *testing.T) {
	var c told
	s := newSite(t, gateway.Config{Decided: c.decided, Rule: limpet.Rule{Mode: limpet.Observe},
		Routes: []limpet.Route{{Pattern: "/admin/", Rule: limpet.Rule{Mode: limpet.Require}}}})
	if code, _ := s.ask(t, s.browser(t), "POST", "/login", nil, "X-Http-Method-Override", "GET", "Limpet-Device", "x"); code != 400 {
		t.Errorf("status %d", code)
	}
	c.wants(t, "a login in two ways", "would-refuse proof_malformed none", "broken-off proof_malformed none")
}

// An answer that is withheld is told of, also where the request's rule observes.
func TestWithheldDecision(t *testing.T) {
	var c told
	s := newSite(t, gateway.Config{Decided: c.decided, Routes: []limpet.Route{{Pattern: "GET /rotate", Rule: limpet.Rule{Mode: limpet.Observe}}}})
	code, _ := s.ask(t, s.browser(t), "GET", "/rotate", nil, "Cookie", "sid="+s.begin("alice"), "Cookie", "sid=another")
	if code != 400 {
		t.Errorf("status %d", code)
	}
	c.wants(t, "two tokens", "would-refuse proof_malformed none", "broken-off proof_malformed none")
}

// Parameters of a path are no part of what is told and logged: some apps have the
// session's token there.
func TestNoTokenOfAPathIsTold(t *testing.T) {
	var c told
	s := newSite(t, gateway.Config{Decided: c.decided, Routes: []limpet.Route{{Pattern: "/admin/", Rule: limpet.Rule{Mode: limpet.Require}}}})
	for path, want := range map[string]string{
		"/admin/x;sid=hidden/y":     "/admin/x;/y",
		"/admin/x%3Bsid=hidden":     "/admin/x;",
		"/admin/x%3bsid=hidden%2Fy": "/admin/x;",
		"/x;sid=hidden/%2e%2e/y":    "/x;/%2e%2e/y",
	} {
		s.ask(t, s.browser(t), "GET", path, nil)
		if all := c.all; len(all) != 1 || all[0].Path != want {
			t.Errorf("%s: %+v, want %s", path, all, want)
		}
		c.all = nil
	}
	s.app.CloseClientConnections()
	s.app.Close()
	s.ask(t, s.browser(t), "GET", "/x;sid=hidden", nil)
	if log := s.log.String(); strings.Contains(log, "hidden") || !strings.Contains(log, "path=/x;") {
		t.Error(log)
	}
}
