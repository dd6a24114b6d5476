package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// The rest of the prototype's weaknesses: what it prints, keeps and bears.

func TestSecretsInLogs(t *testing.T) {
	t.Parallel()
	s := mustServe(t, "mem:", "--log-level", "debug")
	p, e := ready(t, s.url, "ecdsa", "ecdh")
	long, signing := newEphemeral("ecdh-p256"), newEphemeral("ed25519")
	p.introduce(t, long)
	p.introduce(t, signing)
	data := stamp()
	h := p.proof(e, data)
	p.send(t, "GET", "/authenticated?token="+p.token+"&password="+p.password[:7], h, p.credentials())
	for _, bad := range []http.Header{h, nil, p.with(h, "data-sig", p.b64(long.z)), p.with(h, "accel-pub-id", p.token), p.with(h, "data", p.token), p.with(h, "accel-pub", p.token), p.with(h, "data-sig", p.password)} {
		p.get(t, bad)
	}
	p.send(t, "POST", "/login", p.offer(), `{"username":"`+p.password+`","password":"wrong"}`)
	p.send(t, "POST", "/login", p.with(p.offer(), "hw-pub", p.token), p.credentials())
	p.send(t, "POST", "/register", nil, p.credentials()+"x")
	p.send(t, "POST", "/register", nil, p.credentials())
	p.send(t, "GET", "/"+p.user, http.Header{"Cookie": {"session=" + p.token}}, "")
	p.send(t, "POST", "/logout", p.proof(e, stamp()), "")
	p.get(t, p.proof(signing, stamp()))
	raw(t, s.url, "GET / HTTP/1.1\r\nHost: a\r\nAuthorization Bearer "+p.token+"\r\n\r\n")

	log := s.out.String()
	if !strings.Contains(log, "refused") {
		t.Fatalf("the log at level debug says nothing of refusals:\n%s", log)
	}
	secrets := map[string][]byte{
		"token": []byte(p.token), "password": []byte(p.password), "Z": e.z, "Z of LONG": long.z,
		"P-data": []byte(data), "P-data-sig": e.prove([]byte(data)),
		"device key": p.device.public()[1:], "ephemeral key": e.public()[1:], "ephemeral signing key": signing.public(),
	}
	for name, secret := range secrets {
		for _, form := range spellings(secret) {
			if strings.Contains(log, form) {
				t.Errorf("the log contains the %s", name)
			}
		}
	}
}

// secretNames matches the names of what must not be compared byte by byte.
var secretNames = regexp.MustCompile(`(?i)^([\w.]*\.)?(tag|mac|hmac|sum|secret|password|hash)([\[(].*)?$`)

// publicNames matches what is no secret although the other side's name sounds
// like one: what a body's hash is compared with, and the tag of RFC 9421, a word.
var publicNames = regexp.MustCompile(`(?i:digest|bodyclaim)$|^Tag$`)

// TestConstantTimeCompares reads the code: wherever a tag, a secret or a
// password's hash is compared, crypto/subtle does it. What else the verifier
// compares (digests of bodies, ids, public keys) is known to the peer anyway.
func TestConstantTimeCompares(t *testing.T) {
	t.Parallel()
	constant := 0
	for _, dir := range []string{"..", "../proof", "../proof/httpsig", "../proof/hwsign", "../proof/dpop", "../store/boltstore", "../store/memstore", "../internal/replay", "../internal/authserver", "../cmd/limpet"} {
		files, err := filepath.Glob(dir + "/*.go")
		if err != nil || len(files) == 0 {
			t.Fatalf("no code in %s: %v", dir, err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			set := token.NewFileSet()
			f, err := parser.ParseFile(set, file, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(f, func(n ast.Node) bool {
				var compared []ast.Expr
				switch n := n.(type) {
				case *ast.BinaryExpr:
					if n.Op == token.EQL || n.Op == token.NEQ {
						compared = []ast.Expr{n.X, n.Y}
					}
				case *ast.CallExpr:
					switch types.ExprString(n.Fun) {
					case "bytes.Equal", "bytes.Compare", "strings.Compare", "strings.EqualFold", "slices.Equal":
						compared = n.Args
					case "subtle.ConstantTimeCompare", "hmac.Equal":
						constant++
					}
				}
				for _, x := range compared {
					name := types.ExprString(x)
					if secretNames.MatchString(name) && !strings.HasPrefix(name, "subtle.") {
						for _, y := range compared {
							if other := types.ExprString(y); other == "nil" || other == `""` || publicNames.MatchString(other) {
								return true
							}
						}
						t.Errorf("%s: %s is not compared in constant time", set.Position(n.Pos()), name)
					}
				}
				return true
			})
		}
	}
	if constant < 2 {
		t.Errorf("%d comparisons in constant time, want one of tags and one of passwords", constant)
	}
}

func TestNoLimits(t *testing.T) {
	t.Parallel()
	s := mustServe(t, "mem:")
	p, e := ready(t, s.url, "ecdsa", "ecdh")
	base := resident(t, s)

	for _, path := range []string{"/register", "/login"} {
		body := io.MultiReader(strings.NewReader(`{"username":"`), io.LimitReader(endless{}, 64<<20), strings.NewReader(`","password":"x"}`))
		resp, err := httpClient.Post(s.url+path, "application/json", body)
		if err == nil { // or the server hung up on us
			resp.Body.Close()
			if resp.StatusCode != 413 {
				t.Errorf("%s with a user name of 64 MiB: %s", path, resp.Status)
			}
		}
	}
	for name, h := range map[string]http.Header{
		"900 KiB in one header": {"X-Padding": {strings.Repeat("A", 900<<10)}},
		"900 KiB of proof":      p.with(p.proof(e, stamp()), "data", strings.Repeat("A", 900<<10)),
	} {
		a, err := do("GET", s.url+"/authenticated", p.authorized(h), "")
		if err == nil && a.status != 431 {
			t.Errorf("%s: %v", name, a)
		}
	}
	wantRefused(t, "9 KiB of proof", p.get(t, p.with(p.proof(e, stamp()), "data", strings.Repeat("A", 9<<10))), 431, "header_too_large")
	long := *p
	long.token = strings.Repeat("A", 9<<10)
	wantRefused(t, "9 KiB of token", long.get(t, nil), 431, "header_too_large")

	// What strangers send is not kept.
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 1000 {
				h := p.proof(newEphemeral("ed25519"), stamp())
				h.Set("Authorization", "Bearer "+randomHex(2000))
				do("GET", s.url+"/authenticated", p.with(h, "accel-pub-id", "0"+randomHex(11)), "")
			}
		})
	}
	wg.Wait()
	if grown := resident(t, s) - base; grown > 100<<10 {
		t.Errorf("the server has grown by %d KiB", grown)
	}
	wantAdmitted(t, "the server afterwards", p.get(t, p.proof(e, stamp())))
}

type endless struct{}

func (endless) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = 'A'
	}
	return len(b), nil
}

// resident returns how much memory a server uses, in KiB.
func resident(t testing.TB, s *server) (kib int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := bytes.Cut(b, []byte("VmRSS:"))
	if _, err := fmt.Fscan(bytes.NewReader(after), &kib); err != nil {
		t.Fatal(err)
	}
	return kib
}

// TestNoLimitsOnConnections: who says nothing, or says it slowly, is cut off
// while others are served.
func TestNoLimitsOnConnections(t *testing.T) {
	t.Parallel()
	p, e := ready(t, shared, "ecdsa", "ecdh")
	var wg sync.WaitGroup
	for _, head := range []string{"", "GET /authenticated HTTP/1.1\r\nHost: a\r\n", "G"} {
		for range 50 {
			conn, err := net.Dial("tcp", strings.TrimPrefix(shared, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(conn, head)
			wg.Go(func() {
				defer conn.Close()
				const patience = 15 * time.Second
				stop := time.Now().Add(patience)
				conn.SetReadDeadline(stop)
				for len(head) > 1 && time.Now().Before(stop) { // a byte now and then
					time.Sleep(500 * time.Millisecond)
					if _, err := io.WriteString(conn, "X"); err != nil {
						return
					}
				}
				if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("a connection that says %q is still open after %v", head, patience)
				}
			})
		}
	}
	for range 20 {
		began := time.Now()
		wantAdmitted(t, "meanwhile", p.get(t, p.proof(e, stamp())))
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("meanwhile a request takes %v", took)
		}
	}
	wg.Wait()
}

func TestAttestationThatVerifiesNothing(t *testing.T) {
	t.Parallel()
	p, e := ready(t, shared, "ecdsa", "ecdh")
	for _, path := range []string{"/verify-tpm-chain", "/verify-key-attestation", "/aik-challenge", "/aik-activate"} {
		a := p.send(t, "POST", path, p.proof(e, stamp()), `{"cert_chain":{},"key_type":"aik","challenge_id":"x","secret":"x"}`)
		if a.status < 400 || strings.Contains(a.body, "true") {
			t.Errorf("%s: %v", path, a)
		}
	}
	if a := p.get(t, p.proof(e, stamp())); strings.Contains(a.body, "hardware") {
		t.Errorf("a key in software: %v", a)
	}
	q := *p
	a := q.send(t, "POST", "/login", q.with(q.offer(), "hw-level", "hardware-attested"), q.credentials())
	q.token = a.field("token")
	q.introduce(t, e)
	if a := q.get(t, q.proof(e, stamp())); strings.Contains(a.body, "attested") {
		t.Errorf("a key that says it is attested: %v", a)
	}
}

func TestPasswordsInTheClear(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := mustServe(t, "bolt:"+filepath.Join(dir, "store"))
	p, e := ready(t, s.url, "ecdsa", "ecdh")
	data := stamp()
	wantAdmitted(t, "proof", p.get(t, p.proof(e, data)))
	s.kill()
	var kept []byte
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s is open to others: %v", d.Name(), info.Mode())
		}
		if !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		kept = append(kept, b...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(kept, []byte(p.user)) && !bytes.Contains(kept, p.device.public()) {
		t.Fatal("nothing of this session is in the store: the test looks in the wrong place")
	}
	for name, secret := range map[string][]byte{"password": []byte(p.password), "token": []byte(p.token), "Z": e.z} {
		for _, form := range spellings(secret) {
			if bytes.Contains(kept, []byte(form)) {
				t.Errorf("the store contains the %s", name)
			}
		}
	}
	if code, err := os.ReadFile("../internal/authserver/password.go"); err != nil || !bytes.Contains(code, []byte("argon2.IDKey(")) {
		t.Errorf("passwords are not hashed with Argon2id: %v", err)
	}
}
