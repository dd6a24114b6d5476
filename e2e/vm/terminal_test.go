//go:build guest

package vm

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// terminal is a program on a terminal of its own, where programs ask for PINs.
type terminal struct {
	t      *testing.T
	cmd    *exec.Cmd
	screen *os.File
	ended  chan struct{}

	mu   sync.Mutex
	text string
	read int // how much of text has been waited for
}

// terminal starts a program as the person.
func (p *person) terminal(t *testing.T, args ...string) *terminal {
	t.Helper()
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(screen.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(screen.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	if err := tty.Chown(int(p.uid), int(p.gid)); err != nil {
		t.Fatal(err)
	}
	x := &terminal{t: t, cmd: p.command(args[0], args[1:]...), screen: screen, ended: make(chan struct{})}
	x.cmd.Stdin, x.cmd.Stdout, x.cmd.Stderr = tty, tty, tty
	x.cmd.SysProcAttr.Setsid, x.cmd.SysProcAttr.Setctty = true, true
	if err := x.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(x.ended)
		b := make([]byte, 4096)
		for {
			n, err := screen.Read(b)
			x.mu.Lock()
			x.text += strings.ReplaceAll(string(b[:n]), "\r", "")
			x.mu.Unlock()
			if err != nil { // nobody has the terminal open
				return
			}
		}
	}()
	return x
}

// shows waits for words on the screen.
func (x *terminal) shows(words string) {
	x.t.Helper()
	waitFor(x.t, fmt.Sprintf("%q from %s", words, x.cmd), func() bool {
		x.mu.Lock()
		defer x.mu.Unlock()
		if at := strings.Index(x.text[x.read:], words); at >= 0 {
			x.read += at + len(words)
			return true
		}
		select {
		case <-x.ended:
			x.t.Fatalf("%s did not say %q:\n%s\n%s", x.cmd, words, x.text, journal())
		default:
		}
		return false
	})
}

// answer waits for a question, and types.
func (x *terminal) answer(question, line string) {
	x.t.Helper()
	x.shows(question)
	time.Sleep(20 * time.Millisecond) // what is typed before a program has turned off the echo, it throws away
	if _, err := x.screen.WriteString(line + "\n"); err != nil {
		x.t.Fatal(err)
	}
}

// end waits until the program has ended, and returns what was on the screen.
func (x *terminal) end() (string, error) {
	x.t.Helper()
	kill := time.AfterFunc(patience, func() { x.cmd.Process.Kill() })
	err := x.cmd.Wait()
	kill.Stop()
	<-x.ended
	x.screen.Close()
	return x.text, err
}

func (x *terminal) succeeds() string {
	x.t.Helper()
	out, err := x.end()
	if err != nil {
		x.t.Fatalf("%s: %v\n%s\n%s", x.cmd, err, out, journal())
	}
	return out
}

func (x *terminal) fails(saying string) {
	x.t.Helper()
	if out, err := x.end(); err == nil || !strings.Contains(out, saying) {
		x.t.Errorf("%s: %v, want %s\n%s", x.cmd, err, saying, out)
	}
}
