package channel

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/keyring"
)

// What is not TLS, or not fit for a token, admits nobody.
func TestConnectionsThatAreNotFit(t *testing.T) {
	s := newSite(t, ServerConfig{})
	l := s.dial()
	request := func(state *tls.ConnectionState) *answer {
		r := l.request("GET", "/", "")
		r.TLS, r.Body = state, http.NoBody
		r.Header.Set("Authorization", "Bearer "+l.token())
		w := httptest.NewRecorder()
		s.http.Config.Handler.ServeHTTP(w, r)
		return &answer{w.Code, w.Header(), w.Body.String()}
	}
	early := l.state
	early.HandshakeComplete = false // as in 0-RTT
	for name, state := range map[string]*tls.ConnectionState{"no TLS": nil, "an incomplete handshake": &early} {
		a := request(state)
		wantRefused(t, name, a)
		if got := a.header.Get(FingerprintField); got != "none" {
			t.Errorf("%s: fingerprint %q", name, got)
		}
	}
	if a := request(&l.state); a.code != 200 {
		t.Errorf("the connection itself: %v", a)
	}

	old := s.dial(func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 })
	s.log.take()
	wantRefused(t, "TLS 1.2", old.bearer(old.token()))
	if log := s.log.take(); !strings.Contains(log, "TLS 1.2, and TLS 1.3 is wanted") {
		t.Errorf("log %s", log)
	}
	base := s.base(true)
	base.TLSClientConfig.MaxVersion = tls.VersionTLS12
	_, err := s.client(Config{Base: base}, true).Get(s.http.URL)
	if err == nil || !strings.Contains(err.Error(), "TLS 1.2, and TLS 1.3 is wanted") {
		t.Errorf("client on TLS 1.2: %v", err)
	}
	_, err = s.client(Config{}, true).Get(strings.Replace(s.http.URL, "https:", "http:", 1))
	if err == nil || !strings.Contains(err.Error(), "without https") {
		t.Errorf("client on http: %v", err)
	}
	r, _ := http.NewRequest("GET", s.http.URL, nil)
	r.Host = "bücher.example"
	if _, err = s.client(Config{}, true).Do(r); err == nil || !strings.Contains(err.Error(), "xn--") {
		t.Errorf("client of a host name that is not ASCII: %v", err)
	}
}

// The sample profile works on TLS 1.2 too, with extended master secret; TLS 1.1
// is for nobody.
func TestSampleOnTLS12(t *testing.T) {
	bothVersions(t, func(t *testing.T, http2 bool) {
		s := newSite(t, ServerConfig{Profile: Sample, DefaultID: alice}, func(srv *httptest.Server) {
			srv.TLS = &tls.Config{MaxVersion: tls.VersionTLS12}
		})
		for _, form := range []Form{Token, JWT, JWE} {
			wantAdmitted(t, s.client(Config{Profile: Sample, Form: form}, http2), s.http.URL, "alice 1 "+form.String()+" ")
		}
	})
	s := newSite(t, ServerConfig{Profile: Sample}, func(srv *httptest.Server) {
		srv.TLS = &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}
	})
	l := s.dial(func(c *tls.Config) { c.MinVersion = tls.VersionTLS10 })
	r := l.request("GET", "/", "")
	r.Header[SampleClientField], r.Header[SampleTokenField] = []string{alice}, []string{base64.StdEncoding.EncodeToString(make([]byte, 32))}
	wantRefused(t, "TLS 1.1", l.do(r))
}

// A resumed session is another connection: the token of the first is refused on
// it, and one of its own admitted.
func TestResumedSession(t *testing.T) {
	s := newSite(t, ServerConfig{})
	cache := tls.NewLRUClientSessionCache(4)
	resume := func(c *tls.Config) { c.ClientSessionCache = cache }
	first := s.dial(resume)
	wantCode(t, "the first connection", first.bearer(first.token()), 200) // which reads the session's ticket
	second := s.dial(resume)
	if !second.state.DidResume {
		t.Fatal("the session was not resumed")
	}
	wantRefused(t, "the first connection's token", second.bearer(first.token()))
	wantCode(t, "one of its own", second.bearer(second.token()), 200)
	wantCode(t, "the first connection, still", first.bearer(first.token()), 200)

	base := s.base(true)
	base.TLSClientConfig.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	c := s.client(Config{Base: base}, true)
	resumed := false
	s.app = func(_ http.ResponseWriter, r *http.Request) { resumed = r.TLS.DidResume }
	for range 3 {
		wantAdmitted(t, c, s.http.URL, "alice 1 token ")
		c.CloseIdleConnections()
	}
	if !resumed {
		t.Error("the client did not resume")
	}
}

// proxies between client and server that end TLS.
func TestProxyThatEndsTLS(t *testing.T) {
	s := newSite(t, ServerConfig{})
	target, _ := url.Parse(s.http.URL)
	plain := httptest.NewServer(s.http.Config.Handler)
	defer plain.Close()
	plainTarget, _ := url.Parse(plain.URL)
	for _, tt := range []struct {
		name   string
		target *url.URL
	}{{"TLS on both sides", target}, {"plain HTTP behind it", plainTarget}} {
		t.Run(tt.name, func(t *testing.T) {
			bothVersions(t, func(t *testing.T, http2 bool) {
				proxy := &httputil.ReverseProxy{
					Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(tt.target); r.Out.Host = r.In.Host },
					Transport: s.base(true),
				}
				front := httptest.NewUnstartedServer(proxy)
				front.EnableHTTP2 = true
				front.StartTLS()
				defer front.Close()
				key := softHMAC(t, aliceSecret)
				for _, macs := range []bool{false, true} {
					tr, err := NewTransport(Config{ID: alice, HMAC: key, PerRequest: macs, Base: front.Client().Transport})
					if err != nil {
						t.Fatal(err)
					}
					_, err = (&http.Client{Transport: tr}).Get(front.URL)
					if !errors.Is(err, ErrTLSElsewhere) || !strings.Contains(err.Error(), "TLS ends between this client and the server") {
						t.Errorf("error %v, want ErrTLSElsewhere", err)
					}
				}
			})
		})
	}
	wantAdmitted(t, s.client(Config{}, true), s.http.URL, "alice 1 token ")
}

// A refusal on the client's own connection is the server's answer, and no error.
func TestRefusalIsAnAnswer(t *testing.T) {
	bothVersions(t, func(t *testing.T, http2 bool) {
		s := newSite(t, ServerConfig{})
		resp, err := s.client(Config{ID: bob}, http2).Get(s.http.URL)
		if err != nil {
			t.Fatal(err)
		}
		wantRefused(t, "alice's secret as bob", &answer{resp.StatusCode, resp.Header, readAll(t, resp)})
	})
}

// A token that is copied from a connection is worthless on another one, and the
// first goes on.
func TestTokenOfAnotherConnection(t *testing.T) {
	pair := softP256(t)
	for _, tt := range []struct {
		name    string
		cfg     Config
		profile Profile
	}{
		{"token", Config{}, Limpet}, {"JWT", Config{Form: JWT}, Limpet}, {"JWE", Config{Form: JWE}, Limpet},
		{"token of a key pair", Config{ID: "pair", Key: pair}, Limpet}, {"JWT of a key pair", Config{ID: "pair", Key: pair, Form: JWT}, Limpet},
		{"sample token", Config{Profile: Sample}, Sample}, {"sample JWT", Config{Profile: Sample, Form: JWT}, Sample}, {"sample JWE", Config{Profile: Sample, Form: JWE}, Sample},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bothVersions(t, func(t *testing.T, http2 bool) {
				s := newSite(t, ServerConfig{Profile: tt.profile, DefaultID: alice})
				s.knows("pair", pair)
				var mu sync.Mutex
				var stolen http.Header
				s.app = func(_ http.ResponseWriter, r *http.Request) {
					mu.Lock()
					defer mu.Unlock()
					stolen = maps.Clone(r.Header)
				}
				cfg := tt.cfg
				c := s.client(cfg, http2)
				code, body := get(t, c, s.http.URL)
				if code != 200 {
					t.Fatal(code, body)
				}
				for _, thiefHTTP2 := range []bool{false, true} {
					thief := &http.Client{Transport: s.base(thiefHTTP2)}
					for range 2 {
						r, _ := http.NewRequest("GET", s.http.URL, nil)
						for _, name := range []string{"Authorization", SampleClientField, SampleTokenField} {
							if v := stolen[name]; v != nil {
								r.Header[name] = v
							}
						}
						resp, err := thief.Do(r)
						if err != nil {
							t.Fatal(err)
						}
						wantRefused(t, "the thief", &answer{resp.StatusCode, resp.Header, readAll(t, resp)})
						wantAdmitted(t, c, s.http.URL, body)
					}
				}
			})
		})
	}
}

// Who is not known gets the answer that a wrong token gets, to the byte, for the
// same work.
func TestUnknownClient(t *testing.T) {
	for _, profile := range []Profile{Limpet, Sample} {
		t.Run(profile.String(), func(t *testing.T) {
			s := newSite(t, ServerConfig{Profile: profile})
			pair := softP256(t)
			s.knows("pair", pair)
			l := s.dial()
			wrong := make([]byte, 32)
			send := func(id string) *answer {
				r := l.request("GET", "/", "")
				r.Header.Set("Authorization", "Bearer "+formatToken(id, wrong))
				if profile == Sample {
					r.Header.Del("Authorization")
					r.Header.Set("client", id)
					r.Header.Set("apikey", base64.StdEncoding.EncodeToString(wrong))
				}
				return l.do(r)
			}
			var answers []string
			for _, id := range []string{alice, bob, "pair", "nobody", strings.Repeat("x", keyring.MaxID), "two words", strings.Repeat("x", keyring.MaxID+1)} {
				a := send(id)
				wantRefused(t, id, a)
				a.header.Del("Date")
				answers = append(answers, fmt.Sprint(a.code, a.header, a.body))
			}
			for i, a := range answers {
				if a != answers[0] {
					t.Errorf("answer %d is %s, that to alice %s", i, a, answers[0])
				}
			}
		})
	}
	// The work, counted in allocations: those that the crypto makes are the same
	// ones each time.
	s := newSite(t, ServerConfig{})
	s.knows("pair", softP256(t))
	l := s.dial()
	work := func(text string) float64 {
		cred, err := parseCredential(text)
		if err != nil {
			t.Fatal(err)
		}
		r := l.request("GET", "/", "")
		r.TLS = &l.state
		return testing.AllocsPerRun(200, func() {
			if _, _, err := s.server.fitting(r, cred, l.host, time.Now()); err == nil {
				t.Error("admitted")
			}
		})
	}
	for name, forge := range map[string]func(id string) string{
		"token":               func(id string) string { return formatToken(id, make([]byte, 32)) },
		"token of a key pair": func(id string) string { return formatToken(id, make([]byte, 64)) },
		"JWT": func(id string) string {
			return jws(t, object("alg", "HS256", "kid", id, "typ", jwtType), l.claims(), make([]byte, 32))
		},
		"JWE": func(id string) string {
			return jwe(t, object("alg", "dir", "enc", "A256GCM", "kid", id, "typ", jwtType, "cty", "JWT"), "x", make([]byte, 32))
		},
	} {
		known, unknown := work(forge(alice)), work(forge("nobody"))
		if name == "token of a key pair" {
			known, unknown = work(forge("pair")), work(forge("user"))
		}
		if diff := known - unknown; diff > 4 || diff < -4 {
			t.Errorf("%s: %v allocations for who is known and %v for who is not", name, known, unknown)
		}
	}
}

// Tokens that cannot be, each refused with the one answer.
func TestBadTokens(t *testing.T) {
	s := newSite(t, ServerConfig{})
	pair := softP256(t)
	s.knows("pair", pair)
	l, other := s.dial(), s.dial()
	good := l.token()
	tag := l.secrets(Token).tag()
	id := base64URL.EncodeToString([]byte(alice))
	flipped := bytes.Clone(tag)
	flipped[31] ^= 1
	last := good[:len(good)-1]
	p := l.purpose(Token)
	elsewhere := p
	elsewhere.authority = "elsewhere.example"
	asJWT := p
	asJWT.form = JWT
	bobs := p
	bobs.id = bob
	for name, token := range map[string]string{
		"empty":                         "",
		"only the prefix":               "limpet1.",
		"no tag":                        "limpet1." + id,
		"an empty tag":                  "limpet1." + id + ".",
		"an empty name":                 "limpet1.." + base64URL.EncodeToString(tag),
		"another version":               strings.Replace(good, "limpet1.", "limpet2.", 1),
		"the prefix in capitals":        strings.Replace(good, "limpet1.", "Limpet1.", 1),
		"a part more":                   good + "." + id,
		"a dot more":                    good + ".",
		"one bit flipped":               formatToken(alice, flipped),
		"31 bytes":                      formatToken(alice, tag[:31]),
		"33 bytes":                      formatToken(alice, append(bytes.Clone(tag), 0)),
		"64 bytes, as of a key pair":    formatToken(alice, append(bytes.Clone(tag), tag...)),
		"padding":                       good + "=",
		"standard base64":               "limpet1." + id + "." + base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{0xff}, 32)),
		"hex":                           "limpet1." + id + "." + hex.EncodeToString(tag),
		"a blank inside":                strings.Replace(good, ".", ". ", 1),
		"bits beyond the last byte":     last + string(good[len(good)-1]+1),
		"not base64url":                 "limpet1." + id + "." + strings.Repeat("!", 43),
		"over 4 KiB":                    "limpet1." + strings.Repeat("A", maxCredential) + "." + base64URL.EncodeToString(tag),
		"another line's":                other.token(),
		"another client's name":         formatToken(bob, tag),
		"for another host":              formatToken(alice, secretsOf(t, &l.state, &elsewhere, aliceSecret).tag()),
		"for another form":              formatToken(alice, secretsOf(t, &l.state, &asJWT, aliceSecret).tag()),
		"another client's secret":       formatToken(alice, secretsOf(t, &l.state, &p, bobSecret).tag()),
		"as bob with alice's secret":    formatToken(bob, secretsOf(t, &l.state, &bobs, aliceSecret).tag()),
		"a sample token":                base64.StdEncoding.EncodeToString(tag),
		"a key pair's with a tag":       formatToken("pair", tag),
		"a key pair's with a signature": formatToken("pair", make([]byte, 64)),
		"no key at all":                 formatToken("", tag),
	} {
		wantRefused(t, name, l.bearer(token))
	}
	wantCode(t, "the token itself", l.bearer(good), 200)

	for name, header := range map[string]http.Header{
		"none":                         {},
		"another scheme":               {"Authorization": {"Basic " + good}},
		"no scheme":                    {"Authorization": {good}},
		"no blank":                     {"Authorization": {"Bearer" + good}},
		"Bearer twice":                 {"Authorization": {"Bearer " + good, "Bearer " + good}},
		"Bearer twice in one":          {"Authorization": {"Bearer Bearer " + good}},
		"two in one":                   {"Authorization": {"Bearer " + good + ", Bearer " + good}},
		"Limpet-Client twice":          {ClientField: {good, good}},
		"Limpet-Client with a scheme":  {ClientField: {"Bearer " + good}},
		"a bad one and a good one":     {ClientField: {"garbage"}, "Authorization": {"Bearer " + good}},
		"an empty one and a good one":  {ClientField: {""}, "Authorization": {"Bearer " + good}},
		"with an underscore":           {"Limpet_Client": {good}},
		"the sample's fields":          {SampleClientField: {alice}, SampleTokenField: {base64.StdEncoding.EncodeToString(tag)}},
		"the scheme and nothing":       {"Authorization": {"Bearer "}},
		"Authorization with few bytes": {"Authorization": {"Bear"}},
	} {
		r := l.request("GET", "/", "")
		r.Header = header
		wantRefused(t, name, l.do(r))
	}
	for _, header := range []http.Header{{"Authorization": {"bEaReR " + good}}, {"Authorization": {"Bearer  " + good}}, {ClientField: {good}}, {ClientField: {good}, "Authorization": {"Bearer session"}}} {
		r := l.request("GET", "/", "")
		r.Header = header
		wantCode(t, fmt.Sprint(header), l.do(r), 200)
	}
	r := l.request("GET", "/", "")
	r.Header.Set("Authorization", "Bearer "+good)
	r.Host = "elsewhere.example"
	wantRefused(t, "on another host of the same connection", l.do(r))
	r = l.request("GET", "/", "")
	r.Header.Set("Authorization", "Bearer "+strings.Repeat("A", 2<<20))
	if a := l.do(r); a.code != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a header of 2 MiB: %v", a)
	}
}

// A token in a form that the server does not want is refused.
func TestFormsThatAreNotWanted(t *testing.T) {
	s := newSite(t, ServerConfig{Forms: []Form{JWE}})
	l := s.dial()
	wantRefused(t, "a token", l.bearer(l.token()))
	wantRefused(t, "a JWT", l.bearer(l.jwt()))
}

func with(name string, value any) func(map[string]any) {
	return func(c map[string]any) { c[name] = value }
}

func without(name string) func(map[string]any) {
	return func(c map[string]any) { delete(c, name) }
}

// Claims that do not hold, in a JWT that is signed with the right key of the
// right connection, alone and in a JWE, by a secret and by a key pair.
func TestBadClaims(t *testing.T) {
	s := newSite(t, ServerConfig{})
	pair := softP256(t)
	s.knows("pair", pair)
	now := time.Now().Unix()
	type edits = []func(map[string]any)
	for _, tt := range []struct {
		name  string
		edits edits
		good  bool
	}{
		{"as they are", nil, true},
		{"expired 20 s ago, by a clock that is behind", edits{with("exp", now-20)}, true},
		{"expired", edits{with("exp", now-40), with("iat", now-100), with("nbf", now-100)}, false},
		{"from a clock that is 20 s ahead", edits{with("iat", now+20), with("nbf", now+20), with("exp", now+320)}, true},
		{"not valid yet", edits{with("nbf", now+60)}, false},
		{"made in the future", edits{with("iat", now+60)}, false},
		{"no exp", edits{without("exp")}, false},
		{"no nbf", edits{without("nbf")}, false},
		{"no iat", edits{without("iat")}, false},
		{"no jti", edits{without("jti")}, false},
		{"no iss", edits{without("iss")}, false},
		{"no sub", edits{without("sub")}, false},
		{"no aud", edits{without("aud")}, false},
		{"null exp", edits{with("exp", nil)}, false},
		{"exp as text", edits{with("exp", "tomorrow")}, false},
		{"exp beyond all numbers", edits{with("exp", 1e300)}, false},
		{"iat before all numbers", edits{with("iat", -1e300)}, false},
		{"negative times", edits{with("exp", -1), with("iat", -10), with("nbf", -10)}, false},
		{"lives an hour", edits{with("iat", now), with("exp", now+3600)}, true},
		{"lives longer than an hour", edits{with("iat", now), with("exp", now+3601)}, false},
		{"lives for ever", edits{with("exp", int64(1)<<53)}, false},
		{"another audience", edits{with("aud", "https://elsewhere.example")}, false},
		{"an audience without a scheme", edits{with("aud", "HOST")}, false},
		{"another scheme", edits{with("aud", "http://HOST")}, false},
		{"a path more", edits{with("aud", "https://HOST/")}, false},
		{"two audiences, one of them this", edits{with("aud", []string{"https://elsewhere.example", "https://HOST"})}, true},
		{"no audiences", edits{with("aud", []string{})}, false},
		{"an audience that is a number", edits{with("aud", 1)}, false},
		{"another issuer", edits{with("iss", bob)}, false},
		{"another subject", edits{with("sub", bob)}, false},
		{"the sample's issuer", edits{with("iss", sampleIssuer), with("sub", sampleSubject)}, false},
		{"a short jti", edits{with("jti", "short")}, false},
		{"a long jti", edits{with("jti", strings.Repeat("x", 65))}, false},
		{"a jti that is a number", edits{with("jti", 12345678901234567890.0)}, false},
		{"other claims besides", edits{with("scope", "read"), with("nonce", "x")}, true},
	} {
		for kind, make := range map[string]func(l *line, c map[string]any) string{
			"JWT": func(l *line, c map[string]any) string {
				return jws(t, object("alg", "HS256", "kid", alice, "typ", jwtType), c, l.secrets(JWT).signing())
			},
			"JWE": func(l *line, c map[string]any) string {
				inner := jws(t, object("alg", "HS256", "kid", alice, "typ", jwtType), c, l.secrets(JWE).signing())
				return jwe(t, object("alg", "dir", "enc", "A256GCM", "kid", alice, "typ", jwtType, "cty", "JWT"), inner, l.secrets(JWE).encryption())
			},
			"key pair": func(l *line, c map[string]any) string {
				for _, name := range []string{"iss", "sub"} {
					if c[name] == alice {
						c[name] = "pair"
					}
				}
				c["limpet_exporter"] = l.exported(t, "pair", pair)
				return es256(t, object("alg", "ES256", "kid", "pair", "typ", jwtType), c, pair)
			},
		} {
			l := s.dial()
			c := l.claims(tt.edits...)
			switch aud := c["aud"].(type) {
			case string:
				c["aud"] = strings.Replace(aud, "HOST", l.host, 1)
			case []string:
				for i := range aud {
					aud[i] = strings.Replace(aud[i], "HOST", l.host, 1)
				}
			}
			if c["aud"] == "" {
				t.Fatal(tt.name)
			}
			a := l.bearer(make(l, c))
			if tt.good {
				wantCode(t, tt.name+" in a "+kind, a, 200)
			} else {
				wantRefused(t, tt.name+" in a "+kind, a)
			}
			l.conn.Close()
		}
	}
}

// exported returns the claim of a key pair's JWT on a line.
func (l *line) exported(t testing.TB, id string, pair hwkey.Key) string {
	t.Helper()
	p := purpose{algorithm: ecdsaP256, id: id, public: mustPoint(t, pair), authority: l.host, form: JWT}
	b, err := p.export(&l.state)
	if err != nil {
		t.Fatal(err)
	}
	return exportedClaim(b)
}

func mustPoint(t testing.TB, pair hwkey.Key) []byte {
	t.Helper()
	b, err := publicOf(pair).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// JWTs that are made otherwise than the protocol says, over claims that hold.
func TestBadJWTs(t *testing.T) {
	s := newSite(t, ServerConfig{})
	pair := softP256(t)
	s.knows("pair", pair)
	l, other := s.dial(), s.dial()
	key := l.secrets(JWT).signing()
	spki, err := x509.MarshalPKIXPublicKey(pair.Public())
	if err != nil {
		t.Fatal(err)
	}
	header := object("alg", "HS256", "kid", alice, "typ", jwtType)
	none := object("alg", "none", "kid", alice, "typ", jwtType)
	unsigned := signingInput(t, none, l.claims())
	pairClaims := func(edits ...func(map[string]any)) map[string]any {
		c := l.claims(with("iss", "pair"), with("sub", "pair"), with("limpet_exporter", l.exported(t, "pair", pair)))
		for _, edit := range edits {
			edit(c)
		}
		return c
	}
	pairHeader := object("alg", "ES256", "kid", "pair", "typ", jwtType)
	hs512 := func() string {
		input := signingInput(t, object("alg", "HS512", "kid", alice, "typ", jwtType), l.claims())
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(input))
		return input + "." + base64URL.EncodeToString(mac.Sum(nil))
	}
	good := l.jwt()
	parts := strings.Split(good, ".")
	duplicate := `{"iss":"alice","sub":"alice","aud":"https://` + l.host + fmt.Sprintf(`","iat":%d,"nbf":%d,"exp":1,"exp":%d,"jti":"%s"}`,
		time.Now().Unix(), time.Now().Unix(), time.Now().Unix()+100, newJTI())
	for name, token := range map[string]string{
		"alg none":                           unsigned + ".",
		"alg none with a signature":          jws(t, none, l.claims(), key),
		"alg NONE":                           jws(t, object("alg", "NONE", "kid", alice, "typ", jwtType), l.claims(), key),
		"no alg":                             jws(t, object("kid", alice, "typ", jwtType), l.claims(), key),
		"alg hs256":                          jws(t, object("alg", "hs256", "kid", alice, "typ", jwtType), l.claims(), key),
		"alg HS512":                          hs512(),
		"alg dir":                            jws(t, object("alg", "dir", "kid", alice, "typ", jwtType), l.claims(), key),
		"no signature":                       parts[0] + "." + parts[1] + ".",
		"two parts":                          parts[0] + "." + parts[1],
		"four parts":                         good + ".x",
		"another signature":                  parts[0] + "." + parts[1] + "." + base64URL.EncodeToString(make([]byte, 32)),
		"other claims":                       parts[0] + "." + base64URL.EncodeToString(payload(t, l.claims())) + "." + parts[2],
		"padding":                            good + "=",
		"no claims":                          jws(t, header, "", key),
		"claims that are no object":          jws(t, header, "[]", key),
		"a claim twice":                      jws(t, header, duplicate, key),
		"the key pair's public key as HS256": jws(t, object("alg", "HS256", "kid", "pair", "typ", jwtType), pairClaims(), spki),
		"its point as HS256":                 jws(t, object("alg", "HS256", "kid", "pair", "typ", jwtType), pairClaims(), mustPoint(t, pair)),
		"ES256 for a client with a secret":   es256(t, object("alg", "ES256", "kid", alice, "typ", jwtType), l.claims(), pair),
		"ES256 by another key":               es256(t, pairHeader, pairClaims(), softP256(t)),
		"ES256 without the connection":       es256(t, pairHeader, pairClaims(without("limpet_exporter")), pair),
		"ES256 of another connection":        es256(t, pairHeader, pairClaims(with("limpet_exporter", other.exported(t, "pair", pair))), pair),
		"ES256 with a key of its own":        es256(t, object("alg", "ES256", "kid", "pair", "typ", jwtType, "jwk", map[string]string{"kty": "EC"}), pairClaims(), pair),
		"crit":                               jws(t, object("alg", "HS256", "kid", alice, "typ", jwtType, "crit", []string{"exp"}), l.claims(), key),
		"b64":                                jws(t, object("alg", "HS256", "kid", alice, "typ", jwtType, "b64", false, "crit", []string{"b64"}), l.claims(), key),
		"zip":                                jws(t, object("alg", "HS256", "kid", alice, "typ", jwtType, "zip", "DEF"), l.claims(), key),
		"jwk":                                jws(t, object("alg", "HS256", "kid", alice, "typ", jwtType, "jwk", map[string]string{"kty": "oct", "k": "AAAA"}), l.claims(), key),
		"jku":                                jws(t, object("alg", "HS256", "kid", alice, "typ", jwtType, "jku", "https://"+l.host), l.claims(), key),
		"x5c":                                jws(t, object("alg", "HS256", "kid", alice, "typ", jwtType, "x5c", []string{}), l.claims(), key),
		"enc":                                jws(t, object("alg", "HS256", "kid", alice, "typ", jwtType, "enc", "A256GCM"), l.claims(), key),
		"a member that nobody knows":         jws(t, object("alg", "HS256", "kid", alice, "typ", jwtType, "x", "y"), l.claims(), key),
		"alg twice":                          jws(t, object("alg", "HS256", "alg", "none", "kid", alice, "typ", jwtType), l.claims(), key),
		"kid twice":                          jws(t, object("alg", "HS256", "kid", bob, "kid", alice, "typ", jwtType), l.claims(), key),
		"kid of another case":                jws(t, object("alg", "HS256", "Kid", alice, "typ", jwtType), l.claims(), key),
		"another client's kid":               jws(t, object("alg", "HS256", "kid", bob, "typ", jwtType), l.claims(), key),
		"no kid":                             jws(t, object("alg", "HS256", "typ", jwtType), l.claims(), key),
		"a kid that is a number":             jws(t, object("alg", "HS256", "kid", 1, "typ", jwtType), l.claims(), key),
		"no typ":                             jws(t, object("alg", "HS256", "kid", alice), l.claims(), key),
		"typ JWT":                            jws(t, object("alg", "HS256", "kid", alice, "typ", "JWT"), l.claims(), key),
		"a header that is a list":            jws(t, "[]", l.claims(), key),
		"an empty header":                    jws(t, "{}", l.claims(), key),
		"a header that is null":              jws(t, "null", l.claims(), key),
		"no header":                          jws(t, "", l.claims(), key),
		"a header that is cut":               jws(t, header[:len(header)-1], l.claims(), key),
		"two headers":                        jws(t, header+header, l.claims(), key),
		"another connection's":               other.jwt(),
		"signed with the JWE's key":          jws(t, header, l.claims(), l.secrets(JWE).signing()),
		"signed with the encryption's key":   jws(t, header, l.claims(), l.secrets(JWT).encryption()),
		"signed with the tag":                jws(t, header, l.claims(), l.secrets(JWT).tag()),
		"signed with the secret":             jws(t, header, l.claims(), aliceSecret),
		"over 4 KiB":                         jws(t, header, l.claims(with("x", strings.Repeat("x", maxCredential))), key),
		"as JSON":                            `{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`,
		"as general JSON":                    `{"payload":"` + parts[1] + `","signatures":[{"protected":"` + parts[0] + `","signature":"` + parts[2] + `"}]}`,
	} {
		wantRefused(t, name, l.bearer(token))
	}
	wantCode(t, "the JWT itself", l.bearer(good), 200)
	wantCode(t, "the key pair's JWT itself", l.bearer(es256(t, pairHeader, pairClaims(), pair)), 200)
}

// JWEs that are made otherwise than the protocol says.
func TestBadJWEs(t *testing.T) {
	s := newSite(t, ServerConfig{})
	l, other := s.dial(), s.dial()
	held := l.secrets(JWE)
	key := held.encryption()
	inner := func() string {
		return jws(t, object("alg", "HS256", "kid", alice, "typ", jwtType), l.claims(), held.signing())
	}
	header := object("alg", "dir", "enc", "A256GCM", "kid", alice, "typ", jwtType, "cty", "JWT")
	headerWith := func(members ...any) string {
		return object(append([]any{"kid", alice, "typ", jwtType, "cty", "JWT"}, members...)...)
	}
	good := jwe(t, header, inner(), key)
	parts := strings.Split(good, ".")
	again := func(i int, to string) string {
		p := append([]string(nil), parts...)
		p[i] = to
		return strings.Join(p, ".")
	}
	otherHeld := other.secrets(JWE)
	for name, token := range map[string]string{
		"enc A128GCM":                      jwe(t, headerWith("alg", "dir", "enc", "A128GCM"), inner(), key[:16]),
		"enc A192GCM":                      jwe(t, headerWith("alg", "dir", "enc", "A192GCM"), inner(), key[:24]),
		"enc A256CBC-HS512":                jwe(t, headerWith("alg", "dir", "enc", "A256CBC-HS512"), inner(), key),
		"no enc":                           jwe(t, headerWith("alg", "dir"), inner(), key),
		"alg A256KW":                       jwe(t, headerWith("alg", "A256KW", "enc", "A256GCM"), inner(), key),
		"alg A256GCMKW":                    jwe(t, headerWith("alg", "A256GCMKW", "enc", "A256GCM"), inner(), key),
		"alg RSA-OAEP":                     jwe(t, headerWith("alg", "RSA-OAEP", "enc", "A256GCM"), inner(), key),
		"alg ECDH-ES":                      jwe(t, headerWith("alg", "ECDH-ES", "enc", "A256GCM", "epk", map[string]string{"kty": "EC"}), inner(), key),
		"alg PBES2":                        jwe(t, headerWith("alg", "PBES2-HS256+A128KW", "enc", "A256GCM", "p2c", 1000000000, "p2s", "AAAA"), inner(), key),
		"alg none":                         jwe(t, headerWith("alg", "none", "enc", "A256GCM"), inner(), key),
		"no alg":                           jwe(t, headerWith("enc", "A256GCM"), inner(), key),
		"zip":                              jwe(t, headerWith("alg", "dir", "enc", "A256GCM", "zip", "DEF"), inner(), key),
		"crit":                             jwe(t, headerWith("alg", "dir", "enc", "A256GCM", "crit", []string{"exp"}), inner(), key),
		"jwk":                              jwe(t, headerWith("alg", "dir", "enc", "A256GCM", "jwk", map[string]string{}), inner(), key),
		"claims in the header":             jwe(t, headerWith("alg", "dir", "enc", "A256GCM", "iss", alice), inner(), key),
		"enc twice":                        jwe(t, headerWith("alg", "dir", "enc", "A128GCM", "enc", "A256GCM"), inner(), key),
		"no cty":                           jwe(t, object("alg", "dir", "enc", "A256GCM", "kid", alice, "typ", jwtType), inner(), key),
		"another cty":                      jwe(t, object("alg", "dir", "enc", "A256GCM", "kid", alice, "typ", jwtType, "cty", "text"), inner(), key),
		"typ JWT":                          jwe(t, object("alg", "dir", "enc", "A256GCM", "kid", alice, "typ", "JWT", "cty", "JWT"), inner(), key),
		"another client's kid":             jwe(t, object("alg", "dir", "enc", "A256GCM", "kid", bob, "typ", jwtType, "cty", "JWT"), inner(), key),
		"no kid":                           jwe(t, object("alg", "dir", "enc", "A256GCM", "typ", jwtType, "cty", "JWT"), inner(), key),
		"nothing inside":                   jwe(t, header, "", key),
		"garbage inside":                   jwe(t, header, "garbage", key),
		"claims without a JWT inside":      jwe(t, header, string(payload(t, l.claims())), key),
		"a JWE inside":                     jwe(t, header, good, key),
		"a token inside":                   jwe(t, header, l.token(), key),
		"a JWT with alg none inside":       jwe(t, header, signingInput(t, object("alg", "none", "kid", alice, "typ", jwtType), l.claims())+".", key),
		"a JWT by another key inside":      jwe(t, header, jws(t, object("alg", "HS256", "kid", alice, "typ", jwtType), l.claims(), make([]byte, 32)), key),
		"a JWT by the encryption's key":    jwe(t, header, jws(t, object("alg", "HS256", "kid", alice, "typ", jwtType), l.claims(), key), key),
		"a JWT of another client inside":   jwe(t, header, jws(t, object("alg", "HS256", "kid", bob, "typ", jwtType), l.claims(), held.signing()), key),
		"a JWT of form JWT inside":         jwe(t, header, l.jwt(), key),
		"a JWT as JSON inside":             jwe(t, header, asJSON(inner()), key),
		"a JWT of another connection":      jwe(t, header, jws(t, object("alg", "HS256", "kid", alice, "typ", jwtType), l.claims(), otherHeld.signing()), key),
		"another connection's":             jwe(t, header, inner(), otherHeld.encryption()),
		"under the signing key":            jwe(t, header, inner(), held.signing()),
		"under the secret":                 jwe(t, header, inner(), aliceSecret),
		"another header":                   again(0, base64URL.EncodeToString([]byte(headerWith("alg", "dir", "enc", "A256GCM")))),
		"an encrypted key":                 again(1, "AAAA"),
		"another IV":                       again(2, base64URL.EncodeToString(make([]byte, 12))),
		"a long IV":                        again(2, base64URL.EncodeToString(make([]byte, 16))),
		"no IV":                            again(2, ""),
		"another text":                     again(3, base64URL.EncodeToString([]byte("garbage"))),
		"no text":                          again(3, ""),
		"a short tag":                      again(4, parts[4][:16]),
		"no tag":                           again(4, ""),
		"six parts":                        good + ".",
		"as JSON":                          `{"protected":"` + parts[0] + `","iv":"` + parts[2] + `","ciphertext":"` + parts[3] + `","tag":"` + parts[4] + `"}`,
		"the JWT of form JWE, unencrypted": inner(),
	} {
		wantRefused(t, name, l.bearer(token))
	}
	wantCode(t, "the JWE itself", l.bearer(good), 200)
}

// asJSON is a JWS in the JSON serialization.
func asJSON(compact string) string {
	p := strings.Split(compact, ".")
	return `{"payload":"` + p[1] + `","protected":"` + p[0] + `","signature":"` + p[2] + `"}`
}

// A name of a JWT is one JWT's on its connection.
func TestJTIOfAnotherJWT(t *testing.T) {
	s := newSite(t, ServerConfig{})
	l := s.dial()
	first := l.jwt(with("jti", "0123456789abcdef"))
	for range 3 {
		wantCode(t, "the first", l.bearer(first), 200)
	}
	wantRefused(t, "another with its jti", l.bearer(l.jwt(with("jti", "0123456789abcdef"), with("x", 1))))
	for range 2 * maxAdmits { // until the first is not in memory any more
		wantCode(t, "others", l.bearer(l.jwt()), 200)
	}
	wantCode(t, "the first again", l.bearer(first), 200)
	wantRefused(t, "another with its jti, still", l.bearer(l.jwt(with("jti", "0123456789abcdef"), with("x", 2))))
}

// Who sends thousands of JWTs on one connection does not fill the memory, and
// can go on when they are over.
func TestManyJWTsOnOneConnection(t *testing.T) {
	s := newSite(t, ServerConfig{})
	l := s.dial()
	signing := l.secrets(JWT).signing()
	header := object("alg", "HS256", "kid", alice, "typ", jwtType)
	admitted := 0
	first := jws(t, header, l.claims(), signing)
	for i := range 2000 {
		token := first
		if i > 0 {
			token = jws(t, header, l.claims(), signing)
		}
		a := l.bearer(token)
		if a.code == 200 {
			admitted++
		}
	}
	if admitted != maxJTIs {
		t.Errorf("%d admitted, want %d", admitted, maxJTIs)
	}
	wantCode(t, "one of the first", l.bearer(first), 200)
	s.server.now = func() time.Time { return time.Now().Add(10 * time.Minute) } // all are over
	later := l.claims(with("iat", time.Now().Unix()+590), with("nbf", time.Now().Unix()+590), with("exp", time.Now().Unix()+900))
	wantCode(t, "when those are over", l.bearer(jws(t, header, later, signing)), 200)
}

// A change of the keys takes effect on connections that are open, within about a
// second.
func TestRevokedOnAnOpenConnection(t *testing.T) {
	t.Parallel() // it waits most of its time
	s := newSite(t, ServerConfig{})
	var seen conns
	s.app = func(_ http.ResponseWriter, r *http.Request) { seen.see(r) }
	type open struct {
		name   string
		client *http.Client
	}
	var all []open
	for _, form := range []Form{Token, JWT, JWE} {
		for _, http2 := range []bool{false, true} {
			c := s.client(Config{Form: form}, http2)
			wantAdmitted(t, c, s.http.URL, "alice 1 "+form.String()+" ")
			all = append(all, open{fmt.Sprint(form, http2), c})
		}
	}
	for _, change := range []struct {
		what func(*keyring.List) error
		code int
	}{
		{func(l *keyring.List) error { return l.Revoke(alice) }, 401},
		{func(l *keyring.List) error { return l.Add(alice, &keyring.Key{Secret: aliceSecret}) }, 200},
		{func(l *keyring.List) error {
			return errors.Join(l.Rotate(alice, &keyring.Key{Secret: keyring.NewSecret()}), l.Retire(alice))
		}, 401},
	} {
		if err := keyring.Edit(s.path, change.what); err != nil { // as another process, which tells nobody
			t.Fatal(err)
		}
		start := time.Now()
		for _, o := range all {
			for {
				code, _ := get(t, o.client, s.http.URL)
				if code == change.code {
					break
				}
				if time.Since(start) > 3*time.Second {
					t.Fatalf("%s: the change has no effect", o.name)
				}
				time.Sleep(10 * time.Millisecond)
			}
		}
	}
	if n := seen.count(); n != len(all) {
		t.Errorf("%d connections, want %d", n, len(all))
	}
}

// Bad tokens of the sample profile, whose weaknesses are closed where the wire
// allows.
func TestBadSampleTokens(t *testing.T) {
	s := newSite(t, ServerConfig{Profile: Sample})
	l, other := s.dial(), s.dial()
	key := (&keyring.Key{Secret: aliceSecret}).HMAC
	tag, err := sampleToken(t.Context(), key, &l.state, alice)
	if err != nil {
		t.Fatal(err)
	}
	good := base64.StdEncoding.EncodeToString(tag)
	otherTag, _ := sampleToken(t.Context(), key, &other.state, alice)
	bobTag, _ := sampleToken(t.Context(), key, &l.state, bob)
	send := func(client, apikey []string) *answer {
		r := l.request("GET", "/get", "")
		r.Header[SampleClientField], r.Header[SampleTokenField] = client, apikey
		return l.do(r)
	}
	a, g := []string{alice}, []string{good}
	for name, v := range map[string][2][]string{
		"no client":             {nil, g},
		"an empty client":       {{""}, g},
		"another client":        {{bob}, g},
		"bob by alice's secret": {{bob}, {base64.StdEncoding.EncodeToString(bobTag)}},
		"nobody":                {{"nobody"}, g},
		"the client twice":      {{alice, alice}, g},
		"the token twice":       {a, {good, good}},
		"no token":              {a, nil},
		"an empty token":        {a, {""}},
		"another connection's":  {a, {base64.StdEncoding.EncodeToString(otherTag)}},
		"no padding":            {a, {strings.TrimRight(good, "=")}},
		"base64url":             {a, {base64.URLEncoding.EncodeToString(bytes.Repeat([]byte{0xfb}, 32))}},
		"hex":                   {a, {hex.EncodeToString(tag)}},
		"31 bytes":              {a, {base64.StdEncoding.EncodeToString(tag[:31])}},
		"a long client":         {{strings.Repeat("x", 129)}, g},
		"over 4 KiB":            {a, {strings.Repeat("A", maxCredential+4)}},
		"bits beyond":           {a, {good[:len(good)-2] + string(good[len(good)-2]+1) + "="}},
	} {
		wantRefused(t, name, send(v[0], v[1]))
	}
	wantCode(t, "the token itself", send(a, g), 200)

	signing, _ := sampleKey(t.Context(), key, &l.state, sampleSigning)
	encryption, _ := sampleKey(t.Context(), key, &l.state, sampleEncryption)
	claims := map[string]any{"iss": sampleIssuer, "sub": sampleSubject}
	inner := jws(t, object("alg", "HS256"), claims, signing)
	header := object("alg", "dir", "cty", "JWT", "enc", "A256GCM", "kid", alice, "typ", "JWT")
	for name, token := range map[string]string{
		"a JWT, which is nobody's":    inner,
		"a JWT with alg none":         signingInput(t, object("alg", "none"), claims) + ".",
		"a JWE with a JWT of none":    jwe(t, header, signingInput(t, object("alg", "none"), claims)+".", encryption),
		"a JWE of another signature":  jwe(t, header, jws(t, object("alg", "HS256"), claims, encryption), encryption),
		"a JWE of garbage":            jwe(t, header, "garbage", encryption),
		"a JWE of another issuer":     jwe(t, header, jws(t, object("alg", "HS256"), map[string]any{"iss": "x", "sub": sampleSubject}, signing), encryption),
		"a JWE of another subject":    jwe(t, header, jws(t, object("alg", "HS256"), map[string]any{"iss": sampleIssuer, "sub": "x"}, signing), encryption),
		"a JWE that has expired":      jwe(t, header, jws(t, object("alg", "HS256"), map[string]any{"iss": sampleIssuer, "sub": sampleSubject, "exp": 1}, signing), encryption),
		"a JWE of another client":     jwe(t, object("alg", "dir", "cty", "JWT", "enc", "A256GCM", "kid", bob, "typ", "JWT"), inner, encryption),
		"a JWE of nobody":             jwe(t, object("alg", "dir", "cty", "JWT", "enc", "A256GCM", "typ", "JWT"), inner, encryption),
		"a JWE with zip":              jwe(t, object("alg", "dir", "cty", "JWT", "enc", "A256GCM", "kid", alice, "typ", "JWT", "zip", "DEF"), inner, encryption),
		"a JWE of another enc":        jwe(t, object("alg", "dir", "cty", "JWT", "enc", "A128GCM", "kid", alice, "typ", "JWT"), inner, encryption[:16]),
		"a JWE under the signing key": jwe(t, header, inner, signing),
	} {
		wantRefused(t, name, l.bearer(token))
	}
	wantCode(t, "the JWE itself", l.bearer(jwe(t, header, inner, encryption)), 200)
	r := l.request("GET", "/", "")
	r.Header.Set("Authorization", "Bearer "+jwe(t, header, inner, encryption))
	r.Header.Set("Client", bob)
	wantRefused(t, "a JWE beside another client's name", l.do(r))
}

// perRequest returns a client whose requests are covered, and what it last sent.
func coveredLine(t *testing.T, s *site, l *line) func(method, target, body string) *http.Request {
	t.Helper()
	tr := s.transport(Config{PerRequest: true}, false)
	return func(method, target, body string) *http.Request {
		t.Helper()
		out, m, err := tr.prepare(l.request(method, target, body))
		if err != nil {
			t.Fatal(err)
		}
		if err := tr.sign(t.Context(), m, l.conn); err != nil {
			t.Fatal(err)
		}
		return out
	}
}

// A request that is covered holds as it is, once, on its connection.
func TestBadRequestMACs(t *testing.T) {
	s := newSite(t, ServerConfig{PerRequest: true, MaxBody: 1000})
	l, other := s.dial(), s.dial()
	sign, signOther := coveredLine(t, s, l), coveredLine(t, s, other)
	again := func(r *http.Request, edit func(r *http.Request)) *http.Request {
		r = r.Clone(t.Context())
		if r.GetBody != nil {
			r.Body, _ = r.GetBody()
		}
		if edit != nil {
			edit(r)
		}
		return r
	}
	setBody := func(body string) func(r *http.Request) {
		return func(r *http.Request) {
			n, _ := http.NewRequest(r.Method, r.URL.String(), strings.NewReader(body))
			r.Body, r.ContentLength, r.GetBody = n.Body, n.ContentLength, n.GetBody
		}
	}
	now := time.Now()
	for name, tt := range map[string]struct {
		method, target, body string
		edit                 func(r *http.Request)
	}{
		"another method":        {"GET", "/a?b=c", "", func(r *http.Request) { r.Method = "DELETE" }},
		"HEAD for GET":          {"GET", "/a?b=c", "", func(r *http.Request) { r.Method = "OPTIONS" }},
		"another path":          {"GET", "/a?b=c", "", func(r *http.Request) { r.URL.Path = "/b" }},
		"an encoded path":       {"GET", "/a/b", "", func(r *http.Request) { r.URL.RawPath, r.URL.Path = "/a%2Fb", "/a/b" }},
		"another query":         {"GET", "/a?b=c", "", func(r *http.Request) { r.URL.RawQuery = "b=d" }},
		"no query":              {"GET", "/a?b=c", "", func(r *http.Request) { r.URL.RawQuery = "" }},
		"a query more":          {"GET", "/a", "", func(r *http.Request) { r.URL.RawQuery = "b=c" }},
		"another host":          {"GET", "/a", "", func(r *http.Request) { r.Host = "elsewhere.example" }},
		"another body":          {"POST", "/a", "body", setBody("BODY")},
		"a longer body":         {"POST", "/a", "body", setBody("body and more")},
		"no body":               {"POST", "/a", "body", func(r *http.Request) { r.Body, r.ContentLength = http.NoBody, 0 }},
		"a body where none was": {"POST", "/a", "", setBody("body")},
		"a body without a size": {"POST", "/a", "", func(r *http.Request) { setBody("body")(r); r.ContentLength = -1 }},
		"no digest":             {"POST", "/a", "body", func(r *http.Request) { r.Header.Del("Content-Digest") }},
		"another digest": {"POST", "/a", "body", func(r *http.Request) {
			r.Header.Set("Content-Digest", "sha-256=:"+base64.StdEncoding.EncodeToString(make([]byte, 32))+":")
		}},
		"no signature":       {"GET", "/a", "", func(r *http.Request) { r.Header.Del("Signature") }},
		"no signature input": {"GET", "/a", "", func(r *http.Request) { r.Header.Del("Signature-Input") }},
		"neither":            {"GET", "/a", "", func(r *http.Request) { r.Header.Del("Signature"); r.Header.Del("Signature-Input") }},
		"another nonce":      {"GET", "/a", "", func(r *http.Request) { swap(r, "Signature-Input", `nonce="`, `nonce="AA`) }},
		"another key":        {"GET", "/a", "", func(r *http.Request) { swap(r, "Signature-Input", requestKeyID(alice), requestKeyID(bob)) }},
		"another tag":        {"GET", "/a", "", func(r *http.Request) { swap(r, "Signature-Input", `tag="limpet"`, `tag="other"`) }},
		"less covered":       {"GET", "/a", "", func(r *http.Request) { swap(r, "Signature-Input", `"@path" `, ``) }},
		"no token":           {"GET", "/a", "", func(r *http.Request) { r.Header.Del("Authorization") }},
		"the token elsewhere": {"GET", "/a", "", func(r *http.Request) {
			r.Header[ClientField] = []string{r.Header.Get("Authorization")[7:]}
			r.Header.Del("Authorization")
		}},
		"the target as CONNECT":  {"GET", "/a", "", func(r *http.Request) { r.Method = "CONNECT" }},
		"another scheme's claim": {"GET", "/a", "", func(r *http.Request) { swap(r, "Signature-Input", `alg="hmac-sha256"`, `alg="ecdsa-p256-sha256"`) }},
	} {
		good := sign(tt.method, tt.target, tt.body)
		a := l.do(again(good, tt.edit))
		if a.code == 400 { // by net/http, before us
			l = s.dial()
			sign = coveredLine(t, s, l)
			continue
		}
		wantRefused(t, name, a)
		if slices.Contains([]string{"another body", "a longer body", "no body"}, name) {
			continue // that is found when the MAC is spent
		}
		wantCode(t, name+": the request itself", l.do(again(good, nil)), 200)
		wantRefused(t, name+": replayed", l.do(again(good, nil)))
	}
	moved := sign("GET", "/a", "")
	wantRefused(t, "on another connection", other.do(again(moved, nil)))
	mixed := signOther("GET", "/a", "")
	mixed.Header["Signature"], mixed.Header["Signature-Input"] = moved.Header["Signature"], moved.Header["Signature-Input"]
	wantRefused(t, "another connection's MAC beside its own token", other.do(again(mixed, nil)))
	wantCode(t, "on its own", l.do(again(moved, nil)), 200)
	wantCode(t, "over MaxBody", l.do(sign("POST", "/a", strings.Repeat("x", 1001))), 413)

	for name, tt := range map[string]struct {
		ahead time.Duration
		code  int
	}{"29 s behind": {-29 * time.Second, 200}, "59 s behind": {-59 * time.Second, 200}, "2 min behind": {-2 * time.Minute, 401},
		"28 s ahead": {28 * time.Second, 200}, "32 s ahead": {32 * time.Second, 401}, "a day ahead": {24 * time.Hour, 401}} {
		l := s.dial()
		tr := s.transport(Config{PerRequest: true}, false)
		tr.now = func() time.Time { return now.Add(tt.ahead) }
		s.server.now = func() time.Time { return now }
		out, m, err := tr.prepare(l.request("GET", "/", ""))
		if err == nil {
			err = tr.sign(t.Context(), m, l.conn)
		}
		if err != nil {
			t.Fatal(err)
		}
		wantCode(t, name, l.do(out), tt.code)
	}
}

func swap(r *http.Request, field, from, to string) {
	r.Header.Set(field, strings.Replace(r.Header.Get(field), from, to, 1))
}

// A server that demands MACs takes no client with a key pair, which makes none.
func TestPerRequestNeedsASecret(t *testing.T) {
	s := newSite(t, ServerConfig{PerRequest: true})
	pair := softP256(t)
	s.knows("pair", pair)
	if code, _ := get(t, s.client(Config{ID: "pair", Key: pair}, true), s.http.URL); code != 401 {
		t.Errorf("%d", code)
	}
	if code, _ := get(t, s.client(Config{}, true), s.http.URL); code != 401 {
		t.Errorf("a token alone: %d", code)
	}
}

// A file of keys that goes does not lock everybody out.
func TestKeyringThatGoes(t *testing.T) {
	t.Parallel()
	s := newSite(t, ServerConfig{})
	wantAdmitted(t, s.client(Config{}, true), s.http.URL, "alice 1 token ")
	if err := os.Rename(s.path, filepath.Join(t.TempDir(), "away")); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1100 * time.Millisecond) // until the ring looks again
	wantAdmitted(t, s.client(Config{}, true), s.http.URL, "alice 1 token ")
	if log := s.log.take(); !strings.Contains(log, "keyring not reloaded") {
		t.Errorf("log %s", log)
	}
}
