package limpet

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/limpet-auth/limpet/internal/incoming"
	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/dbsc"
)

const (
	// offerLife is how long after its login a browser may register a key.
	offerLife = 5 * time.Minute

	// challengeLife is how long a browser may keep the challenge of its next
	// refresh: that of the cookie and as much again, twice. One that comes later
	// gets a new challenge and comes again.
	challengeLife = 3 * cookieLife

	// sameAnswer is how long a JWT that was used gets its answer again. Browsers
	// send one again if the answer was lost.
	sameAnswer = 10 * time.Second

	// grace is how long after its registration a session is admitted as it was
	// before: requests are on their way that were sent before the browser had the
	// bound cookie.
	grace = 10 * time.Second
)

// Causes of [Ended].
const (
	causeUnknown = "unknown"     // no such session, or it was never bound
	causeEnded   = "ended"       // it was revoked, or is over
	causeLogin   = "other-login" // the browser has logged in again since
)

// registration is the key that a browser registered for a session that was bound
// without one. It is a record of its own, added once and never changed: so it
// cannot bring back a session that is revoked at the same time.
type registration struct {
	at  time.Time
	key *proof.PublicKey
}

// encode writes the record: version, algorithm, time, key.
func (r *registration) encode() []byte {
	out := appendTime([]byte{recordVersion, byte(r.key.Algorithm())}, r.at)
	return appendBytes(out, r.key.Bytes())
}

func decodeRegistration(rec []byte) (*registration, error) {
	r := reader{rest: rec}
	version, alg := r.byte(), proof.Algorithm(r.byte())
	reg := &registration{at: r.time()}
	key := r.bytes()
	if r.failed || len(r.rest) > 0 || version != recordVersion {
		return nil, errRecord
	}
	var err error
	if reg.key, err = proof.ParsePublicKey(alg, key); err != nil {
		return nil, errRecord
	}
	return reg, nil
}

// A challenge is the time it was made at, random bytes and an HMAC over those, what
// it is for and the session's root. So it needs no memory until it is used.
const (
	challengeHead = 8 + 12
	challengeSize = challengeHead + 32
)

type challengeFor byte

const (
	forRegistration challengeFor = 1
	forRefresh      challengeFor = 2
)

func (b *browsers) challenge(use challengeFor, root ID, now time.Time) string {
	raw := binary.BigEndian.AppendUint64(make([]byte, 0, challengeSize+1+len(root)), uint64(now.Unix()))
	raw = raw[:challengeHead]
	rand.Read(raw[8:]) // never fails
	return base64.RawURLEncoding.EncodeToString(b.challenges.Append(raw, append(append(raw, byte(use)), root[:]...)))
}

// covers returns why a challenge is not one of this session's for this use, or no
// longer; nil if it is. It comes before the signature, which costs more.
func (b *browsers) covers(challenge string, use challengeFor, root ID, now time.Time) error {
	raw, err := cookieEncoding.DecodeString(challenge)
	if err != nil || len(raw) != challengeSize {
		return &proof.Refusal{Reason: proof.Stale, Detail: "a challenge that is none of ours"}
	}
	signed := append(append(append(make([]byte, 0, challengeSize), raw[:challengeHead]...), byte(use)), root[:]...)
	if !b.challenges.Verify(signed, raw[challengeHead:]) {
		return &proof.Refusal{Reason: proof.Stale, Detail: "a challenge for another session or use"}
	}
	life := challengeLife
	if use == forRegistration {
		life = offerLife
	}
	if age := now.Sub(time.Unix(int64(binary.BigEndian.Uint64(raw)), 0)); age >= life || age < -skew {
		return &proof.Refusal{Reason: proof.Stale, Detail: "a challenge that is over"}
	}
	return nil
}

// offers reports whether a login is that of a browser which could keep a key for
// it. Browsers say where a request comes from to https and localhost only, and
// nobody else says it: so it does not matter where TLS ends.
func (g *Guard) offers(r *http.Request) bool {
	return g.browsers != nil && len(r.Header["Sec-Fetch-Site"]) > 0
}

// invite offers the browser of a login to keep a key for its session.
func (g *Guard) invite(ctx context.Context, response http.Header, b *Binding, now time.Time) {
	response.Add(dbsc.RegistrationField, dbsc.FormatRegistration(dbscPath, g.browsers.challenge(forRegistration, b.Session, now)))
	g.told(ctx, Offered, b, "")
}

// told reports what became of a browser's session.
func (g *Guard) told(ctx context.Context, result Result, b *Binding, cause string) {
	d := Decision{Result: result, Cause: cause, Format: DBSC}
	if b != nil {
		d.identify(b)
	}
	g.Report(ctx, &d)
}

// serveDBSC registers a browser's key, or refreshes its cookie. What it answers
// decides over the browser's session: it keeps one that is answered with 503, or with 403 and a
// new challenge, and forgets it at nearly everything else.
func (g *Guard) serveDBSC(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	id, err := dbsc.ID(r.Header)
	m := incoming.Message(r)
	if id == "" && err == nil {
		g.serveRegistration(w, r, &m)
		return
	}
	g.serveRefresh(w, r, &m, id)
}

func (g *Guard) serveRegistration(w http.ResponseWriter, r *http.Request, m *proof.Message) {
	now := g.now()
	b, err := g.register(r.Context(), m, now)
	if err != nil {
		g.turnDown(r.Context(), m, nil, err)
		if reason := reasonFor(err); reason == proof.Unavailable {
			Refuse(w, err)
		} else {
			incoming.Answer(w, http.StatusForbidden, reason, reason.Message())
		}
		return
	}
	g.sendSession(w, b, now)
}

// register binds the session whose token comes with the request to the key that it
// brings.
func (g *Guard) register(ctx context.Context, m *proof.Message, now time.Time) (*Binding, error) {
	offer, err := dbsc.Offer(m)
	if err != nil {
		return nil, err
	}
	if offer == nil {
		return nil, &proof.Refusal{Reason: proof.Malformed, Detail: "a registration without a key"}
	}
	token, err := g.cfg.Session.Token(m.Header)
	if err != nil {
		return nil, err
	}
	if token == "" {
		return nil, &proof.Refusal{Reason: proof.SessionRequired, Detail: "a registration without the session's cookie"}
	}
	s, err := g.session(ctx, g.cfg.Session.ID(token))
	switch {
	case err != nil:
		return nil, err
	case s == nil || !s.binding.offered:
		return nil, &proof.Refusal{Reason: proof.SessionUnbound, Detail: "a registration for a session that no browser was offered to bind"}
	case !s.binding.alive(now):
		return nil, &proof.Refusal{Reason: proof.SessionEnded, Detail: "a registration for a session that is over"}
	}
	root := s.rootID()
	if err := g.browsers.covers(offer.Proof.Challenge, forRegistration, root, now); err != nil {
		return nil, err
	}
	if err := proof.VerifyOffer(m, offer, now, proof.Policy{Window: window, Skew: skew}); err != nil {
		return nil, err
	}
	reg := &registration{at: now, key: offer.Key}
	added, err := g.cfg.Store.Add(ctx, registrationKey(root), reg.encode(), max(0, s.binding.Expires.Sub(now))+retention)
	if err != nil {
		return nil, unavailable("registration", err)
	}
	if added {
		b := s.binding.registered(reg)
		g.told(ctx, Completed, b, "")
		return b, nil
	}
	// The first one counts. If it was this one, its answer was lost.
	rec, found, err := g.cfg.Store.Get(ctx, registrationKey(root))
	if err != nil {
		return nil, unavailable("registration", err)
	}
	if !found { // not here yet
		return nil, unavailable("registration", errors.New("another server's, just now"))
	}
	first, err := decodeRegistration(rec)
	if err != nil {
		return nil, unavailable("registration", err)
	}
	if !first.key.SameKey(offer.Key) || now.Sub(first.at) > sameAnswer {
		return nil, &proof.Refusal{Reason: proof.Invalid, Detail: "the session was registered before"}
	}
	return s.binding.registered(first), nil
}

func (g *Guard) serveRefresh(w http.ResponseWriter, r *http.Request, m *proof.Message, id string) {
	now, ctx := g.now(), r.Context()
	s, cause, err := g.refreshable(ctx, m, id, now)
	switch {
	case err != nil:
		g.turnDown(ctx, m, s, err)
		Refuse(w, err)
		return
	case cause != "":
		var b *Binding
		if s != nil {
			b = s.binding
		}
		g.told(ctx, Ended, b, cause)
		w.Header().Set("Content-Type", "application/json")
		w.Write(dbsc.End(id))
		return
	}
	proven, err := g.refresh(ctx, m, s, now)
	if reasonFor(err) == proof.Unavailable && err != nil {
		g.turnDown(ctx, m, s, err)
		Refuse(w, err)
		return
	}
	if err != nil {
		if reason := reasonFor(err); reason != proof.Required && reason != proof.Stale { // which happen all the time
			g.turnDown(ctx, m, s, err)
		}
		g.sendChallenge(w, s.binding, now)
		incoming.Answer(w, http.StatusForbidden, reasonFor(err), reasonFor(err).Message())
		return
	}
	g.told(ctx, Refreshed, s.binding, "")
	g.sendSession(w, s.binding, proven)
}

// refreshable returns the session that a browser wants refreshed; or why the
// browser is to forget it. An error means that neither is known.
func (g *Guard) refreshable(ctx context.Context, m *proof.Message, id string, now time.Time) (s *session, cause string, err error) {
	root, err := ParseID(id)
	if err != nil {
		return nil, causeUnknown, nil
	}
	if s, err = g.session(ctx, root); err != nil {
		return nil, "", err
	}
	switch {
	case s == nil || s.binding.Root != (ID{}) || !s.binding.offered:
		return s, causeUnknown, nil
	case !s.binding.alive(now):
		return s, causeEnded, nil
	case !s.registered() && now.Sub(s.binding.Created) < 2*offerLife:
		return s, "", unavailable("registration", errors.New("not here yet")) // it may be another server's, just now
	case !s.registered():
		return s, causeUnknown, nil
	}
	// Who logs in twice has two sessions, which would overwrite each other's cookie.
	token, err := g.cfg.Session.Token(m.Header)
	if err != nil || token == "" {
		return s, "", nil // what the cookie is, the requests themselves will tell
	}
	current, err := g.session(ctx, g.cfg.Session.ID(token))
	if err != nil {
		return nil, "", err
	}
	if current != nil && current.binding.alive(now) && current.rootID() != root {
		return s, causeLogin, nil
	}
	return s, "", nil
}

// refresh checks a browser's JWT and uses its challenge up. It returns when that
// was done: a JWT that comes again at once gets the same answer.
func (g *Guard) refresh(ctx context.Context, m *proof.Message, s *session, now time.Time) (proven time.Time, err error) {
	var p proof.Proof
	found, err := dbsc.Extract(m, &p)
	if err != nil {
		return now, err
	}
	if !found {
		return now, &proof.Refusal{Reason: proof.Required, Detail: "a refresh without a proof"}
	}
	root := s.rootID()
	if err := g.browsers.covers(p.Challenge, forRefresh, root, now); err != nil {
		return now, err
	}
	policy := proof.Policy{Window: window, Skew: skew}
	key, err := proof.Verify(m, &p, s.binding.device, nil, now, policy)
	if err != nil {
		return now, err
	}
	if !g.browsers.paces.allow(root, now) {
		return now, unavailable("refresh", fmt.Errorf("a session that refreshes more than %d times a minute", maxRefreshes))
	}
	p.Nonce = nil // what came is remembered, not the challenge alone
	use := sha256.Sum256(p.ReplayID(nil, key))
	val := append(binary.BigEndian.AppendUint64(nil, uint64(now.UnixMilli())), use[:]...)
	storeKey := challengeKey(root, p.Challenge)
	added, err := g.cfg.Store.Add(ctx, storeKey, val, challengeLife+skew)
	if err != nil {
		return now, unavailable("challenge", err)
	}
	if added {
		return now, nil
	}
	first, found, err := g.cfg.Store.Get(ctx, storeKey)
	if err != nil {
		return now, unavailable("challenge", err)
	}
	if !found || len(first) != len(val) {
		return now, unavailable("challenge", errors.New("used elsewhere, just now"))
	}
	at := time.UnixMilli(int64(binary.BigEndian.Uint64(first)))
	if subtle.ConstantTimeCompare(first[8:], use[:]) == 0 || now.Sub(at) > sameAnswer {
		return now, &proof.Refusal{Reason: proof.NonceSpent, Detail: "the challenge was used before"}
	}
	return at, nil
}

// maxRefreshes is how many of a session's refreshes are taken in a minute. A browser
// does one in ten; each leaves a record in the store.
const maxRefreshes = 30

// paces count the refreshes of sessions in the minute at hand. Each session has the
// one place that its ID gives it; another one there begins anew.
type paces struct {
	mu sync.Mutex
	of [1 << 12]struct {
		root   ID
		minute int64
		count  int
	}
}

func (p *paces) allow(root ID, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := &p.of[int(binary.LittleEndian.Uint32(root[:])%uint32(len(p.of)))]
	if minute := now.Unix() / 60; at.root != root || at.minute != minute {
		at.root, at.minute, at.count = root, minute, 0
	}
	at.count++
	return at.count <= maxRefreshes
}

// turnDown reports a registration or refresh that failed.
func (g *Guard) turnDown(ctx context.Context, m *proof.Message, s *session, err error) {
	d := Decision{Result: Refused, Err: err, Format: DBSC, Method: m.Method, Path: m.Path}
	if s != nil {
		d.Session = s.rootID()
	}
	g.Report(ctx, &d)
}

// sendSession gives the browser its cookie, and the challenge of the next refresh.
func (g *Guard) sendSession(w http.ResponseWriter, b *Binding, proven time.Time) {
	h, root := w.Header(), b.rootID()
	g.sendChallenge(w, b, g.now())
	h.Add("Set-Cookie", boundCookie.Set(g.browsers.cookie(root, proven), int(cookieLife/time.Second)))
	h.Set("Content-Type", "application/json")
	doc := dbsc.Session{ID: root.String(), RefreshURL: dbscPath, Cookie: boundCookie}
	w.Write(doc.JSON())
}

func (g *Guard) sendChallenge(w http.ResponseWriter, b *Binding, now time.Time) {
	root := b.rootID()
	w.Header().Set(dbsc.ChallengeField, dbsc.FormatChallenge(g.browsers.challenge(forRefresh, root, now), root.String()))
}
