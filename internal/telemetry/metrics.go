// Package telemetry tells other programs what a server does: numbers to
// Prometheus, traces to whoever takes OTLP. Labels and attributes name no users,
// and every label has a closed set of values.
package telemetry

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/dbsc"
)

// The values of labels. What is not among them is "other".
var (
	results = []limpet.Result{limpet.Admitted, limpet.Refused, limpet.WouldRefuse, limpet.BrokenOff, limpet.WouldBreakOff,
		limpet.Bound, limpet.Rebound, limpet.Revoked}
	formats = []limpet.Format{limpet.NoProof, limpet.RFC9421, limpet.HWSign, limpet.DPoP, limpet.ByCertificate, limpet.ByChannel, limpet.ByCookie, limpet.DBSC}
	events  = []limpet.Result{limpet.Offered, limpet.Completed, limpet.Refreshed, limpet.Skipped, limpet.Ended} // of browsers
	causes  = []string{noCause, dbsc.Unreachable, dbsc.ServerError, dbsc.QuotaExceeded, dbsc.OtherReason, "ended", "other-login", "unknown"}
	reasons = []proof.Reason{noReason, proof.Required, proof.Malformed, proof.Invalid, proof.KeyUnknown, proof.ClockSkew, proof.NonceSpent,
		proof.NonceWeak, proof.BodyDiffer, proof.BodyLarge, proof.Stale, proof.NoChannel, proof.TooLarge, proof.SessionRequired,
		proof.SessionUnbound, proof.SessionEnded, proof.LevelTooLow, proof.NoClient, proof.Unavailable, throughGateway, internalError}
)

const (
	noReason       proof.Reason = "none"
	throughGateway proof.Reason = "through_gateway" // as gateway.Gateway.Ask has it
	internalError  proof.Reason = "internal_error"  // as limpet.Refuse has it
	noCause                     = "none"
	other                       = "other"
)

// Metrics counts what guards decide and how their store fares.
type Metrics struct {
	registry  *prometheus.Registry
	decisions *prometheus.CounterVec
	took      prometheus.Histogram
	browsers  *prometheus.CounterVec
	replays   prometheus.Counter
	failures  *prometheus.CounterVec

	// The counters that were needed so far: asking decisions takes longer.
	found atomic.Pointer[map[labels]prometheus.Counter]
	mu    sync.Mutex // of those who add to found
}

type labels struct {
	result limpet.Result
	reason proof.Reason
	format limpet.Format
}

// NewMetrics returns metrics of a server of this version, with those of the Go
// runtime and the process.
func NewMetrics(version string) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "limpet_decisions_total",
			Help: "Decisions over requests (admitted, refused, would-refuse), over those that were admitted and broke off, and over sessions (bound, rebound, revoked).",
		}, []string{"result", "reason", "format"}),
		took: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "limpet_verify_duration_seconds",
			Help:    "Time to decide over a request, with the store's and, where a rule reads bodies, the body's.",
			Buckets: []float64{2.5e-6, 5e-6, 10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 100e-3, 1},
		}),
		browsers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "limpet_browser_sessions_total",
			Help: "Sessions that browsers keep keys for: offered, completed, refreshed; requests they sent without a refresh (skipped); sessions they were told to forget (ended).",
		}, []string{"event", "cause"}),
		replays: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "limpet_replays_total",
			Help: "Requests with a value that was used before, on routes that mind it.",
		}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "limpet_store_errors_total",
			Help: "Calls of the store that failed.",
		}, []string{"operation"}),
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "limpet_build_info",
		Help:        "1, with the version of the server and of Go.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()},
	})
	info.Set(1)
	m.registry.MustRegister(m.decisions, m.browsers, m.took, m.replays, m.failures, info,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.found.Store(&map[labels]prometheus.Counter{})
	for _, f := range formats { // so that a rate begins at zero
		m.counter(labels{limpet.Admitted, noReason, f})
	}
	for _, event := range events[:3] {
		m.browsers.WithLabelValues(string(event), noCause)
	}
	for _, op := range operations {
		m.failures.WithLabelValues(op)
	}
	return m
}

// Decided counts a decision: it is a [limpet.Config].Decided.
func (m *Metrics) Decided(_ context.Context, d *limpet.Decision) {
	if slices.Contains(events, d.Result) {
		cause := cmp.Or(d.Cause, noCause)
		if !slices.Contains(causes, cause) {
			cause = other
		}
		m.browsers.WithLabelValues(string(d.Result), cause).Inc()
		return
	}
	l := labels{d.Result, d.Reason, d.Format}
	if l.reason == "" {
		l.reason = noReason
	}
	c, ok := (*m.found.Load())[l]
	if !ok {
		c = m.counter(l)
	}
	c.Inc()
	if d.Took > 0 {
		m.took.Observe(d.Took.Seconds())
	}
	if d.Reason == proof.NonceSpent {
		m.replays.Inc()
	}
}

// counter returns the counter of these labels, and keeps it.
func (m *Metrics) counter(l labels) prometheus.Counter {
	if !slices.Contains(results, l.result) {
		l.result = other
	}
	if !slices.Contains(reasons, l.reason) {
		l.reason = other
	}
	if !slices.Contains(formats, l.format) {
		l.format = other
	}
	c := m.decisions.WithLabelValues(string(l.result), string(l.reason), string(l.format))
	m.mu.Lock()
	defer m.mu.Unlock()
	more := maps.Clone(*m.found.Load())
	more[l] = c
	m.found.Store(&more)
	return c
}

// Totals calls yield with how many decisions fell so far, for each result and reason
// and whatever carried the proof. The reason of what was not refused is "".
func (m *Metrics) Totals(yield func(result limpet.Result, reason proof.Reason, n uint64)) {
	totals := make(map[labels]uint64)
	for l, c := range *m.found.Load() {
		var now dto.Metric
		if c.Write(&now) != nil {
			continue // no counter of ours fails
		}
		if l.reason == noReason {
			l.reason = ""
		}
		totals[labels{result: l.result, reason: l.reason}] += uint64(now.GetCounter().GetValue())
	}
	for l, n := range totals {
		yield(l.result, l.reason, n)
	}
}

// Handler serves the metrics to Prometheus.
func (m *Metrics) Handler(log *slog.Logger) http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(log.Handler(), slog.LevelError),
		MaxRequestsInFlight: 4,
	})
}

// Store is a store with what a guard can make use of, but for a
// [limpet.Versioner], which not every one can be.
type Store interface {
	limpet.Store
	limpet.Lister
	limpet.Spender
}

var operations = []string{"get", "put", "add", "delete", "list", "spend"}

// Count returns a store whose failures are counted.
func (m *Metrics) Count(s Store) Store {
	c := &counted{Store: s}
	for i, counter := range []*prometheus.Counter{&c.get, &c.put, &c.add, &c.delete, &c.list, &c.spend} {
		*counter = m.failures.WithLabelValues(operations[i])
	}
	return c
}

type counted struct {
	Store
	get, put, add, delete, list, spend prometheus.Counter
}

// count counts an error, unless it is that nobody waits for the answer any more.
func count(c prometheus.Counter, err error) {
	if err != nil && !errors.Is(err, context.Canceled) {
		c.Inc()
	}
}

// Version passes on what the store says of its records; nothing if it says nothing.
func (c *counted) Version(of any, key string) *atomic.Uint64 {
	versions, ok := c.Store.(limpet.Versioner)
	if !ok || of != any(c) {
		return nil
	}
	return versions.Version(c.Store, key)
}

func (c *counted) Get(ctx context.Context, key string) ([]byte, bool, error) {
	val, found, err := c.Store.Get(ctx, key)
	count(c.get, err)
	return val, found, err
}

func (c *counted) Put(ctx context.Context, key string, val []byte, ttl time.Duration) error {
	err := c.Store.Put(ctx, key, val, ttl)
	count(c.put, err)
	return err
}

func (c *counted) Add(ctx context.Context, key string, val []byte, ttl time.Duration) (bool, error) {
	added, err := c.Store.Add(ctx, key, val, ttl)
	count(c.add, err)
	return added, err
}

func (c *counted) Delete(ctx context.Context, key string) error {
	err := c.Store.Delete(ctx, key)
	count(c.delete, err)
	return err
}

func (c *counted) List(ctx context.Context, prefix string, yield func(string, []byte) bool) error {
	err := c.Store.List(ctx, prefix, yield)
	count(c.list, err)
	return err
}

func (c *counted) Spend(ctx context.Context, id []byte, expires time.Time) (bool, error) {
	fresh, err := c.Store.Spend(ctx, id, expires)
	count(c.spend, err)
	return fresh, err
}
