package limpet

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/httpsig"
	"github.com/limpet-auth/limpet/proof/hwsign"
)

// attack is what a thief makes of a request that he caught before it arrived,
// and of a second one of the same session.
type attack struct {
	name   string
	change func(caught, second *http.Request)

	// Wires that do not cover it: the request is admitted. They are named in the
	// threat model.
	uncovered []string
}

func set(name string, change func(value string) string) func(caught, second *http.Request) {
	return func(caught, _ *http.Request) {
		if v := caught.Header.Get(name); v != "" {
			caught.Header.Set(name, change(v))
		}
	}
}

func replace(name, old, new string) func(caught, second *http.Request) {
	return set(name, func(v string) string { return strings.Replace(v, old, new, 1) })
}

// changeJWT changes the JSON of one part of a DPoP proof.
func changeJWT(part int, old, new string) func(caught, second *http.Request) {
	return set("Dpop", func(v string) string {
		parts := strings.Split(v, ".")
		text, err := base64.RawURLEncoding.DecodeString(parts[part])
		if err != nil {
			return v
		}
		parts[part] = base64.RawURLEncoding.EncodeToString([]byte(strings.Replace(string(text), old, new, 1)))
		return strings.Join(parts, ".")
	})
}

func body(text string) func(caught, second *http.Request) {
	return func(caught, _ *http.Request) {
		caught.Body, caught.ContentLength = io.NopCloser(strings.NewReader(text)), int64(len(text))
	}
}

var attacks = []attack{
	// Moved.
	{"another method", func(caught, _ *http.Request) { caught.Method = "DELETE" }, []string{"hw-sign"}},
	{"another path", func(caught, _ *http.Request) { caught.URL.Path = "/transfer/2" }, []string{"hw-sign"}},
	{"another query", func(caught, _ *http.Request) { caught.URL.RawQuery = "to=mallory" }, []string{"hw-sign", "dpop"}},
	{"no query", func(caught, _ *http.Request) { caught.URL.RawQuery = "" }, []string{"hw-sign", "dpop"}},
	{"another host", func(caught, _ *http.Request) { caught.Host = "admin.example.com" }, []string{"hw-sign"}},
	{"another port", func(caught, _ *http.Request) { caught.Host += ":8443" }, []string{"hw-sign"}},
	{"another body", body("amount=999"), []string{"hw-sign", "dpop"}},
	{"a longer body", body("amount=1&amount=999"), []string{"hw-sign", "dpop"}},
	{"no body", body(""), []string{"hw-sign", "dpop"}},
	{"another body with its digest", func(caught, _ *http.Request) {
		body("amount=999")(caught, nil)
		caught.Header.Set(httpsig.DigestField, "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:")
	}, []string{"hw-sign", "dpop"}},
	{"another session of the user", func(caught, second *http.Request) {
		scheme, _, _ := strings.Cut(caught.Header.Get("Authorization"), " ")
		caught.Header.Set("Authorization", scheme+" other")
	}, nil},

	// Mixed from two.
	{"the second's signature", func(caught, second *http.Request) {
		for _, name := range []string{"Signature", hwsign.BoundToken.DataSig} {
			if v := second.Header.Get(name); v != "" {
				caught.Header.Set(name, v)
			}
		}
		if first, other := caught.Header.Get("Dpop"), second.Header.Get("Dpop"); first != "" {
			caught.Header.Set("Dpop", first[:strings.LastIndexByte(first, '.')]+other[strings.LastIndexByte(other, '.'):])
		}
	}, nil},

	// Duplicated.
	{"every proof header twice", func(caught, second *http.Request) {
		for name, v := range caught.Header {
			if name != "Authorization" && name != "Content-Type" {
				caught.Header[name] = append(slices.Clone(v), second.Header[name]...)
			}
		}
	}, nil},
	{"two proofs in one header", func(caught, second *http.Request) {
		for _, name := range []string{"Signature", "Signature-Input", "Dpop", hwsign.BoundToken.DataSig} {
			if v := caught.Header.Get(name); v != "" {
				caught.Header.Set(name, v+", "+second.Header.Get(name))
			}
		}
	}, nil},

	// Reordered.
	{"components in another order", replace("Signature-Input", `"@method" "@authority"`, `"@authority" "@method"`), nil},
	{"claims in another order", changeJWT(1, `{"jti"`, `{"x":1,"jti"`), nil},

	// Downgraded.
	{"fewer components", replace("Signature-Input", ` "@query"`, ``), nil},
	{"no components", set("Signature-Input", func(v string) string {
		return v[:strings.IndexByte(v, '(')+1] + v[strings.IndexByte(v, ')'):]
	}), nil},
	{"alg ed25519", set("Signature-Input", func(v string) string {
		for _, alg := range []string{"hmac-sha256", "ecdsa-p256-sha256"} {
			v = strings.Replace(v, `alg="`+alg+`"`, `alg="ed25519"`, 1)
		}
		return v
	}), nil},
	{"alg hmac for a signing key", replace("Signature-Input", `alg="ecdsa-p256-sha256"`, `alg="hmac-sha256"`), nil},
	{"alg none", changeJWT(0, `"ES256"`, `"none"`), nil},
	{"alg HS256", changeJWT(0, `"ES256"`, `"HS256"`), nil},

	// Injected.
	{"another tag", replace("Signature-Input", `tag="limpet"`, `tag="limpet2"`), nil},
	{"a parameter more", replace("Signature-Input", `;tag=`, `;expires=9999999999;tag=`), nil},
	{"a component more", replace("Signature-Input", `"@query"`, `"@query" "accept"`), nil},
	{"a claim more", changeJWT(1, `"}`, `","nonce":"x"}`), nil},
	{"a value longer", set(hwsign.BoundToken.Data, func(v string) string { return v + "0" }), nil},
	{"a line in the path", func(caught, _ *http.Request) { caught.URL.Path = "/transfer\n\"@query\": ?to=mallory" }, []string{"hw-sign"}},
}

// TestAttacks runs every attack on every wire. What a wire does not cover is
// admitted there, and only what this table says.
func TestAttacks(t *testing.T) {
	tried := map[string]bool{}
	for _, wire := range []string{"httpsig", "httpsig by signature", "dpop", "hw-sign"} {
		s := newSite(t, Config{})
		request := client(t, s, wire)
		for _, a := range attacks {
			caught, second := request(), request()
			before := show(caught)
			a.change(caught, second)
			if show(caught) == before {
				continue // there is nothing of that on this wire
			}
			tried[a.name] = true
			w := s.serve(caught)
			admitted := w.Code == 200
			if want := slices.Contains(a.uncovered, wire); admitted != want {
				t.Errorf("%s, %s: %d %s", wire, a.name, w.Code, w.Body)
			}
			if s.seen != nil && !admitted {
				t.Errorf("%s, %s: the app saw the request", wire, a.name)
			}
		}
		r := request()
		again := r.Clone(t.Context())
		again.Body = io.NopCloser(strings.NewReader(text))
		expect(t, wire+", once", s.serve(r), "")
		expect(t, wire+", replayed", s.serve(again), proof.NonceSpent)
	}
	for _, a := range attacks {
		if !tried[a.name] {
			t.Errorf("%s changes no request on any wire", a.name)
		}
	}
}

func show(r *http.Request) string {
	body, _ := io.ReadAll(r.Body)
	r.Body = io.NopCloser(bytes.NewReader(body))
	return fmt.Sprint(r.Method, r.URL, r.Host, r.Header, r.ContentLength, string(body))
}

const text = "amount=1"

// client logs in on a wire, twice, and returns a maker of requests of the first
// session.
func client(t *testing.T, s *site, wire string) func() *http.Request {
	t.Helper()
	const target = "/transfer/1?to=bob"
	switch wire {
	case "hw-sign":
		d := s.login("token", "alice")
		s.login("other", "alice")
		if w := d.introduce(); w.Code != 200 {
			t.Fatal(w.Body)
		}
		return func() *http.Request {
			r := httptest.NewRequest("POST", target, strings.NewReader(text))
			r.Header = d.proof(s.value())
			r.Header.Set("Authorization", "Bearer token")
			return r
		}
	case "dpop":
		key := newECDSA(t)
		for _, token := range []string{"token", "other"} {
			login := httptest.NewRequest("POST", "/login", nil)
			login.Header.Set("Dpop", dpopProof(s, key, "POST", "https://example.com/login", "", ""))
			if err := s.Bind(httptest.NewRecorder(), login, token, "alice"); err != nil {
				t.Fatal(err)
			}
		}
		return func() *http.Request {
			r := httptest.NewRequest("POST", target, strings.NewReader(text))
			r.Header.Set("Authorization", "DPoP token")
			r.Header.Set("Dpop", dpopProof(s, key, "POST", "https://example.com/transfer/1", "token", ""))
			return r
		}
	}
	h := s.hold("token")
	s.hold("other")
	if wire == "httpsig by signature" {
		h.delegateSigning()
	}
	if w := h.get(true); w.Code != 200 {
		t.Fatal(w.Body)
	}
	return func() *http.Request { return h.request("POST", target, text, false) }
}
