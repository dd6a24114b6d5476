package gateway

import (
	"net/http"
	"net/http/httputil"
	"net/url"
	"reflect"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/internal/gatewaybench"
)

// TestComparedWithItsLike: the reverse proxy that the gateway is measured beside
// has the timeouts and buffers of the gateway, and its limits.
func TestComparedWithItsLike(t *testing.T) {
	bare := gatewaybench.NewBare(&url.URL{Scheme: "http", Host: "127.0.0.1:1"}).(*httputil.ReverseProxy)
	if bare.BufferPool == nil {
		t.Error("it has no pool of buffers")
	}
	theirs, ours := reflect.ValueOf(bare.Transport).Elem(), reflect.ValueOf(newTransport(time.Minute)).Elem()
	for _, field := range reflect.VisibleFields(reflect.TypeFor[http.Transport]()) {
		if !field.IsExported() || field.Type.Kind() == reflect.Func {
			continue
		}
		if a, b := theirs.FieldByIndex(field.Index), ours.FieldByIndex(field.Index); !reflect.DeepEqual(a.Interface(), b.Interface()) {
			t.Errorf("%s is %v, the gateway's is %v", field.Name, a, b)
		}
	}
}
