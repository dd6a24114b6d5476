package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestInFlight: what is being answered when the server stops is answered.
func TestInFlight(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		cancel()
		time.Sleep(200 * time.Millisecond)
		io.WriteString(w, "answered")
	})
	done := make(chan error, 1)
	go func() {
		done <- serveUntil(ctx, slog.New(slog.DiscardHandler), map[net.Listener]http.Handler{l: handler, nil: nil})
	}()
	resp, err := http.Get("http://" + l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); string(body) != "answered" || err != nil {
		t.Errorf("body %q, %v", body, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := net.Dial("tcp", l.Addr().String()); err == nil {
		t.Error("the server still listens")
	}
}

// TestLargeHeaders: they are refused before they are kept.
func TestLargeHeaders(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := newHTTPServer(http.NotFoundHandler(), slog.New(slog.DiscardHandler))
	go srv.Serve(l)
	defer srv.Close()
	for _, c := range []struct{ size, code int }{{20 << 10, 404}, {40 << 10, 431}, {900 << 10, 431}} {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		go fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: x\r\nX-Large: %s\r\n\r\n", strings.Repeat("x", c.size))
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Errorf("%d bytes: %v", c.size, err)
		} else if resp.StatusCode != c.code {
			t.Errorf("%d bytes: %s, want %d", c.size, resp.Status, c.code)
		}
		conn.Close()
	}
}

// TestStopping: what ends, ends everywhere at once: no server takes new requests
// while another one answers its last.
func TestStopping(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	handlers := make(map[net.Listener]http.Handler)
	var addrs []string
	begun, answer := make(chan bool), make(chan bool)
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addrs = append(addrs, l.Addr().String())
		handlers[l] = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { begun <- true; <-answer })
	}
	done := make(chan error, 1)
	go func() { done <- serveUntil(ctx, slog.New(slog.DiscardHandler), handlers) }()
	for _, addr := range addrs {
		go http.Get("http://" + addr)
		<-begun
	}
	cancel()
	for _, addr := range addrs {
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				break
			}
			conn.Close()
			if time.Now().After(end) {
				t.Errorf("%s still listens", addr)
				break
			}
		}
	}
	close(answer)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
