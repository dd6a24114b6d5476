//go:build unix

package e2e

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/limpet-auth/limpet/client"
	"github.com/limpet-auth/limpet/hwkey/softkey"
)

// openApp is an app that knows nothing of Limpet and can be reached past it: it
// answers with what it sees.
type openApp struct {
	*httptest.Server
	mu       sync.Mutex
	sessions map[string]string // cookie to user
	requests int
}

// sight is what an openApp saw of a request.
type sight struct {
	User, Method, Host, URI, Body string
	Header                        http.Header
}

func newOpenApp(t testing.TB) *openApp {
	a := &openApp{sessions: make(map[string]string)}
	a.Server = httptest.NewServer(a)
	t.Cleanup(a.Close)
	return a
}

func (a *openApp) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.requests++
	user := ""
	if c, err := r.Cookie("sid"); err == nil {
		user = a.sessions[c.Value]
	}
	switch {
	case r.Method == "POST" && strings.EqualFold(strings.Trim(r.URL.Path, "/"), "login"): // as apps do
		if r.FormValue("password") == "" {
			http.Error(w, "wrong password", http.StatusForbidden)
			return
		}
		token := rand.Text()
		a.sessions[token] = r.FormValue("username")
		http.SetCookie(w, &http.Cookie{Name: "sid", Value: token, Path: "/", HttpOnly: true})
	case r.URL.Path == "/logout": // the session goes on if the cookie is sent again
		http.SetCookie(w, &http.Cookie{Name: "sid", Path: "/", MaxAge: -1})
	case r.URL.Path == "/broken":
		http.Error(w, "the app's own", http.StatusInternalServerError)
	case r.URL.Path == "/echo" && r.Header.Get("Upgrade") == "websocket":
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		go func() { // no more of WebSocket than its beginning
			defer conn.Close()
			fmt.Fprintf(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nTold: %s\r\n\r\n", r.Header.Get("Remote-User"))
			rw.Flush()
			line, _ := rw.ReadString('\n')
			io.WriteString(rw, "echo "+line)
			rw.Flush()
		}()
	case r.URL.Path == "/missing":
		http.NotFound(w, r)
	default:
		body, _ := io.ReadAll(r.Body)
		json.NewEncoder(w).Encode(sight{user, r.Method, r.Host, r.RequestURI, string(body), r.Header})
	}
}

func (a *openApp) seen() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.requests
}

// beside is an app behind a proxy, with `limpet gateway` beside it.
type beside struct {
	app       *openApp
	gateway   *server
	routes    string // its routes file
	asked     string // the address that it is asked on
	questions atomic.Int64
	proxy     *server
	url       string // of the proxy
	trust     *tls.Config
}

const besideRoutes = `
upstream: %s
session: {cookie: sid}
login: [{route: POST /login, user: form.username}]
logout: [POST /logout]
routes:
  - {route: /admin/, mode: require}
  - {route: POST /whole, mode: require, body: 64KiB}
  - {route: /strict, mode: prefer}
  - {route: /fresh, mode: require, challenge: true}
`

var forwardAuthOn = regexp.MustCompile(`forward-auth on http://([^\s";]+)`)

// startBeside starts app, gateway and a proxy with the configuration of docs, with
// one thing changed if change is not nil.
func startBeside(t *testing.T, proxy string, change *strings.Replacer, flags ...string) *beside {
	t.Helper()
	b := &beside{app: newOpenApp(t), routes: filepath.Join(t.TempDir(), "app.yaml")}
	write(t, b.routes, fmt.Sprintf(besideRoutes, b.app.URL))
	b.gateway = mustGateway(t, "127.0.0.1:0", append([]string{"--routes", b.routes, "--forward-auth", "127.0.0.1:0", "--trusted-proxy", "127.0.0.1/32"}, flags...)...)
	b.asked = forwardAuthOn.FindStringSubmatch(b.gateway.out.String())[1]

	// Between proxy and gateway, to count.
	to, _ := url.Parse("http://" + b.asked)
	count := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(to)
		r.Out.Host = r.In.Host
		for name := range r.In.Header { // which ReverseProxy would not hand on
			if strings.HasPrefix(name, "X-Forwarded-") {
				r.Out.Header[name] = r.In.Header[name]
			}
		}
	}}
	counting := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.questions.Add(1)
		count.ServeHTTP(w, r)
	}))
	t.Cleanup(counting.Close)

	dir := t.TempDir()
	port := freePort(t)
	b.url, b.trust = "https://localhost:"+port, testCertificate(t, dir)
	at := func(url string) string { return strings.TrimPrefix(url, "http://") }
	text := string(example(t, map[string]string{"nginx": "nginx.conf", "caddy": "Caddyfile"}[proxy]))
	if change != nil {
		text = change.Replace(text)
	}
	swap := func(old, new string) {
		if !strings.Contains(text, old) {
			t.Fatalf("the example has no %q", old)
		}
		text = strings.ReplaceAll(text, old, new)
	}
	swap("127.0.0.1:8080", at(b.app.URL))
	swap("127.0.0.1:28281", at(b.gateway.url))
	swap("127.0.0.1:9091", at(counting.URL))
	file := filepath.Join(dir, "proxy.conf")
	var cmd *exec.Cmd
	switch proxy {
	case "nginx":
		swap("listen 443 ssl", "listen 127.0.0.1:"+port+" ssl")
		swap("server_name app.example.com", "server_name localhost")
		swap("/etc/nginx/", dir+"/")
		temp := "http {\n\taccess_log off;\n"
		for _, what := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
			temp += fmt.Sprintf("\t%s_temp_path %s/%s;\n", what, dir, what)
		}
		swap("http {\n", temp)
		global := "daemon off; worker_processes 1; pid " + dir + "/pid;"
		if os.Getuid() == 0 {
			global += " user root;"
		}
		cmd = exec.Command("nginx", "-p", dir, "-c", file, "-e", "stderr", "-g", global)
	case "caddy":
		swap("app.example.com {", fmt.Sprintf("https://localhost:%s {\n\tbind 127.0.0.1\n\ttls %s/cert.pem %s/key.pem", port, dir, dir))
		text = "{\n\tadmin off\n\tauto_https off\n}\n" + text
		cmd = exec.Command("caddy", "run", "--adapter", "caddyfile", "--config", file)
		cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
	}
	write(t, file, text)
	b.proxy = &server{cmd: cmd, out: &output{}, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = b.proxy.out, b.proxy.out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		b.proxy.err = cmd.Wait()
		close(b.proxy.done)
	}()
	t.Cleanup(func() { // nginx has a worker, which a killed master leaves behind
		cmd.Process.Signal(syscall.SIGTERM)
		b.proxy.ended(t)
		if t.Failed() {
			t.Logf("%s:\n%s\nlimpet:\n%s", proxy, b.proxy.out, b.gateway.out)
		}
	})
	for began := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			c.Close()
			return b
		}
		if time.Since(began) > 20*time.Second {
			t.Fatalf("%s does not listen:\n%s", proxy, b.proxy.out)
		}
	}
}

// example returns one of the configurations of docs.
func example(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "docs", "examples", name))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func freePort(t testing.TB) string {
	t.Helper()
	for range 100 {
		// Not one of those that connections going out take, 32768 and up: nobody is
		// to have it when a server stops and starts again.
		port := strconv.Itoa(10000 + mathrand.N(22000))
		l, err := net.Listen("tcp", "127.0.0.1:"+port)
		if err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return ""
}

// testCertificate writes cert.pem and key.pem of localhost, and returns who trusts
// them.
func testCertificate(t testing.TB, dir string) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "cert.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})))
	write(t, filepath.Join(dir, "key.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})))
	parsed, err := x509.ParseCertificate(cert)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	return &tls.Config{RootCAs: pool}
}

// tap is under a client: it sees requests as they are sent, and answers for the
// server if held.
type tap struct {
	http.RoundTripper
	mu   sync.Mutex
	sent []*http.Request
	held bool
}

func (c *tap) RoundTrip(r *http.Request) (*http.Response, error) {
	c.mu.Lock()
	c.sent = append(c.sent, r.Clone(r.Context()))
	held := c.held
	c.mu.Unlock()
	if held {
		return nil, fmt.Errorf("held")
	}
	return c.RoundTripper.RoundTrip(r)
}

func (c *tap) last() *http.Request {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sent[len(c.sent)-1]
}

// held returns a request of somebody's that was signed, and did not arrive.
func held(t testing.TB, p *person, sees *tap, path string) *http.Request {
	t.Helper()
	sees.held = true
	defer func() { sees.held = false }()
	if _, _, err := p.do("GET", path); err == nil {
		t.Fatal("the request was not held")
	}
	return sees.last()
}

// person returns somebody with a browser, and keys on a wire or, without one, none.
func (b *beside) person(t testing.TB, wire *client.Wire) (*person, *tap) {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = b.trust.Clone()
	t.Cleanup(transport.CloseIdleConnections)
	sees := &tap{RoundTripper: transport}
	p := &person{&http.Client{Jar: jar, Timeout: time.Minute, Transport: sees}, b.url}
	p.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	if wire != nil {
		ks, err := softkey.Open(t.Context(), t.TempDir(), softkey.KeyFile(""))
		if err != nil {
			t.Fatal(err)
		}
		c := client.New(ks)
		c.Wire = *wire
		p.Transport = c.Transport(sees)
	}
	return p, sees
}

// send sends a request as it is, and returns the answer and its body.
func (b *beside) send(t testing.TB, r *http.Request) (*http.Response, string) {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: b.trust.Clone(), DisableKeepAlives: true}
	r = r.Clone(t.Context())
	if r.GetBody != nil {
		r.Body, _ = r.GetBody()
	}
	resp, err := transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(text)
}

// raw sends lines that no client library would, and returns the answer's status.
func (b *beside) raw(t testing.TB, lines ...string) (status int, body string) {
	t.Helper()
	c, err := tls.Dial("tcp", strings.Replace(strings.TrimPrefix(b.url, "https://"), "localhost", "127.0.0.1", 1), &tls.Config{RootCAs: b.trust.RootCAs, ServerName: "localhost"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	io.WriteString(c, strings.Join(lines, "\r\n")+"\r\nConnection: close\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("%q: %v", lines, err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text)
}

func sightOf(t testing.TB, text string) (s sight) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return s
}

func (b *beside) request(t testing.TB, method, path, body string, cookie string, headers ...string) *http.Request {
	t.Helper()
	var from io.Reader
	if body != "" {
		from = strings.NewReader(body)
	}
	r, err := http.NewRequest(method, b.url+path, from)
	if err != nil {
		t.Fatal(err)
	}
	if cookie != "" {
		r.Header.Set("Cookie", "sid="+cookie)
	}
	for ; len(headers) > 0; headers = headers[2:] {
		r.Header[headers[0]] = append(r.Header[headers[0]], headers[1]) // as it is spelled
	}
	return r
}

func eachProxy(t *testing.T, test func(t *testing.T, proxy string)) {
	for _, proxy := range []string{"nginx", "caddy"} {
		t.Run(proxy, func(t *testing.T) {
			t.Parallel()
			test(t, proxy)
		})
	}
}

var httpsigWire, hwsignWire, dbcsWire = client.HTTPSig, client.HWSign, client.HWSignDBCS

// TestForwardAuth: an app that knows nothing of Limpet behind a real proxy with
// the documented configuration, which asks Limpet of each request.
func TestForwardAuth(t *testing.T) {
	eachProxy(t, func(t *testing.T, proxy string) {
		b := startBeside(t, proxy, nil, "--store", "mem:")
		owner, sees := b.person(t, &httpsigWire)
		stolen := owner.login(t, "alice", "secret")
		if stolen == "" {
			t.Fatal("no session")
		}

		// refused sends a request that must not reach the app.
		refused := func(t *testing.T, r *http.Request, code int, why string) {
			t.Helper()
			before := b.app.seen()
			resp, text := b.send(t, r)
			said := strings.Join(resp.Header["Www-Authenticate"], " ") + text
			if resp.StatusCode != code || code == 401 && !strings.Contains(said, why) {
				t.Errorf("%s %s: %s %s, want %d %s", r.Method, r.URL.Path, resp.Status, said, code, why)
			}
			if n := b.app.seen() - before; n != 0 {
				t.Errorf("%s %s: the app saw %d requests", r.Method, r.URL.Path, n)
			}
		}

		t.Run("owner", func(t *testing.T) {
			for _, r := range []struct{ method, path, body string }{
				{"GET", "/me", ""}, {"GET", "/me?a=%2F..&b=/login", ""}, {"POST", "/orders/a%20b?x=1&x=2", "one order"}, {"PUT", "/files/%C3%A9", "text"},
				{"DELETE", "/admin/users/7", ""}, {"GET", "/", ""},
			} {
				questions, seen := b.questions.Load(), b.app.seen()
				req := b.request(t, r.method, r.path, r.body, "")
				resp, err := owner.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				text, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				if resp.StatusCode != 200 {
					t.Fatalf("%s %s: %s %s", r.method, r.path, resp.Status, text)
				}
				s := sightOf(t, string(text))
				if s.User != "alice" || s.Method != r.method || s.URI != r.path || s.Body != r.body || "https://"+s.Host != b.url {
					t.Errorf("%s %s: the app sees %+v", r.method, r.path, s)
				}
				for name, want := range map[string]string{"Remote-User": "alice", "Limpet-Level": "software", "Limpet-Session": "", "Limpet-Key": ""} {
					got := s.Header[name]
					if len(got) != 1 || got[0] == "" || want != "" && got[0] != want || strings.HasPrefix(got[0], ":") {
						t.Errorf("%s %s: the app is told %s %q", r.method, r.path, name, got)
					}
				}
				if q, n := b.questions.Load()-questions, b.app.seen()-seen; q != 1 || n != 1 {
					t.Errorf("%s %s: %d questions and %d requests, want one of each", r.method, r.path, q, n)
				}
			}
		})
		t.Run("challenge", func(t *testing.T) {
			other, _ := b.person(t, &httpsigWire) // who has not seen the challenge
			if other.login(t, "dave", "secret") == "" {
				t.Fatal("no session")
			}
			other.wants(t, "GET", "/fresh", 200, "dave")
			other.wants(t, "GET", "/fresh", 200, "dave")
		})
		t.Run("one question a request", func(t *testing.T) { // also where the proxy might begin again
			for path, code := range map[string]int{"/missing": 404, "/broken": 500} {
				questions := b.questions.Load()
				owner.wants(t, "GET", path, code, "")
				if n := b.questions.Load() - questions; n != 1 {
					t.Errorf("%s: %d questions", path, n)
				}
			}
		})
		t.Run("upgrade", func(t *testing.T) {
			caught := held(t, owner, sees, "/echo")
			caught.Header["Connection"], caught.Header["Upgrade"] = []string{"Upgrade"}, []string{"websocket"}
			transport := &http.Transport{TLSClientConfig: b.trust.Clone(), DisableKeepAlives: true}
			resp, err := transport.RoundTrip(caught.WithContext(t.Context()))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			both, ok := resp.Body.(io.ReadWriter)
			if !ok || resp.StatusCode != 101 || resp.Header.Get("Told") != "alice" {
				t.Fatalf("%s %v", resp.Status, resp.Header)
			}
			io.WriteString(both, "hello\n")
			got := make([]byte, 11)
			if _, err := io.ReadFull(both, got); err != nil || string(got) != "echo hello\n" {
				t.Errorf("%q %v", got, err)
			}
			if resp, text := b.send(t, caught); resp.StatusCode != 401 {
				t.Errorf("once more: %s %s", resp.Status, text)
			}
		})
		t.Run("upgrade past Limpet", func(t *testing.T) { // an app that speaks h2c would take any request behind it
			host := "Host: " + strings.TrimPrefix(b.url, "https://")
			for _, lines := range [][]string{{"Upgrade: h2c"}, {"Upgrade: H2C"}, {"Upgrade: websocket, h2c"}, {"Upgrade: h2c", "Upgrade: websocket"}, {"Upgrade: websocket", "Upgrade: h2c"}} {
				for _, path := range []string{"/page", "/login"} {
					before := b.app.seen()
					status, text := b.raw(t, append([]string{"GET " + path + " HTTP/1.1", host, "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA", "Connection: Upgrade, HTTP2-Settings"}, lines...)...)
					if b.app.seen() == before && status == 403 {
						continue
					}
					if status != 200 || !strings.HasPrefix(text, "{") {
						t.Errorf("%s %q: %d %s", path, lines, status, text)
					} else if up := sightOf(t, text).Header["Upgrade"]; len(up) > 0 && (len(up) > 1 || up[0] != "websocket") {
						t.Errorf("%s %q: the app is asked to upgrade to %q", path, lines, up)
					}
				}
			}
		})
		t.Run("thief", func(t *testing.T) {
			refused(t, b.request(t, "GET", "/me", "", stolen), 401, "proof_required")
			refused(t, b.request(t, "POST", "/admin/", "x", stolen), 401, "proof_required")
			refused(t, b.request(t, "GET", "/admin/", "", ""), 401, "session_required")
			refused(t, b.request(t, "GET", "/admin/", "", "", "User-Agent", "kube-probe/1.29"), 401, "session_required")
			refused(t, b.request(t, "GET", "/ping", "", stolen, "User-Agent", "GoogleHC/1.0"), 401, "proof_required")
			refused(t, b.request(t, "GET", "/me", "", stolen, "User-Agent", "GoogleHC/1.0", "X-Forwarded-Uri", "/healthz"), 401, "proof_required")
		})
		t.Run("replayed", func(t *testing.T) {
			owner.wants(t, "GET", "/me", 200, "alice")
			refused(t, sees.last(), 401, "nonce_spent")
		})
		t.Run("moved", func(t *testing.T) {
			caught := held(t, owner, sees, "/me?page=1")
			for what, move := range map[string]func(*http.Request){
				"path":   func(r *http.Request) { r.URL.Path = "/other" },
				"query":  func(r *http.Request) { r.URL.RawQuery = "page=2" },
				"method": func(r *http.Request) { r.Method = "DELETE" },
				"host":   func(r *http.Request) { r.Host = "localhost:1" },
				"said path": func(r *http.Request) {
					r.URL.Path = "/other"
					r.Header.Set("X-Forwarded-Uri", "/me?page=1")
					r.Header.Set("X-Forwarded-Method", "GET")
				},
			} {
				moved := caught.Clone(t.Context())
				if move(moved); proxy == "caddy" && what == "host" {
					continue // there is no such site
				}
				refused(t, moved, 401, "proof_invalid")
			}
			// Some apps take another path than the target's. nginx takes it off, of the rest we do not answer.
			moved := caught.Clone(t.Context())
			moved.URL.Path = "/other"
			moved.Header.Set("X-Original-Url", b.url+"/me?page=1")
			moved.Header.Set("X-Original-Method", "GET")
			refused(t, moved, map[string]int{"nginx": 401, "caddy": 403}[proxy], "proof_invalid")
			if resp, text := b.send(t, caught); resp.StatusCode != 200 {
				t.Errorf("where it belongs: %s %s", resp.Status, text)
			}
		})
		t.Run("without keys", func(t *testing.T) {
			plain, _ := b.person(t, nil)
			if plain.login(t, "bob", "secret") == "" {
				t.Fatal("no session")
			}
			_, text, err := plain.do("GET", "/me")
			if err != nil {
				t.Fatal(err)
			}
			if s := sightOf(t, text); s.User != "bob" || s.Header.Get("Limpet-Level") != "none" || s.Header.Get("Remote-User") != "bob" {
				t.Errorf("the app sees %+v", s)
			}
			plain.wants(t, "GET", "/admin/", 401, "")
		})
		t.Run("spoofed", func(t *testing.T) {
			for _, h := range [][2]string{
				{"Remote-User", "admin"}, {"Remote_user", "admin"}, {"REMOTE-USER", "admin"}, {"remote_User", "admin"}, {"Remote-Groups", "admin"}, {"remote.user", "admin"},
				{"Limpet-Level", "admin"}, {"Limpet_Level", "admin"}, {"Limpet-Session", "admin"}, {"Limpet_Session", "admin"}, {"Limpet-Key", "admin"}, {"Limpet-Client-Name", "admin"},
				{"X-Original-Url", "/admin"}, {"X_Original_Url", "/admin"}, {"X-Original-Method", "admin"}, {"X-Rewrite-Url", "/admin"}, {"X_Forwarded_For", "admin"},
			} {
				for _, more := range [][]string{nil, {"Connection", h[0]}} {
					before := b.app.seen()
					resp, text := b.send(t, b.request(t, "GET", "/page", "", "", append(more, h[0], h[1])...))
					if resp.StatusCode == 200 && strings.Contains(strings.ToLower(text), "admin") {
						t.Errorf("%q: the app sees %s", h, text)
					}
					if n := b.app.seen() - before; resp.StatusCode != 200 && n > 0 {
						t.Errorf("%q: %s, and the app saw it", h, resp.Status)
					}
				}
			}
			// The gateway trusts the proxy, which must not hand on what a client says.
			host := "Host: " + strings.TrimPrefix(b.url, "https://")
			for _, path := range []string{"/login", "/logout", "/page"} {
				if _, text := b.raw(t, "GET "+path+" HTTP/1.1", host, "X-Forwarded-Host: elsewhere", "Forwarded: host=elsewhere", "X-Forwarded-For: 6.6.6.6"); strings.Contains(text, "elsewhere") || strings.Contains(text, "6.6.6.6") {
					t.Errorf("%s: the app sees %s", path, text)
				}
				if _, text := b.raw(t, "GET "+path+" HTTP/1.1", host, "X-Original-URL: /admin/", "X-Rewrite-URL: /admin/", "X.Forwarded.Host: /admin/"); strings.Contains(text, "admin") {
					t.Errorf("%s: the app sees %s", path, text)
				}
			}
			// What Connection names is taken off by proxies, also if it is ours.
			caught := held(t, owner, sees, "/me")
			caught.Header["Connection"] = []string{"Remote-User, Limpet-Level"}
			_, text := b.send(t, caught)
			if s := sightOf(t, text); s.Header.Get("Remote-User") != "alice" || s.Header.Get("Limpet-Level") != "software" {
				t.Errorf("with Connection: Remote-User the app is told %v", s.Header)
			}
		})
		t.Run("targets", func(t *testing.T) {
			host := "Host: " + strings.TrimPrefix(b.url, "https://")
			for _, target := range []string{
				"/open#/../admin/x", "/admin/x#/open", "/admin/x#", "/open/../admin/x", "/open/%2e%2e/admin/x", "/open%2f..%2fadmin/x", "//admin/x", "/./admin/x",
				"/ADMIN/x", "/%61dmin/x", "/admin;a/x", "/admin/x?/open", "/open?/../admin/x", `/open\..\admin/x`, "/admin%00/x", "/admin/x%23/open", "/admin/x%3f/open",
				"https://localhost/admin/x", "https://elsewhere/open", "*",
			} {
				before := b.app.seen()
				status, text := b.raw(t, "GET "+target+" HTTP/1.1", host)
				reads := strings.Contains(target, "admin") && !strings.HasPrefix(target, "/open?")
				if reads && (status == 200 || b.app.seen() != before) {
					t.Errorf("%s: %d %s", target, status, text)
				}
				if status == 200 && strings.HasPrefix(target, "/") {
					if s := sightOf(t, text); s.URI != target {
						t.Errorf("%s: the app sees %s", target, s.URI)
					}
				}
			}
			for _, spelled := range []string{host + "/open", host + "?/open", host + "#", host + ",elsewhere", "Host:"} {
				if status, text := b.raw(t, "GET /admin/x HTTP/1.1", spelled); status == 200 && text != "" {
					t.Errorf("%s: %d %s", spelled, status, text)
				}
			}
			for _, lines := range [][]string{
				{"GET /open HTTP/1.1", host, "X-HTTP-Method-Override: DELETE", "X-HTTP-Method-Override: GET"}, // no rule minds: passes
				{"GET /open HTTP/1.1", host, "Cookie: sid=" + stolen, "Cookie: sid=other"},
				{"GET /open HTTP/1.1", host, "Cookie: sid=other; sid=" + stolen},
				{"GET /open HTTP/1.1", host, `Cookie: sid="` + stolen + `"`},
				{"GET /open HTTP/1.1", host, "X-HTTP-Method-Override: POST", "X-Forwarded-Method: GET", "Cookie: sid=" + stolen},
			} {
				if status, text := b.raw(t, lines...); status == 200 && strings.Contains(text, "alice") {
					t.Errorf("%q: %d %s", lines, status, text)
				}
			}
		})
		t.Run("past the gateway", func(t *testing.T) {
			for _, path := range []string{"/login/", "/LOGIN", "/Login", "/%6cogin", "/login;x", "//login", "/login?x", "/logout/"} {
				before := b.app.seen()
				req := b.request(t, "POST", path, "username=mallory&password=x", "", "Content-Type", "application/x-www-form-urlencoded")
				if path == "/login?x" {
					continue // the login itself, which goes through the gateway
				}
				if resp, text := b.send(t, req); resp.StatusCode < 400 || b.app.seen() != before {
					t.Errorf("%s: %s %s", path, resp.Status, text)
				}
			}
			// A body that is to be compared before the app sees it, which a proxy cannot.
			before := b.app.seen()
			req := b.request(t, "POST", "/whole", "text", "")
			resp, err := owner.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != 403 || b.app.seen() != before {
				t.Errorf("a route with body: %s", resp.Status)
			}
		})
		t.Run("hw-sign", func(t *testing.T) {
			for _, wire := range []*client.Wire{&hwsignWire, &dbcsWire} {
				p, sent := b.person(t, wire)
				if p.login(t, "carol", "secret") == "" {
					t.Fatal("no session")
				}
				introduced, named := 0, 0
				for range 5 {
					p.wants(t, "GET", "/me", 200, "carol")
					for name := range sent.last().Header {
						if strings.HasSuffix(name, "-Accel-Pub") {
							introduced++
						}
						if strings.HasSuffix(name, "-Accel-Pub-Id") {
							named++
						}
					}
				}
				if introduced != 1 || named != 4 {
					t.Errorf("%v: %d introductions, %d requests that name the key, want 1 and 4", *wire, introduced, named)
				}
				refused(t, sent.last(), 401, "nonce_spent")
			}
		})
		t.Run("reload", func(t *testing.T) {
			plain, _ := b.person(t, nil)
			plain.wants(t, "GET", "/strict", 200, "")
			text, err := os.ReadFile(b.routes)
			if err != nil {
				t.Fatal(err)
			}
			write(t, b.routes, strings.Replace(string(text), "{route: /strict, mode: prefer}", "{route: /strict, mode: require}", 1))
			if err := b.gateway.cmd.Process.Signal(syscall.SIGHUP); err != nil {
				t.Fatal(err)
			}
			for began := time.Now(); !strings.Contains(b.gateway.out.String(), "routes reloaded") && time.Since(began) < 10*time.Second; {
				time.Sleep(5 * time.Millisecond)
			}
			plain.wants(t, "GET", "/strict", 401, "")
			owner.wants(t, "GET", "/strict", 200, "alice")
		})
		t.Run("logout", func(t *testing.T) {
			last := owner.token(t)
			owner.wants(t, "POST", "/logout", 200, "")
			u, _ := url.Parse(b.url)
			owner.Jar.SetCookies(u, []*http.Cookie{{Name: "sid", Value: last, Path: "/"}})
			before := b.app.seen()
			resp, err := owner.Get(b.url + "/me")
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != 401 || !strings.Contains(resp.Header.Get("Www-Authenticate"), "session_ended") || b.app.seen() != before {
				t.Errorf("%s %q", resp.Status, resp.Header["Www-Authenticate"])
			}
			if owner.token(t) != "" { // which would keep a browser from the login page
				t.Errorf("the cookie stays: %q", resp.Header["Set-Cookie"])
			}
			refused(t, b.request(t, "GET", "/me", "", last), 401, "session_ended")
		})
		t.Run("limpet gone", func(t *testing.T) {
			b.gateway.kill()
			before := b.app.seen()
			code := map[string]int{"nginx": 503, "caddy": 502}[proxy]
			plain, _ := b.person(t, nil)
			plain.wants(t, "GET", "/me", code, "")
			if b.app.seen() != before {
				t.Error("the app was reached")
			}
		})
		if out := b.gateway.out.String(); strings.Contains(out, stolen) {
			t.Error("the token is in the log")
		}
	})
}

// TestForwardAuthTryFiles: nginx asks anew where an internal redirect leads, unless
// that location does not ask. A proof is good for one question.
func TestForwardAuthTryFiles(t *testing.T) {
	for off, want := range map[string]int{"auth_request off;": 200, "": 401} {
		b := startBeside(t, "nginx", strings.NewReplacer("location / {", "location / {\n\t\t\ttry_files /none @app;\n\t\t}\n\t\tlocation @app {\n\t\t\t"+off), "--store", "mem:")
		owner, sees := b.person(t, &httpsigWire)
		if owner.login(t, "alice", "secret") == "" {
			t.Fatal("no session")
		}
		before := b.app.seen()
		resp, text := b.send(t, held(t, owner, sees, "/me"))
		if resp.StatusCode != want || want == 200 && (sightOf(t, text).Header.Get("Remote-User") != "alice" || b.questions.Load() != 1) || want == 401 && b.app.seen() != before {
			t.Errorf("with %q: %s %s, %d questions", off, resp.Status, text, b.questions.Load())
		}
	}
}

// TestForwardAuthStoreDown: what the store cannot answer is 503 to the client, who
// keeps the session; and it goes on when the store does.
func TestForwardAuthStoreDown(t *testing.T) {
	eachProxy(t, func(t *testing.T, proxy string) {
		port := freePort(t)
		redis := func() func() {
			cmd := exec.Command("redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			for began := time.Now(); ; time.Sleep(5 * time.Millisecond) {
				c, err := net.Dial("tcp", "127.0.0.1:"+port)
				if err == nil {
					c.Close()
					break
				}
				if time.Since(began) > 20*time.Second {
					t.Fatal("redis-server does not listen")
				}
			}
			return func() {
				cmd.Process.Kill()
				cmd.Wait()
			}
		}
		stop := redis()
		t.Cleanup(func() { stop() })
		b := startBeside(t, proxy, nil, "--store", "redis://127.0.0.1:"+port, "--seal-key-file", filepath.Join(t.TempDir(), "key"))
		plain, _ := b.person(t, nil)
		cookie := b.request(t, "GET", "/me", "", "some-session")
		if resp, text := b.send(t, cookie); resp.StatusCode != 200 {
			t.Fatalf("%s %s", resp.Status, text)
		}
		stop()
		before := b.app.seen()
		resp, text := b.send(t, b.request(t, "GET", "/me", "", "another-session"))
		if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || b.app.seen() != before {
			t.Errorf("%s %v %s", resp.Status, resp.Header, text)
		}
		plain.wants(t, "GET", "/me", 200, "") // without a session nobody asks the store
		stop = redis()
		for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
			if resp, text = b.send(t, b.request(t, "GET", "/me", "", "another-session")); resp.StatusCode == 200 {
				break
			}
			if time.Since(began) > 20*time.Second {
				t.Fatalf("it does not go on: %s %s", resp.Status, text)
			}
		}
	})
}

// TestForwardAuthPeers: whoever is no trusted proxy learns nothing, whatever they
// ask.
func TestForwardAuthPeers(t *testing.T) {
	t.Parallel()
	g := mustGateway(t, "127.0.0.1:0", "--upstream", "http://127.0.0.1:1", "--session-cookie", "sid", "--store", "mem:",
		"--forward-auth", "127.0.0.1:0", "--trusted-proxy", "127.0.0.2/32")
	asked := forwardAuthOn.FindStringSubmatch(g.out.String())[1]
	ask := func(from, path string, headers ...string) (int, string) {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		c := &http.Client{Transport: &http.Transport{DialContext: dialer.DialContext, DisableKeepAlives: true}}
		req, err := http.NewRequest("GET", "http://"+asked+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		for ; len(headers) > 0; headers = headers[2:] {
			req.Header.Set(headers[0], headers[1])
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		resp.Header.Del("Date")
		return resp.StatusCode, fmt.Sprint(resp.Header, string(text))
	}
	good := []string{"X-Forwarded-Method", "GET", "X-Forwarded-Proto", "https", "X-Forwarded-Host", "app.example.com", "X-Forwarded-Uri", "/"}
	if code, text := ask("127.0.0.2", "/auth/forward", good...); code != 200 {
		t.Errorf("the proxy gets %d %s", code, text)
	}
	code, first := ask("127.0.0.1", "/auth/forward", good...)
	if code != 403 || strings.Contains(first, "Limpet") {
		t.Errorf("a stranger gets %d %s", code, first)
	}
	c, err := net.Dial("tcp", asked)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	if text, _ := io.ReadAll(c); !strings.HasPrefix(string(text), "HTTP/1.1 403") {
		t.Errorf("OPTIONS *: %s", text)
	}
	for _, path := range []string{"/auth/forward", "/auth/nginx", "/auth/envoy/", "/", "/.well-known/limpet", "/livez", "/auth/forward?x"} {
		for _, headers := range [][]string{nil, append(good, "X-Forwarded-For", "127.0.0.2"), append(good, "X-Real-Ip", "127.0.0.2")} {
			if code, text := ask("127.0.0.1", path, headers...); code != 403 || text != first {
				t.Errorf("%s: a stranger gets %d %s, want what they always get: %s", path, code, text, first)
			}
		}
	}
}

// TestForwardAuthEnvoy: the command answers Envoy's questions, over HTTP and by
// gRPC on the same port, and takes other routes on SIGHUP there too.
func TestForwardAuthEnvoy(t *testing.T) {
	t.Parallel()
	routes := filepath.Join(t.TempDir(), "app.yaml")
	put := func(mode string) {
		write(t, routes, "upstream: http://127.0.0.1:1\nsession: {cookie: sid}\nroutes: [{route: /page, mode: "+mode+"}]\n")
	}
	put("prefer")
	g := mustGateway(t, "127.0.0.1:0", "--routes", routes, "--store", "mem:", "--forward-auth", "127.0.0.1:0", "--trusted-proxy", "127.0.0.0/8")
	asked := forwardAuthOn.FindStringSubmatch(g.out.String())[1]
	conn, err := grpc.NewClient(asked, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	both := func(want int) {
		t.Helper()
		req, err := http.NewRequest("GET", "http://"+asked+"/auth/envoy/page?x=y", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = "app.example.com"
		req.Header.Set("X-Forwarded-Proto", "https")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("over HTTP: %s, want %d", resp.Status, want)
		}
		answer, err := authv3.NewAuthorizationClient(conn).Check(t.Context(), &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
			Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{Method: "GET", Scheme: "https", Host: "app.example.com", Path: "/page?x=y"}}}})
		if err != nil {
			t.Fatal(err)
		}
		code := 200
		if denied := answer.GetDeniedResponse(); denied != nil {
			code = int(denied.Status.Code)
		}
		if code != want {
			t.Errorf("by gRPC: %v, want %d", answer, want)
		}
	}
	both(200)
	put("require")
	if err := g.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	for began := time.Now(); !strings.Contains(g.out.String(), "routes reloaded") && time.Since(began) < 10*time.Second; {
		time.Sleep(5 * time.Millisecond)
	}
	both(401)

	// What a client sends makes no call of a question over HTTP/2, which gRPC would
	// answer with 200.
	h2 := &http.Transport{Protocols: new(http.Protocols)}
	h2.Protocols.SetUnencryptedHTTP2(true)
	defer h2.CloseIdleConnections()
	for _, path := range []string{"/auth/envoy/page", "/auth/envoy/envoy.service.auth.v3.Authorization/Check/../../page", "/envoy.service.auth.v3.Authorization/Other"} {
		req, err := http.NewRequest("POST", "http://"+asked+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header = http.Header{"X-Forwarded-Proto": {"https"}, "Content-Type": {"application/grpc"}, "Te": {"trailers"}}
		resp, err := h2.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 401 && resp.StatusCode != 403 || resp.ProtoMajor != 2 {
			t.Errorf("%s: %s %s", path, resp.Proto, resp.Status)
		}
	}
	if err := g.cmd.Process.Signal(syscall.SIGTERM); err != nil { // with a call's connection open
		t.Fatal(err)
	}
	if code := g.ended(t); code != 0 {
		t.Errorf("exit code %d\n%s", code, g.out)
	}
}

// TestForwardAuthBehindCDN: also where Caddy believes what others in front of it say
// of the request, Limpet is asked about the host that the app gets.
func TestForwardAuthBehindCDN(t *testing.T) {
	b := startBeside(t, "caddy", strings.NewReplacer("method GET", "method GET\n\t\t\t\ttrusted_proxies private_ranges"), "--store", "mem:")
	owner, sees := b.person(t, &httpsigWire)
	if owner.login(t, "alice", "secret") == "" {
		t.Fatal("no session")
	}
	caught := held(t, owner, sees, "/me")
	caught.Header.Set("X-Forwarded-Host", "elsewhere.example.com")
	if resp, text := b.send(t, caught); resp.StatusCode != 200 || "https://"+sightOf(t, text).Host != b.url {
		t.Errorf("%s %s", resp.Status, text)
	}
}

// TestForwardAuthBrowsers: what browsers ask the gateway reaches it through the
// proxy, and the page that has one come back gets to the browser.
func TestForwardAuthBrowsers(t *testing.T) {
	eachProxy(t, func(t *testing.T, proxy string) {
		b := startBeside(t, proxy, strings.NewReplacer("#error_page 401 =", "error_page 401 ="), "--store", "mem:")
		text, err := os.ReadFile(b.routes)
		if err != nil {
			t.Fatal(err)
		}
		write(t, b.routes, string(text)+"dbsc: true\n")
		if err := b.gateway.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		for began := time.Now(); !strings.Contains(b.gateway.out.String(), "routes reloaded") && time.Since(began) < 10*time.Second; {
			time.Sleep(5 * time.Millisecond)
		}
		login := b.request(t, "POST", "/login", "username=alice&password=secret", "", "Content-Type", "application/x-www-form-urlencoded", "Sec-Fetch-Site", "same-origin")
		resp, _ := b.send(t, login)
		if resp.StatusCode != 200 || len(resp.Cookies()) != 1 || !strings.Contains(resp.Header.Get("Secure-Session-Registration"), `path="/.well-known/limpet/dbsc"`) {
			t.Fatalf("login: %s, %v", resp.Status, resp.Header)
		}
		sid := resp.Cookies()[0].Value
		resp, body := b.send(t, b.request(t, "POST", "/.well-known/limpet/dbsc", "", sid, "Secure-Session-Response", "a.b.c"))
		if resp.StatusCode != 403 || !strings.Contains(body, "proof_malformed") {
			t.Errorf("a bad registration: %s %s", resp.Status, body)
		}
		before := b.app.seen()
		resp, body = b.send(t, b.request(t, "GET", "/admin/", "", sid, "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document"))
		if resp.StatusCode != 401 || !strings.Contains(body, "<title>One moment</title>") || resp.Header.Get("Content-Security-Policy") == "" {
			t.Errorf("a link: %s %v %s", resp.Status, resp.Header, body)
		}
		resp, body = b.send(t, b.request(t, "GET", "/admin/", "", sid))
		if resp.StatusCode != 401 || strings.Contains(body, "<title>One moment</title>") || !strings.Contains(resp.Header.Get("Www-Authenticate"), "session_unbound") {
			t.Errorf("no link: %s %v %s", resp.Status, resp.Header, body)
		}
		if b.app.seen() != before {
			t.Error("the app was reached")
		}
	})
}
