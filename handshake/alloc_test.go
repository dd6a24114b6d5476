//go:build !race

package handshake

import "testing"

// The messages of both ends allocate next to nothing.
func TestHandshakeAllocates(t *testing.T) {
	srv, cli := pair()
	x, y := new(exchange), new(exchange)
	if n := testing.AllocsPerRun(100, func() {
		x.server, y.client = server{cfg: srv}, client{cfg: cli}
		hello, _ := y.client.prove(t.Context(), y.out[:0], x.server.greet(x.out[:0]))
		answer, _ := x.server.answer(t.Context(), x.out[:0], hello)
		if err := y.client.confirm(answer); err != nil {
			t.Fatal(err)
		}
	}); n > 4 {
		t.Errorf("%v allocations", n)
	}
}
