package limpet

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"time"

	"github.com/limpet-auth/limpet/proof"
)

// ephemeral is the record of an introduced ephemeral key, and what is made of
// it for use. It sits in one of its session's slots.
type ephemeral struct {
	slot       int
	introduced time.Time
	server     *proof.PublicKey   // the server's half of a key agreement; nil for a signing key
	key        proof.EphemeralKey // ID is its fingerprint or, with a scope, its thumbprint
}

// An ephemeral key whose delegation has a scope is known by its thumbprint
// (RFC 7638). Others are known by a fingerprint, 16 bytes of SHA-256 over
// session, algorithm and key: the same key introduced again is the same key, and
// the same key in two sessions is two. So no key that was introduced on one wire
// is found on the other.
const (
	thumbprintLen  = 43 // in base64url
	fingerprintLen = 22
)

func fingerprint(session ID, key *proof.PublicKey) string {
	h := sha256.New()
	h.Write([]byte("limpet ephemeral key 1\x00"))
	h.Write(session[:])
	h.Write([]byte{byte(key.Algorithm())})
	h.Write(key.Bytes())
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:16])
}

// wireID is the name the client uses: slot, then fingerprint.
func (e *ephemeral) wireID() string { return string(rune('0'+e.slot)) + e.key.ID }

func parseWireID(id string) (slot int, fingerprint string, ok bool) {
	if len(id) != 1+fingerprintLen || id[0] < '0' || id[0] >= '0'+slots {
		return 0, "", false
	}
	return int(id[0] - '0'), id[1:], true
}

// encode writes the record: version, algorithm, introduced, expires, ID; then
// of a signing key the key, of an agreement the server's half, unless the client
// had it before, and the sealed HMAC key.
func (e *ephemeral) encode(public, sealed []byte) []byte {
	out := []byte{recordVersion, byte(e.key.Public.Algorithm())}
	out = appendTime(out, e.introduced)
	out = appendTime(out, e.key.Expires)
	out = appendBytes(out, []byte(e.key.ID))
	out = appendBytes(out, public)
	return appendBytes(out, sealed)
}

// decodeEphemeral reads the record in a slot. A record whose secret was sealed
// under another key is errRecord like any that cannot be read: the client
// introduces a new key.
func (g *Guard) decodeEphemeral(slot int, storeKey string, rec []byte) (*ephemeral, error) {
	r := reader{rest: rec}
	version, alg := r.byte(), proof.Algorithm(r.byte())
	e := &ephemeral{slot: slot, introduced: r.time()}
	e.key.Expires = r.time()
	e.key.ID = string(r.bytes())
	public, sealed := r.bytes(), r.bytes()
	if r.failed || len(r.rest) > 0 || version != recordVersion {
		return nil, errRecord
	}
	var pub *proof.PublicKey
	if len(public) > 0 || alg != proof.HMACSHA256 {
		var err error
		if pub, err = proof.ParsePublicKey(alg, public); err != nil {
			return nil, errRecord
		}
	}
	if alg != proof.HMACSHA256 {
		e.key.Public = pub
		return e, nil
	}
	e.server = pub
	secret, err := g.seal.open(storeKey, sealed)
	if err != nil {
		return nil, errRecord
	}
	e.key.MAC = proof.NewMACKey(secret)
	clear(secret)
	return e, nil
}

// introduce gives a verified new ephemeral key, whose delegation has no scope, a
// slot and, for an agreement, agrees the HMAC key. vouched says that the device
// key itself made the value that came with the delegation, at a time it states,
// and that it is fresh. The caller holds the device's lock.
func (g *Guard) introduce(ctx context.Context, s *session, key *proof.EphemeralKey, vouched bool, now time.Time) (*ephemeral, error) {
	known, slot, err := g.slotFor(ctx, s, key.ID, now)
	if known != nil || err != nil {
		return known, err // introduced before, still live: the same answer
	}
	if key.Expires, err = g.useDelegation(ctx, s, key, vouched, now); err != nil {
		return nil, err
	}
	e := &ephemeral{slot: slot, introduced: now, key: *key}
	if key.Public.Algorithm() != proof.HMACSHA256 {
		return e, g.put(ctx, s, e, key.Public.Bytes(), nil)
	}
	own, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return nil, unavailable("introduction", err)
	}
	secret, err := proof.Agree(own, key.Public)
	if err != nil {
		return nil, &proof.Refusal{Reason: proof.Malformed, Detail: "ephemeral key", Err: err}
	}
	defer clear(secret)
	public := own.PublicKey().Bytes()
	if e.server, err = proof.ParsePublicKey(proof.HMACSHA256, public); err != nil {
		return nil, unavailable("introduction", err)
	}
	return e, g.put(ctx, s, e, public, g.seal.seal(s.slotKeys[slot], secret))
}

// place gives a verified new ephemeral key, whose delegation has a scope, a
// slot. secret is the agreed HMAC key, nil for a signing key. The caller holds
// the device's lock.
func (g *Guard) place(ctx context.Context, s *session, key *proof.EphemeralKey, secret []byte, now time.Time) (*ephemeral, error) {
	known, slot, err := g.slotFor(ctx, s, key.ID, now)
	if known != nil || err != nil {
		return known, err
	}
	e := &ephemeral{slot: slot, introduced: now, key: *key}
	if secret == nil {
		return e, g.put(ctx, s, e, key.Public.Bytes(), nil)
	}
	return e, g.put(ctx, s, e, nil, g.seal.seal(s.slotKeys[slot], secret))
}

// slotFor returns the live key with this ID or, if there is none, the slot for
// it: a free one, else that of the oldest key. A session has so many tabs, and
// the newest ones work.
func (g *Guard) slotFor(ctx context.Context, s *session, id string, now time.Time) (known *ephemeral, slot int, err error) {
	free, oldest := -1, -1
	var oldestTime time.Time
	for slot := range slots {
		e, err := g.lookup(ctx, s, slot, now)
		switch {
		case err != nil:
			return nil, 0, err
		case e == nil || !now.Before(e.key.Expires):
			if free < 0 {
				free = slot
			}
		case e.key.ID == id:
			return e, slot, nil
		case oldest < 0 || e.introduced.Before(oldestTime):
			oldest, oldestTime = slot, e.introduced
		}
	}
	if free < 0 {
		free = oldest
	}
	return nil, free, nil
}

func (g *Guard) put(ctx context.Context, s *session, e *ephemeral, public, sealed []byte) error {
	if err := g.cfg.Store.Put(ctx, s.slotKeys[e.slot], e.encode(public, sealed), e.key.Expires.Sub(e.introduced)); err != nil {
		return unavailable("introduction", err)
	}
	return nil
}

// lookup returns the ephemeral key in a slot, nil if there is none.
func (g *Guard) lookup(ctx context.Context, s *session, slot int, now time.Time) (*ephemeral, error) {
	// The end of a record's life is no change of it.
	if known := s.slots[slot].Load(); known != nil && now.Before(known.ephemeral.key.Expires) {
		same, err := g.same(ctx, &known.rec)
		if err != nil {
			return nil, unavailable("ephemeral key", err)
		}
		if same {
			return known.ephemeral, nil
		}
	}
	d := new(decodedSlot)
	if err := g.read(ctx, &d.rec, s.slotKeys[slot]); err != nil {
		return nil, unavailable("ephemeral key", err)
	}
	if !d.rec.found {
		return nil, nil
	}
	var err error
	if d.ephemeral, err = g.decodeEphemeral(slot, d.rec.key, d.rec.val); err != nil {
		return nil, nil // unreadable is unknown: the client introduces a new one
	}
	s.slots[slot].Store(d)
	return d.ephemeral, nil
}
