package channel

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/internal/outgoing"
	"github.com/limpet-auth/limpet/keyring"
	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/httpsig"
)

// Config is what a [Transport] is made from: the client's name and one key.
type Config struct {
	ID   string        // the client, as the server's keyring names it
	HMAC hwkey.HMACKey // the secret shared with the server
	Key  hwkey.Key     // or a key pair on P-256; not in form JWE, with PerRequest or in profile Sample

	Profile Profile
	Form    Form

	// PerRequest covers method, authority, path, query and body of each request
	// with a MAC of its own (RFC 9421), under a key of the connection. A body is
	// hashed before it is sent: by way of GetBody or else in memory, where one of
	// more than 1 MiB is an error. Not in profile Sample, and not beside the proofs
	// of a session on Limpet's own wire: a request has one signature of that kind.
	PerRequest bool

	// Base sends the requests: an [http.Transport], or what gives one the request
	// as it is, not a copy. Default [http.DefaultTransport].
	Base http.RoundTripper
}

func (c *Config) validate() error {
	if err := keyring.CheckID(c.ID); err != nil {
		return fmt.Errorf("limpet: channel: Config.ID: %w", err)
	}
	switch {
	case c.Profile > Sample || c.Form > JWE:
		return errors.New("limpet: channel: unknown profile or form")
	case (c.HMAC == nil) == (c.Key == nil):
		return errors.New("limpet: channel: one of Config.HMAC and Config.Key must be set")
	case c.Key != nil && c.Key.Info().Algorithm != hwkey.ECDSAP256:
		return fmt.Errorf("limpet: channel: a key of algorithm %s, want %s", c.Key.Info().Algorithm, hwkey.ECDSAP256)
	case c.Key != nil && (c.Form == JWE || c.PerRequest || c.Profile == Sample):
		return errors.New("limpet: channel: form jwe, PerRequest and profile sample need a shared secret, not a key pair")
	case c.PerRequest && c.Profile == Sample:
		return errors.New("limpet: channel: the sample profile has no MAC per request")
	}
	return nil
}

// ErrTLSElsewhere means that the server's end of the TLS connection is not the
// client's: something between them ends TLS, so nothing can be bound to it.
var ErrTLSElsewhere = errors.New("limpet: channel: TLS ends between this client and the server: a proxy there sees and can change everything, and no token can be bound to the connection")

// Transport adds to each request the token of the TLS connection that it goes
// out on. The key is asked once a connection, and for an ES256 JWT each time
// that it nears its end. It is safe for concurrent use.
//
// The token goes into Authorization (Bearer) or, if the caller has set that, into
// Limpet-Client; in the sample profile into client and apikey. Tokens are sent to
// whomever a request is for; nobody can use one elsewhere, but it tells the
// client's name.
type Transport struct {
	cfg    Config
	public []byte // of cfg.Key
	conns  outgoing.PerConn[*link]
	now    func() time.Time
}

// NewTransport returns a transport. It fails on a configuration that makes no
// sense and does not ask the key.
func NewTransport(cfg Config) (*Transport, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.Base == nil {
		cfg.Base = http.DefaultTransport
	}
	t := &Transport{cfg: cfg, now: time.Now}
	if cfg.Key != nil {
		public, err := proof.NewPublicKey(proof.ECDSAP256, cfg.Key.Public())
		if err != nil {
			return nil, fmt.Errorf("limpet: channel: Config.Key: %w", err)
		}
		t.public = public.Bytes()
	}
	return t, nil
}

// RoundTrip implements [http.RoundTripper]. Besides what Base returns, its errors
// are a request without https, a connection below TLS 1.3 (in the sample profile
// TLS 1.2 with extended master secret), a key that fails, and [ErrTLSElsewhere].
// What the server refuses is returned as its response.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := t.roundTrip(req)
	if resp != nil {
		resp.Request = req // the caller's, without our headers
	}
	return resp, err
}

func (t *Transport) roundTrip(req *http.Request) (*http.Response, error) {
	out, m, err := t.prepare(req)
	if err != nil {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, err
	}
	told := false
	resp, err := outgoing.OnConn(t.cfg.Base, out, func(h http.Header, conn net.Conn) error {
		told = true
		signed := *m
		signed.Header = h
		if err := t.sign(req.Context(), &signed, conn); err != nil {
			return fmt.Errorf("limpet: channel: %s: %w", req.URL.Host, err)
		}
		return nil
	})
	if err == nil && !told {
		resp.Body.Close()
		return nil, errors.New("limpet: channel: Config.Base does not tell the connection of a request, which went without a token: it must be an http.Transport, or give one the request with its context")
	}
	if err != nil || resp.StatusCode != http.StatusUnauthorized {
		return resp, err
	}
	if theirs := resp.Header.Get(FingerprintField); theirs != "" && theirs != Fingerprint(resp.TLS) {
		resp.Body.Close()
		return nil, ErrTLSElsewhere
	}
	return resp, nil
}

// prepare returns the request to send, with what does not depend on the
// connection, and its message.
func (t *Transport) prepare(req *http.Request) (*http.Request, *proof.Message, error) {
	if req.URL == nil || !strings.EqualFold(req.URL.Scheme, "https") {
		return nil, nil, errors.New("limpet: channel: a request without https: there is no TLS connection to bind a token to")
	}
	if !ascii(req.Host) || !ascii(req.URL.Host) {
		return nil, nil, errors.New("limpet: channel: a host name that is not ASCII: write it as it is sent, xn--…")
	}
	taken := len(req.Header["Authorization"]) > 0
	if taken && (t.cfg.PerRequest || t.cfg.Profile == Sample && t.cfg.Form != Token) {
		return nil, nil, errors.New("limpet: channel: the request has an Authorization of its own, where the token must go")
	}
	out := req.Clone(req.Context())
	if out.Header == nil {
		out.Header = make(http.Header)
	}
	for _, name := range []string{ClientField, SampleClientField, SampleTokenField} {
		if name == ClientField || t.cfg.Profile == Sample {
			delete(out.Header, name) // only we set them
		}
	}
	var digest *[sha256.Size]byte
	if t.cfg.PerRequest {
		var err error
		if out, digest, err = outgoing.Digest(out); err != nil {
			return nil, nil, fmt.Errorf("limpet: channel: %w", err)
		}
		if digest != nil {
			out.Header[httpsig.DigestField] = []string{httpsig.FormatDigest(*digest)}
		}
	}
	return out, outgoing.Message(out, digest), nil
}

func ascii(s string) bool { return strings.IndexFunc(s, func(r rune) bool { return r >= 0x80 }) < 0 }

// sign adds the token of a connection to a request, and its MAC.
func (t *Transport) sign(ctx context.Context, m *proof.Message, conn net.Conn) error {
	over, ok := conn.(interface{ ConnectionState() tls.ConnectionState })
	if !ok {
		return errors.New("the connection is not a TLS one")
	}
	l, err := t.conns.Of(conn, func() (*link, error) {
		return &link{state: over.ConnectionState(), lock: make(chan struct{}, 1)}, nil
	})
	if err != nil {
		return err
	}
	token, err := l.token(ctx, t, m.Authority)
	if err != nil {
		return err
	}
	h := m.Header
	switch {
	case t.cfg.Profile == Sample && t.cfg.Form == Token:
		h[SampleClientField], h[SampleTokenField] = []string{t.cfg.ID}, []string{token.text}
	case len(h["Authorization"]) > 0:
		h[ClientField] = []string{token.text}
	default:
		h["Authorization"] = []string{"Bearer " + token.text}
	}
	if !t.cfg.PerRequest {
		return nil
	}
	var nonce [16]byte
	rand.Read(nonce[:]) // never fails
	return httpsig.Sign(m, &httpsig.Signing{
		KeyID:     requestKeyID(t.cfg.ID),
		Algorithm: proof.HMACSHA256,
		Created:   t.now(),
		Nonce:     base64.RawURLEncoding.EncodeToString(nonce[:]),
	}, func(base []byte) ([]byte, error) { return token.requests.Append(nil, base), nil })
}

// link is what a transport made for one connection.
type link struct {
	state  tls.ConnectionState
	lock   chan struct{} // held while the key is asked; guards what follows
	tokens map[string]*token
}

// token is what requests to one authority on one connection carry.
type token struct {
	text     string
	renew    time.Time     // zero: never
	secrets  *secrets      // nil of a key pair, and in the sample profile
	exported []byte        // of a key pair
	requests *proof.MACKey // nil without PerRequest
}

// maxTokens is for how many authorities one connection has tokens.
const maxTokens = 16

// token returns the token for an authority, which the first request on the
// connection has made while others wait.
func (l *link) token(ctx context.Context, t *Transport, authority string) (*token, error) {
	select {
	case l.lock <- struct{}{}:
		defer func() { <-l.lock }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	now := t.now()
	old := l.tokens[authority]
	if old != nil && (old.renew.IsZero() || now.Before(old.renew)) {
		return old, nil
	}
	made, err := t.make(ctx, &l.state, authority, old, now)
	if err != nil {
		return nil, err
	}
	if l.tokens == nil || len(l.tokens) >= maxTokens {
		l.tokens = make(map[string]*token)
	}
	l.tokens[authority] = made
	return made, nil
}

// make makes a token; old is one for the same purpose that nears its end.
func (t *Transport) make(ctx context.Context, state *tls.ConnectionState, authority string, old *token, now time.Time) (*token, error) {
	if err := usable(state, t.cfg.Profile); err != nil {
		return nil, err
	}
	if t.cfg.Profile == Sample {
		text, err := sampleCredential(ctx, t.cfg.HMAC.HMAC, state, t.cfg.ID, t.cfg.Form)
		return &token{text: text}, err
	}
	made := new(token)
	if old != nil {
		*made = *old
	} else {
		p := purpose{algorithm: hmacSHA256, id: t.cfg.ID, public: t.public, authority: authority, form: t.cfg.Form}
		if t.cfg.Key != nil {
			p.algorithm = ecdsaP256
		}
		var err error
		if made.exported, err = p.export(state); err != nil {
			return nil, err
		}
		if t.cfg.HMAC != nil {
			if made.secrets, err = agree(ctx, t.cfg.HMAC.HMAC, made.exported); err != nil {
				return nil, err
			}
		}
		if t.cfg.PerRequest {
			made.requests = made.secrets.requests()
		}
	}
	return made, t.format(made, authority, now)
}

// format writes a token.
func (t *Transport) format(made *token, authority string, now time.Time) (err error) {
	if t.cfg.Form == Token {
		var tag []byte
		if t.cfg.HMAC != nil {
			tag = made.secrets.tag()
		} else if tag, err = signP256(t.cfg.Key, statement(made.exported)); err != nil {
			return err
		}
		made.text = formatToken(t.cfg.ID, tag)
		return nil
	}
	made.renew = now.Add(jwtLife / 2)
	if t.cfg.Key != nil {
		made.text, err = signJWT(jose.ES256, deviceSigner{t.cfg.Key}, t.cfg.ID, jwtType,
			newClaims(t.cfg.ID, authority, exportedClaim(made.exported), now))
		return err
	}
	made.text, err = signJWT(jose.HS256, made.secrets.signing(), t.cfg.ID, jwtType, newClaims(t.cfg.ID, authority, "", now))
	if err != nil || t.cfg.Form == JWT {
		return err
	}
	made.text, err = encryptJWT(made.secrets.encryption(), t.cfg.ID, jwtType, made.text)
	return err
}

// CloseIdleConnections is for [http.Client.CloseIdleConnections].
func (t *Transport) CloseIdleConnections() {
	if base, ok := t.cfg.Base.(interface{ CloseIdleConnections() }); ok {
		base.CloseIdleConnections()
	}
}
