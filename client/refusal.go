package client

import (
	"net/http"
	"sync/atomic"
	"time"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/hwsign"
)

const (
	maxRoutes = 256            // routes of a session known to want the hash of the body
	maxClock  = 24 * time.Hour // how far a server's clock may be from ours
)

// site is what was learned about an origin's server.
type site struct {
	clock   atomic.Int64 // how far its clock is ahead of ours, in nanoseconds
	prehash atomic.Bool  // it verifies Ed25519 over SHA-256 of the message
}

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

// remedy changes what the reason of a 401 asks to be changed, and reports
// whether another try can do better.
func (s *session) remedy(reason proof.Reason, out *try, resp *http.Response) bool {
	switch reason {
	case proof.KeyUnknown:
		s.drop(out)
		return true
	case proof.ClockSkew:
		return s.site.adjust(resp.Header.Get("Date"))
	case proof.BodyDiffer:
		if !out.hashed {
			s.rememberHash(out.Request)
			return true
		}
	case proof.NonceSpent:
		// net/http itself, or a proxy, sent the request twice. The first may
		// have been admitted, so only what changes nothing is sent again.
		return out.Method == "" || out.Method == http.MethodGet || out.Method == http.MethodHead || out.Method == http.MethodOptions
	case "":
		return s.guess(out)
	}
	return false
}

// drop gives up the key that a request was proven by.
func (s *session) drop(out *try) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if out.lease != nil && s.lease == out.lease {
		s.lease = nil
	}
	if out.intro != nil && s.delegation == out.intro.delegation {
		s.delegation = nil
	}
}

// guess is the remedy for a 401 without a reason. hw-sign servers give none,
// and may have forgotten the ephemeral key, or verify Ed25519 in another form.
// But it may be the app's own as well. Each guess costs the device key a
// signature, so after a wrong one there is none for a minute.
func (s *session) guess(out *try) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.futile) < time.Minute {
		return false
	}
	if out.lease != nil {
		if s.lease == out.lease {
			s.lease = nil
		}
		if !rewindable(out.Request) {
			s.futile = time.Now() // nobody will know whether it was right
		}
		return true
	}
	ed25519 := out.intro.typeName == hwsign.TypeEd25519 || s.device != nil && s.device.Info().Algorithm == hwkey.Ed25519
	if out.answered || !ed25519 || !rewindable(out.Request) {
		return false
	}
	s.site.prehash.Store(!out.intro.prehash)
	return true
}

// misguessed notes that a guess did not help, and what prehash was before it.
func (s *session) misguessed(prehash bool) {
	s.site.prehash.Store(prehash)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.futile = time.Now()
}

// wantsHash reports whether the proof of a request is to be for the hash of its
// body.
func (s *session) wantsHash(req *http.Request) bool {
	if s.client.BodyHash != nil && s.client.BodyHash(req) {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hashed[route(req)]
}

func (s *session) rememberHash(req *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hashed == nil {
		s.hashed = make(map[string]bool)
	}
	for other := range s.hashed { // any one will do: map order is random
		if len(s.hashed) < maxRoutes {
			break
		}
		delete(s.hashed, other)
	}
	s.hashed[route(req)] = true
}

func route(req *http.Request) string { return req.Method + " " + req.URL.EscapedPath() }
