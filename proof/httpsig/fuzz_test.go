package httpsig

import (
	"bytes"
	"testing"

	"github.com/limpet-auth/limpet/proof"
)

func FuzzExtract(f *testing.F) {
	device, s := newSigner(f, proof.ECDSAP256), newSigner(f, proof.HMACSHA256)
	for _, alg := range []proof.Algorithm{proof.HMACSHA256, proof.Ed25519} {
		for _, inCookie := range []bool{false, true} {
			m := newSigner(f, alg).signed(f, inCookie, true)
			f.Add(m.Header["Signature-Input"][0], m.Header["Signature"][0], m.Header[DigestField][0], FormatDelegation(s.delegation(f, device)), inCookie)
		}
	}
	f.Add(`a=("@status";req);x=?0, limpet=( "@method" "@path"  "@authority" "@query" "authorization" "accept";bs "@query-param";name="full");tag="limpet";created=01764000000;keyid="0123456789012345678901234567890123456789012";alg="ed25519";nonce="mP8yZ0yCkq2b1xQ7"`,
		`a=:AA==:,limpet=:AA==:`, "", "", false)
	f.Fuzz(func(t *testing.T, in, sig, digest, delegation string, inCookie bool) {
		m := request(inCookie, digest != "")
		for name, v := range map[string]string{"Signature-Input": in, "Signature": sig, DigestField: digest, DelegationField: delegation} {
			if v != "" {
				m.Header[name] = []string{v}
			}
		}
		var p proof.Proof
		found, err := Wire{}.Extract(m, &p)
		if err != nil && (found || reasonOf(err) == "not a refusal") {
			t.Fatalf("%v and error %v", found, err)
		}
		if !found {
			return
		}
		if len(p.KeyID) != 43 || p.Algorithm == 0 || p.Time.IsZero() || p.Random < 16 || len(p.Nonce) != p.Random || len(p.BodyClaim) != 32 || !p.Digest {
			t.Fatalf("%+v", p)
		}
		// The base ends in the input it was read from, in canonical form: which
		// reads as the same input, and makes the same base.
		_, params, ok := bytes.Cut(p.Signed, []byte(`"@signature-params": `))
		if !ok || bytes.Contains(params, []byte("\n")) {
			t.Fatalf("base %q", p.Signed)
		}
		m.Header["Signature-Input"] = []string{"x=" + string(params)}
		m.Header["Signature"] = []string{"x=" + formatBytes(p.Signature)}
		var again proof.Proof
		if len(params) > maxField-2 {
			return // it was on the edge
		}
		if found, err := (Wire{}).Extract(m, &again); !found || err != nil {
			t.Fatalf("its canonical form: %v, %v", found, err)
		}
		if !bytes.Equal(p.Signed, again.Signed) || !bytes.Equal(p.Signature, again.Signature) || p.KeyID != again.KeyID ||
			!bytes.Equal(p.Nonce, again.Nonce) || !p.Time.Equal(again.Time) || p.Algorithm != again.Algorithm {
			t.Fatalf("read twice:\n%s\n%s", p.Signed, again.Signed)
		}
		if d := p.Delegation; (d != nil) != (trim(delegation) != "") || d != nil && !bytes.Equal(Statement(d.Algorithm, d.Key, d.Scope), d.Signed) {
			t.Fatalf("delegation %+v", d)
		}
	})
}

func FuzzOffer(f *testing.F) {
	for _, alg := range []proof.Algorithm{proof.ECDSAP256, proof.Ed25519, proof.RSAPSS} {
		m := login(f, newSigner(f, alg), proof.Hardware)
		f.Add(m.Header[DeviceField][0], m.Header["Signature-Input"][0], m.Header["Signature"][0])
	}
	f.Fuzz(func(t *testing.T, device, in, sig string) {
		m := login(t, newSigner(t, proof.Ed25519), proof.Hardware)
		m.Header[DeviceField], m.Header["Signature-Input"], m.Header["Signature"] = []string{device}, []string{in}, []string{sig}
		offer, err := Wire{}.Offer(m)
		if err != nil && (offer != nil || reasonOf(err) == "not a refusal") {
			t.Fatalf("%v and error %v", offer, err)
		}
		if offer == nil {
			return
		}
		if offer.Key.Algorithm() == proof.HMACSHA256 || offer.Proof == nil || offer.Proof.Algorithm != offer.Key.Algorithm() {
			t.Fatalf("%+v", offer)
		}
		field, err := FormatDevice(offer.Key, offer.Level)
		if err != nil {
			t.Fatal(err)
		}
		key, level, err := parseDevice(field)
		if err != nil || !key.SameKey(offer.Key) || key.Algorithm() != offer.Key.Algorithm() || level != offer.Level {
			t.Fatalf("does not come back: %v", err)
		}
	})
}

func FuzzParseServer(f *testing.F) {
	id := sessionOf(bearer)
	s := &proof.Server{Key: newSigner(f, proof.HMACSHA256).public, KeyExpires: now, Lease: 900e9}
	f.Add(FormatServer(s, nil))
	f.Add(FormatServer(s, &id) + ";x=?0")
	f.Fuzz(func(t *testing.T, text string) {
		s, id, err := ParseServer(text)
		if err != nil {
			return
		}
		again, idAgain, err := ParseServer(FormatServer(s, id))
		if err != nil || !again.Key.SameKey(s.Key) || !again.KeyExpires.Equal(s.KeyExpires) || again.Lease != s.Lease || (id == nil) != (idAgain == nil) || id != nil && *id != *idAgain {
			t.Fatalf("%+v, %v, %v", again, idAgain, err)
		}
	})
}
