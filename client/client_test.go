package client_test

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/client"
	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/httpsig"
	"github.com/limpet-auth/limpet/store/memstore"
)

func TestBearer(t *testing.T) {
	for _, wire := range []client.Wire{client.HTTPSig, client.HWSign} {
		for _, device := range []hwkey.Algorithm{hwkey.ECDSAP256, hwkey.RSA2048, hwkey.Ed25519} {
			for _, ephemeral := range []proof.Algorithm{0, proof.HMACSHA256, proof.ECDSAP256, proof.Ed25519} {
				t.Run(wire.String()+" "+string(device)+" "+ephemeral.String(), func(t *testing.T) {
					testBearer(t, wire, device, ephemeral)
				})
			}
		}
	}
}

func testBearer(t *testing.T, wire client.Wire, device hwkey.Algorithm, ephemeral proof.Algorithm) {
	app, srv := serve(t, limpet.Config{Rule: limpet.Rule{Freshness: limpet.StrictNonce}})
	keys := newKeystore()
	cl := client.New(keys)
	cl.Wire, cl.DeviceKey, cl.Ephemeral = wire, device, ephemeral
	signs := int64(2) // the login and a delegation
	if wire != client.HTTPSig {
		signs = 1
	}
	if device == hwkey.RSA2048 {
		keys.level = hwkey.Hardware
		if wire == client.HWSign {
			cl.Wire = client.HWSignDBCS
		}
	}
	c := &http.Client{Transport: cl.Transport(nil)}
	token := login(t, c, srv.URL)
	for range 3 {
		want(t, c, request(t, "GET", srv.URL+"/me", token, nil), 200, "alice "+string(keys.level))
	}
	if n := keys.signs.Load(); n != signs {
		t.Errorf("the device key signed %d times, want %d", n, signs)
	}
	if n := app.requests.Load(); n != 4 {
		t.Errorf("%d requests on the wire, want 4", n)
	}
	// The token alone is worth nothing.
	want(t, http.DefaultClient, request(t, "GET", srv.URL+"/me", token, nil), 401, "")
}

func TestCookie(t *testing.T) {
	// Each session costs a device key a login and a delegation; and here the
	// login is behind the guard, which takes the second one for a request of the
	// first session and refuses it once.
	t.Run("httpsig", func(t *testing.T) { testCookie(t, client.HTTPSig, 5) })
	// A delegation each; the second login is proven by the first session.
	t.Run("hwsign", func(t *testing.T) { testCookie(t, client.HWSign, 2) })
}

func testCookie(t *testing.T, wire client.Wire, signs int64) {
	_, srv := serve(t, limpet.Config{Session: limpet.Cookie("sid")})
	keys := newKeystore()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	cl := client.New(keys)
	cl.Wire = wire
	c := &http.Client{Transport: cl.Transport(nil), Jar: jar}
	form := url.Values{"user": {"alice"}, "password": {"secret"}}
	for range 2 { // the second time the request carries a bound cookie: it is proven
		resp, err := c.PostForm(srv.URL+"/cookie/login", form)
		if err != nil {
			t.Fatal(err)
		}
		if body := read(t, resp); body != "alice software" { // after the redirect
			t.Fatalf("%s %q", resp.Status, body)
		}
		for name := range resp.Request.Header {
			if ours(name) {
				t.Errorf("the caller's request got header %s", name)
			}
		}
	}
	resp, err := c.Get(srv.URL + "/me")
	if err != nil {
		t.Fatal(err)
	}
	if body := read(t, resp); body != "alice software" {
		t.Fatalf("%s %q", resp.Status, body)
	}
	if n := keys.signs.Load(); n != signs {
		t.Errorf("device keys signed %d times, want %d", n, signs)
	}
}

// ours reports whether a header is one that clients of either wire add.
func ours(name string) bool {
	return strings.HasPrefix(name, "X-Rpc-Sec-") || strings.HasPrefix(name, "Limpet-") ||
		strings.HasPrefix(name, "Signature") || name == httpsig.DigestField
}

// TestSessionOf: a request belongs to the session whose token it carries to the
// session's origin.
func TestSessionOf(t *testing.T) {
	_, srv := serve(t, limpet.Config{})
	cl := client.New(newKeystore())
	token := login(t, &http.Client{Transport: cl.Transport(nil)}, srv.URL)
	s, ok := cl.SessionOf(request(t, "PUT", srv.URL+"/any", token, nil))
	if !ok || s.Origin != srv.URL || s.Key != cl.Sessions()[0].Key {
		t.Errorf("%+v %v", s, ok)
	}
	for _, other := range []*http.Request{
		request(t, "GET", srv.URL+"/any", token+"x", nil), request(t, "GET", srv.URL+"/any", "", nil), request(t, "GET", "https://other.example/", token, nil),
	} {
		if s, ok := cl.SessionOf(other); ok {
			t.Errorf("%s: %+v", other.URL, s)
		}
	}
}

func TestFailedLogin(t *testing.T) {
	app, srv := serve(t, limpet.Config{})
	keys := newKeystore()
	cl := client.New(keys)
	jar, _ := cookiejar.New(nil)
	c := &http.Client{Transport: cl.Transport(nil), Jar: jar}
	resp, err := c.PostForm(srv.URL+"/login", url.Values{"password": {"wrong"}})
	if err != nil {
		t.Fatal(err)
	}
	read(t, resp)
	if resp.StatusCode != 401 || keys.made != 1 || keys.count() != 0 || len(cl.Sessions()) != 0 || app.requests.Load() != 1 {
		t.Errorf("%s, %d keys made, %d left, %d sessions, %d requests", resp.Status, keys.made, keys.count(), len(cl.Sessions()), app.requests.Load())
	}
	srv.Close()
	if _, err := c.PostForm(srv.URL+"/login", nil); err == nil || keys.count() != 0 {
		t.Errorf("no server: error %v, %d keys left", err, keys.count())
	}
}

// A failed login is not tried again, also not by somebody who is logged in.
// Their first try does not reach the app: its login is behind the guard here.
func TestFailedLoginWithSession(t *testing.T) {
	app, srv := serve(t, limpet.Config{Session: limpet.Cookie("sid")})
	cl := client.New(newKeystore())
	jar, _ := cookiejar.New(nil)
	c := &http.Client{Transport: cl.Transport(nil), Jar: jar}
	for _, tc := range []struct {
		password string
		requests int64
	}{{"secret", 2}, {"wrong", 2}} {
		app.requests.Store(0)
		resp, err := c.PostForm(srv.URL+"/cookie/login", url.Values{"user": {"alice"}, "password": {tc.password}})
		if err != nil {
			t.Fatal(err)
		}
		read(t, resp)
		if n := app.requests.Load(); n != tc.requests || len(cl.Sessions()) != 1 {
			t.Errorf("%s: %s, %d requests, %d sessions", tc.password, resp.Status, n, len(cl.Sessions()))
		}
	}
}

// One transport serves users with jars of their own, although the app sets
// one cookie that is the same for all.
func TestTwoUsers(t *testing.T) {
	_, srv := serve(t, limpet.Config{Session: limpet.Cookie("sid")})
	rt := client.New(newKeystore()).Transport(nil)
	users := map[string]*http.Client{}
	for _, name := range []string{"alice", "bob", "carol"} {
		jar, _ := cookiejar.New(nil)
		users[name] = &http.Client{Transport: rt, Jar: jar}
		resp, err := users[name].PostForm(srv.URL+"/cookie/login", url.Values{"user": {name}, "password": {"secret"}})
		if err != nil {
			t.Fatal(err)
		}
		read(t, resp)
	}
	for name, c := range users {
		resp, err := c.Get(srv.URL + "/me")
		if err != nil {
			t.Fatal(err)
		}
		if body := read(t, resp); body != name+" software" {
			t.Errorf("%s: %s %q", name, resp.Status, body)
		}
	}
}

// A cookie that is taken away is no session token.
func TestCookieDeletedAtLogin(t *testing.T) {
	keys := newKeystore()
	cl := client.New(keys)
	c := &http.Client{Transport: cl.Transport(direct{http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.SetCookie(w, &http.Cookie{Name: "sid", Value: "old", MaxAge: -1})
	})})}
	want(t, c, request(t, "POST", "https://app.example.com/login", "", nil), 200, "")
	if len(cl.Sessions()) != 0 || keys.count() != 0 {
		t.Errorf("%d sessions, %d keys", len(cl.Sessions()), keys.count())
	}
}

func TestWhatIsALogin(t *testing.T) {
	mark := func(req *http.Request) *http.Request { return client.Login(req) }
	for _, tc := range []struct {
		method, path string
		change       func(*http.Request) *http.Request
		isLogin      func(*http.Request) bool
		want         bool
	}{
		{method: "POST", path: "/login", want: true},
		{method: "POST", path: "/api/v1/Sign-In/", want: true},
		{method: "POST", path: "/session?x=1", want: true},
		{method: "GET", path: "/login"},
		{method: "POST", path: "/login/help"},
		{method: "POST", path: "/checkout/sessions"},
		{method: "PUT", path: "/auth", change: mark, want: true},
		{method: "POST", path: "/auth", isLogin: func(r *http.Request) bool { return r.URL.Path == "/auth" }, want: true},
		{method: "POST", path: "/login", isLogin: func(r *http.Request) bool { return r.URL.Path == "/auth" }},
	} {
		t.Run(tc.method+" "+tc.path, func(t *testing.T) {
			offered := false
			cl := client.New(newKeystore())
			cl.IsLogin = tc.isLogin
			rt := cl.Transport(roundTripper(func(r *http.Request) (*http.Response, error) {
				offered = offered || r.Header.Get(httpsig.DeviceField) != ""
				return &http.Response{StatusCode: 200, Body: http.NoBody, Header: http.Header{}}, nil
			}))
			req := httptest.NewRequest(tc.method, "https://app.example.com"+tc.path, nil)
			if tc.change != nil {
				req = tc.change(req)
			}
			if _, err := rt.RoundTrip(req); err != nil {
				t.Fatal(err)
			}
			if offered != tc.want {
				t.Errorf("offered a device key: %v, want %v", offered, tc.want)
			}
		})
	}
}

func TestPlainHTTP(t *testing.T) {
	for _, tc := range []struct {
		url   string
		allow bool
		want  bool
	}{
		{"https://app.example.com/login", false, true},
		{"http://app.example.com/login", false, false},
		{"http://app.example.com/login", true, true},
		{"http://localhost:8080/login", false, true},
		{"http://app.localhost/login", false, true},
		{"http://127.8.0.1/login", false, true},
		{"http://[::1]:80/login", false, true},
		{"http://localhost.example.com/login", false, false},
		{"http://10.0.0.1/login", false, false},
	} {
		cl := client.New(newKeystore())
		cl.PlainHTTP = tc.allow
		sent := false
		rt := cl.Transport(roundTripper(func(*http.Request) (*http.Response, error) {
			sent = true
			return &http.Response{StatusCode: 200, Body: http.NoBody, Header: http.Header{}}, nil
		}))
		body := &closing{Reader: strings.NewReader("password")}
		req := httptest.NewRequest("POST", tc.url, body)
		_, err := rt.RoundTrip(req)
		if (err == nil) != tc.want || sent != tc.want {
			t.Errorf("%s, allowed %v: error %v, sent %v", tc.url, tc.allow, err, sent)
		}
		if !sent && !body.closed {
			t.Errorf("%s: the body was not closed", tc.url)
		}
	}
}

type closing struct {
	io.Reader
	closed bool
}

func (c *closing) Close() error { c.closed = true; return nil }

// A redirect to another origin carries neither proof nor offer, whatever
// credentials it carries.
func TestOtherOrigin(t *testing.T) {
	var mu sync.Mutex
	var leaked []string
	thief := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		for name := range r.Header {
			if ours(name) {
				leaked = append(leaked, r.URL.Path+" "+name)
			}
		}
	}))
	defer thief.Close()
	app, srv := serve(t, limpet.Config{})
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if to := r.URL.Query().Get("to"); to != "" {
			http.Redirect(w, r, thief.URL+to, http.StatusTemporaryRedirect)
			return
		}
		app.ServeHTTP(w, r)
	}))
	defer front.Close()
	srv.Close()

	keys := newKeystore()
	cl := client.New(keys)
	c := &http.Client{Transport: cl.Transport(nil)}
	token := login(t, c, front.URL)
	want(t, c, request(t, "GET", front.URL+"/me?to=/me", token, nil), 200, "")
	want(t, c, request(t, "POST", front.URL+"/login?to=/login", token, nil), 200, "")
	want(t, c, client.Login(request(t, "POST", front.URL+"/x?to=/x", token, nil)), 200, "")
	want(t, c, request(t, "GET", thief.URL+"/direct", token, nil), 200, "")
	if len(leaked) > 0 {
		t.Errorf("sent to another origin: %q", leaked)
	}
	if n := keys.count(); n != 1 {
		t.Errorf("%d device keys, want 1", n)
	}
	want(t, c, request(t, "GET", front.URL+"/me", token, nil), 200, "alice software")
}

// A login that is redirected within its origin is a login there.
func TestRedirectedLogin(t *testing.T) {
	app, srv := serve(t, limpet.Config{})
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if path, ok := strings.CutPrefix(r.URL.Path, "/old"); ok {
			http.Redirect(w, r, path, http.StatusPermanentRedirect)
			return
		}
		app.ServeHTTP(w, r)
	}))
	defer front.Close()
	srv.Close()
	keys := newKeystore()
	c := &http.Client{Transport: client.New(keys).Transport(nil)}
	token := login(t, c, front.URL+"/old")
	want(t, c, request(t, "GET", front.URL+"/me", token, nil), 200, "alice software")
	if n := keys.count(); n != 1 {
		t.Errorf("%d device keys, want 1", n)
	}
}

func TestRestoreAndForget(t *testing.T) {
	_, srv := serve(t, limpet.Config{})
	keys := newKeystore()
	first := client.New(keys)
	token := login(t, &http.Client{Transport: first.Transport(nil)}, srv.URL)
	saved, err := json.Marshal(first.Sessions()[0])
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(saved), token) {
		t.Errorf("the saved session has the token in it: %s", saved)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}

	var s client.Session
	if err := json.Unmarshal(saved, &s); err != nil {
		t.Fatal(err)
	}
	if s.Origin != srv.URL || len(s.Tokens) != 1 || s.Tokens[0] != client.Hash(token) {
		t.Errorf("saved %s", saved)
	}
	second := client.New(keys)
	c := &http.Client{Transport: second.Transport(nil)}
	for range 2 { // the second replaces the first
		if err := second.Restore(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		want(t, c, request(t, "GET", srv.URL+"/me", token, nil), 200, "alice software")
	}
	if n := len(second.Sessions()); n != 1 {
		t.Errorf("%d sessions", n)
	}
	if err := second.Forget(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if keys.count() != 0 || len(second.Sessions()) != 0 {
		t.Errorf("%d keys and %d sessions after Forget", keys.count(), len(second.Sessions()))
	}
	if err := second.Forget(t.Context(), s); err != nil {
		t.Errorf("second Forget: %v", err)
	}
	want(t, c, request(t, "GET", srv.URL+"/me", token, nil), 401, "")

	hash := client.Hash("x")
	for _, bad := range []client.Session{
		{Origin: "https://app.example.com/", Tokens: []string{hash}, Key: "k"},
		{Origin: "https://App.example.com", Tokens: []string{hash}, Key: "k"},
		{Origin: "https://app.example.com:443", Tokens: []string{hash}, Key: "k"},
		{Origin: "https://u@app.example.com", Tokens: []string{hash}, Key: "k"},
		{Origin: "http://app.example.com", Tokens: []string{hash}, Key: "k"},
		{Origin: "", Tokens: []string{hash}, Key: "k"},
		{Origin: "https://app.example.com", Tokens: []string{"x"}, Key: "k"},
		{Origin: "https://app.example.com", Key: "k"},
		{Origin: "https://app.example.com", Tokens: []string{hash}},
	} {
		if err := second.Restore(t.Context(), bad); err == nil {
			t.Errorf("restored %+v", bad)
		}
	}
}

func TestLostKey(t *testing.T) {
	_, srv := serve(t, limpet.Config{})
	for _, lost := range []error{hwkey.ErrLost, hwkey.ErrNotFound} {
		keys := newKeystore()
		first := client.New(keys)
		token := login(t, &http.Client{Transport: first.Transport(nil)}, srv.URL)
		second := client.New(keys)
		if err := second.Restore(t.Context(), first.Sessions()[0]); err != nil {
			t.Fatal(err)
		}
		keys.fail(lost)
		body := &closing{Reader: strings.NewReader("x")}
		_, err := second.Transport(nil).RoundTrip(request(t, "POST", srv.URL+"/echo", token, body))
		if !errors.Is(err, client.ErrKeyGone) || !errors.Is(err, lost) || !strings.Contains(err.Error(), "log in again") {
			t.Errorf("%v: error %v", lost, err)
		}
		if !body.closed {
			t.Error("the body was not closed")
		}
	}
}

// The client keeps a bounded number of sessions, and of device keys.
func TestManySessions(t *testing.T) {
	keys := newKeystore()
	cl := hwSign(keys)
	c := &http.Client{Transport: cl.Transport(direct{http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Write([]byte(`{"access_token":"` + r.URL.RawQuery + `"}`))
	})})}
	for i := range 300 {
		req := request(t, "POST", "https://app.example.com/login?t"+strings.Repeat("x", i), "", nil)
		want(t, c, req, 200, "")
	}
	sessions := cl.Sessions()
	if len(sessions) != 256 || keys.count() != 256 {
		t.Fatalf("%d sessions, %d keys, want 256", len(sessions), keys.count())
	}
	if got, want := sessions[0].Tokens[0], client.Hash("t"+strings.Repeat("x", 299)); got != want {
		t.Errorf("the newest session is not the last login's")
	}
}

// Requests of many goroutines share one signature of the device key.
func TestConcurrent(t *testing.T) {
	app, srv := serve(t, limpet.Config{Store: memstore.New(nil)})
	keys := newKeystore()
	keys.delay = 50 * time.Millisecond
	base := http.DefaultTransport.(*http.Transport).Clone()
	base.MaxIdleConnsPerHost = 64
	defer base.CloseIdleConnections()
	c := &http.Client{Transport: client.New(keys).Transport(base)}
	token := login(t, c, srv.URL)
	const goroutines, each = 64, 25
	var wg sync.WaitGroup
	for range goroutines {
		wg.Go(func() {
			for range each {
				resp, err := c.Do(request(t, "GET", srv.URL+"/me", token, nil))
				if err != nil {
					t.Error(err)
					return
				}
				if body := read(t, resp); body != "alice software" {
					t.Errorf("%s %q", resp.Status, body)
				}
			}
		})
	}
	wg.Wait()
	if n := keys.signs.Load(); n != 2 {
		t.Errorf("the device key signed %d times, want for the login and once more", n)
	}
	if n := app.requests.Load(); n != 1+goroutines*each {
		t.Errorf("%d requests on the wire, want %d", n, 1+goroutines*each)
	}
}
