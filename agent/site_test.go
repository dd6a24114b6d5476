package agent_test

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/agent"
	"github.com/limpet-auth/limpet/gateway"
	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/hwkey/softkey"
	"github.com/limpet-auth/limpet/store/memstore"
)

// site is an app that knows nothing of Limpet behind a gateway, over HTTPS.
type site struct {
	*http.ServeMux
	gateway *gateway.Gateway
	front   *httptest.Server
	log     *lockedBuffer

	mu       sync.Mutex
	sessions map[string]string // token to user

	loggingIn atomic.Int32
	let       chan struct{} // when it is closed, slow logins go on
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

func newSite(t testing.TB, bearer bool, rule ...limpet.Rule) *site {
	t.Helper()
	s := &site{ServeMux: http.NewServeMux(), log: new(lockedBuffer), sessions: make(map[string]string), let: make(chan struct{})}
	s.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		s.loggingIn.Add(1)
		defer s.loggingIn.Add(-1)
		if r.FormValue("slow") != "" {
			<-s.let
		}
		if lang := r.FormValue("lang"); lang != "" { // which says nothing of who is there
			http.SetCookie(w, &http.Cookie{Name: "lang", Value: lang, Path: "/"})
		}
		if r.FormValue("password") != "secret" && r.FormValue("lang") != "" {
			http.Redirect(w, r, "/login", http.StatusSeeOther) // with a form that says what was wrong
			return
		}
		if r.FormValue("password") != "secret" {
			http.Error(w, "wrong password", http.StatusForbidden)
			return
		}
		token := s.begin(r.FormValue("username"))
		if bearer {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"access_token":%q}`, token)
			return
		}
		s.setCookie(w, token)
		w.Header().Set("Location", s.front.URL+"/me?a=b#c")
		w.WriteHeader(http.StatusSeeOther)
	})
	s.HandleFunc("POST /logout", func(w http.ResponseWriter, r *http.Request) {
		http.SetCookie(w, &http.Cookie{Name: "sid", Path: "/", MaxAge: -1}) // the session is left as it is
	})
	s.HandleFunc("POST /rotate", func(w http.ResponseWriter, r *http.Request) {
		if user := s.user(r); user != "" {
			s.setCookie(w, s.begin(user))
		}
	})
	s.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Logf("the app's read: %v", err)
		}
		json.NewEncoder(w).Encode(echo{s.user(r), r.Method, r.Host, r.RequestURI, r.Header, len(body), r.Trailer})
	})
	app := httptest.NewServer(s)
	t.Cleanup(app.Close)
	upstream, err := url.Parse(app.URL)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(s.log, nil))
	cfg := gateway.Config{Upstream: upstream, Session: limpet.Cookie("sid"), Store: memstore.New(nil), Logger: log,
		Logins: []gateway.Login{{Pattern: "POST /login", User: "form.username"}}, Logouts: []string{"POST /logout"}}
	if bearer {
		cfg.Session = limpet.Bearer()
	}
	for _, r := range rule {
		cfg.Rule = r
	}
	if s.gateway, err = gateway.New(cfg); err != nil {
		t.Fatal(err)
	}
	s.front = httptest.NewUnstartedServer(s.gateway)
	s.front.Config = gateway.NewServer(s.gateway, log)
	s.front.EnableHTTP2 = true
	s.front.StartTLS()
	t.Cleanup(s.front.Close)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the log:\n%s", s.log)
		}
	})
	return s
}

// echo is what the app answers on most paths.
type echo struct {
	User, Method, Host, URI string
	Header                  http.Header
	Body                    int
	Trailer                 http.Header
}

func (s *site) begin(user string) string {
	token := rand.Text()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sessions[token] = user
	return token
}

func (s *site) setCookie(w http.ResponseWriter, token string) {
	c := &http.Cookie{Name: "sid", Value: token, Path: "/", Domain: "app.example.com", Secure: true, HttpOnly: true, SameSite: http.SameSiteNoneMode}
	http.SetCookie(w, c)
}

func (s *site) user(r *http.Request) string {
	token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	if c, err := r.Cookie("sid"); err == nil {
		token = c.Value
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sessions[token]
}

// home is the files of a user: keys, and what an agent remembers.
type home struct {
	site  *site
	dir   string
	keys  hwkey.Keystore
	state string
}

func (s *site) home(t testing.TB) *home {
	t.Helper()
	h := &home{site: s, dir: t.TempDir()}
	h.state = filepath.Join(h.dir, "state", "app.json")
	var err error
	if h.keys, err = softkey.Open(t.Context(), filepath.Join(h.dir, "keys"), softkey.KeyFile("")); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *home) config(t testing.TB) agent.Config {
	t.Helper()
	to, err := url.Parse(h.site.front.URL)
	if err != nil {
		t.Fatal(err)
	}
	return agent.Config{To: to, Keys: h.keys, State: h.state, Base: h.site.front.Client().Transport,
		Logger: slog.New(slog.NewTextHandler(h.site.log, nil))}
}

// countKeys returns how many device keys there are.
func (h *home) countKeys(t testing.TB) int {
	t.Helper()
	list, err := h.keys.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// running is an agent that listens.
type running struct {
	*agent.Agent
	url  string
	stop func()
}

func (h *home) start(t testing.TB) *running {
	t.Helper()
	return run(t, h.config(t))
}

func run(t testing.TB, cfg agent.Config) *running {
	t.Helper()
	a, err := agent.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	handler, err := a.On(l.Addr())
	if err != nil {
		t.Fatal(err)
	}
	srv := agent.NewServer(handler, cfg.Logger)
	go srv.Serve(agent.Listener(l))
	r := &running{Agent: a, url: "http://" + l.Addr().String()}
	r.stop = sync.OnceFunc(func() {
		srv.Close()
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(r.stop)
	return r
}

// program is one that knows nothing of Limpet: cookies, no redirects.
type program struct {
	*http.Client
	token string // a bearer token, "" for none
}

func newProgram(t testing.TB) *program {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &program{Client: &http.Client{Jar: jar, Timeout: 30 * time.Second, Transport: &http.Transport{},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

func (p *program) login(t testing.TB, base, user string) *http.Response {
	t.Helper()
	resp, err := p.PostForm(base+"/login", url.Values{"username": {user}, "password": {"secret"}})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode >= 400 {
		t.Fatalf("login: %s %s %v", resp.Status, text, err)
	}
	var answer struct {
		AccessToken string `json:"access_token"`
	}
	json.Unmarshal(text, &answer)
	p.token = answer.AccessToken
	return resp
}

// cookie returns the value of the app's cookie.
func (p *program) cookie(t testing.TB, base string) string {
	t.Helper()
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range p.Jar.Cookies(u) {
		if c.Name == "sid" {
			return c.Value
		}
	}
	return ""
}

func (p *program) do(t testing.TB, method, target string, body io.Reader, headers ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(method, target, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Host" {
			req.Host = headers[i+1]
		} else {
			req.Header.Add(headers[i], headers[i+1])
		}
	}
	if p.token != "" {
		req.Header.Set("Authorization", "Bearer "+p.token)
	}
	resp, err := p.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, target, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, target, err)
	}
	return resp, string(text)
}

// wants asks; the answer must have a status and some words.
func (p *program) wants(t testing.TB, method, target string, code int, says string) {
	t.Helper()
	resp, text := p.do(t, method, target, nil)
	if resp.StatusCode != code || !strings.Contains(text, says) {
		t.Errorf("%s %s: %s %s, want %d %s", method, target, resp.Status, text, code, says)
	}
}

// echoed is what the app saw.
func (p *program) echoed(t testing.TB, method, target string, body io.Reader, headers ...string) (e echo) {
	t.Helper()
	resp, text := p.do(t, method, target, body, headers...)
	if err := json.Unmarshal([]byte(text), &e); err != nil || resp.StatusCode != 200 {
		t.Fatalf("%s %s: %s %s", method, target, resp.Status, text)
	}
	return e
}

// thief is a program with what a jar or a token file holds.
func (s *site) thief(t testing.TB, cookie, token string) *program {
	t.Helper()
	p := newProgram(t)
	p.Transport, p.token = s.front.Client().Transport, token
	if cookie != "" {
		u, err := url.Parse(s.front.URL)
		if err != nil {
			t.Fatal(err)
		}
		p.Jar.SetCookies(u, []*http.Cookie{{Name: "sid", Value: cookie, Path: "/"}})
	}
	return p
}

// lines reads an answer line by line.
func lines(resp *http.Response) *bufio.Reader { return bufio.NewReader(resp.Body) }
