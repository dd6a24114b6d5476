package admin

import (
	"bufio"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

const adminToken = "an-admin-token-of-some-length"

// visitor asks a console as a browser does.
type visitor struct {
	t       *testing.T
	handler http.Handler
	cookie  string // NAME=VALUE
	key     string
	header  http.Header // more
}

const here = "127.0.0.1:9180"

func (v *visitor) ask(method, path, body string) *http.Response {
	v.t.Helper()
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Host = here
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	if method != "GET" {
		r.Header.Set("Origin", "http://"+here)
		r.Header.Set("Content-Type", "application/json")
	}
	if v.cookie != "" {
		r.Header.Set("Cookie", v.cookie)
	}
	if v.key != "" {
		r.Header.Set("Limpet-Console", v.key)
	}
	for name, values := range v.header {
		r.Header[name] = values
		if name == "Host" {
			r.Host = values[0]
		}
	}
	w := httptest.NewRecorder()
	v.handler.ServeHTTP(w, r)
	return w.Result()
}

func (v *visitor) code(method, path, body string) int {
	v.t.Helper()
	return v.ask(method, path, body).StatusCode
}

// signIn signs in, and keeps cookie and key.
func (v *visitor) signIn() {
	v.t.Helper()
	resp := v.ask("POST", "/console/session", `{"token":"`+adminToken+`\n"}`)
	var got struct{ Key string }
	if err := json.NewDecoder(resp.Body).Decode(&got); resp.StatusCode != 200 || err != nil || got.Key == "" || len(resp.Cookies()) != 1 {
		v.t.Fatalf("%s, %v, %v", resp.Status, err, resp.Cookies())
	}
	c := resp.Cookies()[0]
	if !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.Path != "/console/" || c.Domain != "" || c.MaxAge != 12*60*60 || c.Name != "limpet-console-9180" {
		v.t.Errorf("cookie %+v", c)
	}
	v.cookie, v.key = c.Name+"="+c.Value, got.Key
}

// TestConsoleSession: it takes the token to get in, and both halves of the secret to
// stay there.
func TestConsoleSession(t *testing.T) {
	s := newServer(t)
	id := s.bind("token", "alice", nil).String()
	v := &visitor{t: t, handler: s.api.OnLoopback(adminToken)}
	if resp := v.ask("GET", "/console", ""); resp.StatusCode != 302 || resp.Header.Get("Location") != "/console/" {
		t.Errorf("%s to %s", resp.Status, resp.Header.Get("Location"))
	}
	if code := v.code("GET", "/console/", ""); code != 200 {
		t.Errorf("the page: %d", code)
	}
	for _, path := range []string{"sessions", "sessions/" + id, "decisions", "history", "status", "metrics", "livez", ""} {
		if code := v.code("GET", "/console/api/"+path, ""); code != 401 {
			t.Errorf("%s without a session: %d", path, code)
		}
	}
	v.signIn()
	for _, path := range []string{"sessions", "sessions/" + id, "history", "status"} {
		if code := v.code("GET", "/console/api/"+path, ""); code != 200 {
			t.Errorf("%s: %d", path, code)
		}
	}
	for name, other := range map[string]*visitor{
		"only the cookie": {cookie: v.cookie},
		"only the key":    {key: v.key},
		"another key":     {cookie: v.cookie, key: v.key[1:] + "A"},
		"another cookie":  {cookie: v.cookie + "A", key: v.key},
		"halves swapped":  {cookie: "limpet-console-9180=" + v.key, key: strings.TrimPrefix(v.cookie, "limpet-console-9180=")},
		"another port's":  {cookie: strings.Replace(v.cookie, "9180", "9181", 1), key: v.key},
		"the token":       {cookie: "limpet-console-9180=" + adminToken, key: adminToken},
	} {
		other.t, other.handler = t, v.handler
		if code := other.code("GET", "/console/api/sessions", ""); code != 401 {
			t.Errorf("%s: %d", name, code)
		}
		if code := other.code("DELETE", "/console/session", ""); code != 401 {
			t.Errorf("%s signs out: %d", name, code)
		}
	}

	// The cookie opens nothing outside of the console, nor does the token in it.
	for _, path := range []string{"/sessions", "/status", "/history", "/decisions"} {
		if code := v.code("GET", path, ""); code != 403 {
			t.Errorf("%s by a page: %d", path, code)
		}
	}

	// Another tab of the browser has the same cookie and a key of its own.
	tab := &visitor{t: t, handler: v.handler, cookie: v.cookie}
	tab.signIn()
	if tab.cookie != v.cookie || tab.key == v.key {
		t.Error("the second tab takes the first one's place")
	}
	// One that somebody planted before the sign-in is not taken.
	planted := &visitor{t: t, handler: v.handler, cookie: "limpet-console-9180=planted"}
	planted.signIn()
	if planted.cookie == "limpet-console-9180=planted" {
		t.Error("a planted cookie is taken")
	}
	if code := v.code("DELETE", "/console/api/sessions/"+id, ""); code != 200 {
		t.Errorf("revoke: %d", code)
	}
	resp := tab.ask("DELETE", "/console/session", "")
	if c := resp.Cookies(); resp.StatusCode != 200 || len(c) != 1 || c[0].MaxAge != -1 {
		t.Errorf("sign out: %s %v", resp.Status, c)
	}
	for name, in := range map[*visitor]int{v: 401, tab: 401, planted: 200} {
		if code := name.code("GET", "/console/api/status", ""); code != in {
			t.Errorf("after signing out: %d, want %d", code, in)
		}
	}
}

// TestConsoleStrangers: other sites' pages, names that lead here, and frames.
func TestConsoleStrangers(t *testing.T) {
	s := newServer(t)
	v := &visitor{t: t, handler: s.api.OnLoopback(adminToken)}
	v.signIn()
	for _, header := range []http.Header{
		{"Origin": {"http://evil.example"}},
		{"Origin": {"http://127.0.0.1:8080"}}, // another port of this machine
		{"Origin": {"https://" + here}},
		{"Origin": {"null"}},
		{"Origin": {""}},
		{"Origin": {"http://" + here, "http://evil.example"}},
		{"Sec-Fetch-Site": {"cross-site"}},
		{"Sec-Fetch-Site": {"same-site"}},
		{"Host": {"evil.example:9180"}},
		{"Host": {"127.0.0.1.evil.example"}},
		{"Host": {""}},
	} {
		v.header = header
		for _, ask := range [][3]string{
			{"GET", "/console/", ""}, {"GET", "/console", ""}, {"GET", "/console/api/sessions", ""}, {"DELETE", "/console/api/sessions?user=alice", ""},
			{"POST", "/console/session", `{"token":"` + adminToken + `"}`}, {"DELETE", "/console/session", ""},
		} {
			if resp := v.ask(ask[0], ask[1], ask[2]); resp.StatusCode != 403 || resp.Header.Get("Set-Cookie") != "" || resp.Header.Get("Access-Control-Allow-Origin") != "" {
				t.Errorf("%v, %s %s: %s", header, ask[0], ask[1], resp.Status)
			}
		}
	}
	// What a form can send.
	for _, kind := range []string{"text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""} {
		v.header = http.Header{"Content-Type": {kind}}
		if code := v.code("POST", "/console/session", `{"token":"`+adminToken+`"}`); code != 415 {
			t.Errorf("%s: %d", kind, code)
		}
	}
	v.header = nil
	h := v.ask("GET", "/console/", "").Header
	if p := h.Get("Content-Security-Policy"); !strings.HasPrefix(p, "default-src 'none'; script-src 'self'; ") || !strings.Contains(p, "frame-ancestors 'none'") || strings.Contains(p, "unsafe") || h.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("%v", h)
	}
	if code := v.code("GET", "/console/api/status", ""); code != 200 {
		t.Errorf("the page itself: %d", code)
	}
}

// TestConsoleGarbage: none of this signs in, and none is more than refused.
func TestConsoleGarbage(t *testing.T) {
	s := newServer(t)
	v := &visitor{t: t, handler: s.api.OnLoopback(adminToken)}
	for body, code := range map[string]int{
		"":                                       400,
		"{":                                      400,
		"[]":                                     400,
		`"token"`:                                400,
		`{"token":1}`:                            400,
		`{"token":null}`:                         401,
		"{}":                                     401,
		`{"token":""}`:                           401,
		`{"token":"x"}`:                          401,
		`{"token":"` + adminToken + `x"}`:        401,
		`{"token":"` + adminToken[1:] + `"}`:     401,
		strings.Repeat(" ", maxSignIn+1) + "{}":  400,
		strings.Repeat("[", maxSignIn-1):         400,
		`{"token":"` + strings.Repeat("x", 1000): 400,
		`{"token":"` + "\xff" + `"}`:             401,
		`{"TOKEN ":"` + adminToken + `","x":"y"}`: 401,
	} {
		if resp := v.ask("POST", "/console/session", body); resp.StatusCode != code && resp.StatusCode != 429 || resp.Header.Get("Set-Cookie") != "" {
			t.Errorf("%.40q: %s, want %d", body, resp.Status, code)
		}
	}
	for _, ask := range []struct {
		method, path string
		code         int
	}{
		{"GET", "/console/session", 405},
		{"PUT", "/console/session", 405},
		{"POST", "/console/", 405},
		{"GET", "/console/nothing", 404},
		{"GET", "/console//", 404},
		{"GET", "/console/..%2fsessions", 404},
		{"GET", "/consoles", 403},
		{"GET", "/console/api", 404},
		{"GET", "/console/api/../api/status", 401},
	} {
		if code := v.code(ask.method, ask.path, ""); code != ask.code {
			t.Errorf("%s %s: %d, want %d", ask.method, ask.path, code, ask.code)
		}
	}
	// Without a token there is no console.
	v.handler = s.api.OnLoopback("")
	for _, ask := range [][3]string{{"GET", "/console/", ""}, {"POST", "/console/session", `{"token":""}`}, {"GET", "/console/api/status", ""}} {
		if code := v.code(ask[0], ask[1], ask[2]); code != 404 {
			t.Errorf("without a token: %s %s: %d", ask[0], ask[1], code)
		}
	}
}

// TestConsoleGuessing: wrong tokens slow each other down, and no more than that.
func TestConsoleGuessing(t *testing.T) {
	c := newServer(t).api.newConsole(adminToken)
	now := time.Now()
	try := func(token string) *http.Response {
		r := httptest.NewRequest("POST", "/console/session", strings.NewReader(`{"token":"`+token+`"}`))
		r.Host = here
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		c.signIn(w, r, now)
		return w.Result()
	}
	for i := range failureBurst {
		if resp := try("guess"); resp.StatusCode != 401 {
			t.Fatalf("guess %d: %s", i, resp.Status)
		}
	}
	for _, token := range []string{"guess", adminToken} {
		if resp := try(token); resp.StatusCode != 429 || resp.Header.Get("Retry-After") != "2" {
			t.Errorf("%s: %s, Retry-After %s", token, resp.Status, resp.Header.Get("Retry-After"))
		}
	}
	now = now.Add(failurePause + time.Millisecond)
	if resp := try("guess"); resp.StatusCode != 401 {
		t.Errorf("after a pause: %s", resp.Status)
	}
	now = now.Add(failurePause + time.Millisecond)
	if resp := try(adminToken); resp.StatusCode != 200 {
		t.Errorf("the token: %s", resp.Status)
	}
}

// TestConsoleStreams: what a tab watches ends when it signs out.
func TestConsoleStreams(t *testing.T) {
	s := newServer(t)
	srv := httptest.NewServer(s.api.OnLoopback(adminToken))
	defer srv.Close()
	ask := func(method, path, body string, header http.Header) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, srv.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header = header
		resp, err := http.DefaultClient.Do(req)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("%s: %v, %v", path, resp, err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return resp
	}
	resp := ask("POST", "/console/session", `{"token":"`+adminToken+`"}`, http.Header{"Content-Type": {"application/json"}})
	var got struct{ Key string }
	json.NewDecoder(resp.Body).Decode(&got)
	c := resp.Cookies()[0]
	in := http.Header{"Cookie": {c.Name + "=" + c.Value}, "Limpet-Console": {got.Key}}
	stream := ask("GET", "/console/api/decisions", "", in)
	lines := bufio.NewScanner(stream.Body)
	s.bind("token", "alice", nil)
	if d := next(t, lines); d.User != "alice" {
		t.Errorf("%+v", d)
	}
	ask("DELETE", "/console/session", "", in)
	if lines.Scan() { // or it hangs
		t.Errorf("%s", lines.Text())
	}
}

// TestConsoleEnds: a session ends by itself, and there are not any number of them.
func TestConsoleEnds(t *testing.T) {
	s := newServer(t)
	c := s.api.newConsole(adminToken)
	v := &visitor{t: t, handler: c}
	v.signIn()
	in := func(at time.Time) bool {
		r := httptest.NewRequest("GET", "/console/api/status", nil)
		r.Host = here
		r.Header.Set("Cookie", v.cookie)
		r.Header.Set("Limpet-Console", v.key)
		s, _ := c.signedIn(r, at)
		return s != nil
	}
	if now := time.Now(); !in(now) || !in(now.Add(consoleTime-time.Minute)) || in(now.Add(consoleTime)) {
		t.Error("it does not end when it should")
	}
	for range maxSignIns {
		(&visitor{t: t, handler: c}).signIn()
	}
	if len(c.live) != maxSignIns || in(time.Now()) {
		t.Errorf("%d sessions, and the oldest is among them: %v", len(c.live), in(time.Now()))
	}
}
