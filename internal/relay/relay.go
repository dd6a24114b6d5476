// Package relay has what those need who pass requests on: a server and
// connections whose peers may take their time but not stand still, and bodies
// on their way.
package relay

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	stall      = time.Minute // how long a peer may take to send or take the next bytes of a body
	maxHeaders = 32 << 10    // bytes of a request's header
)

// NewServer returns a server that sets no limit on how long a request or its
// answer takes, as long as they go on. Serve it on a [Listener]'s connections.
func NewServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    maxHeaders,
		HTTP2:             &http.HTTP2Config{SendPingTimeout: stall, WriteByteTimeout: stall},
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug), // noise of the network
	}
}

// Listener returns a listener whose connections end if their peer takes no bytes
// for a minute. TLS goes on top of it.
func Listener(l net.Listener) net.Listener { return &listener{l} }

type listener struct{ net.Listener }

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &Conn{Conn: c}, nil
}

// Conn is a connection that ends if its peer takes no bytes for a minute, or an
// eighth less: to set a deadline costs more than to see that it is far enough away.
type Conn struct {
	net.Conn
	armed atomic.Int64 // when the deadline was set, in nanoseconds since began; 0 if it is not ours
}

var began = time.Now()

// Write implements [net.Conn].
func (c *Conn) Write(p []byte) (int, error) {
	now := time.Now()
	since := int64(now.Sub(began))
	if armed := c.armed.Load(); armed == 0 || since-armed > int64(stall/8) {
		c.Conn.SetWriteDeadline(now.Add(stall))
		c.armed.Store(since)
	}
	return c.Conn.Write(p)
}

// SetDeadline implements [net.Conn]. The next Write sets its own.
func (c *Conn) SetDeadline(t time.Time) error {
	c.armed.Store(0)
	return c.Conn.SetDeadline(t)
}

// SetWriteDeadline implements [net.Conn], as SetDeadline does.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.armed.Store(0)
	return c.Conn.SetWriteDeadline(t)
}

// CloseWrite lets net/http end a connection so that its last answer arrives.
func (c *Conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// Upload is a request's body on its way. It ends if the client sends nothing for
// a minute, and hands on the trailers that come behind it.
type Upload struct {
	io.ReadCloser
	Trailer http.Header // the outgoing request's; nil if it has none

	control *http.ResponseController
	request *http.Request
	armed   time.Time
	stalled atomic.Bool
	broken  atomic.Bool
}

// NewUpload returns the body of a request that w answers. Answers may begin
// before the body has ended.
func NewUpload(w http.ResponseWriter, r *http.Request) *Upload {
	u := &Upload{ReadCloser: r.Body, control: http.NewResponseController(w), request: r}
	u.control.EnableFullDuplex() // else an early answer waits for the body; only HTTP/1 needs it
	return u
}

// Stalled reports whether the client has sent nothing for too long.
func (u *Upload) Stalled() bool { return u.stalled.Load() }

// Broken reports whether the body ended with an error, of the client's making.
func (u *Upload) Broken() bool { return u.broken.Load() }

// Read implements [io.Reader].
func (u *Upload) Read(p []byte) (int, error) {
	if now := time.Now(); now.Sub(u.armed) > stall/8 {
		u.control.SetReadDeadline(now.Add(stall)) // not every ResponseWriter can
		u.armed = now
	}
	n, err := u.ReadCloser.Read(p)
	if err == nil {
		return n, nil
	}
	u.broken.Store(err != io.EOF)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		u.stalled.Store(true)
	} else if u.request.Context().Err() == nil {
		u.control.SetReadDeadline(time.Time{}) // the answer may take longer
	}
	for name := range u.Trailer {
		u.Trailer[name] = u.request.Trailer[name]
	}
	return n, err
}

// Buffers are those that a httputil.ReverseProxy copies bodies through.
var Buffers bufferPool

type bufferPool struct{ pool sync.Pool }

const bufferSize = 32 << 10

func (p *bufferPool) Get() []byte {
	if b, ok := p.pool.Get().(*[bufferSize]byte); ok {
		return b[:]
	}
	return make([]byte, bufferSize)
}

func (p *bufferPool) Put(b []byte) { p.pool.Put((*[bufferSize]byte)(b)) }
