package limpettest

import (
	"fmt"
	"net"
	"os/exec"
	"testing"
	"time"
)

// Redis starts a redis-server of the test's own on a free port of the loopback
// interface and returns its address. settings are further arguments, such as
// "--requirepass", "x". Nothing is kept on disk, and it ends with the test. The
// test fails if redis-server is not installed.
func Redis(t testing.TB, settings ...string) (addr string) {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Fatal("redis-server is not installed: this test needs a real one (Debian, Ubuntu: apt-get install --no-install-recommends redis-server)")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0") // asks for a port that is free
	if err != nil {
		t.Fatal(err)
	}
	addr = l.Addr().String()
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	cmd := exec.Command("redis-server", append([]string{"--bind", "127.0.0.1", "--port", fmt.Sprint(port), "--dir", t.TempDir(),
		"--save", "", "--appendonly", "no"}, settings...)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(cmd) })
	for range 500 {
		if conn, err := net.Dial("tcp", addr); err == nil {
			conn.Close()
			return addr
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("redis-server does not listen on %s", addr)
	return ""
}

func stop(cmd *exec.Cmd) {
	if cmd != nil {
		cmd.Process.Kill()
		cmd.Wait()
	}
}
