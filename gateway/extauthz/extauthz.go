// Package extauthz answers Envoy's external authorization over gRPC
// (envoy.service.auth.v3.Authorization) for a gateway. It is a package of its own
// so that whoever does not need it does not pull gRPC.
package extauthz

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	rpcstatus "google.golang.org/grpc/status"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"github.com/limpet-auth/limpet/gateway"
)

// maxQuestion is how many bytes a CheckRequest may have: Envoy takes 60 KiB of
// headers, and says some more of the connection.
const maxQuestion = 128 << 10

// NewHandler returns a handler of gRPC calls, which asks with [gateway.Gateway.Ask]
// or a function that does, and logs what it panics with. Serve it with HTTP/2, which on a listener without TLS
// has to be allowed ([http.Protocols].SetUnencryptedHTTP2).
func NewHandler(ask func(context.Context, *gateway.Question) *gateway.Answer, log *slog.Logger) http.Handler {
	s := grpc.NewServer(grpc.MaxRecvMsgSize(maxQuestion))
	authv3.RegisterAuthorizationServer(s, &server{ask: ask, log: log})
	return s
}

// IsCall reports whether a request is for the handler: others may share its
// listener. It goes by the path alone: headers of a question over HTTP are those of
// the proxy's client, and gRPC answers what it does not know with status 200.
func IsCall(r *http.Request) bool {
	return r.ProtoMajor == 2 && r.URL.Path == authv3.Authorization_Check_FullMethodName
}

type server struct {
	authv3.UnimplementedAuthorizationServer
	ask func(context.Context, *gateway.Question) *gateway.Answer
	log *slog.Logger
}

// Check implements [authv3.AuthorizationServer]. What cannot be read is asked as it
// is, and refused with the rest.
func (s *server) Check(ctx context.Context, in *authv3.CheckRequest) (answer *authv3.CheckResponse, err error) {
	defer func() { // gRPC runs calls where net/http does not see to it
		if p := recover(); p != nil {
			s.log.ErrorContext(ctx, "limpet: extauthz: panic", "panic", p, "stack", string(debug.Stack()))
			err = rpcstatus.Error(codes.Internal, "internal error") // for which Envoy refuses the request
		}
	}()
	a := s.ask(ctx, question(ctx, in))
	if a.Status != http.StatusOK {
		return &authv3.CheckResponse{
			Status: &status.Status{Code: int32(codes.PermissionDenied)},
			HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
				Status:  &typev3.HttpStatus{Code: typev3.StatusCode(a.Status)},
				Headers: set(a.Client),
				Body:    string(a.Body),
			}},
		}, nil
	}
	ok := &authv3.OkHttpResponse{Headers: set(a.App), ResponseHeadersToAdd: set(a.Client)}
	for name, values := range a.App {
		if len(values) == 1 && values[0] == "" { // Envoy sets no empty ones
			ok.HeadersToRemove = append(ok.HeadersToRemove, name)
		}
	}
	return &authv3.CheckResponse{
		Status:       &status.Status{Code: int32(codes.OK)},
		HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: ok},
	}, nil
}

func set(h http.Header) (all []*corev3.HeaderValueOption) {
	for name, values := range h {
		action := corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD
		for _, value := range values {
			if value != "" {
				all = append(all, &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: name, Value: value}, AppendAction: action})
			}
			action = corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD
		}
	}
	return all
}

// question returns what Envoy asks. What it says in two ways must be the same: a
// question that is none has no method, and is refused.
func question(ctx context.Context, in *authv3.CheckRequest) *gateway.Question {
	q := &gateway.Question{}
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		q.Peer = p.Addr.String()
	}
	r := in.GetAttributes().GetRequest().GetHttp()
	h, err := header(r)
	if err != nil || r.GetFragment() != "" || r.GetQuery() != "" {
		return q
	}
	q.Method, q.Scheme, q.Host, q.Target, q.Header = r.GetMethod(), r.GetScheme(), r.GetHost(), r.GetPath(), h
	return q
}

var errTwoWays = errors.New("extauthz: a request that is described in two ways")

// header returns the request's header. Envoy sends it as a map whose values it has
// joined or, with encode_raw_headers, as a list.
func header(r *authv3.AttributeContext_HttpRequest) (http.Header, error) {
	h := make(http.Header)
	if len(r.GetHeaders()) > 0 && len(r.GetHeaderMap().GetHeaders()) > 0 {
		return nil, errTwoWays
	}
	add := func(name, value string) error {
		pseudo := map[string]string{":method": r.GetMethod(), ":scheme": r.GetScheme(), ":authority": r.GetHost(), ":path": r.GetPath()}
		if strings.HasPrefix(name, ":") {
			if said, ok := pseudo[name]; ok && said != value {
				return errTwoWays
			}
			return nil
		}
		if strings.EqualFold(name, "host") {
			return nil // which :authority is
		}
		h.Add(name, value)
		return nil
	}
	for name, value := range r.GetHeaders() {
		if err := add(name, value); err != nil {
			return nil, err
		}
	}
	for _, one := range r.GetHeaderMap().GetHeaders() {
		value := one.GetValue()
		if raw := one.GetRawValue(); len(raw) > 0 {
			value = string(raw)
		}
		if err := add(one.GetKey(), value); err != nil {
			return nil, err
		}
	}
	return h, nil
}
