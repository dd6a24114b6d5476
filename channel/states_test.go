package channel

import (
	"crypto/tls"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	"weak"

	"github.com/limpet-auth/limpet/keyring"
)

// States that nobody's handshake made, as those of net/http/fcgi, export nothing:
// they are refused, and take no server down.
func TestStateMadeByHand(t *testing.T) {
	for _, p := range []Profile{Limpet, Sample} {
		s := newSite(t, ServerConfig{Profile: p})
		for name, state := range map[string]*tls.ConnectionState{
			"of net/http/fcgi":     {HandshakeComplete: true},
			"of net/http/httptest": httptest.NewRequest("GET", "https://example.com/", nil).TLS,
			"of version 1.3":       {HandshakeComplete: true, Version: tls.VersionTLS13},
		} {
			r := httptest.NewRequest("GET", "https://example.com/", nil)
			r.TLS = state
			r.Header.Set("Authorization", "Bearer "+formatToken(alice, make([]byte, 32)))
			if p == Sample {
				r.Header.Set(SampleClientField, alice)
				r.Header.Set(SampleTokenField, strings.Repeat("A", 43)+"=")
			}
			w := httptest.NewRecorder()
			s.server.Protect(http.NotFoundHandler()).ServeHTTP(w, r)
			wantRefused(t, p.String()+" "+name, &answer{w.Code, w.Header(), w.Body.String()})
			if got := w.Header().Get(FingerprintField); got != "none" {
				t.Errorf("%s: fingerprint %q", name, got)
			}
		}
	}
}

// Some servers, of HTTP/3 for one, give each request a copy of the state. A MAC is
// good once there too.
func TestReplayWhereStatesAreNotShared(t *testing.T) {
	var mu sync.Mutex
	var sent http.Header
	s := newSite(t, ServerConfig{PerRequest: true}, func(h *httptest.Server) {
		next := h.Config.Handler
		h.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			state := *r.TLS
			r.TLS = &state
			mu.Lock()
			sent = r.Header.Clone()
			mu.Unlock()
			next.ServeHTTP(w, r)
		})
	})
	base := s.base(true)
	wantAdmitted(t, s.client(Config{PerRequest: true, Base: base}, true), s.http.URL+"/", "alice 1 token ")
	again, err := http.NewRequest("GET", s.http.URL+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	again.Header = sent
	mu.Unlock()
	resp, err := base.RoundTrip(again)
	if err != nil {
		t.Fatal(err)
	}
	if body := readAll(t, resp); resp.StatusCode != 401 {
		t.Errorf("a MAC that was used before got %d %s", resp.StatusCode, body)
	}
}

// slowBody is a body that says when it is read and waits half way.
type slowBody struct {
	io.Reader
	began, goOn chan struct{}
}

func (b *slowBody) Read(p []byte) (int, error) {
	if b.began != nil {
		close(b.began)
		b.began = nil
		return copy(p, "01234"), nil
	}
	<-b.goOn
	return b.Reader.Read(p)
}

// A client that is revoked while the body of its request is on its way is not
// admitted.
func TestRevokedWhileItsBodyComes(t *testing.T) {
	bothVersions(t, func(t *testing.T, http2 bool) {
		verified := make(chan struct{})
		s := newSite(t, ServerConfig{PerRequest: true})
		c := s.transport(Config{PerRequest: true}, http2)
		body := &slowBody{strings.NewReader("56789"), make(chan struct{}), make(chan struct{})}
		began, bodies := body.began, []io.Reader{strings.NewReader("0123456789"), body}
		r, err := http.NewRequest("POST", s.http.URL+"/", body)
		if err != nil {
			t.Fatal(err)
		}
		r.ContentLength = 10
		r.GetBody = func() (io.ReadCloser, error) {
			next := bodies[0]
			bodies = bodies[1:]
			return io.NopCloser(next), nil
		}
		go func() {
			defer close(verified)
			<-began
			for end := time.Now().Add(10 * time.Second); s.server.spent.Len() == 0 && time.Now().Before(end); {
				time.Sleep(time.Millisecond)
			}
			if err := keyring.Edit(s.path, func(l *keyring.List) error { return l.Revoke(alice) }); err != nil {
				t.Error(err)
			}
			if err := s.ring.Reload(); err != nil {
				t.Error(err)
			}
			close(body.goOn)
		}()
		resp, err := c.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		<-verified
		if text := readAll(t, resp); resp.StatusCode != 401 {
			t.Errorf("got %d %s", resp.StatusCode, text)
		}
	})
}

// The key is asked once a connection, however many there are, and none is kept.
func TestManyConnections(t *testing.T) {
	const many = 300
	var arrived sync.WaitGroup
	var leave chan struct{}
	s := newSite(t, ServerConfig{})
	s.app = func(http.ResponseWriter, *http.Request) {
		arrived.Done()
		<-leave
	}
	base := s.base(false)
	base.MaxIdleConns, base.MaxIdleConnsPerHost = 0, many
	key := &slow{HMACKey: softHMAC(t, aliceSecret)}
	c := s.transport(Config{HMAC: key, Base: base}, false)
	var mu sync.Mutex
	conns := make(map[weak.Pointer[tls.Conn]]bool)
	ask := func() {
		r, err := http.NewRequest("GET", s.http.URL+"/", nil)
		if err != nil {
			t.Error(err)
			return
		}
		resp, err := c.RoundTrip(r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
			mu.Lock()
			defer mu.Unlock()
			conns[weak.Make(info.Conn.(*tls.Conn))] = true
		}})))
		if err != nil {
			t.Error(err)
			return
		}
		if body := readAll(t, resp); resp.StatusCode != 200 {
			t.Errorf("got %d %s", resp.StatusCode, body)
		}
	}
	for range 2 {
		var asking sync.WaitGroup
		arrived.Add(many)
		leave = make(chan struct{})
		for range many {
			asking.Go(ask)
		}
		arrived.Wait()
		close(leave)
		asking.Wait()
	}
	if asked := key.asked(); asked > len(conns) {
		t.Errorf("the key was asked %d times for %d connections", asked, len(conns))
	}
	base.CloseIdleConnections()
	kept := many
	for end := time.Now().Add(10 * time.Second); kept > 0 && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		runtime.GC()
		kept = 0
		for conn := range conns {
			if conn.Value() != nil {
				kept++
			}
		}
	}
	if kept > many/10 { // net/http may hold some
		t.Errorf("%d of %d connections are kept", kept, len(conns))
	}
}
