package limpet

import (
	"bytes"
	"crypto/sha256"
	"io"
	"net/http"
	"testing"

	"github.com/limpet-auth/limpet/internal/incoming"
)

// BenchmarkBody is what the digest of a body of 1 MiB costs, beside the bare
// hash: read before the app sees it, and as the app reads it.
func BenchmarkBody(b *testing.B) {
	body := bytes.Repeat([]byte("limpet!\n"), 1<<17)
	digest := sha256.Sum256(body)
	b.Run("bare", func(b *testing.B) {
		b.SetBytes(int64(len(body)))
		for b.Loop() {
			if sha256.Sum256(body) != digest {
				b.Fatal("another digest")
			}
		}
	})
	b.Run("buffered", func(b *testing.B) {
		b.SetBytes(int64(len(body)))
		for b.Loop() {
			r := &http.Request{ContentLength: int64(len(body)), Body: io.NopCloser(bytes.NewReader(body))}
			if sum, err := incoming.HashBody(r, 1<<20); err != nil || sum != digest {
				b.Fatal(err)
			}
		}
	})
	b.Run("streamed", func(b *testing.B) {
		b.SetBytes(int64(len(body)))
		for b.Loop() {
			r := incoming.NewDigestedBody(io.NopCloser(bytes.NewReader(body)), digest)
			if _, err := io.Copy(io.Discard, struct{ io.Reader }{r}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
