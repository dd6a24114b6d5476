package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"syscall"
	"testing"
	"testing/synctest"
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

// lastOne is a listener that gives one connection and then fails for good.
type lastOne struct {
	net.Listener
	conns chan net.Conn
}

var errNoMore = errors.New("no more")

func (l *lastOne) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	default:
		return nil, errNoMore
	}
}

// TestAcceptFails: a connection that stays open does not keep a command that can
// take no others from ending, after the time that it has to come to an end.
func TestAcceptFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		l := &lastOne{conns: make(chan net.Conn, 1)}
		l.conns <- ours
		began := time.Now()
		err := serveConns(t.Context(), slog.New(slog.DiscardHandler), l, func(c net.Conn) {
			io.Copy(io.Discard, c)
			c.Close()
		})
		if took := time.Since(began); !errors.Is(err, errNoMore) || took != drain {
			t.Errorf("%v after %v", err, took)
		}
	})
}

// TestServeInterrupted: that the listener is closed because the command is to end
// is no error, whichever of the two is heard of first.
func TestServeInterrupted(t *testing.T) {
	for range 300 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		context.AfterFunc(ctx, func() { l.Close() })
		go cancel()
		if err := serveConns(ctx, slog.New(slog.DiscardHandler), l, func(net.Conn) {}); err != nil {
			t.Fatal(err)
		}
	}
}
