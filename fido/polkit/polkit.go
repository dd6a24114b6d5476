// Package polkit verifies the user of a FIDO token by polkit: the dialog of the
// desktop that asks for the password, or a fingerprint where PAM has pam_fprintd.
package polkit

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/limpet-auth/limpet/fido"
	"github.com/limpet-auth/limpet/fido/seat"
)

// Action is what a user is asked to authenticate for. Its file is part of the package
// for Debian, and says that the user limpet-fido may ask.
const Action = "io.github.limpet-auth.limpet.fido.verify"

// The D-Bus interface of polkit: org.freedesktop.PolicyKit1.Authority.
const (
	service   = "org.freedesktop.PolicyKit1"
	path      = "/org/freedesktop/PolicyKit1/Authority"
	authority = service + ".Authority"

	interactive = 1        // CheckAuthorizationFlags: the user may be asked
	question    = "verify" // its name, for this connection

	timeout = 5 * time.Second // for a dialog to be closed
)

// Verifier is a fido.Verifier. Root can use it, and the user limpet-fido: polkit
// lets nobody else say what a dialog is about.
type Verifier struct {
	session func(context.Context) (seat.Session, error)
}

// New returns a verifier of the user whose session it is now, such as
// seat.ActiveSession finds.
func New(session func(context.Context) (seat.Session, error)) *Verifier { return &Verifier{session} }

// User implements fido.Verifier. Its names are the IDs of sessions.
func (v *Verifier) User(ctx context.Context) (string, error) {
	s, err := v.session(ctx)
	return s.ID, err
}

// Verify implements fido.Verifier. It takes no earlier authentication for an answer,
// unless a rule of this machine's administrator does.
func (v *Verifier) Verify(ctx context.Context, user string, r fido.Request) error {
	session, err := v.session(ctx)
	if err == nil && session.ID != user {
		err = errors.New("the session of another user is active")
	}
	if err == nil {
		err = check(ctx, session, r)
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, fido.ErrNotVerified), errors.Is(err, fido.ErrDismissed):
		return err
	case err != nil:
		return fmt.Errorf("limpet: polkit: %w", err)
	}
	return nil
}

func check(ctx context.Context, session seat.Session, r fido.Request) error {
	// The connection outlives ctx for as long as it takes to have the dialog closed.
	open, done := context.WithCancel(context.WithoutCancel(ctx))
	defer done()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(timeout, done) })
	defer stop()
	bus, err := dbus.ConnectSystemBus(dbus.WithContext(open))
	if err != nil {
		return err
	}
	defer bus.Close()
	polkit := bus.Object(service, path)
	type subject struct {
		Kind    string
		Details map[string]dbus.Variant
	}
	var result struct {
		Authorized, Challenge bool
		Details               map[string]string
	}
	// Not "unix-session": polkitd 122 crashes of that.
	err = polkit.CallWithContext(ctx, authority+".CheckAuthorization", 0,
		subject{"unix-process", map[string]dbus.Variant{
			"pid":        dbus.MakeVariant(session.Leader),
			"start-time": dbus.MakeVariant(uint64(0)), // polkitd looks: it may see other users' processes
			"uid":        dbus.MakeVariant(int32(session.UID)),
		}},
		Action, map[string]string{"question": plain(r.Text())}, uint32(interactive), question,
	).Store(&result)
	if ctx.Err() != nil {
		polkit.CallWithContext(open, authority+".CancelCheckAuthorization", 0, question)
		return ctx.Err()
	}
	switch {
	case err != nil:
		return err
	case result.Authorized:
		return nil
	case result.Details["polkit.dismissed"] != "":
		return fido.ErrDismissed
	case result.Challenge:
		return errors.New("no authentication agent runs in session " + session.ID)
	}
	return fido.ErrNotVerified
}

// plain returns text without what some of the desktops' dialogs take for markup.
func plain(text string) string {
	return strings.Map(func(c rune) rune {
		if c == '<' || c == '>' {
			return '\ufffd'
		}
		return c
	}, text)
}
