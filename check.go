package limpet

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/limpet-auth/limpet/proof"
)

// Request is what [Guard.Check] looks at.
type Request struct {
	proof.Message
	Token string // the session token, see [Session.Token]; "" if there is none

	tokenErr error // why there is no Token to be had

	// Client is the client that the connection belongs to, for rules that ask for
	// one: whoever calls Check has made sure of it.
	Client    string
	clientErr error // why there is no Client

	format Format // what carried its proof, as far as anybody looked

	proofOnly bool   // a bound cookie does not count
	skipped   string // why the browser says that it sent no bound cookie; "" if it does not

	// TLS is the connection the request came on, nil if TLS ends elsewhere or
	// there is none. Each connection has a value of its own, which is not used
	// again for another: what was derived for it is found by its address.
	TLS *tls.ConnectionState

	// Body returns the SHA-256 of the request's body, which it must be able to
	// read again for the app, or a *[proof.Refusal]. It is called at most once,
	// if rule or proof ask for it. nil means that the body cannot be seen: a rule
	// with policy BodyHash then refuses, and a digest that the proof covers is
	// not compared.
	Body func() ([sha256.Size]byte, error)

	// Digest is set by Check if the caller must compare it with the SHA-256 of
	// the body, which the rule's StreamBody left to it.
	Digest *[sha256.Size]byte
}

// unbound is the binding of every session that has none.
var unbound = &Binding{Level: None}

// Check decides whether a request is admitted under a rule, for those who are
// no net/http handlers. It returns the session's binding, never nil if the
// error is nil; or a *[proof.Refusal]. What the client must be told of an
// ephemeral key it introduced is added to response, the headers of the answer.
func (g *Guard) Check(ctx context.Context, r *Request, rule Rule, response map[string][]string) (*Binding, error) {
	var start time.Time
	if g.listens(ctx) {
		start = time.Now()
	}
	r.Session, r.format, r.skipped = ID{}, NoProof, ""
	b, err := g.check(ctx, r, rule, response)
	if err == nil {
		if rule.Client != NoClient {
			with := *b
			with.Client, b = r.Client, &with
		}
		if !start.IsZero() {
			g.decided(ctx, r, b, nil, Admitted, start)
		}
		return b, nil
	}
	var refusal *proof.Refusal
	if !errors.As(err, &refusal) {
		refusal = &proof.Refusal{Reason: proof.Unavailable, Err: err} // nobody has judged the request
	}
	r.Digest = nil
	if r.skipped != "" {
		g.Report(ctx, &Decision{Result: Skipped, Cause: r.skipped, Session: r.Session, Method: r.Method, Path: r.Path})
	}
	g.decided(ctx, r, nil, refusal, rule.refuses(), start)
	if rule.Mode == Observe {
		return unbound, nil
	}
	if status(refusal.Reason) == http.StatusUnauthorized && response != nil {
		if s, err := g.server.describe(g.now()); err == nil {
			for _, wire := range wires {
				wire.Refused(&r.Message, response, refusal.Reason, s)
			}
		}
	}
	return nil, refusal
}

func (g *Guard) check(ctx context.Context, r *Request, rule Rule, response map[string][]string) (*Binding, error) {
	if rule.Client != NoClient {
		if r.clientErr != nil {
			return nil, r.clientErr
		}
		if r.Client == "" {
			return nil, &proof.Refusal{Reason: proof.NoClient, Detail: "nobody has told the client"}
		}
	}
	if err := g.notElsewhere(ctx, &r.Message, r.Token); err != nil {
		return nil, err
	}
	if rule.Client == InsteadOfSession {
		r.format = ByChannel
		return unbound, nil
	}
	if r.tokenErr != nil {
		return nil, r.tokenErr
	}
	if r.Token == "" {
		if rule.Mode != Prefer || !None.AtLeast(rule.MinLevel) {
			return nil, &proof.Refusal{Reason: proof.SessionRequired, Detail: "no session token"}
		}
		return unbound, nil
	}
	if len(r.Token) > maxToken {
		return nil, &proof.Refusal{Reason: proof.TooLarge, Detail: "a session token over 8 KiB"}
	}
	r.Session, r.InCookie = g.cfg.Session.ID(r.Token), g.cfg.Session.cookie != ""
	s, err := g.session(ctx, r.Session)
	if err != nil {
		return nil, err
	}
	now := g.now()
	if s == nil && g.cfg.Tokens != nil {
		if s, err = g.confirmed(ctx, r); err != nil {
			return nil, err
		}
	}
	switch {
	case s == nil:
		if rule.Mode != Prefer || !None.AtLeast(rule.MinLevel) {
			return nil, &proof.Refusal{Reason: proof.SessionUnbound, Detail: "the session is not known"}
		}
		return unbound, nil
	case s.rec.found && !s.binding.alive(now): // others' tokens are not ours to judge
		return nil, &proof.Refusal{Reason: proof.SessionEnded, Detail: "the session is over or was revoked"}
	case s.registered() && g.browsers == nil: // nobody asks for its key any more, and without it everybody could come
		return nil, &proof.Refusal{Reason: proof.SessionEnded, Detail: "the session was bound by a browser, and browsers are not asked any more"}
	case s.certificate != nil && !s.certified(r.TLS):
		return nil, &proof.Refusal{Reason: proof.Required, Detail: "the token is bound to another client certificate"}
	case s.certificate != nil && s.thumbprint == nil:
		r.format = ByCertificate // the handshake was the proof
	case !s.bound():
		if rule.Mode != Prefer {
			return nil, g.awaited(r, s, &proof.Refusal{Reason: proof.SessionUnbound, Detail: "the session has no device key"}, now)
		}
	default:
		err := g.prove(ctx, r, s, rule, now, response)
		switch {
		case err == nil:
		case s.justRegistered(now) && reasonFor(err) == proof.Required && rule.Mode == Prefer && None.AtLeast(rule.MinLevel):
			return s.before, nil
		default:
			return nil, err
		}
	}
	if !s.binding.Level.AtLeast(rule.MinLevel) {
		return nil, g.awaited(r, s, &proof.Refusal{Reason: proof.LevelTooLow, Detail: "the session's level is " + string(s.binding.Level)}, now)
	}
	return s.binding, nil
}

// checking is the room that one check needs, reused between requests.
type checking struct {
	proof  proof.Proof
	id     []byte
	body   [sha256.Size]byte
	cookie cookieRoom
	secret []byte // agreed just now; nil if none was
}

var checkings = sync.Pool{New: func() any { return new(checking) }}

func (c *checking) release() {
	clear(c.secret)
	c.secret = nil
	checkings.Put(c)
}

// prove checks the proof that a request of a bound session must bring.
func (g *Guard) prove(ctx context.Context, r *Request, s *session, rule Rule, now time.Time, response map[string][]string) error {
	c := checkings.Get().(*checking)
	defer c.release()
	p, m := &c.proof, &r.Message
	p.Reset()

	wire, err := extract(m, p)
	r.format = formatOf(wire)
	if err != nil {
		return err
	}
	if wire == nil {
		return g.byCookie(r, s, rule, now, response, &c.cookie)
	}
	if r.proofOnly && r.format != RFC9421 {
		return &proof.Refusal{Reason: proof.Required, Detail: "a bound cookie is for clients on Limpet's own wire"}
	}
	device := s.deviceFor(p)
	if device == nil {
		return &proof.Refusal{Reason: proof.Invalid, Detail: "the access token is bound to another key"}
	}
	var known *ephemeral
	var key *proof.EphemeralKey
	if p.KeyID != "" {
		if known, err = g.ephemeralKey(ctx, s, p, now); err != nil {
			return err
		}
	}
	switch {
	case known == nil:
	case p.Delegation != nil && !now.Before(known.key.Expires):
		known = nil
	default:
		key = &known.key
	}
	if rule.Freshness == BodyHash && r.Body != nil {
		if c.body, err = r.Body(); err != nil {
			return err
		}
		// The body may have been hours on its way.
		now = g.now()
		if err := g.stillAlive(ctx, s, now); err != nil {
			return err
		}
		m.Body = &c.body
	}
	if p.Channel && r.TLS != nil {
		m.ChannelKey = g.channelKey(r.TLS)
	}
	policy := proof.Policy{Freshness: rule.Freshness, Window: window, Skew: skew, Channel: rule.Channel}
	if rule.Challenge {
		policy.Challenges = g.server.challengesAt(now).values[:]
	}
	if p.Delegation != nil && known == nil {
		policy.Lease, policy.Agree = g.cfg.Lease, g.agreeing(c, now)
	}
	key, err = proof.Verify(m, p, device, key, now, policy)
	hashed := m.Body != nil
	m.Body = nil // it is room of ours
	if err != nil {
		return err
	}
	introduced, err := g.admit(ctx, c, s, known, key, rule, now)
	if err != nil {
		return err
	}
	if p.Digest && !hashed {
		if err := g.compareBody(ctx, r, c, s, rule); err != nil {
			return err
		}
	}
	challenge := ""
	if rule.Challenge {
		challenge = g.server.challengesAt(now).current()
	}
	if response != nil && (introduced != nil || challenge != "") {
		wire.Admitted(m, response, introduced, challenge)
	}
	return nil
}

// agreeing returns a [proof.Policy].Agree that leaves the secret in c.
func (g *Guard) agreeing(c *checking, now time.Time) func(*proof.Delegation, *proof.PublicKey) (*proof.MACKey, error) {
	return func(d *proof.Delegation, ephemeral *proof.PublicKey) (mac *proof.MACKey, err error) {
		if c.secret, err = g.server.agree(d, ephemeral, now); err != nil {
			return nil, err
		}
		return proof.NewMACKey(c.secret), nil
	}
}

// admit spends the value of a verified proof. It returns the ephemeral key that
// the proof introduced, nil if none.
func (g *Guard) admit(ctx context.Context, c *checking, s *session, known *ephemeral, key *proof.EphemeralKey, rule Rule, now time.Time) (*proof.Introduced, error) {
	p := &c.proof
	switch {
	case known != nil:
		if p.Time.IsZero() && byDevice(p, s) {
			// Its lease can be renewed, so the end of it is no end for the value.
			return nil, &proof.Refusal{Reason: proof.NonceWeak, Detail: "a value by the device key itself without a time"}
		}
		fallthrough
	case p.Key != nil:
		_, err := g.spend(ctx, c, s, key, rule)
		return nil, err
	case p.Delegation.Scope != nil:
		if _, err := g.spend(ctx, c, s, key, rule); err != nil {
			return nil, err
		}
		defer g.lockDevice(s).Unlock()
		e, err := g.place(ctx, s, key, c.secret, now)
		if err != nil {
			return nil, err
		}
		return &proof.Introduced{ID: e.key.ID, Expires: e.key.Expires}, nil
	}
	key.ID = fingerprint(s.id, key.Public)
	key.Expires = now.Add(g.cfg.Lease).Truncate(time.Second)
	e, err := g.admitIntroduction(ctx, c, s, key, rule, now)
	if err != nil {
		return nil, err
	}
	return &proof.Introduced{ID: e.wireID(), Server: e.server, Expires: e.key.Expires}, nil
}

// compareBody compares the body of an admitted request with the digest that its
// proof covers, before the app sees any of it; or leaves that to the caller.
func (g *Guard) compareBody(ctx context.Context, r *Request, c *checking, s *session, rule Rule) error {
	digest := [sha256.Size]byte(c.proof.BodyClaim)
	switch {
	case !r.HasBody:
		if digest != emptyDigest {
			return &proof.Refusal{Reason: proof.BodyDiffer, Detail: "a digest without a body"}
		}
		return nil
	case rule.Body == StreamBody:
		stays := digest
		r.Digest = &stays
		return nil
	case r.Body == nil:
		return nil
	}
	sum, err := r.Body()
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(sum[:], digest[:]) == 0 {
		return &proof.Refusal{Reason: proof.BodyDiffer, Detail: "the body is not the one with the digest"}
	}
	return g.stillAlive(ctx, s, g.now()) // the body may have been hours on its way
}

var emptyDigest = sha256.Sum256(nil)

// stillAlive looks at a session once more, after a wait.
func (g *Guard) stillAlive(ctx context.Context, s *session, now time.Time) error {
	if s.thumbprint != nil {
		return nil // of others' tokens there is no record
	}
	again, err := g.session(ctx, s.id)
	if err != nil {
		return err
	}
	if again == nil || !again.binding.alive(now) {
		return &proof.Refusal{Reason: proof.SessionEnded, Detail: "the session ended before its request"}
	}
	return nil
}

// admitIntroduction spends the value of a verified introduction whose
// delegation has no scope, and gives its key a slot.
func (g *Guard) admitIntroduction(ctx context.Context, c *checking, s *session, key *proof.EphemeralKey, rule Rule, now time.Time) (*ephemeral, error) {
	defer g.lockDevice(s).Unlock()
	if c.proof.Time.IsZero() {
		if err := g.spendForGood(ctx, c, s, key); err != nil {
			return nil, err
		}
		e, err := g.introduce(ctx, s, key, false, now)
		if err != nil {
			return nil, err
		}
		// Now the lease is known: until its end the value is no proof either,
		// and if it was one, it is no introduction.
		_, err = g.spend(ctx, c, s, &e.key, rule)
		return e, err
	}
	fresh, err := g.spend(ctx, c, s, key, rule)
	if err != nil {
		return nil, err
	}
	// The device key vouches for the key anew only with a value of its own that
	// nobody has used before, whatever the rule thinks of those.
	return g.introduce(ctx, s, key, fresh && byDevice(&c.proof, s), now)
}

// byDevice reports whether the session's device key itself made the proof.
func byDevice(p *proof.Proof, s *session) bool {
	return p.Signer() != nil && p.Signer().SameKey(s.deviceFor(p))
}

// extract reads the proof on the first wire that finds one, or fails to.
func extract(m *proof.Message, p *proof.Proof) (proof.Wire, error) {
	for _, wire := range wires {
		found, err := wire.Extract(m, p)
		if err != nil {
			return wire, err
		}
		if found {
			return wire, nil
		}
	}
	return nil, nil
}

// spend uses up the proof's value. A value with a time is remembered until the
// window has passed over it; one without, until its key's lease is over.
//
// It is used up under every rule, but only the nonce policies mind if it was
// before: else a value could go from a route that admits it twice to one that
// must not.
func (g *Guard) spend(ctx context.Context, c *checking, s *session, key *proof.EphemeralKey, rule Rule) (fresh bool, err error) {
	expires := key.Expires
	if t := c.proof.Time; !t.IsZero() {
		expires = t.Add(window + time.Second)
	}
	c.id = c.proof.ReplayID(c.id[:0], key)
	if spender, ok := g.cfg.Store.(Spender); ok {
		fresh, err = spender.Spend(ctx, c.id, expires)
	} else {
		fresh, err = g.cfg.Store.Add(ctx, spentKey(s.id, &c.proof, c.id), nil, expires.Sub(g.now())+time.Second)
	}
	if err != nil {
		return false, unavailable("spent values", err)
	}
	if fresh || rule.Freshness != Nonce && rule.Freshness != StrictNonce {
		return fresh, nil
	}
	if c.proof.Random == 0 {
		return false, &proof.Refusal{Reason: proof.NonceSpent, Detail: "the value was used before; it has no random part, so two requests at one time collide"}
	}
	return false, &proof.Refusal{Reason: proof.NonceSpent, Detail: "the value was used before"}
}

// spendForGood uses up the value of an introduction that does not say when it
// was made. The caller holds the device's lock.
func (g *Guard) spendForGood(ctx context.Context, c *checking, s *session, key *proof.EphemeralKey) error {
	used, err := g.loadUsed(ctx, s)
	if err != nil {
		return err
	}
	c.id = c.proof.ReplayID(c.id[:0], key)
	if !used.add(c.id, forGood) {
		return &proof.Refusal{Reason: proof.NonceSpent, Detail: "the introduction was used before and says no time"}
	}
	return g.storeUsed(ctx, s, used)
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
