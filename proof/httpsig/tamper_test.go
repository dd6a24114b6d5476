package httpsig

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/proof"
)

// original is a signed request whose proof holds, and the proof.
type original struct {
	*proof.Message
	by               *signer
	signed, sig      []byte
	refused, checked int
}

func newOriginal(t *testing.T, s *signer, inCookie, hasBody bool) *original {
	m := request(inCookie, hasBody)
	m.Header[ChallengeField] = []string{"c-20251124"}
	if err := Sign(m, s.signing(), s.sign); err != nil {
		t.Fatal(err)
	}
	o := &original{Message: m, by: s}
	p, err := o.verify(m)
	if p == nil || err != nil {
		t.Fatal(err)
	}
	o.signed, o.sig = p.Signed, p.Signature
	return o
}

// verify returns m's proof if there is one and it holds.
func (o *original) verify(m *proof.Message) (*proof.Proof, error) {
	p := new(proof.Proof)
	if found, err := (Wire{}).Extract(m, p); !found || err != nil {
		return nil, err
	}
	_, err := proof.Verify(m, p, nil, o.by.known(), now, policy)
	return p, err
}

// refuses fails unless m's proof does not hold, or is the same bytes.
func (o *original) refuses(t *testing.T, m *proof.Message, what string) {
	t.Helper()
	o.checked++
	p, err := o.verify(m)
	if p == nil || err != nil {
		o.refused++
		if err != nil && reasonOf(err) == "not a refusal" {
			t.Errorf("%s: error that is no refusal: %v", what, err)
		}
		return
	}
	if !bytes.Equal(p.Signed, o.signed) || !bytes.Equal(p.Signature, o.sig) {
		t.Errorf("%s: the proof holds", what)
	}
}

// TestTampering changes every bit of a signed request that its signature stands
// for, and what it covers in every way.
func TestTampering(t *testing.T) {
	for _, alg := range requestAlgorithms {
		s := newSigner(t, alg)
		for _, kind := range []struct {
			name              string
			inCookie, hasBody bool
		}{{"bearer", false, false}, {"bearer, body", false, true}, {"cookie", true, false}, {"cookie, body", true, true}} {
			t.Run(alg.String()+", "+kind.name, func(t *testing.T) {
				o := newOriginal(t, s, kind.inCookie, kind.hasBody)
				o.bits(t)
				if o.refused != o.checked {
					t.Errorf("%d of %d changes of a bit are no change", o.checked-o.refused, o.checked)
				}
				o.lists(t)
			})
		}
	}
}

// bits changes single bits.
func (o *original) bits(t *testing.T) {
	flip := func(text, what string, put func(*proof.Message, string)) {
		for i := range len(text) * 8 {
			b := []byte(text)
			b[i/8] ^= 1 << (i % 8)
			m := clone(o.Message)
			put(m, string(b))
			o.refuses(t, m, what)
		}
	}
	flip(o.Method, "method", func(m *proof.Message, s string) { m.Method = s })
	flip(o.Authority, "authority", func(m *proof.Message, s string) { m.Authority = s })
	flip(o.Path, "path", func(m *proof.Message, s string) { m.Path = s })
	flip(o.RawQuery, "query", func(m *proof.Message, s string) { m.RawQuery = s })
	for name, lines := range o.Header {
		switch name {
		case "Accept", "User-Agent", "Cookie": // not covered
		default:
			flip(lines[0], name, func(m *proof.Message, s string) { m.Header[name] = []string{s} })
		}
	}
}

// lists drops, doubles and moves components and parameters, and whole fields.
func (o *original) lists(t *testing.T) {
	in := o.Header["Signature-Input"][0]
	list, params, _ := strings.Cut(strings.TrimPrefix(in, "limpet=("), ");")
	components, parameters := strings.Split(list, " "), strings.Split(params, ";")
	put := func(c, p []string, what string) {
		m := clone(o.Message)
		m.Header["Signature-Input"] = []string{"limpet=(" + strings.Join(c, " ") + ");" + strings.Join(p, ";")}
		o.refuses(t, m, what)
	}
	same := func(c []string) []string { return c }
	for _, edit := range []struct {
		what                   string
		components, parameters func(before []string) (after []string)
		list                   []string
	}{
		{"components", nil, same, components},
		{"parameters", same, nil, parameters},
	} {
		apply := func(after []string, what string) {
			if edit.components == nil {
				put(after, parameters, edit.what+" "+what)
			} else {
				put(components, after, edit.what+" "+what)
			}
		}
		for i := range edit.list {
			apply(slices.Delete(slices.Clone(edit.list), i, i+1), "dropped")
			for j := range len(edit.list) + 1 {
				apply(slices.Insert(slices.Clone(edit.list), j, edit.list[i]), "doubled")
			}
			for j := range i {
				swapped := slices.Clone(edit.list)
				swapped[i], swapped[j] = swapped[j], swapped[i]
				apply(swapped, "swapped")
			}
		}
	}
	for _, more := range []string{`"accept"`, `"x"`, `"@target-uri"`, `"@scheme"`, `"authorization";bs`, `"@query-param";name="full"`} {
		put(append(slices.Clone(components), more), parameters, "one more component")
	}
	for name := range o.Header {
		switch name {
		case "Accept", "User-Agent", "Cookie":
			continue
		}
		o.refuses(t, change(o.Message, name, ""), name+" dropped")
		m := clone(o.Message)
		m.Header[name] = append(m.Header[name], m.Header[name]...)
		o.refuses(t, m, name+" doubled")
	}
	// Other texts of the same field: refused, or the same bytes.
	sig := o.Header["Signature"][0]
	for _, text := range []string{
		strings.TrimRight(sig, "=:") + ":",
		strings.Replace(sig, ":", ": ", 1),
		sig + " ", " " + sig, "\t" + sig, sig + ";a", sig + ",", strings.NewReplacer("+", "-", "/", "_").Replace(sig),
		strings.Replace(sig, "=", " =", 1), strings.ToUpper(sig[:6]) + sig[6:], spare(sig),
	} {
		o.refuses(t, change(o.Message, "Signature", text), "another text of Signature")
	}
	for _, text := range []string{
		in + " ", " " + in, strings.Replace(in, " ", "  ", 1), strings.Replace(in, " ", "\t", 1), strings.Replace(in, ";", "; ", 1),
		strings.Replace(in, ";", " ;", 1), strings.Replace(in, "=1764", "=01764", 1), strings.Replace(in, "=1764", "=+1764", 1),
		strings.Replace(in, "000000;", "000000.0;", 1), strings.Replace(in, "(", "( ", 1), strings.Replace(in, "nonce", "Nonce", 1),
		strings.Replace(in, `"@method"`, `"@met\hod"`, 1), strings.Replace(in, `"@method"`, `"@method";a=?0`, 1), in + ";expires=1764000001",
		strings.Replace(in, "=(", " =(", 1), strings.Replace(in, `)`, `);x`, 1), in + ", x=()", "x, " + in,
	} {
		o.refuses(t, change(o.Message, "Signature-Input", text), "another text of Signature-Input")
	}
}

// spare sets a bit of the last character of padded base64 that stands for
// nothing.
func spare(sig string) string {
	i := strings.IndexByte(sig, '=') + 1 // behind the label
	end := strings.IndexByte(sig[i:], '=')
	if end < 0 {
		return sig + "=" // of an RSA signature nothing is spare
	}
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	b := []byte(sig)
	b[i+end-1] = alphabet[strings.IndexByte(alphabet, b[i+end-1])|1]
	return string(b)
}

// TestLoginTampering changes every bit of a login.
func TestLoginTampering(t *testing.T) {
	device := newSigner(t, proof.ECDSAP256)
	m := login(t, device, proof.Hardware)
	holds := func(m *proof.Message) bool {
		offer, err := Wire{}.Offer(m)
		if err != nil || offer == nil {
			return false
		}
		return proof.VerifyOffer(m, offer, now, policy) == nil
	}
	if !holds(m) {
		t.Fatal("the login does not hold")
	}
	for name, lines := range m.Header {
		for i := range len(lines[0]) * 8 {
			b := []byte(lines[0])
			b[i/8] ^= 1 << (i % 8)
			if holds(change(m, name, string(b))) {
				t.Errorf("%s: bit %d changed", name, i)
			}
		}
	}
	for _, edit := range []func(*proof.Message){
		func(m *proof.Message) { m.Method = "PUT" },
		func(m *proof.Message) { m.Authority = "other.example.com" },
		func(m *proof.Message) { m.Path = "/" },
		func(m *proof.Message) { m.RawQuery = "a=b" },
	} {
		c := clone(m)
		edit(c)
		if holds(c) {
			t.Errorf("holds as %s %s%s?%s", c.Method, c.Authority, c.Path, c.RawQuery)
		}
	}
}

// A proof moved to another request, and one by another algorithm than its key.
func TestMovedProof(t *testing.T) {
	for _, alg := range requestAlgorithms {
		s := newSigner(t, alg)
		m := s.signed(t, false, true)
		holds := func(m *proof.Message, key *proof.EphemeralKey, policy proof.Policy) error {
			var p proof.Proof
			if found, err := (Wire{}).Extract(m, &p); !found || err != nil {
				return err
			}
			_, err := proof.Verify(m, &p, nil, key, now, policy)
			return err
		}
		for name, edit := range map[string]func(*proof.Message){
			"method":    func(m *proof.Message) { m.Method = "DELETE" },
			"authority": func(m *proof.Message) { m.Authority = "app.example.com:8443" },
			"path":      func(m *proof.Message) { m.Path = "/orders/8" },
			"encoding":  func(m *proof.Message) { m.Path = "/orders/%37" },
			"query":     func(m *proof.Message) { m.RawQuery = "" },
			"token":     func(m *proof.Message) { m.Header["Authorization"] = []string{"Bearer x"} },
			"split":     func(m *proof.Message) { m.Path, m.RawQuery = "/orders", "7?full=1&x=%20" },
			"smuggled":  func(m *proof.Message) { m.Method = "POST\n\"x\": y" },
		} {
			c := clone(m)
			edit(c)
			if err := holds(c, s.known(), policy); err == nil {
				t.Errorf("%s: moved to another %s", alg, name)
			}
		}
		// The claim about the body is in BodyClaim, for those who know the body.
		sum := [32]byte(sum256("another body"))
		c := clone(m)
		c.Body = &sum
		hashed := policy
		hashed.Freshness = proof.BodyHash
		if err := holds(c, s.known(), hashed); reasonOf(err) != proof.BodyDiffer {
			t.Errorf("%s: another body: %v", alg, err)
		}
		// The same key with each other algorithm, signed as such.
		for _, other := range requestAlgorithms {
			if other == alg {
				continue
			}
			c := request(false, true)
			g := s.signing()
			g.Algorithm = other
			if err := Sign(c, g, s.sign); err != nil {
				t.Fatal(err)
			}
			if err := holds(c, s.known(), policy); reasonOf(err) != proof.Invalid {
				t.Errorf("%s as %s: %v", alg, other, err)
			}
			// The public key as the secret of an HMAC, the oldest trick.
			if other == proof.HMACSHA256 {
				mac := proof.NewMACKey(s.public.Bytes())
				err := Sign(c, g, func(b []byte) ([]byte, error) { return mac.Append(nil, b), nil })
				if err != nil {
					t.Fatal(err)
				}
				if err := holds(c, s.known(), policy); reasonOf(err) != proof.Invalid {
					t.Errorf("%s, public key as secret: %v", alg, err)
				}
			}
		}
		// Old and early.
		for _, d := range []time.Duration{-policy.Window - time.Second, policy.Skew + time.Second} {
			c := request(false, true)
			g := s.signing()
			g.Created = now.Add(d)
			if err := Sign(c, g, s.sign); err != nil {
				t.Fatal(err)
			}
			if err := holds(c, s.known(), policy); reasonOf(err) != proof.ClockSkew {
				t.Errorf("%s, made at %v: %v", alg, d, err)
			}
		}
	}
}

// The replay key is the nonce with the key: a signature that is written, or made,
// anew spends the same.
func TestReplayID(t *testing.T) {
	s := newSigner(t, proof.ECDSAP256)
	id := func(m *proof.Message) string {
		var p proof.Proof
		if found, err := (Wire{}).Extract(m, &p); !found || err != nil {
			t.Fatal(found, err)
		}
		key, err := proof.Verify(m, &p, nil, s.known(), now, policy)
		if err != nil {
			t.Fatal(err)
		}
		return string(p.ReplayID(nil, key))
	}
	if id(s.signed(t, false, false)) != id(s.signed(t, false, true)) {
		t.Error("one nonce is spent as two")
	}
	m := request(false, false)
	g := s.signing()
	g.Nonce = nonce[1:] + "x"
	if err := Sign(m, g, s.sign); err != nil {
		t.Fatal(err)
	}
	if id(m) == id(s.signed(t, false, false)) {
		t.Error("two nonces are spent as one")
	}
}
