package client

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/limpet-auth/limpet/internal/outgoing"
	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/dpop"
)

const (
	maxNonceOrigins = 64  // servers whose nonce is remembered
	maxNonce        = 512 // bytes of one
)

// DPoP proves possession of a key to OAuth servers (RFC 9449), for programs that
// get their tokens from an authorization server. It is safe for concurrent use.
//
// The key signs once for each request and waits for no lease: a hardware key is
// as slow here as it is.
type DPoP struct {
	key    crypto.Signer
	alg    proof.Algorithm
	public *proof.PublicKey

	mu     sync.Mutex
	nonces map[string]string // by origin
}

// NewDPoP returns a DPoP for a key, such as a hwkey.Key: ECDSA P-256, Ed25519,
// or RSA of 2048 to 4096 bit if it makes PSS salts as long as the hash
// (RFC 7518, 3.5), which not every TPM does.
func NewDPoP(key crypto.Signer) (*DPoP, error) {
	d := &DPoP{key: key, nonces: make(map[string]string)}
	switch key.Public().(type) {
	case *ecdsa.PublicKey:
		d.alg = proof.ECDSAP256
	case ed25519.PublicKey:
		d.alg = proof.Ed25519
	case *rsa.PublicKey:
		d.alg = proof.RSAPSS
	}
	var err error
	if d.public, err = proof.NewPublicKey(d.alg, key.Public()); err != nil {
		return nil, fmt.Errorf("limpet: client: DPoP: %w", err)
	}
	return d, nil
}

// Transport returns a round-tripper that adds the access token that token
// returns, "Authorization: DPoP", and a proof; or with token nil only the proof,
// for requests to the token endpoint. It sends with base; nil is
// [http.DefaultTransport]. token is called for each request, with its context;
// what it returns is used as it is, so it renews tokens in time itself:
//
//	api := &http.Client{Transport: d.Transport(nil, func(context.Context) (string, error) {
//		t, err := source.Token() // an oauth2.TokenSource whose client is d's for the token endpoint
//		if err != nil {
//			return "", err
//		}
//		return t.AccessToken, nil
//	})}
//
// A request that the server refuses because it wants its nonce in the proof
// ("use_dpop_nonce") is sent again, once, if its body can be read again (it has
// none, or GetBody). Nonces are remembered for each of 64 origins. What a
// redirect leads to on another origin gets neither token nor proof. Plain http
// is an error, but to loopback hosts.
//
// Its errors are those of base, of token and of the key.
func (d *DPoP) Transport(base http.RoundTripper, token func(ctx context.Context) (string, error)) http.RoundTripper {
	if base == nil {
		base = http.DefaultTransport
	}
	return &dpopTransport{d, base, token}
}

type dpopTransport struct {
	*DPoP
	base  http.RoundTripper
	token func(ctx context.Context) (string, error)
}

// RoundTrip implements [http.RoundTripper].
func (t *dpopTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL == nil || req.Header == nil || originOf(firstOf(req).URL) != originOf(req.URL) {
		return t.base.RoundTrip(req)
	}
	fail := func(err error) (*http.Response, error) {
		closeBody(req)
		return nil, fmt.Errorf("limpet: client: DPoP: %w", err)
	}
	if !strings.EqualFold(req.URL.Scheme, "https") && !outgoing.ThisMachine(req.URL.Hostname()) {
		return fail(errors.New("plain http to " + req.URL.Hostname()))
	}
	var token string
	if t.token != nil {
		var err error
		if token, err = t.token(req.Context()); err != nil {
			return fail(fmt.Errorf("access token: %w", err))
		}
		if token == "" {
			return fail(errors.New("the access token is empty"))
		}
	}
	origin, body := originOf(req.URL), req.Body
	for try := 1; ; try++ {
		nonce := t.nonce(origin)
		out := req.Clone(req.Context())
		out.Body = body
		if err := t.prove(out, token, nonce); err != nil {
			return fail(err)
		}
		resp, err := t.base.RoundTrip(out)
		if err != nil {
			return nil, err
		}
		resp.Request = req
		next := t.remember(origin, resp)
		if try == 2 || next == "" || next == nonce || !rewindable(req) || !wantsNonce(resp) {
			return resp, nil
		}
		io.CopyN(io.Discard, resp.Body, maxPeek) // so that the connection can be used again
		resp.Body.Close()
		if req.GetBody != nil {
			if body, err = req.GetBody(); err != nil {
				return nil, fmt.Errorf("limpet: client: DPoP: body for another try: %w", err)
			}
		}
	}
}

// CloseIdleConnections is for [http.Client.CloseIdleConnections].
func (t *dpopTransport) CloseIdleConnections() {
	if base, ok := t.base.(interface{ CloseIdleConnections() }); ok {
		base.CloseIdleConnections()
	}
}

// prove adds the token and a proof to a request.
func (d *DPoP) prove(out *http.Request, token, nonce string) error {
	var jti [16]byte
	rand.Read(jti[:]) // never fails
	u := *out.URL
	if out.Host != "" {
		u.Host = out.Host
	}
	method := out.Method
	if method == "" {
		method = http.MethodGet
	}
	text, err := dpop.NewProof(d.key, d.alg, d.public, dpop.Claims{
		JTI:         base64.RawURLEncoding.EncodeToString(jti[:]),
		Method:      method,
		URL:         u.String(),
		IssuedAt:    time.Now(),
		AccessToken: token,
		Nonce:       nonce,
	})
	if err != nil {
		return err
	}
	out.Header[dpop.Header] = []string{text}
	if token != "" {
		out.Header["Authorization"] = []string{dpop.Scheme + " " + token}
	}
	return nil
}

func (d *DPoP) nonce(origin string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.nonces[origin]
}

// remember notes the nonce that an answer gives for the next request
// (RFC 9449, 8.2), and returns it.
func (d *DPoP) remember(origin string, resp *http.Response) string {
	nonce, err := header(resp.Header, dpop.NonceHeader)
	if err != nil || nonce == "" || len(nonce) > maxNonce {
		return ""
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for other := range d.nonces { // any one will do: map order is random
		if len(d.nonces) < maxNonceOrigins || d.nonces[origin] != "" {
			break
		}
		delete(d.nonces, other)
	}
	d.nonces[origin] = nonce
	return nonce
}

// wantsNonce reports whether a server refused a request for want of a nonce: a
// resource server by 401, the token endpoint by 400 (RFC 9449, 8 and 9).
func wantsNonce(resp *http.Response) bool {
	const reason = "use_dpop_nonce"
	switch resp.StatusCode {
	case http.StatusUnauthorized:
		for _, text := range resp.Header["Www-Authenticate"] {
			if strings.Contains(text, `error="`+reason+`"`) {
				return true
			}
		}
	case http.StatusBadRequest:
		var answer struct {
			Error string `json:"error"`
		}
		return json.Unmarshal(peekJSON(resp), &answer) == nil && answer.Error == reason
	}
	return false
}

// firstOf returns the request that redirects lead from to req.
func firstOf(req *http.Request) *http.Request {
	for req.Response != nil && req.Response.Request != nil && req.Response.Request.URL != nil {
		req = req.Response.Request
	}
	return req
}
