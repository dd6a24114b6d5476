package seat

import (
	"context"
	"fmt"
	"time"

	"github.com/godbus/dbus/v5"
)

// The D-Bus interface of systemd-logind: org.freedesktop.login1(5).
const (
	login   = "org.freedesktop.login1"
	seat0   = "/org/freedesktop/login1/seat/seat0"
	timeout = 5 * time.Second
)

func activeUser(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	bus, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return 0, err
	}
	defer bus.Close()
	get := func(path dbus.ObjectPath, iface, name string, value any) error {
		var v dbus.Variant
		err := bus.Object(login, path).CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", 0, login+"."+iface, name).Store(&v)
		if err == nil {
			err = v.Store(value)
		}
		return err
	}
	var session struct {
		ID   string
		Path dbus.ObjectPath
	}
	if err := get(seat0, "Seat", "ActiveSession", &session); err != nil {
		return 0, err
	}
	if session.ID == "" {
		return 0, ErrNobody
	}
	var class string
	if err := get(session.Path, "Session", "Class", &class); err != nil {
		return 0, err
	}
	if class != "user" {
		return 0, fmt.Errorf("%w: a session of class %q is", ErrNobody, class)
	}
	var user struct {
		UID  uint32
		Path dbus.ObjectPath
	}
	if err := get(session.Path, "Session", "User", &user); err != nil {
		return 0, err
	}
	return int(user.UID), nil
}
