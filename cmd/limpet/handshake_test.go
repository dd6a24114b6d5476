package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/handshake"
)

// crowded is a listener that is out of file descriptors at first.
type crowded struct {
	net.Listener
	calls int
}

func (c *crowded) Accept() (net.Conn, error) {
	if c.calls++; c.calls == 1 {
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: syscall.EMFILE}
	}
	return nil, net.ErrClosed
}

// TestOutOfFiles: whoever opens many connections does not end the command.
func TestOutOfFiles(t *testing.T) {
	l := new(crowded)
	err := serveConns(t.Context(), slog.New(slog.DiscardHandler), l, func(net.Conn) {})
	if !errors.Is(err, net.ErrClosed) || l.calls != 2 {
		t.Errorf("%v after %d calls, want that it goes on", err, l.calls)
	}
}

// TestStdioInterrupted: that the command is to end is no error of the connection.
func TestStdioInterrupted(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if err := stdio(ctx, &handshake.Conn{Conn: conn}); err != nil {
		t.Error(err)
	}
}
