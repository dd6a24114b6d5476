package limpet

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/limpet-auth/limpet/internal/incoming"
	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/dpop"
	"github.com/limpet-auth/limpet/proof/httpsig"
	"github.com/limpet-auth/limpet/proof/hwsign"
)

// wires are the protocols a guard understands, asked in this order.
var wires = []proof.Wire{httpsig.Wire{}, hwsign.Wire{}, dpop.Wire{}}

// formats are their names in decisions.
var formats = [...]Format{RFC9421, HWSign, DPoP}

// Guard binds sessions to device keys and admits only requests that prove
// possession. It is safe for concurrent use.
type Guard struct {
	cfg   Config
	rules rules
	seal  *sealer
	memo  memo
	locks [64]deviceLock
	now   func() time.Time

	server   server
	channels channels
	browsers *browsers // nil without Config.Browsers
}

var (
	// ErrBound means that a session is bound already. Every login makes a new
	// session token, and with it a new binding.
	ErrBound = errors.New("limpet: bind: the session is bound already")

	// ErrNoSession means that no session with this ID is known.
	ErrNoSession = errors.New("limpet: no such session")
)

// String keeps the seal key out of formatted text.
func (g *Guard) String() string { return "limpet.Guard" }

// GoString keeps the seal key out of %#v.
func (g *Guard) GoString() string { return "limpet.Guard" }

// LogValue keeps the seal key out of logs.
func (g *Guard) LogValue() slog.Value { return slog.StringValue("limpet.Guard") }

// New returns a guard. It fails on a configuration that makes no sense and
// touches neither store nor network.
func New(cfg Config) (*Guard, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	rules, err := newRules(&cfg)
	if err != nil {
		return nil, err
	}
	seal, err := newSealer(cfg.SealKey)
	if err != nil {
		return nil, err
	}
	g := &Guard{cfg: cfg, rules: rules, seal: seal, now: time.Now,
		server: server{sealKey: cfg.SealKey, lease: cfg.Lease}}
	if cfg.Browsers {
		g.browsers = newBrowsers(&g.server)
	}
	return g, nil
}

// Bind binds the session with this token, which the app has just made for
// user, to the device key that the login request brings. A request without a
// device key gives a session of level None, which a guard knows and can revoke
// but does not demand proofs of; to bind that again, for the same user and without
// a device key, changes nothing. With [Config].Browsers the browser that logs in is
// offered to keep a key for it: from when it does, the level is Browser.
//
// Where the wire has a proof of possession at login, which hw-sign has not, the
// request must be signed by the device key, so that nobody binds a key they do
// not hold; see also [Guard.CheckBody].
//
// Call it after the login has succeeded and before the response is written. If
// it returns an error the session must not be handed out: answer with
// [Refuse]. The error is a *[proof.Refusal], or ErrBound.
func (g *Guard) Bind(w http.ResponseWriter, r *http.Request, token, user string) error {
	m := incoming.Message(r)
	b, wire, err := g.bind(w, r, &m, token, user)
	d := Decision{Result: Bound, Err: err, Format: formatOf(wire), Method: m.Method, Path: m.Path}
	if err == nil {
		d.identify(b)
	} else if d.Result = Refused; !g.rules.enforce {
		d.Result = WouldRefuse
	}
	g.Report(r.Context(), &d)
	if err == nil && b.offered {
		g.invite(r.Context(), w.Header(), b, b.Created)
	}
	return err
}

// bind also returns the binding, and the wire that brought the device key, nil if
// none did.
func (g *Guard) bind(w http.ResponseWriter, r *http.Request, m *proof.Message, token, user string) (*Binding, proof.Wire, error) {
	if err := g.bindable(token); err != nil {
		return nil, nil, fmt.Errorf("limpet: bind: %w", err)
	}
	if len(user) > maxUser {
		return nil, nil, fmt.Errorf("limpet: bind: a user name of %d bytes, want at most %d", len(user), maxUser)
	}
	now := g.now()
	offer, wire, err := g.offer(r.Context(), m, now)
	if err != nil {
		return nil, wire, fmt.Errorf("limpet: bind: %w", err)
	}
	b := &Binding{Session: g.cfg.Session.ID(token), User: user, Level: None, Created: now, Expires: now.Add(g.cfg.Lifetime)}
	if offer != nil {
		b.Level, b.Key, b.device = offer.Level, thumbprintOf(offer.Key), offer.Key
	} else {
		b.offered = g.offers(r)
	}
	// The index first: a session is then never bound without its user's list
	// knowing, and an index entry without a session harms nobody.
	ttl := g.cfg.Lifetime + retention
	if err := g.cfg.Store.Put(r.Context(), userPrefix(user)+b.Session.String(), nil, ttl); err != nil {
		return nil, wire, unavailable("bind", err)
	}
	added, err := g.cfg.Store.Add(r.Context(), bindingKey(b.Session), b.encode(), ttl)
	if err != nil {
		return nil, wire, unavailable("bind", err)
	}
	if !added {
		err := g.boundBefore(r.Context(), b)
		b.offered = false
		return b, wire, err
	}
	if wire == nil {
		return b, nil, nil
	}
	s, err := g.server.describe(now)
	if err != nil {
		return nil, wire, unavailable("bind", err)
	}
	wire.Bound(w.Header(), b.Session, s)
	return b, wire, nil
}

// boundBefore returns nil if the session is known already and binding it changes
// nothing: an app may keep the token where people log in twice.
func (g *Guard) boundBefore(ctx context.Context, b *Binding) error {
	known, err := g.Find(ctx, b.Session)
	switch {
	case errors.Is(err, ErrNoSession):
		return ErrBound
	case err != nil:
		return err
	case b.Level == None && known.Level == None && known.User == b.User && known.alive(g.now()):
		return nil
	}
	return ErrBound
}

// offer returns the device key that a login request brings and proves to hold,
// and the wire it does that on; nil if there is none.
func (g *Guard) offer(ctx context.Context, m *proof.Message, now time.Time) (offer *proof.Offer, on proof.Wire, err error) {
	for _, wire := range wires {
		o, err := wire.Offer(m)
		switch {
		case err != nil:
			return nil, wire, err
		case o == nil:
		case offer != nil:
			return nil, nil, &proof.Refusal{Reason: proof.Malformed, Detail: "two device keys"}
		default:
			offer, on = o, wire
		}
	}
	if offer == nil || offer.Proof == nil {
		return offer, on, nil
	}
	policy := proof.Policy{Window: window, Skew: skew}
	if err := proof.VerifyOffer(m, offer, now, policy); err != nil {
		return nil, on, err
	}
	c := checking{proof: *offer.Proof}
	_, err = g.spend(ctx, &c, new(session), &proof.EphemeralKey{}, Rule{})
	return offer, on, err
}

// Revoke ends the session with this ID, with all tokens that [Guard.Rebind] made
// its. They are refused from now on. It returns ErrNoSession for a session that
// was never bound.
func (g *Guard) Revoke(ctx context.Context, session ID) error {
	b, err := g.revoke(ctx, session)
	if b == nil {
		return err
	}
	d := Decision{Result: Revoked}
	d.identify(b)
	g.Report(ctx, &d)
	return err
}

// revoke returns the binding if it was this call that ended it.
func (g *Guard) revoke(ctx context.Context, session ID) (*Binding, error) {
	rec, found, err := g.cfg.Store.Get(ctx, bindingKey(session))
	if err != nil {
		return nil, unavailable("revoke", err)
	}
	if !found {
		return nil, ErrNoSession
	}
	b, err := decodeBinding(session, rec)
	if err != nil {
		return nil, unavailable("revoke", err)
	}
	if b.Root != (ID{}) {
		// The root's record is asked for with every request of the others. If it
		// is not there the session is over as it is.
		if _, err := g.revoke(ctx, b.Root); err != nil && !errors.Is(err, ErrNoSession) {
			return nil, err
		}
	}
	now := g.now()
	if !b.Ended.IsZero() {
		return nil, nil
	}
	// The record stays: a token that is merely forgotten would look unbound.
	b.Ended = now
	ttl := max(0, b.Expires.Sub(now)) + retention
	if err := g.cfg.Store.Put(ctx, bindingKey(session), b.encode(), ttl); err != nil {
		return nil, unavailable("revoke", err)
	}
	for slot := range slots {
		if err := g.cfg.Store.Delete(ctx, slotKey(session, slot)); err != nil {
			return b, unavailable("revoke", err)
		}
	}
	if told, err := g.withRegistration(ctx, b); err == nil { // for the log
		b = told
	}
	return b, nil
}

// RevokeUser ends all of a user's sessions and returns how many it ended. The
// store must be a [Lister].
func (g *Guard) RevokeUser(ctx context.Context, user string) (int, error) {
	list, ok := g.cfg.Store.(Lister)
	if !ok {
		return 0, errors.New("limpet: revoke: this store cannot list sessions")
	}
	var ids []ID
	prefix := userPrefix(user)
	err := list.List(ctx, prefix, func(key string, _ []byte) bool {
		if id, err := ParseID(key[len(prefix):]); err == nil {
			ids = append(ids, id)
		}
		return true
	})
	if err != nil {
		return 0, unavailable("revoke", err)
	}
	ended, failed := 0, error(nil)
	for _, id := range ids {
		rec, found, err := g.cfg.Store.Get(ctx, bindingKey(id))
		if err != nil {
			return ended, unavailable("revoke", err)
		}
		if !found {
			continue
		}
		if b, err := decodeBinding(id, rec); err == nil && (b.User != user || !b.alive(g.now())) {
			continue
		}
		if err := g.Revoke(ctx, id); err != nil {
			failed = errors.Join(failed, err) // the others end nonetheless
			continue
		}
		ended++
	}
	return ended, failed
}

// Sessions calls yield with every session that is neither over nor revoked, in
// no particular order, until yield returns false: each login once, whatever the
// app has replaced its token by. The store must be a [Lister].
func (g *Guard) Sessions(ctx context.Context, yield func(*Binding) bool) error {
	list, ok := g.cfg.Store.(Lister)
	if !ok {
		return errors.New("limpet: sessions: this store cannot list sessions")
	}
	var failed error
	err := list.List(ctx, "b:", func(key string, rec []byte) bool {
		id, ok := bindingID(key)
		if !ok {
			return true
		}
		b, err := decodeBinding(id, rec)
		if err != nil || !b.alive(g.now()) || b.Root != (ID{}) {
			return true
		}
		if b, failed = g.withRegistration(ctx, b); failed != nil {
			return false
		}
		return yield(b)
	})
	if err = errors.Join(err, failed); err != nil {
		return unavailable("sessions", err)
	}
	return nil
}

// withRegistration returns the binding as it is with the key that a browser may
// have registered.
func (g *Guard) withRegistration(ctx context.Context, b *Binding) (*Binding, error) {
	if !b.offered {
		return b, nil
	}
	rec, found, err := g.cfg.Store.Get(ctx, registrationKey(b.rootID()))
	if err != nil || !found {
		return b, err
	}
	r, err := decodeRegistration(rec)
	if err != nil {
		return b, nil // as Get has it who asks for this one
	}
	return b.registered(r), nil
}

// Keys of the records. Those that a usual request touches carry its session's
// ID in braces, so that a cluster keeps them together. A signing key may serve
// several sessions, so what it spent and delegated to belongs to none of them.
//
//	b:{session}               the binding
//	r:{session}               the key that a browser registered for it
//	c:{session}hash           a challenge that a browser has used
//	e:{session}slot           an ephemeral key, slot 0 to 7
//	n:{session}hash           a spent value with a MAC, where the store is no Spender
//	n:hash                    a spent value with a signature, likewise
//	d:device                  what a device key, hashed, delegated to; see used
//	u:hash:session            index of a user's sessions
func bindingKey(id ID) string        { return "b:{" + id.String() + "}" }
func registrationKey(id ID) string   { return "r:{" + id.String() + "}" }
func slotKey(id ID, slot int) string { return "e:{" + id.String() + "}" + string(rune('0'+slot)) }

func challengeKey(id ID, challenge string) string {
	return "c:{" + id.String() + "}" + hashed([]byte(challenge))
}

func spentKey(id ID, p *proof.Proof, replayID []byte) string {
	if p.Signer() == nil {
		return "n:{" + id.String() + "}" + hashed(replayID)
	}
	return "n:" + hashed(replayID)
}

func usedKey(device *proof.PublicKey) string { return "d:" + hashed(device.Bytes()) }

func hashed(b []byte) string {
	sum := sha256.Sum256(b)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func userPrefix(user string) string { return "u:" + hashed([]byte(user)) + ":" }

func bindingID(key string) (ID, bool) {
	const start, end = len("b:{"), 1
	if len(key) < start+end {
		return ID{}, false
	}
	id, err := ParseID(key[start : len(key)-end])
	return id, err == nil
}

func unavailable(doing string, err error) error {
	return &proof.Refusal{Reason: proof.Unavailable, Detail: doing, Err: err}
}
