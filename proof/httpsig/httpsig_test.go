package httpsig

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/proof"
)

func reasonOf(err error) proof.Reason {
	var r *proof.Refusal
	if errors.As(err, &r) {
		return r.Reason
	}
	if err != nil {
		return "not a refusal"
	}
	return ""
}

func header(pairs ...string) map[string][]string {
	h := http.Header{}
	for i := 0; i < len(pairs); i += 2 {
		h.Add(pairs[i], pairs[i+1])
	}
	return h
}

var (
	now    = time.Unix(1764000000, 0)
	policy = proof.Policy{Freshness: proof.StrictNonce, Window: time.Minute, Skew: 30 * time.Second, Lease: time.Hour}
	rsaKey = sync.OnceValue(func() *rsa.PrivateKey {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		return key
	})
)

const (
	bearer = "5UbLkmIlm0nEvlGjPCMbpvDnbjRxjLnFmy9gQ0hCJbw"
	nonce  = "mP8yZ0yCkq2b1xQ7Yw3jUA"
	body   = `{"amount":1}`
)

// signer is a key pair of a client.
type signer struct {
	public *proof.PublicKey
	id     string // its thumbprint, as keyid has it
	sign   func([]byte) ([]byte, error)
	mac    *proof.MACKey // of an agreement key
}

// newSigner returns a key that signs in the one form of alg. An agreement key's
// MAC key is agreed with nobody.
func newSigner(t testing.TB, alg proof.Algorithm) *signer {
	t.Helper()
	s := new(signer)
	var pub crypto.PublicKey
	switch alg {
	case proof.HMACSHA256:
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		pub = &key.PublicKey
		secret := make([]byte, 32)
		rand.Read(secret)
		s.mac = proof.NewMACKey(secret)
		s.sign = func(b []byte) ([]byte, error) { return s.mac.Append(nil, b), nil }
	case proof.ECDSAP256:
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		pub = &key.PublicKey
		s.sign = func(b []byte) ([]byte, error) {
			sum := sha256.Sum256(b)
			r, v, err := ecdsa.Sign(rand.Reader, key, sum[:])
			if err != nil {
				return nil, err
			}
			sig := make([]byte, 64)
			r.FillBytes(sig[:32])
			v.FillBytes(sig[32:])
			return sig, nil
		}
	case proof.Ed25519:
		p, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		pub = p
		s.sign = func(b []byte) ([]byte, error) { return ed25519.Sign(key, b), nil }
	default:
		key := rsaKey()
		pub = &key.PublicKey
		s.sign = func(b []byte) ([]byte, error) {
			if alg == proof.RSAPSSSHA512 {
				sum := sha512.Sum512(b)
				return key.Sign(rand.Reader, sum[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA512})
			}
			sum := sha256.Sum256(b)
			if alg == proof.RSAPSS {
				return key.Sign(rand.Reader, sum[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256})
			}
			return key.Sign(rand.Reader, sum[:], crypto.SHA256)
		}
	}
	var err error
	if s.public, err = proof.NewPublicKey(alg, pub); err != nil {
		t.Fatal(err)
	}
	sum := s.public.Thumbprint()
	s.id = base64.RawURLEncoding.EncodeToString(sum[:])
	return s
}

// known is the key as a server knows it that has admitted its delegation.
func (s *signer) known() *proof.EphemeralKey {
	return &proof.EphemeralKey{ID: s.id, Public: s.public, MAC: s.mac, Expires: now.Add(time.Hour)}
}

// signing is what signatures by s say of themselves.
func (s *signer) signing() *Signing {
	return &Signing{KeyID: s.id, Algorithm: s.public.Algorithm(), Created: now, Nonce: nonce}
}

// request returns a request that is not signed yet.
func request(inCookie, hasBody bool) *proof.Message {
	m := &proof.Message{
		Method: "GET", Scheme: "https", Authority: "app.example.com", Path: "/orders/7", RawQuery: "full=1&x=%20",
		Header:   header("Accept", "*/*", "User-Agent", "test"),
		Session:  sha256.Sum256([]byte(bearer)),
		InCookie: inCookie,
	}
	if inCookie {
		m.Header["Cookie"] = []string{"sid=" + bearer}
		m.Header[SessionField] = []string{FormatSession(m.Session)}
	} else {
		m.Header["Authorization"] = []string{"Bearer " + bearer}
	}
	if hasBody {
		m.Method, m.HasBody = "POST", true
		m.Header[DigestField] = []string{FormatDigest(sha256.Sum256([]byte(body)))}
	}
	return m
}

// signed returns a request that s has signed.
func (s *signer) signed(t testing.TB, inCookie, hasBody bool) *proof.Message {
	t.Helper()
	m := request(inCookie, hasBody)
	if err := Sign(m, s.signing(), s.sign); err != nil {
		t.Fatal(err)
	}
	return m
}

// clone returns a copy of m that can be changed.
func clone(m *proof.Message) *proof.Message {
	c := *m
	c.Header = map[string][]string{}
	for name, lines := range m.Header {
		c.Header[name] = slices.Clone(lines)
	}
	return &c
}

// login returns a login request with the device key that it offers.
func login(t testing.TB, device *signer, level proof.Level) *proof.Message {
	t.Helper()
	field, err := FormatDevice(device.public, level)
	if err != nil {
		t.Fatal(err)
	}
	m := &proof.Message{
		Method: "POST", Scheme: "https", Authority: "app.example.com", Path: "/login", HasBody: true,
		Header: header(DeviceField, field, DigestField, FormatDigest(sha256.Sum256([]byte(body)))),
	}
	if err := Sign(m, device.signing(), device.sign); err != nil {
		t.Fatal(err)
	}
	return m
}

// scope is what delegations of tests are good for.
func scope() *proof.Scope {
	return &proof.Scope{NotBefore: now, Expires: now.Add(15 * time.Minute), Session: sha256.Sum256([]byte(bearer)), Audience: "app.example.com"}
}

// delegation returns a delegation from device to s.
func (s *signer) delegation(t testing.TB, device *signer) *proof.Delegation {
	t.Helper()
	d := &proof.Delegation{Algorithm: s.public.Algorithm(), Key: s.public.Bytes(), Scope: scope()}
	if d.Algorithm == proof.HMACSHA256 {
		d.Scope.Server = newSigner(t, proof.HMACSHA256).public.ID()
	}
	d.Signed = Statement(d.Algorithm, d.Key, d.Scope)
	var err error
	if d.Signature, err = device.sign(d.Signed); err != nil {
		t.Fatal(err)
	}
	return d
}

var requestAlgorithms = []proof.Algorithm{proof.HMACSHA256, proof.ECDSAP256, proof.Ed25519, proof.RSAPSSSHA512, proof.RSAPKCS1}

func TestSignedRequestsVerify(t *testing.T) {
	for _, alg := range requestAlgorithms {
		s := newSigner(t, alg)
		for _, tt := range []struct {
			name              string
			inCookie, hasBody bool
		}{{"bearer", false, false}, {"bearer, body", false, true}, {"cookie", true, false}, {"cookie, body", true, true}} {
			t.Run(alg.String()+", "+tt.name, func(t *testing.T) {
				m := s.signed(t, tt.inCookie, tt.hasBody)
				var p proof.Proof
				found, err := Wire{}.Extract(m, &p)
				if !found || err != nil {
					t.Fatal(found, err)
				}
				sum := sha256.Sum256(nil)
				if tt.hasBody {
					sum = sha256.Sum256([]byte(body))
				}
				if p.KeyID != s.id || p.Algorithm != alg || !p.Time.Equal(now) || string(p.Nonce) != nonce || p.Random != len(nonce) ||
					string(p.BodyClaim) != string(sum[:]) || !p.Digest || p.Challenge != "" || p.Channel || p.Delegation != nil || p.Key != nil {
					t.Errorf("%+v", p)
				}
				if _, err := proof.Verify(m, &p, nil, s.known(), now, policy); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// The one signature that the profile makes of a request, in full.
func TestSignatureBase(t *testing.T) {
	s := newSigner(t, proof.HMACSHA256)
	m := request(false, true)
	m.Header[ChallengeField] = []string{"c1"}
	m.Header[ChannelField] = []string{Channel}
	params := `("@method" "@authority" "@path" "@query" "content-digest" "authorization" "limpet-challenge" "limpet-channel")` +
		`;created=1764000000;nonce="` + nonce + `";keyid="` + s.id + `";alg="hmac-sha256";tag="limpet"`
	want := strings.Join([]string{
		`"@method": POST`,
		`"@authority": app.example.com`,
		`"@path": /orders/7`,
		`"@query": ?full=1&x=%20`,
		`"content-digest": sha-256=:` + base64.StdEncoding.EncodeToString(sum256(body)) + `:`,
		`"authorization": Bearer ` + bearer,
		`"limpet-challenge": c1`,
		`"limpet-channel": tls-exporter`,
		`"@signature-params": ` + params,
	}, "\n")
	var signed string
	err := Sign(m, s.signing(), func(base []byte) ([]byte, error) {
		signed = string(base)
		return s.sign(base)
	})
	if err != nil || signed != want {
		t.Fatalf("%v\n%s\nwant\n%s", err, signed, want)
	}
	if got := m.Header["Signature-Input"]; !slices.Equal(got, []string{"limpet=" + params}) {
		t.Error(got)
	}
	var p proof.Proof
	if found, err := (Wire{}).Extract(m, &p); !found || err != nil || string(p.Signed) != want || p.Challenge != "c1" || !p.Channel {
		t.Errorf("%v, %v, %+v", found, err, p)
	}
}

func sum256(s string) []byte {
	sum := sha256.Sum256([]byte(s))
	return sum[:]
}

func BenchmarkExtract(b *testing.B) {
	s := newSigner(b, proof.HMACSHA256)
	for _, bench := range []struct {
		name              string
		inCookie, hasBody bool
	}{{"bearer", false, false}, {"bearer, body", false, true}, {"cookie, body", true, true}} {
		b.Run(bench.name, func(b *testing.B) {
			m := s.signed(b, bench.inCookie, bench.hasBody)
			var p proof.Proof
			b.ReportAllocs()
			for b.Loop() {
				p.Reset()
				if found, err := (Wire{}).Extract(m, &p); !found || err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
