package limpet

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"math"
	"sync"
	"time"

	"github.com/limpet-auth/limpet/proof"
)

// used is the record of what a device key has delegated to and of its
// introductions that say no time: neither carries an expiry on the hw-sign
// wire, so that they are used up has to be remembered. An entry has 12 bytes, a
// fingerprint and the unix second until which it may be used again; the oldest
// entries go when there are too many.
type used []byte

const (
	usedEntry = 12
	maxUsed   = 4096 // entries; with leases of 15 minutes, 42 days without a pause

	forGood = 0 // an entry that may not be used again
)

// find returns where the entry of what is, -1 if there is none, and its
// fingerprint.
func (u used) find(what []byte) (at int, fp [8]byte) {
	sum := sha256.Sum256(what)
	fp = [8]byte(sum[:8])
	for at = 0; at+usedEntry <= len(u); at += usedEntry {
		if [8]byte(u[at:]) == fp {
			return at, fp
		}
	}
	return -1, fp
}

// until returns the time until which what may be used again; found is false if
// it was not used before.
func (u used) until(what []byte) (t time.Time, found bool) {
	at, _ := u.find(what)
	if at < 0 {
		return time.Time{}, false
	}
	return time.Unix(int64(binary.BigEndian.Uint32(u[at+8:])), 0), true
}

// add puts an entry at the end, and reports false if there was one before.
func (u *used) add(what []byte, until int64) bool {
	at, fp := u.find(what)
	if at >= 0 {
		return false
	}
	if len(*u) >= maxUsed*usedEntry {
		*u = (*u)[usedEntry:]
	}
	*u = binary.BigEndian.AppendUint32(append(*u, fp[:]...), uint32(min(until, math.MaxUint32)))
	return true
}

func (g *Guard) loadUsed(ctx context.Context, s *session) (used, error) {
	rec, _, err := g.cfg.Store.Get(ctx, usedKey(s.binding.device))
	if err != nil {
		return nil, unavailable("introduction", err)
	}
	return append(used(nil), rec...), nil
}

// storeUsed keeps the record for as long as a session of the device can live
// that begins before the record is forgotten.
func (g *Guard) storeUsed(ctx context.Context, s *session, u used) error {
	if err := g.cfg.Store.Put(ctx, usedKey(s.binding.device), u, g.cfg.Lifetime+retention); err != nil {
		return unavailable("introduction", err)
	}
	return nil
}

// useDelegation returns when the lease of a key ends that gets a slot now. A
// delegation names no session: the first lease that it gave is its only one,
// also in the device's other sessions, unless the device key vouches for the
// key anew.
func (g *Guard) useDelegation(ctx context.Context, s *session, key *proof.EphemeralKey, vouched bool, now time.Time) (expires time.Time, err error) {
	u, err := g.loadUsed(ctx, s)
	if err != nil {
		return time.Time{}, err
	}
	only, found := u.until(key.Public.Bytes())
	switch {
	case !found:
		u.add(key.Public.Bytes(), key.Expires.Unix())
		return key.Expires, g.storeUsed(ctx, s, u)
	case vouched:
		return key.Expires, nil
	case now.Before(only):
		return earlier(only, key.Expires), nil
	}
	return time.Time{}, &proof.Refusal{Reason: proof.KeyUnknown, Detail: "the delegation's lease is over"}
}

// deviceLock orders the introductions of a device on this server.
type deviceLock struct {
	sync.Mutex
	_ [56]byte // a cache line each
}

// lockDevice locks the lock of the session's device.
func (g *Guard) lockDevice(s *session) *deviceLock {
	lock := &g.locks[s.binding.Key[0]%byte(len(g.locks))]
	lock.Lock()
	return lock
}
