package browser_test

import (
	"crypto/rand"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/gateway"
	"github.com/limpet-auth/limpet/sdk/js"
	"github.com/limpet-auth/limpet/store/memstore"
)

// startTLS serves over HTTP/2, as sites do.
func startTLS(t *testing.T, h http.Handler) *httptest.Server {
	t.Helper()
	server := httptest.NewUnstartedServer(h)
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	return server
}

func named(server *httptest.Server, host string) string {
	return strings.Replace(server.URL, "127.0.0.1", host, 1)
}

// TestSDKCookie: a site whose sessions are cookies, over TLS.
func TestSDKCookie(t *testing.T) {
	t.Parallel()
	server := startTLS(t, newSDKSite(t, limpet.Cookie("sid")))
	run(t, "sdk_cookie.mjs", server, map[string]string{"LIMPET_URL": named(server, "app.test"), "LIMPET_OTHER": named(server, "evil.test")})
}

// TestSDKBearer: a site whose sessions are bearer tokens, on a developer's
// machine without TLS; and where the browser can keep no key.
func TestSDKBearer(t *testing.T) {
	t.Parallel()
	needChromium(t)
	server := httptest.NewUnstartedServer(newSDKSite(t, limpet.Bearer()))
	listener, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		t.Fatal(err)
	}
	server.Listener.Close()
	server.Listener = listener
	server.Start()
	t.Cleanup(server.Close)
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	run(t, "sdk_bearer.mjs", nil, map[string]string{"LIMPET_URL": "http://localhost:" + port, "LIMPET_INSECURE": "http://app.test:" + port})
}

// TestSDKServiceWorker: what markup loads is signed, what other sites cause is not.
func TestSDKServiceWorker(t *testing.T) {
	t.Parallel()
	server := startTLS(t, newSDKSite(t, limpet.Cookie("sid")))
	run(t, "sdk_worker.mjs", server, map[string]string{"LIMPET_URL": named(server, "app.test"), "LIMPET_OTHER": named(server, "evil.test")})
}

// TestSDKGateway: the SDK in a page of an app that knows of neither it nor the
// gateway in front.
func TestSDKGateway(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	users := map[string]string{} // by token; old ones stay good, as signed ones do
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		user := ""
		if c, err := r.Cookie("sid"); err == nil {
			user = users[c.Value]
		}
		switch r.URL.Path {
		case "/login":
			user = r.FormValue("username")
			defer http.Redirect(w, r, "/me", http.StatusFound)
		case "/logout":
			http.SetCookie(w, &http.Cookie{Name: "sid", Path: "/", MaxAge: -1})
			return
		case "/limpet.js":
			w.Header().Set("Content-Type", "text/javascript")
			w.Write(js.Source)
			return
		case "/":
			w.Header().Set("Content-Type", "text/html")
			io.WriteString(w, `<!doctype html><title>app</title><script type="module">import * as limpet from "/limpet.js"; limpet.install(); window.limpet = limpet</script>`)
			return
		}
		if user != "" {
			next := rand.Text()
			users[next] = user
			http.SetCookie(w, &http.Cookie{Name: "sid", Value: next, Path: "/", HttpOnly: true})
		}
		if r.URL.Path == "/me" {
			io.WriteString(w, user)
		}
	}))
	t.Cleanup(upstream.Close)
	to, err := url.Parse(upstream.URL)
	if err != nil {
		t.Fatal(err)
	}
	g, err := gateway.New(gateway.Config{
		Upstream: to, Session: limpet.Cookie("sid"), Store: memstore.New(nil), Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Logins: []gateway.Login{{Pattern: "POST /login", User: "form.username"}}, Logouts: []string{"POST /logout"},
	})
	if err != nil {
		t.Fatal(err)
	}
	server := startTLS(t, g)
	run(t, "sdk_gateway.mjs", server, map[string]string{"LIMPET_URL": named(server, "app.test")})
}
