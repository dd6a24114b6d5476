package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/limpet-auth/limpet/client"
	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/proof"
)

// sigClient returns a client of a sigServer without a network between them.
func sigClient(s *sigServer, keys *keystore) (*client.Client, *http.Client) {
	cl := client.New(keys)
	return cl, &http.Client{Transport: cl.Transport(direct{s})}
}

func loginSig(t testing.TB, c *http.Client, url string) string {
	t.Helper()
	resp, err := c.Post(url+"/login", "text/plain", strings.NewReader("secret"))
	if err != nil {
		t.Fatal(err)
	}
	body := read(t, resp)
	var answer struct{ Token string }
	if resp.StatusCode != 200 || body != "" && json.Unmarshal([]byte(body), &answer) != nil {
		t.Fatalf("login: %s %s", resp.Status, body)
	}
	return answer.Token
}

// Every kind of device key delegates to every kind of ephemeral key.
func TestSigKeys(t *testing.T) {
	for _, device := range []hwkey.Algorithm{hwkey.ECDSAP256, hwkey.RSA2048, hwkey.Ed25519} {
		for _, ephemeral := range []proof.Algorithm{0, proof.HMACSHA256, proof.ECDSAP256, proof.Ed25519} {
			t.Run(fmt.Sprint(device, " ", ephemeral), func(t *testing.T) {
				up, keys := newSigServer(), newKeystore()
				srv := httptest.NewServer(up)
				defer srv.Close()
				cl := client.New(keys)
				cl.DeviceKey, cl.Ephemeral = device, ephemeral
				c := &http.Client{Transport: cl.Transport(nil)}
				token := loginSig(t, c, srv.URL)
				up.expect(t, 1, 0, "")
				for i := range 3 {
					want(t, c, request(t, "POST", srv.URL+"/a%20b?x=1&y", token, strings.NewReader(fmt.Sprint(i))), 200, fmt.Sprint(i))
				}
				want(t, c, request(t, "GET", srv.URL, token, nil), 200, "")
				up.expect(t, 4, 1, "")
				if n := keys.signs.Load(); n != 2 || up.asked != 0 {
					t.Errorf("%d signatures of the device key, asked %d times", n, up.asked)
				}
				want(t, http.DefaultClient, request(t, "GET", srv.URL+"/x", token, nil), 401, "")
			})
		}
	}
}

func TestSigUnknownEphemeral(t *testing.T) {
	up := newSigServer()
	cl, c := sigClient(up, newKeystore())
	cl.Ephemeral = proof.RSAPSS
	token := loginSig(t, c, origin)
	if _, err := c.Do(request(t, "GET", origin+"/x", token, nil)); err == nil || !strings.Contains(err.Error(), "rsa-pss") {
		t.Errorf("error %v", err)
	}
}

// A session in a cookie says so in what is signed.
func TestSigCookie(t *testing.T) {
	up := newSigServer()
	up.cookie = "sid"
	cl := client.New(newKeystore())
	jar, _ := cookiejar.New(nil)
	c := &http.Client{Transport: cl.Transport(direct{up}), Jar: jar}
	loginSig(t, c, origin)
	for range 2 {
		resp, err := c.Post(origin+"/x", "", strings.NewReader("y"))
		if err != nil {
			t.Fatal(err)
		}
		if body := read(t, resp); resp.StatusCode != 200 || body != "y" {
			t.Errorf("%s %s", resp.Status, body)
		}
	}
	req, _ := http.NewRequest("GET", origin+"/x", nil)
	req.SetBasicAuth("proxy", "password") // no business of the session's
	want(t, c, req, 200, "")
	up.expect(t, 4, 1, "")
}

// The first requests do not wait for each other: each carries the delegation
// until one of them was answered.
func TestSigFirstRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up, keys := newSigServer(), newKeystore()
		keys.delay = time.Second
		cl, c := sigClient(up, keys)
		token := loginSig(t, c, origin)
		up.expect(t, 1, 0, "")
		c.Transport = cl.Transport(roundTripper(func(r *http.Request) (*http.Response, error) {
			time.Sleep(time.Second)
			return direct{up}.RoundTrip(r)
		}))
		begin := time.Now()
		var wg sync.WaitGroup
		for range 32 {
			wg.Go(func() { want(t, c, request(t, "GET", origin+"/x", token, nil), 200, "") })
		}
		wg.Wait()
		if d := time.Since(begin); d != 2*time.Second {
			t.Errorf("32 requests took %v, want a second for the key and one for the way", d)
		}
		up.expect(t, 32, 32, "")
		want(t, c, request(t, "GET", origin+"/x", token, nil), 200, "")
		up.expect(t, 1, 0, "")
		if n := keys.signs.Load(); n != 2 {
			t.Errorf("%d signatures", n)
		}
	})
}

// Leases follow each other without a request that is refused or that waits.
func TestSigRenewal(t *testing.T) {
	for _, lease := range []time.Duration{5 * time.Second, time.Minute, 15 * time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			up, keys := newSigServer(), newKeystore()
			up.lease = lease
			keys.delay = 200 * time.Millisecond
			_, c := sigClient(up, keys)
			token := loginSig(t, c, origin)
			want(t, c, request(t, "GET", origin+"/x", token, nil), 200, "")
			for begin := time.Now(); time.Since(begin) < 10*lease; time.Sleep(lease / 100) {
				sent := time.Now()
				want(t, c, request(t, "GET", origin+"/x", token, nil), 200, "")
				if d := time.Since(sent); d > 0 {
					t.Fatalf("%v: a request waited %v", lease, d)
				}
			}
			if len(up.refused) > 0 {
				t.Errorf("%v: refused %v", lease, up.refused)
			}
			if n, most := keys.signs.Load(), int64(10*lease/((lease*9/10-2*time.Second)*4/5))+3; n < 10 || n > most {
				t.Errorf("%v: %d signatures of the device key, want 10 to %d", lease, n, most)
			}
			time.Sleep(9 * lease) // after a pause it waits, and is not refused
			want(t, c, request(t, "GET", origin+"/x", token, nil), 200, "")
			if len(up.refused) > 0 {
				t.Errorf("%v: refused %v", lease, up.refused)
			}
		})
	}
}

// The device key's slowness and errors are for those requests that need it.
func TestSigDeviceKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up, keys := newSigServer(), newKeystore()
		_, c := sigClient(up, keys)
		token := loginSig(t, c, origin)
		keys.delay = 10 * time.Second
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin := time.Now()
		body := &closing{Reader: strings.NewReader("x")}
		_, err := c.Do(request(t, "POST", origin+"/x", token, body).WithContext(ctx))
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != time.Second || !body.closed {
			t.Errorf("after %v: error %v, body closed %v", time.Since(begin), err, body.closed)
		}
		want(t, c, request(t, "GET", origin+"/x", token, nil), 200, "")
		if d := time.Since(begin); d != keys.delay || keys.signs.Load() != 2 {
			t.Errorf("answered after %v, %d signatures", d, keys.signs.Load())
		}
		keys.fail(errors.New("tpm: busy"))
		time.Sleep(13 * time.Minute) // the lease is nearly over
		for range 100 {
			want(t, c, request(t, "GET", origin+"/x", token, nil), 200, "")
		}
		time.Sleep(11 * time.Second)
		if n := keys.signs.Load(); n != 3 {
			t.Errorf("the device key was asked %d times", n)
		}
		time.Sleep(3 * time.Minute)
		_, err = c.Do(request(t, "GET", origin+"/x", token, nil))
		if err == nil || !strings.Contains(err.Error(), "tpm: busy") || errors.Is(err, client.ErrKeyGone) {
			t.Errorf("error %v", err)
		}
		keys.fail(hwkey.ErrLost)
		time.Sleep(2 * time.Second)
		if _, err = c.Do(request(t, "GET", origin+"/x", token, nil)); !errors.Is(err, client.ErrKeyGone) {
			t.Errorf("error %v", err)
		}
	})
}

// What a server forgot costs the device key a signature only if the delegation
// is over.
func TestSigForgetfulServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up, keys := newSigServer(), newKeystore()
		_, c := sigClient(up, keys)
		token := loginSig(t, c, origin)
		want(t, c, request(t, "GET", origin+"/x", token, nil), 200, "")

		up.restart() // with another key
		want(t, c, request(t, "POST", origin+"/x", token, struct{ io.Reader }{strings.NewReader("again")}), 200, "again")
		up.expect(t, 2, 1, "map[key_unknown:1]")

		up.forget() // with the same one
		want(t, c, request(t, "GET", origin+"/x", token, nil), 200, "")
		up.expect(t, 2, 1, "map[key_unknown:1]")

		up.restart()
		var wg sync.WaitGroup
		for range 32 {
			wg.Go(func() { want(t, c, request(t, "GET", origin+"/x", token, nil), 200, "") })
		}
		wg.Wait()
		if n := keys.signs.Load(); n != 2 || up.asked != 0 {
			t.Errorf("%d signatures, asked %d times", n, up.asked)
		}

		// It restarts with a shorter lease: the delegation is over there.
		up.restart()
		up.lease = time.Minute
		time.Sleep(2 * time.Minute)
		resp, err := c.Do(request(t, "GET", origin+"/x", token, nil))
		if err != nil {
			t.Fatal(err)
		}
		read(t, resp)
		want(t, c, request(t, "GET", origin+"/x", token, nil), 200, "")
		if n := keys.signs.Load(); n != 3 {
			t.Errorf("%d signatures, want 3", n)
		}
	})
}

// The server changes its key in time: clients that know when do not wait to be
// refused.
func TestSigKeyRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up, keys := newSigServer(), newKeystore()
		up.keyLife = time.Hour
		cl, c := sigClient(up, keys)
		token := loginSig(t, c, origin)
		want(t, c, request(t, "GET", origin+"/x", token, nil), 200, "")
		time.Sleep(2 * time.Hour)
		up.restart()
		want(t, c, request(t, "GET", origin+"/x", token, nil), 200, "")
		up.expect(t, 1, 1, "")
		if n := keys.signs.Load(); n != 3 || up.asked != 1 {
			t.Errorf("%d signatures, asked %d times", n, up.asked)
		}

		// While nothing is to be heard of a new key, the old one is used.
		up.keyLife = 24 * time.Hour
		down := errors.New("no route")
		c.Transport = cl.Transport(roundTripper(func(r *http.Request) (*http.Response, error) {
			if strings.HasPrefix(r.URL.Path, "/.well-known/") {
				up.asked++
				return nil, down
			}
			return direct{up}.RoundTrip(r)
		}))
		for range 3 {
			time.Sleep(20 * time.Minute)
			want(t, c, request(t, "GET", origin+"/x", token, nil), 200, "")
		}
		time.Sleep(2 * time.Hour)
		up.restart()
		for range 3 {
			want(t, c, request(t, "GET", origin+"/x", token, nil), 200, "")
		}
		up.expect(t, 4, 2, "map[key_unknown:1]")
		if up.asked != 1 {
			t.Errorf("asked %d times, want once a minute", up.asked)
		}
	})
}

// A wrong clock is corrected by the server's, at the login or later.
func TestSigClock(t *testing.T) {
	for _, ahead := range []time.Duration{2 * time.Hour, -23 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			up, keys := newSigServer(), newKeystore()
			base := roundTripper(func(r *http.Request) (*http.Response, error) {
				resp, err := direct{up}.RoundTrip(r)
				resp.Header.Set("Date", up.now().UTC().Format(http.TimeFormat))
				return resp, err
			})
			cl := client.New(keys)
			c := &http.Client{Transport: cl.Transport(base)}
			up.ahead = ahead
			token := loginSig(t, c, origin)
			up.expect(t, 2, 0, "map[clock_skew:1]")
			want(t, c, request(t, "GET", origin+"/x", token, nil), 200, "")
			up.expect(t, 1, 1, "")
			up.ahead = 0
			want(t, c, request(t, "POST", origin+"/x", token, strings.NewReader("x")), 200, "x")
			want(t, c, request(t, "GET", origin+"/x", token, nil), 200, "")
			if up.refused["clock_skew"] != 1 || len(up.refused) != 1 {
				t.Errorf("refused %v", up.refused)
			}
		})
	}
}

// A proxy that drops the answer's headers costs a request: the server is asked.
func TestSigDroppedHeaders(t *testing.T) {
	for _, cookie := range []string{"", "sid"} {
		up := newSigServer()
		up.mute, up.cookie = true, cookie
		keys := newKeystore()
		cl := client.New(keys)
		jar, _ := cookiejar.New(nil)
		c := &http.Client{Transport: cl.Transport(direct{up}), Jar: jar}
		req := request(t, "GET", origin+"/x", loginSig(t, c, origin), nil)
		if cookie != "" {
			req.Header.Del("Authorization")
		}
		want(t, c, req, 200, "")
		up.expect(t, 2, 1, "")
		if up.asked != 1 {
			t.Errorf("asked %d times", up.asked)
		}

		// Another process asks again.
		second := client.New(keys)
		saved := cl.Sessions()[0]
		if err := second.Restore(t.Context(), saved); err != nil {
			t.Fatal(err)
		}
		c.Transport = second.Transport(direct{up})
		want(t, c, req, 200, "")
		up.expect(t, 1, 1, "")
		if up.asked != 2 || saved.Wire != "httpsig" {
			t.Errorf("asked %d times, saved %+v", up.asked, saved)
		}
	}
}

// A server that knows nothing of the wire gets logins, and then is left alone.
func TestSigIgnorantServer(t *testing.T) {
	up := newSigServer()
	up.ignorant = true
	keys := newKeystore()
	proofs := 0
	cl := client.New(keys)
	c := &http.Client{Transport: cl.Transport(roundTripper(func(r *http.Request) (*http.Response, error) {
		if r.Header.Get("Signature") != "" {
			proofs++
		}
		return direct{up}.RoundTrip(r)
	}))}
	token := loginSig(t, c, origin)
	if keys.count() != 0 || len(cl.Sessions()) != 0 || up.asked != 1 {
		t.Errorf("%d keys, %d sessions, asked %d times", keys.count(), len(cl.Sessions()), up.asked)
	}
	want(t, c, request(t, "POST", origin+"/x", token, strings.NewReader("x")), 200, "x")
	if proofs != 1 {
		t.Errorf("%d signed requests, want the login", proofs)
	}
}

// Answers that make no sense bind nothing, and what cannot be asked is asked
// later.
func TestSigGarbage(t *testing.T) {
	for _, tc := range []struct {
		name  string
		field string
		code  int
		body  string
		kept  bool
	}{
		{"html", "", 200, "<html>", false},
		{"empty", "", 200, "", false},
		{"long", "", 200, `{"key":"` + strings.Repeat("x", 1<<20) + `"}`, false},
		{"no key", "", 200, `{"session":"bearer"}`, false},
		{"bad key", "", 200, `{"key":":AAAA:;exp=1;lease=1","session":"bearer"}`, false},
		{"redirect", "", 302, "", false},
		{"garbage in the field", "!!", 404, "", false},
		{"a long field", strings.Repeat("x", 1<<20), 404, "", false},
		{"trouble", "", 503, "", true},
	} {
		keys := newKeystore()
		cl := client.New(keys)
		c := &http.Client{Transport: cl.Transport(direct{http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/login" {
				w.WriteHeader(tc.code)
				io.WriteString(w, tc.body)
				return
			}
			if tc.field != "" {
				w.Header().Set("Limpet-Key", tc.field)
			}
			io.WriteString(w, `{"token":"t"}`)
		})})}
		loginSig(t, c, origin)
		if kept := len(cl.Sessions()) == 1; kept != tc.kept || (keys.count() == 1) != tc.kept {
			t.Errorf("%s: session kept %v, %d keys", tc.name, kept, keys.count())
		}
		if !tc.kept {
			continue
		}
		_, err := c.Do(request(t, "GET", origin+"/x", "t", nil))
		if err == nil || !strings.Contains(err.Error(), "limpet: client: "+origin) || !strings.Contains(err.Error(), "503") {
			t.Errorf("%s: error %v", tc.name, err)
		}
	}
}

// The server's challenge is covered from the first refusal on, or without one if
// answers tell it.
func TestSigChallenge(t *testing.T) {
	up := newSigServer()
	_, c := sigClient(up, newKeystore())
	token := loginSig(t, c, origin)
	want(t, c, request(t, "GET", origin+"/x", token, nil), 200, "")
	up.expect(t, 2, 1, "")
	for _, challenge := range []string{"one", "two"} {
		up.challenge = challenge
		for range 3 {
			want(t, c, request(t, "POST", origin+"/x", token, strings.NewReader("x")), 200, "x")
		}
		up.expect(t, 4, 0, "map[challenge_required:1]")
	}
	up.challenge = "three"
	want(t, c, request(t, "GET", origin+"/open", token, nil), 200, "")
	want(t, c, request(t, "GET", origin+"/x", token, nil), 200, "")
	up.expect(t, 2, 0, "")
}

// Bodies are hashed as they can be: over again, or in memory up to 1 MiB.
func TestSigBody(t *testing.T) {
	up := newSigServer()
	_, c := sigClient(up, newKeystore())
	token := loginSig(t, c, origin)
	long := strings.Repeat("x", 3<<20)
	want(t, c, request(t, "POST", origin+"/x", token, strings.NewReader(long)), 200, long)
	short := long[:1<<20]
	want(t, c, request(t, "POST", origin+"/x", token, struct{ io.Reader }{strings.NewReader(short)}), 200, short)
	want(t, c, request(t, "POST", origin+"/x", token, struct{ io.Reader }{strings.NewReader("")}), 200, "")
	body := &closing{Reader: strings.NewReader(long)}
	_, err := c.Do(request(t, "POST", origin+"/x", token, body))
	if err == nil || !strings.Contains(err.Error(), "GetBody") || !body.closed {
		t.Errorf("error %v, closed %v", err, body.closed)
	}
	cut := errors.New("cut")
	_, err = c.Do(request(t, "POST", origin+"/x", token, &failing{Reader: strings.NewReader("x"), err: cut}))
	if !errors.Is(err, cut) {
		t.Errorf("error %v", err)
	}
	req := request(t, "POST", origin+"/x", token, strings.NewReader("x"))
	req.GetBody = func() (io.ReadCloser, error) { return nil, cut }
	if _, err = c.Do(req); !errors.Is(err, cut) {
		t.Errorf("error %v", err)
	}
}

// The authority that is signed is the one that the server is addressed by.
func TestSigHost(t *testing.T) {
	up := newSigServer()
	srv := httptest.NewServer(up)
	defer srv.Close()
	keys := newKeystore()
	c := &http.Client{Transport: client.New(keys).Transport(nil)}
	token := loginSig(t, c, srv.URL)
	for _, host := range []string{"App.Example.com", "App.Example.com:80", "app.example.com"} {
		req := request(t, "GET", srv.URL+"/x", token, nil)
		req.Host = host
		want(t, c, req, 200, "")
	}
	if n := keys.signs.Load(); n != 2 {
		t.Errorf("%d signatures", n)
	}
}

// Signatures of others stay, fields of ours that a caller hands on do not.
func TestSigForeignFields(t *testing.T) {
	up := newSigServer()
	var got http.Header
	keys := newKeystore()
	cl := client.New(keys)
	c := &http.Client{Transport: cl.Transport(roundTripper(func(r *http.Request) (*http.Response, error) {
		got = r.Header.Clone()
		return direct{up}.RoundTrip(r)
	}))}
	token := loginSig(t, c, origin)
	req := request(t, "GET", origin+"/x", token, nil)
	req.Header.Set("Signature-Input", `other=("@method");keyid="k"`)
	req.Header.Set("Signature", `other=:AAAA:`)
	req.Header.Set("Limpet-Device", "x")
	req.Header.Set("Limpet-Channel", "x")
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	read(t, resp)
	if !strings.HasPrefix(got.Get("Signature"), "other=:AAAA:, ") || got["Limpet-Device"] != nil || got["Limpet-Channel"] != nil {
		t.Errorf("sent %v", got)
	}
	if req.Header.Get("Signature") != "other=:AAAA:" || req.Header.Get("Limpet-Device") != "x" {
		t.Errorf("the caller's headers are changed: %v", req.Header)
	}
}

// Old session files are of hw-sign, new ones say what they are.
func TestSavedWire(t *testing.T) {
	hash := client.Hash("t")
	for _, tc := range []struct {
		def  client.Wire
		wire string
		want string
	}{
		{client.HTTPSig, "", "hwsign"},
		{client.HWSignDBCS, "", "hwsign-dbcs"},
		{client.HWSign, "httpsig", "httpsig"},
		{client.HTTPSig, "hwsign-dbcs", "hwsign-dbcs"},
		{client.HTTPSig, "other", ""},
	} {
		cl := client.New(newKeystore())
		cl.Wire = tc.def
		s := client.Session{Origin: origin, Tokens: []string{hash}, Key: "k", Wire: tc.wire}
		if tc.wire == "httpsig" {
			s.ID = hash
		}
		err := cl.Restore(t.Context(), s)
		if (err == nil) != (tc.want != "") {
			t.Errorf("%+v: %v", tc, err)
		}
		if err == nil {
			if got := cl.Sessions()[0]; got.Wire != tc.want || got.ID != s.ID {
				t.Errorf("%+v: %+v", tc, got)
			}
		}
	}
	cl := client.New(newKeystore())
	if err := cl.Restore(t.Context(), client.Session{Origin: origin, Tokens: []string{hash}, Key: "k", Wire: "httpsig", ID: "x"}); err == nil {
		t.Error("restored a session with a bad ID")
	}
}

// What is saved of a session is all that another process needs.
func TestSigRestore(t *testing.T) {
	up, keys := newSigServer(), newKeystore()
	first, c := sigClient(up, keys)
	token := loginSig(t, c, origin)
	text, err := json.Marshal(first.Sessions())
	if err != nil || strings.Contains(string(text), token) {
		t.Fatalf("%v %s", err, text)
	}
	var saved []client.Session
	if err := json.Unmarshal(text, &saved); err != nil {
		t.Fatal(err)
	}
	second, c := sigClient(up, keys)
	if err := second.Restore(t.Context(), saved[0]); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { want(t, c, request(t, "GET", origin+"/x", token, nil), 200, "") })
	}
	wg.Wait()
	if n := keys.signs.Load(); n != 2 || up.asked != 1 {
		t.Errorf("%d signatures, asked %d times", n, up.asked)
	}
	if err := second.Forget(t.Context(), saved[0]); err != nil || keys.count() != 0 {
		t.Error(err)
	}
}

// A login by somebody who is logged in.
func TestSigLoginAgain(t *testing.T) {
	up := newSigServer()
	up.cookie = "sid"
	cl := client.New(newKeystore())
	jar, _ := cookiejar.New(nil)
	c := &http.Client{Transport: cl.Transport(direct{up}), Jar: jar}
	for range 2 {
		loginSig(t, c, origin)
		u, _ := url.Parse(origin + "/x")
		req := &http.Request{Method: "GET", URL: u, Header: http.Header{}}
		want(t, c, req, 200, "")
	}
	up.expect(t, 4, 2, "")
	if n := len(cl.Sessions()); n != 2 {
		t.Errorf("%d sessions", n)
	}
}
