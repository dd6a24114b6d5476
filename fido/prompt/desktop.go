package prompt

import (
	"context"
	"errors"
	"fmt"
	"html"
	"slices"

	"github.com/godbus/dbus/v5"

	"github.com/limpet-auth/limpet/fido"
)

// The Desktop Notifications Specification, 1.2.
const (
	notifications     = "org.freedesktop.Notifications"
	notificationsPath = "/org/freedesktop/Notifications"

	allowKey, denyKey = "allow", "deny"
)

// Desktop asks with a notification that has buttons.
type Desktop struct {
	server dbus.BusObject
	bus    *dbus.Conn
	markup bool // does the server read HTML?
}

// NewDesktop connects to the session's bus. It fails where notifications have no
// buttons.
func NewDesktop(ctx context.Context) (*Desktop, error) {
	bus, err := dbus.SessionBusPrivateNoAutoStartup(dbus.WithContext(ctx)) // a bus started for us would have no desktop
	if err != nil {
		return nil, fmt.Errorf("limpet: prompt: %w", err)
	}
	if err = bus.Auth(nil); err == nil {
		err = bus.Hello()
	}
	if err != nil {
		bus.Close()
		return nil, fmt.Errorf("limpet: prompt: %w", err)
	}
	d := &Desktop{bus: bus, server: bus.Object(notifications, notificationsPath)}
	var can []string
	err = d.server.CallWithContext(ctx, notifications+".GetCapabilities", 0).Store(&can)
	if err == nil && !slices.Contains(can, "actions") {
		err = errors.New("the desktop's notifications have no buttons")
	}
	if err == nil {
		err = bus.AddMatchSignalContext(ctx, dbus.WithMatchInterface(notifications), dbus.WithMatchObjectPath(notificationsPath))
	}
	if err != nil {
		bus.Close()
		return nil, fmt.Errorf("limpet: prompt: %w", err)
	}
	d.markup = slices.Contains(can, "body-markup")
	return d, nil
}

// Ask shows a notification until it is answered, dismissed or ctx is done.
func (d *Desktop) Ask(ctx context.Context, r fido.Request) (bool, error) {
	signals := make(chan *dbus.Signal, 64)
	d.bus.Signal(signals)
	defer d.bus.RemoveSignal(signals)
	text := r.Text()
	if d.markup {
		text = html.EscapeString(text)
	}
	var id uint32
	err := d.server.CallWithContext(ctx, notifications+".Notify", 0,
		"Limpet", uint32(0), "security-high", title, text,
		[]string{allowKey, "Allow", denyKey, "Deny"},
		map[string]dbus.Variant{"urgency": dbus.MakeVariant(byte(2)), "transient": dbus.MakeVariant(true)},
		int32(0), // until it is answered
	).Store(&id)
	if err != nil {
		return false, fmt.Errorf("limpet: prompt: %w", err)
	}
	// Who answers is the one who shows it: no other on the bus is believed.
	var shows string
	if err := d.bus.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.GetNameOwner", 0, notifications).Store(&shows); err != nil {
		return false, fmt.Errorf("limpet: prompt: %w", err)
	}
	for {
		select {
		case s, open := <-signals:
			if !open {
				return false, errors.New("limpet: prompt: the session's bus has gone")
			}
			var which uint32
			if s.Sender != shows || len(s.Body) != 2 || dbus.Store(s.Body[:1], &which) != nil || which != id {
				continue
			}
			switch s.Name {
			case notifications + ".ActionInvoked":
				return s.Body[1] == allowKey, nil
			case notifications + ".NotificationClosed":
				return false, nil
			}
		case <-ctx.Done():
			d.server.Call(notifications+".CloseNotification", dbus.FlagNoReplyExpected, id)
			return false, ctx.Err()
		}
	}
}
