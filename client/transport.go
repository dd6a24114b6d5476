package client

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/limpet-auth/limpet/proof"
)

// maxTries is how often a request is sent, refusals included.
const maxTries = 3

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
	return t.prove(s, req, nil)
}

// CloseIdleConnections is for [http.Client.CloseIdleConnections].
func (t *transport) CloseIdleConnections() {
	if base, ok := t.base.(interface{ CloseIdleConnections() }); ok {
		base.CloseIdleConnections()
	}
}

// try is one sending of a request.
type try struct {
	*http.Request               // as it is sent; the caller's own is never changed
	lease         *lease        // what proves it,
	intro         *introduction // or introduces itself with it
	answered      bool          // the introduction got a lease
	hashed        bool          // the proof is for the hash of the body
}

// prove sends a request with more headers and a proof for s, without one if s
// is nil, and again where that can help.
func (t *transport) prove(s *session, req *http.Request, more http.Header) (*http.Response, error) {
	body := req.Body
	var seen []proof.Reason
	prehash := s != nil && s.site.prehash.Load()
	for {
		out := &try{Request: req.Clone(req.Context())}
		out.Body = body
		maps.Copy(out.Header, more)
		if s == nil {
			return t.send(out, req)
		}
		if err := s.prove(out); err != nil {
			closeBody(out.Request)
			return nil, err
		}
		start := time.Now()
		resp, err := t.send(out, req)
		if out.intro != nil {
			err = s.introduced(out, resp, err, start)
		}
		if err != nil {
			return nil, err
		}
		if resp.StatusCode != http.StatusUnauthorized {
			return resp, nil
		}
		reason := Reason(resp)
		if reason == "" && more != nil {
			return resp, nil // a login with a wrong password, not to be tried twice
		}
		if slices.Contains(seen, reason) {
			if reason == "" {
				s.misguessed(prehash)
			}
			return resp, nil
		}
		seen = append(seen, reason)
		if !s.remedy(reason, out, resp) || !rewindable(req) || len(seen) == maxTries {
			return resp, nil
		}
		io.CopyN(io.Discard, resp.Body, maxPeek) // so that the connection can be used again
		resp.Body.Close()
		if req.GetBody != nil {
			if body, err = req.GetBody(); err != nil {
				return nil, fmt.Errorf("limpet: client: body for another try: %w", err)
			}
		}
	}
}

func (t *transport) send(out *try, req *http.Request) (*http.Response, error) {
	resp, err := t.base.RoundTrip(out.Request)
	if resp != nil {
		resp.Request = req // the caller's, without our headers
	}
	return resp, err
}

// prove adds the proof to a request.
func (s *session) prove(out *try) (err error) {
	if out.lease, out.intro, err = s.key(out.Context()); err != nil {
		return err
	}
	var value, sig []byte
	if value, err = s.value(out); err == nil {
		if out.intro != nil {
			sig, err = out.intro.prove(value)
		} else {
			sig, err = out.lease.prove(value)
		}
	}
	if err != nil {
		if out.intro != nil {
			s.settle(out.intro, nil, false)
		}
		return fmt.Errorf("limpet: client: %s: %w", s.origin, err)
	}
	h, names := out.Header, s.client.names()
	h[names.Data] = []string{string(value)}
	h[names.DataSig] = []string{base64.StdEncoding.EncodeToString(sig)}
	if out.intro == nil {
		h[names.EphemeralID] = []string{out.lease.id}
		return nil
	}
	h[names.EphemeralKey] = []string{out.intro.key}
	h[names.EphemeralType] = []string{out.intro.typeName}
	h[names.EphemeralSig] = []string{out.intro.sig}
	return nil
}

// value returns what the proof is made for: the server's time in seconds, "-",
// and 32 random bytes or the hash of the body, in hex.
func (s *session) value(out *try) ([]byte, error) {
	var tail [sha256.Size]byte
	rand.Read(tail[:]) // never fails
	if out.hashed = rewindable(out.Request) && s.wantsHash(out.Request); out.hashed {
		h := sha256.New()
		if out.GetBody != nil {
			body, err := out.GetBody()
			if err != nil {
				return nil, fmt.Errorf("body for its hash: %w", err)
			}
			_, err = io.Copy(h, body)
			body.Close()
			if err != nil {
				return nil, fmt.Errorf("body for its hash: %w", err)
			}
		}
		h.Sum(tail[:0])
	}
	value := strconv.AppendInt(nil, s.site.now().Unix(), 10)
	return hex.AppendEncode(append(value, '-'), tail[:]), nil
}

// introduced settles the introduction in a request that was answered with resp
// or failed with err.
func (s *session) introduced(out *try, resp *http.Response, err error, start time.Time) error {
	if err != nil {
		s.settle(out.intro, nil, false)
		return err
	}
	a, err := parseAnswer(resp.Header, s.client.names(), s.site.now(), time.Since(start))
	var l *lease
	if err == nil && a != nil {
		l = &lease{id: a.id, prove: out.intro.prove, start: start, life: a.life}
		if out.intro.agree != nil && a.server == nil {
			err = errors.New("the server's half of the key agreement is missing")
		} else if out.intro.agree != nil {
			l.prove, err = out.intro.agree(a.server)
		}
	}
	if err != nil {
		s.settle(out.intro, nil, false)
		resp.Body.Close()
		return fmt.Errorf("limpet: client: %s: the server's answer to a new ephemeral key: %w", s.origin, err)
	}
	out.answered = l != nil
	s.settle(out.intro, l, l == nil)
	return nil
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
