//go:build !race

package channel

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

// A request on a connection that is known costs two allocations: the context and
// the request that carries it.
func TestAdmittedRequestAllocates(t *testing.T) {
	s := newSite(t, ServerConfig{})
	l := s.dial()
	h := s.server.Protect(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	for name, token := range map[string]string{"token": l.token(), "JWT": l.jwt()} {
		r := httptest.NewRequest("GET", "https://"+l.host+"/", nil)
		r.TLS = &l.state
		r.Header.Set("Authorization", "Bearer "+token)
		w := httptest.NewRecorder()
		if h.ServeHTTP(w, r); w.Code != 200 {
			t.Fatal(w.Body)
		}
		if n := testing.AllocsPerRun(1000, func() { h.ServeHTTP(w, r) }); n > 2 {
			t.Errorf("%s: an admitted request allocates %v times", name, n)
		}
	}
}
