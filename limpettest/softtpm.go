//go:build unix

package limpettest

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TPM is a software TPM (swtpm) with its own state: a chip of its own for one
// test.
type TPM struct {
	dir string // the state: seeds, persistent objects, the lockout counter

	mu  sync.Mutex
	cmd *exec.Cmd
}

// SoftTPM makes a new TPM 2.0 that runs swtpm on a socket pair while a test is
// connected to it. It needs no port and no set-up, and ends with the test. The
// test fails if swtpm is not installed.
func SoftTPM(t testing.TB) *TPM {
	t.Helper()
	tpm := &TPM{dir: stateDir(t)}
	t.Cleanup(tpm.PowerOff)
	return tpm
}

// Dial switches the TPM off and on and returns the connection to it: the TPM
// commands and answers as they are, one after the other. What was loaded before
// is gone, as after a power cut.
func (s *TPM) Dial(context.Context) (io.ReadWriteCloser, error) {
	s.PowerOff()
	s.mu.Lock()
	defer s.mu.Unlock()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		return nil, err
	}
	syscall.CloseOnExec(fds[0])
	syscall.CloseOnExec(fds[1])
	ours, theirs := os.NewFile(uintptr(fds[0]), "tpm"), os.NewFile(uintptr(fds[1]), "swtpm")
	defer ours.Close()
	defer theirs.Close()
	cmd := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+s.dir,
		"--fd", "3", "--flags", "not-need-init,startup-clear")
	cmd.ExtraFiles = []*os.File{theirs}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s.cmd = cmd
	return net.FileConn(ours) // a copy of ours, with deadlines
}

// PowerOff stops the TPM as a power cut does. The next Dial switches it on.
func (s *TPM) PowerOff() {
	s.mu.Lock()
	defer s.mu.Unlock()
	stop(s.cmd)
	s.cmd = nil
}

// SoftTPMAt starts a new TPM 2.0 that listens on a socket until the test ends.
// network is "unix" or "tcp". It returns the address in the form that tpmkey
// and the command line take: "unix:/path" or "tcp:127.0.0.1:port". swtpm serves
// one connection at a time; a second one waits until the first is closed.
func SoftTPMAt(t testing.TB, network string) (addr string) {
	t.Helper()
	dir := stateDir(t)
	var server, dial string
	switch network {
	case "unix":
		dial = filepath.Join(dir, "socket")
		server = "type=unixio,path=" + dial
	case "tcp":
		l, err := net.Listen("tcp", "127.0.0.1:0") // asks for a port that is free
		if err != nil {
			t.Fatal(err)
		}
		dial = l.Addr().String()
		server = fmt.Sprintf("type=tcp,port=%d", l.Addr().(*net.TCPAddr).Port)
		l.Close()
	default:
		t.Fatalf("network %q is neither unix nor tcp", network)
	}
	args := []string{"socket", "--tpm2", "--tpmstate", "dir=" + dir, "--server", server, "--flags", "not-need-init,startup-clear"}
	if network == "unix" {
		args = append(args, "--ctrl", "type=unixio,path="+dial+".ctrl") // tpm2-tools want it: TPM2TOOLS_TCTI=swtpm:path=...
	}
	cmd := exec.Command("swtpm", args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(cmd) })
	for range 500 {
		conn, err := net.Dial(network, dial)
		if err == nil {
			conn.Close()
			return network + ":" + dial
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("swtpm does not listen on %s", dial)
	return ""
}

// stateDir makes a directory with a short path: the name of a unix socket has
// at most 107 bytes.
func stateDir(t testing.TB) string {
	t.Helper()
	if _, err := exec.LookPath("swtpm"); err != nil {
		t.Fatal("swtpm is not installed: this test needs a software TPM (Debian, Ubuntu: apt-get install --no-install-recommends swtpm; Fedora: dnf install swtpm)")
	}
	dir, err := os.MkdirTemp("", "swtpm-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
