package client

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/limpet-auth/limpet/proof"
)

const (
	maxPeek   = 64 << 10 // bytes of a JSON body that are looked at
	maxTokens = 16       // tokens learned from one login
	maxToken  = 8 << 10  // bytes of one
)

// tokenHash is the SHA-256 of a session token, which is all that is kept of it.
type tokenHash [sha256.Size]byte

// Hash returns the SHA-256 of a session token, a bearer token or the value of a
// cookie, as [Session] has it: in the URL alphabet of base64, 43 characters.
func Hash(token string) string { return hashOf(token).String() }

func hashOf(token string) tokenHash { return sha256.Sum256([]byte(token)) }

func (h tokenHash) String() string { return base64.RawURLEncoding.EncodeToString(h[:]) }

func parseHash(text string) (h tokenHash, err error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(b) != len(h) {
		return h, errors.New("not the hash of a token")
	}
	return tokenHash(b), nil
}

// sentToken is what may be the session token of a request.
type sentToken struct {
	hash   tokenHash
	weight int
}

// tokensOf returns the request's bearer token and cookies. The bearer token
// outweighs all cookies.
func tokensOf(req *http.Request) []sentToken {
	var tokens []sentToken
	if token, ok := bearerToken(req); ok {
		tokens = append(tokens, sentToken{hashOf(token), 1 << 20})
	}
	for _, cookie := range req.Cookies() {
		if cookie.Value != "" {
			tokens = append(tokens, sentToken{hashOf(cookie.Value), 1})
		}
	}
	return tokens
}

func bearerToken(req *http.Request) (token string, ok bool) {
	const scheme = "bearer "
	v := req.Header.Get("Authorization")
	if len(v) <= len(scheme) || !strings.EqualFold(v[:len(scheme)], scheme) {
		return "", false
	}
	return strings.Trim(v[len(scheme):], " \t"), true
}

// plainCookie returns what a guard takes for the token in a cookie: its value
// without quotes and percent-encoding.
func plainCookie(value string) string {
	for range 4 {
		plain := value
		if len(plain) > 1 && plain[0] == '"' && plain[len(plain)-1] == '"' {
			plain = plain[1 : len(plain)-1]
		}
		if decoded, err := url.PathUnescape(plain); err == nil {
			plain = decoded
		}
		if plain == value {
			break
		}
		value = plain
	}
	return value
}

// dropTokens removes these tokens from a request's headers.
func dropTokens(h http.Header, tokens []tokenHash) {
	req := &http.Request{Header: h}
	if token, ok := bearerToken(req); ok && slices.Contains(tokens, hashOf(token)) {
		h.Del("Authorization")
	}
	cookies := req.Cookies()
	h.Del("Cookie")
	for _, cookie := range cookies {
		if !slices.Contains(tokens, hashOf(cookie.Value)) {
			req.AddCookie(cookie)
		}
	}
}

// learn returns what may be session tokens in the answer to a login, none if
// the login failed. A form login often succeeds with a redirect and a cookie.
func learn(resp *http.Response) []tokenHash {
	class := resp.StatusCode / 100
	switch {
	case resp.StatusCode == http.StatusTemporaryRedirect, resp.StatusCode == http.StatusPermanentRedirect:
		return nil // the login is elsewhere
	case class != 2 && class != 3:
		return nil
	}
	var tokens []tokenHash
	note := func(token string) {
		if token != "" && len(token) <= maxToken && len(tokens) < maxTokens {
			tokens = append(tokens, hashOf(token))
		}
	}
	if class == 2 {
		var answer struct {
			Token       any `json:"token"`
			AccessToken any `json:"access_token"`
		}
		if json.Unmarshal(peekJSON(resp), &answer) == nil {
			for _, v := range []any{answer.Token, answer.AccessToken} {
				if token, ok := v.(string); ok {
					note(token)
				}
			}
		}
	}
	for _, cookie := range resp.Cookies() {
		if cookie.MaxAge >= 0 {
			note(cookie.Value)
		}
	}
	return tokens
}

// Reason returns why a guard refused the request that resp answers, "" if it
// was no guard or did not refuse. The body can still be read whole.
func Reason(resp *http.Response) proof.Reason {
	if resp.StatusCode < 400 {
		return ""
	}
	for _, challenge := range resp.Header["Www-Authenticate"] {
		if _, rest, ok := strings.Cut(challenge, `Limpet error="`); ok {
			reason, _, _ := strings.Cut(rest, `"`)
			return proof.Reason(reason)
		}
	}
	var answer struct {
		Reason string `json:"reason"`
	}
	if json.Unmarshal(peekJSON(resp), &answer) != nil {
		return ""
	}
	return proof.Reason(answer.Reason)
}

// peekJSON returns the first bytes of a body that may be JSON and puts them
// back. Servers that set no Content-Type send text/plain.
func peekJSON(resp *http.Response) []byte {
	media, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	switch {
	case resp.Body == nil || resp.Header.Get("Content-Encoding") != "":
		return nil
	case media == "", media == "text/plain", media == "application/json", strings.HasSuffix(media, "+json"):
	default:
		return nil
	}
	start, err := io.ReadAll(io.LimitReader(resp.Body, maxPeek))
	rest := io.Reader(resp.Body)
	if err != nil {
		rest = failed{err}
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(start), rest), resp.Body}
	return start
}

// failed repeats the error with which a body ended.
type failed struct{ err error }

func (f failed) Read([]byte) (int, error) { return 0, f.err }
