package proof

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"slices"
	"time"
)

// Verify decides whether p holds for the request m: made by the holder of the
// ephemeral key, which the device key delegated to, or of the device key itself,
// and fresh by policy. The caller looked up known by p.KeyID, or passes nil if
// there is none, and p introduces its key or presents the device key.
//
// On success it returns the key that the proof stands on: known, or for an
// introduction a new one. Of a delegation without a Scope that is one without
// ID, MAC and Expires, which the caller gives it. Otherwise the error is a
// *[Refusal]. The cheap checks come first.
//
// The caller then spends [Proof.ReplayID], after Verify and never before: else
// whoever can send garbage can spend the nonces of others.
func Verify(m *Message, p *Proof, device *PublicKey, known *EphemeralKey, now time.Time, policy Policy) (*EphemeralKey, error) {
	if known != nil && !now.Before(known.Expires) {
		return nil, &Refusal{Reason: KeyUnknown, Detail: "the ephemeral key's lease is over"}
	}
	if err := fresh(m, p, now, policy); err != nil {
		return nil, err
	}
	if len(policy.Challenges) > 0 && !slices.Contains(policy.Challenges, p.Challenge) {
		return nil, &Refusal{Reason: Stale, Detail: "the proof does not cover a current challenge"}
	}
	if policy.Channel && !p.Channel {
		return nil, &Refusal{Reason: NoChannel, Detail: "the proof is not made with the key of its TLS connection"}
	}
	switch {
	case known != nil:
	case p.Key != nil:
		if !p.Key.SameKey(device) {
			return nil, &Refusal{Reason: Invalid, Detail: "the key in the proof is not the session's device key"}
		}
		known = &EphemeralKey{Public: p.Key}
	case p.ByDevice:
		known = &EphemeralKey{Public: device}
	case p.Delegation == nil:
		return nil, &Refusal{Reason: KeyUnknown, Detail: "the ephemeral key is not known"}
	case p.Delegation.Scope == nil:
		return introduce(m, p, device, policy)
	default:
		var err error
		if known, err = delegated(m, p, device, now, policy); err != nil {
			return nil, err
		}
	}
	if known.MAC != nil {
		return known, verifyMAC(m, p, known)
	}
	if p.Channel {
		return nil, &Refusal{Reason: NoChannel, Detail: "a signing key has no key of a TLS connection"}
	}
	// A key that a proof presents may be used with another algorithm of its kind
	// than at the login; one that was delegated to, only as the delegation says.
	if p.Key == nil && p.Algorithm != 0 && p.Algorithm != known.Public.alg {
		return nil, &Refusal{Reason: Invalid, Detail: "the proof is of another algorithm than its key"}
	}
	if !p.verifies(known.Public) {
		return nil, &Refusal{Reason: Invalid, Detail: "the signature is not the key's"}
	}
	p.signer = known.Public
	return known, separate(m, p, device, policy)
}

// VerifyOffer decides whether the proof of a login request holds: made by the
// device key that it offers, at this time. The caller then spends its
// [Proof.ReplayID]. An offer without a proof holds for nothing, and always.
func VerifyOffer(m *Message, o *Offer, now time.Time, policy Policy) error {
	p := o.Proof
	if p == nil {
		return nil
	}
	if err := fresh(m, p, now, policy); err != nil {
		return err
	}
	if !p.verifies(o.Key) {
		return &Refusal{Reason: Invalid, Detail: "the login is not signed by the device key that it offers"}
	}
	p.signer = o.Key
	return nil
}

func verifyMAC(m *Message, p *Proof, known *EphemeralKey) error {
	if p.Algorithm != 0 && p.Algorithm != HMACSHA256 {
		return &Refusal{Reason: Invalid, Detail: "the proof is of another algorithm than its key"}
	}
	mac := known.MAC
	if p.Channel {
		if m.ChannelKey == nil {
			return &Refusal{Reason: Invalid, Detail: "the proof is bound to a TLS connection, and TLS ends elsewhere"}
		}
		var err error
		if mac, err = m.ChannelKey(known); err != nil {
			return &Refusal{Reason: Invalid, Detail: "key of the TLS connection", Err: err}
		}
	}
	if !mac.Verify(p.Signed, p.Signature) {
		return &Refusal{Reason: Invalid, Detail: "the tag is not the ephemeral key's"}
	}
	return nil
}

// verifies reports whether the proof's signature is the key's.
func (p *Proof) verifies(key *PublicKey) bool {
	if p.Algorithm == 0 {
		return key.Verify(p.Signed, p.Signature)
	}
	return key.VerifyExact(p.Algorithm, p.Signed, p.Signature)
}

// delegated checks a delegation that says what it is good for, and returns the
// ephemeral key. The key is parsed only once the device key has vouched for it.
func delegated(m *Message, p *Proof, device *PublicKey, now time.Time, policy Policy) (*EphemeralKey, error) {
	d, s := p.Delegation, p.Delegation.Scope
	switch {
	case s.Session != m.Session:
		return nil, &Refusal{Reason: Invalid, Detail: "the delegation is for another session"}
	case s.Audience != m.Authority:
		return nil, &Refusal{Reason: Invalid, Detail: "the delegation is for another authority"}
	case s.NotBefore.Sub(now) > policy.Skew:
		return nil, &Refusal{Reason: ClockSkew, Detail: "the delegation begins " + round(s.NotBefore.Sub(now)) + " ahead of the server's clock"}
	}
	// A lease that is longer than the server's ends when the server's does.
	expires := s.Expires
	if longest := s.NotBefore.Add(policy.Lease); longest.Before(expires) {
		expires = longest
	}
	if !now.Before(expires) {
		return nil, &Refusal{Reason: KeyUnknown, Detail: "the delegation is over"}
	}
	if !device.VerifyExact(device.alg, d.Signed, d.Signature) {
		return nil, &Refusal{Reason: Invalid, Detail: "the delegation is not signed by the session's device key"}
	}
	key, err := ParsePublicKey(d.Algorithm, d.Key)
	if err != nil {
		return nil, &Refusal{Reason: Malformed, Detail: "ephemeral key", Err: err}
	}
	if sum := key.Thumbprint(); p.KeyID != base64.RawURLEncoding.EncodeToString(sum[:]) {
		return nil, &Refusal{Reason: Invalid, Detail: "the proof is by another key than the delegation's"}
	}
	e := &EphemeralKey{ID: p.KeyID, Public: key, Expires: expires}
	if key.alg == HMACSHA256 {
		if e.MAC, err = policy.Agree(d, key); err != nil {
			return nil, err
		}
	}
	return e, nil
}

func fresh(m *Message, p *Proof, now time.Time, policy Policy) error {
	if !p.Time.IsZero() {
		if age := now.Sub(p.Time); age > policy.Window {
			return &Refusal{Reason: ClockSkew, Detail: "the client's clock is slow or the proof is old: made " + round(age) + " before the server's clock"}
		} else if ahead := p.Time.Sub(now); ahead > policy.Skew { // -age overflows
			return &Refusal{Reason: ClockSkew, Detail: "the client's clock is fast: the proof is " + round(ahead) + " ahead of the server's clock"}
		}
	}
	switch policy.Freshness {
	case Nonce:
		return nil
	case StrictNonce:
		if p.Time.IsZero() || p.Random < minRandom {
			return &Refusal{Reason: NonceWeak, Detail: "the value lacks a time or a random part"}
		}
		return nil
	case BodyHash:
		// Where a wire signs a bare value, one that is the body itself covers it as
		// well as its hash does.
		if m.Body == nil || !claims(p.BodyClaim, m.Body) && (p.Algorithm != 0 || sha256.Sum256(p.Signed) != *m.Body) {
			return &Refusal{Reason: BodyDiffer, Detail: "the signed value is not the hash of the body"}
		}
		return nil
	case Timestamp:
		if p.Time.IsZero() {
			return &Refusal{Reason: NonceWeak, Detail: "the value has no time in it"}
		}
		return nil
	}
	return &Refusal{Reason: Invalid, Detail: "unknown freshness policy"}
}

// claims reports whether claim is the digest, as bytes or as text.
func claims(claim []byte, digest *[sha256.Size]byte) bool {
	switch len(claim) {
	case sha256.Size:
		return [sha256.Size]byte(claim) == *digest
	case hex.EncodedLen(sha256.Size):
		var b [sha256.Size]byte
		_, err := hex.Decode(b[:], claim)
		return err == nil && b == *digest
	}
	b, err := AppendBase64(nil, claim)
	return err == nil && len(b) == sha256.Size && [sha256.Size]byte(b) == *digest
}

// introduce checks a delegation and the proof that comes with it. The
// ephemeral key is parsed only once the device key has vouched for it.
func introduce(m *Message, p *Proof, device *PublicKey, policy Policy) (*EphemeralKey, error) {
	d := p.Delegation
	if !device.Verify(d.Signed, d.Signature) {
		return nil, &Refusal{Reason: Invalid, Detail: "the delegation is not signed by the session's device key"}
	}
	key, err := ParsePublicKey(d.Algorithm, d.Key)
	if err != nil {
		return nil, &Refusal{Reason: Malformed, Detail: "ephemeral key", Err: err}
	}
	if d.ProofBy != ByEphemeral && device.Verify(p.Signed, p.Signature) {
		p.signer = device
	} else if d.ProofBy != ByDevice {
		signer := key
		if key.alg == HMACSHA256 {
			if signer, err = key.As(ECDSAP256); err != nil {
				return nil, &Refusal{Reason: Malformed, Detail: "ephemeral key", Err: err}
			}
		}
		if signer.Verify(p.Signed, p.Signature) {
			p.signer = signer
		}
	}
	if p.signer == nil {
		return nil, &Refusal{Reason: Invalid, Detail: "the introduction's value is not signed by the key that must sign it"}
	}
	if err := separate(m, p, device, policy); err != nil {
		return nil, err
	}
	return &EphemeralKey{Public: key}, nil
}

// separate keeps a delegation from being passed off as a proof. Some wires have
// the device key sign the text of ephemeral keys and the values of proofs
// alike, so a value that reads as a key is refused from the device key. The
// hash of the body at hand may look like a key; nobody can choose it to be one.
func separate(m *Message, p *Proof, device *PublicKey, policy Policy) error {
	if !p.Time.IsZero() || p.Algorithm != 0 || !p.signer.SameKey(device) {
		return nil
	}
	if policy.Freshness == BodyHash && claims(p.BodyClaim, m.Body) {
		return nil
	}
	b, err := AppendBase64(nil, p.Signed)
	if err != nil {
		return nil
	}
	_, err = x509.ParsePKIXPublicKey(b)
	if err == nil || len(b) == ed25519.PublicKeySize || len(b) == pointSize {
		return &Refusal{Reason: Malformed, Detail: "the signed value reads as a public key"}
	}
	return nil
}

// AppendBase64 appends the bytes that base64 text stands for: standard or URL
// alphabet, padded or not. The error is encoding/base64's.
func AppendBase64(dst, text []byte) ([]byte, error) {
	enc := base64.RawStdEncoding
	if bytes.IndexByte(text, '-') >= 0 || bytes.IndexByte(text, '_') >= 0 {
		enc = base64.RawURLEncoding
	}
	return enc.AppendDecode(dst, bytes.TrimRight(text, "="))
}

// ReplayID appends what identifies this use of a key: the key that signed, the
// signed value and the signature in canonical form; of a MAC the key and the
// tag, which stands for the value. Where the value has a nonce in it, that
// stands for value and signature. On the value alone two honest requests of one
// second would collide; on the raw signature a thief would re-encode it; with
// anything that is not signed, such as the type that a key is introduced as, he
// would change that. p has passed [Verify], and key is what that returned, with
// its ID.
func (p *Proof) ReplayID(dst []byte, key *EphemeralKey) []byte {
	if p.signer == nil {
		dst = append(append(dst, key.ID...), 0)
		if p.Nonce != nil {
			return append(dst, p.Nonce...)
		}
		return append(dst, p.Signature...)
	}
	dst = append(append(dst, p.signer.enc...), 0)
	if p.Nonce != nil {
		return append(dst, p.Nonce...)
	}
	dst = append(append(dst, p.Signed...), 0)
	return p.signer.canonical(dst, p.Signature)
}

// round writes a duration for people: to the second, or finer below one.
func round(d time.Duration) string {
	if d > time.Second {
		d = d.Round(time.Second)
	}
	return d.String()
}
