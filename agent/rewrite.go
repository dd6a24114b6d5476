package agent

import (
	"cmp"
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"

	"github.com/limpet-auth/limpet/proof"
)

// rewrite makes the request that the app gets: the one that the program would
// have sent it.
func (a *Agent) rewrite(pr *httputil.ProxyRequest) {
	x, out := exchangeOf(pr.In.Context()), pr.Out
	out.URL.Scheme, out.URL.Host, out.URL.User = a.cfg.To.Scheme, a.to, nil
	out.URL.RawQuery = pr.In.URL.RawQuery // whole, as the proof is to cover it
	out.Host = a.to
	for i := range out.Header["Origin"] { // those that were let in are the app's own
		out.Header["Origin"][i] = a.origin()
	}
	for i, referer := range out.Header["Referer"] {
		if rest, ok := cutOrigin(referer, "http://"+pr.In.Host); ok {
			out.Header["Referer"][i] = a.origin() + rest
		}
	}
	// An app that speaks h2c would let a program talk past the agent.
	if up := out.Header["Upgrade"]; up != nil && !(len(up) == 1 && strings.EqualFold(up[0], "websocket")) {
		delete(out.Header, "Upgrade")
		delete(out.Header, "Connection")
	}
	if x.upload != nil && len(out.Trailer) > 0 {
		x.upload.Trailer = out.Trailer
	}
	x.login, x.logout, x.wallet = a.logins.has(out), a.logouts.has(out), a.wallets[0]
	for _, w := range a.wallets {
		if x.session, x.bound = w.client.SessionOf(out); x.bound {
			x.wallet = w
			break
		}
	}
	switch {
	case x.login:
		x.wallet = a.wallets[0]
		out.Header["Accept-Encoding"] = []string{"identity"} // the token may be in the body
	case x.bound:
	case a.as != nil && out.Header["Authorization"] == nil:
		out.Header["Authorization"] = []string{"Bearer " + a.cfg.As.Token}
		x.wallet, x.bound = a.as, true
	}
}

func (a *Agent) origin() string { return a.cfg.To.Scheme + "://" + a.to }

// modify makes of the app's answer one that the program takes for the agent's.
func (a *Agent) modify(resp *http.Response) error {
	x := exchangeOf(resp.Request.Context())
	if location := resp.Header.Get("Location"); a.isApps(location) {
		_, rest, _ := strings.Cut(location, "//")
		rest = rest[strings.IndexAny(rest+"/", "/?#"):]
		resp.Header.Set("Location", "http://"+x.in.Host+rest)
	}
	for i, cookie := range resp.Header["Set-Cookie"] {
		resp.Header["Set-Cookie"][i] = localCookie(cookie)
	}
	resp.Header.Del("Alt-Svc") // where else the app is to be had, past the agent
	return nil
}

// isApps reports whether a URL is one of the app's, with host.
func (a *Agent) isApps(location string) bool {
	u, err := url.Parse(location)
	if err != nil || u.Host == "" || u.User != nil {
		return false
	}
	scheme := cmp.Or(u.Scheme, a.cfg.To.Scheme)
	return scheme == a.cfg.To.Scheme && proof.Authority(scheme, u.Host) == a.to
}

// cutOrigin cuts an origin off a URL.
func cutOrigin(u, origin string) (rest string, ok bool) {
	if len(u) < len(origin) || !strings.EqualFold(u[:len(origin)], origin) {
		return "", false
	}
	rest = u[len(origin):]
	return rest, rest == "" || rest[0] == '/'
}

// localCookie returns a cookie of the app's as one of the agent's, which has
// another host and speaks http (RFC 6265, 5.2). Names with a prefix need Secure
// (RFC 6265bis, 4.1.3): browsers and curl take them from this machine
// nevertheless.
func localCookie(line string) string {
	parts := strings.Split(line, ";")
	name := strings.ToLower(strings.TrimSpace(parts[0]))
	secure := strings.HasPrefix(name, "__host-") || strings.HasPrefix(name, "__secure-")
	kept := parts[:1]
	for _, part := range parts[1:] {
		attribute, value, _ := strings.Cut(part, "=")
		switch strings.ToLower(strings.TrimSpace(attribute)) {
		case "domain":
			continue
		case "secure", "partitioned":
			if !secure {
				continue
			}
		case "samesite": // None is for those that are Secure
			if !secure && strings.EqualFold(strings.TrimSpace(value), "none") {
				continue
			}
		}
		kept = append(kept, part)
	}
	return strings.Join(kept, ";")
}

// routes are patterns of [http.ServeMux], one in each, so that none is in
// another's way.
type routes []*http.ServeMux

func newRoutes(patterns []string, usual string) (r routes, err error) {
	if patterns == nil {
		patterns = []string{usual}
	}
	for _, pattern := range patterns {
		mux := http.NewServeMux()
		if err := add(mux, pattern); err != nil {
			return nil, err
		}
		r = append(r, mux)
	}
	return r, nil
}

func add(mux *http.ServeMux, pattern string) (err error) {
	defer func() { // ServeMux panics on bad patterns
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	if method, _, ok := strings.Cut(pattern, " "); ok && strings.ToUpper(method) != method {
		return fmt.Errorf("pattern %q: a method is in capital letters", pattern)
	}
	mux.Handle(pattern, http.NotFoundHandler())
	return nil
}

// has reports whether a request is on one of the routes. A slash at the end makes
// no difference.
func (r routes) has(req *http.Request) bool {
	for _, mux := range r {
		if _, pattern := mux.Handler(req); pattern != "" {
			return true
		}
		if path := strings.TrimSuffix(req.URL.Path, "/"); path != req.URL.Path && path != "" {
			u := url.URL{Path: path}
			if _, pattern := mux.Handler(&http.Request{Method: req.Method, Host: req.Host, URL: &u}); pattern != "" {
				return true
			}
		}
	}
	return false
}
