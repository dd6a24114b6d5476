//go:build unix

package limpet_test

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/client"
	"github.com/limpet-auth/limpet/hwkey/tpmkey"
	"github.com/limpet-auth/limpet/limpettest"
	"github.com/limpet-auth/limpet/store/memstore"
)

// From a login to a thousand requests with a real TPM 2.0: the app sees level
// hardware, and the chip signs once a lease.
func TestTPMSignsOncePerLease(t *testing.T) {
	const lease = time.Minute // longer than the requests take on the slowest machine
	guard, err := limpet.New(limpet.Config{
		Session: limpet.Cookie("sid"),
		Store:   memstore.New(nil),
		Lease:   lease,
		Routes:  []limpet.Route{{Pattern: "/me", Rule: limpet.Rule{Mode: limpet.Require, MinLevel: limpet.Hardware}}},
		Logger:  slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		if err := guard.Bind(w, r, "token", "alice"); err != nil {
			limpet.Refuse(w, err)
			return
		}
		http.SetCookie(w, &http.Cookie{Name: "sid", Value: "token"})
	})
	mux.HandleFunc("GET /me", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, limpet.FromContext(r.Context()).Level)
	})
	srv := httptest.NewServer(guard.Protect(mux))
	defer srv.Close()

	keys := tpmkey.New(tpmkey.Config{Dial: limpettest.SoftTPM(t).Dial, Dir: t.TempDir()})
	defer keys.Close()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	c := &http.Client{Transport: client.New(keys).Transport(nil), Jar: jar}
	send := func(method, path string) {
		t.Helper()
		r, err := http.NewRequest(method, srv.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("%s %s: %s, %s", method, path, resp.Status, client.Reason(resp))
		}
	}
	send("POST", "/login")
	if n := keys.Commands()["Sign"]; n > 1 {
		t.Errorf("the login took %d signatures, want at most the one that tries the key", n)
	}
	before, begin := keys.Commands(), time.Now()
	for range 1000 {
		send("GET", "/me")
	}
	after, leases := keys.Commands(), 1+int(2*time.Since(begin)/lease) // renewed at half time, at the earliest
	signs := after["Sign"] - before["Sign"]
	if signs < 1 || signs > leases {
		t.Errorf("1,000 requests took %d signatures, want one a lease", signs)
	}
	others := 0
	for name, n := range after {
		if name != "Sign" {
			others += n - before[name]
		}
	}
	if others > 0 {
		t.Errorf("1,000 requests took %d TPM commands beside signatures: %v, before %v", others, after, before)
	}
}
