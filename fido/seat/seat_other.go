//go:build !linux

package seat

import (
	"context"
	"errors"
)

var errLinux = errors.New("only systemd-logind of Linux knows")

func activeUser(context.Context) (int, error) { return 0, errLinux }

func watch(context.Context, func(context.Context, int)) error { return errLinux }
