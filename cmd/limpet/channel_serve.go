package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/limpet-auth/limpet/channel"
	"github.com/limpet-auth/limpet/hwkey/tpmkey"
	"github.com/limpet-auth/limpet/internal/private"
)

const defaultChannelListen = "127.0.0.1:8443"

type channelServe struct {
	listen        string
	clients       keyringFile
	tlsCert       string
	tlsKey        string
	profile       string
	forms         formList
	perRequest    bool
	defaultClient string
	keeper        keeper
	logLevel      slog.Level
	logFormat     string
}

func channelServeCommand() *cobra.Command {
	s := channelServe{clients: clientKeys}
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "run a server that admits clients by their connection",
		Long: `Serve runs a server that says to each request that it admits who the client is,
as JSON: {"client","key_version","form"}. It shows what the Go package channel does
in front of an application, and answers clients under test. All that it refuses is
told the same, 401 client_required; its log says why. If its own keys fail, as
those in its TPM can, it answers 503.

Who the clients are is in a file that limpet channel keys edits. Changes count
within a second, and on open connections too.

Without --tls-cert and --tls-key the server makes itself a certificate once, beside
that file, and says where it is: clients get it with --cacert.

  limpet channel serve
  limpet channel serve --listen :8443 --tls-cert cert.pem --tls-key key.pem --per-request
  limpet channel serve --form jwt,jwe

With --per-request each request must be covered by a MAC of its own: without, who
shares a client's connection (its process, a forward proxy that ends TLS on its
side) can send requests on it.

In profile limpet TLS is 1.3, as HTTP/1.1 or HTTP/2, and must end here: behind a proxy
that ends it nobody is admitted. Profile sample is for clients of a public sample
that cannot be changed. It admits TLS 1.2 too, answers ok, and cannot say whose the
signed JWTs are that name nobody: --default-client does.

  limpet channel serve --profile sample --default-client client1

SIGINT and SIGTERM end the server when the requests in flight are answered,
after 10 seconds at the latest. SIGHUP loads the certificate and the clients' keys
again.`,
		Args: nothing,
		RunE: func(cmd *cobra.Command, _ []string) error { return s.run(cmd.Context()) },
	}
	f := cmd.Flags()
	f.StringVar(&s.listen, "listen", defaultChannelListen, "`address` to listen on; port 0 picks a free one")
	s.clients.flag(cmd)
	f.StringVar(&s.tlsCert, "tls-cert", "", "`file` with the TLS certificate chain in PEM")
	f.StringVar(&s.tlsKey, "tls-key", "", "`file` with the TLS private key in PEM")
	profileFlag(cmd, &s.profile)
	f.Var(&s.forms, "form", "what tokens may look like: token, jwt, jwe; with commas or repeated (default all)")
	if err := cmd.RegisterFlagCompletionFunc("form", cobra.FixedCompletions(formWords, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // no such flag, or twice
	}
	yesNoVar(cmd, &s.perRequest, "per-request", "requests must be covered by MACs of their own")
	f.StringVar(&s.defaultClient, "default-client", "", "whose signed JWTs are that name nobody, by `ID`; profile sample only")
	s.keeper.tpmFlag(cmd)
	logFlags(cmd, &s.logLevel, &s.logFormat)
	settings(cmd, "listen", "tls-cert", "tls-key", "profile", "form", "per-request", "default-client", "log-level", "log-format")
	return cmd
}

func (s *channelServe) run(ctx context.Context) error {
	switch {
	case (s.tlsCert == "") != (s.tlsKey == ""):
		return usage("--tls-cert and --tls-key go together")
	case s.perRequest && s.profile == "sample":
		return usage("profile sample has no MACs per request")
	case s.defaultClient != "" && s.profile != "sample":
		return usage("--default-client is for profile sample: in profile limpet each token names its client")
	}
	log := logger(s.logLevel, s.logFormat)
	path, err := s.clients.file()
	if err != nil {
		return err
	}
	tpm := tpmkey.New(s.keeper.tpmConfig())
	defer tpm.Close()
	ring, err := s.clients.open(tpm, log)
	if err != nil {
		return err
	}
	defer ring.Close()
	server, err := channel.NewServer(channel.ServerConfig{
		Keys:       ring,
		Profile:    profiles[s.profile],
		Forms:      s.forms,
		PerRequest: s.perRequest,
		DefaultID:  s.defaultClient,
		Logger:     log,
	})
	if err != nil {
		return err
	}
	examine(ctx, log, ring)
	certificate, err := s.certificate(path)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", s.listen)
	if err != nil {
		return fmt.Errorf("cannot listen: %w", err)
	}
	defer listener.Close()
	url := "https://" + listener.Addr().String()
	defer onHangup(log, loaded{"certificate", certificate.load}, loaded{"clients' keys", ring.Reload})()
	listener = tls.NewListener(listener, channelTLS(profiles[s.profile], certificate.get))
	note("listening on %s", url)
	ready("listening on " + url)
	return serveUntil(ctx, log, map[net.Listener]http.Handler{listener: server.Protect(answerChannel(profiles[s.profile], log))})
}

// channelTLS is what the server's end of a connection must be like.
func channelTLS(p channel.Profile, get func(*tls.ClientHelloInfo) (*tls.Certificate, error)) *tls.Config {
	c := &tls.Config{GetCertificate: get, NextProtos: []string{"h2", "http/1.1"}, MinVersion: tls.VersionTLS13}
	if p == channel.Sample {
		c.MinVersion = tls.VersionTLS12
	}
	return c
}

// answerChannel tells a client who it is.
func answerChannel(p channel.Profile, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := channel.FromContext(r.Context())
		log.Debug("limpet: admitted", "client", c.ID, "key_version", c.Version, "form", c.Form.String(), "method", r.Method, "path", r.URL.Path)
		w.Header().Set("Cache-Control", "no-store")
		if p == channel.Sample {
			w.Header().Set("Content-Type", "text/plain")
			io.WriteString(w, "ok")
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(struct {
			Client     string `json:"client"`
			KeyVersion int    `json:"key_version"`
			Form       string `json:"form"`
		}{c.ID, c.Version, c.Form.String()})
	})
}

// certificate returns the server's, or one that it makes itself beside the file
// of keys.
func (s *channelServe) certificate(clients string) (*reloaded, error) {
	if s.tlsCert != "" {
		return loadCertificate(s.tlsCert, s.tlsKey)
	}
	cert, key := clients+".tls-cert.pem", clients+".tls-key.pem"
	names := certificateNames(s.listen)
	if err := makeCertificate(cert, key, names); err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	if err := private.OwnerOnly(key); err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	r, err := loadCertificate(cert, key)
	if err != nil {
		return nil, err
	}
	leaf := r.now.Load().Leaf
	if time.Now().After(leaf.NotAfter) {
		note("%s is over: delete it to have a new one made", cert)
	}
	for _, name := range names {
		if leaf.VerifyHostname(name) != nil {
			note("%s is not for %s: delete it to have a new one made", cert, name)
		}
	}
	note("the certificate is the server's own: clients need --cacert %s", cert)
	return r, nil
}

// certificateNames returns the hosts that clients may reach a listener by.
func certificateNames(listen string) []string {
	names := []string{"localhost", "127.0.0.1", "::1"}
	host, _, _ := net.SplitHostPort(listen)
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host, _ = os.Hostname()
	}
	if host != "" && !slices.Contains(names, host) {
		names = append(names, host)
	}
	return names
}

const ownCertificateLife = 5 * 365 * 24 * time.Hour

// makeCertificate makes a certificate that vouches for itself, unless there is
// one, and its key, unless there is one.
func makeCertificate(cert, key string, names []string) error {
	if _, err := os.Stat(cert); err == nil {
		return nil
	}
	private, err := certificateKey(key)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "limpet channel serve"},
		NotBefore:   time.Now().Add(-time.Hour), // clocks differ
		NotAfter:    time.Now().Add(ownCertificateLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},

		BasicConstraintsValid: true,
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		return err
	}
	err = createFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	if errors.Is(err, fs.ErrExist) {
		return nil // another process was faster
	}
	return err
}

// certificateKey reads a private key, and makes it if there is none.
func certificateKey(path string) (*ecdsa.PrivateKey, error) {
	text, err := readBounded(path, maxKeyFile)
	if missing(err) {
		private, failed := newCertificateKey(path)
		if !errors.Is(failed, fs.ErrExist) {
			return private, failed
		}
		text, err = readBounded(path, maxKeyFile) // another process was faster
		if missing(err) {
			return nil, fmt.Errorf("%s is a symbolic link to nothing", path)
		}
	}
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s is not PEM", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	private, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s is not an ECDSA key", path)
	}
	return private, nil
}

func newCertificateKey(path string) (*ecdsa.PrivateKey, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, err
	}
	return private, createFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}
