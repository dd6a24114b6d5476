package gateway

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/internal/incoming"
)

// Login is a route whose answers hand out sessions.
type Login struct {
	Pattern string // as of [http.ServeMux]

	// Token is the path of the token in a JSON answer, such as "data.token". ""
	// is the session's cookie or, for bearer tokens, "token", else "access_token".
	Token string

	// User says where the user's name is: "form.FIELD" or "json.PATH" of the
	// request, "answer.json.PATH" or "answer.header.NAME" of the answer. "" is
	// nowhere. A name in the request is as somebody typed it; if the app relies
	// on the header that tells it who is there, take it from the answer.
	User string

	// Success are the statuses by which the app says that a login succeeded;
	// default 200 to 299 and 301 to 303.
	Success []int
}

// login is a Login, read.
type login struct {
	paths   [][]string // of the token in a JSON answer; nil: it is in a cookie
	user    place
	success []int
	told    sync.Once // of a session in an answer that is no success
}

func (l *Login) read(bearer bool) (*login, error) {
	read := &login{success: l.Success}
	var err error
	if read.user, err = parsePlace(l.User); err != nil {
		return nil, fmt.Errorf("user: %w", err)
	}
	for _, code := range l.Success {
		if code < 200 || code > 399 {
			return nil, fmt.Errorf("success: a status of %d, want 200 to 399", code)
		}
	}
	switch {
	case l.Token != "":
		path, err := parsePath(l.Token)
		if err != nil {
			return nil, fmt.Errorf("token: %w", err)
		}
		read.paths = [][]string{path}
	case bearer:
		read.paths = [][]string{{"token"}, {"access_token"}}
	}
	return read, nil
}

func succeeded(code int, success []int) bool {
	if success != nil {
		return slices.Contains(success, code)
	}
	return code/100 == 2 || code >= 301 && code <= 303
}

// readsAnswer reports whether something is to be found in the answer's body.
func (l *login) readsAnswer() bool { return l.paths != nil || l.user.answer && l.user.kind == "json" }

// admitLogin returns a login request as the app is to see it. The rules do not
// apply to it: who logs in has no session yet. So what it carries must not be
// one: a bound session's token, which no proof came with, is taken out.
func (g *Gateway) admitLogin(x *exchange, r *http.Request) (*http.Request, error) {
	if err := g.guard.CheckLogin(r); err != nil {
		return nil, err
	}
	if l := x.event.login; l.user.kind != "" && !l.user.answer {
		var err error
		if x.user, err = l.user.inRequest(r); err != nil {
			return nil, err
		}
	}
	if !g.table.enforces() {
		_, err := g.cfg.Session.Token(r.Header)
		return r, err
	}
	return g.anonymous(r)
}

// anonymous returns a request without the token of a bound session: no proof came
// with it.
func (g *Gateway) anonymous(r *http.Request) (*http.Request, error) {
	token, err := g.cfg.Session.Token(r.Header)
	if err != nil || token == "" {
		return r, err
	}
	b, err := g.guard.Find(r.Context(), g.cfg.Session.ID(token))
	switch {
	case errors.Is(err, limpet.ErrNoSession):
		return r, nil
	case err != nil:
		return nil, err
	case b.Level == limpet.None && b.Ended.IsZero():
		return r, nil
	}
	// The original stays as it is: the device key signed it.
	anonymous := new(http.Request)
	*anonymous = *r
	anonymous.Header = r.Header.Clone()
	g.cfg.Session.Remove(anonymous.Header)
	return anonymous, nil
}

// loggedIn binds the session that a login's answer hands out.
func (g *Gateway) loggedIn(x *exchange, resp *http.Response, issued string, unclear error) error {
	token, user, err := issued, x.user, unclear
	if err == nil {
		token, user, err = g.handedOut(x, resp, issued)
	}
	switch {
	case err != nil:
		g.refused(x.in, err, !g.table.enforces())
		return err
	case token == "":
		g.log.InfoContext(x, "limpet: gateway: a login was answered with success, and without a session", "path", incoming.Told(x.in.URL.Path), "status", resp.StatusCode)
		return nil
	}
	return g.guard.Bind(head(resp.Header), x.in, token, user)
}

// handedOut returns the token that a login's answer hands out, and whose it is.
func (g *Gateway) handedOut(x *exchange, resp *http.Response, issued string) (token, user string, err error) {
	l := x.event.login
	token, user = issued, x.user
	if l.readsAnswer() {
		text, err := readJSON(resp)
		if err != nil {
			return "", "", err
		}
		if l.paths != nil {
			token = ""
		}
		for _, path := range l.paths {
			if text == nil {
				break
			}
			found, err := member(text, path)
			if err != nil {
				return "", "", fmt.Errorf("the token of a login's answer: %w", err)
			}
			if found != "" && token != "" && found != token {
				return "", "", errTwoTokens
			}
			token = cmp.Or(token, found)
		}
		// The cookie would be a session too, and an unbound one.
		if l.paths != nil && issued != "" && g.cfg.Session.ID(issued) != g.cfg.Session.ID(token) {
			return "", "", errTwoTokens
		}
		if l.user.answer && l.user.kind == "json" && text != nil {
			if user, err = member(text, l.user.name); err != nil {
				return "", "", fmt.Errorf("the user of a login's answer: %w", err)
			}
			user = sane(user)
		}
	}
	if l.user.kind == "header" {
		user = ""
		if values := resp.Header[l.user.name[0]]; len(values) == 1 {
			user = sane(values[0])
		}
	}
	return token, user, nil
}

var errTwoTokens = errors.New("a login's answer has two tokens; say which one by the login's token")

// head is the header of an answer, which is all that [limpet.Guard.Bind] writes.
type head http.Header

func (h head) Header() http.Header     { return http.Header(h) }
func (head) Write([]byte) (int, error) { return 0, errors.ErrUnsupported }
func (head) WriteHeader(int)           {}

// loggedOut ends the session that the app has ended.
func (g *Gateway) loggedOut(x *exchange) error {
	token, err := g.cfg.Session.Token(x.header)
	if err != nil || token == "" {
		return nil
	}
	err = g.guard.Revoke(x, g.cfg.Session.ID(token))
	if errors.Is(err, limpet.ErrNoSession) {
		return nil
	}
	if err != nil {
		g.brokeOff(x, err)
	}
	return err
}

// brokeOff reports a request whose answer is not handed out, or would not be.
func (g *Gateway) brokeOff(x *exchange, err error) {
	result := limpet.BrokenOff
	if !g.table.enforces() {
		result = limpet.WouldBreakOff
	}
	g.report(x.in, result, err)
}

// renewed carries a session over to the token by which the app replaces its own.
// It does not ask whether the request was proven: what is bound goes on bound to
// the same key, whoever asks for it. Where nothing is bound there is nothing to
// carry: apps give tokens to strangers too, before these log in.
func (g *Gateway) renewed(x *exchange, resp *http.Response, issued string, unclear error) error {
	token, err := g.cfg.Session.Token(x.header)
	switch {
	case err != nil: // only where the rule observes
		g.brokeOff(x, err)
		return err
	case token == "" || unclear == nil && g.cfg.Session.ID(token) == g.cfg.Session.ID(issued):
		return nil
	case unclear != nil:
		if _, err = g.guard.Find(x, g.cfg.Session.ID(token)); err == nil {
			err = unclear
		}
		if !errors.Is(err, limpet.ErrNoSession) {
			g.brokeOff(x, err)
		}
	default:
		err = g.guard.Rebind(x, resp.Header, token, issued)
	}
	if errors.Is(err, limpet.ErrNoSession) {
		return nil
	}
	return err
}

// watch does what an answer of the app's asks for before it goes on to the
// client. If it returns an error the client must not see the answer.
func (g *Gateway) watch(x *exchange, resp *http.Response) error {
	issued, err := g.cfg.Session.Issued(resp.Header)
	if err != nil {
		err = errors.New("the app sets the session's cookie to two values")
	}
	switch {
	case x.event.login != nil && succeeded(resp.StatusCode, x.event.login.success):
		return g.loggedIn(x, resp, issued, err)
	case x.event.logout && succeeded(resp.StatusCode, nil):
		// What the answer sets in place of the cookie is a stranger's, and stays
		// unbound as other strangers' tokens do.
		return g.loggedOut(x)
	case err != nil || issued != "":
		if l := x.event.login; l != nil {
			// Usually one for those who are not logged in yet. If not, this is all
			// that anybody hears of it.
			l.told.Do(func() {
				g.log.WarnContext(x, "limpet: gateway: a login's answer that is no success sets the session's cookie, which stays unbound: if it is a session list its status under success",
					"path", incoming.Told(x.in.URL.Path), "status", resp.StatusCode)
			})
		}
		return g.renewed(x, resp, issued, err)
	}
	return nil
}
