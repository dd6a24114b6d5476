package client

import (
	"net/http"
	"sync/atomic"
	"time"

	"github.com/limpet-auth/limpet/proof"
)

// maxClock is how far a server's clock may be from ours.
const maxClock = 24 * time.Hour

// site is what was learned about an origin's server.
type site struct {
	origin  string
	clock   atomic.Int64 // how far its clock is ahead of ours, in nanoseconds
	prehash atomic.Bool  // hw-sign: it verifies Ed25519 over SHA-256 of the message

	// These are httpsig's.
	server    atomic.Pointer[proof.Server] // its key and lease; nil until they are known
	token     atomic.Pointer[tokenPlace]   // where it looks for session tokens; nil until that is known
	challenge atomic.Pointer[string]       // that proofs cover from now on; nil if none
	channel   atomic.Bool                  // proofs are bound to their TLS connection from now on
	copied    atomic.Bool                  // they cannot be: the base sends a copy of what it is given
	asking    chan struct{}                // holds a value while it is asked for these
	asked     time.Time                    // when that was, and its outcome; guarded by asking
	askedErr  error
}

func newSite(origin string) *site { return &site{origin: origin, asking: make(chan struct{}, 1)} }

// now returns the server's time.
func (s *site) now() time.Time { return time.Now().Add(time.Duration(s.clock.Load())) }

// adjust takes the server's time from a Date header. Whoever can set that can
// have proofs made that hold up to a day from now, if the lease does as well.
// But he is the server, or on the way to it over plain http, where he can have
// anything.
func (s *site) adjust(date string) bool {
	t, err := http.ParseTime(date)
	if err != nil {
		return false
	}
	ahead := time.Until(t)
	if ahead.Abs() > maxClock {
		return false
	}
	s.clock.Store(int64(ahead))
	return true
}

// harmless reports whether a request can be sent again although it may have
// been admitted before: net/http, or a proxy, may have sent it twice.
func harmless(req *http.Request) bool {
	switch req.Method {
	case "", http.MethodGet, http.MethodHead, http.MethodOptions:
		return true
	}
	return false
}
