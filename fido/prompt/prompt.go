// Package prompt asks the user of a desktop or a terminal what a FIDO token wants
// to know.
package prompt

import (
	"context"
	"errors"
	"os"

	"golang.org/x/term"

	"github.com/limpet-auth/limpet/fido"
)

const title = "Limpet security token"

// Choose returns the first kind of prompt that works here, and what it is: a
// notification of the desktop, a dialog of pinentry, the terminal.
func Choose(ctx context.Context) (fido.Prompt, string, error) {
	desktop, err := NewDesktop(ctx)
	if err == nil {
		return desktop, "desktop notifications", nil
	}
	if os.Getenv("DISPLAY") != "" || os.Getenv("WAYLAND_DISPLAY") != "" {
		if p, e := NewPinentry(); e == nil {
			return p, "pinentry", nil
		}
	}
	if term.IsTerminal(int(os.Stdin.Fd())) {
		return NewTerminal(os.Stdin, os.Stderr), "the terminal", nil
	}
	return nil, "", errors.Join(errors.New("limpet: prompt: there is neither a desktop with notifications that have buttons, nor a display for pinentry, nor a terminal"), err)
}
