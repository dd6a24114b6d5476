package browser_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestWebCrypto: what the SDK stands on is there in this Chromium.
func TestWebCrypto(t *testing.T) {
	t.Parallel()
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		io.WriteString(w, "<!doctype html><title>keys</title>")
	}))
	defer server.Close()
	run(t, "webcrypto.mjs", server, map[string]string{"LIMPET_URL": strings.Replace(server.URL, "127.0.0.1", "app.test", 1)})
}
