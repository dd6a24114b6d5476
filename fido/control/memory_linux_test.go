package control_test

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/limpet-auth/limpet/fido/control"
)

// TestPINIsOverwritten looks for PINs that came over the socket in the memory of the
// process that took them.
func TestPINIsOverwritten(t *testing.T) {
	const inside = "LIMPET_TEST_TOKEN"
	if os.Getenv(inside) != "" {
		path, _, _ := open(t)
		fmt.Println(path)
		io.Copy(io.Discard, os.Stdin)
		return
	}
	t.Parallel()
	cmd := exec.Command(os.Args[0], "-test.run", "^TestPINIsOverwritten$")
	cmd.Env = append(os.Environ(), inside+"=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer in.Close()
	path, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	c, err := control.Dial(strings.TrimSpace(path))
	if err != nil {
		t.Fatal(err)
	}
	pins := [2][]byte{[]byte(rand.Text()), []byte(rand.Text())}
	if err := c.SetPIN(t.Context(), pins[0]); err != nil {
		t.Fatal(err)
	}
	if err := c.ChangePIN(t.Context(), pins[0], pins[1]); err != nil {
		t.Fatal(err)
	}
	if _, err := c.List(t.Context(), pins[1]); err != nil {
		t.Fatal(err)
	}
	// And one of which only a part came.
	part := []byte(rand.Text() + rand.Text())
	conn, err := net.Dial("unix", strings.TrimSpace(path))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, `{"do":"list","pin":"%s%s`, part, make([]byte, 16<<10)) // more than a line may have
	if answer, _ := io.ReadAll(conn); len(answer) > 0 {
		t.Errorf("a part of a request: %q", answer)
	}
	if n := inMemory(t, cmd.Process.Pid, part); n > 0 {
		t.Errorf("what came of a PIN is there %d times", n)
	}
	for i, pin := range pins {
		sent := []byte(base64.StdEncoding.EncodeToString(pin))
		if n := inMemory(t, cmd.Process.Pid, sent); n > 0 {
			t.Errorf("PIN %d is there %d times", i, n)
		}
	}
	if inMemory(t, cmd.Process.Pid, []byte(strings.TrimSpace(path))) == 0 {
		t.Error("what the process certainly has is not found")
	}
}

// inMemory counts what a process has in memory that it can write to.
func inMemory(t *testing.T, pid int, what []byte) (n int) {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	for line := range strings.Lines(string(maps)) {
		var from, to uint64
		var rights string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &rights); err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(rights, "rw") || to-from > 1<<26 { // the race detector has terabytes of its own
			continue
		}
		b := make([]byte, to-from)
		k, err := memory.ReadAt(b, int64(from))
		if err != nil && k == 0 {
			continue // what is there for the kernel alone
		}
		n += bytes.Count(b[:k], what)
	}
	return n
}
