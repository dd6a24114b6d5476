//go:build !race

package limpet

import (
	"context"
	"net/http"
	"testing"

	"github.com/limpet-auth/limpet/internal/incoming"
	"github.com/limpet-auth/limpet/proof"
)

// The hot path, a request with an HMAC proof, allocates next to nothing.
func TestCheckAllocates(t *testing.T) {
	s := newSite(t, Config{})
	d := s.login("5UbLkmIlm0nEvlGjPCMbpvDnbjRxjLnFmy9gQ0hCJbw", "alice")
	d.introduce()
	headers := make([]http.Header, 1200)
	for i := range headers {
		headers[i] = d.proof(s.value())
	}
	next := 0
	var req Request
	n := testing.AllocsPerRun(1000, func() {
		req.Token, req.Header = d.token, headers[next]
		next++
		if _, err := s.Check(context.Background(), &req, Rule{}, nil); err != nil {
			t.Fatal(err)
		}
	})
	if n > 2 {
		t.Errorf("a check allocates %v times", n)
	}
}

// So does a request on Limpet's own wire, also if somebody is told of it.
func TestCheckAllocatesOnHTTPSig(t *testing.T) {
	for name, decided := range map[string]func(context.Context, *Decision){"alone": nil, "told": func(context.Context, *Decision) {}} {
		s := newSite(t, Config{Decided: decided})
		h := s.hold("5UbLkmIlm0nEvlGjPCMbpvDnbjRxjLnFmy9gQ0hCJbw")
		expect(t, "introduction", h.get(true), "")
		messages := make([]proof.Message, 1200)
		for i := range messages {
			messages[i] = incoming.Message(h.request("GET", "/me?x=1", "", false))
		}
		next := 0
		var req Request
		n := testing.AllocsPerRun(1000, func() {
			req.Message, req.Token = messages[next], h.token
			next++
			if _, err := s.Check(context.Background(), &req, Rule{}, nil); err != nil {
				t.Fatal(err)
			}
		})
		if n > 2 {
			t.Errorf("%s: a check allocates %v times", name, n)
		}
	}
}

// So does a request with a bound cookie.
func TestCheckAllocatesOnBoundCookie(t *testing.T) {
	s := newBrowserSite(t, Config{Decided: func(context.Context, *Decision) {}})
	c := s.bound("5UbLkmIlm0nEvlGjPCMbpvDnbjRxjLnFmy9gQ0hCJbw")
	m := incoming.Message(c.request("GET", "/me"))
	var req Request
	n := testing.AllocsPerRun(1000, func() {
		req.Message, req.Token = m, c.token
		if _, err := s.Check(context.Background(), &req, Rule{}, nil); err != nil {
			t.Fatal(err)
		}
	})
	if n > 0 {
		t.Errorf("a check allocates %v times", n)
	}
}
