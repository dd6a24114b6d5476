package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/internal/outgoing"
	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/hwsign"
)

// Login returns req marked as a login, for those that [Client.IsLogin] does not
// tell. The mark is for this one request and what redirects make of it.
func Login(req *http.Request) *http.Request {
	mark := loginMark{req.Method, req.URL.String()}
	return req.WithContext(context.WithValue(req.Context(), loginKey{}, mark))
}

type loginKey struct{}

type loginMark struct{ method, url string }

// isLogin reports whether req is a login, by itself or because redirects that
// keep method, body and origin (307, 308) lead from one to it.
func (c *Client) isLogin(req *http.Request) bool {
	first := req
	for first.Response != nil && first.Response.Request != nil {
		code, prev := first.Response.StatusCode, first.Response.Request
		if code != http.StatusTemporaryRedirect && code != http.StatusPermanentRedirect ||
			originOf(prev.URL) != originOf(req.URL) {
			return false
		}
		first = prev
	}
	mark, marked := req.Context().Value(loginKey{}).(loginMark)
	if marked && mark == (loginMark{first.Method, first.URL.String()}) {
		return true
	}
	isLogin := c.IsLogin
	if isLogin == nil {
		isLogin = looksLikeLogin
	}
	return isLogin(req) || first != req && isLogin(first)
}

func looksLikeLogin(req *http.Request) bool {
	if req.Method != http.MethodPost {
		return false
	}
	switch strings.ToLower(path.Base(req.URL.Path)) {
	case "login", "log-in", "signin", "sign-in", "sign_in", "session":
		return true
	}
	return false
}

// login sends a login request with the offer of a new device key, and keeps the
// key if the login succeeds. old is the session that the request belongs to
// already, nil if there is none.
func (t *transport) login(old *session, req *http.Request) (*http.Response, error) {
	ctx, c, origin := req.Context(), t.client, originOf(req.URL)
	if !c.mayBind(req.URL) {
		closeBody(req)
		return nil, fmt.Errorf("limpet: client: log in: plain http to %s is not allowed, see Client.PlainHTTP", req.URL.Hostname())
	}
	if strings.ContainsFunc(req.URL.Host, func(r rune) bool { return r >= 0x80 }) {
		closeBody(req)
		return nil, errors.New("limpet: client: log in: a host name that is not ASCII: write it as it is sent, xn--…")
	}
	label := origin[:min(len(origin), 256)] // hwkey's limit
	key, err := c.Keys.Create(ctx, hwkey.CreateOptions{Algorithm: c.DeviceKey, Label: label})
	if err != nil {
		closeBody(req)
		return nil, fmt.Errorf("limpet: client: log in: %w", err)
	}
	s := c.newSession(origin, key.Info().ID, c.Wire)
	s.device = key
	var last *try
	digests := s.wire.digests() || old != nil && old.wire.digests()
	resp, err := t.exchange(req, digests, func(out *try) (sent, error) {
		last, out.login = out, true
		return s.wire.offer(out, old)
	})
	if err == nil {
		if tokens := s.wire.bound(last, resp, learn(resp)); len(tokens) > 0 {
			s.tokens.Store(&tokens)
			c.add(ctx, s)
			return resp, nil
		}
	}
	// Nobody will miss the key; if it cannot be deleted it stays unused.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	key.Close()
	c.Keys.Delete(ctx, key.Info().ID)
	return resp, err
}

// deviceAlgorithm returns what a device key's algorithm is to the verifier, and
// its name on the wire.
func deviceAlgorithm(alg hwkey.Algorithm) (proof.Algorithm, string) {
	switch alg {
	case hwkey.RSA2048:
		return proof.RSAPSS, hwsign.TypeRSA
	case hwkey.Ed25519:
		return proof.Ed25519, hwsign.TypeEd25519
	}
	return proof.ECDSAP256, hwsign.TypeECDSA
}

// encodeKey returns a public key as servers of the ecdh-p256 dialect read it.
func encodeKey(key *proof.PublicKey) ([]byte, error) {
	if key.Algorithm() == proof.Ed25519 {
		return key.Bytes(), nil
	}
	return key.SPKI()
}

// originOf returns scheme://host[:port] in lower case, without the port that is
// the scheme's default.
func originOf(u *url.URL) string {
	scheme, host, port := strings.ToLower(u.Scheme), strings.ToLower(u.Hostname()), u.Port()
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if port == "" || scheme == "https" && port == "443" || scheme == "http" && port == "80" {
		return scheme + "://" + host
	}
	return scheme + "://" + host + ":" + port
}

// mayBind reports whether sessions are allowed at the origin of u.
func (c *Client) mayBind(u *url.URL) bool {
	switch strings.ToLower(u.Scheme) {
	case "https":
		return true
	case "http":
		return c.PlainHTTP || outgoing.ThisMachine(u.Hostname())
	}
	return false
}
