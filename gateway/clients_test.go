package gateway

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"testing"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/channel"
	"github.com/limpet-auth/limpet/hwkey/softkey"
	"github.com/limpet-auth/limpet/keyring"
	"github.com/limpet-auth/limpet/store/memstore"
)

// A route can ask for a client with a token of its TLS connection. The app is told
// its name, by the gateway and nobody else.
func TestClientsOfConnections(t *testing.T) {
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%q %q", r.Header["Limpet-Client-Name"], r.Header[channel.ClientField])
		if len(r.Header["Cookie"]) > 0 {
			fmt.Fprintf(w, " %q", r.Header["Cookie"])
		}
	}))
	defer app.Close()
	upstream, err := url.Parse(app.URL)
	if err != nil {
		t.Fatal(err)
	}
	path, secret := filepath.Join(t.TempDir(), "clients.json"), keyring.NewSecret()
	if err := keyring.Edit(path, func(l *keyring.List) error { return l.Add("billing", &keyring.Key{Secret: secret}) }); err != nil {
		t.Fatal(err)
	}
	ring, err := keyring.Open(path, keyring.Options{})
	if err != nil {
		t.Fatal(err)
	}
	quiet := slog.New(slog.DiscardHandler)
	clients, err := channel.NewServer(channel.ServerConfig{Keys: ring, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	g, err := New(Config{Upstream: upstream, Session: limpet.Cookie("sid"), Store: memstore.New(nil), Clients: clients, Logger: quiet,
		Routes: []limpet.Route{{Pattern: "/hooks/", Rule: limpet.Rule{Client: limpet.InsteadOfSession}}}})
	if err != nil {
		t.Fatal(err)
	}
	front := httptest.NewUnstartedServer(g)
	front.EnableHTTP2, front.TLS = true, &tls.Config{MinVersion: tls.VersionTLS13}
	front.StartTLS()
	defer front.Close()

	soft, err := softkey.Open(context.Background(), t.TempDir(), softkey.KeyFile(""))
	if err != nil {
		t.Fatal(err)
	}
	key, err := soft.ImportHMAC(context.Background(), secret, "")
	if err != nil {
		t.Fatal(err)
	}
	billing, err := channel.NewTransport(channel.Config{ID: "billing", HMAC: key, Base: front.Client().Transport})
	if err != nil {
		t.Fatal(err)
	}
	// A client is no reason to let somebody's stolen session through.
	if err := g.Guard().Bind(httptest.NewRecorder(), httptest.NewRequest("POST", "/login", nil), "stolen", "alice"); err != nil {
		t.Fatal(err)
	}
	if err := g.Guard().Revoke(t.Context(), limpet.Cookie("sid").ID("stolen")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		who    http.RoundTripper
		path   string
		cookie string
		code   int
		want   string
	}{
		{billing, "/hooks/paid", "", 200, `["billing"] []`},
		{billing, "/hooks/paid", "sid=stolen; other=x", 200, `["billing"] [] ["other=x"]`},
		{billing, "/hooks/paid", "sid=a; sid=b", 400, ""},
		{billing, "/hooks/paid?sid=stolen", "", 400, ""},
		{front.Client().Transport.(*http.Transport).Clone(), "/hooks/paid", "", 401, ""},
		{billing, "/", "sid=stolen", 401, ""},
		{billing, "/", "", 200, `[] []`}, // where nobody asks, nobody is told
	} {
		r, err := http.NewRequest("GET", front.URL+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if c.cookie != "" {
			r.Header.Set("Cookie", c.cookie)
		}
		r.Header["Limpet-Client_Name"] = []string{"mallory"}
		r.Header.Set("Limpet-Client-Name", "mallory")
		resp, err := c.who.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != c.code || c.want != "" && string(text) != c.want {
			t.Errorf("%s: %d %s, want %d %s", c.path, resp.StatusCode, text, c.code, c.want)
		}
	}
}

// TestNameOfClient: a name that would be another's on its way is told to nobody.
func TestNameOfClient(t *testing.T) {
	var n Names
	if err := n.setDefaults(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"billing": "billing", "admin\n": "", " admin": "", "a\x00b": ""} {
		h := make(http.Header)
		n.identify(h, &limpet.Binding{Client: name})
		if got := h.Get("Limpet-Client-Name"); got != want {
			t.Errorf("%q: %q", name, got)
		}
	}
}
