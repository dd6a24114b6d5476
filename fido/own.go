package fido

import (
	"bytes"
	"context"
	"errors"
	"slices"
)

// What the token's owner asks for, by a way of their own and not as a host.

// Errors of what the owner asks for, beside a Vault's.
var (
	ErrPINSet     = errors.New("limpet: fido: there is a PIN already")
	ErrNoPIN      = errors.New("limpet: fido: there is no PIN yet")
	ErrPINPolicy  = errors.New("limpet: fido: the new PIN is too short, too long or the one before")
	ErrPINHeld    = errors.New("limpet: fido: three wrong PINs in a row: the token has to be started again before a further try")
	ErrNotAllowed = errors.New("limpet: fido: the user did not allow it")
	ErrNoSuch     = errors.New("limpet: fido: no such credential")
)

var ownerErrors = map[status]error{
	statusPINPolicy:       ErrPINPolicy,
	statusPINAuthBlocked:  ErrPINHeld,
	statusOperationDenied: ErrNotAllowed,
	statusUserTimeout:     ErrNotAllowed,
	statusCancelled:       context.Canceled,
	statusNoCredentials:   ErrNoSuch,
}

// Status is how a token is.
type Status struct {
	Keys        string `json:"keys"`         // how they are kept
	PIN         bool   `json:"pin"`          // is one set?
	Retries     int    `json:"retries"`      // tries that are left
	Held        bool   `json:"held"`         // no further try before the token starts again
	ForceChange bool   `json:"force_change"` // the PIN has to be changed
	MinPIN      int    `json:"min_pin"`      // characters
	AlwaysUV    bool   `json:"always_uv"`
	Verifier    bool   `json:"verifier"`    // is there one?
	Verifies    bool   `json:"verifies"`    // does it take the place of the PIN now?
	Credentials int    `json:"credentials"` // discoverable ones
	Room        int    `json:"room"`        // for further ones
}

// Credential is a discoverable credential, as its owner sees it.
type Credential struct {
	ID          []byte `json:"id"`
	RPID        string `json:"rp_id"`
	RPName      string `json:"rp_name,omitempty"`
	Name        string `json:"name,omitempty"`
	DisplayName string `json:"display_name,omitempty"`
	PIN         bool   `json:"pin"` // needs the PIN
}

// owned runs f when it is the owner's turn.
func (t *Token) owned(ctx context.Context, f func(*transaction) error) error {
	return t.ownedAnyhow(ctx, func(x *transaction) error {
		if err := t.current(x.ctx); err != nil {
			return err
		}
		return f(x)
	})
}

// ownedAnyhow is owned also after a reset that failed.
func (t *Token) ownedAnyhow(ctx context.Context, f func(*transaction) error) error {
	if err := t.begin(ctx); err != nil {
		return err
	}
	defer t.end()
	t.forgetNext()
	t.rps, t.creds, t.blob = nil, nil, nil
	err := f(&transaction{context.WithoutCancel(ctx), ctx, 0, func(bool) {}})
	t.settle()
	var s status
	if errors.As(err, &s) {
		if e, known := ownerErrors[s]; known {
			err = e
		}
	}
	return err
}

// proven runs f for an owner who knows the PIN, if there is one.
func (t *Token) proven(ctx context.Context, pin []byte, f func(*transaction) error) error {
	return t.owned(ctx, func(x *transaction) error {
		if t.pinSet {
			u, err := t.unlock(x.ctx, hashPIN(pin))
			if err != nil {
				return err
			}
			t.release(u)
		}
		return f(x)
	})
}

// Status returns how the token is.
func (t *Token) Status(ctx context.Context) (s Status, err error) {
	return s, t.owned(ctx, func(x *transaction) error {
		_, retries, err := t.vault.PIN(x.ctx)
		n := len(t.state.Credentials)
		s = Status{
			Keys: t.keys, PIN: t.pinSet, Retries: retries, Held: t.mismatches >= 3, ForceChange: t.state.ForceChange,
			MinPIN: t.state.minPIN(), AlwaysUV: t.state.AlwaysUV,
			Verifier: t.verifier != nil, Verifies: t.holds(), Credentials: n, Room: maxCredentials - n,
		}
		return err
	})
}

// List returns the discoverable credentials, oldest first, to who knows the PIN.
func (t *Token) List(ctx context.Context, pin []byte) (list []Credential, err error) {
	return list, t.proven(ctx, pin, func(x *transaction) error {
		for _, s := range t.state.Credentials {
			c, err := t.lookup(x, s.rpHash(), s.ID)
			if err != nil {
				return err
			}
			list = append(list, Credential{bytes.Clone(s.ID), s.RPID, s.RPName, s.Name, s.DisplayName, c.level() == protectRequired})
		}
		return nil
	})
}

// Remove deletes a discoverable credential for who knows the PIN.
func (t *Token) Remove(ctx context.Context, pin, id []byte) error {
	return t.proven(ctx, pin, func(x *transaction) error { return t.remove(x.ctx, id) })
}

func (t *Token) remove(ctx context.Context, id []byte) error {
	at := t.state.find(id)
	if at < 0 {
		return statusNoCredentials
	}
	next := t.state
	next.Credentials = slices.Delete(slices.Clone(next.Credentials), at, at+1)
	return t.save(ctx, next)
}

// SetPIN sets the first PIN.
func (t *Token) SetPIN(ctx context.Context, pin []byte) error {
	return t.owned(ctx, func(x *transaction) error {
		if t.pinSet {
			return ErrPINSet
		}
		return t.firstPIN(x.ctx, pin)
	})
}

// ChangePIN replaces the PIN.
func (t *Token) ChangePIN(ctx context.Context, old, pin []byte) error {
	return t.owned(ctx, func(x *transaction) error {
		if !t.pinSet {
			return ErrNoPIN
		}
		return t.newPIN(x.ctx, hashPIN(old), pin)
	})
}

// Reset deletes everything, if the user who is asked allows it.
func (t *Token) Reset(ctx context.Context) error {
	return t.ownedAnyhow(ctx, func(x *transaction) error {
		if err := t.consent(x, Request{Operation: Reset}); err != nil {
			return err
		}
		return t.wipe(x.ctx)
	})
}
