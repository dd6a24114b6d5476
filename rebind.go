package limpet

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/limpet-auth/limpet/proof"
)

// Rebind carries a session over to the token next, with which the app continues
// the session of token: next is bound to the same device key, of the same user,
// until the same time. The old token stays bound too; what it is still worth is
// the app's affair. They end together, by [Guard.Revoke] of either.
//
// Call it before the response that hands out next is written, and add to
// response, its header, what the client must know. If it returns an error next
// must not be handed out, unless that is ErrNoSession: then token is not known,
// and neither will next be. Other errors are a *[proof.Refusal], with reason
// SessionEnded if the session is over, and ErrBound if next is another session.
func (g *Guard) Rebind(ctx context.Context, response http.Header, token, next string) error {
	b, err := g.rebind(ctx, response, token, next)
	if errors.Is(err, ErrNoSession) {
		return err // there was nothing to decide
	}
	d := Decision{Result: Rebound, Err: err}
	if err == nil {
		d.identify(b)
	} else if d.Result = BrokenOff; !g.rules.enforce {
		d.Result = WouldBreakOff
	}
	g.Report(ctx, &d)
	return err
}

func (g *Guard) rebind(ctx context.Context, response http.Header, token, next string) (*Binding, error) {
	if err := g.bindable(next); err != nil {
		return nil, fmt.Errorf("limpet: rebind: %w", err)
	}
	s, err := g.session(ctx, g.cfg.Session.ID(token))
	if err != nil {
		return nil, err
	}
	if s == nil {
		return nil, ErrNoSession
	}
	old, now := s.binding, g.now()
	if !old.alive(now) {
		return nil, &proof.Refusal{Reason: proof.SessionEnded, Detail: "the session ended before its token was replaced"}
	}
	b := *old
	if s.registered() {
		b = *s.before // the registration is the root's
	}
	b.Session = g.cfg.Session.ID(next)
	if b.Root == (ID{}) {
		b.Root = old.Session
	}
	if b.Session != old.Session && b.Session != b.Root {
		added, err := g.cfg.Store.Add(ctx, bindingKey(b.Session), b.encode(), b.Expires.Sub(now)+retention)
		if err != nil {
			return nil, unavailable("rebind", err)
		}
		if !added {
			// Two answers at one time may bring the same token.
			other, err := g.Find(ctx, b.Session)
			if err != nil && !errors.Is(err, ErrNoSession) {
				return nil, err
			}
			if err != nil || other.Root != b.Root {
				return nil, ErrBound
			}
		}
	}
	if s.registered() {
		b.Level, b.Key, b.device = old.Level, old.Key, old.device
		return &b, nil
	}
	if b.device == nil {
		return &b, nil
	}
	self, err := g.server.describe(now)
	if err != nil {
		return nil, unavailable("rebind", err)
	}
	for _, wire := range wires {
		wire.Bound(response, b.Session, self)
	}
	return &b, nil
}

// Find returns the record of a session, also of one that is over, and
// ErrNoSession if there is none.
func (g *Guard) Find(ctx context.Context, session ID) (*Binding, error) {
	s, err := g.session(ctx, session)
	if err != nil {
		return nil, err
	}
	if s == nil {
		return nil, ErrNoSession
	}
	return s.binding, nil
}

// bindable returns why a token cannot be that of a session, nil if it can.
func (g *Guard) bindable(token string) error {
	if token == "" || len(token) > maxToken {
		return fmt.Errorf("a session token of %d bytes, want 1 to %d", len(token), maxToken)
	}
	if !spellable(g.cfg.Session.canonical(token)) {
		return errors.New("the session token has characters that headers and cookies cannot carry unambiguously")
	}
	return nil
}
