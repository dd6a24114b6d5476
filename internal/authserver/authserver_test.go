package authserver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/client"
	"github.com/limpet-auth/limpet/hwkey/softkey"
	"github.com/limpet-auth/limpet/proof/httpsig"
	"github.com/limpet-auth/limpet/store/memstore"
)

func newServer(t *testing.T, cfg Config) (*Server, *bytes.Buffer) {
	t.Helper()
	log := new(bytes.Buffer)
	cfg.Logger = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	if cfg.Store == nil {
		cfg.Store = memstore.New(nil)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s, log
}

// do makes a request and returns its status and the members of the answer.
func do(t *testing.T, s http.Handler, method, path, token, body string) (int, map[string]any) {
	t.Helper()
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	var answer map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
		t.Fatalf("%s %s: the answer %q is no JSON", method, path, w.Body)
	}
	if w.Code >= 400 && (answer["message"] == "" || answer["reason"] == nil) {
		t.Errorf("%s %s: %d without message and reason: %v", method, path, w.Code, answer)
	}
	return w.Code, answer
}

func account(name, password string) string {
	b, _ := json.Marshal(map[string]string{"username": name, "password": password})
	return string(b)
}

func login(t *testing.T, s http.Handler, name, password string) string {
	t.Helper()
	code, answer := do(t, s, "POST", "/login", "", account(name, password))
	token, _ := answer["token"].(string)
	if code != 200 || len(token) != 43 {
		t.Fatalf("login: %d %v", code, answer)
	}
	return token
}

func TestLife(t *testing.T) {
	s, log := newServer(t, Config{})
	if code, a := do(t, s, "POST", "/register", "", account("alice", "first secret")); code != 201 || a["message"] == "" {
		t.Fatalf("register: %d %v", code, a)
	}
	if code, a := do(t, s, "POST", "/register", "", account("alice", "other secret")); code != 409 || a["reason"] != "user_exists" {
		t.Fatalf("register again: %d %v", code, a)
	}
	if code, _ := do(t, s, "POST", "/login", "", account("alice", "other secret")); code != 401 {
		t.Fatalf("login with the password of the second registration: %d", code)
	}
	token, other := login(t, s, "alice", "first secret"), login(t, s, "alice", "first secret")
	for _, method := range []string{"GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"} {
		code, a := do(t, s, method, "/authenticated", token, `{"password":"first secret"}`)
		if code != 200 || a["authenticated"] != true || a["user"] != "alice" || a["level"] != "none" {
			t.Errorf("%s: %d %v", method, code, a)
		}
	}
	for _, wrong := range []string{"", "x", token + "x", strings.ToUpper(token)} {
		if code, _ := do(t, s, "GET", "/authenticated", wrong, ""); code != 401 {
			t.Errorf("token %q: %d", wrong, code)
		}
		if code, _ := do(t, s, "POST", "/logout", wrong, ""); code != 401 {
			t.Errorf("logout with token %q: %d", wrong, code)
		}
	}
	if code, _ := do(t, s, "POST", "/logout", token, ""); code != 200 {
		t.Errorf("logout: %d", code)
	}
	if code, a := do(t, s, "GET", "/authenticated", token, ""); code != 401 || a["reason"] != "session_ended" {
		t.Errorf("after the logout: %d %v", code, a)
	}
	if code, _ := do(t, s, "GET", "/authenticated", other, ""); code != 200 {
		t.Errorf("the other session: %d", code)
	}
	for _, secret := range []string{"secret", token, other} {
		if strings.Contains(log.String(), secret) {
			t.Errorf("the log has a secret:\n%s", log)
		}
	}
}

func TestForm(t *testing.T) {
	s, log := newServer(t, Config{})
	for _, c := range []struct {
		name, method, path, body string
		code                     int
		reason                   string
	}{
		{"no such path", "GET", "/nothing", "", 404, "not_found"},
		{"a path that is not clean", "POST", "//login", "", 404, "not_found"},
		{"a method that is none of ours", "GET", "/login", "", 405, "method_not_allowed"},
		{"no body", "POST", "/login", "", 400, "bad_request"},
		{"no JSON", "POST", "/login", "username=alice", 400, "bad_request"},
		{"another type", "POST", "/login", `{"username":1,"password":"secret"}`, 400, "bad_request"},
		{"an array", "POST", "/login", `[]`, 400, "bad_request"},
		{"null", "POST", "/login", `null`, 400, "bad_username"},
		{"trailing garbage", "POST", "/register", account("alice", "secret") + "x", 400, "bad_request"},
		{"two values", "POST", "/register", account("alice", "secret") + "{}", 400, "bad_request"},
		{"not UTF-8", "POST", "/register", account("alice", "secret\xff"[:6]) + "\xff", 400, "bad_request"},
		{"not UTF-8 within", "POST", "/register", `{"username":"alice","password":"` + "\xff" + `"}`, 400, "bad_request"},
		{"64 KiB and more", "POST", "/register", account("alice", strings.Repeat("secret", 11000)), 413, "body_too_large"},
		{"no name", "POST", "/register", account("", "secret"), 400, "bad_username"},
		{"a long name", "POST", "/register", account(strings.Repeat("ä", 65), "secret"), 400, "bad_username"},
		{"a name with a control character", "POST", "/register", account("al\nice", "secret"), 400, "bad_username"},
		{"a name with a lone surrogate", "POST", "/register", `{"username":"a\ud800","password":"secret"}`, 400, "bad_username"},
		{"a name that ends in a space", "POST", "/register", account("alice ", "secret"), 400, "bad_username"},
		{"no password", "POST", "/register", account("alice", ""), 400, "bad_password"},
		{"a long password", "POST", "/register", account("alice", strings.Repeat("x", 1025)), 400, "bad_password"},
		{"the longest there are", "POST", "/register", account(strings.Repeat("𝔞", 64), strings.Repeat("x", 1024)), 201, ""},
		{"unknown fields", "POST", "/register", `{"username":"alice","password":"secret","more":{"password":[1]}}`, 201, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, a := do(t, s, c.method, c.path, "", c.body)
			if reason, _ := a["reason"].(string); code != c.code || reason != c.reason {
				t.Errorf("%d %v, want %d %s", code, a, c.code, c.reason)
			}
		})
	}
	login(t, s, "alice", "secret")
	login(t, s, strings.Repeat("𝔞", 64), strings.Repeat("x", 1024))
	if strings.Contains(log.String(), "secret") {
		t.Errorf("the log has a secret:\n%s", log)
	}
}

func TestOneRegistrationWins(t *testing.T) {
	s, _ := newServer(t, Config{})
	var mu sync.Mutex
	codes, winner := make(map[int]int), ""
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			password := strings.Repeat("x", i+1)
			code, _ := do(t, s, "POST", "/register", "", account("alice", password))
			mu.Lock()
			defer mu.Unlock()
			codes[code]++
			if code == 201 {
				winner = password
			}
		})
	}
	wg.Wait()
	if codes[201] != 1 || codes[409] != 15 {
		t.Errorf("answers %v, want one 201 and else 409", codes)
	}
	login(t, s, "alice", winner)
}

func TestModes(t *testing.T) {
	for _, c := range []struct {
		name          string
		rule          limpet.Rule
		none, revoked int
	}{
		{"prefer", limpet.Rule{}, 200, 401},
		{"require", limpet.Rule{Mode: limpet.Require}, 401, 401},
		{"software at least", limpet.Rule{MinLevel: limpet.Software}, 403, 401},
		{"observe", limpet.Rule{Mode: limpet.Observe}, 200, 200}, // only logs
	} {
		t.Run(c.name, func(t *testing.T) {
			s, _ := newServer(t, Config{Rule: c.rule})
			do(t, s, "POST", "/register", "", account("alice", "secret"))
			token := login(t, s, "alice", "secret")
			if code, a := do(t, s, "GET", "/authenticated", token, ""); code != c.none {
				t.Errorf("a session without a key: %d %v, want %d", code, a, c.none)
			}
			if code, _ := do(t, s, "GET", "/authenticated", "x", ""); code != 401 {
				t.Errorf("an unknown token: %d", code)
			}
			if n, err := s.RevokeUser(t.Context(), "alice"); n != 1 || err != nil {
				t.Fatalf("RevokeUser = %d, %v", n, err)
			}
			if code, a := do(t, s, "GET", "/authenticated", token, ""); code != c.revoked {
				t.Errorf("a revoked session: %d %v, want %d", code, a, c.revoked)
			}
		})
	}
}

func TestLogoutInObserve(t *testing.T) {
	s, _ := newServer(t, Config{Rule: limpet.Rule{Mode: limpet.Observe}})
	do(t, s, "POST", "/register", "", account("alice", "secret"))
	token := login(t, s, "alice", "secret")
	if code, _ := do(t, s, "POST", "/logout", token, ""); code != 200 {
		t.Errorf("logout: %d", code)
	}
	if code, _ := do(t, s, "GET", "/authenticated", token, ""); code != 401 {
		t.Errorf("after the logout: %d", code)
	}
}

func TestCORS(t *testing.T) {
	s, _ := newServer(t, Config{})
	r := httptest.NewRequest("OPTIONS", "/authenticated", nil)
	r.Header.Set("Origin", "https://app.example.com")
	r.Header.Set("Access-Control-Request-Method", "DELETE")
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	allowed := strings.ToLower(w.Header().Get("Access-Control-Allow-Headers"))
	for _, prefix := range []string{"x-rpc-sec-dbcs-", "x-rpc-sec-bound-token-"} {
		for _, name := range []string{"hw-pub", "hw-pub-type", "accel-pub", "accel-pub-type", "accel-pub-sig", "accel-pub-id", "data", "data-sig"} {
			if !strings.Contains(allowed+",", prefix+name+",") {
				t.Errorf("%s%s is not allowed", prefix, name)
			}
		}
	}
	for _, name := range []string{"authorization", "signature", "signature-input", "content-digest", "limpet-device", "limpet-delegation",
		"limpet-session", "limpet-challenge", "limpet-channel", "dpop"} {
		if !strings.Contains(", "+allowed+",", ", "+name+",") {
			t.Errorf("%s is not allowed", name)
		}
	}
	if w.Code != 204 || w.Header().Get("Access-Control-Allow-Origin") != "*" || w.Header().Get("Access-Control-Allow-Credentials") != "" {
		t.Errorf("preflight: %d %v", w.Code, w.Header())
	}
	r = httptest.NewRequest("GET", "/authenticated", nil)
	r.Header.Set("Origin", "https://app.example.com")
	w = httptest.NewRecorder()
	s.ServeHTTP(w, r)
	exposed := strings.ToLower(w.Header().Get("Access-Control-Expose-Headers"))
	for _, name := range []string{"x-rpc-sec-dbcs-accel-pub-id", "x-rpc-sec-bound-token-accel-pub", "x-rpc-sec-bound-token-accel-pub-expire", "www-authenticate",
		"limpet-key", "limpet-challenge", "dpop-nonce"} {
		if !strings.Contains(exposed, name) {
			t.Errorf("%s is not exposed", name)
		}
	}
	if w.Code != 401 || w.Header().Get("Access-Control-Allow-Origin") != "*" {
		t.Errorf("a refusal: %d %v", w.Code, w.Header())
	}
}

func TestWellKnown(t *testing.T) {
	s, _ := newServer(t, Config{Rule: limpet.Rule{Mode: limpet.Require}})
	code, a := do(t, s, "GET", httpsig.WellKnownPath, "", "")
	key, _ := a["key"].(string)
	if _, _, err := httpsig.ParseServer(key); code != 200 || err != nil || a["session"] != "bearer" || a["challenge"] == "" {
		t.Errorf("%d %v: %v", code, a, err)
	}
}

func TestEcho(t *testing.T) {
	s, _ := newServer(t, Config{})
	do(t, s, "POST", "/register", "", account("alice", "secret"))
	token := login(t, s, "alice", "secret")
	code, a := do(t, s, "PUT", "/echo/a%2Fb?c=%64", token, "12345")
	if code != 200 || a["method"] != "PUT" || a["path"] != "/echo/a%2Fb" || a["query"] != "c=%64" || a["bytes"] != 5.0 {
		t.Errorf("%d %v", code, a)
	}
	if code, a := do(t, s, "GET", "/echo", token, ""); code != 200 || a["bytes"] != 0.0 {
		t.Errorf("no body: %d %v", code, a)
	}
	if code, a := do(t, s, "GET", "/echo", "", ""); code != 401 || a["reason"] != "session_required" {
		t.Errorf("no token: %d %v", code, a)
	}
	if code, a := do(t, s, "POST", "/echo", token, strings.Repeat("x", maxEcho+1)); code != 413 || a["reason"] != "body_too_large" {
		t.Errorf("a large body: %d %v", code, a)
	}
	if code, _ := do(t, s, "GET", "/echoes", token, ""); code != 404 {
		t.Errorf("another path: %d", code)
	}
}

// TestAlteredBodies: what a proof covers does not reach a handler in another form.
func TestAlteredBodies(t *testing.T) {
	for name, rule := range map[string]limpet.Rule{"read before": {}, "streamed": {Body: limpet.StreamBody}} {
		s, _ := newServer(t, Config{Rule: rule})
		srv := httptest.NewServer(s)
		defer srv.Close()
		keys, err := softkey.Open(t.Context(), t.TempDir(), softkey.KeyFile(""))
		if err != nil {
			t.Fatal(err)
		}
		var with func(string) string
		c := client.New(keys)
		defer c.Close()
		web := &http.Client{Transport: c.Transport(alter(func(body string) string { return with(body) }))}
		token := ""
		post := func(path, body string) (int, string) {
			req, err := http.NewRequest("POST", srv.URL+path, strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			if token != "" {
				req.Header.Set("Authorization", "Bearer "+token)
			}
			resp, err := web.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			var a map[string]any
			json.NewDecoder(resp.Body).Decode(&a)
			if text, ok := a["token"].(string); ok {
				token = text
			}
			reason, _ := a["reason"].(string)
			return resp.StatusCode, reason
		}
		same := func(body string) string { return body }
		with = same
		for _, user := range []string{"alice", "mallory"} {
			if code, _ := post("/register", account(user, "secret")); code != 201 {
				t.Fatalf("%s: register: %d", name, code)
			}
		}
		with = func(string) string { return account("mallory", "secret") }
		if code, reason := post("/login", account("alice", "secret")); code != 401 || reason != "body_mismatch" {
			t.Errorf("%s: a login with another body: %d %s", name, code, reason)
		}
		with = func(body string) string { return body + strings.Repeat(" ", maxBody) }
		if code, reason := post("/login", account("alice", "secret")); code != 413 || reason != "body_too_large" {
			t.Errorf("%s: a login with a large body: %d %s", name, code, reason)
		}
		with = same
		if code, reason := post("/login", account("alice", "secret")); code != 200 {
			t.Fatalf("%s: login: %d %s", name, code, reason)
		}
		if code, reason := post("/echo", "1"); code != 200 {
			t.Errorf("%s: %d %s", name, code, reason)
		}
		with = func(string) string { return "1000" }
		if code, reason := post("/echo", "1"); code != 401 || reason != "body_mismatch" {
			t.Errorf("%s: another body: %d %s", name, code, reason)
		}
	}
}

// alter sends requests with another body.
type alter func(body string) string

func (a alter) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body == nil {
		return http.DefaultTransport.RoundTrip(r)
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	text := a(string(body))
	r = r.Clone(r.Context())
	r.Body, r.ContentLength, r.GetBody = io.NopCloser(strings.NewReader(text)), int64(len(text)), nil
	return http.DefaultTransport.RoundTrip(r)
}

// down is a store that cannot answer.
type down struct{ limpet.Store }

var errDown = errors.New("the store is down")

func (down) Get(context.Context, string) ([]byte, bool, error)                { return nil, false, errDown }
func (down) Put(context.Context, string, []byte, time.Duration) error         { return errDown }
func (down) Add(context.Context, string, []byte, time.Duration) (bool, error) { return false, errDown }

func TestStoreDown(t *testing.T) {
	s, _ := newServer(t, Config{Store: down{}})
	for _, path := range []string{"/register", "/login", "/authenticated", "/logout"} {
		if code, a := do(t, s, "POST", path, "x", account("alice", "secret")); code != 503 || a["reason"] != "unavailable" {
			t.Errorf("%s: %d %v", path, code, a)
		}
	}
}

func TestPasswordsBusy(t *testing.T) {
	s, _ := newServer(t, Config{})
	for range hashSlots {
		s.passwords.slots <- struct{}{}
	}
	s.passwords.waiting.Store(hashWaiting)
	if code, a := do(t, s, "POST", "/login", "", account("alice", "secret")); code != 503 || a["reason"] != "unavailable" {
		t.Errorf("with a full queue: %d %v", code, a)
	}
	s.passwords.waiting.Store(0)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.passwords.hash(ctx, "secret"); !errors.Is(err, context.Canceled) {
		t.Errorf("in the queue: %v", err)
	}
	if n := s.passwords.waiting.Load(); n != 0 {
		t.Errorf("%d wait, want none", n)
	}
}

// TestUnknownUserCost: both wait for the same slots, so both hash.
func TestUnknownUserCost(t *testing.T) {
	s, _ := newServer(t, Config{})
	do(t, s, "POST", "/register", "", account("alice", "secret"))
	for range hashSlots {
		s.passwords.slots <- struct{}{}
	}
	for _, name := range []string{"alice", "bob"} {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		r := httptest.NewRequestWithContext(ctx, "POST", "/login", strings.NewReader(account(name, "guess")))
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code != 503 {
			t.Errorf("%s: %d without a slot, so nothing was hashed", name, w.Code)
		}
		cancel()
	}
}

func TestFailures(t *testing.T) {
	s, _ := newServer(t, Config{})
	now := time.Now()
	s.failures.now = func() time.Time { return now }
	do(t, s, "POST", "/register", "", account("alice", "secret"))
	for _, name := range []string{"alice", "nobody"} {
		if code, _ := do(t, s, "POST", "/login", "", account(name, "guess")); code != 401 {
			t.Fatalf("%s: %d", name, code)
		}
		for range failureBurst - 1 {
			s.failures.add(name)
		}
		if code, a := do(t, s, "POST", "/login", "", account(name, "secret")); code != 429 || a["reason"] != "too_many_logins" {
			t.Errorf("%s, after the burst: %d %v", name, code, a)
		}
	}
	now = now.Add(failurePause + time.Second)
	login(t, s, "alice", "secret")
	if wait := s.failures.wait("alice"); wait != 0 {
		t.Errorf("after a login alice waits %v", wait)
	}
}

func TestFailuresBounded(t *testing.T) {
	f := newFailures()
	now := time.Now()
	f.now = func() time.Time { return now }
	for i := range 3 * maxFailures {
		f.add(strings.Repeat("x", i%100) + string(rune('a'+i/100)))
	}
	if len(f.until) > maxFailures {
		t.Errorf("%d names, want at most %d", len(f.until), maxFailures)
	}
	if f.wait("nobody") != 0 {
		t.Error("a name that never failed must wait")
	}
	for range 1000 {
		f.add("alice")
	}
	if wait := f.wait("alice"); wait <= 0 || wait > failureBurst*failurePause {
		t.Errorf("alice waits %v", wait)
	}
	now = now.Add(failurePause)
	if wait := f.wait("alice"); wait != 0 {
		t.Errorf("after a pause alice still waits %v", wait)
	}
}

// With DBSC the session is in a cookie, which a browser is offered to bind.
func TestDBSC(t *testing.T) {
	s, err := New(Config{Store: memstore.New(nil), DBSC: true, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ask := func(method, path, body, cookies string) *httptest.ResponseRecorder {
		r, w := httptest.NewRequest(method, path, strings.NewReader(body)), httptest.NewRecorder()
		r.Header.Set("Sec-Fetch-Site", "same-origin")
		r.Header.Set("Cookie", cookies)
		s.ServeHTTP(w, r)
		return w
	}
	const alice = `{"username":"alice","password":"secret"}`
	if w := ask("POST", "/register", alice, ""); w.Code != 201 {
		t.Fatalf("register: %d", w.Code)
	}
	w := ask("POST", "/login", alice, "")
	session, _, _ := strings.Cut(w.Header().Get("Set-Cookie"), ";")
	if w.Code != 200 || strings.Contains(w.Body.String(), "token") || !strings.HasPrefix(session, cookie+"=") || w.Header().Get("Secure-Session-Registration") == "" {
		t.Fatalf("login: %d %v %s", w.Code, w.Header(), w.Body)
	}
	if w := ask("GET", "/authenticated", "", session); w.Code != 200 || !strings.Contains(w.Body.String(), `"alice"`) {
		t.Errorf("with the cookie: %d %s", w.Code, w.Body)
	}
	if w := ask("GET", "/authenticated", "", ""); w.Code != 401 {
		t.Errorf("without: %d", w.Code)
	}
	if w := ask("POST", "/.well-known/limpet/dbsc", "", session); w.Code != 403 {
		t.Errorf("an empty registration: %d", w.Code)
	}
}
