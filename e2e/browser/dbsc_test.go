package browser_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/client"
	"github.com/limpet-auth/limpet/gateway"
	"github.com/limpet-auth/limpet/hwkey/softkey"
	"github.com/limpet-auth/limpet/limpettest"
	"github.com/limpet-auth/limpet/store/boltstore"
	"github.com/limpet-auth/limpet/store/memstore"
	"github.com/limpet-auth/limpet/store/redisstore"
)

// TestDBSC: an app that knows nothing of Limpet, behind a gateway that differs
// from others in nothing but dbsc: true, looked at through a Chromium that keeps
// keys for sessions.
func TestDBSC(t *testing.T) {
	t.Parallel()
	t.Run("memstore", func(t *testing.T) {
		t.Parallel()
		newDBSC(t, memstore.New(nil)).run("all")
	})
	t.Run("boltstore", func(t *testing.T) {
		t.Parallel()
		store, err := boltstore.Open(filepath.Join(t.TempDir(), "store.db"), nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { store.Close() })
		newDBSC(t, store).run("short")
	})
	t.Run("redisstore", func(t *testing.T) {
		t.Parallel()
		store, err := redisstore.Open(t.Context(), "redis://"+limpettest.Redis(t), &redisstore.Options{Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { store.Close() })
		newDBSC(t, store).run("short")
	})
}

type dbscSite struct {
	*testing.T
	front, control *httptest.Server
}

// newDBSC has the app, its gateway, and a port by which the script looks behind
// the scene.
func newDBSC(t *testing.T, store fullStore) *dbscSite {
	app := httptest.NewServer(newPlainApp())
	t.Cleanup(app.Close)
	cfg, err := gateway.Parse("app.yaml", []byte(`
upstream: `+app.URL+`
session: {cookie: sid}
dbsc: true
login: [{route: POST /login, user: form.username}]
logout: [POST /logout]
routes:
  - {route: /bound, mode: require, min-level: browser}
`))
	if err != nil {
		t.Fatal(err)
	}
	outage := &failing{fullStore: store}
	var mu sync.Mutex
	decisions := []limpet.Decision{}
	cfg.Store, cfg.Logger = outage, slog.New(slog.NewTextHandler(t.Output(), nil))
	cfg.Decided = func(_ context.Context, d *limpet.Decision) {
		mu.Lock()
		defer mu.Unlock()
		decisions = append(decisions, *d)
	}
	g, err := gateway.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	front := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.Host, "other.test") { // another site
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprintf(w, `<!doctype html><title>other</title><a id="link" href="%s">there</a>`, html.EscapeString(r.FormValue("to")))
			return
		}
		g.ServeHTTP(w, r)
	}))
	front.EnableHTTP2 = true
	front.StartTLS()
	t.Cleanup(front.Close)

	mux := http.NewServeMux()
	mux.HandleFunc("POST /outage", func(w http.ResponseWriter, r *http.Request) { outage.on.Store(r.FormValue("on") == "yes") })
	mux.HandleFunc("POST /revoke", func(w http.ResponseWriter, r *http.Request) {
		if n, err := g.Guard().RevokeUser(r.Context(), "alice"); err != nil || n == 0 {
			http.Error(w, fmt.Sprint(n, err), http.StatusInternalServerError)
		}
	})
	mux.HandleFunc("POST /device", func(w http.ResponseWriter, r *http.Request) { // a login with a device key
		keys, err := softkey.Open(r.Context(), t.TempDir(), softkey.KeyFile(""))
		if err == nil {
			c := &http.Client{Transport: client.New(keys).Transport(front.Client().Transport),
				CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
			var resp *http.Response
			if resp, err = c.PostForm(front.URL+"/login", url.Values{"username": {"bob"}}); err == nil {
				resp.Body.Close()
				io.WriteString(w, resp.Cookies()[0].Value)
				return
			}
		}
		http.Error(w, err.Error(), http.StatusInternalServerError)
	})
	mux.HandleFunc("GET /decisions", func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		json.NewEncoder(w).Encode(decisions)
	})
	control := httptest.NewServer(mux)
	t.Cleanup(control.Close)
	return &dbscSite{t, front, control}
}

func (s *dbscSite) run(scenario string) {
	run(s.T, "dbsc.mjs", s.front, map[string]string{
		"LIMPET_URL":      strings.Replace(s.front.URL, "127.0.0.1", "app.test", 1),
		"LIMPET_OTHER":    strings.Replace(s.front.URL, "127.0.0.1", "other.test", 1),
		"LIMPET_DIRECT":   s.front.URL,
		"LIMPET_CONTROL":  s.control.URL,
		"LIMPET_SCENARIO": scenario,
		"LIMPET_THIEF":    s.TempDir(),
	})
}

type fullStore interface {
	limpet.Store
	limpet.Lister
	limpet.Spender
}

// failing is a store that can be out of order.
type failing struct {
	fullStore
	on atomic.Bool
}

var errOutage = errors.New("out of order")

func (f *failing) Get(ctx context.Context, key string) ([]byte, bool, error) {
	if f.on.Load() {
		return nil, false, errOutage
	}
	return f.fullStore.Get(ctx, key)
}

func (f *failing) Add(ctx context.Context, key string, val []byte, ttl time.Duration) (bool, error) {
	if f.on.Load() {
		return false, errOutage
	}
	return f.fullStore.Add(ctx, key, val, ttl)
}

// newPlainApp is an app of pages and cookies.
func newPlainApp() http.Handler {
	var mu sync.Mutex
	users := map[string]string{}
	begin := func(w http.ResponseWriter, user string) {
		token := rand.Text()
		mu.Lock()
		users[token] = user
		mu.Unlock()
		http.SetCookie(w, &http.Cookie{Name: "sid", Value: token, Path: "/", HttpOnly: true, MaxAge: 30 * 24 * 3600})
	}
	user := func(r *http.Request) string {
		c, err := r.Cookie("sid")
		if err != nil {
			return ""
		}
		mu.Lock()
		defer mu.Unlock()
		return users[c.Value]
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /login", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		io.WriteString(w, `<!doctype html><title>log in</title><form method="post"><input name="username" value="alice"><input name="password" value="secret"><button>log in</button></form>`)
	})
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		begin(w, r.FormValue("username"))
		to := r.URL.Query().Get("to")
		if to == "" {
			to = "/me"
		}
		http.Redirect(w, r, to, http.StatusSeeOther)
	})
	mux.HandleFunc("POST /logout", func(w http.ResponseWriter, r *http.Request) {
		http.SetCookie(w, &http.Cookie{Name: "sid", Path: "/", MaxAge: -1})
		http.Redirect(w, r, "/login", http.StatusSeeOther)
	})
	mux.HandleFunc("/rotate", func(w http.ResponseWriter, r *http.Request) {
		if u := user(r); u != "" {
			begin(w, u)
		}
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if user(r) == "" {
			http.Redirect(w, r, "/login", http.StatusSeeOther)
			return
		}
		body, _ := io.ReadAll(r.Body)
		if strings.HasPrefix(r.URL.Path, "/api") {
			json.NewEncoder(w).Encode(map[string]string{"user": user(r), "level": r.Header.Get("Limpet-Level"), "session": r.Header.Get("Limpet-Session"), "body": string(body)})
			return
		}
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, `<!doctype html><title>me</title><h1>%s</h1><p id="level">%s</p><form method="post" action="/logout"><button>log out</button></form>`,
			html.EscapeString(user(r)), html.EscapeString(r.Header.Get("Limpet-Level")))
	})
	return mux
}
