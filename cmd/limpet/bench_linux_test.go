package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestBenchEndsWithItsServers: whoever interrupts a measurement, or kills it, has
// no servers left running.
func TestBenchEndsWithItsServers(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
		t.Run(sig.String(), func(t *testing.T) {
			dir := t.TempDir()
			cmd := exec.Command("limpet", "bench", "gateway", "--requests", "1000000")
			cmd.Env = append(os.Environ(), "TMPDIR="+dir)
			stderr, err := cmd.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer cmd.Process.Kill()
			lines := bufio.NewScanner(stderr)
			for lines.Scan() && !strings.Contains(lines.Text(), "warming up") {
			}
			servers := children(t, cmd.Process.Pid)
			if len(servers) != 3 {
				t.Fatalf("%d servers", len(servers))
			}
			cmd.Process.Signal(sig)
			for lines.Scan() {
				if sig == syscall.SIGINT && lines.Text() != "limpet: interrupted" {
					t.Errorf("it says %q", lines.Text())
				}
			}
			cmd.Wait()
			if code := cmd.ProcessState.ExitCode(); sig == syscall.SIGINT && code != exitFailure {
				t.Errorf("exit code %d", code)
			}
			for _, stat := range servers {
				for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
					text, err := os.ReadFile(stat)
					if err != nil || strings.Contains(string(text), ") Z ") {
						break
					}
					if time.Now().After(end) {
						t.Fatalf("a server is still there: %s", text)
					}
				}
			}
			if left, _ := os.ReadDir(dir); sig == syscall.SIGINT && len(left) > 0 {
				t.Errorf("%d files are left", len(left))
			}
		})
	}
}

// children returns the stat files of a process's children.
func children(t *testing.T, parent int) (found []string) {
	all, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, stat := range all {
		text, err := os.ReadFile(stat)
		if err != nil {
			continue // it has ended
		}
		_, rest, _ := strings.Cut(string(text), ") ")
		var state string
		var of int
		if _, err := fmt.Sscan(rest, &state, &of); err == nil && of == parent {
			found = append(found, stat)
		}
	}
	return found
}
