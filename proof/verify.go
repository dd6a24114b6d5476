package proof

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"time"
)

// Verify decides whether p holds for the request m: made by the holder of the
// ephemeral key, which the device key delegated to, and fresh by policy. The
// caller looked up known by p.KeyID, or passes nil if p introduces its key.
//
// On success it returns the ephemeral key that the proof stands on: known, or
// for an introduction a new one without ID, MAC and Expires, which the caller
// gives it. Otherwise the error is a *[Refusal]. The cheap checks come first.
//
// A caller whose policy is Nonce or StrictNonce then spends [Proof.ReplayID],
// after Verify and never before: else whoever can send garbage can spend the
// nonces of others.
func Verify(m *Message, p *Proof, device *PublicKey, known *EphemeralKey, now time.Time, policy Policy) (*EphemeralKey, error) {
	if known != nil && !now.Before(known.Expires) {
		return nil, &Refusal{Reason: KeyUnknown, Detail: "the ephemeral key's lease is over"}
	}
	if err := fresh(m, p, now, policy); err != nil {
		return nil, err
	}
	if p.Delegation != nil {
		return introduce(m, p, device, policy)
	}
	if known.MAC != nil {
		if !known.MAC.Verify(p.Signed, p.Signature) {
			return nil, &Refusal{Reason: Invalid, Detail: "the tag is not the ephemeral key's"}
		}
		return known, nil
	}
	if !known.Public.Verify(p.Signed, p.Signature) {
		return nil, &Refusal{Reason: Invalid, Detail: "the signature is not the ephemeral key's"}
	}
	p.signer = known.Public
	if err := separate(m, p, device, policy); err != nil {
		return nil, err
	}
	return known, nil
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
		// A value that is the body itself covers it as well as its hash does.
		if m.Body == nil || !claims(p.BodyClaim, m.Body) && sha256.Sum256(p.Signed) != *m.Body {
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
	if !p.Time.IsZero() || !p.signer.SameKey(device) {
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
// tag, which stands for the value. On the value alone two honest requests of one
// second would collide; on the raw signature a thief would re-encode it; with
// anything that is not signed, such as the type that a key is introduced as, he
// would change that. p has passed [Verify], and key is what that returned, with
// its ID.
func (p *Proof) ReplayID(dst []byte, key *EphemeralKey) []byte {
	if p.signer == nil {
		dst = append(append(dst, key.ID...), 0)
		return append(dst, p.Signature...)
	}
	dst = append(append(dst, p.signer.enc...), 0)
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
