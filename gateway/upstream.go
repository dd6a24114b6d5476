package gateway

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"time"

	"github.com/limpet-auth/limpet/internal/relay"
)

const (
	// Some servers close idle connections after two seconds. A request with a body
	// that meets the end of its connection could not be sent again.
	maxIdle = time.Second

	maxIdleConns     = 1024
	maxAnswerHeaders = 1 << 20 // bytes
)

func newTransport(timeout time.Duration) *http.Transport {
	dialer := &net.Dialer{Timeout: 10 * time.Second}
	return &http.Transport{
		// ResponseHeaderTimeout begins when the app has taken the body. One that
		// takes none would hold its clients' connections, also of those long gone.
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := dialer.DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return &relay.Conn{Conn: c}, nil
		},
		TLSHandshakeTimeout:    10 * time.Second,
		ResponseHeaderTimeout:  timeout,
		ExpectContinueTimeout:  time.Second,
		ForceAttemptHTTP2:      true,
		MaxIdleConns:           maxIdleConns,
		MaxIdleConnsPerHost:    maxIdleConns,
		IdleConnTimeout:        maxIdle,
		DisableCompression:     true, // answers pass as they are
		MaxResponseHeaderBytes: maxAnswerHeaders,
	}
}

// upstream sends requests to the app.
type upstream struct {
	*http.Transport
	direct *direct // for all that it takes; nil if it cannot be
}

func newUpstream(to *url.URL, timeout time.Duration, logger *slog.Logger) upstream {
	u := upstream{Transport: newTransport(timeout)}
	if addr := directAddr(to); addr != "" {
		u.direct = &direct{addr: addr, dial: u.DialContext, timeout: timeout, unasked: func() {
			// Not what it says: perhaps an answer with somebody's session in it.
			logger.Warn("limpet: gateway: the app says something that nobody asked for: perhaps it leaves bodies unread and takes them for requests")
		}}
		u.DialContext, u.DisableKeepAlives = u.direct.lend, true // one of them keeps connections
	}
	return u
}

// RoundTrip implements [http.RoundTripper]. Informational answers go to the client
// before anything is bound: they must not set cookies.
func (u upstream) RoundTrip(r *http.Request) (*http.Response, error) {
	if trace := httptrace.ContextClientTrace(r.Context()); trace != nil && trace.Got1xxResponse != nil {
		next := trace.Got1xxResponse // the reverse proxy's, made for this request
		trace.Got1xxResponse = func(code int, header textproto.MIMEHeader) error {
			if code == http.StatusContinue {
				return nil // the server says it when the body is read, and would say it twice
			}
			header.Del("Set-Cookie")
			return next(code, header)
		}
	}
	if u.direct != nil && u.direct.takes(r) {
		return u.direct.RoundTrip(r)
	}
	return u.Transport.RoundTrip(r)
}

// CloseIdleConnections closes the connections to the app that no request uses.
func (u upstream) CloseIdleConnections() {
	u.Transport.CloseIdleConnections()
	if u.direct != nil {
		u.direct.closeIdle()
	}
}
