// Package authserver is the reference auth server: names and passwords, bearer
// tokens, and sessions that a [limpet.Guard] binds to device keys. The limpet
// command serves it; demo, tests and benchmarks run it in their own process.
package authserver

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/httpsig"
	"github.com/limpet-auth/limpet/sdk/js"
	"github.com/limpet-auth/limpet/web"
)

const (
	maxBody      = 64 << 10 // bytes of a request to /register or /login
	maxEcho      = 1 << 20  // bytes of a request to a protected path
	maxName      = 64       // characters of a user name
	maxPassword  = 1024     // bytes
	tokenBytes   = 32
	cookie       = "__Host-session"    // of the sessions that browsers bind
	lifetime     = 30 * 24 * time.Hour // of a session
	userLifetime = math.MaxInt64       // of an account: 292 years
)

// Config is what a [Server] is made from. Store must be set.
type Config struct {
	Store   limpet.Store  // accounts and sessions
	Rule    limpet.Rule   // for /authenticated, /echo and /logout; Body is by default 1 MiB
	Lease   time.Duration // see limpet.Config
	SealKey []byte        // see limpet.Config

	// DBSC puts the sessions into a cookie in place of bearer tokens, and has browsers
	// bind them; see limpet.Config.Browsers.
	DBSC bool

	Logger *slog.Logger // default slog.Default()

	Decided func(context.Context, *limpet.Decision) // see limpet.Config
}

// Server serves /register and /login and, to bound sessions with a proof,
// /authenticated, /echo and /logout; to all clients what they need for a proof,
// at [httpsig.WellKnownPath] and, with Config.DBSC, below that; to browsers a page at /
// that tries all of it, with passkeys at /passkey and /login/passkey.
type Server struct {
	*limpet.Guard // sessions: list and revoke

	store         limpet.Store
	sessions      limpet.Session
	dbsc          bool
	log           *slog.Logger
	passwords     passwords
	failures      failures
	passkeys      passkeys
	wellKnown     http.Handler
	login         http.Handler
	authenticated http.Handler
	echo          http.Handler
	logout        http.Handler
	makeOptions   http.Handler
	makePasskey   http.Handler
	passkeyLogin  http.Handler
	page          http.Handler
}

// New returns a server. It touches neither store nor network.
func New(cfg Config) (*Server, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Rule.Body == 0 {
		cfg.Rule.Body = maxEcho
	}
	sessions := limpet.Bearer()
	if cfg.DBSC {
		sessions = limpet.Cookie(cookie)
	}
	guard, err := limpet.New(limpet.Config{
		Session:  sessions,
		Browsers: cfg.DBSC,
		Store:    cfg.Store,
		Rule:     cfg.Rule,
		Lease:    cfg.Lease,
		Lifetime: lifetime,
		MaxBody:  maxBody,
		SealKey:  cfg.SealKey,
		Logger:   cfg.Logger,
		Decided:  cfg.Decided,
	})
	if err != nil {
		return nil, err
	}
	s := &Server{Guard: guard, store: cfg.Store, sessions: sessions, dbsc: cfg.DBSC, log: cfg.Logger,
		passwords: newPasswords(), failures: newFailures(), passkeys: newPasskeys(cfg.SealKey)}
	s.wellKnown = guard.WellKnown()
	s.login = guard.CheckBody(http.HandlerFunc(s.serveLogin))
	s.authenticated = guard.Protect(http.HandlerFunc(s.serveAuthenticated))
	s.echo = guard.Protect(http.HandlerFunc(s.serveEcho))
	s.logout = guard.Protect(http.HandlerFunc(s.serveLogout))
	s.makeOptions = guard.Protect(http.HandlerFunc(s.serveMakeOptions))
	s.makePasskey = guard.Protect(http.HandlerFunc(s.serveMake))
	s.passkeyLogin = guard.CheckBody(http.HandlerFunc(s.servePasskeyLogin))
	s.page = web.Demo(js.Source)
	return s, nil
}

// ServeHTTP answers one request. Paths count as they are: none is cleaned or
// redirected.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if cors(w, r) {
		return
	}
	switch path := r.URL.Path; {
	case path == httpsig.WellKnownPath, s.dbsc && strings.HasPrefix(path, httpsig.WellKnownPath+"/"):
		s.wellKnown.ServeHTTP(w, r)
	case path == "/register":
		s.post(w, r, s.serveRegister)
	case path == "/login":
		s.post(w, r, s.login.ServeHTTP)
	case path == "/login/passkey/options":
		s.post(w, r, s.serveLoginOptions)
	case path == "/login/passkey":
		s.post(w, r, s.passkeyLogin.ServeHTTP)
	case path == "/passkey/options":
		s.post(w, r, s.makeOptions.ServeHTTP)
	case path == "/passkey":
		s.post(w, r, s.makePasskey.ServeHTTP)
	case path == "/logout":
		s.post(w, r, s.logout.ServeHTTP)
	case path == "/authenticated":
		s.authenticated.ServeHTTP(w, r)
	case path == "/echo" || strings.HasPrefix(path, "/echo/"):
		s.echo.ServeHTTP(w, r)
	case path == "/" || strings.HasPrefix(path, "/demo/"):
		s.page.ServeHTTP(w, r)
	default:
		refuse(w, http.StatusNotFound, "not_found", "there is nothing here")
	}
}

func (s *Server) post(w http.ResponseWriter, r *http.Request, serve http.HandlerFunc) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		refuse(w, http.StatusMethodNotAllowed, "method_not_allowed", "this path takes POST only")
		return
	}
	serve(w, r)
}

func (s *Server) serveRegister(w http.ResponseWriter, r *http.Request) {
	c, ok := readCredentials(w, r)
	if !ok {
		return
	}
	_, taken, err := s.store.Get(r.Context(), userKey(c.Name))
	if err != nil {
		s.unavailable(w, r, err)
		return
	}
	if !taken {
		rec, err := s.passwords.hash(r.Context(), c.Password)
		if err != nil {
			s.unavailable(w, r, err)
			return
		}
		added, err := s.store.Add(r.Context(), userKey(c.Name), rec, userLifetime)
		if err != nil {
			s.unavailable(w, r, err)
			return
		}
		taken = !added
	}
	if taken {
		refuse(w, http.StatusConflict, "user_exists", "this user name is taken")
		return
	}
	s.log.InfoContext(r.Context(), "limpet: registered", "user", c.Name)
	answer(w, http.StatusCreated, map[string]any{"message": "registered"})
}

func (s *Server) serveLogin(w http.ResponseWriter, r *http.Request) {
	c, ok := readCredentials(w, r)
	if !ok {
		return
	}
	if wait := s.failures.wait(c.Name); wait > 0 {
		w.Header().Set("Retry-After", fmt.Sprint(int(wait/time.Second)+1))
		refuse(w, http.StatusTooManyRequests, "too_many_logins", "too many failed logins: try again later")
		return
	}
	rec, _, err := s.store.Get(r.Context(), userKey(c.Name))
	if err != nil {
		s.unavailable(w, r, err)
		return
	}
	// An unknown user has no record, and costs as much as a wrong password.
	right, err := s.passwords.match(r.Context(), c.Password, rec)
	if err != nil {
		s.unavailable(w, r, err)
		return
	}
	if !right {
		s.failures.add(c.Name)
		// No name in the log: people type passwords into the wrong field.
		s.log.WarnContext(r.Context(), "limpet: login refused", "remote", r.RemoteAddr)
		refuse(w, http.StatusUnauthorized, "invalid_credentials", "wrong user name or password")
		return
	}
	s.failures.clear(c.Name)
	s.begin(w, r, c.Name)
}

// begin answers a login that succeeded with the token of a new session.
func (s *Server) begin(w http.ResponseWriter, r *http.Request, user string) {
	token := newToken()
	if err := s.Bind(w, r, token, user); err != nil {
		limpet.Refuse(w, err)
		return
	}
	if err := s.store.Put(r.Context(), tokenKey(idOf(token)), []byte(user), lifetime); err != nil {
		s.unavailable(w, r, err)
		return
	}
	if s.dbsc {
		http.SetCookie(w, &http.Cookie{Name: cookie, Value: token, Path: "/", MaxAge: int(lifetime / time.Second), Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode})
		answer(w, http.StatusOK, map[string]any{"message": "logged in"})
		return
	}
	answer(w, http.StatusOK, map[string]any{"token": token})
}

func (s *Server) serveAuthenticated(w http.ResponseWriter, r *http.Request) {
	b, ok := s.session(w, r)
	if !ok {
		return
	}
	body := map[string]any{"authenticated": true, "user": b.User, "level": b.Level}
	if !b.Expires.IsZero() {
		body["session"], body["expires"] = b.Session.String(), b.Expires.Unix()
	}
	answer(w, http.StatusOK, body)
}

// serveEcho tells what it was asked, with any method and body: something to try
// proofs on.
func (s *Server) serveEcho(w http.ResponseWriter, r *http.Request) {
	if _, ok := s.session(w, r); !ok {
		return
	}
	n, err := io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, maxEcho))
	var refusal *proof.Refusal
	switch tooLarge := (*http.MaxBytesError)(nil); {
	case errors.As(err, &tooLarge):
		limpet.Refuse(w, &proof.Refusal{Reason: proof.BodyLarge})
	case errors.As(err, &refusal): // of a body that was not read before
		limpet.Refuse(w, err)
	case err != nil:
		refuse(w, http.StatusBadRequest, "bad_request", "the body cannot be read")
	default:
		answer(w, http.StatusOK, map[string]any{"method": r.Method, "path": r.URL.EscapedPath(), "query": r.URL.RawQuery, "bytes": n})
	}
}

func (s *Server) serveLogout(w http.ResponseWriter, r *http.Request) {
	b, ok := s.session(w, r)
	if !ok {
		return
	}
	err := s.store.Delete(r.Context(), tokenKey(b.Session))
	if err == nil {
		err = s.Revoke(r.Context(), b.Session)
	}
	if err != nil && !errors.Is(err, limpet.ErrNoSession) {
		s.unavailable(w, r, err)
		return
	}
	answer(w, http.StatusOK, map[string]any{"message": "logged out"})
}

// session returns the session of a request that the guard admitted. The guard
// also admits sessions that it knows nothing of, in modes prefer and observe;
// of those the server's own records tell whose they are, and the level is none.
func (s *Server) session(w http.ResponseWriter, r *http.Request) (*limpet.Binding, bool) {
	if b := limpet.FromContext(r.Context()); b.User != "" {
		return b, true
	}
	token, err := s.sessions.Token(r.Header)
	if err != nil {
		limpet.Refuse(w, err)
		return nil, false
	}
	id := idOf(token)
	user, found, err := s.store.Get(r.Context(), tokenKey(id))
	if err != nil {
		s.unavailable(w, r, err)
		return nil, false
	}
	if !found {
		limpet.Refuse(w, &proof.Refusal{Reason: proof.SessionRequired})
		return nil, false
	}
	return &limpet.Binding{Session: id, User: string(user), Level: limpet.None}, true
}

func (s *Server) unavailable(w http.ResponseWriter, r *http.Request, err error) {
	s.log.ErrorContext(r.Context(), "limpet: unavailable", "path", r.URL.Path, "why", err)
	limpet.Refuse(w, &proof.Refusal{Reason: proof.Unavailable, Err: err})
}

// credentials are the body of /register and /login.
type credentials struct {
	Name     string `json:"username"`
	Password string `json:"password"`
}

// readCredentials reads the body, whatever its Content-Type, or answers why not.
func readCredentials(w http.ResponseWriter, r *http.Request) (c credentials, ok bool) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		refuse(w, http.StatusRequestEntityTooLarge, string(proof.BodyLarge), "the body is over 64 KiB")
		return c, false
	}
	defer clear(body)
	// encoding/json would replace bytes that are not UTF-8, and so make two
	// passwords one.
	if err != nil || !utf8.Valid(body) || json.Unmarshal(body, &c) != nil {
		refuse(w, http.StatusBadRequest, "bad_request", `the body is not JSON of the form {"username":"…","password":"…"}`)
		return c, false
	}
	if !validName(c.Name) {
		refuse(w, http.StatusBadRequest, "bad_username", "a user name has 1 to 64 printable characters, with no space at either end")
		return c, false
	}
	if len(c.Password) < 1 || len(c.Password) > maxPassword {
		refuse(w, http.StatusBadRequest, "bad_password", "a password has 1 to 1024 bytes")
		return c, false
	}
	return c, true
}

func validName(name string) bool {
	n := 0
	for _, r := range name {
		if !unicode.IsPrint(r) || r == utf8.RuneError {
			return false
		}
		n++
	}
	return n >= 1 && n <= maxName && name[0] != ' ' && name[len(name)-1] != ' '
}

// Keys of the records, apart from the guard's:
//
//	auth:user:hash            the hash of a password, by the hash of the user's name
//	auth:token:id             the user's name, by the ID of the session
//	auth:handle:hash          what authenticators know a user by, by the hash of the user's name
//	auth:passkey:handle:n     a passkey, n from 0 to 7
//	auth:challenge:hash       a challenge that a passkey has answered
func userKey(name string) string        { return "auth:user:" + idOf(name).String() }
func tokenKey(session limpet.ID) string { return "auth:token:" + session.String() }

func idOf(token string) limpet.ID { return limpet.Bearer().ID(token) }

func newToken() string {
	b := make([]byte, tokenBytes)
	rand.Read(b) // never fails
	return base64.RawURLEncoding.EncodeToString(b)
}

func answer(w http.ResponseWriter, code int, body any) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(body)
}

func refuse(w http.ResponseWriter, code int, reason, message string) {
	if code == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf("Limpet error=%q", reason))
	}
	answer(w, code, map[string]any{"message": message, "reason": reason})
}
