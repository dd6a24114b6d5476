package relay

import (
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
			r := httptest.NewRequest("POST", "/", io.NopCloser(&trickle{tt.after, func() time.Time { return d.read }}))
			u := NewUpload(d, r)
			_, err := io.Copy(io.Discard, u)
			if errors.Is(err, os.ErrDeadlineExceeded) != tt.stalled || u.Stalled() != tt.stalled || u.Broken() != tt.stalled {
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
		c := &Conn{Conn: ours}
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
	for name, free := range map[string]func(*Conn) error{
		"both":  func(c *Conn) error { return c.SetDeadline(time.Time{}) },
		"write": func(c *Conn) error { return c.SetWriteDeadline(time.Time{}) },
	} {
		synctest.Test(t, func(t *testing.T) {
			ours, theirs := net.Pipe()
			c := &Conn{Conn: ours}
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
