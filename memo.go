package limpet

import (
	"bytes"
	"context"
	"sync"
	"sync/atomic"

	"github.com/limpet-auth/limpet/proof"
)

// session is what a guard has made of a session's records so far: parsed keys,
// an HMAC state, the names of its records. Every request still asks the store;
// only if the record is the same byte for byte is what was made of it used
// again. So a revocation is seen at once, wherever it was made.
type session struct {
	id       ID
	key      string // of the binding's record
	rec      []byte // the record that binding was read from
	binding  *Binding
	slotKeys [slots]string
	slots    [slots]atomic.Pointer[decodedSlot]
}

type decodedSlot struct {
	rec       []byte
	ephemeral *ephemeral
}

// memo holds the sessions that requests came for lately. Only sessions that
// are in the store get in, so a stranger cannot fill it.
type memo [memoShards]struct {
	sync.RWMutex
	m map[ID]*session
}

const (
	memoShards   = 64
	memoPerShard = 256 // about 1.5 KiB each: 24 MiB in all
)

// session returns the session with this ID, nil if it is not bound.
func (g *Guard) session(ctx context.Context, id ID) (*session, error) {
	shard := &g.memo[id[1]%memoShards]
	shard.RLock()
	known := shard.m[id]
	shard.RUnlock()

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
	if known != nil && bytes.Equal(known.rec, rec) {
		return known, nil
	}
	b, err := decodeBinding(id, rec)
	if err != nil {
		return nil, unavailable("binding", err)
	}
	s := &session{id: id, key: key, rec: bytes.Clone(rec), binding: b}
	for slot := range slots {
		s.slotKeys[slot] = slotKey(id, slot)
	}
	shard.Lock()
	defer shard.Unlock()
	if shard.m == nil {
		shard.m = make(map[ID]*session)
	}
	for other := range shard.m { // any one will do: map order is random
		if len(shard.m) < memoPerShard {
			break
		}
		delete(shard.m, other)
	}
	shard.m[id] = s
	return s, nil
}

// ephemeralKey returns the live ephemeral key that a client names.
func (g *Guard) ephemeralKey(ctx context.Context, s *session, wireID string) (*ephemeral, error) {
	slot, fingerprint, ok := parseWireID(wireID)
	if !ok {
		return nil, &proof.Refusal{Reason: proof.KeyUnknown, Detail: "not an ephemeral key's id"}
	}
	e, err := g.lookup(ctx, s, slot)
	if err != nil {
		return nil, err
	}
	if e == nil || e.key.ID != fingerprint {
		return nil, &proof.Refusal{Reason: proof.KeyUnknown, Detail: "no such ephemeral key in this session"}
	}
	return e, nil
}
