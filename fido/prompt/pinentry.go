package prompt

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"github.com/limpet-auth/limpet/fido"
)

// Pinentry asks with GnuPG's dialog program, one process a question.
type Pinentry struct{ path string }

// NewPinentry finds the program.
func NewPinentry() (*Pinentry, error) {
	path, err := exec.LookPath("pinentry")
	if err != nil {
		return nil, fmt.Errorf("limpet: prompt: %w", err)
	}
	return &Pinentry{path}, nil
}

// Errors of pinentry, as libgpg-error numbers them, without the source.
const (
	gpgCancelled    = 99
	gpgNotConfirmed = 114
	gpgTimeout      = 62
	gpgCodes        = 0xffff
)

// Ask shows a dialog with two buttons. It goes away when ctx is done.
func (p *Pinentry) Ask(ctx context.Context, r fido.Request) (bool, error) {
	cmd := exec.CommandContext(ctx, p.path, "--ttyname", "/dev/tty") // which pinentry-curses wants to be told
	in, err := cmd.StdinPipe()
	if err != nil {
		return false, fmt.Errorf("limpet: prompt: pinentry: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return false, fmt.Errorf("limpet: prompt: pinentry: %w", err)
	}
	allowed, err := converse(in, bufio.NewScanner(out), r)
	in.Close()
	waited := cmd.Wait()
	switch {
	case ctx.Err() != nil:
		return false, ctx.Err()
	case err != nil:
		return false, fmt.Errorf("limpet: prompt: pinentry: %w", errors.Join(err, waited))
	}
	return allowed, nil
}

// converse speaks Assuan: lines, each of which has one answer.
func converse(in interface{ Write([]byte) (int, error) }, out *bufio.Scanner, r fido.Request) (bool, error) {
	answer := func() (string, error) {
		for out.Scan() {
			if line := out.Text(); strings.HasPrefix(line, "OK") || strings.HasPrefix(line, "ERR ") {
				return line, nil
			}
		}
		return "", errors.Join(errors.New("it ended"), out.Err())
	}
	if _, err := answer(); err != nil {
		return false, err
	}
	for _, line := range []string{"SETTITLE " + escape(title), "SETDESC " + escape(plain(r.Text())), "SETOK Allow", "SETCANCEL Deny"} {
		if _, err := fmt.Fprintln(in, line); err != nil {
			return false, err
		}
		if said, err := answer(); err != nil || !strings.HasPrefix(said, "OK") {
			return false, errors.Join(fmt.Errorf("it says %q", said), err)
		}
	}
	if _, err := fmt.Fprintln(in, "CONFIRM"); err != nil {
		return false, err
	}
	said, err := answer()
	if err != nil || strings.HasPrefix(said, "OK") {
		return err == nil, err
	}
	var code int
	if _, err := fmt.Sscanf(said, "ERR %d", &code); err == nil {
		switch code & gpgCodes {
		case gpgCancelled, gpgNotConfirmed, gpgTimeout:
			return false, nil
		}
	}
	return false, fmt.Errorf("it says %q", said)
}

// plain replaces what Qt's labels take for markup, or for the mark of a key.
// Underscores mark keys on buttons alone, whose words are ours.
func plain(s string) string {
	return strings.NewReplacer("<", "‹", "&", "＆").Replace(s)
}

// escape writes what a line of Assuan cannot hold.
func escape(s string) string {
	return strings.NewReplacer("%", "%25", "\n", "%0A", "\r", "%0D").Replace(s)
}
