package httpsig

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/proof"
)

// change returns a copy of m with header fields replaced; "" removes one.
func change(m *proof.Message, pairs ...string) *proof.Message {
	m = clone(m)
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] == "" {
			delete(m.Header, pairs[i])
		} else {
			m.Header[pairs[i]] = []string{pairs[i+1]}
		}
	}
	return m
}

// What Extract demands of form. The signatures are not checked here, so fields
// are changed after signing.
func TestExtract(t *testing.T) {
	s := newSigner(t, proof.HMACSHA256)
	m := s.signed(t, false, false)
	in, sig := m.Header["Signature-Input"][0], m.Header["Signature"][0]
	edit := func(old, new string) *proof.Message {
		if !strings.Contains(in, old) {
			t.Fatalf("%q is not in %q", old, in)
		}
		return change(m, "Signature-Input", strings.Replace(in, old, new, 1))
	}
	cookie := s.signed(t, true, false)
	withBody := s.signed(t, false, true)
	hasBody := clone(m)
	hasBody.HasBody = true
	challenged := request(false, false)
	challenged.Header[ChallengeField] = []string{"c"}
	challenged.Header[ChannelField] = []string{Channel}
	if err := Sign(challenged, s.signing(), s.sign); err != nil {
		t.Fatal(err)
	}
	delegation := FormatDelegation(s.delegation(t, newSigner(t, proof.ECDSAP256)))
	many := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, ` "x-%d"`, i)
		}
		return b.String()
	}
	manyFields := edit(`"@query"`, `"@query"`+many(maxComponents-5))
	for i := range maxComponents {
		manyFields.Header[fmt.Sprintf("X-%d", i)] = []string{"v"}
	}
	const good = "" // no refusal: found
	none := proof.Reason("none")
	for _, tt := range []struct {
		name string
		m    *proof.Message
		want proof.Reason
	}{
		{"bearer", m, good},
		{"cookie", cookie, good},
		{"with a body", withBody, good},
		{"with a challenge and a channel", challenged, good},
		{"with a delegation", change(m, DelegationField, delegation), good},

		{"nothing", request(false, false), none},
		{"no fields at all", &proof.Message{}, none},
		{"a signature of the older kind", change(request(false, false), "Signature", `keyId="a",algorithm="b",signature="c"`), none},
		{"another tag", edit(`tag="limpet"`, `tag="other"`), none},
		{"no tag", edit(`;tag="limpet"`, ``), none},
		{"the tag is a token", edit(`tag="limpet"`, `tag=limpet`), none},
		{"empty", change(m, "Signature-Input", " "), none},
		{"others in every form", change(m, "Signature-Input", `a=("@status";req "x";sf "y";key="k");created=1;expires=2;x=?0, b, c=1;tag="x", d=("a" "a");created="no"`), none},

		{"another label", change(m, "Signature-Input", strings.Replace(in, "limpet=", "sig1=", 1), "Signature", strings.Replace(sig, "limpet=", "sig1=", 1)), good},
		{"others around ours", change(m, "Signature-Input", `a=("x";req);expires=1, `+in+`,b=()`, "Signature", `b=:AA==:, `+sig+` , a=:AA==:`), good},
		{"many of others", change(m, "Signature-Input", `a=(`+many(40)+`), `+in), good},
		{"others under one label", change(m, "Signature-Input", `a=(), a=("x"), `+in), good},
		{"parameters in another order", change(m, "Signature-Input", reorder(in)), good},
		{"spaces", edit(`("@method" "@authority"`, `(  "@method"   "@authority"`), good},
		{"spaces before parameters", edit(`;created=`, `;  created=`), good},
		{"32 components", manyFields, good},

		{"not a dictionary", change(m, "Signature-Input", "?"), proof.Malformed},
		{"garbage behind ours", change(m, "Signature-Input", in+", ?"), proof.Malformed},
		{"garbage before ours", change(m, "Signature-Input", "?, "+in), proof.Malformed},
		{"a comma behind ours", change(m, "Signature-Input", in+","), proof.Malformed},
		{"Signature-Input twice", func() *proof.Message {
			c := clone(m)
			c.Header["Signature-Input"] = []string{in, "a=()"}
			return c
		}(), proof.Malformed},
		{"Signature twice", func() *proof.Message { c := clone(m); c.Header["Signature"] = []string{sig, "a=:AA==:"}; return c }(), proof.Malformed},
		{"Signature-Input too large", change(m, "Signature-Input", in+strings.Repeat(" ", maxField)), proof.TooLarge},
		{"Signature too large", change(m, "Signature", sig+strings.Repeat(" ", maxField)), proof.TooLarge},
		{"two of ours", change(m, "Signature-Input", in+", other"+strings.TrimPrefix(in, "limpet")), proof.Malformed},
		{"two of ours, one broken", change(m, "Signature-Input", `a=1;tag="limpet", `+in), proof.Malformed},
		{"ours and a foreign one under one label", change(m, "Signature-Input", in+", limpet=()"), proof.Malformed},
		{"a foreign one and ours under one label", change(m, "Signature-Input", "limpet=(), "+in), proof.Malformed},
		{"ours is no inner list", change(m, "Signature-Input", `limpet=1;tag="limpet"`), proof.Malformed},
		{"ours is a flag", change(m, "Signature-Input", `limpet;tag="limpet"`), proof.Malformed},
		{"tag twice", edit(`;tag="limpet"`, `;tag="limpet";tag="limpet"`), proof.Malformed},

		{"no Signature", change(m, "Signature", ""), proof.Malformed},
		{"no signature under the label", change(m, "Signature", strings.Replace(sig, "limpet=", "other=", 1)), proof.Malformed},
		{"two signatures under the label", change(m, "Signature", sig+", "+sig), proof.Malformed},
		{"the signature is a string", change(m, "Signature", `limpet="AA=="`), proof.Malformed},
		{"the signature is a flag", change(m, "Signature", `limpet`), proof.Malformed},
		{"the signature has parameters", change(m, "Signature", sig+";a"), proof.Malformed},
		{"the signature without padding", change(m, "Signature", strings.Replace(sig, "=:", ":", 1)), proof.Malformed},
		{"the signature with line breaks", change(m, "Signature", strings.Replace(sig, ":", ":\n", 1)), proof.Malformed},
		{"garbage behind the signature", change(m, "Signature", sig+", ?"), proof.Malformed},

		{"no created", edit(`;created=1764000000`, ``), proof.Malformed},
		{"created twice", edit(`;created=1764000000`, `;created=1764000000;created=1764000000`), proof.Malformed},
		{"created is a string", edit(`created=1764000000`, `created="1764000000"`), proof.Malformed},
		{"created is a date", edit(`created=1764000000`, `created=@1764000000`), proof.Malformed},
		{"created is a decimal", edit(`created=1764000000`, `created=1764000000.0`), proof.Malformed},
		{"created is negative", edit(`created=1764000000`, `created=-1`), proof.Malformed},
		{"created is zero", edit(`created=1764000000`, `created=0`), proof.Malformed},
		{"created in the year 10000", edit(`created=1764000000`, `created=253402300800`), proof.Malformed},
		{"created in 9999", edit(`created=1764000000`, `created=253402300799`), good},
		{"created with a leading zero", edit(`created=1764000000`, `created=01764000000`), good},
		{"expires", edit(`;tag=`, `;expires=1764000060;tag=`), proof.Malformed},
		{"an unknown parameter", edit(`;tag=`, `;x;tag=`), proof.Malformed},
		{"no nonce", edit(`;nonce="`+nonce+`"`, ``), proof.Malformed},
		{"nonce twice", edit(`;nonce=`, `;nonce="`+nonce+`";nonce=`), proof.Malformed},
		{"short nonce", edit(nonce, nonce[:15]), proof.Malformed},
		{"16 characters", edit(nonce, nonce[:16]), good},
		{"64 characters", edit(nonce, strings.Repeat("a", 64)), good},
		{"65 characters", edit(nonce, strings.Repeat("a", 65)), proof.Malformed},
		{"empty nonce", edit(nonce, ""), proof.Malformed},
		{"nonce is a byte sequence", edit(`"`+nonce+`"`, ":AAAAAAAAAAAAAAAAAAAAAA==:"), proof.Malformed},
		{"a quote in the nonce", edit(nonce, nonce[:16]+`\"`), proof.Malformed},
		{"a semicolon in the nonce", edit(nonce, nonce[:16]+`;a`), proof.Malformed},
		{"a line break in the nonce", edit(nonce, nonce[:16]+"\n"), proof.Malformed},
		{"a space in the nonce", edit(nonce, nonce[:16]+" "), proof.Malformed},
		{"no keyid", edit(`;keyid="`+s.id+`"`, ``), proof.Malformed},
		{"short keyid", edit(s.id, s.id[:42]), proof.Malformed},
		{"long keyid", edit(s.id, s.id+"A"), proof.Malformed},
		{"keyid in the other alphabet", edit(s.id, s.id[:42]+"+"), proof.Malformed},
		{"a quote in the keyid", edit(s.id, s.id[:41]+`\"`), proof.Malformed},
		{"keyid with padding", edit(s.id, s.id[:42]+"="), proof.Malformed},
		{"no alg", edit(`;alg="hmac-sha256"`, ``), proof.Malformed},
		{"alg none", edit("hmac-sha256", "none"), proof.Malformed},
		{"alg in capitals", edit("hmac-sha256", "HMAC-SHA256"), proof.Malformed},
		{"alg of the older kind", edit("hmac-sha256", "hs2019"), proof.Malformed},
		{"alg of another curve", edit("hmac-sha256", "ecdsa-p384-sha384"), proof.Malformed},
		{"alg of device keys", edit("hmac-sha256", rsaPSS), proof.Malformed},
		{"alg is a token", edit(`"hmac-sha256"`, "hmac-sha256"), proof.Malformed},

		{"nothing covered", edit(in[7:strings.Index(in, ")")+1], "()"), proof.Malformed},
		{"no @method", edit(`"@method" `, ``), proof.Malformed},
		{"no @authority", edit(`"@authority" `, ``), proof.Malformed},
		{"no @path", edit(`"@path" `, ``), proof.Malformed},
		{"no @query", edit(`"@query" `, ``), proof.Malformed},
		{"@target-uri in its place", edit(`"@authority" "@path" "@query"`, `"@target-uri"`), proof.Malformed},
		{"@target-uri as well", edit(`"@query"`, `"@query" "@target-uri"`), good},
		{"no authorization", edit(` "authorization"`, ``), proof.Malformed},
		{"authorization as bytes only", edit(`"authorization"`, `"authorization";bs`), proof.Malformed},
		{"authorization as bytes as well", edit(`"authorization"`, `"authorization" "authorization";bs`), good},
		{"no session token", change(m, "Authorization", ""), proof.Malformed},
		{"two session tokens", func() *proof.Message {
			c := clone(m)
			c.Header["Authorization"] = []string{"Bearer " + bearer, "Bearer x"}
			return c
		}(), proof.Malformed},
		{"a component twice", edit(`"@query"`, `"@query" "@query"`), proof.Malformed},
		{"a foreign component twice", edit(`"@query"`, `"@query" "accept" "accept"`), proof.Malformed},
		{"33 components", change(manyFields, "Signature-Input", strings.Replace(manyFields.Header["Signature-Input"][0], `"@query"`, `"@query" "x-31"`, 1)), proof.Malformed},
		{"a component that is absent", edit(`"@query"`, `"@query" "x-none"`), proof.Malformed},
		{"a component of the response", edit(`"@query"`, `"@query" "@status"`), proof.Malformed},
		{"a component of a related request", edit(`"@query"`, `"@query" "accept";req`), proof.Malformed},
		{"a trailer", edit(`"@query"`, `"@query" "accept";tr`), proof.Malformed},
		{"a structured component", edit(`"@query"`, `"@query" "accept";sf`), proof.Malformed},
		{"a member of a component", edit(`"@query"`, `"@query" "accept";key="a"`), proof.Malformed},
		{"a component as bytes, not", edit(`"@query"`, `"@query" "accept";bs=?0`), proof.Malformed},
		{"a component with two parameters", edit(`"@query"`, `"@query" "accept";bs;bs`), proof.Malformed},
		{"a component that is a token", edit(`"@query"`, `"@query" accept`), proof.Malformed},
		{"a parameter without a key", edit(`"@query"`, `"@query";=1`), proof.Malformed},
		{"the parameters as a component", edit(`"@query"`, `"@query" "@signature-params"`), proof.Malformed},

		{"body and no digest", hasBody, proof.Malformed},
		{"digest that is not covered", change(m, DigestField, FormatDigest(emptySum)), proof.Malformed},
		{"digest twice", func() *proof.Message {
			c := clone(withBody)
			c.Header[DigestField] = append(c.Header[DigestField], FormatDigest(emptySum))
			return c
		}(), proof.Malformed},
		{"digest among others", change(withBody, DigestField, "sha-512=:AAAA:;x, "+FormatDigest(emptySum)+", unixsum=:AA==:"), good},
		{"digest of one algorithm twice", change(withBody, DigestField, FormatDigest(emptySum)+", "+FormatDigest(emptySum)), proof.Malformed},
		{"digest of another algorithm", change(withBody, DigestField, "sha-512=:AAAA:"), proof.Malformed},
		{"digest of another length", change(withBody, DigestField, "sha-256=:AAAA:"), proof.Malformed},
		{"digest in hex", change(withBody, DigestField, `sha-256="e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"`), proof.Malformed},
		{"digest that is no dictionary", change(withBody, DigestField, "?"), proof.Malformed},
		{"digest that is too large", change(withBody, DigestField, FormatDigest(emptySum)+strings.Repeat(" ", maxField)), proof.TooLarge},

		{"session's ID missing", change(cookie, SessionField, ""), proof.Malformed},
		{"session's ID not covered", change(cookie, "Signature-Input", strings.Replace(cookie.Header["Signature-Input"][0], ` "limpet-session"`, "", 1)), proof.Malformed},
		{"another session's ID", change(cookie, SessionField, FormatSession(emptySum)), proof.Invalid},
		{"session's ID with a parameter", change(cookie, SessionField, FormatSession(cookie.Session)+";a"), proof.Invalid},
		{"session's ID beside a bearer token, not covered", change(m, SessionField, FormatSession(m.Session)), proof.Malformed},
		{"session's ID twice", func() *proof.Message {
			c := clone(cookie)
			c.Header[SessionField] = append(c.Header[SessionField], c.Header[SessionField]...)
			return c
		}(), proof.Malformed},

		{"session's ID twice beside a bearer token", func() *proof.Message {
			c := clone(m)
			c.Header[SessionField] = []string{"a", "b"}
			return c
		}(), proof.Malformed},

		{"challenge not covered", change(m, ChallengeField, "c"), proof.Malformed},
		{"channel not covered", change(m, ChannelField, Channel), proof.Malformed},
		{"another channel", change(challenged, ChannelField, "tls-unique"), proof.Malformed},
		{"challenge twice", func() *proof.Message {
			c := clone(challenged)
			c.Header[ChallengeField] = []string{"c", "d"}
			return c
		}(), proof.Malformed},

		{"channel twice", func() *proof.Message {
			c := clone(challenged)
			c.Header[ChannelField] = []string{Channel, Channel}
			return c
		}(), proof.Malformed},

		{"a delegation without a signature", change(request(false, false), DelegationField, delegation), proof.Malformed},
		{"a delegation and the signature of others", change(request(false, false), DelegationField, delegation, "Signature-Input", "a=()"), proof.Malformed},
		{"a delegation that is garbage", change(m, DelegationField, "?"), proof.Malformed},
		{"a delegation that is too large", change(m, DelegationField, delegation+strings.Repeat(" ", maxField)), proof.TooLarge},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var p proof.Proof
			found, err := Wire{}.Extract(tt.m, &p)
			switch got := reasonOf(err); {
			case err == nil && found && tt.want == good, err == nil && !found && tt.want == none:
			case err != nil && !found && got == tt.want:
			default:
				t.Errorf("%v, %v; want %q", found, err, tt.want)
			}
			if err != nil && (strings.Contains(err.Error(), bearer) || strings.Contains(err.Error(), nonce)) {
				t.Errorf("the refusal repeats the request: %v", err)
			}
		})
	}
}

// reorder returns a Signature-Input with its parameters in the opposite order.
func reorder(in string) string {
	list, params, _ := strings.Cut(in, ")")
	p := strings.Split(params[1:], ";")
	slices.Reverse(p)
	return list + ");" + strings.Join(p, ";")
}

func TestOffer(t *testing.T) {
	for _, alg := range []proof.Algorithm{proof.ECDSAP256, proof.Ed25519, proof.RSAPSSSHA512, proof.RSAPKCS1, proof.RSAPSS} {
		for _, level := range []proof.Level{proof.Hardware, proof.Software} {
			t.Run(alg.String()+", "+string(level), func(t *testing.T) {
				device := newSigner(t, alg)
				m := login(t, device, level)
				offer, err := Wire{}.Offer(m)
				if err != nil || offer == nil {
					t.Fatal(offer, err)
				}
				if !offer.Key.SameKey(device.public) || offer.Key.Algorithm() != alg || offer.Level != level || offer.Proof.Algorithm != alg {
					t.Errorf("%+v", offer)
				}
				if err := proof.VerifyOffer(m, offer, now, policy); err != nil {
					t.Error(err)
				}
				c := clone(m)
				c.Path = "/other"
				if offer, err = (Wire{}).Offer(c); err != nil {
					t.Fatal(err)
				}
				if err := proof.VerifyOffer(c, offer, now, policy); reasonOf(err) != proof.Invalid {
					t.Errorf("moved to another path: %v", err)
				}
			})
		}
	}
}

// What Offer demands of form.
func TestOfferForm(t *testing.T) {
	device := newSigner(t, proof.ECDSAP256)
	m := login(t, device, proof.Hardware)
	in, field := m.Header["Signature-Input"][0], m.Header[DeviceField][0]
	key, _, _ := strings.Cut(field, ";")
	edit := func(old, new string) *proof.Message {
		if !strings.Contains(in, old) {
			t.Fatalf("%q is not in %q", old, in)
		}
		return change(m, "Signature-Input", strings.Replace(in, old, new, 1))
	}
	rsa := newSigner(t, proof.RSAPSSSHA512)
	rsaField, err := FormatDevice(rsa.public, proof.Software)
	if err != nil {
		t.Fatal(err)
	}
	other := newSigner(t, proof.ECDSAP256)
	noBody := clone(m)
	noBody.HasBody = false
	for _, tt := range []struct {
		name   string
		m      *proof.Message
		level  proof.Level // "" for none
		reason proof.Reason
	}{
		{"says hardware", m, proof.Hardware, ""},
		{"says software", change(m, DeviceField, key+";level=software"), proof.Software, ""},
		{"says nothing", change(m, DeviceField, key), proof.Software, ""},
		{"says attested", change(m, DeviceField, key+";level=hardware-attested"), proof.Software, ""},
		{"says its algorithm", change(m, DeviceField, key+";alg=ecdsa-p256-sha256"), proof.Software, ""},
		{"with a token to upgrade", change(m, "Authorization", "Bearer x"), proof.Hardware, ""},
		{"no device key", change(m, DeviceField, ""), "", ""},
		{"nothing at all", &proof.Message{}, "", ""},
		{"level is a string", change(m, DeviceField, key+`;level="hardware"`), "", proof.Malformed},
		{"algorithm twice", change(m, DeviceField, field+";alg=ecdsa-p256-sha256;alg=ecdsa-p256-sha256"), "", proof.Malformed},
		{"an unknown parameter", change(m, DeviceField, field+";x"), "", proof.Malformed},
		{"an unknown algorithm", change(m, DeviceField, field+";alg=dsa"), "", proof.Malformed},
		{"an agreement key", change(m, DeviceField, field+";alg=hmac-sha256"), "", proof.Malformed},
		{"an algorithm of other keys", change(m, DeviceField, field+";alg=ed25519"), "", proof.Malformed},
		{"PSS of a P-256 key", change(m, DeviceField, field+";alg="+rsaPSS), "", proof.Malformed},
		{"an RSA key that does not say", change(m, DeviceField, strings.Split(rsaField, ";")[0]), "", proof.Malformed},
		{"a point", change(m, DeviceField, formatBytes(device.public.Bytes())), "", proof.Malformed},
		{"not a key", change(m, DeviceField, ":AAAA:"), "", proof.Malformed},
		{"a large key", change(m, DeviceField, formatBytes(make([]byte, maxKey+1))), "", proof.Malformed},
		{"not a byte sequence", change(m, DeviceField, "?"), "", proof.Malformed},
		{"twice", func() *proof.Message { c := clone(m); c.Header[DeviceField] = []string{field, field}; return c }(), "", proof.Malformed},
		{"too large", change(m, DeviceField, field+strings.Repeat(" ", maxField)), "", proof.TooLarge},
		{"no signature", change(m, "Signature-Input", "", "Signature", ""), "", proof.Malformed},
		{"a signature of others", edit(`tag="limpet"`, `tag="other"`), "", proof.Malformed},
		{"another key's", change(m, DeviceField, formatDevice(t, other)), "", proof.Malformed},
		{"device key not covered", edit(` "limpet-device"`, ""), "", proof.Malformed},
		{"digest not covered", edit(` "content-digest"`, ""), "", proof.Malformed},
		{"digest not covered, no body", change(noBody, "Signature-Input", strings.Replace(in, ` "content-digest"`, "", 1)), "", proof.Malformed},
		{"neither digest nor body", change(noBody, "Signature-Input", strings.Replace(in, ` "content-digest"`, "", 1), DigestField, ""), proof.Hardware, ""},
		{"no digest", change(m, DigestField, ""), "", proof.Malformed},
		{"method not covered", edit(`"@method" `, ""), "", proof.Malformed},
		{"no algorithm", edit(`;alg="ecdsa-p256-sha256"`, ""), "", proof.Malformed},
		{"another algorithm", edit("ecdsa-p256-sha256", "ed25519"), "", proof.Malformed},
		{"algorithm of a MAC", edit("ecdsa-p256-sha256", "hmac-sha256"), "", proof.Malformed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			offer, err := Wire{}.Offer(tt.m)
			if reasonOf(err) != tt.reason {
				t.Fatalf("%v, want %q", err, tt.reason)
			}
			if (offer != nil) != (tt.level != "") || offer != nil && offer.Level != tt.level {
				t.Errorf("%+v, want level %q", offer, tt.level)
			}
		})
	}

	// A key whose signatures have a name must name it.
	m = login(t, rsa, proof.Software)
	m = change(m, "Signature-Input", strings.Replace(m.Header["Signature-Input"][0], `;alg="rsa-pss-sha512"`, "", 1))
	if _, err := (Wire{}).Offer(m); reasonOf(err) != proof.Malformed {
		t.Errorf("PSS with SHA-512 without a name: %v", err)
	}
	if _, err := FormatDevice(newSigner(t, proof.HMACSHA256).public, proof.Software); err == nil {
		t.Error("an agreement key as device key")
	}
}

func formatDevice(t *testing.T, s *signer) string {
	t.Helper()
	field, err := FormatDevice(s.public, proof.Hardware)
	if err != nil {
		t.Fatal(err)
	}
	return field
}

// A delegation from statement to ephemeral key, by every kind of key on both
// ends, and what the proof that brings it must fit.
func TestDelegation(t *testing.T) {
	for _, deviceAlg := range []proof.Algorithm{proof.ECDSAP256, proof.Ed25519, proof.RSAPSS} {
		device := newSigner(t, deviceAlg)
		for _, alg := range requestAlgorithms {
			t.Run(deviceAlg.String()+" to "+alg.String(), func(t *testing.T) {
				s := newSigner(t, alg)
				d := s.delegation(t, device)
				m := request(false, false)
				m.Header[DelegationField] = []string{FormatDelegation(d)}
				if err := Sign(m, s.signing(), s.sign); err != nil {
					t.Fatal(err)
				}
				agreed := policy
				agreed.Agree = func(got *proof.Delegation, _ *proof.PublicKey) (*proof.MACKey, error) {
					if got.Scope.Server != d.Scope.Server {
						t.Error("another server's key")
					}
					return s.mac, nil
				}
				verify := func(m *proof.Message) error {
					var p proof.Proof
					found, err := Wire{}.Extract(m, &p)
					if err != nil || !found || *p.Delegation.Scope != *d.Scope {
						t.Fatal(found, err)
					}
					_, err = proof.Verify(m, &p, device.public, nil, now, agreed)
					return err
				}
				if err := verify(m); err != nil {
					t.Error(err)
				}
				other := clone(m)
				other.Session[0]++
				if err := verify(other); reasonOf(err) != proof.Invalid {
					t.Errorf("another session: %v", err)
				}
				other = clone(m)
				other.Authority = "other.example.com"
				if err := verify(other); reasonOf(err) != proof.Invalid {
					t.Errorf("another authority: %v", err)
				}
				// Another client's proof with this delegation.
				thief := newSigner(t, proof.Ed25519)
				other = clone(m)
				if err := Sign(other, thief.signing(), thief.sign); err != nil {
					t.Fatal(err)
				}
				if err := verify(other); reasonOf(err) != proof.Invalid {
					t.Errorf("another key: %v", err)
				}
				// A statement is no signature base, and the other way round.
				if device.public.VerifyExact(deviceAlg, []byte(`"@method": GET`), d.Signature) {
					t.Error("not separated")
				}
			})
		}
	}
}

func TestDelegationForm(t *testing.T) {
	key := newSigner(t, proof.HMACSHA256).public
	ed := newSigner(t, proof.Ed25519).public
	server := formatBytes(make([]byte, 16))
	statement := func(alg proof.Algorithm, key []byte, edit func(*proof.Scope)) string {
		s := scope()
		if edit != nil {
			edit(s)
		}
		return formatBytes(Statement(alg, key, s))
	}
	good := statement(proof.HMACSHA256, key.Bytes(), nil)
	sign := statement(proof.Ed25519, ed.Bytes(), nil)
	raw := Statement(proof.Ed25519, ed.Bytes(), scope())
	patched := func(at int, b ...byte) string {
		c := slices.Clone(raw)
		copy(c[at:], b)
		return formatBytes(c) + ";sig=:AA==:"
	}
	at := len(statementPrefix)
	for _, tt := range []struct {
		name, field string
		ok          bool
	}{
		{"agreement", good + ";sig=:AA==:;server=" + server, true},
		{"agreement, other order", good + ";server=" + server + ";sig=:AA==:", true},
		{"signing", sign + ";sig=:AA==:", true},
		{"agreement with nobody", good + ";sig=:AA==:", false},
		{"signing and agreement", sign + ";sig=:AA==:;server=" + server, false},
		{"no signature", sign, false},
		{"empty signature", sign + ";sig=::", false},
		{"signature is a string", sign + `;sig="AA=="`, false},
		{"signature twice", sign + ";sig=:AA==:;sig=:AA==:", false},
		{"server twice", good + ";sig=:AA==:;server=" + server + ";server=" + server, false},
		{"server of another length", good + ";sig=:AA==:;server=:AAAA:", false},
		{"server empty", good + ";sig=:AA==:;server=::", false},
		{"server is a token", good + ";sig=:AA==:;server=a", false},
		{"unknown parameter", sign + ";sig=:AA==:;x", false},
		{"two items", sign + ";sig=:AA==:, " + sign, false},
		{"empty statement", "::;sig=:AA==:", false},
		{"only the prefix", formatBytes([]byte(statementPrefix)) + ";sig=:AA==:", false},
		{"another prefix", patched(0, 'L'), false},
		{"another version", patched(at-2, '2'), false},
		{"algorithm 0", patched(at, 0), false},
		{"algorithm 6", patched(at, 6), false},
		{"algorithm 255", patched(at, 255), false},
		{"key of another algorithm", patched(at, 2), false},
		{"not before huge", patched(at+1, 0x80), false},
		{"expires huge", patched(at+9, 0x80), false},
		{"audience longer than the rest", patched(at+49, 0, 255), false},
		{"audience of 64 KiB", patched(at+49, 255, 255), false},
		{"over before it begins", statement(proof.Ed25519, ed.Bytes(), func(s *proof.Scope) { s.Expires = s.NotBefore }) + ";sig=:AA==:", false},
		{"before 1970", statement(proof.Ed25519, ed.Bytes(), func(s *proof.Scope) { s.NotBefore = time.Unix(-1, 0) }) + ";sig=:AA==:", false},
		{"in the year 10000", statement(proof.Ed25519, ed.Bytes(), func(s *proof.Scope) { s.Expires = time.Unix(maxTime+1, 0) }) + ";sig=:AA==:", false},
		{"no audience", statement(proof.Ed25519, ed.Bytes(), func(s *proof.Scope) { s.Audience = "" }) + ";sig=:AA==:", false},
		{"long audience", statement(proof.Ed25519, ed.Bytes(), func(s *proof.Scope) { s.Audience = strings.Repeat("a", 255) }) + ";sig=:AA==:", true},
		{"longer audience", statement(proof.Ed25519, ed.Bytes(), func(s *proof.Scope) { s.Audience = strings.Repeat("a", 256) }) + ";sig=:AA==:", false},
		{"space in the audience", statement(proof.Ed25519, ed.Bytes(), func(s *proof.Scope) { s.Audience = "a b" }) + ";sig=:AA==:", false},
		{"audience in another alphabet", statement(proof.Ed25519, ed.Bytes(), func(s *proof.Scope) { s.Audience = "ü.example" }) + ";sig=:AA==:", false},
		{"no key", statement(proof.Ed25519, nil, nil) + ";sig=:AA==:", false},
		{"a byte behind the key", statement(proof.Ed25519, append(slices.Clone(ed.Bytes()), 0), nil) + ";sig=:AA==:", false},
		{"a large key", statement(proof.RSAPKCS1, make([]byte, maxKey+1), nil) + ";sig=:AA==:", false},
		{"an algorithm of device keys", statement(proof.RSAPSS, ed.Bytes(), nil) + ";sig=:AA==:", false},
		{"not a byte sequence", `"a";sig=:AA==:`, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, err := parseDelegation(tt.field)
			if (err == nil) != tt.ok || err != nil && reasonOf(err) != proof.Malformed {
				t.Fatalf("%v, want ok %v", err, tt.ok)
			}
			if tt.ok && !strings.HasPrefix(tt.field, formatBytes(Statement(d.Algorithm, d.Key, d.Scope))) {
				t.Error("the statement does not come back")
			}
		})
	}
}

// The statement is a fixed format: its bytes for given values never change.
func TestStatement(t *testing.T) {
	s := &proof.Scope{NotBefore: time.Unix(0x0102030405, 0), Expires: time.Unix(0x0102030406, 0), Audience: "a:1"}
	for i := range s.Session {
		s.Session[i] = byte(0x80 + i)
	}
	for alg, code := range map[proof.Algorithm]byte{proof.Ed25519: 1, proof.ECDSAP256: 2, proof.RSAPSSSHA512: 3, proof.RSAPKCS1: 4, proof.HMACSHA256: 5, proof.RSAPSS: 0} {
		want := "limpet delegation 1\x00" + string(rune(code)) + "\x00\x00\x00\x01\x02\x03\x04\x05\x00\x00\x00\x01\x02\x03\x04\x06" + string(s.Session[:]) + "\x00\x03a:1key"
		if got := Statement(alg, []byte("key"), s); string(got) != want {
			t.Errorf("%s: %q, want %q", alg, got, want)
		}
	}
}

func TestServer(t *testing.T) {
	key := newSigner(t, proof.HMACSHA256).public
	s := &proof.Server{Key: key, KeyExpires: now.Add(time.Hour), Lease: 15 * time.Minute}
	session := sessionOf(bearer)
	point := formatBytes(key.Bytes())
	for _, id := range []*[32]byte{nil, &session} {
		field := FormatServer(s, id)
		if strings.ContainsAny(field, "\"\\") {
			t.Errorf("%s cannot stand between quotes", field)
		}
		got, gotID, err := ParseServer(field)
		if err != nil || !got.Key.SameKey(key) || got.Key.Algorithm() != proof.HMACSHA256 || !got.KeyExpires.Equal(s.KeyExpires) || got.Lease != s.Lease {
			t.Errorf("%+v, %v", got, err)
		}
		if (gotID == nil) != (id == nil) || id != nil && *gotID != *id {
			t.Errorf("session %v, want %v", gotID, id)
		}
	}
	const times = ";exp=1764003600;lease=900"
	if field := FormatServer(s, nil); field != point+times {
		t.Error(field)
	}
	for _, tt := range []struct {
		text string
		ok   bool
	}{
		{point + times, true},
		{point + times + ";new=1", true},
		{point, false},
		{point + ";exp=1764003600", false},
		{point + ";lease=900", false},
		{point + times + ";exp=1", false},
		{point + times + ";lease=1", false},
		{point + ";exp=0;lease=900", false},
		{point + ";exp=-1;lease=900", false},
		{point + ";exp=1.5;lease=900", false},
		{point + ";exp=999999999999999;lease=900", false},
		{point + ";exp=1764003600;lease=0", false},
		{point + ";exp=1764003600;lease=999999999999999", false},
		{point + times + ";session=:AAAA:", false},
		{point + times + ";session=" + FormatSession(session) + ";session=" + FormatSession(session), false},
		{":AAAA:" + times, false},
		{"::" + times, false},
		{formatBytes(make([]byte, 65)) + times, false},
		{point + times + strings.Repeat(" ", maxField), false},
		{"", false},
		{"?", false},
	} {
		if _, _, err := ParseServer(tt.text); (err == nil) != tt.ok {
			t.Errorf("%.80s: %v, want ok %v", tt.text, err, tt.ok)
		}
	}
}

func sessionOf(token string) (id [32]byte) {
	copy(id[:], sum256(token))
	return id
}

func TestResponses(t *testing.T) {
	key := newSigner(t, proof.HMACSHA256).public
	s := &proof.Server{Key: key, KeyExpires: now, Lease: time.Minute, Challenge: "c1"}
	session := sessionOf(bearer)
	response := map[string][]string{}
	Wire{}.Bound(response, session, s)
	if want := header(KeyField, FormatServer(s, &session)); !maps.EqualFunc(response, want, slices.Equal) {
		t.Error(response)
	}
	response = map[string][]string{}
	Wire{}.Admitted(nil, response, nil, "")
	if len(response) != 0 {
		t.Error(response)
	}
	Wire{}.Admitted(nil, response, nil, "c2")
	if want := header(ChallengeField, "c2"); !maps.EqualFunc(response, want, slices.Equal) {
		t.Error(response)
	}
	keyParam, challengeParam := `, key="`+FormatServer(s, nil)+`"`, `, challenge="c1"`
	for reason, want := range map[proof.Reason]string{
		proof.Required:   `Limpet error="proof_required"` + keyParam + challengeParam,
		proof.KeyUnknown: `Limpet error="key_unknown"` + keyParam + challengeParam,
		proof.Stale:      `Limpet error="challenge_required"` + challengeParam,
		proof.Invalid:    `Limpet error="proof_invalid"`,
		proof.ClockSkew:  `Limpet error="clock_skew"`,
	} {
		response = header("Www-Authenticate", "Bearer")
		Wire{}.Refused(nil, response, reason, s)
		if want := header("Www-Authenticate", "Bearer", "Www-Authenticate", want, ChallengeField, "c1"); !maps.EqualFunc(response, want, slices.Equal) {
			t.Errorf("%s: %v", reason, response)
		}
	}
	response = map[string][]string{}
	Wire{}.Refused(nil, response, proof.Required, &proof.Server{})
	Wire{}.Bound(response, session, &proof.Server{})
	if want := header("Www-Authenticate", `Limpet error="proof_required"`); !maps.EqualFunc(response, want, slices.Equal) {
		t.Error(response)
	}
}

// Other people's signatures stay, ours is replaced.
func TestSignBesideOthers(t *testing.T) {
	s := newSigner(t, proof.Ed25519)
	m := request(false, false)
	m.Header["Signature-Input"] = []string{`a=("@method";req);x , limpet=("old")`, `b=()`}
	m.Header["Signature"] = []string{`limpet=:AA==:,a=:AA==:`, `b=:AAAA:;c=1`}
	for range 2 { // the second replaces the first
		if err := Sign(m, s.signing(), s.sign); err != nil {
			t.Fatal(err)
		}
		in, sig := m.Header["Signature-Input"], m.Header["Signature"]
		if len(in) != 1 || !strings.HasPrefix(in[0], `a=("@method";req);x, b=(), limpet=("@method" `) || strings.Count(in[0], "limpet=") != 1 ||
			len(sig) != 1 || !strings.HasPrefix(sig[0], `a=:AA==:, b=:AAAA:;c=1, limpet=:`) || strings.Count(sig[0], "limpet=") != 1 {
			t.Fatalf("%q, %q", in, sig)
		}
	}
	var p proof.Proof
	if found, err := (Wire{}).Extract(m, &p); !found || err != nil {
		t.Fatal(found, err)
	}
	if _, err := proof.Verify(m, &p, nil, s.known(), now, policy); err != nil {
		t.Error(err)
	}
}

// What cannot be signed leaves the header as it was.
func TestSignRefuses(t *testing.T) {
	s := newSigner(t, proof.Ed25519)
	broken := errors.New("broken key")
	for name, edit := range map[string]func(*proof.Message, *Signing){
		"short nonce":           func(_ *proof.Message, g *Signing) { g.Nonce = "short" },
		"quote in the nonce":    func(_ *proof.Message, g *Signing) { g.Nonce = nonce + `"` },
		"no key":                func(_ *proof.Message, g *Signing) { g.KeyID = "" },
		"key in other alphabet": func(_ *proof.Message, g *Signing) { g.KeyID = g.KeyID[:42] + "/" },
		"no time":               func(_ *proof.Message, g *Signing) { g.Created = time.Time{} },
		"unknown algorithm":     func(_ *proof.Message, g *Signing) { g.Algorithm = 99 },
		"line break in a field": func(m *proof.Message, _ *Signing) { m.Header["Authorization"] = []string{"a\nb"} },
		"line break in a path":  func(m *proof.Message, _ *Signing) { m.Path = "/\n" },
		"token twice":           func(m *proof.Message, _ *Signing) { m.Header["Authorization"] = []string{"a", "b"} },
		"garbage there":         func(m *proof.Message, _ *Signing) { m.Header["Signature"] = []string{"?"} },
		"no member there":       func(m *proof.Message, _ *Signing) { m.Header["Signature"] = []string{"a=("} },
		"garbage input there":   func(m *proof.Message, _ *Signing) { m.Header["Signature-Input"] = []string{"?"} },
		"broken key":            func(*proof.Message, *Signing) {},
	} {
		t.Run(name, func(t *testing.T) {
			m, g := request(false, false), s.signing()
			edit(m, g)
			before := clone(m)
			err := Sign(m, g, func(b []byte) ([]byte, error) {
				if name == "broken key" {
					return nil, broken
				}
				return s.sign(b)
			})
			if err == nil || name == "broken key" && err != broken {
				t.Errorf("error %v", err)
			}
			if !maps.EqualFunc(m.Header, before.Header, slices.Equal) {
				t.Errorf("the header is changed: %v", m.Header)
			}
		})
	}
}
