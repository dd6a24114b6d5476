// Package gateway stands in front of an app that knows nothing of Limpet, and
// binds its sessions to device keys. It is a reverse proxy that watches the
// app's answers to logins: the session that one hands out is bound to the device
// key that the request brought, and from then on the app sees no request of that
// session without a proof of its key.
//
//	g, err := gateway.New(gateway.Config{
//		Upstream: upstream, // http://127.0.0.1:8080
//		Session:  limpet.Cookie("sid"),
//		Store:    store,
//		Logins:   []gateway.Login{{Pattern: "POST /login"}},
//		Logouts:  []string{"POST /logout"},
//	})
//	gateway.NewServer(g, slog.Default()).ServeTLS(gateway.Listener(l), cert, key)
//
// Bodies stream in both directions, WebSockets pass. Paths, queries and Host reach
// the app as the client sent them.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/internal/incoming"
	"github.com/limpet-auth/limpet/internal/relay"
	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/httpsig"
)

// Config is what a [Gateway] is made from. Upstream, Session and Store must be
// set.
type Config struct {
	Upstream *url.URL       // the app: http or https, host and port, nothing else
	Session  limpet.Session // where the app's requests carry their session token
	Store    limpet.Store   // where bindings are kept

	// Rule is for requests that no route matches, Routes have their own. A rule
	// whose Body is 0 streams, unless its policy is BodyHash. A pattern counts
	// with and without a slash at its end. A request that apps may read in two
	// ways, so that it has two rules, is refused.
	Rule   limpet.Rule
	Routes []limpet.Route

	Logins  []Login
	Logouts []string // patterns; if the app answers with 200 to 299 or 301 to 303 the session is revoked

	// Clients knows clients by tokens of their TLS connections, where a rule asks
	// for them; see [limpet.Config].
	Clients limpet.Clients

	// DBSC has browsers bind the sessions of their logins, and answers them under
	// /.well-known/limpet/; see [limpet.Config].Browsers.
	DBSC bool

	Names   Names          // of the headers that tell the app who is there
	Trusted []netip.Prefix // proxies in front, whose X-Forwarded-… is passed on, and who may ask; see [Gateway.Ask]

	// Timeout is how long the app may take until its answer begins; default a
	// minute. There is no limit on how long the answer goes on.
	Timeout time.Duration

	Lease    time.Duration // see [limpet.Config]
	Lifetime time.Duration // likewise
	SealKey  []byte        // likewise
	Logger   *slog.Logger  // likewise

	// Decided is told of each decision, the gateway's own among them; see
	// [limpet.Config].
	Decided func(context.Context, *limpet.Decision)
}

// Gateway is a handler that stands in front of an app.
type Gateway struct {
	cfg       Config
	log       *slog.Logger
	guard     *limpet.Guard
	wellKnown http.Handler
	table     table
	filter    filter
	upstream  upstream
	proxy     *httputil.ReverseProxy
}

// New returns a gateway. It fails on a configuration that makes no sense and
// touches neither store nor network.
func New(cfg Config) (*Gateway, error) {
	g, err := newGateway(cfg)
	if err != nil {
		return nil, fmt.Errorf("limpet: gateway: %w", err)
	}
	return g, nil
}

func newGateway(cfg Config) (*Gateway, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = time.Minute
	}
	if cfg.Timeout < 0 {
		return nil, fmt.Errorf("a timeout of %v", cfg.Timeout)
	}
	if cfg.DBSC && cfg.Session.CookieName() == "" {
		return nil, errors.New("dbsc needs sessions in a cookie: browsers keep keys for no others")
	}
	if err := checkUpstream(cfg.Upstream); err != nil {
		return nil, err
	}
	if err := cfg.Names.setDefaults(); err != nil {
		return nil, err
	}
	cfg.Rule = streaming(cfg.Rule)
	routes := make([]limpet.Route, len(cfg.Routes))
	for i, route := range cfg.Routes {
		routes[i] = limpet.Route{Pattern: route.Pattern, Rule: streaming(route.Rule)}
	}
	cfg.Routes = routes
	table, err := newTable(&cfg)
	if err != nil {
		return nil, err
	}
	guard, err := limpet.New(limpet.Config{
		Session:  cfg.Session,
		Store:    cfg.Store,
		Rule:     cfg.Rule,
		Routes:   cfg.Routes,
		Lease:    cfg.Lease,
		Lifetime: cfg.Lifetime,
		Clients:  cfg.Clients,
		Browsers: cfg.DBSC,
		SealKey:  cfg.SealKey,
		Logger:   cfg.Logger,
		Decided:  cfg.Decided,
	})
	if err != nil {
		return nil, errors.New(strings.TrimPrefix(err.Error(), "limpet: "))
	}
	g := &Gateway{cfg: cfg, log: cfg.Logger, guard: guard, wellKnown: guard.WellKnown(), table: table, filter: newFilter(cfg.Names)}
	g.upstream = newUpstream(cfg.Upstream, cfg.Timeout, cfg.Logger)
	g.proxy = &httputil.ReverseProxy{
		Rewrite:        g.rewrite,
		Transport:      g.upstream,
		BufferPool:     &relay.Buffers,
		ModifyResponse: g.modify,
		ErrorHandler:   g.failed,
		ErrorLog:       slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug),
	}
	return g, nil
}

// checkUpstream refuses an upstream that would make the app see another path
// than the one that was checked.
func checkUpstream(u *url.URL) error {
	switch {
	case u == nil:
		return errors.New("no upstream")
	case u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		return errors.New("the upstream is not of the form http://host:port")
	case u.User != nil || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "":
		return errors.New("the upstream has more than scheme, host and port: paths reach the app as they come")
	}
	return nil
}

func streaming(r limpet.Rule) limpet.Rule {
	if r.Body == 0 && r.Freshness != limpet.BodyHash && r.Client != limpet.InsteadOfSession {
		r.Body = limpet.StreamBody
	}
	return r
}

func newTable(cfg *Config) (t table, err error) {
	t.fallback = cfg.Rule
	var rules, watched []string
	for _, route := range cfg.Routes {
		rules = append(rules, route.Pattern)
		t.rule = append(t.rule, route.Rule)
	}
	if t.rules, err = newPatterns(rules); err != nil {
		return t, fmt.Errorf("routes: %w", err)
	}
	bearer := cfg.Session == limpet.Bearer()
	for _, l := range cfg.Logins {
		read, err := l.read(bearer)
		if err != nil {
			return t, fmt.Errorf("login %q: %w", l.Pattern, err)
		}
		watched = append(watched, l.Pattern)
		t.event = append(t.event, event{login: read})
	}
	for _, pattern := range cfg.Logouts {
		watched = append(watched, pattern)
		t.event = append(t.event, event{logout: true})
	}
	if t.watched, err = newPatterns(watched); err != nil {
		return t, fmt.Errorf("logins and logouts: %w", err)
	}
	return t, nil
}

// Guard returns what keeps the gateway's sessions: to list and to revoke them.
func (g *Gateway) Guard() *limpet.Guard { return g.guard }

// Close lets go of idle connections to the app. Requests in flight go on, and
// new ones may come.
func (g *Gateway) Close() { g.upstream.CloseIdleConnections() }

// exchange is one request and its answer. It is their context.
type exchange struct {
	context.Context
	in     *http.Request // as it came
	out    *http.Request // as the rules admitted it
	rule   limpet.Rule
	event  event
	answer http.Header   // what the guard tells the client
	user   string        // whom a login's request names
	upload *relay.Upload // nil if there is no body

	header  http.Header // of the request as the rules admitted it
	passed  http.Header // the same, with nothing left in it but what goes on to the app; nil if the reverse proxy is to find that out
	trusted bool        // it came from a proxy that is trusted
}

type exchangeKey struct{}

func (x *exchange) Value(key any) any {
	if key == (exchangeKey{}) {
		return x
	}
	return x.Context.Value(key)
}

func exchangeOf(ctx context.Context) *exchange { return ctx.Value(exchangeKey{}).(*exchange) }

// ServeHTTP hands the request on to the app, if its rule admits it.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if g.ownPath(r.URL.Path) {
		g.wellKnown.ServeHTTP(w, r)
		return
	}
	if r.Method == http.MethodConnect || r.Method == http.MethodTrace {
		incoming.Answer(w, http.StatusMethodNotAllowed, "method_not_allowed", "this method is not passed on")
		return
	}
	x, err := g.admit(w, r)
	if err != nil {
		g.forget(w, r, err)
		limpet.Refuse(w, err)
		return
	}
	x.trusted = isTrusted(r.RemoteAddr, g.cfg.Trusted)
	x.header = x.out.Header
	// A login's is asked for its device key when the app has answered.
	if x.event.login == nil && g.filter.pass(x.header, x.trusted) {
		x.passed, x.out.Header = x.header, nil // the reverse proxy would clone it, and look for what is not there
	}
	g.proxy.ServeHTTP(w, x.out)
}

// ownPath reports whether the gateway answers a path itself.
func (g *Gateway) ownPath(path string) bool {
	return path == httpsig.WellKnownPath || g.cfg.DBSC && strings.HasPrefix(path, httpsig.WellKnownPath+"/")
}

func (g *Gateway) admit(w http.ResponseWriter, r *http.Request) (*exchange, error) {
	v, observed, err := g.table.of(r)
	if err == nil && (!incoming.Plain(r) || r.URL.Path != "" && r.URL.Path[0] != '/') {
		err, observed = errReading, false
	}
	told := err != nil
	if told {
		g.refused(r, err, observed)
		if !observed {
			return nil, err
		}
	}
	x := &exchange{Context: r.Context(), in: r, rule: g.table.ruleOf(v), event: g.table.eventOf(v)}
	if r.Body != nil && r.Body != http.NoBody && r.ContentLength != 0 { // which HTTP/2 has a body for
		x.upload = relay.NewUpload(w, r)
		// The server's own request keeps its body: by that the server knows whether
		// some of it is left, and does not take the rest for the next request.
		with := *r
		with.Body, r = x.upload, &with
	}
	if x.event.login != nil {
		if x.out, err = g.admitLogin(x, r); err != nil {
			observed := !g.table.enforces()
			switch {
			case !told:
				g.refused(r, err, observed)
			case !observed:
				g.report(r, limpet.BrokenOff, err)
			}
			if !observed {
				return nil, err
			}
			x.out = r
		}
	} else if told {
		x.out = r // as the guard does it: what would be refused carries no binding
	} else if x.out, err = g.guard.Admit(w.Header(), r, x.rule); err != nil {
		return nil, err
	} else if x.rule.Client == limpet.InsteadOfSession && x.rule.Mode != limpet.Observe {
		if x.out, err = g.anonymous(x.out); err != nil { // nobody looked at its session, but the app does
			g.report(r, limpet.BrokenOff, err)
			return nil, err
		}
	}
	// An informational answer would empty it.
	if h := w.Header(); len(h) > 0 {
		x.answer = h.Clone()
		clear(h)
	}
	x.Context = x.out.Context()
	x.out = x.out.WithContext(x)
	return x, nil
}

// forget has a browser forget the cookie of a session that is over: it would be
// refused on every page, those included that lead to the login.
func (g *Gateway) forget(w http.ResponseWriter, r *http.Request, err error) {
	var refusal *proof.Refusal
	if !errors.As(err, &refusal) || refusal.Reason != proof.SessionEnded {
		return
	}
	g.cfg.Session.Forget(w.Header(), r, r.URL.EscapedPath())
}

// refused reports what the guard has not seen.
func (g *Gateway) refused(r *http.Request, err error, observed bool) {
	result := limpet.Refused
	if observed {
		result = limpet.WouldRefuse
	}
	g.report(r, result, err)
}

func (g *Gateway) report(r *http.Request, result limpet.Result, err error) {
	g.guard.Report(r.Context(), &limpet.Decision{Result: result, Err: err, Method: r.Method, Path: r.URL.EscapedPath()})
}
