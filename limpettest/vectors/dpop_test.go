package vectors_test

import (
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/dpop"
)

// jwsNames are the algorithms' names in JOSE headers.
var jwsNames = map[string]string{"ecdsa-p256-sha256": "ES256", "ed25519": "EdDSA", "rsa-v1_5-sha256": "RS256", "rsa-pss-sha256": "PS256"}

// dpopMaker makes dpop.json.
type dpopMaker struct {
	*signer
	f *dpopFile
}

func makeDPoP(t testing.TB, stored *dpopFile, b []byte) *dpopFile {
	m := &dpopMaker{newSigner(t, stored.Keys, b), &dpopFile{
		Comment: []string{
			"Test vectors of DPoP as Limpet's servers admit it. The documentation of the Go package limpettest/vectors explains every member.",
			"The private keys are public: never use them for anything but tests.",
		},
		Window: 60, Skew: 30,
		Session: session{Token: token, ID: hex.EncodeToString(sum(token)), ATH: b64url(sum(token))},
	}}
	for _, k := range [][2]string{
		{"p256", "ecdsa-p256-sha256"}, {"ed25519", "ed25519"}, {"rs256", "rsa-v1_5-sha256"}, {"ps256", "rsa-pss-sha256"},
		{"thief", "ecdsa-p256-sha256"}, {"p384", "ecdsa-p384-sha384"}, {"rsa-1024", "rsa-v1_5-sha256"},
	} {
		m.f.Keys = append(m.f.Keys, m.key(k[0], k[1]))
	}
	m.proofs()
	m.refuse()
	return m.f
}

// jwk writes the members of a key's JWK in the order of our client.
func (m *dpopMaker) jwk(k *key) string {
	m.Helper()
	var j struct{ Crv, Kty, X, Y, N, E string }
	m.must(json.Unmarshal([]byte(k.JWK), &j))
	switch j.Kty {
	case "EC":
		return fmt.Sprintf(`{"kty":"EC","crv":%q,"x":%q,"y":%q}`, j.Crv, j.X, j.Y)
	case "OKP":
		return fmt.Sprintf(`{"kty":"OKP","crv":%q,"x":%q}`, j.Crv, j.X)
	}
	return fmt.Sprintf(`{"kty":"RSA","n":%q,"e":%q}`, j.N, j.E)
}

// complete signs header and claims.
func (m *dpopMaker) complete(j *jwt) {
	m.Helper()
	k := keyNamed(m, m.f.Keys, j.Key)
	j.Input = b64url([]byte(j.Header)) + "." + b64url([]byte(j.Claims))
	sig := m.sign(k, k.Algorithm, []byte(j.Input))
	j.Signature = hex.EncodeToString(sig)
	j.set("DPoP", j.Input+"."+b64url(sig))
}

func (m *dpopMaker) proofs() {
	for _, k := range []struct {
		name, key, method, path, query string
		htu, iat, alg, nonce           string
		authorization, body            string
		login, cookie                  bool
	}{
		{name: "login, ES256", key: "p256", login: true},
		{name: "login, EdDSA", key: "ed25519", login: true},
		{name: "login, RS256", key: "rs256", login: true},
		{name: "login, PS256", key: "ps256", login: true},
		{name: "ES256", key: "p256"},
		{name: "EdDSA", key: "ed25519"},
		{name: "Ed25519, its name since RFC 9864", key: "ed25519", alg: "Ed25519"},
		{name: "RS256", key: "rs256"},
		{name: "PS256", key: "ps256"},
		{name: "POST with a body, which is not covered", key: "p256", method: "POST", path: "/orders", body: `{"item":7,"count":1}`},
		{name: "a nonce of the server's", key: "p256", path: "/transfer", nonce: challenge},
		{name: "a token in a cookie", key: "p256", cookie: true},
		{name: "the scheme dpop in other letters", key: "p256", authorization: "dpop "},
		{name: "a query, which htu has not", key: "p256", path: "/orders", query: "page=2"},
		{name: "a query that htu has, which does not count", key: "p256", path: "/orders", query: "page=2", htu: "https://app.example.com/orders?page=3#top"},
		{name: "htu with capitals and the default port", key: "p256", htu: "HTTPS://App.Example.com:443/me"},
		{name: "htu with other percent-encoding", key: "p256", path: "/files/%C3%BCber%2Fall~", htu: "https://app.example.com/files/%c3%bcber%2fall%7E"},
		{name: "htu with dot segments", key: "p256", path: "/files/7", htu: "https://app.example.com/a/../files/./7"},
		{name: "iat with a fraction", key: "p256", iat: "1764000000.75"},
	} {
		or := func(s *string, value string) {
			if *s == "" {
				*s = value
			}
		}
		signed := keyNamed(m, m.f.Keys, k.key)
		if k.login {
			k.method, k.path, k.body = "POST", "/login", "user=alice&password=correct+horse"
		}
		or(&k.method, "GET")
		or(&k.path, "/me")
		or(&k.htu, "https://"+authority+k.path)
		or(&k.iat, fmt.Sprint(start))
		or(&k.alg, jwsNames[signed.Algorithm])
		or(&k.authorization, "DPoP ")
		j := &jwt{
			Name: k.name, Key: k.key, Login: k.login,
			message: message{Method: k.method, Scheme: "https", Authority: authority, Path: k.path, Query: k.query, Body: k.body},
			At:      at{Now: start + 2, Challenge: k.nonce},
		}
		ath := ""
		if !k.login {
			j.At.Device = k.key
			ath = fmt.Sprintf(`,"ath":%q`, m.f.Session.ATH)
			if k.cookie {
				j.add("Cookie", "theme=dark; sid="+token)
			} else {
				j.add("Authorization", k.authorization+token)
			}
		}
		if k.nonce != "" {
			ath += fmt.Sprintf(`,"nonce":%q`, k.nonce)
		}
		j.Header = fmt.Sprintf(`{"typ":"dpop+jwt","alg":%q,"jwk":%s}`, k.alg, m.jwk(signed))
		j.Claims = fmt.Sprintf(`{"jti":%q,"htm":%q,"htu":%q,"iat":%s%s}`, nonce(k.name), k.method, k.htu, k.iat, ath)
		m.complete(j)
		m.f.Proofs = append(m.f.Proofs, j)
	}
}

func (m *dpopMaker) refuse() {
	const es, bad, invalid = "ES256", proof.Malformed, proof.Invalid
	p256 := keyNamed(m, m.f.Keys, "p256")
	good := named(m, m.f.Proofs, func(j *jwt) string { return j.Name }, es)
	// header and claims change the text that is signed, after the request.
	swap := func(text *string, old, with string) {
		if !strings.Contains(*text, old) {
			panic(old + " is not in " + *text)
		}
		*text = strings.Replace(*text, old, with, 1)
	}
	header := func(old, with string) func(*jwt) { return func(j *jwt) { swap(&j.Header, old, with) } }
	claims := func(old, with string) func(*jwt) { return func(j *jwt) { swap(&j.Claims, old, with) } }
	key := func(name, alg string) func(*jwt) {
		return func(j *jwt) {
			k := keyNamed(m, m.f.Keys, name)
			j.Key, j.Header = name, fmt.Sprintf(`{"typ":"dpop+jwt","alg":%q,"jwk":%s}`, alg, m.jwk(k))
		}
	}
	part := func(i int, edit func(string) string) func(*jwt) {
		return func(j *jwt) {
			parts := strings.Split(j.lines("DPoP")[0], ".")
			parts[i] = edit(parts[i])
			j.set("DPoP", strings.Join(parts, "."))
		}
	}
	set := func(name, value string) func(*jwt) {
		return func(j *jwt) {
			if p := j.part(name); p != nil {
				*p = value
			} else {
				j.set(name, value)
			}
		}
	}
	point := unhex(m, p256.Public)
	x, y := b64url(point[1:33]), b64url(point[33:])
	off := slices.Clone(point[33:])
	off[31] ^= 1
	jti := nonce(es)
	proofOf := good.lines("DPoP")[0]
	ath := m.f.Session.ATH
	for _, tt := range []struct {
		name, of, stage string
		reason          proof.Reason
		edit, after     func(*jwt)
		server          func(*at)
	}{
		{name: "no proof", stage: atRead, reason: proof.Required, after: func(j *jwt) { j.remove("DPoP") }},
		{name: "two proofs", stage: atRead, reason: bad, after: func(j *jwt) { j.add("DPoP", proofOf) }},
		{name: "two proofs in a list", stage: atRead, reason: bad, after: set("DPoP", proofOf+", "+proofOf)},
		{name: "two parts", stage: atRead, reason: bad, after: set("DPoP", proofOf[:strings.LastIndexByte(proofOf, '.')])},
		{name: "no signature", stage: atRead, reason: bad, after: part(2, func(string) string { return "" })},
		{name: "a signature with padding", stage: atRead, reason: bad, after: part(2, func(s string) string { return s + "==" })},
		{name: "a signature in the other base64", stage: atRead, reason: bad, after: part(2, func(string) string {
			return base64.RawStdEncoding.EncodeToString(unhex(m, good.Signature))
		})},
		{name: "over 8 KiB", stage: atRead, reason: proof.TooLarge, edit: claims("{", `{"x":"`+strings.Repeat("a", 8<<10)+`",`)},
		{name: "claims that are no object", stage: atRead, reason: bad, edit: func(j *jwt) { j.Claims = "[" + j.Claims + "]" }},
		{name: "claims that are no JSON", stage: atRead, reason: bad, edit: func(j *jwt) { j.Claims += "}" }},
		{name: "a claim twice", stage: atRead, reason: bad, edit: claims("{", `{"htm":"POST",`)},
		{name: "alg twice", stage: atRead, reason: bad, edit: header("{", `{"alg":"none",`)},

		{name: "no typ", stage: atRead, reason: bad, edit: header(`"typ":"dpop+jwt",`, "")},
		{name: "typ JWT", stage: atRead, reason: bad, edit: header(`dpop+jwt`, "JWT")},
		{name: "alg none", stage: atRead, reason: bad, edit: header("ES256", "none"), after: part(2, func(string) string { return "" })},
		{name: "alg HS256", stage: atRead, reason: bad, edit: header("ES256", "HS256")},
		{name: "alg ES384, with its key", stage: atRead, reason: bad, edit: key("p384", "ES384")},
		{name: "alg of another kind of key", stage: atRead, reason: bad, edit: header("ES256", "RS256")},
		{name: "crit", stage: atRead, reason: bad, edit: header("{", `{"crit":["exp"],`)},
		{name: "b64", stage: atRead, reason: bad, edit: header("{", `{"b64":false,`)},
		{name: "no jwk", stage: atRead, reason: bad, edit: header(`,"jwk":`+m.jwk(p256), "")},
		{name: "kid in place of jwk", stage: atRead, reason: bad, edit: header(`"jwk":`+m.jwk(p256), quotedJSON("kid", p256.KeyID))},
		{name: "a private key in jwk", stage: atRead, reason: bad, edit: header(`"jwk":{`, `"jwk":{"d":"`+b64url(unhex(m, p256.Private))+`",`)},
		{name: "a point that is not on the curve", stage: atRead, reason: bad, edit: header(y, b64url(off))},
		{name: "x of 31 bytes", stage: atRead, reason: bad, edit: header(x, b64url(point[2:33]))},
		{name: "RSA of 1024 bits", stage: atRead, reason: bad, edit: key("rsa-1024", "RS256")},

		{name: "no jti", stage: atRead, reason: bad, edit: claims(quotedJSON("jti", jti)+",", "")},
		{name: "a jti of 7 bytes", stage: atRead, reason: bad, edit: claims(jti, jti[:7])},
		{name: "a jti of 257 bytes", stage: atRead, reason: bad, edit: claims(jti, strings.Repeat("a", 257))},
		{name: "a jti that is a number", stage: atRead, reason: bad, edit: claims(`"`+jti+`"`, "1234567890")},
		{name: "no htm", stage: atRead, reason: bad, edit: claims(`"htm":"GET",`, "")},
		{name: "no htu", stage: atRead, reason: bad, edit: claims(`"htu":"https://app.example.com/me",`, "")},
		{name: "no iat", stage: atRead, reason: bad, edit: claims(`"iat":1764000000,`, "")},
		{name: "an iat that is a string", stage: atRead, reason: bad, edit: claims(`1764000000`, `"1764000000"`)},
		{name: "an iat in milliseconds", stage: atRead, reason: bad, edit: claims(`1764000000`, `1764000000000`)},
		{name: "an iat before 1970", stage: atRead, reason: bad, edit: claims(`1764000000`, `-1`)},
		{name: "no ath", stage: atRead, reason: bad, edit: claims(`,`+quotedJSON("ath", ath), "")},
		{name: "the ath of another token", stage: atRead, reason: invalid, edit: claims(ath, b64url(sum("another-session-token")))},
		{name: "an ath in hex", stage: atRead, reason: invalid, edit: claims(ath, m.f.Session.ID)},
		{name: "another token", stage: atRead, reason: invalid, after: set("Authorization", "DPoP another-session-token")},
		{name: "a nonce that is a number", of: "a nonce of the server's", stage: atRead, reason: bad, edit: claims(`"`+challenge+`"`, "1")},
		{name: "under the scheme Bearer", stage: atRead, reason: invalid, after: set("Authorization", "Bearer "+token)},
		{name: "two Authorization headers", stage: atRead, reason: invalid, after: func(j *jwt) { j.add("Authorization", "Bearer "+token) }},

		{name: "another method", stage: atRead, reason: invalid, after: set("@method", "POST")},
		{name: "htm in lower case", stage: atRead, reason: invalid, edit: claims(`"GET"`, `"get"`)},
		{name: "another host", stage: atRead, reason: invalid, after: set("@authority", "admin.example.com")},
		{name: "another port", stage: atRead, reason: invalid, after: set("@authority", authority+":8443")},
		{name: "another path", stage: atRead, reason: invalid, after: set("@path", "/admin")},
		{name: "a path in other letters", stage: atRead, reason: invalid, after: set("@path", "/ME")},
		{name: "htu of http", stage: atRead, reason: invalid, edit: claims("https:", "http:")},
		{name: "htu that is relative", stage: atRead, reason: invalid, edit: claims("https://app.example.com/me", "/me")},
		{name: "htu with user information", stage: atRead, reason: invalid, edit: claims("https://", "https://app@")},

		{name: "made 61 seconds before the server's time", stage: atVerify, reason: proof.ClockSkew, server: func(at *at) { at.Now = start + 61 }},
		{name: "made 31 seconds after the server's time", stage: atVerify, reason: proof.ClockSkew, server: func(at *at) { at.Now = start - 31 }},
		{name: "no nonce where the route wants one", stage: atVerify, reason: proof.Stale, server: func(at *at) { at.Challenge = challenge }},
		{name: "another nonce", of: "a nonce of the server's", stage: atVerify, reason: proof.Stale, edit: claims(challenge, "AAAAAAAAAAAAAAAA")},
		{name: "where the route wants the channel", stage: atVerify, reason: proof.NoChannel, server: func(at *at) { at.Channel, at.Exported = true, exported }},
		{name: "the thief's own key", stage: atVerify, reason: invalid, edit: key("thief", "ES256")},
		{name: "the session's key in jwk, the thief's signature", stage: atVerify, reason: invalid, edit: func(j *jwt) { j.Key = "thief" }},
		{name: "a claim changed", stage: atVerify, reason: invalid, after: part(1, func(string) string {
			return b64url([]byte(strings.Replace(good.Claims, jti, "A"+jti[1:], 1)))
		})},
		{name: "a signature in DER", stage: atVerify, reason: invalid, after: part(2, func(string) string { return b64url(m.der(p256, []byte(good.Input))) })},
		{name: "a signature of 63 bytes", stage: atVerify, reason: invalid, after: part(2, func(string) string { return b64url(unhex(m, good.Signature)[:63]) })},
		{name: "PKCS #1 v1.5 under the name PS256", of: "RS256", stage: atVerify, reason: invalid, edit: header("RS256", "PS256")},
		{name: "sent again", stage: atSpend, reason: proof.NonceSpent},
		{name: "another proof with the same jti", stage: atSpend, reason: proof.NonceSpent, edit: claims(`1764000000`, `1764000001`)},

		{name: "login for another path", of: "login, ES256", stage: atRead, reason: invalid, after: set("@path", "/register")},
		{name: "login made 61 seconds before the server's time", of: "login, EdDSA", stage: atVerify, reason: proof.ClockSkew, server: func(at *at) { at.Now = start + 61 }},
		{name: "login, another key's signature", of: "login, ES256", stage: atVerify, reason: invalid, edit: func(j *jwt) { j.Key = "thief" }},
		{name: "login sent again", of: "login, ES256", stage: atSpend, reason: proof.NonceSpent},
	} {
		if tt.of == "" {
			tt.of = es
		}
		before := named(m, m.f.Proofs, func(j *jwt) string { return j.Name }, tt.of)
		j := *before
		j.message = before.message.clone()
		if tt.edit != nil {
			tt.edit(&j)
			m.complete(&j)
		}
		if tt.after != nil {
			tt.after(&j)
		}
		row := &refused{Name: tt.name, Of: tt.of, Stage: tt.stage, Reason: string(tt.reason), Changes: j.diff(before.message)}
		if tt.server != nil {
			tt.server(&j.At)
			row.At = &j.At
		}
		m.f.Refused = append(m.f.Refused, row)
	}
}

func quotedJSON(name, value string) string { return fmt.Sprintf("%q:%q", name, value) }

// TestDPoPFile makes every value of the file anew.
func TestDPoPFile(t *testing.T) {
	var stored dpopFile
	b := read(t, "dpop.json", &stored)
	compare(t, "dpop.json", b, makeDPoP(t, &stored, b))
}

func readDPoP(t testing.TB) *dpopFile {
	t.Helper()
	f := new(dpopFile)
	read(t, "dpop.json", f)
	return f
}

func (f *dpopFile) check(t testing.TB, j *jwt, m message, at at) *checked {
	t.Helper()
	// The wire's package names the header as net/http does.
	for i := range m.Fields {
		if m.Fields[i][0] == "DPoP" {
			m.Fields = slices.Clone(m.Fields)
			m.Fields[i][0] = dpop.Header
		}
	}
	policy := proof.Policy{Window: time.Duration(f.Window) * time.Second, Skew: time.Duration(f.Skew) * time.Second, Channel: at.Channel}
	if j.Login {
		return checkLogin(t, dpop.Wire{}, &m, at.Now, policy)
	}
	if at.Challenge != "" {
		policy.Challenges = []string{at.Challenge}
	}
	return checkRequest(t, dpop.Wire{}, &m, m.proofMessage(false), keyNamed(t, f.Keys, at.Device).publicKey(t), nil, at.Now, policy)
}

func TestDPoPKeys(t *testing.T) {
	f := readDPoP(t)
	for _, k := range f.Keys {
		if b64url(sum(k.JWK)) != k.KeyID {
			t.Errorf("%s: keyid is not the hash of its JWK", k.Name)
		}
		pub, err := proof.ParsePublicKey(algorithms[k.Algorithm], unhex(t, k.Public))
		if k.Name == "p384" || k.Name == "rsa-1024" {
			if err == nil {
				t.Errorf("%s is admitted", k.Name)
			}
			continue
		}
		if err != nil {
			t.Fatal(k.Name, err)
		}
		if thumbprint := pub.Thumbprint(); b64url(thumbprint[:]) != k.KeyID {
			t.Errorf("%s: another thumbprint", k.Name)
		}
	}
	if id := sum(f.Session.Token); hex.EncodeToString(id) != f.Session.ID || b64url(id) != f.Session.ATH {
		t.Errorf("%+v", f.Session)
	}
}

func TestDPoPAdmitted(t *testing.T) {
	f := readDPoP(t)
	s := newSigner(t, f.Keys, nil)
	var list []string
	for _, j := range f.Proofs {
		list = append(list, j.Name)
		t.Run(j.Name, func(t *testing.T) {
			c := f.check(t, j, j.message, j.At)
			c.is(t, admitted, "")
			if c.stage != admitted {
				return
			}
			k := keyNamed(t, f.Keys, j.Key)
			if text := j.lines("DPoP"); string(c.proof.Signed) != j.Input || hex.EncodeToString(c.proof.Signature) != j.Signature || len(text) != 1 || text[0] != j.Input+"."+b64url(unhex(t, j.Signature)) {
				t.Errorf("%+v", c.proof)
			}
			if thumbprint := c.proof.Key.Thumbprint(); b64url(thumbprint[:]) != k.KeyID || c.proof.Challenge != j.At.Challenge {
				t.Errorf("%+v", c.proof)
			}
			// Our client makes the same texts where it says the same.
			var claims struct {
				JTI, HTU, Nonce string
				IAT             float64
			}
			if err := json.Unmarshal([]byte(j.Claims), &claims); err != nil {
				t.Fatal(err)
			}
			made := dpop.Claims{JTI: claims.JTI, Method: j.Method, URL: "https://" + j.Authority + j.Path, IssuedAt: time.Unix(int64(claims.IAT), 0), Nonce: claims.Nonce}
			if !j.Login {
				made.AccessToken = f.Session.Token
			}
			pub := k.publicKey(t)
			text, err := dpop.NewProof(s.private(k), pub.Algorithm(), pub, made)
			if err != nil {
				t.Fatal(err)
			}
			for i, own := range []string{j.Header, j.Claims} {
				b, err := base64.RawURLEncoding.DecodeString(strings.Split(text, ".")[i])
				if err != nil || string(b) != own && !strings.HasPrefix(j.Name, "htu ") && !strings.HasPrefix(j.Name, "iat ") &&
					!strings.HasPrefix(j.Name, "a query that") && !strings.HasPrefix(j.Name, "Ed25519") {
					t.Errorf("our client's %s, not %s", b, own)
				}
			}
		})
	}
	names(t, list)
}

func TestDPoPRefused(t *testing.T) {
	f := readDPoP(t)
	var list []string
	for _, v := range f.Refused {
		list = append(list, v.Name)
		t.Run(v.Name, func(t *testing.T) {
			of := named(t, f.Proofs, func(j *jwt) string { return j.Name }, v.Of)
			at := of.At
			if v.At != nil {
				at = *v.At
			}
			c := f.check(t, of, of.apply(t, v.Changes), at)
			if v.Stage != atSpend {
				c.is(t, v.Stage, v.Reason)
				return
			}
			c.is(t, admitted, "")
			if c.stage == admitted && c.replayID() != f.check(t, of, of.message, of.At).replayID() {
				t.Error("another value is spent")
			}
		})
	}
	names(t, list)
	if len(list) < 25 {
		t.Errorf("only %d are refused", len(list))
	}
}

// TestJWKOfRSA reads the RSA keys' numbers from their JWK.
func TestJWKOfRSA(t *testing.T) {
	for _, k := range readDPoP(t).Keys {
		if !strings.HasPrefix(k.Algorithm, "rsa-") {
			continue
		}
		var j struct{ N, E string }
		if err := json.Unmarshal([]byte(k.JWK), &j); err != nil {
			t.Fatal(err)
		}
		pub, err := x509.ParsePKIXPublicKey(unhex(t, k.SPKI))
		if err != nil {
			t.Fatal(err)
		}
		n, _ := base64.RawURLEncoding.DecodeString(j.N)
		e, _ := base64.RawURLEncoding.DecodeString(j.E)
		if want := pub.(*rsa.PublicKey); new(big.Int).SetBytes(n).Cmp(want.N) != 0 || new(big.Int).SetBytes(e).Int64() != int64(want.E) {
			t.Errorf("%s: JWK of another key", k.Name)
		}
	}
}
