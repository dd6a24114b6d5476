package proof

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"testing"
	"time"
)

// BenchmarkVerify is the decision over a parsed proof, for each algorithm,
// beside the bare crypto call on the same bytes.
func BenchmarkVerify(b *testing.B) {
	for _, alg := range append(signingAlgorithms, HMACSHA256) {
		key := newSigner(b, alg)
		known := &EphemeralKey{ID: "id", Public: key.public, Expires: now.Add(time.Hour)}
		if alg == HMACSHA256 {
			known.MAC = NewMACKey([]byte("0123456789abcdef0123456789abcdef"))
			key.sign = func(m []byte) []byte { return known.MAC.Append(nil, m) }
		}
		device := newSigner(b, ECDSAP256).public
		p := at(now, key.sign)
		raw := bare(known.Public, p)
		b.Run(alg.String()+"/bare", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if !raw() {
					b.Fatal("refused")
				}
			}
		})
		b.Run(alg.String()+"/limpet", func(b *testing.B) {
			b.ReportAllocs()
			m := &Message{}
			for b.Loop() {
				if _, err := Verify(m, p, device, known, now, nonce); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// bare returns the standard library's check of p's signature and nothing else.
func bare(key *PublicKey, p *Proof) func() bool {
	switch key.alg {
	case Ed25519:
		return func() bool { return ed25519.Verify(key.ed, p.Signed, p.Signature) }
	case ECDSAP256:
		return func() bool {
			sum := sha256.Sum256(p.Signed)
			return ecdsa.VerifyASN1(key.ec, sum[:], p.Signature)
		}
	case RSAPSS:
		return func() bool {
			sum := sha256.Sum256(p.Signed)
			return rsa.VerifyPSS(key.rsa, crypto.SHA256, sum[:], p.Signature, nil) == nil
		}
	case RSAPKCS1:
		return func() bool {
			sum := sha256.Sum256(p.Signed)
			return rsa.VerifyPKCS1v15(key.rsa, crypto.SHA256, sum[:], p.Signature) == nil
		}
	}
	mac := hmac.New(sha256.New, []byte("0123456789abcdef0123456789abcdef"))
	var sum [sha256.Size]byte
	return func() bool {
		mac.Reset()
		mac.Write(p.Signed)
		return subtle.ConstantTimeCompare(mac.Sum(sum[:0]), p.Signature) == 1
	}
}
