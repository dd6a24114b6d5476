package limpet

import (
	"context"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/internal/incoming"
	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/dbsc"
	"github.com/limpet-auth/limpet/proof/hwsign"
)

// stream puts proofs one by one into the same request. It makes a batch of them
// while the clock stands, because signing is the client's work, and a small
// one, because a server has a request's headers in its cache: it has just read
// them.
type stream struct {
	b          *testing.B
	site       *site
	sign       func(value string) string
	header     http.Header
	value, sig []string
	proofs     [128][2]string
	next       int
}

// newStream makes proofs with values spread over some seconds, as those of many
// clients are.
func newStream(b *testing.B, s *site, token, id string, sign func(value string) string) *stream {
	st := &stream{b: b, site: s, sign: sign, value: make([]string, 1), sig: make([]string, 1)}
	st.header = http.Header{
		"Accept":                      {"application/json"},
		"Authorization":               {"Bearer " + token},
		"User-Agent":                  {"bench"},
		hwsign.BoundToken.EphemeralID: {id},
		hwsign.BoundToken.Data:        st.value,
		hwsign.BoundToken.DataSig:     st.sig,
	}
	return st
}

func (st *stream) advance() {
	i := st.next % len(st.proofs)
	if i == 0 {
		st.b.StopTimer()
		now := time.Now() // the store's clock is the real one
		st.site.clock.Store(now.UnixNano())
		for i := range st.proofs {
			var r [16]byte
			rand.Read(r[:])
			value := fmt.Sprintf("%d-%x", now.Unix()-int64(i%20), r)
			st.proofs[i] = [2]string{value, st.sign(value)}
		}
		st.b.StartTimer()
	}
	st.value[0], st.sig[0] = st.proofs[i][0], st.proofs[i][1]
	st.next++
}

// setup binds a session and returns streams of HMAC and of ECDSA proofs.
func setup(b *testing.B) (s *site, secret []byte, macs, sigs func(b *testing.B) *stream) {
	const token = "5UbLkmIlm0nEvlGjPCMbpvDnbjRxjLnFmy9gQ0hCJbw"
	s = newSite(b, Config{})
	d := s.login(token, "alice")
	if w := d.introduce(); w.Code != 200 {
		b.Fatal(w.Body)
	}
	mac := hmac.New(sha256.New, d.secret)
	macs = func(b *testing.B) *stream {
		return newStream(b, s, token, d.id, func(value string) string {
			mac.Reset()
			mac.Write([]byte(value))
			return b64(mac.Sum(nil))
		})
	}
	key, n := newECDSA(b), hwsign.BoundToken
	point, err := key.PublicKey.Bytes()
	if err != nil {
		b.Fatal(err)
	}
	text, value := b64(point), s.value()
	w := d.send("GET", "/", "", http.Header{
		n.EphemeralKey: {text}, n.EphemeralType: {"ecdsa"}, n.EphemeralSig: {d.sign([]byte(text))},
		n.Data: {value}, n.DataSig: {sign(b, key, []byte(value))},
	})
	if w.Code != 200 {
		b.Fatal(w.Body)
	}
	id := w.Header().Get(n.EphemeralID)
	sigs = func(b *testing.B) *stream {
		return newStream(b, s, token, id, func(value string) string { return sign(b, key, []byte(value)) })
	}
	return s, d.secret, macs, sigs
}

// BenchmarkCheck is a guard's work for one request of a bound session: headers,
// extract, verify, value spent. Beside it the bare crypto over the same bytes.
func BenchmarkCheck(b *testing.B) {
	s, secret, macs, sigs := setup(b)
	check := func(b *testing.B, st *stream) {
		response := http.Header{}
		var req Request
		b.ReportAllocs()
		b.ResetTimer()
		for range b.N {
			st.advance()
			token, err := s.cfg.Session.Token(st.header)
			if err != nil {
				b.Fatal(err)
			}
			req.Token, req.Header = token, st.header
			if _, err := s.Check(context.Background(), &req, Rule{}, response); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("hmac/bare", func(b *testing.B) {
		mac := hmac.New(sha256.New, secret)
		var sum [sha256.Size]byte
		value := []byte(s.value())
		b.ReportAllocs()
		for b.Loop() {
			mac.Reset()
			mac.Write(value)
			mac.Sum(sum[:0])
		}
	})
	b.Run("hmac/limpet", func(b *testing.B) { check(b, macs(b)) })
	h := s.hold("VwzXj7Jm2oW8h4bq1pZyR0tKcE5sD9fGnA3uL6iTxBQ")
	if w := h.get(true); w.Code != 200 {
		b.Fatal(w.Body)
	}
	b.Run("httpsig/limpet", func(b *testing.B) {
		var messages [128]proof.Message
		var req Request
		b.ReportAllocs()
		b.ResetTimer()
		for i := range b.N {
			m := &messages[i%len(messages)]
			if m == &messages[0] {
				b.StopTimer()
				s.clock.Store(time.Now().UnixNano())
				for i := range messages {
					messages[i] = incoming.Message(h.request("GET", "/me?x=1", "", false))
				}
				b.StartTimer()
			}
			token, err := s.cfg.Session.Token(m.Header)
			if err != nil {
				b.Fatal(err)
			}
			req.Message, req.Token = *m, token
			if _, err := s.Check(context.Background(), &req, Rule{}, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("ecdsa/bare", func(b *testing.B) {
		key, value := newECDSA(b), s.value()
		text := sign(b, key, []byte(value))
		sig, _ := base64.StdEncoding.DecodeString(text)
		b.ReportAllocs()
		for b.Loop() {
			sum := sha256.Sum256([]byte(value))
			if !ecdsa.VerifyASN1(&key.PublicKey, sum[:], sig) {
				b.Fatal("refused")
			}
		}
	})
	b.Run("ecdsa/limpet", func(b *testing.B) { check(b, sigs(b)) })
}

// BenchmarkProtect is what the middleware adds to a handler that does nothing.
func BenchmarkProtect(b *testing.B) {
	s, _, macs, _ := setup(b)
	st := macs(b)
	h := s.Protect(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	r := &http.Request{Method: "GET", URL: &url.URL{Path: "/api"}, Header: st.header, Host: "app.example.com"}
	w := &discard{http.Header{}}
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		st.advance()
		h.ServeHTTP(w, r)
	}
}

type discard struct{ h http.Header }

func (d *discard) Header() http.Header       { return d.h }
func (*discard) Write(b []byte) (int, error) { return len(b), nil }
func (*discard) WriteHeader(code int) {
	if code != http.StatusOK {
		panic(fmt.Sprint("refused with ", code))
	}
}

// BenchmarkRefresh/limpet is a refresh of a browser's cookie: the JWT read and
// verified, its challenge used up (memstore); in turns with the bare signature over
// of the same key. Medians, and how the bare one's is to it: with other work on the
// machine means say little. cookie is a request with the cookie.
func BenchmarkRefresh(b *testing.B) {
	s := newBrowserSite(b, Config{})
	c := s.bound("5UbLkmIlm0nEvlGjPCMbpvDnbjRxjLnFmy9gQ0hCJbw")
	root := Cookie("sid").ID(c.token)
	known, err := s.session(context.Background(), root)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("limpet", func(b *testing.B) {
		when := func(i int) time.Time { return s.time().Add(time.Duration(i) * time.Minute / maxRefreshes) } // as often as a session may
		messages, limpet, bare := make([]proof.Message, b.N), make([]time.Duration, b.N), make([]time.Duration, b.N)
		for i := range messages {
			c.challenge = s.browsers.challenge(forRefresh, root, when(i))
			messages[i] = proof.Message{Method: "POST", Authority: "app.test", Path: dbscPath, Header: http.Header{dbsc.ResponseField: {c.refresh()}}}
		}
		digest := sha256.Sum256([]byte("a message"))
		sig, err := ecdsa.SignASN1(rand.Reader, c.key, digest[:])
		if err != nil {
			b.Fatal(err)
		}
		b.ReportAllocs()
		b.ResetTimer()
		for i := range messages {
			start := time.Now()
			if _, err := s.refresh(context.Background(), &messages[i], known, when(i)); err != nil {
				b.Fatal(err)
			}
			limpet[i] = time.Since(start)
			start = time.Now()
			if !ecdsa.VerifyASN1(&c.key.PublicKey, digest[:], sig) {
				b.Fatal("no signature")
			}
			bare[i] = time.Since(start)
		}
		slices.Sort(limpet)
		slices.Sort(bare)
		b.ReportMetric(float64(limpet[b.N/2]), "ns/op")
		b.ReportMetric(float64(bare[b.N/2]), "bare-ns/op")
		b.ReportMetric(float64(bare[b.N/2])/float64(limpet[b.N/2]), "bare/op")
	})
	b.Run("cookie", func(b *testing.B) {
		m := incoming.Message(c.request("GET", "/me"))
		var req Request
		b.ReportAllocs()
		for b.Loop() {
			req.Message, req.Token = m, c.token
			if _, err := s.Check(context.Background(), &req, Rule{}, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
}
