package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/proof"
)

// session is a login session and the keys that prove it. The device key signs
// delegations to ephemeral keys, in a goroutine of its own; what is made of
// them is the wire's.
type session struct {
	client *Client
	origin string
	keyID  string
	tokens atomic.Pointer[[]tokenHash]
	site   *site        // shared by the origin's sessions
	used   atomic.Int64 // when, in unix nanoseconds
	wire   wire         // how it is proven

	mu      sync.Mutex // also guards what the wire keeps
	device  hwkey.Key  // nil until a restored session needs it
	signing *signing   // the delegation in the making, or how that failed
	ended   bool
}

// wire is a protocol as one session speaks it.
type wire interface {
	// digests reports whether the wire covers bodies by their digest.
	digests() bool

	// offer adds the session's new device key to a login request. old is the
	// session that the request belongs to already, nil if there is none. It
	// returns nil if there is nothing to be learned from the answer but tokens.
	offer(out *try, old *session) (sent, error)

	// bound reads the answer to a login, and returns which of the tokens in it are
	// the session's: none if the server has not bound it, all if it cannot be told.
	bound(out *try, resp *http.Response, tokens []tokenHash) []tokenHash

	// prove adds a proof to a request.
	prove(out *try) (sent, error)

	// describe adds what a session in another process must know. s.mu is held,
	// as it is for end, which forgets all ephemeral keys.
	describe(saved *Session)
	end()
}

// sent is a proof on its way.
type sent interface {
	// answered takes what the server says of the wire, in an answer or by not
	// answering. It returns err, or its own, and then has closed the body.
	answered(resp *http.Response, err error, start time.Time) error

	// remedy changes what the reason of a 401 asks to be changed, and reports
	// whether another try can do better. before is the proof that was refused
	// for the same reason before, nil if none was: then there is no other try.
	remedy(reason proof.Reason, resp *http.Response, before sent) bool
}

// signing is one use of the device key.
type signing struct {
	done   chan struct{} // closed when it is over
	err    error         // valid then
	failed time.Time
}

func (c *Client) newSession(origin, keyID string, on Wire) *session {
	s := &session{client: c, origin: origin, keyID: keyID, site: c.siteOf(origin)}
	if names := on.names(); names != nil {
		s.wire = &hwsignWire{session: s, on: on, names: names}
	} else {
		s.wire = &httpsigWire{session: s}
	}
	return s
}

// siteOf returns what the sessions of an origin know of its server.
func (c *Client) siteOf(origin string) *site {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, s := range c.sessions {
		if s.origin == origin {
			return s.site
		}
	}
	return newSite(origin)
}

// known returns the tokens that are the session's.
func (s *session) known() []tokenHash {
	if tokens := s.tokens.Load(); tokens != nil {
		return *tokens
	}
	return nil
}

// learn adds a token that the app goes on with. Of too many the oldest goes.
func (s *session) learn(token tokenHash) {
	for {
		before := s.tokens.Load()
		known := s.known()
		if slices.Contains(known, token) {
			return
		}
		after := append(slices.Clone(known[max(0, len(known)+1-maxTokens):]), token)
		if s.tokens.CompareAndSwap(before, &after) {
			return
		}
	}
}

func (s *session) describe() Session {
	d := Session{Origin: s.origin, Key: s.keyID}
	for _, t := range s.known() {
		d.Tokens = append(d.Tokens, t.String())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wire.describe(&d)
	return d
}

// mayStart reports whether the device key is free to sign: not at work, and not
// failing a moment ago. s.mu is held.
func (s *session) mayStart() bool {
	return s.signing == nil || s.signing.err != nil && time.Since(s.signing.failed) > time.Second
}

// start has the device key do its work. Nobody can interrupt the hardware, so
// requests whose context ends leave it to those that follow. s.mu is held, and
// is again when keep is called.
func (s *session) start(work func(device hwkey.Key) (keep func(), err error)) {
	job := &signing{done: make(chan struct{})}
	s.signing = job
	device := s.device
	go func() {
		defer close(job.done)
		var err error
		if device == nil {
			device, err = s.client.Keys.Load(context.Background(), s.keyID)
		}
		var keep func()
		if err == nil {
			keep, err = work(device)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.device = device
		if err != nil {
			job.err, job.failed = s.keyError(err), time.Now()
			return
		}
		s.signing = nil
		if !s.ended {
			keep()
		}
	}()
}

func (s *session) keyError(err error) error {
	if errors.Is(err, hwkey.ErrLost) || errors.Is(err, hwkey.ErrNotFound) {
		return fmt.Errorf("limpet: client: %s: %w: %w", s.origin, ErrKeyGone, err)
	}
	return fmt.Errorf("limpet: client: %s: device key: %w", s.origin, err)
}

// gone is the error of a session that has ended.
func (s *session) gone() error { return fmt.Errorf("limpet: client: %s: %w", s.origin, ErrKeyGone) }

// wait waits for the device key, and returns its error.
func (s *session) wait(ctx context.Context, job *signing) error {
	select {
	case <-ctx.Done():
		return s.waited(ctx)
	case <-job.done:
		return job.err
	}
}

func (s *session) waited(ctx context.Context) error {
	return fmt.Errorf("limpet: client: %s: waiting for an ephemeral key: %w", s.origin, ctx.Err())
}

// end releases the device key.
func (s *session) end(ctx context.Context) error {
	s.mu.Lock()
	s.ended = true
	s.wire.end()
	job := s.signing
	s.mu.Unlock()
	if job != nil {
		select {
		case <-job.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.device == nil {
		return nil
	}
	device := s.device
	s.device = nil
	return device.Close()
}

// term is how long a key is good for.
type term struct {
	start time.Time     // by the clock of the wall and of the process
	life  time.Duration // from then on
}

const (
	defaultLife = 15 * time.Minute // of a lease, where the server does not say
	maxLife     = 24 * time.Hour
)

// over reports whether n fifths of the term have passed. A computer's sleep
// counts, which the process's clock does not see; setting the clock back does
// not lengthen the term, which the wall's would.
func (t *term) over(now time.Time, fifths int) bool {
	age := max(now.Sub(t.start), now.Round(0).Sub(t.start.Round(0)))
	return age >= t.life/5*time.Duration(fifths)
}
