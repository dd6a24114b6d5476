// Package proof says what a proof of possession is and when it holds.
//
// A wire package turns a request into a [Proof], which is parsed and trusted
// for nothing. [Verify] decides, in this one place for every wire, whether the
// proof holds for a binding's device key at a given time under a given policy.
// The package does no I/O, reads no clock and draws no random numbers.
package proof

import (
	"crypto/sha256"
	"time"
)

// Message is one HTTP request as the party that checks it sees it, with
// whatever a proxy did to it undone.
type Message struct {
	Method    string
	Scheme    string              // "https" or "http"; "" if the client's is not known, as behind a proxy that ends TLS
	Authority string              // host and port, as the function Authority writes them
	Path      string              // as sent, percent-encoded
	RawQuery  string              // as sent, without "?"
	Header    map[string][]string // keys in the canonical form of net/http
	HasBody   bool                // there is one, or may be
	Body      *[sha256.Size]byte  // SHA-256 of the body; nil if it was not read

	// Session is the SHA-256 of the request's session token; zero at a login.
	// InCookie tells that it came in a cookie, not in Authorization.
	Session  [sha256.Size]byte
	InCookie bool

	// ChannelKey returns the key that an agreed key becomes on the request's TLS
	// connection, see [MACKey.OnChannel]. It is nil where TLS ends elsewhere.
	ChannelKey func(*EphemeralKey) (*MACKey, error)
}

// Proof is what one request carries to show possession. A wire's Extract fills
// it in; nothing in it is to be believed before [Verify] returns nil.
type Proof struct {
	// One of these says whose key made the proof. A proof with both KeyID and
	// Delegation introduces the key if the verifier does not know it.
	KeyID      string      // names an ephemeral key
	Delegation *Delegation // introduces one
	Key        *PublicKey  // is the key, which must be the device key itself
	ByDevice   bool        // the device key itself, which the proof does not bring along

	Algorithm Algorithm // what it says it is made with, in that one form; 0 if only the key tells, in any form peers write
	Signed    []byte    // the bytes that Signature covers
	Signature []byte

	Time      time.Time // when it says it was made; zero if it does not
	Random    int       // characters that tell it from others made at the same time
	Nonce     []byte    // what may be used once; nil for Signed as a whole
	BodyClaim []byte    // SHA-256 that it claims the body has: 32 bytes, or their hex or base64; nil if none
	Digest    bool      // BodyClaim is the digest of the body in any case, and must be compared
	Challenge string    // the server's value that it covers; "" if none
	Channel   bool      // it is made with the key of this TLS connection, see Message.ChannelKey

	// Scratch is room for a wire's Extract. A caller that reuses a Proof for
	// many requests keeps the capacity of Scratch, Signed and Signature.
	Scratch []byte

	signer *PublicKey // whose signature Verify found; nil for a MAC
}

// Reset makes p ready for the next request, keeping its buffers.
func (p *Proof) Reset() {
	*p = Proof{Signed: p.Signed[:0], Signature: p.Signature[:0], Scratch: p.Scratch[:0]}
}

// Signer returns the public key whose signature [Verify] found, nil if the proof
// is a MAC.
func (p *Proof) Signer() *PublicKey { return p.signer }

// Delegation is a device key's signature over an ephemeral key, as received.
type Delegation struct {
	Algorithm Algorithm // what the ephemeral key will be used with
	Key       []byte    // its encoding, see [ParsePublicKey]
	Signed    []byte    // the bytes that Signature covers
	Signature []byte    // by the device key

	// Scope is what the signed bytes say the delegation is good for. It is nil
	// on wires whose delegations name nothing but the key.
	Scope *Scope

	// ProofBy says whose key makes the Proof that comes with the delegation:
	// the ephemeral key or, on one dialect of hw-sign, the device key.
	ProofBy Signer
}

// Scope is what a delegation is good for.
type Scope struct {
	NotBefore time.Time
	Expires   time.Time
	Session   [sha256.Size]byte // SHA-256 of the session token
	Audience  string            // the authority of the requests, as Message has it

	// Server names the server's key that the client has agreed an HMAC key
	// with, see [PublicKey.ID]. It is not signed: the key that is agreed
	// depends on it. Zero for signing keys.
	Server KeyID
}

// KeyID names an agreement key of a server: 16 bytes of the SHA-256 of its point.
type KeyID [16]byte

// Introduced is what a peer is told about the ephemeral key it introduced.
type Introduced struct {
	ID      string     // names the key from now on
	Server  *PublicKey // the server's half of a key agreement; nil for a signing key
	Expires time.Time  // end of the lease
}

// Server is what a server says of itself to clients.
type Server struct {
	Key        *PublicKey    // for key agreement
	KeyExpires time.Time     // when it takes no more new agreements with Key
	Lease      time.Duration // the longest life of an ephemeral key
	Challenge  string        // the value that proofs must cover where a route wants that
}

// Offer is the device key that a login request brings.
type Offer struct {
	Key   *PublicKey
	Level Level  // what the client says keeps the key: Hardware or Software
	Proof *Proof // over the login request, by Key; nil on wires that have none
}

// Wire is a protocol that carries proofs in HTTP headers.
type Wire interface {
	// Offer reads the device key that a login request brings, and returns nil
	// if it brings none. An error is a *Refusal.
	Offer(m *Message) (*Offer, error)

	// Extract reads the request's proof into p and reports whether there is
	// one. It checks form, and what the proof says of the request, only. An
	// error is a *Refusal.
	Extract(m *Message, p *Proof) (found bool, err error)

	// Bound adds to the answer of a login that this wire's Offer bound.
	Bound(response map[string][]string, session [sha256.Size]byte, s *Server)

	// Admitted adds to the answer of a request that this wire's proof admitted.
	// k is the ephemeral key it introduced, nil if none; challenge is the
	// server's, "" if the route wants none.
	Admitted(m *Message, response map[string][]string, k *Introduced, challenge string)

	// Refused adds to the answer of a request that is refused with 401, by
	// whichever wire, what a peer of this wire must know to do better.
	Refused(m *Message, response map[string][]string, reason Reason, s *Server)
}

// Signer says which of a session's keys may have made a signature.
type Signer uint8

const (
	ByEphemeral         Signer = iota // the ephemeral key; a P-256 agreement key signs as ECDSA
	ByDevice                          // the device key
	ByDeviceOrEphemeral               // either
)

// EphemeralKey is a delegated key that the verifier knows.
type EphemeralKey struct {
	ID      string
	Public  *PublicKey // the delegated key
	MAC     *MACKey    // for an agreement key (HMACSHA256): the agreed key
	Expires time.Time  // end of its lease
}

// Freshness is how a proof shows that it was made for this request, now.
type Freshness uint8

const (
	// Nonce admits each value once. A value that carries a time is refused
	// outside the window; one without is remembered until its key expires.
	Nonce Freshness = iota
	// StrictNonce is Nonce for values that carry both a time and at least 16
	// random characters.
	StrictNonce
	// BodyHash admits a value that contains the SHA-256 of the body, or is the
	// body. It needs no memory, and a request can be repeated as it was.
	BodyHash
	// Timestamp admits any value whose time is inside the window, repeatedly.
	Timestamp
)

// String returns the word that configuration files use.
func (f Freshness) String() string {
	switch f {
	case Nonce:
		return "nonce"
	case StrictNonce:
		return "strict-nonce"
	case BodyHash:
		return "body-hash"
	case Timestamp:
		return "timestamp"
	}
	return "unknown"
}

// Policy is what a verifier demands of a proof.
type Policy struct {
	Freshness Freshness
	Window    time.Duration // how old a proof may be
	Skew      time.Duration // how far in the future its time may lie

	Challenges []string // one of which the proof must cover; none if empty
	Channel    bool     // it must be made with the key of its TLS connection

	// Lease is the longest life of a delegation with a Scope.
	Lease time.Duration
	// Agree returns the HMAC key that a verified delegation with a Scope, of
	// the agreement key ephemeral, stands for. An error is a *Refusal.
	Agree func(d *Delegation, ephemeral *PublicKey) (*MACKey, error)
}

// minRandom is how many random characters StrictNonce asks for: 16 characters
// of hex are 64 bit, enough for the few proofs a key makes in one window.
const minRandom = 16
