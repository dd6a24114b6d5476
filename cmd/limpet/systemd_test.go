//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// service is limpet as systemd would start it.
type service struct {
	cmd    *exec.Cmd
	notify *net.UnixConn
	log    *bytes.Buffer // whole once done is closed
	done   chan struct{}
}

// startService starts limpet with sockets from the file descriptor 3 on. pid is
// for LISTEN_PID; by default limpet's own.
func startService(t *testing.T, pid string, sockets []*os.File, names string, args ...string) *service {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	limpet := filepath.Join(dir, "limpet") // the name makes the test's binary the command
	if err := os.Symlink(exe, limpet); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "notify")
	s := &service{log: new(bytes.Buffer), done: make(chan struct{})}
	if s.notify, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	// Only a shell knows the process that it becomes.
	s.cmd = exec.Command("sh", append([]string{"-c", `LISTEN_PID=${LISTEN_PID:-$$} exec "$0" "$@"`, limpet}, args...)...)
	s.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "NOTIFY_SOCKET=" + socket, "GORACE=atexit_sleep_ms=20",
		"GOTRACEBACK=" + os.Getenv("GOTRACEBACK"),
		"LISTEN_PID=" + pid, "LISTEN_FDS=" + strconv.Itoa(len(sockets)), "LISTEN_FDNAMES=" + names}
	s.cmd.ExtraFiles, s.cmd.Stderr = sockets, s.log
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { s.cmd.Wait(); close(s.done) }()
	t.Cleanup(func() { s.cmd.Process.Kill(); <-s.done; s.notify.Close() })
	return s
}

// told returns what the service tells next.
func (s *service) told(t *testing.T) string {
	t.Helper()
	buf := make([]byte, 4096)
	s.notify.SetReadDeadline(time.Now().Add(20 * time.Second))
	n, err := s.notify.Read(buf)
	if err != nil {
		s.cmd.Process.Kill()
		<-s.done
		t.Fatalf("systemd hears nothing: %v\n%s", err, s.log)
	}
	return string(buf[:n])
}

// ended returns the exit code and what was said.
func (s *service) ended(t *testing.T) (int, string) {
	t.Helper()
	select {
	case <-s.done:
	case <-time.After(20 * time.Second):
		t.Fatal("it does not end")
	}
	return s.cmd.ProcessState.ExitCode(), s.log.String()
}

// tcpSocket is a socket as a socket unit opens it, and where.
func tcpSocket(t *testing.T) (*os.File, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f, "http://" + l.Addr().String()
}

func wantTold(t *testing.T, got, pattern string) {
	t.Helper()
	if !regexp.MustCompile(`^` + pattern + `$`).MatchString(got) {
		t.Errorf("systemd is told %q, want %s", got, pattern)
	}
}

// TestService: limpet gateway takes systemd's sockets, says when it is ready,
// reloads under a request that goes on, says when a reload failed, and that it stops.
func TestService(t *testing.T) {
	release := make(chan struct{})
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "begun\n")
		w.(http.Flusher).Flush()
		if r.URL.Path == "/slow" {
			<-release
		}
		io.WriteString(w, "whole\n")
	}))
	defer app.Close()
	routes := filepath.Join(t.TempDir(), "routes.yaml")
	write := func(text string) {
		if err := os.WriteFile(routes, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	good := "upstream: " + app.URL + "\nsession: {cookie: sid}\n"
	write(good)
	one, first := tcpSocket(t)
	two, second := tcpSocket(t)
	s := startService(t, "", []*os.File{one, two}, "http:http", "gateway", "--routes", routes, "--store", "mem:", "--listen", "127.0.0.1:1")
	wantTold(t, s.told(t), "READY=1\nSTATUS=listening on "+regexp.QuoteMeta(first+", "+second))

	get := func(url string) *http.Response {
		t.Helper()
		resp, err := http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return resp
	}
	for _, url := range []string{first, second} {
		if body, err := io.ReadAll(get(url).Body); err != nil || string(body) != "begun\nwhole\n" {
			t.Errorf("%s answers %q, %v", url, body, err)
		}
	}

	slow := bufio.NewReader(get(first + "/slow").Body)
	if line, err := slow.ReadString('\n'); line != "begun\n" {
		t.Fatalf("%q, %v", line, err)
	}
	hup := func() {
		t.Helper()
		if err := s.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		wantTold(t, s.told(t), `RELOADING=1\nMONOTONIC_USEC=[1-9][0-9]*\n`)
	}
	hup()
	wantTold(t, s.told(t), `READY=1\nSTATUS=reloaded`)
	write(good + "\nWATCHDOG: 1\n")
	hup()
	wantTold(t, s.told(t), `READY=1\nSTATUS=routes not reloaded: .*unknown field "WATCHDOG"`)
	if body, err := io.ReadAll(get(second).Body); err != nil || string(body) != "begun\nwhole\n" {
		t.Errorf("after reloads it answers %q, %v", body, err)
	}
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	wantTold(t, s.told(t), `STOPPING=1`)
	close(release)
	if rest, err := io.ReadAll(slow); err != nil || string(rest) != "whole\n" {
		t.Errorf("the request in flight ends with %q, %v", rest, err)
	}
	code, log := s.ended(t)
	if code != 0 || !strings.Contains(log, "systemd opened the sockets: --listen 127.0.0.1:1 does not count") {
		t.Errorf("exit code %d\n%s", code, log)
	}
}

// TestSocketsOfAnother: sockets that are for another process are left alone, those
// that nobody would serve are refused.
func TestSocketsOfAnother(t *testing.T) {
	f, url := tcpSocket(t)
	flags := []string{"gateway", "--upstream", "http://127.0.0.1:1", "--session-cookie", "sid", "--store", "mem:", "--listen", "127.0.0.1:0"}
	s := startService(t, "1", []*os.File{f}, "http", flags...)
	if told := s.told(t); !strings.HasPrefix(told, "READY=1\nSTATUS=listening on http://127.0.0.1:") || strings.Contains(told, url) {
		t.Errorf("with the sockets of process 1: %q", told)
	}
	s.cmd.Process.Signal(syscall.SIGHUP) // there is nothing to reload, and systemd waits all the same
	wantTold(t, s.told(t), `RELOADING=1\nMONOTONIC_USEC=\d+\n`)
	wantTold(t, s.told(t), `READY=1\nSTATUS=reloaded`)

	path := filepath.Join(t.TempDir(), "unix")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	unix, err := l.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close()
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer packets.Close()
	udp, err := packets.(*net.UDPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	for _, c := range []struct {
		socket     *os.File
		name, says string
	}{
		{f, "limpet-gateway.socket", `limpet: systemd passes a socket of the name "limpet-gateway.socket"` + "\nhint: its unit needs FileDescriptorName=http\n"},
		{unix, "http", `limpet: the socket "http" of systemd is not a TCP socket` + "\n"},
		{udp, "http", `limpet: the socket "http" of systemd: `},
	} {
		code, log := startService(t, "", []*os.File{c.socket}, c.name, flags...).ended(t)
		if code != 1 || !strings.Contains(log, c.says) {
			t.Errorf("%s: exit code %d, %q, want %q", c.name, code, log, c.says)
		}
	}
}

// TestCrash: a crash does not look to systemd like wrong settings, after which it
// would leave the service down. Go ends with 2 for both.
func TestCrash(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "packaging", "systemd", "limpet-gateway.service"))
	if err != nil {
		t.Fatal(err)
	}
	unit := func(name string) (values []string) {
		for _, m := range regexp.MustCompile(`(?m)^`+name+`=(.*)$`).FindAllStringSubmatch(string(text), -1) {
			values = append(values, m[1])
		}
		return values
	}
	stays := unit("RestartPreventExitStatus")
	if len(stays) != 1 || stays[0] != strconv.Itoa(exitUsage) {
		t.Errorf("the service stays down after %q", stays)
	}
	for _, setting := range unit("Environment") {
		name, value, _ := strings.Cut(setting, "=")
		t.Setenv(name, value)
	}
	s := startService(t, "", nil, "", "gateway", "--upstream", "http://127.0.0.1:1", "--session-cookie", "sid", "--store", "mem:", "--listen", "127.0.0.1:0")
	s.told(t)
	s.cmd.Process.Signal(syscall.SIGQUIT) // on which Go does as after a panic
	if code, log := s.ended(t); code != -1 || !s.cmd.ProcessState.Sys().(syscall.WaitStatus).Signaled() {
		t.Errorf("exit code %d\n%.300s", code, log)
	}
}

// TestActivated: with systemd's own tool, the connection that wakes the service is
// answered.
func TestActivated(t *testing.T) {
	activate, err := exec.LookPath("systemd-socket-activate")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	limpet := filepath.Join(dir, "limpet")
	if err := os.Symlink(exe, limpet); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var log bytes.Buffer
	cmd := exec.CommandContext(ctx, activate, "--listen="+address, "--fdname=http", "--setenv=HOME="+dir,
		limpet, "gateway", "--upstream", "http://127.0.0.1:1", "--session-cookie", "sid", "--store", "mem:")
	cmd.Stderr = &log
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it is limpet by then
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var resp *http.Response
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if resp, err = http.Get("http://" + address); err == nil || time.Now().After(deadline) {
			break
		}
	}
	if err == nil {
		resp.Body.Close()
		if resp.StatusCode != http.StatusBadGateway { // there is no app
			t.Errorf("it answers %s", resp.Status)
		}
	}
	cancel()
	if waited := cmd.Wait(); err != nil || !errors.Is(waited, context.Canceled) && waited != nil || !strings.Contains(log.String(), "limpet: listening on http://"+address) {
		t.Errorf("%v, %v\n%s", err, waited, &log)
	}
}
