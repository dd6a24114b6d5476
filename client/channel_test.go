package client_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/client"
	"github.com/limpet-auth/limpet/proof"
)

// serveTLS starts a sigServer that wants proofs bound to their connection, and
// returns a client of it. between is called before each request that it checks.
func serveTLS(t *testing.T, http2 bool, between func(w http.ResponseWriter, r *http.Request)) (*sigServer, *httptest.Server, *client.Client, *http.Client) {
	up := newSigServer()
	up.channel = true
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor == 2 != http2 {
			t.Errorf("a request by %s", r.Proto)
		}
		between(w, r)
		up.ServeHTTP(w, r)
	}))
	srv.EnableHTTP2 = http2
	srv.Config.ErrorLog = nil
	srv.StartTLS()
	t.Cleanup(srv.Close)
	cl := client.New(newKeystore())
	return up, srv, cl, &http.Client{Transport: cl.Transport(srv.Client().Transport)}
}

func bothVersions(t *testing.T, test func(t *testing.T, http2 bool)) {
	t.Run("http/1.1", func(t *testing.T) { test(t, false) })
	t.Run("http/2", func(t *testing.T) { test(t, true) })
}

// One refusal tells that proofs must be bound to their connection. From then on
// they are, on each of many.
func TestChannel(t *testing.T) {
	bothVersions(t, func(t *testing.T, http2 bool) {
		up, srv, _, c := serveTLS(t, http2, func(http.ResponseWriter, *http.Request) {})
		token := loginSig(t, c, srv.URL)
		want(t, c, request(t, "POST", srv.URL+"/x", token, strings.NewReader("y")), 200, "y")
		up.expect(t, 3, 2, "map[channel_required:1]")
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				for range 20 {
					want(t, c, request(t, "GET", srv.URL+"/x", token, nil), 200, "")
					want(t, c, request(t, "POST", srv.URL+"/x", token, struct{ io.Reader }{strings.NewReader("z")}), 200, "z")
				}
			})
		}
		wg.Wait()
		up.expect(t, 640, 0, "")
		for range 10 {
			srv.CloseClientConnections()
			c.CloseIdleConnections()
			want(t, c, request(t, "GET", srv.URL+"/x", token, nil), 200, "")
		}
		up.expect(t, 10, 0, "")
	})
}

// Connections that break, or are closed by the server in between, move requests
// to others: each is signed anew for the one it is answered on.
func TestChannelMoves(t *testing.T) {
	bothVersions(t, func(t *testing.T, http2 bool) {
		var n atomic.Int64
		up, srv, _, c := serveTLS(t, http2, func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.URL.Path != "/x":
			case http2 && n.Add(1)%29 == 0:
				w.Header().Set("Connection", "close") // a GOAWAY; net/http sends streams beyond it again
			case !http2 && n.Add(1)%7 == 0:
				panic(http.ErrAbortHandler) // net/http sends a GET again if the connection had been used before
			}
		})
		srv.Client().Transport.(*http.Transport).MaxIdleConnsPerHost = 16
		token := loginSig(t, c, srv.URL)
		var broken atomic.Int64
		var wg sync.WaitGroup
		for i := range 16 {
			wg.Go(func() {
				for j := range 40 {
					method, body := "GET", io.Reader(nil)
					if http2 && j%2 == 0 {
						method, body = "POST", strings.NewReader(fmt.Sprint(i, j))
					}
					resp, err := c.Do(request(t, method, srv.URL+"/x", token, body))
					if err != nil { // a connection that broke at its first request
						broken.Add(1)
						continue
					}
					got := read(t, resp)
					if resp.StatusCode != 200 || body != nil && got != fmt.Sprint(i, j) {
						t.Errorf("%s %q", resp.Status, got)
					}
				}
			})
		}
		wg.Wait()
		up.mu.Lock()
		defer up.mu.Unlock()
		if n := broken.Load(); n > 20 || http2 && n > 0 {
			t.Errorf("%d requests were not sent again", n)
		}
		// The first ones may all be told that they need a channel; nothing else
		// is refused, so what was called back was not sent.
		if len(up.refused) != 1 || up.refused["channel_required"] > 16 {
			t.Errorf("refused %v", up.refused)
		}
		seen := map[string]int{}
		for _, body := range up.bodies {
			if seen[body]++; body != "" && seen[body] > 1 {
				t.Errorf("%q was admitted twice", body)
			}
		}
	})
}

// A server that closes idle connections early meets requests on their way: each
// is acted on once, guarded or not.
func TestChannelIdle(t *testing.T) {
	bothVersions(t, func(t *testing.T, http2 bool) {
		up := newSigServer()
		up.channel = true
		srv := httptest.NewUnstartedServer(up)
		srv.EnableHTTP2 = http2
		srv.Config.IdleTimeout = 2 * time.Millisecond
		srv.StartTLS()
		defer srv.Close()
		c := &http.Client{Transport: client.New(newKeystore()).Transport(srv.Client().Transport)}
		token := loginSig(t, c, srv.URL)
		// The guard knows the key before the storm. An answer of /open, which has no
		// guard, would tell the client so even if this one were lost.
		want(t, c, request(t, "GET", srv.URL+"/x", token, nil), 200, "")
		broken := 0
		for i := range 200 {
			body := fmt.Sprint(i)
			resp, err := c.Do(request(t, "POST", srv.URL+[]string{"/x", "/open"}[i%2], token, strings.NewReader(body)))
			if err != nil { // net/http may not send a POST again of which it does not know whether it arrived
				broken++
				continue
			}
			if got := read(t, resp); resp.StatusCode != 200 || got != body {
				t.Errorf("%s %q", resp.Status, got)
			}
			time.Sleep(2*time.Millisecond - time.Duration(i)*5*time.Microsecond)
		}
		seen := map[string]bool{}
		for _, body := range up.bodies {
			if seen[body] {
				t.Errorf("request %s was acted on twice", body)
			}
			seen[body] = true
		}
		if len(up.refused) != 1 || up.refused["channel_required"] != 1 || broken > 100 || http2 && broken > 0 {
			t.Errorf("%d broken, refused %v", broken, up.refused)
		}
	})
}

// mover is a base that announces connections as it likes. It reads the headers
// of each attempt concurrently, as net/http may.
type mover struct {
	handler http.Handler
	conns   [][]net.Conn // of each attempt
	sent    []http.Header
	wg      sync.WaitGroup
}

func (m *mover) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Path != "/x" {
		return direct{m.handler}.RoundTrip(r)
	}
	trace := httptrace.ContextClientTrace(r.Context())
	if trace == nil {
		return &http.Response{StatusCode: 401, Header: http.Header{"Www-Authenticate": {`Limpet error="channel_required"`}}, Body: http.NoBody}, nil
	}
	conns := m.conns[0]
	m.conns = m.conns[1:]
	for _, conn := range conns {
		trace.GotConn(httptrace.GotConnInfo{Conn: conn})
		m.wg.Go(func() { _ = maps.Clone(r.Header) })
	}
	if err := context.Cause(r.Context()); err != nil {
		return nil, err
	}
	m.sent = append(m.sent, r.Header.Clone())
	return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("ok"))}, nil
}

// tlsConns returns client ends of TLS connections.
func tlsConns(t *testing.T, n int) (conns []net.Conn) {
	srv := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(srv.Close)
	for range n {
		conn, err := tls.Dial("tcp", srv.Listener.Addr().String(), srv.Client().Transport.(*http.Transport).TLSClientConfig)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conns = append(conns, conn)
	}
	return conns
}

// A request that its base moves is called back, and its headers are not touched
// any more.
func TestChannelMoved(t *testing.T) {
	up := newSigServer()
	cl := client.New(newKeystore())
	c := &http.Client{Transport: cl.Transport(direct{up})}
	token := loginSig(t, c, origin)
	plain, _ := net.Pipe()
	conns := tlsConns(t, 3)
	for _, tc := range []struct {
		conns [][]int // numbers of connections, -1 for one without TLS
		err   string
		sent  int
		open  []int // afterwards
	}{
		{conns: [][]int{{0}}, sent: 1, open: []int{0, 1, 2}},
		{conns: [][]int{{0, 1}, {2}}, sent: 1, open: []int{0, 2}},
		{conns: [][]int{{0, 1, 0}, {1, 2}, {2}}, sent: 1, open: nil},
		{conns: [][]int{{0, 0}}, sent: 1, open: []int{0, 1, 2}},
		{conns: [][]int{{-1}}, err: "TLS", open: []int{0, 1, 2}},
		{conns: slices.Repeat([][]int{{0, 1}}, 16), err: "break", open: []int{0, 2}},
	} {
		m := &mover{handler: up}
		for _, attempt := range tc.conns {
			var list []net.Conn
			for _, i := range attempt {
				if i < 0 {
					list = append(list, plain)
				} else {
					list = append(list, conns[i])
				}
			}
			m.conns = append(m.conns, list)
		}
		body := &closing{Reader: strings.NewReader("x")}
		c.Transport = cl.Transport(m)
		resp, err := c.Do(request(t, "POST", origin+"/x", token, body))
		m.wg.Wait()
		if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) || len(m.sent) != tc.sent || len(m.conns) != 0 {
			t.Errorf("error %v, %d sent, %d attempts left", err, len(m.sent), len(m.conns))
		}
		for i, conn := range conns { // where it was called back nothing can be sent
			_, err := conn.Write([]byte("x"))
			if open := slices.Contains(tc.open, i); (err == nil) != open {
				t.Errorf("connection %d: error %v, open %v", i, err, open)
			}
		}
		conns = tlsConns(t, 3)
		if err != nil {
			continue
		}
		if got := read(t, resp); got != "ok" || m.sent[0].Get("Limpet-Channel") != "tls-exporter" || m.sent[0].Get("Signature") == "" {
			t.Errorf("%q, sent %v", got, m.sent)
		}
	}
}

// A base that sends copies of requests cannot bind them to connections. Routes
// that do not want that work with it all the same.
func TestChannelCopied(t *testing.T) {
	up := newSigServer()
	_, c := sigClient(up, newKeystore()) // direct has no connections either
	token := loginSig(t, c, origin)
	up.channel = true
	for i, refused := range []string{"map[channel_required:2 proof_required:1]", "map[channel_required:1]"} {
		resp := want(t, c, request(t, "GET", origin+"/x", token, nil), 401, "")
		if reason := client.Reason(resp); reason != "channel_required" {
			t.Errorf("reason %q", reason)
		}
		up.expect(t, []int{4, 1}[i], []int{3, 1}[i], refused)
	}
	up.channel = false
	want(t, c, request(t, "GET", origin+"/x", token, nil), 200, "")
	up.expect(t, 1, 1, "")
}

// A signing key cannot be bound to a connection, and neither can plain HTTP:
// there the refusal is the answer.
func TestChannelCannot(t *testing.T) {
	up, srv, cl, c := serveTLS(t, true, func(http.ResponseWriter, *http.Request) {})
	cl.Ephemeral = proof.ECDSAP256
	token := loginSig(t, c, srv.URL)
	resp := want(t, c, request(t, "GET", srv.URL+"/x", token, nil), 401, "")
	if reason := client.Reason(resp); reason != "channel_required" {
		t.Errorf("reason %q", reason)
	}
	plain := httptest.NewServer(up)
	defer plain.Close()
	c = &http.Client{Transport: client.New(newKeystore()).Transport(nil)}
	token = loginSig(t, c, plain.URL)
	resp = want(t, c, request(t, "GET", plain.URL+"/x", token, nil), 401, "")
	if reason := client.Reason(resp); reason != "channel_required" {
		t.Errorf("reason %q", reason)
	}
}

// The end of a request's context is its own, not taken for a broken connection.
func TestChannelCancelled(t *testing.T) {
	stop := make(chan struct{})
	_, srv, _, c := serveTLS(t, true, func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(stop)
			<-r.Context().Done()
		}
	})
	token := loginSig(t, c, srv.URL)
	want(t, c, request(t, "GET", srv.URL+"/x", token, nil), 200, "")
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-stop; cancel() }()
	_, err := c.Do(request(t, "GET", srv.URL+"/slow", token, nil).WithContext(ctx))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// A stream in both directions stays one.
func TestChannelUpgrade(t *testing.T) {
	up := newSigServer()
	up.channel = true
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" || r.Header.Get("Limpet-Channel") == "" {
			up.ServeHTTP(w, r)
			return
		}
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		io.WriteString(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		rw.Flush()
		line, _ := rw.ReadString('\n')
		io.WriteString(rw, "echo "+line)
		rw.Flush()
	}))
	defer srv.Close()
	c := &http.Client{Transport: client.New(newKeystore()).Transport(srv.Client().Transport)}
	req := request(t, "GET", srv.URL+"/x", loginSig(t, c, srv.URL), nil)
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "echo")
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	both, ok := resp.Body.(io.ReadWriter)
	if !ok || resp.StatusCode != 101 {
		t.Fatalf("%s, body %T", resp.Status, resp.Body)
	}
	io.WriteString(both, "hello\n")
	got := make([]byte, 11)
	if _, err := io.ReadFull(both, got); err != nil || string(got) != "echo hello\n" {
		t.Errorf("%q %v", got, err)
	}
}
