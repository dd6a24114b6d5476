package browser_test

import (
	"bytes"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/limpet-auth/limpet/internal/authserver"
	"github.com/limpet-auth/limpet/store/memstore"
)

// TestDemoPage: somebody registers, logs in, calls the API, makes a passkey and logs
// in with it, and has all of it stolen: with a key in vain, without one not.
func TestDemoPage(t *testing.T) {
	t.Parallel()
	needChromium(t)
	var log bytes.Buffer
	auth, err := authserver.New(authserver.Config{Store: memstore.New(nil), Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewTLSServer(auth)
	defer server.Close()
	plain := httptest.NewServer(auth)
	defer plain.Close()
	defer func() {
		if t.Failed() {
			server.Close()
			plain.Close()
			t.Log(log.String())
		}
	}()
	run(t, "demo.mjs", server, map[string]string{
		"LIMPET_URL":   strings.Replace(server.URL, "127.0.0.1", "app.test", 1),
		"LIMPET_PLAIN": plain.URL,
	})
}
