package oauth

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json"

	"github.com/limpet-auth/limpet/proof"
)

// Bounds of a key set, and of its life.
const (
	maxSet  = 256 << 10 // bytes
	maxKeys = 100

	maxAge    = 5 * time.Minute // after which it is fetched again
	maxStale  = 24 * time.Hour  // how long it serves if that fails
	staleWait = time.Second     // how long a token waits for it if the keys at hand would do

	retry      = time.Minute     // between two fetches, whatever asks for them
	retryFirst = 5 * time.Second // the same as long as there are no keys
)

// keys fetches an issuer's keys and keeps them.
type keys struct {
	url    string
	client *http.Client
	now    func() time.Time

	mu      sync.Mutex
	set     *keySet       // nil until one was fetched
	fetched time.Time     // when the issuer last said so
	tried   time.Time     // when it was last asked
	failed  error         // how that went
	flight  chan struct{} // closed when the fetch under way is done; nil if none is
}

// keySet is a key set as fetched. A set that comes again unchanged is the same
// keySet.
type keySet struct {
	raw   []byte
	byKID map[string][]jose.JSONWebKey
	all   []jose.JSONWebKey
}

// refreshed returns the set that counts now, nil if there is none.
func (k *keys) refreshed(ctx context.Context) *keySet {
	k.mu.Lock()
	if k.set == nil || k.now().Sub(k.fetched) < maxAge {
		defer k.mu.Unlock()
		return k.set
	}
	down := k.failed != nil
	flight := k.fetch()
	k.mu.Unlock()
	if flight != nil && !down {
		ctx, cancel := context.WithTimeout(ctx, staleWait)
		defer cancel()
		_ = wait(ctx, flight) // or go on with what is at hand
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.now().Sub(k.fetched) >= maxStale {
		return nil
	}
	return k.set
}

// find returns the keys that may have signed a token, and the set they are of.
// The set is younger than maxAge if that can be had.
func (k *keys) find(ctx context.Context, kid string, alg jose.SignatureAlgorithm) (*keySet, []any, error) {
	set := k.refreshed(ctx)
	if set != nil {
		if candidates := set.candidates(kid, alg); candidates != nil {
			return set, candidates, nil
		}
	}
	k.mu.Lock()
	flight := k.fetch()
	k.mu.Unlock()
	if flight != nil {
		if err := wait(ctx, flight); err != nil {
			return nil, nil, err
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if set = k.set; set != nil && k.now().Sub(k.fetched) < maxStale {
		if candidates := set.candidates(kid, alg); candidates != nil {
			return set, candidates, nil
		}
		if k.failed == nil {
			return nil, nil, refuse(proof.Invalid, "a JWT by a key that the issuer does not have")
		}
	}
	// The key may be one that the issuer has made since.
	return nil, nil, &proof.Refusal{Reason: proof.Unavailable, Detail: "the issuer's keys", Err: k.failed}
}

// fetch starts a fetch, unless one is under way or the last one was just now. It
// returns what is closed at the end of that under way, nil if none is. The caller
// holds k.mu.
func (k *keys) fetch() <-chan struct{} {
	interval := retry
	if k.set == nil {
		interval = retryFirst
	}
	if k.flight != nil || k.now().Sub(k.tried) < interval {
		return k.flight
	}
	k.tried = k.now()
	k.flight = make(chan struct{})
	// It outlives the request that asks: others wait for it too.
	go func(asked time.Time) {
		set, err := k.load()
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.failed = err; err == nil {
			k.fetched = asked
			if k.set == nil || !bytes.Equal(k.set.raw, set.raw) {
				k.set = set
			}
		}
		close(k.flight)
		k.flight = nil
	}(k.tried)
	return k.flight
}

func (k *keys) load() (*keySet, error) {
	r, err := http.NewRequest(http.MethodGet, k.url, nil)
	if err != nil {
		return nil, fmt.Errorf("limpet: oauth: JWKS: %w", err)
	}
	raw, err := ask(k.client, r, maxSet)
	if err != nil {
		return nil, fmt.Errorf("limpet: oauth: JWKS: %w", err)
	}
	set, err := parseSet(raw)
	if err != nil {
		return nil, fmt.Errorf("limpet: oauth: JWKS: %w", err)
	}
	return set, nil
}

// parseSet reads a key set (RFC 7517, 5). Keys that cannot be used here are left
// out. A set without keys is one: its issuer has withdrawn them.
func parseSet(raw []byte) (*keySet, error) {
	var list struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(raw, &list); err != nil || list.Keys == nil {
		return nil, errors.New("not a key set")
	}
	if len(list.Keys) > maxKeys {
		return nil, fmt.Errorf("%d keys, want at most %d", len(list.Keys), maxKeys)
	}
	set := &keySet{raw: raw, byKID: make(map[string][]jose.JSONWebKey)}
	for _, text := range list.Keys {
		var key jose.JSONWebKey
		if key.UnmarshalJSON(text) != nil || !usable(&key) {
			continue
		}
		set.all = append(set.all, key)
		set.byKID[key.KeyID] = append(set.byKID[key.KeyID], key)
	}
	return set, nil
}

// usable reports whether a key verifies signatures and is not known to others
// than its issuer: a private or symmetric key in a public place is anybody's.
func usable(key *jose.JSONWebKey) bool {
	if !key.Valid() || !key.IsPublic() || key.Use != "" && key.Use != "sig" {
		return false
	}
	if k, ok := key.Key.(*rsa.PublicKey); ok {
		return k.N.BitLen() >= 2048
	}
	return true
}

// candidates returns the keys of this name that sign with alg, nil if none does.
// A token without a name must be by the only key.
func (s *keySet) candidates(kid string, alg jose.SignatureAlgorithm) (fit []any) {
	named := s.byKID[kid]
	if kid == "" {
		if len(s.all) != 1 {
			return nil
		}
		named = s.all
	}
	for i := range named {
		if fits(&named[i], alg) {
			fit = append(fit, named[i].Key)
		}
	}
	return fit
}

func fits(key *jose.JSONWebKey, alg jose.SignatureAlgorithm) bool {
	if key.Algorithm != "" && key.Algorithm != string(alg) {
		return false
	}
	switch k := key.Key.(type) {
	case ed25519.PublicKey:
		return alg == jose.EdDSA
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return alg == jose.ES256
		case elliptic.P384():
			return alg == jose.ES384
		case elliptic.P521():
			return alg == jose.ES512
		}
	case *rsa.PublicKey:
		return strings.HasPrefix(string(alg), "RS") || strings.HasPrefix(string(alg), "PS")
	}
	return false
}
