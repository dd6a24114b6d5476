package limpet

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/limpet-auth/limpet/proof"
)

// Level says what keeps a session's device key; see [proof.Level].
type Level = proof.Level

// The levels, strongest first.
const (
	HardwareAttested = proof.HardwareAttested
	Hardware         = proof.Hardware
	Browser          = proof.Browser
	Software         = proof.Software
	None             = proof.None
)

// Freshness is how a proof shows that it was made for this request, now; see
// [proof.Freshness].
type Freshness = proof.Freshness

// The freshness policies, strongest first but for StrictNonce, which is Nonce
// with more asked of the client.
const (
	Nonce       = proof.Nonce
	StrictNonce = proof.StrictNonce
	BodyHash    = proof.BodyHash
	Timestamp   = proof.Timestamp
)

// Mode says what a route does with sessions that are not bound.
type Mode uint8

const (
	// Prefer admits bound sessions only with a proof, and unbound ones with
	// level None. It relies on the app's tokens having one spelling each: a
	// token that the app also accepts in another spelling looks unbound there.
	Prefer Mode = iota
	// Require admits bound sessions with a proof, and nobody else.
	Require
	// Observe admits everybody and logs what Require would have refused. A
	// request that would have been refused carries no binding.
	Observe
)

// String returns the word that configuration files use.
func (m Mode) String() string {
	switch m {
	case Prefer:
		return "prefer"
	case Require:
		return "require"
	case Observe:
		return "observe"
	}
	return "unknown"
}

// Rule is what a route demands. The zero value is the default: mode Prefer,
// policy Nonce, no minimum level.
type Rule struct {
	Mode      Mode
	Freshness Freshness
	MinLevel  Level // the weakest level admitted; "" is None

	// Challenge demands that the proof covers a value of the server's that
	// changes every five minutes, so that proofs cannot be made in advance.
	// hw-sign clients cannot do that.
	Challenge bool

	// Channel demands that the proof is made with a key of the TLS connection
	// that it comes on, so that an ephemeral key stolen from memory is worthless
	// on another one. TLS must end at this server. Clients with signing keys,
	// DPoP or hw-sign cannot do that.
	Channel bool

	// Client says whether the request must carry a token of its TLS connection, by
	// a client that Config.Clients knows.
	Client ClientRule

	// Body is up to how many bytes of a body are read to compare them with the
	// digest that the proof covers, before the app sees any; a larger body is
	// refused. 0 is Config.MaxBody. With StreamBody the app gets the body as it
	// comes, and in place of the last byte an error if it was another one.
	Body int64
}

// ClientRule says what a route demands of clients that authenticate their TLS
// connections; see package channel.
type ClientRule uint8

const (
	NoClient         ClientRule = iota // nothing
	BesideSession                      // a client, and what the rule demands of sessions; package client cannot do Rule.Channel as well
	InsteadOfSession                   // a client; sessions are not looked at
)

// String returns the word that configuration files use.
func (c ClientRule) String() string {
	switch c {
	case NoClient:
		return "none"
	case BesideSession:
		return "beside-session"
	case InsteadOfSession:
		return "instead-of-session"
	}
	return "unknown"
}

// Route gives the requests that match Pattern a rule of their own. Patterns
// are those of [http.ServeMux], and the most specific one counts.
type Route struct {
	Pattern string
	Rule    Rule
}

// Limits that are the same for every guard.
const (
	window   = 60 * time.Second // how old a proof may be
	skew     = 30 * time.Second // how far in the future a client's clock may be
	slots    = 8                // live ephemeral keys a session
	maxToken = 8 << 10          // bytes of a session token
	maxUser  = 256              // bytes of a user name

	maxLifetime = 10 * 365 * 24 * time.Hour // of a binding

	// How long the end of a session is remembered: for as long as browsers
	// keep a cookie (RFC 6265bis, 5.5).
	retention = 400 * 24 * time.Hour
)

// Config is what a [Guard] is made from. Session and Store must be set.
type Config struct {
	Session Session // where a request carries its session token
	Store   Store   // where bindings are kept

	Rule   Rule    // for requests that no route matches
	Routes []Route // rules of their own

	// Lease is how long an ephemeral key may be used; default 15 minutes, at
	// most a day. Shorter narrows what a key stolen from memory is good for.
	Lease time.Duration

	// Lifetime is how long a binding holds after login; default 30 days, at
	// most ten years. It
	// should be no shorter than the life of the app's tokens.
	Lifetime time.Duration

	// MaxBody is how many bytes of a body are read to hash them, where a rule
	// does not say; default 1 MiB. Larger bodies are refused there.
	MaxBody int64

	// Tokens knows access tokens of an authorization server, for sessions that
	// are not in the store; nil if there are none. See package oauth.
	Tokens Tokens

	// Clients knows clients by tokens of their TLS connections, where a rule asks
	// for them: a channel.Server.
	Clients Clients

	// Browsers has browsers bind the sessions of their logins themselves (W3C Device
	// Bound Session Credentials), where the login brings no device key, and gives
	// clients of Limpet's own wire that ask for it a cookie of ten minutes, for
	// requests that cannot carry a proof. Such a cookie, __Host-limpet, admits a bound
	// session where the rule asks for no more than freshness by nonce or timestamp.
	// Sessions must be in a cookie that reaches [httpsig.WellKnownPath], and the
	// guard must answer below that. To take it back ends the sessions that browsers
	// have bound.
	Browsers bool

	// SealKey is the 32-byte key that secrets in the store are sealed under.
	// Keep it outside the store, and the same on all servers that share one.
	// If it is nil a random one is made: after a restart clients then
	// introduce new ephemeral keys, and nothing else is lost.
	SealKey []byte

	// Decided, if it is set, is told of each decision, after it was taken and before
	// the request goes on: what it costs, each request pays. It is called from many
	// goroutines at once, with the request's context; d is its own until it returns.
	// Nobody is told who a request is from before that is proven.
	Decided func(ctx context.Context, d *Decision)

	// Logger gets a line for each decision: at level Debug if a request is admitted
	// or a token replaced, else at Info. The default is slog.Default().
	Logger *slog.Logger
}

func (c *Config) setDefaults() error {
	if c.Session == (Session{}) {
		return errors.New("limpet: Config.Session is not set: use Bearer() or Cookie(name)")
	}
	if name := c.Session.cookie; name != "" && (&http.Cookie{Name: name}).Valid() != nil {
		return fmt.Errorf("limpet: Config.Session: no cookie can have the name %.64q", name)
	}
	if c.Store == nil {
		return errors.New("limpet: Config.Store is not set")
	}
	if c.Browsers && c.Session.cookie == "" {
		return errors.New("limpet: Config.Browsers is for sessions in a cookie: browsers keep keys for no other")
	}
	if c.Browsers && strings.EqualFold(c.Session.cookie, boundCookie.Name) {
		return fmt.Errorf("limpet: Config.Browsers has a cookie of the name %s: the session's must have another", boundCookie.Name)
	}
	if c.Lease == 0 {
		c.Lease = 15 * time.Minute
	}
	if c.Lease < time.Second || c.Lease > 24*time.Hour {
		return fmt.Errorf("limpet: Config.Lease is %v, want between a second and a day", c.Lease)
	}
	if c.Lifetime == 0 {
		c.Lifetime = 30 * 24 * time.Hour
	}
	if c.Lifetime < time.Second || c.Lifetime > maxLifetime {
		return fmt.Errorf("limpet: Config.Lifetime is %v, want between a second and ten years", c.Lifetime)
	}
	if c.MaxBody == 0 {
		c.MaxBody = 1 << 20
	}
	if c.MaxBody < 0 {
		return fmt.Errorf("limpet: Config.MaxBody is %d", c.MaxBody)
	}
	if c.SealKey == nil {
		c.SealKey = make([]byte, 32)
		rand.Read(c.SealKey) // never fails
	}
	if len(c.SealKey) != 32 {
		return fmt.Errorf("limpet: Config.SealKey has %d bytes, want 32", len(c.SealKey))
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return nil
}

func (r Rule) validate() error {
	if r.Mode > Observe {
		return fmt.Errorf("unknown mode %d", r.Mode)
	}
	if r.Freshness > Timestamp {
		return fmt.Errorf("unknown freshness policy %d", r.Freshness)
	}
	if r.Body < StreamBody {
		return fmt.Errorf("a body limit of %d", r.Body)
	}
	if r.Client > InsteadOfSession {
		return fmt.Errorf("unknown client rule %d", r.Client)
	}
	if r.Client == InsteadOfSession && (r.Freshness != Nonce || r.MinLevel != "" || r.Challenge || r.Channel || r.Body != 0) {
		return errors.New("a client instead of a session brings no proof that more could be demanded of")
	}
	if r.Body == StreamBody && r.Freshness == BodyHash {
		return errors.New("policy body-hash and StreamBody exclude each other")
	}
	if !HardwareAttested.AtLeast(r.MinLevel) {
		return fmt.Errorf("unknown level %q", r.MinLevel)
	}
	return nil
}

// rules finds a request's rule.
type rules struct {
	fallback  Rule
	mux       *http.ServeMux // nil if there are no routes
	byPattern map[string]Rule
	enforce   bool // one of them does more than observe
}

func newRules(cfg *Config) (r rules, err error) {
	fallback, routes := cfg.Rule, cfg.Routes
	enforces := func(route Route) bool { return route.Rule.Mode != Observe }
	r = rules{fallback: fallback, enforce: fallback.Mode != Observe || slices.ContainsFunc(routes, enforces)}
	if asked := func(route Route) bool { return route.Rule.Client != NoClient }; cfg.Clients == nil &&
		(fallback.Client != NoClient || slices.ContainsFunc(routes, asked)) {
		return r, errors.New("limpet: a rule asks for a client, and Config.Clients is not set")
	}
	if err := fallback.validate(); err != nil {
		return r, fmt.Errorf("limpet: Config.Rule: %w", err)
	}
	if len(routes) == 0 {
		return r, nil
	}
	defer func() { // ServeMux panics on bad and conflicting patterns
		if p := recover(); p != nil {
			err = fmt.Errorf("limpet: Config.Routes: %v", p)
		}
	}()
	r.mux, r.byPattern = http.NewServeMux(), make(map[string]Rule, len(routes))
	for _, route := range routes {
		if err := route.Rule.validate(); err != nil {
			return r, fmt.Errorf("limpet: route %q: %w", route.Pattern, err)
		}
		r.mux.Handle(route.Pattern, http.NotFoundHandler())
		r.byPattern[route.Pattern] = route.Rule
	}
	return r, nil
}

// of returns the rule of a request. One whose path has another rule as sent
// than decoded, which is how an app may read it, is refused; the rule tells if
// that is only to be observed.
func (r *rules) of(req *http.Request) (Rule, error) {
	if r.mux == nil {
		return r.fallback, nil
	}
	host := req.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	seen := &http.Request{Method: req.Method, URL: req.URL, Host: strings.TrimRight(strings.ToLower(host), ".")}
	rule := r.match(seen)
	if req.URL.RawPath == "" {
		return rule, nil
	}
	decoded := *req.URL
	decoded.RawPath = ""
	seen.URL = &decoded
	other := r.match(seen)
	if other == rule {
		return rule, nil
	}
	if rule.Mode == Observe {
		rule = other
	}
	return rule, &proof.Refusal{Reason: proof.Malformed, Detail: "a path that can be read in two ways"}
}

func (r *rules) match(req *http.Request) Rule {
	_, pattern := r.mux.Handler(req)
	if rule, ok := r.byPattern[pattern]; ok {
		return rule
	}
	return r.fallback
}
