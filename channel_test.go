package limpet

import (
	"bufio"
	"crypto/tls"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"runtime"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/httpsig"
)

// line is one TLS connection to a site.
type line struct {
	t    *testing.T
	conn *tls.Conn
	r    *bufio.Reader
}

func dial(t *testing.T, server *httptest.Server) *line {
	t.Helper()
	conn, err := tls.Dial("tcp", server.Listener.Addr().String(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &line{t, conn, bufio.NewReader(conn)}
}

func (l *line) exporter() []byte {
	l.t.Helper()
	state := l.conn.ConnectionState()
	b, err := state.ExportKeyingMaterial(httpsig.ExporterLabel, nil, 32)
	if err != nil {
		l.t.Fatal(err)
	}
	return b
}

func (l *line) send(r *http.Request) *httptest.ResponseRecorder {
	l.t.Helper()
	if err := r.Write(l.conn); err != nil {
		l.t.Fatal(err)
	}
	resp, err := http.ReadResponse(l.r, r)
	if err != nil {
		l.t.Fatal(err)
	}
	defer resp.Body.Close()
	w := httptest.NewRecorder()
	maps.Copy(w.Header(), resp.Header)
	w.WriteHeader(resp.StatusCode)
	if _, err := io.Copy(w, resp.Body); err != nil {
		l.t.Fatal(err)
	}
	return w
}

// An ephemeral key stolen from memory, HMAC key and all, is worthless on
// another connection where the route demands the channel's key.
func TestChannel(t *testing.T) {
	s := newSite(t, Config{Routes: []Route{{Pattern: "/me", Rule: Rule{Channel: true}}}})
	server := httptest.NewUnstartedServer(s.next)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	h := s.hold("token")
	first, second := dial(t, server), dial(t, server)

	expect(t, "without the channel's key", first.send(h.request("GET", "/me", "", true)), proof.NoChannel)
	h.channel = first.exporter()
	expect(t, "with it, in the first request", first.send(h.request("GET", "/me", "", true)), "")
	expect(t, "again", first.send(h.request("GET", "/me", "", false)), "")
	expect(t, "on a route that does not ask", first.send(h.request("GET", "/", "", false)), "")
	expect(t, "on another connection", second.send(h.request("GET", "/me", "", false)), proof.Invalid)
	h.channel = nil
	expect(t, "the HMAC key alone", second.send(h.request("GET", "/", "", false)), "")
	r := h.request("GET", "/me", "", false)
	r.Header.Set(httpsig.ChannelField, httpsig.Channel)
	expect(t, "the field without the key", second.send(r), proof.Malformed)
	h.channel = second.exporter()
	expect(t, "the other connection's own key", second.send(h.request("GET", "/me", "", false)), "")
	expect(t, "where TLS ends elsewhere", s.serve(h.request("GET", "/me", "", false)), proof.Invalid)

	weak := s.login("weak", "bob")
	if w := weak.introduce(); w.Code != 200 {
		t.Fatal(w.Body)
	}
	expect(t, "a hw-sign client", weak.send("GET", "/me", "", weak.proof(s.value())), proof.NoChannel)

	held := s.channels.Len()
	if held != 2 {
		t.Errorf("%d connections are remembered, want 2", held)
	}
	first.conn.Close()
	second.conn.Close()
	server.CloseClientConnections()
	server.Close()
	for range 200 {
		runtime.GC()
		time.Sleep(10 * time.Millisecond)
		held = s.channels.Len()
		if held == 0 {
			return
		}
	}
	t.Errorf("%d connections are remembered after their end", held)
}

// BenchmarkChannel is the key of a TLS connection: derived, and remembered.
func BenchmarkChannel(b *testing.B) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	conn, err := tls.Dial("tcp", server.Listener.Addr().String(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	state := conn.ConnectionState()
	agreed := &proof.EphemeralKey{MAC: proof.NewMACKey([]byte("agreed"))}
	b.Run("bare", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := state.ExportKeyingMaterial(httpsig.ExporterLabel, nil, 32); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("limpet", func(b *testing.B) {
		var g Guard
		b.ReportAllocs()
		for b.Loop() {
			if _, err := g.channelKey(&state)(agreed); err != nil {
				b.Fatal(err)
			}
		}
	})
}
