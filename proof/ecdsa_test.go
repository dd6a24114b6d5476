package proof

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/asn1"
	"math/big"
	"testing"
)

// Every way to write one signature must verify and must come down to the same
// canonical bytes.
func TestECDSACanonical(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := NewPublicKey(ECDSAP256, &key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	message := []byte("value")
	sum := sha256.Sum256(message)
	order := elliptic.P256().Params().N
	for range 200 {
		der, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
		if err != nil {
			t.Fatal(err)
		}
		var rs struct{ R, S *big.Int }
		if _, err := asn1.Unmarshal(der, &rs); err != nil {
			t.Fatal(err)
		}
		negS := new(big.Int).Sub(order, rs.S)
		flipped, err := asn1.Marshal(struct{ R, S *big.Int }{rs.R, negS})
		if err != nil {
			t.Fatal(err)
		}
		raw := func(r, s *big.Int) []byte {
			return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
		}
		small := rs.S
		if negS.Cmp(small) < 0 {
			small = negS
		}
		want := raw(rs.R, small)
		for name, sig := range map[string][]byte{"DER": der, "DER n-s": flipped, "raw": raw(rs.R, rs.S), "raw n-s": raw(rs.R, negS)} {
			if !public.Verify(message, sig) {
				t.Errorf("%s does not verify", name)
			}
			if got := public.canonical(nil, sig); !bytes.Equal(got, want) {
				t.Errorf("%s: canonical form %x, want %x", name, got, want)
			}
		}
		parsed, ok := parseECDSA(der)
		if !ok || !bytes.Equal(parsed.appendDER(nil), der) {
			t.Errorf("DER does not survive a round trip: %x", der)
		}
	}
}

func TestECDSARefusesBadDER(t *testing.T) {
	good := []byte{0x30, 6, 2, 1, 1, 2, 1, 1}
	if _, ok := parseECDSA(good); !ok {
		t.Fatal("minimal DER refused")
	}
	for name, sig := range map[string][]byte{
		"empty":             {},
		"wrong tag":         {0x31, 6, 2, 1, 1, 2, 1, 1},
		"long form length":  {0x30, 0x81, 6, 2, 1, 1, 2, 1, 1},
		"indefinite length": {0x30, 0x80, 2, 1, 1, 2, 1, 1, 0, 0},
		"trailing byte":     append(append([]byte(nil), good...), 0),
		"inside trailing":   {0x30, 7, 2, 1, 1, 2, 1, 1, 0},
		"negative r":        {0x30, 6, 2, 1, 0x80, 2, 1, 1},
		"padded r":          {0x30, 7, 2, 2, 0, 1, 2, 1, 1},
		"empty integer":     {0x30, 5, 2, 0, 2, 1, 1},
		"only one integer":  {0x30, 3, 2, 1, 1},
		"integer too long":  append([]byte{0x30, 39, 2, 34}, make([]byte, 37)...),
		"truncated":         good[:7],
	} {
		if _, ok := parseECDSA(sig); ok {
			t.Errorf("%s admitted", name)
		}
	}
}

func FuzzParseECDSA(f *testing.F) {
	f.Add([]byte{0x30, 6, 2, 1, 1, 2, 1, 1})
	f.Add(make([]byte, 64))
	f.Fuzz(func(t *testing.T, sig []byte) {
		rs, ok := parseECDSA(sig)
		if !ok {
			return
		}
		if len(sig) != 64 && !bytes.Equal(rs.appendDER(nil), sig) {
			t.Fatalf("%x is not the DER that it parses to", sig)
		}
		once := rs.appendCanonical(nil)
		if again := (*ecdsaSignature)(once).appendCanonical(nil); !bytes.Equal(once, again) {
			t.Fatalf("canonical form is not stable: %x then %x", once, again)
		}
	})
}

func FuzzParsePublicKey(f *testing.F) {
	for _, alg := range []Algorithm{Ed25519, ECDSAP256, RSAPSS, HMACSHA256} {
		key := newSigner(f, alg).public
		f.Add(byte(alg), key.Bytes())
		if spki, err := key.SPKI(); err == nil {
			f.Add(byte(alg), spki)
		}
	}
	f.Fuzz(func(t *testing.T, alg byte, b []byte) {
		key, err := ParsePublicKey(Algorithm(alg), b)
		if err != nil {
			return
		}
		again, err := ParsePublicKey(Algorithm(alg), key.Bytes())
		if err != nil || !again.SameKey(key) || again.Thumbprint() != key.Thumbprint() {
			t.Fatalf("key does not read back: %v", err)
		}
	})
}

func TestRawECDSA(t *testing.T) {
	s := newSigner(t, ECDSAP256)
	raw, err := RawECDSA(s.sign([]byte("message")))
	if err != nil || !s.public.VerifyExact(ECDSAP256, []byte("message"), raw) {
		t.Errorf("%x: %v", raw, err)
	}
	for _, bad := range [][]byte{nil, raw, {0x30, 6, 2, 1, 0, 2, 1, 1}, {0x30, 6, 2, 1, 1, 2, 1, 0}} {
		if _, err := RawECDSA(bad); err == nil {
			t.Errorf("%x is a signature", bad)
		}
	}
}
