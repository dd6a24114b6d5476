package limpet

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/limpet-auth/limpet/proof"
)

// Session says where a request carries its session token: [Bearer] or [Cookie].
type Session struct {
	cookie string // its name; "" for a bearer token
	set    bool
}

// Bearer is the token of an Authorization header with the scheme Bearer (RFC
// 6750, 2.1) or DPoP (RFC 9449, 7.1).
func Bearer() Session { return Session{set: true} }

// Cookie is the value of the cookie with this name.
//
// Quotes around a value and percent-encoding within it do not matter, because
// they do not matter to many apps either. A token with white space, quotes,
// commas, semicolons, backslashes or anything but ASCII in it is refused.
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
		return "", ambiguous
	}
	rest, ok := afterScheme(v[0], "bearer")
	if !ok {
		rest, ok = afterScheme(v[0], "dpop")
	}
	switch {
	case !ok && hasScheme(strings.ToLower(v[0])):
		return "", ambiguous
	case !ok:
		return "", nil
	case !strings.HasPrefix(rest, " "):
		return "", ambiguous
	}
	return accept(strings.Trim(rest, " "))
}

// Issued returns the session token that a response sets in the cookie, "" if it
// sets none; to delete the cookie is to set none. A response with two is refused
// with a *[proof.Refusal]. Of [Bearer] sessions headers do not tell.
func (s Session) Issued(header map[string][]string) (token string, err error) {
	if s.cookie == "" {
		return "", nil
	}
	for _, line := range header["Set-Cookie"] {
		pair, attributes, _ := strings.Cut(line, ";")
		// Browsers take "=name=value" for a nameless cookie and send name=value.
		name, val, _ := strings.Cut(strings.TrimLeft(pair, "= \t"), "=")
		if !strings.EqualFold(unescape(strings.Trim(name, " \t")), s.cookie) || deletes(attributes) {
			continue
		}
		val = strings.Trim(val, " \t")
		if plain := s.canonical(val); plain == "" {
			continue
		} else if token != "" && plain != s.canonical(token) {
			return "", ambiguous
		}
		token = val
	}
	return token, nil
}

// deletes reports whether a cookie with these attributes is one to be deleted.
// Max-Age counts before Expires (RFC 6265bis, 5.7), the last one of each, and
// only as digits (5.6.2). Expires is taken for past only if it is so by every
// clock.
func deletes(attributes string) bool {
	var expires string
	aged, over := false, false
	for attributes != "" {
		var attribute string
		attribute, attributes, _ = strings.Cut(attributes, ";")
		name, val, _ := strings.Cut(attribute, "=")
		val = strings.Trim(val, " \t")
		switch strings.ToLower(strings.Trim(name, " \t")) {
		case "max-age":
			if seconds, err := strconv.ParseInt(val, 10, 64); err == nil && val[0] != '+' {
				aged, over = true, seconds <= 0
			} else if strings.Trim(val, "0123456789") == "" && val != "" { // more than 64 bits hold
				aged, over = true, false
			}
		case "expires":
			expires = val
		}
	}
	if aged {
		return over
	}
	t, err := http.ParseTime(expires)
	if err != nil {
		t, err = time.Parse("Mon, 02-Jan-2006 15:04:05 MST", expires) // as PHP writes it
	}
	return err == nil && t.Before(time.Now().Add(-24*time.Hour))
}

// Remove takes the session token out of a request's headers, in every spelling
// that [Session.Token] reads or takes for one.
func (s Session) Remove(header map[string][]string) {
	if s.cookie == "" {
		delete(header, "Authorization")
		return
	}
	var lines []string
	for _, line := range header["Cookie"] {
		var kept []string
		for pair := range strings.SplitSeq(line, ";") {
			name, _, _ := strings.Cut(pair, "=")
			if !strings.EqualFold(unescape(strings.Trim(name, " \t")), s.cookie) && !s.hidden(pair) {
				kept = append(kept, strings.Trim(pair, " \t"))
			}
		}
		if len(kept) > 0 {
			lines = append(lines, strings.Join(kept, "; "))
		}
	}
	delete(header, "Cookie")
	if lines != nil {
		header["Cookie"] = lines
	}
}

// Forget has a browser forget the session's cookie, with whatever path and domain
// the app may have set it for pages at path. It writes the header of an answer to r.
func (s Session) Forget(response http.Header, r *http.Request, path string) {
	if s.cookie == "" {
		return
	}
	// Browsers take "__Host-" and "__Secure-" from nobody without Secure, and TLS
	// may end at a proxy.
	c := http.Cookie{Name: s.cookie, Path: "/", MaxAge: -1, HttpOnly: true, Secure: r.TLS != nil || r.URL.Scheme == "https" || strings.HasPrefix(s.cookie, "__")}
	set := func() { response.Add("Set-Cookie", c.String()) }
	set()
	// A cookie goes by path and domain, which a request does not tell.
	for i, n := 1, 0; i < len(path) && n < 4; n++ {
		end := strings.IndexByte(path[i:], '/')
		if end < 0 {
			end = len(path) - i
		}
		i += end
		c.Path = path[:i]
		set()
		if i++; i <= len(path) {
			c.Path = path[:i]
			set()
		}
	}
	c.Path = "/"
	host := (&url.URL{Host: r.Host}).Hostname()
	if _, err := netip.ParseAddr(host); err == nil {
		return
	}
	for n := 0; n < 4 && strings.Contains(host, "."); n++ {
		c.Domain = host
		set()
		_, host, _ = strings.Cut(host, ".")
	}
}

// CookieName returns the name of the cookie, "" for a bearer token.
func (s Session) CookieName() string { return s.cookie }

// String returns the words that tell where a request carries its session token.
func (s Session) String() string {
	if s.cookie != "" {
		return "cookie " + s.cookie
	}
	return "bearer token"
}

// hasScheme reports whether a scheme is anywhere in a value, in lower case: some
// apps look for it there.
func hasScheme(authorization string) bool {
	return strings.Contains(authorization, "bearer") || strings.Contains(authorization, "dpop ")
}

// afterScheme returns what follows a scheme, given in lower case.
func afterScheme(authorization, scheme string) (rest string, ok bool) {
	if len(authorization) < len(scheme) || !strings.EqualFold(authorization[:len(scheme)], scheme) {
		return "", false
	}
	return authorization[len(scheme):], true
}

func (s Session) fromCookies(headers []string) (token string, err error) {
	found := false
	for _, line := range headers {
		for line != "" {
			var pair string
			pair, line, _ = strings.Cut(line, ";")
			name, val, _ := strings.Cut(pair, "=")
			if !strings.EqualFold(unescape(strings.Trim(name, " \t")), s.cookie) {
				if s.hidden(pair) {
					return "", ambiguous
				}
				continue
			}
			if val, err = accept(s.canonical(strings.Trim(val, " \t"))); err != nil {
				return "", err
			}
			if found && val != token {
				return "", ambiguous
			}
			token, found = val, true
		}
	}
	return token, nil
}

// hidden reports whether an app may find the cookie in pair where a guard does
// not: some split at commas or white space, trim more than blanks, or take "."
// for "_" as PHP does, whose older versions do all that to the decoded name.
func (s Session) hidden(pair string) bool {
	if name, _, ok := strings.Cut(pair, "="); ok && (strings.IndexByte(name, '%') >= 0 || strings.IndexByte(name, '+') >= 0) &&
		s.hiddenIn(queryUnescape(name)+"=") {
		return true
	}
	return s.hiddenIn(pair)
}

func (s Session) hiddenIn(pair string) bool {
	for i := 0; i+len(s.cookie) < len(pair); i++ {
		if i > 0 && pair[i-1] > ' ' && pair[i-1] < 0x80 && pair[i-1] != ',' {
			continue
		}
		same := true
		for j := 0; j < len(s.cookie) && same; j++ {
			a, b := pair[i+j], s.cookie[j]
			same = a == b || small(a) == small(b) || b == '_' && (a == '.' || a == ' ' || a == '[')
		}
		if rest := pair[i+len(s.cookie):]; same && (rest[0] == '=' || rest[0] <= ' ' || rest[0] >= 0x80) {
			return true
		}
	}
	return false
}

// small returns a letter of ASCII as a small one.
func small(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

// canonical returns the one spelling of a token that is compared: what an app
// that unquotes and percent-decodes cookies makes of it.
func (s Session) canonical(token string) string {
	if s.cookie == "" {
		return token
	}
	for range 4 { // until nothing changes, so that it is the same how often it is done
		plain := unquote(token)
		if plain == token {
			return token
		}
		token = plain
	}
	return token + " " // which is not spellable
}

func unquote(token string) string {
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

// ambiguous refuses a session token that an app may read in another way than a
// guard does: it would look unbound here and be valid there.
var ambiguous = &proof.Refusal{Reason: proof.Malformed, Detail: "a session token that can be read in two ways"}

// accept returns token if it is bounded and spellable.
func accept(token string) (string, error) {
	if len(token) > maxToken {
		return "", &proof.Refusal{Reason: proof.TooLarge, Detail: "a session token over 8 KiB"}
	}
	if !spellable(token) {
		return "", ambiguous
	}
	return token, nil
}

// spellable reports whether a token has only characters that apps do not
// unescape, split or trim: what a cookie's value may have (RFC 6265, 4.1.1).
func spellable(token string) bool {
	for i := range len(token) {
		if !cookieOctet[token[i]] {
			return false
		}
	}
	return true
}

var cookieOctet = func() (ok [256]bool) {
	for c := '!'; c <= '~'; c++ {
		ok[c] = !strings.ContainsRune("\",;\\", c)
	}
	return ok
}()

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
