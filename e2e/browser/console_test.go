package browser_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/internal/admin"
	"github.com/limpet-auth/limpet/internal/authserver"
	"github.com/limpet-auth/limpet/internal/telemetry"
	"github.com/limpet-auth/limpet/proof/hwsign"
	"github.com/limpet-auth/limpet/store/memstore"
)

// TestConsole: an operator signs in, looks at more sessions than a page holds,
// revokes some, and sees what is refused meanwhile.
func TestConsole(t *testing.T) {
	t.Parallel()
	needChromium(t)
	store, log := memstore.New(nil), slog.New(slog.DiscardHandler)
	metrics := telemetry.NewMetrics("test")
	recent, decisions := admin.NewRecent(metrics.Totals), new(admin.Decisions)
	auth, err := authserver.New(authserver.Config{Store: store, Logger: log, Decided: func(ctx context.Context, d *limpet.Decision) {
		metrics.Decided(ctx, d)
		recent.Decided(ctx, d)
		decisions.Decided(ctx, d)
	}})
	if err != nil {
		t.Fatal(err)
	}
	go recent.Run(t.Context())
	app := httptest.NewServer(auth)
	defer app.Close()

	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	bind := func(token, user string, keyed bool) {
		r := httptest.NewRequest("POST", "/login", nil)
		if keyed {
			r.Header.Set(hwsign.BoundToken.DeviceKey, base64.StdEncoding.EncodeToString(der))
			r.Header.Set(hwsign.BoundToken.DeviceKeyType, "ecdsa")
		}
		if err := auth.Bind(httptest.NewRecorder(), r, token, user); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 6000 {
		bind(fmt.Sprint("visitor", i), fmt.Sprintf("visitor %04d", i), false)
	}
	bind("laptop", "alice", true)
	bind("phone", "alice", false)
	bind("tablet", "alice", false)
	bind("desk", `<img src=x onerror=alert(1)> & bob`, true)

	api := admin.New(admin.Config{Guard: func() *limpet.Guard { return auth.Guard }, Store: store, Decisions: decisions, Recent: recent, Metrics: metrics.Handler(log), Logger: log,
		Service: "limpet-serve", Version: "test", StoreKind: "mem"})
	const token = "the-admin-token-of-this-test"
	server := httptest.NewServer(api.OnLoopback(token))
	defer server.Close()
	// A page of another port of this machine, which is sent the console's cookie too.
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		io.WriteString(w, "<!doctype html><title>another</title>")
	}))
	defer other.Close()
	run(t, "console.mjs", nil, map[string]string{"LIMPET_URL": server.URL, "LIMPET_APP": app.URL, "LIMPET_OTHER": other.URL, "LIMPET_TOKEN": token})
}
