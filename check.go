package limpet

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/limpet-auth/limpet/proof"
)

// Request is what [Guard.Check] looks at.
type Request struct {
	proof.Message
	Token string // the session token, see [Session.Token]; "" if there is none

	tokenErr error // why there is no Token to be had

	// Body returns the SHA-256 of the request's body, which it must be able to
	// read again for the app, or a *[proof.Refusal]. It is called at most once,
	// if the rule asks for it. nil means that the body cannot be seen: a rule
	// with policy BodyHash then refuses.
	Body func() ([sha256.Size]byte, error)
}

// unbound is the binding of every session that has none.
var unbound = &Binding{Level: None}

// Check decides whether a request is admitted under a rule, for those who are
// no net/http handlers. It returns the session's binding, never nil if the
// error is nil; or a *[proof.Refusal]. What the client must be told of an
// ephemeral key it introduced is added to response, the headers of the answer.
func (g *Guard) Check(ctx context.Context, r *Request, rule Rule, response map[string][]string) (*Binding, error) {
	b, err := g.check(ctx, r, rule, response)
	if err == nil {
		return b, nil
	}
	var refusal *proof.Refusal
	if !errors.As(err, &refusal) {
		refusal = &proof.Refusal{Reason: proof.Invalid, Err: err}
	}
	verdict := "refused"
	if rule.Mode == Observe {
		verdict = "would refuse"
	}
	g.cfg.Logger.LogAttrs(ctx, slog.LevelInfo, "limpet: "+verdict,
		slog.String("reason", string(refusal.Reason)),
		slog.String("why", refusal.Error()),
		slog.String("method", r.Method),
		slog.String("path", r.Path))
	if rule.Mode == Observe {
		return unbound, nil
	}
	return nil, refusal
}

func (g *Guard) check(ctx context.Context, r *Request, rule Rule, response map[string][]string) (*Binding, error) {
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
	s, err := g.session(ctx, g.cfg.Session.ID(r.Token))
	if err != nil {
		return nil, err
	}
	now := g.now()
	switch {
	case s == nil:
		if rule.Mode != Prefer || !None.AtLeast(rule.MinLevel) {
			return nil, &proof.Refusal{Reason: proof.SessionUnbound, Detail: "the session is not known"}
		}
		return unbound, nil
	case !s.binding.alive(now):
		return nil, &proof.Refusal{Reason: proof.SessionEnded, Detail: "the session is over or was revoked"}
	case s.binding.device == nil:
		if rule.Mode != Prefer {
			return nil, &proof.Refusal{Reason: proof.SessionUnbound, Detail: "the session has no device key"}
		}
	default:
		if err := g.prove(ctx, r, s, rule, now, response); err != nil {
			return nil, err
		}
	}
	if !s.binding.Level.AtLeast(rule.MinLevel) {
		return nil, &proof.Refusal{Reason: proof.LevelTooLow, Detail: "the session's level is " + string(s.binding.Level)}
	}
	return s.binding, nil
}

// checking is the room that one check needs, reused between requests.
type checking struct {
	proof proof.Proof
	id    []byte
	body  [sha256.Size]byte
}

var checkings = sync.Pool{New: func() any { return new(checking) }}

// prove checks the proof that a request of a bound session must bring.
func (g *Guard) prove(ctx context.Context, r *Request, s *session, rule Rule, now time.Time, response map[string][]string) error {
	c := checkings.Get().(*checking)
	defer checkings.Put(c)
	p := &c.proof
	p.Reset()

	wire, err := extract(&r.Message, p)
	if err != nil {
		return err
	}
	if wire == nil {
		return &proof.Refusal{Reason: proof.Required, Detail: "a bound session without a proof"}
	}
	var known *ephemeral
	var key *proof.EphemeralKey
	if p.Delegation == nil {
		if known, err = g.ephemeralKey(ctx, s, p.KeyID); err != nil {
			return err
		}
		key = &known.key
	}
	if rule.Freshness == BodyHash && r.Body != nil {
		if c.body, err = r.Body(); err != nil {
			return err
		}
		// The body may have been hours on its way.
		now = g.now()
		if again, err := g.session(ctx, s.id); err != nil {
			return err
		} else if again == nil || !again.binding.alive(now) {
			return &proof.Refusal{Reason: proof.SessionEnded, Detail: "the session ended before its request"}
		}
		r.Message.Body = &c.body
	}
	policy := proof.Policy{Freshness: rule.Freshness, Window: window, Skew: skew}
	key, err = proof.Verify(&r.Message, p, s.binding.device, key, now, policy)
	r.Message.Body = nil // it is room of ours
	if err != nil {
		return err
	}
	if known != nil {
		if p.Time.IsZero() && byDevice(p, s) {
			// Its lease can be renewed, so the end of it is no end for the value.
			return &proof.Refusal{Reason: proof.NonceWeak, Detail: "a value by the device key itself without a time"}
		}
		_, err := g.spend(ctx, c, s, key, rule)
		return err
	}
	key.ID = fingerprint(s.id, key.Public)
	key.Expires = now.Add(g.cfg.Lease).Truncate(time.Second)
	if known, err = g.admitIntroduction(ctx, c, s, key, rule, now); err != nil {
		return err
	}
	wire.Answer(&r.Message, response, proof.Introduced{ID: known.wireID(), Server: known.server, Expires: known.key.Expires})
	return nil
}

// admitIntroduction spends the value of a verified introduction and gives its
// key a slot.
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
	return p.Signer() != nil && p.Signer().SameKey(s.binding.device)
}

// extract reads the proof on the first wire that finds one.
func extract(m *proof.Message, p *proof.Proof) (proof.Wire, error) {
	for _, wire := range wires {
		found, err := wire.Extract(m, p)
		if err != nil {
			return nil, err
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
