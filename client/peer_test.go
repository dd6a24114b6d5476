package client_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/client"
	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/store/memstore"
)

// keystore keeps device keys in memory and counts what is asked of it.
type keystore struct {
	delay time.Duration // of each signature
	level hwkey.Level

	signs  atomic.Int64
	mu     sync.Mutex
	keys   map[string]*deviceKey
	made   int
	loadAs error // what Load and Sign fail with
}

type deviceKey struct {
	crypto.Signer
	info hwkey.Info
	ks   *keystore
}

func newKeystore() *keystore {
	return &keystore{level: hwkey.Software, keys: make(map[string]*deviceKey)}
}

func (ks *keystore) Create(ctx context.Context, opts hwkey.CreateOptions) (hwkey.Key, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	alg := opts.Algorithm
	if alg == "" {
		alg = hwkey.ECDSAP256
	}
	var signer crypto.Signer
	var err error
	switch alg {
	case hwkey.ECDSAP256:
		signer, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case hwkey.RSA2048:
		signer, err = rsa.GenerateKey(rand.Reader, 2048)
	case hwkey.Ed25519:
		_, signer, err = ed25519.GenerateKey(rand.Reader)
	}
	if err != nil {
		return nil, err
	}
	ks.mu.Lock()
	defer ks.mu.Unlock()
	ks.made++
	id := fmt.Sprint("key", ks.made)
	ks.keys[id] = &deviceKey{signer, hwkey.Info{ID: id, Level: ks.level, Algorithm: alg, Label: opts.Label}, ks}
	return ks.keys[id], nil
}

func (ks *keystore) Load(_ context.Context, id string) (hwkey.Key, error) {
	ks.mu.Lock()
	defer ks.mu.Unlock()
	if ks.loadAs != nil {
		return nil, ks.loadAs
	}
	if key, ok := ks.keys[id]; ok {
		return key, nil
	}
	return nil, hwkey.ErrNotFound
}

func (ks *keystore) List(context.Context) ([]hwkey.Info, error) { panic("not used") }

func (ks *keystore) Delete(ctx context.Context, id string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ks.mu.Lock()
	defer ks.mu.Unlock()
	if ks.keys[id] == nil {
		return hwkey.ErrNotFound
	}
	delete(ks.keys, id)
	return nil
}

func (ks *keystore) fail(err error) {
	ks.mu.Lock()
	defer ks.mu.Unlock()
	ks.loadAs = err
}

// count returns how many keys there are.
func (ks *keystore) count() int {
	ks.mu.Lock()
	defer ks.mu.Unlock()
	return len(ks.keys)
}

func (k *deviceKey) Info() hwkey.Info { return k.info }
func (k *deviceKey) Close() error     { return nil }

func (k *deviceKey) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	k.ks.signs.Add(1)
	time.Sleep(k.ks.delay)
	k.ks.mu.Lock()
	err := k.ks.loadAs
	k.ks.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if k.info.Algorithm == hwkey.RSA2048 {
		opts = &rsa.PSSOptions{SaltLength: 32, Hash: crypto.SHA256}
	}
	return k.Signer.Sign(rand.Reader, digest, opts)
}

// app is a guarded server. POST /login with the password "secret" gives a new
// token, as JSON or, for /cookie/login, as a cookie and a redirect.
type app struct {
	guard    atomic.Pointer[limpet.Guard]
	tokens   atomic.Int64
	requests atomic.Int64 // that the guard saw
	admitted atomic.Int64
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func newGuard(t *testing.T, cfg limpet.Config) *limpet.Guard {
	t.Helper()
	if cfg.Session == (limpet.Session{}) {
		cfg.Session = limpet.Bearer()
	}
	if cfg.Store == nil {
		cfg.Store = memstore.New(nil)
	}
	cfg.Logger = quiet()
	guard, err := limpet.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return guard
}

// serve starts an app behind a guard.
func serve(t *testing.T, cfg limpet.Config) (*app, *httptest.Server) {
	t.Helper()
	a := &app{}
	a.guard.Store(newGuard(t, cfg))
	srv := httptest.NewServer(a)
	t.Cleanup(srv.Close)
	return a, srv
}

func (a *app) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.requests.Add(1)
	guard := a.guard.Load()
	mux := http.NewServeMux()
	login := func(w http.ResponseWriter, r *http.Request) (string, bool) {
		if r.FormValue("password") != "secret" {
			http.Error(w, "wrong password", http.StatusUnauthorized)
			return "", false
		}
		token := fmt.Sprint("token-", a.tokens.Add(1))
		if err := guard.Bind(w, r, token, r.FormValue("user")); err != nil {
			limpet.Refuse(w, err)
			return "", false
		}
		return token, true
	}
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		if token, ok := login(w, r); ok {
			fmt.Fprintf(w, `{"token":%q,"user":"alice"}`, token)
		}
	})
	mux.HandleFunc("POST /cookie/login", func(w http.ResponseWriter, r *http.Request) {
		if token, ok := login(w, r); ok {
			http.SetCookie(w, &http.Cookie{Name: "lang", Value: "en", Path: "/"})
			http.SetCookie(w, &http.Cookie{Name: "sid", Value: token, Path: "/"})
			http.Redirect(w, r, "/me", http.StatusSeeOther)
		}
	})
	mux.HandleFunc("/me", func(w http.ResponseWriter, r *http.Request) {
		b := limpet.FromContext(r.Context())
		fmt.Fprint(w, b.User, " ", b.Level)
	})
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) { time.Sleep(time.Minute) })
	mux.HandleFunc("/401", func(w http.ResponseWriter, r *http.Request) { http.Error(w, "no", http.StatusUnauthorized) })
	guard.Protect(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.admitted.Add(1)
		mux.ServeHTTP(w, r)
	})).ServeHTTP(w, r)
}

// direct sends requests to a handler without a network, so that a test can
// have a clock of its own.
type direct struct{ handler http.Handler }

func (d direct) RoundTrip(req *http.Request) (*http.Response, error) {
	body := []byte{}
	if req.Body != nil {
		var err error
		if body, err = io.ReadAll(req.Body); err != nil {
			return nil, err
		}
		req.Body.Close()
	}
	in := httptest.NewRequest(req.Method, req.URL.String(), bytes.NewReader(body)).WithContext(req.Context())
	in.Header = req.Header.Clone()
	rec := httptest.NewRecorder()
	d.handler.ServeHTTP(rec, in)
	resp := rec.Result()
	resp.Header.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	return resp, nil
}

// roundTripper is one in a func.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// hwSign returns a client of the hw-sign wire.
func hwSign(keys hwkey.Keystore) *client.Client {
	cl := client.New(keys)
	cl.Wire = client.HWSign
	return cl
}

// login logs in and returns the token that the app made.
func login(t *testing.T, c *http.Client, url string) string {
	t.Helper()
	resp, err := c.Post(url+"/login", "application/x-www-form-urlencoded", strings.NewReader("user=alice&password=secret"))
	if err != nil {
		t.Fatal(err)
	}
	body := read(t, resp)
	_, rest, _ := strings.Cut(body, `"token":"`)
	token, _, ok := strings.Cut(rest, `"`)
	if resp.StatusCode != http.StatusOK || !ok {
		t.Fatalf("login: %s: %s", resp.Status, body)
	}
	return token
}

// request makes a request with a bearer token.
func request(t testing.TB, method, url, token string, body io.Reader) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	return req
}

// want sends a request and checks the answer.
func want(t testing.TB, c *http.Client, req *http.Request, code int, body string) *http.Response {
	t.Helper()
	resp, err := c.Do(req)
	if err != nil {
		t.Errorf("%s %s: %v", req.Method, req.URL.Path, err)
		return &http.Response{}
	}
	got := read(t, resp)
	if resp.StatusCode != code || body != "" && got != body {
		t.Errorf("%s %s: %s %q, want %d %q", req.Method, req.URL.Path, resp.Status, got, code, body)
	}
	return resp
}

func read(t testing.TB, resp *http.Response) string {
	t.Helper()
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return string(body)
}
