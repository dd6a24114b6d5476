package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/limpet-auth/limpet/fido"
	"github.com/limpet-auth/limpet/fido/control"
	"github.com/limpet-auth/limpet/fido/tpmvault"
)

// fidoVault says where the keys of a token are: the values of --tpm and --token-dir.
type fidoVault struct {
	keeper keeper
	dir    string
}

func (f *fidoVault) flags(cmd *cobra.Command) {
	f.keeper.tpmFlag(cmd)
	cmd.Flags().StringVar(&f.dir, "token-dir", "", "`directory` of the token's files (default $STATE_DIRECTORY, or token in the directory of Limpet's state)")
	settings(cmd, "token-dir")
}

func (f *fidoVault) config() (tpmvault.Config, error) {
	dir := cmp.Or(f.dir, os.Getenv("STATE_DIRECTORY"))
	if dir == "" {
		state, err := stateDir()
		if err != nil {
			return tpmvault.Config{}, err
		}
		dir = filepath.Join(state, "token")
	}
	return tpmvault.Config{Addr: f.keeper.tpm, Dir: dir}, nil
}

const fidoLevelHelp = `
How well the PIN is protected from somebody who has this machine is one of four
levels:

  full        The TPM counts wrong PINs itself and takes no more after eight. Nobody sets
              that back. Whoever puts another count in its place has only the few tries
              that the TPM's lockout allows.
  lockout     This TPM has no count for one PIN: wrong ones count towards its lockout,
              which other programs share and which forgets with time.
  resettable  The lockout has no password, takes more than 100 wrong ones at once or
              forgets one in less than five minutes. Whoever may use the TPM resets it,
              or has it forget, and guesses on. Most machines are so until limpet fido
              setup has run.
  none        No token can be made: the owner of the TPM has a password, or the TPM
              is full, or there is none.`

func fidoSetup() *cobra.Command {
	var f fidoVault
	var socket fidoSocket
	var keep, reset, endOther bool
	var out string
	cmd := &cobra.Command{
		Use:   "setup",
		Short: "make the TPM fit for a security token",
		Long: `Setup makes what a token needs in this machine's TPM, and leaves what is there: the
storage key that all programs share, and three places of a few bytes in its memory.

If the lockout of the TPM has no password, setup gives it a random one and prints it,
once: print it or write it down, and keep it away from this machine. It is needed
only to reset the lockout after too many wrong passwords, of whichever program, or to
clear the TPM without the firmware. The password of the TPM's owner is neither set nor
asked for; if there is one, setup says what to do.

With --reset it makes a new token, for when that cannot be done in another way: the
files are lost or of another TPM, or the TPM was cleared. All that the one before
made is worthless then, and its PIN is removed. A TPM has one token, whichever
directory its files are in: one that was there before that of --token-dir, or is that
of the machine's service, --reset ends only with --end-other; and one that runs, never.
One that came later it ends, too.

  limpet fido setup
  limpet fido setup --recovery-out /media/stick/tpm-lockout
  limpet fido setup --keep-lockout
` + fidoLevelHelp,
		Args: nothing,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if endOther && !reset {
				return usage("--end-other goes with --reset")
			}
			if err := checkNew(out); err != nil {
				return err
			}
			c, err := f.config()
			if err != nil {
				return err
			}
			if reset {
				if err := resetVault(cmd.Context(), c, socket, endOther); err != nil {
					return err
				}
			}
			return setup(cmd.Context(), c, out, keep)
		},
	}
	f.flags(cmd)
	socket.flag(cmd)
	cmd.Flags().StringVar(&out, "recovery-out", "-", "`file` to write the lockout's password to, which must not exist; - for standard output")
	yesNoVar(cmd, &keep, "keep-lockout", "leave the TPM's lockout without a password, if it has none")
	yesNoVar(cmd, &reset, "reset", "make a new token: all keys of the one before are worthless")
	yesNoVar(cmd, &endOther, "end-other", "with --reset: also a token of this TPM whose files are not in --token-dir, or are lost")
	return cmd
}

func setup(ctx context.Context, c tpmvault.Config, out string, keep bool) error {
	var recovery func(string) error
	written := false
	if !keep {
		recovery = func(password string) error {
			written = true
			return writeRecovery(out, password)
		}
	}
	s, err := tpmvault.Setup(ctx, c, recovery)
	if err != nil {
		if written {
			note("the lockout's password that was written is perhaps not in use: limpet fido status says whether there is one")
		}
		if errors.Is(err, fido.ErrNoKey) {
			err = withHint(err, "limpet fido setup --reset makes a new token")
		}
		return err
	}
	if written && out != "-" {
		note("the password of the TPM's lockout is in %s: keep that away from this machine", out)
	}
	if out == "-" && written {
		fmt.Println()
	}
	showVault(s)
	return nil
}

// resetVault makes a new token where none is running, and ends another's only if
// endOther says so.
func resetVault(ctx context.Context, c tpmvault.Config, socket fidoSocket, endOther bool) error {
	if err := noneRuns(ctx, c, socket); err != nil {
		return err
	}
	s, err := tpmvault.Examine(ctx, c)
	if err != nil {
		return err
	}
	other := ""
	switch {
	case machinesToken(c, systemDir):
		other = "the files of the token of this machine's service are in " + systemDir
	case s.OtherToken:
		other = fmt.Sprintf("the TPM has, or had, a token whose files are not in %s: another directory has them, or they are lost", c.Dir)
	}
	if other != "" && !endOther {
		return withHint(errors.New(other), "--token-dir names another directory; if that token is to end, with all its keys: limpet fido setup --reset --end-other")
	}
	v, err := tpmvault.Open(c)
	if errors.Is(err, tpmvault.ErrInUse) {
		return withHint(err, "limpet fido reset resets a token that runs")
	}
	if err != nil {
		return err
	}
	return errors.Join(v.Reset(ctx), v.Close())
}

// noneRuns is an error if a token runs that has its keys in a TPM: that it is in
// another one cannot be seen.
func noneRuns(ctx context.Context, c tpmvault.Config, socket fidoSocket) error {
	own, err := socket.path()
	if err != nil {
		return err
	}
	paths := []string{own}
	if ownTPM(c) {
		paths = append(paths, systemSocket)
	}
	for _, path := range paths {
		token, err := control.Dial(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
			continue // no socket, or one that was left behind
		}
		if err != nil {
			return withHint(fmt.Errorf("whether a token runs, which would lose all its keys, cannot be seen: %w", err), "as root it can; --fido-socket names another socket")
		}
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		s, err := token.Status(ctx)
		cancel()
		if err == nil && s.Keys != keysInTPM {
			continue
		}
		return withHint(fmt.Errorf("a token runs (its socket is %s), and would lose all its keys", path), "limpet fido reset resets a token that runs; or end it first")
	}
	return nil
}

// systemDir is where limpet-fido.service keeps its token.
const systemDir = "/var/lib/limpet-fido"

// machinesToken tells whether that service has a token, as far as can be seen, and c
// is another on the same TPM.
func machinesToken(c tpmvault.Config, dir string) bool {
	if !ownTPM(c) || filepath.Clean(c.Dir) == dir {
		return false
	}
	_, err := os.Stat(filepath.Join(dir, "tpm.json"))
	return !errors.Is(err, fs.ErrNotExist)
}

// ownTPM tells whether the TPM is this machine's.
func ownTPM(c tpmvault.Config) bool { return c.Addr == "" || strings.HasPrefix(c.Addr, "/dev/") }

// writeRecovery writes the lockout's password, before it is set.
func writeRecovery(out, password string) error {
	text := fmt.Sprintf(`The lockout of this machine's TPM gets a password:

    %s

Print it or write it down, and keep it away from this machine: nobody can ask for it
again. After too many wrong passwords, of whichever program, it opens the TPM:

    tpm2_dictionarylockout --clear-lockout --auth file:-

That asks for it. Do not put it on the command line, which other users of the machine
can see.
`, password)
	if out == "-" {
		_, err := fmt.Print(text)
		return err
	}
	return writeNew(out, []byte(text))
}

func (f *fidoVault) status(ctx context.Context) error {
	c, err := f.config()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	s, err := tpmvault.Examine(ctx, c)
	if s.Chip != "" {
		showVault(s)
	}
	if err != nil {
		return err
	}
	if s.Level == tpmvault.None {
		return silent(exitFailure)
	}
	return nil
}

// showVault tells a status in a few lines, reasons last.
func showVault(s tpmvault.Status) {
	fmt.Println("TPM")
	finding("chip", "%s", cmp.Or(s.Chip, "unknown"))
	finding("storage key", "%s", map[bool]string{true: "shared, 0x81000001", false: "none yet, the set-up makes it"}[s.StorageKey])
	finding("owner", "%s", map[bool]string{true: "has a password", false: "has no password"}[s.OwnerPassword])
	lockout := map[bool]string{true: "has a password", false: "has no password"}[s.LockoutPassword]
	finding("lockout", "%s; %d of %d failures, one is forgotten every %v", lockout, s.Failures, s.MaxFailures, s.ForgetInterval)
	finding("", "after a wrong one, its own password can be tried again %s", recoveryWords(s.Recovery))
	fmt.Println("token")
	switch {
	case !s.Token:
		finding("keys", "none yet")
	case s.PINSet && s.Retries == 0:
		finding("PIN", "blocked: only a reset helps")
	case s.PINSet:
		finding("PIN", "set, %d tries left", s.Retries)
	default:
		finding("PIN", "none")
	}
	if s.OtherToken {
		finding("", "the TPM has, or had, one whose files are elsewhere or lost: a reset of one ends all")
	}
	finding("level", "%s", s.Level)
	for _, why := range s.Reasons {
		finding("", "%s", oneLine.Replace(why))
	}
}

func recoveryWords(d time.Duration) string {
	if d == 0 {
		return "when the TPM starts anew"
	}
	return "in " + d.String()
}
