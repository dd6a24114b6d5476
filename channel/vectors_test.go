package channel

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/limpet-auth/limpet/keyring"
	"github.com/limpet-auth/limpet/limpettest/vectors"
	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/httpsig"
)

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

type vectorFile struct {
	Keys []struct {
		Name, Public, SPKI string
	}
	Tokens []struct {
		Name, Client, Secret, Key, Algorithm, Authority, Form string
		Label                                                 string `json:"exporter_label"`
		Context                                               string `json:"exporter_context"`
		Exported, Root                                        string
		Derived                                               map[string]string
		Statement, Claim                                      string
		Now                                                   int64
		JWT                                                   string `json:"jwt"`
		Token                                                 string
	}
	Request struct {
		Token, Method, Authority, Path, Query, Body string
		Now                                         int64
		Fields                                      [][2]string
		KeyID                                       string `json:"keyid"`
		Nonce                                       string
		Signature                                   string
	}
	Sample []struct {
		Name, Client, Secret, Exported, Token, Tag string
		Key                                        string `json:"jwt_key"`
		JWT, JWE                                   string
	}
}

func readVectors(t *testing.T) *vectorFile {
	t.Helper()
	b, err := vectors.Files.ReadFile("channel.json")
	if err != nil {
		t.Fatal(err)
	}
	f := new(vectorFile)
	if err := json.Unmarshal(b, f); err != nil {
		t.Fatal(err)
	}
	return f
}

// Every value of the vectors is what this package derives, and every token is
// admitted.
func TestVectors(t *testing.T) {
	f := readVectors(t)
	same := func(t *testing.T, what string, got []byte, want string) {
		t.Helper()
		if hex.EncodeToString(got) != want {
			t.Errorf("%s is %x, want %s", what, got, want)
		}
	}
	held := map[string]*secrets{}
	for _, v := range f.Tokens {
		t.Run(v.Name, func(t *testing.T) {
			p := purpose{algorithm: hmacSHA256, id: v.Client, authority: v.Authority, form: map[string]Form{"token": Token, "jwt": JWT, "jwe": JWE}[v.Form]}
			if v.Key != "" {
				p.algorithm, p.public = ecdsaP256, unhex(t, f.Keys[0].Public)
			}
			same(t, "context", p.context(), v.Context)
			if v.Label != exporterLabel || v.Algorithm != p.algorithm {
				t.Errorf("label %s, algorithm %s", v.Label, v.Algorithm)
			}
			exported := unhex(t, v.Exported)
			cred, err := parseCredential(v.Token)
			if err != nil || cred.id != v.Client || cred.form != p.form || cred.signed != (v.Key != "") {
				t.Fatalf("%+v, %v", cred, err)
			}
			if v.Key != "" {
				public, err := keyring.ParsePublic(unhex(t, f.Keys[0].SPKI))
				if err != nil {
					t.Fatal(err)
				}
				if p.form == Token {
					key, err := proof.NewPublicKey(proof.ECDSAP256, public)
					if err != nil {
						t.Fatal(err)
					}
					same(t, "statement", statement(exported), v.Statement)
					if !key.VerifyExact(proof.ECDSAP256, statement(exported), cred.tag) {
						t.Error("the signature does not fit")
					}
					return
				}
				if got := exportedClaim(exported); got != v.Claim {
					t.Errorf("claim %s, want %s", got, v.Claim)
				}
				c, err := verifySigned(v.Token, v.Client, public)
				if err == nil {
					err = c.check(v.Client, v.Authority, v.Claim, time.Unix(v.Now, 0))
				}
				if err != nil {
					t.Error(err)
				}
				return
			}
			s, err := agree(t.Context(), func(ctx context.Context, message []byte) ([]byte, error) {
				root, err := (&keyring.Key{Secret: unhex(t, v.Secret)}).HMAC(ctx, message)
				same(t, "root", root, v.Root)
				return root, err
			}, exported)
			if err != nil {
				t.Fatal(err)
			}
			held[v.Name] = s
			same(t, "tag", s.tag(), v.Derived["token"])
			same(t, "signing key", s.signing(), v.Derived["jwt"])
			same(t, "encryption key", s.encryption(), v.Derived["jwe"])
			same(t, "key of requests", s.derive("request"), v.Derived["request"])
			if p.form == Token {
				if got := formatToken(v.Client, s.tag()); got != v.Token {
					t.Errorf("token %s, want %s", got, v.Token)
				}
				return
			}
			text := v.Token
			if p.form == JWE {
				if text, err = decryptJWT(text, s.encryption()); err != nil || text != v.JWT {
					t.Fatalf("%s, %v", text, err)
				}
			}
			c, err := verifySigned(text, v.Client, s.signing())
			if err == nil {
				err = c.check(v.Client, v.Authority, "", time.Unix(v.Now, 0))
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	r := f.Request
	if got := requestKeyID(f.Tokens[0].Client); got != r.KeyID {
		t.Errorf("keyid %s, want %s", got, r.KeyID)
	}
	m := &proof.Message{Method: r.Method, Scheme: "https", Authority: r.Authority, Path: r.Path, RawQuery: r.Query, HasBody: true, Header: map[string][]string{}}
	for _, field := range r.Fields {
		m.Header[field[0]] = []string{field[1]}
	}
	var p proof.Proof
	if found, err := (httpsig.Wire{}).Extract(m, &p); err != nil || !found {
		t.Fatal(found, err)
	}
	key := &proof.EphemeralKey{ID: r.KeyID, MAC: held[r.Token].requests(), Expires: time.Unix(r.Now+60, 0)}
	if _, err := proof.Verify(m, &p, nil, key, time.Unix(r.Now, 0), proof.Policy{Freshness: proof.StrictNonce, Window: window, Skew: skew}); err != nil {
		t.Error(err)
	}
	delete(m.Header, "Signature")
	delete(m.Header, "Signature-Input")
	err := httpsig.Sign(m, &httpsig.Signing{KeyID: r.KeyID, Algorithm: proof.HMACSHA256, Created: time.Unix(r.Now, 0), Nonce: r.Nonce},
		func(base []byte) ([]byte, error) { return key.MAC.Append(nil, base), nil })
	if err != nil || m.Header["Signature"][0] != r.Signature {
		t.Errorf("signature %v, want %s: %v", m.Header["Signature"], r.Signature, err)
	}
}

// The known answers of the sample's own programs.
func TestSampleVectors(t *testing.T) {
	for _, v := range readVectors(t).Sample {
		exported := unhex(t, v.Exported)
		key := &keyring.Key{Secret: unhex(t, v.Secret)} // shorter than we admit
		tag, err := key.HMAC(t.Context(), sampleBlock(exported))
		if err != nil || hex.EncodeToString(tag) != v.Tag || base64.StdEncoding.EncodeToString(tag) != v.Token {
			t.Errorf("tag %x, want %s", tag, v.Tag)
		}
		signing, err := key.HMAC(t.Context(), exported)
		if err != nil || hex.EncodeToString(signing) != v.Key {
			t.Errorf("key %x, want %s", signing, v.Key)
		}
		for form, text := range map[Form]string{Token: v.Token, JWT: v.JWT, JWE: v.JWE} {
			c, err := parseSample(text, v.Client, "")
			if err != nil || c.form != form || c.id != v.Client || form == Token && !bytes.Equal(c.tag, tag) {
				t.Errorf("%+v, %v", c, err)
			}
		}
		inner, err := decryptJWT(v.JWE, signing)
		if err != nil || inner != v.JWT {
			t.Errorf("%s, %v", inner, err)
		}
		if b, err := verifyJWT(v.JWT, jose.HS256, signing); err != nil || string(b) != `{"iss":"issuer","sub":"subject"}` {
			t.Errorf("%s, %v", b, err)
		}
	}
}

// No two purposes share a context, even where one's fields run into the next.
func TestContextsDiffer(t *testing.T) {
	base := purpose{algorithm: hmacSHA256, id: "ab", public: []byte("c"), authority: "de", form: Token}
	all := []purpose{base}
	for _, edit := range []func(*purpose){
		func(p *purpose) { p.algorithm = ecdsaP256 },
		func(p *purpose) { p.id = "a" },
		func(p *purpose) { p.id, p.public = "abc", nil },
		func(p *purpose) { p.id, p.public = "a", []byte("bc") },
		func(p *purpose) { p.authority = "d" },
		func(p *purpose) { p.form = JWT },
		func(p *purpose) { p.form = JWE },
		func(p *purpose) { p.public, p.authority = []byte("c\x00\x05httpsde"), "" },
	} {
		p := base
		edit(&p)
		all = append(all, p)
	}
	var seen []string
	for _, p := range all {
		c := string(p.context())
		if slices.Contains(seen, c) || !strings.HasPrefix(c, "\x00\x10limpet channel 1") {
			t.Errorf("%+v: context %q", p, c)
		}
		seen = append(seen, c)
	}
}
