package telemetry

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/internal/incoming"
)

// Traces sends a span for each request over OTLP.
type Traces struct {
	provider *sdk.TracerProvider
	tracer   trace.Tracer
	trusted  []netip.Prefix
}

// TracesConfig is what [Traces] are made from.
type TracesConfig struct {
	// Endpoint is the URL of a collector, which takes OTLP over HTTP; "" is that
	// of OTEL_EXPORTER_OTLP_ENDPOINT. OpenTelemetry's other variables count too:
	// OTEL_EXPORTER_OTLP_HEADERS, OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME and so on.
	Endpoint string

	Service string // its name, unless OTEL_SERVICE_NAME gives another one
	Version string
	Trusted []netip.Prefix // proxies in front, whose traces go on
	Logger  *slog.Logger   // is told when the collector takes nothing
}

// TracesWanted reports whether a flag or OpenTelemetry's variables name a
// collector.
func TracesWanted(endpoint string) bool {
	return endpoint != "" || os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != ""
}

// NewTraces returns traces. It does not ask whether the collector is there.
func NewTraces(ctx context.Context, cfg TracesConfig) (*Traces, error) {
	var opts []otlptracehttp.Option
	if cfg.Endpoint != "" {
		u, err := url.Parse(cfg.Endpoint)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			return nil, errors.New("the OTLP endpoint is not of the form http://host:port")
		}
		if u.Path == "" || u.Path == "/" {
			u.Path = "/v1/traces"
		}
		opts = append(opts, otlptracehttp.WithEndpointURL(u.String()))
	}
	exporter, err := otlptracehttp.New(ctx, opts...)
	if err != nil {
		return nil, fmt.Errorf("traces: %w", err)
	}
	about, err := resource.New(ctx,
		resource.WithAttributes(attribute.String("service.name", cfg.Service), attribute.String("service.version", cfg.Version)),
		resource.WithTelemetrySDK(),
		resource.WithFromEnv()) // last, so that it counts
	if err != nil {
		return nil, fmt.Errorf("traces: %w", err)
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { cfg.Logger.Warn("limpet: traces", "why", err) }))
	provider := sdk.NewTracerProvider(sdk.WithBatcher(exporter), sdk.WithResource(about))
	return &Traces{provider, provider.Tracer("github.com/limpet-auth/limpet", trace.WithInstrumentationVersion(cfg.Version)), cfg.Trusted}, nil
}

// Close sends what was not sent yet, for five seconds at most.
func (t *Traces) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		return fmt.Errorf("traces: %w", err)
	}
	return nil
}

var header propagation.TraceContext // W3C Trace Context: traceparent, tracestate

// methods are those that name a span; others are strangers' words.
var methods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}

const maxPath = 256 // bytes of a path in a span

// Handler gives each request a span, and next the headers that continue its trace.
// A trace that a stranger began does not go on: who may decide what is recorded
// can fill the collector. The span has a link to it.
func (t *Traces) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := "HTTP"
		if slices.Contains(methods, r.Method) {
			name = r.Method
		}
		path := incoming.Told(r.URL.EscapedPath())
		path = path[:min(len(path), maxPath)]
		opts := []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindServer),
			trace.WithAttributes(attribute.String("http.request.method", name), attribute.String("url.path", path))}
		ctx := r.Context()
		if outside := header.Extract(ctx, propagation.HeaderCarrier(r.Header)); trace.SpanContextFromContext(outside).IsValid() {
			if t.trusts(r.RemoteAddr) {
				ctx = outside
			} else {
				opts = append(opts, trace.WithLinks(trace.LinkFromContext(outside)))
			}
		}
		ctx, span := t.tracer.Start(ctx, name, opts...)
		defer span.End()
		r = r.WithContext(ctx)
		r.Header = r.Header.Clone()
		for _, field := range header.Fields() {
			r.Header.Del(field)
		}
		header.Inject(ctx, propagation.HeaderCarrier(r.Header))
		answer := &answer{ResponseWriter: w}
		next.ServeHTTP(answer, r)
		if answer.code != 0 {
			span.SetAttributes(attribute.Int("http.response.status_code", answer.code))
		}
		if answer.code >= 500 {
			span.SetStatus(codes.Error, "")
		}
	})
}

// trusts reports whether a peer is a proxy in front.
func (t *Traces) trusts(remote string) bool {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		return false
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && slices.ContainsFunc(t.trusted, func(p netip.Prefix) bool { return p.Contains(addr.Unmap().WithZone("")) })
}

// answer notes the status of an answer. What a ResponseWriter can do besides is
// found by [http.ResponseController].
type answer struct {
	http.ResponseWriter
	code int
}

func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// Hijack notes that an upgrade succeeded: its answer goes past WriteHeader.
func (a *answer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(a.ResponseWriter).Hijack()
	if err == nil {
		a.code = http.StatusSwitchingProtocols
	}
	return conn, rw, err
}

func (a *answer) WriteHeader(code int) {
	if a.code == 0 && (code >= 200 || code == http.StatusSwitchingProtocols) {
		a.code = code
	}
	a.ResponseWriter.WriteHeader(code)
}

func (a *answer) Write(p []byte) (int, error) {
	if a.code == 0 {
		a.code = http.StatusOK
	}
	return a.ResponseWriter.Write(p)
}

// Decided adds a decision to the span of its request: it is a
// [limpet.Config].Decided. Who the request is from is not added but for the
// beginning of the session's hash, as in the log: traces are kept elsewhere.
func (t *Traces) Decided(ctx context.Context, d *limpet.Decision) {
	span := trace.SpanFromContext(ctx)
	if !span.IsRecording() {
		return
	}
	attrs := []attribute.KeyValue{attribute.String("limpet.format", string(d.Format))}
	if d.Reason != "" {
		attrs = append(attrs, attribute.String("limpet.reason", string(d.Reason)))
	}
	if d.Cause != "" {
		attrs = append(attrs, attribute.String("limpet.cause", d.Cause))
	}
	if d.Level != "" {
		attrs = append(attrs, attribute.String("limpet.level", string(d.Level)))
	}
	if d.Session != (limpet.ID{}) {
		attrs = append(attrs, attribute.String("limpet.session", d.Session.String()[:12]))
	}
	if d.Took > 0 {
		attrs = append(attrs, attribute.Float64("limpet.took", d.Took.Seconds()))
	}
	// Of the session's decisions, such as that of a logout, a request may have
	// several: they are events. Its own is what the span is about.
	switch d.Result {
	case limpet.Admitted, limpet.Refused, limpet.WouldRefuse:
		span.SetAttributes(append(attrs, attribute.String("limpet.result", string(d.Result)))...)
	default:
		span.AddEvent("limpet."+strings.ReplaceAll(string(d.Result), "-", "_"), trace.WithAttributes(attrs...))
	}
}
