package e2e

import (
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/base64"
	"fmt"
	"math/big"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/limpet-auth/limpet"
)

// TestStolenToken: the token alone is worth nothing on another device.
func TestStolenToken(t *testing.T) {
	t.Parallel()
	victim, _ := ready(t, shared, "ecdsa", "ecdh")
	thief := *victim
	thief.device = newKey("ecdsa", nil)
	wantRefused(t, "token alone", thief.get(t, nil), 401, "proof_required")
	for _, typeName := range ephemeralTypes {
		e := newEphemeral(typeName)
		wantRefused(t, typeName+" delegated by the thief's device", thief.get(t, thief.introduction(e, stamp())), 401, "proof_invalid")
	}
	wantRefused(t, "login headers instead of a proof", thief.get(t, thief.offer()), 401, "proof_required")
	for _, path := range []string{"/logout", "/authenticated/", "//authenticated", "/authenticated/x"} {
		if a := thief.send(t, "POST", path, nil, ""); a.status < 300 {
			t.Errorf("POST %s with the token alone: %v", path, a)
		}
	}
	e := newEphemeral("ecdsa")
	victim.introduce(t, e)
	wantAdmitted(t, "the victim, afterwards", victim.get(t, victim.proof(e, stamp())))
}

// TestReplayIsRefused: a captured request is admitted once, whoever sends it,
// at whatever moment.
func TestReplayIsRefused(t *testing.T) {
	t.Parallel()
	for _, typeName := range []string{"ecdh", "ecdh-p256", "ecdsa", "ed25519"} {
		p, e := ready(t, shared, "ecdsa", typeName)
		for name, h := range map[string]http.Header{
			"introduction": p.introduction(newEphemeral(typeName), stamp()),
			"proof":        p.proof(e, stamp()),
		} {
			var wg sync.WaitGroup
			statuses := make([]int, 20)
			for i := range statuses {
				wg.Go(func() { statuses[i] = p.get(t, h).status })
			}
			wg.Wait()
			slices.Sort(statuses)
			if statuses[0] != 200 || statuses[1] != 401 || statuses[len(statuses)-1] != 401 {
				t.Errorf("%s %s sent 20 times at once: %v", typeName, name, statuses)
			}
		}
	}
}

// TestReplayMemoryIsNotFooled by another spelling of the same proof.
func TestReplayMemoryIsNotFooled(t *testing.T) {
	t.Parallel()
	p, e := ready(t, shared, "ecdsa", "ecdsa")
	h := p.proof(e, stamp())
	wantAdmitted(t, "the proof", p.get(t, h))
	sig, err := base64.StdEncoding.DecodeString(h.Get(p.prefix + "data-sig"))
	if err != nil {
		t.Fatal(err)
	}
	var rs struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(sig, &rs); err != nil {
		t.Fatal(err)
	}
	negated := new(big.Int).Sub(elliptic.P256().Params().N, rs.S)
	der := func(s *big.Int) []byte {
		b, err := asn1.Marshal(struct{ R, S *big.Int }{rs.R, s})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	long := slices.Concat([]byte{0x30, 0x81, sig[1]}, sig[2:])
	for name, other := range map[string][]byte{
		"r‖s":                  rawSignature(rs.R, rs.S),
		"(r, n−s) as DER":      der(negated),
		"(r, n−s) as r‖s":      rawSignature(rs.R, negated),
		"(r, s+n)":             der(new(big.Int).Add(rs.S, elliptic.P256().Params().N)),
		"DER with long length": long,
		"DER with trailing":    append(slices.Clone(sig), 0),
	} {
		wantRefused(t, name, p.get(t, p.with(h, "data-sig", p.b64(other))), 401, "")
	}
	for name, spelling := range map[string]string{
		"unpadded":       base64.RawStdEncoding.EncodeToString(sig),
		"URL alphabet":   base64.URLEncoding.EncodeToString(sig),
		"too much pad":   base64.StdEncoding.EncodeToString(sig) + "==",
		"with a space":   " " + base64.StdEncoding.EncodeToString(sig) + " ",
		"trailing bits":  trailingBits(base64.RawStdEncoding.EncodeToString(sig)),
		"the other case": strings.ToLower(base64.StdEncoding.EncodeToString(sig)),
	} {
		if a := p.get(t, p.with(h, "data-sig", spelling)); a.status != 401 && a.status != 400 {
			t.Errorf("%s: %v", name, a)
		}
	}
	spaced := p.with(h, "data", " "+h.Get(p.prefix+"data")+"\t")
	wantRefused(t, "P-data in white space", p.get(t, spaced), 401, "nonce_spent")
	wantRefused(t, "id with a tail", p.get(t, p.with(h, "accel-pub-id", e.id+"=")), 401, "key_unknown")
}

// trailingBits sets bits in the last character that decode to nothing.
func trailingBits(text string) string {
	if len(text)%4 == 0 {
		return text
	}
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	last := strings.IndexByte(alphabet, text[len(text)-1])
	return text[:len(text)-1] + alphabet[last|1:last|1+1]
}

// TestReplayOfIntroductionAsProof: one signature, two ways to name the key.
func TestReplayOfIntroductionAsProof(t *testing.T) {
	t.Parallel()
	p, e := newPeer(t, shared, "ed25519"), newEphemeral("ecdsa")
	h := p.introduction(e, stamp())
	if err := p.learn(e, p.get(t, h)); err != nil {
		t.Fatal(err)
	}
	again := http.Header{}
	for _, name := range []string{"data", "data-sig"} {
		again.Set(p.prefix+name, h.Get(p.prefix+name))
	}
	again.Set(p.prefix+"accel-pub-id", e.id)
	wantRefused(t, "its value as a proof", p.get(t, again), 401, "nonce_spent")
	h = p.proof(e, stamp())
	wantAdmitted(t, "proof", p.get(t, h))
	again = p.introduction(e, "")
	again.Set(p.prefix+"data", h.Get(p.prefix+"data"))
	again.Set(p.prefix+"data-sig", h.Get(p.prefix+"data-sig"))
	wantRefused(t, "a proof as introduction", p.get(t, again), 401, "nonce_spent")
	under := http.Header{}
	for name := range h {
		under.Set(strings.Replace(strings.ToLower(name), boundToken, dbcs, 1), h.Get(name))
	}
	wantRefused(t, "a proof under the other prefix", p.get(t, under), 401, "nonce_spent")
}

// TestReplayUnderAnotherTypeName: the type of an ephemeral key is not signed.
// An introduction must not be admitted a second time under another one.
func TestReplayUnderAnotherTypeName(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		from, to string
		own      bool
	}{
		{"ecdh-p256", "ecdsa", false}, {"ecdh", "ecdsa", true}, {"ecdh", "ecdh-p256", true},
		{"ecdsa", "ecdh-p256", false}, {"ecdsa", "ecdh", false}, {"ecdsa", "ecdsa-p256", false},
	} {
		p, e := newPeer(t, shared, "ed25519"), newEphemeral(tt.from)
		e.own = tt.own
		h := p.introduction(e, stamp())
		wantAdmitted(t, tt.from, p.get(t, h))
		wantRefused(t, tt.from+" replayed as "+tt.to, p.get(t, p.with(h, "accel-pub-type", tt.to)), 401, "")
	}
}

// TestReplayOfIntroductionWithoutTime: the browser's value may be a body.
func TestReplayOfIntroductionWithoutTime(t *testing.T) {
	t.Parallel()
	var wg sync.WaitGroup
	for _, typeName := range []string{"ecdh", "ecdh-p256", "ecdsa"} {
		p := newPeer(t, shared, "ed25519")
		h := p.introduction(newEphemeral(typeName), `{"comment":"`+randomHex(4)+`"}`)
		wantAdmitted(t, typeName, p.get(t, h))
		wg.Go(func() {
			time.Sleep(5 * time.Second)
			wantRefused(t, typeName+" replayed five seconds later", p.get(t, h), 401, "nonce_spent")
		})
	}
	wg.Wait()
}

// TestMixedIntroductions: where the device key signs P-data, the value of one
// introduction must not serve for the delegation of another.
func TestMixedIntroductions(t *testing.T) {
	t.Parallel()
	p := newPeer(t, shared, "ecdsa")
	first, second := p.introduction(newEphemeral("ecdh"), stamp()), p.introduction(newEphemeral("ecdh"), stamp())
	wantAdmitted(t, "first", p.get(t, first))
	wantAdmitted(t, "second", p.get(t, second))
	mixed := p.with(first, "data", second.Get(p.prefix+"data"))
	mixed = p.with(mixed, "data-sig", second.Get(p.prefix+"data-sig"))
	wantRefused(t, "first delegation, second value", p.get(t, mixed), 401, "nonce_spent")
}

// TestReplayOfHashedEd25519: a signature over SHA-256(message) is one over the
// 32 bytes of the hash as well. They must not do as another P-data.
func TestReplayOfHashedEd25519(t *testing.T) {
	t.Parallel()
	p, e := ready(t, shared, "ed25519", "ed25519")
	e.hashed = true
	data, sum := stamp(), [sha256.Size]byte{}
	for sum = sha256.Sum256([]byte(data)); !fitsHeader(sum[:]); sum = sha256.Sum256([]byte(data)) {
		data = stamp()
	}
	h := p.proof(e, data)
	wantAdmitted(t, "proof", p.get(t, h))
	if a := p.get(t, p.with(h, "data", string(sum[:]))); a.status != 400 && a.status != 401 {
		t.Errorf("the hash of a spent value as value: %v", a)
	}
	p.device.hashed = true
	short := newEphemeral("ecdh")
	h = p.introduction(short, stamp())
	text := h.Get(p.prefix + "accel-pub")
	for sum = sha256.Sum256([]byte(text)); !fitsHeader(sum[:]); sum = sha256.Sum256([]byte(text)) {
		short = newEphemeral("ecdh")
		text = p.b64(short.public())
	}
	h = p.introduction(short, string(sum[:]))
	h.Set(p.prefix+"data-sig", h.Get(p.prefix+"accel-pub-sig"))
	if a := p.get(t, h); a.status != 400 && a.status != 401 {
		t.Errorf("the hash of a delegation as value: %v", a)
	}
}

func fitsHeader(b []byte) bool {
	for _, c := range b {
		if c <= ' ' || c == 0x7f {
			return false
		}
	}
	return true
}

// TestCapturedDelegation does not serve another session, nor is it good for
// more than one key or after its lease.
func TestCapturedDelegation(t *testing.T) {
	t.Parallel()
	p := newPeer(t, shared, "ed25519")
	other := p.again(t)
	for _, typeName := range []string{"ecdh", "ecdh-p256", "ecdsa"} {
		h := p.introduction(newEphemeral(typeName), stamp())
		wantRefused(t, typeName+" in another session", other.get(t, h), 401, "proof_invalid")
		wantAdmitted(t, typeName, p.get(t, h))
		wantRefused(t, typeName+" registered again", p.get(t, h), 401, "nonce_spent")
		wantRefused(t, typeName+" in another session, afterwards", other.get(t, h), 401, "proof_invalid")
	}
}

// TestOneDeviceTwoSessions: some clients log in twice with one device key. What
// one of the sessions has spent is no proof in the other.
func TestOneDeviceTwoSessions(t *testing.T) {
	t.Parallel()
	for _, typeName := range []string{"ecdh", "ecdh-p256", "ecdsa"} {
		p := newPeer(t, shared, "ed25519")
		other := *p
		other.mustLogin(t)
		h := p.introduction(newEphemeral(typeName), stamp())
		wantAdmitted(t, typeName, p.get(t, h))
		wantRefused(t, typeName+" introduction in the other session of the device", other.get(t, h), 401, "")
		e := newEphemeral(typeName)
		p.introduce(t, e)
		wantRefused(t, typeName+" key of the other session of the device", other.get(t, other.proof(e, stamp())), 401, "key_unknown")
	}
}

// TestLeaseEnds: an ephemeral key that was stolen from memory is good until its
// lease ends. Only the device key can ask for another lease, under every policy.
func TestLeaseEnds(t *testing.T) {
	t.Parallel()
	for _, freshness := range []string{"nonce", "body-hash", "timestamp"} {
		s := mustServe(t, "mem:", "--lease", "1s", "--mode", "require", "--freshness", freshness)
		for _, typeName := range []string{"ecdh", "ecdh-p256", "ecdsa"} {
			t.Run(freshness+" "+typeName, func(t *testing.T) {
				t.Parallel()
				p, e := newPeer(t, s.url, "ecdsa"), newEphemeral(typeName)
				delegation := p.introduction(e, emptyBody())
				if err := p.learn(e, p.get(t, delegation)); err != nil {
					t.Fatal(err)
				}
				time.Sleep(1100 * time.Millisecond)
				wantRefused(t, "proof after the lease", p.get(t, p.proof(e, emptyBody())), 401, "key_unknown")

				// The thief has the ephemeral key and the delegation, not the device.
				e.own = true
				stolen := p.introduction(e, emptyBody())
				for _, name := range []string{"accel-pub", "accel-pub-sig"} {
					stolen.Set(p.prefix+name, delegation.Get(p.prefix+name))
				}
				wantRefused(t, "delegation after the lease", p.get(t, stolen), 401, "key_unknown")

				// And sees the device introduce its next key.
				e.own = false
				next := p.introduction(newEphemeral(typeName), emptyBody())
				wantAdmitted(t, "next key", p.get(t, next))
				mixed := next.Clone()
				for _, name := range []string{"accel-pub", "accel-pub-sig"} {
					mixed.Set(p.prefix+name, delegation.Get(p.prefix+name))
				}
				wantRefused(t, "old delegation with the value of the next", p.get(t, mixed), 401, "")
				if typeName == "ecdh" {
					wantAdmitted(t, "the device itself, anew", p.get(t, p.introduction(e, emptyBody())))
				}
			})
		}
	}
}

// emptyBody is P-data that every policy but strict-nonce takes for a request
// without a body.
func emptyBody() string { return fmt.Sprintf("%d-%x", time.Now().UnixNano(), sha256.Sum256(nil)) }

// TestOneAnswerToEveryBadProof: which check failed is nobody's business.
func TestOneAnswerToEveryBadProof(t *testing.T) {
	t.Parallel()
	p, e := ready(t, shared, "ecdsa", "ecdh")
	other, signing := newPeer(t, shared, "ecdsa"), newEphemeral("ecdsa")
	p.introduce(t, signing)
	next := newEphemeral("ecdh-p256")
	h := p.introduction(next, stamp())
	for _, group := range []struct {
		reason string
		bad    map[string]http.Header
	}{
		{"proof_invalid", map[string]http.Header{
			"tag of another value":       p.with(p.proof(e, stamp()), "data", stamp()),
			"tag of no length":           p.with(p.proof(e, stamp()), "data-sig", p.b64([]byte{1})),
			"tag with one bit wrong":     p.with(p.proof(e, stamp()), "data-sig", p.b64(flip(e.prove([]byte("x"))))),
			"signature of another value": p.with(p.proof(signing, stamp()), "data", stamp()),
			"signature for a tag":        p.with(p.proof(signing, stamp()), "accel-pub-id", e.id),
			"tag for a signature":        p.with(p.proof(e, stamp()), "accel-pub-id", signing.id),
			"signature that is no DER":   p.with(p.proof(signing, stamp()), "data-sig", p.b64([]byte("no signature"))),
			"delegation by a stranger":   other.introduction(newEphemeral("ecdh"), stamp()),
			"delegation broken":          p.with(h, "accel-pub-sig", p.b64([]byte("no signature"))),
			"introduction's value":       p.with(h, "data", stamp()),
			"introduction's signature":   p.with(h, "data-sig", p.b64(other.device.sign([]byte("x")))),
		}},
		{"key_unknown", map[string]http.Header{
			"id that never was":     p.with(p.proof(e, stamp()), "accel-pub-id", "0AAAAAAAAAAAAAAAAAAAAAA"),
			"id that cannot be":     p.with(p.proof(e, stamp()), "accel-pub-id", "'; drop table keys"),
			"id in the wrong place": p.with(p.proof(e, stamp()), "accel-pub-id", "7"+e.id[1:]),
		}},
	} {
		var first answer
		for name, h := range group.bad {
			a := p.get(t, h)
			wantRefused(t, name, a, 401, group.reason)
			a.header.Del("Date")
			if first.status == 0 {
				first = a
			}
			if a.body != first.body || !slices.Equal(headerLines(a), headerLines(first)) {
				t.Errorf("%s: answered with %v %v, others with %v %v", name, a, a.header, first, first.header)
			}
		}
	}
}

func headerLines(a answer) (lines []string) {
	for name, vals := range a.header {
		lines = append(lines, name+": "+strings.Join(vals, ", "))
	}
	slices.Sort(lines)
	return lines
}

// TestWrongClock: five minutes off is refused, in words that say why.
func TestWrongClock(t *testing.T) {
	t.Parallel()
	p, e := ready(t, shared, "ecdsa", "ecdh")
	for _, off := range []time.Duration{5 * time.Minute, -5 * time.Minute, 24 * time.Hour, -24 * time.Hour} {
		at := time.Now().Add(off)
		for _, data := range []string{stampAt(at), strconv.FormatInt(at.UnixMilli(), 10), strconv.FormatInt(at.UnixNano(), 10)} {
			for name, h := range map[string]http.Header{"proof": p.proof(e, data), "introduction": p.introduction(newEphemeral("ecdh"), data)} {
				a := p.get(t, h)
				wantRefused(t, name+" off by "+off.String(), a, 401, "clock_skew")
				if !strings.Contains(a.field("message"), "clock") {
					t.Errorf("the message does not name the clock: %v", a)
				}
			}
		}
	}
	for _, off := range []time.Duration{-50 * time.Second, 20 * time.Second} {
		wantAdmitted(t, "off by "+off.String(), p.get(t, p.proof(e, stampAt(time.Now().Add(off)))))
	}
}

// TestStoreOutage: the answer is 503, and nobody is logged out by it.
func TestStoreOutage(t *testing.T) {
	t.Parallel()
	for _, mode := range []limpet.Mode{limpet.Prefer, limpet.Require} {
		g := newGuarded(t, limpet.Config{Rule: limpet.Rule{Mode: mode}})
		p, e := ready(t, g.url, "ecdsa", "ecdh")
		stranger := *p
		stranger.token = "another"
		next := newEphemeral("ecdsa")
		g.store.down.Store(true)
		for name, a := range map[string]answer{
			"proof":         p.get(t, p.proof(e, stamp())),
			"no proof":      p.get(t, nil),
			"introduction":  p.get(t, p.introduction(next, stamp())),
			"unknown token": stranger.get(t, nil),
			"login":         p.send(t, "POST", "/login", p.offer(), ""),
		} {
			wantRefused(t, name, a, 503, "unavailable")
			if a.header.Get("Retry-After") == "" {
				t.Errorf("%s: no Retry-After", name)
			}
		}
		g.store.down.Store(false)
		wantAdmitted(t, "proof, afterwards", p.get(t, p.proof(e, stamp())))
		p.introduce(t, next)
	}
}

// TestPasswordGuessing is slowed down, for names that exist and names that do
// not alike, and nobody else is.
func TestPasswordGuessing(t *testing.T) {
	t.Parallel()
	alice := newPeer(t, shared, "ed25519")
	nobody := stranger(shared, "ed25519")
	wrong := *alice
	wrong.password = "wrong"
	for _, p := range []*peer{&wrong, nobody} {
		status := 0
		for tries := 0; status != 429 && tries < 20; tries++ {
			a := p.send(t, "POST", "/login", p.offer(), p.credentials())
			if status = a.status; status == 401 {
				wantRefused(t, "wrong password", a, 401, "invalid_credentials")
			}
			if status == 429 && a.header.Get("Retry-After") == "" {
				t.Error("no Retry-After")
			}
		}
		if status != 429 {
			t.Errorf("after 20 wrong passwords: %d", status)
		}
	}
	newPeer(t, shared, "ed25519")
}

// TestUnknownUserTakesAsLong: the time of a refused login does not tell who has
// an account.
func TestUnknownUserTakesAsLong(t *testing.T) {
	t.Parallel()
	alice := newPeer(t, shared, "ed25519")
	alice.password = "wrong"
	nobody := stranger(shared, "ed25519")
	quickest := func(best time.Duration, p *peer) time.Duration {
		began := time.Now()
		wantRefused(t, "login", p.send(t, "POST", "/login", nil, p.credentials()), 401, "invalid_credentials")
		return min(best, time.Since(began))
	}
	known, unknown := time.Hour, time.Hour
	for range 8 { // in turns: other tests load the machine
		known, unknown = quickest(known, alice), quickest(unknown, nobody)
	}
	if unknown < known/4 || known < unknown/4 {
		t.Errorf("a wrong password is refused in %v, an unknown user in %v", known, unknown)
	}
}
