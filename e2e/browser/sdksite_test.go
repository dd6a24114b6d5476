package browser_test

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/sdk/js"
	"github.com/limpet-auth/limpet/store/memstore"
)

// sdkSite is an app behind a guard, whose pages use the SDK.
type sdkSite struct {
	t       *testing.T
	store   *memstore.Store
	session limpet.Session

	mu    sync.Mutex
	guard *limpet.Guard
	app   http.Handler
	life  string // what clients are told of the bound cookie's; "" for the truth
	down  bool   // as if the store were
	log   []seen // requests since the script asked last
}

// seen is a request as it came.
type seen struct {
	Method, Path, Site, Mode, Dest, Referer string
	Signed, Delegation, Bound               bool
	Status                                  int
}

const boundCookie = "__Host-limpet"

func newSDKSite(t *testing.T, session limpet.Session) *sdkSite {
	s := &sdkSite{t: t, store: memstore.New(nil), session: session}
	s.restart()
	return s
}

// restart is a server that starts anew, with another seal key and the same store.
func (s *sdkSite) restart() {
	seal := make([]byte, 32)
	rand.Read(seal)
	rule := limpet.Rule{Mode: limpet.Require}
	challenge := rule
	challenge.Challenge = true
	strict := rule
	strict.Freshness = limpet.StrictNonce
	guard, err := limpet.New(limpet.Config{
		Session: s.session, Store: s.store, Browsers: s.session.CookieName() != "", SealKey: seal, Rule: rule,
		Routes: []limpet.Route{{Pattern: "/api/challenge", Rule: challenge}, {Pattern: "/api/strict/", Rule: strict}, {Pattern: "/open/", Rule: limpet.Rule{}}},
		Logger: slog.New(slog.NewTextHandler(s.t.Output(), nil)),
	})
	if err != nil {
		s.t.Error(err)
		return
	}
	app := http.NewServeMux()
	app.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		guard.CheckBody(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.login(guard, w, r) })).ServeHTTP(w, r)
	})
	app.Handle("/", guard.Protect(http.HandlerFunc(s.serve)))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.guard, s.app = guard, app
}

func token() string { return rand.Text() }

func (s *sdkSite) login(guard *limpet.Guard, w http.ResponseWriter, r *http.Request) {
	if r.FormValue("password") != "secret" {
		http.Error(w, "wrong password", http.StatusUnauthorized)
		return
	}
	next := token()
	if err := guard.Bind(w, r, next, r.FormValue("user")); err != nil {
		limpet.Refuse(w, err)
		return
	}
	if name := s.session.CookieName(); name != "" {
		http.SetCookie(w, &http.Cookie{Name: name, Value: next, Path: "/", HttpOnly: true, Secure: r.TLS != nil, SameSite: http.SameSiteLaxMode, MaxAge: 86400})
	}
	if to := r.URL.Query().Get("to"); to != "" {
		http.Redirect(w, r, to, http.StatusSeeOther)
		return
	}
	answer(w, map[string]any{"token": next})
}

// serve is the app.
func (s *sdkSite) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	guard := s.guard
	s.mu.Unlock()
	b := limpet.FromContext(r.Context())
	switch path := r.URL.Path; {
	case path == "/api/logout":
		if err := guard.Revoke(r.Context(), b.Session); err != nil {
			limpet.Refuse(w, err)
			return
		}
		if name := s.session.CookieName(); name != "" {
			http.SetCookie(w, &http.Cookie{Name: name, Path: "/", MaxAge: -1, Secure: r.TLS != nil})
		}
		w.WriteHeader(http.StatusNoContent)
	case strings.HasSuffix(path, "/rotate"):
		old, _ := s.session.Token(r.Header)
		next := token()
		if err := guard.Rebind(r.Context(), w.Header(), old, next); err != nil {
			limpet.Refuse(w, err)
			return
		}
		http.SetCookie(w, &http.Cookie{Name: s.session.CookieName(), Value: next, Path: "/", HttpOnly: true, Secure: true, SameSite: http.SameSiteLaxMode})
		s.page(w, "rotated")
	case path == "/api/redirect":
		code := http.StatusFound
		fmt.Sscan(r.URL.Query().Get("code"), &code)
		http.Redirect(w, r, r.URL.Query().Get("to"), code)
	case strings.HasSuffix(path, ".png"):
		w.Header().Set("Content-Type", "image/svg+xml")
		io.WriteString(w, `<svg xmlns="http://www.w3.org/2000/svg" width="3" height="3"/>`)
	case strings.HasSuffix(path, ".css"):
		w.Header().Set("Content-Type", "text/css")
		io.WriteString(w, "body { color: rgb(1, 2, 3) }")
	case strings.HasPrefix(path, "/api/"):
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		sum := sha256.Sum256(body)
		answer(w, map[string]any{
			"method": r.Method, "path": path, "query": r.URL.RawQuery, "size": len(body), "sum": hex.EncodeToString(sum[:]),
			"type": r.Header.Get("Content-Type"), "mine": r.Header.Get("X-Mine"), "user": b.User, "level": b.Level, "body": string(body[:min(len(body), 256)]),
		})
	default:
		s.page(w, "app")
	}
}

func (s *sdkSite) page(w http.ResponseWriter, title string) {
	w.Header().Set("Content-Type", "text/html")
	fmt.Fprintf(w, `<!doctype html><html lang="en"><title>%s</title><script type="module">
import * as limpet from "/open/limpet.js";
window.limpet = limpet;
if (!location.search.includes("plain")) limpet.install();
</script><p>%[1]s</p>`, title)
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}

// statusWriter notes the status of an answer.
type statusWriter struct {
	http.ResponseWriter
	code int
	life string
}

func (w *statusWriter) WriteHeader(code int) {
	w.code = code
	if h := w.Header(); w.life != "" && h.Get("Limpet-Cookie") != "" {
		h.Set("Limpet-Cookie", "max-age="+w.life)
	}
	w.ResponseWriter.WriteHeader(code)
}

func (s *sdkSite) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	app, down := s.app, s.down
	c, _ := r.Cookie(boundCookie)
	covered, life := c != nil, s.life
	s.mu.Unlock()
	path := r.URL.Path
	switch {
	case path == "/favicon.ico":
		w.WriteHeader(http.StatusNoContent)
		return
	case strings.HasPrefix(path, "/control/"):
		s.control(w, r)
		return
	case path == "/open/limpet.js", path == "/sw.js":
		w.Header().Set("Content-Type", "text/javascript")
		if path == "/sw.js" {
			w.Write(js.Worker)
		} else {
			w.Write(js.Source)
		}
		return
	case path == "/open/worker.js":
		w.Header().Set("Content-Type", "text/javascript")
		io.WriteString(w, `import * as limpet from "/open/limpet.js";
limpet.install();
const ask = async (port, what) => port.postMessage(await fetch(what).then(async (r) => ({ status: r.status, answer: await r.json() }), String));
globalThis.onmessage = (e) => ask(globalThis, e.data);
globalThis.onconnect = (e) => { e.ports[0].onmessage = (m) => ask(e.ports[0], m.data); };`)
		return
	case strings.HasPrefix(r.Host, "evil."), path == "/open/evil":
		w.Header().Set("Content-Type", "text/html")
		w.Header().Set("Access-Control-Allow-Origin", "*")
		if path == "/open/liar" { // which takes the proof's headers, and speaks as if it were the app
			h := w.Header()
			h.Set("Access-Control-Allow-Headers", "*")
			h.Set("Access-Control-Expose-Headers", "*")
			if r.URL.RawQuery == "" {
				h.Set("Limpet-Key", ":"+base64.StdEncoding.EncodeToString(make([]byte, 65))+":;exp=9999999999;lease=900;session=:"+base64.StdEncoding.EncodeToString(make([]byte, 32))+":")
			} else if r.Method == http.MethodGet {
				h.Set("WWW-Authenticate", "Limpet error="+strconv.Quote(r.URL.RawQuery))
				w.WriteHeader(http.StatusUnauthorized)
			}
		}
		io.WriteString(w, "<!doctype html><title>evil</title>")
		return
	}
	signed := r.Header.Get("Signature-Input") != ""
	out := &statusWriter{w, http.StatusOK, life}
	switch {
	case down:
		out.Header().Set("Retry-After", "1")
		http.Error(out, "down", http.StatusServiceUnavailable)
	default:
		app.ServeHTTP(out, r)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log, seen{
		Method: r.Method, Path: path, Site: r.Header.Get("Sec-Fetch-Site"), Mode: r.Header.Get("Sec-Fetch-Mode"), Dest: r.Header.Get("Sec-Fetch-Dest"),
		Referer: r.Referer(), Signed: signed, Delegation: r.Header.Get("Limpet-Delegation") != "", Bound: covered, Status: out.code,
	})
}

// control is the script's way to the server: /control/log tells what came since
// the last time, the others change something first.
func (s *sdkSite) control(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/control/restart" {
		s.restart()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch r.URL.Path {
	case "/control/life":
		s.life = r.URL.Query().Get("s")
	case "/control/down":
		s.down = r.URL.Query().Get("on") != ""
	}
	answer(w, s.log)
	s.log = nil
}
