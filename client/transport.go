package client

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/limpet-auth/limpet/internal/outgoing"
	"github.com/limpet-auth/limpet/proof"
)

const (
	maxTries = 3 // how often a request is sent, refusals included
)

type transport struct {
	client *Client
	base   http.RoundTripper
}

// RoundTrip implements [http.RoundTripper].
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL == nil || req.Header == nil {
		return t.base.RoundTrip(req) // which knows what to say to that
	}
	s := t.client.find(originOf(req.URL), req)
	switch {
	case t.client.isLogin(req):
		return t.login(s, req)
	case s == nil:
		return t.base.RoundTrip(req)
	}
	return t.exchange(req, s.wire.digests(), func(out *try) (sent, error) { return s.wire.prove(out) })
}

// CloseIdleConnections is for [http.Client.CloseIdleConnections].
func (t *transport) CloseIdleConnections() {
	if base, ok := t.base.(interface{ CloseIdleConnections() }); ok {
		base.CloseIdleConnections()
	}
}

// try is one sending of a request.
type try struct {
	*http.Request // as it is sent; the caller's own is never changed
	base          http.RoundTripper
	login         bool
	digest        *[sha256.Size]byte                // of the body, where a wire wants that; nil if there is none
	channel       func(http.Header, net.Conn) error // signs once the connection is known; nil if it is signed
}

// exchange sends a request with what prove adds to it, and again where that can
// help.
func (t *transport) exchange(req *http.Request, digests bool, prove func(*try) (sent, error)) (*http.Response, error) {
	given := req
	var digest *[sha256.Size]byte
	if digests {
		var err error
		if req, digest, err = outgoing.Digest(req); err != nil {
			closeBody(given)
			return nil, fmt.Errorf("limpet: client: %w", err)
		}
	}
	body := req.Body
	var refused map[proof.Reason]sent // the first proof that was, for each
	for tries := 1; ; tries++ {
		out := &try{Request: req.Clone(req.Context()), base: t.base, digest: digest}
		out.Body = body
		p, err := prove(out)
		if err != nil {
			closeBody(out.Request)
			return nil, err
		}
		start := time.Now()
		resp, err := out.send()
		if resp != nil {
			resp.Request = given // the caller's, without our headers
		}
		if p == nil {
			return resp, err
		}
		if err := p.answered(resp, err, start); err != nil {
			return nil, err
		}
		if code := resp.StatusCode; code != http.StatusUnauthorized && !(code == http.StatusBadRequest && out.login) {
			return resp, nil
		}
		reason := Reason(resp)
		if reason == "" && out.login {
			return resp, nil // a wrong password, not to be tried twice
		}
		before := refused[reason]
		better := p.remedy(reason, resp, before)
		if before != nil || !better || !rewindable(req) || tries == maxTries {
			return resp, nil
		}
		if refused == nil {
			refused = make(map[proof.Reason]sent, maxTries)
		}
		refused[reason] = p
		io.CopyN(io.Discard, resp.Body, maxPeek) // so that the connection can be used again
		resp.Body.Close()
		if req.GetBody != nil {
			if body, err = req.GetBody(); err != nil {
				return nil, fmt.Errorf("limpet: client: body for another try: %w", err)
			}
		}
	}
}

func (out *try) send() (*http.Response, error) {
	if out.channel != nil {
		return outgoing.OnConn(out.base, out.Request, out.channel)
	}
	return out.base.RoundTrip(out.Request)
}

// rewindable reports whether a request's body can be read once more.
func rewindable(req *http.Request) bool {
	return req.Body == nil || req.Body == http.NoBody || req.GetBody != nil
}

func closeBody(req *http.Request) {
	if req.Body != nil {
		req.Body.Close()
	}
}
