package limpet

import (
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/httpsig"
)

const (
	// Clients agree with the key of the current period; that of the one before
	// is good for those that learned it then, that of the next for a server
	// whose clock is ahead. So a key lives for one to two periods.
	keyPeriod = 24 * time.Hour

	// The same for challenges: a proof made in advance is worth nothing after
	// five to ten minutes.
	challengePeriod = 5 * time.Minute

	neighbours = 3 // the period before, this one, the next
)

// server is what a guard tells clients of itself. All of it is derived from the
// seal key and the time: servers that share the key say the same, also after a
// restart, and none of it is stored.
type server struct {
	sealKey    []byte
	lease      time.Duration
	keys       atomic.Pointer[agreementKeys]
	challenges atomic.Pointer[challenges]
}

type agreementKeys struct {
	period int64
	keys   [neighbours]agreementKey
}

type agreementKey struct {
	private *ecdh.PrivateKey
	public  *proof.PublicKey
	id      proof.KeyID
}

type challenges struct {
	period int64
	values [neighbours]string
}

// derive returns 32 bytes for a purpose and a number.
func (s *server) derive(purpose string, n int64) []byte {
	info := binary.BigEndian.AppendUint64(append([]byte("limpet "+purpose+" 1"), 0), uint64(n))
	b, err := hkdf.Key(sha256.New, s.sealKey, nil, string(info), 32)
	if err != nil {
		panic(err) // 32 bytes are never too many
	}
	return b
}

func (s *server) agreementKeys(now time.Time) (*agreementKeys, error) {
	period := now.Unix() / int64(keyPeriod/time.Second)
	if known := s.keys.Load(); known != nil && known.period == period {
		return known, nil
	}
	all := &agreementKeys{period: period}
	for i := range all.keys {
		k := &all.keys[i]
		seed := s.derive("agreement key", period-1+int64(i))
		var err error
		// One seed in 2^32 is no scalar of the group.
		for k.private, err = ecdh.P256().NewPrivateKey(seed); err != nil; k.private, err = ecdh.P256().NewPrivateKey(seed) {
			sum := sha256.Sum256(seed)
			seed = sum[:]
		}
		if k.public, err = proof.ParsePublicKey(proof.HMACSHA256, k.private.PublicKey().Bytes()); err != nil {
			return nil, fmt.Errorf("limpet: agreement key: %w", err)
		}
		k.id = k.public.ID()
	}
	s.keys.Store(all)
	return all, nil
}

// challengesAt returns the challenges that proofs may cover.
func (s *server) challengesAt(now time.Time) *challenges {
	period := now.Unix() / int64(challengePeriod/time.Second)
	if known := s.challenges.Load(); known != nil && known.period == period {
		return known
	}
	all := &challenges{period: period}
	for i := range all.values {
		mac := hmac.New(sha256.New, s.derive("challenge", 0))
		mac.Write(binary.BigEndian.AppendUint64(nil, uint64(period-1+int64(i))))
		all.values[i] = base64.RawURLEncoding.EncodeToString(mac.Sum(nil)[:12])
	}
	s.challenges.Store(all)
	return all
}

func (c *challenges) current() string { return c.values[1] }

// describe returns what clients are told now.
func (s *server) describe(now time.Time) (*proof.Server, error) {
	all, err := s.agreementKeys(now)
	if err != nil {
		return nil, err
	}
	end := (all.period + 2) * int64(keyPeriod/time.Second)
	return &proof.Server{
		Key:        all.keys[1].public,
		KeyExpires: time.Unix(end, 0),
		Lease:      s.lease,
		Challenge:  s.challengesAt(now).current(),
	}, nil
}

// agree returns the HMAC secret that a verified delegation stands for.
func (s *server) agree(d *proof.Delegation, ephemeral *proof.PublicKey, now time.Time) ([]byte, error) {
	all, err := s.agreementKeys(now)
	if err != nil {
		return nil, unavailable("agreement", err)
	}
	for i := range all.keys {
		k := &all.keys[i]
		if k.id != d.Scope.Server {
			continue
		}
		z, err := proof.Agree(k.private, ephemeral)
		if err != nil {
			return nil, &proof.Refusal{Reason: proof.Malformed, Detail: "ephemeral key", Err: err}
		}
		defer clear(z)
		return proof.RequestSecret(z, d.Signed, ephemeral, k.public), nil
	}
	return nil, &proof.Refusal{Reason: proof.KeyUnknown, Detail: "agreed with a server key that is over"}
}

// WellKnown serves [httpsig.WellKnownPath]: what clients need to know of the
// server before their first request, for those that did not see it in the answer
// to their login. With [Config].Browsers it serves what is below that path as well, for
// browsers: mount it there too. [Guard.Protect] serves all of it; mount this where
// only some routes are protected.
//
//	{"key":":…:;exp=1764086400;lease=900","session":"cookie","cookie":"sid","challenge":"…","refresh":"/.well-known/limpet/cookie"}
//
// To a request with the cookie of a bound session it also names that and its
// device key: "id" as in Limpet-Session, and "device", the JWK thumbprint. A browser
// shows its scripts neither the cookie nor the headers of answers to navigations
// and redirects.
func (g *Guard) WellKnown() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !g.browser(w, r) {
			g.serveWellKnown(w, r)
		}
	})
}

func (g *Guard) serveWellKnown(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	now := g.now()
	s, err := g.server.describe(now)
	if err != nil {
		Refuse(w, unavailable("agreement", err))
		return
	}
	doc := struct {
		Key       string `json:"key"`
		Session   string `json:"session"`
		Cookie    string `json:"cookie,omitempty"`
		Challenge string `json:"challenge"`
		Refresh   string `json:"refresh,omitempty"`
		ID        string `json:"id,omitempty"`
		Device    string `json:"device,omitempty"`
	}{Key: httpsig.FormatServer(s, nil), Session: "bearer", Cookie: g.cfg.Session.cookie, Challenge: s.Challenge}
	if doc.Cookie != "" {
		doc.Session = "cookie"
		if token, err := g.cfg.Session.Token(r.Header); err == nil && token != "" {
			b, err := g.Find(r.Context(), g.cfg.Session.ID(token))
			switch {
			case err == nil && b.Key != "" && b.alive(now):
				doc.ID, doc.Device = httpsig.FormatSession(b.Session), b.Key
			case err != nil && !errors.Is(err, ErrNoSession):
				Refuse(w, err) // without these a browser would take its key for useless
				return
			}
		}
	}
	if g.browsers != nil {
		doc.Refresh = cookiePath
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store") // the challenge is for minutes
	json.NewEncoder(w).Encode(doc)
}
