package prompt

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestPinentryCurses asks with the pinentry of terminals, on one of its own.
func TestPinentryCurses(t *testing.T) {
	const inside = "LIMPET_TEST_PINENTRY"
	if os.Getenv(inside) != "" {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		allowed, err := (&Pinentry{"pinentry-curses"}).Ask(ctx, register)
		fmt.Printf("answer: %v, %v.", allowed, err)
		return
	}
	t.Parallel()
	if _, err := exec.LookPath("pinentry-curses"); err != nil && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	for keys, want := range map[string]string{"\r": "answer: true, <nil>.", "\t\r": "answer: false, <nil>."} {
		screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer screen.Close()
		if err := unix.IoctlSetPointerInt(int(screen.Fd()), unix.TIOCSPTLCK, 0); err != nil {
			t.Fatal(err)
		}
		n, err := unix.IoctlGetInt(int(screen.Fd()), unix.TIOCGPTN)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.IoctlSetWinsize(int(screen.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 30, Col: 100}); err != nil {
			t.Fatal(err)
		}
		tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(os.Args[0], "-test.run", "^TestPinentryCurses$")
		cmd.Env = append(os.Environ(), inside+"=1", "TERM=xterm", "LC_ALL=C.UTF-8", "GORACE=atexit_sleep_ms=20")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		tty.Close()
		var seen []byte
		for typed, b := false, make([]byte, 4096); ; {
			n, err := screen.Read(b)
			if err != nil { // nobody has the terminal open
				break
			}
			if seen = append(seen, b[:n]...); !typed && bytes.Contains(seen, []byte("<Deny>")) {
				typed = true
				time.Sleep(100 * time.Millisecond) // it throws away what was typed before it reads
				screen.WriteString(keys)
			}
		}
		cmd.Wait()
		for _, words := range []string{"Register with example.com as", "<Allow>", want} {
			if !bytes.Contains(seen, []byte(words)) {
				t.Errorf("%q: no %q on the screen:\n%q", keys, words, seen)
			}
		}
	}
}
