package gateway

import (
	"bytes"
	"net"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/internal/relay"
)

// TestConnectionsToTheApp: an app that takes no bytes for a minute is let go too.
func TestConnectionsToTheApp(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := newTransport(time.Second).DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, ok := c.(*relay.Conn); !ok {
		t.Errorf("a connection of type %T, whose writes wait for ever", c)
	}
}

// TestReadings: a path that is read in one way has one reading, and the work for
// the others is bounded.
func TestReadings(t *testing.T) {
	for path, want := range map[string]int{"/a/b": 1, "/%2525": 3, `/a\b;c/%2fd`: 12, "//a/b": 2} {
		r := httptest.NewRequest("GET", "http://x/", nil)
		u, err := r.URL.Parse("http://x" + path)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := readings(u); len(got) > want {
			t.Errorf("%s: %d readings: %q", path, len(got), got)
		}
	}
}

// FuzzMember: whatever the text, what is found in it is valid, and what is there
// twice is not found.
func FuzzMember(f *testing.F) {
	f.Add([]byte(`{"a":{"b":"c"}}`))
	f.Add([]byte(`{"a":{"b":"c","B":"d"}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := member(text, []string{"a", "b"})
		if err == nil && s != "" && !bytes.Contains(text, []byte("a")) && !bytes.Contains(text, []byte(`\u`)) {
			t.Errorf("%q in %q", s, text)
		}
	})
}
