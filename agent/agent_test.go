package agent_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/agent"
	"github.com/limpet-auth/limpet/client"
	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/hwkey/softkey"
)

// TestCookieApp: neither the program nor the app know of device keys, and the
// cookie is worth nothing without the agent; also after the app has replaced it,
// and after the agent began anew.
func TestCookieApp(t *testing.T) {
	s := newSite(t, false)
	h := s.home(t)
	a := h.start(t)
	p := newProgram(t)
	p.wants(t, "GET", a.url+"/me", 200, `"User":""`)
	if h.countKeys(t) != 0 {
		t.Error("a key before the login")
	}
	resp := p.login(t, a.url, "alice")
	if at := resp.Header.Get("Location"); at != a.url+"/me?a=b#c" {
		t.Errorf("the login leads to %s", at)
	}
	for round := range 3 {
		p.wants(t, "GET", a.url+"/me", 200, `"User":"alice"`)
		p.wants(t, "GET", a.url+"/me", 200, `"Limpet-Level":["software"]`)
		s.thief(t, p.cookie(t, a.url), "").wants(t, "GET", s.front.URL+"/me", 401, "proof_required")
		before := p.cookie(t, a.url)
		p.wants(t, "POST", a.url+"/rotate", 200, "")
		if p.cookie(t, a.url) == before {
			t.Fatal("the app's new cookie is not in the jar")
		}
		p.wants(t, "GET", a.url+"/me", 200, `"User":"alice"`)
		s.thief(t, p.cookie(t, a.url), "").wants(t, "GET", s.front.URL+"/me", 401, "proof_required")
		if round == 1 { // the agent has no time to say goodbye: all is in the file before the answer is out
			text, err := os.ReadFile(h.state)
			if err != nil {
				t.Fatal(err)
			}
			a.stop()
			if err := os.WriteFile(h.state, text, 0o600); err != nil {
				t.Fatal(err)
			}
			a = h.start(t) // at another port, which jars do not mind
		}
	}
	if text, err := os.ReadFile(h.state); err != nil || bytes.Contains(text, []byte(p.cookie(t, a.url))) {
		t.Errorf("the token is in the file: %v", err)
	}
	if fi, err := os.Stat(h.state); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", fi, err)
	}
	if strings.Contains(s.log.String(), p.cookie(t, a.url)) {
		t.Error("the token is in the log")
	}
	p.wants(t, "POST", a.url+"/logout", 200, "")
	if n := h.countKeys(t); n != 0 {
		t.Errorf("%d keys after the logout", n)
	}
}

// TestBearerApp: the same with a token that the program keeps.
func TestBearerApp(t *testing.T) {
	s := newSite(t, true)
	h := s.home(t)
	a := h.start(t)
	p := newProgram(t)
	p.login(t, a.url, "alice")
	p.wants(t, "GET", a.url+"/me", 200, `"User":"alice"`)
	s.thief(t, "", p.token).wants(t, "GET", s.front.URL+"/me", 401, "proof_required")
	a.stop()
	a = h.start(t)
	if e := p.echoed(t, "PUT", a.url+"/a%2fb/c?x=%20;y", strings.NewReader("12345")); e.User != "alice" || e.Body != 5 || e.URI != "/a%2fb/c?x=%20;y" {
		t.Errorf("%+v", e)
	}
	// A failed login leaves nothing behind.
	resp, err := p.PostForm(a.url+"/login", url.Values{"username": {"alice"}, "password": {"wrong"}})
	if err != nil || resp.StatusCode != 403 {
		t.Fatal(resp, err)
	}
	resp.Body.Close()
	if n := h.countKeys(t); n != 1 {
		t.Errorf("%d keys", n)
	}
}

// TestRevoked: the program hears that its session is over, and the key goes.
func TestRevoked(t *testing.T) {
	s := newSite(t, false)
	h := s.home(t)
	a := h.start(t)
	alice, bob := newProgram(t), newProgram(t)
	alice.login(t, a.url, "alice")
	bob.login(t, a.url, "bob")
	if _, err := s.gateway.Guard().RevokeUser(t.Context(), "alice"); err != nil {
		t.Fatal(err)
	}
	stolen := alice.cookie(t, a.url)
	alice.wants(t, "GET", a.url+"/me", 401, "session_ended")
	bob.wants(t, "GET", a.url+"/me", 200, `"User":"bob"`)
	if n := h.countKeys(t); n != 1 {
		t.Errorf("%d keys, want bob's", n)
	}
	if text, _ := os.ReadFile(h.state); bytes.Contains(text, []byte(client.Hash(stolen))) {
		t.Error("the session is still in the file")
	}
	alice.login(t, a.url, "alice")
	alice.wants(t, "GET", a.url+"/me", 200, `"User":"alice"`)
}

// TestKeyLost: the program is told to log in again, and can.
func TestKeyLost(t *testing.T) {
	s := newSite(t, false)
	h := s.home(t)
	a := h.start(t)
	p := newProgram(t)
	p.login(t, a.url, "alice")
	a.stop()
	keys, err := h.keys.List(t.Context())
	if err != nil || len(keys) != 1 {
		t.Fatal(keys, err)
	}
	if err := h.keys.Delete(t.Context(), keys[0].ID); err != nil {
		t.Fatal(err)
	}
	a = h.start(t)
	resp, text := p.do(t, "GET", a.url+"/me", nil)
	if resp.StatusCode != 401 || !strings.Contains(text, `"reason":"session_ended"`) || !strings.Contains(text, "log in again") ||
		resp.Header.Get("WWW-Authenticate") != `Limpet error="session_ended"` {
		t.Errorf("%s %v %s", resp.Status, resp.Header, text)
	}
	p.login(t, a.url, "alice")
	p.wants(t, "GET", a.url+"/me", 200, `"User":"alice"`)
}

// dead is a keystore that fails.
type dead struct{ hwkey.Keystore }

var errDead = errors.New("the chip says no")

func (dead) Create(context.Context, hwkey.CreateOptions) (hwkey.Key, error) { return nil, errDead }
func (dead) Load(context.Context, string) (hwkey.Key, error)                { return nil, errDead }

// TestTrouble: what the agent says when it cannot do its work.
func TestTrouble(t *testing.T) {
	s := newSite(t, false)
	h := s.home(t)
	p := newProgram(t)
	a := h.start(t)
	p.login(t, a.url, "alice")
	a.stop()
	cfg := h.config(t)
	cfg.Keys = dead{h.keys}
	a = run(t, cfg)
	p.wants(t, "POST", a.url+"/login", 502, "agent_failed")
	p.wants(t, "GET", a.url+"/me", 502, "agent_failed")
	if strings.Contains(s.log.String(), p.cookie(t, a.url)) {
		t.Error("the token is in the log")
	}
	a.stop()
	a = h.start(t) // a keystore that fails costs no session
	p.wants(t, "GET", a.url+"/me", 200, `"User":"alice"`)
	s.front.Close()
	p.wants(t, "GET", a.url+"/me", 502, "upstream_unreachable")
	p.wants(t, "GET", a.url+"/me", 502, "cannot be reached")
	a.stop()
	slow := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer slow.Close()
	cfg = s.home(t).config(t)
	cfg.To, _ = url.Parse(slow.URL)
	cfg.Base = &http.Transport{ResponseHeaderTimeout: 50 * time.Millisecond}
	p.wants(t, "GET", run(t, cfg).url+"/me", 504, "upstream_timeout")
	p.wants(t, "TRACE", run(t, s.home(t).config(t)).url, 405, "method_not_allowed")
}

// TestDoor: a page in the user's browser, and a name that leads here, do not get
// in.
func TestDoor(t *testing.T) {
	s := newSite(t, false)
	a := s.home(t).start(t)
	p := newProgram(t)
	p.login(t, a.url, "alice")
	port := a.url[strings.LastIndex(a.url, ":")+1:]
	host := "127.0.0.1:" + port
	for _, tt := range []struct {
		code    int
		headers []string
	}{
		{200, nil},
		{200, []string{"Host", "localhost:" + port}},
		{200, []string{"Host", "LocalHost:" + port}},
		{200, []string{"Origin", "http://" + host, "Sec-Fetch-Site", "same-origin"}},
		{200, []string{"Host", "localhost:" + port, "Origin", "http://localhost:" + port}},
		{200, []string{"Sec-Fetch-Site", "none"}},
		{403, []string{"Host", "evil.example"}},
		{403, []string{"Host", "evil.example:" + port}},
		{403, []string{"Host", "127.0.0.1"}},
		{403, []string{"Host", "127.0.0.1:1"}},
		{403, []string{"Host", "localhost.evil.example:" + port}},
		{403, []string{"Host", "127.0.0.1.evil.example:" + port}},
		{403, []string{"Host", s.front.Listener.Addr().String()}},
		{403, []string{"Origin", "https://evil.example"}},
		{403, []string{"Origin", "null"}},
		{403, []string{"Origin", "https://" + host}},
		{403, []string{"Origin", "http://127.0.0.1:1"}},
		{403, []string{"Origin", "http://" + host + ".evil.example"}},
		{403, []string{"Origin", "http://evil.example@" + host}},
		{403, []string{"Origin", s.front.URL}},
		{403, []string{"Origin", "http://" + host, "Origin", "http://evil.example"}},
		{403, []string{"Sec-Fetch-Site", "cross-site"}},
		{403, []string{"Sec-Fetch-Site", "same-site"}}, // a page of another port of this machine
		{403, []string{"Origin", "http://" + host, "Sec-Fetch-Site", "cross-site"}},
	} {
		resp, text := p.do(t, "GET", a.url+"/me", nil, tt.headers...)
		if resp.StatusCode != tt.code || tt.code == 403 && text != "{\"message\":\"the agent is for programs of this machine; its log says why not for this request\",\"reason\":\"forbidden\"}\n" {
			t.Errorf("%q: %s %s", tt.headers, resp.Status, text)
		}
	}
	if log := s.log.String(); !strings.Contains(log, "another origin") || !strings.Contains(log, "the host is not this agent") || strings.Contains(log, "evil") {
		t.Error("the log does not say why, or says what the page sent")
	}
	// Nor a WebSocket of such a page, nor a target that is no path.
	p.wants(t, "OPTIONS", a.url+"/me", 200, "")
	for _, request := range []string{
		"GET /me HTTP/1.1\r\nHost: " + host + "\r\nOrigin: https://evil.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
		"GET http://evil.example/me HTTP/1.1\r\nHost: " + host + "\r\n\r\n",
		"CONNECT 127.0.0.1:80 HTTP/1.1\r\nHost: 127.0.0.1:80\r\n\r\n",
	} {
		if got := raw(t, host, request); !strings.HasPrefix(got, "HTTP/1.1 403 ") {
			t.Errorf("%q: %s", request, got)
		}
	}
	for _, request := range []string{"OPTIONS * HTTP/1.1\r\nHost: " + host + "\r\n\r\n", "GET x:y HTTP/1.1\r\nHost: " + host + "\r\n\r\n"} {
		if got := raw(t, host, request); !strings.HasPrefix(got, "HTTP/1.1 400 ") && !strings.HasPrefix(got, "HTTP/1.1 200 ") {
			t.Errorf("%q: %s", request, got)
		}
	}
}

func raw(t testing.TB, address, text string) string {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	io.WriteString(conn, text)
	b := make([]byte, 512)
	n, _ := conn.Read(b)
	return string(b[:n])
}

// TestOnlyHere: an agent is for no other machine.
func TestOnlyHere(t *testing.T) {
	h := newSite(t, false).home(t)
	a := h.start(t)
	for _, addr := range []net.Addr{
		&net.TCPAddr{IP: net.IPv4zero, Port: 1}, &net.TCPAddr{IP: net.IPv6zero, Port: 1}, &net.TCPAddr{Port: 1},
		&net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1}, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1},
	} {
		if _, err := a.On(addr); err == nil {
			t.Errorf("it may listen on %s", addr)
		}
	}
	for _, addr := range []net.Addr{
		&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}, &net.TCPAddr{IP: net.IPv6loopback, Port: 1}, &net.UnixAddr{Name: "/x", Net: "unix"},
	} {
		if _, err := a.On(addr); err != nil {
			t.Error(err)
		}
	}
	for _, to := range []string{"http://app.example.com", "ftp://app.example.com", "https://app.example.com/path", "https://u@app.example.com",
		"https://app.example.com?q", "https://", "app.example.com", ""} {
		cfg := h.config(t)
		cfg.State += "2"
		cfg.To, _ = url.Parse(to)
		if _, err := agent.New(t.Context(), cfg); err == nil {
			t.Errorf("an app at %q", to)
		}
	}
}

// TestRewriting: the app gets what it would have got from the program, and the
// program what it can use.
func TestRewriting(t *testing.T) {
	s := newSite(t, false)
	other := "https://other.example/x"
	for path, to := range map[string]string{"own": s.front.URL + "/a?b#c", "bare": s.front.URL, "schemeless": strings.TrimPrefix(s.front.URL, "https:") + "/a",
		"relative": "/a", "other": other, "plain": strings.Replace(s.front.URL, "https", "http", 1) + "/a", "longer": s.front.URL + "9/a"} {
		s.HandleFunc("GET /to/"+path, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", to)
			w.Header().Set("Alt-Svc", `h3=":443"`)
			w.WriteHeader(http.StatusFound)
		})
	}
	cookies := []string{
		"a=b; Domain=app.example.com; Path=/x; Secure; HttpOnly; SameSite=None; Partitioned", "a=b; Path=/x; HttpOnly",
		"a=\"b c\"; expires=Thu, 01 Jan 1970 00:00:00 GMT; SECURE; samesite = lax", "a=\"b c\"; expires=Thu, 01 Jan 1970 00:00:00 GMT; samesite = lax",
		"__Host-a=b; Path=/; Secure; SameSite=None", "__Host-a=b; Path=/; Secure; SameSite=None",
		"__secure-a=b; secure; domain=x", "__secure-a=b; secure",
		"secure=domain", "secure=domain", "", "",
	}
	s.HandleFunc("GET /cookies", func(w http.ResponseWriter, r *http.Request) {
		for i := 0; i < len(cookies); i += 2 {
			w.Header().Add("Set-Cookie", cookies[i])
		}
	})
	a := s.home(t).start(t)
	p := newProgram(t)
	for path, want := range map[string]string{"own": a.url + "/a?b#c", "bare": a.url, "schemeless": a.url + "/a", "relative": "/a", "other": other,
		"plain": strings.Replace(s.front.URL, "https", "http", 1) + "/a", "longer": s.front.URL + "9/a"} {
		resp, _ := p.do(t, "GET", a.url+"/to/"+path, nil)
		if got := resp.Header.Get("Location"); got != want || resp.Header.Get("Alt-Svc") != "" {
			t.Errorf("%s leads to %s, want %s", path, got, want)
		}
	}
	resp, _ := p.do(t, "GET", a.url+"/cookies", nil)
	for i, got := range resp.Header["Set-Cookie"] {
		if got != cookies[2*i+1] {
			t.Errorf("%s: %s", cookies[2*i], got)
		}
	}
	e := p.echoed(t, "GET", a.url+"/me", nil, "Origin", a.url, "Referer", a.url+"/login?x", "Connection", "X-Hop", "X-Hop", "1", "Te", "trailers", "Proxy-Authorization", "Basic eDp5")
	if e.Host != strings.TrimPrefix(s.front.URL, "https://") || e.Header.Get("Origin") != s.front.URL || e.Header.Get("Referer") != s.front.URL+"/login?x" ||
		e.Header.Get("X-Hop") != "" || e.Header.Get("Proxy-Authorization") != "" {
		t.Errorf("%+v", e)
	}
	e = p.echoed(t, "GET", a.url+"/me", nil, "Referer", "https://other.example/", "User-Agent", "")
	if e.Header.Get("Referer") != "https://other.example/" || e.Header.Get("User-Agent") != "" {
		t.Errorf("%+v", e)
	}
}

// TestBodies: whatever the length, however it is sent, what is proven arrives
// whole, and nothing stays behind.
func TestBodies(t *testing.T) {
	s := newSite(t, true)
	t.Setenv("TMPDIR", t.TempDir())
	a := s.home(t).start(t)
	p, stranger := newProgram(t), newProgram(t)
	p.login(t, a.url, "alice")
	for _, size := range []int{0, 1, 1 << 20, 1<<20 + 1, 2 << 20} {
		body := bytes.Repeat([]byte{'x'}, size)
		for _, who := range []*program{p, stranger} {
			if who == stranger && size == 1<<20 {
				continue
			}
			for name, r := range map[string]io.Reader{"length": bytes.NewReader(body), "chunks": struct{ io.Reader }{bytes.NewReader(body)}} {
				if e := who.echoed(t, "PUT", a.url+"/up", r); e.Body != size || (e.User == "alice") != (who == p) {
					t.Errorf("%d bytes by %s: %d as %q", size, name, e.Body, e.User)
				}
			}
			req, err := http.NewRequest("POST", a.url+"/up", struct{ io.Reader }{bytes.NewReader(body)})
			if err != nil {
				t.Fatal(err)
			}
			if who.token != "" {
				req.Header.Set("Authorization", "Bearer "+who.token)
			}
			req.ContentLength, req.Trailer = -1, http.Header{"X-Sum": {"7"}}
			resp, err := who.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			text, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if !bytes.Contains(text, []byte(`"X-Sum":["7"]`)) || !bytes.Contains(text, fmt.Appendf(nil, `"Body":%d`, size)) {
				t.Errorf("%d bytes with a trailer: %s", size, text)
			}
		}
	}
	req, _ := http.NewRequest("POST", a.url+"/up", strings.NewReader("x"))
	req.Header.Set("Authorization", "Bearer "+p.token)
	req.ContentLength = 2 << 30
	if resp, err := p.Do(req); err == nil {
		if resp.StatusCode != 413 {
			t.Error(resp.Status)
		}
		resp.Body.Close()
	}
	// Anybody can have a login read.
	for _, size := range []int{1 << 20, 1<<20 + 1} {
		for name, r := range map[string]io.Reader{"length": bytes.NewReader(make([]byte, size)), "chunks": struct{ io.Reader }{bytes.NewReader(make([]byte, size))}} {
			_, text := stranger.do(t, "POST", a.url+"/login", r)
			if refused := strings.Contains(text, "larger than the agent keeps"); refused != (size > 1<<20) {
				t.Errorf("a login of %d bytes by %s: %s", size, name, text)
			}
			stranger.CloseIdleConnections() // the server ends the one whose body it did not read
		}
	}
	a.stop()
	if left, err := filepath.Glob(filepath.Join(os.TempDir(), "limpet-body-*")); len(left) > 0 || err != nil {
		t.Errorf("%q %v", left, err)
	}
}

// TestBrokenUpload: a program that leaves in the middle of a body has done
// nothing.
func TestBrokenUpload(t *testing.T) {
	s := newSite(t, true)
	var seen atomic.Int32
	s.HandleFunc("POST /pay", func(w http.ResponseWriter, r *http.Request) { seen.Add(1) })
	a := s.home(t).start(t)
	p := newProgram(t)
	p.login(t, a.url, "alice")
	host := strings.TrimPrefix(a.url, "http://")
	conn, err := net.Dial("tcp", host)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "POST /pay HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Length: 10\r\n\r\nhalf", host, p.token)
	conn.(*net.TCPConn).CloseWrite()
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if text, _ := io.ReadAll(conn); !strings.HasPrefix(string(text), "HTTP/1.1 400 ") {
		t.Errorf("%s", text)
	}
	conn.Close()
	if seen.Load() != 0 {
		t.Error("the app saw half a request")
	}
}

// TestStreams: events arrive one by one with trailers behind, and a WebSocket goes
// through agent and gateway.
func TestStreams(t *testing.T) {
	s := newSite(t, false)
	next := make(chan string)
	s.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.Header().Set("Trailer", "X-Announced")
		fmt.Fprintf(w, "hello %s\n", s.user(r))
		http.NewResponseController(w).Flush()
		for event := range next {
			io.WriteString(w, event)
			http.NewResponseController(w).Flush()
		}
		w.Header().Set("X-Announced", "yes")
		w.Header().Set(http.TrailerPrefix+"X-Late", "too")
	})
	s.HandleFunc("GET /socket", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "websocket" {
			fmt.Fprint(w, "no upgrade")
			return
		}
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello %s from %s\n", s.user(r), r.Header.Get("Origin"))
		line, _ := rw.ReadString('\n')
		io.WriteString(conn, "you said "+line)
	})
	a := s.home(t).start(t)
	p := newProgram(t)
	p.login(t, a.url, "alice")
	resp, err := p.Get(a.url + "/events")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	r := lines(resp)
	if line, err := r.ReadString('\n'); line != "hello alice\n" || err != nil {
		t.Fatalf("%q, %v", line, err)
	}
	for i := range 3 {
		event := fmt.Sprintf("data: %d\n", i)
		next <- event
		if line, err := r.ReadString('\n'); line != event || err != nil {
			t.Fatalf("%q, %v", line, err)
		}
	}
	close(next)
	io.Copy(io.Discard, r)
	if resp.Trailer.Get("X-Announced") != "yes" || resp.Trailer.Get("X-Late") != "too" {
		t.Errorf("trailers %v", resp.Trailer)
	}

	p.Timeout = 0 // which an upgraded connection cannot have
	upgrade := func(protocol string) *http.Response {
		req, err := http.NewRequest("GET", a.url+"/socket", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {protocol}, "Origin": {a.url}}
		resp, err := p.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	resp = upgrade("websocket")
	if resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(resp.Status)
	}
	conn := resp.Body.(io.ReadWriteCloser)
	defer conn.Close()
	r = lines(resp)
	if line, err := r.ReadString('\n'); line != "hello alice from "+s.front.URL+"\n" || err != nil {
		t.Errorf("%q, %v", line, err)
	}
	io.WriteString(conn, "boo\n")
	if line, err := r.ReadString('\n'); line != "you said boo\n" || err != nil {
		t.Errorf("%q, %v", line, err)
	}
	resp = upgrade("h2c")
	if text, _ := io.ReadAll(resp.Body); string(text) != "no upgrade" {
		t.Errorf("%s %s", resp.Status, text)
	}
	resp.Body.Close()
}

// TestStrictApp: proofs over the server's challenge, made with the key of the
// agent's TLS connection, go through it too.
func TestStrictApp(t *testing.T) {
	s := newSite(t, true, limpet.Rule{Mode: limpet.Require, Challenge: true, Channel: true, Freshness: limpet.StrictNonce})
	a := s.home(t).start(t)
	p := newProgram(t)
	p.wants(t, "GET", a.url+"/me", 401, "session_required")
	p.login(t, a.url, "alice")
	for range 3 {
		if e := p.echoed(t, "PUT", a.url+"/up", bytes.NewReader(make([]byte, 1<<20))); e.User != "alice" || e.Body != 1<<20 {
			t.Errorf("%s, %d bytes", e.User, e.Body)
		}
	}
}

// TestManyAtOnce: several programs and users, whose cookies the app replaces all
// the time; none gets another's session, and all of them outlive the agent.
func TestManyAtOnce(t *testing.T) {
	s := newSite(t, false)
	h := s.home(t)
	a := h.start(t)
	programs := make([]*program, 6)
	var wg sync.WaitGroup
	for i := range programs {
		programs[i] = newProgram(t)
		wg.Go(func() {
			user := fmt.Sprint("user", i)
			programs[i].login(t, a.url, user)
			for range 10 {
				programs[i].wants(t, "GET", a.url+"/me", 200, `"User":"`+user+`"`)
				programs[i].wants(t, "POST", a.url+"/rotate", 200, "")
			}
		})
	}
	wg.Wait()
	a.stop()
	a = h.start(t)
	for i, p := range programs {
		p.wants(t, "GET", a.url+"/me", 200, fmt.Sprintf(`"User":"user%d"`, i))
	}
}

// TestLoginsTakeTurns: no more than some are on their way at once, and none is lost.
func TestLoginsTakeTurns(t *testing.T) {
	const most = 8
	s := newSite(t, true)
	a := s.home(t).start(t)
	var wg sync.WaitGroup
	for i := range most + 4 {
		wg.Go(func() {
			resp, err := http.PostForm(a.url+"/login", url.Values{"username": {fmt.Sprint("user", i)}, "password": {"secret"}, "slow": {"yes"}})
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Errorf("status %d", resp.StatusCode)
			}
		})
	}
	for end := time.Now().Add(10 * time.Second); s.loggingIn.Load() < most && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	time.Sleep(50 * time.Millisecond)
	if n := s.loggingIn.Load(); n != most {
		t.Errorf("%d logins on their way, want %d", n, most)
	}
	close(s.let)
	wg.Wait()
}

// TestLent: requests that bring no session get one, others keep theirs.
func TestLent(t *testing.T) {
	s := newSite(t, true)
	h := s.home(t)
	before := h.start(t)
	p := newProgram(t)
	p.login(t, before.url, "alice")
	before.stop()
	var saved struct {
		Sessions []struct{ Session client.Session }
	}
	text, err := os.ReadFile(h.state)
	if err != nil || json.Unmarshal(text, &saved) != nil || len(saved.Sessions) != 1 {
		t.Fatalf("%s %v", text, err)
	}
	session := saved.Sessions[0].Session
	lent := &agent.Login{Session: session, Keys: h.keys, Token: p.token}
	other := s.home(t)
	cfg := other.config(t)
	cfg.As = lent
	a := run(t, cfg)
	legacy, bob := newProgram(t), newProgram(t)
	legacy.wants(t, "GET", a.url+"/me", 200, `"User":"alice"`)
	bob.login(t, a.url, "bob")
	bob.wants(t, "GET", a.url+"/me", 200, `"User":"bob"`)
	bob.token = "unknown"
	bob.wants(t, "GET", a.url+"/me", 200, `"User":""`)
	if _, err := s.gateway.Guard().RevokeUser(t.Context(), "alice"); err != nil {
		t.Fatal(err)
	}
	legacy.wants(t, "GET", a.url+"/me", 401, "session_ended")
	if h.countKeys(t) != 1 {
		t.Error("the key was not the agent's to delete")
	}
	a.stop()
	cfg.As = &agent.Login{Session: session, Keys: h.keys, Token: p.token}
	cfg.As.Session.Origin = "https://other.example"
	if _, err := agent.New(t.Context(), cfg); err == nil {
		t.Error("a session of another app is lent")
	}
}

// TestState: files that are damaged, of other apps, versions and keystores; and
// one agent for each.
func TestState(t *testing.T) {
	s := newSite(t, false)
	h := s.home(t)
	cfg := h.config(t)
	cfg.Kind = "chip"
	a := run(t, cfg)
	p := newProgram(t)
	p.login(t, a.url, "alice")
	if _, err := agent.New(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "another agent for "+s.front.URL+" is running") {
		t.Errorf("a second agent: %v", err)
	}
	a.stop()

	// The chip does not work today: its sessions wait.
	soft, err := softkey.Open(t.Context(), t.TempDir(), softkey.KeyFile(""))
	if err != nil {
		t.Fatal(err)
	}
	without := cfg
	without.Keys, without.Kind = soft, "file"
	without.Open = func(string) (hwkey.Keystore, error) { return nil, errDead }
	a = run(t, without)
	p.wants(t, "GET", a.url+"/me", 401, "proof_required")
	bob := newProgram(t)
	bob.login(t, a.url, "bob")
	a.stop()
	// It works, but is not the first choice.
	without.Open = func(kind string) (hwkey.Keystore, error) {
		if kind != "chip" {
			t.Errorf("keystore %q", kind)
		}
		return h.keys, nil
	}
	a = run(t, without)
	p.wants(t, "GET", a.url+"/me", 200, `"User":"alice"`)
	bob.wants(t, "GET", a.url+"/me", 200, `"User":"bob"`)
	a.stop()

	whole, err := os.ReadFile(h.state)
	if err != nil {
		t.Fatal(err)
	}
	put := func(text string) {
		t.Helper()
		if err := os.WriteFile(h.state, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// Nobody has used these for long.
	put(strings.ReplaceAll(string(whole), time.Now().UTC().Format("2006-01-02"), "2001-01-01"))
	a = run(t, without)
	a.stop()
	if n := h.countKeys(t); n != 0 {
		t.Errorf("%d keys of old sessions", n)
	}
	if text, _ := os.ReadFile(h.state); strings.Contains(string(text), "origin") {
		t.Errorf("%s", text)
	}
	put(strings.Replace(string(whole), `"version": 1`, `"version": 2`, 1))
	if _, err := agent.New(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "version 2") {
		t.Error(err)
	}
	put(strings.Replace(string(whole), `"app": "https`, `"app": "http`, 1))
	if _, err := agent.New(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "another app") {
		t.Error(err)
	}
	for _, text := range []string{"", "{", string(whole[:len(whole)/2])} {
		put(text)
		a = run(t, cfg)
		p.wants(t, "GET", a.url+"/me", 401, "proof_required")
		p.login(t, a.url, "alice")
		p.wants(t, "GET", a.url+"/me", 200, `"User":"alice"`)
		a.stop()
	}
	put(strings.ReplaceAll(string(whole), `"key": "`, `"key": "../`))
	a = run(t, without)
	bob.wants(t, "GET", a.url+"/me", 401, "session_ended") // no such key
}

// TestRoutes: which requests are logins is what the agent was told.
func TestRoutes(t *testing.T) {
	s := newSite(t, false)
	h := s.home(t)
	cfg := h.config(t)
	cfg.Logins = []string{"POST /sign/{in}", "PUT /auth/"}
	a := run(t, cfg)
	p := newProgram(t)
	signed := func(method, path string) bool {
		return p.echoed(t, method, a.url+path, strings.NewReader("x")).Header.Get("Content-Digest") != ""
	}
	for _, login := range []string{"POST /sign/in", "POST /sign/in/", "PUT /auth", "PUT /auth/x"} {
		if method, path, _ := strings.Cut(login, " "); !signed(method, path) {
			t.Errorf("%s is no login", login)
		}
	}
	for _, other := range []string{"PUT /sign/in", "POST /sign", "POST /sign/in/x", "POST /login2", "POST /session"} {
		if method, path, _ := strings.Cut(other, " "); signed(method, path) {
			t.Errorf("%s is a login", other)
		}
	}
	if n := h.countKeys(t); n != 0 {
		t.Errorf("%d keys of logins that gave no session", n)
	}
	a.stop()
	for _, bad := range []string{"", "post /login", "POST login", "/{", "POST  "} {
		cfg.Logins = []string{bad}
		if _, err := agent.New(t.Context(), cfg); err == nil || strings.Contains(err.Error(), ".go:") {
			t.Errorf("pattern %q: %v", bad, err)
		}
	}
}
