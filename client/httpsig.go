package client

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/internal/outgoing"
	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/httpsig"
)

// httpsigWire is a session on Limpet's own wire. The device key signs one
// delegation a lease, and the key of requests is agreed with the server's key,
// which is known beforehand: no answer is awaited. Requests carry the delegation
// until one that did was admitted.
type httpsigWire struct {
	*session

	// Guarded by session.mu.
	id     *[sha256.Size]byte // of the session, as the server reads it; nil until it is known
	cookie string             // the name of the token, once the app has replaced it
	grant  *grant             // nil before the first and after a refusal
	agreed *agreement         // the grant with the server's key; nil before the first

	// anonymous is for logins that the old session keeps from being read.
	anonymous bool
}

// limpetFields are those that only the client itself sets.
var limpetFields = []string{
	httpsig.DeviceField, httpsig.DelegationField, httpsig.SessionField, httpsig.ChallengeField, httpsig.ChannelField,
}

func (w *httpsigWire) digests() bool { return true }

func (w *httpsigWire) describe(saved *Session) {
	saved.Wire = HTTPSig.String()
	if w.id != nil {
		saved.ID = tokenHash(*w.id).String()
	}
}

func (w *httpsigWire) end() { w.grant, w.agreed = nil, nil }

// offer adds the device key to a login, and signs the request with it.
func (w *httpsigWire) offer(out *try, old *session) (sent, error) {
	alg, _ := deviceAlgorithm(w.device.Info().Algorithm)
	public, err := proof.NewPublicKey(alg, w.device.Public())
	if err != nil {
		return nil, fmt.Errorf("limpet: client: device key: %w", err)
	}
	device, err := httpsig.FormatDevice(public, proof.Level(w.device.Info().Level))
	if err != nil {
		return nil, fmt.Errorf("limpet: client: device key: %w", err)
	}
	p := &httpsigOffer{wire: w, old: old}
	if old != nil && w.anonymous {
		dropTokens(out.Header, old.known())
	}
	p.challenge = w.begin(out)
	out.Header[httpsig.DeviceField] = []string{device}
	if alg == proof.RSAPSS {
		alg = 0 // PSS with SHA-256 has no name there
	}
	err = sign(outgoing.Message(out.Request, out.digest), w.site.now(), keyID(public), alg, func(base []byte) ([]byte, error) { return signExact(w.device, base) })
	if err != nil {
		return nil, fmt.Errorf("limpet: client: log in: %w", err)
	}
	return p, nil
}

// begin sets the fields that all signed requests have, and returns the
// challenge that is covered.
func (w *httpsigWire) begin(out *try) (challenge string) {
	for _, name := range limpetFields {
		delete(out.Header, name)
	}
	if out.digest != nil {
		out.Header[httpsig.DigestField] = []string{httpsig.FormatDigest(*out.digest)}
	}
	if c := w.site.challenge.Load(); c != nil {
		challenge = *c
		out.Header[httpsig.ChallengeField] = []string{challenge}
	}
	return challenge
}

// bound reads what the server says of itself and the session. A proxy may have
// dropped that, then the server is asked. What else a login sets, others may have
// as well ("lang=en"): their requests would pass for the session's.
func (w *httpsigWire) bound(out *try, resp *http.Response, tokens []tokenHash) []tokenHash {
	if server, id := told(resp); id != nil {
		w.site.learn(server)
		w.mu.Lock()
		w.id = id
		w.mu.Unlock()
		if slices.Contains(tokens, tokenHash(*id)) {
			return []tokenHash{*id}
		}
		for _, c := range resp.Cookies() {
			if hashOf(plainCookie(c.Value)) == *id {
				return []tokenHash{hashOf(c.Value)}
			}
		}
		// The token is where nobody looks for it: in "data.token" of the answer.
		return append(tokens[:min(len(tokens), maxTokens-1)], *id)
	} else if server != nil {
		w.site.learn(server)
	}
	if len(tokens) == 0 {
		return nil
	}
	err := w.site.ask(out)
	if errors.Is(err, errNoLimpet) && w.site.server.Load() == nil {
		return nil
	}
	if place := w.site.token.Load(); err == nil && place != nil && place.cookie != "" {
		return slices.DeleteFunc(tokens, func(token tokenHash) bool {
			return !slices.ContainsFunc(resp.Cookies(), func(c *http.Cookie) bool {
				return strings.EqualFold(c.Name, place.cookie) && hashOf(c.Value) == token
			})
		})
	}
	return tokens // without an answer, which is no answer of this kind, nothing is given up
}

// httpsigOffer is the device key in one sending of a login.
type httpsigOffer struct {
	wire      *httpsigWire
	old       *session
	challenge string
}

func (p *httpsigOffer) answered(resp *http.Response, err error, _ time.Time) error {
	if err == nil {
		p.wire.site.read(resp)
	}
	return err
}

func (p *httpsigOffer) remedy(reason proof.Reason, resp *http.Response, _ sent) bool {
	switch reason {
	case proof.ClockSkew:
		return p.wire.site.adjust(resp.Header.Get("Date"))
	case proof.Stale:
		return p.wire.site.moved(p.challenge)
	case proof.KeyUnknown, proof.Required, proof.Malformed, proof.Invalid, proof.SessionEnded, proof.NoChannel:
		// The guard of the login's route took it for a request of the session
		// whose token it carries, which the new key cannot prove.
		if p.old != nil && !p.wire.anonymous {
			p.wire.anonymous = true
			return true
		}
	}
	return false
}

// prove adds the proof to a request.
func (w *httpsigWire) prove(out *try) (sent, error) {
	m := outgoing.Message(out.Request, out.digest)
	m.Session, m.InCookie = w.credential(out)
	a, err := w.key(out, m)
	if err != nil {
		return nil, err
	}
	p := &httpsigProof{wire: w, req: out.Request, agreement: a, delegated: !a.known.Load()}
	p.challenge = w.begin(out)
	if m.InCookie {
		out.Header[httpsig.SessionField] = []string{httpsig.FormatSession(m.Session)}
	}
	if p.delegated {
		out.Header[httpsig.DelegationField] = []string{a.delegation}
	}
	if a.mac != nil && m.Scheme == "https" && w.site.channel.Load() {
		p.channel = true
		out.Header[httpsig.ChannelField] = []string{httpsig.Channel}
		out.channel = (&channelSigner{site: w.site, agreement: a, message: m}).sign
		return p, nil
	}
	if err := sign(m, w.site.now(), a.keyID, a.Algorithm, a.sign); err != nil {
		return nil, fmt.Errorf("limpet: client: %s: %w", w.origin, err)
	}
	return p, nil
}

// sign signs a request.
func sign(m *proof.Message, now time.Time, key string, alg proof.Algorithm, by func(base []byte) ([]byte, error)) error {
	var nonce [16]byte
	rand.Read(nonce[:]) // never fails
	return httpsig.Sign(m, &httpsig.Signing{
		KeyID:     key,
		Algorithm: alg,
		Created:   now,
		Nonce:     base64.RawURLEncoding.EncodeToString(nonce[:]),
	}, by)
}

// keyID names a key in signatures.
func keyID(key *proof.PublicKey) string {
	sum := key.Thumbprint()
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// credential returns the ID of the session, and whether the request carries its
// token in a cookie.
func (w *httpsigWire) credential(out *try) (id [sha256.Size]byte, inCookie bool) {
	w.mu.Lock()
	known, cookie := w.id, w.cookie
	w.mu.Unlock()
	if cookie != "" {
		// While the app replaces the token, requests are out with each of them.
		if c, err := out.Cookie(cookie); err == nil {
			return hashOf(plainCookie(c.Value)), true
		}
	}
	bearer, isBearer := bearerToken(out.Request)
	if known != nil {
		if !isBearer || hashOf(bearer) != *known {
			return *known, true
		}
		if !slices.ContainsFunc(out.Cookies(), func(c *http.Cookie) bool { return hashOf(c.Value) == *known }) {
			return *known, false
		}
	}
	w.site.describe(out, true) // if it does not say, the likely is assumed
	place := w.site.token.Load()
	if isBearer && (place == nil || place.cookie == "") {
		return hashOf(bearer), false
	}
	for _, c := range out.Cookies() {
		if place != nil && strings.EqualFold(c.Name, place.cookie) || place == nil && slices.Contains(w.known(), hashOf(c.Value)) {
			return hashOf(plainCookie(c.Value)), true
		}
	}
	return hashOf(bearer), !isBearer
}

// httpsigProof is the proof of one sending.
type httpsigProof struct {
	wire      *httpsigWire
	req       *http.Request
	agreement *agreement
	delegated bool   // it carries the delegation
	challenge string // that it covers, "" if none
	channel   bool   // it is bound to its TLS connection
}

func (p *httpsigProof) answered(resp *http.Response, err error, _ time.Time) error {
	if err != nil {
		return err
	}
	p.wire.site.read(resp)
	p.wire.follow(resp)
	// What failed on the way or in the guard's store says nothing of the key.
	if p.delegated && resp.StatusCode != http.StatusUnauthorized && resp.StatusCode < 500 {
		p.agreement.known.Store(true)
	}
	return nil
}

// told returns what an answer says of the server, and the session that it has
// bound; nil for what it does not say.
func told(resp *http.Response) (server *proof.Server, session *[sha256.Size]byte) {
	text, err := header(resp.Header, httpsig.KeyField)
	if err != nil || text == "" {
		return nil, nil
	}
	if server, session, err = httpsig.ParseServer(text); err != nil {
		return nil, nil
	}
	return server, session
}

// follow goes on with the token that an answer sets, if the server says that it
// is the session's from now on.
func (w *httpsigWire) follow(resp *http.Response) {
	_, id := told(resp)
	if id == nil {
		return
	}
	for _, c := range resp.Cookies() {
		if hashOf(plainCookie(c.Value)) == *id {
			w.learn(hashOf(c.Value))
			w.mu.Lock()
			w.id, w.cookie = id, c.Name
			w.mu.Unlock()
			return
		}
	}
}

func (p *httpsigProof) remedy(reason proof.Reason, resp *http.Response, _ sent) bool {
	site := p.wire.site
	switch reason {
	case proof.KeyUnknown:
		p.unknown(resp)
		return true
	case proof.ClockSkew:
		if !site.adjust(resp.Header.Get("Date")) {
			return false
		}
		if now := site.now(); p.agreement.Scope.NotBefore.After(now) || !now.Before(p.agreement.Scope.Expires) {
			p.wire.drop(p.agreement.grant)
		}
		return true
	case proof.Stale:
		return site.moved(p.challenge)
	case proof.NoChannel:
		if p.agreement.mac == nil || p.channel || site.copied.Load() || !strings.EqualFold(p.req.URL.Scheme, "https") {
			return false
		}
		site.channel.Store(true)
		return true
	case proof.Required:
		if !p.channel {
			return false
		}
		// What is added once the connection is known did not arrive. Routes that
		// want no channel are to work nevertheless.
		site.copied.Store(true)
		site.channel.Store(false)
		return true
	case proof.Invalid:
		return p.outdated()
	case proof.NonceSpent:
		return harmless(p.req)
	}
	return false
}

// unknown does what can be done for a server that does not know the ephemeral
// key. It costs the device key a signature only if nothing else is left.
func (p *httpsigProof) unknown(resp *http.Response) {
	w, a := p.wire, p.agreement
	a.known.Store(false)
	if server := w.site.server.Load(); a.mac != nil && server != nil && !a.with(server) {
		return // the next request agrees with the server's new key
	}
	now := w.site.now()
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		now = date
	}
	if p.delegated || !now.Before(a.Scope.Expires) {
		w.drop(a.grant)
	}
}

// outdated reports whether a proof may be invalid because client and server
// have agreed more than one key for the grant, and does what helps.
func (p *httpsigProof) outdated() bool {
	w, a := p.wire, p.agreement
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.agreed != a {
		return true // the server knows the newer one
	}
	if a.anew && w.grant == a.grant {
		w.grant = nil // it knows an older one, and will until the lease is over
		return true
	}
	return false
}

func (w *httpsigWire) drop(g *grant) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.grant == g {
		w.grant = nil
	}
}

// key returns the key that a request is proven with.
func (w *httpsigWire) key(out *try, m *proof.Message) (*agreement, error) {
	w.mu.Lock()
	a := w.agreed
	if a != nil && a.grant == w.grant && a.known.Load() && a.fits(m) && !a.over(time.Now(), 4) {
		w.mu.Unlock()
		return a, nil
	}
	w.mu.Unlock()

	agrees := w.client.Ephemeral == 0 || w.client.Ephemeral == proof.HMACSHA256
	server, err := w.site.describe(out, false)
	if err != nil && agrees {
		return nil, fmt.Errorf("limpet: client: %s: the server's key: %w", w.origin, err)
	}
	lease := defaultLife
	if server != nil {
		lease = server.Lease
	}
	g, err := w.granted(out.Context(), m, lease)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	a = w.agreed
	before := a != nil && a.grant == g
	if before && (!agrees || a.known.Load() || a.with(server)) {
		return a, nil // a key that the server knows is good also when it takes others by now
	}
	var key *proof.PublicKey
	if agrees {
		key = server.Key
	}
	if a, err = g.agreeWith(key); err != nil {
		return nil, fmt.Errorf("limpet: client: %s: key agreement: %w", w.origin, err)
	}
	a.anew = before
	if !w.ended {
		w.agreed = a
	}
	return a, nil
}

// granted returns the current grant for requests like m. It has the next one
// made in time, and waits only if there is none.
func (w *httpsigWire) granted(ctx context.Context, m *proof.Message, lease time.Duration) (*grant, error) {
	for late, turn := 0, 0; late < maxLate && turn < maxTurns; turn++ {
		w.mu.Lock()
		now := time.Now()
		live := w.grant != nil && w.grant.fits(m) && !w.grant.over(now, 5)
		if turn > 0 && (w.grant == nil || w.grant.fits(m)) {
			late++
		}
		if live && !w.grant.over(now, 4) {
			defer w.mu.Unlock()
			return w.grant, nil
		}
		if w.ended {
			w.mu.Unlock()
			return nil, w.gone()
		}
		if w.mayStart() {
			w.startGrant(m, lease)
		}
		if live {
			defer w.mu.Unlock()
			return w.grant, nil
		}
		signing := w.signing
		w.mu.Unlock()
		if err := w.wait(ctx, signing); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("limpet: client: %s: the device key takes longer to sign than the server's lease of %v lasts", w.origin, lease)
}

// A request waits for a few delegations that come too late, and for more that are
// for others: for another host or, while an app replaces its token, another
// session ID.
const (
	maxLate  = 2
	maxTurns = 32
)

// startGrant has the device key delegate to a new ephemeral key. w.mu is held.
func (w *httpsigWire) startGrant(m *proof.Message, lease time.Duration) {
	scope := proof.Scope{Session: m.Session, Audience: m.Authority}
	w.start(func(device hwkey.Key) (func(), error) {
		g, err := newGrant(device, w.client.Ephemeral, scope, w.site.now(), lease)
		return func() { w.grant = g }, err
	})
}
