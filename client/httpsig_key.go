package client

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/httpsig"
)

// maxBack is how far a delegation begins before the moment it is made, for
// servers whose clock is behind.
const maxBack = 5 * time.Second

// grant is an ephemeral key that the device key has delegated to. Private keys
// live only inside of its functions, where nothing that prints can reach them.
type grant struct {
	term
	proof.Delegation // its Scope names no key of the server's
	public           *proof.PublicKey
	keyID            string

	sign  func(base []byte) ([]byte, error)                   // of a signing key
	agree func(server *proof.PublicKey) (z []byte, err error) // of an agreement key
}

// newGrant makes an ephemeral key and has the device key sign its delegation.
// now is the server's time.
func newGrant(device hwkey.Key, alg proof.Algorithm, scope proof.Scope, now time.Time, lease time.Duration) (*grant, error) {
	g := &grant{term: term{start: time.Now()}}
	if err := g.generate(alg); err != nil {
		return nil, err
	}
	if lease <= 0 {
		lease = defaultLife
	}
	lease = min(lease, maxLife)
	scope.NotBefore = now.Add(-min(maxBack, lease/10)).Truncate(time.Second)
	// The server counts its lease from there too.
	scope.Expires = scope.NotBefore.Add(lease)
	life := scope.Expires.Sub(now)
	g.life = life - min(time.Second, life/2) // as exact as a Date header tells now
	g.Scope = &scope
	g.Key, g.keyID = g.public.Bytes(), keyID(g.public)
	g.Signed = httpsig.Statement(g.Algorithm, g.Key, &scope)
	var err error
	if g.Signature, err = signExact(device, g.Signed); err != nil {
		return nil, err
	}
	return g, nil
}

func (g *grant) generate(alg proof.Algorithm) error {
	var public any
	switch alg {
	case proof.Ed25519:
		pub, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return err
		}
		public = pub
		g.sign = func(base []byte) ([]byte, error) { return ed25519.Sign(private, base), nil }
	case proof.ECDSAP256:
		private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return err
		}
		public = private.Public()
		g.sign = func(base []byte) ([]byte, error) {
			sum := sha256.Sum256(base)
			der, err := ecdsa.SignASN1(rand.Reader, private, sum[:])
			if err != nil {
				return nil, err
			}
			return proof.RawECDSA(der)
		}
	case proof.HMACSHA256, 0:
		alg = proof.HMACSHA256
		private, err := ecdh.P256().GenerateKey(rand.Reader)
		if err != nil {
			return err
		}
		g.agree = func(server *proof.PublicKey) ([]byte, error) { return proof.Agree(private, server) }
		g.Algorithm = alg
		g.public, err = proof.ParsePublicKey(alg, private.PublicKey().Bytes())
		return err
	default:
		return fmt.Errorf("no ephemeral keys of algorithm %s", alg)
	}
	g.Algorithm = alg
	var err error
	g.public, err = proof.NewPublicKey(alg, public)
	return err
}

// fits reports whether the grant is for requests like m.
func (g *grant) fits(m *proof.Message) bool {
	return g.Scope.Session == m.Session && g.Scope.Audience == m.Authority
}

// agreement is a grant together with the key of the server's that it is used
// with.
type agreement struct {
	*grant
	server     proof.KeyID   // zero for a signing key
	delegation string        // as requests carry it
	mac        *proof.MACKey // nil for a signing key
	known      atomic.Bool   // a request that carried the delegation was admitted
	channels   channels      // keys of TLS connections
	anew       bool          // the grant had been used with another key before
}

// sign proves a request, see httpsig.Sign.
func (a *agreement) sign(base []byte) ([]byte, error) {
	if a.mac != nil {
		return a.mac.Append(nil, base), nil
	}
	return a.grant.sign(base)
}

// agreeWith makes the key of requests. server is nil for a signing key, which
// needs none.
func (g *grant) agreeWith(server *proof.PublicKey) (*agreement, error) {
	a := &agreement{grant: g}
	d, scope := g.Delegation, *g.Scope
	d.Scope = &scope
	if g.agree != nil {
		if server == nil {
			return nil, errors.New("the server has no key")
		}
		z, err := g.agree(server)
		if err != nil {
			return nil, err
		}
		secret := proof.RequestSecret(z, g.Signed, g.public, server)
		a.mac = proof.NewMACKey(secret)
		clear(z)
		clear(secret)
		a.server = server.ID()
		scope.Server = a.server
	}
	a.delegation = httpsig.FormatDelegation(&d)
	return a, nil
}

// with reports whether the agreement is with the server's current key.
func (a *agreement) with(server *proof.Server) bool {
	return server != nil && server.Key != nil && server.Key.ID() == a.server
}

// signExact has the device key sign in the one form that standards give its
// algorithm (RFC 9421, 3.3).
func signExact(device hwkey.Key, message []byte) ([]byte, error) {
	sig, err := signDevice(device, message, false)
	if alg := device.Info().Algorithm; err == nil && alg != hwkey.Ed25519 && alg != hwkey.RSA2048 {
		return proof.RawECDSA(sig)
	}
	return sig, err
}
