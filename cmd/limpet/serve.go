package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/internal/authserver"
)

const (
	defaultListen = "127.0.0.1:28280"
	drain         = 10 * time.Second // for requests in flight when the server stops
)

type serve struct {
	listen      string
	store       storeFlag
	access      storeAccess
	tlsCert     string
	tlsKey      string
	lease       time.Duration
	sealKeyFile string
	mode        string
	freshness   string
	minLevel    string
	challenge   bool
	channel     bool
	dbsc        bool
	operator    operator
	logLevel    slog.Level
	logFormat   string
}

func serveCommand() *cobra.Command {
	var s serve
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "run the reference auth server",
		Long: `Serve runs the reference auth server: POST /register, /login and /logout, and
/authenticated, which admits a bound session only with a proof of its device
key. So does /echo, with all paths below it: it takes any method and body, and
tells what it was asked. A browser finds a page at / that tries all of it, with
passkeys too if the address is a name: open http://localhost:28280.

Accounts and sessions are kept in a file, which one server has open at a time, in
memory until the server ends, or in a Redis that any number of servers share:

  redis://HOST[:PORT][/DATABASE]          one Redis
  redis-sentinel://HOST,HOST/NAME         one that sentinels watch over
  redis-cluster://HOST,HOST               a cluster

Each with rediss instead of redis for TLS. A user goes before the host, as in
redis://USER@HOST, and the password into a file that --store-password-file names.

What is secret in the store is sealed under a key that lies outside of it:
in PATH.sealkey beside the store, made at the first start, unless
--seal-key-file or the systemd credential limpet-seal-key give another one.
Servers that share a Redis share that key, so there one of the two must be given.

In mode prefer, sessions without a device key are admitted at level none; in
mode require they are refused; mode observe admits everything, and logs what
require would refuse.

Clients prove themselves by HTTP message signatures (RFC 9421) over method, host,
path, query, body and session, or on the older hw-sign wire. Two things more can
be asked of them, which hw-sign cannot do. With --challenge proofs must cover a
value that the server changes every five minutes, so that none can be made in
advance. With --channel they must be made with a key of the TLS connection that
they come on, so that not even an ephemeral key stolen from memory works on
another one; TLS must then end here, not at a proxy.

With --dbsc a login answers with the session in the cookie __Host-session, in place
of a bearer token, and offers browsers to keep a key for it (Device Bound Session
Credentials, W3C). They do that over HTTPS only. limpet login wants a token.

limpet session lists and revokes sessions of a running server, and shows what it
decides, through its admin socket, by default PATH.admin beside the store; sessions
in a Redis it reaches there. --admin-listen opens a loopback port with /metrics for
Prometheus, /livez and /readyz, and with --admin-token-file the rest of the admin
API and a console for browsers, /console/. --otlp-endpoint sends a trace of each
request to a collector.

  limpet serve
  limpet serve --listen 127.0.0.1:0 --store mem:
  limpet serve --listen :443 --tls-cert cert.pem --tls-key key.pem --mode require
  limpet serve --listen :443 --tls-cert cert.pem --tls-key key.pem --channel --challenge
  limpet serve --store redis-cluster://10.0.0.1,10.0.0.2 --store-password-file redis.txt --seal-key-file seal.key

SIGINT and SIGTERM end the server when the requests in flight are answered,
after 10 seconds at the latest. SIGHUP loads the TLS certificate again, if there is
one.`,
		Args: nothing,
		RunE: func(cmd *cobra.Command, _ []string) error { return s.run(cmd.Context()) },
	}
	f := cmd.Flags()
	f.StringVar(&s.listen, "listen", defaultListen, "`address` to listen on; port 0 takes a free one")
	f.Var(&s.store, "store", "bolt:PATH, mem: or the URL of a Redis (default bolt:$XDG_STATE_HOME/limpet/server.db)")
	s.access.flags(cmd)
	f.StringVar(&s.tlsCert, "tls-cert", "", "PEM `file` with the certificate chain; serves HTTPS")
	f.StringVar(&s.tlsKey, "tls-key", "", "PEM `file` with its private key")
	f.DurationVar(&s.lease, "lease", 15*time.Minute, "how long an ephemeral key may be used, 1s to 24h")
	f.StringVar(&s.sealKeyFile, "seal-key-file", "", "`file` of 32 random bytes, made if there is none (default PATH.sealkey beside the store)")
	choiceVar(cmd, &s.mode, "mode", "what becomes of sessions without a device key", "prefer", "require", "observe")
	choiceVar(cmd, &s.freshness, "freshness", "how a proof shows that it is new", "nonce", "strict-nonce", "body-hash", "timestamp")
	choiceVar(cmd, &s.minLevel, "min-level", "the weakest level that is admitted", "none", "software", "browser", "hardware", "hardware-attested")
	yesNoVar(cmd, &s.challenge, "challenge", "proofs must cover the server's challenge")
	yesNoVar(cmd, &s.dbsc, "dbsc", "sessions are in a cookie, which browsers bind (Device Bound Session Credentials)")
	yesNoVar(cmd, &s.channel, "channel", "proofs must be bound to their TLS connection; needs --tls-cert and --tls-key")
	s.operator.flags(cmd)
	logFlags(cmd, &s.logLevel, &s.logFormat)
	settings(cmd, "listen", "store", "store-password-file", "store-ca-file", "store-cert-file", "store-key-file", "tls-cert", "tls-key", "lease", "seal-key-file", "mode", "freshness", "min-level",
		"challenge", "channel", "dbsc", "log-level", "log-format")
	return cmd
}

func logFlags(cmd *cobra.Command, level *slog.Level, format *string) {
	cmd.Flags().TextVar(level, "log-level", slog.LevelInfo, "what `level` is logged: debug, info, warn or error")
	choiceVar(cmd, format, "log-format", "how the log on standard error is written", "text", "json")
}

func logger(level slog.Level, format string) *slog.Logger {
	opts := &slog.HandlerOptions{Level: level}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, opts))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, opts))
}

var modes = map[string]limpet.Mode{"prefer": limpet.Prefer, "require": limpet.Require, "observe": limpet.Observe}

var freshnesses = map[string]limpet.Freshness{"nonce": limpet.Nonce, "strict-nonce": limpet.StrictNonce,
	"body-hash": limpet.BodyHash, "timestamp": limpet.Timestamp}

// run serves until ctx is done.
func (s *serve) run(ctx context.Context) (err error) {
	if (s.tlsCert == "") != (s.tlsKey == "") {
		return usage("--tls-cert and --tls-key go together")
	}
	if s.channel && s.tlsCert == "" {
		return usage("--channel needs --tls-cert and --tls-key: there is no TLS connection to bind proofs to")
	}
	if s.lease < time.Second || s.lease > 24*time.Hour {
		return usage("--lease must be from 1s to 24h")
	}
	log := logger(s.logLevel, s.logFormat)
	if err := s.operator.begin(ctx, "limpet-serve", nil, log); err != nil {
		return err
	}
	defer s.operator.close()
	path, err := s.store.path()
	if err != nil {
		return err
	}
	var certificate *reloaded
	if s.tlsCert != "" {
		if certificate, err = loadCertificate(s.tlsCert, s.tlsKey); err != nil {
			return err
		}
	}
	key, store, closer, err := openSealed(ctx, s.store, &s.access, s.sealKeyFile, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closer.Close()) }()
	store = s.operator.metrics.Count(store)
	auth, err := authserver.New(authserver.Config{
		Store: store,
		Rule: limpet.Rule{Mode: modes[s.mode], Freshness: freshnesses[s.freshness], MinLevel: limpet.Level(s.minLevel),
			Challenge: s.challenge, Channel: s.channel},
		Lease:   s.lease,
		SealKey: key,
		DBSC:    s.dbsc,
		Logger:  log,
		Decided: s.operator.decided,
	})
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", s.listen)
	if err != nil {
		return fmt.Errorf("cannot listen: %w", err)
	}
	defer listener.Close()
	servers, err := s.operator.open(ctx, func() *limpet.Guard { return auth.Guard }, store, s.store.kind(), path)
	if err != nil {
		return err
	}
	url := "http://" + listener.Addr().String()
	var reloads []loaded
	if certificate != nil {
		reloads = append(reloads, loaded{"certificate", certificate.load})
		listener = tls.NewListener(listener, &tls.Config{GetCertificate: certificate.get, NextProtos: []string{"h2", "http/1.1"}})
		url = "https://" + url[len("http://"):]
	}
	defer onHangup(log, reloads...)()
	note("listening on %s", url)
	ready("listening on " + url)
	servers[listener] = newHTTPServer(s.operator.traced(auth), log)
	return serveAll(ctx, log, servers)
}

// serveUntil serves handlers on their listeners until ctx is done, then
// answers what is in flight.
func serveUntil(ctx context.Context, log *slog.Logger, handlers map[net.Listener]http.Handler) error {
	servers := make(map[net.Listener]*http.Server)
	for l, h := range handlers {
		if l != nil {
			servers[l] = newHTTPServer(h, log)
		}
	}
	return serveAll(ctx, log, servers)
}

func serveAll(ctx context.Context, log *slog.Logger, servers map[net.Listener]*http.Server) error {
	failed := make(chan error, len(servers))
	for l, srv := range servers {
		go func() { failed <- srv.Serve(l) }()
	}
	var err error
	select {
	case <-ctx.Done():
		log.Info("limpet: stopping")
		stopping()
	case err = <-failed:
	}
	end, cancel := context.WithTimeout(context.Background(), drain)
	defer cancel()
	var ending sync.WaitGroup
	for _, srv := range servers { // at once: none takes new requests while another answers its last
		ending.Go(func() {
			if srv.Shutdown(end) != nil {
				log.Warn("limpet: requests were cut off")
				srv.Close()
			}
		})
	}
	ending.Wait()
	return err
}

func newHTTPServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug), // noise of the network
	}
}
