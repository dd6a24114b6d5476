// Package dbsc reads and makes the headers, tokens and documents of W3C Device
// Bound Session Credentials (https://w3c.github.io/webappsec-dbsc/): a browser
// keeps a key for a session, and for a JWT by it gets a short-lived cookie again
// and again.
//
// Names and forms are those that Chromium sends, in which it differs from the
// draft: it does not quote strings. Both are read. Of the older names of its
// origin trials none is.
//
// A JWT covers the server's challenge and nothing of a request. It is no proof of
// a request, but of a refresh.
package dbsc

import (
	"slices"
	"strings"

	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/internal/jose"
)

// Names of header fields, in the canonical form of net/http.
const (
	RegistrationField = "Secure-Session-Registration" // response to a login: a session is offered
	ChallengeField    = "Secure-Session-Challenge"    // response: what the next JWT is to cover
	ResponseField     = "Secure-Session-Response"     // request: the JWT
	IDField           = "Sec-Secure-Session-Id"       // request for a refresh: whose
	SkippedField      = "Secure-Session-Skipped"      // any request: why it comes without being refreshed
)

// Type is the typ of the JWTs.
const Type = "dbsc+jwt"

// Bounds of what a browser sends.
const (
	maxField     = 8 << 10
	maxChallenge = 256
	maxID        = 256
	maxSkipped   = 8 // sessions in one SkippedField
)

// algorithms of the JWTs: what keepers of keys in PCs can do.
var algorithms = map[string]proof.Algorithm{
	"ES256": proof.ECDSAP256,
	"RS256": proof.RSAPKCS1,
}

// Offer reads the key that a registration brings, and returns nil if there is
// none: a browser that was given no challenge sends none. What keeps the key a
// browser does not say, so the level is Browser. The challenge that the proof
// covers is its Challenge. An error is a *[proof.Refusal].
func Offer(m *proof.Message) (*proof.Offer, error) {
	p := new(proof.Proof)
	found, err := extract(m, p, true)
	if !found || err != nil {
		return nil, err
	}
	return &proof.Offer{Key: p.Key, Level: proof.Browser, Proof: p}, nil
}

// Extract reads the proof of a refresh into p, and reports whether there is one:
// the first request of a refresh may come without. An error is a *[proof.Refusal].
func Extract(m *proof.Message, p *proof.Proof) (found bool, err error) {
	return extract(m, p, false)
}

func extract(m *proof.Message, p *proof.Proof, registration bool) (found bool, err error) {
	text, err := item(m.Header, ResponseField)
	if text == "" || err != nil {
		return false, err
	}
	var header, claims jose.Object
	if err := jose.Split(text, p, &header, &claims); err != nil {
		return false, err
	}
	if p.Algorithm, err = jose.Algorithm(&header, Type, algorithms); err != nil {
		return false, err
	}
	switch {
	case header.Has("jwk"):
		if p.Key, err = jose.Key(&header, p.Algorithm); err != nil {
			return false, err
		}
	case registration:
		return false, malformed("a registration without a key")
	default:
		p.ByDevice = true
	}
	jti, ok := claims.Text("jti")
	if !ok || jti == "" || len(jti) > maxChallenge {
		return false, malformed("a jti that is no challenge, or none")
	}
	if claims.Has("aud") {
		if aud, ok := claims.Text("aud"); !ok || !sameTarget(m, aud) {
			return false, &proof.Refusal{Reason: proof.Invalid, Detail: "the JWT is for another server"}
		}
	}
	p.Challenge, p.Nonce = jti, []byte(jti)
	return true, nil
}

// sameTarget reports whether url names the request's server and, if it has a
// path, that. The scheme is often not known here.
func sameTarget(m *proof.Message, url string) bool {
	rest, ok := strings.CutPrefix(url, "https://")
	if !ok {
		rest, ok = strings.CutPrefix(url, "http://") // of localhost
	}
	authority, path := rest, ""
	if i := strings.IndexByte(rest, '/'); i >= 0 {
		authority, path = rest[:i], rest[i:]
	}
	return ok && proof.Authority(m.Scheme, authority) == m.Authority && (path == "" || path == "/" || path == m.Path)
}

// ID returns the session that a request wants refreshed, "" if it names none. An
// error is a *[proof.Refusal].
func ID(header map[string][]string) (string, error) {
	id, err := item(header, IDField)
	if len(id) > maxID {
		return "", malformed("a session identifier over 256 bytes")
	}
	return id, err
}

// The reasons of [Skipped].
const (
	Unreachable   = "unreachable"    // the server did not answer
	ServerError   = "server_error"   // it answered with 5xx
	QuotaExceeded = "quota_exceeded" // the browser has asked its key too often
	OtherReason   = "other"
)

// Skipped returns why the browser has sent a request without refreshing the
// session with this identifier: one of the reasons above, "" if it does not say.
func Skipped(header map[string][]string, id string) (reason string) {
	lines := header[SkippedField]
	if len(lines) == 0 || len(lines) > maxSkipped {
		return ""
	}
	n := 0
	for _, line := range lines {
		if len(line) > maxField {
			return ""
		}
		for member := range strings.SplitSeq(line, ",") {
			if n++; n > maxSkipped {
				return ""
			}
			word, parameters, _ := strings.Cut(member, ";")
			named := false
			for parameter := range strings.SplitSeq(parameters, ";") {
				name, val, _ := strings.Cut(strings.Trim(parameter, " "), "=")
				named = named || name == "session_identifier" && unquote(val) == id
			}
			if !named {
				continue
			}
			word = strings.Trim(word, " \t")
			if !slices.Contains([]string{Unreachable, ServerError, QuotaExceeded}, word) {
				word = OtherReason
			}
			return word
		}
	}
	return ""
}

// item returns the value of a field that is a token or a string (RFC 9651, 3.3),
// without its parameters, "" if there is none. No value here needs an escape.
func item(header map[string][]string, name string) (string, error) {
	lines := header[name]
	switch {
	case len(lines) == 0:
		return "", nil
	case len(lines) > 1:
		return "", malformed("a header that occurs twice")
	case len(lines[0]) > maxField:
		return "", &proof.Refusal{Reason: proof.TooLarge, Detail: "a header over 8 KiB"}
	}
	text, _, _ := strings.Cut(lines[0], ";")
	text = unquote(strings.Trim(text, " "))
	if text == "" || strings.Trim(text, itemCharacters) != "" {
		return "", malformed("a header that is neither token nor string")
	}
	return text, nil
}

// itemCharacters are those of JWTs and of session identifiers.
const itemCharacters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_."

func unquote(text string) string {
	if len(text) > 1 && text[0] == '"' && text[len(text)-1] == '"' {
		return text[1 : len(text)-1]
	}
	return text
}

func malformed(detail string) error {
	return &proof.Refusal{Reason: proof.Malformed, Detail: detail}
}
