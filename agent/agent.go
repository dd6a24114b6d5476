// Package agent is the client's side for programs that nobody can change: a
// reverse proxy on the user's own machine that keeps device keys and adds the
// proofs. A program talks to it as it would to the app.
//
//	a, err := agent.New(ctx, agent.Config{
//		To:    app, // https://app.example.com
//		Keys:  keys,
//		State: "/home/alice/.local/state/limpet/agent/app.json",
//	})
//	h, err := a.On(listener.Addr())
//	agent.NewServer(h, slog.Default()).Serve(agent.Listener(listener))
//
// A login that passes through brings a device key with it, and the session that
// the app answers with is bound to it. The program keeps the cookie or token as
// ever; the agent knows the session by the hash of its token, also after a
// restart, and proves each request that carries it. What else passes is not
// touched.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"time"

	"github.com/limpet-auth/limpet/client"
	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/internal/incoming"
	"github.com/limpet-auth/limpet/internal/outgoing"
	"github.com/limpet-auth/limpet/internal/relay"
	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/httpsig"
)

// Config is what an [Agent] is made from. To, Keys and State must be set.
type Config struct {
	To   *url.URL       // the app: scheme, host and port, nothing else; http only on this machine
	Keys hwkey.Keystore // where device keys are made and kept

	// State is the file in which sessions are remembered: hashes of tokens, and
	// the names of their device keys. It holds no secret, is written whole or not
	// at all, and belongs to one agent at a time.
	State string

	// Kind names Keys in State. A session whose key is in a keystore of another
	// kind, from a time when this one did not work, needs Open, which is called
	// for each such kind; nil: those sessions rest in State.
	Kind string
	Open func(kind string) (hwkey.Keystore, error)

	// Logins are the routes whose answers hand out sessions, as patterns of
	// [http.ServeMux]; default "POST /login". Each costs a device key, so what is
	// none does not belong here.
	Logins []string

	// Logouts are the routes that end sessions; default "POST /logout". If the app
	// answers with 200 to 299 or 301 to 303 the session's device key is deleted.
	Logouts []string

	Wire client.Wire // of new sessions

	// As is the session of requests that bring none, nil if they stay as they are.
	As *Login

	Base   http.RoundTripper // to the app; default [http.DefaultTransport]
	Logger *slog.Logger      // default slog.Default()
}

// Login is a session that began elsewhere, with a bearer token. The agent leaves
// its device key where it is, whatever becomes of the session.
type Login struct {
	Session client.Session
	Keys    hwkey.Keystore // that has its device key
	Token   string
}

// Agent is a reverse proxy that proves requests. It is safe for concurrent use.
type Agent struct {
	cfg     Config
	log     *slog.Logger
	to      string // the app's authority
	logins  routes
	logouts routes
	wallets []*wallet // the first makes new keys
	as      *wallet   // nil if there is none
	proxy   *httputil.ReverseProxy
	turns   chan struct{} // of logins on their way
	state   state
}

// maxLogins is how many logins are on their way at once; more wait. Each costs a
// device key, and room for its body.
const maxLogins = 8

// wallet is the sessions whose keys are in one keystore.
type wallet struct {
	kind   string
	client *client.Client
	over   http.RoundTripper
}

// New returns an agent with the sessions that it had when it ended. It fails if
// the configuration makes no sense, and if another agent has State; it does not
// touch the network. Sessions that nobody has used for 30 days are forgotten, and
// their device keys deleted; also while the agent runs. Close it.
func New(ctx context.Context, cfg Config) (*Agent, error) {
	a, err := newAgent(cfg)
	if err == nil {
		err = a.open(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("limpet: agent: %w", err)
	}
	return a, nil
}

// Check says what makes no sense in a configuration's To, Logins and Logouts.
func Check(cfg Config) error {
	if _, _, err := read(&cfg); err != nil {
		return fmt.Errorf("limpet: agent: %w", err)
	}
	return nil
}

func read(cfg *Config) (logins, logouts routes, err error) {
	if err := checkApp(cfg.To); err != nil {
		return nil, nil, err
	}
	if logins, err = newRoutes(cfg.Logins, "POST /login"); err != nil {
		return nil, nil, fmt.Errorf("logins: %w", err)
	}
	if logouts, err = newRoutes(cfg.Logouts, "POST /logout"); err != nil {
		return nil, nil, fmt.Errorf("logouts: %w", err)
	}
	return logins, logouts, nil
}

func newAgent(cfg Config) (*Agent, error) {
	logins, logouts, err := read(&cfg)
	if err != nil {
		return nil, err
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Base == nil {
		cfg.Base = http.DefaultTransport
	}
	cfg.Base = reach{cfg.Base}
	a := &Agent{cfg: cfg, log: cfg.Logger, to: proof.Authority(cfg.To.Scheme, cfg.To.Host), logins: logins, logouts: logouts, turns: make(chan struct{}, maxLogins)}
	first := a.newWallet(cfg.Kind, cfg.Keys)
	first.client.IsLogin = a.logins.has
	a.wallets = []*wallet{first}
	if cfg.As != nil {
		if cfg.As.Session.Origin != a.origin() {
			return nil, errors.New("the session for others is one of another app")
		}
		a.as = a.newWallet("", cfg.As.Keys)
		if err := a.as.client.Restore(context.Background(), cfg.As.Session); err != nil {
			return nil, fmt.Errorf("the session for others: %w", err)
		}
	}
	a.proxy = &httputil.ReverseProxy{
		Rewrite:        a.rewrite,
		Transport:      sender{a},
		BufferPool:     &relay.Buffers,
		ModifyResponse: a.modify,
		ErrorHandler:   a.failed,
		ErrorLog:       slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug),
	}
	return a, nil
}

func checkApp(u *url.URL) error {
	switch {
	case u == nil:
		return errors.New("no app")
	case u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		return errors.New("the app is not of the form https://host:port")
	case u.User != nil || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "":
		return errors.New("the app has more than scheme, host and port: paths reach it as they come")
	case strings.ContainsFunc(u.Host, func(r rune) bool { return r >= 0x80 }):
		return errors.New("a host name that is not ASCII: write it as it is sent, xn--…")
	case u.Scheme == "http" && !outgoing.ThisMachine(u.Hostname()):
		return fmt.Errorf("plain http to %s is not allowed: everybody on the way could read the session", u.Hostname())
	}
	return nil
}

// newWallet returns a wallet that takes no logins.
func (a *Agent) newWallet(kind string, keys hwkey.Keystore) *wallet {
	c := client.New(keys)
	c.Wire = a.cfg.Wire
	c.IsLogin = func(*http.Request) bool { return false }
	return &wallet{kind: kind, client: c, over: c.Transport(a.cfg.Base)}
}

// Close writes down what is to be remembered and lets go of keys and State.
// Requests in flight should have ended.
func (a *Agent) Close() error {
	errs := []error{a.save()}
	for _, w := range append(a.wallets, a.as) {
		if w != nil {
			errs = append(errs, w.client.Close())
		}
	}
	return errors.Join(append(errs, a.state.lock.Close())...)
}

// NewServer returns a server with the limits that an agent needs: none on how
// long a request or its answer takes, as long as they go on.
func NewServer(h http.Handler, log *slog.Logger) *http.Server { return relay.NewServer(h, log) }

// Listener returns a listener whose connections end if their peer takes no bytes
// for a minute.
func Listener(l net.Listener) net.Listener { return relay.Listener(l) }

// exchange is one request and its answer. It is their context.
type exchange struct {
	context.Context
	in      *http.Request // as it came
	upload  *relay.Upload // nil if there is no body
	kept    *kept         // the body, if it had to be read before
	login   bool
	logout  bool
	bound   bool // it belongs to session, which is wallet's
	session client.Session
	wallet  *wallet
}

type exchangeKey struct{}

func (x *exchange) Value(key any) any {
	if key == (exchangeKey{}) {
		return x
	}
	return x.Context.Value(key)
}

func exchangeOf(ctx context.Context) *exchange { return ctx.Value(exchangeKey{}).(*exchange) }

// serve hands on a request that came in by the door.
func (a *Agent) serve(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodConnect || r.Method == http.MethodTrace {
		incoming.Answer(w, http.StatusMethodNotAllowed, "method_not_allowed", "this method is not passed on")
		return
	}
	if !incoming.Plain(r) || !strings.HasPrefix(r.URL.Path, "/") {
		incoming.Answer(w, http.StatusBadRequest, "bad_request", "the target is not a path")
		return
	}
	x := &exchange{Context: r.Context(), in: r}
	if r.Body != nil && r.Body != http.NoBody {
		x.upload = relay.NewUpload(w, r)
		// The server's own request keeps its body: by that the server knows whether
		// some of it is left, and does not take the rest for the next request.
		with := *r
		with.Body, r = x.upload, &with
	}
	defer func() { x.kept.Close() }()
	a.proxy.ServeHTTP(w, r.WithContext(x))
}

// sender sends requests to the app.
type sender struct{ *Agent }

func (s sender) RoundTrip(r *http.Request) (*http.Response, error) {
	x := exchangeOf(r.Context())
	if x.login {
		select {
		case s.turns <- struct{}{}:
			defer func() { <-s.turns }()
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	}
	if x.upload != nil && (x.login || x.bound) {
		if err := x.keepBody(r); err != nil {
			return nil, err
		}
	}
	resp, err := x.wallet.over.RoundTrip(r)
	if err == nil {
		s.answered(x, resp)
	}
	return resp, err
}

// answered does for the sessions what an answer asks for, before the program
// sees it: who has a session must find it again.
func (a *Agent) answered(x *exchange, resp *http.Response) {
	mine := x.bound && x.wallet != a.as
	switch {
	case x.login:
		a.note()
	case !mine:
	case resp.StatusCode == http.StatusUnauthorized && client.Reason(resp) == proof.SessionEnded:
		a.forget(x, "the app says that it is over")
	case x.logout && (resp.StatusCode/100 == 2 || resp.StatusCode >= 301 && resp.StatusCode <= 303):
		a.forget(x, "logged out")
	case resp.Header[httpsig.KeyField] != nil: // the app may have replaced the token
		a.use(x.session.Key)
		a.note()
	default:
		a.use(x.session.Key)
	}
}

// forget ends a session here.
func (a *Agent) forget(x *exchange, why string) {
	a.end(context.WithoutCancel(x), x.wallet, x.session, why)
	a.note()
}

func (a *Agent) end(ctx context.Context, w *wallet, s client.Session, why string) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := w.client.Forget(ctx, s); err != nil {
		a.log.Warn("limpet: agent: a device key is left", "key", s.Key, "why", err)
	}
	a.log.Info("limpet: agent: a session has ended", "key", s.Key, "why", why)
}

// reach marks the errors of the way to the app.
type reach struct{ http.RoundTripper }

func (b reach) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.RoundTripper.RoundTrip(r)
	if err != nil {
		return nil, &unreachable{err}
	}
	return resp, nil
}

type unreachable struct{ error }

func (u *unreachable) Unwrap() error { return u.error }

// failed answers in place of the app.
func (a *Agent) failed(w http.ResponseWriter, r *http.Request, err error) {
	x := exchangeOf(r.Context())
	path := incoming.Told(r.URL.EscapedPath())
	var away *unreachable
	var timeout net.Error
	switch {
	case errors.Is(err, errBodyLarge):
		incoming.Answer(w, http.StatusRequestEntityTooLarge, proof.BodyLarge, "the body is larger than the agent keeps")
	case x.upload != nil && x.upload.Stalled():
		incoming.Answer(w, http.StatusRequestTimeout, "request_timeout", "the body did not arrive in time")
	case x.upload != nil && x.upload.Broken(), x.in.Context().Err() != nil && errors.Is(err, context.Canceled):
		incoming.Answer(w, http.StatusBadRequest, "bad_request", "the request broke off")
	case errors.Is(err, client.ErrKeyGone):
		a.log.Warn("limpet: agent: a device key is lost", "path", path, "why", err)
		w.Header().Set("WWW-Authenticate", fmt.Sprintf("Limpet error=%q", proof.SessionEnded))
		incoming.Answer(w, http.StatusUnauthorized, proof.SessionEnded, "the device key of this session is lost: log in again")
	case errors.As(err, &away) && errors.As(err, &timeout) && timeout.Timeout():
		a.log.Warn("limpet: agent: the app does not answer in time", "path", path, "why", err)
		incoming.Answer(w, http.StatusGatewayTimeout, "upstream_timeout", "the app does not answer in time")
	case errors.As(err, &away):
		a.log.Warn("limpet: agent: the app cannot be reached", "path", path, "why", err)
		incoming.Answer(w, http.StatusBadGateway, "upstream_unreachable", "the app cannot be reached")
	default:
		a.log.Error("limpet: agent: a request cannot be proven", "path", path, "why", err)
		incoming.Answer(w, http.StatusBadGateway, "agent_failed", "the request cannot be proven; the agent's log says why")
	}
}
