package gateway_test

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/client"
	"github.com/limpet-auth/limpet/gateway"
	"github.com/limpet-auth/limpet/hwkey/softkey"
	"github.com/limpet-auth/limpet/store/memstore"
)

// app is a web app that knows nothing of Limpet: sessions in the cookie sid or,
// under /api, in bearer tokens.
type app struct {
	*httptest.Server
	mux *http.ServeMux

	mu       sync.Mutex
	sessions map[string]string // token to user
	seen     []*http.Request
}

func newApp(t testing.TB) *app {
	a := &app{mux: http.NewServeMux(), sessions: make(map[string]string)}
	a.mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("password") != "secret" {
			http.Error(w, "wrong password", http.StatusForbidden)
			return
		}
		a.setCookie(w, a.begin(r.FormValue("username")))
		http.Redirect(w, r, "/me", http.StatusSeeOther)
	})
	a.mux.HandleFunc("POST /api/login", func(w http.ResponseWriter, r *http.Request) {
		var c struct{ User, Password string }
		if json.NewDecoder(r.Body).Decode(&c) != nil || c.Password != "secret" {
			http.Error(w, "{}", http.StatusUnauthorized)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"data":{"token":%q,"who":{"name":%q}}}`, a.begin(c.User), c.User)
	})
	a.mux.HandleFunc("POST /logout", func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		delete(a.sessions, token(r))
		a.mu.Unlock()
		http.SetCookie(w, &http.Cookie{Name: "sid", Path: "/", MaxAge: -1})
	})
	a.mux.HandleFunc("/rotate", func(w http.ResponseWriter, r *http.Request) {
		if user := a.user(r); user != "" {
			a.setCookie(w, a.begin(user))
		}
		fmt.Fprint(w, "rotated")
	})
	a.mux.HandleFunc("GET /anonymous", func(w http.ResponseWriter, r *http.Request) {
		a.setCookie(w, a.begin(""))
	})
	a.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		json.NewEncoder(w).Encode(echo{a.user(r), r.Method, r.Host, r.RequestURI, r.Header, string(body), r.Trailer})
	})
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		a.seen = append(a.seen, r)
		a.mu.Unlock()
		if strings.Contains(r.URL.EscapedPath(), "//") || r.URL.Path == "" { // which a ServeMux would redirect
			r.URL.Path, r.URL.RawPath = "/", ""
		}
		a.mux.ServeHTTP(w, r)
	}))
	t.Cleanup(a.Close)
	return a
}

// echo is what the app answers on most paths.
type echo struct {
	User, Method, Host, URI string
	Header                  http.Header
	Body                    string
	Trailer                 http.Header
}

func (a *app) begin(user string) string {
	token := rand.Text()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sessions[token] = user
	return token
}

func (a *app) setCookie(w http.ResponseWriter, token string) {
	http.SetCookie(w, &http.Cookie{Name: "sid", Value: token, Path: "/", HttpOnly: true})
}

func token(r *http.Request) string {
	if c, err := r.Cookie("sid"); err == nil {
		return c.Value
	}
	return strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
}

func (a *app) user(r *http.Request) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.sessions[token(r)]
}

// requests returns how many requests the app has seen.
func (a *app) requests() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.seen)
}

// site is an app behind a gateway.
type site struct {
	*app
	front *httptest.Server // HTTPS, HTTP/1.1 and HTTP/2
	*gateway.Gateway
	log *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newSite(t testing.TB, cfg gateway.Config) *site {
	t.Helper()
	return newSiteOf(t, newApp(t), cfg)
}

func newSiteOf(t testing.TB, a *app, cfg gateway.Config) *site {
	t.Helper()
	s := &site{app: a, log: new(lockedBuffer)}
	var err error
	if cfg.Upstream, err = url.Parse(a.URL); err != nil {
		t.Fatal(err)
	}
	if cfg.Session == (limpet.Session{}) {
		cfg.Session = limpet.Cookie("sid")
	}
	if cfg.Store == nil {
		cfg.Store = memstore.New(nil)
	}
	if cfg.Logins == nil {
		cfg.Logins = []gateway.Login{{Pattern: "POST /login", User: "form.username"}}
	}
	if cfg.Logouts == nil {
		cfg.Logouts = []string{"POST /logout"}
	}
	cfg.Logger = slog.New(slog.NewTextHandler(s.log, nil))
	if s.Gateway, err = gateway.New(cfg); err != nil {
		t.Fatal(err)
	}
	s.front = serve(t, s.Gateway, cfg.Logger)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the gateway's log:\n%s", s.log)
		}
	})
	return s
}

// serve serves a gateway over TLS as the command does.
func serve(t testing.TB, h http.Handler, log *slog.Logger) *httptest.Server {
	front := httptest.NewUnstartedServer(h)
	front.Config = gateway.NewServer(h, log)
	front.Listener = gateway.Listener(front.Listener)
	front.EnableHTTP2 = true
	front.StartTLS()
	t.Cleanup(front.Close)
	return front
}

// browser is a client with a cookie jar that follows no redirects.
func (s *site) browser(t testing.TB) *http.Client {
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &http.Client{Transport: s.front.Client().Transport, Jar: jar,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// device is a browser with a keystore.
func (s *site) device(t testing.TB) *http.Client {
	t.Helper()
	keys, err := softkey.Open(t.Context(), t.TempDir(), softkey.KeyFile(""))
	if err != nil {
		t.Fatal(err)
	}
	b := s.browser(t)
	b.Transport = client.New(keys).Transport(b.Transport)
	return b
}

// login logs alice in by form.
func (s *site) login(t testing.TB, c *http.Client) {
	t.Helper()
	resp, err := c.PostForm(s.front.URL+"/login", url.Values{"username": {"alice"}, "password": {"secret"}})
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	if resp.StatusCode != http.StatusSeeOther {
		t.Fatalf("login: %s", resp.Status)
	}
}

// cookie returns the session token that a client has.
func (s *site) cookie(t testing.TB, c *http.Client) string {
	t.Helper()
	u, err := url.Parse(s.front.URL)
	if err != nil {
		t.Fatal(err)
	}
	for _, cookie := range c.Jar.Cookies(u) {
		if cookie.Name == "sid" {
			return cookie.Value
		}
	}
	return ""
}

// thief is somebody with a stolen cookie and no key.
func (s *site) thief(t testing.TB, token string) *http.Client {
	t.Helper()
	b := s.browser(t)
	s.plant(t, b, token)
	return b
}

func (s *site) plant(t testing.TB, c *http.Client, token string) {
	t.Helper()
	u, err := url.Parse(s.front.URL)
	if err != nil {
		t.Fatal(err)
	}
	c.Jar.SetCookies(u, []*http.Cookie{{Name: "sid", Value: token, Path: "/"}})
}

// ask sends a request and returns what the app echoed, if it got there.
func (s *site) ask(t testing.TB, c *http.Client, method, path string, body io.Reader, headers ...string) (int, echo) {
	t.Helper()
	req, err := http.NewRequest(method, s.front.URL+path, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header[headers[i]] = append(req.Header[headers[i]], headers[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	var e echo
	json.Unmarshal(text, &e)
	if resp.StatusCode >= 400 {
		var refusal struct{ Reason string }
		json.Unmarshal(text, &refusal)
		e.Body = refusal.Reason
	}
	return resp.StatusCode, e
}

// wants asks and compares the status and, of a refusal, the reason.
func (s *site) wants(t testing.TB, c *http.Client, method, path string, code int, reason string) {
	t.Helper()
	before := s.requests()
	got, e := s.ask(t, c, method, path, nil)
	if got != code || code >= 400 && e.Body != reason {
		t.Errorf("%s %s: %d %s, want %d %s", method, path, got, e.Body, code, reason)
	}
	if reason != "" && s.requests() != before {
		t.Errorf("%s %s: the app saw a refused request", method, path)
	}
}
