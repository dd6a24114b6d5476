//go:build !linux

package seat

import (
	"context"
	"errors"
)

func activeSession(context.Context) (Session, error) {
	return Session{}, errors.New("only systemd-logind of Linux knows")
}
