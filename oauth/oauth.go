// Package oauth knows access tokens that an authorization server issued: signed
// ones by its keys ([JWT]), all others by asking it ([Introspection]). It says
// whom a token belongs to and what it is bound to; whether a request proves that
// is not its concern.
//
// Errors are *[proof.Refusal] and never repeat a token:
//
//   - SessionUnbound: it does not say that it is this issuer's.
//   - SessionEnded: it is over or was revoked.
//   - Invalid: it says so, and is not, or not for use here, not yet or not in a way
//     known here.
//   - Malformed: it has a form that others may read as a token of this issuer.
//   - TooLarge: it is over 8 KiB.
//   - Unavailable: the issuer cannot be asked, and the token may be good.
//
// Only SessionUnbound leaves room for another guard of the same app to know the
// token: a bound token, whatever a thief does to it, must not get past as one that
// nobody bound.
package oauth

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/limpet-auth/limpet/proof"
)

// Bounds that are the same for every issuer.
const (
	skew = 30 * time.Second // how far the issuer's clock and ours may be apart

	maxToken = 8 << 10 // bytes of a token
	maxUser  = 256     // bytes of a sub

	timeout = 5 * time.Second // for an answer of the issuer
)

// base64URL has one text for the same bytes.
var base64URL = base64.RawURLEncoding.Strict()

// claims are what is read of a token, or of an answer about one.
type claims struct {
	jwt.Claims
	Confirmation *confirmation `json:"cnf"`
}

// confirmation has the two methods known here.
type confirmation struct {
	Thumbprint  *string `json:"jkt"`
	Certificate *string `json:"x5t#S256"`
}

// confirm checks the claims that say whose, for whom and when (RFC 7519, 4.1),
// and returns what they come to. An audience of "" is not checked; the caller
// knows whether exp may be missing.
func (c *claims) confirm(audience string, now time.Time) (*proof.Confirmation, error) {
	if audience != "" && !c.Audience.Contains(audience) {
		return nil, refuse(proof.Invalid, "a token for another audience")
	}
	if c.Expiry != nil && !now.Before(c.Expiry.Time().Add(skew)) {
		return nil, refuse(proof.SessionEnded, "the token is over")
	}
	if c.NotBefore != nil && now.Before(c.NotBefore.Time().Add(-skew)) {
		return nil, refuse(proof.Invalid, "the token does not hold yet")
	}
	if c.Subject == "" || len(c.Subject) > maxUser {
		return nil, refuse(proof.Invalid, "a token without a sub, or with one over 256 bytes")
	}
	confirmed := &proof.Confirmation{User: c.Subject, Expires: c.Expiry.Time()}
	cnf := c.Confirmation
	if cnf == nil {
		return confirmed, nil
	}
	// A token that is bound in a way not known here must not pass for a bearer
	// token.
	if cnf.Thumbprint == nil && cnf.Certificate == nil {
		return nil, refuse(proof.Invalid, "a token that is bound in an unknown way")
	}
	var err error
	if confirmed.Thumbprint, err = digest(cnf.Thumbprint); err != nil {
		return nil, err
	}
	confirmed.Certificate, err = digest(cnf.Certificate)
	return confirmed, err
}

// digest decodes a SHA-256 in base64url, nil if text is.
func digest(text *string) (*[sha256.Size]byte, error) {
	if text == nil {
		return nil, nil
	}
	b, err := base64URL.DecodeString(*text)
	if err != nil || len(b) != sha256.Size {
		return nil, refuse(proof.Invalid, "a token that is bound to no SHA-256")
	}
	return (*[sha256.Size]byte)(b), nil
}

// read checks a token's size and characters (RFC 6750, 2.1) before anybody else
// sees it.
func read(token string) error {
	if len(token) > maxToken {
		return refuse(proof.TooLarge, "a token over 8 KiB")
	}
	for i := range len(token) {
		if token[i] <= ' ' || token[i] > '~' {
			return refuse(proof.Malformed, "a token with characters that none has")
		}
	}
	if token == "" {
		return refuse(proof.SessionUnbound, "no token")
	}
	return nil
}

// endpoint checks the URL of an issuer: without TLS only this machine may answer.
func endpoint(name, text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil || u.Fragment != "" {
		return fmt.Errorf("limpet: oauth: %s is no absolute URL, or one with a user or fragment", name)
	}
	if u.Scheme == "https" || u.Scheme == "http" && loopback(u.Hostname()) {
		return nil
	}
	return fmt.Errorf("limpet: oauth: %s does not begin with https://", name)
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// limited returns a copy of client, nil for the default one, that waits no longer
// than timeout and follows no redirects: they could leave TLS, or take a secret
// elsewhere.
func limited(client *http.Client) *http.Client {
	own := http.Client{}
	if client != nil {
		own = *client
	}
	if own.Timeout <= 0 || own.Timeout > timeout {
		own.Timeout = timeout
	}
	own.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &own
}

// ask returns the body of an answer, of at most limit bytes. Its error does not
// repeat the answer.
func ask(client *http.Client, r *http.Request, limit int64) ([]byte, error) {
	r.Header.Set("Accept", "application/json")
	resp, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %d", resp.StatusCode)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("an answer over %d bytes", limit)
	}
	return b, nil
}

// wait waits for done, but no longer than ctx.
func wait(ctx context.Context, done <-chan struct{}) error {
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return &proof.Refusal{Reason: proof.Unavailable, Detail: "the request ended before the issuer answered", Err: ctx.Err()}
	}
}

func refuse(reason proof.Reason, detail string) error {
	return &proof.Refusal{Reason: reason, Detail: detail}
}
