package channel

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/hwkey/softkey"
	"github.com/limpet-auth/limpet/keyring"
)

const alice, bob = "alice", "bob"

var (
	aliceSecret = keyring.Secret("0123456789abcdef0123456789abcdef")
	bobSecret   = keyring.Secret("fedcba9876543210fedcba9876543210")
)

// text is a log that many write to.
type text struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *text) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// take returns what was written since it was last asked.
func (l *text) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.b.Reset()
	return l.b.String()
}

// site is a server whose app says who asks and what it was sent.
type site struct {
	t      testing.TB
	path   string // of the keyring
	ring   *keyring.Ring
	server *Server
	log    *text
	http   *httptest.Server
	app    func(w http.ResponseWriter, r *http.Request) // before the usual answer
}

// newSite starts a server. Its ring has alice and bob, if cfg has none.
func newSite(t testing.TB, cfg ServerConfig, edits ...func(*httptest.Server)) *site {
	t.Helper()
	s := &site{t: t, path: filepath.Join(t.TempDir(), "keys.json"), log: new(text)}
	s.edit(func(l *keyring.List) error {
		return errors.Join(l.Add(alice, &keyring.Key{Secret: aliceSecret}), l.Add(bob, &keyring.Key{Secret: bobSecret}))
	})
	cfg.Logger = slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
	var err error
	if cfg.Keys == nil {
		if cfg.Keys, err = keyring.Open(s.path, keyring.Options{Logger: cfg.Logger}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cfg.Keys.Close() })
	}
	s.ring = cfg.Keys
	if s.server, err = NewServer(cfg); err != nil {
		t.Fatal(err)
	}
	s.http = httptest.NewUnstartedServer(s.server.Protect(http.HandlerFunc(s.serve)))
	s.http.EnableHTTP2 = true
	s.http.Config.ErrorLog = log.New(io.Discard, "", 0)
	for _, edit := range edits {
		edit(s.http)
	}
	s.http.StartTLS()
	t.Cleanup(s.http.Close)
	return s
}

func (s *site) serve(w http.ResponseWriter, r *http.Request) {
	if s.app != nil {
		s.app(w, r)
	}
	c := FromContext(r.Context())
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	fmt.Fprintf(w, "%s %d %s %s", c.ID, c.Version, c.Form, body)
}

func (s *site) edit(change func(*keyring.List) error) {
	s.t.Helper()
	if err := keyring.Edit(s.path, change); err != nil {
		s.t.Fatal(err)
	}
	if s.ring != nil {
		if err := s.ring.Reload(); err != nil {
			s.t.Fatal(err)
		}
	}
}

// base returns an http.Transport of its own to the site.
func (s *site) base(http2 bool) *http.Transport {
	base := s.http.Client().Transport.(*http.Transport).Clone()
	if !http2 {
		base.ForceAttemptHTTP2 = false
		base.TLSClientConfig.NextProtos = []string{"http/1.1"}
		base.Protocols = new(http.Protocols)
		base.Protocols.SetHTTP1(true)
	}
	s.t.Cleanup(base.CloseIdleConnections)
	return base
}

// transport returns a Transport to the site, of alice's secret in software if cfg
// has no key.
func (s *site) transport(cfg Config, http2 bool) *Transport {
	s.t.Helper()
	if cfg.ID == "" {
		cfg.ID = alice
	}
	if cfg.HMAC == nil && cfg.Key == nil {
		cfg.HMAC = softHMAC(s.t, aliceSecret)
	}
	if cfg.Base == nil {
		cfg.Base = s.base(http2)
	}
	t, err := NewTransport(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	return t
}

func (s *site) client(cfg Config, http2 bool) *http.Client {
	s.t.Helper()
	return &http.Client{Transport: s.transport(cfg, http2), Timeout: 30 * time.Second}
}

func soft(t testing.TB) *softkey.Keystore {
	t.Helper()
	ks, err := softkey.Open(t.Context(), t.TempDir(), softkey.KeyFile(""))
	if err != nil {
		t.Fatal(err)
	}
	return ks
}

func softHMAC(t testing.TB, secret []byte) hwkey.HMACKey {
	t.Helper()
	key, err := soft(t).ImportHMAC(t.Context(), secret, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { key.Close() })
	return key
}

func softP256(t testing.TB) hwkey.Key {
	t.Helper()
	key, err := soft(t).Create(t.Context(), hwkey.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { key.Close() })
	return key
}

// knows adds a peer with a key pair.
func (s *site) knows(id string, key hwkey.Key) {
	s.t.Helper()
	s.edit(func(l *keyring.List) error { return l.Add(id, &keyring.Key{Public: key.Public().(*ecdsa.PublicKey)}) })
}

// get sends a request that must be answered.
func get(t testing.TB, c *http.Client, url string) (code int, body string) {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, readAll(t, resp)
}

func readAll(t testing.TB, resp *http.Response) string {
	t.Helper()
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

func wantAdmitted(t testing.TB, c *http.Client, url, want string) {
	t.Helper()
	if code, body := get(t, c, url); code != 200 || body != want {
		t.Errorf("got %d %q, want %q", code, body, want)
	}
}

func bothVersions(t *testing.T, test func(t *testing.T, http2 bool)) {
	t.Run("http/1.1", func(t *testing.T) { test(t, false) })
	t.Run("http/2", func(t *testing.T) { test(t, true) })
}

// line is one TLS connection to a site with nothing of ours in between.
type line struct {
	t     testing.TB
	conn  *tls.Conn
	r     *bufio.Reader
	state tls.ConnectionState
	host  string
}

// dial connects over HTTP/1.1; edits change the TLS configuration.
func (s *site) dial(edits ...func(*tls.Config)) *line {
	s.t.Helper()
	cfg := s.http.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	cfg.NextProtos = []string{"http/1.1"}
	cfg.ServerName = "example.com"
	for _, edit := range edits {
		edit(cfg)
	}
	addr := s.http.Listener.Addr().String()
	conn, err := tls.Dial("tcp", addr, cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	return &line{s.t, conn, bufio.NewReader(conn), conn.ConnectionState(), addr}
}

// answer is a response, read to its end.
type answer struct {
	code   int
	header http.Header
	body   string
}

func (a *answer) String() string { return fmt.Sprintf("%d %s", a.code, strings.TrimSpace(a.body)) }

func (l *line) do(r *http.Request) *answer {
	l.t.Helper()
	if err := r.Write(l.conn); err != nil {
		l.t.Fatal(err)
	}
	resp, err := http.ReadResponse(l.r, r)
	if err != nil {
		l.t.Fatal(err)
	}
	return &answer{resp.StatusCode, resp.Header, readAll(l.t, resp)}
}

func (l *line) request(method, target, body string) *http.Request {
	l.t.Helper()
	var b io.Reader
	if body != "" {
		b = strings.NewReader(body)
	}
	r, err := http.NewRequest(method, "https://"+l.host+target, b)
	if err != nil {
		l.t.Fatal(err)
	}
	return r
}

// bearer sends a token in Authorization.
func (l *line) bearer(token string) *answer {
	l.t.Helper()
	r := l.request("GET", "/", "")
	r.Header.Set("Authorization", "Bearer "+token)
	return l.do(r)
}

// purpose is that of a token for this line's host.
func (l *line) purpose(form Form) purpose {
	return purpose{algorithm: hmacSHA256, id: alice, authority: l.host, form: form}
}

// secrets returns alice's secrets on this line.
func (l *line) secrets(form Form) *secrets {
	l.t.Helper()
	p := l.purpose(form)
	return secretsOf(l.t, &l.state, &p, aliceSecret)
}

func secretsOf(t testing.TB, state *tls.ConnectionState, p *purpose, secret keyring.Secret) *secrets {
	t.Helper()
	exported, err := p.export(state)
	if err != nil {
		t.Fatal(err)
	}
	s, err := agree(t.Context(), (&keyring.Key{Secret: secret}).HMAC, exported)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// token returns alice's token on this line.
func (l *line) token() string { l.t.Helper(); return formatToken(alice, l.secrets(Token).tag()) }

// claims returns those of a JWT that is admitted.
func (l *line) claims(edits ...func(map[string]any)) map[string]any {
	now := time.Now().Unix()
	c := map[string]any{"iss": alice, "sub": alice, "aud": "https://" + l.host, "iat": now, "nbf": now, "exp": now + 300, "jti": newJTI()}
	for _, edit := range edits {
		edit(c)
	}
	return c
}

// jwt returns a JWT of alice's on this line.
func (l *line) jwt(edits ...func(map[string]any)) string {
	l.t.Helper()
	return jws(l.t, object("alg", "HS256", "kid", alice, "typ", jwtType), l.claims(edits...), l.secrets(JWT).signing())
}

func wantRefused(t testing.TB, what string, a *answer) {
	t.Helper()
	const body = `{"message":"this route needs a client with a token of its TLS connection","reason":"client_required"}` + "\n"
	if a.code != 401 || a.body != body || a.header.Get("Www-Authenticate") != "Bearer" || a.header.Get("Content-Type") != "application/json" ||
		a.header.Get("Cache-Control") != "no-store" || a.header.Get(FingerprintField) == "" {
		t.Errorf("%s: got %v %v, want it refused as all are", what, a, a.header)
	}
}

func wantCode(t testing.TB, what string, a *answer, code int) {
	t.Helper()
	if a.code != code {
		t.Errorf("%s: got %v, want %d", what, a, code)
	}
}

// object returns members in their order, as JSON.
func object(members ...any) string {
	var b strings.Builder
	for i := 0; i < len(members); i += 2 {
		name, _ := json.Marshal(members[i])
		value, _ := json.Marshal(members[i+1])
		fmt.Fprintf(&b, ",%s:%s", name, value)
	}
	if b.Len() == 0 {
		return "{}"
	}
	return "{" + b.String()[1:] + "}"
}

// slow is an HMAC key whose HMACs wait, fail and are counted.
type slow struct {
	hwkey.HMACKey
	mu    sync.Mutex
	count int
	fail  []error       // of the next HMACs
	hold  chan struct{} // if not nil, each waits for it
}

func (k *slow) HMAC(ctx context.Context, message []byte) ([]byte, error) {
	k.mu.Lock()
	k.count++
	var err error
	if len(k.fail) > 0 {
		err, k.fail = k.fail[0], k.fail[1:]
	}
	hold := k.hold
	k.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return k.HMACKey.HMAC(ctx, message)
}

func (k *slow) asked() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.count
}
