// Package outgoing has what signed requests need on their way out: the request
// as the server will see it, the digest of its body, and the TLS connection
// that it goes out on.
package outgoing

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"

	"github.com/limpet-auth/limpet/proof"
)

// maxMemory is how many bytes of a body are kept in memory to be read again.
const maxMemory = 1 << 20

// Message returns a request as the server will see it. digest is that of its
// body, nil if it has none. The message shares the request's header. A host with
// the zone of an IPv6 address (RFC 6874, 4) is set without it: net/http sends the
// zone over HTTP/2, and over HTTP/1.1 it does not.
func Message(req *http.Request, digest *[sha256.Size]byte) *proof.Message {
	m := &proof.Message{
		Method:  req.Method,
		Scheme:  strings.ToLower(req.URL.Scheme),
		Header:  req.Header,
		HasBody: digest != nil,
		Body:    digest,
	}
	if m.Method == "" {
		m.Method = http.MethodGet
	}
	host := req.Host
	if host == "" {
		host = req.URL.Host
	}
	bare := withoutZone(host)
	if bare != host {
		req.Host = bare
	}
	m.Authority = proof.Authority(m.Scheme, bare)
	m.Path, m.RawQuery, _ = strings.Cut(req.URL.RequestURI(), "?")
	return m
}

// withoutZone returns a host without the zone of an IPv6 address.
func withoutZone(host string) string {
	from, to := strings.IndexByte(host, '%'), strings.IndexByte(host, ']')
	if from < 0 || to < from || host[0] != '[' {
		return host
	}
	return host[:from] + host[to:]
}

// ThisMachine reports whether a host is this machine; names under localhost never
// leave it (RFC 6761, 6.3).
func ThisMachine(host string) bool {
	host = strings.ToLower(host)
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}

// Digest returns the SHA-256 of a request's body, nil if it has none, and
// the request with a body that can be read again.
func Digest(req *http.Request) (*http.Request, *[sha256.Size]byte, error) {
	if req.Body == nil || req.Body == http.NoBody {
		return req, nil, nil
	}
	if req.GetBody != nil {
		body, err := req.GetBody()
		if err != nil {
			return nil, nil, fmt.Errorf("body for its digest: %w", err)
		}
		defer body.Close()
		h := sha256.New()
		if _, err := io.Copy(h, body); err != nil {
			return nil, nil, fmt.Errorf("body for its digest: %w", err)
		}
		return req, (*[sha256.Size]byte)(h.Sum(nil)), nil
	}
	if req.ContentLength > maxMemory {
		return nil, nil, errBodyOnce
	}
	data, err := io.ReadAll(io.LimitReader(req.Body, maxMemory+1))
	if err != nil {
		return nil, nil, fmt.Errorf("body for its digest: %w", err)
	}
	if len(data) > maxMemory {
		return nil, nil, errBodyOnce
	}
	req.Body.Close()
	again := req.WithContext(req.Context())
	again.GetBody = func() (io.ReadCloser, error) {
		if len(data) == 0 {
			return http.NoBody, nil
		}
		return io.NopCloser(bytes.NewReader(data)), nil
	}
	again.Body, _ = again.GetBody()
	again.ContentLength = int64(len(data))
	if len(data) == 0 {
		return again, nil, nil
	}
	sum := sha256.Sum256(data)
	return again, &sum, nil
}

var errBodyOnce = fmt.Errorf("a body over %d bytes that can be read only once: set Request.GetBody", maxMemory)
