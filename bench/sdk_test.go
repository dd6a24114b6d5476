package bench

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/sdk/js"
	"github.com/limpet-auth/limpet/store/memstore"
)

// BenchmarkSDK reports what the browser SDK adds to a fetch in a real Chromium,
// in microseconds: added, as the page waits for it, is the median of differences
// of fetches in turn, with and without a proof; before is what passes before the
// browser's own fetch is called. first is that of a page's first request: the key
// read from IndexedDB, an ephemeral key made and delegated to.
//
// It needs what e2e/browser needs: Node.js 20, Chromium, npm ci there.
func BenchmarkSDK(b *testing.B) {
	pairs := "200"
	if os.Getenv("LIMPET_BENCH_LARGE") != "" {
		pairs = "1000"
	}
	guard, err := limpet.New(limpet.Config{Session: limpet.Cookie("sid"), Store: memstore.New(nil), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	app := http.NewServeMux()
	app.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		token := rand.Text()
		if err := guard.Bind(w, r, token, "alice"); err != nil {
			limpet.Refuse(w, err)
			return
		}
		http.SetCookie(w, &http.Cookie{Name: "sid", Value: token, Path: "/", HttpOnly: true, Secure: true})
	})
	answer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"user":"alice"}`)
	})
	guarded := guard.Protect(answer)
	app.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/api" && r.Header.Get("Signature") == "":
			answer(w, r) // one path for both, without a guard for the bare one
		case r.URL.Path != "/":
			guarded.ServeHTTP(w, r)
		default:
			w.Header().Set("Content-Type", "text/html")
			w.Header().Set("Cross-Origin-Opener-Policy", "same-origin") // clocks are finer then
			w.Header().Set("Cross-Origin-Embedder-Policy", "require-corp")
			io.WriteString(w, `<!doctype html><title>bench</title><script type="module">
globalThis.bare = globalThis.fetch.bind(globalThis);
globalThis.fetch = (...args) => (globalThis.sent = performance.now(), bare(...args));
globalThis.limpet = await import("/limpet.js");
</script>`)
		}
	})
	app.HandleFunc("/limpet.js", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/javascript")
		w.Write(js.Source)
	})
	server := httptest.NewUnstartedServer(app)
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()

	chromium := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			chromium = path
			break
		}
	}
	if chromium == "" {
		b.Skip("no Chromium")
	}
	spki := sha256.Sum256(server.Certificate().RawSubjectPublicKeyInfo)
	for range b.N {
		cmd := exec.CommandContext(b.Context(), "node", "--no-warnings", "sdk.mjs")
		cmd.Env = append(os.Environ(), "LIMPET_CHROMIUM="+chromium, "LIMPET_PROFILE="+b.TempDir(), "LIMPET_PAIRS="+pairs,
			"LIMPET_URL="+strings.Replace(server.URL, "127.0.0.1", "app.test", 1), "LIMPET_SPKI="+base64.StdEncoding.EncodeToString(spki[:]))
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			b.Fatal("sdk.mjs: ", err)
		}
		var r struct {
			First     float64
			Get, Post struct{ Plain, Proven, Added, Before float64 }
		}
		if err := json.Unmarshal(out, &r); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(r.First, "first-us")
		b.ReportMetric(r.Get.Plain, "get-plain-us")
		b.ReportMetric(r.Get.Proven, "get-proven-us")
		b.ReportMetric(r.Get.Added, "get-added-us")
		b.ReportMetric(r.Get.Before, "get-before-us")
		b.ReportMetric(r.Post.Plain, "post-plain-us")
		b.ReportMetric(r.Post.Proven, "post-proven-us")
		b.ReportMetric(r.Post.Added, "post-added-us")
		b.ReportMetric(r.Post.Before, "post-before-us")
	}
}
