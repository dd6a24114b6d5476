package oauth

import (
	"crypto/sha256"
	"sync"
	"time"

	"github.com/limpet-auth/limpet/proof"
)

// maxRemembered bounds the tokens that one issuer's memory holds: about 5 MiB.
const maxRemembered = 16384

// memory holds tokens that were found good. It has two halves: when the young one
// is full it becomes the old one, and what was in that and nobody asked for since
// is forgotten.
type memory struct {
	mu         sync.Mutex
	young, old map[[sha256.Size]byte]remembered // by the SHA-256 of the token
}

type remembered struct {
	confirmation *proof.Confirmation
	until        time.Time
	keys         *keySet // that the token was verified by; nil for introspection
}

// get returns what is known of a token at this time, by these keys.
func (m *memory) get(id [sha256.Size]byte, now time.Time, keys *keySet) *proof.Confirmation {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.young[id]
	if !ok {
		if r, ok = m.old[id]; ok {
			m.add(id, r)
		}
	}
	if !ok || r.keys != keys || !now.Before(r.until) {
		return nil
	}
	return r.confirmation
}

func (m *memory) put(id [sha256.Size]byte, r remembered) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.add(id, r)
}

func (m *memory) add(id [sha256.Size]byte, r remembered) {
	if _, ok := m.young[id]; m.young == nil || !ok && len(m.young) >= maxRemembered/2 {
		m.old, m.young = m.young, make(map[[sha256.Size]byte]remembered)
	}
	m.young[id] = r
}
