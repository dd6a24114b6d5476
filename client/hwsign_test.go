package client_test

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/limpet-auth/limpet/client"
	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/hwsign"
)

// longServer is an hw-sign server of the ecdh-p256 dialect as it is found in
// the wild, written from the wire and not with package proof: no reasons, no
// expiry, Ed25519 verified over SHA-256 of the message.
type longServer struct {
	prefix  string // of the header names
	prehash bool

	mu            sync.Mutex
	sessions      map[string]verifier // device keys by token
	keys          map[string]verifier // ephemeral keys by id
	requests      int
	introductions int
}

type verifier func(message, sig []byte) bool

func newLongServer(prefix string) *longServer {
	return &longServer{prefix: prefix, prehash: true, sessions: map[string]verifier{}, keys: map[string]verifier{}}
}

func (s *longServer) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.keys)
	s.requests = 0
}

func (s *longServer) count() (requests, introductions int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests, s.introductions
}

func (s *longServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests++
	var answer any
	var err error
	switch r.URL.Path {
	case "/login":
		answer, err = s.login(r)
	case "/authenticated":
		answer, err = s.authenticated(w, r)
	default:
		err = errors.New("not found")
	}
	if err != nil {
		w.WriteHeader(http.StatusUnauthorized)
		answer = map[string]string{"message": err.Error()}
	}
	json.NewEncoder(w).Encode(answer) // as text/plain
}

func (s *longServer) login(r *http.Request) (any, error) {
	var who struct{ Username, Password string }
	if err := json.NewDecoder(r.Body).Decode(&who); err != nil || who.Password != "secret" {
		return nil, errors.New("invalid credentials")
	}
	device, _, err := s.parse(r.Header.Get(s.prefix+"hw-pub"), r.Header.Get(s.prefix+"hw-pub-type"))
	if err != nil {
		return nil, err
	}
	token := hex.EncodeToString(random(16))
	s.sessions[token] = device
	return map[string]string{"token": token}, nil
}

func (s *longServer) authenticated(w http.ResponseWriter, r *http.Request) (any, error) {
	device := s.sessions[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")]
	if device == nil {
		return nil, errors.New("unauthorized")
	}
	data, id := r.Header.Get(s.prefix+"data"), r.Header.Get(s.prefix+"accel-pub-id")
	sig, err := base64.StdEncoding.DecodeString(r.Header.Get(s.prefix + "data-sig"))
	if err != nil {
		return nil, err
	}
	text := r.Header.Get(s.prefix + "accel-pub")
	if text == "" {
		if verify := s.keys[id]; verify == nil || !verify([]byte(data), sig) {
			return nil, errors.New("unauthorized")
		}
		return map[string]bool{"authenticated": true}, nil
	}
	s.introductions++
	by, err := base64.StdEncoding.DecodeString(r.Header.Get(s.prefix + "accel-pub-sig"))
	if err != nil || !device([]byte(text), by) {
		return nil, errors.New("unauthorized")
	}
	typeName := r.Header.Get(s.prefix + "accel-pub-type")
	verify, public, err := s.parse(text, strings.Replace(typeName, "ecdh", "ecdsa", 1))
	if err != nil || !verify([]byte(data), sig) {
		return nil, errors.New("unauthorized")
	}
	id = hex.EncodeToString(random(8))
	w.Header().Set(s.prefix+"accel-pub-id", id)
	s.keys[id] = verify
	if typeName == "ecdh-p256" {
		own, _ := ecdh.P256().GenerateKey(rand.Reader)
		peer, err := public.(*ecdsa.PublicKey).ECDH()
		if err != nil {
			return nil, err
		}
		z, err := own.ECDH(peer)
		if err != nil {
			return nil, err
		}
		s.keys[id] = func(message, sig []byte) bool {
			mac := hmac.New(sha256.New, z)
			mac.Write(message)
			return hmac.Equal(mac.Sum(nil), sig)
		}
		spki, _ := x509.MarshalPKIXPublicKey(own.PublicKey())
		w.Header().Set(s.prefix+"accel-pub", base64.StdEncoding.EncodeToString(spki))
	}
	return map[string]bool{"authenticated": true}, nil
}

func (s *longServer) parse(text, typeName string) (verifier, crypto.PublicKey, error) {
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, nil, err
	}
	if typeName == "ed25519" {
		if len(b) != ed25519.PublicKeySize {
			return nil, nil, errors.New("not 32 bytes")
		}
		return func(message, sig []byte) bool {
			if s.prehash {
				sum := sha256.Sum256(message)
				message = sum[:]
			}
			return ed25519.Verify(b, message, sig)
		}, nil, nil
	}
	public, err := x509.ParsePKIXPublicKey(b)
	if err != nil {
		return nil, nil, err
	}
	verify := func(message, sig []byte) bool {
		sum := sha256.Sum256(message)
		switch public := public.(type) {
		case *ecdsa.PublicKey:
			return typeName == "ecdsa-p256" && ecdsa.VerifyASN1(public, sum[:], sig)
		case *rsa.PublicKey:
			return typeName == "rsa-2048" && rsa.VerifyPSS(public, crypto.SHA256, sum[:], sig, nil) == nil
		}
		return false
	}
	return verify, public, nil
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func loginLong(t *testing.T, c *http.Client, url string) string {
	t.Helper()
	resp, err := c.Post(url+"/login", "application/json", strings.NewReader(`{"username":"alice","password":"secret"}`))
	if err != nil {
		t.Fatal(err)
	}
	var answer struct{ Token string }
	body := read(t, resp)
	if err := json.Unmarshal([]byte(body), &answer); err != nil || answer.Token == "" {
		t.Fatalf("login: %s %s", resp.Status, body)
	}
	return answer.Token
}

// The client works with servers that know nothing of Limpet.
func TestUnmodifiedServer(t *testing.T) {
	for _, device := range []hwkey.Algorithm{hwkey.ECDSAP256, hwkey.RSA2048, hwkey.Ed25519} {
		for _, ephemeral := range []proof.Algorithm{proof.HMACSHA256, proof.ECDSAP256, proof.Ed25519} {
			for _, prehash := range []bool{true, false} {
				ed := device == hwkey.Ed25519 || ephemeral == proof.Ed25519
				if !prehash && !ed {
					continue
				}
				t.Run(fmt.Sprint(device, " ", ephemeral, " ", prehash), func(t *testing.T) {
					up := newLongServer("x-rpc-sec-dbcs-")
					up.prehash = prehash
					srv := httptest.NewServer(up)
					defer srv.Close()
					cl := client.New(newKeystore())
					cl.DeviceKey, cl.Ephemeral, cl.Wire = device, ephemeral, client.HWSignDBCS
					c := &http.Client{Transport: cl.Transport(nil)}
					guesses := 0
					if prehash && ed {
						guesses = 1
					}
					for session := range 2 {
						up.forget()
						token := loginLong(t, c, srv.URL)
						for range 3 {
							want(t, c, request(t, "GET", srv.URL+"/authenticated", token, nil), 200, "{\"authenticated\":true}\n")
						}
						if n, _ := up.count(); n != 4+guesses {
							t.Errorf("session %d: %d requests, want %d", session, n, 4+guesses)
						}
						guesses = 0 // it was learned

						up.forget()
						want(t, c, request(t, "POST", srv.URL+"/authenticated", token, strings.NewReader("x")), 200, "")
						if n, _ := up.count(); n != 2 {
							t.Errorf("session %d: %d requests after a restart, want 2", session, n)
						}
					}
				})
			}
		}
	}
}

// A session that is over there is refused without end, and costs little.
func TestUnmodifiedServerForgotSession(t *testing.T) {
	up := newLongServer("x-rpc-sec-bound-token-")
	srv := httptest.NewServer(up)
	defer srv.Close()
	for _, device := range []hwkey.Algorithm{hwkey.ECDSAP256, hwkey.Ed25519} {
		keys := newKeystore()
		cl := client.New(keys)
		cl.DeviceKey, cl.Wire = device, client.HWSign
		c := &http.Client{Transport: cl.Transport(nil)}
		token := loginLong(t, c, srv.URL)
		want(t, c, request(t, "GET", srv.URL+"/authenticated", token, nil), 200, "")
		up.mu.Lock()
		clear(up.sessions)
		up.mu.Unlock()
		keys.signs.Store(0)
		for range 20 {
			want(t, c, request(t, "GET", srv.URL+"/authenticated", token, nil), 401, "{\"message\":\"unauthorized\"}\n")
		}
		if n := keys.signs.Load(); n > 3 {
			t.Errorf("%s: %d signatures of the device key", device, n)
		}
	}
}

// Behind a proxy that drops the answers to introductions, or on a server that
// does not know the wire, every request introduces the same key; nobody waits,
// and the device key is not asked again.
func TestNoAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := newLongServer("x-rpc-sec-bound-token-")
		base := roundTripper(func(r *http.Request) (*http.Response, error) {
			if r.URL.Path == "/authenticated" {
				time.Sleep(time.Second)
			}
			resp, err := direct{up}.RoundTrip(r)
			if err == nil {
				resp.Header.Del(hwsign.BoundToken.EphemeralID)
			}
			return resp, err
		})
		keys := newKeystore()
		c := &http.Client{Transport: hwSign(keys).Transport(base)}
		token := loginLong(t, c, origin)
		want(t, c, request(t, "GET", origin+"/authenticated", token, nil), 200, "")
		begin := time.Now()
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() { want(t, c, request(t, "GET", origin+"/authenticated", token, nil), 200, "") })
		}
		wg.Wait()
		if d := time.Since(begin); d != time.Second {
			t.Errorf("8 requests of a second took %v", d)
		}
		if _, n := up.count(); n != 9 || keys.signs.Load() != 1 {
			t.Errorf("%d introductions, %d signatures, want 9 and 1", n, keys.signs.Load())
		}
	})
}

// What a server answers to a login reaches the caller as it was.
func TestLoginBody(t *testing.T) {
	long := `{"token":"t","padding":"` + strings.Repeat("x", 1<<20) + `"}`
	for _, tc := range []struct {
		contentType, body string
		bound             bool
	}{
		{"application/json", `{"token":"t"}`, true},
		{"application/vnd.api+json; charset=utf-8", `{"access_token":"t","token":7}`, true},
		{"", `{"token":"t"}`, true},
		{"text/html", `{"token":"t"}`, false},
		{"application/json", `{"data":{"token":"t"}}`, false},
		{"application/json", `{"token":""}`, false},
		{"application/json", `{"token":"` + strings.Repeat("t", 9<<10) + `"}`, false},
		{"application/json", `["token"]`, false},
		{"application/json", `{"token":`, false},
		{"application/json", long, false}, // not looked at so far
	} {
		cl := hwSign(newKeystore())
		cut := errors.New("connection cut")
		c := &http.Client{Transport: cl.Transport(roundTripper(func(*http.Request) (*http.Response, error) {
			h := http.Header{}
			if tc.contentType != "" {
				h.Set("Content-Type", tc.contentType)
			}
			body := &failing{Reader: strings.NewReader(tc.body), err: cut}
			return &http.Response{StatusCode: 200, Header: h, Body: body}, nil
		}))}
		resp, err := c.Post(origin+"/login", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		if string(got) != tc.body || !errors.Is(err, cut) {
			t.Errorf("%.40s: read %d of %d bytes, error %v", tc.body, len(got), len(tc.body), err)
		}
		resp.Body.Close()
		if bound := len(cl.Sessions()) == 1; bound != tc.bound {
			t.Errorf("%s %.40s: bound %v", tc.contentType, tc.body, bound)
		}
	}
}

// failing is a body that ends with an error, once.
type failing struct {
	io.Reader
	err error
}

func (f *failing) Read(p []byte) (int, error) {
	n, err := f.Reader.Read(p)
	if err == io.EOF && f.err != nil {
		err, f.err = f.err, nil
	}
	return n, err
}

func (f *failing) Close() error { return nil }
