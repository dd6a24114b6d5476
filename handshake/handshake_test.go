package handshake

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/keyring"
)

var (
	secretA = keyring.Secret("0123456789abcdef0123456789abcdef")
	secretB = keyring.Secret("fedcba9876543210fedcba9876543210")
)

// pair returns a server and a client that share a secret.
func pair() (srv, cli *Config) {
	keys := Shared(secretA)
	quiet := slog.New(slog.DiscardHandler)
	return &Config{ID: "db", Keys: keys, Logger: quiet}, &Config{ID: "web", Peer: "db", Keys: keys, Logger: quiet}
}

// signed returns a server and a client that know each other's public key.
func signed(srvKey, cliKey crypto.Signer) (srv, cli *Config) {
	srv, cli = pair()
	srv.Signer, srv.Keys = srvKey, only("web", Key{Public: cliKey.Public()})
	cli.Signer, cli.Keys = cliKey, only("db", Key{Public: srvKey.Public()})
	return srv, cli
}

// only returns the keys of one peer.
func only(peer string, keys ...Key) func(string) []Key {
	return func(p string) []Key {
		if p == peer {
			return keys
		}
		return nil
	}
}

func newECDSA(t testing.TB) *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newEd25519(t testing.TB) ed25519.PrivateKey {
	_, k, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// ends is what became of both ends of a connection.
type ends struct {
	client, server       *Conn
	clientErr, serverErr error
}

// meet runs both ends on a connection.
func meet(a, b net.Conn, srv, cli *Config) (e ends) {
	ctx := context.Background()
	var wg sync.WaitGroup
	wg.Go(func() { e.server, e.serverErr = Server(ctx, b, srv) })
	e.client, e.clientErr = Client(ctx, a, cli)
	wg.Wait()
	return e
}

func piped(srv, cli *Config) ends {
	a, b := net.Pipe()
	return meet(a, b, srv, cli)
}

// agree fails unless both ends know each other and can talk.
func (e ends) agree(t *testing.T, srv, cli *Config) {
	t.Helper()
	if e.clientErr != nil || e.serverErr != nil {
		t.Fatalf("client: %v; server: %v", e.clientErr, e.serverErr)
	}
	if e.client.PeerID() != srv.ID || e.server.PeerID() != cli.ID {
		t.Errorf("the client sees %q, the server %q", e.client.PeerID(), e.server.PeerID())
	}
	if e.client.SessionID() != e.server.SessionID() || e.client.SessionID() == [32]byte{} {
		t.Error("they have no session in common")
	}
	talk(t, e.client, e.server)
	talk(t, e.server, e.client)
}

func talk(t *testing.T, from, to net.Conn) {
	t.Helper()
	go from.Write([]byte("ping"))
	got := make([]byte, 4)
	if _, err := io.ReadFull(to, got); err != nil || string(got) != "ping" {
		t.Fatalf("%q, %v", got, err)
	}
}

// refused fails unless both ends fail and have closed the connection.
func (e ends) refused(t *testing.T) {
	t.Helper()
	if e.client != nil || e.server != nil || e.clientErr == nil || e.serverErr == nil {
		t.Errorf("admitted: client %v, server %v", e.clientErr, e.serverErr)
	}
	for _, err := range []error{e.clientErr, e.serverErr} {
		if err != nil && !strings.HasPrefix(err.Error(), "limpet: handshake: ") {
			t.Errorf("%v", err)
		}
	}
}

// hardware is an HMAC key that nobody can read.
func hardware(secret []byte) func(context.Context, []byte) ([]byte, error) {
	return func(ctx context.Context, message []byte) ([]byte, error) {
		if len(message) > 1024 {
			return nil, errors.New("too long for a TPM")
		}
		mac := hmac.New(sha256.New, secret)
		mac.Write(message)
		return mac.Sum(nil), ctx.Err()
	}
}

func TestHandshake(t *testing.T) {
	p256, other, ed := newECDSA(t), newECDSA(t), newEd25519(t)
	long := strings.Repeat("n", keyring.MaxID)
	for name, change := range map[string]func(srv, cli *Config){
		"HMAC-SHA256":     func(srv, cli *Config) {},
		"HMAC-SHA512":     func(srv, cli *Config) { cli.SHA512 = true },
		"secret in a TPM": func(srv, cli *Config) { srv.Keys = only("web", Key{Version: 1, HMAC: hardware(secretA)}) },
		"both in TPMs": func(srv, cli *Config) {
			srv.Keys = Shared(secretA)
			cli.Keys = only("db", Key{Version: 1, HMAC: hardware(secretA)})
		},
		"128-byte secret":      func(srv, cli *Config) { k := Shared(longSecret(128)); srv.Keys, cli.Keys = k, k },
		"16-byte secret":       func(srv, cli *Config) { k := Shared(longSecret(16)); srv.Keys, cli.Keys = k, k },
		"long names":           func(srv, cli *Config) { srv.ID, cli.Peer, cli.ID = long, long, long[1:] },
		"ECDSA":                func(srv, cli *Config) { s, c := signed(p256, other); *srv, *cli = *s, *c },
		"Ed25519":              func(srv, cli *Config) { s, c := signed(ed, newEd25519(t)); *srv, *cli = *s, *c },
		"ECDSA and Ed25519":    func(srv, cli *Config) { s, c := signed(p256, ed); *srv, *cli = *s, *c },
		"Ed25519 and ECDSA":    func(srv, cli *Config) { s, c := signed(ed, p256); *srv, *cli = *s, *c },
		"signed, long names":   func(srv, cli *Config) { *srv, *cli = signedAs(p256, other, long, long[1:]) },
		"secrets and a Signer": func(srv, cli *Config) { srv.Signer, cli.Signer = p256, other },
	} {
		for _, records := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/records=%v", name, records), func(t *testing.T) {
				t.Parallel()
				srv, cli := pair()
				change(srv, cli)
				srv.Records, cli.Records = records, records
				piped(srv, cli).agree(t, srv, cli)
			})
		}
	}
}

func signedAs(srvKey, cliKey crypto.Signer, srvID, cliID string) (srv, cli Config) {
	s, c := signed(srvKey, cliKey)
	s.ID, s.Keys = srvID, only(cliID, Key{Public: cliKey.Public()})
	c.ID, c.Peer, c.Keys = cliID, srvID, only(srvID, Key{Public: srvKey.Public()})
	return *s, *c
}

func longSecret(n int) []byte {
	s := make([]byte, n)
	for i := range s {
		s[i] = byte(i + 1)
	}
	return s
}

func TestWhoIsRefused(t *testing.T) {
	p256, other, ed := newECDSA(t), newECDSA(t), newEd25519(t)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(srv, cli *Config)
		server string // in the server's error
	}{
		"another secret":          {func(srv, cli *Config) { cli.Keys = Shared(secretB) }, "not proven"},
		"an unknown name":         {func(srv, cli *Config) { srv.Keys = only("other", Key{Version: 1, Secret: secretA}) }, "not proven"},
		"another server is meant": {func(srv, cli *Config) { cli.Peer = "cache" }, "another server"},
		"the server's own name":   {func(srv, cli *Config) { srv.ID, cli.ID, cli.Peer = "web", "web", "db" }, "another server"},
		"another version":         {func(srv, cli *Config) { cli.Keys = only("db", Key{Version: 2, Secret: secretA}) }, "not proven"},
		"records at one end":      {func(srv, cli *Config) { cli.Records = true }, "Records"},
		"records at the other":    {func(srv, cli *Config) { srv.Records = true }, "Records"},
		"a TPM that fails":        {func(srv, cli *Config) { srv.Keys = only("web", Key{Version: 1, HMAC: noHMAC}) }, "TPM is out"},
		"a TPM asked for SHA-512": {func(srv, cli *Config) {
			srv.Keys = only("web", Key{Version: 1, HMAC: hardware(secretA)})
			cli.SHA512 = true
		}, "HMAC-SHA256 only"},
		"a secret that is short": {func(srv, cli *Config) { srv.Keys = only("web", Key{Version: 1, Secret: secretA[:15]}) }, "guessed"},
		"a MAC for a signature":  {func(srv, cli *Config) { s, _ := signed(p256, other); *srv = *s }, "not proven"},
		"a signature for a MAC":  {func(srv, cli *Config) { _, c := signed(p256, other); *cli = *c }, "not proven"},
		"another client key":     {func(srv, cli *Config) { s, c := signed(p256, other); *srv, *cli = *s, *c; cli.Signer = newECDSA(t) }, "not proven"},
		"another server key":     {func(srv, cli *Config) { s, c := signed(p256, other); *srv, *cli = *s, *c; srv.Signer = newECDSA(t) }, ""},
		"another key of that ID": {func(srv, cli *Config) {
			s, c := signed(p256, other)
			*srv, *cli = *s, *c
			cli.Signer = &liar{newECDSA(t), other.Public()}
		}, "not proven"},
		"the server lies too": {func(srv, cli *Config) {
			s, c := signed(p256, other)
			*srv, *cli = *s, *c
			srv.Signer = &liar{newECDSA(t), p256.Public()}
		}, ""},
		"Ed25519 under another": {func(srv, cli *Config) {
			s, c := signed(ed, newEd25519(t))
			*srv, *cli = *s, *c
			cli.Signer = newEd25519(t)
		}, "not proven"},
		"a curve that is not known": {func(srv, cli *Config) { s, c := signed(p256, other); *srv, *cli = *s, *c; cli.Signer = p384 }, ""},
		"a server without a Signer": {func(srv, cli *Config) { s, c := signed(p256, other); *srv, *cli = *s, *c; srv.Signer = nil }, "no device key to sign with"},
		"a client without a Signer": {func(srv, cli *Config) { s, c := signed(p256, other); *srv, *cli = *s, *c; cli.Signer = nil }, ""},
		"a client without a key":    {func(srv, cli *Config) { cli.Keys = only("x") }, ""},
		"a key that is none":        {func(srv, cli *Config) { cli.Keys = only("db", Key{}) }, ""},
		"a key that is two":         {func(srv, cli *Config) { cli.Keys = only("db", Key{Secret: secretA, Public: p256.Public()}) }, ""},
		"channel without TLS":       {func(srv, cli *Config) { srv.Channel, cli.Channel = true, true }, "no TLS"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv, cli := pair()
			c.change(srv, cli)
			e := piped(srv, cli)
			if strings.Contains(name, "server key") || strings.Contains(name, "server lies") {
				// The server knows the client by then, who goes away.
				if e.client != nil || !errors.Is(e.clientErr, ErrUnauthenticated) {
					t.Errorf("the client: %v", e.clientErr)
				}
				return
			}
			e.refused(t)
			if !strings.Contains(fmt.Sprint(e.serverErr, e.clientErr), c.server) {
				t.Errorf("the server: %v; the client: %v", e.serverErr, e.clientErr)
			}
			if strings.Contains(fmt.Sprint(e.serverErr), "web") {
				t.Errorf("the server tells what was said to it: %v", e.serverErr)
			}
		})
	}
}

func noHMAC(context.Context, []byte) ([]byte, error) { return nil, errors.New("the TPM is out") }

// liar signs with one key and shows another.
type liar struct {
	crypto.Signer
	public crypto.PublicKey
}

func (l *liar) Public() crypto.PublicKey { return l.public }

// The name of a peer that has the server's own is refused even if the group's
// secret proves it: the server's connections to others cannot be turned into
// connections to itself.
func TestOwnNameIsRefused(t *testing.T) {
	srv, cli := pair()
	x, y := new(exchange), new(exchange)
	x.server.cfg, y.client.cfg = srv, &Config{ID: "db", Peer: "db", Keys: cli.Keys}
	hello, err := y.client.prove(t.Context(), nil, x.server.greet(nil))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x.server.answer(t.Context(), nil, hello); !errors.Is(err, ErrUnauthenticated) || !strings.Contains(err.Error(), "own name") {
		t.Error(err)
	}
}

func TestRotation(t *testing.T) {
	v1, v2 := Key{Version: 1, Secret: secretA}, Key{Version: 2, Secret: secretB}
	k1, k2, own := newECDSA(t), newECDSA(t), newECDSA(t)
	for _, c := range []struct {
		server, client []Key
		ok             bool
	}{
		{[]Key{v1}, []Key{v1}, true},
		{[]Key{v2, v1}, []Key{v1}, true},
		{[]Key{v2, v1}, []Key{v2, v1}, true},
		{[]Key{v2}, []Key{v2, v1}, true},
		{[]Key{v2}, []Key{v1}, false},
	} {
		srv, cli := pair()
		srv.Keys, cli.Keys = only("web", c.server...), only("db", c.client...)
		if e := piped(srv, cli); (e.clientErr == nil) != c.ok {
			t.Errorf("%v at the server, %v at the client: %v", c.server, c.client, e.clientErr)
		}
		srv, cli = signed(own, k1)
		public := func(keys []Key) (of []Key) {
			for _, k := range keys {
				of = append(of, Key{Public: map[int]*ecdsa.PrivateKey{1: k1, 2: k2}[k.Version].Public()})
			}
			return of
		}
		srv.Keys = only("web", public(c.server)...)
		cli.Signer = map[int]*ecdsa.PrivateKey{1: k1, 2: k2}[c.client[0].Version]
		if e := piped(srv, cli); (e.clientErr == nil) != c.ok {
			t.Errorf("public keys: %v at the server, %v at the client: %v", c.server, c.client, e.clientErr)
		}
	}
	// The server's own key changes.
	srv, cli := signed(k2, own)
	cli.Keys = only("db", Key{Public: k2.Public()}, Key{Public: k1.Public()})
	for _, k := range []crypto.Signer{k1, k2} {
		srv.Signer = k
		piped(srv, cli).agree(t, srv, cli)
	}
}

// A ring's file changes while a server runs.
func TestRing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	edit := func(change func(*keyring.List) error) {
		t.Helper()
		if err := keyring.Edit(path, change); err != nil {
			t.Fatal(err)
		}
	}
	device := newECDSA(t)
	edit(func(l *keyring.List) error {
		return errors.Join(l.Add("web", &keyring.Key{Secret: secretA}), l.Add("signer", &keyring.Key{Public: &device.PublicKey}),
			l.Add("tpm", keyring.TPMKey([]byte("a key"))))
	})
	ring, err := keyring.Open(path, keyring.Options{})
	if err != nil {
		t.Fatal(err)
	}
	srv, cli := pair()
	srv.Keys = FromRing(ring)
	piped(srv, cli).agree(t, srv, cli)
	edit(func(l *keyring.List) error { return l.Rotate("web", &keyring.Key{Secret: secretB}) })
	if err := ring.Reload(); err != nil {
		t.Fatal(err)
	}
	piped(srv, cli).agree(t, srv, cli) // with the old one
	edit(func(l *keyring.List) error { return l.Retire("web") })
	if err := ring.Reload(); err != nil {
		t.Fatal(err)
	}
	piped(srv, cli).refused(t)

	own := newEd25519(t)
	srv.Signer = own
	cli.ID, cli.Signer, cli.Keys = "signer", device, only("db", Key{Public: own.Public()})
	piped(srv, cli).agree(t, srv, cli)
	cli.ID, cli.Keys = "tpm", Shared(secretA)
	e := piped(srv, cli)
	e.refused(t)
	if !strings.Contains(e.serverErr.Error(), "this program uses none") {
		t.Error(e.serverErr)
	}
}

func TestConfigIsChecked(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"no ID":              func(c *Config) { c.ID = "" },
		"odd ID":             func(c *Config) { c.ID = "a b" },
		"no Peer":            func(c *Config) { c.Peer = "" },
		"itself":             func(c *Config) { c.Peer = c.ID },
		"no Keys":            func(c *Config) { c.Keys = nil },
		"unknown wire":       func(c *Config) { c.Wire = 9 },
		"negative wire":      func(c *Config) { c.Wire = -1 },
		"MD5 on ours":        func(c *Config) { c.MD5 = true },
		"classic records":    func(c *Config) { c.Wire, c.Records = Classic, true },
		"Python and channel": func(c *Config) { c.Wire, c.Channel = Python, true },
	} {
		_, cli := pair()
		change(cli)
		a, b := net.Pipe()
		if _, err := Client(t.Context(), a, cli); err == nil || !strings.HasPrefix(err.Error(), "limpet: handshake: config: ") {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := b.Read(make([]byte, 1)); err == nil {
			t.Errorf("%s: the connection stays open", name)
		}
		if _, err := (&Dialer{Config: *cli}).Dial(t.Context(), "tcp", "127.0.0.1:1"); err == nil || !strings.Contains(err.Error(), "config") {
			t.Errorf("%s: %v", name, err)
		}
		if strings.Contains(name, "Peer") || name == "itself" {
			continue
		}
		if _, err := Server(t.Context(), b, cli); err == nil || !strings.Contains(err.Error(), "config") {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := NewListener(nil, *cli); err == nil {
			t.Errorf("%s: a listener", name)
		}
	}
}

func TestCancel(t *testing.T) {
	srv, cli := pair()
	for name, run := range map[string]func(context.Context, net.Conn) (*Conn, error){
		"client": func(ctx context.Context, c net.Conn) (*Conn, error) { return Client(ctx, c, cli) },
		"server": func(ctx context.Context, c net.Conn) (*Conn, error) { return Server(ctx, c, srv) },
	} {
		ctx, cancel := context.WithCancel(t.Context())
		a, b := net.Pipe()
		go func() { time.Sleep(10 * time.Millisecond); cancel() }()
		if _, err := run(ctx, a); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := io.Copy(io.Discard, b); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		ctx, cancel = context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		a, _ = net.Pipe()
		if _, err := run(ctx, a); !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// tlsPair returns the two ends of a TLS connection.
func tlsPair(t *testing.T, maxVersion uint16) (client, server net.Conn) {
	t.Helper()
	srv, cli := tlsConfigs(t)
	srv.MaxVersion, cli.MaxVersion = maxVersion, maxVersion
	a, b := net.Pipe()
	return tls.Client(a, cli), tls.Server(b, srv)
}

func tlsConfigs(t *testing.T) (srv, cli *tls.Config) {
	t.Helper()
	key := newECDSA(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"db"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, &tls.Config{InsecureSkipVerify: true}
}

func TestTLSChannel(t *testing.T) {
	srv, cli := pair()
	srv.Channel, cli.Channel = true, true
	a, b := tlsPair(t, 0)
	meet(a, b, srv, cli).agree(t, srv, cli)

	// Whoever ends TLS in between passes all messages on.
	a, inner := tlsPair(t, 0)
	outer, b := tlsPair(t, 0)
	go func() { io.Copy(outer, inner); outer.Close() }()
	go func() { io.Copy(inner, outer); inner.Close() }()
	meet(a, b, srv, cli).refused(t)

	a, b = tlsPair(t, tls.VersionTLS12)
	meet(a, b, srv, cli).refused(t)

	srv.Channel = false
	a, b = tlsPair(t, 0)
	meet(a, b, srv, cli).refused(t)
	cli.Channel = false
	a, b = tlsPair(t, 0)
	meet(a, b, srv, cli).agree(t, srv, cli)
}

// Our HMAC is that of the standard library.
func TestHMAC(t *testing.T) {
	for _, keySize := range []int{0, 1, 32, 63, 64, 65, 127, 128, 129, 500} {
		for _, size := range []int{0, 1, 55, 64, 128, 300, maxTranscript} {
			key, message := make([]byte, keySize), make([]byte, size)
			rand.Read(key)
			rand.Read(message)
			var sum [sha512.Size]byte
			hmacSHA256.hmac(&sum, key, message)
			mac := hmac.New(sha256.New, key)
			mac.Write(message)
			if !hmac.Equal(mac.Sum(nil), sum[:sha256.Size]) {
				t.Errorf("HMAC-SHA256 of %d bytes under %d", size, keySize)
			}
			hmacSHA512.hmac(&sum, key, message)
			mac = hmac.New(sha512.New, key)
			mac.Write(message)
			if !hmac.Equal(mac.Sum(nil), sum[:]) {
				t.Errorf("HMAC-SHA512 of %d bytes under %d", size, keySize)
			}
		}
	}
}

func TestNothingSecretPrints(t *testing.T) {
	key := Key{Version: 7, Secret: secretA}
	for _, text := range []string{fmt.Sprint(key), fmt.Sprintf("%+v %#v", key, key), fmt.Sprintf("%x", key.Secret)} {
		if strings.Contains(text, string(secretA)) || strings.Contains(text, fmt.Sprintf("%x", []byte(secretA))) {
			t.Error(text)
		}
	}
	var b strings.Builder
	slog.New(slog.NewTextHandler(&b, nil)).Info("key", "key", key, "keys", []Key{key})
	if strings.Contains(b.String(), string(secretA)) {
		t.Error(b.String())
	}
}
