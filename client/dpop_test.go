package client_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/client"
	"github.com/limpet-auth/limpet/hwkey"
)

// dpopServer is a resource server and a token endpoint, written from RFC 9449.
type dpopServer struct {
	key crypto.PublicKey

	mu       sync.Mutex
	nonce    string // that proofs must have; "" for none
	next     string // that answers give
	seen     map[string]bool
	requests int
}

func (s *dpopServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests++
	body, _ := io.ReadAll(r.Body)
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "DPoP ")
	err := s.check(r, token)
	if s.next != "" {
		w.Header().Set("DPoP-Nonce", s.next)
	}
	switch {
	case err == nil:
		w.Write(body)
	case token == "":
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprintf(w, `{"error":%q}`, err)
	default:
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`DPoP error=%q, algs="ES256"`, err))
		w.WriteHeader(http.StatusUnauthorized)
	}
}

func (s *dpopServer) check(r *http.Request, token string) error {
	if len(r.Header["Dpop"]) != 1 {
		return errors.New("no proof")
	}
	parts := strings.Split(r.Header["Dpop"][0], ".")
	var text [3][]byte
	for i := range text {
		var err error
		if text[i], err = base64.RawURLEncoding.DecodeString(parts[i]); err != nil {
			return err
		}
	}
	var claims struct {
		JTI, HTM, HTU, ATH, Nonce string
		IAT                       int64
	}
	var header struct {
		Typ, Alg string
		JWK      map[string]string
	}
	if err := errors.Join(json.Unmarshal(text[0], &header), json.Unmarshal(text[1], &claims)); err != nil {
		return err
	}
	signed := []byte(parts[0] + "." + parts[1])
	sum := sha256.Sum256(signed)
	ok := false
	switch key := s.key.(type) {
	case *ecdsa.PublicKey:
		ok = header.Alg == "ES256" && ecdsa.Verify(key, sum[:], new(big.Int).SetBytes(text[2][:32]), new(big.Int).SetBytes(text[2][32:]))
	case ed25519.PublicKey:
		ok = ed25519.Verify(key, signed, text[2])
	case *rsa.PublicKey:
		ok = header.Alg == "PS256" && rsa.VerifyPSS(key, crypto.SHA256, sum[:], text[2], &rsa.PSSOptions{SaltLength: 32}) == nil
	}
	ath := ""
	if token != "" {
		sum := sha256.Sum256([]byte(token))
		ath = base64.RawURLEncoding.EncodeToString(sum[:])
	}
	switch {
	case !ok || header.Typ != "dpop+jwt" || len(header.JWK) == 0:
		return errors.New("invalid_dpop_proof")
	case claims.HTM != r.Method || claims.HTU != "http://"+r.Host+r.URL.EscapedPath() || claims.ATH != ath:
		return fmt.Errorf("proof for %s %s", claims.HTM, claims.HTU)
	case time.Since(time.Unix(claims.IAT, 0)).Abs() > time.Minute || s.seen[claims.JTI]:
		return errors.New("old")
	case claims.Nonce != s.nonce:
		return errors.New("use_dpop_nonce")
	}
	s.seen[claims.JTI] = true
	return nil
}

func (s *dpopServer) expect(t *testing.T, requests int) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.requests != requests {
		t.Errorf("%d requests, want %d", s.requests, requests)
	}
	s.requests = 0
}

func TestDPoP(t *testing.T) {
	for _, alg := range []hwkey.Algorithm{hwkey.ECDSAP256, hwkey.RSA2048, hwkey.Ed25519} {
		t.Run(string(alg), func(t *testing.T) {
			key, err := newKeystore().Create(t.Context(), hwkey.CreateOptions{Algorithm: alg})
			if err != nil {
				t.Fatal(err)
			}
			up := &dpopServer{key: key.Public(), seen: map[string]bool{}}
			srv := httptest.NewServer(up)
			defer srv.Close()
			d, err := client.NewDPoP(key)
			if err != nil {
				t.Fatal(err)
			}
			api := &http.Client{Transport: d.Transport(nil, func(context.Context) (string, error) { return "at", nil })}
			login := &http.Client{Transport: d.Transport(nil, nil)}
			post := func(c *http.Client, body io.Reader, code int) {
				t.Helper()
				req, _ := http.NewRequestWithContext(t.Context(), "POST", srv.URL+"/a%20b?q=1", body)
				resp := want(t, c, req, code, "")
				if resp.Request.Header.Get("Dpop") != "" {
					t.Error("the caller's headers are changed")
				}
			}
			for _, c := range []*http.Client{api, login} {
				post(c, strings.NewReader("x"), 200)
				up.expect(t, 1)
			}
			// Both find the nonce out, and remember it.
			for i, c := range []*http.Client{api, login} {
				up.nonce = fmt.Sprint("nonce", i)
				up.next = up.nonce
				post(c, strings.NewReader("x"), 200)
				up.expect(t, 2)
				post(api, nil, 200)
				post(login, nil, 200)
				up.expect(t, 2)
			}
			// One may come with a good answer.
			up.next = "third"
			post(api, nil, 200)
			up.nonce = up.next
			post(api, nil, 200)
			up.expect(t, 2)
			// What cannot be helped is answered as it is.
			up.nonce, up.next = "fourth", ""
			post(api, nil, 401)
			post(login, nil, 400)
			up.expect(t, 2)
			up.next = "never the right one"
			post(api, nil, 401)
			up.expect(t, 2)
			up.next = "again"
			post(api, struct{ io.Reader }{strings.NewReader("x")}, 401)
			up.expect(t, 1)
		})
	}
}

func TestDPoPErrors(t *testing.T) {
	weak, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if _, err := client.NewDPoP(weak); err == nil {
		t.Error("took a key on P-384")
	}
	key, _ := newKeystore().Create(t.Context(), hwkey.CreateOptions{})
	d, err := client.NewDPoP(key)
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("no token")
	for _, tc := range []struct {
		url, token string
		err        error
		want       string
	}{
		{"https://api.example.com/", "", nil, "empty"},
		{"https://api.example.com/", "", broken, "no token"},
		{"http://api.example.com/", "at", nil, "plain http"},
		{"http://localhost/", "at", nil, ""},
	} {
		body := &closing{Reader: strings.NewReader("x")}
		rt := d.Transport(roundTripper(func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Body: http.NoBody, Header: http.Header{}}, nil
		}), func(context.Context) (string, error) { return tc.token, tc.err })
		_, err := rt.RoundTrip(httptest.NewRequest("POST", tc.url, body))
		if (err == nil) != (tc.want == "") || err != nil && (!strings.Contains(err.Error(), tc.want) || !body.closed) || tc.err != nil && !errors.Is(err, tc.err) {
			t.Errorf("%s: error %v, closed %v", tc.url, err, body.closed)
		}
	}
}

// A redirect to another origin carries neither token nor proof.
func TestDPoPOtherOrigin(t *testing.T) {
	var got http.Header
	thief := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.Header }))
	defer thief.Close()
	srv := httptest.NewServer(http.RedirectHandler(thief.URL, http.StatusTemporaryRedirect))
	defer srv.Close()
	key, _ := newKeystore().Create(t.Context(), hwkey.CreateOptions{})
	d, err := client.NewDPoP(key)
	if err != nil {
		t.Fatal(err)
	}
	c := &http.Client{Transport: d.Transport(nil, func(context.Context) (string, error) { return "at", nil })}
	resp, err := c.Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	read(t, resp)
	if got == nil || got.Get("Authorization") != "" || got.Get("Dpop") != "" {
		t.Errorf("sent %v", got)
	}
}

// Servers that make a new nonce for each of many origins fill no memory.
func TestDPoPNonceBound(t *testing.T) {
	key, _ := newKeystore().Create(t.Context(), hwkey.CreateOptions{Algorithm: hwkey.Ed25519})
	d, err := client.NewDPoP(key)
	if err != nil {
		t.Fatal(err)
	}
	n, with := 0, 0
	rt := d.Transport(roundTripper(func(r *http.Request) (*http.Response, error) {
		payload, _ := base64.RawURLEncoding.DecodeString(strings.Split(r.Header.Get("Dpop"), ".")[1])
		if strings.Contains(string(payload), "nonce") {
			with++
		}
		n++
		return &http.Response{StatusCode: 200, Body: http.NoBody, Header: http.Header{"Dpop-Nonce": {fmt.Sprint(n)}}}, nil
	}), nil)
	for range 2 {
		for i := range 200 {
			if _, err := rt.RoundTrip(httptest.NewRequest("GET", fmt.Sprintf("https://api%d.example.com/", i), nil)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if with == 0 || with > 64 {
		t.Errorf("%d nonces were remembered", with)
	}
}

// A guard binds what a proof brings to its login, and admits tokens with proofs
// by that key.
func TestDPoPGuard(t *testing.T) {
	t.Run("nonce", func(t *testing.T) { testDPoPGuard(t, limpet.Rule{}, 4) })
	t.Run("challenge", func(t *testing.T) { testDPoPGuard(t, limpet.Rule{Challenge: true}, 5) })
}

func testDPoPGuard(t *testing.T, rule limpet.Rule, requests int64) {
	app, srv := serve(t, limpet.Config{Rule: rule, Routes: []limpet.Route{{Pattern: "/login"}}})
	key, _ := newKeystore().Create(t.Context(), hwkey.CreateOptions{})
	d, err := client.NewDPoP(key)
	if err != nil {
		t.Fatal(err)
	}
	token := login(t, &http.Client{Transport: d.Transport(nil, nil)}, srv.URL)
	c := &http.Client{Transport: d.Transport(nil, func(context.Context) (string, error) { return token, nil })}
	for range 3 {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", srv.URL+"/me?x=y", nil)
		want(t, c, req, 200, "alice software")
	}
	if n := app.requests.Load(); n != requests {
		t.Errorf("%d requests, want %d", n, requests)
	}
	want(t, http.DefaultClient, request(t, "GET", srv.URL+"/me", token, nil), 401, "")
}
