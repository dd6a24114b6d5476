package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/internal/incoming"
	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/httpsig"
)

// Question is a request that a proxy has received, and of which it asks whether
// the app may have it. All but Peer is as the client sent it.
type Question struct {
	Peer   string // the proxy's address, as of [http.Request].RemoteAddr
	Method string
	Scheme string // "http" or "https"
	Host   string
	Target string // path and query
	Header http.Header
}

// Answer is what a proxy is told of a [Question].
type Answer struct {
	Status int         // 200: the app may have the request; 401, 403 or 503: it must not
	App    http.Header // with 200: who is there. The app must get these, and none of a name whose value is ""
	Client http.Header // what the client is to be told
	Body   []byte      // likewise, if it is refused
}

// Ask answers a proxy that hands requests on to the app itself. It sees no more
// than headers: bodies are not compared with their digests. What needs more is
// refused: logins and logouts, since it sees no answers of the app's, and routes
// whose rule asks for a body's hash, the channel or a client. [Gateway.Elsewhere]
// names them. Only proxies in [Config].Trusted are answered.
func (g *Gateway) Ask(ctx context.Context, q *Question) *Answer {
	a := &Answer{Status: http.StatusOK, App: make(http.Header), Client: make(http.Header)}
	if err := g.ask(ctx, q, a); err != nil {
		a.refuse(err)
	}
	// nginx hands on one line of several. A list says the same (RFC 9110, 5.3).
	if all := a.Client["Www-Authenticate"]; len(all) > 1 {
		a.Client["Www-Authenticate"] = []string{strings.Join(all, ", ")}
	}
	return a
}

func (g *Gateway) ask(ctx context.Context, q *Question, a *Answer) error {
	if !isTrusted(q.Peer, g.cfg.Trusted) {
		return g.turnAway(ctx, q, nil, errors.New("asked by no trusted proxy"))
	}
	r, err := q.request(ctx)
	if err != nil {
		return g.turnAway(ctx, q, nil, err)
	}
	if name := g.filter.smuggled(r.Header); name != "" {
		return g.turnAway(ctx, q, r, fmt.Errorf("the client sends %.64q, which is not its to say", name))
	}
	if upgrades(r.Header) { // what came behind it nobody would ask about
		return g.turnAway(ctx, q, r, errors.New("the client asks for another protocol than WebSocket, and the proxy would hand that on"))
	}
	rule, told, err := g.answerable(r)
	if err != nil {
		return err
	}
	observe := rule.Mode == limpet.Observe
	b := limpet.FromContext(ctx) // nobody
	if token, err := g.cfg.Session.Token(r.Header); told {
		// As the guard does it: what would be refused carries no binding.
	} else if err != nil {
		if g.refused(r, err, observe); !observe {
			return err
		}
	} else {
		req := limpet.Request{Message: incoming.Message(r), Token: token}
		req.Scheme, req.Authority = q.Scheme, proof.Authority(q.Scheme, q.Host)
		req.HasBody = len(r.Header[httpsig.DigestField]) > 0 // proxies take off what else tells of one
		if b, err = g.guard.Check(ctx, &req, rule, a.Client); err != nil {
			g.forget((*unsent)(a), r, err)
			return err
		}
	}
	// The wire's Limpet-Session would tell the app of a session, were there a proxy
	// that does not put ours, of which there is none, in its place.
	if b.Session == (limpet.ID{}) && len(r.Header[httpsig.SessionField]) > 0 && !observe {
		err := &proof.Refusal{Reason: proof.SessionUnbound, Detail: "a proof for a session that is not known"}
		g.report(r, limpet.BrokenOff, err) // the guard has admitted it
		return err
	}
	for _, name := range g.cfg.Names.all() {
		a.App[name] = []string{""}
	}
	g.cfg.Names.identify(a.App, b)
	return nil
}

// request returns the request as the gateway would have received it. What
// net/http would refuse is an error, and so is a fragment: no client sends one,
// and proxies differ in where it ends a path.
func (q *Question) request(ctx context.Context) (*http.Request, error) {
	switch {
	case !made(q.Method, tokenMarks) || q.Method == http.MethodConnect || q.Method == http.MethodTrace:
		return nil, errors.New("a method that is not passed on")
	case q.Scheme != "http" && q.Scheme != "https":
		return nil, errors.New("a scheme that is neither http nor https")
	case !made(q.Host, ".-_:[]"):
		return nil, errors.New("a host that is none")
	case !strings.HasPrefix(q.Target, "/"), strings.IndexByte(q.Target, '#') >= 0, strings.IndexByte(q.Target, ' ') >= 0:
		return nil, errors.New("a target that is no path and query")
	}
	for name := range q.Header {
		if !made(name, tokenMarks) {
			return nil, errors.New("a header whose name is none")
		}
	}
	u, err := url.ParseRequestURI(q.Target)
	if err != nil {
		return nil, errors.New("a target that cannot be read")
	}
	u.Scheme = q.Scheme
	r := &http.Request{Method: q.Method, URL: u, Host: q.Host, RequestURI: q.Target, Header: q.Header, RemoteAddr: q.Peer, Body: http.NoBody}
	if !incoming.Plain(r) {
		return nil, errors.New("a target that can be read in two ways")
	}
	return r.WithContext(ctx), nil
}

// tokenMarks are what methods and names of headers have beside letters and digits
// (RFC 9110, 5.6.2).
const tokenMarks = "!#$%&'*+-.^_`|~"

// made reports whether text, of 255 bytes at most, is made of letters, digits and
// others.
func made(text, others string) bool {
	return text != "" && len(text) < 256 && strings.TrimFunc(text, func(c rune) bool {
		return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune(others, c)
	}) == ""
}

// answerable returns a request's rule, if headers are all that it takes. told says
// that it would be refused if its rule did more than observe, and that this is
// reported.
func (g *Gateway) answerable(r *http.Request) (rule limpet.Rule, told bool, err error) {
	v, observed, err := g.table.of(r)
	rule, e := g.table.ruleOf(v), g.table.eventOf(v)
	if err == nil || observed {
		why, only := unseen(rule), rule.Mode == limpet.Observe
		switch {
		case e.login != nil:
			why, only = "a login", !g.table.enforces()
		case e.logout:
			why, only = "a logout", !g.table.enforces()
		case g.ownPath(r.URL.Path):
			why, only = "what clients ask the gateway", false
		}
		if why != "" && (err == nil || !only) {
			err = &proof.Refusal{Reason: misrouted, Detail: "this route goes through the gateway itself: " + why}
			observed = only
		}
	}
	if err == nil {
		return rule, false, nil
	}
	if g.refused(r, err, observed); observed {
		return rule, true, nil
	}
	return rule, false, err
}

// misrouted is the reason of refusals that the proxy's configuration is to blame for.
const misrouted proof.Reason = "through_gateway"

// unseen says what a rule asks for that headers do not show; "" if nothing.
func unseen(r limpet.Rule) string {
	switch {
	case r.Client != limpet.NoClient:
		return "a client of its TLS connection"
	case r.Channel:
		return "the channel"
	case r.Freshness == limpet.BodyHash:
		return "the body's hash"
	case r.Body > 0:
		return "a body that is compared before the app sees it"
	}
	return ""
}

// Elsewhere returns the routes that [Gateway.Ask] refuses, each with the reason,
// as "POST /login (a login)". A proxy has to send them through the gateway itself.
func (g *Gateway) Elsewhere() []string {
	var list []string
	add := func(pattern, why string) {
		if why != "" {
			list = append(list, pattern+" ("+why+")")
		}
	}
	add(httpsig.WellKnownPath, "what clients ask the gateway")
	if g.cfg.DBSC {
		add(httpsig.WellKnownPath+"/", "what browsers ask the gateway")
	}
	for _, l := range g.cfg.Logins {
		add(l.Pattern, "a login")
	}
	for _, pattern := range g.cfg.Logouts {
		add(pattern, "a logout")
	}
	for _, r := range g.cfg.Routes {
		add(r.Pattern, unseen(r.Rule))
	}
	add("everything else", unseen(g.cfg.Rule))
	return list
}

// errTurnedAway answers questions that are none. It says no more than that.
var errTurnedAway = errors.New("no answer")

// turnAway reports what is refused before anybody asks the guard; r is nil if no
// request can be made of it. What strangers ask counts for nothing.
func (g *Gateway) turnAway(ctx context.Context, q *Question, r *http.Request, why error) error {
	if !isTrusted(q.Peer, g.cfg.Trusted) {
		g.log.LogAttrs(ctx, slog.LevelInfo, "limpet: gateway: a proxy is not answered",
			slog.String("peer", q.Peer),
			slog.String("why", why.Error()))
		return errTurnedAway
	}
	d := &limpet.Decision{Result: limpet.Refused, Reason: proof.Malformed, Err: why}
	if r != nil {
		d.Method, d.Path = r.Method, r.URL.EscapedPath()
	}
	g.guard.Report(ctx, d)
	return errTurnedAway
}

// refuse makes an answer a refusal. Proxies know three: nginx turns all others,
// and 503, into 500.
func (a *Answer) refuse(err error) {
	a.App = nil
	var refusal *proof.Refusal
	switch w := (*unsent)(a); {
	case err == errTurnedAway:
		incoming.Answer(w, http.StatusForbidden, "forbidden", "forbidden")
	case errors.As(err, &refusal) && refusal.Reason == misrouted:
		incoming.Answer(w, http.StatusForbidden, misrouted, "this route goes through the gateway itself")
	default:
		limpet.Refuse(w, err)
	}
	if a.Status != http.StatusUnauthorized && a.Status != http.StatusServiceUnavailable {
		a.Status = http.StatusForbidden
	}
}

// unsent is an answer that a ResponseWriter's users write.
type unsent Answer

func (u *unsent) Header() http.Header    { return u.Client }
func (u *unsent) WriteHeader(status int) { u.Status = status }
func (u *unsent) Write(p []byte) (int, error) {
	u.Body = append(u.Body, p...)
	return len(p), nil
}

// The paths that proxies ask at, one for each way of asking.
const (
	askedByNginx = "/auth/nginx"   // X-Original-Method, X-Original-URL, and Host as in that
	askedForward = "/auth/forward" // X-Forwarded-Method, -Proto, -Host and -Uri: Traefik, Caddy
	askedByEnvoy = "/auth/envoy"   // the request's own method and Host, and its target behind this path
)

// ForwardAuth is the handler that proxies ask; see [Gateway.Ask]. Serve it where
// only they can reach it, apart from the gateway itself. What they are to tell the
// app and the client is in the headers of the answer.
func (g *Gateway) ForwardAuth(w http.ResponseWriter, r *http.Request) {
	q, err := question(r)
	if err != nil && isTrusted(r.RemoteAddr, g.cfg.Trusted) {
		a := Answer{Client: w.Header()}
		a.refuse(g.turnAway(r.Context(), q, nil, err))
		a.send(w)
		return
	}
	a := g.Ask(r.Context(), q)
	if r.URL.Path == askedByNginx && len(a.Client["Set-Cookie"]) > 1 {
		a.Client["Set-Cookie"] = a.Client["Set-Cookie"][:1] // nginx would make one of them
	}
	a.send(w)
}

func (a *Answer) send(w http.ResponseWriter) {
	h := w.Header()
	for _, told := range []http.Header{a.App, a.Client} {
		for name, values := range told {
			h[name] = values
		}
	}
	w.WriteHeader(a.Status)
	w.Write(a.Body)
}

// question reads what a proxy asks. What cannot be read is an error, with a
// question that has no more than the peer.
func question(r *http.Request) (*Question, error) {
	asked := r.URL.Path
	q := &Question{Peer: r.RemoteAddr, Header: r.Header}
	var err error
	one := func(name string) string {
		values := r.Header[name]
		if len(values) != 1 || values[0] == "" {
			if err == nil {
				err = fmt.Errorf("%s: want one %s, there are %d", asked, name, len(values))
			}
			return ""
		}
		return values[0]
	}
	switch {
	case asked == askedByNginx:
		q.Method = one("X-Original-Method")
		scheme, rest, ok := strings.Cut(one("X-Original-Url"), "://")
		slash := strings.IndexByte(rest, '/')
		if err == nil && (!ok || slash < 0) {
			err = errors.New(asked + ": X-Original-URL is not of the form scheme://host/target")
		}
		if err == nil {
			q.Scheme, q.Host, q.Target = scheme, rest[:slash], rest[slash:]
		}
		if err == nil && q.Host != r.Host { // else a "/" in Host would begin the target
			err = errors.New(asked + ": X-Original-URL and Host differ")
		}
		delete(r.Header, "X-Original-Method")
		delete(r.Header, "X-Original-Url")
	case asked == askedForward:
		q.Method, q.Scheme = one("X-Forwarded-Method"), one("X-Forwarded-Proto")
		q.Host, q.Target = one("X-Forwarded-Host"), one("X-Forwarded-Uri")
	case strings.HasPrefix(r.RequestURI, askedByEnvoy+"/"):
		asked = askedByEnvoy
		q.Method, q.Scheme = r.Method, one("X-Forwarded-Proto")
		q.Host, q.Target = r.Host, r.RequestURI[len(askedByEnvoy):]
	default:
		err = errors.New("asked at a path that is none of " + askedByNginx + ", " + askedForward + " and " + askedByEnvoy)
	}
	return q, err
}
