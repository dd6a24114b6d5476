package client_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/client"
	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/store/memstore"
)

// guarded starts an app and a client of the httpsig wire without a network
// between them.
func guarded(t *testing.T, cfg limpet.Config, keys *keystore) (*app, *http.Client) {
	a := &app{}
	a.guard.Store(newGuard(t, cfg))
	return a, &http.Client{Transport: client.New(keys).Transport(direct{a})}
}

// Days of leases, keys and challenges of the guard's pass without a refusal and
// without a wait, but for what a new challenge costs.
func TestGuardDays(t *testing.T) {
	for _, lease := range []time.Duration{5 * time.Second, 15 * time.Minute} {
		for _, challenge := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				keys := newKeystore()
				keys.delay = 200 * time.Millisecond
				app, c := guarded(t, limpet.Config{Lease: lease, Lifetime: 30 * 24 * time.Hour, Rule: limpet.Rule{Challenge: challenge}}, keys)
				token := login(t, c, origin)
				want(t, c, request(t, "GET", origin+"/me", token, nil), 200, "alice software")
				step := lease / 10
				for i := range 2000 {
					if i == 1000 {
						step = 3*time.Hour + 7*time.Minute // now the leases are over at each
					}
					if i == 1050 {
						break
					}
					time.Sleep(step)
					sent := time.Now()
					want(t, c, request(t, "GET", origin+"/me", token, nil), 200, "alice software")
					if d := time.Since(sent); d > 0 && i < 1000 {
						t.Fatalf("%v: a request waited %v", lease, d)
					}
				}
				// Every other day the guard is asked for its key. That is no request
				// of the app's, and costs one that waits for the device key anyway.
				refused := app.requests.Load() - app.admitted.Load()
				if !challenge && refused > 4 || refused > 4+50+5 {
					t.Errorf("lease %v, challenge %v: %d requests did not reach the app", lease, challenge, refused)
				}
			})
		}
	}
}

// A guard that restarts with another seal key knows no ephemeral keys, and has
// other keys of its own.
func TestGuardRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := newKeystore()
		store := memstore.New(nil)
		app, c := guarded(t, limpet.Config{Store: store}, keys)
		token := login(t, c, origin)
		want(t, c, request(t, "GET", origin+"/me", token, nil), 200, "alice software")
		for range 3 {
			app.guard.Store(newGuard(t, limpet.Config{Store: store}))
			app.requests.Store(0)
			want(t, c, request(t, "POST", origin+"/echo", token, struct{ io.Reader }{strings.NewReader("once")}), 200, "once")
			if n := app.requests.Load(); n != 2 {
				t.Errorf("%d requests, want 2", n)
			}
		}
		app.guard.Store(newGuard(t, limpet.Config{Store: store}))
		var wg sync.WaitGroup
		for range 32 {
			wg.Go(func() { want(t, c, request(t, "GET", origin+"/me", token, nil), 200, "alice software") })
		}
		wg.Wait()
		if n := keys.signs.Load(); n != 2 {
			t.Errorf("the device key signed %d times, want 2", n)
		}
	})
}

// Guards of one seal key and store are one: first requests may meet any.
func TestGuardReplicas(t *testing.T) {
	store, sealKey := memstore.New(nil), bytes.Repeat([]byte{7}, 32)
	one := newGuard(t, limpet.Config{Store: store, SealKey: sealKey})
	two := newGuard(t, limpet.Config{Store: store, SealKey: sealKey})
	app, srv := serve(t, limpet.Config{})
	app.guard.Store(one)
	c := &http.Client{Transport: client.New(newKeystore()).Transport(nil)}
	token := login(t, c, srv.URL)
	for i := range 10 {
		app.guard.Store([]*limpet.Guard{two, one}[i%2])
		want(t, c, request(t, "GET", srv.URL+"/me", token, nil), 200, "alice software")
	}
	if n := app.requests.Load(); n != 11 {
		t.Errorf("%d requests, want 11", n)
	}
}

// Every policy of a guard is met.
func TestGuardRules(t *testing.T) {
	for name, rule := range map[string]limpet.Rule{
		"nonce":      {},
		"strict":     {Freshness: limpet.StrictNonce},
		"body hash":  {Freshness: limpet.BodyHash},
		"timestamp":  {Freshness: limpet.Timestamp},
		"stream":     {Body: limpet.StreamBody},
		"require":    {Mode: limpet.Require, MinLevel: proof.Software},
		"challenge":  {Challenge: true},
		"everything": {Mode: limpet.Require, Freshness: limpet.BodyHash, Challenge: true},
	} {
		t.Run(name, func(t *testing.T) {
			routes := []limpet.Route{{Pattern: "/login", Rule: limpet.Rule{}}}
			_, srv := serve(t, limpet.Config{Rule: rule, Routes: routes})
			c := &http.Client{Transport: client.New(newKeystore()).Transport(nil)}
			token := login(t, c, srv.URL)
			for range 3 {
				want(t, c, request(t, "GET", srv.URL+"/me?x=%20&y", token, nil), 200, "alice software")
				want(t, c, request(t, "POST", srv.URL+"/echo", token, strings.NewReader("body")), 200, "body")
				want(t, c, request(t, "POST", srv.URL+"/echo", token, struct{ io.Reader }{strings.NewReader("once")}), 200, "once")
				want(t, c, request(t, "POST", srv.URL+"/echo", token, nil), 200, "")
			}
		})
	}
}

// A guard that demands it gets proofs that hold on their connection only.
func TestGuardChannel(t *testing.T) {
	bothVersions(t, func(t *testing.T, http2 bool) {
		a := &app{}
		a.guard.Store(newGuard(t, limpet.Config{
			Rule:   limpet.Rule{Channel: true, Challenge: true},
			Routes: []limpet.Route{{Pattern: "/login", Rule: limpet.Rule{}}},
		}))
		srv := httptest.NewUnstartedServer(a)
		srv.EnableHTTP2 = http2
		srv.StartTLS()
		defer srv.Close()
		c := &http.Client{Transport: client.New(newKeystore()).Transport(srv.Client().Transport)}
		token := login(t, c, srv.URL)
		want(t, c, request(t, "GET", srv.URL+"/me", token, nil), 200, "alice software")
		a.requests.Store(0)
		var wg sync.WaitGroup
		for i := range 16 {
			wg.Go(func() {
				for range 10 {
					want(t, c, request(t, "POST", srv.URL+"/echo", token, strings.NewReader(fmt.Sprint(i))), 200, fmt.Sprint(i))
				}
			})
		}
		wg.Wait()
		if n := a.requests.Load(); n != 160 {
			t.Errorf("%d requests, want 160", n)
		}
	})
}

// A device key that is slower than the lease is long cannot be helped by asking
// it again and again.
func TestLeaseShorterThanTheDeviceKey(t *testing.T) {
	for _, lease := range []time.Duration{time.Second, 3 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			keys := newKeystore()
			_, c := guarded(t, limpet.Config{Lease: lease}, keys)
			token := login(t, c, origin)
			keys.delay = 2 * lease
			before := keys.signs.Load()
			resp, err := c.Do(request(t, "GET", origin+"/me", token, nil))
			if err == nil {
				resp.Body.Close()
			}
			time.Sleep(time.Minute) // what the device key was asked for comes to its end
			if n := keys.signs.Load() - before; err == nil || n > 3 {
				t.Errorf("lease %v: %d signatures, %v", lease, n, err)
			}
		})
	}
}

// A host name is signed as it is sent, which for one that is not ASCII only
// net/http knows.
func TestHostNameThatIsNotASCII(t *testing.T) {
	_, c := guarded(t, limpet.Config{}, newKeystore())
	if _, err := c.Post("https://bücher.example/login", "text/plain", strings.NewReader("secret")); err == nil || !strings.Contains(err.Error(), "xn--") {
		t.Errorf("%v", err)
	}
}
