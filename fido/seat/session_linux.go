package seat

import (
	"context"
	"fmt"

	"github.com/godbus/dbus/v5"
)

func activeSession(ctx context.Context) (s Session, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	bus, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return s, err
	}
	defer bus.Close()
	all := func(path dbus.ObjectPath, iface string) (p map[string]dbus.Variant, err error) {
		return p, bus.Object(login, path).CallWithContext(ctx, "org.freedesktop.DBus.Properties.GetAll", 0, login+"."+iface).Store(&p)
	}
	seat, err := all(seat0, "Seat")
	if err != nil {
		return s, err
	}
	var active struct {
		ID   string
		Path dbus.ObjectPath
	}
	if err := seat["ActiveSession"].Store(&active); err != nil {
		return s, err
	}
	if active.ID == "" {
		return s, ErrNobody
	}
	session, err := all(active.Path, "Session")
	if err != nil {
		return s, err
	}
	var user struct {
		UID  uint32
		Path dbus.ObjectPath
	}
	var class string
	s.ID = active.ID
	for name, value := range map[string]any{"Class": &class, "User": &user, "Leader": &s.Leader} {
		if err := session[name].Store(value); err != nil {
			return s, fmt.Errorf("the session's %s: %w", name, err)
		}
	}
	if class != "user" {
		return s, fmt.Errorf("%w: a session of class %q is", ErrNobody, class)
	}
	s.UID = int(user.UID)
	return s, nil
}
