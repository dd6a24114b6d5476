package gateway

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// deadlines is a ResponseWriter that keeps the deadline of reads.
type deadlines struct {
	http.ResponseWriter
	read time.Time
}

func (d *deadlines) SetReadDeadline(t time.Time) error { d.read = t; return nil }

// trickle is a body whose bytes come after a while each.
type trickle struct {
	after    []time.Duration
	deadline func() time.Time
}

func (s *trickle) Read(p []byte) (int, error) {
	if len(s.after) == 0 {
		return 0, io.EOF
	}
	wait := s.after[0]
	if d := s.deadline(); !d.IsZero() && time.Until(d) < wait {
		time.Sleep(time.Until(d))
		return 0, os.ErrDeadlineExceeded
	}
	time.Sleep(wait)
	s.after = s.after[1:]
	p[0] = 'x'
	return 1, nil
}

// TestStalledUpload: a body may take hours, but not be silent for a minute; and
// the deadline does not outlast it.
func TestStalledUpload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		long := make([]time.Duration, 200)
		for i := range long {
			long[i] = stall * 3 / 4
		}
		for _, tt := range []struct {
			after   []time.Duration
			stalled bool
		}{{long, false}, {[]time.Duration{time.Second, stall + time.Second}, true}} {
			d := &deadlines{}
			u := &upload{ReadCloser: io.NopCloser(&trickle{tt.after, func() time.Time { return d.read }}),
				control: http.NewResponseController(d), request: httptest.NewRequest("POST", "/", nil)}
			_, err := io.Copy(io.Discard, u)
			if errors.Is(err, os.ErrDeadlineExceeded) != tt.stalled || u.stalled.Load() != tt.stalled || u.broken.Load() != tt.stalled {
				t.Errorf("%d bytes: %v", len(tt.after), err)
			}
			if !tt.stalled && !d.read.IsZero() {
				t.Error("the deadline outlasts the body")
			}
		}
	})
}

// TestStalledClient: who takes no bytes for a minute is let go.
func TestStalledClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		c := &conn{Conn: ours}
		go io.CopyN(io.Discard, theirs, 4)
		began := time.Now()
		if _, err := c.Write([]byte("four")); err != nil {
			t.Error(err)
		}
		_, err := c.Write([]byte("more"))
		if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) != stall {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		ours.Close()
		theirs.Close()
	})
}

// TestStalledAfterHijack: the deadline that net/http takes away with a WebSocket's
// connection comes back.
func TestStalledAfterHijack(t *testing.T) {
	for name, free := range map[string]func(*conn) error{
		"both":  func(c *conn) error { return c.SetDeadline(time.Time{}) },
		"write": func(c *conn) error { return c.SetWriteDeadline(time.Time{}) },
	} {
		synctest.Test(t, func(t *testing.T) {
			ours, theirs := net.Pipe()
			c := &conn{Conn: ours}
			go io.CopyN(io.Discard, theirs, 4)
			if _, err := c.Write([]byte("four")); err != nil {
				t.Error(err)
			}
			free(c)
			time.AfterFunc(2*stall, func() { ours.Close() })
			began := time.Now()
			if _, err := c.Write([]byte("more")); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) != stall {
				t.Errorf("%s: %v after %v", name, err, time.Since(began))
			}
			theirs.Close()
		})
	}
}

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
	if _, ok := c.(*conn); !ok {
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
