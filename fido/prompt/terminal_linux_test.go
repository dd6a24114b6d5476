package prompt

import (
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// writes tells of what is written.
type writes func()

func (f writes) Write(b []byte) (int, error) {
	f()
	return len(b), nil
}

// TestTypeAhead: on a terminal the beginning of a line, typed before the question, is
// no part of the answer.
func TestTypeAhead(t *testing.T) {
	keyboard, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer keyboard.Close()
	if err := unix.IoctlSetPointerInt(int(keyboard.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(keyboard.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	meanwhile, after := "", ""
	p := NewTerminal(tty, writes(func() {
		keyboard.WriteString(meanwhile)
		time.AfterFunc(50*time.Millisecond, func() { keyboard.WriteString(after) })
		time.Sleep(20 * time.Millisecond) // it takes a while until the question is there
	}))
	for _, test := range []struct {
		before, meanwhile, after string
		want                     bool
	}{{"y", "", "\n", false}, {"y\ny\nye", "", "s\n", false}, {"n", "", "y\n", true}, {"", "", "y\n", true},
		{"", "y\n", "\n", false}, {"", "y", "\n", false}, {"", "n\n", "y\n", true}} {
		keyboard.WriteString(test.before)
		time.Sleep(20 * time.Millisecond)
		meanwhile, after = test.meanwhile, test.after
		if got, err := p.Ask(t.Context(), register); err != nil || got != test.want {
			t.Errorf("%q before, %q after: %v, %v", test.before, test.after, got, err)
		}
	}
}
