package channel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/keyring"
	"github.com/limpet-auth/limpet/proof"
)

// Each profile, form and key is admitted on both versions of HTTP, on each of
// many connections, and told who it is.
func TestAdmitted(t *testing.T) {
	pair := softP256(t)
	for _, tt := range []struct {
		name string
		cfg  Config
		srv  ServerConfig
		want string
	}{
		{"token", Config{}, ServerConfig{}, "alice 1 token "},
		{"JWT", Config{Form: JWT}, ServerConfig{}, "alice 1 jwt "},
		{"JWE", Config{Form: JWE}, ServerConfig{}, "alice 1 jwe "},
		{"only this form", Config{Form: JWE}, ServerConfig{Forms: []Form{JWE}}, "alice 1 jwe "},
		{"token of a key pair", Config{ID: "pair", Key: pair}, ServerConfig{}, "pair 1 token "},
		{"JWT of a key pair", Config{ID: "pair", Key: pair, Form: JWT}, ServerConfig{}, "pair 1 jwt "},
		{"token and MACs", Config{PerRequest: true}, ServerConfig{PerRequest: true}, "alice 1 token "},
		{"JWT and MACs", Config{Form: JWT, PerRequest: true}, ServerConfig{PerRequest: true}, "alice 1 jwt "},
		{"JWE and MACs", Config{Form: JWE, PerRequest: true}, ServerConfig{PerRequest: true}, "alice 1 jwe "},
		{"MACs that nobody demands", Config{PerRequest: true}, ServerConfig{}, "alice 1 token "},
		{"sample token", Config{Profile: Sample}, ServerConfig{Profile: Sample}, "alice 1 token "},
		{"sample JWT", Config{Profile: Sample, Form: JWT}, ServerConfig{Profile: Sample, DefaultID: alice}, "alice 1 jwt "},
		{"sample JWE", Config{Profile: Sample, Form: JWE}, ServerConfig{Profile: Sample}, "alice 1 jwe "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bothVersions(t, func(t *testing.T, http2 bool) {
				s := newSite(t, tt.srv)
				s.knows("pair", pair)
				s.app = func(_ http.ResponseWriter, r *http.Request) {
					if (r.ProtoMajor == 2) != http2 {
						t.Errorf("a request by %s", r.Proto)
					}
				}
				key := &slow{HMACKey: softHMAC(t, aliceSecret)}
				if tt.cfg.Key == nil {
					tt.cfg.HMAC = key
				}
				tt.cfg.Base = nil
				c := s.client(tt.cfg, http2)
				for range 3 {
					for range 3 {
						wantAdmitted(t, c, s.http.URL+"/x?y=z", tt.want)
					}
					c.CloseIdleConnections()
				}
				resp, err := c.Post(s.http.URL, "", strings.NewReader("body"))
				if err != nil {
					t.Fatal(err)
				}
				if got := readAll(t, resp); got != tt.want+"body" {
					t.Errorf("%s %q", resp.Status, got)
				}
				if resp.Request.Header.Get("Authorization") != "" || resp.Request.Header.Get(SampleTokenField) != "" {
					t.Error("the response's request has the token")
				}
				once := 4 // connections
				if tt.cfg.Profile == Sample && tt.cfg.Form == JWE {
					once *= 2 // keys, which the sample has for signing and encrypting
				}
				if n := key.asked(); tt.cfg.Key == nil && n != once {
					t.Errorf("the key was asked %d times, want %d", n, once)
				}
			})
		})
	}
}

// The token goes where the caller has left room for it.
func TestAuthorizationOfTheCallers(t *testing.T) {
	for _, tt := range []struct {
		name    string
		profile Profile
		form    Form
		macs    bool
		err     string
	}{
		{"token", Limpet, Token, false, ""},
		{"JWE", Limpet, JWE, false, ""},
		{"MACs", Limpet, Token, true, "an Authorization of its own"},
		{"sample token", Sample, Token, false, ""},
		{"sample JWT", Sample, JWT, false, "an Authorization of its own"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSite(t, ServerConfig{Profile: tt.profile, PerRequest: tt.macs, DefaultID: alice})
			s.app = func(_ http.ResponseWriter, r *http.Request) {
				if got := r.Header.Get("Authorization"); got != "Bearer session" {
					t.Errorf("the app gets Authorization %q", got)
				}
			}
			c := s.client(Config{Profile: tt.profile, Form: tt.form, PerRequest: tt.macs}, true)
			r, _ := http.NewRequest("GET", s.http.URL, nil)
			r.Header.Set("Authorization", "Bearer session")
			r.Header.Set(ClientField, "forged")
			resp, err := c.Do(r)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error %v", err)
				}
				return
			}
			if err != nil || resp.StatusCode != 200 {
				t.Fatal(resp, err)
			}
			resp.Body.Close()
		})
	}
}

// closing is a body that can be read once, of a length that nobody knows.
type closing struct {
	io.Reader
	closed bool
}

func (c *closing) Close() error { c.closed = true; return nil }

// Each request is covered whole, whatever its body comes from.
func TestPerRequestBodies(t *testing.T) {
	bothVersions(t, func(t *testing.T, http2 bool) {
		s := newSite(t, ServerConfig{PerRequest: true, MaxBody: 2 << 20})
		c := s.client(Config{PerRequest: true}, http2)
		big := strings.Repeat("x", 1<<20)
		for _, tt := range []struct {
			name string
			body io.Reader
			want string
			code int
			err  string
		}{
			{name: "none", body: nil},
			{name: "http.NoBody", body: http.NoBody},
			{name: "empty, can be read again", body: strings.NewReader("")},
			{name: "empty, once", body: &closing{Reader: strings.NewReader("")}},
			{name: "can be read again", body: strings.NewReader("hello"), want: "hello"},
			{name: "once", body: &closing{Reader: strings.NewReader("hello")}, want: "hello"},
			{name: "streaming", body: &closing{Reader: io.MultiReader(strings.NewReader("hel"), strings.NewReader("lo"))}, want: "hello"},
			{name: "1 MiB, once", body: &closing{Reader: strings.NewReader(big)}, want: big},
			{name: "over 1 MiB, once", body: &closing{Reader: strings.NewReader(big + "x")}, err: "GetBody"},
			{name: "over 1 MiB, again", body: strings.NewReader(big + "x"), want: big + "x"},
			{name: "over MaxBody", body: strings.NewReader(big + big + "x"), code: 413},
			{name: "fails", body: &closing{Reader: io.MultiReader(strings.NewReader("x"), &failing{})}, err: "broken"},
		} {
			r, err := http.NewRequest("POST", s.http.URL+"/a%2Fb//c?q=%20&q", tt.body)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := c.Do(r)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) || !strings.Contains(err.Error(), "limpet: channel: ") {
					t.Errorf("%s: error %v", tt.name, err)
				}
				if b, ok := tt.body.(*closing); ok && !b.closed {
					t.Errorf("%s: the body is not closed", tt.name)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
				continue
			}
			got := readAll(t, resp)
			if tt.code != 0 {
				if resp.StatusCode != tt.code || !strings.Contains(got, "body_too_large") || resp.Header.Get("Www-Authenticate") != "" {
					t.Errorf("%s: %s %q %v", tt.name, resp.Status, got, resp.Header)
				}
			} else if resp.StatusCode != 200 || got != "alice 1 token "+tt.want {
				t.Errorf("%s: %s %.80q: %s", tt.name, resp.Status, got, s.log.take())
			}
		}
	})
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("broken") }

func TestConfigurationsAreRefusedInWords(t *testing.T) {
	hmac, pair := softHMAC(t, aliceSecret), softP256(t)
	ed25519, err := soft(t).Create(t.Context(), hwkey.CreateOptions{Algorithm: hwkey.Ed25519})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		cfg   Config
		words string
	}{
		{Config{HMAC: hmac}, "a name of 0 bytes"},
		{Config{ID: "two words", HMAC: hmac}, "other characters"},
		{Config{ID: alice}, "one of Config.HMAC and Config.Key"},
		{Config{ID: alice, HMAC: hmac, Key: pair}, "one of Config.HMAC and Config.Key"},
		{Config{ID: alice, HMAC: hmac, Profile: 2}, "unknown profile"},
		{Config{ID: alice, HMAC: hmac, Form: 3}, "unknown profile or form"},
		{Config{ID: alice, Key: ed25519}, "ed25519"},
		{Config{ID: alice, Key: pair, Form: JWE}, "shared secret"},
		{Config{ID: alice, Key: pair, PerRequest: true}, "shared secret"},
		{Config{ID: alice, Key: pair, Profile: Sample}, "shared secret"},
		{Config{ID: alice, HMAC: hmac, Profile: Sample, PerRequest: true}, "no MAC per request"},
	} {
		_, err := NewTransport(tt.cfg)
		if err == nil || !strings.Contains(err.Error(), tt.words) || !strings.HasPrefix(err.Error(), "limpet: channel: ") {
			t.Errorf("error %v, want %q", err, tt.words)
		}
	}
	ring := newSite(t, ServerConfig{}).ring
	for _, tt := range []struct {
		cfg   ServerConfig
		words string
	}{
		{ServerConfig{}, "Keys is not set"},
		{ServerConfig{Keys: ring, Profile: 2}, "unknown profile"},
		{ServerConfig{Keys: ring, Forms: []Form{Token, 3}}, "unknown profile or form"},
		{ServerConfig{Keys: ring, Profile: Sample, PerRequest: true}, "no MAC per request"},
		{ServerConfig{Keys: ring, MaxBody: -1}, "MaxBody is -1"},
	} {
		_, err := NewServer(tt.cfg)
		if err == nil || !strings.Contains(err.Error(), tt.words) || !strings.HasPrefix(err.Error(), "limpet: channel: ") {
			t.Errorf("error %v, want %q", err, tt.words)
		}
	}
	for _, s := range []fmt.Stringer{Limpet, Sample, Profile(9), Token, JWT, JWE, Form(9)} {
		if s.String() == "" {
			t.Errorf("%#v has no name", s)
		}
	}
}

// A connection is not remembered longer than it lives, nor more of it than a few
// tokens.
func TestWhatIsRememberedIsBounded(t *testing.T) {
	s := newSite(t, ServerConfig{})
	l := s.dial()
	for i := range 2 * maxAdmits {
		r := l.request("GET", "/", "")
		r.Host = fmt.Sprintf("host%d.example", i)
		p := l.purpose(Token)
		p.authority = r.Host
		r.Header.Set(ClientField, formatToken(alice, secretsOf(t, &l.state, &p, aliceSecret).tag()))
		wantCode(t, r.Host, l.do(r), 200)
	}
	wantCode(t, "the usual host", l.bearer(l.token()), 200)
	if n := s.server.conns.Len(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
	for state := range 4 {
		s.dial().bearer(fmt.Sprint("garbage", state))
	}
	s.http.CloseClientConnections()
	waitFor(t, "the connections are forgotten", func() bool { gc(); return s.server.conns.Len() == 0 })
}

func waitFor(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for range 1000 {
		if holds() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("not in time: %s", what)
}

// Nothing secret of a connection prints, and refusals do not repeat what came.
func TestNothingSecretPrints(t *testing.T) {
	s := newSite(t, ServerConfig{})
	l := s.dial()
	var root []byte
	held, err := agree(t.Context(), func(ctx context.Context, message []byte) ([]byte, error) {
		sum, err := (&keyring.Key{Secret: aliceSecret}).HMAC(ctx, message)
		root = bytes.Clone(sum)
		return sum, err
	}, make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{ID: alice, HMAC: softHMAC(t, aliceSecret)}
	var out bytes.Buffer
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "secrets", held, "config", cfg)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "secrets", held)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		fmt.Fprintf(&out, verb+verb+verb+verb, held, &token{secrets: held}, &verified{secrets: held}, cfg)
	}
	for _, form := range []string{string(root[:6]), fmt.Sprintf("%x", root[:6]), strings.Trim(fmt.Sprint(root[:6]), "[]"), string(aliceSecret[:8])} {
		if strings.Contains(strings.ToLower(out.String()), form) {
			t.Errorf("printed %q: %s", form, out.String())
		}
	}
	bad := "limpet1." + base64URL.EncodeToString([]byte("mallory-was-here")) + "." + base64URL.EncodeToString(make([]byte, 32))
	l.bearer(bad)
	l.bearer("garbage-token")
	l.bearer(l.token()[:20])
	if log := s.log.take(); strings.Contains(log, "mallory") || strings.Contains(log, "garbage-token") || strings.Contains(log, bad) || strings.Count(log, "\n") != 3 {
		t.Errorf("log %s", log)
	}
}

// Rotation: both live keys are admitted, and which one is told.
func TestTwoLiveKeys(t *testing.T) {
	s := newSite(t, ServerConfig{})
	next := keyring.NewSecret()
	old := s.client(Config{}, true)
	wantAdmitted(t, old, s.http.URL, "alice 1 token ")
	s.edit(func(l *keyring.List) error { return l.Rotate(alice, &keyring.Key{Secret: next}) })
	wantAdmitted(t, old, s.http.URL, "alice 1 token ")
	for _, form := range []Form{Token, JWT, JWE} {
		wantAdmitted(t, s.client(Config{HMAC: softHMAC(t, next), Form: form}, true), s.http.URL, "alice 2 "+form.String()+" ")
	}
	pair := softP256(t)
	s.edit(func(l *keyring.List) error {
		return l.Rotate(alice, &keyring.Key{Public: publicOf(pair)})
	})
	wantAdmitted(t, s.client(Config{Key: pair}, true), s.http.URL, "alice 3 token ")
	wantAdmitted(t, s.client(Config{HMAC: softHMAC(t, next)}, true), s.http.URL, "alice 2 token ")
	if code, _ := get(t, old, s.http.URL); code != 401 {
		t.Errorf("the dropped key: %d", code)
	}
}

// What a guard asks: whose connection it is, and if nobody's, what the client
// must be told.
func TestClientForAGuard(t *testing.T) {
	s := newSite(t, ServerConfig{})
	l := s.dial()
	for token, want := range map[string]string{l.token(): alice, "garbage": ""} {
		r := l.request("GET", "/", "")
		r.TLS = &l.state
		r.Header.Set("Authorization", "Bearer "+token)
		w := httptest.NewRecorder()
		id, err := s.server.Client(w.Header(), r)
		var refusal *proof.Refusal
		if id != want || (err == nil) != (want != "") || err != nil && (!errors.As(err, &refusal) || refusal.Reason != proof.NoClient) {
			t.Errorf("%q, %v", id, err)
		}
		told := w.Header().Get(FingerprintField)
		if err != nil && told != Fingerprint(&l.state) || err == nil && told != "" || w.Body.Len() != 0 {
			t.Errorf("told %v, %s", w.Header(), w.Body)
		}
	}
	if FromContext(t.Context()) != nil {
		t.Error("a client of no request")
	}
}

// A host is one host, however it is written.
func TestSpellingsOfAHost(t *testing.T) {
	s := newSite(t, ServerConfig{})
	l := s.dial()
	p := l.purpose(Token)
	p.authority = "example.com"
	token := formatToken(alice, secretsOf(t, &l.state, &p, aliceSecret).tag())
	for host, code := range map[string]int{"example.com": 200, "EXAMPLE.com": 200, "example.com:443": 200, "example.com:80": 401, "example.com:8443": 401, "example.com.": 401, "xexample.com": 401} {
		r := l.request("GET", "/", "")
		r.Host = host
		r.Header.Set("Authorization", "Bearer "+token)
		wantCode(t, host, l.do(r), code)
	}
	for _, http2 := range []bool{false, true} {
		base := s.base(http2) // dials the site, whatever the host
		base.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, s.http.Listener.Addr().String())
		}
		base.TLSClientConfig.ServerName = "example.com"
		c := s.client(Config{Base: base}, http2)
		for _, host := range []string{"example.com", "EXAMPLE.com", "example.com:443", "example.com:8443", "[::1]", "[fe80::1%25eth0]:8443"} {
			if code, body := get(t, c, "https://"+host+"/x"); code != 200 {
				t.Errorf("%s: %d %s: %s", host, code, body, s.log.take())
			}
		}
	}
}
