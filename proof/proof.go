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
	Authority string              // host, and port unless it is the scheme's default
	Path      string              // as sent, percent-encoded
	RawQuery  string              // as sent, without "?"
	Header    map[string][]string // keys in the canonical form of net/http
	Body      *[sha256.Size]byte  // SHA-256 of the body; nil if it was not read
}

// Proof is what one request carries to show possession. A wire's Extract fills
// it in; nothing in it is to be believed before [Verify] returns nil.
type Proof struct {
	KeyID      string      // names a known ephemeral key; empty if Delegation introduces one
	Delegation *Delegation // the ephemeral key it introduces; nil if KeyID names one
	Signed     []byte      // the bytes that Signature covers
	Signature  []byte

	Time      time.Time // when it says it was made; zero if it does not
	Random    int       // characters in Signed that tell it from others made at the same time
	BodyClaim []byte    // SHA-256 that it claims the body has: 32 bytes, or their hex or base64; nil if none

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

	// ProofBy says whose key makes the Proof that comes with the delegation:
	// the ephemeral key or, on one dialect of hw-sign, the device key.
	ProofBy Signer
}

// Introduced is what a peer is told about the ephemeral key it introduced.
type Introduced struct {
	ID      string     // names the key from now on
	Server  *PublicKey // the server's half of a key agreement; nil for a signing key
	Expires time.Time  // end of the lease
}

// Offer is the device key that a login request brings.
type Offer struct {
	Key   *PublicKey
	Level Level // what the client says keeps the key: Hardware or Software
}

// Wire is a protocol that carries proofs in HTTP headers.
type Wire interface {
	// Offer reads the device key that a login request brings, and returns nil
	// if it brings none. An error is a *Refusal.
	Offer(m *Message) (*Offer, error)

	// Extract reads the request's proof into p and reports whether there is
	// one. It checks form only. An error is a *Refusal.
	Extract(m *Message, p *Proof) (found bool, err error)

	// Answer adds to the response headers what the peer needs to know about
	// the key that its request m introduced.
	Answer(m *Message, response map[string][]string, k Introduced)
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
}

// minRandom is how many random characters StrictNonce asks for: 16 characters
// of hex are 64 bit, enough for the few proofs a key makes in one window.
const minRandom = 16
