package channel

import (
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"
)

// BenchmarkProtect is a request on an established connection: the handler bare,
// and behind Protect.
func BenchmarkProtect(b *testing.B) {
	s := newSite(b, ServerConfig{})
	l := s.dial()
	bare := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	for _, bb := range []struct {
		name, token string
		handler     http.Handler
	}{
		{"bare", l.token(), bare},
		{"token", l.token(), s.server.Protect(bare)},
		{"jwt", l.jwt(), s.server.Protect(bare)},
	} {
		b.Run(bb.name, func(b *testing.B) {
			r := httptest.NewRequest("GET", "https://"+l.host+"/", nil)
			r.TLS = &l.state
			r.Header.Set("Authorization", "Bearer "+bb.token)
			w := httptest.NewRecorder()
			if bb.handler.ServeHTTP(w, r); w.Code != 200 {
				b.Fatal(w.Body)
			}
			b.ReportAllocs()
			for b.Loop() {
				bb.handler.ServeHTTP(w, r)
			}
		})
	}
}

// BenchmarkAdmit is the first request of a connection, on the server.
func BenchmarkAdmit(b *testing.B) {
	s := newSite(b, ServerConfig{})
	l := s.dial()
	for name, token := range map[string]string{"token": l.token(), "jwt": l.jwt()} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			r := requestOn(l)
			for b.Loop() {
				if _, err := s.server.admission(r, &conn{}, token, ""); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkHandshake is a TLS connection and one request on it, both ends, over
// the loopback: with a token from a secret in software, and without one in turns,
// so that whatever else the machine does meets both. ratio is of handshakes a
// second, with and without.
func BenchmarkHandshake(b *testing.B) {
	for _, form := range []Form{Token, JWT, JWE} {
		b.Run(form.String(), func(b *testing.B) {
			s := newSite(b, ServerConfig{})
			app := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
			protected := s.server.Protect(app)
			s.http.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/bare" {
					app.ServeHTTP(w, r)
				} else {
					protected.ServeHTTP(w, r)
				}
			})
			base := s.base(false)
			base.DisableKeepAlives = true
			base.TLSClientConfig.MinVersion = tls.VersionTLS13
			trip := func(c http.RoundTripper, path string) time.Duration {
				r, err := http.NewRequest("GET", s.http.URL+path, nil)
				if err != nil {
					b.Fatal(err)
				}
				start := time.Now()
				resp, err := c.RoundTrip(r)
				if err != nil || resp.StatusCode != 200 {
					b.Fatal(resp, err)
				}
				resp.Body.Close()
				return time.Since(start)
			}
			with := s.transport(Config{Form: form, Base: base}, false)
			var bare, token []time.Duration
			for b.Loop() {
				bare = append(bare, trip(base, "/bare"))
				token = append(token, trip(with, "/"))
			}
			slices.Sort(bare)
			slices.Sort(token)
			b.ReportMetric(float64(bare[len(bare)/2]), "ns/bare")
			b.ReportMetric(float64(token[len(token)/2]), "ns/token")
			b.ReportMetric(float64(bare[len(bare)/2])/float64(token[len(token)/2]), "ratio")
		})
	}
}
