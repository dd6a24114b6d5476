package extauthz_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	managerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/client"
	"github.com/limpet-auth/limpet/gateway"
	"github.com/limpet-auth/limpet/gateway/extauthz"
	"github.com/limpet-auth/limpet/hwkey/softkey"
	"github.com/limpet-auth/limpet/store/memstore"
)

// site is an app with a gateway beside it, and a connection on which to ask.
type site struct {
	*gateway.Gateway
	front *httptest.Server
	authv3.AuthorizationClient
}

func newSite(t *testing.T, trusted string) *site {
	t.Helper()
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/login" {
			http.SetCookie(w, &http.Cookie{Name: "sid", Value: "a-session", Path: "/"})
		}
	}))
	t.Cleanup(app.Close)
	upstream, err := url.Parse(app.URL)
	if err != nil {
		t.Fatal(err)
	}
	g, err := gateway.New(gateway.Config{
		Upstream: upstream, Session: limpet.Cookie("sid"), Store: memstore.New(nil), Logger: slog.New(slog.DiscardHandler),
		Trusted: []netip.Prefix{netip.MustParsePrefix(trusted)},
		Logins:  []gateway.Login{{Pattern: "POST /login", User: "form.username"}},
		Routes:  []limpet.Route{{Pattern: "/admin/", Rule: limpet.Rule{Mode: limpet.Require}}, {Pattern: "POST /orders", Rule: limpet.Rule{Mode: limpet.Require}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	s := &site{Gateway: g, front: httptest.NewTLSServer(g)}
	t.Cleanup(s.front.Close)

	srv := &http.Server{Handler: extauthz.NewHandler(g.Ask, slog.New(slog.DiscardHandler)), Protocols: new(http.Protocols)}
	srv.Protocols.SetUnencryptedHTTP2(true)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	s.AuthorizationClient = authv3.NewAuthorizationClient(conn)
	return s
}

// asked returns what Envoy asks of a request.
func asked(method, target string, headers ...string) *authv3.AttributeContext_HttpRequest {
	r := &authv3.AttributeContext_HttpRequest{Method: method, Scheme: "https", Host: "app.example.com", Path: target, Protocol: "HTTP/1.1",
		Headers: map[string]string{":method": method, ":scheme": "https", ":authority": "app.example.com", ":path": target, "x-forwarded-proto": "https"}}
	for ; len(headers) > 0; headers = headers[2:] {
		r.Headers[headers[0]] = headers[1]
	}
	return r
}

func (s *site) ask(t testing.TB, r *authv3.AttributeContext_HttpRequest) *authv3.CheckResponse {
	t.Helper()
	a, err := s.Check(t.Context(), &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{Http: r}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.ValidateAll(); err != nil {
		t.Fatal(err)
	}
	return a
}

// outcome is what Envoy makes of an answer: the status, and what is set where.
func outcome(a *authv3.CheckResponse) (code int, set map[string]string, removed []string) {
	list, set := a.GetOkResponse().GetHeaders(), make(map[string]string)
	code = 200
	if denied := a.GetDeniedResponse(); denied != nil {
		code, list = int(denied.Status.Code), denied.Headers
	}
	if (code == 200) != (codes.Code(a.GetStatus().GetCode()) == codes.OK) {
		code = -1
	}
	for _, h := range list {
		if h.AppendAction == corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD {
			set[h.Header.Key] = h.Header.Value
		}
	}
	return code, set, a.GetOkResponse().GetHeadersToRemove()
}

// envoy asks before it hands a request on, as Envoy does, and keeps the answer.
type envoy struct {
	*site
	t      testing.TB
	raw    bool // with encode_raw_headers
	last   *authv3.AttributeContext_HttpRequest
	answer *authv3.CheckResponse
}

func (e *envoy) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Path == "/login" || r.URL.Path == "/.well-known/limpet" {
		return e.front.Client().Transport.RoundTrip(r)
	}
	q := &authv3.AttributeContext_HttpRequest{Method: r.Method, Scheme: r.URL.Scheme, Host: r.URL.Host, Path: r.URL.RequestURI(), Headers: make(map[string]string)}
	list := &corev3.HeaderMap{}
	for name, values := range r.Header {
		name = strings.ToLower(name)
		q.Headers[name] = strings.Join(values, ",")
		for _, v := range values {
			list.Headers = append(list.Headers, &corev3.HeaderValue{Key: name, RawValue: []byte(v)})
		}
	}
	if e.raw {
		q.Headers, q.HeaderMap = nil, list
	}
	if r.Body != nil {
		r.Body.Close()
	}
	e.last, e.answer = q, e.ask(e.t, q)
	code, set, _ := outcome(e.answer)
	resp := &http.Response{StatusCode: code, Status: fmt.Sprint(code), Header: make(http.Header), Request: r, Body: http.NoBody}
	if denied := e.answer.GetDeniedResponse(); denied != nil {
		for name, value := range set {
			resp.Header.Set(name, value)
		}
		resp.Body = io.NopCloser(strings.NewReader(denied.Body))
	}
	return resp, nil
}

// TestCheck: proofs are asked about over gRPC.
func TestCheck(t *testing.T) {
	for _, raw := range []bool{false, true} {
		s := newSite(t, "127.0.0.1/32")
		e := &envoy{site: s, t: t, raw: raw}
		keys, err := softkey.Open(t.Context(), t.TempDir(), softkey.KeyFile(""))
		if err != nil {
			t.Fatal(err)
		}
		jar, _ := cookiejar.New(nil)
		owner := &http.Client{Transport: client.New(keys).Transport(e), Jar: jar}
		if _, err := owner.PostForm(s.front.URL+"/login", url.Values{"username": {"alice"}}); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{"/me?x=1", "/admin/x"} {
			resp, err := owner.Get(s.front.URL + path)
			if err != nil {
				t.Fatal(err)
			}
			code, set, removed := outcome(e.answer)
			if resp.StatusCode != 200 || code != 200 || set["Remote-User"] != "alice" || set["Limpet-Level"] != "software" || set["Limpet-Session"] == "" || set["Limpet-Key"] == "" {
				t.Errorf("%s: %s %v", path, resp.Status, set)
			}
			if strings.Join(removed, "") != "Limpet-Client-Name" {
				t.Errorf("%s: removes %q", path, removed)
			}
		}
		if resp, err := owner.Post(s.front.URL+"/orders", "text/plain", strings.NewReader("one")); err != nil || resp.StatusCode != 200 {
			t.Errorf("with a body: %v %v", resp, err)
		}
		again := e.last
		if code, set, _ := outcome(s.ask(t, again)); code != 401 || !strings.Contains(set["Www-Authenticate"], "nonce_spent") {
			t.Errorf("replayed: %d %v", code, set)
		}
		again.Path = "/admin/y"
		if code, _, _ := outcome(s.ask(t, again)); code != 401 {
			t.Errorf("moved: %d", code)
		}
		stolen := asked("GET", "/me", "cookie", "sid=a-session")
		a := s.ask(t, stolen)
		if code, set, _ := outcome(a); code != 401 || !strings.Contains(set["Www-Authenticate"], `Limpet error="proof_required"`) || !strings.Contains(a.GetDeniedResponse().Body, "proof_required") {
			t.Errorf("stolen: %d %v", code, set)
		}
	}
}

// TestBadQuestions: what Envoy would never ask, or a client makes it ask.
func TestBadQuestions(t *testing.T) {
	s := newSite(t, "127.0.0.1/32")
	if code, set, removed := outcome(s.ask(t, asked("GET", "/page?x=y"))); code != 200 || set["Limpet-Level"] != "none" || len(removed) != 4 {
		t.Fatalf("%d %v %q", code, set, removed)
	}
	twice := asked("GET", "/page")
	twice.HeaderMap = &corev3.HeaderMap{Headers: []*corev3.HeaderValue{{Key: "accept", RawValue: []byte("*/*")}}}
	fragment := asked("GET", "/page")
	fragment.Fragment = "x"
	for what, r := range map[string]*authv3.AttributeContext_HttpRequest{
		"none": nil, "empty": {}, "fragment": fragment, "two lists": twice,
		"method": asked("", "/page"), "another method": asked("GET", "/page", ":method", "POST"), "another path": asked("GET", "/page", ":path", "/admin/"),
		"another host": asked("GET", "/page", ":authority", "elsewhere"), "another scheme": asked("GET", "/page", ":scheme", "http"),
		"hash": asked("GET", "/page#x"), "no path": asked("GET", "*"), "login": asked("POST", "/login"),
		"user": asked("GET", "/page", "remote-user", "admin"), "underscore": asked("GET", "/page", "remote_user", "admin"), "target": asked("GET", "/page", "x-original-url", "/admin/"),
		"methods": asked("GET", "/orders", "x-http-method-override", "POST,POST"), "dots": asked("GET", "/x/../admin/"),
		"no name": asked("GET", "/page", "", "x"), "a name that is none": asked("GET", "/page", "x-original url", "/admin/"),
	} {
		if code, _, _ := outcome(s.ask(t, r)); code != 403 {
			t.Errorf("%s: %d", what, code)
		}
	}
	if code, _, _ := outcome(s.ask(t, asked("GET", "/admin/x", "user-agent", "Envoy/HC"))); code != 401 {
		t.Errorf("a health check is let in: %d", code)
	}
	large := asked("GET", "/page", "x", strings.Repeat("x", 256<<10))
	_, err := s.Check(t.Context(), &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{Http: large}}})
	if status.Code(err) != codes.ResourceExhausted { // which Envoy refuses the request for
		t.Errorf("256 KiB: %v", err)
	}
}

// TestPanic: a call that panics is refused, and the next one answered.
func TestPanic(t *testing.T) {
	var log bytes.Buffer
	calls := 0
	srv := httptest.NewUnstartedServer(extauthz.NewHandler(func(context.Context, *gateway.Question) *gateway.Answer {
		if calls++; calls == 1 {
			panic("first")
		}
		return &gateway.Answer{Status: 200}
	}, slog.New(slog.NewTextHandler(&log, nil))))
	srv.Config.Protocols = new(http.Protocols)
	srv.Config.Protocols.SetUnencryptedHTTP2(true)
	srv.Start()
	defer srv.Close()
	conn, err := grpc.NewClient(srv.Listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := authv3.NewAuthorizationClient(conn)
	if _, err := c.Check(t.Context(), &authv3.CheckRequest{}); status.Code(err) != codes.Internal || !strings.Contains(log.String(), "panic=first") {
		t.Errorf("%v %s", err, &log)
	}
	if _, err := c.Check(t.Context(), &authv3.CheckRequest{}); err != nil {
		t.Error(err)
	}
}

// TestPeers: a stranger learns nothing.
func TestPeers(t *testing.T) {
	s := newSite(t, "192.0.2.0/24")
	for _, r := range []*authv3.AttributeContext_HttpRequest{asked("GET", "/page"), asked("GET", "/admin/"), {}} {
		if code, set, _ := outcome(s.ask(t, r)); code != 403 || set["Www-Authenticate"] != "" {
			t.Errorf("%d %v", code, set)
		}
	}
}

// TestIsCall: no header makes a call of what is a question over HTTP.
func TestIsCall(t *testing.T) {
	for _, tc := range []struct {
		major int
		path  string
		want  bool
	}{{2, "/envoy.service.auth.v3.Authorization/Check", true}, {1, "/envoy.service.auth.v3.Authorization/Check", false}, {2, "/auth/envoy/page", false},
		{2, "/auth/envoy/envoy.service.auth.v3.Authorization/Check", false}, {2, "/envoy.service.auth.v3.Authorization/Another", false}} {
		r := httptest.NewRequest("POST", tc.path, nil)
		r.ProtoMajor = tc.major
		r.Header.Set("Content-Type", "application/grpc")
		if extauthz.IsCall(r) != tc.want {
			t.Errorf("%+v", tc)
		}
	}
}

// TestExample: Envoy is not run here; but what its own types refuse it would, too.
func TestExample(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "examples", "envoy.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var doc any
	if err := yaml.NewDecoder(bytes.NewReader(text)).Decode(&doc); err != nil {
		t.Fatal(err)
	}
	asJSON, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	var b bootstrapv3.Bootstrap
	if err := protojson.Unmarshal(asJSON, &b); err != nil {
		t.Fatal(err)
	}
	if err := b.ValidateAll(); err != nil {
		t.Error(err)
	}
	found := 0
	for _, l := range b.StaticResources.Listeners {
		for _, filter := range l.FilterChains[0].Filters {
			var manager managerv3.HttpConnectionManager
			if err := filter.GetTypedConfig().UnmarshalTo(&manager); err != nil {
				t.Fatal(err)
			}
			if err := manager.ValidateAll(); err != nil {
				t.Error(err)
			}
			if manager.CommonHttpProtocolOptions.HeadersWithUnderscoresAction != corev3.HttpProtocolOptions_REJECT_REQUEST {
				t.Error("underscores pass")
			}
			for _, h := range manager.HttpFilters {
				var filter extauthzv3.ExtAuthz
				if h.GetTypedConfig().UnmarshalTo(&filter) != nil {
					continue
				}
				found++
				if err := filter.ValidateAll(); err != nil || filter.FailureModeAllow || filter.WithRequestBody != nil {
					t.Errorf("%v %v", &filter, err)
				}
			}
		}
	}
	if found != 1 {
		t.Errorf("%d filters", found)
	}
}
