//go:build !linux

package seat

import (
	"context"
	"errors"
)

func activeUser(context.Context) (int, error) {
	return 0, errors.New("only systemd-logind of Linux knows")
}
