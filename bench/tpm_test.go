package bench

import (
	"log/slog"
	"maps"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"testing"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/client"
	"github.com/limpet-auth/limpet/hwkey/tpmkey"
	"github.com/limpet-auth/limpet/limpettest"
	"github.com/limpet-auth/limpet/store/memstore"
)

// BenchmarkTPM counts the commands that a software TPM gets for the first login
// of a program, for a further one, and for 1,000 requests within one lease.
func BenchmarkTPM(b *testing.B) {
	for range b.N {
		guard, err := limpet.New(limpet.Config{Session: limpet.Cookie("sid"), Store: memstore.New(nil), Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			b.Fatal(err)
		}
		mux := http.NewServeMux()
		mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
			token := r.FormValue("token")
			if err := guard.Bind(w, r, token, "alice"); err != nil {
				limpet.Refuse(w, err)
				return
			}
			http.SetCookie(w, &http.Cookie{Name: "sid", Value: token})
		})
		mux.HandleFunc("/", func(http.ResponseWriter, *http.Request) {})
		srv := httptest.NewServer(guard.Protect(mux))
		defer srv.Close()
		keys := tpmkey.New(tpmkey.Config{Dial: limpettest.SoftTPM(b).Dial, Dir: b.TempDir()})
		defer keys.Close()
		jar, err := cookiejar.New(nil)
		if err != nil {
			b.Fatal(err)
		}
		c := &http.Client{Transport: client.New(keys).Transport(nil), Jar: jar}
		send := func(method, path string) {
			r, err := http.NewRequest(method, srv.URL+path, nil)
			if err != nil {
				b.Fatal(err)
			}
			resp, err := c.Do(r)
			if err != nil {
				b.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				b.Fatal(resp.Status)
			}
		}
		before := keys.Commands()
		count := func(do func()) (commands, signs float64) {
			do()
			after := keys.Commands()
			for name, n := range after {
				commands += float64(n - before[name])
			}
			signs = float64(after["Sign"] - before["Sign"])
			before = maps.Clone(after)
			return commands, signs
		}
		first, _ := count(func() { send("POST", "/login?token=a") })
		further, _ := count(func() { send("POST", "/login?token=b") })
		requests, signs := count(func() {
			for range 1000 {
				send("GET", "/")
			}
		})
		report(b, map[string]float64{
			"commands/first-login":   first,
			"commands/further-login": further,
			"commands/1000-requests": requests,
			"signs/1000-requests":    signs,
		})
	}
}
