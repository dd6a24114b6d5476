// Package seat tells who sits at the machine.
package seat

import (
	"context"
	"errors"
	"fmt"
)

// ErrNobody means that nobody's session is active, but the login screen's, or none.
var ErrNobody = errors.New("no user's session is active")

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
