package limpet_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/channel"
	"github.com/limpet-auth/limpet/client"
	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/hwkey/softkey"
	"github.com/limpet-auth/limpet/keyring"
	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/store/memstore"
)

// clientSite is an app behind a guard that asks some routes for clients of
// package channel.
type clientSite struct {
	*httptest.Server
	ring string
	soft *softkey.Keystore
	key  hwkey.HMACKey // the client's half of the secret
	base *http.Transport
}

func newClientSite(t *testing.T) *clientSite {
	t.Helper()
	s := &clientSite{ring: filepath.Join(t.TempDir(), "clients.json")}
	secret := keyring.NewSecret()
	if err := keyring.Edit(s.ring, func(l *keyring.List) error { return l.Add("billing", &keyring.Key{Secret: secret}) }); err != nil {
		t.Fatal(err)
	}
	ring, err := keyring.Open(s.ring, keyring.Options{})
	if err != nil {
		t.Fatal(err)
	}
	server, err := channel.NewServer(channel.ServerConfig{Keys: ring})
	if err != nil {
		t.Fatal(err)
	}
	guard, err := limpet.New(limpet.Config{Session: limpet.Cookie("sid"), Store: memstore.New(nil), Clients: server, Routes: []limpet.Route{
		{Pattern: "/beside", Rule: limpet.Rule{Mode: limpet.Require, Client: limpet.BesideSession}},
		{Pattern: "/watched", Rule: limpet.Rule{Mode: limpet.Observe, Client: limpet.InsteadOfSession}},
		{Pattern: "/instead", Rule: limpet.Rule{Client: limpet.InsteadOfSession}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		if err := guard.Bind(w, r, "5UbLkmIlm0nEvlGjPCMbpvDnbjRxjLnFmy9gQ0hCJbw", "alice"); err != nil {
			limpet.Refuse(w, err)
			return
		}
		http.SetCookie(w, &http.Cookie{Name: "sid", Value: "5UbLkmIlm0nEvlGjPCMbpvDnbjRxjLnFmy9gQ0hCJbw", Path: "/", Secure: true})
	})
	mux.Handle("/", guard.Protect(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b := limpet.FromContext(r.Context())
		json.NewEncoder(w).Encode(map[string]string{"user": b.User, "client": b.Client})
	})))
	s.Server = httptest.NewUnstartedServer(mux)
	s.EnableHTTP2 = true
	s.TLS = &tls.Config{MinVersion: tls.VersionTLS13}
	s.StartTLS()
	t.Cleanup(s.Close)
	s.base = s.Client().Transport.(*http.Transport)
	if s.soft, err = softkey.Open(context.Background(), t.TempDir(), softkey.KeyFile("")); err != nil {
		t.Fatal(err)
	}
	if s.key, err = s.soft.ImportHMAC(context.Background(), secret, "billing"); err != nil {
		t.Fatal(err)
	}
	return s
}

// transport returns that of the client billing.
func (s *clientSite) transport(t *testing.T) *channel.Transport {
	t.Helper()
	tr, err := channel.NewTransport(channel.Config{ID: "billing", HMAC: s.key, Base: s.base})
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// get returns the status of an answer and who the app took the peer for.
func (s *clientSite) get(t *testing.T, c *http.Client, path string, token ...string) (code int, who map[string]string, header http.Header) {
	t.Helper()
	req, err := http.NewRequest("GET", s.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(token) > 0 {
		req.Header.Set(channel.ClientField, token[0])
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || json.Unmarshal(text, &who) != nil {
		t.Fatalf("%s %q %v", path, text, err)
	}
	return resp.StatusCode, who, resp.Header
}

// catcher remembers the token that a request carried.
type catcher struct {
	http.RoundTripper
	caught string
}

func (c *catcher) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := c.RoundTripper.RoundTrip(r)
	c.caught = strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	return resp, err
}

// A route that asks for a client admits only a token of the TLS connection: in
// place of a session, or beside the session's own proof.
func TestClientOfTheConnection(t *testing.T) {
	s := newClientSite(t)
	line := &catcher{RoundTripper: s.base}
	tr := s.transport(t)
	billing := &http.Client{Transport: tr}
	stranger := &http.Client{Transport: s.base.Clone()} // on a connection of their own

	if code, who, _ := s.get(t, billing, "/instead"); code != 200 || who["client"] != "billing" || who["user"] != "" {
		t.Fatalf("the client got %d %v", code, who)
	}
	if code, who, h := s.get(t, stranger, "/instead"); code != 401 || who["reason"] != string(proof.NoClient) || h.Get(channel.FingerprintField) == "" {
		t.Errorf("a stranger got %d %v %v", code, who, h)
	}
	if code, who, _ := s.get(t, stranger, "/watched"); code != 200 || who["client"] != "" {
		t.Errorf("a stranger who is watched got %d %v", code, who)
	}

	// A token that is caught is good for its own connection only.
	other, err := channel.NewTransport(channel.Config{ID: "billing", HMAC: s.key, Base: line})
	if err != nil {
		t.Fatal(err)
	}
	if code, _, _ := s.get(t, &http.Client{Transport: other}, "/instead"); code != 200 || line.caught == "" {
		t.Fatalf("the client got %d, token caught: %t", code, line.caught != "")
	}
	if code, _, _ := s.get(t, &http.Client{Transport: s.base}, "/instead", line.caught); code != 200 {
		t.Errorf("the token on its own connection got %d", code)
	}
	if code, _, _ := s.get(t, stranger, "/instead", line.caught); code != 401 {
		t.Errorf("the token on another connection got %d", code)
	}

	// Beside a session both are wanted.
	if code, who, _ := s.get(t, billing, "/beside"); code != 401 || who["reason"] != string(proof.SessionRequired) {
		t.Errorf("a client without a session got %d %v", code, who)
	}
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	alice := client.New(s.soft)
	defer alice.Close()
	both := &http.Client{Transport: alice.Transport(tr), Jar: jar}
	if resp, err := both.PostForm(s.URL+"/login", url.Values{}); err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	if code, who, _ := s.get(t, both, "/beside"); code != 200 || who["client"] != "billing" || who["user"] != "alice" {
		t.Errorf("client and session got %d %v", code, who)
	}
	if code, who, _ := s.get(t, &http.Client{Transport: alice.Transport(s.base), Jar: jar}, "/beside"); code != 401 || who["reason"] != string(proof.NoClient) {
		t.Errorf("a session without a client got %d %v", code, who)
	}
	if code, who, _ := s.get(t, &http.Client{Transport: tr, Jar: jar}, "/beside"); code != 401 || who["reason"] != string(proof.Required) {
		t.Errorf("a client with a session but no proof got %d %v", code, who)
	}
}

func TestRulesForClients(t *testing.T) {
	ring := filepath.Join(t.TempDir(), "clients.json")
	if err := keyring.Edit(ring, func(*keyring.List) error { return nil }); err != nil {
		t.Fatal(err)
	}
	keys, err := keyring.Open(ring, keyring.Options{})
	if err != nil {
		t.Fatal(err)
	}
	server, err := channel.NewServer(channel.ServerConfig{Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		rule    limpet.Rule
		clients limpet.Clients
		ok      bool
	}{
		"beside":                     {limpet.Rule{Client: limpet.BesideSession, MinLevel: limpet.Hardware, Challenge: true}, server, true},
		"instead":                    {limpet.Rule{Client: limpet.InsteadOfSession}, server, true},
		"nobody to ask":              {limpet.Rule{Client: limpet.BesideSession}, nil, false},
		"unknown":                    {limpet.Rule{Client: 3}, server, false},
		"a level without a session":  {limpet.Rule{Client: limpet.InsteadOfSession, MinLevel: limpet.Software}, server, false},
		"a channel without a proof":  {limpet.Rule{Client: limpet.InsteadOfSession, Channel: true}, server, false},
		"a digest without a session": {limpet.Rule{Client: limpet.InsteadOfSession, Freshness: limpet.BodyHash}, server, false},
	} {
		_, err := limpet.New(limpet.Config{Session: limpet.Bearer(), Store: memstore.New(nil), Rule: c.rule, Clients: c.clients})
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Who calls Check tells the client.
	guard, err := limpet.New(limpet.Config{Session: limpet.Bearer(), Store: memstore.New(nil), Clients: server})
	if err != nil {
		t.Fatal(err)
	}
	var refusal *proof.Refusal
	req := &limpet.Request{Message: proof.Message{Method: "GET", Authority: "app.example.com", Path: "/"}}
	if _, err := guard.Check(context.Background(), req, limpet.Rule{Client: limpet.InsteadOfSession}, nil); !errors.As(err, &refusal) || refusal.Reason != proof.NoClient {
		t.Errorf("a request without a client: %v", err)
	}
	req.Client = "billing"
	if b, err := guard.Check(context.Background(), req, limpet.Rule{Client: limpet.InsteadOfSession}, nil); err != nil || b.Client != "billing" {
		t.Errorf("%v %v", b, err)
	}
}
