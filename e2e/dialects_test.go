package e2e

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

var (
	deviceTypes    = []string{"ed25519", "ecdsa", "ecdsa-p256", "rsa-2048", "rsa-pss", "rsa-2048-pss", "rsa-2048-pkcs1"}
	ephemeralTypes = append([]string{"ecdh", "ecdh-p256"}, deviceTypes...)
)

// TestEveryDialect has each kind of device key work with each kind of
// ephemeral key under both prefixes.
func TestEveryDialect(t *testing.T) {
	other, otherKey := ready(t, shared, "ed25519", "ed25519")
	for _, device := range deviceTypes {
		t.Run(device, func(t *testing.T) {
			t.Parallel()
			p := newPeer(t, shared, device)
			for _, prefix := range []string{boundToken, dbcs} {
				for _, ephemeral := range ephemeralTypes {
					t.Run(strings.TrimPrefix(prefix, "x-rpc-sec-")+ephemeral, func(t *testing.T) {
						q := *p
						q.prefix = prefix
						q.mustLogin(t)
						converse(t, &q, ephemeral)
						h := q.proof(newEphemeral("ed25519"), stamp())
						wantRefused(t, "other session's key", q.get(t, q.with(h, "accel-pub-id", otherKey.id)), 401, "key_unknown")
						wantRefused(t, "other session's proof", q.get(t, other.proof(otherKey, stamp())), 401, "")
					})
				}
			}
		})
	}
}

// converse introduces, proves, rotates and is refused where it has to be.
func converse(t *testing.T, p *peer, ephemeralType string) {
	t.Helper()
	first, second := newEphemeral(ephemeralType), newEphemeral(ephemeralType)
	if strings.HasPrefix(ephemeralType, "rsa") {
		second = newEphemeral("ecdsa") // there is one RSA key to go round
	}
	p.introduce(t, first)
	if left := time.Until(first.expires); left < time.Minute || left > 16*time.Minute {
		t.Errorf("the lease is over in %v, want within 15 minutes", left)
	}
	h := p.proof(first, stamp())
	wantAdmitted(t, "proof", p.get(t, h))
	wantRefused(t, "replay", p.get(t, h), 401, "nonce_spent")

	p.introduce(t, second)
	if first.id == second.id {
		t.Error("two ephemeral keys have one id")
	}
	wantAdmitted(t, "proof with the new key", p.get(t, p.proof(second, stamp())))
	wantAdmitted(t, "proof with the old key", p.get(t, p.proof(first, stamp())))

	h = p.proof(first, stamp())
	wantRefused(t, "another value", p.get(t, p.with(h, "data", stamp())), 401, "proof_invalid")
	wantRefused(t, "broken signature", p.get(t, p.with(h, "data-sig", p.b64(flip(first.prove([]byte(stamp())))))), 401, "proof_invalid")
	wantRefused(t, "unknown id", p.get(t, p.with(h, "accel-pub-id", "0AAAAAAAAAAAAAAAAAAAAAA")), 401, "key_unknown")
	wantRefused(t, "no proof", p.get(t, nil), 401, "proof_required")

	third := newEphemeral("ecdsa")
	h = p.introduction(third, stamp())
	wantRefused(t, "broken delegation", p.get(t, p.with(h, "accel-pub-sig", p.b64(flip(p.device.sign([]byte(h.Get(p.prefix+"accel-pub"))))))), 401, "proof_invalid")
	wantRefused(t, "delegation of another key", p.get(t, p.with(h, "accel-pub", p.b64(newKey("ecdsa", nil).public()))), 401, "proof_invalid")
	wantRefused(t, "introduction signed by another key", p.get(t, p.with(h, "data-sig", p.b64(newKey("ecdsa", nil).sign([]byte(stamp()))))), 401, "proof_invalid")
	wantAdmitted(t, "the refused introduction, whole", p.get(t, h))
}

// flip breaks a signature in its last byte.
func flip(sig []byte) []byte {
	sig[len(sig)-1] ^= 1
	return sig
}

// TestEncodings varies how one thing is written, for each dialect.
func TestEncodings(t *testing.T) {
	url, padded := base64.URLEncoding, base64.StdEncoding.EncodeToString
	for _, tt := range []struct {
		name      string
		device    string
		ephemeral []string
		vary      func(p *peer, e *ephemeral)
	}{
		{"SPKI", "ecdsa", ephemeralTypes, func(p *peer, e *ephemeral) { p.device.spki, e.spki = true, true }},
		{"SPKI Ed25519 device", "ed25519", ephemeralTypes, func(p *peer, e *ephemeral) { p.device.spki = true }},
		{"r‖s", "ecdsa", ephemeralTypes, func(p *peer, e *ephemeral) { p.device.rs, e.rs = true, true }},
		{"r‖s device, DER ephemeral", "ecdsa", ephemeralTypes, func(p *peer, e *ephemeral) { p.device.rs = true }},
		{"Ed25519 over the hash", "ed25519", ephemeralTypes, func(p *peer, e *ephemeral) { p.device.hashed, e.hashed = true, true }},
		{"longest PSS salt", "rsa-pss", ephemeralTypes, func(p *peer, e *ephemeral) { p.device.maxSalt, e.maxSalt = true, true }},
		{"unpadded", "rsa-2048", ephemeralTypes, func(p *peer, e *ephemeral) { p.b64 = base64.RawStdEncoding.EncodeToString }},
		{"URL alphabet", "rsa-2048", ephemeralTypes, func(p *peer, e *ephemeral) { p.b64 = url.EncodeToString }},
		{"URL alphabet, unpadded", "ecdsa", ephemeralTypes, func(p *peer, e *ephemeral) { p.b64 = base64.RawURLEncoding.EncodeToString }},
		{"upper case", "ecdsa", ephemeralTypes, func(p *peer, e *ephemeral) {
			p.device.typeName, e.typeName, p.b64 = "ECDSA-P256", strings.ToUpper(e.typeName), padded
		}},
		{"mixed case", "rsa-2048-pkcs1", ephemeralTypes, func(p *peer, e *ephemeral) {
			p.device.typeName, e.typeName = "Rsa-2048-Pkcs1", strings.ToUpper(e.typeName[:1])+e.typeName[1:]
		}},
		{"SHORT, value signed by the ephemeral key", "ed25519", []string{"ecdh"}, func(p *peer, e *ephemeral) { e.own = true }},
		{"SHORT, value signed by the ephemeral key as r‖s", "rsa-2048", []string{"ecdh"}, func(p *peer, e *ephemeral) { e.own, e.rs = true, true }},
		{"the device key is the ephemeral key", "ecdsa", []string{"ecdsa", "ecdsa-p256", "ecdh", "ecdh-p256"}, func(p *peer, e *ephemeral) { e.private = p.device.private }},
		{"the RSA device key is the ephemeral key", "rsa-2048", []string{"rsa-2048"}, func(p *peer, e *ephemeral) { e.private = p.device.private }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			base := newPeer(t, shared, tt.device)
			for _, typeName := range tt.ephemeral {
				p, e := *base, newEphemeral(typeName)
				tt.vary(&p, e)
				p.mustLogin(t)
				p.introduce(t, e)
				h := p.proof(e, stamp())
				wantAdmitted(t, typeName, p.get(t, h))
				wantRefused(t, typeName+" replayed", p.get(t, h), 401, "nonce_spent")
			}
		})
	}
}

var dataForms = []struct {
	name   string
	random bool // no two are alike
	make   func(now time.Time) string
}{
	{"README", true, stampAt},
	{"C++ test client", true, stampAt},
	{"Python", true, func(now time.Time) string { return fmt.Sprintf("%d-%s", now.Unix(), randomHex(16)) }},
	{"upstream Go tests", true, func(now time.Time) string { return fmt.Sprintf("%d-%s", now.UnixNano(), randomHex(16)) }},
	{"browser", false, func(now time.Time) string { return strconv.FormatInt(now.UnixMilli(), 10) }},
	{"browser, body", true, func(time.Time) string { return `{"comment":"hello ` + randomHex(4) + `"}` }},
	{"Android", false, func(now time.Time) string { return strconv.FormatInt(now.UnixMilli(), 10) }},
	{"Apple, Windows", false, func(now time.Time) string { return strconv.FormatInt(now.Unix(), 10) }},
}

// TestEveryDataForm has each client's P-data introduce, prove and be refused
// when it is used again.
func TestEveryDataForm(t *testing.T) {
	for _, form := range dataForms {
		t.Run(form.name, func(t *testing.T) {
			t.Parallel()
			base := newPeer(t, shared, "ecdsa")
			for _, typeName := range []string{"ecdh", "ecdh-p256", "ecdsa", "ed25519"} {
				p, e := *base, newEphemeral(typeName)
				p.mustLogin(t)
				at := time.Now()
				h := p.introduction(e, form.make(at))
				if err := p.learn(e, p.get(t, h)); err != nil {
					t.Fatalf("%s: %v", typeName, err)
				}
				wantRefused(t, typeName+" introduction replayed", p.get(t, h), 401, "nonce_spent")
				h = p.proof(e, form.make(at.Add(time.Second)))
				wantAdmitted(t, typeName, p.send(t, "POST", "/authenticated", h, h.Get(p.prefix+"data")))
				wantRefused(t, typeName+" replayed", p.send(t, "POST", "/authenticated", h, h.Get(p.prefix+"data")), 401, "nonce_spent")
			}
		})
	}
}

// TestSameSecond: without a random part two requests of one second are told
// apart by their signatures, if those differ; and policy timestamp admits both.
func TestSameSecond(t *testing.T) {
	t.Parallel()
	data := strconv.FormatInt(time.Now().Unix(), 10)
	for _, tt := range []struct {
		ephemeral string
		admitted  bool
	}{{"ecdsa", true}, {"rsa-pss", true}, {"ecdh", false}, {"ecdh-p256", false}, {"ed25519", false}, {"rsa-2048-pkcs1", false}} {
		p, e := ready(t, shared, "ecdsa", tt.ephemeral)
		wantAdmitted(t, tt.ephemeral, p.get(t, p.proof(e, data)))
		if second := p.get(t, p.proof(e, data)); tt.admitted {
			wantAdmitted(t, tt.ephemeral+" again", second)
		} else {
			wantRefused(t, tt.ephemeral+" again", second, 401, "nonce_spent")
		}
	}
	lenient := mustServe(t, "mem:", "--freshness", "timestamp")
	p, e := ready(t, lenient.url, "ecdsa", "ecdh")
	for range 2 {
		wantAdmitted(t, "where a time is enough", p.get(t, p.proof(e, data)))
	}
	wantRefused(t, "no time", p.get(t, p.proof(e, `{"no":"time"}`)), 401, "nonce_required")
	wantRefused(t, "old time", p.get(t, p.proof(e, stampAt(time.Now().Add(-2*time.Minute)))), 401, "clock_skew")
}

// TestReintroduction: the browser introduces the same key again after toggling
// modes.
func TestReintroduction(t *testing.T) {
	t.Parallel()
	for _, typeName := range ephemeralTypes {
		p, e := ready(t, shared, "ed25519", typeName)
		id, z := e.id, e.z
		for range 3 {
			p.introduce(t, e)
		}
		if e.id != id {
			t.Errorf("%s: the same key got the ids %q and %q", typeName, id, e.id)
		}
		wantAdmitted(t, typeName, p.get(t, p.proof(e, stamp())))
		e.z = z
		wantAdmitted(t, typeName+", first agreement", p.get(t, p.proof(e, stamp())))
	}
}

// TestIntroductionWins over the id of another key in the same request.
func TestIntroductionWins(t *testing.T) {
	t.Parallel()
	p, e := ready(t, shared, "ecdsa", "ecdh")
	for _, typeName := range []string{"ecdh", "ecdh-p256", "ed25519"} {
		for _, id := range []string{e.id, "no such id"} {
			next := newEphemeral(typeName)
			if err := p.learn(next, p.get(t, p.with(p.introduction(next, stamp()), "accel-pub-id", id))); err != nil {
				t.Fatal(err)
			}
			if next.id == e.id {
				t.Error("the answer names the old key")
			}
			wantAdmitted(t, typeName, p.get(t, p.proof(next, stamp())))
		}
	}
}

// TestAnyMethodAndBody: one client sends the login JSON along with a GET.
func TestAnyMethodAndBody(t *testing.T) {
	t.Parallel()
	p, e := ready(t, shared, "ecdsa", "ecdh")
	for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE"} {
		wantAdmitted(t, method, p.send(t, method, "/authenticated", p.proof(e, stamp()), p.credentials()))
	}
	next := newEphemeral("ecdh")
	wantAdmitted(t, "introduction", p.send(t, "GET", "/authenticated", p.introduction(next, stamp()), p.credentials()))
}

// TestSessionWithoutDeviceKey: who brings no key at login has a session of
// level none, where the server takes those.
func TestSessionWithoutDeviceKey(t *testing.T) {
	t.Parallel()
	strict := mustServe(t, "mem:", "--mode", "require")
	for _, base := range []string{shared, strict.url} {
		p := newPeer(t, base, "ecdsa")
		a := p.send(t, "POST", "/login", nil, p.credentials())
		if p.token = a.field("token"); p.token == "" {
			t.Fatalf("login: %v", a)
		}
		a = p.get(t, nil)
		introduced := p.get(t, p.introduction(newEphemeral("ecdh"), stamp()))
		if base == strict.url {
			wantRefused(t, "no device key", a, 401, "session_unbound")
			wantRefused(t, "a device key afterwards", introduced, 401, "session_unbound")
			continue
		}
		wantAdmitted(t, "no device key", a)
		if a.field("level") != "none" || introduced.field("level") != "none" {
			t.Errorf("level: %v; with a device key afterwards: %v", a, introduced)
		}
		if introduced.header.Get(p.prefix+"accel-pub-id") != "" {
			t.Error("a session without a device key took an ephemeral key")
		}
	}
	p := stranger(shared, "ecdsa")
	p.token = randomHex(32)
	wantRefused(t, "a token that never was", p.get(t, nil), 401, "session_required")
	p.token = ""
	wantRefused(t, "no token", p.get(t, nil), 401, "session_required")
}

// TestBrowserOfAnotherOrigin may send the wire's headers and read the answer's.
func TestBrowserOfAnotherOrigin(t *testing.T) {
	t.Parallel()
	const origin = "http://localhost:8000"
	for _, prefix := range []string{boundToken, dbcs} {
		send := map[string][]string{
			"/login":         {prefix + "hw-pub", prefix + "hw-pub-type", "content-type"},
			"/authenticated": {prefix + "accel-pub", prefix + "accel-pub-type", prefix + "accel-pub-sig", prefix + "accel-pub-id", prefix + "data", prefix + "data-sig", "authorization", "content-type"},
		}
		for path, names := range send {
			h := http.Header{"Origin": {origin}, "Access-Control-Request-Method": {"POST"}, "Access-Control-Request-Headers": {strings.Join(names, ",")}}
			a, err := do("OPTIONS", shared+path, h, "")
			if err != nil {
				t.Fatal(err)
			}
			if a.status/100 != 2 || !allows(a, "Access-Control-Allow-Origin", origin) || !allows(a, "Access-Control-Allow-Methods", "POST") {
				t.Errorf("preflight for %s: %v %v", path, a, a.header)
			}
			for _, name := range names {
				if !allows(a, "Access-Control-Allow-Headers", name) {
					t.Errorf("preflight for %s does not allow %s", path, name)
				}
			}
		}
		p := newPeer(t, shared, "ecdsa")
		p.prefix = prefix
		p.mustLogin(t)
		h := p.introduction(newEphemeral("ecdh"), stamp())
		h.Set("Origin", origin)
		a := p.get(t, h)
		wantAdmitted(t, "introduction", a)
		if !allows(a, "Access-Control-Allow-Origin", origin) {
			t.Error("the answer is not for this origin")
		}
		for _, name := range []string{"accel-pub", "accel-pub-id", "accel-pub-expire"} {
			if !allows(a, "Access-Control-Expose-Headers", prefix+name) {
				t.Errorf("%s is not exposed", prefix+name)
			}
		}
		refused := p.get(t, http.Header{"Origin": {origin}})
		wantRefused(t, "no proof", refused, 401, "proof_required")
		if !allows(refused, "Access-Control-Allow-Origin", origin) {
			t.Error("the browser cannot read why it was refused")
		}
	}
}

// allows reports whether a CORS header of the answer contains val. A star does
// not cover Authorization (Fetch, 3.3.4).
func allows(a answer, header, val string) bool {
	for _, part := range strings.Split(strings.Join(a.header.Values(header), ","), ",") {
		part = strings.TrimSpace(part)
		if strings.EqualFold(part, val) || part == "*" && !strings.EqualFold(val, "authorization") {
			return true
		}
	}
	return false
}
