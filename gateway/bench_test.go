package gateway_test

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/client"
	"github.com/limpet-auth/limpet/gateway"
	"github.com/limpet-auth/limpet/hwkey/softkey"
	"github.com/limpet-auth/limpet/internal/gatewaybench"
	"github.com/limpet-auth/limpet/store/memstore"
)

// BenchmarkGateway is what a request costs without the connection to the client:
// behind the bare reverse proxy, unbound behind a gateway, and proven.
func BenchmarkGateway(b *testing.B) {
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "POST" {
			http.SetCookie(w, &http.Cookie{Name: "sid", Value: "5UbLkmIlm0nEvlGjPCMbpvDnbjRxjLnFmy9gQ0hCJbw", Path: "/"})
		}
		io.WriteString(w, "hello")
	}))
	defer app.Close()
	to := must(url.Parse(app.URL))
	bare := gatewaybench.NewBare(to)
	cfg := gateway.Config{Upstream: to, Session: limpet.Cookie("sid"), Store: memstore.New(nil), Logger: slog.New(slog.DiscardHandler),
		Logins: []gateway.Login{{Pattern: "POST /login"}}, Logouts: []string{"POST /logout"},
		Routes: []limpet.Route{{Pattern: "/admin/", Rule: limpet.Rule{Mode: limpet.Require}}}}
	g := must(gateway.New(cfg))
	keys, err := softkey.Open(b.Context(), b.TempDir(), softkey.KeyFile(""))
	if err != nil {
		b.Fatal(err)
	}
	direct := &handler{g, http.Header{"Set-Cookie": nil}}
	c := client.New(keys).Transport(direct)
	login := must(http.NewRequest("POST", "http://127.0.0.1/login", nil))
	if resp, err := c.RoundTrip(login); err != nil || resp.StatusCode != 200 {
		b.Fatal(resp, err)
	}
	request := func() *http.Request {
		r := httptest.NewRequest("GET", "http://127.0.0.1/things/7?x=1", nil)
		r.Header = http.Header{"Cookie": {"lang=en; sid=5UbLkmIlm0nEvlGjPCMbpvDnbjRxjLnFmy9gQ0hCJbw"}, "User-Agent": {"Mozilla/5.0"},
			"Accept": {"text/html"}, "Accept-Language": {"en"}, "Accept-Encoding": {"gzip, deflate, br"}, "Referer": {"http://127.0.0.1/"}}
		r.RemoteAddr = "127.0.0.1:1"
		return r
	}
	run := func(name string, h http.Handler, make func() *http.Request) {
		b.Run(name, func(b *testing.B) {
			requests := []*http.Request{}
			for range b.N {
				requests = append(requests, make())
			}
			b.ReportAllocs()
			b.ResetTimer()
			for _, r := range requests {
				w := &discard{header: http.Header{}}
				h.ServeHTTP(w, r)
				if w.code != 200 {
					b.Fatal(w.code, w.header)
				}
			}
		})
	}
	run("bare", bare, request)
	run("unbound", g, func() *http.Request {
		r := request()
		r.Header["Cookie"] = []string{"lang=en; sid=another"}
		return r
	})
	direct.handler = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { direct.caught = r.Header })
	run("proven", g, func() *http.Request {
		r := request()
		r.RequestURI = ""
		if _, err := c.RoundTrip(r); err != nil {
			b.Fatal(err)
		}
		r.Header = direct.caught
		return r
	})
}

type discard struct {
	header http.Header
	code   int
}

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) WriteHeader(code int)        { d.code = code }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }

// handler is a handler as a transport, which can catch what it is sent.
type handler struct {
	handler http.Handler
	caught  http.Header
}

func (h *handler) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	in := httptest.NewRequest(r.Method, r.URL.String(), nil).WithContext(r.Context())
	in.Header = r.Header
	h.handler.ServeHTTP(w, in)
	resp := w.Result()
	resp.Request = r
	return resp, nil
}
