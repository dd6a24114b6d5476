package gateway_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/gateway"
	"github.com/limpet-auth/limpet/store/boltstore"
	"github.com/limpet-auth/limpet/store/memstore"
)

// TestCookieApp: the login is bound, the owner's requests reach the app, the
// thief's do not, and after the logout nobody's.
func TestCookieApp(t *testing.T) {
	s := newSite(t, gateway.Config{})
	owner := s.device(t)
	s.login(t, owner)
	code, e := s.ask(t, owner, "GET", "/me?x=1&y=a;b", nil)
	if code != 200 || e.User != "alice" || e.URI != "/me?x=1&y=a;b" || "https://"+e.Host != s.front.URL {
		t.Errorf("the owner: %d %+v", code, e)
	}
	id := limpet.Cookie("sid").ID(s.cookie(t, owner)).String()
	for name, want := range map[string]string{"Remote-User": "alice", "Limpet-Level": "software", "Limpet-Session": id,
		"X-Forwarded-Proto": "https", "X-Forwarded-For": "127.0.0.1", "X-Forwarded-Host": e.Host} {
		if got := e.Header[name]; len(got) != 1 || got[0] != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if len(e.Header.Get("Limpet-Key")) != 43 {
		t.Errorf("Limpet-Key: %q", e.Header["Limpet-Key"])
	}
	for name := range e.Header {
		if strings.HasPrefix(name, "Signature") || name == "Limpet-Delegation" {
			t.Errorf("the app got %s", name)
		}
	}
	stolen := s.cookie(t, owner)
	thief := s.thief(t, stolen)
	s.wants(t, thief, "GET", "/me", 401, "proof_required")
	s.wants(t, s.thief(t, "%22"+stolen+"%22"), "GET", "/me", 401, "proof_required")
	s.wants(t, thief, "POST", "/logout", 401, "proof_required")
	s.wants(t, owner, "POST", "/logout", 200, "")
	s.wants(t, thief, "GET", "/me", 401, "session_ended")
	s.plant(t, owner, stolen)
	s.wants(t, owner, "GET", "/me", 401, "session_ended")
	s.wants(t, owner, "GET", "/me", 200, "") // the cookie is gone
}

// TestBearerApp: the same with a JSON login and bearer tokens.
func TestBearerApp(t *testing.T) {
	for _, user := range []string{"json.user", "answer.json.data.who.name"} {
		s := newSite(t, gateway.Config{
			Session: limpet.Bearer(),
			Logins:  []gateway.Login{{Pattern: "POST /api/login", Token: "data.token", User: user}},
		})
		owner := s.device(t)
		login := func(body string) (int, string) {
			resp, err := owner.Post(s.front.URL+"/api/login", "application/json", strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			text, _ := io.ReadAll(resp.Body)
			var answer struct{ Data struct{ Token string } }
			json.Unmarshal(text, &answer)
			return resp.StatusCode, answer.Data.Token
		}
		if code, token := login(`{"user":"alice","password":"wrong"}`); code != 401 || token != "" {
			t.Errorf("wrong password: %d %q", code, token)
		}
		code, token := login(`{"user":"alice","password":"secret"}`)
		if code != 200 || token == "" {
			t.Fatalf("login: %d %q", code, token)
		}
		b, err := s.Guard().Find(t.Context(), limpet.Bearer().ID(token))
		if err != nil || b.User != "alice" || b.Level != limpet.Software {
			t.Fatalf("%+v, %v", b, err)
		}
		if code, e := s.ask(t, s.browser(t), "GET", "/me", nil, "Authorization", "Bearer "+token); code != 401 || e.Body != "proof_required" {
			t.Errorf("the thief: %d %s", code, e.Body)
		}
		if code, e := s.ask(t, owner, "GET", "/me", nil, "Authorization", "Bearer "+token); code != 200 || e.User != "alice" || e.Header.Get("Remote-User") != "alice" {
			t.Errorf("the owner: %d %+v", code, e)
		}
		if code, _ := s.ask(t, s.browser(t), "GET", "/me", nil, "Authorization", "Bearer "+token, "Authorization", "Bearer x"); code != 400 {
			t.Errorf("two tokens: %d", code)
		}
	}
}

// TestBearerToken: the whole way, with a token where clients look for it.
func TestBearerToken(t *testing.T) {
	a := newApp(t)
	a.mux.HandleFunc("POST /session", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]string{"access_token": a.begin("bob")})
	})
	s := newSiteOf(t, a, gateway.Config{Session: limpet.Bearer(), Logins: []gateway.Login{{Pattern: "POST /session"}}})
	owner := s.device(t)
	resp, err := owner.Post(s.front.URL+"/session", "text/plain", nil)
	if err != nil {
		t.Fatal(err)
	}
	var answer struct {
		Token string `json:"access_token"`
	}
	json.NewDecoder(resp.Body).Decode(&answer)
	resp.Body.Close()
	for range 3 {
		if code, e := s.ask(t, owner, "POST", "/things", strings.NewReader("body"), "Authorization", "Bearer "+answer.Token); code != 200 || e.User != "bob" || e.Body != "body" {
			t.Errorf("the owner: %d %+v", code, e)
		}
	}
	if code, e := s.ask(t, s.browser(t), "GET", "/me", nil, "Authorization", "bearer  "+answer.Token); code != 401 || e.Body != "proof_required" {
		t.Errorf("the thief: %d %s", code, e.Body)
	}
}

// TestLoginWithoutKey: it gives a session of level none, which mode prefer
// admits and mode require does not.
func TestLoginWithoutKey(t *testing.T) {
	for mode, code := range map[limpet.Mode]int{limpet.Prefer: 200, limpet.Require: 401, limpet.Observe: 200} {
		s := newSite(t, gateway.Config{Rule: limpet.Rule{Mode: mode}})
		b := s.browser(t)
		s.login(t, b)
		got, e := s.ask(t, b, "GET", "/me", nil)
		if got != code || code == 200 && e.Header.Get("Limpet-Level") != "none" {
			t.Errorf("%v: %d %+v", mode, got, e)
		}
	}
}

// TestRotation: an app that replaces the token of a bound session gets another
// bound session, whoever asks for it, and both end together.
func TestRotation(t *testing.T) {
	s := newSite(t, gateway.Config{Routes: []limpet.Route{{Pattern: "GET /rotate", Rule: limpet.Rule{Mode: limpet.Observe}}}})
	owner := s.device(t)
	s.login(t, owner)
	first := s.cookie(t, owner)
	s.wants(t, owner, "POST", "/rotate", 200, "")
	second := s.cookie(t, owner)
	if second == first {
		t.Fatal("the app did not rotate")
	}
	code, e := s.ask(t, owner, "GET", "/me", nil)
	if code != 200 || e.User != "alice" || e.Header.Get("Remote-User") != "alice" ||
		e.Header.Get("Limpet-Session") != limpet.Cookie("sid").ID(first).String() {
		t.Errorf("after the rotation: %d %+v", code, e)
	}
	s.wants(t, owner, "POST", "/rotate", 200, "")
	third := s.cookie(t, owner)
	s.wants(t, owner, "GET", "/me", 200, "")

	// A route that only observes lets a thief rotate: to what is bound as well.
	thief := s.thief(t, third)
	s.wants(t, thief, "GET", "/rotate", 200, "")
	fourth := s.cookie(t, thief)
	if fourth == third {
		t.Fatal("the app did not rotate for the thief")
	}
	for _, token := range []string{first, second, third, fourth} {
		s.wants(t, s.thief(t, token), "GET", "/me", 401, "proof_required")
	}
	s.plant(t, owner, third)
	s.wants(t, owner, "POST", "/logout", 200, "")
	for _, token := range []string{first, second, third, fourth} {
		s.wants(t, s.thief(t, token), "GET", "/me", 401, "session_ended")
	}
}

// TestTokensOfStrangers: what an app gives to those who have no session is not
// recorded, and can become a session by a login.
func TestTokensOfStrangers(t *testing.T) {
	s := newSite(t, gateway.Config{})
	b := s.device(t)
	s.wants(t, b, "GET", "/anonymous", 200, "")
	anonymous := s.cookie(t, b)
	if _, err := s.Guard().Find(t.Context(), limpet.Cookie("sid").ID(anonymous)); err != limpet.ErrNoSession {
		t.Errorf("a stranger's token: %v", err)
	}
	s.login(t, b)
	s.wants(t, b, "GET", "/me", 200, "")
	s.wants(t, s.thief(t, s.cookie(t, b)), "GET", "/me", 401, "proof_required")
}

// TestLoginIsNoWayRound: a login route does not ask for proofs, so the app must
// not see a bound session there.
func TestLoginIsNoWayRound(t *testing.T) {
	a := newApp(t)
	a.mux.HandleFunc("GET /login", func(w http.ResponseWriter, r *http.Request) {
		if user := a.user(r); user != "" { // logged in already: a new token
			a.setCookie(w, a.begin(user))
		}
	})
	s := newSiteOf(t, a, gateway.Config{Logins: []gateway.Login{{Pattern: "/login"}}})
	owner := s.device(t)
	s.login(t, owner)
	stolen := s.cookie(t, owner)
	for _, thief := range []*http.Client{s.thief(t, stolen), s.device(t)} {
		s.plant(t, thief, stolen)
		s.wants(t, thief, "GET", "/login", 200, "")
		if got := s.cookie(t, thief); got != stolen {
			t.Errorf("the thief has a token of the session's user: %q", got)
		}
	}
	if code, e := s.ask(t, s.browser(t), "POST", "/login", nil, "Cookie", "a=b; sid="+stolen, "Cookie", "sid=other"); code != 400 {
		t.Errorf("two cookies: %d %s", code, e.Body)
	}
	// The owner can log in again, and has then two sessions.
	s.login(t, owner)
	s.wants(t, owner, "GET", "/me", 200, "")
}

// TestRefusedLogin: a session that cannot be bound is not handed out.
func TestRefusedLogin(t *testing.T) {
	a := newApp(t)
	answer := func(w http.ResponseWriter, r *http.Request) {}
	a.mux.HandleFunc("POST /log-in", func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		answer(w, r)
	})
	s := newSiteOf(t, a, gateway.Config{Logins: []gateway.Login{{Pattern: "POST /log-in", User: "form.user"}, {Pattern: "POST /login"}}})
	owner := s.device(t)
	s.login(t, owner)
	bound := s.cookie(t, owner)
	for _, tt := range []struct {
		name   string
		header []string
		answer func(w http.ResponseWriter)
	}{
		{"a token that is bound", nil, func(w http.ResponseWriter) { a.setCookie(w, bound) }},
		{"two tokens", nil, func(w http.ResponseWriter) {
			a.setCookie(w, "one")
			w.Header().Add("Set-Cookie", "SID=two; Path=/x")
		}},
		{"a token in two spellings", nil, func(w http.ResponseWriter) { w.Header().Add("Set-Cookie", `sid="a b"`) }},
		{"a device key without a proof", []string{"Limpet-Device", ":x:"}, func(w http.ResponseWriter) { a.setCookie(w, "unbound") }},
		{"informational", []string{"Limpet-Device", ":x:"}, func(w http.ResponseWriter) {
			a.setCookie(w, "unbound")
			w.WriteHeader(http.StatusEarlyHints)
		}},
		{"two names", nil, func(w http.ResponseWriter) { a.setCookie(w, "unbound") }},
	} {
		answer = func(w http.ResponseWriter, _ *http.Request) { tt.answer(w) }
		body := "user=alice"
		if tt.name == "two names" {
			body = "user=alice&%55ser=bob"
		}
		req, _ := http.NewRequest("POST", s.front.URL+"/log-in", strings.NewReader(body))
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		for i := 0; i < len(tt.header); i += 2 {
			req.Header.Set(tt.header[i], tt.header[i+1])
		}
		b := s.browser(t)
		resp, err := b.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode < 400 || len(resp.Header["Set-Cookie"]) > 0 || s.cookie(t, b) != "" {
			t.Errorf("%s: %s, %q", tt.name, resp.Status, resp.Header["Set-Cookie"])
		}
	}
	// What deletes cookies hands none out.
	answer = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Add("Set-Cookie", "sid=deleted; expires=Thu, 01-Jan-1970 00:00:01 GMT")
		w.Header().Add("Set-Cookie", "sid=x; Max-Age=0")
		w.Header().Add("Set-Cookie", "sid=; Domain=old.example")
	}
	s.wants(t, s.browser(t), "POST", "/log-in", 200, "")
}

// TestNamesOfUsers: only what can be read in one way is taken for a name.
func TestNamesOfUsers(t *testing.T) {
	a := newApp(t)
	a.mux.HandleFunc("POST /in", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Who", "carol")
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"token":"`+a.begin("x")+`"}`)
	})
	form, jsonType := "application/x-www-form-urlencoded", "application/json"
	for _, tt := range []struct{ place, media, body, query, want string }{
		{"form.user", form, "user=alice&x=1", "", "alice"},
		{"form.user", form, "user=al%69ce", "", "alice"},
		{"form.user", form, "x=1", "?user=bob", ""},
		{"form.user", form, "user=alice", "?user=bob", "refused"},
		{"form.user", form, "user=alice&user=alice", "", "refused"},
		{"form.user", form, "user=alice&user[]=bob", "", "refused"},
		{"form.user", form, "user=alice;user=bob", "", "refused"},
		{"form.user", form, "User=alice", "", ""},
		{"form.user", form, "user=alice%20", "", ""},
		{"form.user", form, "user=%0aalice", "", ""},
		{"form.user", form, "user=" + strings.Repeat("a", 257), "", ""},
		{"form.user", "multipart/form-data; boundary=x", "user=alice", "", ""},
		{"form.user", form + "; charset=utf-7", "user=alice", "", ""},
		{"form.user_name", form, "user.name=bob&user_name=alice", "", "refused"},
		{"json.user", jsonType, `{"user":"alice"}`, "", "alice"},
		{"json.user", jsonType, `{"user":"alice","User":"bob"}`, "", "refused"},
		{"json.user", jsonType, `{"user":"alice","user":"bob"}`, "", "refused"},
		{"json.user", jsonType, `{"user":{"name":"alice"}}`, "", ""},
		{"json.user.id", jsonType, `{"user":{"id":42}}`, "", "42"},
		{"json.user", jsonType, `{"user":"alice"} {"user":"bob"}`, "", ""},
		{"json.user", form, `{"user":"alice"}`, "", ""},
		{"answer.header.x-who", jsonType, "", "", "carol"},
		{"form.user", form + "\n" + jsonType, `{"user":"bob","x":"&user=alice&"}`, "", "refused"},
	} {
		s := newSiteOf(t, a, gateway.Config{Session: limpet.Bearer(), Logins: []gateway.Login{{Pattern: "POST /in", User: tt.place}}})
		req, _ := http.NewRequest("POST", s.front.URL+"/in"+tt.query, strings.NewReader(tt.body))
		req.Header["Content-Type"] = strings.Split(tt.media, "\n")
		resp, err := s.browser(t).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var answer struct{ Token, Reason string }
		json.NewDecoder(resp.Body).Decode(&answer)
		resp.Body.Close()
		if tt.want == "refused" {
			if resp.StatusCode != 400 || answer.Token != "" {
				t.Errorf("%+v: %s", tt, resp.Status)
			}
			continue
		}
		b, err := s.Guard().Find(t.Context(), limpet.Bearer().ID(answer.Token))
		if err != nil || b.User != tt.want {
			t.Errorf("%+v: %+v, %v", tt, b, err)
		}
	}
}

// TestTwoGateways share a store: what one binds, renews or revokes the other
// knows, and no proof is good at both.
func TestTwoGateways(t *testing.T) {
	a, store, key := newApp(t), memstore.New(nil), make([]byte, 32)
	one := newSiteOf(t, a, gateway.Config{Store: store, SealKey: key})
	two, err := gateway.New(gateway.Config{Upstream: must(url.Parse(a.URL)), Session: limpet.Cookie("sid"), Store: store, SealKey: key})
	if err != nil {
		t.Fatal(err)
	}
	owner := one.device(t)
	one.login(t, owner)
	var caught *http.Request
	one.wants(t, owner, "GET", "/me", 200, "")
	one.front.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		caught = r.Clone(t.Context())
		two.ServeHTTP(w, r)
	})
	one.wants(t, owner, "GET", "/rotate", 200, "") // bound at one, renewed at two
	one.wants(t, owner, "GET", "/me", 200, "")
	w := httptest.NewRecorder()
	one.Gateway.ServeHTTP(w, caught)
	if w.Code != 401 || !strings.Contains(w.Body.String(), "nonce_spent") {
		t.Errorf("a proof that the other gateway has seen: %d %s", w.Code, w.Body)
	}
	if n, err := one.Guard().RevokeUser(t.Context(), "alice"); n != 1 || err != nil {
		t.Errorf("revoked %d, %v", n, err)
	}
	one.wants(t, owner, "GET", "/me", 401, "session_ended")
}

// TestRestart: with a store that lasts and the seal key the next process goes
// on where the one before was cut off.
func TestRestart(t *testing.T) {
	a, path, key := newApp(t), filepath.Join(t.TempDir(), "store"), make([]byte, 32)
	var now *gateway.Gateway
	var store *boltstore.Store
	start := func() {
		var err error
		if store, err = boltstore.Open(path, nil); err != nil {
			t.Fatal(err)
		}
		now, err = gateway.New(gateway.Config{Upstream: must(url.Parse(a.URL)), Session: limpet.Cookie("sid"), Store: store, SealKey: key,
			Logins: []gateway.Login{{Pattern: "POST /login"}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	start()
	s := newSiteOf(t, a, gateway.Config{})
	s.front.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { now.ServeHTTP(w, r) })
	owner := s.device(t)
	s.login(t, owner)
	for range 3 {
		s.wants(t, owner, "GET", "/rotate", 200, "")
		if err := store.Close(); err != nil {
			t.Fatal(err)
		}
		s.wants(t, owner, "GET", "/me", 503, "unavailable")
		start()
		s.wants(t, s.thief(t, s.cookie(t, owner)), "GET", "/me", 401, "proof_required")
		s.wants(t, owner, "GET", "/me", 200, "")
	}
	store.Close()
}

// brokenStore fails from the moment that it is told to.
type brokenStore struct {
	*memstore.Store
	puts, gets atomic.Bool
}

var errStore = errors.New("the disk is full")

func (b *brokenStore) Get(ctx context.Context, key string) ([]byte, bool, error) {
	if b.gets.Load() {
		return nil, false, errStore
	}
	return b.Store.Get(ctx, key)
}

func (b *brokenStore) Put(ctx context.Context, key string, val []byte, ttl time.Duration) error {
	if b.puts.Load() {
		return errStore
	}
	return b.Store.Put(ctx, key, val, ttl)
}

func (b *brokenStore) Add(ctx context.Context, key string, val []byte, ttl time.Duration) (bool, error) {
	if b.puts.Load() {
		return false, errStore
	}
	return b.Store.Add(ctx, key, val, ttl)
}

// TestStoreOutage: what cannot be recorded is not handed out, and what cannot be
// looked up does not reach the app.
func TestStoreOutage(t *testing.T) {
	store := &brokenStore{Store: memstore.New(nil)}
	s := newSite(t, gateway.Config{Store: store})
	owner := s.device(t)
	s.login(t, owner)
	s.wants(t, owner, "GET", "/me", 200, "")
	before := s.cookie(t, owner)
	store.puts.Store(true)
	for _, path := range []string{"/rotate", "/logout", "/login"} {
		form := strings.NewReader("username=alice&password=secret")
		code, e := s.ask(t, owner, "POST", path, form, "Content-Type", "application/x-www-form-urlencoded")
		if code != 503 || e.Body != "unavailable" || s.cookie(t, owner) != before {
			t.Errorf("%s: %d %s", path, code, e.Body)
		}
	}
	store.gets.Store(true)
	s.wants(t, owner, "GET", "/me", 503, "unavailable")
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestObserve: where all rules observe, nothing is refused or withheld, only
// told; and what is bound is bound from then on.
func TestObserve(t *testing.T) {
	a, store, key := newApp(t), memstore.New(nil), make([]byte, 32)
	s := newSiteOf(t, a, gateway.Config{Store: store, SealKey: key, Rule: limpet.Rule{Mode: limpet.Observe}})
	owner := s.device(t)
	s.login(t, owner)
	stolen := s.cookie(t, owner)
	thief := s.thief(t, stolen)
	s.wants(t, thief, "GET", "/me", 200, "")
	s.wants(t, thief, "GET", "/x/%2e%2e/me", 200, "")
	if code, e := s.ask(t, thief, "GET", "/me", nil); code != 200 || e.Header.Get("Remote-User") != "" || e.Header.Get("Limpet-Level") != "none" {
		t.Errorf("an unproven request is somebody's: %d %v", code, e.Header)
	}
	form := strings.NewReader("username=alice&username=alice&password=secret")
	code, _ := s.ask(t, s.browser(t), "POST", "/login", form, "Content-Type", "application/x-www-form-urlencoded", "Limpet-Device", ":x:")
	if code != 303 {
		t.Errorf("a login: %d", code)
	}
	for _, want := range []string{"would refuse", "reason=proof_required", "would not hand out"} {
		if !strings.Contains(s.log.String(), want) {
			t.Errorf("the log lacks %q", want)
		}
	}
	if strings.Contains(s.log.String(), stolen) {
		t.Error("the log has the token")
	}
	strict := newSiteOf(t, a, gateway.Config{Store: store, SealKey: key})
	strict.wants(t, strict.thief(t, stolen), "GET", "/me", 401, "proof_required")
}

// TestTokenOfAnyAnswer: a token is bound whatever the app calls its answer, and
// not handed out beside another one.
func TestTokenOfAnyAnswer(t *testing.T) {
	for _, tt := range []struct {
		session             limpet.Session
		media, body, cookie string
		code                int
		bound               bool
	}{
		{limpet.Bearer(), "text/plain; charset=utf-8", `{"token":"one"}`, "", 200, true},
		{limpet.Bearer(), "text/html", "\n {\"access_token\":\"one\"}", "", 200, true},
		{limpet.Bearer(), "text/plain", "\ufeff{\"token\":\"one\"}", "", 500, false},
		{limpet.Bearer(), "text/html", strings.Repeat("<p>", 64<<10), "", 200, false},
		{limpet.Bearer(), "text/plain", "", "", 200, false},
		{limpet.Bearer(), "application/json", "", "", 200, false},
		{limpet.Bearer(), "application/json", `{"token":"one","access_token":"one"}`, "", 200, true},
		{limpet.Bearer(), "application/json", `{"token":"one","access_token":"two"}`, "", 500, false},
		{limpet.Cookie("sid"), "application/json", `{"token":"one"}`, "one", 200, true},
		{limpet.Cookie("sid"), "application/json", `{"token":"one"}`, "two", 500, false},
		{limpet.Cookie("sid"), "application/json", `{}`, "two", 500, false},
	} {
		a := newApp(t)
		a.mux.HandleFunc("POST /in", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", tt.media)
			if tt.cookie != "" {
				a.setCookie(w, tt.cookie)
			}
			io.WriteString(w, tt.body)
		})
		l := gateway.Login{Pattern: "POST /in"}
		if tt.session != limpet.Bearer() {
			l.Token = "token"
		}
		s := newSiteOf(t, a, gateway.Config{Session: tt.session, Logins: []gateway.Login{l}})
		resp, err := s.browser(t).Post(s.front.URL+"/in", "text/plain", nil)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != tt.code || tt.code == 200 && string(text) != tt.body {
			t.Errorf("%+v: %d, %d bytes", tt, resp.StatusCode, len(text))
		}
		if _, err := s.Guard().Find(t.Context(), tt.session.ID("one")); (err == nil) != tt.bound {
			t.Errorf("%+v: %v", tt, err)
		}
	}
}

// TestCookieOfAnyPath: a browser forgets the cookie of a session that is over,
// whatever path and domain it was set for, also where TLS ends before us.
func TestCookieOfAnyPath(t *testing.T) {
	for _, tt := range []struct{ url, name, path, domain string }{
		{"https://www.example.com/app/deep/er", "sid", "/app", ""},
		{"https://www.example.com/app/deep/er", "sid", "/app/", ""},
		{"https://www.example.com/app/deep/er", "sid", "/app/deep", ""},
		{"https://www.example.com:8443/app", "sid", "/", "example.com"},
		{"https://www.example.com/", "__Host-sid", "/", ""},
	} {
		s := newSite(t, gateway.Config{Session: limpet.Cookie(tt.name)})
		login := httptest.NewRequest("POST", tt.url, nil)
		if err := s.Guard().Bind(httptest.NewRecorder(), login, "over", "alice"); err != nil {
			t.Fatal(err)
		}
		if err := s.Guard().Revoke(t.Context(), limpet.Cookie(tt.name).ID("over")); err != nil {
			t.Fatal(err)
		}
		jar, _ := cookiejar.New(nil)
		jar.SetCookies(login.URL, []*http.Cookie{{Name: tt.name, Value: "over", Path: tt.path, Domain: tt.domain}})
		r := httptest.NewRequest("GET", tt.url, nil)
		r.TLS = nil
		for _, c := range jar.Cookies(r.URL) {
			r.AddCookie(c)
		}
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		jar.SetCookies(r.URL, w.Result().Cookies())
		if left := jar.Cookies(r.URL); w.Code != 401 || len(left) > 0 {
			t.Errorf("%+v: %d, %q", tt, w.Code, left)
		}
		for _, c := range w.Result().Cookies() {
			if strings.HasPrefix(tt.name, "__") && !c.Secure {
				t.Errorf("a browser does not take %s", c)
			}
		}
	}
}

// TestNamesThatAppsDecode: a bound token is not hidden in a cookie whose name
// some apps decode, trim or cut.
func TestNamesThatAppsDecode(t *testing.T) {
	s := newSite(t, gateway.Config{})
	owner := s.device(t)
	s.login(t, owner)
	for _, name := range []string{"%20sid", "sid%00", "sid%00x", "sid%20", "%09s%69d"} {
		before := s.requests()
		if code, _ := s.ask(t, s.browser(t), "GET", "/me", nil, "Cookie", name+"="+s.cookie(t, owner)); code != 400 || s.requests() != before {
			t.Errorf("%s: %d", name, code)
		}
	}
}

// TestHostsOfRoutes: a route's host is found in every spelling.
func TestHostsOfRoutes(t *testing.T) {
	s := newSite(t, gateway.Config{Routes: []limpet.Route{{Pattern: "app.example/", Rule: limpet.Rule{Mode: limpet.Require}}}})
	for _, host := range []string{"app.example", "APP.example:443", "app.example.", "app.example.:443"} {
		w := httptest.NewRecorder()
		r := httptest.NewRequest("GET", "/me", nil)
		r.Host = host
		if s.ServeHTTP(w, r); w.Code != 401 {
			t.Errorf("%s: %d", host, w.Code)
		}
	}
}

// TestObservedAnswers: what cannot be bound is handed out where all rules only
// observe, whole, and nowhere else.
func TestObservedAnswers(t *testing.T) {
	a := newApp(t)
	long := `{"token":"x","more":"` + strings.Repeat("m", 64<<10) + `"}`
	a.mux.HandleFunc("POST /in", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch r.URL.RawQuery {
		case "long":
			io.WriteString(w, long)
		case "cookies":
			a.setCookie(w, "one")
			w.Header().Add("Set-Cookie", "sid=two; Path=/x")
		default:
			io.WriteString(w, `{"token":"x"}`)
		}
	})
	observe := limpet.Rule{Mode: limpet.Observe}
	strict := []limpet.Route{{Pattern: "/strict", Rule: limpet.Rule{}}}
	for _, tt := range []struct {
		query  string
		token  string
		routes []limpet.Route
		code   int
	}{
		{"long", "token", nil, 200}, {"cookies", "", nil, 200}, {"broken", "token", nil, 200},
		{"long", "token", strict, 500}, {"cookies", "", strict, 500}, {"broken", "token", strict, 503},
	} {
		store := &brokenStore{Store: memstore.New(nil)}
		store.puts.Store(tt.query == "broken")
		s := newSiteOf(t, a, gateway.Config{Store: store, Rule: observe, Routes: tt.routes, Logins: []gateway.Login{{Pattern: "POST /in", Token: tt.token}}})
		resp, err := s.browser(t).Post(s.front.URL+"/in?"+tt.query, "text/plain", nil)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != tt.code || tt.code == 200 && tt.query == "long" && string(text) != long {
			t.Errorf("%s, %d routes: %d, %d bytes", tt.query, len(tt.routes), resp.StatusCode, len(text))
		}
	}
}

// TestLogoutsNewCookie: the cookie that an app sets for the stranger whom it has
// just logged out is nobody's session, until a login makes it one.
func TestLogoutsNewCookie(t *testing.T) {
	a := newApp(t)
	a.mux.HandleFunc("POST /bye", func(w http.ResponseWriter, r *http.Request) { a.setCookie(w, a.begin("")) })
	s := newSiteOf(t, a, gateway.Config{Logouts: []string{"POST /bye"}})
	owner := s.device(t)
	s.login(t, owner)
	before := s.cookie(t, owner)
	s.wants(t, owner, "POST", "/bye", 200, "")
	after := s.cookie(t, owner)
	if _, err := s.Guard().Find(t.Context(), limpet.Cookie("sid").ID(after)); after == before || err != limpet.ErrNoSession {
		t.Errorf("the stranger's token: %v", err)
	}
	s.wants(t, s.thief(t, before), "GET", "/me", 401, "session_ended")
	s.wants(t, owner, "GET", "/me", 200, "")
	s.login(t, owner)
	s.wants(t, owner, "GET", "/me", 200, "")
	s.wants(t, s.thief(t, s.cookie(t, owner)), "GET", "/me", 401, "proof_required")
}

// TestSessionWithoutSuccess: a session that is handed out with a status that the
// gateway does not take for success is unbound, and somebody is told, once.
func TestSessionWithoutSuccess(t *testing.T) {
	a := newApp(t)
	a.mux.HandleFunc("POST /in", func(w http.ResponseWriter, r *http.Request) {
		a.setCookie(w, a.begin("alice"))
		w.WriteHeader(http.StatusPermanentRedirect)
	})
	s := newSiteOf(t, a, gateway.Config{Logins: []gateway.Login{{Pattern: "POST /in"}, {Pattern: "POST /login"}}})
	for range 3 {
		s.wants(t, s.device(t), "POST", "/in", 308, "")
	}
	s.login(t, s.device(t))
	if n := strings.Count(s.log.String(), "stays unbound"); n != 1 || !strings.Contains(s.log.String(), "level=WARN") {
		t.Errorf("told %d times", n)
	}
}
