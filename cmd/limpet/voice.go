package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

// How the command speaks.
//
// Standard output carries what was asked for and nothing else, so that it can
// be piped. Everything else goes to standard error. An error is one line with
// the prefix "limpet: ", no capital, no full stop; it names what failed and
// ends with why. Advice stands on a line of its own and begins with "hint: ".
// Secrets, tokens and what a peer sent appear in neither.

// Exit codes.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2  // flags, arguments, configuration
	exitHTTP    = 22 // limpet request, limpet channel get: the server answered 400 or above, as with curl --fail-with-body
)

const exitHelp = `
Exit codes: 0 it worked; 1 it did not; 2 flags, arguments or configuration are
wrong; 22 (request and channel get only) the server answered with a status of
400 or above.`

// hinted is an error with advice.
type hinted struct {
	error
	hint string
}

func (e *hinted) Unwrap() error { return e.error }

func withHint(err error, format string, args ...any) error {
	return &hinted{err, fmt.Sprintf(format, args...)}
}

// usageError is an error in how the command was called.
type usageError struct{ error }

func (e *usageError) Unwrap() error { return e.error }

func usage(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// silent is an error that has been told already.
type silent int

func (e silent) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// report tells an error and returns its exit code.
func report(cmd *cobra.Command, err error) int {
	var quiet silent
	if errors.As(err, &quiet) {
		return int(quiet)
	}
	if errors.Is(err, context.Canceled) && cmd.Context().Err() != nil {
		err = errors.New("interrupted")
	}
	fmt.Fprintf(os.Stderr, "limpet: %s\n", plain(err))
	var h *hinted
	if errors.As(err, &h) {
		fmt.Fprintf(os.Stderr, "hint: %s\n", h.hint)
	}
	if e := (*httpError)(nil); errors.As(err, &e) {
		return exitHTTP
	}
	var u *usageError
	if !errors.As(err, &u) {
		return exitFailure
	}
	if h == nil {
		fmt.Fprintf(os.Stderr, "hint: see %s --help\n", cmd.CommandPath())
	}
	return exitUsage
}

// plain returns an error on one line and without the prefix "limpet: ", which
// packages put before theirs.
func plain(err error) string {
	return oneLine.Replace(err.Error())
}

func note(format string, args ...any) { fmt.Fprintf(os.Stderr, "limpet: "+format+"\n", args...) }

var oneLine = strings.NewReplacer("limpet: ", "", "\n", "; ")
