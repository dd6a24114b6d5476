package telemetry

import (
	"context"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"maps"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/store/memstore"
)

// scrape reads what the metrics serve, as Prometheus does.
func scrape(t *testing.T, m *Metrics) map[string]*dto.MetricFamily {
	t.Helper()
	srv := httptest.NewServer(m.Handler(slog.Default()))
	defer srv.Close()
	resp, err := srv.Client().Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return families
}

// value returns a counter's value: name, then label, value, label, value.
func value(t *testing.T, families map[string]*dto.MetricFamily, name string, with ...string) float64 {
	t.Helper()
	family, ok := families[name]
	if !ok {
		t.Fatalf("there is no %s", name)
	}
next:
	for _, metric := range family.Metric {
		for i := 0; i < len(with); i += 2 {
			found := false
			for _, label := range metric.Label {
				found = found || label.GetName() == with[i] && label.GetValue() == with[i+1]
			}
			if !found {
				continue next
			}
		}
		switch {
		case metric.Histogram != nil:
			return float64(metric.Histogram.GetSampleCount())
		case metric.Gauge != nil:
			return metric.Gauge.GetValue()
		}
		return metric.Counter.GetValue()
	}
	return -1
}

// TestTotals: those of the metrics, whatever carried the proof.
func TestTotals(t *testing.T) {
	m, ctx := NewMetrics("v1"), context.Background()
	for range 2 {
		m.Decided(ctx, &limpet.Decision{Result: limpet.Admitted, Format: limpet.RFC9421})
		m.Decided(ctx, &limpet.Decision{Result: limpet.Admitted, Format: limpet.DPoP})
		m.Decided(ctx, &limpet.Decision{Result: limpet.Refused, Reason: proof.Required, Format: limpet.NoProof})
		m.Decided(ctx, &limpet.Decision{Result: "a result", Reason: "a reason"})
		m.Decided(ctx, &limpet.Decision{Result: "a result", Reason: "another reason"})
	}
	got := make(map[string]uint64)
	m.Totals(func(result limpet.Result, reason proof.Reason, n uint64) {
		name := string(result) + " " + string(reason)
		if _, twice := got[name]; twice {
			t.Errorf("%s twice", name)
		}
		got[name] = n
	})
	if want := map[string]uint64{"admitted ": 4, "refused proof_required": 2, "other other": 4}; !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestMetrics(t *testing.T) {
	m := NewMetrics("v1.2.3")
	ctx := context.Background()
	m.Decided(ctx, &limpet.Decision{Result: limpet.Admitted, Format: limpet.RFC9421, Took: 30 * time.Microsecond, User: "alice", Path: "/private"})
	for range 3 {
		m.Decided(ctx, &limpet.Decision{Result: limpet.Refused, Reason: proof.NonceSpent, Format: limpet.DPoP, Took: time.Millisecond})
	}
	m.Decided(ctx, &limpet.Decision{Result: limpet.Completed})
	m.Decided(ctx, &limpet.Decision{Result: limpet.Skipped, Cause: "quota_exceeded"})
	m.Decided(ctx, &limpet.Decision{Result: limpet.Ended, Cause: "alice"})
	m.Decided(ctx, &limpet.Decision{Result: limpet.Bound, Format: limpet.HWSign})
	for i := range 50 { // nobody can make series
		m.Decided(ctx, &limpet.Decision{Result: "a result", Reason: proof.Reason("reason " + strconv.Itoa(i)), Format: "a format"})
	}
	families := scrape(t, m)
	for name, family := range families {
		if text := family.String(); strings.Contains(text, "alice") || strings.Contains(text, "private") {
			t.Errorf("%s says who: %s", name, text)
		}
	}
	for _, tt := range []struct {
		want float64
		name string
		with []string
	}{
		{1, "limpet_decisions_total", []string{"result", "admitted", "reason", "none", "format", "rfc9421"}},
		{0, "limpet_decisions_total", []string{"result", "admitted", "reason", "none", "format", "certificate"}},
		{3, "limpet_decisions_total", []string{"result", "refused", "reason", "nonce_spent", "format", "dpop"}},
		{1, "limpet_decisions_total", []string{"result", "bound", "reason", "none", "format", "hw-sign"}},
		{50, "limpet_decisions_total", []string{"result", "other", "reason", "other", "format", "other"}},
		{0, "limpet_browser_sessions_total", []string{"event", "offered", "cause", "none"}},
		{1, "limpet_browser_sessions_total", []string{"event", "completed", "cause", "none"}},
		{1, "limpet_browser_sessions_total", []string{"event", "skipped", "cause", "quota_exceeded"}},
		{1, "limpet_browser_sessions_total", []string{"event", "ended", "cause", "other"}},
		{3, "limpet_replays_total", nil},
		{4, "limpet_verify_duration_seconds", nil},
		{0, "limpet_store_errors_total", []string{"operation", "spend"}},
		{1, "limpet_build_info", []string{"version", "v1.2.3"}},
	} {
		if got := value(t, families, tt.name, tt.with...); got != tt.want {
			t.Errorf("%s%v is %v, want %v", tt.name, tt.with, got, tt.want)
		}
	}
	for _, name := range []string{"go_goroutines", "process_start_time_seconds"} {
		if families[name] == nil {
			t.Errorf("there is no %s", name)
		}
	}
	problems, err := testutil.GatherAndLint(m.registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
	if n := len(*m.found.Load()); n > 100 {
		t.Errorf("%d counters are kept", n)
	}
}

// Whatever a guard can say has a label of its own.
func TestLabels(t *testing.T) {
	known := map[string]bool{}
	for _, r := range append(slices.Clone(results), events...) {
		known["Result "+string(r)] = true
	}
	for _, r := range reasons {
		known["Reason "+string(r)] = true
	}
	for _, f := range formats {
		known["Format "+string(f)] = true
	}
	n := 0
	for _, file := range []string{"../../decision.go", "../../proof/reason.go", "../../gateway/forwardauth.go"} {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(node ast.Node) bool {
			spec, ok := node.(*ast.ValueSpec)
			if !ok || len(spec.Values) != 1 {
				return true
			}
			kind := ""
			switch of := spec.Type.(type) {
			case *ast.Ident:
				kind = of.Name
			case *ast.SelectorExpr:
				kind = of.Sel.Name
			}
			literal, ok := spec.Values[0].(*ast.BasicLit)
			if !ok || kind != "Result" && kind != "Reason" && kind != "Format" {
				return true
			}
			word, err := strconv.Unquote(literal.Value)
			if err != nil {
				t.Fatal(err)
			}
			n++
			if !known[kind+" "+word] {
				t.Errorf("%s %q has no label", kind, word)
			}
			return true
		})
	}
	if want := len(known) - 1; n != want { // but for the reason "none", which is ours
		t.Errorf("%d words are in the sources, %d are labels", n, want)
	}
}

// A store that fails when told to.
type failing struct {
	*memstore.Store
	err error
}

func (f *failing) Get(ctx context.Context, key string) ([]byte, bool, error) {
	if f.err != nil {
		return nil, false, f.err
	}
	return f.Store.Get(ctx, key)
}

func TestStoreErrors(t *testing.T) {
	m := NewMetrics("")
	s := &failing{Store: memstore.New(nil)}
	counted := m.Count(s)
	ctx := context.Background()
	for _, s.err = range []error{nil, errors.New("down"), context.Canceled, context.DeadlineExceeded} {
		counted.Get(ctx, "a")
	}
	if err := counted.Put(ctx, strings.Repeat("x", 1), []byte("x"), time.Minute); err != nil {
		t.Fatal(err)
	}
	families := scrape(t, m)
	if got := value(t, families, "limpet_store_errors_total", "operation", "get"); got != 2 {
		t.Errorf("%v errors, want 2", got)
	}
	if got := value(t, families, "limpet_store_errors_total", "operation", "put"); got != 0 {
		t.Errorf("%v errors, want 0", got)
	}
}

// TestVersions: a store whose failures are counted is all that it was.
func TestVersions(t *testing.T) {
	m, mem := NewMetrics(""), memstore.New(nil)
	version := func(of Store) *atomic.Uint64 { return of.(limpet.Versioner).Version(of, "key") }
	if v := version(m.Count(mem)); v == nil || v != version(mem) {
		t.Error("the versions are lost")
	}
	for name, s := range map[string]Store{
		"with no versions":       m.Count(struct{ Store }{mem}),
		"with a Get of its own":  m.Count(&failing{Store: mem}),
		"around the counted one": &struct{ *counted }{m.Count(mem).(*counted)},
	} {
		if version(s) != nil {
			t.Errorf("a store %s has versions", name)
		}
	}
}

func BenchmarkDecided(b *testing.B) {
	m := NewMetrics("")
	d := &limpet.Decision{Result: limpet.Admitted, Format: limpet.RFC9421, Took: 30 * time.Microsecond}
	b.ReportAllocs()
	for b.Loop() {
		m.Decided(context.Background(), d)
	}
}
