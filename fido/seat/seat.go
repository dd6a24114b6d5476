// Package seat tells who sits at the machine.
package seat

import (
	"context"
	"errors"
	"fmt"
)

// ErrNobody means that nobody's session is active, but the login screen's, or none.
var ErrNobody = errors.New("no user's session is active")

// Nobody stands in a user's place when there is none: see [ErrNobody].
const Nobody = -1

// ActiveUser returns the user whose session is active at seat0, the machine's own
// screen and keyboard, as systemd-logind knows it. udev gives that user the devices
// of security tokens. Other seats do not count.
func ActiveUser(ctx context.Context) (uid int, err error) {
	uid, err = activeUser(ctx)
	if err != nil {
		return 0, fmt.Errorf("limpet: seat: %w", err)
	}
	return uid, nil
}

// Watch calls during for whoever sits at the machine, with the user or [Nobody], one
// after the other: the context is done as soon as it is somebody else, and the next
// call comes when during has returned. A user who is there for a moment counts too;
// another session of the same user's is no change.
//
// It returns the error when systemd-logind does not tell any more, or nil once ctx is
// done; during has returned then.
func Watch(ctx context.Context, during func(ctx context.Context, uid int)) error {
	if err := watch(ctx, during); err != nil && ctx.Err() == nil {
		return fmt.Errorf("limpet: seat: %w", err)
	}
	return nil
}
