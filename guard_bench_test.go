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
	"testing"

	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/hwsign"
)

// stream makes proofs beforehand, because signing is the client's work, and
// puts them one by one into the same request.
type stream struct {
	header     http.Header
	value, sig []string
	proofs     [][2]string
	next       int
}

// newStream makes n proofs with values spread over some seconds, as those
// of many clients are.
func newStream(s *site, token, id string, n int, sign func(value string) string) *stream {
	st := &stream{value: make([]string, 1), sig: make([]string, 1), proofs: make([][2]string, n)}
	st.header = http.Header{
		"Accept":                      {"application/json"},
		"Authorization":               {"Bearer " + token},
		"User-Agent":                  {"bench"},
		hwsign.BoundToken.EphemeralID: {id},
		hwsign.BoundToken.Data:        st.value,
		hwsign.BoundToken.DataSig:     st.sig,
	}
	for i := range st.proofs {
		var r [16]byte
		rand.Read(r[:])
		value := fmt.Sprintf("%d-%x", s.time().Unix()-int64(i%20), r)
		st.proofs[i] = [2]string{value, sign(value)}
	}
	return st
}

func (st *stream) advance() {
	st.value[0], st.sig[0] = st.proofs[st.next][0], st.proofs[st.next][1]
	st.next++
}

// setup binds a session and returns streams of HMAC and of ECDSA proofs.
func setup(b *testing.B) (s *site, secret []byte, macs, sigs func(n int) *stream) {
	const token = "5UbLkmIlm0nEvlGjPCMbpvDnbjRxjLnFmy9gQ0hCJbw"
	s = newSite(b, Config{})
	d := s.login(token, "alice")
	if w := d.introduce(); w.Code != 200 {
		b.Fatal(w.Body)
	}
	mac := hmac.New(sha256.New, d.secret)
	macs = func(n int) *stream {
		return newStream(s, token, d.id, n, func(value string) string {
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
	sigs = func(n int) *stream {
		return newStream(s, token, id, n, func(value string) string { return sign(b, key, []byte(value)) })
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
	b.Run("hmac/limpet", func(b *testing.B) { check(b, macs(b.N)) })
	h := s.hold("VwzXj7Jm2oW8h4bq1pZyR0tKcE5sD9fGnA3uL6iTxBQ")
	if w := h.get(true); w.Code != 200 {
		b.Fatal(w.Body)
	}
	b.Run("httpsig/limpet", func(b *testing.B) {
		messages := make([]proof.Message, b.N)
		for i := range messages {
			messages[i] = messageOf(h.request("GET", "/me?x=1", "", false))
		}
		var req Request
		b.ReportAllocs()
		b.ResetTimer()
		for i := range messages {
			token, err := s.cfg.Session.Token(messages[i].Header)
			if err != nil {
				b.Fatal(err)
			}
			req.Message, req.Token = messages[i], token
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
	b.Run("ecdsa/limpet", func(b *testing.B) { check(b, sigs(b.N)) })
}

// BenchmarkProtect is what the middleware adds to a handler that does nothing.
func BenchmarkProtect(b *testing.B) {
	s, _, macs, _ := setup(b)
	st := macs(b.N)
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
