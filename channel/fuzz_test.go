package channel

import (
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func FuzzParseCredential(f *testing.F) {
	f.Add(formatToken(alice, make([]byte, 32)))
	f.Add(formatToken("", make([]byte, 64)))
	f.Add("limpet1..")
	f.Add(jws(f, object("alg", "HS256", "kid", alice, "typ", jwtType), "{}", nil))
	f.Add(jws(f, object("alg", "ES256", "kid", alice, "typ", jwtType), "{}", nil))
	f.Add(jwe(f, object("alg", "dir", "enc", "A256GCM", "kid", alice, "typ", jwtType, "cty", "JWT"), "{}", make([]byte, 16)))
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parseCredential(text)
		if err != nil {
			if len(text) > 8 && strings.Contains(err.Error(), text) {
				t.Errorf("error %q repeats the token", err)
			}
			return
		}
		switch c.form {
		case Token: // one token, one spelling
			if got := formatToken(c.id, c.tag); got != text {
				t.Errorf("%q is read as %q", text, got)
			}
		case JWE:
			if c.signed || strings.Count(text, ".") != 4 {
				t.Errorf("%+v", c)
			}
		default:
			if strings.Count(text, ".") != 2 {
				t.Errorf("%+v", c)
			}
		}
	})
}

func FuzzParseSample(f *testing.F) {
	f.Add(base64.StdEncoding.EncodeToString(make([]byte, 32)), alice, "")
	f.Add(jws(f, object("alg", "HS256"), "{}", nil), "", alice)
	f.Add(jwe(f, object("alg", "dir", "cty", "JWT", "enc", "A256GCM", "kid", alice, "typ", "JWT"), "{}", make([]byte, 16)), "", "")
	f.Fuzz(func(t *testing.T, text, id, fallback string) {
		c, err := parseSample(text, id, fallback)
		if err != nil {
			return
		}
		switch {
		case id != "" && c.id != id:
			t.Errorf("read as %q and named %q", c.id, id)
		case c.form == Token && (base64.StdEncoding.EncodeToString(c.tag) != text || c.id == ""):
			t.Errorf("%q is read as %x of %q", text, c.tag, c.id)
		}
	})
}

func FuzzReadHeader(f *testing.F) {
	for _, header := range []string{`{}`, `{"alg":"HS256"}`, `{"alg":"HS256","alg":"none"}`, `{"kid":"a","typ":"b","enc":"c","cty":"d"}`, `{"x":1}`, `null`, `[]`} {
		f.Add(base64URL.EncodeToString([]byte(header)) + ".x")
	}
	known := []string{"alg", "kid", "typ"}
	f.Fuzz(func(t *testing.T, text string) {
		h, err := readHeader(text, known...)
		if err == nil && (h.enc != "" || h.cty != "") {
			t.Errorf("members that are not known: %+v", h)
		}
	})
}

// Whatever comes in the headers over a real connection, nobody is admitted but by
// the right token, and nothing panics.
func FuzzAdmit(f *testing.F) {
	sites := []*site{newSite(f, ServerConfig{}), newSite(f, ServerConfig{PerRequest: true}), newSite(f, ServerConfig{Profile: Sample, DefaultID: alice})}
	l := sites[0].dial()
	good := []string{l.token(), l.jwt()}
	f.Add("Bearer "+good[0], "", "", "", "", "")
	f.Add("Bearer "+good[1], "", "", "", "", "")
	f.Add("", good[0], "", "", `limpet=("@method");created=1;nonce="x";keyid="y";alg="hmac-sha256";tag="limpet"`, "limpet=:AAAA:")
	f.Add("", "", alice, base64.StdEncoding.EncodeToString(make([]byte, 32)), "", "")
	f.Add("Bearer "+jwe(f, object("alg", "dir", "enc", "A256GCM", "kid", alice, "typ", jwtType, "cty", "JWT"), "x", make([]byte, 32)), "", "", "", "", "")
	f.Fuzz(func(t *testing.T, authorization, client, name, token, input, signature string) {
		for i, s := range sites {
			r := requestOn(l)
			state := l.state
			r.TLS = &state // of which nothing is remembered
			r.Header = http.Header{}
			for field, v := range map[string]string{"Authorization": authorization, ClientField: client, SampleClientField: name,
				SampleTokenField: token, "Signature-Input": input, "Signature": signature} {
				if v != "" {
					r.Header[field] = []string{v}
				}
			}
			w := httptest.NewRecorder()
			s.server.Protect(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				right := strings.Contains(authorization, good[0]) || strings.Contains(authorization, good[1]) || client == good[0] || client == good[1]
				if i != 0 || !right {
					t.Errorf("admitted by %v", r.Header)
				}
			})).ServeHTTP(w, r)
			if w.Code != 401 && w.Code != 200 {
				t.Errorf("%d %s", w.Code, w.Body)
			}
			s.log.take()
		}
	})
}

func requestOn(l *line) *http.Request {
	r := httptest.NewRequest("GET", "https://"+l.host+"/", nil)
	r.TLS = &l.state
	return r
}
