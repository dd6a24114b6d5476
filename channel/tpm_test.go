//go:build unix

package channel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/hwkey/tpmkey"
	"github.com/limpet-auth/limpet/keyring"
	"github.com/limpet-auth/limpet/limpettest"
)

// chip is a TPM that a test can take the place of, cut off, and use beside.
type chip struct {
	*tpmkey.Keystore
	t testing.TB

	mu     sync.Mutex
	tpm    *limpettest.TPM
	raw    io.ReadWriteCloser
	broken error // of Dial
}

func newChip(t testing.TB) *chip {
	c := &chip{t: t, tpm: limpettest.SoftTPM(t)}
	c.Keystore = tpmkey.New(tpmkey.Config{Dir: filepath.Join(t.TempDir(), "keys"), Dial: func(ctx context.Context) (io.ReadWriteCloser, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.broken != nil {
			return nil, c.broken
		}
		var err error
		c.raw, err = c.tpm.Dial(ctx)
		return c.raw, err
	}})
	t.Cleanup(func() { c.Close() })
	return c
}

// cut cuts the TPM off, or with nil brings it back.
func (c *chip) cut(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.broken = err
	c.tpm.PowerOff()
}

// Send is a transport of another program's, while the keystore is at rest.
func (c *chip) Send(command []byte) ([]byte, error) {
	if _, err := c.raw.Write(command); err != nil {
		return nil, err
	}
	b := make([]byte, 10)
	if _, err := io.ReadFull(c.raw, b); err != nil {
		return nil, err
	}
	b = append(b, make([]byte, binary.BigEndian.Uint32(b[2:])-10)...)
	_, err := io.ReadFull(c.raw, b[10:])
	return b, err
}

func (c *chip) hmac(secret []byte) hwkey.HMACKey {
	c.t.Helper()
	key, err := c.ImportHMAC(c.t.Context(), secret, "")
	if err != nil {
		c.t.Fatal(err)
	}
	return key
}

func (c *chip) pair() hwkey.Key {
	c.t.Helper()
	key, err := c.Create(c.t.Context(), hwkey.CreateOptions{Algorithm: hwkey.ECDSAP256})
	if err != nil {
		c.t.Fatal(err)
	}
	return key
}

// pem brings a secret into the TPM for a keyring.
func (c *chip) pem(secret []byte) []byte {
	c.t.Helper()
	key := c.hmac(secret)
	defer key.Close()
	pem, err := c.MarshalHMAC(key)
	if err != nil {
		c.t.Fatal(err)
	}
	return pem
}

// newTPMSite starts a server with alice's secret in its TPM.
func newTPMSite(t testing.TB, c *chip, cfg ServerConfig) *site {
	path := filepath.Join(t.TempDir(), "keys.json")
	err := keyring.Edit(path, func(l *keyring.List) error {
		return errors.Join(l.Add(alice, keyring.TPMKey(c.pem(aliceSecret))), l.Add(bob, &keyring.Key{Secret: bobSecret}))
	})
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Keys, err = keyring.Open(path, keyring.Options{OpenTPM: c.OpenHMAC}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cfg.Keys.Close() })
	s := newSite(t, cfg)
	s.path = path
	return s
}

// A key in a TPM is admitted in each profile and form it is good for, with one
// TPM command for each connection.
func TestOneTPMCommandPerConnection(t *testing.T) {
	c := newChip(t)
	secret, pair := c.hmac(aliceSecret), c.pair()
	for _, tt := range []struct {
		name    string
		cfg     Config
		srv     ServerConfig
		command string
		want    string
		each    int // commands for a connection
	}{
		{"token", Config{HMAC: secret}, ServerConfig{}, "HMAC", "alice 1 token ", 1},
		{"JWT", Config{HMAC: secret, Form: JWT}, ServerConfig{}, "HMAC", "alice 1 jwt ", 1},
		{"JWE", Config{HMAC: secret, Form: JWE}, ServerConfig{}, "HMAC", "alice 1 jwe ", 1},
		{"MACs", Config{HMAC: secret, PerRequest: true}, ServerConfig{PerRequest: true}, "HMAC", "alice 1 token ", 1},
		{"token of a key pair", Config{ID: "pair", Key: pair}, ServerConfig{}, "Sign", "pair 1 token ", 1},
		{"JWT of a key pair", Config{ID: "pair", Key: pair, Form: JWT}, ServerConfig{}, "Sign", "pair 1 jwt ", 1},
		{"sample token", Config{HMAC: secret, Profile: Sample}, ServerConfig{Profile: Sample}, "HMAC", "alice 1 token ", 1},
		{"sample JWT", Config{HMAC: secret, Profile: Sample, Form: JWT}, ServerConfig{Profile: Sample, DefaultID: alice}, "HMAC", "alice 1 jwt ", 1},
		{"sample JWE", Config{HMAC: secret, Profile: Sample, Form: JWE}, ServerConfig{Profile: Sample}, "HMAC", "alice 1 jwe ", 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bothVersions(t, func(t *testing.T, http2 bool) {
				s := newSite(t, tt.srv)
				s.knows("pair", pair)
				if tt.command == "HMAC" {
					secret.HMAC(t.Context(), nil)
				} else {
					signP256(pair, nil)
				}
				cfg := tt.cfg
				client := s.client(cfg, http2)
				before := c.Commands()
				const connections = 4
				for range connections {
					for range 5 {
						wantAdmitted(t, client, s.http.URL, tt.want)
					}
					client.CloseIdleConnections()
				}
				after := c.Commands()
				total := 0
				for name, n := range after {
					total += n - before[name]
				}
				if n := after[tt.command] - before[tt.command]; n != tt.each*connections || total != n {
					t.Errorf("%d %s and %d commands for %d connections", n, tt.command, total, connections)
				}
			})
		})
	}
}

// 64 connections at once share a TPM, with either kind of key.
func TestManyConnectionsOnOneTPM(t *testing.T) {
	c := newChip(t)
	secret, pair := c.hmac(aliceSecret), c.pair()
	s := newSite(t, ServerConfig{})
	s.knows("pair", pair)
	var seen conns
	s.app = func(_ http.ResponseWriter, r *http.Request) { seen.see(r) }
	begin := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 64 {
		cfg, want := Config{HMAC: secret}, "alice 1 token "
		if i%2 == 1 {
			cfg, want = Config{ID: "pair", Key: pair}, "pair 1 token "
		}
		client := s.client(cfg, i%4 < 2)
		wg.Go(func() {
			<-begin
			for range 3 {
				resp, err := client.Get(s.http.URL)
				if err != nil {
					t.Error(err)
					return
				}
				if got := readAll(t, resp); got != want {
					t.Errorf("%s %q", resp.Status, got)
				}
			}
		})
	}
	close(begin)
	wg.Wait()
	if n := seen.count(); n != 64 {
		t.Errorf("%d connections", n)
	}
}

// The server's copy of a secret may be in its own TPM, in both profiles.
func TestSecretInTheServersTPM(t *testing.T) {
	for _, tt := range []struct {
		cfg Config
		srv ServerConfig
	}{
		{Config{}, ServerConfig{}}, {Config{Form: JWT}, ServerConfig{}}, {Config{Form: JWE, PerRequest: true}, ServerConfig{PerRequest: true}},
		{Config{Profile: Sample}, ServerConfig{Profile: Sample}}, {Config{Profile: Sample, Form: JWE}, ServerConfig{Profile: Sample}},
	} {
		t.Run(fmt.Sprint(tt.cfg.Profile, tt.cfg.Form), func(t *testing.T) {
			c := newChip(t)
			s := newTPMSite(t, c, tt.srv)
			client := s.client(tt.cfg, true)
			want := "alice 1 " + tt.cfg.Form.String() + " "
			wantAdmitted(t, client, s.http.URL, want)
			before := c.Commands()["HMAC"]
			for range 10 {
				wantAdmitted(t, client, s.http.URL, want)
			}
			if n := c.Commands()["HMAC"]; n != before {
				t.Errorf("%d TPM commands for requests on a connection that is known", n-before)
			}
		})
	}
}

// Where secrets are in the server's TPM, who is not known costs the TPM what a
// wrong token does.
func TestUnknownClientAsksTheTPM(t *testing.T) {
	c := newChip(t)
	s := newTPMSite(t, c, ServerConfig{})
	l := s.dial()
	count := func(id string) int {
		before := c.Commands()["HMAC"]
		wantRefused(t, id, l.bearer(formatToken(id, make([]byte, 32))))
		return c.Commands()["HMAC"] - before
	}
	count(alice) // loads the key
	for _, id := range []string{alice, "nobody", "somebody-else"} {
		if n := count(id); n != 1 {
			t.Errorf("%s: %d HMACs of the TPM, want 1", id, n)
		}
	}
}

// A server whose TPM fails says 503 and never 401, which would be the client's
// fault, and goes on when the TPM does.
func TestServersTPMFails(t *testing.T) {
	c := newChip(t)
	s := newTPMSite(t, c, ServerConfig{})
	open := s.client(Config{}, true)
	wantAdmitted(t, open, s.http.URL, "alice 1 token ")
	c.cut(errors.New("the chip is on fire"))
	for _, form := range []Form{Token, JWT, JWE} {
		resp, err := s.client(Config{Form: form}, true).Get(s.http.URL)
		if err != nil {
			t.Fatal(err)
		}
		body := readAll(t, resp)
		if resp.StatusCode != 503 || !strings.Contains(body, `"reason":"unavailable"`) || resp.Header.Get("Retry-After") == "" || resp.Header.Get("Www-Authenticate") != "" {
			t.Errorf("%s: %s %s %v", form, resp.Status, body, resp.Header)
		}
		if strings.Contains(body, "fire") {
			t.Errorf("the client is told %s", body)
		}
	}
	if log := s.log.take(); !strings.Contains(log, "the chip is on fire") {
		t.Errorf("log %s", log)
	}
	wantAdmitted(t, open, s.http.URL, "alice 1 token ") // what is known of the connection stays
	wantAdmitted(t, s.client(Config{ID: bob, HMAC: softHMAC(t, bobSecret)}, true), s.http.URL, "bob 1 token ")
	c.cut(nil)
	wantAdmitted(t, s.client(Config{}, true), s.http.URL, "alice 1 token ")
}

// A key of another TPM on the server is the server's fault too.
func TestServersKeyIsOfAnotherTPM(t *testing.T) {
	mine, other := newChip(t), newChip(t)
	pem := other.pem(aliceSecret)
	path := filepath.Join(t.TempDir(), "keys.json")
	if err := keyring.Edit(path, func(l *keyring.List) error { return l.Add(alice, keyring.TPMKey(pem)) }); err != nil {
		t.Fatal(err)
	}
	ring, err := keyring.Open(path, keyring.Options{OpenTPM: mine.OpenHMAC})
	if err != nil {
		t.Fatal(err)
	}
	defer ring.Close()
	s := newSite(t, ServerConfig{Keys: ring})
	if code, body := get(t, s.client(Config{}, true), s.http.URL); code != 503 {
		t.Errorf("%d %s", code, body)
	}
	if log := s.log.take(); !strings.Contains(log, "the key is lost") {
		t.Errorf("log %s", log)
	}
}

// The client's TPM trouble is the request's error, in words.
func TestClientsTPMTrouble(t *testing.T) {
	s := newSite(t, ServerConfig{})
	trouble := func(t *testing.T, key hwkey.HMACKey, lost bool, words ...string) {
		t.Helper()
		_, err := s.client(Config{HMAC: key}, true).Get(s.http.URL)
		if err == nil {
			t.Fatal("no error")
		}
		for _, w := range append(words, "limpet: channel: ", "the client's key") {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("error %q does not say %q", err, w)
			}
		}
		if errors.Is(err, hwkey.ErrLost) != lost {
			t.Errorf("error %v: lost is %v", err, !lost)
		}
	}
	t.Run("cut off", func(t *testing.T) {
		c := newChip(t)
		key := c.hmac(aliceSecret)
		c.cut(errors.New("no such device"))
		trouble(t, key, false, "no such device")
		c.cut(nil)
		wantAdmitted(t, s.client(Config{HMAC: key}, true), s.http.URL, "alice 1 token ")
	})
	t.Run("another TPM", func(t *testing.T) {
		c, other := newChip(t), limpettest.SoftTPM(t)
		key := c.hmac(aliceSecret)
		c.cut(nil)
		c.mu.Lock()
		c.tpm = other
		c.mu.Unlock()
		trouble(t, key, true, "another one now")
	})
	t.Run("cleared", func(t *testing.T) {
		c := newChip(t)
		key := c.hmac(aliceSecret)
		wantAdmitted(t, s.client(Config{HMAC: key}, true), s.http.URL, "alice 1 token ")
		if _, err := (tpm2.Clear{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHLockout, Auth: tpm2.PasswordAuth(nil)}}).Execute(c); err != nil {
			t.Fatal(err)
		}
		trouble(t, key, true, "the TPM was cleared")
	})
	t.Run("locked out", func(t *testing.T) {
		c := newChip(t)
		key, pair := c.hmac(aliceSecret), c.pair()
		s.knows("locked", pair)
		lockOut(t, c)
		wantAdmitted(t, s.client(Config{HMAC: key}, true), s.http.URL, "alice 1 token ")
		wantAdmitted(t, s.client(Config{ID: "locked", Key: pair}, true), s.http.URL, "locked 1 token ")
	})
	t.Run("closed key", func(t *testing.T) {
		key := newChip(t).hmac(aliceSecret)
		key.Close()
		trouble(t, key, false, "closed")
	})
}

// lockOut has the TPM refuse keys that count towards its lockout.
func lockOut(t *testing.T, c *chip) {
	t.Helper()
	template := tpm2.ECCSRKTemplate
	template.ObjectAttributes.NoDA = false
	foreign, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		InSensitive:   tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{UserAuth: tpm2.TPM2BAuth{Buffer: []byte("right")}}},
		InPublic:      tpm2.New2B(template),
	}.Execute(c)
	if err != nil {
		t.Fatal(err)
	}
	// TPM2_DictionaryAttackParameters (Part 3, 25.3): one try, 1000 s, 1000 s.
	rsp, err := c.Send([]byte("\x80\x02\x00\x00\x00\x27\x00\x00\x01\x3a\x40\x00\x00\x0a" +
		"\x00\x00\x00\x09\x40\x00\x00\x09\x00\x00\x00\x00\x00" + "\x00\x00\x00\x01\x00\x00\x03\xe8\x00\x00\x03\xe8"))
	if err != nil || binary.BigEndian.Uint32(rsp[6:]) != 0 {
		t.Fatalf("answer %x, error %v", rsp, err)
	}
	for range 5 {
		_, err = tpm2.Create{
			ParentHandle: tpm2.AuthHandle{Handle: foreign.ObjectHandle, Name: foreign.Name, Auth: tpm2.PasswordAuth([]byte("wrong"))},
			InPublic:     tpm2.New2B(tpm2.ECCSRKTemplate),
		}.Execute(c)
	}
	if !errors.Is(err, tpm2.TPMRCLockout) {
		t.Fatalf("error %v, want the lockout", err)
	}
	if _, err := (tpm2.FlushContext{FlushHandle: foreign.ObjectHandle}).Execute(c); err != nil {
		t.Fatal(err)
	}
}
