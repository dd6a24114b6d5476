package channel

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/limpet-auth/limpet/internal/incoming"
	"github.com/limpet-auth/limpet/internal/replay"
	"github.com/limpet-auth/limpet/internal/weakmap"
	"github.com/limpet-auth/limpet/keyring"
	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/httpsig"
)

// ServerConfig is what a [Server] is made from. Keys must be set.
type ServerConfig struct {
	Keys *keyring.Ring // who the clients are

	Profile Profile
	Forms   []Form // that are admitted; none: all

	// PerRequest demands that each request is covered by a MAC of its own, see
	// [Config.PerRequest]. A body is read before the app sees it, at most MaxBody
	// of it, default 1 MiB.
	PerRequest bool
	MaxBody    int64

	// DefaultID is whose the signed JWTs of the sample profile are, which do not
	// say that themselves; "": nobody's.
	DefaultID string

	Logger *slog.Logger // default slog.Default()
}

// Client is who a request's TLS connection belongs to.
type Client struct {
	ID      string
	Version int // of its key
	Form    Form
}

const (
	window       = 60 * time.Second // how old a request's MAC may be
	maxSpent     = 1 << 22          // values of such MACs that are remembered
	maxAdmits    = 4                // tokens that a connection remembers
	maxAuthority = 512              // bytes; a host name has 255 at most
	maxJTIs      = 1 << 10          // JWTs of a connection that are not over
)

// Server admits requests whose token fits their TLS connection. It is safe for
// concurrent use.
type Server struct {
	cfg   ServerConfig
	conns weakmap.Map[tls.ConnectionState, *conn] // which net/http keeps as long as the connection
	spent *replay.Table                           // values of MACs; nil without PerRequest
	seed  maphash.Seed
	now   func() time.Time

	// Stand-ins for keys that a client does not have, so that one that is not
	// known takes the time of one whose token does not fit.
	decoySecret *keyring.Key
	decoyPublic *keyring.Key
}

// NewServer returns a server. It fails on a configuration that makes no sense.
func NewServer(cfg ServerConfig) (*Server, error) {
	switch {
	case cfg.Keys == nil:
		return nil, errors.New("limpet: channel: ServerConfig.Keys is not set")
	case cfg.Profile > Sample || slices.ContainsFunc(cfg.Forms, func(f Form) bool { return f > JWE }):
		return nil, errors.New("limpet: channel: unknown profile or form")
	case cfg.PerRequest && cfg.Profile == Sample:
		return nil, errors.New("limpet: channel: the sample profile has no MAC per request")
	case cfg.MaxBody < 0:
		return nil, fmt.Errorf("limpet: channel: ServerConfig.MaxBody is %d", cfg.MaxBody)
	}
	if cfg.MaxBody == 0 {
		cfg.MaxBody = 1 << 20
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("limpet: channel: %w", err)
	}
	s := &Server{cfg: cfg, seed: maphash.MakeSeed(), now: time.Now,
		decoySecret: &keyring.Key{Secret: keyring.NewSecret()}, decoyPublic: &keyring.Key{Public: &key.PublicKey}}
	if cfg.PerRequest {
		s.spent = replay.New(maxSpent)
	}
	return s, nil
}

// Protect returns a handler that admits to next the requests whose token fits
// their connection, and answers the rest. next finds the client with
// [FromContext].
//
// All that are refused get one answer: 401, WWW-Authenticate: Bearer, the server's
// [Fingerprint] of the connection and {"message","reason"} as JSON; the log says
// why. A server whose own keys fail answers 503, and 413 to a body over MaxBody.
func (s *Server) Protect(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		client, err := s.admit(r)
		if err != nil {
			s.refuse(w, r, err)
			return
		}
		next.ServeHTTP(w, r.WithContext(&clientContext{r.Context(), client}))
	})
}

// Client returns the name of the client that a request's connection belongs to,
// for a limpet.Guard. The error is a *[proof.Refusal]; then what the client must
// be told is added to response, the header of the answer.
func (s *Server) Client(response http.Header, r *http.Request) (id string, err error) {
	client, err := s.admit(r)
	if err != nil {
		tell(response, r)
		return "", err
	}
	return client.ID, nil
}

func tell(response http.Header, r *http.Request) {
	response[FingerprintField] = []string{Fingerprint(r.TLS)}
}

// refuse answers a request that is not admitted.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	var refusal *proof.Refusal
	if !errors.As(err, &refusal) {
		refusal = &proof.Refusal{Reason: proof.Unavailable, Err: err}
	}
	s.cfg.Logger.LogAttrs(r.Context(), slog.LevelInfo, "limpet: refused",
		slog.String("reason", string(refusal.Reason)),
		slog.String("why", refusal.Error()),
		slog.String("method", r.Method),
		slog.String("path", incoming.Told(r.URL.Path)))
	h := w.Header()
	code := http.StatusUnauthorized
	switch refusal.Reason {
	case proof.Unavailable:
		code = http.StatusServiceUnavailable
		h.Set("Retry-After", "1")
	case proof.BodyLarge:
		code = http.StatusRequestEntityTooLarge
	default:
		tell(h, r)
		h.Set("WWW-Authenticate", "Bearer")
	}
	incoming.Answer(w, code, refusal.Reason, refusal.Reason.Message())
}

type contextKey struct{}

// clientContext carries the client; one allocation instead of two.
type clientContext struct {
	context.Context
	client *Client
}

func (c *clientContext) Value(key any) any {
	if key == (contextKey{}) {
		return c.client
	}
	return c.Context.Value(key)
}

// FromContext returns the client of a request that a server admitted, nil of
// another.
func FromContext(ctx context.Context) *Client {
	c, _ := ctx.Value(contextKey{}).(*Client)
	return c
}

// conn is what a server knows of one connection.
type conn struct {
	mu     sync.Mutex
	admits []admission // latest first
	jtis   map[string]named
}

// named is a JWT that has a name.
type named struct {
	text    uint64 // its hash
	expires time.Time
}

// admission is a token that fits its connection.
type admission struct {
	text, name string // as presented
	authority  string
	client     *Client
	generation uint64
	expires    time.Time           // zero: with the connection
	key        *proof.EphemeralKey // of its requests' MACs
	keyHash    uint64              // tells key from those of other connections
}

// admit decides over a request.
func (s *Server) admit(r *http.Request) (*Client, error) {
	if err := usable(r.TLS, s.cfg.Profile); err != nil {
		return nil, refused(err)
	}
	c, err := s.conns.Of(r.TLS, newConn)
	if err != nil {
		return nil, err
	}
	text, name, err := s.presented(r.Header)
	if err != nil {
		return nil, refused(err)
	}
	a, err := s.admission(r, c, text, name)
	if err != nil {
		return nil, err
	}
	if s.cfg.PerRequest {
		waited, err := s.covered(r, a)
		if err != nil {
			return nil, err
		}
		if waited { // for the body, which may have been hours on its way
			if a, err = s.admission(r, c, text, name); err != nil {
				return nil, err
			}
		}
	}
	return a.client, nil
}

func newConn(*tls.ConnectionState) (*conn, error) { return new(conn), nil }

// presented returns the token of a request and, in the sample profile, the client
// that it names besides.
func (s *Server) presented(h http.Header) (text, name string, err error) {
	field := ClientField
	if s.cfg.Profile == Sample {
		field = SampleTokenField
		if ids := h[SampleClientField]; len(ids) > 1 {
			return "", "", errors.New("a client that is named twice")
		} else if len(ids) == 1 {
			name = ids[0]
		}
	}
	switch v := h[field]; {
	case len(v) > 1:
		return "", "", errors.New("two tokens")
	case len(v) == 1:
		return v[0], name, nil
	}
	text, err = bearer(h)
	return text, name, err
}

// bearer returns the token of an Authorization header (RFC 6750, 2.1).
func bearer(h http.Header) (string, error) {
	const scheme = "bearer "
	v := h["Authorization"]
	if len(v) != 1 {
		return "", errors.New("no token, or two of them")
	}
	if len(v[0]) < len(scheme) || !strings.EqualFold(v[0][:len(scheme)], scheme) {
		return "", errors.New("no token")
	}
	return strings.Trim(v[0][len(scheme):], " "), nil
}

// admission returns that of a token, from memory if nothing has changed since.
func (s *Server) admission(r *http.Request, c *conn, text, name string) (admission, error) {
	generation, now := s.cfg.Keys.Generation(), s.now()
	authority := proof.Authority("https", r.Host)
	if len(authority) > maxAuthority {
		return admission{}, refused(errors.New("a host over 512 bytes"))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.admits {
		a := &c.admits[i]
		if equal(a.text, text) && a.name == name && a.authority == authority {
			if a.generation == generation && (a.expires.IsZero() || now.Before(a.expires)) {
				return *a, nil
			}
			c.admits = slices.Delete(c.admits, i, i+1)
			break
		}
	}
	a, err := s.verify(r, c, text, name, authority, now)
	if err != nil {
		return a, err
	}
	a.text, a.name, a.authority, a.generation = text, name, authority, generation
	if len(c.admits) >= maxAdmits {
		c.admits = c.admits[:maxAdmits-1]
	}
	c.admits = slices.Insert(c.admits, 0, a)
	return a, nil
}

// verify decides over a token. c.mu is held: who sends many on one connection
// waits for themselves.
func (s *Server) verify(r *http.Request, c *conn, text, name, authority string, now time.Time) (a admission, err error) {
	var cred *credential
	if s.cfg.Profile == Sample {
		cred, err = parseSample(text, name, s.cfg.DefaultID)
	} else {
		cred, err = parseCredential(text)
	}
	switch {
	case err != nil:
		return a, refused(err)
	case len(cred.id) > keyring.MaxID:
		return a, refused(errors.New("a client's name over 128 bytes"))
	case len(s.cfg.Forms) > 0 && !slices.Contains(s.cfg.Forms, cred.form):
		return a, refused(errors.New("a token of another form than is admitted"))
	}
	key, verified, err := s.fitting(r, cred, authority, now)
	if err != nil {
		return a, err
	}
	a.client = &Client{ID: cred.id, Version: key.Version, Form: cred.form}
	if claims := verified.claims; claims != nil {
		a.expires = claims.Expiry.Time().Add(skew)
		if err := c.name(claims.ID, named{maphash.String(s.seed, text), a.expires}, now); err != nil {
			return a, refused(err)
		}
	}
	if s.cfg.PerRequest {
		if verified.secrets == nil {
			return a, refused(errors.New("a key pair, which makes no MACs"))
		}
		a.key = &proof.EphemeralKey{ID: requestKeyID(cred.id), MAC: verified.secrets.requests(), Expires: now.Add(10 * 365 * 24 * time.Hour)}
		a.keyHash = maphash.Bytes(s.seed, verified.secrets.derive("spent"))
	}
	return a, nil
}

// name gives a JWT its name, which no other on the connection may have.
func (c *conn) name(jti string, jwt named, now time.Time) error {
	if known, ok := c.jtis[jti]; ok {
		if known.text != jwt.text {
			return errors.New("the jti of another JWT")
		}
		return nil
	}
	if len(c.jtis) >= maxJTIs {
		for other, known := range c.jtis {
			if !now.Before(known.expires) {
				delete(c.jtis, other)
			}
		}
	}
	if len(c.jtis) >= maxJTIs {
		return errors.New("too many JWTs on one connection")
	}
	if c.jtis == nil {
		c.jtis = make(map[string]named)
	}
	c.jtis[jti] = jwt
	return nil
}

// verified is what a token proved to be.
type verified struct {
	claims  *claims  // of a JWT
	secrets *secrets // of a shared secret, in the profile Limpet
}

var errMismatch = errors.New("the token does not fit the connection: it is another connection's or another key's, or TLS ends at a proxy between")

// fitting returns the key of the client that a token fits. It tries as many keys
// for a client that has fewer, or none, and has the TPM work for nobody too if
// it does for some.
func (s *Server) fitting(r *http.Request, cred *credential, authority string, now time.Time) (key *keyring.Key, v verified, err error) {
	keys := s.cfg.Keys.Lookup(cred.id)
	decoy := s.decoySecret
	if cred.signed {
		decoy = s.decoyPublic
	}
	slow := s.cfg.Keys.InTPM()
	var failed, broken error
	for i := range max(2, len(keys)) {
		candidate, theirs := decoy, i < len(keys) && (keys[i].Public != nil) == cred.signed
		switch {
		case theirs:
			candidate = keys[i]
		case i == 0 && slow != nil && !cred.signed:
			candidate = slow
		}
		got, err := s.fit(r, cred, candidate, authority, now)
		var keeper *keeperError
		switch {
		case errors.As(err, &keeper):
			broken = err
		case err == nil && theirs && key == nil:
			key, v = candidate, got
		case err != nil && theirs && failed == nil:
			failed = err
		}
	}
	switch {
	case key != nil:
		return key, v, nil
	case broken != nil:
		return nil, v, &proof.Refusal{Reason: proof.Unavailable, Detail: "key of a client", Err: broken}
	case failed != nil:
		return nil, v, refused(failed)
	}
	return nil, v, refused(errors.New("the client is not known, or has a key of another kind"))
}

// fit tells what is wrong with a token under a key.
func (s *Server) fit(r *http.Request, cred *credential, key *keyring.Key, authority string, now time.Time) (v verified, err error) {
	if s.cfg.Profile == Sample {
		return v, sampleVerify(r.Context(), key.HMAC, r.TLS, cred, now)
	}
	p := purpose{algorithm: hmacSHA256, id: cred.id, authority: authority, form: cred.form}
	if key.Public != nil {
		return s.fitPair(r, cred, key.Public, p, now)
	}
	exported, err := p.export(r.TLS)
	if err != nil {
		return v, err
	}
	if v.secrets, err = agree(r.Context(), key.HMAC, exported); err != nil {
		return v, err
	}
	text := cred.text
	switch cred.form {
	case Token:
		if subtle.ConstantTimeCompare(v.secrets.tag(), cred.tag) == 0 {
			return v, errMismatch
		}
		return v, nil
	case JWE:
		if text, err = decryptJWT(text, v.secrets.encryption()); err != nil {
			return v, err
		}
	}
	if v.claims, err = verifySigned(text, cred.id, v.secrets.signing()); err != nil {
		return v, err
	}
	return v, v.claims.check(cred.id, authority, "", now)
}

// fitPair is fit for a client with a key pair.
func (s *Server) fitPair(r *http.Request, cred *credential, public *ecdsa.PublicKey, p purpose, now time.Time) (v verified, err error) {
	key, err := proof.NewPublicKey(proof.ECDSAP256, public)
	if err != nil {
		return v, err
	}
	p.algorithm, p.public = ecdsaP256, key.Bytes()
	exported, err := p.export(r.TLS)
	if err != nil {
		return v, err
	}
	if cred.form == Token {
		if !key.VerifyExact(proof.ECDSAP256, statement(exported), cred.tag) {
			return v, errMismatch
		}
		return v, nil
	}
	if v.claims, err = verifySigned(cred.text, cred.id, public); err != nil {
		return v, err
	}
	return v, v.claims.check(cred.id, p.authority, exportedClaim(exported), now)
}

// covered decides whether a request is covered by a MAC of its own, and spends
// that. waited reports whether it read the body.
func (s *Server) covered(r *http.Request, a admission) (waited bool, err error) {
	if !incoming.Plain(r) {
		return false, refused(errors.New("a target that can be read in two ways"))
	}
	m := incoming.Message(r)
	var p proof.Proof
	found, err := httpsig.Wire{}.Extract(&m, &p)
	switch {
	case err != nil:
		return false, refused(err)
	case !found || p.Delegation != nil || p.KeyID != a.key.ID:
		return false, refused(errors.New("a request without a MAC of its own"))
	}
	now := s.now()
	key, err := proof.Verify(&m, &p, nil, a.key, now, proof.Policy{Freshness: proof.StrictNonce, Window: window, Skew: skew})
	if err != nil {
		return false, refused(err)
	}
	if err := s.spend(a, &p, key, now); err != nil {
		return false, err
	}
	if !p.Digest {
		return false, nil
	}
	sum, err := incoming.HashBody(r, s.cfg.MaxBody)
	if err != nil {
		return false, err
	}
	if subtle.ConstantTimeCompare(p.BodyClaim, sum[:]) == 0 {
		return false, refused(errors.New("the body is not the one with the digest"))
	}
	return true, nil
}

// spend uses up the value of a MAC under the key of its connection. Not under the
// connection itself: a server may give each request a state of its own.
func (s *Server) spend(a admission, p *proof.Proof, key *proof.EphemeralKey, now time.Time) error {
	var h maphash.Hash
	h.SetSeed(s.seed)
	maphash.WriteComparable(&h, a.keyHash)
	h.Write(p.ReplayID(nil, key))
	fresh, err := s.spent.Add(h.Sum64(), p.Time.Add(window+2*time.Second).Unix(), now.Unix())
	switch {
	case err != nil:
		return &proof.Refusal{Reason: proof.Unavailable, Detail: "spent values", Err: err}
	case !fresh:
		return refused(errors.New("a MAC that was used before"))
	}
	return nil
}

// refused returns the one refusal that peers are told, with the reason for the
// log.
func refused(why error) error {
	return &proof.Refusal{Reason: proof.NoClient, Err: why}
}
