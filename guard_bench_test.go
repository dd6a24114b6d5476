package limpet

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"testing"

	"github.com/limpet-auth/limpet/proof/hwsign"
)

// BenchmarkCheck is a guard's work for one request of a bound session: headers,
// extract, verify, nonce spent. Beside it the raw HMAC over the same bytes.
func BenchmarkCheck(b *testing.B) {
	s := newSite(b, Config{})
	d := s.login("5UbLkmIlm0nEvlGjPCMbpvDnbjRxjLnFmy9gQ0hCJbw", "alice")
	if w := d.introduce(); w.Code != 200 {
		b.Fatal(w.Body)
	}
	now, unique := s.time().Unix(), 0

	b.Run("raw-hmac", func(b *testing.B) {
		mac := hmac.New(sha256.New, d.secret)
		var sum [32]byte
		value := []byte(s.value())
		b.ReportAllocs()
		for b.Loop() {
			mac.Reset()
			mac.Write(value)
			mac.Sum(sum[:0])
		}
	})
	b.Run("hmac", func(b *testing.B) {
		// Signing is the client's work: prepare it outside the clock.
		mac := hmac.New(sha256.New, d.secret)
		type proof struct{ value, sig string }
		proofs := make([]proof, b.N)
		for i := range proofs {
			unique++
			value := fmt.Sprintf("%d-%032x", now, unique)
			mac.Reset()
			mac.Write([]byte(value))
			proofs[i] = proof{value, base64.StdEncoding.EncodeToString(mac.Sum(nil))}
		}
		value, sig := make([]string, 1), make([]string, 1)
		header := http.Header{
			"Authorization":               {"Bearer " + d.token},
			hwsign.BoundToken.EphemeralID: {d.id},
			hwsign.BoundToken.Data:        value,
			hwsign.BoundToken.DataSig:     sig,
			"Accept":                      {"*/*"},
			"User-Agent":                  {"bench"},
		}
		ctx := context.Background()
		response := http.Header{}
		var req Request
		b.ReportAllocs()
		b.ResetTimer()
		for i := range proofs {
			value[0], sig[0] = proofs[i].value, proofs[i].sig
			token, err := s.cfg.Session.Token(header)
			if err != nil {
				b.Fatal(err)
			}
			req.Token, req.Header = token, header
			if _, err := s.Check(ctx, &req, Rule{}, response); err != nil {
				b.Fatal(err)
			}
		}
	})
}
