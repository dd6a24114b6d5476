package limpet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"sync/atomic"
	"time"

	"github.com/limpet-auth/limpet/proof"
)

// session is what a guard has made of a session's records so far: parsed keys,
// an HMAC state, the names of its records. It is used again only while the records are
// the same: every request asks the store, whose answer it compares byte for byte, or
// looks at their versions where it is a [Versioner]. So a revocation is seen at once,
// wherever it was made.
type session struct {
	id       ID
	rec      record // of its binding; none of an access token of others
	root     record // of the binding of its login, if that had another token
	reg      record // of a browser's registration, if there can be one
	binding  *Binding
	before   *Binding  // what it was before a browser registered a key; nil if none did
	since    time.Time // when that was
	slotKeys [slots]string
	slots    [slots]atomic.Pointer[decodedSlot]

	// Of a session that is an access token of others.
	thumbprint  *[sha256.Size]byte // of its device key
	certificate *[sha256.Size]byte // of its client's certificate
}

// record is one as the store had it. The value is kept as the store returned it, not
// copied: when the store returns the very same memory once more, it need not be read
// to be compared.
type record struct {
	key     string // "" if there is none to be had
	found   bool
	val     []byte
	version *atomic.Uint64 // as [Versioner] has it; nil if the store has none
	seen    atomic.Uint64  // what it was before val was asked for
}

// read makes r the record of key.
func (g *Guard) read(ctx context.Context, r *record, key string) (err error) {
	r.key = key
	if versions, ok := g.cfg.Store.(Versioner); ok {
		if r.version = versions.Version(g.cfg.Store, key); r.version != nil {
			r.seen.Store(r.version.Load())
		}
	}
	r.val, r.found, err = g.cfg.Store.Get(ctx, key)
	return err
}

// same reports whether r is what the store has.
func (g *Guard) same(ctx context.Context, r *record) (bool, error) {
	if r.key == "" {
		return true, nil
	}
	var version uint64
	if r.version != nil {
		if version = r.version.Load(); version == r.seen.Load() {
			return true, nil
		}
	}
	val, found, err := g.cfg.Store.Get(ctx, r.key)
	if err != nil || found != r.found || !bytes.Equal(val, r.val) {
		return false, err
	}
	r.seen.Store(version)
	return true, nil
}

// bound reports whether the session has a device key.
func (s *session) bound() bool { return s.binding.device != nil || s.thumbprint != nil }

// deviceFor returns the session's device key. Of an access token only the
// thumbprint is known, so it is the key that the proof presents, nil if that is
// another one or none.
func (s *session) deviceFor(p *proof.Proof) *proof.PublicKey {
	if s.thumbprint == nil {
		return s.binding.device
	}
	if p.Key != nil && p.Key.Thumbprint() == *s.thumbprint {
		return p.Key
	}
	return nil
}

type decodedSlot struct {
	rec       record
	ephemeral *ephemeral
}

// memo holds the sessions that requests came for lately, each in the one place
// that its ID gives it; a later one there takes it over. Only sessions that are
// in the store get in, so a stranger cannot fill it.
type memo [memoSize]atomic.Pointer[session]

const memoSize = 1 << 14 // of about 1.5 KiB each, beside records that the store may have forgotten: 24 MiB in all

func (m *memo) at(id ID) *atomic.Pointer[session] {
	return &m[binary.LittleEndian.Uint32(id[:])%memoSize]
}

// session returns the session with this ID, nil if it is not bound.
func (g *Guard) session(ctx context.Context, id ID) (*session, error) {
	place := g.memo.at(id)
	if known := place.Load(); known != nil && known.id == id {
		same := true
		for _, rec := range [...]*record{&known.rec, &known.root, &known.reg} {
			var err error
			if same, err = g.same(ctx, rec); err != nil {
				return nil, unavailable("binding", err)
			}
			if !same {
				break
			}
		}
		if same {
			return known, nil
		}
	}
	s, err := g.readSession(ctx, id)
	if s != nil {
		place.Store(s)
	}
	return s, err
}

// readSession is session without what was made of it before.
func (g *Guard) readSession(ctx context.Context, id ID) (*session, error) {
	s := &session{id: id}
	if err := g.read(ctx, &s.rec, bindingKey(id)); err != nil {
		return nil, unavailable("binding", err)
	}
	if !s.rec.found {
		return nil, nil
	}
	var err error
	if s.binding, err = decodeBinding(id, s.rec.val); err != nil {
		return nil, unavailable("binding", err)
	}
	if root := s.binding.Root; root != (ID{}) {
		if err := g.read(ctx, &s.root, bindingKey(root)); err != nil {
			return nil, unavailable("binding", err)
		}
		s.under(s.root.val)
	}
	if s.binding.offered {
		if err := g.read(ctx, &s.reg, registrationKey(s.rootID())); err != nil {
			return nil, unavailable("binding", err)
		}
		if s.reg.found {
			if err := s.register(s.reg.val); err != nil {
				return nil, err
			}
		}
	}
	for slot := range slots {
		s.slotKeys[slot] = slotKey(id, slot)
	}
	return s, nil
}

// under ends a session that has ended under the token of its login, or that is
// not known there any more.
func (s *session) under(root []byte) {
	b, err := decodeBinding(s.binding.Root, root)
	switch {
	case err != nil:
		s.binding.Ended = s.binding.Created
	case !b.Ended.IsZero():
		s.binding.Ended = b.Ended
	}
}

// register makes the session that of the key which a browser registered.
func (s *session) register(rec []byte) error {
	r, err := decodeRegistration(rec)
	if err != nil {
		return unavailable("registration", err)
	}
	s.before, s.since = s.binding, r.at
	s.binding = s.before.registered(r)
	return nil
}

// registered reports whether the session's key is one that a browser registered.
func (s *session) registered() bool { return s.before != nil }

// justRegistered reports whether requests are on their way that were sent before.
func (s *session) justRegistered(now time.Time) bool {
	age := now.Sub(s.since)
	return s.registered() && age < grace && age > -skew
}

// rootID returns the session of the login.
func (s *session) rootID() ID { return s.binding.rootID() }

// ephemeralKey returns the ephemeral key that a proof names, nil if the session
// has none of that name. Proofs that say their algorithm are of wires whose keys
// are named by thumbprint, and find no others.
func (g *Guard) ephemeralKey(ctx context.Context, s *session, p *proof.Proof, now time.Time) (*ephemeral, error) {
	if p.Algorithm != 0 {
		return g.byThumbprint(ctx, s, p.KeyID, now)
	}
	slot, fingerprint, ok := parseWireID(p.KeyID)
	if !ok {
		return nil, nil
	}
	e, err := g.lookup(ctx, s, slot, now)
	if err != nil || e == nil || e.key.ID != fingerprint {
		return nil, err
	}
	return e, nil
}

// byThumbprint looks first where the key was the last time.
func (g *Guard) byThumbprint(ctx context.Context, s *session, thumbprint string, now time.Time) (*ephemeral, error) {
	last := -1
	for slot := range slots {
		if known := s.slots[slot].Load(); known != nil && known.ephemeral.key.ID == thumbprint {
			last = slot
			e, err := g.lookup(ctx, s, slot, now)
			if err != nil || e != nil && e.key.ID == thumbprint {
				return e, err
			}
		}
	}
	for slot := range slots {
		if slot == last {
			continue
		}
		e, err := g.lookup(ctx, s, slot, now)
		if err != nil || e != nil && e.key.ID == thumbprint {
			return e, err
		}
	}
	return nil, nil
}
