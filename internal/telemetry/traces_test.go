package telemetry

import (
	"bufio"
	"encoding/hex"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/gateway"
	"github.com/limpet-auth/limpet/store/memstore"
)

// receiver takes traces as a collector does.
type receiver struct {
	*httptest.Server
	mu      sync.Mutex
	spans   []*tracepb.Span
	service string
}

func newReceiver(t *testing.T) *receiver {
	r := new(receiver)
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		var export collector.ExportTraceServiceRequest
		if err == nil {
			err = proto.Unmarshal(body, &export)
		}
		if err != nil || req.URL.Path != "/v1/traces" {
			t.Errorf("%s: %v", req.URL.Path, err)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, from := range export.ResourceSpans {
			for _, attr := range from.Resource.Attributes {
				if attr.Key == "service.name" {
					r.service = attr.Value.GetStringValue()
				}
			}
			for _, scope := range from.ScopeSpans {
				r.spans = append(r.spans, scope.Spans...)
			}
		}
	}))
	t.Cleanup(r.Close)
	return r
}

func attributes(s *tracepb.Span) map[string]string {
	all := map[string]string{}
	for _, attr := range s.Attributes {
		if all[attr.Key] = attr.Value.GetStringValue(); all[attr.Key] == "" {
			all[attr.Key] = attr.Value.String()
		}
	}
	return all
}

func TestTraces(t *testing.T) {
	var seen []http.Header
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = append(seen, r.Header)
		if r.Header.Get("Upgrade") != "" {
			conn, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello\n")
			return
		}
		if r.URL.Path == "/broken" {
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	defer app.Close()
	upstream, err := url.Parse(app.URL)
	if err != nil {
		t.Fatal(err)
	}
	to := newReceiver(t)
	if !TracesWanted(to.URL) || TracesWanted("") {
		t.Error("wanted without an endpoint, or not with one")
	}
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", to.URL) // as is usual elsewhere
	if !TracesWanted("") {
		t.Error("not wanted")
	}
	traces, err := NewTraces(t.Context(), TracesConfig{Service: "limpet-gateway", Version: "v1", Logger: slog.Default(),
		Trusted: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
	if err != nil {
		t.Fatal(err)
	}
	g, err := gateway.New(gateway.Config{Upstream: upstream, Session: limpet.Cookie("sid"), Store: memstore.New(nil), Decided: traces.Decided,
		Logger: slog.New(slog.DiscardHandler), Routes: []limpet.Route{{Pattern: "/strict/", Rule: limpet.Rule{Mode: limpet.Require}}}})
	if err != nil {
		t.Fatal(err)
	}
	remote := ""
	var serving sync.WaitGroup
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		serving.Add(1)
		defer serving.Done()
		if remote != "" {
			r.RemoteAddr = remote
		}
		traces.Handler(g).ServeHTTP(w, r)
	}))
	defer front.Close()
	const outside = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	get := func(path, parent string) {
		t.Helper()
		req, err := http.NewRequest("GET", front.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Cookie", "sid=secret-token")
		if parent != "" {
			req.Header.Set("Traceparent", parent)
			req.Header.Set("Tracestate", "a=b")
		}
		resp, err := front.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	get("/path?private", "")
	get("/strict/;sid=private", outside) // a stranger's trace
	remote = "10.1.2.3:4"
	get("/broken", outside) // a proxy's
	remote = ""

	conn, err := net.Dial("tcp", front.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET /ws HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("upgrade: %v, %v", resp, err)
	}
	conn.Close()
	serving.Wait()
	if err := traces.Close(); err != nil {
		t.Fatal(err)
	}

	to.mu.Lock()
	defer to.mu.Unlock()
	if to.service != "limpet-gateway" {
		t.Errorf("service %q", to.service)
	}
	byPath := map[string]*tracepb.Span{}
	for _, s := range to.spans {
		byPath[attributes(s)["url.path"]] = s
		if strings.Contains(s.String(), "private") || strings.Contains(s.String(), "secret-token") {
			t.Errorf("a span says too much: %s", s)
		}
	}
	if len(to.spans) != 4 || len(byPath) != 4 {
		t.Fatalf("%d spans: %v", len(to.spans), to.spans)
	}
	if got := attributes(byPath["/path"]); got["limpet.result"] != "admitted" || got["limpet.format"] != "none" || got["limpet.level"] != "none" ||
		got["limpet.session"] != limpet.Bearer().ID("secret-token").String()[:12] || got["http.response.status_code"] != "int_value:200" {
		t.Errorf("%v", got)
	}
	if got := attributes(byPath["/strict/;"]); got["limpet.result"] != "refused" || got["limpet.reason"] != "session_unbound" || got["http.response.status_code"] != "int_value:401" {
		t.Errorf("%v", got)
	}
	stranger, err := hex.DecodeString("0af7651916cd43dd8448eb211c80319c")
	if err != nil {
		t.Fatal(err)
	}
	if s := byPath["/strict/;"]; string(s.TraceId) == string(stranger) || len(s.Links) != 1 || string(s.Links[0].TraceId) != string(stranger) {
		t.Errorf("a stranger's trace goes on: %s", s)
	}
	if s := byPath["/broken"]; string(s.TraceId) != string(stranger) || s.Status.GetCode() != tracepb.Status_STATUS_CODE_ERROR {
		t.Errorf("a proxy's trace does not go on: %s", s)
	}
	if got := attributes(byPath["/ws"]); got["http.response.status_code"] != "int_value:101" {
		t.Errorf("%v", got)
	}

	// The app learns the span that is its parent, and nothing of a stranger's.
	if len(seen) != 3 {
		t.Fatalf("the app saw %d requests", len(seen))
	}
	for i, path := range []string{"/path", "/broken", "/ws"} {
		s := byPath[path]
		if got, want := seen[i].Get("Traceparent"), "00-"+hex.EncodeToString(s.TraceId)+"-"+hex.EncodeToString(s.SpanId)+"-01"; got != want {
			t.Errorf("%s: traceparent %q, want %q", path, got, want)
		}
	}
	if seen[0].Get("Tracestate") != "" || seen[1].Get("Tracestate") != "a=b" {
		t.Errorf("tracestate %q, %q", seen[0].Get("Tracestate"), seen[1].Get("Tracestate"))
	}
}

func TestEndpoints(t *testing.T) {
	for _, endpoint := range []string{"collector:4318", "ftp://collector", "http://user:secret@collector", "http://collector/?a"} {
		if _, err := NewTraces(t.Context(), TracesConfig{Endpoint: endpoint}); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", endpoint, err)
		}
	}
}
