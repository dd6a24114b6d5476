package fido

import (
	"context"
	"errors"
	"time"
)

// Verifier tells whether the token's user is there, by a fingerprint or what else it
// has: CTAP's built-in user verification. It cannot unlock keys, which the PIN alone
// can; so it takes the place of a PIN that was typed before.
type Verifier interface {
	// User names who is at the machine now, so that another one, or another login of
	// the same user, has another name.
	User(ctx context.Context) (string, error)

	// Verify shows a request to that user, who proves to be it, or does not, until ctx
	// is done. ErrNotVerified and ErrDismissed are the user's doing; any other error
	// means that it could not be tried.
	Verify(ctx context.Context, user string, r Request) error
}

// Errors of a Verifier.
var (
	ErrNotVerified = errors.New("limpet: fido: the user was not verified")
	ErrDismissed   = errors.New("limpet: fido: the user does not want to be verified")
)

const (
	heldFor       = 12 * time.Hour // from the PIN on
	refusals      = 3              // in a row, and the PIN is needed
	verifyTimeout = time.Minute    // a dialog may want a password
)

// held is what the PIN unlocked, kept for the user who was there.
type held struct {
	unlocked Unlocked
	user     string
	since    time.Time
	left     int // refusals
	lapse    *time.Timer
}

// hold keeps what the right PIN unlocked, if there is a verifier.
func (t *Token) hold(ctx context.Context, u Unlocked) {
	if t.verifier == nil || t.state.ForceChange {
		return
	}
	user, err := t.verifier.User(ctx)
	if err != nil {
		t.log.Warn("limpet: fido: the PIN is not held for user verification", "error", err)
		return
	}
	h := &held{unlocked: u, user: user, since: time.Now(), left: refusals}
	h.lapse = time.AfterFunc(heldFor, func() {
		t.turn <- struct{}{}
		defer t.end()
		if t.held == h {
			t.letGo()
		}
	})
	before := t.held
	t.held = h
	if before != nil {
		before.lapse.Stop()
		t.release(before.unlocked)
	}
}

// holds reports whether the user can be verified without the PIN.
func (t *Token) holds() bool {
	if t.held == nil {
		return false
	}
	// Timers rest while the machine sleeps, and clocks can be set.
	now := time.Now()
	if max(now.Sub(t.held.since), now.Round(0).Sub(t.held.since.Round(0))) >= heldFor {
		t.letGo()
	}
	return t.held != nil
}

// letGo has the PIN come first again, and ends what was begun with it.
func (t *Token) letGo() {
	h := t.held
	if h == nil {
		return
	}
	h.lapse.Stop()
	t.held = nil
	if t.session != nil && t.session.unlocked == h.unlocked {
		t.endSession()
	}
	if t.next != nil && t.next.unlocked == h.unlocked {
		t.forgetNext()
	}
	t.release(h.unlocked)
}

// release forgets what a PIN unlocked once nothing needs it.
func (t *Token) release(u Unlocked) {
	if u == nil || t.held != nil && t.held.unlocked == u || t.session != nil && t.session.unlocked == u {
		return
	}
	u.Forget()
}

// lockSession has the session do without keys from now on.
func (t *Token) lockSession() {
	u := t.session.unlocked
	t.session.unlocked = nil
	t.release(u)
}

// verify has the user verified, and returns what the PIN unlocked before.
func (t *Token) verify(x *transaction, r Request) (Unlocked, error) {
	x.waiting(true)
	defer x.waiting(false)
	select { // a U2F request may have a question open
	case t.asking <- struct{}{}:
		defer func() { <-t.asking }()
	case <-x.host.Done():
		return nil, statusCancelled
	}
	if !t.holds() {
		return nil, statusUVBlocked
	}
	h := t.held
	ctx, cancel := context.WithTimeout(x.host, verifyTimeout)
	defer cancel()
	same, err := t.stillThere(ctx, h)
	if same {
		if err = t.verifier.Verify(ctx, h.user, r); err == nil {
			same, err = t.stillThere(ctx, h)
		}
	}
	switch {
	case x.host.Err() != nil:
		return nil, statusCancelled
	case ctx.Err() != nil:
		return nil, statusUserTimeout
	case errors.Is(err, ErrDismissed), errors.Is(err, ErrNotVerified):
		if h.left--; h.left == 0 {
			t.letGo()
		}
		switch {
		case errors.Is(err, ErrDismissed):
			return nil, statusOperationDenied
		case t.held == nil:
			return nil, statusUVBlocked
		}
		return nil, statusUVInvalid
	case err != nil:
		t.complain("cannot verify the user", err)
		return nil, statusUVBlocked
	case !same:
		t.letGo()
		return nil, statusUVBlocked
	}
	h.left = refusals
	return h.unlocked, nil
}

// stillThere reports whether the user is the one for whom the PIN is held.
func (t *Token) stillThere(ctx context.Context, h *held) (bool, error) {
	user, err := t.verifier.User(ctx)
	return err == nil && user == h.user, err
}

// verifyFor is verify for a request that asks for option uv, whose host is told to
// come with the PIN where nothing else is left: CTAP 2.1, sections 6.1.2 and 6.2.2.
func (t *Token) verifyFor(x *transaction, r Request) (Unlocked, error) {
	u, err := t.verify(x, r)
	if errors.Is(err, statusUVInvalid) || errors.Is(err, statusUVBlocked) {
		err = statusPINRequired
	}
	return u, err
}

// canVerify reports whether there is built-in verification, at least once the PIN was
// right.
func (t *Token) canVerify() bool { return t.verifier != nil && t.pinSet }
