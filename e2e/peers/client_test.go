package peers_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/limpet-auth/limpet/client"
	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/hwkey/softkey"
	"github.com/limpet-auth/limpet/proof"
)

// recorder keeps requests as they leave.
type recorder struct {
	http.RoundTripper
	requests []*http.Request
}

func (r *recorder) RoundTrip(req *http.Request) (*http.Response, error) {
	r.requests = append(r.requests, req.Clone(context.Background()))
	return r.RoundTripper.RoundTrip(req)
}

// What leaves our client is signed so that others can verify it.
func TestOurClientSigns(t *testing.T) {
	server := newSite(t)
	p := start(t, "limpet.mjs", server)
	for _, tt := range []struct {
		name      string
		device    hwkey.Algorithm
		ephemeral proof.Algorithm
		size      int // of the ephemeral key
		parse     func(t *testing.T, b []byte) any
	}{
		{"ecdsa-p256-sha256", hwkey.ECDSAP256, proof.ECDSAP256, 65, func(t *testing.T, b []byte) any {
			key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), b)
			if err != nil {
				t.Fatal(err)
			}
			return key
		}},
		{"ed25519", hwkey.Ed25519, proof.Ed25519, 32, func(t *testing.T, b []byte) any { return ed25519.PublicKey(b) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			keys, err := softkey.Open(t.Context(), t.TempDir(), softkey.KeyFile(""))
			if err != nil {
				t.Fatal(err)
			}
			c := client.New(keys)
			defer c.Close()
			c.DeviceKey, c.Ephemeral = tt.device, tt.ephemeral
			sent := &recorder{RoundTripper: server.Client().Transport}
			web := &http.Client{Transport: c.Transport(sent)}
			resp, err := web.Post(server.URL+"/login", "text/plain", strings.NewReader("the password"))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			var login struct{ Token string }
			if err := json.NewDecoder(resp.Body).Decode(&login); err != nil || resp.StatusCode != 200 {
				t.Fatal(resp.Status, err)
			}
			r, err := http.NewRequestWithContext(t.Context(), "POST", server.URL+"/transfer%2F/?to=b+ob", strings.NewReader("a body"))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Authorization", "Bearer "+login.Token)
			resp, err = web.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != 200 || len(sent.requests) != 2 {
				t.Fatalf("%s after %d requests", resp.Status, len(sent.requests))
			}
			first, second := messageOf(sent.requests[0]), messageOf(sent.requests[1])
			device := fieldBytes(t, first.Headers["limpet-device"])
			statement := fieldBytes(t, second.Headers["limpet-delegation"])
			ephemeral := spkiOf(t, tt.parse(t, statement[len(statement)-tt.size:]))
			for _, name := range signers {
				wantHolds(t, p, name, tt.name, device, first)
				wantHolds(t, p, name, tt.name, ephemeral, second)
			}
		})
	}
}
