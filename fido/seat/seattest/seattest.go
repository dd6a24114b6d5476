// Package seattest is for tests of what follows who sits at the machine.
package seattest

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/prop"
)

const (
	login = "org.freedesktop.login1"
	seat0 = "/org/freedesktop/login1/seat/seat0"
)

// Logind is a stand-in for systemd-logind, on a real bus of its own.
type Logind struct {
	Address string      // of the bus
	Bus     *os.Process // the bus itself
	t       testing.TB
	stop    func()
	bus     *dbus.Conn
	seat    *prop.Properties
	count   int
}

type session struct {
	ID   string
	Path dbus.ObjectPath
}

var none = session{"", "/"}

// Start starts a bus with a logind, at whose seat nobody sits.
func Start(t testing.TB) *Logind {
	t.Helper()
	if _, err := exec.LookPath("dbus-daemon"); err != nil && os.Getenv("CI") != "true" {
		t.Skip(err)
	}
	dir, err := os.MkdirTemp("", "bus-") // a socket's name has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l := &Logind{Address: "unix:path=" + filepath.Join(dir, "bus"), t: t}
	l.Restart()
	t.Cleanup(func() { l.Stop() })
	return l
}

// Connect returns a further connection to the bus.
func (l *Logind) Connect() *dbus.Conn {
	l.t.Helper()
	bus, err := dbus.Connect(l.Address)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { bus.Close() })
	return bus
}

// Restart starts the bus, after Stop.
func (l *Logind) Restart() {
	l.t.Helper()
	os.Remove(strings.TrimPrefix(l.Address, "unix:path="))
	daemon := exec.Command("dbus-daemon", "--session", "--nofork", "--nopidfile", "--print-address", "--address="+l.Address)
	out, err := daemon.StdoutPipe()
	if err == nil {
		err = daemon.Start()
	}
	if err != nil {
		l.t.Fatal(err)
	}
	l.Bus = daemon.Process
	l.stop = sync.OnceFunc(func() {
		daemon.Process.Kill()
		daemon.Wait()
	})
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		l.t.Fatal(err)
	}
	l.bus = l.Connect()
	l.export()
}

// Stop ends the bus.
func (l *Logind) Stop() { l.stop() }

// Replace has another logind take the place of this one, as after an update.
func (l *Logind) Replace() {
	l.t.Helper()
	l.bus.Close()
	l.bus = l.Connect()
	l.export()
}

func (l *Logind) export() {
	l.t.Helper()
	seat, err := prop.Export(l.bus, seat0, prop.Map{login + ".Seat": {"ActiveSession": {Value: none, Emit: prop.EmitTrue}}})
	if err != nil {
		l.t.Fatal(err)
	}
	l.seat = seat
	if reply, err := l.bus.RequestName(login, dbus.NameFlagDoNotQueue); err != nil || reply != dbus.RequestNameReplyPrimaryOwner {
		l.t.Fatal(reply, err)
	}
}

// Sit gives a user a session at the seat, or nobody, -1.
func (l *Logind) Sit(uid int) { l.t.Helper(); l.sit(uid, "user") }

// Greet has a login screen at the seat.
func (l *Logind) Greet() { l.t.Helper(); l.sit(110, "greeter") }

func (l *Logind) sit(uid int, class string) {
	l.t.Helper()
	if uid < 0 {
		l.seat.SetMust(login+".Seat", "ActiveSession", none)
		return
	}
	l.count++
	s := session{fmt.Sprint("c", l.count), dbus.ObjectPath(fmt.Sprint("/org/freedesktop/login1/session/c", l.count))}
	user := struct {
		UID  uint32
		Path dbus.ObjectPath
	}{uint32(uid), dbus.ObjectPath(fmt.Sprint("/org/freedesktop/login1/user/_", uid))}
	if _, err := prop.Export(l.bus, s.Path, prop.Map{login + ".Session": {"Class": {Value: class}, "User": {Value: user}}}); err != nil {
		l.t.Fatal(err)
	}
	l.seat.SetMust(login+".Seat", "ActiveSession", s)
}
