package admin

import (
	"context"
	"errors"
	"slices"

	"github.com/limpet-auth/limpet"
)

// Filter chooses sessions, and decisions over requests of theirs. What is empty
// does not matter.
type Filter struct {
	User  string
	Key   string // the device key's thumbprint
	Level limpet.Level
}

func (f Filter) valid() bool {
	return f.Level == "" || slices.Contains([]limpet.Level{limpet.None, limpet.Software, limpet.Browser, limpet.Hardware, limpet.HardwareAttested}, f.Level)
}

func (f Filter) matches(user, key string, level limpet.Level) bool {
	return (f.User == "" || f.User == user) && (f.Key == "" || f.Key == key) && (f.Level == "" || f.Level == level)
}

// Sessions are those of a guard.
type Sessions struct{ Guard *limpet.Guard }

// List calls yield with the live sessions that the filter chooses, in no
// particular order, until yield returns false.
func (s Sessions) List(ctx context.Context, f Filter, yield func(*limpet.Binding) bool) error {
	return s.Guard.Sessions(ctx, func(b *limpet.Binding) bool {
		return !f.matches(b.User, b.Key, b.Level) || yield(b)
	})
}

// Show returns a session, also one that is over, or limpet.ErrNoSession.
func (s Sessions) Show(ctx context.Context, id limpet.ID) (*limpet.Binding, error) {
	return s.Guard.Find(ctx, id)
}

// Revoke ends a session. It returns limpet.ErrNoSession if there never was one.
func (s Sessions) Revoke(ctx context.Context, id limpet.ID) error { return s.Guard.Revoke(ctx, id) }

// RevokeAll ends the sessions that the filter chooses, which must name a user or a
// key, and returns how many it ended.
func (s Sessions) RevokeAll(ctx context.Context, f Filter) (int, error) {
	switch {
	case f.User == "" && f.Key == "":
		return 0, errors.New("limpet: admin: neither a user nor a key")
	case f == Filter{User: f.User}:
		return s.Guard.RevokeUser(ctx, f.User) // which has an index
	}
	var ids []limpet.ID
	err := s.List(ctx, f, func(b *limpet.Binding) bool {
		ids = append(ids, b.Session)
		return true
	})
	n := 0
	for _, id := range ids {
		if e := s.Guard.Revoke(ctx, id); e != nil {
			err = errors.Join(err, e) // the others end nonetheless
			continue
		}
		n++
	}
	return n, err
}
