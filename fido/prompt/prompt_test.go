package prompt

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/limpet-auth/limpet/fido"
)

var register = fido.Request{Operation: fido.Register, RPID: "example.com", Account: "<b>alice</b> &amp; 100%"}

// TestTerminal: y is yes, everything else no, and what was typed before a question is
// no answer to it.
func TestTerminal(t *testing.T) {
	in, typed := io.Pipe()
	var out bytes.Buffer
	p := NewTerminal(in, &out)
	early := make(chan struct{})
	go func() {
		defer close(early)
		for _, line := range []string{"y\n", "y\ny\n", "yes\ny"} {
			io.WriteString(typed, line)
		}
	}()
	select {
	case <-early:
		time.Sleep(20 * time.Millisecond)
	case <-time.After(time.Second): // it reads when it asks, and finds all of that
	}
	for _, test := range []struct {
		line string
		want bool
	}{{"n", false}, {"y", true}, {" YES ", true}, {"", false}, {"yeah", false}} {
		go func() {
			time.Sleep(50 * time.Millisecond)
			io.WriteString(typed, test.line+"\n")
		}()
		if got, err := p.Ask(t.Context(), register); err != nil || got != test.want {
			t.Errorf("%q: %v, %v", test.line, got, err)
		}
	}
	if !strings.Contains(out.String(), `Register with example.com as "<b>alice</b> &amp; 100%"? [y/N]`) {
		t.Errorf("%q", &out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if got, err := p.Ask(ctx, register); got || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("too late: %v, %v", got, err)
	}
	typed.Close()
	if got, err := p.Ask(t.Context(), register); got || err == nil {
		t.Errorf("at the end: %v, %v", got, err)
	}
}

// TestPinentry asks with a program that speaks as pinentry does.
func TestPinentry(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	heard := filepath.Join(dir, "heard")
	user := func(answer string) {
		t.Helper()
		script := "#!/bin/sh\necho 'OK Pleased to meet you'\nwhile read -r line; do\n\techo \"$line\" >>" + heard +
			"\n\tcase $line in CONFIRM) " + answer + ";; *) echo OK;; esac\ndone\n"
		if err := os.WriteFile(filepath.Join(dir, "pinentry"), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for answer, want := range map[string]bool{
		"echo OK": true, "echo 'ERR 83886179 Operation cancelled <Pinentry>'": false, "echo 'ERR 83886194 Not confirmed <Pinentry>'": false,
	} {
		user(answer)
		p, err := NewPinentry()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := p.Ask(t.Context(), register); err != nil || got != want {
			t.Errorf("%s: %v, %v", answer, got, err)
		}
	}
	text, err := os.ReadFile(heard)
	if err != nil || !strings.Contains(string(text), `SETDESC Register with example.com as "‹b>alice‹/b> ＆amp; 100%25"?`) {
		t.Errorf("%v, %s", err, text)
	}
	for _, answer := range []string{"echo 'ERR 83886340 Invalid IPC response <Pinentry>'", "exit 1"} {
		user(answer)
		p, err := NewPinentry()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := p.Ask(t.Context(), register); got || err == nil {
			t.Errorf("%s: %v, %v", answer, got, err)
		}
	}
	user("exec sleep 60")
	p, err := NewPinentry()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if got, err := p.Ask(ctx, register); got || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("too late: %v, %v", got, err)
	}
}

// shell is a desktop that shows notifications.
type shell struct {
	bus    *dbus.Conn
	can    atomic.Value // []string
	shown  chan string
	closed chan uint32
}

func (s *shell) GetCapabilities() ([]string, *dbus.Error) { return s.can.Load().([]string), nil }

func (s *shell) Notify(_ string, _ uint32, _, _, body string, actions []string, _ map[string]dbus.Variant, _ int32) (uint32, *dbus.Error) {
	s.shown <- body + " " + strings.Join(actions, ",")
	return 7, nil
}

func (s *shell) CloseNotification(id uint32) *dbus.Error {
	s.closed <- id
	return nil
}

// TestDesktop asks by a notification on a real bus.
func TestDesktop(t *testing.T) {
	const inside = "LIMPET_TEST_BUS"
	if os.Getenv(inside) == "" {
		cmd := exec.Command("dbus-run-session", "--", os.Args[0], "-test.run", "^TestDesktop$")
		cmd.Env = append(os.Environ(), inside+"=1")
		out, err := cmd.CombinedOutput()
		if errors.Is(err, exec.ErrNotFound) && os.Getenv("CI") == "" {
			t.Skip("dbus-daemon is not installed")
		}
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := NewDesktop(ctx); err == nil {
		t.Error("there is no desktop, and it would ask by it")
	}
	bus, err := dbus.ConnectSessionBus()
	if err != nil {
		t.Fatal(err)
	}
	defer bus.Close()
	s := &shell{bus: bus, shown: make(chan string, 10), closed: make(chan uint32, 10)}
	s.can.Store([]string{"body"})
	if err := bus.Export(s, notificationsPath, notifications); err != nil {
		t.Fatal(err)
	}
	if reply, err := bus.RequestName(notifications, dbus.NameFlagDoNotQueue); err != nil || reply != dbus.RequestNameReplyPrimaryOwner {
		t.Fatal(reply, err)
	}
	if _, err := NewDesktop(ctx); err == nil {
		t.Error("there are no buttons, and it would ask with some")
	}
	s.can.Store([]string{"body", "body-markup", "actions"})
	d, err := NewDesktop(ctx)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := dbus.ConnectSessionBus()
	if err != nil {
		t.Fatal(err)
	}
	emit := func(from *dbus.Conn, name string, values ...any) {
		if err := from.Emit(notificationsPath, notifications+"."+name, values...); err != nil {
			t.Error(err)
		}
	}
	for _, test := range []struct {
		what   string
		answer func()
		want   bool
	}{
		{"allowed", func() { emit(bus, "ActionInvoked", uint32(7), "allow") }, true},
		{"denied", func() { emit(bus, "ActionInvoked", uint32(7), "deny") }, false},
		{"dismissed", func() { emit(bus, "NotificationClosed", uint32(7), uint32(2)) }, false},
		{"another's notification, then denied", func() {
			emit(bus, "ActionInvoked", uint32(8), "allow")
			emit(bus, "ActionInvoked", uint32(7), "deny")
		}, false},
		{"a stranger says it was allowed", func() {
			emit(stranger, "ActionInvoked", uint32(7), "allow")
			stranger.BusObject().Call("org.freedesktop.DBus.GetId", 0) // the bus has passed it on
			emit(bus, "ActionInvoked", uint32(7), "deny")
		}, false},
	} {
		go func() {
			if got := <-s.shown; got != "Register with example.com as &#34;&lt;b&gt;alice&lt;/b&gt; &amp;amp; 100%&#34;? allow,Allow,deny,Deny" {
				t.Errorf("%s: shown %q", test.what, got)
			}
			time.Sleep(20 * time.Millisecond)
			test.answer()
		}()
		if got, err := d.Ask(ctx, register); err != nil || got != test.want {
			t.Errorf("%s: %v, %v", test.what, got, err)
		}
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if got, err := d.Ask(short, register); got || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("too late: %v, %v", got, err)
	}
	if id := <-s.closed; id != 7 {
		t.Errorf("%d is closed", id)
	}
}
