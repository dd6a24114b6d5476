//go:build unix

package control_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/limpet-auth/limpet/fido"
	"github.com/limpet-auth/limpet/fido/control"
	"github.com/limpet-auth/limpet/fido/softvault"
)

// open starts a token with a socket.
func open(t *testing.T) (path string, token *fido.Token, desk *control.Desk) {
	t.Helper()
	dir := t.TempDir()
	vault, err := softvault.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	desk = control.NewDesk(log, func(context.Context) (int, error) { return os.Getuid(), nil })
	token, err = fido.New(t.Context(), fido.Config{Vault: vault, Prompt: desk, File: filepath.Join(dir, "credentials"), Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(dir, "socket")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- desk.Serve(ctx, l, token) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		vault.Close()
	})
	return path, token, desk
}

// user answers when they like.
type user struct {
	asked   chan fido.Request
	answers chan bool
	gone    chan error
	fails   error // to ask
}

func (u *user) Ask(ctx context.Context, r fido.Request) (bool, error) {
	u.asked <- r
	if u.fails != nil {
		return false, u.fails
	}
	select {
	case allowed := <-u.answers:
		return allowed, nil
	case <-ctx.Done():
		u.gone <- ctx.Err()
		return false, ctx.Err()
	}
}

// attend starts an agent.
func attend(t *testing.T, path string) (u *user, end func() error) {
	t.Helper()
	u = &user{asked: make(chan fido.Request, 8), answers: make(chan bool, 1), gone: make(chan error, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	there, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- control.Attend(ctx, path, u, func() { close(there) }) }()
	end = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() { end() })
	select {
	case <-there:
	case err := <-done:
		t.Fatal(err)
	}
	return u, end
}

func TestCommands(t *testing.T) {
	t.Parallel()
	path, _, _ := open(t)
	c, err := control.Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	want := func(what string, got, want error) {
		t.Helper()
		if !errors.Is(got, want) || (got == nil) != (want == nil) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	want("change of none", c.ChangePIN(ctx, []byte("1234"), []byte("5678")), fido.ErrNoPIN)
	want("short", c.SetPIN(ctx, []byte("123")), fido.ErrPINPolicy)
	want("set", c.SetPIN(ctx, []byte("1234")), nil)
	want("set again", c.SetPIN(ctx, []byte("1234")), fido.ErrPINSet)
	want("wrong", c.ChangePIN(ctx, []byte("0000"), []byte("5678")), fido.ErrPINInvalid)
	want("changed", c.ChangePIN(ctx, []byte("1234"), []byte("5678")), nil)
	s, err := c.Status(ctx)
	if err != nil || !s.PIN || s.Retries != 8 || s.Room != 1000 {
		t.Errorf("%+v, %v", s, err)
	}
	_, err = c.List(ctx, []byte("1234"))
	want("list", err, fido.ErrPINInvalid)
	want("remove", c.Remove(ctx, []byte("5678"), []byte("x")), fido.ErrNoSuch)
	for range 2 {
		want("wrong", c.Remove(ctx, []byte("1234"), []byte("x")), fido.ErrPINInvalid)
	}
	want("wrong once more", c.Remove(ctx, []byte("1234"), []byte("x")), fido.ErrPINHeld)
	want("right", c.Remove(ctx, []byte("5678"), []byte("x")), fido.ErrPINHeld)
	want("reset without agent", c.Reset(ctx), fido.ErrNotAllowed)
	u, _ := attend(t, path)
	u.answers <- false
	want("reset refused", c.Reset(ctx), fido.ErrNotAllowed)
	u.answers <- true
	want("reset", c.Reset(ctx), nil)
	if r := <-u.asked; r.Operation != fido.Reset {
		t.Errorf("%+v", r)
	}
	if s, err := c.Status(ctx); err != nil || s.PIN || s.Held {
		t.Errorf("%+v, %v", s, err)
	}
}

// TestAgents: the one that came last is asked; if it goes, the one before it. A
// question that nobody wants answered any more is taken back.
func TestAgents(t *testing.T) {
	t.Parallel()
	path, _, desk := open(t)
	if _, err := desk.Ask(t.Context(), fido.Request{}); !errors.Is(err, control.ErrNoAgent) {
		t.Errorf("without any: %v", err)
	}
	first, _ := attend(t, path)
	second, end := attend(t, path)
	r := fido.Request{Operation: fido.Register, RPID: "example.com", RPName: "Example", Account: "alice"}
	second.answers <- true
	if allowed, err := desk.Ask(t.Context(), r); !allowed || err != nil {
		t.Errorf("%v, %v", allowed, err)
	}
	if got := <-second.asked; got.Text() != r.Text() {
		t.Errorf("asked %+v", got)
	}
	answered := make(chan bool)
	go func() {
		allowed, err := desk.Ask(t.Context(), r)
		answered <- allowed && err == nil
	}()
	<-second.asked
	if err := end(); err != nil {
		t.Error(err)
	}
	<-first.asked
	first.answers <- true
	if !<-answered {
		t.Error("the first agent's answer is lost")
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-first.asked
		cancel()
	}()
	if allowed, err := desk.Ask(ctx, r); allowed || !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v, %v", allowed, err)
	}
	select {
	case <-first.gone:
	case <-time.After(10 * time.Second):
		t.Error("the question is not taken back")
	}
}

// TestLongNames: whatever a site and its user are called, and whatever an agent has to
// say, a line holds it and the agent stays.
func TestLongNames(t *testing.T) {
	t.Parallel()
	path, token, desk := open(t)
	u, _ := attend(t, path)
	name := strings.Repeat("<\u2028", 1800)
	params, err := cbor.CTAP2EncOptions().EncMode()
	if err != nil {
		t.Fatal(err)
	}
	register := func(rp, user map[string]any) byte {
		t.Helper()
		b, err := params.Marshal(map[int]any{1: make([]byte, 32), 2: rp, 3: user, 4: []any{map[string]any{"alg": -7, "type": "public-key"}}})
		if err != nil || len(b) > 7609 {
			t.Fatal(len(b), err)
		}
		return token.CBOR(t.Context(), 1, append([]byte{1}, b...), func(bool) {})[0]
	}
	long := strings.Repeat("<", 255)
	for _, test := range []struct{ rp, user map[string]any }{
		{map[string]any{"id": long, "name": name}, map[string]any{"id": []byte("1")}},
		{map[string]any{"id": long}, map[string]any{"id": []byte("1"), "name": name}},
		{map[string]any{"id": long}, map[string]any{"id": []byte("1"), "displayName": name}},
		{map[string]any{"id": long, "name": name[:3000]}, map[string]any{"id": []byte("1"), "name": name[:3000]}},
	} {
		u.answers <- true
		if status := register(test.rp, test.user); status != 0 {
			t.Fatalf("status %#02x", status)
		}
		if r := <-u.asked; r.RPID != long || len(r.RPName) > 300 || len(r.Account) > 300 {
			t.Errorf("asked for %d, %d, %d bytes", len(r.RPID), len(r.RPName), len(r.Account))
		}
	}
	// The question is as long as it was.
	u.answers <- false
	register(map[string]any{"id": "example.com"}, map[string]any{"id": []byte("1"), "name": strings.Repeat("x", 65)})
	if text := (<-u.asked).Text(); text != `Register with example.com as "`+strings.Repeat("x", 64)+`…"?` {
		t.Error(text)
	}

	u.fails = errors.New(strings.Repeat("<", 20<<10))
	for range 2 {
		if _, err := desk.Ask(t.Context(), fido.Request{}); err == nil || errors.Is(err, control.ErrNoAgent) || !strings.Contains(err.Error(), "<<<") {
			t.Errorf("%.200v", err)
		}
		<-u.asked
	}
}

// TestGarbage: who sends something else is hung up on, and others are served.
func TestGarbage(t *testing.T) {
	t.Parallel()
	path, _, desk := open(t)
	for _, line := range []string{"\n", "x\n", "{}\n", "[]\n", `{"do":"unknown"}` + "\n", `{"do":"attend"}` + "\nx\n", `{"do":"attend"}` + "\n" + `{"answer":1,"allowed":true}` + "\n", string(make([]byte, 20<<10))} {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		io.WriteString(conn, line)
		conn.(*net.UnixConn).CloseWrite()
		if _, err := io.ReadAll(conn); errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%.20q: %v", line, err)
		}
		conn.Close()
	}
	if _, err := desk.Ask(t.Context(), fido.Request{}); !errors.Is(err, control.ErrNoAgent) {
		t.Errorf("an agent is left: %v", err)
	}
	if c, err := control.Dial(path); err != nil {
		t.Error(err)
	} else if _, err := c.Status(t.Context()); err != nil {
		t.Error(err)
	}
}
