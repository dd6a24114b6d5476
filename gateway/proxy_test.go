package gateway_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/textproto"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/gateway"
)

// TestWebSocket: an upgraded connection carries bytes both ways, once it is
// proven; and nothing but WebSockets is an upgrade.
func TestWebSocket(t *testing.T) {
	a := newApp(t)
	a.mux.HandleFunc("GET /socket", func(w http.ResponseWriter, r *http.Request) {
		if up := r.Header.Get("Upgrade"); up != "websocket" {
			fmt.Fprintf(w, "no upgrade: %q %q", up, r.Header["Connection"])
			return
		}
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello %s\n", a.user(r))
		line, _ := rw.ReadString('\n')
		io.WriteString(conn, "you said "+line)
	})
	s := newSiteOf(t, a, gateway.Config{})
	owner := s.device(t)
	s.login(t, owner)
	dial := func(c *http.Client, protocol string) *http.Response {
		req, err := http.NewRequest("GET", s.front.URL+"/socket", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Connection", "Upgrade, HTTP2-Settings")
		req.Header.Set("Upgrade", protocol)
		req.Header.Set("HTTP2-Settings", "AAMAAABkAARAAAAAAAIAAAAA")
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	resp := dial(owner, "websocket")
	if resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(resp.Status)
	}
	conn := resp.Body.(io.ReadWriteCloser)
	defer conn.Close()
	r := bufio.NewReader(conn)
	if line, err := r.ReadString('\n'); line != "hello alice\n" || err != nil {
		t.Errorf("%q, %v", line, err)
	}
	io.WriteString(conn, "boo\n")
	if line, err := r.ReadString('\n'); line != "you said boo\n" || err != nil {
		t.Errorf("%q, %v", line, err)
	}
	if resp := dial(s.thief(t, s.cookie(t, owner)), "websocket"); resp.StatusCode != 401 {
		t.Errorf("the thief: %s", resp.Status)
	}
	stranger := s.browser(t)
	stranger.Transport = http1(s) // which would not send them over HTTP/2
	for _, protocol := range []string{"h2c", "websocket, h2c", "TLS/1.0"} {
		resp := dial(stranger, protocol)
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 200 || string(text) != `no upgrade: "" []` {
			t.Errorf("%s: %s %s", protocol, resp.Status, text)
		}
	}
}

// TestStreams: events arrive one by one, over HTTP/2 too, with trailers behind.
func TestStreams(t *testing.T) {
	a := newApp(t)
	next := make(chan string)
	a.mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.Header().Set("Trailer", "X-Announced")
		w.WriteHeader(http.StatusEarlyHints)
		http.NewResponseController(w).Flush()
		for event := range next {
			io.WriteString(w, event)
			http.NewResponseController(w).Flush()
		}
		w.Header().Set("X-Announced", "yes")
		w.Header().Set(http.TrailerPrefix+"X-Late", "too")
	})
	s := newSiteOf(t, a, gateway.Config{Rule: limpet.Rule{Challenge: true, Channel: true}})
	owner := s.device(t)
	s.login(t, owner)
	hints := 0
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(int, textproto.MIMEHeader) error { hints++; return nil }})
	req, err := http.NewRequestWithContext(ctx, "GET", s.front.URL+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := owner.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 || resp.ProtoMajor != 2 || hints != 1 || resp.Header.Get("Limpet-Challenge") == "" {
		t.Errorf("%s %s, %d hints, %v", resp.Proto, resp.Status, hints, resp.Header)
	}
	r := bufio.NewReader(resp.Body)
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
}

// TestRequestTrailers reach the app, but for those that are the gateway's to say.
func TestRequestTrailers(t *testing.T) {
	s := newSite(t, gateway.Config{})
	for _, proto := range []string{"1.1", "2"} {
		c := s.browser(t)
		if proto == "1.1" {
			c.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.front.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs}}
		}
		req, err := http.NewRequest("POST", s.front.URL+"/", struct{ io.Reader }{strings.NewReader("body")})
		if err != nil {
			t.Fatal(err)
		}
		req.Trailer = http.Header{"X-Sum": {"1"}, "Remote-User": {"root"}, "Limpet_level": {"hardware"}}
		req.ContentLength = -1
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if !bytes.Contains(text, []byte(`"X-Sum":["1"]`)) || bytes.Contains(text, []byte("root")) || bytes.Contains(bytes.ToLower(text), []byte("hardware")) {
			t.Errorf("HTTP/%s: %s", proto, text)
		}
	}
}

// TestLargeUpload: 100 MB pass without being kept, and reach the app as they
// come.
func TestLargeUpload(t *testing.T) {
	const size = 100 << 20
	a := newApp(t)
	started := make(chan bool, 1)
	var sum [sha256.Size]byte
	a.mux.HandleFunc("POST /upload", func(w http.ResponseWriter, r *http.Request) {
		h := sha256.New()
		var one [1]byte
		io.ReadFull(r.Body, one[:])
		h.Write(one[:])
		started <- true
		n, err := io.Copy(h, r.Body)
		copy(sum[:], h.Sum(nil))
		fmt.Fprintf(w, "%d %v", n+1, err)
	})
	s := newSiteOf(t, a, gateway.Config{})
	send := func(c *http.Client, body io.Reader) string {
		req, err := http.NewRequest("POST", s.front.URL+"/upload", body)
		if err != nil {
			t.Fatal(err)
		}
		req.ContentLength = size
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		return string(text)
	}
	// An unbound session's, made on the way: the app begins to read before the
	// client ends to write.
	b := s.browser(t)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	r, w := io.Pipe()
	want := sha256.New()
	go func() {
		block := bytes.Repeat([]byte("limpet!\n"), 1<<13)
		for i := range size / len(block) {
			io.MultiWriter(want, w).Write(block)
			if i == 8 {
				<-started
			}
		}
		w.Close()
	}()
	if text := send(b, r); text != fmt.Sprintf("%d <nil>", size) || sum != [sha256.Size]byte(want.Sum(nil)) {
		t.Errorf("the app read %s", text)
	}
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapSys) - int64(before.HeapSys); grown > 40<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
}

// TestSwappedUpload: a body that is not the one that was signed breaks off before
// its last byte, and the client hears why; if the rule says so the app sees none
// of it.
func TestSwappedUpload(t *testing.T) {
	a := newApp(t)
	var got atomic.Pointer[string]
	a.mux.HandleFunc("POST /pay", func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		text := fmt.Sprintf("%s, %v", body, err)
		got.Store(&text)
	})
	for _, stream := range []bool{true, false} {
		rule := limpet.Rule{}
		if !stream {
			rule.Body = 1 << 10
		}
		s := newSiteOf(t, a, gateway.Config{Rule: rule})
		s.front.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/pay" { // somebody on the way
				r.Body = io.NopCloser(strings.NewReader("amount=9"))
			}
			s.Gateway.ServeHTTP(w, r)
		})
		owner := s.device(t)
		s.login(t, owner)
		got.Store(nil)
		code, e := s.ask(t, owner, "POST", "/pay", strings.NewReader("amount=1"))
		if code != 401 || e.Body != "body_mismatch" {
			t.Errorf("stream %v: %d %s", stream, code, e.Body)
		}
		if !stream && got.Load() != nil {
			t.Errorf("the app read %s", *got.Load())
		}
		if text := got.Load(); text != nil && (strings.Contains(*text, "=9") || strings.HasSuffix(*text, "<nil>")) {
			t.Errorf("the app read %s", *text)
		}
	}
}

// TestSpoofedHeaders: what the gateway says of a request nobody else says.
func TestSpoofedHeaders(t *testing.T) {
	spoofed := []string{
		"Remote-User", "root", "remote_user", "root", "Remote.User", "root", "REMOTE-user", "root", "remote~user", "root", "Remote-Groups", "root", "remote_email", "root",
		"Limpet-Level", "hardware", "Limpet_Level", "hardware", "Limpet-Session", "x", "Limpet-Key", "x", "limpet_key", "x", "Limpet-Anything", "x",
		"X-Forwarded-For", "6.6.6.6", "X_Forwarded_For", "6.6.6.6", "X-Forwarded-Host", "evil", "X-Forwarded-Proto", "gopher",
		"X-Forwarded-Prefix", "/evil", "Forwarded", "for=6.6.6.6", "X-Real-Ip", "6.6.6.6", "X-Original-Url", "/evil", "X-Rewrite-Url", "/evil",
		"X-Rpc-Sec-Dbcs-Accel-Pub-Id", "x", "Dpop", "x",
		"Cf-Connecting-Ip", "6.6.6.6", "True-Client-Ip", "6.6.6.6", "X-Client-Ip", "6.6.6.6", "Client-Ip", "6.6.6.6", "X-Cluster-Client-Ip", "6.6.6.6",
		"Fastly-Client-Ip", "6.6.6.6", "X-Azure-Clientip", "6.6.6.6", "Cf_Connecting_Ip", "7.7.7.7", "true.client_ip", "7.7.7.7", "X-Forwarded", "6.6.6.6",
		"X.Forwarded.For", "7.7.7.7", "x-forwarded.host", "7.7.7.7", "X~Real~Ip", "7.7.7.7", "Cf.Connecting.Ip", "7.7.7.7", // of no proxy's making
		"X-Original-Host", "asked.example.com",
	}
	// The reverse proxy treats requests with headers for the connection, the
	// gateway all others.
	connection := []string{"Connection", "Remote-User, Limpet-Level, X-Forwarded-For, keep-alive"}
	for i := range 4 {
		trusted := i%2 == 1
		cfg := gateway.Config{Names: gateway.Names{User: "X-User"}}
		if trusted {
			cfg.Trusted = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
		}
		s := newSite(t, cfg)
		b := s.browser(t)
		b.Transport = http1(s)
		sent := append(slices.Clone(spoofed), "X-User", "root", "X_USER", "root", "X-Other", "kept")
		if i >= 2 {
			sent = append(sent, connection...)
		}
		_, e := s.ask(t, b, "GET", "/", nil, sent...)
		text := fmt.Sprint(e.Header)
		if e.Header.Get("X-Other") != "kept" || e.Header.Get("Limpet-Level") != "none" || len(e.Header["Limpet-Level"]) != 1 {
			t.Errorf("trusted %v: %s", trusted, text)
		}
		for _, bad := range []string{"hardware", "X-User", "X_user", "Limpet-Session", "Limpet-Key", "Limpet_", "Limpet-Anything", "X_for", "X-Rpc", "Dpop", "Groups", "email"} {
			if strings.Contains(text, bad) {
				t.Errorf("trusted %v: %s reached the app: %s", trusted, bad, text)
			}
		}
		want := map[string]string{"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Proto": "https", "X-Forwarded-Host": e.Host, "X-Real-Ip": "", "X-Forwarded-Prefix": "", "X-Original-Host": ""}
		if trusted {
			want = map[string]string{"X-Forwarded-For": "6.6.6.6, 127.0.0.1", "X-Forwarded-Proto": "gopher", "X-Forwarded-Host": "evil", "X-Real-Ip": "6.6.6.6", "X-Forwarded-Prefix": "/evil", "X-Original-Host": "asked.example.com"}
		}
		if from := strings.Count(text, "6.6.6.6"); strings.Contains(text, "7.7.7.7") || !trusted && from > 0 || trusted && from != 11 {
			t.Errorf("trusted %v: %s", trusted, text)
		}
		want["X-Original-Url"], want["X-Rewrite-Url"] = "", "" // another target than the one that has the rule
		for name, value := range want {
			if got := strings.Join(e.Header[name], "|"); got != value {
				t.Errorf("trusted %v: %s: %q, want %q", trusted, name, got, value)
			}
		}
	}
	// Whether there is a user of the default name or not.
	s := newSite(t, gateway.Config{})
	b := s.browser(t)
	b.Transport = http1(s)
	if _, e := s.ask(t, b, "GET", "/", nil, spoofed...); strings.Contains(fmt.Sprint(e.Header), "root") {
		t.Errorf("%v", e.Header)
	}
}

// TestHeadersForTheConnection: they are for the gateway, and with them those that
// Connection names.
func TestHeadersForTheConnection(t *testing.T) {
	s := newSite(t, gateway.Config{})
	for _, connection := range []string{"keep-alive", "Close", "X-Secret, close", "close\r\nConnection: X-Secret", "X-Secret\r\nTe: trailers", "close\r\nKeep-Alive: 5",
		"close\r\nProxy-Authorization: Basic x", "close\r\nProxy-Connection: close", "close\r\nUpgrade: h2c", "close\r\nProxy-Authenticate: x"} {
		before := s.requests()
		s.raw(t, "GET / HTTP/1.1\r\nHost: x\r\nConnection: "+connection+"\r\nX-Secret: x\r\nX-Other: kept\r\n\r\nGET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		s.mu.Lock()
		h := s.seen[before].Header
		s.mu.Unlock()
		for _, name := range []string{"Connection", "Keep-Alive", "Proxy-Authorization", "Proxy-Authenticate", "Proxy-Connection", "Upgrade"} {
			if h[name] != nil {
				t.Errorf("%q: the app sees %s: %v", connection, name, h)
			}
		}
		if named := strings.Contains(connection, "X-Secret"); h.Get("X-Other") != "kept" || h.Get("Limpet-Level") != "none" || named != (h["X-Secret"] == nil) {
			t.Errorf("%q: the app sees %v", connection, h)
		}
	}
}

// http1 is a transport that does not canonicalise and speaks HTTP/1.1.
func http1(s *site) *http.Transport {
	return &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.front.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs}}
}

// raw sends bytes and returns the answer's first lines.
func (s *site) raw(t testing.TB, text string) string {
	t.Helper()
	conn, err := tls.Dial("tcp", s.front.Listener.Addr().String(), http1(s).TLSClientConfig)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	go io.WriteString(conn, text)
	got, _ := io.ReadAll(conn)
	return string(got)
}

// TestSmuggling: requests whose end can be seen in two places, and lines that
// can be read in two ways, reach the app in one way or not at all.
func TestSmuggling(t *testing.T) {
	s := newSite(t, gateway.Config{})
	inner := "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
	end := "\r\nConnection: close\r\n\r\n"
	for _, tt := range []struct{ name, text string }{
		{"lengths that differ", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 35" + end + inner},
		{"a length and chunks", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked" + end + "0\r\n\r\n" + inner},
		{"chunks in another coding", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked" + end + "0\r\n\r\n" + inner},
		{"chunked twice", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity" + end + "0\r\n\r\n" + inner},
		{"a blank before the colon", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked" + end + "0\r\n\r\n" + inner},
		{"a length with a sign", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +5" + end + inner},
		{"a folded line", "GET / HTTP/1.1\r\nHost: x\r\nX-A: b\r\n Remote-User: root" + end},
		{"two hosts", "GET / HTTP/1.1\r\nHost: x\r\nHost: y" + end},
		{"a target that is none", "GET x:y HTTP/1.1\r\nHost: x" + end},
		{"another host in the target", "GET http://y/ HTTP/1.1\r\nHost: x" + end},
		{"an asterisk", "GET * HTTP/1.1\r\nHost: x" + end},
		{"CONNECT", "CONNECT /smuggled HTTP/1.1\r\nHost: x" + end},
		{"TRACE", "TRACE /smuggled HTTP/1.1\r\nHost: x" + end},
		{"a method in small letters", "post /smuggled HTTP/1.1\r\nHost: x" + end},
		{"a bare line feed in a chunk's length", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked" + end + "1;\n\r\nx\r\n0\r\n\r\n"},
	} {
		before := s.requests()
		got := s.raw(t, tt.text)
		if n := strings.Count(got, "HTTP/1.1 "); n != 1 {
			t.Errorf("%s: %d answers: %s", tt.name, n, got)
		}
		s.mu.Lock()
		for _, r := range s.seen[before:] {
			if r.URL.Path == "/smuggled" || r.Header.Get("Remote-User") != "" || r.Method == "post" || r.Header.Get("Content-Length") != "" && r.Header.Get("Transfer-Encoding") != "" {
				t.Errorf("%s: the app saw %s %s %v", tt.name, r.Method, r.URL, r.Header)
			}
		}
		s.mu.Unlock()
	}
}

// TestEarlyAnswer: what the app has not read of a body is no request.
func TestEarlyAnswer(t *testing.T) {
	a := newApp(t)
	a.mux.HandleFunc("/early", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusRequestEntityTooLarge) })
	s := newSiteOf(t, a, gateway.Config{})
	inner := strings.Repeat("GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n", 1<<16)
	for _, body := range []string{
		fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(inner), inner),
		fmt.Sprintf("Expect: 100-continue\r\nContent-Length: %d\r\n\r\n%s", len(inner), inner),
		fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(inner), inner),
	} {
		s.raw(t, "POST /early HTTP/1.1\r\nHost: x\r\n"+body+"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range a.seen {
		if r.URL.Path == "/smuggled" {
			t.Fatal("the rest of a body reached the app as a request")
		}
	}
}

// TestPathsInTwoWays: a path that some app reads as one with another rule is
// refused, others pass as they are.
func TestPathsInTwoWays(t *testing.T) {
	s := newSite(t, gateway.Config{Routes: []limpet.Route{
		{Pattern: "/admin/", Rule: limpet.Rule{Mode: limpet.Require}},
		{Pattern: "DELETE /things/{id}", Rule: limpet.Rule{Mode: limpet.Require}},
		{Pattern: "/public/", Rule: limpet.Rule{Mode: limpet.Observe}},
	}})
	for target, want := range map[string]string{
		"/admin": "401", "/admin/": "401", "/admin/x": "401", "//admin/x": "400", "/x/..%2fadmin/x": "400", "/x/../admin/x": "400",
		"/%61dmin/x": "400", "/%2561dmin/x": "400", "/admin%2fx": "400", "/admin;a=b/x": "400", "/;/admin/x": "400",
		`/admin\x`: "400", `/x\..\admin`: "400", "/%2e%2e/admin": "400", "/%2e/admin": "400", "/x/..;/admin/x": "400", "/ADMIN/x": "400",
		"/Admin": "400", "/admin%00": "400", "/x%0d%0a": "400", "/%c0%afadmin": "400", "/admin%3fx": "400", "/admin%23/x": "400", "//evil/admin/x": "400",
		"/LOGIN": "200", "/public/../admin": "400", "/public/%2e%2e/admin": "400", "/public//x": "200",
		"/files/a%2Fb": "200", "/files/C%23.pdf": "200", "/files/a;v=1": "200", "/files//b": "200", "/files/%E9": "200", "/Files/ABC": "200",
		"/files/100%25": "200", "/x/.well-known/y": "200", "/a..b/...": "200", "/things/7": "200",
	} {
		got := s.raw(t, "GET "+target+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		if code := strings.TrimPrefix(got, "HTTP/1.1 "); !strings.HasPrefix(code, want) {
			t.Errorf("GET %s: %.20q, want %s", target, code, want)
		}
		if want == "200" && !strings.Contains(got, `"URI":"`+target) && !strings.Contains(target, "#") {
			t.Errorf("GET %s: the app saw %s", target, got)
		}
	}
	for request, want := range map[string]string{
		"POST /LOGIN HTTP/1.1\r\n": "400", "POST //login HTTP/1.1\r\n": "400", "POST /login;x HTTP/1.1\r\n": "400", "POST /login/ HTTP/1.1\r\n": "200",
		"DELETE /things/7 HTTP/1.1\r\n": "401", "DELETE /things/7/ HTTP/1.1\r\n": "401",
		"POST /things/7 HTTP/1.1\r\nX-HTTP-Method-Override: delete\r\n": "400", "POST /things/7 HTTP/1.1\r\nX_Http_Method_Override: DELETE\r\n": "400", "POST /things/7 HTTP/1.1\r\nX-HTTP-Method-Override: PUT\r\n": "200",
		"POST /things/7 HTTP/1.1\r\nX-HTTP-Method-Override: PUT, DELETE\r\n": "400", "POST /things/7 HTTP/1.1\r\nX-HTTP-Method-Override: A,B,C,D,E,F\r\n": "400",
	} {
		got := s.raw(t, request+"Host: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
		code := strings.TrimPrefix(got, "HTTP/1.1 ")
		if strings.Contains(request, "/login") && want == "200" {
			want = "" // what the app says to an empty login is its own affair
		}
		if !strings.HasPrefix(code, want) {
			t.Errorf("%q: %.20q, want %s", request, code, want)
		}
	}
}

// TestUpstreamTrouble: whatever becomes of the app, the client is told in words,
// and the gateway stands.
func TestUpstreamTrouble(t *testing.T) {
	a := newApp(t)
	block, gone := make(chan bool), make(chan bool)
	a.mux.HandleFunc("/slow", func(http.ResponseWriter, *http.Request) { <-block })
	a.mux.HandleFunc("/reset", func(w http.ResponseWriter, r *http.Request) {
		conn, _, _ := http.NewResponseController(w).Hijack()
		conn.(*net.TCPConn).SetLinger(0)
		conn.Close()
	})
	a.mux.HandleFunc("/cut", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000")
		io.WriteString(w, "half of it")
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	a.mux.HandleFunc("/torn", func(w http.ResponseWriter, r *http.Request) {
		conn, _, _ := http.NewResponseController(w).Hijack()
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhalf \r\n")
		time.Sleep(50 * time.Millisecond)
		conn.(*net.TCPConn).SetLinger(0)
		conn.Close()
	})
	a.mux.HandleFunc("/nonsense", func(w http.ResponseWriter, r *http.Request) {
		conn, _, _ := http.NewResponseController(w).Hijack()
		io.WriteString(conn, "this is no HTTP\r\n\r\n")
		conn.Close()
	})
	a.mux.HandleFunc("/endless", func(w http.ResponseWriter, r *http.Request) {
		for {
			if _, err := w.Write(make([]byte, 4096)); err != nil {
				close(gone)
				return
			}
		}
	})
	s := newSiteOf(t, a, gateway.Config{Timeout: 300 * time.Millisecond})
	b := s.browser(t)
	for path, want := range map[string]string{
		"/slow": "504 upstream_timeout", "/reset": "502 upstream_unreachable", "/nonsense": "502 upstream_unreachable",
	} {
		if code, e := s.ask(t, b, "POST", path, strings.NewReader("body")); fmt.Sprint(code, " ", e.Body) != want {
			t.Errorf("%s: %d %s, want %s", path, code, e.Body, want)
		}
	}
	close(block)
	for _, path := range []string{"/cut", "/torn"} {
		for _, transport := range []http.RoundTripper{b.Transport, http1(s)} {
			resp, err := (&http.Client{Transport: transport}).Get(s.front.URL + path)
			if err == nil {
				var text []byte
				text, err = io.ReadAll(resp.Body)
				resp.Body.Close()
				if err == nil {
					t.Errorf("an answer that was cut off looks whole: %q", text)
				}
			}
		}
	}

	// A client that goes away while it is answered, or in the middle of its body.
	resp, err := b.Get(s.front.URL + "/endless")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	<-gone
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	req, _ := http.NewRequestWithContext(ctx, "POST", s.front.URL+"/", r)
	go func() { w.Write([]byte("half")); cancel() }()
	if _, err := b.Do(req); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	s.wants(t, b, "GET", "/me", 200, "")

	a.Close()
	if code, e := s.ask(t, b, "GET", "/me", nil); code != 502 || e.Body != "upstream_unreachable" {
		t.Errorf("no app: %d %s", code, e.Body)
	}
}

// TestLargeHeaders: a mebibyte of headers is refused before it is kept.
func TestLargeHeaders(t *testing.T) {
	s := newSite(t, gateway.Config{})
	for _, text := range []string{"X-Large: " + strings.Repeat("x", 1<<20), strings.Repeat("X-Many: x\r\n", 1<<17)} {
		if got := s.raw(t, "GET / HTTP/1.1\r\nHost: x\r\n"+text+"\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.1 431") {
			t.Errorf("%.60s", got)
		}
	}
	if s.requests() > 0 {
		t.Error("they reached the app")
	}
}

// TestExpectContinue: a body is asked for once the app wants it.
func TestExpectContinue(t *testing.T) {
	a := newApp(t)
	a.mux.HandleFunc("POST /no", func(w http.ResponseWriter, r *http.Request) { http.Error(w, "no", http.StatusForbidden) })
	s := newSiteOf(t, a, gateway.Config{})
	for path, want := range map[string]string{"/yes": "HTTP/1.1 100", "/no": "HTTP/1.1 403"} {
		conn, err := tls.Dial("tcp", s.front.Listener.Addr().String(), http1(s).TLSClientConfig)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n", path)
		r := bufio.NewReader(conn)
		line, err := r.ReadString('\n')
		if !strings.HasPrefix(line, want) {
			t.Errorf("%s: %q, %v", path, line, err)
		}
		if path == "/yes" {
			r.ReadString('\n')
			io.WriteString(conn, "body")
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			if text, _ := io.ReadAll(resp.Body); !bytes.Contains(text, []byte(`"Body":"body"`)) {
				t.Errorf("%s", text)
			}
		}
	}
}

// TestBadConfigurations are refused with words.
func TestBadConfigurations(t *testing.T) {
	good := func() gateway.Config {
		return gateway.Config{Upstream: must(url.Parse("http://127.0.0.1:1")), Session: limpet.Cookie("sid"), Store: &brokenStore{}}
	}
	for want, change := range map[string]func(*gateway.Config){
		"no upstream":               func(c *gateway.Config) { c.Upstream = nil },
		"more than scheme":          func(c *gateway.Config) { c.Upstream = must(url.Parse("http://x/path")) },
		"not of the form":           func(c *gateway.Config) { c.Upstream = must(url.Parse("ftp://x")) },
		"Config.Session is not set": func(c *gateway.Config) { c.Session = limpet.Session{} },
		`the name "a;b"`:            func(c *gateway.Config) { c.Session = limpet.Cookie("a;b") },
		"Config.Store is not set":   func(c *gateway.Config) { c.Store = nil },
		"a timeout of -1s":          func(c *gateway.Config) { c.Timeout = -time.Second },
		"there twice":               func(c *gateway.Config) { c.Logouts = []string{"/x", "/x"} },
		"conflicts with pattern":    func(c *gateway.Config) { c.Logouts = []string{"/{a}/x", "/x/{b}"} },
		"without case":              func(c *gateway.Config) { c.Logouts = []string{"/x", "/X"} },
		"is none of form.FIELD":     func(c *gateway.Config) { c.Logins = []gateway.Login{{Pattern: "/x", User: "cookie.x"}} },
		"no path of the form":       func(c *gateway.Config) { c.Logins = []gateway.Login{{Pattern: "/x", Token: "a..b"}} },
		"a status of 404":           func(c *gateway.Config) { c.Logins = []gateway.Login{{Pattern: "/x", Success: []int{404}}} },
		"cannot be the name":        func(c *gateway.Config) { c.Names.User = "Cookie" },
		`"X-Original-User" cannot`:  func(c *gateway.Config) { c.Names.User = "X-Original-User" },
		`"Forwarded-User" cannot`:   func(c *gateway.Config) { c.Names.User = "Forwarded-User" },
		`"Limpet-Level" cannot be`:  func(c *gateway.Config) { c.Names.User = "limpet-level" },
		"exclude each other":        func(c *gateway.Config) { c.Rule = limpet.Rule{Freshness: limpet.BodyHash, Body: limpet.StreamBody} },
		`unknown level "x"`:         func(c *gateway.Config) { c.Routes = []limpet.Route{{Pattern: "/x", Rule: limpet.Rule{MinLevel: "x"}}} },
	} {
		cfg := good()
		change(&cfg)
		if _, err := gateway.New(cfg); err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "limpet: gateway: ") || strings.Contains(err.Error(), ".go:") {
			t.Errorf("want %q: %v", want, err)
		}
	}
}
