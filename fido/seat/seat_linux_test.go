package seat_test

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/limpet-auth/limpet/fido/seat"
	"github.com/limpet-auth/limpet/fido/seat/seattest"
)

// watched is what Watch says.
type watched struct {
	t     *testing.T
	began chan int
	ended chan int
	err   chan error
}

func watch(ctx context.Context, t *testing.T) *watched {
	w := &watched{t, make(chan int, 10), make(chan int, 10), make(chan error, 1)}
	go func() {
		w.err <- seat.Watch(ctx, func(ctx context.Context, uid int) {
			w.began <- uid
			<-ctx.Done()
			w.ended <- uid
		})
	}()
	return w
}

// want waits for who sits there, one after the other; the first does so already,
// unless only one is named.
func (w *watched) want(uids ...int) {
	w.t.Helper()
	next := func(what string, event chan int, uid int) {
		w.t.Helper()
		select {
		case got := <-event:
			if got != uid {
				w.t.Fatalf("user %d %s, want %d", got, what, uid)
			}
		case err := <-w.err:
			w.t.Fatalf("it ended: %v", err)
		case <-time.After(10 * time.Second):
			w.t.Fatalf("user %d never %s", uid, what)
		}
	}
	if len(uids) == 1 {
		next("began", w.began, uids[0])
	}
	for i, uid := range uids[1:] {
		next("ended", w.ended, uids[i])
		next("began", w.began, uid)
	}
}

// TestWatch: each change of the active user is told, in order, and nothing else.
func TestWatch(t *testing.T) {
	logind := seattest.Start(t)
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", logind.Address)
	if _, err := seat.ActiveUser(t.Context()); !errors.Is(err, seat.ErrNobody) {
		t.Errorf("nobody: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	w := watch(ctx, t)
	w.want(seat.Nobody)
	logind.Sit(1000)
	logind.Sit(1000) // another session
	logind.Sit(1001)
	logind.Sit(1000) // at once
	w.want(seat.Nobody, 1000, 1001, 1000)
	if uid, err := seat.ActiveUser(t.Context()); err != nil || uid != 1000 {
		t.Errorf("%d, %v", uid, err)
	}

	// A stranger's word does not count, also not if it is addressed to whoever watches.
	stranger := logind.Connect()
	var names []string
	if err := stranger.BusObject().Call("org.freedesktop.DBus.ListNames", 0).Store(&names); err != nil {
		t.Fatal(err)
	}
	change := map[string]dbus.Variant{"ActiveSession": dbus.MakeVariant(struct {
		ID   string
		Path dbus.ObjectPath
	}{"c3", "/org/freedesktop/login1/session/c3"})} // user 1001
	body := []any{"org.freedesktop.login1.Seat", change, []string{}}
	for _, name := range append(names, "") {
		m := &dbus.Message{Type: dbus.TypeSignal, Body: body, Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldPath:      dbus.MakeVariant(dbus.ObjectPath("/org/freedesktop/login1/seat/seat0")),
			dbus.FieldInterface: dbus.MakeVariant("org.freedesktop.DBus.Properties"),
			dbus.FieldMember:    dbus.MakeVariant("PropertiesChanged"),
			dbus.FieldSignature: dbus.MakeVariant(dbus.SignatureOf(body...)),
		}}
		if name != "" {
			m.Headers[dbus.FieldDestination] = dbus.MakeVariant(name)
		}
		stranger.Send(m, nil)
	}
	if err := stranger.BusObject().Call("org.freedesktop.DBus.GetId", 0).Err; err != nil { // the bus has passed it on
		t.Fatal(err)
	}
	logind.Greet()
	w.want(1000, seat.Nobody)
	logind.Sit(1001)
	w.want(seat.Nobody, 1001)
	cancel()
	if err := <-w.err; err != nil {
		t.Error(err)
	}
	if uid := <-w.ended; uid != 1001 || len(w.began) > 0 {
		t.Errorf("user %d ended, %d more began", uid, len(w.began))
	}
}

// TestWatchBroken: who cannot be told of changes is told so.
func TestWatchBroken(t *testing.T) {
	logind := seattest.Start(t)
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", logind.Address)
	for what, breaks := range map[string]func(){"systemd-logind has gone": logind.Replace, "the bus has gone": logind.Stop} {
		logind.Sit(1000)
		w := watch(t.Context(), t)
		w.want(1000)
		breaks()
		select {
		case err := <-w.err:
			if err == nil || !strings.HasSuffix(err.Error(), what) || len(w.ended) != 1 {
				t.Errorf("%s: %v, %d ended", what, err, len(w.ended))
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: nobody notices", what)
		}
		if what == "the bus has gone" {
			if err := seat.Watch(t.Context(), func(context.Context, int) { t.Error("called") }); err == nil {
				t.Error("no bus: no error")
			}
			logind.Restart()
		}
	}
}

// TestWatchSilent: a bus that hangs tells of no change, and that is noticed.
func TestWatchSilent(t *testing.T) {
	logind := seattest.Start(t)
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", logind.Address)
	defer seat.SetEvery(seat.SetEvery(10 * time.Millisecond))
	logind.Sit(1000)
	w := watch(t.Context(), t)
	w.want(1000)
	select {
	case err := <-w.err:
		t.Fatalf("while it answers: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	if err := logind.Bus.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-w.err:
		if !errors.Is(err, context.DeadlineExceeded) || len(w.ended) != 1 {
			t.Errorf("%v, %d ended", err, len(w.ended))
		}
	case <-time.After(20 * time.Second):
		t.Fatal("nobody notices")
	}
}
