package client

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/proof"
)

func TestRawECDSA(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte("m"))
	for range 600 { // among them some with leading zeros
		der, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
		if err != nil {
			t.Fatal(err)
		}
		raw, err := proof.RawECDSA(der)
		if err != nil || len(raw) != 64 {
			t.Fatal(len(raw), err)
		}
		if !ecdsa.Verify(&key.PublicKey, sum[:], new(big.Int).SetBytes(raw[:32]), new(big.Int).SetBytes(raw[32:])) {
			t.Fatalf("%x is not %x", raw, der)
		}
	}
	long := append([]byte{0x30, 0x26, 0x02, 0x21, 0x01}, make([]byte, 32)...)
	for _, bad := range [][]byte{nil, {0x30}, []byte("garbage"), {0x30, 6, 2, 1, 0, 2, 1, 1}, {0x30, 6, 2, 1, 1, 2, 1, 0xff}, {0x30, 6, 2, 1, 1, 2, 1, 1, 0}, append(long, 2, 1, 1)} {
		if raw, err := proof.RawECDSA(bad); err == nil {
			t.Errorf("%x: %x", bad, raw)
		}
	}
}

func TestRefusalOf(t *testing.T) {
	for text, want := range map[string][2]string{
		`Limpet error="key_unknown"`: {},
		`Limpet error="key_unknown", key=":AA==:;exp=1;lease=2", challenge="c"`: {":AA==:;exp=1;lease=2", "c"},
		`Limpet error="x", challenge="c", key="k"`:                              {"k", "c"},
		`Bearer realm="x", Limpet error="x", y="z", key="k"`:                    {"k", ""},
		`Limpet error="x", key="k`:                                              {},
		`Limpet error="x", key=k`:                                               {},
		`Limpet error="x"; key="k"`:                                             {},
		`Limpet error="x", key="k", Basic realm="y", challenge="c"`:             {"k", "c"},
		`Limpet key="k"`:                                                        {},
		``:                                                                      {},
	} {
		if key, challenge := refusalOf(text); key != want[0] || challenge != want[1] {
			t.Errorf("%s: %q %q", text, key, challenge)
		}
	}
}

// Whatever a peer sends as a refusal, no challenge is kept that a header could
// not carry.
func FuzzRefusal(f *testing.F) {
	f.Add(`Limpet error="key_unknown", key=":AA==:;exp=1;lease=2", challenge="c"`, "c")
	f.Add(`Limpet error="", ="", ="`, "\x00")
	f.Fuzz(func(t *testing.T, text, challenge string) {
		s := newSite("https://app.example.com")
		s.read(&http.Response{StatusCode: 401, Header: http.Header{"Www-Authenticate": {text}, "Limpet-Challenge": {challenge}}})
		if c := s.challenge.Load(); c != nil && (*c == "" || len(*c) > maxChallenge || strings.ContainsFunc(*c, func(r rune) bool { return r <= ' ' || r > '~' })) {
			t.Errorf("keeps %q", *c)
		}
	})
}

func TestPlainCookie(t *testing.T) {
	for value, want := range map[string]string{
		"abc": "abc", `"abc"`: "abc", "a%20b": "a b", "%2541": "A", `%22a%22`: "a", "%": "%", "a+b": "a+b",
	} {
		if got := plainCookie(value); got != want {
			t.Errorf("%s: %q, want %q", value, got, want)
		}
	}
}

func TestDropTokens(t *testing.T) {
	h := http.Header{"Authorization": {"Bearer old"}, "Cookie": {"sid=old; lang=en; csrf=x", "a=b"}}
	dropTokens(h, []tokenHash{hashOf("old")})
	if got := strings.Join(h["Cookie"], "; "); h.Get("Authorization") != "" || got != "lang=en; csrf=x; a=b" {
		t.Error(h)
	}
	h = http.Header{"Authorization": {"Bearer other"}}
	dropTokens(h, []tokenHash{hashOf("old")})
	if len(h) != 1 {
		t.Error(h)
	}
}

// A delegation begins a little before it is made, and ends with the server's
// lease.
func TestGrantScope(t *testing.T) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1_800_000_000, 500_000_000)
	for _, tc := range []struct{ lease, back, life time.Duration }{
		{15 * time.Minute, 5500 * time.Millisecond, 15*time.Minute - 6500*time.Millisecond},
		{10 * time.Second, 1500 * time.Millisecond, 7500 * time.Millisecond},
		{time.Second, 500 * time.Millisecond, 250 * time.Millisecond},
		{0, 5500 * time.Millisecond, defaultLife - 6500*time.Millisecond},
		{365 * 24 * time.Hour, 5500 * time.Millisecond, maxLife - 6500*time.Millisecond},
	} {
		g, err := newGrant(plainKey{private}, proof.HMACSHA256, proof.Scope{Audience: "app.example.com"}, now, tc.lease)
		if err != nil {
			t.Fatal(err)
		}
		if back := now.Sub(g.Scope.NotBefore); back != tc.back || g.life != tc.life || g.Scope.Expires.Sub(now) < g.life {
			t.Errorf("lease %v: begins %v before, life %v, expires in %v", tc.lease, back, g.life, g.Scope.Expires.Sub(now))
		}
		if !bytes.Equal(g.Key, g.public.Bytes()) {
			t.Error("another key")
		}
	}
}

// plainKey is a device key in memory.
type plainKey struct{ *ecdsa.PrivateKey }

func (plainKey) Info() hwkey.Info { return hwkey.Info{Algorithm: hwkey.ECDSAP256} }
func (plainKey) Close() error     { return nil }
