package dbsc

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/internal/jose"
)

type vectors struct {
	Comment  string
	Admitted []struct {
		Name                  string
		Registration, Refresh string // JWTs by one key
		RegistrationChallenge string `json:"registration_challenge"`
		RefreshChallenge      string `json:"refresh_challenge"`
		Thumbprint            string
		Algorithm             string
	}
	Refused []struct {
		Name, Reason  string
		Registration  bool
		Header, Claim string // of a JWT, as JSON; its signature is of no matter
		JWT           string // in their place
	}
}

func readVectors(t testing.TB) (v vectors) {
	b, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

func message(jwt string) *proof.Message {
	return &proof.Message{Method: "POST", Scheme: "https", Authority: "app.test", Path: "/.well-known/limpet/dbsc", Header: map[string][]string{ResponseField: {jwt}}}
}

func reasonOf(err error) proof.Reason {
	if refusal := (*proof.Refusal)(nil); errors.As(err, &refusal) {
		return refusal.Reason
	}
	return "not a refusal"
}

// What Chromium sends is read, quoted or not, and holds.
func TestVectors(t *testing.T) {
	v := readVectors(t)
	for _, a := range v.Admitted {
		for _, form := range []string{"%s", `"%s"`, ` "%s" `, "%s;a=b", `"%s"; x`} {
			m := message(fmt.Sprintf(form, a.Registration))
			offer, err := Offer(m)
			if err != nil {
				t.Fatalf("%s: %v", a.Name, err)
			}
			sum := offer.Key.Thumbprint()
			if offer.Level != proof.Browser || offer.Proof.Challenge != a.RegistrationChallenge || jose.Base64.EncodeToString(sum[:]) != a.Thumbprint {
				t.Errorf("%s: %+v", a.Name, offer)
			}
			if err := proof.VerifyOffer(m, offer, time.Time{}, proof.Policy{}); err != nil {
				t.Errorf("%s: %v", a.Name, err)
			}
			var p proof.Proof
			m = message(fmt.Sprintf(form, a.Refresh))
			if found, err := Extract(m, &p); !found || err != nil || p.Challenge != a.RefreshChallenge {
				t.Fatalf("%s: %v, %v, %q", a.Name, found, err, p.Challenge)
			}
			if _, err := proof.Verify(m, &p, offer.Key, nil, time.Time{}, proof.Policy{}); err != nil {
				t.Errorf("%s: %v", a.Name, err)
			}
			p.Signature[7] ^= 1
			if _, err := proof.Verify(m, &p, offer.Key, nil, time.Time{}, proof.Policy{}); reasonOf(err) != proof.Invalid {
				t.Errorf("%s, spoilt: %v", a.Name, err)
			}
		}
	}
	for _, r := range v.Refused {
		jwt := r.JWT
		if jwt == "" {
			jwt = jose.Base64.EncodeToString([]byte(r.Header)) + "." + jose.Base64.EncodeToString([]byte(r.Claim)) + ".AA"
		}
		var err error
		if r.Registration {
			_, err = Offer(message(jwt))
		} else {
			_, err = Extract(message(jwt), new(proof.Proof))
		}
		if string(reasonOf(err)) != r.Reason {
			t.Errorf("%s: %v, want %s", r.Name, err, r.Reason)
		}
	}
	if len(v.Admitted) < 2 || len(v.Refused) < 15 {
		t.Error("too few vectors")
	}
}

func TestMadeAndRead(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for alg, key := range map[proof.Algorithm]crypto.Signer{proof.ECDSAP256: ec, proof.RSAPKCS1: r} {
		pub, err := proof.NewPublicKey(alg, key.Public())
		if err != nil {
			t.Fatal(err)
		}
		jwt, err := NewRegistration(key, alg, pub, "the-challenge")
		if err != nil {
			t.Fatal(err)
		}
		offer, err := Offer(message(jwt))
		if err != nil || !offer.Key.SameKey(pub) || proof.VerifyOffer(nil, offer, time.Time{}, proof.Policy{}) != nil {
			t.Errorf("%s: %v", alg, err)
		}
		// A refresh may bring the key, if it is the right one.
		for _, refresh := range []func() (string, error){
			func() (string, error) { return NewRefresh(key, alg, "next") },
			func() (string, error) { return NewRegistration(key, alg, pub, "next") },
		} {
			if jwt, err = refresh(); err != nil {
				t.Fatal(err)
			}
			var p proof.Proof
			if _, err := Extract(message(jwt), &p); err != nil || p.Challenge != "next" {
				t.Fatal(err)
			}
			if _, err := proof.Verify(message(jwt), &p, pub, nil, time.Time{}, proof.Policy{}); err != nil {
				t.Errorf("%s: %v", alg, err)
			}
			other, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			thief, _ := proof.NewPublicKey(proof.ECDSAP256, &other.PublicKey)
			if _, err := proof.Verify(message(jwt), &p, thief, nil, time.Time{}, proof.Policy{}); reasonOf(err) != proof.Invalid {
				t.Errorf("%s: by another key: %v", alg, err)
			}
		}
	}
	if _, err := NewRefresh(ec, proof.Ed25519, "x"); err == nil {
		t.Error("a JWT with an algorithm that browsers do not have")
	}
}

// An audience is this server, with the path or without.
func TestAudience(t *testing.T) {
	header := jose.Base64.EncodeToString([]byte(`{"alg":"ES256","typ":"dbsc+jwt"}`))
	for aud, want := range map[string]bool{
		"https://app.test/.well-known/limpet/dbsc": true, "https://app.test": true, "https://APP.test:443/": true, "": false, "app.test": false,
		"https://app.test.evil.test": false, "https://evil.test/https://app.test": false, "https://app.test@evil.test/": false, "https://app.test/x": false,
	} {
		claims, _ := json.Marshal(map[string]string{"jti": "c", "aud": aud})
		_, err := Extract(message(header+"."+jose.Base64.EncodeToString(claims)+".AA"), new(proof.Proof))
		if (err == nil) != want || !want && reasonOf(err) != proof.Invalid {
			t.Errorf("%q: %v", aud, err)
		}
	}
}

func TestSkipped(t *testing.T) {
	for line, want := range map[string]string{
		"": "", "unreachable": "", `unreachable;session_identifier="a"`: Unreachable, `unreachable;session_identifier="b"`: "",
		`server_error; session_identifier=a`: ServerError, `quota_exceeded;x;session_identifier="b", server_error;session_identifier="a"`: ServerError,
		` quota_exceeded ;session_identifier="a"`: QuotaExceeded, `tired;session_identifier="a"`: OtherReason,
		strings.Repeat("x,", 9) + `unreachable;session_identifier="a"`: "",
	} {
		if got := Skipped(map[string][]string{SkippedField: {line}}, "a"); got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}

func TestForms(t *testing.T) {
	if got := FormatRegistration("/a", "c"); got != `(ES256 RS256);path="/a";challenge="c"` {
		t.Error(got)
	}
	if got := FormatChallenge("c", "i"); got != `"c";id="i"` {
		t.Error(got)
	}
	s := Session{ID: "i", RefreshURL: "/r", Cookie: Cookie{"__Host-x", "Path=/; Secure"}}
	if got := string(s.JSON()); got != `{"session_identifier":"i","refresh_url":"/r","scope":{"include_site":false},"credentials":[{"type":"cookie","name":"__Host-x","attributes":"Path=/; Secure"}]}` {
		t.Error(got)
	}
	if got := s.Cookie.Set("v", 600); got != "__Host-x=v; Path=/; Secure; Max-Age=600" {
		t.Error(got)
	}
	if got := string(End("i")); got != `{"session_identifier":"i","continue":false}` {
		t.Error(got)
	}
}

// Whatever comes is read in one way or refused.
func FuzzResponse(f *testing.F) {
	v := readVectors(f)
	for _, a := range v.Admitted {
		f.Add(a.Registration, "id")
		f.Add(`"`+a.Refresh+`"`, `"id"`)
	}
	for _, r := range v.Refused {
		f.Add(jose.Base64.EncodeToString([]byte(r.Header))+"."+jose.Base64.EncodeToString([]byte(r.Claim))+".AA", r.JWT)
	}
	f.Fuzz(func(t *testing.T, jwt, id string) {
		m := message(jwt)
		m.Header[IDField] = []string{id}
		if got, err := ID(m.Header); err != nil && reasonOf(err) == "not a refusal" || err == nil && (got == "" || len(got) > maxID || strings.ContainsAny(got, "\" ;,")) {
			t.Fatalf("%q: %q, %v", id, got, err)
		}
		var p proof.Proof
		found, err := Extract(m, &p)
		if err != nil && (found || reasonOf(err) == "not a refusal") {
			t.Fatalf("%v and error %v", found, err)
		}
		if !found {
			return
		}
		if (p.Key == nil) != p.ByDevice || p.Challenge == "" || len(p.Challenge) > maxChallenge || p.Algorithm == 0 ||
			!strings.Contains(jwt, string(p.Signed)+"."+jose.Base64.EncodeToString(p.Signature)) {
			t.Fatalf("%+v", p)
		}
		offer, err := Offer(m)
		if (err == nil) != (p.Key != nil) || err == nil && !offer.Key.SameKey(p.Key) {
			t.Fatalf("as a registration: %v", err)
		}
	})
}

func FuzzSkipped(f *testing.F) {
	f.Add(`unreachable;session_identifier="a"`, "a")
	f.Add(`quota_exceeded;x;session_identifier="b", server_error;session_identifier=a`, "a")
	f.Fuzz(func(t *testing.T, line, id string) {
		switch got := Skipped(map[string][]string{SkippedField: {line, line}}, id); got {
		case "", Unreachable, ServerError, QuotaExceeded, OtherReason:
		default:
			t.Fatalf("%q", got)
		}
	})
}
