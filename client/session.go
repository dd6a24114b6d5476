package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/limpet-auth/limpet/hwkey"
)

// patience is how long requests wait for another's introduction to be answered
// before the next of them introduces the same key. That one may be a long poll.
const patience = 3 * time.Second

// session is a login session and the keys that prove it. A lease begins in two
// steps: the device key signs a delegation, in a goroutine of its own; then one
// request introduces it to the server, while the others wait or, if there is a
// lease still, use that.
type session struct {
	client *Client
	origin string
	keyID  string
	tokens []tokenHash
	site   *site        // shared by the origin's sessions
	used   atomic.Int64 // when, in unix nanoseconds

	mu          sync.Mutex
	device      hwkey.Key       // nil until a restored session needs it
	lease       *lease          // nil before the first and after a refusal
	delegation  *delegation     // signed, and not answered; nil if there is none
	signing     *signing        // the delegation in the making, or how that failed
	introducing *introduction   // on its way; nil if there is none
	mute        bool            // the last introduction got no answer: nobody waits for the next
	hashed      map[string]bool // routes that want the hash of the body
	futile      time.Time       // when a guess at a 401's reason last failed
	ended       bool
}

// signing is one use of the device key.
type signing struct {
	done   chan struct{} // closed when it is over
	err    error         // valid then
	failed time.Time
}

// introduction is a request that introduces an ephemeral key.
type introduction struct {
	*delegation
	done chan struct{} // closed when the server has answered, or will not
}

func (c *Client) newSession(origin, keyID string) *session {
	return &session{client: c, origin: origin, keyID: keyID, site: new(site)}
}

func (s *session) describe() Session {
	d := Session{Origin: s.origin, Key: s.keyID}
	for _, t := range s.tokens {
		d.Tokens = append(d.Tokens, t.String())
	}
	return d
}

// key returns what a request proves itself with: the lease, or a key that it
// introduces, which the caller then settles.
func (s *session) key(ctx context.Context) (*lease, *introduction, error) {
	for {
		s.mu.Lock()
		now := time.Now()
		live := s.lease != nil && !s.lease.over(now, 5)
		if live && !s.lease.over(now, 4) {
			defer s.mu.Unlock()
			return s.lease, nil, nil
		}
		if s.ended {
			s.mu.Unlock()
			return nil, nil, fmt.Errorf("limpet: client: %s: %w", s.origin, ErrKeyGone)
		}
		if d := s.delegation; d != nil && d.prehash != s.site.prehash.Load() {
			s.delegation = nil
		}
		if s.delegation != nil && (s.introducing == nil || s.mute) {
			defer s.mu.Unlock()
			s.introducing = &introduction{s.delegation, make(chan struct{})}
			return nil, s.introducing, nil
		}
		if s.delegation == nil && (s.signing == nil || s.signing.err != nil && now.Sub(s.signing.failed) > time.Second) {
			s.sign()
		}
		if live {
			defer s.mu.Unlock()
			return s.lease, nil, nil
		}
		signing, introducing := s.signing, s.introducing
		s.mu.Unlock()

		if signing != nil {
			select {
			case <-ctx.Done():
				return nil, nil, s.waited(ctx)
			case <-signing.done:
				if signing.err != nil {
					return nil, nil, signing.err
				}
			}
			continue
		}
		timer := time.NewTimer(patience)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, nil, s.waited(ctx)
		case <-introducing.done:
			timer.Stop()
		case <-timer.C:
			s.mu.Lock()
			if s.introducing == introducing {
				s.introducing = nil
			}
			s.mu.Unlock()
		}
	}
}

func (s *session) waited(ctx context.Context) error {
	return fmt.Errorf("limpet: client: %s: waiting for an ephemeral key: %w", s.origin, ctx.Err())
}

// sign has the device key sign a new delegation. Nobody can interrupt the
// hardware, so requests whose context ends leave it to those that follow. s.mu
// is held.
func (s *session) sign() {
	job := &signing{done: make(chan struct{})}
	s.signing = job
	device, prehash := s.device, s.site.prehash.Load()
	go func() {
		defer close(job.done)
		d, device, err := s.delegate(device, prehash)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.device = device
		if err != nil {
			job.err, job.failed = err, time.Now()
			return
		}
		s.signing, s.delegation = nil, d
	}()
}

func (s *session) delegate(device hwkey.Key, prehash bool) (*delegation, hwkey.Key, error) {
	var err error
	if device == nil {
		device, err = s.client.Keys.Load(context.Background(), s.keyID)
	}
	var d *delegation
	if err == nil {
		d, err = delegate(device, s.client.Ephemeral, prehash)
	}
	switch {
	case err == nil:
		return d, device, nil
	case errors.Is(err, hwkey.ErrLost), errors.Is(err, hwkey.ErrNotFound):
		return nil, device, fmt.Errorf("limpet: client: %s: %w: %w", s.origin, ErrKeyGone, err)
	}
	return nil, device, fmt.Errorf("limpet: client: %s: device key: %w", s.origin, err)
}

// settle ends an introduction: with the lease it got, or nil. The delegation is
// kept for the next request then, even if the server has seen it: introduced
// again it is the same key.
func (s *session) settle(in *introduction, l *lease, mute bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(in.done)
	if s.introducing == in {
		s.introducing = nil
	}
	s.mute = mute
	if l == nil || s.ended {
		return
	}
	if s.delegation == in.delegation {
		s.delegation = nil
	}
	// A late answer to an early introduction does not replace a newer lease.
	if s.lease == nil || l.start.After(s.lease.start) {
		s.lease = l
	}
}

// end releases the device key.
func (s *session) end(ctx context.Context) error {
	s.mu.Lock()
	s.ended, s.lease, s.delegation = true, nil, nil
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
