package seat

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/godbus/dbus/v5"
)

// The D-Bus interface of systemd-logind: org.freedesktop.login1(5).
const (
	login      = "org.freedesktop.login1"
	seat0      = "/org/freedesktop/login1/seat/seat0"
	properties = "org.freedesktop.DBus.Properties"
	broker     = "org.freedesktop.DBus"
	timeout    = 5 * time.Second
)

// every is how often it is tried whether logind would still tell of a change: a bus
// that hangs says nothing, and does not close either.
var every = 30 * time.Second // but in tests

func activeUser(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	l, err := connect(ctx)
	if err != nil {
		return 0, err
	}
	defer l.bus.Close()
	return l.activeUser(ctx)
}

// logind is a connection to it.
type logind struct{ bus *dbus.Conn }

func connect(ctx context.Context) (logind, error) {
	// With ctx the connection ends.
	bus, err := dbus.ConnectSystemBus(dbus.WithContext(ctx), dbus.WithSignalHandler(dbus.NewSequentialSignalHandler()))
	return logind{bus}, err
}

func (l logind) get(ctx context.Context, path dbus.ObjectPath, iface, name string, value any) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var v dbus.Variant
	err := l.bus.Object(login, path).CallWithContext(ctx, properties+".Get", 0, login+"."+iface, name).Store(&v)
	if err == nil {
		err = v.Store(value)
	}
	return err
}

// session is the value of a seat's ActiveSession.
type session struct {
	ID   string
	Path dbus.ObjectPath
}

func (l logind) activeUser(ctx context.Context) (int, error) {
	var s session
	if err := l.get(ctx, seat0, "Seat", "ActiveSession", &s); err != nil {
		return 0, err
	}
	return l.userOf(ctx, s)
}

func (l logind) userOf(ctx context.Context, s session) (int, error) {
	if s.ID == "" {
		return 0, ErrNobody
	}
	var class string
	if err := l.get(ctx, s.Path, "Session", "Class", &class); err != nil {
		return 0, err
	}
	if class != "user" {
		return 0, fmt.Errorf("%w: a session of class %q is", ErrNobody, class)
	}
	var user struct {
		UID  uint32
		Path dbus.ObjectPath
	}
	if err := l.get(ctx, s.Path, "Session", "User", &user); err != nil {
		return 0, err
	}
	return int(user.UID), nil
}

func watch(ctx context.Context, during func(context.Context, int)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	late := time.AfterFunc(2*timeout, cancel)
	l, err := connect(ctx)
	if err != nil {
		return err
	}
	defer l.bus.Close()
	// First, so that no change is between asking and hearing.
	signals := make(chan *dbus.Signal, 16)
	l.bus.Signal(signals)
	for _, match := range [][]dbus.MatchOption{
		{dbus.WithMatchSender(login), dbus.WithMatchObjectPath(seat0), dbus.WithMatchInterface(properties), dbus.WithMatchMember("PropertiesChanged")},
		{dbus.WithMatchSender(broker), dbus.WithMatchInterface(broker), dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, login)},
	} {
		if err := l.bus.AddMatchSignalContext(ctx, match...); err != nil {
			return err
		}
	}
	now, err := nobodyIsOne(l.activeUser(ctx)) // which starts it, if need be
	if err != nil {
		return err
	}
	var owner string // of the name: others can send signals too, and none of theirs counts
	if err := l.bus.BusObject().CallWithContext(ctx, broker+".GetNameOwner", 0, login).Store(&owner); err != nil {
		return err
	}
	late.Stop()
	for {
		theirs, over := context.WithCancel(ctx)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			during(theirs, now)
		}()
		next, err := l.next(ctx, signals, owner, now)
		over()
		<-ended
		if err != nil {
			return err
		}
		now = next
	}
}

func nobodyIsOne(uid int, err error) (int, error) {
	if errors.Is(err, ErrNobody) {
		return Nobody, nil
	}
	return uid, err
}

func (l logind) ping(ctx context.Context, owner string) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err := l.bus.Object(owner, seat0).CallWithContext(ctx, "org.freedesktop.DBus.Peer.Ping", 0).Err
	if err != nil {
		return fmt.Errorf("systemd-logind does not answer: %w", err)
	}
	return nil
}

// next waits until the active user is not the one that it was, and returns who is.
func (l logind) next(ctx context.Context, signals <-chan *dbus.Signal, owner string, was int) (int, error) {
	again := time.NewTicker(every)
	defer again.Stop()
	for {
		var s *dbus.Signal
		select {
		case s = <-signals:
		case <-again.C:
			if err := l.ping(ctx, owner); err != nil {
				return 0, err
			}
			continue
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		if s == nil {
			return 0, errors.New("the bus has gone")
		}
		switch {
		case s.Sender == broker && s.Name == broker+".NameOwnerChanged":
			var name, before, after string
			if err := dbus.Store(s.Body, &name, &before, &after); err != nil {
				return 0, err
			}
			if name == login && after != owner {
				return 0, errors.New("systemd-logind has gone")
			}
		case s.Sender == owner && s.Path == seat0 && s.Name == properties+".PropertiesChanged":
			var iface string
			var changed map[string]dbus.Variant
			var invalidated []string
			if err := dbus.Store(s.Body, &iface, &changed, &invalidated); err != nil {
				return 0, err
			}
			const active = "ActiveSession"
			value, told := changed[active]
			if iface != login+".Seat" || !told && !slices.Contains(invalidated, active) {
				continue
			}
			// What the signal says and not what is true by now, or who was there for a
			// moment would be missed. The question also waits until logind has done all
			// that belongs to the change.
			var is int
			var err error
			if told {
				var to session
				if err = value.Store(&to); err == nil {
					is, err = nobodyIsOne(l.userOf(ctx, to))
				}
			} else {
				is, err = nobodyIsOne(l.activeUser(ctx))
			}
			if err != nil || is != was {
				return is, err
			}
		}
	}
}
