package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"math/big"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/limpet-auth/limpet"
)

// One test for each weakness of the hw-sign prototype, named after it.

func TestEphemeralKeyNotTiedToSession(t *testing.T) {
	t.Parallel()
	for _, typeName := range []string{"ecdh", "ecdh-p256", "ecdsa", "ed25519"} {
		victim, _ := ready(t, shared, "ecdsa", typeName)
		thief, own := ready(t, shared, "ecdsa", typeName)
		with := *thief
		with.token = victim.token
		wantRefused(t, "stolen token, the thief's key", with.get(t, with.proof(own, stamp())), 401, "key_unknown")
		wantRefused(t, "stolen token, the thief's introduction", with.get(t, with.introduction(own, stamp())), 401, "proof_invalid")
		wantAdmitted(t, "the thief in a session of their own", thief.get(t, thief.proof(own, stamp())))
	}
}

func TestRefusalReturnsCorrectMAC(t *testing.T) {
	t.Parallel()
	p, e := ready(t, shared, "ecdsa", "ecdh")
	data := stamp()
	mac := e.prove([]byte(data))
	h := p.with(p.proof(e, data), "data-sig", p.b64(make([]byte, 32)))
	a := p.get(t, h)
	wantRefused(t, "wrong tag", a, 401, "proof_invalid")
	said := a.body
	for name, vals := range a.header {
		said += name + strings.Join(vals, "")
	}
	for _, form := range spellings(mac) {
		if strings.Contains(said, form) {
			t.Errorf("the refusal contains the tag: %s", said)
		}
	}
	// Nor does it use the value up: else anybody could use up others' values.
	wantAdmitted(t, "the right tag, afterwards", p.get(t, p.proof(e, data)))
}

// spellings are the ways in which bytes may be written down.
func spellings(b []byte) []string {
	return []string{
		base64.RawStdEncoding.EncodeToString(b), base64.RawURLEncoding.EncodeToString(b),
		hex.EncodeToString(b), strings.ToUpper(hex.EncodeToString(b)), string(b),
		strings.Trim(fmt.Sprint(b), "[]"),
	}
}

func TestNoFreshness(t *testing.T) {
	t.Parallel()
	p, e := ready(t, shared, "ecdsa", "ecdh")
	old := time.Date(2001, 9, 9, 1, 46, 40, 0, time.UTC)
	for range 100 {
		wantRefused(t, "data of 2001", p.get(t, p.proof(e, stampAt(old))), 401, "clock_skew")
	}
	h := p.proof(e, stamp())
	wantAdmitted(t, "first", p.get(t, h))
	for range 100 {
		wantRefused(t, "again", p.get(t, h), 401, "nonce_spent")
	}
}

// TestOnlyDataSigned: this wire signs P-data alone, so a proof is good for one
// request of any kind, and a route can ask that it covers the body.
func TestOnlyDataSigned(t *testing.T) {
	t.Parallel()
	p, e := ready(t, shared, "ecdsa", "ecdh")
	h := p.proof(e, stamp())
	wantAdmitted(t, "the request", p.send(t, "POST", "/authenticated", h, `{"amount":1}`))
	wantRefused(t, "another method", p.send(t, "DELETE", "/authenticated", h, ""), 401, "nonce_spent")
	wantRefused(t, "another query", p.send(t, "POST", "/authenticated?all=1", h, `{"amount":1}`), 401, "nonce_spent")
	wantRefused(t, "another body", p.send(t, "POST", "/authenticated", h, `{"amount":1000}`), 401, "nonce_spent")
	wantRefused(t, "another path", p.send(t, "POST", "/logout", h, ""), 401, "nonce_spent")
	elsewhere := p.authorized(h)
	elsewhere.Set("X-Forwarded-Host", "other.example")
	wantRefused(t, "another host", p.get(t, elsewhere), 401, "nonce_spent")

	g := newGuarded(t, limpet.Config{Routes: []limpet.Route{
		{Pattern: "/pay", Rule: limpet.Rule{Mode: limpet.Require, Freshness: limpet.BodyHash}},
		{Pattern: "/strict", Rule: limpet.Rule{Mode: limpet.Require, Freshness: limpet.StrictNonce}},
	}, MaxBody: 1 << 10})
	p, e = ready(t, g.url, "ecdsa", "ecdh")
	const body = `{"amount":1}`
	sum := sha256.Sum256([]byte(body))
	now := strconv.FormatInt(time.Now().Unix(), 10)
	for _, data := range append(spellings(sum[:])[:3], base64.StdEncoding.EncodeToString(sum[:]),
		now+"-"+hex.EncodeToString(sum[:]), now+"-"+base64.StdEncoding.EncodeToString(sum[:]), body) {
		h := p.proof(e, data)
		wantAdmitted(t, "body of "+data, p.send(t, "POST", "/pay", h, body))
		wantRefused(t, "body that is not of "+data, p.send(t, "POST", "/pay", h, `{"amount":1000}`), 401, "body_mismatch")
		wantRefused(t, "no body, where one is of "+data, p.send(t, "DELETE", "/pay", h, ""), 401, "body_mismatch")
		h = p.introduction(newEphemeral("ecdh"), data)
		wantRefused(t, "introduction, body that is not of "+data, p.send(t, "POST", "/pay", h, "x"), 401, "body_mismatch")
		wantAdmitted(t, "introduction, body of "+data, p.send(t, "POST", "/pay", h, body))
	}
	wantRefused(t, "no hash", p.send(t, "POST", "/pay", p.proof(e, stamp()), body), 401, "body_mismatch")
	old := fmt.Sprintf("%d-%x", time.Now().Add(-time.Hour).Unix(), sum)
	wantRefused(t, "old hash", p.send(t, "POST", "/pay", p.proof(e, old), body), 401, "clock_skew")
	wantRefused(t, "long body", p.send(t, "POST", "/pay", p.proof(e, stamp()), strings.Repeat("x", 2<<10)), 413, "body_too_large")

	for _, data := range []string{now, now + "000", now + "-short", body, hex.EncodeToString(sum[:])} {
		wantRefused(t, data, p.send(t, "GET", "/strict", p.proof(e, data), ""), 401, "nonce_required")
	}
	h = p.proof(e, stamp())
	wantAdmitted(t, "strict", p.send(t, "GET", "/strict", h, ""))
	wantRefused(t, "strict, again", p.send(t, "GET", "/strict", h, ""), 401, "nonce_spent")
}

func TestReplayedIntroductionMintsNewID(t *testing.T) {
	t.Parallel()
	p, first := newPeer(t, shared, "ed25519"), newEphemeral("ecdh")
	h := p.introduction(first, stamp())
	if err := p.learn(first, p.get(t, h)); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		wantRefused(t, "the same introduction", p.get(t, h), 401, "nonce_spent")
	}
	again := *first
	p.introduce(t, &again)
	if again.id != first.id {
		t.Errorf("one delegation, two ids: %q and %q", first.id, again.id)
	}
	var live []*ephemeral
	for range 8 {
		e := newEphemeral("ed25519")
		p.introduce(t, e)
		live = append(live, e)
	}
	wantRefused(t, "the ninth newest key", p.get(t, p.proof(first, stamp())), 401, "key_unknown")
	for _, e := range live {
		wantAdmitted(t, "one of the eight newest keys", p.get(t, p.proof(e, stamp())))
	}
}

func TestRegisterOverwritesUser(t *testing.T) {
	t.Parallel()
	alice := newPeer(t, shared, "ed25519")
	thief := *alice
	thief.password = "another"
	a, err := do("POST", shared+"/register", http.Header{}, thief.credentials())
	if err != nil {
		t.Fatal(err)
	}
	wantRefused(t, "the name again", a, 409, "")
	a = thief.send(t, "POST", "/login", thief.offer(), thief.credentials())
	wantRefused(t, "login with the new password", a, 401, "")
	alice.mustLogin(t)

	racer := stranger(shared, "ed25519")
	var won atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if racer.register() == nil {
				won.Add(1)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("%d of 8 registered the same name", won.Load())
	}
}

func TestNoPossessionAtLogin(t *testing.T) {
	t.Parallel()
	victim := newPeer(t, shared, "ecdsa")
	thief := *victim
	thief.mustLogin(t) // knows the password and the public key
	thief.device = newKey("ecdsa", nil)
	wantRefused(t, "nothing", thief.get(t, nil), 401, "proof_required")
	for _, typeName := range ephemeralTypes {
		wantRefused(t, typeName, thief.get(t, thief.introduction(newEphemeral(typeName), stamp())), 401, "proof_invalid")
	}

	point := newKey("ecdsa", nil).public()
	off := append([]byte(nil), point...)
	off[64] ^= 1
	modulus := func(bits uint) *rsa.PublicKey {
		n := new(big.Int).SetBit(big.NewInt(1), int(bits-1), 1)
		return &rsa.PublicKey{N: n, E: 65537}
	}
	curve := func(c elliptic.Curve) []byte {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return spki(k.Public())
	}
	oneE := modulus(2048)
	oneE.E = 1
	for _, bad := range []struct {
		name, typeName string
		key            []byte
	}{
		{"off the curve", "ecdsa", off},
		{"at infinity", "ecdsa", []byte{0}},
		{"all zero", "ecdsa", append([]byte{4}, make([]byte, 64)...)},
		{"compressed", "ecdsa", append([]byte{2}, point[1:33]...)},
		{"off the curve in SPKI", "ecdsa", append(spki(newP256().Public())[:26], off...)},
		{"P-224", "ecdsa", curve(elliptic.P224())},
		{"P-384", "ecdsa", curve(elliptic.P384())},
		{"P-521", "ecdsa-p256", curve(elliptic.P521())},
		{"RSA 1024", "rsa-2048", spki(modulus(1024))},
		{"RSA 2047", "rsa-2048", spki(modulus(2047))},
		{"RSA 8192", "rsa-pss", spki(modulus(8192))},
		{"RSA 1024 for PKCS #1", "rsa-2048-pkcs1", spki(modulus(1024))},
		{"RSA exponent 1", "rsa-2048", spki(oneE)},
		{"ecdh", "ecdh", point},
		{"ecdh-p256", "ecdh-p256", point},
		{"hmac", "hmac", make([]byte, 32)},
		{"short Ed25519", "ed25519", make([]byte, 31)},
		{"EC key as Ed25519", "ed25519", point},
		{"RSA key as ECDSA", "ecdsa", spki(deviceRSA().Public())},
		{"EC key as RSA", "rsa-2048", spki(newP256().Public())},
		{"trailing bytes", "ecdsa", append(spki(newP256().Public()), 0)},
	} {
		h := victim.with(victim.with(victim.offer(), "hw-pub-type", bad.typeName), "hw-pub", victim.b64(bad.key))
		a := victim.send(t, "POST", "/login", h, victim.credentials())
		wantRefused(t, "login with a key "+bad.name, a, 400, "proof_malformed")
		if a.field("token") != "" {
			t.Errorf("%s: the refusal has a token", bad.name)
		}
		if bad.name == "ecdh" || bad.name == "ecdh-p256" {
			continue // fit for an ephemeral key
		}
		text := victim.b64(bad.key)
		h = victim.introduction(newEphemeral("ecdsa"), stamp())
		h.Set(victim.prefix+"accel-pub-type", bad.typeName)
		h.Set(victim.prefix+"accel-pub", text)
		h.Set(victim.prefix+"accel-pub-sig", victim.b64(victim.device.sign([]byte(text))))
		wantRefused(t, "ephemeral key "+bad.name, victim.get(t, h), 400, "proof_malformed")
	}
	for _, bits := range []uint{2048, 3072, 4096} {
		h := victim.with(victim.with(victim.offer(), "hw-pub-type", "rsa-2048"), "hw-pub", victim.b64(spki(modulus(bits))))
		if a := victim.send(t, "POST", "/login", h, victim.credentials()); a.status != 200 {
			t.Errorf("RSA %d: %v", bits, a)
		}
	}
}

// TestNoDomainSeparation: in SHORT the device key signs P-data and P-accel-pub
// alike. What it signed as the one is never the other.
func TestNoDomainSeparation(t *testing.T) {
	t.Parallel()
	g := newGuarded(t, limpet.Config{Routes: []limpet.Route{
		{Pattern: "/pay", Rule: limpet.Rule{Mode: limpet.Require, Freshness: limpet.BodyHash}},
	}})
	for _, device := range []string{"ed25519", "ecdsa", "rsa-2048"} {
		p := newPeer(t, g.url, device)
		for _, typeName := range []string{"ecdh", "ecdh-p256", "ed25519", "rsa-2048"} {
			for _, b64 := range []func([]byte) string{base64.StdEncoding.EncodeToString, base64.RawStdEncoding.EncodeToString, base64.URLEncoding.EncodeToString} {
				for _, inSPKI := range []bool{false, true} {
					q, e := *p, newEphemeral(typeName)
					q.b64, e.spki = b64, inSPKI
					q.mustLogin(t)
					captured := q.introduction(e, stamp())
					text, sig := captured.Get(q.prefix+"accel-pub"), captured.Get(q.prefix+"accel-pub-sig")

					h := q.with(q.introduction(newEphemeral("ecdh"), stamp()), "data", text)
					h.Set(q.prefix+"data-sig", sig)
					wantRefused(t, typeName+" delegation as P-data", q.get(t, h), 400, "proof_malformed")
					wantRefused(t, typeName+" delegation as P-data and body", q.send(t, "POST", "/pay", h, text), 400, "proof_malformed")

					if device == "ecdsa" { // the Windows app's ephemeral key is the device key
						own := newEphemeral("ecdsa")
						own.private = q.device.private
						q.introduce(t, own)
						h = q.with(q.proof(own, stamp()), "data", text)
						h.Set(q.prefix+"data-sig", sig)
						wantRefused(t, typeName+" delegation as proof", q.get(t, h), 400, "proof_malformed")
						wantRefused(t, typeName+" delegation as proof and body", q.send(t, "POST", "/pay", h, text), 400, "proof_malformed")
					}
				}
			}
		}
		// The other way round: a signed value is no delegation.
		h := p.introduction(newEphemeral("ecdh"), stamp())
		back := p.with(p.introduction(newEphemeral("ecdh"), stamp()), "accel-pub", h.Get(p.prefix+"data"))
		back.Set(p.prefix+"accel-pub-sig", h.Get(p.prefix+"data-sig"))
		wantRefused(t, "P-data as a delegation", p.get(t, back), 400, "proof_malformed")
	}
}

func TestNoLogoutNoRevocation(t *testing.T) {
	t.Parallel()
	p, e := ready(t, shared, "ecdsa", "ecdh")
	other := p.again(t)
	otherKey := newEphemeral("ecdh")
	other.introduce(t, otherKey)
	wantRefused(t, "logout without a proof", p.send(t, "POST", "/logout", nil, ""), 401, "proof_required")
	wantRefused(t, "logout with another's proof", p.send(t, "POST", "/logout", other.proof(otherKey, stamp()), ""), 401, "")
	wantAdmitted(t, "still logged in", p.get(t, p.proof(e, stamp())))
	if a := p.send(t, "POST", "/logout", p.proof(e, stamp()), ""); a.status != 200 {
		t.Fatalf("logout: %v", a)
	}
	for name, h := range map[string]http.Header{"proof": p.proof(e, stamp()), "introduction": p.introduction(newEphemeral("ecdh"), stamp()), "token alone": nil} {
		wantRefused(t, name+" after the logout", p.get(t, h), 401, "session_ended")
	}
	wantAdmitted(t, "the user's other session", other.get(t, other.proof(otherKey, stamp())))

	g := newGuarded(t, limpet.Config{})
	first, firstKey := ready(t, g.url, "ecdsa", "ecdh")
	second, secondKey := ready(t, g.url, "ecdsa", "ecdsa")
	if n, err := g.RevokeUser(t.Context(), "alice"); n != 2 || err != nil {
		t.Errorf("revoked %d sessions, %v; want both", n, err)
	}
	wantRefused(t, "first session", first.get(t, first.proof(firstKey, stamp())), 401, "session_ended")
	wantRefused(t, "second session", second.get(t, second.introduction(secondKey, stamp())), 401, "session_ended")
}
