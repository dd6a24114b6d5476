package limpet

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"net/http"

	"github.com/limpet-auth/limpet/proof"
)

// Tokens knows access tokens that an authorization server issued.
type Tokens interface {
	// Confirm returns whose a valid token is and what it is bound to. A token of
	// somebody else is a *[proof.Refusal] with reason SessionUnbound; one that
	// is over, with SessionEnded; if it cannot be told, with Unavailable.
	Confirm(ctx context.Context, token string) (*proof.Confirmation, error)
}

// Clients knows clients by a token of the TLS connection that a request comes on.
type Clients interface {
	// Client returns the name of the client, or a *[proof.Refusal], and then adds
	// what the client must be told to response, the header of the answer. It may read the
	// request's body and put it back.
	Client(response http.Header, r *http.Request) (id string, err error)
}

// confirmed returns the session that a request's access token stands for, nil
// if it is none. It is in no store: whoever issued the token can revoke it.
func (g *Guard) confirmed(ctx context.Context, r *Request) (*session, error) {
	c, err := g.cfg.Tokens.Confirm(ctx, r.Token)
	if err != nil {
		var refusal *proof.Refusal
		if errors.As(err, &refusal) && refusal.Reason == proof.SessionUnbound {
			return nil, nil
		}
		if refusal == nil {
			err = unavailable("access token", err)
		}
		return nil, err
	}
	if !g.now().Add(-skew).Before(c.Expires) {
		return nil, &proof.Refusal{Reason: proof.SessionEnded, Detail: "the access token is over"}
	}
	s := &session{id: r.Session, thumbprint: c.Thumbprint, certificate: c.Certificate}
	s.binding = &Binding{Session: r.Session, User: c.User, Level: None, Expires: c.Expires}
	bound := c.Thumbprint
	if bound == nil {
		bound = c.Certificate
	}
	if bound != nil {
		s.binding.Level = Software // nobody says what keeps the key
		s.binding.Key = base64.RawURLEncoding.EncodeToString(bound[:])
	}
	return s, nil
}

// certified reports whether the client has authenticated its TLS connection
// with the certificate that the session is bound to (RFC 8705, 3).
func (s *session) certified(state *tls.ConnectionState) bool {
	return state != nil && len(state.PeerCertificates) > 0 &&
		sha256.Sum256(state.PeerCertificates[0].Raw) == *s.certificate
}
