package limpet

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"

	"github.com/limpet-auth/limpet/internal/incoming"
	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/httpsig"
)

// Protect returns a handler that admits to next what the guard admits, by the
// rule of the request's route, and answers the rest with [Refuse]. next finds
// the binding with [FromContext]. It answers [httpsig.WellKnownPath] itself, and
// with [Config].Browsers what is below that.
//
// The route that logs people in belongs outside: a browser that still has the
// cookie of a session that is over must be able to begin a new one.
func (g *Guard) Protect(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == httpsig.WellKnownPath {
			g.serveWellKnown(w, r)
			return
		}
		if g.browser(w, r) {
			return
		}
		admitted, err := g.admitRouted(w.Header(), r)
		if err != nil {
			Refuse(w, err)
			return
		}
		next.ServeHTTP(w, admitted)
	})
}

// requests holds Requests between uses, empty.
var requests = sync.Pool{New: func() any { return new(Request) }}

// admitRouted is Admit under the rule of the request's route.
func (g *Guard) admitRouted(response http.Header, r *http.Request) (*http.Request, error) {
	if !incoming.Plain(r) {
		return g.unread(r, Rule{}, errTarget)
	}
	rule, err := g.rules.of(r)
	if err != nil {
		return g.unread(r, rule, err)
	}
	return g.Admit(response, r, rule)
}

var errTarget = &proof.Refusal{Reason: proof.Malformed, Detail: "a target that can be read in two ways"}

// Admit decides over a request under a rule that the caller has chosen, where
// [Guard.Protect] takes that of the route. It returns the request that the app
// is to get: its binding is found with [FromContext], and its body holds to the
// digest that the proof covers. A request with the token of a bound session where
// apps may find it and [Session.Token] does not look, such as its URL, is refused
// as well. What the client must be told is added to
// response, the header of the answer, also if the request is refused. The error
// is a *[proof.Refusal]; answer with [Refuse].
func (g *Guard) Admit(response http.Header, r *http.Request, rule Rule) (*http.Request, error) {
	return g.admitRequest(response, r, rule, false)
}

// admitRequest is Admit; with proofOnly a bound cookie is no proof.
func (g *Guard) admitRequest(response http.Header, r *http.Request, rule Rule, proofOnly bool) (*http.Request, error) {
	if !incoming.Plain(r) {
		return g.unread(r, Rule{}, errTarget)
	}
	token, err := g.cfg.Session.Token(r.Header)
	req := requests.Get().(*Request)
	req.Message, req.Token, req.tokenErr, req.TLS, req.proofOnly = incoming.Message(r), token, err, r.TLS, proofOnly
	if rule.Client != NoClient {
		req.Client, req.clientErr = g.cfg.Clients.Client(response, r)
	}
	if rule.Freshness == BodyHash || req.HasBody && rule.Body != StreamBody {
		req.Body = func() ([sha256.Size]byte, error) { return incoming.HashBody(r, cmp.Or(rule.Body, g.cfg.MaxBody)) }
	}
	b, err := g.Check(r.Context(), req, rule, response)
	digest, format := req.Digest, req.format
	*req = Request{}
	requests.Put(req)
	if err != nil {
		return nil, err
	}
	admitted := r.WithContext(&boundContext{r.Context(), b})
	if digest != nil {
		admitted.Body = g.streamed(r, *digest, rule, b, format)
	}
	return admitted, nil
}

// unread decides over a request that has no one rule, or no one path.
func (g *Guard) unread(r *http.Request, rule Rule, err error) (*http.Request, error) {
	g.Report(r.Context(), &Decision{Result: rule.refuses(), Err: err, Method: r.Method, Path: r.URL.EscapedPath()})
	if rule.Mode != Observe {
		return nil, err
	}
	return r.WithContext(&boundContext{r.Context(), unbound}), nil
}

// streamed returns the body that the app reads as it comes.
func (g *Guard) streamed(r *http.Request, digest [sha256.Size]byte, rule Rule, b *Binding, format Format) io.ReadCloser {
	body := incoming.NewDigestedBody(r.Body, digest)
	ctx, method, path, observed := r.Context(), r.Method, incoming.Message(r).Path, rule.Mode == Observe
	body.Differs = func(refusal *proof.Refusal) (pass bool) {
		d := Decision{Result: BrokenOff, Err: refusal, Format: format, Method: method, Path: path}
		if observed {
			d.Result = WouldBreakOff
		}
		d.identify(b)
		g.Report(ctx, &d)
		return observed
	}
	return body
}

type contextKey struct{}

// boundContext carries the binding; one allocation instead of two.
type boundContext struct {
	context.Context
	binding *Binding
}

func (c *boundContext) Value(key any) any {
	if key == (contextKey{}) {
		return c.binding
	}
	return c.Context.Value(key)
}

// FromContext returns the binding of the request that a guard admitted. Of a
// request that no guard has seen, or whose session is not bound, it returns a
// binding of level None without a user.
func FromContext(ctx context.Context) *Binding {
	if b, ok := ctx.Value(contextKey{}).(*Binding); ok {
		return b
	}
	return unbound
}

// Refuse answers a request that is not admitted: the status that fits err's
// [proof.Reason], which is named in WWW-Authenticate on 401, and as JSON
// {"message","reason"}. A browser that has followed a link gets a page instead, if it
// can do something about the refusal. Nothing else of err reaches the peer. An err that is no
// *[proof.Refusal] is answered with 500.
func Refuse(w http.ResponseWriter, err error) {
	var refusal *proof.Refusal
	reason, message := internalError, "internal error"
	if errors.As(err, &refusal) {
		reason, message = refusal.Reason, refusal.Reason.Message()
	}
	h := w.Header()
	code := status(reason)
	switch code {
	case http.StatusUnauthorized:
		if h.Get("WWW-Authenticate") == "" { // a guard has said more
			h.Set("WWW-Authenticate", fmt.Sprintf("Limpet error=%q", reason))
		}
	case http.StatusServiceUnavailable:
		h.Set("Retry-After", "1")
	}
	if !sendBack(w, code, err) {
		incoming.Answer(w, code, reason, message)
	}
}

func status(reason proof.Reason) int {
	switch reason {
	case proof.Malformed:
		return http.StatusBadRequest
	case proof.TooLarge:
		return http.StatusRequestHeaderFieldsTooLarge
	case proof.BodyLarge:
		return http.StatusRequestEntityTooLarge
	case proof.LevelTooLow:
		return http.StatusForbidden
	case proof.Unavailable:
		return http.StatusServiceUnavailable
	case internalError:
		return http.StatusInternalServerError
	}
	return http.StatusUnauthorized
}
