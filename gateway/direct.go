package gateway

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"slices"
	"sync"
	"syscall"
	"time"
)

// direct sends requests that are safe to repeat and have no body, and reads their
// answers, on the goroutine of the one who asks. [http.Transport] hands each request
// to one goroutine and its answer to another: for most requests that is a fifth of
// all that a proxy does. What is written and read is net/http's as well.
type direct struct {
	addr    string
	dial    func(ctx context.Context, network, addr string) (net.Conn, error)
	timeout time.Duration // until the answer's header has ended

	mu    sync.Mutex
	idle  []*directConn // those that were used last come last
	sweep *time.Timer   // runs while there are any
}

// directAddr returns where an app listens; "" if it cannot be asked in this way.
func directAddr(to *url.URL) string {
	if !canTellQuiet || to.Scheme != "http" {
		return ""
	}
	for _, c := range []byte(to.Host) {
		if c >= 0x80 {
			return "" // a name that must be encoded first
		}
	}
	if to.Port() == "" {
		return net.JoinHostPort(to.Hostname(), "80")
	}
	return to.Host
}

// takes reports whether a request can be sent in this way.
func (d *direct) takes(r *http.Request) bool {
	return (r.Method == http.MethodGet || r.Method == http.MethodHead || r.Method == http.MethodOptions) &&
		r.Body == nil && !r.Close && len(r.Trailer) == 0 && r.Header["Upgrade"] == nil
}

// RoundTrip implements [http.RoundTripper].
func (d *direct) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx := r.Context()
	for {
		c := d.take()
		used := c != nil
		if c == nil {
			var err error
			if c, err = d.connect(ctx); err != nil {
				return nil, err
			}
		}
		stop := context.AfterFunc(ctx, func() { c.Close() })
		resp, err := c.roundTrip(r, d.timeout)
		if err == nil {
			body := &directBody{Reader: resp.Body, direct: d, conn: c, ctx: ctx, stop: stop, last: resp.Close}
			if resp.Body == http.NoBody {
				body.end(io.EOF)
			} else {
				resp.Body = body
			}
			return resp, nil
		}
		if !stop() {
			return nil, ctx.Err()
		}
		c.Close()
		// An app may end a connection that it has long been silent on while a
		// request is on its way.
		if timeout := net.Error(nil); !used || c.answered() || errors.As(err, &timeout) && timeout.Timeout() {
			return nil, err
		}
	}
}

func (d *direct) connect(ctx context.Context) (*directConn, error) {
	to, err := d.dial(ctx, "tcp", d.addr)
	if err != nil {
		return nil, err
	}
	c := &directConn{Conn: to}
	if c.raw, err = rawOf(to); err != nil {
		to.Close()
		return nil, err
	}
	c.r, c.w = bufio.NewReader(&c.answer), bufio.NewWriter(to)
	c.answer.Reader = to
	c.look = c.lookOnce
	return c, nil
}

// take returns an idle connection; nil if there is none.
func (d *direct) take() *directConn {
	for now := time.Now(); ; {
		d.mu.Lock()
		n := len(d.idle)
		if n == 0 {
			d.mu.Unlock()
			return nil
		}
		c := d.idle[n-1]
		d.idle[n-1] = nil
		d.idle = d.idle[:n-1]
		d.mu.Unlock()
		if now.Sub(c.idle) < maxIdle && c.quiet() {
			return c
		}
		c.Close()
	}
}

// put keeps a connection for the next request.
func (d *direct) put(c *directConn) {
	c.idle = time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.idle) == maxIdleConns {
		c.Close()
		return
	}
	d.idle = append(d.idle, c)
	if d.sweep == nil {
		d.sweep = time.AfterFunc(maxIdle, d.closeOld)
	}
}

// closeOld closes connections that no request has used for long, and comes back if
// there are others.
func (d *direct) closeOld() {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	young := slices.IndexFunc(d.idle, func(c *directConn) bool { return now.Sub(c.idle) < maxIdle })
	if young < 0 {
		young = len(d.idle)
	}
	for _, c := range d.idle[:young] {
		c.Close()
	}
	d.idle = slices.Delete(d.idle, 0, young)
	if d.sweep = nil; len(d.idle) > 0 {
		d.sweep = time.AfterFunc(d.idle[0].idle.Add(maxIdle).Sub(now), d.closeOld)
	}
}

func (d *direct) closeIdle() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range d.idle {
		c.Close()
	}
	d.idle = nil
}

// directConn is a connection to the app.
type directConn struct {
	net.Conn
	r      *bufio.Reader // of answer
	w      *bufio.Writer
	answer limited
	idle   time.Time // since when

	raw    syscall.RawConn
	look   func(fd uintptr) bool // lookOnce
	silent bool                  // what it saw
}

// limited reads an answer, of which only so much may be header.
type limited struct {
	io.Reader
	read int64
	in   bool // the header has not ended
}

var errLargeHeader = fmt.Errorf("the header of the app's answer has more than %d bytes", maxAnswerHeaders)

func (l *limited) Read(p []byte) (int, error) {
	if l.in {
		if l.read >= maxAnswerHeaders {
			return 0, errLargeHeader
		}
		p = p[:min(int64(len(p)), maxAnswerHeaders-l.read)]
	}
	n, err := l.Reader.Read(p)
	l.read += int64(n)
	return n, err
}

// answered reports whether the app has sent anything since it was asked.
func (c *directConn) answered() bool { return c.answer.read > 0 }

// quiet reports whether an idle connection is open and nothing has come on it. What
// comes unasked would be taken for the answer to the next request.
func (c *directConn) quiet() bool {
	c.silent = false
	err := c.raw.Read(c.look)
	return err == nil && c.silent
}

// roundTrip sends a request and reads the answer's header.
func (c *directConn) roundTrip(r *http.Request, timeout time.Duration) (*http.Response, error) {
	if err := c.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return nil, err
	}
	c.answer.read, c.answer.in = 0, true
	if err := r.Write(c.w); err != nil {
		return nil, err
	}
	if err := c.w.Flush(); err != nil {
		return nil, err
	}
	for {
		resp, err := http.ReadResponse(c.r, r)
		switch {
		case err != nil:
			return nil, err
		case resp.StatusCode == http.StatusSwitchingProtocols:
			return nil, errors.New("the app switches to another protocol, unasked")
		case resp.StatusCode < 200:
			if trace := httptrace.ContextClientTrace(r.Context()); trace != nil && trace.Got1xxResponse != nil {
				if err := trace.Got1xxResponse(resp.StatusCode, textproto.MIMEHeader(resp.Header)); err != nil {
					return nil, err
				}
			}
			continue
		}
		c.answer.in = false
		// The answer may take as long as it goes on.
		if resp.Body != http.NoBody && (resp.ContentLength < 0 || resp.ContentLength > int64(c.r.Buffered())) {
			err = c.SetReadDeadline(time.Time{})
		}
		return resp, err
	}
}

// directBody is an answer's body. Its connection goes back when it has been read.
type directBody struct {
	io.Reader // net/http's, whose Close would read what is left
	direct    *direct
	conn      *directConn // nil when it has ended
	ctx       context.Context
	stop      func() bool // the request's end no longer closes the connection
	last      bool        // of the connection
	err       error       // what it ended with
}

// Read implements [io.Reader].
func (b *directBody) Read(p []byte) (int, error) {
	if b.conn == nil {
		return 0, b.err
	}
	n, err := b.Reader.Read(p)
	if err != nil {
		b.end(err)
	}
	return n, b.err
}

// Close implements [io.Closer].
func (b *directBody) Close() error {
	if b.conn != nil {
		b.end(http.ErrBodyReadAfterClose)
	}
	return nil
}

// end keeps the connection for the next request, or closes it, when reading has come
// to an error.
func (b *directBody) end(err error) {
	c := b.conn
	b.conn, b.err = nil, err
	switch {
	case !b.stop(): // the request's end closes it
		if err != io.EOF {
			b.err = b.ctx.Err()
		}
	case err == io.EOF && !b.last && c.r.Buffered() == 0:
		b.direct.put(c)
	default:
		c.Close()
	}
}
