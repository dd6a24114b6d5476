//go:build unix

package e2e

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/limpettest"
)

// noTPM is the TPM of those who have none.
const noTPM = "unix:/nonexistent"

// shell is a user's home in which curl runs.
type shell struct{ home string }

// curl runs curl, which knows nothing of Limpet, and returns what it wrote.
func (s *shell) curl(t testing.TB, args ...string) string {
	t.Helper()
	cmd := exec.Command("curl", append([]string{"--silent", "--show-error", "--max-time", "30", "--write-out", " %{http_code}"}, args...)...)
	cmd.Dir = s.home
	cmd.Env = []string{"HOME=" + s.home, "PATH=" + os.Getenv("PATH")}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("curl %q: %v\n%s", args, err, &stderr)
	}
	return string(out)
}

// gets has curl ask; its output ends in a status and has a word.
func (s *shell) gets(t testing.TB, code, says string, args ...string) {
	t.Helper()
	if out := s.curl(t, args...); !strings.HasSuffix(out, " "+code) || !strings.Contains(out, says) {
		t.Errorf("curl %q: %s, want %s and %s", args, out, says, code)
	}
}

// run starts `limpet agent` for a user, and waits until it listens.
func (s *shell) run(t testing.TB, tpm string, flags ...string) *server {
	t.Helper()
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		a := &server{cmd: exec.Command(binary, append([]string{"agent"}, flags...)...), out: &output{}, done: make(chan struct{})}
		a.cmd.Env = []string{"HOME=" + s.home, "XDG_STATE_HOME=" + s.home, "LIMPET_TPM=" + tpm}
		a.cmd.Stdout, a.cmd.Stderr = a.out, a.out
		if err := a.cmd.Start(); err != nil {
			t.Fatal(err)
		}
		go func() { a.err = a.cmd.Wait(); close(a.done) }()
		t.Cleanup(a.kill)
		for range 4000 {
			if found := agentListens.FindStringSubmatch(a.out.String()); found != nil {
				a.url = found[1]
				return a
			}
			select {
			case <-a.done:
			case <-time.After(5 * time.Millisecond):
				continue
			}
			break
		}
		// Another test's connection may have the port for a moment.
		if !strings.Contains(a.out.String(), "in use") || time.Since(began) > 10*time.Second {
			t.Fatalf("the agent does not listen: %s", a.out)
		}
	}
}

var agentListens = regexp.MustCompile(`listening on (\S+) for`)

func (s *shell) file(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.home, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestCurl: an unmodified curl logs in at an unmodified app, with agent and
// gateway between. Its cookie jar is worth nothing elsewhere; also after the app
// has replaced the cookie, and after the agent and the gateway were killed.
func TestCurl(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	makeCertificate(t, cert, key)
	for _, tt := range []struct {
		name, level string
		tpm         func() string
		gateway     []string // flags
		agent       []string
	}{
		{"software, http", "software", func() string { return noTPM }, nil, nil},
		{"TPM, https", "hardware", func() string { return limpettest.SoftTPMAt(t, "unix") }, []string{"--tls-cert", cert, "--tls-key", key}, []string{"--cacert", cert}},
		{"software, hw-sign", "software", func() string { return noTPM }, nil, []string{"--wire", "hw-sign"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			flags := append([]string{"--upstream", pythonApp(t), "--session-cookie", "sid", "--store", "bolt:" + filepath.Join(t.TempDir(), "store")}, tt.gateway...)
			g := mustGateway(t, "127.0.0.1:0", flags...)
			owner, thief, tpm := &shell{t.TempDir()}, &shell{t.TempDir()}, tt.tpm()
			to := append([]string{"--to", g.url}, tt.agent...)
			a := owner.run(t, tpm, append(to, "--listen", "127.0.0.1:0")...)
			to = append(to, "--listen", strings.TrimPrefix(a.url, "http://"))

			owner.gets(t, "200", "<form", a.url+"/login")
			owner.gets(t, "302", "", a.url+"/me")
			owner.gets(t, "200", "wrong name", "-c", "jar", "-d", "username=alice&password=wrong", a.url+"/login")
			// -L follows the redirect to /me.
			owner.gets(t, "200", `"user": "alice"`, "-L", "-c", "jar", "-d", "username=alice", "-d", "password=correct horse", a.url+"/login")
			stolen := func() {
				t.Helper()
				write(t, filepath.Join(thief.home, "jar"), owner.file(t, "jar"))
				thief.gets(t, "401", "proof_required", "-b", "jar", "--insecure", g.url+"/me")
				thief.gets(t, "401", "proof_required", "-b", "jar", "--insecure", "-X", "POST", g.url+"/renew")
			}
			for round := range 3 {
				owner.gets(t, "200", `"level": "`+tt.level+`"`, "-b", "jar", a.url+"/me")
				stolen()
				if !strings.Contains(tt.name, "hw-sign") { // which cannot say that the session goes on
					owner.gets(t, "200", "", "-b", "jar", "-c", "jar", "-X", "POST", a.url+"/renew")
					owner.gets(t, "200", `"user": "alice"`, "-b", "jar", a.url+"/me")
					stolen()
				}
				if round != 1 {
					a.kill()
					a = owner.run(t, tpm, to...)
				}
				if round != 0 {
					g.kill()
					g = mustGateway(t, g.url[strings.LastIndex(g.url, "/")+1:], flags...)
				}
			}
			owner.gets(t, "200", `"user": "alice"`, "-b", "jar", a.url+"/me")
			owner.gets(t, "403", "forbidden", "-b", "jar", "-H", "Host: evil.example", a.url+"/me")
			owner.gets(t, "403", "forbidden", "-b", "jar", "-H", "Origin: https://evil.example", a.url+"/me")
			owner.gets(t, "403", "forbidden", "-b", "jar", "-H", "Sec-Fetch-Site: cross-site", a.url+"/me")

			token := regexp.MustCompile(`\ssid\s+(\S+)`).FindStringSubmatch(owner.file(t, "jar"))
			if token == nil {
				t.Fatal("no cookie in the jar")
			}
			owner.gets(t, "200", "", "-b", "jar", "-X", "POST", a.url+"/logout")
			owner.gets(t, "401", "session_ended", "-b", "jar", a.url+"/me") // the app itself would still admit it
			if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if code := a.ended(t); code != 0 {
				t.Errorf("exit code %d\n%s", code, a.out)
			}
			if strings.Contains(a.out.String()+g.out.String(), token[1]) {
				t.Error("the token is in a log")
			}
			u := &user{home: owner.home}
			if _, keys, _ := u.limpet(t, "key", "list"); strings.Contains(keys, "127.0.0.1") {
				t.Errorf("device keys are left:\n%s", keys)
			}
		})
	}
}

// TestCurlBearer: the same with a bearer token, over a Unix socket.
func TestCurlBearer(t *testing.T) {
	t.Parallel()
	g := mustGateway(t, "127.0.0.1:0", "--upstream", pythonApp(t), "--session-bearer", "--login", "POST /token", "--store", "mem:")
	owner, thief := &shell{t.TempDir()}, &shell{t.TempDir()}
	socket := filepath.Join(owner.home, "run", "app")
	start := func() *server {
		return owner.run(t, noTPM, "--to", g.url, "--login", "POST /token", "--listen", "unix:"+socket)
	}
	a := start()
	if fi, err := os.Stat(socket); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", fi, err)
	}
	at := func(args ...string) []string { return append([]string{"--unix-socket", socket}, args...) }
	out := owner.curl(t, at("-d", "username=bob&password=battery staple", "http://localhost/token")...)
	var answer struct {
		AccessToken string `json:"access_token"`
	}
	if err := json.NewDecoder(strings.NewReader(out)).Decode(&answer); err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	bearer := "Authorization: Bearer " + answer.AccessToken
	for range 2 {
		owner.gets(t, "200", `"user": "bob"`, at("-H", bearer, "http://localhost/me")...)
		owner.gets(t, "200", `"user": "bob"`, at("-H", bearer, "http://"+strings.TrimPrefix(g.url, "http://")+"/me")...)
		owner.gets(t, "403", "forbidden", at("-H", bearer, "http://evil.example/me")...)
		thief.gets(t, "401", "proof_required", "-H", bearer, g.url+"/me")
		a.kill() // and leaves its socket behind
		a = start()
	}
	if err := a.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if code := a.ended(t); code != 0 {
		t.Errorf("exit code %d\n%s", code, a.out)
	}
	if _, err := os.Lstat(socket); err == nil {
		t.Error("the socket is still there")
	}
	if _, err := net.Dial("unix", socket); err == nil {
		t.Error("somebody still listens")
	}
}
