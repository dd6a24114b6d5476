package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/internal/admin"
	"github.com/limpet-auth/limpet/internal/private"
	"github.com/limpet-auth/limpet/internal/telemetry"
)

// operator is what a server offers to whoever runs it: the admin API, metrics in
// it, and traces.
type operator struct {
	socket    string
	listen    string
	tokenFile string
	otlp      string

	service   string
	token     string
	metrics   *telemetry.Metrics
	traces    *telemetry.Traces // nil if nobody wants any
	recent    *admin.Recent
	decisions admin.Decisions
	log       *slog.Logger

	tpm func(context.Context) (used bool, err error) // see admin.Config; nil if there never is one
}

func (o *operator) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.socket, "admin-socket", "", "`path` of the admin socket (default PATH.admin beside the store)")
	f.StringVar(&o.listen, "admin-listen", "", "loopback `address` of a port with /metrics, /livez and /readyz")
	f.StringVar(&o.tokenFile, "admin-token-file", "", "`file` with a token, made if there is none, that opens the console and the admin API on --admin-listen")
	f.StringVar(&o.otlp, "otlp-endpoint", "", "`URL` of a collector that takes traces, as http://127.0.0.1:4318 (default $OTEL_EXPORTER_OTLP_ENDPOINT)")
	settings(cmd, "admin-socket", "admin-listen", "admin-token-file", "otlp-endpoint")
}

// begin makes what the server's guards are to be told of. What is wrong with the
// flags it says before anything is opened.
func (o *operator) begin(ctx context.Context, service string, trusted []netip.Prefix, log *slog.Logger) (err error) {
	o.log, o.service = log, service
	if o.listen != "" {
		if _, err := loopback(o.listen); err != nil {
			return err
		}
	}
	if o.tokenFile != "" {
		if o.listen == "" {
			return usage("--admin-token-file is for --admin-listen: the socket needs no token")
		}
		if o.token, err = adminToken(o.tokenFile); err != nil {
			return err
		}
	}
	o.metrics = telemetry.NewMetrics(versionText())
	o.recent = admin.NewRecent(o.metrics.Totals)
	if telemetry.TracesWanted(o.otlp) {
		o.traces, err = telemetry.NewTraces(ctx, telemetry.TracesConfig{Endpoint: o.otlp, Service: service, Version: versionText(), Trusted: trusted, Logger: log})
		if err != nil {
			return &usageError{err}
		}
	}
	return nil
}

// close sends the traces that are still here.
func (o *operator) close() {
	if o.traces != nil {
		if err := o.traces.Close(); err != nil {
			o.log.Warn("limpet: traces", "why", err)
		}
	}
}

func (o *operator) decided(ctx context.Context, d *limpet.Decision) {
	o.metrics.Decided(ctx, d)
	o.recent.Decided(ctx, d)
	o.decisions.Decided(ctx, d)
	if o.traces != nil {
		o.traces.Decided(ctx, d)
	}
}

// traced is a server's handler with a span for each request, if they are wanted.
func (o *operator) traced(h http.Handler) http.Handler {
	if o.traces == nil {
		return h
	}
	return o.traces.Handler(h)
}

// open opens the admin API's listeners and returns their servers. path is the
// store's file, "" if it has none. Streams end when ctx is done.
func (o *operator) open(ctx context.Context, guard func() *limpet.Guard, store limpet.Store, kind, path string) (map[net.Listener]*http.Server, error) {
	api := admin.New(admin.Config{Guard: guard, Store: store, Decisions: &o.decisions, Recent: o.recent, Metrics: o.metrics.Handler(o.log), Logger: o.log,
		Service: o.service, Version: versionText(), StoreKind: kind, TPM: o.tpm})
	go o.recent.Run(ctx)
	servers := make(map[net.Listener]*http.Server)
	serve := func(l net.Listener, h http.Handler) {
		servers[l] = newHTTPServer(h, o.log)
		servers[l].BaseContext = func(net.Listener) context.Context { return ctx }
	}
	socket, err := o.openSocket(path)
	if err != nil {
		return nil, err
	}
	if socket != nil {
		serve(socket, api.OnSocket())
	}
	if o.listen == "" {
		return servers, nil
	}
	addr, err := loopback(o.listen)
	if err == nil {
		var l *net.TCPListener
		if l, err = net.ListenTCP("tcp", addr); err == nil {
			serve(l, api.OnLoopback(o.token))
			note("admin API on http://%s", l.Addr())
			if o.token != "" {
				note("console on http://%s/console/, with the token in %s", l.Addr(), o.tokenFile)
			}
			return servers, nil
		}
		err = fmt.Errorf("admin port: %w", err)
	}
	if socket != nil {
		socket.Close()
	}
	return nil, err
}

// openSocket opens the admin socket, nil if there is none. The one beside the store
// is a convenience; the server runs without it if need be.
func (o *operator) openSocket(store string) (net.Listener, error) {
	if o.socket != "" {
		l, err := listenPrivate(o.socket)
		if err != nil {
			return nil, fmt.Errorf("admin socket: %w", err)
		}
		return l, nil
	}
	if store == "" {
		return nil, nil
	}
	l, err := listenPrivate(store + adminSuffix)
	if err != nil {
		o.log.Warn("limpet: no admin socket", "why", err)
		return nil, nil
	}
	return l, nil
}

const adminSuffix = ".admin"

// loopback reads the address of a port that this machine alone can reach.
func loopback(text string) (*net.TCPAddr, error) {
	addr, err := net.ResolveTCPAddr("tcp", text)
	if err != nil {
		return nil, usage("--admin-listen: %w", err)
	}
	if !addr.IP.IsLoopback() {
		return nil, withHint(usage("--admin-listen takes a loopback address, such as 127.0.0.1:9180"),
			"other machines reach it through a proxy that knows them, or through ssh")
	}
	return addr, nil
}

const (
	minAdminToken = 20   // characters
	maxAdminToken = 1024 // bytes of its file
)

// adminToken reads the token that opens the admin API, or makes one.
func adminToken(path string) (string, error) {
	err := private.OwnerOnly(path)
	if missing(err) {
		if err = createFile(path, []byte(rand.Text()+rand.Text()+"\n")); err == nil {
			err = private.OwnerOnly(path)
		}
	}
	var text []byte
	if err == nil {
		text, err = readBounded(path, maxAdminToken)
	}
	if err != nil {
		return "", fmt.Errorf("admin token: %w", err)
	}
	token := strings.TrimRight(string(text), "\r\n")
	if len(token) < minAdminToken || strings.ContainsAny(token, " \t\r\n") {
		return "", errors.New("admin token: the file must hold one word of at least 20 characters")
	}
	return token, nil
}
