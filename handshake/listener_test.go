package handshake

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// memory is a listener in memory, whose connections come from wherever they say.
type memory struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newMemory() *memory { return &memory{conns: make(chan net.Conn), done: make(chan struct{})} }

func (m *memory) Accept() (net.Conn, error) {
	select {
	case c := <-m.conns:
		return c, nil
	case <-m.done:
		return nil, net.ErrClosed
	}
}

func (m *memory) Close() error   { m.once.Do(func() { close(m.done) }); return nil }
func (m *memory) Addr() net.Addr { return &net.TCPAddr{} }

// placed is a connection from an address.
type placed struct {
	net.Conn
	from net.Addr
}

func (p *placed) RemoteAddr() net.Addr { return p.from }

// dial connects from an address, such as "192.0.2.1".
func (m *memory) dial(from string) net.Conn {
	a, b := net.Pipe()
	m.conns <- &placed{b, &net.TCPAddr{IP: net.ParseIP(from), Port: 9}}
	return a
}

// logged counts lines.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logged) lines() int { return strings.Count(l.String(), "\n") }

func newTestListener(t *testing.T, inner net.Listener, srv *Config) (*Listener, *logged) {
	t.Helper()
	log := new(logged)
	cfg := *srv
	cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	l, err := NewListener(inner, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return l, log
}

func TestListener(t *testing.T) {
	before := leaks(t)
	srv, cli := pair()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, log := newTestListener(t, inner, srv)
	address := l.Addr().String()

	// Peers without the secret never reach Accept.
	bad := *cli
	bad.Keys = Shared(secretB)
	if _, err := (&Dialer{Config: bad}).Dial(t.Context(), "tcp", address); !errors.Is(err, ErrRefused) {
		t.Error(err)
	}
	d := &Dialer{Config: *cli}
	c, err := d.Dial(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	ends{client: c, server: s.(*Conn)}.agree(t, srv, cli)
	for deadline := time.Now().Add(5 * time.Second); log.lines() == 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if got := log.String(); strings.Contains(got, "web") || !strings.Contains(got, "refused") || strings.Contains(got, string(secretA)) {
		t.Errorf("the log: %s", got)
	}

	// Close ends Accept, the handshakes that go on, and what nobody has accepted.
	waiting, err := d.Dial(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	open, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan error)
	go func() {
		for {
			if _, err := l.Accept(); err != nil {
				accepted <- err
				return
			}
		}
	}()
	time.Sleep(10 * time.Millisecond)
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := <-accepted; !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	io.Copy(io.Discard, open) // ends
	for _, c := range []net.Conn{c, s, waiting, open} {
		c.Close()
	}
	if err := l.Close(); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if _, err := d.Dial(t.Context(), "tcp", address); err == nil {
		t.Error("a closed listener")
	}
	before.check(t)
}

// leaks is how many goroutines and file descriptors there are.
type leaked struct{ goroutines, files int }

func leaks(t *testing.T) (n leaked) {
	t.Helper()
	n.goroutines = runtime.NumGoroutine()
	if entries, err := os.ReadDir("/proc/self/fd"); err == nil {
		n.files = len(entries)
	}
	return n
}

func (n leaked) check(t *testing.T) {
	t.Helper()
	var now leaked
	for range 200 {
		if now = leaks(t); now.goroutines <= n.goroutines && now.files <= n.files+2 {
			return // the runtime's poller has files of its own
		}
		time.Sleep(10 * time.Millisecond)
	}
	stacks := make([]byte, 1<<16)
	t.Errorf("%d goroutines and %d files were %d and %d\n%s", now.goroutines, now.files, n.goroutines, n.files, stacks[:runtime.Stack(stacks, true)])
}

// 10,000 connections that say nothing do not keep a peer out, and do not cost
// more than the places there are. Over TCP, from many loopback addresses where
// the system has them; in memory where there are not enough file descriptors.
func TestTenThousandHalfOpen(t *testing.T) {
	const strangers = 10_000
	before := leaks(t)
	srv, cli := pair()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	connect := func(i int) (net.Conn, error) {
		d := net.Dialer{}
		if runtime.GOOS == "linux" {
			d.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, 1, byte(i/50/200), byte(1+i/50%200))}
		}
		return d.DialContext(t.Context(), "tcp", inner.Addr().String())
	}
	dialPeer := func() (*Conn, error) { return (&Dialer{Config: *cli}).Dial(t.Context(), "tcp", inner.Addr().String()) }
	if limit := maxFiles(); limit < strangers+2*MaxPending {
		t.Logf("in memory: only %d files may be open", limit)
		mem := newMemory()
		inner = mem
		connect = func(i int) (net.Conn, error) { return mem.dial(fmt.Sprintf("198.51.%d.%d", i/50/200, 1+i/50%200)), nil }
		dialPeer = func() (*Conn, error) { return Client(t.Context(), mem.dial("192.0.2.1"), cli) }
	} else {
		t.Log("over TCP")
	}
	l, log := newTestListener(t, inner, srv)
	defer l.Close()
	conns := make([]net.Conn, strangers)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := w; i < strangers; i += 8 {
				c, err := connect(i)
				if err != nil {
					t.Errorf("connection %d: %v", i, err)
					return
				}
				conns[i] = c
			}
		})
	}
	var most, served atomic.Int64
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(5 * time.Millisecond):
				most.Store(max(most.Load(), int64(runtime.NumGoroutine())))
			}
		}
	}()
	go func() { // what they are for goes on meanwhile
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			served.Add(1)
			c.Close()
		}
	}()
	wg.Wait()
	began := time.Now()
	const peers = 20
	for range peers {
		c, err := dialPeer()
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	took := time.Since(began)
	close(done)
	if took > 10*time.Second {
		t.Errorf("%d peers took %v", peers, took)
	}
	l.mu.Lock()
	places, addresses := l.pending.Len(), len(l.addresses)
	l.mu.Unlock()
	t.Logf("%d peers among %d strangers: %v; %d places and %d addresses taken, %d goroutines at most, %d lines logged", peers, strangers, took, places, addresses, most.Load(), log.lines())
	if places > MaxPending || addresses > maxAddresses+MaxPending || most.Load() > 3*MaxPending || log.lines() > 50 {
		t.Error("more than there may be")
	}
	for _, c := range conns {
		if c != nil {
			c.Close()
		}
	}
	l.Close()
	before.check(t)
	if served.Load() != peers {
		t.Errorf("%d of %d peers were served", served.Load(), peers)
	}
}

// One address has its share of places; in one more comes for one that waits
// longest, so a peer behind the same address is not kept out either.
func TestPlacesPerAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, cli := pair()
		mem := newMemory()
		l, log := newTestListener(t, mem, srv)
		defer l.Close()
		other := mem.dial("192.0.2.9")
		var conns []net.Conn
		for range 3 * MaxPendingPerAddress {
			conns = append(conns, mem.dial("192.0.2.1"))
			synctest.Wait()
		}
		alive := func(c net.Conn) bool {
			c.SetReadDeadline(time.Now().Add(time.Millisecond))
			n, _ := io.ReadFull(c, make([]byte, greetingSize))
			return n == greetingSize
		}
		for i, c := range conns {
			if got, want := alive(c), i >= 2*MaxPendingPerAddress; got != want {
				t.Errorf("connection %d: open %v, want %v", i, got, want)
			}
		}
		if !alive(other) {
			t.Error("another address pays")
		}
		if c, err := Client(t.Context(), mem.dial("192.0.2.1"), cli); err != nil {
			t.Error(err)
		} else {
			synctest.Wait()
			c.Close()
		}
		if log.lines() > 2*logBurst {
			t.Errorf("%d lines", log.lines())
		}
	})
}

func TestPlacesInAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, cli := pair()
		mem := newMemory()
		l, _ := newTestListener(t, mem, srv)
		defer l.Close()
		for i := range 2 * MaxPending {
			mem.dial(fmt.Sprintf("198.51.%d.%d", i/250, i%250))
		}
		synctest.Wait()
		l.mu.Lock()
		if l.pending.Len() != MaxPending || len(l.addresses) != MaxPending {
			t.Errorf("%d places, %d addresses", l.pending.Len(), len(l.addresses))
		}
		l.mu.Unlock()
		if c, err := Client(t.Context(), mem.dial("192.0.2.1"), cli); err != nil {
			t.Error(err)
		} else {
			synctest.Wait()
			c.Close()
		}
		time.Sleep(DefaultTimeout)
		synctest.Wait()
		l.mu.Lock()
		if l.pending.Len() != 0 || len(l.addresses) != 0 {
			t.Errorf("after the deadline: %d places, %d addresses", l.pending.Len(), len(l.addresses))
		}
		l.mu.Unlock()
	})
}

// An address whose handshakes fail has to wait, longer each time; others do not,
// and those who only connect do not.
func TestBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, cli := pair()
		mem := newMemory()
		l, _ := newTestListener(t, mem, srv)
		defer l.Close()
		bad := *cli
		bad.Keys = Shared(secretB)
		listened := func(from string) bool {
			c := mem.dial(from)
			defer c.Close()
			n, _ := io.ReadFull(c, make([]byte, greetingSize))
			synctest.Wait()
			return n > 0
		}
		for range 100 { // a health check
			if !listened("192.0.2.5") {
				t.Fatal("a health check has to wait")
			}
		}
		fail := func(from string) {
			if _, err := Client(t.Context(), mem.dial(from), &bad); !errors.Is(err, ErrRefused) {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		for range freeFailures {
			fail("192.0.2.1")
		}
		wait := minBackOff
		for range 10 {
			if listened("192.0.2.1") || !listened("192.0.2.2") {
				t.Fatalf("not to be listened to for %v", wait)
			}
			time.Sleep(wait - time.Millisecond)
			if listened("192.0.2.1") {
				t.Errorf("listened to before %v", wait)
			}
			time.Sleep(time.Millisecond)
			fail("192.0.2.1")
			wait = min(2*wait, maxBackOff)
		}
		if wait != maxBackOff {
			t.Error(wait)
		}
		time.Sleep(maxBackOff)
		c, err := Client(t.Context(), mem.dial("192.0.2.1"), cli)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		c.Close()
		for range freeFailures - 1 {
			fail("192.0.2.1")
		}
		if !listened("192.0.2.1") {
			t.Error("failures before a success count")
		}
		// IPv6 by its /64.
		for i := range freeFailures {
			fail(fmt.Sprintf("2001:db8::%d", i+1))
		}
		if listened("2001:db8::ffff") || !listened("2001:db8:0:1::1") {
			t.Error("a /64 is one address")
		}
	})
}

// Whoever fails from ever new addresses fills neither memory nor log.
func TestFloodOfFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, _ := pair()
		mem := newMemory()
		l, log := newTestListener(t, mem, srv)
		defer l.Close()
		began := time.Now()
		const flood = 2 * maxAddresses
		for i := range flood {
			c := mem.dial(fmt.Sprintf("10.%d.%d.1", i/250, i%250))
			go func() {
				go io.Copy(io.Discard, c)
				c.Write(bytes.Repeat([]byte{'x'}, 40))
			}()
			if i%500 == 0 {
				time.Sleep(refusalDelay)
			}
		}
		time.Sleep(time.Second)
		synctest.Wait()
		l.mu.Lock()
		if n := len(l.addresses); n > maxAddresses+MaxPending {
			t.Errorf("%d addresses are remembered", n)
		}
		l.mu.Unlock()
		if n, most := log.lines(), logBurst+int(time.Since(began)/logInterval)+1; n > most {
			t.Errorf("%d lines for %d failures in %v", n, flood, time.Since(began))
		}
		if !strings.Contains(log.String(), "unlogged=") {
			t.Error("it does not say how many were not logged")
		}
	})
}

// An application that does not accept does not hold connections without end.
func TestNobodyAccepts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, cli := pair()
		mem := newMemory()
		l, log := newTestListener(t, mem, srv)
		open := 0
		for i := range maxReady + 10 {
			c, err := Client(t.Context(), mem.dial(fmt.Sprintf("10.0.%d.%d", i/250, i%250)), cli)
			synctest.Wait()
			if errors.Is(err, io.ErrClosedPipe) {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			c.SetReadDeadline(time.Now().Add(time.Millisecond))
			if _, err := c.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
				open++
			}
			defer c.Close()
		}
		if open != maxReady || !strings.Contains(log.String(), "wait for Accept") {
			t.Errorf("%d connections wait", open)
		}
		l.Close()
	})
}

// A listener gets over errors that pass, and tells the one that does not.
func TestAcceptErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, cli := pair()
		broken := &flaky{memory: newMemory()}
		broken.left.Store(3)
		l, _ := newTestListener(t, broken, srv)
		c, err := Client(t.Context(), broken.dial("192.0.2.1"), cli)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		c.Close()
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		broken.Close()
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		l.Close()
	})
}

type flaky struct {
	*memory
	left atomic.Int64
}

func (f *flaky) Accept() (net.Conn, error) {
	if f.left.Add(-1) >= 0 {
		return nil, passing{}
	}
	return f.memory.Accept()
}

// Strangers who hold all file descriptors and let go of one at a time do not fill
// the log.
func TestAcceptErrorsFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, _ := pair()
		var lines atomic.Int64
		srv.Logger = slog.New(counting{slog.DiscardHandler, &lines})
		l, err := NewListener(&alternating{left: 2000}, *srv)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		l.Close()
		// And as many of connections refused.
		if most := 2*int64(time.Since(start)/logInterval) + 2*logBurst; lines.Load() > most {
			t.Errorf("%d lines, want at most %d", lines.Load(), most)
		}
	})
}

// alternating is out of file descriptors every other time.
type alternating struct {
	left int
}

func (a *alternating) Accept() (net.Conn, error) {
	a.left--
	switch {
	case a.left <= 0:
		return nil, net.ErrClosed
	case a.left%2 == 0:
		return nil, passing{}
	}
	c, other := net.Pipe()
	other.Close()
	return c, nil
}

func (a *alternating) Close() error   { return nil }
func (a *alternating) Addr() net.Addr { return &net.TCPAddr{} }

type counting struct {
	slog.Handler
	lines *atomic.Int64
}

func (c counting) Enabled(context.Context, slog.Level) bool { return true }
func (c counting) Handle(context.Context, slog.Record) error {
	c.lines.Add(1)
	return nil
}

type passing struct{}

func (passing) Error() string   { return "too many open files" }
func (passing) Timeout() bool   { return false }
func (passing) Temporary() bool { return true }

// Over TLS: whoever does not even begin it is dropped at the deadline, or for
// others, at once; and the handshake is tied to it.
func TestListenerOverTLS(t *testing.T) {
	srv, cli := pair()
	srv.Channel, cli.Channel = true, true
	srv.Timeout = 200 * time.Millisecond
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serverTLS, clientTLS := tlsConfigs(t)
	l, _ := newTestListener(t, tls.NewListener(inner, serverTLS), srv)
	defer l.Close()
	var silent []net.Conn
	for range MaxPendingPerAddress + 5 {
		c, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		silent = append(silent, c)
	}
	d := &Dialer{Config: *cli, DialContext: (&tls.Dialer{Config: clientTLS}).DialContext}
	c, err := d.Dial(t.Context(), "tcp", inner.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	ends{client: c, server: s.(*Conn)}.agree(t, srv, cli)
	c.Close()
	s.Close()
	for _, c := range silent {
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("a silent peer is not dropped")
		}
	}
}

// On a Unix socket there are no addresses to tell peers by.
func TestUnixSocket(t *testing.T) {
	srv, cli := pair()
	path := t.TempDir() + "/s"
	inner, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l, _ := newTestListener(t, inner, srv)
	defer l.Close()
	for range MaxPendingPerAddress + 5 {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.ReadFull(c, make([]byte, greetingSize)); err != nil {
			t.Fatal(err)
		}
	}
	c, err := (&Dialer{Config: *cli}).Dial(context.Background(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if n := len(l.addresses); n != 0 {
		t.Errorf("%d addresses", n)
	}
}
