package gateway_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/gateway"
	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/store/memstore"
)

var proxies = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")} // httptest's requests are from there

// asks returns what a proxy is answered.
func asks(g *gateway.Gateway, method, target string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, nil)
	for ; len(headers) > 0; headers = headers[2:] {
		if headers[0] == "Host" {
			r.Host = headers[1]
			continue
		}
		r.Header[headers[0]] = append(r.Header[headers[0]], headers[1])
	}
	w := httptest.NewRecorder()
	g.ForwardAuth(w, r)
	return w
}

// dialect asks as a kind of proxy does.
func dialect(kind, method, host, target string) (m, path string, headers []string) {
	switch kind {
	case "nginx":
		return "GET", "/auth/nginx", []string{"Host", host, "X-Original-Method", method, "X-Original-Url", "https://" + host + target}
	case "forward":
		return "GET", "/auth/forward", []string{"X-Forwarded-Method", method, "X-Forwarded-Proto", "https", "X-Forwarded-Host", host, "X-Forwarded-Uri", target}
	}
	return method, "/auth/envoy" + target, []string{"Host", host, "X-Forwarded-Proto", "https"}
}

var dialects = []string{"nginx", "forward", "envoy"}

// TestDialects: each way of asking says the same of a request, and finds its rule.
func TestDialects(t *testing.T) {
	s := newSite(t, gateway.Config{Trusted: proxies, Routes: []limpet.Route{
		{Pattern: "/admin/", Rule: limpet.Rule{Mode: limpet.Require}},
		{Pattern: "POST /orders", Rule: limpet.Rule{Mode: limpet.Require}},
		{Pattern: "inside.example.com/", Rule: limpet.Rule{Mode: limpet.Require}},
	}})
	for _, kind := range dialects {
		for _, tc := range []struct {
			method, host, target string
			status               int
		}{
			{"GET", "app.example.com", "/", 200},
			{"GET", "app.example.com:8443", "/page?to=/admin/", 200},
			{"GET", "[::1]:8443", "/page?a=b#", 403},
			{"GET", "app.example.com", "/admin/", 401},
			{"GET", "app.example.com", "/admin/x?y", 401},
			{"GET", "app.example.com", "/admin", 401},
			{"GET", "app.example.com", "/Admin/", 403},
			{"GET", "app.example.com", "/x/../admin/", 403},
			{"GET", "app.example.com", "/orders", 200},
			{"HEAD", "app.example.com", "/orders", 200},
			{"POST", "app.example.com", "/orders", 401},
			{"POST", "app.example.com", "/orders/", 401},
			{"GET", "INSIDE.example.com.", "/", 401},
			{"GET", "inside.example.com:443", "/", 401},
			{"POST", "app.example.com", "/login", 403},
			{"GET", "app.example.com", "/login", 200},
			{"POST", "app.example.com", "/logout", 403},
			{"GET", "app.example.com", "/.well-known/limpet", 403},
			{"TRACE", "app.example.com", "/", 403},
			{"CONNECT", "app.example.com", "/", 403},
			{"GET", "app.example.com?", "/", 403},
			{"GET", "a b", "/", 403},
			{"GET", "user@app.example.com", "/", 403},
			{"GET", "", "/", 403},
			{"GET", "app.example.com/open", "/admin/", 403},
		} {
			if kind == "envoy" && (strings.Contains(tc.host, "/") || tc.method == "CONNECT" || tc.host == "") {
				continue // which httptest.NewRequest does not make
			}
			method, path, headers := dialect(kind, tc.method, tc.host, tc.target)
			w := asks(s.Gateway, method, path, headers...)
			if w.Code != tc.status {
				t.Errorf("%s: %s %s%s: %d %s, want %d", kind, tc.method, tc.host, tc.target, w.Code, w.Body, tc.status)
			}
			if w.Code == 200 {
				for _, name := range []string{"Remote-User", "Limpet-Level", "Limpet-Session", "Limpet-Key"} { // a proxy sets what is there
					if len(w.Header()[name]) != 1 {
						t.Errorf("%s: %s%s: %s is %q", kind, tc.host, tc.target, name, w.Header()[name])
					}
				}
			}
			if w.Code == 401 && len(w.Header()["Www-Authenticate"]) != 1 {
				t.Errorf("%s: %s%s: %q", kind, tc.host, tc.target, w.Header()["Www-Authenticate"])
			}
		}
	}
	if s.requests() != 0 {
		t.Error("the app saw a question")
	}
}

// TestNoQuestions: what a proxy does not say, or says twice or in another's words,
// is not guessed.
func TestNoQuestions(t *testing.T) {
	s := newSite(t, gateway.Config{Trusted: proxies})
	for _, kind := range dialects {
		method, path, headers := dialect(kind, "GET", "app.example.com", "/page")
		for i := 0; i < len(headers); i += 2 {
			if headers[i] == "Host" {
				continue
			}
			changed := func(change ...string) []string { return slices.Concat(headers[:i], change, headers[i+2:]) }
			for what, with := range map[string][]string{
				"missing":        changed(),
				"empty":          changed(headers[i], ""),
				"twice":          changed(headers[i], headers[i+1], headers[i], headers[i+1]),
				"twice in a way": append(slices.Clone(headers), strings.ReplaceAll(headers[i], "-", "_"), headers[i+1]),
				"joined":         changed(headers[i], headers[i+1]+", "+headers[i+1]),
				"spaces":         changed(headers[i], " "+headers[i+1]),
				"bytes":          changed(headers[i], headers[i+1]+"\x00"),
			} {
				if w := asks(s.Gateway, method, path, with...); w.Code != 403 {
					t.Errorf("%s: %s %s: %d", kind, what, headers[i], w.Code)
				}
			}
		}
		for _, other := range dialects {
			if kind == other {
				continue
			}
			_, elsewhere, _ := dialect(other, "GET", "app.example.com", "/page")
			if kind == "forward" && other == "envoy" {
				continue // Envoy's words are X-Forwarded-Proto and what a request has anyway
			}
			if w := asks(s.Gateway, method, elsewhere, headers...); w.Code != 403 {
				t.Errorf("%s at %s: %d", kind, elsewhere, w.Code)
			}
		}
	}
	_, _, headers := dialect("forward", "GET", "app.example.com", "/page")
	for _, path := range []string{"/", "/auth", "/auth/", "/auth/traefik", "/auth/forward/", "/auth/envoy", "/auth/envoyage", "/auth/nginx/x"} {
		if w := asks(s.Gateway, "GET", path, headers...); w.Code != 403 {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
	for _, url := range []string{"/page", "app.example.com/page", "https:/page", "https://app.example.com", "https://app.example.com?/x", "ftp://app.example.com/page",
		"HTTPS://app.example.com/page", "https://app.example.com/pa ge", "https://app.example.com/%zz", "https:///page", "https://app.example.com//x\x7f"} {
		if w := asks(s.Gateway, "GET", "/auth/nginx", "Host", "app.example.com", "X-Original-Method", "GET", "X-Original-Url", url); w.Code != 403 {
			t.Errorf("%q: %d", url, w.Code)
		}
	}
	if strings.Contains(s.log.String(), "app.example.com") {
		t.Error("the log repeats what was sent")
	}
}

// TestSpoofedQuestions: a header by which the app learns who is there is the
// gateway's to say, in every spelling that proxies hand on.
func TestSpoofedQuestions(t *testing.T) {
	s := newSite(t, gateway.Config{Trusted: proxies, Names: gateway.Names{User: "X-User"}})
	for _, kind := range dialects {
		method, path, headers := dialect(kind, "GET", "app.example.com", "/page")
		for name, status := range map[string]int{
			"X-User": 403, "X_user": 403, "X_User": 403, "Remote-User": 403, "Remote_user": 403, "Remote.User": 403, "Remote-Groups": 403,
			"Limpet-Level": 403, "Limpet_Level": 403, "Limpet-Anything": 403, "Limpet_Session": 403, "Limpet-Client-Name": 403, "X_Rpc_Sec_Data": 403,
			"X-Original-Host": 403, "X_Original_Url": 403, "X-Rewrite-Url": 403, "X_Forwarded_Uri": 403, "X_real_ip": 403, "X.forwarded.host": 403, "True.client.ip": 403,
			"Limpet-Session": 401, // the wire's own: nobody's session here
			"Limpet-Device":  200, "Limpet-Delegation": 200, "X-Rpc-Sec-Bound-Token-Data": 200, "Dpop": 200,
			"X-Forwarded-For": 200, "X-Real-Ip": 200, "X-Users": 200, "Accept": 200,
		} {
			if w := asks(s.Gateway, method, path, append(slices.Clone(headers), name, "admin")...); w.Code != status {
				t.Errorf("%s: %s: %d %s, want %d", kind, name, w.Code, w.Body, status)
			}
		}
	}
}

type noClients struct{}

func (noClients) Client(http.Header, *http.Request) (string, error) { return "billing", nil }

// TestRulesBeyondHeaders: a rule that a proxy's question cannot meet is not passed
// over, but where it only observes.
func TestRulesBeyondHeaders(t *testing.T) {
	for _, mode := range []limpet.Mode{limpet.Prefer, limpet.Require, limpet.Observe} {
		var routes []limpet.Route
		for i, rule := range []limpet.Rule{{Freshness: limpet.BodyHash}, {Channel: true}, {Client: limpet.BesideSession}, {Client: limpet.InsteadOfSession}, {Body: 64 << 10}} {
			rule.Mode = mode
			routes = append(routes, limpet.Route{Pattern: fmt.Sprintf("/%d", i), Rule: rule})
		}
		s := newSite(t, gateway.Config{Trusted: proxies, Routes: routes, Clients: noClients{}, Rule: limpet.Rule{Mode: mode}})
		status := 403
		if mode == limpet.Observe {
			status = 200
		}
		for _, path := range []string{"/0", "/1", "/2", "/3", "/4", "/login", "/logout"} {
			_, at, headers := dialect("forward", "POST", "app.example.com", path)
			w := asks(s.Gateway, "GET", at, headers...)
			if w.Code != status || status == 403 && !strings.Contains(w.Body.String(), "through_gateway") {
				t.Errorf("%s: %s: %d %s", mode, path, w.Code, w.Body)
			}
		}
		if n := strings.Count(s.log.String(), "reason=through_gateway"); n != 7 {
			t.Errorf("%s: %d lines in the log", mode, n)
		}
		if all := s.Elsewhere(); len(all) != 8 || !slices.Contains(all, "/1 (the channel)") || !slices.Contains(all, "POST /login (a login)") {
			t.Errorf("elsewhere: %q", all)
		}
	}
}

// TestForgottenCookie: a session that is over is taken out of the browser, by as
// many cookies as the proxy can hand on.
func TestForgottenCookie(t *testing.T) {
	store := memstore.New(nil)
	s := newSite(t, gateway.Config{Trusted: proxies, Store: store})
	owner := s.device(t)
	s.login(t, owner)
	token := s.cookie(t, owner)
	if err := s.Guard().Revoke(t.Context(), limpet.Cookie("sid").ID(token)); err != nil {
		t.Fatal(err)
	}
	for kind, cookies := range map[string]int{"nginx": 1, "forward": 4, "envoy": 4} {
		method, path, headers := dialect(kind, "GET", "app.example.com", "/page")
		w := asks(s.Gateway, method, path, append(headers, "Cookie", "sid="+token)...)
		set := w.Header()["Set-Cookie"]
		if w.Code != 401 || len(set) != cookies || !strings.Contains(set[0], "sid=;") || !strings.Contains(set[0], "Path=/;") || !strings.Contains(set[0], "Secure") {
			t.Errorf("%s: %d %q", kind, w.Code, set)
		}
	}
}

// TestOneChallengeLine: a refusal that has challenges of two schemes says both in
// one line, since nginx hands on no more.
func TestOneChallengeLine(t *testing.T) {
	s := newSite(t, gateway.Config{Trusted: proxies, Session: limpet.Bearer(), Logins: []gateway.Login{{Pattern: "POST /api/login", Token: "data.token"}}})
	owner := s.device(t)
	resp, err := owner.Post(s.front.URL+"/api/login", "application/json", strings.NewReader(`{"user":"alice","password":"secret"}`))
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	_, rest, _ := strings.Cut(string(text), `"token":"`)
	token, _, _ := strings.Cut(rest, `"`)
	_, path, headers := dialect("nginx", "GET", "app.example.com", "/page")
	w := asks(s.Gateway, "GET", path, append(headers, "Authorization", "DPoP "+token)...)
	said := w.Header()["Www-Authenticate"]
	if w.Code != 401 || len(said) != 1 || !strings.Contains(said[0], `Limpet error="proof_required"`) || !strings.Contains(said[0], "DPoP ") {
		t.Errorf("%d %q", w.Code, said)
	}
}

// FuzzQuestion: whatever a proxy is made to say, the app's request has the rule of
// the target that it is answered for, and nothing panics.
func FuzzQuestion(f *testing.F) {
	for _, kind := range dialects {
		for _, target := range []string{"/", "/admin/x?y=z", "/%61dmin/", "/a#b", "//x/y", "*", "/admin%2fx", "/..;/admin/"} {
			_, path, _ := dialect(kind, "GET", "app.example.com", target)
			f.Add(path, "GET", "https", "app.example.com", target, "Remote_User", "x")
		}
	}
	f.Add("/auth/nginx", "POST", "https", "a/b", "/login", "X-Original-Url", "http://a/b")
	g, err := gateway.New(gateway.Config{
		Upstream: &url.URL{Scheme: "http", Host: "127.0.0.1:1"}, Session: limpet.Cookie("sid"), Store: memstore.New(nil), Trusted: proxies, Logger: slog.New(slog.DiscardHandler),
		Logins: []gateway.Login{{Pattern: "POST /login"}}, Routes: []limpet.Route{{Pattern: "/admin/", Rule: limpet.Rule{Mode: limpet.Require}}},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, path, method, scheme, host, target, name, value string) {
		r := &http.Request{Method: method, Host: host, RequestURI: path, RemoteAddr: "192.0.2.1:1234", Header: http.Header{
			"X-Original-Method": {method}, "X-Original-Url": {scheme + "://" + host + target},
			"X-Forwarded-Method": {method}, "X-Forwarded-Proto": {scheme}, "X-Forwarded-Host": {host}, "X-Forwarded-Uri": {target},
		}}
		if path != "/auth/nginx" {
			delete(r.Header, "X-Original-Method")
			delete(r.Header, "X-Original-Url")
		}
		r.Header[http.CanonicalHeaderKey(name)] = append(r.Header[http.CanonicalHeaderKey(name)], value)
		var err error
		if r.URL, err = url.ParseRequestURI(path); err != nil {
			return // net/http had answered
		}
		w := httptest.NewRecorder()
		g.ForwardAuth(w, r)
		switch w.Code {
		case 200:
		case 401, 403, 503:
			return
		default:
			t.Fatalf("status %d", w.Code)
		}
		asked := target
		if rest, ok := strings.CutPrefix(path, "/auth/envoy"); ok {
			asked = rest
		}
		before, _, _ := strings.Cut(asked, "?")
		if plain, err := url.PathUnescape(before); err != nil || strings.HasPrefix(plain, "/admin") && (len(plain) == 6 || plain[6] == '/') ||
			method == "POST" && strings.EqualFold(strings.Trim(plain, "/"), "login") || strings.Contains(asked, "#") {
			t.Errorf("%s %q is admitted", method, asked)
		}
		folded := strings.ToLower(strings.NewReplacer("-", "_", ".", "_").Replace(name))
		if strings.HasPrefix(folded, "remote_") {
			t.Errorf("%q is admitted", name)
		}
	})
}

// TestBoundTokenInAQuestionsURL: what the gateway itself refuses is refused to
// proxies too.
func TestBoundTokenInAQuestionsURL(t *testing.T) {
	s := newSite(t, gateway.Config{Trusted: proxies})
	c := s.device(t)
	s.login(t, c)
	token := s.cookie(t, c)
	for _, kind := range dialects {
		for target, status := range map[string]int{"/?sid=" + token: 403, "/a;sid=" + token: 403, "/?sid=another": 200} {
			method, path, headers := dialect(kind, "GET", "app.example.com", target)
			if w := asks(s.Gateway, method, path, headers...); w.Code != status {
				t.Errorf("%s: %s: %d %s, want %d", kind, target, w.Code, w.Body, status)
			}
		}
	}
}

// TestUpgradesAskedAbout: a proxy that hands on an upgrade to h2c hands on all that
// comes behind it, unasked.
func TestUpgradesAskedAbout(t *testing.T) {
	s := newSite(t, gateway.Config{Trusted: proxies})
	for _, kind := range dialects {
		method, path, headers := dialect(kind, "GET", "app.example.com", "/page")
		for _, tc := range []struct {
			status int
			sent   []string
		}{
			{403, []string{"h2c"}}, {403, []string{"H2C"}}, {403, []string{"websocket, h2c"}}, {403, []string{"websocket", "h2c"}}, {403, []string{"TLS/1.0"}},
			{200, []string{"websocket"}}, {200, []string{"WebSocket"}},
		} {
			asked := append(slices.Clone(headers), "Connection", "Upgrade")
			for _, value := range tc.sent {
				asked = append(asked, "Upgrade", value)
			}
			if w := asks(s.Gateway, method, path, asked...); w.Code != tc.status {
				t.Errorf("%s: %q: %d %s, want %d", kind, tc.sent, w.Code, w.Body, tc.status)
			}
		}
	}
}

// TestTurnedAwayIsDecided: what is refused before the guard is asked is told of once,
// and what strangers ask not at all.
func TestTurnedAwayIsDecided(t *testing.T) {
	var told []limpet.Decision
	s := newSite(t, gateway.Config{Trusted: proxies, Decided: func(_ context.Context, d *limpet.Decision) { told = append(told, *d) }})
	_, path, headers := dialect("forward", "GET", "app.example.com", "/page;a=secret?b=c")
	if w := asks(s.Gateway, "GET", path, append(headers, "X_Forwarded_Host", "evil.example")...); w.Code != http.StatusForbidden {
		t.Fatal(w.Code)
	}
	if len(told) != 1 || told[0].Result != limpet.Refused || told[0].Reason != proof.Malformed || told[0].Method != "GET" || told[0].Path != "/page;" {
		t.Errorf("decisions: %+v", told)
	}
	told = nil
	r := httptest.NewRequest("GET", path, nil)
	r.RemoteAddr = "198.51.100.1:1"
	w := httptest.NewRecorder()
	if s.Gateway.ForwardAuth(w, r); w.Code != http.StatusForbidden || told != nil {
		t.Errorf("a stranger: %d, %+v", w.Code, told)
	}
}
