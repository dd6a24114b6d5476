package admin

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/limpet-auth/limpet/internal/incoming"
	"github.com/limpet-auth/limpet/web"
)

// The console is a page at /console/ on the loopback port, for those with the
// token. A browser that is signed in has two halves of a secret: a cookie that no
// script can read, and a key that the page keeps and sends in a header. Cookies know
// no ports, so every server of this machine that the operator's browser visits is
// sent the cookie; the key stays with this one.
const (
	consolePath   = "/console/"
	consoleHeader = "Limpet-Console" // the key; no other site's page can set it
	consoleCookie = "limpet-console-"
	consoleTime   = 12 * time.Hour
	maxSignIns    = 32
	maxSignIn     = 4 << 10 // bytes of a request

	// Failed sign-ins: ten at once, then one a second.
	failureBurst = 10
	failurePause = time.Second
)

// console serves the console to whoever has the token.
type console struct {
	api   http.Handler // what signed-in pages may ask
	files http.Handler
	token [sha256.Size]byte
	a     *API

	mu     sync.Mutex
	live   []*signIn // oldest first
	failed time.Time // until when failed sign-ins count
}

// signIn is one tab of a browser. Tabs of a browser share its cookie.
type signIn struct {
	cookie, key [sha256.Size]byte
	ends        time.Time
	over        context.Context // done when it is, so that no stream outlives it
	end         func()
}

// of reports whether it is one of the browser with this cookie.
func (s *signIn) of(cookie string) bool {
	sum := sha256.Sum256([]byte(cookie))
	return subtle.ConstantTimeCompare(sum[:], s.cookie[:]) == 1
}

// by reports whether it is that of the tab with this key.
func (s *signIn) by(key string) bool {
	sum := sha256.Sum256([]byte(key))
	return subtle.ConstantTimeCompare(sum[:], s.key[:]) == 1
}

func (a *API) newConsole(token string) *console {
	return &console{
		api:   http.StripPrefix(strings.TrimSuffix(consolePath+"api/", "/"), a.all),
		files: http.StripPrefix(strings.TrimSuffix(consolePath, "/"), web.Console()),
		token: sha256.Sum256([]byte(token)),
		a:     a,
	}
}

// isConsole reports whether a path is the console's.
func isConsole(path string) bool {
	return path == strings.TrimSuffix(consolePath, "/") || strings.HasPrefix(path, consolePath)
}

func (c *console) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !fromItself(r) {
		incoming.Answer(w, http.StatusForbidden, "forbidden", "this page is for its own address on this machine: type it, as http://localhost and the port")
		return
	}
	switch path := r.URL.Path; {
	case !strings.HasPrefix(path, consolePath):
		http.Redirect(w, r, consolePath, http.StatusFound)
	case path == consolePath+"session":
		c.serveSession(w, r)
	case strings.HasPrefix(path, consolePath+"api/"):
		s, cookie := c.signedIn(r, time.Now())
		if s == nil {
			c.signInFirst(w, r, cookie)
			return
		}
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		defer context.AfterFunc(s.over, cancel)()
		c.api.ServeHTTP(w, r.WithContext(ctx))
	default:
		c.files.ServeHTTP(w, r)
	}
}

// fromItself reports whether a request was made by the console's own page, by
// whoever typed its address, or by no browser.
func fromItself(r *http.Request) bool {
	if !isLoopback(r.Host) {
		return false // a name that a stranger's DNS server leads here
	}
	if o := r.Header["Origin"]; o != nil && (len(o) != 1 || o[0] != "http://"+r.Host) {
		return false
	}
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "none", "same-origin":
		return true
	}
	return false
}

func (c *console) serveSession(w http.ResponseWriter, r *http.Request) {
	now := time.Now()
	switch r.Method {
	case http.MethodPost:
		c.signIn(w, r, now)
	case http.MethodDelete:
		s, cookie := c.signedIn(r, now)
		if s == nil {
			c.signInFirst(w, r, cookie)
			return
		}
		c.mu.Lock()
		c.live = slices.DeleteFunc(c.live, func(s *signIn) bool {
			all := s.of(cookie)
			if all {
				s.end()
			}
			return all
		})
		c.mu.Unlock()
		setCookie(w, r, "", -1)
		answer(w, map[string]any{"message": "signed out"})
	default:
		w.Header().Set("Allow", "POST, DELETE")
		incoming.Answer(w, http.StatusMethodNotAllowed, "method_not_allowed", "POST signs in, DELETE signs out")
	}
}

// signIn exchanges the token for a cookie and a key.
func (c *console) signIn(w http.ResponseWriter, r *http.Request, now time.Time) {
	// A form of another site cannot send this type.
	if r.Header.Get("Content-Type") != "application/json" {
		incoming.Answer(w, http.StatusUnsupportedMediaType, "bad_request", "sign in with JSON: the page does, once its script has loaded")
		return
	}
	var body struct{ Token string }
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxSignIn)).Decode(&body); err != nil {
		incoming.Answer(w, http.StatusBadRequest, "bad_request", `sign in with {"token":"…"}`)
		return
	}
	if wait := c.wait(now); wait > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(wait/time.Second)+1))
		incoming.Answer(w, http.StatusTooManyRequests, "too_many_sign_ins", "too many tokens were wrong: try again in a moment")
		return
	}
	sum := sha256.Sum256([]byte(strings.TrimSpace(body.Token))) // as it is copied out of a file
	if subtle.ConstantTimeCompare(sum[:], c.token[:]) == 0 {
		c.fail(now)
		c.a.cfg.Logger.WarnContext(r.Context(), "limpet: admin: console: a wrong token", "remote", r.RemoteAddr)
		incoming.Answer(w, http.StatusUnauthorized, "token_required", "this is not the admin token")
		return
	}
	cookie, key := readCookie(r), rand.Text()
	c.mu.Lock()
	known := slices.ContainsFunc(c.live, func(s *signIn) bool { return s.of(cookie) && now.Before(s.ends) })
	if !known { // else another tab of this browser is signed in, and stays so
		cookie = rand.Text()
	}
	if len(c.live) == maxSignIns {
		c.live[0].end()
		c.live = slices.Delete(c.live, 0, 1)
	}
	s := &signIn{cookie: sha256.Sum256([]byte(cookie)), key: sha256.Sum256([]byte(key)), ends: now.Add(consoleTime)}
	s.over, s.end = context.WithDeadline(context.Background(), s.ends)
	c.live = append(c.live, s)
	c.mu.Unlock()
	c.a.cfg.Logger.InfoContext(r.Context(), "limpet: admin: console: signed in", "remote", r.RemoteAddr)
	setCookie(w, r, cookie, int(consoleTime/time.Second))
	answer(w, map[string]any{"key": key})
}

// signedIn returns whose halves a request has, nil if nobody's, and the cookie.
func (c *console) signedIn(r *http.Request, now time.Time) (s *signIn, cookie string) {
	cookie = readCookie(r)
	key := r.Header.Get(consoleHeader)
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.live, func(s *signIn) bool { return s.of(cookie) && s.by(key) && now.Before(s.ends) })
	if i < 0 {
		return nil, cookie
	}
	return c.live[i], cookie
}

func (c *console) signInFirst(w http.ResponseWriter, r *http.Request, cookie string) {
	words := "sign in first"
	if cookie != "" {
		words = "signed out: after 12 hours, or because the server was restarted"
	}
	incoming.Answer(w, http.StatusUnauthorized, "sign_in_required", words)
}

// wait returns how long the next sign-in must wait, 0 if not at all.
func (c *console) wait(now time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return max(0, max(0, c.failed.Sub(now))-(failureBurst-1)*failurePause)
}

func (c *console) fail(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failed.Before(now) {
		c.failed = now
	}
	c.failed = c.failed.Add(failurePause)
}

// cookieName has the port in it: consoles of several servers share a machine's
// cookies.
func cookieName(r *http.Request) string {
	port := (&url.URL{Host: r.Host}).Port() // digits, or ""
	return consoleCookie + port
}

func readCookie(r *http.Request) string {
	if c, err := r.Cookie(cookieName(r)); err == nil {
		return c.Value
	}
	return ""
}

// setCookie sets the cookie for some seconds. It is not Secure: this port speaks
// plain HTTP, and nothing of it leaves the machine.
func setCookie(w http.ResponseWriter, r *http.Request, value string, seconds int) {
	c := http.Cookie{Name: cookieName(r), Value: value, Path: consolePath, MaxAge: seconds, HttpOnly: true, SameSite: http.SameSiteStrictMode}
	w.Header().Set("Set-Cookie", c.String())
}

// status is how a server fares, for GET /status.
type status struct {
	Service string `json:"service"`
	Version string `json:"version"`
	Started int64  `json:"started"` // unix seconds
	Store   health `json:"store"`
	TPM     health `json:"tpm"`
}

// health is one of
//
//	unused   there is none
//	well     it answers, in so many seconds
//	failing  it does not; the log says why
type health struct {
	Kind  string  `json:"kind,omitempty"`
	State string  `json:"state"`
	Took  float64 `json:"took,omitempty"`
}

func (a *API) serveStatus(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	s := status{Service: a.cfg.Service, Version: a.cfg.Version, Started: a.cfg.Recent.started.Unix(), Store: health{Kind: a.cfg.StoreKind}, TPM: health{State: "unused"}}
	s.Store.is(a.ready(r.Context()), began)
	if a.cfg.TPM != nil {
		began = time.Now()
		if used, err := a.cfg.TPM(r.Context()); used {
			if err != nil {
				a.cfg.Logger.WarnContext(r.Context(), "limpet: admin: the TPM", "why", err)
			}
			s.TPM.is(err, began)
		}
	}
	answer(w, s)
}

func (h *health) is(err error, began time.Time) {
	h.State, h.Took = "well", time.Since(began).Seconds()
	if err != nil {
		h.State = "failing"
	}
}
