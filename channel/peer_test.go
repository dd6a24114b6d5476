//go:build linux

package channel

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/keyring"
)

// task is what testdata/peer.py does.
type task struct {
	Role      string        `json:"role"`
	Profile   string        `json:"profile"`
	Form      string        `json:"form"`
	ID        string        `json:"id"`
	Secret    string        `json:"secret,omitempty"` // hex
	Key       string        `json:"key,omitempty"`    // PEM
	Public    string        `json:"public,omitempty"` // PEM
	MACs      bool          `json:"macs,omitempty"`
	TLS12     bool          `json:"tls12,omitempty"`
	NoEMS     bool          `json:"no_ems,omitempty"`
	Address   string        `json:"address,omitempty"`
	Authority string        `json:"authority,omitempty"`
	CA        string        `json:"ca,omitempty"`    // file
	Token     string        `json:"token,omitempty"` // in place of its own
	Requests  []peerRequest `json:"requests,omitempty"`
	Cert      string        `json:"cert,omitempty"` // files
	CertKey   string        `json:"cert_key,omitempty"`
}

type peerRequest struct {
	Method string `json:"method"`
	Target string `json:"target"`
	Body   string `json:"body,omitempty"`
}

type peerAnswer struct {
	Status      int               `json:"status"`
	Body        string            `json:"body"`
	Fields      map[string]string `json:"fields"`
	Version     string            `json:"version"`
	Fingerprint string            `json:"fingerprint"`
	Theirs      string            `json:"theirs"`
	Port        int               `json:"port"`
	Refused     string            `json:"refused"`
}

func python(t *testing.T, work task) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	path, err := exec.LookPath("python3")
	if err != nil {
		t.Fatal("python3 is not installed: this test needs it and libssl.so.3 (Debian: apt-get install python3 libssl3)")
	}
	b, err := json.Marshal(work)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, filepath.Join("testdata", "peer.py"))
	cmd.Stdin = bytes.NewReader(append(b, '\n'))
	stderr := new(bytes.Buffer)
	cmd.Stderr = stderr
	return cmd, stderr
}

// ask has the client send its requests on one connection to a site.
func (s *site) ask(work task) []peerAnswer {
	s.t.Helper()
	t := s.t.(*testing.T)
	work.Role, work.Address = "client", s.http.Listener.Addr().String()
	work.Authority = work.Address
	work.CA = certificate(t, s.http)
	if work.Requests == nil {
		work.Requests = []peerRequest{{"GET", "/get", ""}, {"GET", "/a/b?c=d&e", ""}, {"POST", "/x", "hello"}}
	}
	cmd, stderr := python(t, work)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, stderr)
	}
	var answers []peerAnswer
	for _, b := range bytes.Split(bytes.TrimSpace(out), []byte("\n")) {
		var a peerAnswer
		if err := json.Unmarshal(b, &a); err != nil {
			t.Fatal(err)
		}
		answers = append(answers, a)
	}
	return answers
}

func certificate(t *testing.T, srv *httptest.Server) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "cert.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// newPair returns a key pair as PEM for the client, which has no keystore.
func newPair(t *testing.T) (key, public string, pub *ecdsa.PublicKey) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), publicPEM(t, &private.PublicKey), &private.PublicKey
}

func publicPEM(t *testing.T, pub any) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

var peerForms = []struct {
	profile Profile
	form    Form
	pair    bool
	macs    bool
	tls12   bool
}{
	{Limpet, Token, false, false, false}, {Limpet, JWT, false, false, false}, {Limpet, JWE, false, false, false},
	{Limpet, Token, true, false, false}, {Limpet, JWT, true, false, false},
	{Limpet, Token, false, true, false}, {Limpet, JWE, false, true, false},
	{Sample, Token, false, false, false}, {Sample, JWT, false, false, false}, {Sample, JWE, false, false, false},
	{Sample, Token, false, false, true}, {Sample, JWE, false, false, true},
}

func peerName(i int) string {
	f := peerForms[i]
	name := f.profile.String() + " " + f.form.String()
	for word, has := range map[string]bool{" of a key pair": f.pair, " and MACs": f.macs, " on TLS 1.2": f.tls12} {
		if has {
			name += word
		}
	}
	return name
}

// A client on OpenSSL that shares no code with ours derives the same tokens, and
// what it has sent is worthless on another connection of its.
func TestIndependentClient(t *testing.T) {
	key, _, public := newPair(t)
	for i, tt := range peerForms {
		t.Run(peerName(i), func(t *testing.T) {
			t.Parallel()
			s := newSite(t, ServerConfig{Profile: tt.profile, DefaultID: alice, PerRequest: tt.macs})
			work := task{Profile: tt.profile.String(), Form: tt.form.String(), ID: alice, Secret: hex.EncodeToString(aliceSecret), MACs: tt.macs, TLS12: tt.tls12}
			if tt.pair {
				work.ID, work.Key = "pair", key
				s.edit(func(l *keyring.List) error { return l.Add("pair", &keyring.Key{Public: public}) })
			}
			answers := s.ask(work)
			for j, a := range answers {
				want := work.ID + " 1 " + work.Form + " " + []string{"", "", "hello"}[j]
				if a.Status != 200 || a.Body != want {
					t.Errorf("%d %q, want %q: %s", a.Status, a.Body, want, s.log.take())
				}
				if wantVersion := map[bool]string{false: "TLSv1.3", true: "TLSv1.2"}[tt.tls12]; a.Version != wantVersion {
					t.Errorf("by %s", a.Version)
				}
			}
			if tt.profile == Limpet && !tt.macs {
				work.Token = strings.TrimPrefix(answers[0].Fields["authorization"], "Bearer ")
				work.Requests = []peerRequest{{"GET", "/", ""}}
				a := s.ask(work)[0]
				if a.Status != 401 || a.Theirs != a.Fingerprint {
					t.Errorf("the token on another connection: %d, fingerprints %s and %s", a.Status, a.Theirs, a.Fingerprint)
				}
			}
		})
	}
}

// Without extended master secret two connections of TLS 1.2 can be made to have
// the same keying material: nobody is admitted there.
func TestTLS12WithoutExtendedMasterSecret(t *testing.T) {
	s := newSite(t, ServerConfig{Profile: Sample, DefaultID: alice})
	for _, form := range []Form{Token, JWT, JWE} {
		for _, a := range s.ask(task{Profile: "sample", Form: form.String(), ID: alice, Secret: hex.EncodeToString(aliceSecret), TLS12: true, NoEMS: true}) {
			if a.Status != 401 || a.Theirs != "none" || !strings.Contains(a.Body, "client_required") {
				t.Errorf("%s: %d %s, fingerprint %q", form, a.Status, a.Body, a.Theirs)
			}
		}
	}
	if log := s.log.take(); !strings.Contains(log, "Extended Master Secret") {
		t.Errorf("log %s", log)
	}
	base := servePython(t, task{Profile: "sample", Form: "token", ID: alice, Secret: hex.EncodeToString(aliceSecret), TLS12: true, NoEMS: true})
	tr, err := NewTransport(Config{ID: alice, HMAC: softHMAC(t, aliceSecret), Profile: Sample, Base: base.transport})
	if err != nil {
		t.Fatal(err)
	}
	_, err = (&http.Client{Transport: tr}).Get(base.url)
	if err == nil || !strings.Contains(err.Error(), "Extended Master Secret") {
		t.Errorf("client: %v", err)
	}
}

// pythonServer is a server on OpenSSL.
type pythonServer struct {
	url       string
	transport *http.Transport
	out       *bufio.Reader
}

func servePython(t *testing.T, work task) *pythonServer {
	t.Helper()
	own := httptest.NewTLSServer(http.NotFoundHandler()) // for its certificate
	own.Close()
	work.Role, work.Cert = "server", certificate(t, own)
	der, err := x509.MarshalPKCS8PrivateKey(own.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	work.CertKey = filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(work.CertKey, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd, stderr := python(t, work)
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	p := &pythonServer{out: bufio.NewReader(stdout)}
	b, err := p.out.ReadBytes('\n')
	var a peerAnswer
	if err = errors.Join(err, json.Unmarshal(b, &a)); err != nil {
		cmd.Wait()
		t.Fatalf("%v: %s", err, stderr)
	}
	pool := x509.NewCertPool()
	pool.AddCert(own.Certificate())
	p.url = "https://127.0.0.1:" + jsonNumber(a.Port)
	p.transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	t.Cleanup(p.transport.CloseIdleConnections)
	return p
}

func jsonNumber(n int) string { b, _ := json.Marshal(n); return string(b) }

// A server on OpenSSL that shares no code with ours admits our client, on each of
// its connections, and not one that has another secret.
func TestIndependentServer(t *testing.T) {
	for i, tt := range peerForms {
		t.Run(peerName(i), func(t *testing.T) {
			t.Parallel()
			work := task{Profile: tt.profile.String(), Form: tt.form.String(), ID: alice, Secret: hex.EncodeToString(aliceSecret), MACs: tt.macs, TLS12: tt.tls12}
			cfg := Config{ID: alice, HMAC: softHMAC(t, aliceSecret), Profile: tt.profile, Form: tt.form, PerRequest: tt.macs}
			other := cfg
			other.HMAC = softHMAC(t, bobSecret)
			if tt.pair {
				key := softP256(t)
				cfg.Key, cfg.HMAC, work.Public = key, nil, publicPEM(t, key.Public())
				other.Key, other.HMAC = hwkey.Key(softP256(t)), nil
			}
			p := servePython(t, work)
			cfg.Base, other.Base = p.transport, p.transport
			tr, err := NewTransport(cfg)
			if err != nil {
				t.Fatal(err)
			}
			c := &http.Client{Transport: tr}
			for range 2 {
				wantAdmitted(t, c, p.url+"/get?a=b%20c&d", "ok ")
				body := io.Reader(strings.NewReader("hello"))
				if tt.macs { // which read it beforehand
					body = struct{ io.Reader }{body}
				}
				resp, err := c.Post(p.url+"/x%2Fy", "", body)
				if err != nil {
					t.Fatal(err)
				}
				if got := readAll(t, resp); got != "ok hello" {
					t.Errorf("%s %q", resp.Status, got)
				}
				c.CloseIdleConnections()
			}
			if tr, err = NewTransport(other); err != nil {
				t.Fatal(err)
			}
			if code, body := get(t, &http.Client{Transport: tr}, p.url); code != 401 {
				t.Errorf("another key: %d %s", code, body)
			}
		})
	}
}
