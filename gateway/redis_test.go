//go:build unix

package gateway_test

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/client"
	"github.com/limpet-auth/limpet/gateway"
	"github.com/limpet-auth/limpet/hwkey/softkey"
	"github.com/limpet-auth/limpet/limpettest"
	"github.com/limpet-auth/limpet/store/redisstore"
)

// twoGateways are gateways before one app, with a store each in one Redis.
func twoGateways(t *testing.T) (gateways [2]*gateway.Gateway, reached *atomic.Int64) {
	t.Helper()
	reached = new(atomic.Int64)
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reached.Add(1)
		if _, err := r.Cookie("sid"); err == nil {
			w.Header().Set("Session", "seen")
		}
		if r.URL.Path == "/login" {
			http.SetCookie(w, &http.Cookie{Name: "sid", Value: "the-session", Path: "/"})
		}
	}))
	t.Cleanup(app.Close)
	quiet := slog.New(slog.DiscardHandler)
	redis := "redis://" + limpettest.Redis(t)
	for i := range gateways {
		store, err := redisstore.Open(t.Context(), redis, &redisstore.Options{Logger: quiet})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { store.Close() })
		gateways[i], err = gateway.New(gateway.Config{Upstream: must(url.Parse(app.URL)), Session: limpet.Cookie("sid"), Store: store,
			SealKey: make([]byte, 32), Logins: []gateway.Login{{Pattern: "POST /login"}}, Logger: quiet})
		if err != nil {
			t.Fatal(err)
		}
	}
	return gateways, reached
}

// roundTrip is a transport that is a function.
type roundTrip func(*http.Request) *http.Response

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r), nil }

// handle has a gateway answer a request as if it came over the network.
func handle(g *gateway.Gateway, r *http.Request) *http.Response {
	in := httptest.NewRequest(r.Method, r.URL.String(), nil)
	in.Header = r.Header.Clone()
	w := httptest.NewRecorder()
	g.ServeHTTP(w, in)
	resp := w.Result()
	resp.Request = r
	return resp
}

// loggedIn returns a client with a device key, whose login goes to the first
// gateway and whose other requests go where send sends them.
func loggedIn(t *testing.T, g *gateway.Gateway, send roundTrip) *http.Client {
	t.Helper()
	keys, err := softkey.Open(t.Context(), t.TempDir(), softkey.KeyFile(""))
	if err != nil {
		t.Fatal(err)
	}
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	c := &http.Client{Jar: jar, Transport: client.New(keys).Transport(roundTrip(func(r *http.Request) *http.Response {
		if r.URL.Path != "/me" {
			return handle(g, r)
		}
		return send(r)
	}))}
	resp, err := c.Post("http://127.0.0.1/login", "text/plain", nil)
	if err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	return c
}

// TestOneNonceAtTwoGateways: of two gateways that get one request at the same
// instant exactly one passes it on, 10,000 times.
func TestOneNonceAtTwoGateways(t *testing.T) {
	t.Parallel()
	gateways, reached := twoGateways(t)
	var refused atomic.Int64
	c := loggedIn(t, gateways[0], func(r *http.Request) *http.Response {
		var answers [2]*http.Response
		var both sync.WaitGroup
		start := make(chan bool)
		for i, g := range gateways {
			both.Go(func() {
				<-start
				answers[i] = handle(g, r)
			})
		}
		close(start)
		both.Wait()
		if answers[0].StatusCode != 200 {
			answers[0], answers[1] = answers[1], answers[0]
		}
		if answers[0].StatusCode != 200 || answers[1].StatusCode != 401 {
			t.Errorf("the answers are %s and %s", answers[0].Status, answers[1].Status)
		} else {
			refused.Add(1)
		}
		return answers[0]
	})
	before := reached.Load()
	const tries = 10_000
	var workers sync.WaitGroup
	for worker := range 8 {
		workers.Go(func() {
			for try := worker; try < tries; try += 8 {
				resp, err := c.Get("http://127.0.0.1/me")
				if err != nil {
					t.Error(err)
					return
				}
				io.Copy(io.Discard, resp.Body)
			}
		})
	}
	workers.Wait()
	if n := reached.Load() - before; n != tries || refused.Load() != tries {
		t.Errorf("of %d requests, each sent twice, %d reached the app and %d were refused", tries, n, refused.Load())
	}
}

// TestRevokeWhileRequestsFly: once a revocation is acknowledged no request that
// begins is admitted by the same gateway, and after a second none by another.
func TestRevokeWhileRequestsFly(t *testing.T) {
	t.Parallel()
	gateways, _ := twoGateways(t)
	var ended atomic.Pointer[time.Time]
	var admitted, last atomic.Int64
	var turn atomic.Int64
	c := loggedIn(t, gateways[0], func(r *http.Request) *http.Response {
		r.Header.Set("Cookie", "sid=the-session") // which is taken from a browser, in the end
		i := turn.Add(1) % 2
		end := ended.Load()
		began := time.Now()
		resp := handle(gateways[i], r)
		switch {
		case resp.Header.Get("Session") == "":
		case end == nil:
			admitted.Add(1)
		case i == 0 || began.Sub(*end) > time.Second:
			t.Errorf("gateway %d admits a request that began %v after the revocation", i, began.Sub(*end))
		default:
			last.Store(int64(began.Sub(*end)))
		}
		return resp
	})
	stop := make(chan bool)
	var workers sync.WaitGroup
	for range 8 {
		workers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				resp, err := c.Get("http://127.0.0.1/me")
				if err != nil {
					t.Error(err)
					return
				}
				io.Copy(io.Discard, resp.Body)
			}
		})
	}
	for end := time.Now().Add(20 * time.Second); admitted.Load() < 100 && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	if err := gateways[0].Guard().Revoke(t.Context(), limpet.Cookie("sid").ID("the-session")); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	ended.Store(&now)
	time.Sleep(1500 * time.Millisecond)
	close(stop)
	workers.Wait()
	if admitted.Load() < 100 {
		t.Errorf("only %d requests before the revocation", admitted.Load())
	}
	t.Logf("%d requests before the revocation; the other gateway admitted one for the last time %v after it", admitted.Load(), time.Duration(last.Load()))
}
