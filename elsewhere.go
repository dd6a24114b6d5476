package limpet

import (
	"context"
	"encoding/base64"
	"net/url"
	"slices"
	"strings"

	"github.com/limpet-auth/limpet/proof"
)

const maxElsewhere = 8 // tokens that are looked up besides a request's own

var errElsewhere = &proof.Refusal{Reason: proof.Malformed, Detail: "a bound session's token in a place where no proof covers it, and some apps look for it"}

// notElsewhere refuses a request with the token of a session that was bound in a
// place where [Session.Token] does not look for it, but apps may. Tokens of
// others pass: only the store tells the two apart.
func (g *Guard) notElsewhere(ctx context.Context, m *proof.Message, token string) error {
	auth := m.Header["Authorization"]
	plain := len(auth) == 0 || len(auth) == 1 && token != "" && g.cfg.Session.cookie == "" && strings.IndexByte(auth[0], '=') < 0
	if plain && m.RawQuery == "" && strings.IndexByte(m.Path, ';') < 0 && strings.IndexByte(m.Path, '%') < 0 {
		return nil
	}
	found := g.cfg.Session.elsewhere(m, token)
	if len(found) > maxElsewhere {
		return ambiguous
	}
	for _, other := range found {
		s, err := g.session(ctx, g.cfg.Session.ID(other))
		if err != nil {
			return err
		}
		if s != nil && (s.bound() || !s.binding.alive(g.now())) {
			return errElsewhere
		}
	}
	return nil
}

// elsewhere returns what apps may take for the session's token besides token,
// which is in its place: parameters of the path, as servlet containers do, and of
// the query (RFC 6750, 2.3), and what follows any scheme in Authorization, or
// none: many apps cut off a scheme without looking at it. One more than
// maxElsewhere are too many, and there it stops.
func (s Session) elsewhere(m *proof.Message, token string) (found []string) {
	add := func(other string) {
		if len(found) <= maxElsewhere && other != "" && other != token && len(other) <= maxToken && spellable(s.canonical(other)) && !slices.Contains(found, other) {
			found = append(found, other)
		}
	}
	parameter := func(text string) {
		name, val, _ := strings.Cut(text, "=")
		if s.names(queryUnescape(name)) {
			add(val)
			add(queryUnescape(val))
		}
	}
	for rest := m.RawQuery; rest != ""; {
		pair := rest
		if i := strings.IndexAny(rest, "&;"); i >= 0 {
			pair, rest = rest[:i], rest[i+1:]
		} else {
			rest = ""
		}
		parameter(pair)
	}
	if strings.IndexByte(m.Path, ';') >= 0 {
		for segment := range strings.SplitSeq(m.Path, "/") {
			for _, pair := range strings.Split(segment, ";")[1:] {
				parameter(pair)
			}
		}
	}
	if decoded, err := url.PathUnescape(m.Path); err == nil && strings.IndexByte(decoded, ';') >= 0 {
		for _, pair := range strings.FieldsFunc(decoded, func(c rune) bool { return c == ';' || c == '/' }) {
			parameter(pair) // by apps that decode first
		}
	}
	for _, v := range m.Header["Authorization"] {
		words := strings.Fields(v)
		if len(words) == 0 || s.cookie != "" && !strings.EqualFold(words[0], "bearer") {
			continue
		}
		if len(words) > 1 && strings.EqualFold(words[0], "basic") {
			if pair, err := base64.StdEncoding.DecodeString(words[1]); err == nil {
				user, password, _ := strings.Cut(string(pair), ":")
				add(user)
				add(password)
			}
			continue
		}
		for _, word := range []string{words[min(1, len(words)-1)], words[len(words)-1]} {
			word = strings.Trim(word, `",;`)
			add(word)
			if _, val, ok := strings.Cut(word, "="); ok {
				add(strings.Trim(val, `"=`))
			}
		}
	}
	return found
}

// names reports whether a parameter with this name is a session's token to apps.
func (s Session) names(parameter string) bool {
	if s.cookie != "" {
		return strings.EqualFold(parameter, s.cookie)
	}
	switch strings.ReplaceAll(strings.ToLower(parameter), "-", "_") {
	case "access_token", "bearer_token", "auth_token", "token":
		return true
	}
	return false
}

func queryUnescape(text string) string {
	if plain, err := url.QueryUnescape(text); err == nil {
		return plain
	}
	return text
}
