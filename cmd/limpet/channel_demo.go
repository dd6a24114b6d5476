package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/limpet-auth/limpet/channel"
	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/keyring"
	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/httpsig"
)

func channelDemoCommand() *cobra.Command {
	d := channelDemo{stage: stage{out: os.Stdout}, protect: (*channel.Server).Protect}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "steal tokens, and see that they work on no other connection",
		Long: `Demo starts a TLS server on this machine, has a client work with it whose secret
is kept by the best keeper here, and then plays a thief: one who has a log with the
client's tokens, one who sits in a proxy that ends TLS, and one who shares the
client's connection. At last the client's key is revoked. It ends with a table of
what was tried and what came of it.

  limpet channel demo
  limpet channel demo --tpm unix:/run/swtpm/sock

The line that is marked weak succeeds: it shows what --per-request is for.
Everything happens in a temporary directory, which is removed at the end. The exit
code is 0 only if each line of the table came out as told.`,
		Args: nothing,
		RunE: func(cmd *cobra.Command, _ []string) error { return d.run(cmd.Context()) },
	}
	d.keeper.tpmFlag(cmd)
	return cmd
}

type channelDemo struct {
	stage
	keeper  keeper                                           // of the client's secret
	protect func(*channel.Server, http.Handler) http.Handler // tests break a defence with it

	dir     string
	clients string // the server's file of keys
	ring    *keyring.Ring
	trusted *x509.CertPool // by the client
	key     *countedKey    // the client's
	closers []func()
}

const demoClient = "billing"

func (d *channelDemo) run(ctx context.Context) (err error) {
	d.dir, err = os.MkdirTemp("", "limpet-demo-") // mode 0700
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(d.dir)) }()
	err = d.play(ctx)
	for _, f := range d.closers {
		defer f() // the latest first
	}
	if ctx.Err() != nil {
		return errors.New("demo: interrupted")
	}
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	return d.table("All %d lines came out as told: a stolen token is worth nothing on another connection.\n" +
		"The one marked weak is a connection that is shared; with --per-request that gains nothing.\n")
}

func (d *channelDemo) play(ctx context.Context) error {
	d.trusted = x509.NewCertPool()
	d.clients = filepath.Join(d.dir, "clients.json")
	secret := keyring.NewSecret()
	defer clear(secret)
	err := keyring.Edit(d.clients, func(l *keyring.List) error { return l.Add(demoClient, &keyring.Key{Secret: secret}) })
	if err != nil {
		return err
	}
	if d.ring, err = keyring.Open(d.clients, keyring.Options{Logger: slog.New(slog.DiscardHandler)}); err != nil {
		return err
	}
	server, err := d.serve(channel.ServerConfig{})
	if err != nil {
		return err
	}
	d.printf("A server listens on %s. It knows a client, %s, by a secret that they share.\n", server.url, demoClient)
	if err := d.keep(ctx, secret); err != nil {
		return err
	}

	d.printf("\nThe client works.\n")
	tokens := make(map[channel.Form]*peer)
	for _, form := range []channel.Form{channel.Token, channel.JWT, channel.JWE} {
		if tokens[form], err = d.client(server, peer{form: form}); err != nil {
			return err
		}
	}
	onHTTP1, err := d.client(server, peer{http1: true})
	if err != nil {
		return err
	}
	d.owner(ctx, tokens[channel.Token], "a token, on HTTP/2")
	d.owner(ctx, tokens[channel.Token], "the same token again, on that connection")
	d.owner(ctx, onHTTP1, "a token, on HTTP/1.1")
	d.owner(ctx, onHTTP1, "the same token again, on that connection")
	d.owner(ctx, tokens[channel.JWT], "a JWT")
	d.owner(ctx, tokens[channel.JWE], "a JWT within a JWE")
	if state := onHTTP1.state; state != nil {
		d.printf("  For these 6 requests, on 4 connections of %s (%s), the key was asked %d times.\n",
			tls.VersionName(state.Version), state.CurveID, d.key.count())
	}

	if err := d.copied(ctx, server, tokens, onHTTP1); err != nil {
		return err
	}
	if err := d.between(ctx, server); err != nil {
		return err
	}
	if err := d.shared(ctx, server, tokens[channel.Token]); err != nil {
		return err
	}

	d.printf("\nThe client's key is revoked, while its connections are open.\n")
	if err := keyring.Edit(d.clients, func(l *keyring.List) error { return l.Revoke(demoClient) }); err != nil {
		return err
	}
	d.note(result{who: "owner", tried: "its token within two seconds, on HTTP/2", want: denied, got: d.untilRefused(ctx, tokens[channel.Token])})
	d.note(result{who: "owner", tried: "its token then, on HTTP/1.1", want: denied, got: onHTTP1.ask(ctx, look)})
	return nil
}

var (
	denied = outcome{401, proof.NoClient}
	look   = message{method: http.MethodGet, target: "/accounts", header: http.Header{}}
)

// copied is the thief who has a log with the client's tokens.
func (d *channelDemo) copied(ctx context.Context, server *leaky, tokens map[channel.Form]*peer, onHTTP1 *peer) error {
	d.printf("\nA thief has a log with its tokens, and connections of his own.\n")
	for _, p := range []*peer{tokens[channel.Token], onHTTP1, tokens[channel.JWT], tokens[channel.JWE]} {
		for _, proto := range []string{"HTTP/2", "HTTP/1.1"} {
			thief := &http.Client{Transport: d.transport(proto == "HTTP/1.1")}
			what := map[channel.Form]string{channel.Token: "the token", channel.JWT: "the JWT", channel.JWE: "the JWE"}[p.form]
			if p.http1 {
				what += " of its HTTP/1.1 connection"
			}
			_, got := send(ctx, thief, server.url, p.sent)
			d.note(result{who: "thief", tried: what + ", on " + proto, want: denied, got: got})
			thief.CloseIdleConnections()
		}
	}
	own := keyring.NewSecret()
	forger, err := d.client(server, peer{key: &bareSecret{keyring.Key{Secret: own}}})
	if err != nil {
		return err
	}
	d.note(result{who: "thief", tried: "a token in its name, made with another secret", want: denied, got: forger.ask(ctx, look)})
	d.owner(ctx, tokens[channel.Token], "its token meanwhile, on its HTTP/2 connection")
	d.owner(ctx, onHTTP1, "its token meanwhile, on its HTTP/1.1 connection")
	return nil
}

// between is the thief in a proxy that ends TLS.
func (d *channelDemo) between(ctx context.Context, server *leaky) error {
	d.printf("\nHe gets between them, in a proxy that ends TLS with a certificate that the client trusts.\n")
	for _, c := range []struct {
		tried string
		hides bool
		want  outcome
	}{
		{"a token, through the proxy", false, stopped},
		{"a token, while the proxy hides the fingerprint", true, denied},
	} {
		addr, err := d.proxy(server, c.hides)
		if err != nil {
			return err
		}
		victim, err := d.client(server, peer{through: addr})
		if err != nil {
			return err
		}
		d.note(result{who: "owner", tried: c.tried, want: c.want, got: victim.ask(ctx, look)})
	}
	d.printf("  The server tells a fingerprint of its connection, and where it is another one the client says:\n  %s.\n",
		plain(channel.ErrTLSElsewhere))
	return nil
}

// shared is the thief who shares the client's connection.
func (d *channelDemo) shared(ctx context.Context, server *leaky, p *peer) error {
	d.printf("\nHe shares its connection, as code in its process does, and has its token. That says who the\n" +
		"client is, and nothing of a request.\n")
	try := func(p *peer, server *leaky, tried string, want outcome, weak bool, m message) {
		_, got := send(ctx, &http.Client{Transport: p.base}, server.url, m)
		d.note(result{who: "thief", tried: tried, want: want, got: got, weak: weak})
	}
	try(p, server, "a request of his own, on its connection", admitted, true,
		p.sent.altered(func(m *message) { m.method, m.target = http.MethodPost, "/pay?to=mallory" }))

	d.printf("\nWith --per-request each request has a MAC of its own. He holds one back, POST /pay?to=bob,\n" +
		"and is on its connection again.\n")
	strict, err := d.serve(channel.ServerConfig{PerRequest: true})
	if err != nil {
		return err
	}
	if p, err = d.client(strict, peer{perRequest: true}); err != nil {
		return err
	}
	pay := message{method: http.MethodPost, target: "/pay?to=bob", header: http.Header{}, body: []byte(payment)}
	d.owner(ctx, p, "a request with a MAC")
	strict.hold()
	if p.ask(ctx, pay); p.sent.header.Get("Signature") == "" {
		return errors.New("the client sent no MAC")
	}
	for _, c := range []struct {
		tried  string
		change func(*message)
	}{
		{"its token, without a MAC", func(m *message) {
			for _, name := range []string{"Signature", "Signature-Input"} {
				m.header.Del(name)
			}
		}},
		{"its unspent MAC, on another method", func(m *message) { m.method = http.MethodPut }},
		{"its unspent MAC, on another path", func(m *message) { m.target = "/other?to=bob" }},
		{"its unspent MAC, on another query", func(m *message) { m.target = "/pay?to=mallory" }},
		{"its unspent MAC, on another body and its digest", func(m *message) {
			m.body = []byte(`{"amount":1000}`)
			m.header.Set(httpsig.DigestField, httpsig.FormatDigest(sha256.Sum256(m.body)))
		}},
	} {
		try(p, strict, c.tried, denied, false, p.sent.altered(c.change))
	}
	_, got := send(ctx, &http.Client{Transport: p.base}, strict.url, p.sent)
	d.note(result{who: "owner", tried: "the request as it was: valid, and unspent till now", want: admitted, got: got})
	try(p, strict, "the request, once more", denied, false, p.sent)
	return nil
}

// untilRefused asks until it is refused, for two seconds.
func (d *channelDemo) untilRefused(ctx context.Context, p *peer) outcome {
	for end := time.Now().Add(2 * time.Second); ; {
		got := p.ask(ctx, look)
		if got != admitted || time.Now().After(end) {
			return got
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// keep gives the client's secret to the best keeper of this machine.
func (d *channelDemo) keep(ctx context.Context, secret []byte) error {
	d.keeper.dir = filepath.Join(d.dir, "client")
	keys, err := d.keystore(ctx, &d.keeper, "the client's secret")
	if err != nil {
		return err
	}
	d.closers = append(d.closers, func() { closeKeystore(keys) })
	secrets, ok := keys.(hwkey.HMACKeystore)
	if !ok {
		return hwkey.ErrUnsupported
	}
	key, err := secrets.ImportHMAC(ctx, secret, demoClient)
	if err != nil {
		return err
	}
	d.key = &countedKey{HMACKey: key}
	return nil
}

// countedKey counts how often it is asked.
type countedKey struct {
	hwkey.HMACKey

	mu    sync.Mutex
	times int
}

func (k *countedKey) HMAC(ctx context.Context, message []byte) ([]byte, error) {
	k.mu.Lock()
	k.times++
	k.mu.Unlock()
	return k.HMACKey.HMAC(ctx, message)
}

func (k *countedKey) count() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.times
}

// leaky is a server whose log tells each request, with its token.
type leaky struct {
	url *url.URL

	mu      sync.Mutex
	last    message
	holding bool
}

func (l *leaky) around(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(io.LimitReader(r.Body, maxAnswer))
		if err != nil {
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		l.mu.Lock()
		l.last = message{method: r.Method, target: r.URL.RequestURI(), host: r.Host, header: r.Header.Clone(), body: body}
		held := l.holding
		l.holding = false
		l.mu.Unlock()
		if held {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// hold keeps the next request from what admits it.
func (l *leaky) hold() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holding = true
}

func (l *leaky) seen() message {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

// serve starts a server.
func (d *channelDemo) serve(cfg channel.ServerConfig) (*leaky, error) {
	log := slog.New(slog.DiscardHandler)
	cfg.Keys, cfg.Logger = d.ring, log
	server, err := channel.NewServer(cfg)
	if err != nil {
		return nil, err
	}
	l := new(leaky)
	addr, err := d.listen(l.around(d.protect(server, answerChannel(channel.Limpet, log))))
	l.url = &url.URL{Scheme: "https", Host: addr}
	return l, err
}

// listen serves a handler with a certificate that the client trusts.
func (d *channelDemo) listen(h http.Handler) (addr string, err error) {
	log := slog.New(slog.DiscardHandler)
	cert := filepath.Join(d.dir, fmt.Sprintf("certificate-%d.pem", len(d.closers)))
	if err := makeCertificate(cert, cert+".key", []string{"127.0.0.1"}); err != nil {
		return "", err
	}
	certificate, err := loadCertificate(cert, cert+".key")
	if err != nil {
		return "", err
	}
	d.trusted.AddCert(certificate.now.Load().Leaf)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	srv := newHTTPServer(h, log)
	go srv.Serve(tls.NewListener(l, channelTLS(channel.Limpet, certificate.get)))
	d.closers = append(d.closers, func() { srv.Close() })
	return l.Addr().String(), nil
}

// proxy starts a proxy that ends TLS before the server, and may hide what the
// server says of the connection.
func (d *channelDemo) proxy(server *leaky, hides bool) (addr string, err error) {
	upstream := d.transport(false)
	d.closers = append(d.closers, upstream.CloseIdleConnections)
	return d.listen(&httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(server.url); r.Out.Host = r.In.Host },
		Transport: upstream,
		ErrorLog:  slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
		ModifyResponse: func(resp *http.Response) error {
			if hides {
				resp.Header.Del(channel.FingerprintField)
			}
			return nil
		},
	})
}

func (d *channelDemo) transport(http1 bool) *http.Transport {
	t := newTransport()
	t.TLSClientConfig = &tls.Config{RootCAs: d.trusted}
	if http1 {
		t.Protocols = new(http.Protocols)
		t.Protocols.SetHTTP1(true)
	}
	return t
}

// peer is the client on one connection.
type peer struct {
	form       channel.Form
	perRequest bool
	http1      bool
	through    string // a proxy's address
	key        hwkey.HMACKey

	server *leaky
	base   *http.Transport
	client *http.Client
	sent   message              // what it sent last, as the server has it
	state  *tls.ConnectionState // of its connection; nil before the first answer
}

// client returns a client of a server.
func (d *channelDemo) client(server *leaky, p peer) (*peer, error) {
	p.server, p.base = server, d.transport(p.http1)
	if p.through != "" {
		p.base.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, p.through)
		}
	}
	if p.key == nil {
		p.key = d.key
	}
	t, err := channel.NewTransport(channel.Config{ID: demoClient, HMAC: p.key, Form: p.form, PerRequest: p.perRequest, Base: p.base})
	if err != nil {
		return nil, err
	}
	p.client = &http.Client{Transport: t}
	d.closers = append(d.closers, p.base.CloseIdleConnections)
	return &p, nil
}

// ask makes a request. That it goes out on another connection than those before
// is an outcome too.
func (p *peer) ask(ctx context.Context, m message) outcome {
	resp, got := send(ctx, p.client, p.server.url, m)
	p.sent = p.server.seen()
	if resp == nil {
		return got
	}
	if p.state != nil && channel.Fingerprint(p.state) != channel.Fingerprint(resp.TLS) {
		return outcome{reason: "another connection"}
	}
	p.state = resp.TLS
	return got
}

// owner has the client make a request that must be admitted.
func (d *channelDemo) owner(ctx context.Context, p *peer, tried string) {
	d.note(result{who: "owner", tried: tried, want: admitted, got: p.ask(ctx, look)})
}
