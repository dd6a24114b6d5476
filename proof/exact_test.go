package proof

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"testing"
	"time"
)

// An ephemeral key is used as the device key has delegated to it: not with
// another algorithm of its kind.
func TestDelegatedAlgorithm(t *testing.T) {
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	message := []byte("the signature base")
	sum := sha256.Sum256(message)
	sig, err := rsa.SignPKCS1v15(rand.Reader, private, crypto.SHA256, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	device := newSigner(t, ECDSAP256)
	for alg, want := range map[Algorithm]Reason{RSAPKCS1: "", RSAPSS: Invalid, RSAPSSSHA512: Invalid} {
		public, err := NewPublicKey(alg, &private.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		known := &EphemeralKey{ID: "id", Public: public, Expires: now.Add(time.Minute)}
		p := &Proof{Algorithm: RSAPKCS1, Signed: message, Signature: sig, Time: now, Random: 32, Nonce: []byte("n")}
		if _, err := Verify(&Message{}, p, device.public, known, now, nonce); reasonOf(err) != want {
			t.Errorf("a key for %s: %v, want %q", alg, err, want)
		}
		// A key that the proof presents is the device key, whatever it said at the login.
		p = &Proof{Key: public, Algorithm: RSAPKCS1, Signed: message, Signature: sig, Time: now, Random: 32, Nonce: []byte("n")}
		if _, err := Verify(&Message{}, p, public, nil, now, nonce); err != nil {
			t.Errorf("presented, for %s: %v", alg, err)
		}
	}
}

func TestVerifyExact(t *testing.T) {
	message := []byte("the signature base")
	for _, alg := range signingAlgorithms {
		s := newSigner(t, alg)
		sig := s.sign(message)
		for _, as := range []Algorithm{0, Ed25519, ECDSAP256, RSAPSS, RSAPKCS1, HMACSHA256, RSAPSSSHA512} {
			// The signer writes ECDSA as DER, which is not the one form.
			want := as == alg && alg != ECDSAP256
			if got := s.public.VerifyExact(as, message, sig); got != want {
				t.Errorf("a signature of %s as %s: %v", alg, as, got)
			}
		}
	}
}
