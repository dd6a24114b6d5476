package gateway

import (
	"fmt"
	"slices"
	"strings"

	"github.com/limpet-auth/limpet"
)

// Explain says what the gateway does, a sentence a line: where requests go, what
// each login and logout does, what each route asks for, what the app is told.
func (g *Gateway) Explain() []string {
	c := &g.cfg
	lines := []string{fmt.Sprintf("Requests go to %s://%s; a session's token is the %s.", c.Upstream.Scheme, c.Upstream.Host, c.Session)}
	for i, l := range c.Logins {
		lines = append(lines, fmt.Sprintf("%s is a login: if the app answers with %s, the token in %s is bound to the device key of the request%s.",
			l.Pattern, successWords(l.Success), tokenWords(c.Session, &l), userWords(g.table.event[i].login.user)))
	}
	if c.DBSC {
		lines = append(lines, "A browser that logs in over HTTPS without a device key is offered to keep one for the session (DBSC): if it does, the level is browser, and requests need its cookie __Host-limpet, good for ten minutes, which it gets for proofs of the key. It asks under /.well-known/limpet/; routes that want more of a proof than to be good once, or young, do not take the cookie for one.")
	}
	for _, pattern := range c.Logouts {
		lines = append(lines, fmt.Sprintf("%s is a logout: if the app answers with %s, the session is revoked.", pattern, successWords(nil)))
	}
	for _, r := range c.Routes {
		lines = append(lines, fmt.Sprintf("%s %s.", r.Pattern, ruleWords(r.Rule)))
	}
	rest := "Everything else"
	if len(c.Routes) == 0 {
		rest = "Every other route"
	}
	lines = append(lines, fmt.Sprintf("%s %s.", rest, ruleWords(c.Rule)))
	client := ""
	if c.Rule.Client != limpet.NoClient || slices.ContainsFunc(c.Routes, func(r limpet.Route) bool { return r.Rule.Client != limpet.NoClient }) {
		client = c.Names.Client
	}
	var told []string
	for _, t := range []struct{ what, name string }{{"the user", c.Names.User}, {"the level", c.Names.Level},
		{"the session's ID", c.Names.Session}, {"the device key's thumbprint", c.Names.Key}, {"the client's name", client}} {
		if t.name != "" {
			told = append(told, t.what+" in "+t.name)
		}
	}
	if told == nil {
		told = []string{"nothing"}
	}
	return append(lines, "The app is told "+and(told)+".")
}

func successWords(codes []int) string {
	if codes == nil {
		return "200 to 299 or 301 to 303"
	}
	var words []string
	for _, code := range codes {
		words = append(words, fmt.Sprint(code))
	}
	return strings.Join(words, " or ")
}

func tokenWords(s limpet.Session, l *Login) string {
	switch {
	case l.Token != "":
		return l.Token + " of its JSON"
	case s == limpet.Bearer():
		return "token, or else access_token, of its JSON"
	}
	return "the " + s.String() + " that it sets"
}

func userWords(p place) string {
	if p.kind == "" {
		return ""
	}
	where := "the request's"
	if p.answer {
		where = "the answer's"
	}
	switch p.kind {
	case "form":
		return fmt.Sprintf(", of the user in %s form field %s", where, p.name[0])
	case "header":
		return fmt.Sprintf(", of the user in %s header %s", where, p.name[0])
	}
	return fmt.Sprintf(", of the user in %s of %s JSON", strings.Join(p.name, "."), where)
}

var freshnessWords = map[limpet.Freshness]string{
	limpet.Nonce:       "that is good once",
	limpet.StrictNonce: "that is good once, with a time and a long random part",
	limpet.BodyHash:    "that has the hash of the body in it",
	limpet.Timestamp:   "that is not older than a minute, also if it was used before",
}

func ruleWords(r limpet.Rule) string {
	switch r.Client {
	case limpet.InsteadOfSession:
		if r.Mode == limpet.Observe {
			return "admits everything, and logs what would be refused if clients with a token of their TLS connection were wanted"
		}
		return "admits clients with a token of their TLS connection, and nobody else; the app gets no token of a bound session"
	case limpet.BesideSession:
		r.Client = limpet.NoClient
		return "wants a client with a token of its TLS connection, and besides " + ruleWords(r)
	}
	proof := []string{freshnessWords[r.Freshness]}
	if r.Challenge {
		proof = append(proof, "that covers the challenge of the last minutes")
	}
	if r.Channel {
		proof = append(proof, "that is made with a key of its TLS connection")
	}
	body := "bodies stream, and break off before their last byte if they are not the ones that were signed"
	if r.Body > 0 {
		body = fmt.Sprintf("bodies of up to %d bytes are compared with their digest before the app sees them, larger ones refused", r.Body)
	} else if r.Body == 0 {
		body = "bodies of up to 1048576 bytes are read before the app sees them, larger ones refused"
	}
	level := ""
	if r.MinLevel != "" && r.MinLevel != limpet.None {
		level = fmt.Sprintf(", if the device key's level is %s or better", r.MinLevel)
	}
	wants := fmt.Sprintf("admits bound sessions with a proof %s%s", and(proof), level)
	switch {
	case r.Mode == limpet.Observe:
		return "admits everything, and logs what would be refused if it were mode require: it then " + wants + ", and nobody else"
	case r.Mode == limpet.Require || level != "":
		return wants + ", and nobody else; " + body
	}
	return wants + ", and others at level none; " + body
}

func and(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	last := len(words) - 1
	return strings.Join(slices.Clone(words[:last]), ", ") + " and " + words[last]
}
