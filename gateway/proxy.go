package gateway

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"slices"
	"strings"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/internal/incoming"
	"github.com/limpet-auth/limpet/proof"
)

// rewrite makes the request that the app gets.
func (g *Gateway) rewrite(pr *httputil.ProxyRequest) {
	x, out := exchangeOf(pr.In.Context()), pr.Out
	out.URL.Scheme, out.URL.Host, out.URL.User = g.cfg.Upstream.Scheme, g.cfg.Upstream.Host, nil
	out.URL.RawQuery = pr.In.URL.RawQuery // whole, as the proof covers it
	out.Host = pr.In.Host
	if x.passed != nil {
		out.Header = x.passed
	} else {
		g.filter.strip(out.Header, x.trusted)
	}
	forward(out.Header, x.in, x.trusted)
	g.cfg.Names.identify(out.Header, limpet.FromContext(x))
	// An app that speaks h2c would let a client talk past the gateway.
	if upgrades(out.Header) {
		delete(out.Header, "Upgrade")
		delete(out.Header, "Connection")
	}
	// Some apps do not read the body of a request that usually has none, and take
	// it for the next one on the connection, which nobody has admitted.
	if x.upload != nil && out.Method != http.MethodPost && out.Method != http.MethodPut && out.Method != http.MethodPatch {
		out.Close = true
	}
	if l := x.event.login; l != nil && l.readsAnswer() {
		out.Header["Accept-Encoding"] = []string{"identity"}
	}
	if x.upload != nil && len(out.Trailer) > 0 {
		g.filter.strip(out.Trailer, false)
		for name := range out.Trailer {
			// Some apps take trailers for headers, which nobody has looked at.
			if text := normal(name); reserved(text) || slices.Contains(overrides, text) {
				delete(out.Trailer, name)
			}
		}
		for name := range out.Trailer {
			out.Trailer[name] = x.in.Trailer[name] // there, if the body was read before
		}
		x.upload.Trailer = out.Trailer
	}
}

// upgrades reports whether a request asks for another protocol than WebSocket.
func upgrades(h http.Header) bool {
	up := h["Upgrade"]
	return up != nil && !(len(up) == 1 && strings.EqualFold(up[0], "websocket"))
}

// modify looks at an answer before the client does.
func (g *Gateway) modify(resp *http.Response) error {
	x := exchangeOf(resp.Request.Context())
	if err := g.watch(x, resp); err != nil {
		if g.table.enforces() {
			return &withheld{err}
		}
		g.log.InfoContext(x, "limpet: gateway: would not hand out a session", "path", incoming.Told(x.in.URL.Path), "why", err)
	}
	for name, values := range x.answer {
		if name == "Set-Cookie" { // ours, beside the app's
			values = append(resp.Header[name], values...)
		}
		resp.Header[name] = values
	}
	return nil
}

// withheld is why the app's answer is not handed on.
type withheld struct{ error }

func (w *withheld) Unwrap() error { return w.error }

// failed answers in place of the app.
func (g *Gateway) failed(w http.ResponseWriter, r *http.Request, err error) {
	x := exchangeOf(r.Context())
	maps.Copy(w.Header(), x.answer)
	var refusal *proof.Refusal
	var timeout net.Error
	switch held := (*withheld)(nil); {
	case errors.As(err, &held):
		g.log.WarnContext(x, "limpet: gateway: an answer is not handed out", "path", incoming.Told(r.URL.EscapedPath()), "why", err)
		limpet.Refuse(w, err)
	case errors.As(err, &refusal): // of a body that the app has read in part; the guard has told it
		limpet.Refuse(w, refusal)
	case x.upload != nil && x.upload.Stalled():
		incoming.Answer(w, http.StatusRequestTimeout, "request_timeout", "the body did not arrive in time")
	case x.upload != nil && x.upload.Broken(), x.in.Context().Err() != nil && errors.Is(err, context.Canceled):
		incoming.Answer(w, http.StatusBadRequest, "bad_request", "the request broke off")
	case errors.As(err, &timeout) && timeout.Timeout():
		g.log.WarnContext(x, "limpet: gateway: the app does not answer in time", "path", incoming.Told(r.URL.EscapedPath()), "why", err)
		incoming.Answer(w, http.StatusGatewayTimeout, "upstream_timeout", "the app does not answer in time")
	default:
		g.log.WarnContext(x, "limpet: gateway: the app cannot be reached", "path", incoming.Told(r.URL.EscapedPath()), "why", err)
		incoming.Answer(w, http.StatusBadGateway, "upstream_unreachable", "the app cannot be reached")
	}
}
