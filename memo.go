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
// an HMAC state, the names of its records. Every request still asks the store;
// only if the record is the same byte for byte is what was made of it used
// again. So a revocation is seen at once, wherever it was made. Records are kept as
// the store returned them, not copied: when the store returns the very same memory
// once more, it need not be read to be compared.
type session struct {
	id       ID
	key      string // of the binding's record; "" if there is none
	rec      []byte // the record that binding was read from
	root     string // the key of its root's record; "" if it has none
	rootRec  []byte // that record; nil if it is not there
	reg      string // the key of the record of a browser's registration; "" if there can be none
	regRec   []byte // that record; nil if it is not there
	binding  *Binding
	before   *Binding  // what it was before a browser registered a key; nil if none did
	since    time.Time // when that was
	slotKeys [slots]string
	slots    [slots]atomic.Pointer[decodedSlot]

	// Of a session that is an access token of others, which has no record.
	thumbprint  *[sha256.Size]byte // of its device key
	certificate *[sha256.Size]byte // of its client's certificate
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
	rec       []byte
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
	known := place.Load()
	if known != nil && known.id != id {
		known = nil
	}
	var key string
	if known != nil {
		key = known.key
	} else {
		key = bindingKey(id)
	}
	rec, found, err := g.cfg.Store.Get(ctx, key)
	if err != nil {
		return nil, unavailable("binding", err)
	}
	if !found {
		return nil, nil
	}
	if known != nil && !bytes.Equal(known.rec, rec) {
		known = nil
	}
	if known != nil && known.root == "" && known.reg == "" {
		return known, nil
	}
	s := known
	if s == nil {
		if s, err = readSession(id, key, rec); err != nil {
			return nil, err
		}
	}
	root, err := g.beside(ctx, s.root)
	if err != nil {
		return nil, err
	}
	reg, err := g.beside(ctx, s.reg)
	if err != nil {
		return nil, err
	}
	if known != nil {
		if bytes.Equal(known.rootRec, root) && bytes.Equal(known.regRec, reg) {
			return known, nil
		}
		if s, err = readSession(id, key, rec); err != nil {
			return nil, err
		}
	}
	if s.root != "" {
		s.under(root)
	}
	if len(reg) > 0 {
		if err := s.register(reg); err != nil {
			return nil, err
		}
	}
	place.Store(s)
	return s, nil
}

// beside returns a record that a binding's is read with, nil if it is not there or
// has no key.
func (g *Guard) beside(ctx context.Context, key string) ([]byte, error) {
	if key == "" {
		return nil, nil
	}
	rec, _, err := g.cfg.Store.Get(ctx, key)
	if err != nil {
		return nil, unavailable("binding", err)
	}
	return rec, nil
}

func readSession(id ID, key string, rec []byte) (*session, error) {
	b, err := decodeBinding(id, rec)
	if err != nil {
		return nil, unavailable("binding", err)
	}
	s := &session{id: id, key: key, rec: rec, binding: b}
	if b.Root != (ID{}) {
		s.root = bindingKey(b.Root)
	}
	if b.offered {
		s.reg = registrationKey(b.rootID())
	}
	for slot := range slots {
		s.slotKeys[slot] = slotKey(id, slot)
	}
	return s, nil
}

// under ends a session that has ended under the token of its login, or that is
// not known there any more.
func (s *session) under(root []byte) {
	s.rootRec = root
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
	s.regRec = rec
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
func (g *Guard) ephemeralKey(ctx context.Context, s *session, p *proof.Proof) (*ephemeral, error) {
	if p.Algorithm != 0 {
		return g.byThumbprint(ctx, s, p.KeyID)
	}
	slot, fingerprint, ok := parseWireID(p.KeyID)
	if !ok {
		return nil, nil
	}
	e, err := g.lookup(ctx, s, slot)
	if err != nil || e == nil || e.key.ID != fingerprint {
		return nil, err
	}
	return e, nil
}

// byThumbprint looks first where the key was the last time.
func (g *Guard) byThumbprint(ctx context.Context, s *session, thumbprint string) (*ephemeral, error) {
	last := -1
	for slot := range slots {
		if known := s.slots[slot].Load(); known != nil && known.ephemeral.key.ID == thumbprint {
			last = slot
			e, err := g.lookup(ctx, s, slot)
			if err != nil || e != nil && e.key.ID == thumbprint {
				return e, err
			}
		}
	}
	for slot := range slots {
		if slot == last {
			continue
		}
		e, err := g.lookup(ctx, s, slot)
		if err != nil || e != nil && e.key.ID == thumbprint {
			return e, err
		}
	}
	return nil, nil
}
