package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"golang.org/x/text/unicode/norm"

	"github.com/limpet-auth/limpet/fido"
	"github.com/limpet-auth/limpet/fido/control"
)

// pinFile is a flag that names a file with a PIN.
type pinFile struct {
	path string
	what string
}

func (p *pinFile) flag(cmd *cobra.Command, name, what string) {
	p.what = what
	cmd.Flags().StringVar(&p.path, name, "", "`file` with the "+what+", - for standard input (default: asks on the terminal)")
}

// read returns the PIN, in the form in which all programs have it: CTAP 2.1, section 6.5.1.
func (p *pinFile) read(ctx context.Context) (pin []byte, err error) {
	if p.path != "" {
		pin, err = readSecret(p.path)
	} else {
		pin, err = askPIN(ctx, p.what)
	}
	if err != nil {
		var u *usageError
		if errors.As(err, &u) {
			return nil, err
		}
		return nil, fmt.Errorf("%s: %w", p.what, err)
	}
	defer clear(pin)
	return norm.NFC.Append(make([]byte, 0, 3*len(pin)), pin...), nil // the longest that it can be
}

func askPIN(ctx context.Context, what string) ([]byte, error) {
	terminal := int(os.Stdin.Fd())
	before, err := term.GetState(terminal)
	if err != nil {
		return nil, usage("no terminal to ask for the %s: name a file", what)
	}
	fmt.Fprintf(os.Stderr, "%s: ", what)
	// Reading does not end with ctx, but then the terminal must be as before.
	stop := context.AfterFunc(ctx, func() {
		term.Restore(terminal, before)
		fmt.Fprintln(os.Stderr)
		os.Exit(exitFailure)
	})
	pin, err := term.ReadPassword(terminal)
	stop()
	fmt.Fprintln(os.Stderr)
	return pin, err
}

// fidoHint gives advice on the errors of a token.
func fidoHint(err error) error {
	switch {
	case errors.Is(err, fido.ErrPINHeld):
		return withHint(err, "end limpet fido run, and start it again")
	case errors.Is(err, fido.ErrPINBlocked):
		return withHint(err, "limpet fido reset deletes everything, and the PIN too")
	case errors.Is(err, fido.ErrNoPIN):
		return withHint(err, "limpet fido pin set")
	case errors.Is(err, fido.ErrPINSet):
		return withHint(err, "limpet fido pin change")
	}
	return err
}

// owned makes a command to a running token that takes n arguments.
func owned(cmd *cobra.Command, do func(ctx context.Context, c *control.Client, args []string) error) *cobra.Command {
	var socket fidoSocket
	socket.flag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := socket.dial()
		if err != nil {
			return err
		}
		return fidoHint(do(cmd.Context(), c, args))
	}
	return cmd
}

func fidoStatus() *cobra.Command {
	var socket fidoSocket
	var vault fidoVault
	cmd := &cobra.Command{
		Use:   "status",
		Short: "show how the token is, and how well the TPM protects it",
		Long: `Status shows whether a PIN is set and how many tries are left, how many accounts the
token keeps, and what it asks of PINs; then how well the TPM protects the keys, and
why it is not better. Where no PIN is set it tries, for a moment, what a PIN needs in
the TPM's memory, at the first free place of 0x01800F1F to 0x01800F22; it leaves
nothing there, and what others have there alone.

  limpet fido status

If no token runs it shows what the TPM says. That of a token which belongs to the
machine is for its administrator to see: as root, and with --token-dir.
` + fidoLevelHelp + `

The exit code is 0 if a token runs, or there is one, or one can be made.`,
		Args: nothing,
	}
	socket.flag(cmd)
	vault.flags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := socket.dial()
		if err != nil {
			note("no token runs: limpet fido run is one")
			return vault.status(cmd.Context())
		}
		s, err := c.Status(cmd.Context())
		if err != nil {
			return fidoHint(err)
		}
		if err := showToken(s); err != nil || s.Keys != keysInTPM {
			return err
		}
		if err := vault.status(cmd.Context()); err != nil {
			note("what the TPM says is not to be had from here: %v", err)
		}
		return nil
	}
	return cmd
}

func showToken(s fido.Status) error {
	pin := "none"
	switch {
	case s.PIN && s.Retries == 0:
		pin = "blocked: only a reset helps"
	case s.PIN && s.Held:
		pin = fmt.Sprintf("set, held until the next start, %d tries left", s.Retries)
	case s.PIN && s.ForceChange:
		pin = fmt.Sprintf("set, to be changed before it is used, %d tries left", s.Retries)
	case s.PIN:
		pin = fmt.Sprintf("set, %d tries left", s.Retries)
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "keys\t%s\n", s.Keys)
	fmt.Fprintf(w, "PIN\t%s\n", pin)
	fmt.Fprintf(w, "shortest PIN\t%d characters\n", s.MinPIN)
	fmt.Fprintf(w, "PIN for everything\t%s\n", map[bool]string{true: "yes", false: "no"}[s.AlwaysUV])
	if s.Verifier {
		fmt.Fprintf(w, "verified by polkit\t%s\n", map[bool]string{true: "yes, in place of the PIN", false: "after the PIN, once"}[s.Verifies])
	}
	fmt.Fprintf(w, "accounts\t%d, room for %d more\n", s.Credentials, s.Room)
	return w.Flush()
}

// shortID is what the commands call a credential.
func shortID(id []byte) string {
	sum := sha256.Sum256(id)
	return hex.EncodeToString(sum[:6])
}

// credentials lists what the token keeps. It returns the PIN that this took, nil if
// there is none.
func credentials(ctx context.Context, c *control.Client, p *pinFile) (list []fido.Credential, pin []byte, err error) {
	s, err := c.Status(ctx)
	if err != nil {
		return nil, nil, err
	}
	if s.PIN {
		if pin, err = p.read(ctx); err != nil {
			return nil, nil, err
		}
	}
	list, err = c.List(ctx, pin)
	return list, pin, err
}

func fidoList() *cobra.Command {
	var p pinFile
	cmd := &cobra.Command{
		Use:   "list",
		Short: "show the accounts that the token keeps",
		Long: `List shows the discoverable credentials of the token, also known as passkeys: those
that it keeps, for sites that want it to know their users. Others are kept by the
sites, and the token knows nothing of them.

  limpet fido list`,
		Args: nothing,
	}
	p.flag(cmd, "pin-file", "PIN")
	return owned(cmd, func(ctx context.Context, c *control.Client, _ []string) error {
		list, pin, err := credentials(ctx, c, &p)
		clear(pin)
		if err != nil {
			return err
		}
		w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "ID\tSITE\tACCOUNT\tPIN")
		for _, e := range list {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", shortID(e.ID), shown(e.RPID), shown(e.Name), map[bool]string{true: "needed", false: "no"}[e.PIN])
		}
		return w.Flush()
	})
}

func fidoRemove() *cobra.Command {
	var p pinFile
	cmd := &cobra.Command{
		Use:   "rm ID",
		Short: "delete an account that the token keeps",
		Long: `Rm deletes a discoverable credential. Nobody can sign in with it any more, and it
does not come back: the site still has its public half, which is for you to delete
there.

  limpet fido rm 5f0c2a9be1d4`,
		Args: exactly(1, "the ID of one credential, from limpet fido list"),
	}
	p.flag(cmd, "pin-file", "PIN")
	return owned(cmd, func(ctx context.Context, c *control.Client, args []string) error {
		list, pin, err := credentials(ctx, c, &p)
		defer clear(pin)
		if err != nil {
			return err
		}
		for _, e := range list {
			if shortID(e.ID) == strings.ToLower(args[0]) {
				if err := c.Remove(ctx, pin, e.ID); err != nil {
					return err
				}
				note("deleted the account %s at %s", shown(e.Name), shown(e.RPID))
				return nil
			}
		}
		return withHint(fido.ErrNoSuch, "limpet fido list shows them")
	})
}

func fidoPIN() *cobra.Command {
	cmd := group("pin", "set or change the token's PIN", `Pin sets or changes the PIN of the token. What was registered with a PIN works with
the PIN only, and goes on working when that is changed. A PIN has 4 to 63 characters,
which need not be digits.`)
	var first pinFile
	set := &cobra.Command{
		Use:   "set",
		Short: "set the first PIN",
		Long: `Set sets the first PIN.

  limpet fido pin set`,
		Args: nothing,
	}
	first.flag(set, "new-pin-file", "new PIN")
	var old, next pinFile
	change := &cobra.Command{
		Use:   "change",
		Short: "replace the PIN",
		Long: `Change replaces the PIN. A wrong one counts as a try.

  limpet fido pin change`,
		Args: nothing,
	}
	old.flag(change, "pin-file", "PIN")
	next.flag(change, "new-pin-file", "new PIN")
	cmd.AddCommand(
		owned(set, func(ctx context.Context, c *control.Client, _ []string) error {
			pin, err := first.readNew(ctx)
			if err != nil {
				return err
			}
			defer clear(pin)
			if err := c.SetPIN(ctx, pin); err != nil {
				return err
			}
			note("the PIN is set")
			return nil
		}),
		owned(change, func(ctx context.Context, c *control.Client, _ []string) error {
			was, err := old.read(ctx)
			if err != nil {
				return err
			}
			defer clear(was)
			pin, err := next.readNew(ctx)
			if err != nil {
				return err
			}
			defer clear(pin)
			if err := c.ChangePIN(ctx, was, pin); err != nil {
				return err
			}
			note("the PIN is changed")
			return nil
		}),
	)
	return cmd
}

// readNew is read for a PIN that is typed twice.
func (p *pinFile) readNew(ctx context.Context) ([]byte, error) {
	pin, err := p.read(ctx)
	if err != nil || p.path != "" {
		return pin, err
	}
	again, err := (&pinFile{what: p.what + ", again"}).read(ctx)
	if err != nil {
		return nil, err
	}
	defer clear(again)
	if !bytes.Equal(pin, again) {
		return nil, errors.New("these are two PINs")
	}
	return pin, nil
}

func fidoReset() *cobra.Command {
	return owned(&cobra.Command{
		Use:   "reset",
		Short: "delete everything, the PIN too",
		Long: `Reset deletes all accounts, and makes everything worthless that was ever registered
with this token, also what sites keep and what is in backups. You are asked before,
in the way of every other question.

  limpet fido reset`,
		Args: nothing,
	}, func(ctx context.Context, c *control.Client, _ []string) error {
		if err := c.Reset(ctx); err != nil {
			return err
		}
		note("everything is deleted")
		return nil
	})
}
