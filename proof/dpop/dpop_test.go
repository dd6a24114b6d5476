package dpop

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/internal/jose"
)

const token = "Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU"

var (
	now    = time.Unix(1764000000, 0)
	policy = proof.Policy{Window: time.Minute, Skew: 30 * time.Second}
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

// message is a GET of https://api.example.com/a%20b?q=1 with a token and proofs.
func message(proofs ...string) *proof.Message {
	h := map[string][]string{"Authorization": {"DPoP " + token}}
	if len(proofs) > 0 {
		h[Header] = proofs
	}
	return &proof.Message{
		Method: "GET", Scheme: "https", Authority: "api.example.com", Path: "/a%20b", RawQuery: "q=1",
		Header: h, Session: sha256.Sum256([]byte(token)),
	}
}

// signer is a key and what it makes proofs with.
type signer struct {
	crypto.Signer
	alg proof.Algorithm
	pub *proof.PublicKey
}

// signers has a key for each algorithm.
var signers = sync.OnceValue(func() map[string]signer {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	must(err)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	must(err)
	all := map[string]signer{}
	for name, s := range map[string]signer{
		"ES256": {ec, proof.ECDSAP256, nil},
		"EdDSA": {ed, proof.Ed25519, nil},
		"RS256": {rsaKey, proof.RSAPKCS1, nil},
		"PS256": {rsaKey, proof.RSAPSS, nil},
	} {
		s.pub, err = proof.NewPublicKey(s.alg, s.Public())
		must(err)
		all[name] = s
	}
	return all
})

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// claims of a proof that holds for message at now.
func claims() Claims {
	return Claims{JTI: "0123456789abcdef", Method: "GET", URL: "https://api.example.com/a%20b", IssuedAt: now, AccessToken: token}
}

func (s signer) proof(t testing.TB, c Claims) string {
	t.Helper()
	jwt, err := NewProof(s, s.alg, s.pub, c)
	if err != nil {
		t.Fatal(err)
	}
	return jwt
}

// forge signs whatever JSON it is given.
func (s signer) forge(t testing.TB, header, payload string) string {
	t.Helper()
	signed := jose.Base64.EncodeToString([]byte(header)) + "." + jose.Base64.EncodeToString([]byte(payload))
	sig, err := jose.SignInput(s, s.alg, []byte(signed))
	if err != nil {
		t.Fatal(err)
	}
	return signed + "." + jose.Base64.EncodeToString(sig)
}

// verify is what a guard does with a request.
func verify(m *proof.Message, device *proof.PublicKey, policy proof.Policy) error {
	var p proof.Proof
	found, err := Wire{}.Extract(m, &p)
	if err != nil {
		return err
	}
	if !found {
		return &proof.Refusal{Reason: proof.Required}
	}
	_, err = proof.Verify(m, &p, device, nil, now, policy)
	return err
}

// jwkOf returns the JWK of a key as JSON.
func jwkOf(t testing.TB, s signer) string {
	t.Helper()
	header, err := jose.NewHeader("dpop+jwt", s.alg, s.pub)
	if err != nil {
		t.Fatal(err)
	}
	var h struct{ JWK json.RawMessage }
	if err := json.Unmarshal(header, &h); err != nil {
		t.Fatal(err)
	}
	return string(h.JWK)
}

// TestRFC9449 takes the proofs that the RFC prints from login to request.
func TestRFC9449(t *testing.T) {
	b, err := os.ReadFile("testdata/rfc9449.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Thumbprint, Token, ATH string
		Proofs                 []struct {
			Figure, Method, Authority, Path, JTI, JWT string
			IAT                                       int64
			Resource                                  bool
		}
	}
	if err := json.Unmarshal(b, &file); err != nil {
		t.Fatal(err)
	}
	session := sha256.Sum256([]byte(file.Token))
	if got := jose.Base64.EncodeToString(session[:]); got != file.ATH {
		t.Errorf("ath is %s, want %s", got, file.ATH)
	}
	var device *proof.PublicKey
	for _, v := range file.Proofs {
		t.Run("Figure "+v.Figure, func(t *testing.T) {
			m := &proof.Message{Method: v.Method, Scheme: "https", Authority: v.Authority, Path: v.Path, Header: map[string][]string{Header: {v.JWT}}}
			p := new(proof.Proof)
			if v.Resource {
				m.Session = session
				m.Header["Authorization"] = []string{"DPoP " + file.Token}
				if found, err := (Wire{}).Extract(m, p); !found || err != nil {
					t.Fatalf("%v, %v", found, err)
				}
				key, err := proof.Verify(m, p, device, nil, time.Unix(v.IAT, 0), policy)
				if err != nil || !key.Public.SameKey(device) {
					t.Fatalf("%v, %v", key, err)
				}
			} else {
				offer, err := Wire{}.Offer(m)
				if err != nil || offer == nil || offer.Level != proof.Software {
					t.Fatalf("%v, %v", offer, err)
				}
				if err := proof.VerifyOffer(m, offer, time.Unix(v.IAT, 0), policy); err != nil {
					t.Fatal(err)
				}
				device, p = offer.Key, offer.Proof
			}
			if sum := p.Key.Thumbprint(); jose.Base64.EncodeToString(sum[:]) != file.Thumbprint {
				t.Errorf("thumbprint %x", sum)
			}
			if p.Time.Unix() != v.IAT || string(p.Nonce) != v.JTI || p.Random != len(v.JTI) || p.Algorithm != proof.ECDSAP256 || p.BodyClaim != nil || p.Challenge != "" {
				t.Errorf("%+v", p)
			}
		})
	}
}

func TestOwnProofs(t *testing.T) {
	for name, s := range signers() {
		t.Run(name, func(t *testing.T) {
			c := claims()
			c.URL = "HTTPS://user:secret@API.example.com:443/a%20b?q=1#x"
			c.Nonce = `eyJ7S_zG.eyJH0-Z.HX4w-7v<"&>`
			jwt := s.proof(t, c)
			strict := policy
			strict.Freshness, strict.Challenges = proof.StrictNonce, []string{"older", c.Nonce}
			if err := verify(message(jwt), s.pub, strict); err != nil {
				t.Fatal(err)
			}
			strict.Challenges = []string{"another"}
			if err := verify(message(jwt), s.pub, strict); reasonOf(err) != proof.Stale {
				t.Errorf("another challenge: %v", err)
			}
			payload, err := jose.Base64.DecodeString(strings.Split(jwt, ".")[1])
			if err != nil || strings.Contains(string(payload), "secret") || strings.Contains(string(payload), token) {
				t.Errorf("%s, %v", payload, err)
			}
			for other, o := range signers() {
				if !o.pub.SameKey(s.pub) {
					if err := verify(message(jwt), o.pub, policy); reasonOf(err) != proof.Invalid {
						t.Errorf("under the key of %s: %v", other, err)
					}
				}
			}
			for _, age := range []time.Duration{-31 * time.Second, 61 * time.Second} {
				c.IssuedAt = now.Add(-age)
				if err := verify(message(s.proof(t, c)), s.pub, policy); reasonOf(err) != proof.ClockSkew {
					t.Errorf("age %v: %v", age, err)
				}
			}
		})
	}
}

// Both names of Ed25519 are the same algorithm.
func TestEd25519UnderItsOwnName(t *testing.T) {
	s := signers()["EdDSA"]
	header := `{"typ":"dpop+jwt","alg":"Ed25519","jwk":` + jwkOf(t, s) + `}`
	if err := verify(message(s.forge(t, header, payload(nil))), s.pub, policy); err != nil {
		t.Error(err)
	}
}

// payload returns claims of a proof that holds, with some set to other JSON, or
// taken away if that is "".
func payload(with map[string]string) string {
	sum := sha256.Sum256([]byte(token))
	all := map[string]string{
		"jti": `"0123456789abcdef"`, "htm": `"GET"`, "htu": `"https://api.example.com/a%20b"`,
		"iat": fmt.Sprint(now.Unix()), "ath": `"` + jose.Base64.EncodeToString(sum[:]) + `"`,
	}
	return members(all, with)
}

func members(all, with map[string]string) string {
	all = maps.Clone(all)
	for name, v := range with {
		all[name] = v
		if v == "" {
			delete(all, name)
		}
	}
	var list []string
	for _, name := range slices.Sorted(maps.Keys(all)) {
		list = append(list, fmt.Sprintf("%q:%s", name, all[name]))
	}
	return "{" + strings.Join(list, ",") + "}"
}

func TestRefusals(t *testing.T) {
	es := signers()["ES256"]
	b := es.pub.Bytes()
	x, y := jose.Base64.EncodeToString(b[1:33]), jose.Base64.EncodeToString(b[33:])
	header := func(with map[string]string) string {
		return members(map[string]string{"typ": `"dpop+jwt"`, "alg": `"ES256"`, "jwk": jwkOf(t, es)}, with)
	}
	jwk := func(with map[string]string) string {
		key := members(map[string]string{"kty": `"EC"`, "crv": `"P-256"`, "x": `"` + x + `"`, "y": `"` + y + `"`}, with)
		return header(map[string]string{"jwk": key})
	}
	type set = map[string]string
	good := payload(nil)
	holds := es.forge(t, header(nil), good)
	if err := verify(message(holds), es.pub, policy); err != nil {
		t.Fatal(err)
	}
	part := strings.Split(holds, ".")
	rsaJWK := func(n, e string) string {
		return `{"typ":"dpop+jwt","alg":"RS256","jwk":{"kty":"RSA","n":"` + n + `","e":"` + e + `"}}`
	}
	bits := func(n uint) string {
		v := new(big.Int).Lsh(big.NewInt(1), n-1)
		return jose.Base64.EncodeToString(v.SetBit(v, 0, 1).Bytes())
	}
	offCurve := slices.Clone(b[33:])
	offCurve[31] ^= 1
	const malformed, invalid = proof.Malformed, proof.Invalid

	for _, tt := range []struct {
		name   string
		jwt    string
		reason proof.Reason
	}{
		{"empty header", "", malformed},
		{"not a JWT", "proof", malformed},
		{"two parts", part[0] + "." + part[1], malformed},
		{"four parts", holds + ".", malformed},
		{"five parts", holds + "." + part[2] + ".", malformed},
		{"a list", holds + ", " + holds, malformed},
		{"a list without a space", holds + "," + holds, malformed},
		{"a space before", " " + holds, malformed},
		{"a space after", holds + " ", malformed},
		{"a line break", part[0] + ".\n" + part[1] + "." + part[2], malformed},
		{"a carriage return at the end", holds + "\r", malformed},
		{"padding", part[0] + "." + part[1] + "." + part[2] + "==", malformed},
		{"the other alphabet", strings.NewReplacer("-", "+", "_", "/").Replace(part[0]+"."+part[1]) + ".+" + part[2][1:], malformed},
		{"spare bits", part[0] + "." + part[1] + "." + part[2][:85] + nextChar(part[2][85]), malformed},
		{"no signature", part[0] + "." + part[1] + ".", malformed},
		{"short signature", part[0] + "." + part[1] + "." + part[2][:84], invalid},
		{"too large", es.forge(t, header(nil), payload(set{"x": `"` + strings.Repeat("a", 8<<10) + `"`})), proof.TooLarge},

		{"header is not JSON", es.forge(t, "{", good), malformed},
		{"header is nothing", es.forge(t, "", good), malformed},
		{"header is a list", es.forge(t, "[]", good), malformed},
		{"header is null", es.forge(t, "null", good), malformed},
		{"header and more", es.forge(t, header(nil)+"{}", good), malformed},
		{"header not in UTF-8", es.forge(t, header(set{"x": "\"\xff\""}), good), malformed},
		{"no typ", es.forge(t, header(set{"typ": ""}), good), malformed},
		{"another typ", es.forge(t, header(set{"typ": `"JWT"`}), good), malformed},
		{"typ in another case", es.forge(t, header(set{"typ": `"DPoP+jwt"`}), good), malformed},
		{"typ with its prefix", es.forge(t, header(set{"typ": `"application/dpop+jwt"`}), good), malformed},
		{"typ is a list", es.forge(t, header(set{"typ": `["dpop+jwt"]`}), good), malformed},
		{"TYP", es.forge(t, header(set{"typ": "", "TYP": `"dpop+jwt"`}), good), malformed},
		{"no alg", es.forge(t, header(set{"alg": ""}), good), malformed},
		{"alg none", es.forge(t, header(set{"alg": `"none"`}), good), malformed},
		{"alg none, unsigned", jose.Base64.EncodeToString([]byte(header(set{"alg": `"none"`}))) + "." + part[1] + ".", malformed},
		{"alg HS256", es.forge(t, header(set{"alg": `"HS256"`}), good), malformed},
		{"alg HS512", es.forge(t, header(set{"alg": `"HS512"`}), good), malformed},
		{"alg ES384", es.forge(t, header(set{"alg": `"ES384"`}), good), malformed},
		{"alg ES256K", es.forge(t, header(set{"alg": `"ES256K"`}), good), malformed},
		{"alg RS512", es.forge(t, header(set{"alg": `"RS512"`}), good), malformed},
		{"alg in another case", es.forge(t, header(set{"alg": `"es256"`}), good), malformed},
		{"alg is a number", es.forge(t, header(set{"alg": `1`}), good), malformed},
		{"alg of another key", es.forge(t, header(set{"alg": `"EdDSA"`}), good), malformed},
		{"alg of another key, RSA", es.forge(t, header(set{"alg": `"PS256"`}), good), malformed},
		{"crit", es.forge(t, header(set{"crit": `["exp"]`}), good), malformed},
		{"crit, empty", es.forge(t, header(set{"crit": `[]`}), good), malformed},
		{"b64", es.forge(t, header(set{"b64": `false`}), good), malformed},
		{"crit and b64", es.forge(t, header(set{"b64": `false`, "crit": `["b64"]`}), good), malformed},
		{"a name twice in the header", es.forge(t, `{"alg":"none",`+header(nil)[1:], good), malformed},
		{"a name twice, once escaped", es.forge(t, `{"\u0061lg":"none",`+header(nil)[1:], good), malformed},
		{"33 members", es.forge(t, header(many(30)), good), malformed},

		{"no jwk", es.forge(t, header(set{"jwk": ""}), good), malformed},
		{"jwk is a string", es.forge(t, header(set{"jwk": `"x"`}), good), malformed},
		{"jwk is null", es.forge(t, header(set{"jwk": `null`}), good), malformed},
		{"jwk is empty", es.forge(t, header(set{"jwk": `{}`}), good), malformed},
		{"kid in place of jwk", es.forge(t, header(set{"jwk": "", "kid": `"1"`}), good), malformed},
		{"no kty", es.forge(t, jwk(set{"kty": ""}), good), malformed},
		{"kty oct", es.forge(t, jwk(set{"kty": `"oct"`}), good), malformed},
		{"kty in another case", es.forge(t, jwk(set{"kty": `"ec"`}), good), malformed},
		{"no crv", es.forge(t, jwk(set{"crv": ""}), good), malformed},
		{"another crv", es.forge(t, jwk(set{"crv": `"P-384"`}), good), malformed},
		{"no x", es.forge(t, jwk(set{"x": ""}), good), malformed},
		{"no y", es.forge(t, jwk(set{"y": ""}), good), malformed},
		{"x is a number", es.forge(t, jwk(set{"x": "1"}), good), malformed},
		{"x too short", es.forge(t, jwk(set{"x": `"` + jose.Base64.EncodeToString(b[2:33]) + `"`}), good), malformed},
		{"x too long", es.forge(t, jwk(set{"x": `"AA` + x + `"`}), good), malformed},
		{"x padded", es.forge(t, jwk(set{"x": `"` + x + `="`}), good), malformed},
		{"x with a line break", es.forge(t, jwk(set{"x": `"` + x + `\n"`}), good), malformed},
		{"x with spare bits", es.forge(t, jwk(set{"x": `"` + x[:42] + nextChar(x[42]) + `"`}), good), malformed},
		{"off the curve", es.forge(t, jwk(set{"y": `"` + jose.Base64.EncodeToString(offCurve) + `"`}), good), malformed},
		{"the point at infinity", es.forge(t, jwk(set{"x": `"` + strings.Repeat("A", 43) + `"`, "y": `"` + strings.Repeat("A", 43) + `"`}), good), malformed},
		{"a name twice in the jwk", es.forge(t, header(set{"jwk": `{"x":"",` + jwkOf(t, es)[1:]}), good), malformed},
		{"private key d", es.forge(t, jwk(set{"d": `"AA"`}), good), malformed},
		{"private key p", es.forge(t, jwk(set{"p": `"AA"`}), good), malformed},
		{"private key q", es.forge(t, jwk(set{"q": `"AA"`}), good), malformed},
		{"private key dp", es.forge(t, jwk(set{"dp": `"AA"`}), good), malformed},
		{"private key dq", es.forge(t, jwk(set{"dq": `"AA"`}), good), malformed},
		{"private key qi", es.forge(t, jwk(set{"qi": `"AA"`}), good), malformed},
		{"private key oth", es.forge(t, jwk(set{"oth": `[]`}), good), malformed},
		{"private key k", es.forge(t, jwk(set{"k": `null`}), good), malformed},
		{"RSA, 1024 bit", es.forge(t, rsaJWK(bits(1024), "AQAB"), good), malformed},
		{"RSA, 4097 bit", es.forge(t, rsaJWK(bits(4097), "AQAB"), good), malformed},
		{"RSA, no modulus", es.forge(t, rsaJWK("", "AQAB"), good), malformed},
		{"RSA, modulus with a zero", es.forge(t, rsaJWK("AA"+bits(2048), "AQAB"), good), malformed},
		{"RSA, exponent 1", es.forge(t, rsaJWK(bits(2048), "AQ"), good), malformed},
		{"RSA, exponent too long", es.forge(t, rsaJWK(bits(2048), "AQAAAAE"), good), malformed},
		{"Ed25519, too short", es.forge(t, `{"typ":"dpop+jwt","alg":"EdDSA","jwk":{"kty":"OKP","crv":"Ed25519","x":"AA"}}`, good), malformed},
		{"Ed448", es.forge(t, `{"typ":"dpop+jwt","alg":"EdDSA","jwk":{"kty":"OKP","crv":"Ed448","x":"`+x+`"}}`, good), malformed},
		{"X25519", es.forge(t, `{"typ":"dpop+jwt","alg":"EdDSA","jwk":{"kty":"OKP","crv":"X25519","x":"`+x+`"}}`, good), malformed},

		{"claims are not JSON", es.forge(t, header(nil), "{"), malformed},
		{"claims are a list", es.forge(t, header(nil), "[]"), malformed},
		{"claims and more", es.forge(t, header(nil), good+good), malformed},
		{"a claim twice", es.forge(t, header(nil), `{"htm":"GET",`+good[1:]), malformed},
		{"no jti", es.forge(t, header(nil), payload(set{"jti": ""})), malformed},
		{"jti is a number", es.forge(t, header(nil), payload(set{"jti": "12345678"})), malformed},
		{"jti of 7", es.forge(t, header(nil), payload(set{"jti": `"1234567"`})), malformed},
		{"jti of 257", es.forge(t, header(nil), payload(set{"jti": `"` + strings.Repeat("1", 257) + `"`})), malformed},
		{"no htm", es.forge(t, header(nil), payload(set{"htm": ""})), malformed},
		{"another htm", es.forge(t, header(nil), payload(set{"htm": `"POST"`})), invalid},
		{"htm in another case", es.forge(t, header(nil), payload(set{"htm": `"get"`})), invalid},
		{"no htu", es.forge(t, header(nil), payload(set{"htu": ""})), malformed},
		{"htu is a list", es.forge(t, header(nil), payload(set{"htu": `["https://api.example.com/a%20b"]`})), malformed},
		{"another htu", es.forge(t, header(nil), payload(set{"htu": `"https://api.example.com/"`})), invalid},
		{"no iat", es.forge(t, header(nil), payload(set{"iat": ""})), malformed},
		{"iat is a string", es.forge(t, header(nil), payload(set{"iat": `"1764000000"`})), malformed},
		{"iat is true", es.forge(t, header(nil), payload(set{"iat": `true`})), malformed},
		{"iat is a list", es.forge(t, header(nil), payload(set{"iat": `[1764000000]`})), malformed},
		{"iat before 1970", es.forge(t, header(nil), payload(set{"iat": `-1`})), malformed},
		{"iat is the zero time", es.forge(t, header(nil), payload(set{"iat": `-62135596800`})), malformed},
		{"iat after 9999", es.forge(t, header(nil), payload(set{"iat": `253402300800`})), malformed},
		{"iat over an int64", es.forge(t, header(nil), payload(set{"iat": `1e30`})), malformed},
		{"iat over a float", es.forge(t, header(nil), payload(set{"iat": `1e999`})), malformed},
		{"iat in milliseconds", es.forge(t, header(nil), payload(set{"iat": `1764000000000`})), malformed},
		{"no ath", es.forge(t, header(nil), payload(set{"ath": ""})), malformed},
		{"ath is a number", es.forge(t, header(nil), payload(set{"ath": "1"})), malformed},
		{"ath of another token", es.forge(t, header(nil), payload(set{"ath": `"` + x + `"`})), invalid},
		{"ath padded", es.forge(t, header(nil), strings.Replace(good, `","htm`, `=","htm`, 1)), invalid},
		{"nonce is a number", es.forge(t, header(nil), payload(set{"nonce": "1"})), malformed},
		{"nonce is null", es.forge(t, header(nil), payload(set{"nonce": "null"})), malformed},

		{"ECDSA in DER", part[0] + "." + part[1] + "." + jose.Base64.EncodeToString(derSignature(t, es, part[0]+"."+part[1])), invalid},
		{"the signature of another proof", part[0] + "." + part[1] + "." + strings.Split(es.proof(t, claims()), ".")[2], invalid},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := verify(message(tt.jwt), es.pub, policy)
			if reasonOf(err) != tt.reason {
				t.Errorf("%v, want %q", err, tt.reason)
			}
		})
	}
}

// nextChar returns the base64url character whose value is one more, which differs
// in spare bits if the last two of c are zero.
func nextChar(c byte) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return alphabet[strings.IndexByte(alphabet, c)+1:][:1]
}

func many(n int) map[string]string {
	set := map[string]string{}
	for i := range n {
		set[fmt.Sprint("x", i)] = "1"
	}
	return set
}

func derSignature(t testing.TB, s signer, signed string) []byte {
	sum := sha256.Sum256([]byte(signed))
	sig, err := s.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

func TestRefusedRequests(t *testing.T) {
	s := signers()["ES256"]
	jwt := s.proof(t, claims())
	for _, tt := range []struct {
		name   string
		change func(m *proof.Message)
		reason proof.Reason
	}{
		{"as it is", func(*proof.Message) {}, ""},
		{"scheme in another case", func(m *proof.Message) { m.Header["Authorization"] = []string{"dpop " + token} }, ""},
		{"in a cookie", func(m *proof.Message) { m.InCookie = true; delete(m.Header, "Authorization") }, ""},
		{"in a cookie, beside a Bearer token", func(m *proof.Message) { m.InCookie = true; m.Header["Authorization"] = []string{"Bearer x"} }, ""},
		{"two headers", func(m *proof.Message) { m.Header[Header] = []string{jwt, jwt} }, proof.Malformed},
		{"no proof", func(m *proof.Message) { delete(m.Header, Header) }, proof.Required},
		{"no proof, a Bearer token", func(m *proof.Message) {
			delete(m.Header, Header)
			m.Header["Authorization"] = []string{"Bearer " + token}
		}, proof.Required},
		{"under Bearer", func(m *proof.Message) { m.Header["Authorization"] = []string{"Bearer " + token} }, proof.Invalid},
		{"under no scheme", func(m *proof.Message) { m.Header["Authorization"] = []string{token} }, proof.Invalid},
		{"under DPoPx", func(m *proof.Message) { m.Header["Authorization"] = []string{"DPoPx " + token} }, proof.Invalid},
		{"no token", func(m *proof.Message) { delete(m.Header, "Authorization") }, proof.Invalid},
		{"only a scheme", func(m *proof.Message) { m.Header["Authorization"] = []string{"DPoP"} }, proof.Invalid},
		{"two tokens", func(m *proof.Message) { m.Header["Authorization"] = []string{"DPoP " + token, "Bearer " + token} }, proof.Invalid},
		{"another token", func(m *proof.Message) { m.Session = sha256.Sum256([]byte("another")) }, proof.Invalid},
		{"another method", func(m *proof.Message) { m.Method = "POST" }, proof.Invalid},
		{"another authority", func(m *proof.Message) { m.Authority = "evil.example.com" }, proof.Invalid},
		{"another scheme", func(m *proof.Message) { m.Scheme = "http" }, proof.Invalid},
		{"another path", func(m *proof.Message) { m.Path = "/a" }, proof.Invalid},
		{"the body's hash is wanted", func(m *proof.Message) { m.Body = new([32]byte) }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := message(jwt)
			tt.change(m)
			if err := verify(m, s.pub, policy); reasonOf(err) != tt.reason {
				t.Errorf("%v, want %q", err, tt.reason)
			}
		})
	}
	hash := policy
	hash.Freshness = proof.BodyHash
	m := message(jwt)
	m.Body = new([32]byte)
	if err := verify(m, s.pub, hash); reasonOf(err) != proof.BodyDiffer {
		t.Errorf("policy body-hash: %v", err)
	}
}

// An error must not carry to a log what a peer sent.
func TestRefusalsDoNotRepeatInput(t *testing.T) {
	s := signers()["ES256"]
	const canary = "canary12"
	for _, jwt := range []string{
		canary, canary + "." + canary + "." + canary, s.proof(t, Claims{JTI: canary, Method: canary, URL: "https://" + canary}),
		s.forge(t, `{"typ":"`+canary+`"}`, `{}`), s.forge(t, `{"typ":"dpop+jwt","alg":"`+canary+`"}`, `{}`),
		s.forge(t, `{"typ":"dpop+jwt","alg":"ES256","jwk":{"kty":"`+canary+`"}}`, `{}`),
	} {
		if err := verify(message(jwt), s.pub, policy); err == nil || strings.Contains(err.Error(), canary) {
			t.Errorf("%v", err)
		}
	}
}

func TestIAT(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "-0": 0, "1764000000": 1764000000, "1764000000.0": 1764000000, "1764000000.999": 1764000000,
		"1.764e9": 1764000000, "1.7640000005E9": 1764000000, "0.5": 0, "253402300799": 253402300799, "253402300799.5": 253402300799,
	} {
		if got, ok := numericDate(text); !ok || got != want {
			t.Errorf("%s: %d, %v", text, got, ok)
		}
	}
	for _, text := range []string{"", "-1", "-0.5", "253402300800", "253402300800.5", "1e99", "null", `"1"`, "[1]", "{}", "true"} {
		if got, ok := numericDate(text); ok {
			t.Errorf("%s: %d", text, got)
		}
	}
}

func TestOffer(t *testing.T) {
	for name, s := range signers() {
		t.Run(name, func(t *testing.T) {
			c := claims()
			for _, c.AccessToken = range []string{"", "the session before"} {
				m := message(s.proof(t, c))
				m.Header["Authorization"] = []string{"Basic eDp5"}
				m.Session = [32]byte{}
				offer, err := Wire{}.Offer(m)
				if err != nil {
					t.Fatal(err)
				}
				if !offer.Key.SameKey(s.pub) || offer.Level != proof.Software || offer.Proof.Key != offer.Key {
					t.Errorf("%+v", offer)
				}
				if err := proof.VerifyOffer(m, offer, now, policy); err != nil {
					t.Error(err)
				}
				if err := proof.VerifyOffer(m, offer, now.Add(time.Hour), policy); reasonOf(err) != proof.ClockSkew {
					t.Errorf("an hour later: %v", err)
				}
				offer.Proof.Signature[0] ^= 1
				if err := proof.VerifyOffer(m, offer, now, policy); reasonOf(err) != proof.Invalid {
					t.Errorf("not signed: %v", err)
				}
			}
		})
	}
	if offer, err := (Wire{}).Offer(message()); offer != nil || err != nil {
		t.Errorf("%v, %v", offer, err)
	}
	for _, m := range []*proof.Message{message("x"), message("a", "b"), message(strings.Repeat("x", 9000))} {
		if offer, err := (Wire{}).Offer(m); offer != nil || reasonOf(err) == "" || reasonOf(err) == "not a refusal" {
			t.Errorf("%v, %v", offer, err)
		}
	}
}

// Whichever bit of a proof is not as it was signed, it holds for nothing.
func TestEveryBitCounts(t *testing.T) {
	const ever = 290 * 365 * 24 * time.Hour // the clock is no help
	policy := proof.Policy{Window: ever, Skew: ever}
	for name, s := range signers() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			jwt := []byte(s.proof(t, claims()))
			for i := range len(jwt) * 8 {
				jwt[i/8] ^= 1 << (i % 8)
				if err := verify(message(string(jwt)), s.pub, policy); reasonOf(err) != proof.Malformed && reasonOf(err) != proof.Invalid {
					t.Errorf("bit %d of byte %d: %v", i%8, i/8, err)
				}
				jwt[i/8] ^= 1 << (i % 8)
			}
		})
	}
}

// Public peers compare htu with the request's query, and refuse honest clients,
// or take a query in htu for a part of the claim.
func TestHTUIsComparedWithoutQuery(t *testing.T) {
	s := signers()["ES256"]
	for _, htu := range []string{"https://api.example.com/a%20b", "https://api.example.com/a%20b?q=1", "https://api.example.com/a%20b?other", "https://api.example.com/a%20b#f"} {
		for _, query := range []string{"", "q=1", "q=2"} {
			m := message(s.forge(t, `{"typ":"dpop+jwt","alg":"ES256","jwk":`+jwkOf(t, s)+`}`, payload(map[string]string{"htu": `"` + htu + `"`})))
			m.RawQuery = query
			if err := verify(m, s.pub, policy); err != nil {
				t.Errorf("%s, query %q: %v", htu, query, err)
			}
		}
	}
}

// Public peers change the URL that the client gave them, or the request.
func TestRequestIsLeftAsItWas(t *testing.T) {
	s := signers()["ES256"]
	c := claims()
	c.URL = "https://user@api.example.com:443/x/../a%20b?q=1#f"
	c2 := c
	m, same := message(s.proof(t, c)), message("")
	same.Header[Header] = slices.Clone(m.Header[Header])
	if err := verify(m, s.pub, policy); err != nil {
		t.Fatal(err)
	}
	if _, err := (Wire{}).Offer(m); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(m, same) || c != c2 {
		t.Errorf("%+v, %+v", m, c)
	}
}

// Public peers write the signed members in their own order before they verify.
func TestSignedBytesAreThoseSent(t *testing.T) {
	s := signers()["ES256"]
	header := " {\n\t\"jwk\" : " + jwkOf(t, s) + " , \"x\":[{\"a\":\"}\\\"]\"},-1.5e3,null] ,\"alg\":\"ES\\u003256\",\"typ\":\"dpop+jwt\"}\r\n"
	jwt := s.forge(t, header, " "+payload(map[string]string{"extra": `{"b":[1,{}]}`, "z": "0"})+"\n")
	if err := verify(message(jwt), s.pub, policy); err != nil {
		t.Fatal(err)
	}
	var p proof.Proof
	if _, err := (Wire{}).Extract(message(jwt), &p); err != nil || string(p.Signed) != jwt[:strings.LastIndexByte(jwt, '.')] {
		t.Errorf("%q, %v", p.Signed, err)
	}
}

// Public peers make one tag for every message (a MAC over nothing).
func TestSignatureIsOverTheMessage(t *testing.T) {
	for name, s := range signers() {
		c := claims()
		a := strings.Split(s.proof(t, c), ".")
		c.JTI += "x"
		b := strings.Split(s.proof(t, c), ".")
		if a[2] == b[2] {
			t.Errorf("%s: two proofs, one signature", name)
		}
		if err := verify(message(a[0]+"."+a[1]+"."+b[2]), s.pub, policy); reasonOf(err) != proof.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Public peers keep no memory of jti, or one that a proof with the same jti and
// another signature, time or target gets past.
func TestReplayIsByKeyAndJTI(t *testing.T) {
	s := signers()["ES256"]
	id := func(c Claims) string {
		m := message(s.proof(t, c))
		m.Path = strings.TrimPrefix(c.URL, "https://api.example.com")
		var p proof.Proof
		if _, err := (Wire{}).Extract(m, &p); err != nil {
			t.Fatal(err)
		}
		key, err := proof.Verify(m, &p, s.pub, nil, now, policy)
		if err != nil {
			t.Fatal(err)
		}
		return string(p.ReplayID(nil, key))
	}
	first := id(claims())
	c := claims()
	c.IssuedAt, c.URL, c.Nonce = now.Add(time.Second), "https://api.example.com/other", "n"
	if id(c) != first {
		t.Error("the same jti, another proof, another replay ID")
	}
	c.JTI += "x"
	if id(c) == first {
		t.Error("another jti, the same replay ID")
	}
}

// Public peers spend a nonce before they verify. The wire spends nothing: what
// Extract read once it reads again, as it was.
func TestExtractSpendsNothing(t *testing.T) {
	s := signers()["ES256"]
	m := message(s.proof(t, claims()))
	var a, b proof.Proof
	for _, p := range []*proof.Proof{&a, &b} {
		if found, err := (Wire{}).Extract(m, p); !found || err != nil {
			t.Fatalf("%v, %v", found, err)
		}
	}
	if !reflect.DeepEqual(a, b) {
		t.Errorf("%+v, %+v", a, b)
	}
}

// A Proof is reused: nothing of one request may show in the next.
func TestReusedProof(t *testing.T) {
	s := signers()["ES256"]
	var p proof.Proof
	c := claims()
	c.Nonce = "challenge"
	for _, m := range []*proof.Message{message(s.proof(t, c)), message("x.y.z"), message(s.proof(t, claims()))} {
		p.Reset()
		_, _ = Wire{}.Extract(m, &p)
	}
	if p.Challenge != "" || string(p.Nonce) != claims().JTI {
		t.Errorf("%+v", p)
	}
	if _, err := proof.Verify(message(), &p, s.pub, nil, now, policy); err != nil {
		t.Error(err)
	}
}

func TestAnswers(t *testing.T) {
	const algs = `algs="ES256 EdDSA Ed25519 RS256 PS256"`
	server := &proof.Server{Challenge: "next"}
	for reason, want := range map[proof.Reason]string{
		proof.Required:        `DPoP ` + algs,
		proof.Stale:           `DPoP error="use_dpop_nonce", ` + algs,
		proof.SessionEnded:    `DPoP error="invalid_token", ` + algs,
		proof.SessionUnbound:  `DPoP error="invalid_token", ` + algs,
		proof.SessionRequired: `DPoP error="invalid_token", ` + algs,
		proof.LevelTooLow:     `DPoP error="invalid_token", ` + algs,
		proof.Invalid:         `DPoP error="invalid_dpop_proof", ` + algs,
		proof.Malformed:       `DPoP error="invalid_dpop_proof", ` + algs,
		proof.ClockSkew:       `DPoP error="invalid_dpop_proof", ` + algs,
		proof.NonceSpent:      `DPoP error="invalid_dpop_proof", ` + algs,
	} {
		response := http.Header{"Www-Authenticate": {"Bearer"}}
		Wire{}.Refused(message(), response, reason, server)
		nonce := ""
		if reason == proof.Stale {
			nonce = "next"
		}
		if got := response.Values("WWW-Authenticate"); len(got) != 2 || got[1] != want || response.Get("DPoP-Nonce") != nonce {
			t.Errorf("%s: %v", reason, response)
		}
	}
	none := func(h map[string][]string, s *proof.Server) http.Header {
		response := http.Header{}
		Wire{}.Refused(&proof.Message{Header: h}, response, proof.Stale, s)
		return response
	}
	if r := none(map[string][]string{"Authorization": {"Bearer x"}}, server); len(r) != 0 {
		t.Errorf("a client that does not speak DPoP: %v", r)
	}
	if r := none(map[string][]string{"Authorization": {"Bearer x"}, Header: {"x"}}, nil); r.Get("WWW-Authenticate") == "" || len(r) != 1 {
		t.Errorf("a proof beside Bearer, no challenge to give: %v", r)
	}
	response := http.Header{}
	Wire{}.Bound(response, [32]byte{}, server)
	Wire{}.Admitted(message(), response, nil, "")
	if len(response) != 0 {
		t.Errorf("%v", response)
	}
	Wire{}.Admitted(message(), response, nil, "next")
	if response.Get("DPoP-Nonce") != "next" {
		t.Errorf("%v", response)
	}
	for _, name := range []string{Header, NonceHeader, "Www-Authenticate"} {
		if http.CanonicalHeaderKey(name) != name {
			t.Errorf("%s is not canonical", name)
		}
	}
}

func TestNewProofRefuses(t *testing.T) {
	es, ed, rs := signers()["ES256"], signers()["EdDSA"], signers()["RS256"]
	for _, tt := range []struct {
		name   string
		key    crypto.Signer
		alg    proof.Algorithm
		pub    *proof.PublicKey
		change func(*Claims)
	}{
		{"short jti", es, es.alg, es.pub, func(c *Claims) { c.JTI = "1234567" }},
		{"long jti", es, es.alg, es.pub, func(c *Claims) { c.JTI = strings.Repeat("1", 257) }},
		{"no method", es, es.alg, es.pub, func(c *Claims) { c.Method = "" }},
		{"relative URL", es, es.alg, es.pub, func(c *Claims) { c.URL = "/a%20b" }},
		{"another URL", es, es.alg, es.pub, func(c *Claims) { c.URL = "ftp://secret/" }},
		{"no host", es, es.alg, es.pub, func(c *Claims) { c.URL = "https:///a" }},
		{"key of another kind", es, es.alg, ed.pub, func(*Claims) {}},
		{"RSA key of another kind", rs, rs.alg, ed.pub, func(*Claims) {}},
		{"agreement", es, proof.HMACSHA256, es.pub, func(*Claims) {}},
		{"RSA with SHA-512", rs, proof.RSAPSSSHA512, rs.pub, func(*Claims) {}},
		{"signer of another kind", rs, es.alg, es.pub, func(*Claims) {}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := claims()
			tt.change(&c)
			jwt, err := NewProof(tt.key, tt.alg, tt.pub, c)
			if err == nil || !strings.HasPrefix(err.Error(), "limpet: dpop: ") || strings.Contains(err.Error(), "secret") {
				t.Errorf("%s, %v", jwt, err)
			}
		})
	}
}

func FuzzExtract(f *testing.F) {
	for _, s := range signers() {
		jwt := s.proof(f, claims())
		part := strings.Split(jwt, ".")
		header, _ := jose.Base64.DecodeString(part[0])
		body, _ := jose.Base64.DecodeString(part[1])
		sig, _ := jose.Base64.DecodeString(part[2])
		f.Add(header, body, sig, "/a%20b")
	}
	f.Add([]byte(`{"typ":"dpop+jwt","alg":"ES256","jwk":{"a":"\"}"}} `), []byte(`{"iat":-0.5e1,"nonce":""}`), []byte("x"), "/..")
	f.Add([]byte("{"), []byte("[]"), []byte{}, "")
	f.Fuzz(func(t *testing.T, header, body, sig []byte, path string) {
		jwt := jose.Base64.EncodeToString(header) + "." + jose.Base64.EncodeToString(body) + "." + jose.Base64.EncodeToString(sig)
		m := message(jwt)
		m.Path = path
		var p proof.Proof
		found, err := Wire{}.Extract(m, &p)
		if err != nil {
			if r := reasonOf(err); r != proof.Malformed && r != proof.Invalid && r != proof.TooLarge {
				t.Fatal(err)
			}
			return
		}
		if !found || p.Key == nil || p.Time.IsZero() || p.Random < minJTI || string(p.Signed)+"."+jose.Base64.EncodeToString(p.Signature) != jwt {
			t.Fatalf("%+v", p)
		}
		// Another parser sees the same proof.
		var h struct{ Typ, Alg string }
		var c struct{ JTI, HTM, HTU, Ath, Nonce string }
		exact := map[string]any{}
		if err := json.Unmarshal(body, &exact); err != nil || json.Unmarshal(header, &h) != nil {
			t.Fatal(err)
		}
		for name, dst := range map[string]*string{"jti": &c.JTI, "htm": &c.HTM, "htu": &c.HTU, "ath": &c.Ath} {
			*dst, _ = exact[name].(string)
		}
		sum := sha256.Sum256([]byte(token))
		if c.JTI != string(p.Nonce) || c.HTM != "GET" || c.Ath != jose.Base64.EncodeToString(sum[:]) || !sameURI(m, c.HTU) {
			t.Fatalf("%+v, %+v", c, p)
		}
	})
}

func BenchmarkExtract(b *testing.B) {
	for _, name := range []string{"ES256", "EdDSA", "PS256"} {
		b.Run(name, func(b *testing.B) {
			m := message(signers()[name].proof(b, claims()))
			var p proof.Proof
			b.ReportAllocs()
			for b.Loop() {
				p.Reset()
				if _, err := (Wire{}).Extract(m, &p); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkCheck(b *testing.B) {
	s := signers()["ES256"]
	m := message(s.proof(b, claims()))
	var p proof.Proof
	b.Run("signature", func(b *testing.B) {
		if _, err := (Wire{}).Extract(m, &p); err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			s.pub.VerifyExact(s.alg, p.Signed, p.Signature)
		}
	})
	b.Run("whole", func(b *testing.B) {
		for b.Loop() {
			p.Reset()
			if _, err := (Wire{}).Extract(m, &p); err != nil {
				b.Fatal(err)
			}
			if _, err := proof.Verify(m, &p, s.pub, nil, now, policy); err != nil {
				b.Fatal(err)
			}
		}
	})
}
