package channel

import (
	"net/http"
	"strings"
	"testing"
)

// copying sends a copy of each request that has lost its context, and with it
// whoever wants to be told the connection.
type copying struct{ base http.RoundTripper }

func (c copying) RoundTrip(r *http.Request) (*http.Response, error) {
	again, err := http.NewRequest(r.Method, r.URL.String(), r.Body)
	if err != nil {
		return nil, err
	}
	again.Header = r.Header
	return c.base.RoundTrip(again)
}

// A base that does not tell the connection cannot carry tokens, and is told so
// rather than refused by the server.
func TestBaseThatDoesNotTellTheConnection(t *testing.T) {
	s := newSite(t, ServerConfig{})
	c := s.transport(Config{Base: copying{s.base(true)}}, false)
	r, err := http.NewRequest("GET", s.http.URL+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := c.RoundTrip(r); err == nil || !strings.Contains(err.Error(), "does not tell the connection") {
		t.Errorf("%v %v", resp, err)
	}
}
