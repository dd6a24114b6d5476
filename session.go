package limpet

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/url"
	"strings"

	"github.com/limpet-auth/limpet/proof"
)

// Session says where a request carries its session token: [Bearer] or [Cookie].
type Session struct {
	cookie string // its name; "" for a bearer token
	set    bool
}

// Bearer is the token of an Authorization header (RFC 6750, 2.1).
func Bearer() Session { return Session{set: true} }

// Cookie is the value of the cookie with this name.
//
// Quotes around a value and percent-encoding within it do not matter, because
// they do not matter to many apps either.
func Cookie(name string) Session { return Session{cookie: name, set: true} }

// Token returns the session token in a request's headers, "" if there is none.
// A request with two of them, which could be read in two ways, is refused with
// a *[proof.Refusal].
func (s Session) Token(header map[string][]string) (string, error) {
	if s.cookie != "" {
		return s.fromCookies(header["Cookie"])
	}
	v := header["Authorization"]
	switch {
	case len(v) == 0:
		return "", nil
	case len(v) > 1:
		return "", &proof.Refusal{Reason: proof.Malformed, Detail: "two Authorization headers"}
	}
	const scheme = "bearer "
	if len(v[0]) < len(scheme) || !strings.EqualFold(v[0][:len(scheme)], scheme) {
		return "", nil
	}
	return bounded(strings.Trim(v[0][len(scheme):], " \t"))
}

func (s Session) fromCookies(headers []string) (token string, err error) {
	found := false
	for _, line := range headers {
		for line != "" {
			var pair string
			pair, line, _ = strings.Cut(line, ";")
			name, val, _ := strings.Cut(pair, "=")
			if unescape(strings.Trim(name, " \t")) != s.cookie {
				continue
			}
			val = s.canonical(strings.Trim(val, " \t"))
			if found && val != token {
				return "", &proof.Refusal{Reason: proof.Malformed, Detail: "two session cookies"}
			}
			token, found = val, true
		}
	}
	return bounded(token)
}

// canonical returns the one spelling of a token that is compared: what an app
// that unquotes and percent-decodes cookies makes of it.
func (s Session) canonical(token string) string {
	if s.cookie == "" {
		return token
	}
	if len(token) > 1 && token[0] == '"' && token[len(token)-1] == '"' {
		token = token[1 : len(token)-1]
	}
	return unescape(token)
}

func unescape(s string) string {
	if strings.IndexByte(s, '%') < 0 {
		return s
	}
	if plain, err := url.PathUnescape(s); err == nil {
		return plain
	}
	return s
}

func bounded(token string) (string, error) {
	if len(token) > maxToken {
		return "", &proof.Refusal{Reason: proof.TooLarge, Detail: "a session token over 8 KiB"}
	}
	return token, nil
}

// ID names a session: the SHA-256 of its token. It can be shown and stored;
// the token cannot be found from it.
type ID [sha256.Size]byte

// String returns the ID in the URL alphabet of base64, 43 characters.
func (id ID) String() string { return base64.RawURLEncoding.EncodeToString(id[:]) }

// ParseID reads what [ID.String] wrote.
func ParseID(s string) (ID, error) {
	var id ID
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != len(id) {
		return id, errors.New("limpet: not a session ID")
	}
	return ID(b), nil
}

// ID returns the ID of the session with this token.
func (s Session) ID(token string) ID {
	var room [128]byte // usual tokens fit and cost no allocation
	return sha256.Sum256(append(room[:0], s.canonical(token)...))
}
