package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/limpet-auth/limpet/client"
	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/hwkey/softkey"
	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/httpsig"
	"github.com/limpet-auth/limpet/proof/hwsign"
)

// message is a request as it is on its way.
type message struct {
	method, target, host string // target is path and query
	header               http.Header
	body                 []byte
}

// altered returns a copy with a change.
func (m message) altered(change func(*message)) message {
	m.header = m.header.Clone()
	change(&m)
	return m
}

// proven reports whether the message has a proof.
func (m message) proven() bool {
	return m.header.Get("Signature") != "" || m.header.Get(hwsign.BoundToken.Data) != ""
}

// wiretap is the line of a client that makes one request at a time. It keeps all
// that passes, and can hold a request back.
type wiretap struct {
	base   http.RoundTripper
	seen   []message
	holder func(message) (forward bool) // gets the next proven request; nil for nobody
}

var errStopped = errors.New("the request did not arrive")

// RoundTrip implements http.RoundTripper.
func (t *wiretap) RoundTrip(req *http.Request) (*http.Response, error) {
	m := message{method: req.Method, target: req.URL.RequestURI(), host: req.URL.Host, header: req.Header.Clone()}
	if req.Body != nil && req.Body != http.NoBody {
		body, err := io.ReadAll(req.Body)
		req.Body.Close()
		if err != nil {
			return nil, err
		}
		m.body = body
		req = req.Clone(req.Context())
		req.Body = io.NopCloser(bytes.NewReader(body))
	}
	t.seen = append(t.seen, m)
	if hold := t.holder; hold != nil && m.proven() {
		t.holder = nil
		if !hold(m) {
			return nil, errStopped
		}
	}
	return t.base.RoundTrip(req)
}

// last returns the latest message that has a header.
func (t *wiretap) last(name string) (m message, err error) {
	for _, m := range slices.Backward(t.seen) {
		if m.header.Get(name) != "" {
			return m, nil
		}
	}
	return m, errors.New("the recorded traffic has no " + name)
}

// hold has the owner make a request, which the thief gets before the server. He
// says whether it goes on when he is done.
func (d *demo) hold(ctx context.Context, owner *http.Client, m message, thief func(caught message) (forward bool)) (outcome, error) {
	d.line.holder = thief
	_, got := send(ctx, owner, d.base, m)
	if d.line.holder != nil {
		return got, errors.New("the owner's client sent no proof")
	}
	return got, nil
}

func softCandidate(dir string) hwkey.Candidate { return softkey.Candidate(dir, softkey.KeyFile("")) }

// thief tries everything that a stolen token and a place on the line allow.
func (d *demo) thief(ctx context.Context, dir string, owner *http.Client) error {
	plain := new(http.Client)
	try := func(tried string, reason proof.Reason, m message) *http.Response {
		return d.try(ctx, plain, "thief", tried, outcome{401, reason}, m)
	}
	login, err := d.line.last(httpsig.DeviceField)
	if err != nil {
		return err
	}
	introduction, err := d.line.last(httpsig.DelegationField)
	if err != nil {
		return err
	}
	proven, err := d.line.last("Signature")
	if err != nil {
		return err
	}
	own, err := newForger()
	if err != nil {
		return err
	}
	look := d.request(http.MethodGet, "/authenticated", "")

	d.printf("\nA thief has copied her token.\n")
	try("the token alone", proof.Required, look)
	other, closeOther, err := d.otherDevice(ctx, dir)
	if err != nil {
		return err
	}
	defer closeOther()
	d.try(ctx, other, "thief", "the token, with a device key of the thief's own", outcome{401, proof.Invalid}, look)
	delegation, err := own.delegation(d.token, d.base.Host)
	if err != nil {
		return err
	}
	for _, c := range []struct{ tried, delegation string }{
		{"an ephemeral key that vouches for itself", delegation},
		{"the thief's ephemeral key, with her delegation", introduction.header.Get(httpsig.DelegationField)},
	} {
		forged := look.altered(func(m *message) { m.header.Set(httpsig.DelegationField, c.delegation) })
		if err := own.sign(&forged, own.id()); err != nil {
			return err
		}
		try(c.tried, proof.Invalid, forged)
	}

	d.printf("\nHe holds back a payment of hers, POST /echo/pay?to=bob, before it reaches the server.\n")
	got, err := d.hold(ctx, owner, d.request(http.MethodPost, "/echo/pay?to=bob", payment), func(caught message) bool {
		for _, c := range []struct {
			tried  string
			change func(*message)
		}{
			{"its unspent proof, on another method", func(m *message) { m.method = http.MethodPut }},
			{"its unspent proof, on another path", func(m *message) { m.target = "/echo/other?to=bob" }},
			{"its unspent proof, on another query", func(m *message) { m.target = "/echo/pay?to=mallory" }},
			{"its unspent proof, on another body and its digest", func(m *message) {
				m.body = []byte(`{"amount":1000}`)
				m.header.Set(httpsig.DigestField, httpsig.FormatDigest(sha256.Sum256(m.body)))
			}},
			{"its unspent proof, at another host", func(m *message) { m.host = "other.example" }},
		} {
			try(c.tried, proof.Invalid, caught.altered(c.change))
		}
		return true
	})
	if err != nil {
		return err
	}
	d.note(result{who: "owner", tried: "the payment as it was: valid, and unspent till now", want: admitted, got: got})
	_, err = d.hold(ctx, owner, d.request(http.MethodPost, "/echo/pay?to=bob", payment), func(caught message) bool {
		try("one that he stopped, with another body", proof.BodyDiffer, caught.altered(func(m *message) { m.body = []byte(`{"amount":1000}`) }))
		return false
	})
	if err != nil {
		return err
	}

	d.printf("\nHe has a record of all her traffic.\n")
	try("her introduction of a key, once more", proof.NonceSpent, introduction)
	try("her request, once more", proof.NonceSpent, proven)
	try("her login, once more", proof.NonceSpent, login)
	resigned := login.altered(func(*message) {})
	if err := own.sign(&resigned, keyIDOf(login)); err != nil {
		return err
	}
	try("her login, signed anew by another key", proof.Invalid, resigned)

	// Her ephemeral key, which he does not have.
	guess := proven.altered(func(*message) {})
	err = guess.sign(keyIDOf(proven), proof.HMACSHA256, func([]byte) ([]byte, error) { return make([]byte, sha256.Size), nil })
	if err != nil {
		return err
	}
	refusal := try("a new request, with a made-up signature", proof.Invalid, guess)
	d.resubmit(ctx, plain, refusal, guess)
	return nil
}

// otherDevice returns an HTTP client on a device with a keystore of its own,
// which the stolen token has been copied to.
func (d *demo) otherDevice(ctx context.Context, dir string) (*http.Client, func(), error) {
	keys, _, err := softCandidate(dir).Open(ctx)
	if err != nil {
		return nil, nil, err
	}
	key, err := keys.Create(ctx, hwkey.CreateOptions{})
	if err != nil {
		return nil, nil, err
	}
	defer key.Close()
	c := client.New(keys)
	id := client.Hash(d.token)
	stolen := client.Session{Origin: d.base.String(), Tokens: []string{id}, Key: key.Info().ID, Wire: client.HTTPSig.String(), ID: id}
	if err := c.Restore(ctx, stolen); err != nil {
		return nil, nil, err
	}
	return &http.Client{Transport: c.Transport(nil)}, func() { c.Close() }, nil
}

// sign signs a message, in place of the one whose signature it has.
func (m *message) sign(keyID string, alg proof.Algorithm, sign func(base []byte) ([]byte, error)) error {
	u, err := url.Parse(m.target)
	if err != nil {
		return err
	}
	signed := &proof.Message{Method: m.method, Scheme: "http", Authority: m.host, Path: u.EscapedPath(), RawQuery: u.RawQuery,
		Header: m.header, HasBody: len(m.body) > 0}
	return httpsig.Sign(signed, &httpsig.Signing{KeyID: keyID, Algorithm: alg, Created: time.Now(), Nonce: rand.Text()}, sign)
}

var keyID = regexp.MustCompile(`keyid="([^"]*)"`)

// keyIDOf returns the name of the key that a message is signed with.
func keyIDOf(m message) string {
	if found := keyID.FindStringSubmatch(m.header.Get("Signature-Input")); found != nil {
		return found[1]
	}
	return ""
}

// forger is a key that nobody has delegated to.
type forger struct {
	private *ecdsa.PrivateKey
	public  *proof.PublicKey
}

func newForger() (*forger, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	public, err := proof.NewPublicKey(proof.ECDSAP256, private.Public())
	return &forger{private, public}, err
}

func (f *forger) id() string {
	sum := f.public.Thumbprint()
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// signature returns r‖s.
func (f *forger) signature(message []byte) ([]byte, error) {
	digest := sha256.Sum256(message)
	r, s, err := ecdsa.Sign(rand.Reader, f.private, digest[:])
	if err != nil {
		return nil, err
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return sig, nil
}

// delegation returns one that the key has made for itself.
func (f *forger) delegation(token, audience string) (string, error) {
	now := time.Now()
	d := &proof.Delegation{Algorithm: proof.ECDSAP256, Key: f.public.Bytes(), Scope: &proof.Scope{
		NotBefore: now, Expires: now.Add(time.Minute), Session: sha256.Sum256([]byte(token)), Audience: audience}}
	d.Signed = httpsig.Statement(d.Algorithm, d.Key, d.Scope)
	var err error
	d.Signature, err = f.signature(d.Signed)
	return httpsig.FormatDelegation(d), err
}

// sign signs a message under a name that need not be the key's.
func (f *forger) sign(m *message, keyID string) error {
	return m.sign(keyID, proof.ECDSAP256, f.signature)
}

// resubmit sends a refused request again, once with each thing that the refusal
// contained as the signature: servers have been known to tell the right one.
func (d *demo) resubmit(ctx context.Context, c *http.Client, refusal *http.Response, refused message) {
	want := outcome{401, proof.Invalid}
	got := want
	for _, sig := range append(told(refusal), make([]byte, sha256.Size)) {
		again := refused.altered(func(m *message) {
			m.header.Set("Signature", "limpet=:"+base64.StdEncoding.EncodeToString(sig)+":")
		})
		if _, o := send(ctx, c, d.base, again); o != want {
			got = o
		}
	}
	d.note(result{who: "thief", tried: "the same, signed with what the refusal told", want: want, got: got})
}

var base64Text = regexp.MustCompile(`[A-Za-z0-9+/_-]{16,}`)

// told returns everything in an answer that could be a signature in base64.
func told(resp *http.Response) (values [][]byte) {
	if resp == nil {
		return nil
	}
	text, _ := io.ReadAll(resp.Body)
	texts := []string{string(text)}
	for _, lines := range resp.Header {
		texts = append(texts, lines...)
	}
	standard := strings.NewReplacer("-", "+", "_", "/")
	for _, text := range texts {
		for _, word := range base64Text.FindAllString(text, -1) {
			if b, err := base64.RawStdEncoding.DecodeString(standard.Replace(word)); err == nil {
				values = append(values, b)
			}
		}
	}
	return values
}
