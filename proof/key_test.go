package proof

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"math/big"
	"strings"
	"sync"
	"testing"
)

// signer is a private key with its public half as the verifier sees it.
type signer struct {
	public *PublicKey
	sign   func(message []byte) []byte
}

var rsaKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

func newSigner(t testing.TB, alg Algorithm) signer {
	t.Helper()
	var private crypto.Signer
	opts := crypto.SignerOpts(crypto.SHA256)
	switch alg {
	case Ed25519:
		_, key, err := ed25519.GenerateKey(nil)
		if err != nil {
			t.Fatal(err)
		}
		private, opts = key, crypto.Hash(0)
	case ECDSAP256, HMACSHA256:
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		private = key
	case RSAPSS:
		private, opts = rsaKey(), &rsa.PSSOptions{SaltLength: 32, Hash: crypto.SHA256}
	case RSAPKCS1:
		private = rsaKey()
	}
	public, err := NewPublicKey(alg, private.Public())
	if err != nil {
		t.Fatal(err)
	}
	return signer{public, func(message []byte) []byte {
		if alg != Ed25519 {
			sum := sha256.Sum256(message)
			message = sum[:]
		}
		sig, err := private.Sign(rand.Reader, message, opts)
		if err != nil {
			t.Fatal(err)
		}
		return sig
	}}
}

var signingAlgorithms = []Algorithm{Ed25519, ECDSAP256, RSAPSS, RSAPKCS1}

func TestVerifySignatures(t *testing.T) {
	message := []byte("1764000000-00112233445566778899aabbccddeeff")
	for _, alg := range signingAlgorithms {
		t.Run(alg.String(), func(t *testing.T) {
			s, other := newSigner(t, alg), newSigner(t, alg)
			sig := s.sign(message)
			if !s.public.Verify(message, sig) {
				t.Fatal("own signature refused")
			}
			if s.public.Verify([]byte("another message"), sig) {
				t.Error("signature admitted for another message")
			}
			if alg != RSAPSS && alg != RSAPKCS1 && other.public.Verify(message, sig) {
				t.Error("signature admitted for another key")
			}
			for i := range sig {
				bad := append([]byte(nil), sig...)
				bad[i] ^= 1
				if s.public.Verify(message, bad) {
					t.Fatalf("signature with bit 0 of byte %d flipped is admitted", i)
				}
			}
			for _, bad := range [][]byte{nil, {}, sig[:len(sig)-1], append(sig[:len(sig):len(sig)], 0), make([]byte, 64), make([]byte, 10_000)} {
				if s.public.Verify(message, bad) {
					t.Errorf("garbage of %d bytes admitted", len(bad))
				}
			}
		})
	}
}

func TestVerifyAdmitsPrehashedEd25519(t *testing.T) {
	s := newSigner(t, Ed25519)
	message := []byte("value")
	sum := sha256.Sum256(message)
	if !s.public.Verify(message, s.sign(sum[:])) {
		t.Error("a signature over SHA-256(message) is refused")
	}
	if s.public.Verify(sum[:], s.sign(sum[:])) {
		t.Error("the same signature is admitted with the digest in place of the message")
	}
	if body := []byte(`{"amount":1,"to":"bob","x":"yz"}`); len(body) != 32 || !s.public.Verify(body, s.sign(body)) {
		t.Error("a body of 32 characters is refused")
	}
}

func TestVerifyAdmitsAnySaltLength(t *testing.T) {
	key := rsaKey()
	public, err := NewPublicKey(RSAPSS, &key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte("value"))
	for _, salt := range []int{0, 20, 32, 2048/8 - 32 - 2} {
		sig, err := rsa.SignPSS(rand.Reader, key, crypto.SHA256, sum[:], &rsa.PSSOptions{SaltLength: salt})
		if err != nil {
			t.Fatal(err)
		}
		if !public.Verify([]byte("value"), sig) {
			t.Errorf("salt of %d bytes refused", salt)
		}
	}
}

// The one scheme of a key must not be swapped for another of the same kind.
func TestSchemesAreNotInterchangeable(t *testing.T) {
	message := []byte("value")
	pss, pkcs1 := newSigner(t, RSAPSS), newSigner(t, RSAPKCS1)
	if pss.public.Verify(message, pkcs1.sign(message)) || pkcs1.public.Verify(message, pss.sign(message)) {
		t.Error("an RSA signature of one scheme is admitted under the other")
	}
	agree := newSigner(t, HMACSHA256)
	if agree.public.Verify(message, agree.sign(message)) {
		t.Error("a key agreement key verifies signatures")
	}
}

func TestParsePublicKey(t *testing.T) {
	p256 := newSigner(t, ECDSAP256).public
	point := p256.Bytes()
	ed := newSigner(t, Ed25519).public
	spki := func(pub any) []byte {
		b, err := x509.MarshalPKIXPublicKey(pub)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	ec := func(curve elliptic.Curve) any {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return &key.PublicKey
	}
	rsaOf := func(bits, e int) any {
		n := new(big.Int).Lsh(big.NewInt(1), uint(bits-1))
		return &rsa.PublicKey{N: n.Or(n, big.NewInt(1)), E: e}
	}
	mutate := func(b []byte, i int, v byte) []byte {
		b = append([]byte(nil), b...)
		b[i] ^= v
		return b
	}
	x25519, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}

	for _, tt := range []struct {
		name string
		alg  Algorithm
		in   []byte
		ok   bool
	}{
		{"p256 point", ECDSAP256, point, true},
		{"p256 SPKI", ECDSAP256, spki(p256.ec), true},
		{"agreement point", HMACSHA256, point, true},
		{"agreement SPKI", HMACSHA256, spki(p256.ec), true},
		{"ed25519 raw", Ed25519, ed.Bytes(), true},
		{"ed25519 SPKI", Ed25519, spki(ed.ed), true},
		{"rsa 2048", RSAPSS, spki(&rsaKey().PublicKey), true},
		{"rsa 2048 for PKCS #1", RSAPKCS1, spki(&rsaKey().PublicKey), true},
		{"rsa 4096", RSAPSS, spki(rsaOf(4096, 65537)), true},

		{"empty", ECDSAP256, nil, false},
		{"point off the curve", ECDSAP256, mutate(point, 64, 1), false},
		{"point off the curve, agreement", HMACSHA256, mutate(point, 64, 1), false},
		{"point at infinity", ECDSAP256, []byte{0}, false},
		{"all zero", ECDSAP256, make([]byte, 65), false},
		{"compressed point", ECDSAP256, append([]byte{2 | point[64]&1}, point[1:33]...), false},
		{"hybrid point", ECDSAP256, mutate(point, 0, 4^6), false},
		{"point off the curve in SPKI", ECDSAP256, mutate(spki(p256.ec), 90, 1), false},
		{"P-224", ECDSAP256, spki(ec(elliptic.P224())), false},
		{"P-384", ECDSAP256, spki(ec(elliptic.P384())), false},
		{"P-521 for agreement", HMACSHA256, spki(ec(elliptic.P521())), false},
		{"X25519 for agreement", HMACSHA256, spki(x25519.PublicKey()), false},
		{"ed25519 one byte short", Ed25519, ed.Bytes()[:31], false},
		{"rsa 1024", RSAPSS, spki(rsaOf(1024, 65537)), false},
		{"rsa 2047", RSAPSS, spki(rsaOf(2047, 65537)), false},
		{"rsa 4097", RSAPSS, spki(rsaOf(4097, 65537)), false},
		{"rsa 8192", RSAPSS, spki(rsaOf(8192, 65537)), false},
		{"rsa even exponent", RSAPSS, spki(rsaOf(2048, 65536)), false},
		{"rsa exponent 1", RSAPSS, spki(rsaOf(2048, 1)), false},
		{"rsa even modulus", RSAPSS, spki(&rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 2047), E: 65537}), false},
		{"trailing garbage", ECDSAP256, append(spki(p256.ec), 0), false},
		{"p256 as ed25519", Ed25519, spki(p256.ec), false},
		{"ed25519 as p256", ECDSAP256, spki(ed.ed), false},
		{"p256 as rsa", RSAPSS, spki(p256.ec), false},
		{"rsa as p256", ECDSAP256, spki(&rsaKey().PublicKey), false},
		{"not a key", RSAPSS, []byte(strings.Repeat("secret", 20)), false},
		{"too long", RSAPSS, make([]byte, 64<<10), false},
		{"unknown algorithm", Algorithm(99), point, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			key, err := ParsePublicKey(tt.alg, tt.in)
			if !tt.ok {
				if err == nil {
					t.Fatal("admitted")
				}
				if !errors.Is(err, errKey) || strings.Contains(err.Error(), "secret") {
					t.Errorf("error %q", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			again, err := ParsePublicKey(tt.alg, key.Bytes())
			if err != nil || !again.SameKey(key) {
				t.Errorf("canonical encoding does not read back: %v", err)
			}
		})
	}
}

// RFC 7638, 3.1; RFC 8037, A.3; RFC 9449, 4.1 and 6.1.
func TestThumbprint(t *testing.T) {
	b64 := func(s string) []byte {
		b, err := base64.RawURLEncoding.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	n := new(big.Int).SetBytes(b64("0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"))
	rsaPub, err := NewPublicKey(RSAPSS, &rsa.PublicKey{N: n, E: 65537})
	if err != nil {
		t.Fatal(err)
	}
	ed, err := ParsePublicKey(Ed25519, b64("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"))
	if err != nil {
		t.Fatal(err)
	}
	p256, err := ParsePublicKey(ECDSAP256, append([]byte{4}, append(b64("l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs"), b64("9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA")...)...))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		key  *PublicKey
		want string
	}{
		{p256, "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"},
		{rsaPub, "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"},
		{ed, "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"},
	} {
		sum := tt.key.Thumbprint()
		if got := base64.RawURLEncoding.EncodeToString(sum[:]); got != tt.want {
			t.Errorf("%s: thumbprint %s, want %s", tt.key.Algorithm(), got, tt.want)
		}
	}
}

// RFC 4231, test cases 1 and 2.
func TestMACKnownAnswers(t *testing.T) {
	for _, tt := range []struct{ key, data, tag string }{
		{strings.Repeat("0b", 20), hex.EncodeToString([]byte("Hi There")), "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"},
		{hex.EncodeToString([]byte("Jefe")), hex.EncodeToString([]byte("what do ya want for nothing?")), "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"},
	} {
		unhex := func(s string) []byte { b, _ := hex.DecodeString(s); return b }
		k := NewMACKey(unhex(tt.key))
		if got := hex.EncodeToString(k.Append(nil, unhex(tt.data))); got != tt.tag {
			t.Errorf("tag %s, want %s", got, tt.tag)
		}
		if !k.Verify(unhex(tt.data), unhex(tt.tag)) {
			t.Error("right tag refused")
		}
		if k.Verify(unhex(tt.data), unhex(tt.tag)[:31]) || k.Verify(nil, unhex(tt.tag)) {
			t.Error("wrong tag admitted")
		}
	}
}

// A MAC over nothing is the same for every message: make sure ours is not.
func TestMACCoversTheMessage(t *testing.T) {
	k := NewMACKey([]byte("key"))
	if string(k.Append(nil, []byte("a"))) == string(k.Append(nil, []byte("b"))) {
		t.Error("two messages, one tag")
	}
}

func TestMACKeyConcurrently(t *testing.T) {
	k := NewMACKey([]byte("key"))
	want := NewMACKey([]byte("key")).Append(nil, []byte("message"))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 500 {
				if !k.Verify([]byte("message"), want) || k.Verify([]byte("other"), want) {
					t.Error("wrong answer under concurrency")
					return
				}
			}
		})
	}
	wg.Wait()
}
