package bench

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"math/big"
	"net"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/handshake"
)

// way is one way to get from a TCP connection to one that is good for something.
type way struct {
	name           string
	listen         func(net.Listener) (net.Listener, error)
	client, server func(net.Conn) (net.Conn, error)
}

func ways(b *testing.B) []way {
	plain := func(c net.Conn) (net.Conn, error) { return c, nil }
	itself := func(l net.Listener) (net.Listener, error) { return l, nil }
	quiet := slog.New(slog.DiscardHandler)
	limpet := func(name string, srv, cli handshake.Config) way {
		srv.Logger, cli.Logger = quiet, quiet
		return way{name, func(l net.Listener) (net.Listener, error) { return handshake.NewListener(l, srv) },
			func(c net.Conn) (net.Conn, error) { return handshake.Client(context.Background(), c, &cli) }, plain}
	}
	secret := handshake.Shared([]byte("0123456789abcdef0123456789abcdef"))
	srv, cli := handshake.Config{ID: "db", Keys: secret}, handshake.Config{ID: "web", Peer: "db", Keys: secret}
	srvRecords, cliRecords := srv, cli
	srvRecords.Records, cliRecords.Records = true, true
	srvKey, _ := newKey(b)
	cliKey, _ := newKey(b)
	srvSigned, cliSigned := srv, cli
	srvSigned.Signer, cliSigned.Signer = srvKey, cliKey
	srvSigned.Keys = func(string) []handshake.Key { return []handshake.Key{{Public: &cliKey.PublicKey}} }
	cliSigned.Keys = func(string) []handshake.Key { return []handshake.Key{{Public: &srvKey.PublicKey}} }

	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"db"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &srvKey.PublicKey, srvKey)
	if err != nil {
		b.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		b.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	// Without the post-quantum agreement, which costs more, and without tickets.
	base := tls.Config{MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{tls.X25519}, SessionTicketsDisabled: true}
	tlsServer, tlsClient := base.Clone(), base.Clone()
	tlsServer.Certificates = []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: srvKey, Leaf: leaf}}
	tlsClient.RootCAs, tlsClient.ServerName = roots, "db"
	return []way{
		{"tcp", itself, plain, plain},
		limpet("limpet", srv, cli),
		limpet("limpet-records", srvRecords, cliRecords),
		limpet("limpet-ecdsa", srvSigned, cliSigned),
		{"tls", itself, func(c net.Conn) (net.Conn, error) {
			t := tls.Client(c, tlsClient)
			return t, t.Handshake()
		}, func(c net.Conn) (net.Conn, error) {
			t := tls.Server(c, tlsServer)
			return t, t.Handshake()
		}},
	}
}

// BenchmarkHandshake connects, has both ends prove themselves, and closes, beside
// connecting and closing alone and beside TLS 1.3 with an ECDSA certificate. Both
// ends are in this process; figures are by its CPU time, and ratios of rounds
// that were run in turn.
func BenchmarkHandshake(b *testing.B) {
	const rounds, connections = 8, 500
	for range b.N {
		type figures struct{ cpu, allocs []float64 }
		all := map[string]*figures{}
		for range rounds {
			for _, w := range ways(b) {
				cpu, allocs := w.connect(b, connections)
				if all[w.name] == nil {
					all[w.name] = new(figures)
				}
				all[w.name].cpu = append(all[w.name].cpu, cpu)
				all[w.name].allocs = append(all[w.name].allocs, allocs)
			}
		}
		ratio := func(a, of string) float64 {
			var r []float64
			for i := range rounds {
				r = append(r, all[of].cpu[i]/all[a].cpu[i])
			}
			return middle(r)
		}
		out := map[string]float64{
			"limpet/tcp": ratio("limpet", "tcp"), "limpet/tls": ratio("limpet", "tls"), "limpet-ecdsa/tls": ratio("limpet-ecdsa", "tls"),
			"limpet-records/tcp": ratio("limpet-records", "tcp"),
			"allocs/handshake":   middle(all["limpet"].allocs) - middle(all["tcp"].allocs),
		}
		for name, f := range all {
			out[name+"/s/core"] = 1e9 / middle(f.cpu)
		}
		report(b, out)
	}
}

// connect makes n connections, 32 at a time, and returns ns of CPU and
// allocations of each.
func (w *way) connect(b *testing.B, n int) (cpu, allocs float64) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	l, err := w.listen(inner)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if s, err := w.server(c); err == nil {
					s.Read(make([]byte, 1)) // until the client has closed
				}
			}()
		}
	}()
	run := func(n int) {
		const together = 32
		var wg sync.WaitGroup
		for range together {
			wg.Go(func() {
				for range n / together {
					c, err := net.Dial("tcp", inner.Addr().String())
					if err == nil {
						_, err = w.client(c)
					}
					if err != nil {
						b.Error(err)
						return
					}
					c.Close()
				}
			})
		}
		wg.Wait()
	}
	run(64)
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	began := cpuTime()
	run(n)
	cpu = each(cpuTime()-began, n)
	runtime.ReadMemStats(&after)
	return cpu, float64(after.Mallocs-before.Mallocs) / float64(n)
}

// BenchmarkRecords sends 512 MiB over loopback, in writes of 64 KiB, beside the
// same over TCP alone and over TLS, and beside the bare tags.
func BenchmarkRecords(b *testing.B) {
	const size, rounds = 512 << 20, 3
	for range b.N {
		wall, core := map[string][]float64{}, map[string][]float64{}
		for range rounds {
			for _, w := range ways(b) {
				if w.name == "limpet" || w.name == "limpet-ecdsa" {
					continue // the same as TCP
				}
				s, c := w.stream(b, size)
				wall[w.name] = append(wall[w.name], s)
				core[w.name] = append(core[w.name], c)
			}
		}
		out := map[string]float64{}
		for name := range wall {
			out["GB/s-"+name] = middle(wall[name])
			out["GB/s/core-"+name] = middle(core[name])
		}
		out["GB/s-gmac"], out["GB/s-hmac"] = bareTags(b)
		report(b, out)
	}
}

// stream returns GB per second, by the clock and by the CPU time of both ends.
func (w *way) stream(b *testing.B, size int) (wall, core float64) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	l, err := w.listen(inner)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := net.Dial("tcp", inner.Addr().String())
		if err == nil {
			c, err = w.client(c)
		}
		if err != nil {
			b.Error(err)
			return
		}
		defer c.Close()
		buf := make([]byte, 64<<10)
		for range size / len(buf) {
			if _, err := c.Write(buf); err != nil {
				b.Error(err)
				return
			}
		}
	}()
	c, err := l.Accept()
	if err != nil {
		b.Fatal(err)
	}
	if c, err = w.server(c); err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	buf := make([]byte, 64<<10)
	began, beganCPU := time.Now(), cpuTime()
	for got := 0; got < size; {
		n, err := c.Read(buf)
		got += n
		if err != nil && err != io.EOF {
			b.Fatal(err)
		}
	}
	return float64(size) / float64(time.Since(began).Nanoseconds()), float64(size) / float64((cpuTime() - beganCPU).Nanoseconds())
}

// bareTags returns GB per second of the tags alone, one of each 32 KiB.
func bareTags(b *testing.B) (gmac, mac float64) {
	block, err := aes.NewCipher(make([]byte, 32))
	if err != nil {
		b.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		b.Fatal(err)
	}
	data, nonce, tag := make([]byte, 32<<10), make([]byte, 12), make([]byte, 0, 64)
	h := hmac.New(sha256.New, nonce)
	speed := func(do func()) float64 {
		const n = 8000
		began := cpuTime()
		for range n {
			do()
		}
		return float64(n*len(data)) / float64((cpuTime() - began).Nanoseconds())
	}
	return speed(func() { gcm.Seal(tag, nonce, nil, data) }), speed(func() { h.Reset(); h.Write(data); h.Sum(tag) })
}

func middle(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}
