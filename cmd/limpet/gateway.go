package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	stdlog "log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/channel"
	"github.com/limpet-auth/limpet/gateway"
	"github.com/limpet-auth/limpet/gateway/extauthz"
	"github.com/limpet-auth/limpet/hwkey/tpmkey"
	"github.com/limpet-auth/limpet/keyring"
	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/store/memstore"
)

const (
	gatewayListen = "127.0.0.1:28281"
	maxRoutes     = 1 << 20 // bytes of a routes file
)

type gatewayFlags struct {
	listen      string
	upstream    string
	cookie      string
	bearer      bool
	login       string
	logout      string
	dbsc        bool
	mode        string
	routes      string
	trusted     []string
	forwardAuth string
	store       storeFlag
	access      storeAccess
	tlsCert     string
	tlsKey      string
	lease       time.Duration
	sealKeyFile string
	clients     keyringFile
	keeper      keeper
	operator    operator
	logLevel    slog.Level
	logFormat   string
}

func gatewayCommand() *cobra.Command {
	g := gatewayFlags{clients: clientKeys}
	cmd := &cobra.Command{
		Use:   "gateway",
		Short: "bind the sessions of an app that knows nothing of it",
		Long: `Gateway stands in front of an HTTP app as a reverse proxy. The session that the
app hands out at a login is bound to the device key that the login brought; from
then on the app sees no request of that session without a proof of its key. The
app is not changed, and learns who is there from headers.

  limpet gateway --upstream http://127.0.0.1:8080 --session-cookie sid
  limpet gateway --listen :8443 --tls-cert cert.pem --tls-key key.pem --routes app.yaml
  limpet gateway check app.yaml

With flags alone one route is a login and one a logout, and one mode is for all
the others. A routes file (--routes) says it of each route, and much more:

  upstream: http://127.0.0.1:8080
  session: {cookie: sid}
  login:
    - route: POST /login
      user: form.username
  logout: [POST /logout]
  routes:
    - {route: /admin/, mode: require, min-level: hardware}
    - {route: /hooks/, client: instead-of-session}

With --dbsc, or dbsc: true, browsers that can keep a key for each login themselves
(Device Bound Session Credentials, W3C): so a copied cookie jar is worth nothing
either. They do it over HTTPS only. TLS may end at a proxy in front.

Where a route asks for a client, that is one of limpet channel: --clients and --tpm
say where their keys are. It is no settings file: that gives flags their values, this describes the app.
limpet gateway check explains what it means, route by route.

Where a proxy stands in front already, --forward-auth listens for its questions:
nginx asks at /auth/nginx, Traefik and Caddy at /auth/forward, Envoy at /auth/envoy
or by gRPC. The proxy then hands requests on to the app itself, and only logins,
logouts and what gateway check names go through the gateway. Only proxies in
--trusted-proxy are answered. docs/forward-auth.md has their configurations.

  limpet gateway --routes app.yaml --forward-auth 127.0.0.1:9091 --trusted-proxy 127.0.0.1/32

limpet session lists and revokes the sessions of a running gateway, and shows what
it decides, through its admin socket, by default PATH.admin beside the store.
--admin-listen opens a loopback port with /metrics for Prometheus, /livez and
/readyz, and with --admin-token-file the rest of the admin API and a console for
browsers, /console/. --otlp-endpoint sends a trace of each request to a collector,
which the app continues.

SIGINT and SIGTERM end the gateway when the requests in flight are answered,
after 10 seconds at the latest. SIGHUP reads the routes file and the TLS
certificate again, without dropping a connection; if something is wrong with
them it is logged, and nothing changes.

As a service of systemd (Type=notify) it says when it is ready, reloads and stops.
Sockets that a socket unit with FileDescriptorName=http opened take the place of
--listen.`,
		Args: onlyCommands,
		RunE: func(cmd *cobra.Command, _ []string) error { return g.run(cmd) },
	}
	f := cmd.Flags()
	f.StringVar(&g.listen, "listen", gatewayListen, "`address` to listen on, unless systemd opened a socket; port 0 takes a free one")
	f.StringVar(&g.upstream, "upstream", "", "the app, as http://`host:port`")
	f.StringVar(&g.cookie, "session-cookie", "", "`name` of the cookie that is the app's session")
	yesNoVar(cmd, &g.bearer, "session-bearer", "the app's sessions are bearer tokens")
	f.StringVar(&g.login, "login", "POST /login", "`route` of the app's login")
	f.StringVar(&g.logout, "logout", "POST /logout", "`route` of the app's logout")
	choiceVar(cmd, &g.mode, "mode", "what becomes of sessions without a device key", "prefer", "require", "observe")
	yesNoVar(cmd, &g.dbsc, "dbsc", "browsers bind the sessions of their logins (Device Bound Session Credentials)")
	f.StringVar(&g.routes, "routes", "", "YAML `file` that describes the app, in place of --upstream, --session-…, --login, --logout, --mode and --dbsc")
	f.StringSliceVar(&g.trusted, "trusted-proxy", nil, "`network` of proxies in front, as 10.0.0.0/8, whose X-Forwarded-… is passed on, and who may ask; can be repeated")
	f.StringVar(&g.forwardAuth, "forward-auth", "", "`address` on which proxies ask whether the app may have a request; none if it is not set")
	f.Var(&g.store, "store", "bolt:PATH, mem: or the URL of a Redis, as limpet serve explains (default bolt:$XDG_STATE_HOME/limpet/server.db)")
	g.access.flags(cmd)
	f.StringVar(&g.tlsCert, "tls-cert", "", "PEM `file` with the certificate chain; serves HTTPS")
	f.StringVar(&g.tlsKey, "tls-key", "", "PEM `file` with its private key")
	f.DurationVar(&g.lease, "lease", 15*time.Minute, "how long an ephemeral key may be used, 1s to 24h")
	f.StringVar(&g.sealKeyFile, "seal-key-file", "", "`file` of 32 random bytes, made if there is none (default PATH.sealkey beside the store)")
	g.clients.flag(cmd)
	g.keeper.tpmFlag(cmd)
	g.operator.flags(cmd)
	logFlags(cmd, &g.logLevel, &g.logFormat)
	settings(cmd, "listen", "upstream", "session-cookie", "session-bearer", "login", "logout", "mode", "dbsc", "routes", "trusted-proxy", "forward-auth",
		"store", "store-password-file", "store-ca-file", "store-cert-file", "store-key-file", "tls-cert", "tls-key", "lease", "seal-key-file", "log-level", "log-format")
	cmd.AddCommand(gatewayCheckCommand())
	return cmd
}

func gatewayCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check FILE",
		Short: "explain a routes file, route by route",
		Long: `Check reads a routes file as limpet gateway does and says what it means, one
sentence a line. It touches neither store nor network.

  limpet gateway check app.yaml`,
		Args: exactly(1, "one file"),
		RunE: func(_ *cobra.Command, args []string) error {
			cfg, err := readRoutes(args[0])
			if err != nil {
				return err
			}
			cfg.Store, cfg.Clients = memstore.New(nil), nobody{}
			g, err := gateway.New(cfg)
			if err != nil {
				return usage("%s: %w", args[0], err)
			}
			for _, line := range g.Explain() {
				fmt.Println(line)
			}
			fmt.Println("With --forward-auth these go through the gateway itself: " + strings.Join(g.Elsewhere(), ", ") + ".")
			return nil
		},
	}
}

// nobody stands in for clients that nobody asks for.
type nobody struct{}

func (nobody) Client(http.Header, *http.Request) (string, error) {
	return "", &proof.Refusal{Reason: proof.NoClient}
}

func readRoutes(path string) (gateway.Config, error) {
	text, err := readBounded(path, maxRoutes)
	if err != nil {
		return gateway.Config{}, usage("routes file: %w", err)
	}
	if len(bytes.TrimSpace(text)) == 0 {
		return gateway.Config{}, usage("%s is empty", path)
	}
	cfg, err := gateway.Parse(path, text)
	if err != nil {
		return cfg, &usageError{err}
	}
	return cfg, nil
}

// described are the flags that a routes file stands in for.
var described = []string{"upstream", "session-cookie", "session-bearer", "login", "logout", "mode", "dbsc"}

// config returns what the flags, or the routes file, say of the app.
func (g *gatewayFlags) config(cmd *cobra.Command) (cfg gateway.Config, err error) {
	if g.routes != "" {
		for _, name := range described {
			if cmd.Flags().Changed(name) {
				return cfg, usage("--%s is for the routes file to say", name)
			}
		}
		return readRoutes(g.routes)
	}
	switch {
	case g.upstream == "":
		return cfg, usage("gateway needs --upstream, or --routes")
	case g.bearer == (g.cookie != ""):
		return cfg, usage("gateway needs one of --session-cookie and --session-bearer, or --routes")
	case g.bearer:
		cfg.Session = limpet.Bearer()
	default:
		cfg.Session = limpet.Cookie(g.cookie)
	}
	if cfg.Upstream, err = gateway.ParseUpstream(g.upstream); err != nil {
		return cfg, usage("--upstream: %w", err)
	}
	if cfg.DBSC = g.dbsc; g.dbsc && g.bearer {
		return cfg, usage("--dbsc needs --session-cookie: browsers keep keys for no other sessions")
	}
	cfg.Rule.Mode = modes[g.mode]
	cfg.Logins = []gateway.Login{{Pattern: g.login}}
	cfg.Logouts = []string{g.logout}
	return cfg, nil
}

// ballast is memory that nobody writes to, so that it takes no room in RAM. With
// the few megabytes that a gateway keeps, garbage would be collected after some
// hundred requests; with it, some thousand.
const ballast = 16 << 20

// run serves until the command's context is done.
func (g *gatewayFlags) run(cmd *cobra.Command) (err error) {
	if (g.tlsCert == "") != (g.tlsKey == "") {
		return usage("--tls-cert and --tls-key go together")
	}
	if g.lease < time.Second || g.lease > 24*time.Hour {
		return usage("--lease must be from 1s to 24h")
	}
	var trusted []netip.Prefix
	for _, text := range g.trusted {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return usage("--trusted-proxy must be a network such as 10.0.0.0/8")
		}
		trusted = append(trusted, p)
	}
	if g.forwardAuth != "" && trusted == nil {
		return usage("--forward-auth needs --trusted-proxy: the network from which proxies ask, such as 127.0.0.1/32")
	}
	if _, err := g.config(cmd); err != nil {
		return err
	}
	log := logger(g.logLevel, g.logFormat)
	stdlog.SetOutput(unasked{log})
	if err := g.operator.begin(cmd.Context(), "limpet-gateway", trusted, log); err != nil {
		return err
	}
	defer g.operator.close()
	path, err := g.store.path()
	if err != nil {
		return err
	}
	var certificate *reloaded
	if g.tlsCert != "" {
		if certificate, err = loadCertificate(g.tlsCert, g.tlsKey); err != nil {
			return err
		}
	}
	key, store, closer, err := openSealed(cmd.Context(), g.store, &g.access, g.sealKeyFile, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closer.Close()) }()
	store = g.operator.metrics.Count(store)
	if key == nil { // one for all that are made of the routes file
		key = make([]byte, sealKeySize)
		rand.Read(key) // never fails
	}
	clients := gatewayClients{flags: g, log: log}
	defer clients.close()
	g.operator.tpm = clients.health
	build := func() (*gateway.Gateway, error) {
		cfg, err := g.config(cmd)
		if err != nil {
			return nil, err
		}
		anyRule := func(is func(limpet.Rule) bool) bool {
			return is(cfg.Rule) || slices.ContainsFunc(cfg.Routes, func(r limpet.Route) bool { return is(r.Rule) })
		}
		asks := anyRule(func(r limpet.Rule) bool { return r.Client != limpet.NoClient })
		if certificate == nil && (asks || anyRule(func(r limpet.Rule) bool { return r.Channel })) {
			return nil, usage("a route with channel or client needs --tls-cert and --tls-key: there is no TLS connection to bind proofs to")
		}
		if asks {
			if cfg.Clients, err = clients.open(cmd.Context()); err != nil {
				return nil, err
			}
		}
		cfg.Store, cfg.SealKey, cfg.Lease, cfg.Trusted, cfg.Logger = store, key, g.lease, trusted, log
		cfg.Decided = g.operator.decided
		made, err := gateway.New(cfg)
		if err != nil {
			return nil, &usageError{err}
		}
		return made, nil
	}
	first, err := build()
	if err != nil {
		return err
	}
	var now atomic.Pointer[gateway.Gateway]
	now.Store(first)
	if os.Getenv("GOGC") == "" && os.Getenv("GOMEMLIMIT") == "" { // nobody else has seen to it
		weight := make([]byte, ballast)
		defer runtime.KeepAlive(weight)
	}

	listeners, err := g.open(cmd)
	if err != nil {
		return err
	}
	var reloads []loaded
	if certificate != nil {
		reloads = append(reloads, loaded{"certificate", certificate.load})
	}
	if g.routes != "" {
		reloads = append(reloads, loaded{"routes", func() error {
			next, err := build()
			if err != nil {
				return err
			}
			now.Swap(next).Close()
			return nil
		}})
	}
	defer onHangup(log, reloads...)()
	servers, err := g.operator.open(cmd.Context(), func() *limpet.Guard { return now.Load().Guard() }, store, g.store.kind(), path)
	if err != nil {
		return err
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { now.Load().ServeHTTP(w, r) })
	server := gateway.NewServer(g.operator.traced(handler), log)
	if g.forwardAuth != "" {
		asked, err := net.Listen("tcp", g.forwardAuth)
		if err != nil {
			return fmt.Errorf("cannot listen for forward-auth: %w", err)
		}
		defer asked.Close()
		servers[asked] = forwardAuthServer(&now, log)
		note("forward-auth on http://%s; through the gateway itself go %s", asked.Addr(), strings.Join(first.Elsewhere(), ", "))
	}
	var urls []string
	for _, l := range listeners {
		defer l.Close()
		url := "http://" + l.Addr().String()
		l = gateway.Listener(l)
		if certificate != nil {
			l = tls.NewListener(l, &tls.Config{GetCertificate: certificate.get, NextProtos: []string{"h2", "http/1.1"}})
			url = "https://" + url[len("http://"):]
		}
		servers[l] = server
		note("listening on %s", url)
		urls = append(urls, url)
	}
	ready("listening on " + strings.Join(urls, ", "))
	return serveAll(cmd.Context(), log, servers)
}

// open returns the sockets that systemd opened for the gateway, or else one of
// its own.
func (g *gatewayFlags) open(cmd *cobra.Command) ([]net.Listener, error) {
	const name = "http" // FileDescriptorName= of the socket unit
	passed, err := inherited(name)
	if err != nil {
		return nil, err
	}
	if sockets := passed[name]; len(sockets) > 0 {
		if cmd.Flags().Changed("listen") {
			note("systemd opened the sockets: --listen %s does not count", g.listen)
		}
		return sockets, nil
	}
	l, err := net.Listen("tcp", g.listen)
	if err != nil {
		return nil, fmt.Errorf("cannot listen: %w", err)
	}
	return []net.Listener{l}, nil
}

// forwardAuthServer answers proxies: over HTTP and, on the same port, Envoy's gRPC.
func forwardAuthServer(now *atomic.Pointer[gateway.Gateway], log *slog.Logger) *http.Server {
	calls := extauthz.NewHandler(func(ctx context.Context, q *gateway.Question) *gateway.Answer { return now.Load().Ask(ctx, q) }, log)
	s := newHTTPServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if extauthz.IsCall(r) {
			calls.ServeHTTP(w, r)
			return
		}
		now.Load().ForwardAuth(w, r)
	}), log)
	s.MaxHeaderBytes = 64 << 10           // what proxies admit, and what they add
	s.DisableGeneralOptionsHandler = true // which says 200 to everybody
	s.Protocols = new(http.Protocols)
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	return s
}

// unasked is where net/http writes what its transport has to say, which is that
// the app has sent something where nothing was asked. It repeats what that was:
// perhaps an answer with somebody's session in it.
type unasked struct{ log *slog.Logger }

func (u unasked) Write(p []byte) (int, error) {
	u.log.Warn("limpet: gateway: the app says something that nobody asked for: perhaps it leaves bodies unread and takes them for requests")
	return len(p), nil
}

// gatewayClients are the clients of package channel that routes ask for, from the
// first time that one does.
type gatewayClients struct {
	flags  *gatewayFlags
	log    *slog.Logger
	tpm    *tpmkey.Keystore
	ring   atomic.Pointer[keyring.Ring]
	server *channel.Server
}

func (c *gatewayClients) open(ctx context.Context) (limpet.Clients, error) {
	if c.server != nil {
		return c.server, nil
	}
	tpm := tpmkey.New(c.flags.keeper.tpmConfig())
	ring, err := c.flags.clients.open(tpm, c.log)
	if err != nil {
		tpm.Close()
		return nil, err
	}
	server, err := channel.NewServer(channel.ServerConfig{Keys: ring, Logger: c.log})
	if err != nil {
		ring.Close()
		tpm.Close()
		return nil, err
	}
	examine(ctx, c.log, ring)
	c.tpm, c.server = tpm, server
	c.ring.Store(ring)
	return server, nil
}

// health is an admin.Config.TPM.
func (c *gatewayClients) health(ctx context.Context) (used bool, err error) {
	ring := c.ring.Load()
	if ring == nil {
		return false, nil // no route asks for clients
	}
	key, err := tryTPM(ctx, ring)
	return key != nil, err
}

func (c *gatewayClients) close() {
	if c.server != nil {
		c.ring.Load().Close()
		c.tpm.Close()
	}
}
