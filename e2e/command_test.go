package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/client"
	"github.com/limpet-auth/limpet/hwkey/softkey"
)

// user is somebody at a shell, with a home of their own.
type user struct {
	home string
	cert string // of servers to trust, "" for none
}

func newUser(t testing.TB, cert string) *user {
	u := &user{t.TempDir(), cert}
	write(t, filepath.Join(u.home, "password"), "secret")
	return u
}

// limpet runs the command and returns its exit code and what it wrote.
func (u *user) limpet(t testing.TB, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	cmd := exec.Command(binary, args...)
	cmd.Dir = u.home
	cmd.Env = []string{"HOME=" + u.home, "XDG_STATE_HOME=" + u.home, "LIMPET_TPM=unix:/nonexistent", "SSL_CERT_FILE=" + u.cert}
	var out, err bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &err
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), err.String()
}

// token returns the session token that the command has saved.
func (u *user) token(t testing.TB) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(u.home, "limpet", "sessions", "*.json"))
	if err != nil || len(files) != 1 {
		t.Fatalf("session files %q, want one: %v", files, err)
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	return answer{body: string(text)}.field("token")
}

// wants runs the command, which must exit with code and say a word.
func (u *user) wants(t testing.TB, code int, says string, args ...string) {
	t.Helper()
	got, stdout, stderr := u.limpet(t, args...)
	if got != code || !strings.Contains(stdout+stderr, says) {
		t.Errorf("limpet %s: exit code %d, want %d and %q\n%s%s", strings.Join(args, " "), got, code, says, stdout, stderr)
	}
}

// TestCommand: login, requests and logout on the default wire, with servers that
// are killed between any two of them. The user notices nothing.
func TestCommand(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	makeCertificate(t, cert, key)
	for _, tt := range []struct {
		name, cert string
		flags      []string
	}{
		{"http", "", nil},
		{"http, challenge", "", []string{"--challenge", "--mode", "require"}},
		{"https", cert, []string{"--tls-cert", cert, "--tls-key", key}},
		{"https, channel and challenge", cert, []string{"--tls-cert", cert, "--tls-key", key, "--channel", "--challenge", "--mode", "require"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			store := "bolt:" + filepath.Join(t.TempDir(), "store")
			s := mustServe(t, store, tt.flags...)
			at := s.url
			restart := func() {
				t.Helper()
				s = s.again(t, store, tt.flags...)
			}
			u := newUser(t, tt.cert)
			u.wants(t, 0, "logged in", "login", "--url", at, "--user", "alice", "--password-file", "password", "--register")
			u.wants(t, 0, `"level":"software"`, "request", at+"/authenticated")
			long := newProgram(t, at, tt.cert)
			long.login(t)
			long.request(t)
			for range 3 {
				restart()
				u.wants(t, 0, `"bytes":6,"method":"PUT","path":"/echo/a","query":"b=c"`, "request", "-X", "PUT", "-d", "@password", at+"/echo/a?b=c")
				long.request(t)
				long.request(t)
			}

			// The token in other hands is worth nothing.
			thief := &http.Client{Transport: long.over, Timeout: 30 * time.Second}
			for _, token := range []string{u.token(t), long.token} {
				r, err := http.NewRequest("GET", at+"/authenticated", nil)
				if err != nil {
					t.Fatal(err)
				}
				r.Header.Set("Authorization", "Bearer "+token)
				resp, err := thief.Do(r)
				if err != nil {
					t.Fatal(err)
				}
				if reason := client.Reason(resp); resp.StatusCode != 401 || reason != "proof_required" {
					t.Errorf("a copied token: %s %s", resp.Status, reason)
				}
				resp.Body.Close()
			}

			restart()
			u.wants(t, 0, "logged out", "logout")
			u.wants(t, 1, "not logged in", "request", at+"/authenticated")
			long.request(t)
			u.wants(t, 0, "logged in", "login", "--url", at, "--user", "alice", "--password-file", "password")
			restart()
			u.wants(t, 0, `"user":"alice"`, "request", at+"/authenticated")
		})
	}
}

// again kills a server and starts another one at its address.
func (s *server) again(t testing.TB, store string, flags ...string) *server {
	t.Helper()
	s.kill()
	address := s.url[strings.LastIndex(s.url, "/")+1:]
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		next, err := serve(store, append([]string{"--listen", address}, flags...)...)
		if err == nil {
			t.Cleanup(next.kill)
			return next
		}
		// Another test's connection may have the port for a moment.
		if !strings.Contains(err.Error(), "in use") || time.Since(began) > 10*time.Second {
			t.Fatal(err)
		}
	}
}

// TestOldWire: with --wire hw-sign the command has the session of before, and a
// server that asks for what only the default wire can do says so.
func TestOldWire(t *testing.T) {
	t.Parallel()
	store := "bolt:" + filepath.Join(t.TempDir(), "store")
	s := mustServe(t, store)
	u := newUser(t, "")
	u.wants(t, 0, "logged in", "login", "--url", s.url, "--user", "alice", "--password-file", "password", "--register", "--wire", "hw-sign")
	u.wants(t, 0, `"bytes":6`, "request", "-d", "@password", s.url+"/echo")
	s = s.again(t, store)
	u.wants(t, 0, `"bytes":6`, "request", "-d", "@password", s.url+"/echo")
	s = s.again(t, store, "--challenge")
	u.wants(t, 22, "challenge_required", "request", s.url+"/authenticated")
	u.wants(t, 0, "logged in", "login", "--url", s.url, "--user", "alice", "--password-file", "password")
	u.wants(t, 0, `"authenticated":true`, "request", s.url+"/authenticated")
}

// program is one that runs for long: its keys, connections and ephemeral key
// outlive the server's process.
type program struct {
	*http.Client
	over        *http.Transport
	base, token string
}

func newProgram(t testing.TB, base, cert string) *program {
	t.Helper()
	keys, err := softkey.Open(t.Context(), t.TempDir(), softkey.KeyFile(""))
	if err != nil {
		t.Fatal(err)
	}
	c := client.New(keys)
	t.Cleanup(func() { c.Close() })
	over := http.DefaultTransport.(*http.Transport).Clone()
	if cert != "" {
		text, err := os.ReadFile(cert)
		if err != nil {
			t.Fatal(err)
		}
		over.TLSClientConfig = &tls.Config{RootCAs: x509.NewCertPool()}
		over.TLSClientConfig.RootCAs.AppendCertsFromPEM(text)
	}
	return &program{Client: &http.Client{Transport: c.Transport(over), Timeout: 30 * time.Second}, over: over, base: base}
}

func (p *program) login(t testing.TB) {
	t.Helper()
	const account = `{"username":"bob","password":"secret"}`
	for _, path := range []string{"/register", "/login"} {
		resp, err := p.Post(p.base+path, "application/json", strings.NewReader(account))
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode > 299 {
			t.Fatalf("%s: %s %s %v", path, resp.Status, b, err)
		}
		p.token = answer{body: string(b)}.field("token")
	}
}

func (p *program) request(t testing.TB) {
	t.Helper()
	u, err := url.Parse(p.base + "/echo?of=" + randomHex(4))
	if err != nil {
		t.Fatal(err)
	}
	r := &http.Request{Method: "PUT", URL: u, Header: http.Header{"Authorization": {"Bearer " + p.token}},
		Body: io.NopCloser(strings.NewReader("12345")), ContentLength: 5,
		GetBody: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("12345")), nil }}
	resp, err := p.Do(r)
	if err != nil {
		t.Error(err)
		return
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != 200 || !strings.Contains(string(b), `"bytes":5`) {
		t.Errorf("%s %s %v", resp.Status, b, err)
	}
}

// makeCertificate writes a certificate for 127.0.0.1 and its key.
func makeCertificate(t testing.TB, certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA:         true, BasicConstraintsValid: true,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, certFile, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})))
	write(t, keyFile, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})))
}
