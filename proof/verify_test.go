package proof

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"testing"
	"time"
)

var now = time.Unix(1_764_000_000, 0)

var nonce = Policy{Freshness: Nonce, Window: time.Minute, Skew: 30 * time.Second}

func policy(f Freshness) Policy {
	p := nonce
	p.Freshness = f
	return p
}

// at is a proof over a value of the usual form, made at a time.
func at(t time.Time, sign func([]byte) []byte) *Proof {
	p := &Proof{Time: t, Random: 32, Signed: fmt.Appendf(nil, "%d-00112233445566778899aabbccddeeff", t.Unix())}
	p.BodyClaim = p.Signed[len(p.Signed)-32:]
	p.Signature = sign(p.Signed)
	return p
}

func reasonOf(err error) Reason {
	var r *Refusal
	if err == nil {
		return ""
	}
	if !errors.As(err, &r) {
		return "not a refusal"
	}
	return r.Reason
}

func TestVerifyKnownKey(t *testing.T) {
	device := newSigner(t, ECDSAP256)
	mac := NewMACKey([]byte("agreed"))
	macSign := func(b []byte) []byte { return mac.Append(nil, b) }
	for _, alg := range append(signingAlgorithms, HMACSHA256) {
		key := newSigner(t, alg)
		known := &EphemeralKey{ID: "id", Public: key.public, Expires: now.Add(time.Minute)}
		if alg == HMACSHA256 {
			known.MAC, key.sign = mac, macSign
		}
		t.Run(alg.String(), func(t *testing.T) {
			got, err := Verify(&Message{}, at(now, key.sign), device.public, known, now, nonce)
			if err != nil || got != known {
				t.Fatalf("honest proof: %v, %v", got, err)
			}
			moved := at(now, key.sign)
			moved.Signed[0] ^= 1
			if _, err := Verify(&Message{}, moved, device.public, known, now, nonce); reasonOf(err) != Invalid {
				t.Errorf("changed value: %v", err)
			}
			foreign := at(now, newSigner(t, ECDSAP256).sign)
			if _, err := Verify(&Message{}, foreign, device.public, known, now, nonce); reasonOf(err) != Invalid {
				t.Errorf("another key's signature: %v", err)
			}
			if _, err := Verify(&Message{}, at(now, key.sign), device.public, known, known.Expires, nonce); reasonOf(err) != KeyUnknown {
				t.Errorf("after the lease: %v", err)
			}
		})
	}
}

func TestVerifyClock(t *testing.T) {
	key := newSigner(t, ECDSAP256)
	known := &EphemeralKey{ID: "id", Public: key.public, Expires: now.Add(time.Hour)}
	for _, tt := range []struct {
		offset time.Duration
		want   Reason
	}{
		{0, ""}, {-60 * time.Second, ""}, {30 * time.Second, ""},
		{-61 * time.Second, ClockSkew}, {31 * time.Second, ClockSkew},
		{-5 * time.Minute, ClockSkew}, {5 * time.Minute, ClockSkew},
		{-24 * 365 * 24 * time.Hour, ClockSkew}, // dated 2001
		{24 * 365 * 100 * time.Hour, ClockSkew},
		{1<<63 - 1, ClockSkew}, // the longest duration there is
	} {
		for _, f := range []Freshness{Nonce, StrictNonce, BodyHash, Timestamp} {
			p := at(now.Add(tt.offset), key.sign)
			body := sha256.Sum256(p.Signed)
			_, err := Verify(&Message{Body: &body}, p, key.public, known, now, policy(f))
			if reasonOf(err) != tt.want {
				t.Errorf("%v, %s: %v, want %q", tt.offset, f, err, tt.want)
			}
		}
	}
}

func TestVerifyFarFuture(t *testing.T) {
	key := newSigner(t, Ed25519)
	known := &EphemeralKey{ID: "id", Public: key.public, Expires: now.Add(time.Hour)}
	if _, err := Verify(&Message{}, at(time.Unix(99_999_999_999, 0), key.sign), key.public, known, now, nonce); reasonOf(err) != ClockSkew {
		t.Errorf("year 5138: %v", err)
	}
}

func TestVerifyFreshness(t *testing.T) {
	key := newSigner(t, Ed25519)
	known := &EphemeralKey{ID: "id", Public: key.public, Expires: now.Add(time.Hour)}
	device := newSigner(t, ECDSAP256)
	body := sha256.Sum256([]byte("the body"))
	hexHash, b64Hash := hex.EncodeToString(body[:]), base64.StdEncoding.EncodeToString(body[:])
	wrong := sha256.Sum256([]byte("another body"))
	proofOf := func(value string, t time.Time, random int, claim string) *Proof {
		return &Proof{Signed: []byte(value), Signature: key.sign([]byte(value)), Time: t, Random: random, BodyClaim: []byte(claim)}
	}
	for _, tt := range []struct {
		name   string
		policy Freshness
		proof  *Proof
		body   *[32]byte
		want   Reason
	}{
		{"nonce: anything", Nonce, proofOf("anything", time.Time{}, 0, ""), nil, ""},
		{"nonce: only a time", Nonce, proofOf("1764000000", now, 0, ""), nil, ""},
		{"strict: time and random", StrictNonce, at(now, key.sign), nil, ""},
		{"strict: only a time", StrictNonce, proofOf("1764000000", now, 0, ""), nil, NonceWeak},
		{"strict: 15 characters", StrictNonce, proofOf("1764000000-123456789012345", now, 15, ""), nil, NonceWeak},
		{"strict: no time", StrictNonce, proofOf("0123456789abcdef0123456789abcdef", time.Time{}, 0, ""), nil, NonceWeak},
		{"timestamp", Timestamp, proofOf("1764000000", now, 0, ""), nil, ""},
		{"timestamp: none", Timestamp, proofOf("x", time.Time{}, 0, ""), nil, NonceWeak},
		{"body: hex", BodyHash, proofOf(hexHash, time.Time{}, 0, hexHash), &body, ""},
		{"body: base64", BodyHash, proofOf(b64Hash, time.Time{}, 0, b64Hash), &body, ""},
		{"body: base64 without padding", BodyHash, proofOf(b64Hash[:43], time.Time{}, 0, b64Hash[:43]), &body, ""},
		{"body: raw", BodyHash, proofOf("x", time.Time{}, 0, string(body[:])), &body, ""},
		{"body: itself", BodyHash, proofOf("the body", time.Time{}, 0, "the body"), &body, ""},
		{"body: with time", BodyHash, proofOf("1764000000-"+hexHash, now, 64, hexHash), &body, ""},
		{"body: another", BodyHash, proofOf(hexHash, time.Time{}, 0, hexHash), &wrong, BodyDiffer},
		{"body: not seen", BodyHash, proofOf(hexHash, time.Time{}, 0, hexHash), nil, BodyDiffer},
		{"body: random value", BodyHash, at(now, key.sign), &body, BodyDiffer},
		{"body: no claim", BodyHash, proofOf("1764000000", now, 0, ""), &body, BodyDiffer},
		{"unknown policy", Freshness(9), at(now, key.sign), &body, Invalid},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Verify(&Message{Body: tt.body}, tt.proof, device.public, known, now, policy(tt.policy))
			if reasonOf(err) != tt.want {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

// introduction has key delegated to by device, with a value signed by sign.
func introduction(device signer, key *PublicKey, by Signer, sign func([]byte) []byte) *Proof {
	p := at(now, sign)
	text := []byte(base64.StdEncoding.EncodeToString(key.Bytes()))
	p.Delegation = &Delegation{Algorithm: key.Algorithm(), Key: key.Bytes(), Signed: text, Signature: device.sign(text), ProofBy: by}
	return p
}

func TestVerifyIntroduction(t *testing.T) {
	for _, deviceAlg := range signingAlgorithms {
		device, thief := newSigner(t, deviceAlg), newSigner(t, ECDSAP256)
		for _, alg := range append(signingAlgorithms, HMACSHA256) {
			t.Run(deviceAlg.String()+" delegates to "+alg.String(), func(t *testing.T) {
				key := newSigner(t, alg)
				for _, tt := range []struct {
					name  string
					proof *Proof
					want  Reason
				}{
					{"by the ephemeral key", introduction(device, key.public, ByEphemeral, key.sign), ""},
					{"either, by the ephemeral key", introduction(device, key.public, ByDeviceOrEphemeral, key.sign), ""},
					{"either, by the device key", introduction(device, key.public, ByDeviceOrEphemeral, device.sign), ""},
					{"by the device key", introduction(device, key.public, ByDevice, device.sign), ""},
					{"by the thief", introduction(device, key.public, ByDeviceOrEphemeral, thief.sign), Invalid},
					{"delegated by the thief", introduction(thief, key.public, ByDeviceOrEphemeral, key.sign), Invalid},
				} {
					got, err := Verify(&Message{}, tt.proof, device.public, nil, now, nonce)
					if reasonOf(err) != tt.want {
						t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
					} else if err == nil && !got.Public.SameKey(key.public) {
						t.Errorf("%s: another key came out", tt.name)
					}
				}
				if deviceAlg == ECDSAP256 {
					p := introduction(device, key.public, ByEphemeral, device.sign)
					if _, err := Verify(&Message{}, p, device.public, nil, now, nonce); reasonOf(err) != Invalid {
						t.Errorf("value by the device key where the ephemeral key must sign: %v", err)
					}
				}
			})
		}
	}
}

func TestVerifyIntroductionOfBadKey(t *testing.T) {
	device, key := newSigner(t, ECDSAP256), newSigner(t, ECDSAP256)
	p := introduction(device, key.public, ByDeviceOrEphemeral, device.sign)
	p.Delegation.Key = append([]byte(nil), p.Delegation.Key...)
	p.Delegation.Key[64] ^= 1 // off the curve; the device key signed the text, not these bytes
	if _, err := Verify(&Message{}, p, device.public, nil, now, nonce); reasonOf(err) != Malformed {
		t.Errorf("%v", err)
	}
}

// A device key signs delegations and values alike on the hw-sign wire. The
// signature of a delegation must not serve as that of a value.
func TestDelegationIsNoProof(t *testing.T) {
	for _, deviceAlg := range signingAlgorithms {
		device := newSigner(t, deviceAlg)
		for _, alg := range append(signingAlgorithms, HMACSHA256) {
			key := newSigner(t, alg)
			captured := introduction(device, key.public, ByDeviceOrEphemeral, key.sign)
			spki, err := key.public.SPKI()
			if err != nil {
				t.Fatal(err)
			}
			for _, enc := range [][]byte{key.public.Bytes(), spki} {
				for _, encoding := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding} {
					text := []byte(encoding.EncodeToString(enc))
					sum := sha256.Sum256(text)
					for _, f := range []Freshness{Nonce, BodyHash} {
						forged := *captured
						forged.Signed, forged.Signature = text, device.sign(text)
						forged.Time, forged.Random, forged.BodyClaim = time.Time{}, 0, text
						if _, err := Verify(&Message{Body: &sum}, &forged, device.public, nil, now, policy(f)); reasonOf(err) != Malformed {
							t.Errorf("%s over %s as introduction, %s: %v", deviceAlg, alg, f, err)
						}
						// The Windows app's habit: the device key is the ephemeral key too.
						known := &EphemeralKey{ID: "id", Public: device.public, Expires: now.Add(time.Minute)}
						plain := forged
						plain.Delegation, plain.KeyID = nil, "id"
						if _, err := Verify(&Message{Body: &sum}, &plain, device.public, known, now, policy(f)); reasonOf(err) != Malformed {
							t.Errorf("%s over %s as proof, %s: %v", deviceAlg, alg, f, err)
						}
					}
				}
			}
		}
	}
}

// A value that a client really sends must not be taken for a key.
func TestHonestValuesAreNoKeys(t *testing.T) {
	device := newSigner(t, ECDSAP256)
	body := sha256.Sum256([]byte(`{"a":1}`))
	for _, value := range []string{`{"a":1}`, base64.StdEncoding.EncodeToString(body[:]), hex.EncodeToString(body[:])} {
		p := introduction(device, newSigner(t, HMACSHA256).public, ByDeviceOrEphemeral, device.sign)
		p.Signed, p.Signature = []byte(value), device.sign([]byte(value))
		p.Time, p.BodyClaim = time.Time{}, []byte(value)
		if _, err := Verify(&Message{Body: &body}, p, device.public, nil, now, policy(BodyHash)); err != nil {
			t.Errorf("%s: %v", value, err)
		}
	}
}

func TestReplayID(t *testing.T) {
	device, key := newSigner(t, ECDSAP256), newSigner(t, ECDSAP256)
	known := &EphemeralKey{ID: "a", Public: key.public, Expires: now.Add(time.Minute)}
	id := func(p *Proof, k *EphemeralKey) string {
		if _, err := Verify(&Message{}, p, device.public, k, now, nonce); err != nil {
			t.Fatal(err)
		}
		return string(p.ReplayID(nil, known))
	}
	p := at(now, key.sign)
	first := id(p, known)
	rs, ok := parseECDSA(p.Signature)
	if !ok {
		t.Fatal("own signature does not parse")
	}
	raw := *p
	raw.Signature = rs[:]
	if id(&raw, known) != first {
		t.Error("the same signature as r‖s is another use")
	}
	if id(at(now, key.sign), known) == first {
		t.Error("two honest signatures over one value are one use")
	}
	// What introduced the key must not prove it once more.
	intro := introduction(device, key.public, ByEphemeral, key.sign)
	introID := id(intro, nil)
	again := *intro
	again.Delegation = nil
	if id(&again, known) != introID {
		t.Error("an introduction's value can be used again as a proof")
	}
}

func TestRefusalNamesTheClock(t *testing.T) {
	key := newSigner(t, Ed25519)
	known := &EphemeralKey{ID: "id", Public: key.public, Expires: now.Add(time.Hour)}
	_, err := Verify(&Message{}, at(now.Add(-5*time.Minute), key.sign), key.public, known, now, nonce)
	want := "limpet: clock_skew: the client's clock is slow or the proof is old: made 5m0s before the server's clock"
	if err == nil || err.Error() != want {
		t.Errorf("%v", err)
	}
}

func TestLevels(t *testing.T) {
	order := []Level{None, Software, Browser, Hardware, HardwareAttested}
	for i, l := range order {
		for j, min := range order {
			if l.AtLeast(min) != (i >= j) {
				t.Errorf("%s at least %s: %v", l, min, l.AtLeast(min))
			}
		}
	}
	if Level("gold").AtLeast(Software) || !Level("gold").AtLeast(None) || HardwareAttested.AtLeast("gold") || !Level("").AtLeast("") {
		t.Error("unknown levels are not handled as the weakest")
	}
}
