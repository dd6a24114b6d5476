package client

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
	"weak"

	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/httpsig"
)

const (
	maxMoves    = 16                     // times that one request is begun, as connections break
	maxPause    = 250 * time.Millisecond // between them
	maxChannels = 64                     // keys that an agreement keeps, one for each connection
)

// channelSigner signs a request once its TLS connection is known, with the key
// that the agreement becomes there (RFC 5705, RFC 9266).
//
// net/http tells the connection before it reads the headers, in the goroutine
// of RoundTrip. But it may try another one, and then a goroutine of the first
// may still be reading them. So headers are written once, for the first
// connection. A request that net/http moves to another, which it does only with
// what nobody has acted on, is called back before it is sent, and begun anew
// from here.
type channelSigner struct {
	site      *site
	agreement *agreement
	message   *proof.Message // but for its Header
}

// errMoved calls a request back that was about to go out on another connection
// than it is signed for.
var errMoved = errors.New("connections break before the request is sent")

func (c *channelSigner) send(out *try) (*http.Response, error) {
	body := out.Body
	for moves := 1; ; moves++ {
		a := &attempt{signer: c}
		ctx, cancel := context.WithCancelCause(out.Context())
		a.cancel = cancel
		a.req = out.Request.Clone(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: a.gotConn}))
		a.req.Body = body
		resp, err := out.base.RoundTrip(a.req)
		moved, failed := a.outcome()
		if err == nil {
			resp.Body = cancelAtClose(resp.Body, cancel)
			return resp, nil
		}
		cancel(nil)
		switch {
		case failed != nil:
			return nil, fmt.Errorf("limpet: client: %s: key of the TLS connection: %w", c.site.origin, failed)
		case !moved || out.Context().Err() != nil:
			return nil, err
		case moves == maxMoves: // err says only that the context ended, which was us
			return nil, fmt.Errorf("limpet: client: %s: %w", c.site.origin, errMoved)
		}
		// The one that broke may be handed out for a moment yet.
		select {
		case <-time.After(min((time.Millisecond/4)<<moves, maxPause)):
		case <-out.Context().Done():
			return nil, context.Cause(out.Context())
		}
		if out.GetBody != nil {
			if body, err = out.GetBody(); err != nil {
				return nil, fmt.Errorf("limpet: client: body for another connection: %w", err)
			}
		}
	}
}

// attempt is a request that is signed for one connection.
type attempt struct {
	signer *channelSigner
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
		if a.failed = a.signer.sign(a.req.Header, info.Conn); a.failed != nil {
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

func (c *channelSigner) sign(h http.Header, conn net.Conn) error {
	key, err := c.agreement.channels.key(c.agreement.mac, conn)
	if err != nil {
		return err
	}
	m := *c.message
	m.Header = h
	return sign(&m, c.site.now(), c.agreement.keyID, c.agreement.Algorithm, func(base []byte) ([]byte, error) {
		return key.Append(nil, base), nil
	})
}

// channels keeps what an agreed key becomes on its connections, without keeping
// these.
type channels struct {
	mu   sync.Mutex
	keys map[weak.Pointer[tls.Conn]]*proof.MACKey
}

func (c *channels) key(agreed *proof.MACKey, conn net.Conn) (*proof.MACKey, error) {
	over, ok := conn.(interface{ ConnectionState() tls.ConnectionState })
	if !ok {
		return nil, errors.New("the connection is not a TLS one")
	}
	var name weak.Pointer[tls.Conn]
	usual, ok := conn.(*tls.Conn)
	if ok {
		name = weak.Make(usual)
		c.mu.Lock()
		key := c.keys[name]
		c.mu.Unlock()
		if key != nil {
			return key, nil
		}
	}
	state := over.ConnectionState()
	exported, err := state.ExportKeyingMaterial(httpsig.ExporterLabel, nil, 32)
	if err != nil {
		return nil, err
	}
	defer clear(exported)
	key := agreed.OnChannel(exported)
	if !ok {
		return key, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.keys == nil {
		c.keys = make(map[weak.Pointer[tls.Conn]]*proof.MACKey)
	}
	for other := range c.keys {
		if other.Value() == nil {
			delete(c.keys, other)
		}
	}
	for other := range c.keys { // any one will do: map order is random
		if len(c.keys) < maxChannels {
			break
		}
		delete(c.keys, other)
	}
	c.keys[name] = key
	return key, nil
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
