package outgoing

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync"
	"time"

	"github.com/limpet-auth/limpet/internal/weakmap"
)

const (
	maxMoves = 16                     // times that one request is begun, as connections break
	maxPause = 250 * time.Millisecond // between them
)

// errMoved calls a request back that was about to go out on another connection
// than it is signed for.
var errMoved = errors.New("connections break before the request is sent")

// OnConn sends a request with base once sign has signed it for the TLS
// connection that it goes out on: sign adds to its header. The error is sign's,
// base's, or says that connections break. base must be an [http.Transport] or
// give it the request as it is.
//
// net/http tells the connection before it reads the headers, in the goroutine
// of RoundTrip. But it may try another one, and then a goroutine of the first
// may still be reading them. So headers are written once, for the first
// connection. A request that net/http moves to another, which it does only with
// what nobody has acted on, is called back before it is sent, and begun anew
// from here.
func OnConn(base http.RoundTripper, req *http.Request, sign func(http.Header, net.Conn) error) (*http.Response, error) {
	body := req.Body
	for moves := 1; ; moves++ {
		a := &attempt{sign: sign}
		ctx, cancel := context.WithCancelCause(req.Context())
		a.cancel = cancel
		a.req = req.Clone(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: a.gotConn}))
		a.req.Body = body
		resp, err := base.RoundTrip(a.req)
		moved, failed := a.outcome()
		if err == nil {
			resp.Body = cancelAtClose(resp.Body, cancel)
			return resp, nil
		}
		cancel(nil)
		switch {
		case failed != nil:
			return nil, failed
		case !moved || req.Context().Err() != nil:
			return nil, err
		case moves == maxMoves: // err says only that the context ended, which was us
			return nil, fmt.Errorf("limpet: %s: %w", req.URL.Host, errMoved)
		}
		// The one that broke may be handed out for a moment yet.
		select {
		case <-time.After(min((time.Millisecond/4)<<moves, maxPause)):
		case <-req.Context().Done():
			return nil, context.Cause(req.Context())
		}
		if req.GetBody != nil {
			if body, err = req.GetBody(); err != nil {
				return nil, fmt.Errorf("limpet: body for another connection: %w", err)
			}
		}
	}
}

// attempt is a request that is signed for one connection.
type attempt struct {
	sign   func(http.Header, net.Conn) error
	req    *http.Request
	cancel context.CancelCauseFunc

	mu     sync.Mutex
	conn   net.Conn // that it is signed for; nil if it is not
	moved  bool
	failed error
}

// gotConn is called for each connection that the request is to go out on.
func (a *attempt) gotConn(info httptrace.GotConnInfo) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch conn, usual := info.Conn.(*tls.Conn); {
	case a.conn == nil && a.failed == nil:
		if a.failed = a.sign(a.req.Header, info.Conn); a.failed != nil {
			a.callBack(info.Conn, a.failed)
			return
		}
		a.conn = info.Conn
	case usual && a.conn == net.Conn(conn) && !a.moved: // the one that it is signed for, once more
	default:
		a.moved = true
		a.callBack(info.Conn, errMoved)
	}
}

// callBack keeps the request from being sent on a connection. HTTP/2 looks at
// the context before it sends. HTTP/1.1 does not, and its connection is for this
// one request.
func (a *attempt) callBack(conn net.Conn, why error) {
	a.cancel(why)
	if c, ok := conn.(interface{ ConnectionState() tls.ConnectionState }); ok && c.ConnectionState().NegotiatedProtocol == "h2" {
		return
	}
	if c, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = c.NetConn() // closed without a farewell, which could block
	}
	conn.Close()
}

func (a *attempt) outcome() (moved bool, failed error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.moved, a.failed
}

// cancelAtClose returns body, which may be a stream in both directions, with a
// context that ends when it is closed.
func cancelAtClose(body io.ReadCloser, cancel context.CancelCauseFunc) io.ReadCloser {
	if both, ok := body.(io.ReadWriteCloser); ok {
		return &canceling{both, both, cancel}
	}
	return struct{ io.ReadCloser }{&canceling{body, nil, cancel}}
}

type canceling struct {
	io.ReadCloser
	io.Writer
	cancel context.CancelCauseFunc
}

func (c *canceling) Close() error {
	err := c.ReadCloser.Close()
	c.cancel(nil)
	return err
}

// PerConn keeps a value for each TLS connection for as long as somebody keeps the
// connection, which the value must not. It is safe for concurrent use.
type PerConn[V any] struct{ values weakmap.Map[tls.Conn, V] }

// Of returns the value of a connection, which create makes when it is first
// asked for. Of a connection that is not a *tls.Conn it is made each time.
func (p *PerConn[V]) Of(conn net.Conn, create func() (V, error)) (V, error) {
	usual, ok := conn.(*tls.Conn)
	if !ok {
		return create()
	}
	return p.values.Of(usual, func(*tls.Conn) (V, error) { return create() })
}
