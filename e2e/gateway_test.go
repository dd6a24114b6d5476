//go:build unix

package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/client"
	"github.com/limpet-auth/limpet/hwkey/softkey"
)

// pythonApp starts testdata/app.py and returns its URL.
func pythonApp(t testing.TB) string {
	t.Helper()
	cmd := exec.Command("python3", filepath.Join("testdata", "app.py"), "0")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	port, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return "http://127.0.0.1:" + strings.TrimSpace(port)
}

// mustGateway starts `limpet gateway` on an address.
func mustGateway(t testing.TB, listen string, flags ...string) *server {
	t.Helper()
	s, err := startCommand(append([]string{"gateway", "--listen", listen}, flags...)...)
	if err == nil {
		err = s.listens()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.kill)
	return s
}

// person is somebody with a browser: cookies and, unless they have none, keys.
type person struct {
	*http.Client
	base string
}

func newPerson(t testing.TB, base string, keys bool) *person {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	p := &person{&http.Client{Jar: jar, Timeout: time.Minute, Transport: http.DefaultTransport.(*http.Transport).Clone()}, base}
	p.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	if keys {
		ks, err := softkey.Open(t.Context(), t.TempDir(), softkey.KeyFile(""))
		if err != nil {
			t.Fatal(err)
		}
		p.Transport = client.New(ks).Transport(p.Transport)
	}
	return p
}

func (p *person) login(t testing.TB, user, password string) (token string) {
	t.Helper()
	resp, err := p.PostForm(p.base+"/login", url.Values{"username": {user}, "password": {password}})
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	return p.token(t)
}

func (p *person) token(t testing.TB) string {
	t.Helper()
	u, err := url.Parse(p.base)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range p.Jar.Cookies(u) {
		if c.Name == "sid" {
			return c.Value
		}
	}
	return ""
}

func (p *person) do(method, path string) (int, string, error) {
	req, err := http.NewRequest(method, p.base+path, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := p.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), err
}

// wants asks; the answer must have a status and a word.
func (p *person) wants(t testing.TB, method, path string, code int, says string) {
	t.Helper()
	got, text, err := p.do(method, path)
	if err != nil {
		t.Fatal(err)
	}
	if got != code || !strings.Contains(text, says) {
		t.Errorf("%s %s: %d %s, want %d %s", method, path, got, text, code, says)
	}
}

// TestGatewayBeforePython: an app in another language, whose code nobody has
// touched, with the built command before it. Stolen cookies are worthless, also
// after the app has replaced them, and after the gateway was killed.
func TestGatewayBeforePython(t *testing.T) {
	t.Parallel()
	flags := []string{"--upstream", pythonApp(t), "--session-cookie", "sid", "--store", "bolt:" + filepath.Join(t.TempDir(), "store")}
	g := mustGateway(t, "127.0.0.1:0", flags...)
	address := strings.TrimPrefix(g.url, "http://")
	owner, thief := newPerson(t, g.url, true), newPerson(t, g.url, false)
	owner.wants(t, "GET", "/login", 200, "<form")
	owner.wants(t, "GET", "/me", 302, "")
	if token := owner.login(t, "alice", "wrong"); token != "" {
		t.Fatalf("a wrong password gives %q", token)
	}
	if owner.login(t, "alice", "correct horse") == "" {
		t.Fatal("no session")
	}
	steal := func() {
		u, _ := url.Parse(g.url)
		thief.Jar.SetCookies(u, []*http.Cookie{{Name: "sid", Value: owner.token(t), Path: "/"}})
	}
	for round := range 3 {
		owner.wants(t, "GET", "/me", 200, `"user": "alice"`)
		owner.wants(t, "GET", "/me", 200, `"level": "software"`)
		steal()
		thief.wants(t, "GET", "/me", 401, "proof_required")
		thief.wants(t, "POST", "/renew", 401, "proof_required")
		owner.wants(t, "POST", "/renew", 200, "")
		owner.wants(t, "GET", "/me", 200, `"user": "alice"`)
		thief.wants(t, "GET", "/me", 401, "proof_required")
		steal()
		thief.wants(t, "GET", "/me", 401, "proof_required")
		if round < 2 {
			g.kill()
			g = mustGateway(t, address, flags...)
		}
	}
	// Somebody without a device key is served as before.
	plain := newPerson(t, g.url, false)
	if plain.login(t, "bob", "battery staple") == "" {
		t.Fatal("no session")
	}
	plain.wants(t, "GET", "/me", 200, `"level": "none"`)

	last := owner.token(t)
	owner.wants(t, "POST", "/logout", 200, "")
	u, _ := url.Parse(g.url)
	owner.Jar.SetCookies(u, []*http.Cookie{{Name: "sid", Value: last, Path: "/"}})
	owner.wants(t, "GET", "/me", 401, "session_ended") // the app itself would still admit it
	if strings.Contains(g.out.String(), last) {
		t.Error("the token is in the log")
	}
}

// TestGatewayReload: while clients hammer it the gateway takes other routes, and
// not one request fails or sees half of them.
func TestGatewayReload(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	routes := filepath.Join(dir, "routes.yaml")
	app := pythonApp(t)
	put := func(user string) {
		write(t, routes+".new", fmt.Sprintf("upstream: %s\nsession: {cookie: sid}\nlogin: [{route: POST /login, user: form.username}]\nheaders: {user: %q}\n", app, user))
		if err := os.Rename(routes+".new", routes); err != nil {
			t.Fatal(err)
		}
	}
	put("Remote-User")
	g := mustGateway(t, "127.0.0.1:0", "--routes", routes, "--store", "mem:")
	var wg sync.WaitGroup
	var told, silent, failed atomic.Int32
	stop := make(chan bool)
	for range 4 {
		p := newPerson(t, g.url, true)
		if p.login(t, "alice", "correct horse") == "" {
			t.Fatal("no session")
		}
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				code, text, err := p.do("GET", "/me")
				var answer struct{ User, Told string }
				json.Unmarshal([]byte(text), &answer)
				switch {
				case err != nil || code != 200 || answer.User != "alice":
					failed.Add(1)
					t.Errorf("%d %s %v", code, text, err)
					return
				case answer.Told == "alice":
					told.Add(1)
				default:
					silent.Add(1)
				}
			}
		})
	}
	reloads := func() int { return strings.Count(g.out.String(), "routes reloaded") }
	for i := range 20 {
		user := "-"
		if i%2 == 1 {
			user = "Remote-User"
		}
		put(user)
		if err := g.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		for began := time.Now(); reloads() <= i && time.Since(began) < 10*time.Second; {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(20 * time.Millisecond)
	}
	close(stop)
	wg.Wait()
	if reloads() != 20 || told.Load() == 0 || silent.Load() == 0 {
		t.Errorf("%d reloads, %d requests with a name, %d without", reloads(), told.Load(), silent.Load())
	}
	t.Logf("%d requests during %d reloads, %d failed", told.Load()+silent.Load(), reloads(), failed.Load())
}

// TestGatewayIdle: 10,000 connections that say nothing, 200 that say a byte of a
// header now and then, and 200 that do so with a body, keep nobody else out, and
// memory is bounded.
func TestGatewayIdle(t *testing.T) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	idle := min(10_000, int(limit.Cur)-2000)
	if testing.Short() {
		idle = 1000
	}
	g := mustGateway(t, "127.0.0.1:0", "--upstream", pythonApp(t), "--session-cookie", "sid", "--store", "mem:")
	before := residentSet(t, g)
	address := strings.TrimPrefix(g.url, "http://")
	conns := make([]net.Conn, 0, idle)
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for range idle {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatalf("after %d connections: %v", len(conns), err)
		}
		conns = append(conns, c)
	}
	for _, c := range conns[:200] {
		io.WriteString(c, "GET / HTTP/1.1\r\nX-Slow: ")
	}
	dripping := conns[200:400]
	for _, c := range dripping {
		io.WriteString(c, "POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
	}
	p := newPerson(t, g.url, true)
	if p.login(t, "alice", "correct horse") == "" {
		t.Fatal("no session")
	}
	for range 5 {
		for _, c := range dripping {
			if _, err := io.WriteString(c, "x"); err != nil {
				t.Fatal(err)
			}
		}
		began := time.Now()
		p.wants(t, "GET", "/me", 200, "alice")
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("a request takes %v", took)
		}
	}
	each := (residentSet(t, g) - before) * 1024 / idle
	if each > 64<<10 {
		t.Errorf("%d bytes of memory for each of %d idle connections", each, idle)
	}
	t.Logf("%d idle connections: %d bytes each", idle, each)

	// Those who do not finish their header are let go.
	conns[0].SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.ReadAll(conns[0]); err != nil {
		t.Errorf("a connection with half a header: %v", err)
	}
}

// residentSet returns the KiB of memory that a process has.
func residentSet(t testing.TB, s *server) (kib int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		if runtime.GOOS != "linux" {
			return 0 // which only the log tells
		}
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "VmRSS:")
	fmt.Sscan(rest, &kib)
	return kib
}
