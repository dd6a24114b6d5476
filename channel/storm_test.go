package channel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// conns counts the connections that an app sees.
type conns struct {
	mu   sync.Mutex
	seen map[*tls.ConnectionState]int
}

func (c *conns) see(r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.seen == nil {
		c.seen = make(map[*tls.ConnectionState]int)
	}
	c.seen[r.TLS]++
}

func (c *conns) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.seen)
}

// Hundreds of requests at once each carry the token of the connection that they
// go out on, and the key is asked once a connection.
func TestManyRequestsAtOnce(t *testing.T) {
	bothVersions(t, func(t *testing.T, http2 bool) {
		s := newSite(t, ServerConfig{PerRequest: true})
		var seen conns
		s.app = func(_ http.ResponseWriter, r *http.Request) { seen.see(r) }
		key := &slow{HMACKey: softHMAC(t, aliceSecret)}
		base := s.base(http2)
		base.MaxConnsPerHost, base.MaxIdleConnsPerHost = 50, 50
		tr := s.transport(Config{HMAC: key, PerRequest: true, Base: base}, http2)
		c := &http.Client{Transport: tr}
		begin := make(chan struct{})
		var wg sync.WaitGroup
		for i := range 400 {
			wg.Go(func() {
				<-begin
				body := fmt.Sprint(i)
				resp, err := c.Post(s.http.URL+"/x", "", strings.NewReader(body))
				if err != nil {
					t.Error(err)
					return
				}
				if got := readAll(t, resp); got != "alice 1 token "+body {
					t.Errorf("%s %q", resp.Status, got)
				}
			})
		}
		close(begin)
		wg.Wait()
		if n := seen.count(); n != key.asked() || n > 50 || !http2 && n < 10 {
			t.Errorf("%d connections, and the key was asked %d times", n, key.asked())
		}
		if log := s.log.take(); log != "" {
			t.Errorf("refused: %s", log)
		}
	})
}

// Connections that break, or that the server closes in between, move requests to
// others. No token goes out on a connection that is not its own, and nothing is
// acted on twice.
func TestStormOfBrokenConnections(t *testing.T) {
	for _, macs := range []bool{false, true} {
		t.Run(fmt.Sprintf("MACs %v", macs), func(t *testing.T) {
			bothVersions(t, func(t *testing.T, http2 bool) {
				s := newSite(t, ServerConfig{PerRequest: macs})
				var n, broken atomic.Int64
				var mu sync.Mutex
				acted := map[string]int{}
				s.app = func(w http.ResponseWriter, r *http.Request) {
					switch i := n.Add(1); {
					case http2 && i%29 == 0:
						w.Header().Set("Connection", "close") // a GOAWAY; net/http sends streams beyond it again
					case !http2 && i%7 == 0:
						panic(http.ErrAbortHandler) // net/http sends a GET again if the connection had been used before
					}
					mu.Lock()
					defer mu.Unlock()
					acted[r.URL.Path]++
				}
				base := s.base(http2)
				base.MaxIdleConnsPerHost = 16
				c := s.client(Config{Base: base, PerRequest: macs}, http2)
				var wg sync.WaitGroup
				for i := range 12 {
					wg.Go(func() {
						for j := range 16 {
							path := fmt.Sprintf("/%d/%d", i, j)
							method, body := "GET", io.Reader(nil)
							if http2 && j%2 == 0 {
								method, body = "POST", strings.NewReader(path)
							}
							r, _ := http.NewRequest(method, s.http.URL+path, body)
							resp, err := c.Do(r)
							if err != nil { // a connection that broke at its first request
								broken.Add(1)
								continue
							}
							if got := readAll(t, resp); resp.StatusCode != 200 || body != nil && got != "alice 1 token "+path {
								t.Errorf("%s %q", resp.Status, got)
							}
						}
					})
				}
				wg.Wait()
				if n := broken.Load(); n > 30 || http2 && n > 0 {
					t.Errorf("%d requests were not sent again", n)
				}
				if log := s.log.take(); log != "" {
					t.Errorf("a token on a connection that is not its own: %s", log)
				}
				for path, times := range acted {
					if times > 1 {
						t.Errorf("%s was acted on %d times", path, times)
					}
				}
			})
		})
	}
}

// A server that closes idle connections early meets requests on their way.
func TestConnectionsClosedEarly(t *testing.T) {
	bothVersions(t, func(t *testing.T, http2 bool) {
		s := newSite(t, ServerConfig{}, func(srv *httptest.Server) { srv.Config.IdleTimeout = 2 * time.Millisecond })
		var seen conns
		s.app = func(_ http.ResponseWriter, r *http.Request) { seen.see(r) }
		c := s.client(Config{}, http2)
		for i := range 80 {
			resp, err := c.Get(s.http.URL)
			if err != nil {
				t.Error(err)
				continue
			}
			if readAll(t, resp); resp.StatusCode != 200 {
				t.Errorf("%s: %s", resp.Status, s.log.take())
			}
			time.Sleep(2*time.Millisecond - time.Duration(i)*14*time.Microsecond)
		}
		if n := seen.count(); n < 5 {
			t.Errorf("only %d connections", n)
		}
	})
}

// On a connection that lives long a JWT is renewed before it ends, by a shared
// secret without asking its keeper again.
func TestJWTIsRenewed(t *testing.T) {
	pair := softP256(t)
	for _, tt := range []struct {
		name string
		cfg  Config
		want string
	}{
		{"JWT", Config{Form: JWT}, "alice 1 jwt "}, {"JWE", Config{Form: JWE}, "alice 1 jwe "},
		{"MACs", Config{Form: JWT, PerRequest: true}, "alice 1 jwt "}, {"key pair", Config{ID: "pair", Key: pair, Form: JWT}, "pair 1 jwt "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bothVersions(t, func(t *testing.T, http2 bool) {
				s := newSite(t, ServerConfig{PerRequest: tt.cfg.PerRequest})
				s.knows("pair", pair)
				var seen conns
				tokens := map[string]int{}
				s.app = func(_ http.ResponseWriter, r *http.Request) {
					seen.see(r)
					tokens[r.Header.Get("Authorization")]++
				}
				key := &slow{HMACKey: softHMAC(t, aliceSecret)}
				cfg := tt.cfg
				if cfg.Key == nil {
					cfg.HMAC = key
				}
				tr := s.transport(cfg, http2)
				var ahead time.Duration
				now := time.Now()
				tr.now = func() time.Time { return now.Add(ahead) }
				s.server.now = tr.now
				c := &http.Client{Transport: tr}
				for range 121 { // four hours
					wantAdmitted(t, c, s.http.URL, tt.want)
					ahead += 2 * time.Minute
				}
				if n := seen.count(); n != 1 {
					t.Errorf("%d connections", n)
				}
				if n := len(tokens); n != 61 { // good for 5 minutes, renewed after 2½
					t.Errorf("%d tokens", n)
				}
				if n := key.asked(); cfg.Key == nil && n != 1 {
					t.Errorf("the key was asked %d times", n)
				}
			})
		})
	}
}

// A slow key holds up nobody who does not wait for it, and who goes away does not
// take the others along.
func TestCancelledWhileTheKeyIsSlow(t *testing.T) {
	bothVersions(t, func(t *testing.T, http2 bool) {
		s := newSite(t, ServerConfig{})
		key := &slow{HMACKey: softHMAC(t, aliceSecret), hold: make(chan struct{})}
		c := s.client(Config{HMAC: key}, http2)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		errs := make(chan error, 8)
		for range cap(errs) {
			wg.Go(func() {
				r, _ := http.NewRequestWithContext(ctx, "GET", s.http.URL, nil)
				_, err := c.Do(r)
				errs <- err
			})
		}
		waitFor(t, "the key is asked", func() bool { return key.asked() > 0 })
		staying := make(chan error, 1)
		go func() {
			resp, err := c.Get(s.http.URL)
			if err == nil && resp.StatusCode != 200 {
				err = errors.New(resp.Status)
			}
			staying <- err
		}()
		cancel()
		wg.Wait()
		for range cap(errs) {
			if err := <-errs; !errors.Is(err, context.Canceled) {
				t.Errorf("error %v", err)
			}
		}
		close(key.hold)
		if err := <-staying; err != nil {
			t.Error(err)
		}
		wantAdmitted(t, c, s.http.URL, "alice 1 token ")
	})
}

// A key that fails once fails one request, in words; the next one is admitted.
func TestKeyThatFailsOnce(t *testing.T) {
	bothVersions(t, func(t *testing.T, http2 bool) {
		s := newSite(t, ServerConfig{})
		broken := errors.New("the chip is on fire")
		key := &slow{HMACKey: softHMAC(t, aliceSecret), fail: []error{broken}}
		c := s.client(Config{HMAC: key}, http2)
		_, err := c.Get(s.http.URL)
		if !errors.Is(err, broken) || !strings.Contains(err.Error(), "limpet: channel: ") || !strings.Contains(err.Error(), "the client's key") {
			t.Errorf("error %v", err)
		}
		wantAdmitted(t, c, s.http.URL, "alice 1 token ")
		if n := key.asked(); n != 2 {
			t.Errorf("the key was asked %d times", n)
		}
	})
}

// A body that streams in both directions, and a switch of protocols, are left
// alone.
func TestStreamsAndUpgrades(t *testing.T) {
	s := newSite(t, ServerConfig{})
	s.app = func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" {
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
		said, _ := rw.ReadString('\n')
		io.WriteString(rw, "echo "+said)
		rw.Flush()
		panic(http.ErrAbortHandler)
	}
	r, _ := http.NewRequest("GET", s.http.URL, nil)
	r.Header.Set("Connection", "Upgrade")
	r.Header.Set("Upgrade", "echo")
	resp, err := s.transport(Config{}, false).RoundTrip(r)
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

	// Over HTTP/2 the app answers before it has read all.
	duplex := newSite(t, ServerConfig{})
	duplex.app = func(w http.ResponseWriter, r *http.Request) {
		one := make([]byte, 1)
		for range 3 {
			if _, err := io.ReadFull(r.Body, one); err != nil {
				t.Error(err)
			}
			w.Write(one)
			http.NewResponseController(w).Flush()
		}
	}
	pr, pw := io.Pipe()
	go pw.Write([]byte("a"))
	resp, err = duplex.client(Config{}, true).Post(duplex.http.URL, "", pr)
	if err != nil {
		t.Fatal(err)
	}
	one := make([]byte, 1)
	for _, want := range "abc" {
		if _, err := io.ReadFull(resp.Body, one); err != nil || rune(one[0]) != want {
			t.Errorf("%q %v", one, err)
		}
		if want < 'c' {
			pw.Write([]byte(string(want + 1)))
		}
	}
	pw.Close()
	resp.Body.Close()
}
