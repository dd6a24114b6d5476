package client_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/client"
	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/proof/hwsign"
	"github.com/limpet-auth/limpet/store/memstore"
)

const origin = "https://app.example.com"

// inProcess starts an app and a client without a network between them, for a
// bubble of testing/synctest.
func inProcess(t *testing.T, cfg limpet.Config, keys *keystore) (*app, *client.Client, *http.Client) {
	a := &app{}
	a.guard.Store(newGuard(t, cfg))
	cl := hwSign(keys)
	return a, cl, &http.Client{Transport: cl.Transport(direct{a})}
}

// Leases follow each other without a request that is refused or that waits for
// the device key, and cost one signature each.
func TestRenewal(t *testing.T) {
	for _, lease := range []time.Duration{3 * time.Second, 10 * time.Second, 15 * time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			keys := newKeystore()
			keys.delay = 200 * time.Millisecond
			app, _, c := inProcess(t, limpet.Config{Lease: lease}, keys)
			token := login(t, c, origin)
			want(t, c, request(t, "GET", origin+"/me", token, nil), 200, "alice software")
			begin, step := time.Now(), lease/100
			for time.Since(begin) < 10*lease {
				time.Sleep(step)
				sent := time.Now()
				want(t, c, request(t, "GET", origin+"/me", token, nil), 200, "alice software")
				if d := time.Since(sent); d > 0 {
					t.Fatalf("%v: a request waited %v", lease, d)
				}
			}
			if a, r := app.admitted.Load(), app.requests.Load(); a != r {
				t.Errorf("%v: %d of %d requests were admitted", lease, a, r)
			}
			leases := 10 * lease / ((lease - time.Second) * 4 / 5)
			if n := keys.signs.Load(); n < 10 || n > int64(leases)+2 {
				t.Errorf("%v: %d signatures of the device key, want about %d", lease, n, leases)
			}
		})
	}
}

// After a pause that outlasted the lease the first request waits for the device
// key, and is not refused.
func TestPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := newKeystore()
		app, _, c := inProcess(t, limpet.Config{}, keys)
		token := login(t, c, origin)
		for range 3 {
			want(t, c, request(t, "GET", origin+"/me", token, nil), 200, "alice software")
			time.Sleep(8 * time.Hour)
		}
		if n := keys.signs.Load(); n != 3 || app.requests.Load() != 4 {
			t.Errorf("%d signatures, %d requests", n, app.requests.Load())
		}
	})
}

// A context ends the wait for a slow device key; the signature is not lost.
func TestImpatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := newKeystore()
		keys.delay = 10 * time.Second
		_, _, c := inProcess(t, limpet.Config{}, keys)
		token := login(t, c, origin)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin := time.Now()
		body := &closing{Reader: strings.NewReader("x")}
		_, err := c.Do(request(t, "POST", origin+"/echo", token, body).WithContext(ctx))
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != time.Second || !body.closed {
			t.Errorf("after %v: error %v, body closed %v", time.Since(begin), err, body.closed)
		}
		want(t, c, request(t, "GET", origin+"/me", token, nil), 200, "alice software")
		if d := time.Since(begin); d != keys.delay || keys.signs.Load() != 1 {
			t.Errorf("answered after %v with %d signatures, want 10s and 1", d, keys.signs.Load())
		}
	})
}

// The others wait for the first introduction, but not for ever: it may be a
// long poll, or never be answered.
func TestIntroductionThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := newKeystore()
		app, cl, c := inProcess(t, limpet.Config{}, keys)
		token := login(t, c, origin)
		var mu sync.Mutex
		hung, introduced := false, 0
		c.Transport = cl.Transport(roundTripper(func(r *http.Request) (*http.Response, error) {
			mu.Lock()
			first := !hung
			hung = true
			if r.Header.Get(hwsign.BoundToken.EphemeralKey) != "" {
				introduced++
			}
			mu.Unlock()
			if first {
				<-r.Context().Done()
				return nil, r.Context().Err()
			}
			return direct{app}.RoundTrip(r)
		}))
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := c.Do(request(t, "GET", origin+"/me", token, nil).WithContext(ctx)); !errors.Is(err, context.Canceled) {
				t.Errorf("the hung request: %v", err)
			}
		})
		synctest.Wait()
		begin := time.Now()
		var others sync.WaitGroup
		for range 10 {
			others.Go(func() { want(t, c, request(t, "GET", origin+"/me", token, nil), 200, "alice software") })
		}
		synctest.Wait()
		impatient, stop := context.WithCancel(t.Context())
		stop()
		if _, err := c.Do(request(t, "GET", origin+"/me", token, nil).WithContext(impatient)); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled while waiting: %v", err)
		}
		others.Wait()
		if d := time.Since(begin); d > 5*time.Second {
			t.Errorf("waited %v", d)
		}
		cancel()
		wg.Wait()
		if n := keys.signs.Load(); n != 1 || introduced != 2 {
			t.Errorf("%d signatures and %d introductions, want 1 and 2", n, introduced)
		}
	})
}

// A request whose handler takes longer than the lease it introduces is answered
// as any other, and does not disturb those that came after it.
func TestSlowHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := newKeystore()
		keys.delay = 200 * time.Millisecond
		app, _, c := inProcess(t, limpet.Config{Lease: 10 * time.Second}, keys)
		token := login(t, c, origin)
		var wg sync.WaitGroup
		wg.Go(func() { want(t, c, request(t, "GET", origin+"/slow", token, nil), 200, "") })
		time.Sleep(time.Second)
		want(t, c, request(t, "GET", origin+"/me", token, nil), 200, "alice software")
		for range 80 {
			time.Sleep(time.Second)
			sent := time.Now()
			want(t, c, request(t, "GET", origin+"/me", token, nil), 200, "alice software")
			if d := time.Since(sent); d > 0 {
				t.Fatalf("a request waited %v", d)
			}
		}
		wg.Wait()
		if a, r := app.admitted.Load(), app.requests.Load(); a != r {
			t.Errorf("%d of %d requests were admitted", a, r)
		}
	})
}

// If the introducing request fails another takes over at once.
func TestIntroductionThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := newKeystore()
		app, cl, c := inProcess(t, limpet.Config{}, keys)
		token := login(t, c, origin)
		broken := errors.New("connection reset")
		var once sync.Once
		c.Transport = cl.Transport(roundTripper(func(r *http.Request) (*http.Response, error) {
			resp, err := direct{app}.RoundTrip(r) // the server saw it all the same
			once.Do(func() {
				time.Sleep(time.Second)
				err = broken
			})
			if err != nil {
				return nil, err
			}
			return resp, nil
		}))
		var wg sync.WaitGroup
		var mu sync.Mutex
		failures := 0
		for range 10 {
			wg.Go(func() {
				resp, err := c.Do(request(t, "GET", origin+"/me", token, nil))
				if err != nil {
					mu.Lock()
					failures++
					mu.Unlock()
					return
				}
				if body := read(t, resp); body != "alice software" {
					t.Errorf("%s %q", resp.Status, body)
				}
			})
		}
		wg.Wait()
		if n := keys.signs.Load(); n != 1 || failures != 1 {
			t.Errorf("%d signatures, %d failures, want 1 and 1", n, failures)
		}
	})
}

// While a session's device key is failing, requests that have a lease do not
// notice, and the key is not asked again by each of them.
func TestFailingKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := newKeystore()
		app, _, c := inProcess(t, limpet.Config{Lease: 100 * time.Second}, keys)
		token := login(t, c, origin)
		want(t, c, request(t, "GET", origin+"/me", token, nil), 200, "alice software")
		keys.fail(errors.New("tpm: busy"))
		time.Sleep(85 * time.Second)
		for range 100 {
			want(t, c, request(t, "GET", origin+"/me", token, nil), 200, "alice software")
			synctest.Wait()
		}
		if n := keys.signs.Load(); n != 2 {
			t.Errorf("the device key was asked %d times, want 2", n)
		}
		time.Sleep(30 * time.Second)
		_, err := c.Do(request(t, "GET", origin+"/me", token, nil))
		if err == nil || !strings.Contains(err.Error(), "tpm: busy") || errors.Is(err, client.ErrKeyGone) {
			t.Errorf("error %v", err)
		}
		keys.fail(hwkey.ErrLost)
		time.Sleep(2 * time.Second)
		if _, err = c.Do(request(t, "GET", origin+"/me", token, nil)); !errors.Is(err, client.ErrKeyGone) {
			t.Errorf("error %v", err)
		}
		keys.fail(nil)
		time.Sleep(2 * time.Second)
		want(t, c, request(t, "GET", origin+"/me", token, nil), 200, "alice software")
		if a, r := app.admitted.Load(), app.requests.Load(); a != r {
			t.Errorf("%d of %d requests were admitted", a, r)
		}
	})
}

// A server that forgot its ephemeral keys is given a new one, on the same
// request if its body can be read again.
func TestForgetfulServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := newKeystore()
		store := memstore.New(nil)
		app, _, c := inProcess(t, limpet.Config{Store: store}, keys)
		token := login(t, c, origin)
		want(t, c, request(t, "GET", origin+"/me", token, nil), 200, "alice software")

		restart := func() {
			app.guard.Store(newGuard(t, limpet.Config{Store: store})) // another SealKey
			app.requests.Store(0)
		}
		restart()
		want(t, c, request(t, "POST", origin+"/echo", token, strings.NewReader("again")), 200, "again")
		if n := app.requests.Load(); n != 2 || keys.signs.Load() != 2 {
			t.Errorf("%d requests, %d signatures, want 2 and 2", n, keys.signs.Load())
		}

		restart()
		once := struct{ io.Reader }{strings.NewReader("once")}
		resp := want(t, c, request(t, "POST", origin+"/echo", token, once), 401, "")
		if reason := client.Reason(resp); reason != "key_unknown" || app.requests.Load() != 1 {
			t.Errorf("reason %q after %d requests", reason, app.requests.Load())
		}
		want(t, c, request(t, "POST", origin+"/echo", token, struct{ io.Reader }{strings.NewReader("next")}), 200, "next")

		restart()
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() { want(t, c, request(t, "GET", origin+"/me", token, nil), 200, "alice software") })
		}
		wg.Wait()
		if n := keys.signs.Load(); n != 4 {
			t.Errorf("%d signatures, want 4: one for each time the server forgot", n)
		}
	})
}

// A wrong clock is corrected by the server's, within a day.
func TestClock(t *testing.T) {
	for _, tc := range []struct {
		ahead time.Duration
		want  int
	}{{0, 200}, {2 * time.Hour, 200}, {-23 * time.Hour, 200}, {30 * time.Hour, 401}} {
		synctest.Test(t, func(t *testing.T) {
			_, cl, c := inProcess(t, limpet.Config{}, newKeystore())
			token := login(t, c, origin)
			// A server elsewhere in time: it sees values made now as old.
			shift := func(r *http.Request) (*http.Response, error) {
				data := r.Header.Get(hwsign.BoundToken.Data)
				made, err := time.ParseDuration(data[:strings.IndexByte(data, '-')] + "s")
				if err != nil {
					return nil, err
				}
				if age := time.Since(time.Unix(0, 0).Add(made)) + tc.ahead; age.Abs() > 30*time.Second {
					resp, err := direct{http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
						w.Header().Set("WWW-Authenticate", `Limpet error="clock_skew"`)
						w.WriteHeader(401)
					})}.RoundTrip(r)
					resp.Header.Set("Date", time.Now().Add(tc.ahead).UTC().Format(http.TimeFormat))
					return resp, err
				}
				return &http.Response{StatusCode: 200, Body: http.NoBody, Header: http.Header{}}, nil
			}
			c.Transport = cl.Transport(roundTripper(shift))
			resp := want(t, c, request(t, "GET", origin+"/me", token, nil), tc.want, "")
			if tc.want == 401 && client.Reason(resp) != "clock_skew" {
				t.Errorf("reason %q", client.Reason(resp))
			}
		})
	}
}

// Routes that want the hash of the body get it, from the second request on at once.
func TestBodyHash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := limpet.Config{Routes: []limpet.Route{{Pattern: "/echo", Rule: limpet.Rule{Freshness: limpet.BodyHash}}}}
		app, _, c := inProcess(t, cfg, newKeystore())
		token := login(t, c, origin)
		requests := func(want int64) {
			t.Helper()
			if n := app.requests.Swap(0); n != want {
				t.Errorf("%d requests, want %d", n, want)
			}
		}
		requests(1)
		want(t, c, request(t, "POST", origin+"/echo", token, strings.NewReader("one")), 200, "one")
		requests(2)
		want(t, c, request(t, "POST", origin+"/echo", token, strings.NewReader("two")), 200, "two")
		requests(1)
		want(t, c, request(t, "GET", origin+"/echo", token, nil), 200, "")
		requests(2) // another method, another route
		resp := want(t, c, request(t, "POST", origin+"/echo", token, struct{ io.Reader }{strings.NewReader("x")}), 401, "")
		if reason := client.Reason(resp); reason != "body_mismatch" {
			t.Errorf("reason %q", reason)
		}
		requests(1)

		told := hwSign(newKeystore())
		told.BodyHash = func(r *http.Request) bool { return r.URL.Path == "/echo" }
		c = &http.Client{Transport: told.Transport(direct{app})}
		token = login(t, c, origin)
		want(t, c, request(t, "POST", origin+"/echo", token, strings.NewReader("one")), 200, "one")
		requests(2)
	})
}

// A value that was spent, because something sent the request twice, is made
// anew for requests that change nothing.
func TestSpent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		app, cl, c := inProcess(t, limpet.Config{}, newKeystore())
		token := login(t, c, origin)
		twice := true
		c.Transport = cl.Transport(roundTripper(func(r *http.Request) (*http.Response, error) {
			if twice {
				twice = false
				again := r.Clone(r.Context())
				if r.GetBody != nil {
					again.Body, _ = r.GetBody()
				}
				direct{app}.RoundTrip(again)
			}
			return direct{app}.RoundTrip(r)
		}))
		want(t, c, request(t, "GET", origin+"/me", token, nil), 200, "alice software")
		twice = true
		resp := want(t, c, request(t, "POST", origin+"/echo", token, strings.NewReader("x")), 401, "")
		if reason := client.Reason(resp); reason != "nonce_spent" {
			t.Errorf("reason %q", reason)
		}
	})
}

// The app's own 401 costs the device key one signature a minute at most.
func TestAppRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := newKeystore()
		_, _, c := inProcess(t, limpet.Config{}, keys)
		token := login(t, c, origin)
		for range 20 {
			resp := want(t, c, request(t, "GET", origin+"/401", token, nil), 401, "no\n")
			if reason := client.Reason(resp); reason != "" {
				t.Errorf("reason %q", reason)
			}
			want(t, c, request(t, "GET", origin+"/me", token, nil), 200, "alice software")
		}
		if n := keys.signs.Load(); n > 2 {
			t.Errorf("%d signatures, want at most 2", n)
		}
	})
}
