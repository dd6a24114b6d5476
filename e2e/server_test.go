package e2e

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"
	"testing"
	"time"
)

var (
	binary string // the command under test
	shared string // URL of the server that tests share if they need none of their own
	memory *server
)

func TestMain(m *testing.M) {
	flag.Parse()
	flag.Set("test.parallel", "8") // many of the tests mostly wait; the flag exists
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "limpet-e2e")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "limpet")
	build := exec.Command("go", "build", "-o", binary, "github.com/limpet-auth/limpet/cmd/limpet")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("build the command: %w\n%s", err, out)
	}
	if memory, err = serve("mem:"); err != nil {
		return 0, err
	}
	defer memory.kill()
	shared = memory.url
	return m.Run(), nil
}

// server is a running `limpet serve`.
type server struct {
	cmd  *exec.Cmd
	url  string
	out  *output
	done chan struct{} // closed when the process has ended
	err  error         // of cmd.Wait; read it once done is closed
}

// output collects what a process writes.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// start starts `limpet serve` on a port of its own and does not wait for it.
func start(store string, flags ...string) (*server, error) {
	return startCommand(append([]string{"serve", "--listen", "127.0.0.1:0", "--store", store}, flags...)...)
}

// startCommand starts a command that serves.
func startCommand(args ...string) (*server, error) {
	s := &server{cmd: exec.Command(binary, args...), out: &output{}, done: make(chan struct{})}
	s.cmd.Stdout, s.cmd.Stderr = s.out, s.out
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		s.err = s.cmd.Wait()
		close(s.done)
	}()
	return s, nil
}

var listening = regexp.MustCompile(`listening on (https?://[^\s"]+)`)

// serve starts `limpet serve` and waits until it listens.
func serve(store string, flags ...string) (*server, error) {
	s, err := start(store, flags...)
	if err != nil {
		return nil, err
	}
	return s, s.listens()
}

// listens waits until the server does, or has ended.
func (s *server) listens() error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		if found := listening.FindStringSubmatch(s.out.String()); found != nil {
			s.url = found[1]
			return nil
		}
		select {
		case <-s.done:
			return fmt.Errorf("the server ended before it listened: %v\n%s", s.err, s.out)
		case <-ctx.Done():
			s.kill()
			return fmt.Errorf("the server does not say that it listens:\n%s", s.out)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func mustServe(t testing.TB, store string, flags ...string) *server {
	t.Helper()
	s, err := serve(store, flags...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.kill)
	return s
}

// kill is kill -9, and waits for the end.
func (s *server) kill() {
	s.cmd.Process.Kill() // fails only if the process has ended
	<-s.done
}

// ended waits for the process to end and returns its exit code.
func (s *server) ended(t testing.TB) int {
	t.Helper()
	select {
	case <-s.done:
	case <-time.After(20 * time.Second):
		s.cmd.Process.Signal(syscall.SIGQUIT)
		<-s.done
		t.Fatalf("the server does not end:\n%s", s.out)
	}
	var exit *exec.ExitError
	if s.err != nil && !errors.As(s.err, &exit) {
		t.Fatal(s.err)
	}
	return s.cmd.ProcessState.ExitCode()
}
