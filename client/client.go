// Package client binds login sessions to device keys and proves possession of
// them, for programs that talk HTTP to a server with a limpet.Guard, or to an
// hw-sign server that speaks the ecdh-p256 dialect.
//
//	keys := tpmkey.Open("")
//	jar, _ := cookiejar.New(nil)
//	c := &http.Client{Transport: client.New(keys).Transport(nil), Jar: jar}
//	resp, err := c.PostForm("https://app.example.com/login", form) // binds
//	resp, err = c.Get("https://app.example.com/me")                // proves
//
// A login request carries the public half of a device key made for it. The
// session token in the answer, a cookie or a JSON "token" or "access_token", or
// what the server says it has bound, is remembered by its SHA-256. Every later request to the same origin that
// carries the token, put there by a cookie jar or by the caller as
// "Authorization: Bearer", gets a proof. All other requests pass untouched.
//
// The device key, which may be slow, signs a login and then once per lease: it
// delegates to an ephemeral key in memory, which makes the proofs. The
// delegation rides on requests of the caller's, and is renewed in the background
// before the lease is over. Offers and proofs go to no other origin than that of
// the login, also across redirects.
//
// The protocol is HTTP message signatures (RFC 9421) unless [Client.Wire] says
// otherwise. A proof then covers method, target, session and body, the server's
// challenge where it has one and, where it asks for that, the TLS connection. If
// the answer to a login does not tell the server's key, the client asks for it
// at /.well-known/limpet; a server that does not tell it there either binds
// nothing, and the device key is deleted.
//
// Where the app replaces the token of a session after the login, in a cookie, and
// the server carries the binding over and says so, as limpet gateway does, the
// client goes on with the new one; not on the hw-sign wires, which cannot say it.
//
// For tokens of an OAuth authorization server there is [DPoP].
package client

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/proof"
)

// maxSessions is how many sessions a client keeps.
const maxSessions = 256

// ErrKeyGone means that a session's device key can never sign again, or was
// deleted by [Client.Forget]. That is normal once in a while; the answer is to
// log in again. The error wraps [hwkey.ErrLost] or [hwkey.ErrNotFound] if that
// is what the keystore said.
var ErrKeyGone = errors.New("the session's device key is gone, log in again")

// Client knows the login sessions of a program and the device keys they are
// bound to. It is safe for concurrent use; its fields are set before its first
// use and not changed after.
//
// It keeps 256 sessions. One more, by a login or [Client.Restore], and the one
// used least recently is forgotten and its device key deleted.
type Client struct {
	Keys hwkey.Keystore // where device keys are made and kept

	// DeviceKey is the algorithm of new device keys; default hwkey.ECDSAP256.
	DeviceKey hwkey.Algorithm

	// Ephemeral is how requests are proven: proof.HMACSHA256, the default, with
	// a key agreed with the server; or by a signature, proof.ECDSAP256 or
	// proof.Ed25519, which costs the server more, leaves it with nothing that
	// could make proofs, and cannot be bound to TLS connections.
	Ephemeral proof.Algorithm

	// Wire is the protocol of sessions that begin with a login; default
	// HTTPSig. Sessions that are restored stay on theirs.
	Wire Wire

	// IsLogin tells which requests are logins. By default they are those with
	// method POST and a path that ends in one of the elements login, log-in,
	// signin, sign-in, sign_in and session. Requests marked with [Login] are
	// logins in any case. A request that a redirect caused is one only if its
	// method and origin are those of the login it goes back to.
	IsLogin func(*http.Request) bool

	// BodyHash tells on hw-sign which requests are proven by the hash of their
	// body rather than a random value, if the body can be read twice. It is needed only to
	// spare routes with the body-hash policy a first refusal: without it the
	// client learns from the server's "body_mismatch" which ones they are.
	BodyHash func(*http.Request) bool

	// PlainHTTP allows sessions over http, where everybody on the way can read
	// and alter requests, to hosts other than loopback ones. Without it a login
	// there is an error.
	PlainHTTP bool

	mu       sync.RWMutex
	sessions []*session // oldest first
}

// New returns a client that makes its device keys in keys.
func New(keys hwkey.Keystore) *Client { return &Client{Keys: keys} }

// Transport returns a round-tripper that binds and proves, and sends requests
// with base; nil is [http.DefaultTransport]. All transports of a client share
// its sessions.
//
// Besides what base returns, its errors are a failing keystore, [ErrKeyGone],
// what the server says of its keys if it makes no sense, a body that cannot be
// covered, and the end of a request's context. What the server refuses is
// returned as its response; see [Reason].
//
// On HTTPSig a body is hashed before it is sent: by way of GetBody, or else in
// memory. One of more than 1 MiB without GetBody is an error.
//
// A refused request is sent again, at most twice and once for each reason, if
// the reason can be helped and its body can be read again (it has none, or
// GetBody, or is in memory): with a new ephemeral key or agreement if the server
// does not know this one; by the server's clock if this machine's is off by up
// to a day; with a new value if it was spent and the method is GET, HEAD or
// OPTIONS; on HTTPSig with the server's current challenge, and bound to its TLS
// connection; on hw-sign with the hash of the body. hw-sign servers that give no
// reason for a 401 may have forgotten the ephemeral key too: then a new one is
// tried, unless that did not help within the last minute. A login that a guard
// takes for a request of the session before is sent again without its token.
//
// To bind proofs to TLS connections (RFC 9266), once a server asks for that, the
// client learns them through [net/http/httptrace] and adds the proof only then.
// It needs a base that is an [http.Transport] or gives it the request as it is,
// not a copy. With another base, and with ephemeral keys that sign, the server's
// refusal is the answer.
func (c *Client) Transport(base http.RoundTripper) http.RoundTripper {
	if base == nil {
		base = http.DefaultTransport
	}
	return &transport{c, base}
}

// Session is what another process needs, besides the token, to carry on with a
// login session. It holds no secret.
type Session struct {
	Origin string   `json:"origin"`         // scheme://host, and port unless it is the scheme's default
	Tokens []string `json:"tokens"`         // [Hash] of the token, or of all that the login set
	Key    string   `json:"key"`            // the device key's ID in its keystore
	Wire   string   `json:"wire,omitempty"` // [Wire.String]; "" in sessions from before there was a choice
	ID     string   `json:"id,omitempty"`   // the session's at the server, like [Hash]; "" if not known, or the wire has none
}

// Sessions describes the sessions the client knows, the newest login first.
func (c *Client) Sessions() []Session {
	c.mu.RLock()
	defer c.mu.RUnlock()
	list := make([]Session, 0, len(c.sessions))
	for _, s := range slices.Backward(c.sessions) {
		list = append(list, s.describe())
	}
	return list
}

// SessionOf describes the session that a request to its origin belongs to, by the
// tokens it carries; ok is false if the client knows none.
func (c *Client) SessionOf(req *http.Request) (_ Session, ok bool) {
	s := c.find(originOf(req.URL), req)
	if s == nil {
		return Session{}, false
	}
	return s.describe(), true
}

// Restore makes a session known that [Client.Sessions] described in another
// process. The device key is loaded when it is first needed. A session with the
// same key is replaced.
func (c *Client) Restore(ctx context.Context, saved Session) error {
	u, err := url.Parse(saved.Origin)
	if err != nil || u.Host == "" || originOf(u) != saved.Origin {
		return fmt.Errorf("limpet: client: restore: %.300q is not an origin", saved.Origin)
	}
	if !c.mayBind(u) {
		return fmt.Errorf("limpet: client: restore: plain http to %s is not allowed", u.Hostname())
	}
	if saved.Key == "" || len(saved.Tokens) == 0 || len(saved.Tokens) > maxTokens {
		return errors.New("limpet: client: restore: no device key, or not 1 to 16 tokens")
	}
	on, ok := c.savedWire(saved.Wire)
	if !ok {
		return fmt.Errorf("limpet: client: restore: unknown wire %.20q", saved.Wire)
	}
	s := c.newSession(saved.Origin, saved.Key, on)
	var tokens []tokenHash
	for _, text := range saved.Tokens {
		hash, err := parseHash(text)
		if err != nil {
			return fmt.Errorf("limpet: client: restore: %w", err)
		}
		tokens = append(tokens, hash)
	}
	s.tokens.Store(&tokens)
	if w, ok := s.wire.(*httpsigWire); ok && saved.ID != "" {
		id, err := parseHash(saved.ID)
		if err != nil {
			return fmt.Errorf("limpet: client: restore: session ID: %w", err)
		}
		w.id = (*[sha256.Size]byte)(&id)
	}
	c.add(ctx, s)
	return nil
}

// Forget ends a session on this side and deletes its device key, which ends it
// for good. It works for sessions that were not restored too, by their Key. To
// delete a key that is not there is no error.
func (c *Client) Forget(ctx context.Context, which Session) error {
	if s := c.take(which.Key); s != nil {
		if err := s.end(ctx); err != nil {
			return fmt.Errorf("limpet: client: forget: %w", err)
		}
	}
	if err := c.Keys.Delete(ctx, which.Key); err != nil && !errors.Is(err, hwkey.ErrNotFound) {
		return fmt.Errorf("limpet: client: forget: %w", err)
	}
	return nil
}

// Close releases all device keys. They stay in their keystore, for
// [Client.Restore] in another process. The client then knows no sessions.
func (c *Client) Close() error {
	c.mu.Lock()
	sessions := c.sessions
	c.sessions = nil
	c.mu.Unlock()
	var errs []error
	for _, s := range sessions {
		errs = append(errs, s.end(context.Background()))
	}
	return errors.Join(errs...)
}

// LogValue says how many sessions there are and nothing else.
func (c *Client) LogValue() slog.Value {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return slog.GroupValue(slog.Int("sessions", len(c.sessions)))
}

// find returns the session that a request belongs to, nil if there is none. A
// known bearer token decides; else the session that most of the cookies are
// from, since a login may set some that others set as well ("lang=en"). Of
// equals it is the newest.
func (c *Client) find(origin string, req *http.Request) *session {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var tokens []sentToken
	var best *session
	most := 0
	for _, s := range slices.Backward(c.sessions) {
		if s.origin != origin {
			continue
		}
		if tokens == nil {
			if tokens = tokensOf(req); len(tokens) == 0 {
				return nil
			}
		}
		sum, known := 0, s.known()
		for _, t := range tokens {
			if slices.Contains(known, t.hash) {
				sum += t.weight
			}
		}
		if sum > most {
			best, most = s, sum
		}
	}
	if best != nil {
		best.used.Store(time.Now().UnixNano())
	}
	return best
}

// add makes a session known, as the newest.
func (c *Client) add(ctx context.Context, s *session) {
	if old := c.take(s.keyID); old != nil {
		old.end(ctx) // the key itself stays, it is the new one's
	}
	s.used.Store(time.Now().UnixNano())
	c.mu.Lock()
	var oldest *session
	if len(c.sessions) == maxSessions {
		oldest = slices.MinFunc(c.sessions, func(a, b *session) int {
			return cmp.Compare(a.used.Load(), b.used.Load())
		})
		c.sessions = slices.DeleteFunc(c.sessions, func(s *session) bool { return s == oldest })
	}
	c.sessions = append(c.sessions, s)
	c.mu.Unlock()
	if oldest != nil {
		c.Forget(ctx, oldest.describe())
	}
}

// take removes the session with this device key and returns it.
func (c *Client) take(key string) *session {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.sessions, func(s *session) bool { return s.keyID == key })
	if i < 0 {
		return nil
	}
	s := c.sessions[i]
	c.sessions = slices.Delete(c.sessions, i, i+1)
	return s
}
