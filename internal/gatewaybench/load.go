package gatewaybench

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/limpet-auth/limpet/client"
	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/hwkey/softkey"
)

// target and headers are what every request has, proven or not.
const (
	target  = "/things/7?x=1"
	headers = "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n" +
		"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n" +
		"Accept-Language: en-US,en;q=0.5\r\n" +
		"Accept-Encoding: gzip, deflate, br\r\n"
)

// crowd is who visits the servers. The device keys of those who log in lie in a
// directory that goes with it.
type crowd struct {
	dir  string
	keys hwkey.Keystore
	wire client.Wire
}

func newCrowd(ctx context.Context, wire client.Wire) (*crowd, error) {
	dir, err := os.MkdirTemp("", "limpet-bench-") // mode 0700
	if err != nil {
		return nil, err
	}
	keys, err := softkey.Open(ctx, dir, softkey.KeyFile(""))
	if err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	return &crowd{dir, keys, wire}, nil
}

func (c *crowd) close() { os.RemoveAll(c.dir) }

// visitor has a session, which is bound if there is a client that proves it.
type visitor struct {
	server *process
	cookie string
	client http.RoundTripper // nil for an unbound session
	line   *line
}

func (c *crowd) stranger(p *process) *visitor {
	return &visitor{server: p, cookie: "lang=en; " + SessionCookie + "=" + newToken()}
}

// newToken returns a token as long as 32 bytes are in base64.
func newToken() string { return rand.Text() + rand.Text()[:17] }

// login binds a session and introduces its ephemeral key.
func (c *crowd) login(ctx context.Context, p *process) (*visitor, error) {
	v := &visitor{server: p, line: &line{base: http.DefaultTransport}}
	prover := client.New(c.keys)
	prover.Wire = c.wire
	v.client = prover.Transport(v.line)
	for _, step := range []struct{ method, path string }{{http.MethodPost, "/login"}, {http.MethodGet, target}} {
		req, err := http.NewRequestWithContext(ctx, step.method, p.url+step.path, nil)
		if err != nil {
			return nil, err
		}
		if v.cookie != "" {
			req.Header.Set("Cookie", v.cookie)
		}
		resp, err := v.client.RoundTrip(req)
		if err != nil {
			return nil, err
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return nil, fmt.Errorf("%s %s: %s", step.method, step.path, resp.Status)
		}
		for _, cookie := range resp.Cookies() {
			v.cookie = "lang=en; " + cookie.Name + "=" + cookie.Value
		}
	}
	if v.cookie == "" {
		return nil, errors.New("no session")
	}
	return v, nil
}

// line is between a client and the server. It can keep what the client would
// send.
type line struct {
	base   http.RoundTripper
	keep   bool
	caught http.Header
}

func (l *line) RoundTrip(r *http.Request) (*http.Response, error) {
	if !l.keep {
		return l.base.RoundTrip(r)
	}
	l.caught = r.Header
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: http.NoBody, Request: r}, nil
}

// request returns the bytes of the visitor's next request.
func (v *visitor) request() ([]byte, error) {
	host := strings.TrimPrefix(v.server.url, "http://")
	var b bytes.Buffer
	fmt.Fprintf(&b, "GET %s HTTP/1.1\r\nHost: %s\r\n%sCookie: %s\r\n", target, host, headers, v.cookie)
	if v.client != nil {
		req, err := http.NewRequest(http.MethodGet, v.server.url+target, nil)
		if err != nil {
			return nil, err
		}
		req.Header.Set("Cookie", v.cookie)
		v.line.keep = true
		if _, err := v.client.RoundTrip(req); err != nil {
			return nil, err
		}
		for name, values := range v.line.caught {
			if name != "Cookie" {
				fmt.Fprintf(&b, "%s: %s\r\n", name, values[0])
			}
		}
	}
	b.WriteString("\r\n")
	return b.Bytes(), nil
}

// provesSomething makes sure that it is proofs that are measured: without one a
// request must be refused, with one admitted, and the same again refused.
func (v *visitor) provesSomething(ctx context.Context) error {
	proven, err := v.request()
	if err != nil {
		return err
	}
	unproven := *v
	unproven.client = nil
	bare, err := unproven.request()
	if err != nil {
		return err
	}
	for i, want := range []int{401, 200, 401} {
		conn, err := dial(ctx, v.server)
		if err != nil {
			return err
		}
		defer conn.Close()
		text := proven
		if i == 0 {
			text = bare
		}
		if code, err := exchange(conn, bufio.NewReader(conn), text); err != nil || code != want {
			return fmt.Errorf("the gateway does not do its work: %d for %d, %w", code, want, err)
		}
	}
	return nil
}

// batches are requests for each visitor to send, made beforehand.
func (l *lane) batches(n int) ([][][]byte, error) {
	batches := make([][][]byte, len(l.visitors))
	for i := range n {
		who := i % len(l.visitors)
		req, err := l.visitors[who].request()
		if err != nil {
			return nil, err
		}
		batches[who] = append(batches[who], req)
	}
	runtime.GC() // not while others are measured
	return batches, nil
}

// full has each connection send as fast as it is answered.
func (l *lane) full(ctx context.Context, n int) error {
	batches, err := l.batches(n)
	if err != nil {
		return err
	}
	before, err := l.server.used()
	if err != nil {
		return err
	}
	latencies, elapsed, err := l.send(ctx, batches, nil)
	if err != nil {
		return fmt.Errorf("%s: %w", l.name, err)
	}
	after, err := l.server.used()
	if err != nil {
		return err
	}
	l.cpu = append(l.cpu, (after.cpu-before.cpu).Seconds()*1e6/float64(n))
	l.rate = append(l.rate, float64(n)/elapsed.Seconds())
	l.fullP50, l.fullP99 = append(l.fullP50, percentile(latencies, 50)), append(l.fullP99, percentile(latencies, 99))
	return nil
}

// paced has requests sent at a rate a second. One that has to wait for the
// answer before it is late, and that counts.
func (l *lane) paced(ctx context.Context, n int, rate float64) error {
	batches, err := l.batches(n)
	if err != nil {
		return err
	}
	begin := time.Now().Add(10 * time.Millisecond)
	latencies, _, err := l.send(ctx, batches, func(who, i int) time.Time {
		return begin.Add(time.Duration(float64(i*len(batches)+who) / rate * float64(time.Second)))
	})
	if err != nil {
		return fmt.Errorf("%s: %w", l.name, err)
	}
	l.pacedP50, l.pacedP99 = append(l.pacedP50, percentile(latencies, 50)), append(l.pacedP99, percentile(latencies, 99))
	return nil
}

// send sends each batch over a connection of its own. due tells when a request
// is to be sent; nil means at once. The latencies are sorted.
func (l *lane) send(ctx context.Context, batches [][][]byte, due func(who, i int) time.Time) ([]time.Duration, time.Duration, error) {
	conns := make([]net.Conn, len(batches))
	for i := range conns {
		var err error
		if conns[i], err = dial(ctx, l.server); err != nil {
			return nil, 0, err
		}
		defer conns[i].Close()
	}
	defer context.AfterFunc(ctx, func() {
		for _, conn := range conns {
			conn.Close()
		}
	})()
	latencies := make([][]time.Duration, len(batches))
	errs := make([]error, len(batches))
	begin := time.Now()
	var wg sync.WaitGroup
	for who, conn := range conns {
		latencies[who] = make([]time.Duration, len(batches[who]))
		wg.Go(func() {
			r := bufio.NewReader(conn)
			for i, req := range batches[who] {
				from := time.Now()
				if due != nil {
					from = due(who, i)
					time.Sleep(time.Until(from))
				}
				code, err := exchange(conn, r, req)
				if err != nil || code != http.StatusOK {
					errs[who] = cmp.Or(err, fmt.Errorf("answered with status %d", code))
					return
				}
				latencies[who][i] = time.Since(from)
			}
		})
	}
	wg.Wait()
	elapsed := time.Since(begin)
	if err := ctx.Err(); err != nil {
		return nil, 0, err
	}
	if err := errors.Join(errs...); err != nil {
		return nil, 0, err
	}
	return slices.Sorted(slices.Values(slices.Concat(latencies...))), elapsed, nil
}

func dial(ctx context.Context, p *process) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", strings.TrimPrefix(p.url, "http://"))
}

// exchange sends a request and reads its answer.
func exchange(conn net.Conn, r *bufio.Reader, req []byte) (code int, err error) {
	conn.SetDeadline(time.Now().Add(time.Minute))
	if _, err := conn.Write(req); err != nil {
		return 0, err
	}
	length := 0
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		if code == 0 {
			if len(line) < len("HTTP/1.1 200") {
				return 0, fmt.Errorf("answer %q", line)
			}
			if code, err = strconv.Atoi(string(line[9:12])); err != nil {
				return 0, fmt.Errorf("answer %q", line)
			}
		}
		if v, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(v))); err != nil {
				return 0, err
			}
		}
		if len(line) == 2 {
			break
		}
	}
	_, err = r.Discard(length)
	return code, err
}
