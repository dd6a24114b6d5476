package gateway

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/limpet-auth/limpet/internal/relay"
)

// direct sends requests to an app that speaks plain HTTP, and reads its answers, on
// the goroutine of the one who asks. [http.Transport] hands each request to one
// goroutine and its answer to another: for most requests that is a fifth of all that
// a proxy does. What is written and read is net/http's as well.
type direct struct {
	addr    string
	dial    func(ctx context.Context, network, addr string) (net.Conn, error)
	timeout time.Duration // from the request's end to that of the answer's header
	unasked func()        // is told when the app says something that nobody asked for

	mu      sync.Mutex
	idle    []*directConn // those that were used last come last
	sweep   *time.Timer   // runs while there are any
	waiting []chan opened // for a connection: one that is made for them, or one that is free before
	closed  bool          // no request has come since closeIdle
}

// opened is a connection, or why there is none.
type opened struct {
	conn *directConn
	err  error
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

// takes reports whether a request is one of those that get one answer, when they have
// been sent.
func (d *direct) takes(r *http.Request) bool {
	return r.Header["Upgrade"] == nil && r.Header["Expect"] == nil
}

// RoundTrip implements [http.RoundTripper].
func (d *direct) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := checkFields(r); err != nil {
		return notSent(r, err)
	}
	ctx := r.Context()
	for {
		c, err := d.get(ctx)
		if err != nil {
			return notSent(r, err)
		}
		stop := context.AfterFunc(ctx, func() { c.Close() })
		resp, err := c.roundTrip(r, d.timeout)
		if err == nil {
			body := &directBody{Reader: resp.Body, direct: d, conn: c, ctx: ctx, stop: stop, last: resp.Close || r.Close}
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
		if !c.used || c.answer.begun || !repeatable(r) || !ended(err) {
			return nil, err
		}
	}
}

func notSent(r *http.Request, err error) (*http.Response, error) {
	if r.Body != nil {
		r.Body.Close()
	}
	return nil, err
}

// checkFields refuses what would be another field, or another value, for the app.
// What came from the network is none of that.
func checkFields(r *http.Request) error {
	for _, fields := range []http.Header{r.Header, r.Trailer} {
		for name, values := range fields {
			if !httpguts.ValidHeaderFieldName(name) {
				return fmt.Errorf("%.40q cannot be the name of a field", name)
			}
			for _, value := range values {
				if !httpguts.ValidHeaderFieldValue(value) {
					return fmt.Errorf("the value of %s cannot be sent", name)
				}
			}
		}
	}
	return nil
}

// repeatable reports whether it does no harm if an app gets a request twice (RFC 9110,
// 9.2.2).
func repeatable(r *http.Request) bool {
	return r.Body == nil && (r.Method == http.MethodGet || r.Method == http.MethodHead || r.Method == http.MethodOptions)
}

// ended reports whether an error says that the connection was no more.
func ended(err error) bool {
	var op *net.OpError
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &op) && !errors.Is(err, os.ErrDeadlineExceeded)
}

// get returns an idle connection, or the first that is free or made from now on.
func (d *direct) get(ctx context.Context) (*directConn, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		d.mu.Lock()
		d.closed = false
		c := d.pop()
		var wait chan opened
		if c == nil {
			wait = make(chan opened, 1)
			d.waiting = append(d.waiting, wait)
		}
		d.mu.Unlock()
		if c == nil {
			go d.open(wait)
			select {
			case o := <-wait:
				if o.err != nil {
					return nil, o.err
				}
				c = o.conn
			case <-ctx.Done():
				d.forget(wait)
				return nil, ctx.Err()
			}
		}
		if !c.used || c.quiet() {
			return c, nil
		}
		d.drop(c)
	}
}

// pop takes an idle connection. The caller holds the lock.
func (d *direct) pop() *directConn {
	n := len(d.idle)
	if n == 0 || time.Since(d.idle[n-1].idle) >= maxIdle {
		return nil
	}
	c := d.idle[n-1]
	d.idle[n-1] = nil
	d.idle = d.idle[:n-1]
	return c
}

// open makes a connection for whoever waits.
func (d *direct) open(wait chan opened) {
	c, err := d.connect()
	d.mu.Lock()
	if i := slices.Index(d.waiting, wait); i >= 0 {
		d.waiting = slices.Delete(d.waiting, i, i+1)
		wait <- opened{c, err}
		c = nil
	}
	d.mu.Unlock()
	if c != nil { // for another one
		d.put(c)
	}
}

func (d *direct) connect() (*directConn, error) {
	to, err := d.dial(context.Background(), "tcp", d.addr)
	if err != nil {
		return nil, err
	}
	c := &directConn{Conn: to, w: bufio.NewWriter(pieces{to})}
	if c.raw, err = rawOf(to); err != nil {
		to.Close()
		return nil, err
	}
	c.answer.Reader = to
	c.r = bufio.NewReader(&c.answer)
	c.look = c.lookOnce
	return c, nil
}

// forget is for who does not wait any more.
func (d *direct) forget(wait chan opened) {
	d.mu.Lock()
	if i := slices.Index(d.waiting, wait); i >= 0 {
		d.waiting = slices.Delete(d.waiting, i, i+1)
		wait <- opened{}
	}
	d.mu.Unlock()
	if o := <-wait; o.conn != nil {
		d.put(o.conn)
	}
}

// put hands a connection to who has waited longest, or keeps it.
func (d *direct) put(c *directConn) {
	c.used, c.idle = true, time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case len(d.waiting) > 0:
		d.waiting[0] <- opened{conn: c}
		d.waiting = slices.Delete(d.waiting, 0, 1)
	case d.closed || len(d.idle) == maxIdleConns:
		c.Close()
	default:
		d.idle = append(d.idle, c)
		if d.sweep == nil {
			d.sweep = time.AfterFunc(maxIdle, d.closeOld)
		}
	}
}

// lend gives an idle connection to [http.Transport], for requests that are not taken:
// an app may have a thread for each connection, and no more than it has threads.
func (d *direct) lend(ctx context.Context, network, addr string) (net.Conn, error) {
	d.mu.Lock()
	c := d.pop()
	d.mu.Unlock()
	if c != nil {
		if c.quiet() && c.SetReadDeadline(time.Time{}) == nil {
			return c.Conn, nil
		}
		d.drop(c)
	}
	return d.dial(ctx, network, addr)
}

// closeOld closes connections that no request has used for long, and comes back if
// there are others.
func (d *direct) closeOld() {
	d.mu.Lock()
	now := time.Now()
	young := slices.IndexFunc(d.idle, func(c *directConn) bool { return now.Sub(c.idle) < maxIdle })
	if young < 0 {
		young = len(d.idle)
	}
	old := slices.Clone(d.idle[:young])
	d.idle = slices.Delete(d.idle, 0, young)
	if d.sweep = nil; len(d.idle) > 0 {
		d.sweep = time.AfterFunc(d.idle[0].idle.Add(maxIdle).Sub(now), d.closeOld)
	}
	d.mu.Unlock()
	for _, c := range old {
		c.quiet()
		d.drop(c)
	}
}

// drop closes a connection that is not as one should be when it is idle, or has been idle
// for long.
func (d *direct) drop(c *directConn) {
	c.Close()
	if c.spoke || c.r.Buffered() > 0 {
		d.unasked()
	}
}

// closeIdle closes connections that no request uses, and until the next request those
// that become idle.
func (d *direct) closeIdle() {
	d.mu.Lock()
	idle := d.idle
	d.idle, d.closed = nil, true
	d.mu.Unlock()
	for _, c := range idle {
		c.Close()
	}
}

// directConn is a connection to the app.
type directConn struct {
	net.Conn
	r      *bufio.Reader // of answer
	w      *bufio.Writer
	answer answer
	sent   chan error // how the sending of a body ended; nil if there is none
	used   bool       // before
	idle   time.Time  // since when

	mu        sync.Mutex
	answering bool // there is no hurry any more

	raw    syscall.RawConn
	look   func(fd uintptr) bool // lookOnce
	silent bool                  // what it saw: nothing
	spoke  bool                  // or something
}

// answer reads what the app sends.
type answer struct {
	io.Reader
	header int64 // how much more a header may have
	begun  bool
}

var errLargeHeader = fmt.Errorf("the header of the app's answer has more than %d bytes", maxAnswerHeaders)

func (a *answer) Read(p []byte) (int, error) {
	if a.header <= 0 {
		return 0, errLargeHeader
	}
	n, err := a.Reader.Read(p[:min(int64(len(p)), a.header)])
	a.header -= int64(n)
	a.begun = a.begun || n > 0
	return n, err
}

// pieces writes bodies in larger pieces than a header is written in.
type pieces struct{ net.Conn }

// ReadFrom implements [io.ReaderFrom].
func (p pieces) ReadFrom(body io.Reader) (int64, error) {
	buf := relay.Buffers.Get()
	defer relay.Buffers.Put(buf)
	return io.CopyBuffer(struct{ io.Writer }{p.Conn}, struct{ io.Reader }{body}, buf)
}

// quiet reports whether an idle connection is open and nothing has come on it. What
// comes unasked would be taken for the answer to the next request.
func (c *directConn) quiet() bool {
	c.silent, c.spoke = false, false
	err := c.raw.Read(c.look)
	return err == nil && c.silent
}

// roundTrip sends a request and reads the answer's header. An answer may come before
// the whole body was sent.
func (c *directConn) roundTrip(r *http.Request, timeout time.Duration) (*http.Response, error) {
	c.answer.header, c.answer.begun, c.answering, c.sent = maxAnswerHeaders, false, false, nil
	var failed error
	if r.Body == nil {
		if failed = c.send(r, timeout); failed != nil {
			c.giveUp(failed)
		}
	} else {
		if err := c.SetReadDeadline(time.Time{}); err != nil {
			r.Body.Close()
			return nil, err
		}
		sent := make(chan error, 1)
		c.sent = sent
		go func() {
			err := c.send(r, timeout)
			if sent <- err; err != nil {
				c.giveUp(err)
			}
		}()
	}
	resp, err := c.receive(r)
	if err == nil {
		return resp, nil
	}
	select {
	case failed = <-c.sent:
	default:
	}
	if failed != nil {
		return nil, failed
	}
	return nil, err
}

// send writes the request. From then on the app has its time.
func (c *directConn) send(r *http.Request, timeout time.Duration) error {
	var body *sentBody
	if r.Body != nil {
		with := *r
		body = &sentBody{ReadCloser: r.Body}
		with.Body, r = body, &with
	}
	err := r.Write(c.w)
	if err == nil {
		err = c.w.Flush()
	}
	switch {
	case err == nil:
		c.hurry(timeout)
	case body != nil && body.err != nil:
		return body.err
	}
	return err
}

// sentBody knows what reading it failed with: what net/http makes of that does not
// unwrap.
type sentBody struct {
	io.ReadCloser
	err error
}

// Read implements [io.Reader].
func (b *sentBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		b.err = err
	}
	return n, err
}

// giveUp is for a request that could not be sent. If it is the app that takes no more
// of it, its answer may be there.
func (c *directConn) giveUp(err error) {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "write" {
		c.hurry(maxWait)
	} else {
		c.Close()
	}
}

// maxWait is how long the other half of an exchange may take when the one has ended.
const maxWait = 50 * time.Millisecond

// hurry sets how long the app may take until its answer begins.
func (c *directConn) hurry(timeout time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.answering {
		c.SetReadDeadline(time.Now().Add(timeout))
	}
}

func (c *directConn) receive(r *http.Request) (*http.Response, error) {
	for {
		resp, err := http.ReadResponse(c.r, r)
		switch {
		case err != nil:
			return nil, err
		case resp.StatusCode < 100 || resp.StatusCode == http.StatusSwitchingProtocols:
			return nil, fmt.Errorf("the app answers with status %d", resp.StatusCode)
		case resp.StatusCode < 200:
			if trace := httptrace.ContextClientTrace(r.Context()); trace != nil && trace.Got1xxResponse != nil {
				if err := trace.Got1xxResponse(resp.StatusCode, textproto.MIMEHeader(resp.Header)); err != nil {
					return nil, err
				}
			}
			c.answer.header = maxAnswerHeaders
			continue
		}
		c.answer.header = math.MaxInt64
		c.mu.Lock()
		defer c.mu.Unlock()
		c.answering = true
		if resp.Body != http.NoBody && (resp.ContentLength < 0 || resp.ContentLength > int64(c.r.Buffered())) {
			err = c.SetReadDeadline(time.Time{}) // it may take as long as it goes on
		}
		return resp, err
	}
}

// wrote reports whether the whole request was sent.
func (c *directConn) wrote() bool {
	if c.sent == nil {
		return true
	}
	select {
	case err := <-c.sent:
		return err == nil
	case <-time.After(maxWait):
		return false
	}
}

// directBody is an answer's body. Its connection goes back when it has been read.
type directBody struct {
	io.Reader // net/http's, whose Close would read what is left
	direct    *direct
	conn      *directConn
	ctx       context.Context
	stop      func() bool // the request's end no longer closes the connection
	last      bool        // of the connection

	mu  sync.Mutex
	err error // what it ended with
}

// Read implements [io.Reader].
func (b *directBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	err := b.err
	b.mu.Unlock()
	if err != nil {
		return 0, err
	}
	n, err := b.Reader.Read(p)
	if err != nil {
		err = b.end(err)
	}
	return n, err
}

// Close implements [io.Closer].
func (b *directBody) Close() error {
	b.end(http.ErrBodyReadAfterClose)
	return nil
}

// end keeps the connection for the next request, or closes it, when reading has come
// to an error. It returns what the body ended with.
func (b *directBody) end(err error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return b.err
	}
	b.err = err
	switch c := b.conn; {
	case !b.stop(): // the request's end closes it
		if err != io.EOF {
			b.err = b.ctx.Err()
		}
	case err == io.EOF && !b.last && c.r.Buffered() > 0:
		b.direct.drop(c)
	case err == io.EOF && !b.last && c.wrote():
		b.direct.put(c)
	default:
		c.Close()
	}
	return b.err
}
