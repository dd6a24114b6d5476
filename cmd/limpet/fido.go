package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/limpet-auth/limpet/fido"
	"github.com/limpet-auth/limpet/fido/control"
	"github.com/limpet-auth/limpet/fido/ctaphid"
	"github.com/limpet-auth/limpet/fido/polkit"
	"github.com/limpet-auth/limpet/fido/prompt"
	"github.com/limpet-auth/limpet/fido/seat"
	"github.com/limpet-auth/limpet/fido/softvault"
	"github.com/limpet-auth/limpet/fido/tpmvault"
	"github.com/limpet-auth/limpet/fido/uhid"
)

func fidoCommand() *cobra.Command {
	cmd := group("fido", "a FIDO2 and U2F security token in software", `Fido is a security token, as browsers and OpenSSH use one, that is a program with its
keys in the TPM:

  limpet fido setup   makes the TPM fit for one
  limpet fido run     is the token, until it is ended
  limpet fido agent   asks you, in your session, what the token wants to know
  limpet fido status  shows how the token is, and how well the TPM protects it

Without an agent nothing can be registered and nobody signed in. The others need a
token that runs:

  limpet fido list    shows the accounts that it keeps
  limpet fido rm      deletes one of them
  limpet fido pin     sets or changes its PIN
  limpet fido reset   deletes everything`)
	cmd.AddCommand(fidoSetup(), fidoRun(), fidoAgent(), fidoStatus(), fidoList(), fidoRemove(), fidoPIN(), fidoReset())
	return cmd
}

// fidoSocket is the --fido-socket of a command.
type fidoSocket string

func (s *fidoSocket) flag(cmd *cobra.Command) {
	cmd.Flags().StringVar((*string)(s), "fido-socket", "", "`path` of the token's socket (default $XDG_RUNTIME_DIR/limpet/fido, or fido beside the other state)")
	settings(cmd, "fido-socket")
}

func (s fidoSocket) path() (string, error) {
	if s != "" {
		return string(s), nil
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "limpet", "fido"), nil
	}
	dir, err := stateDir()
	return filepath.Join(dir, "fido"), err
}

// systemSocket is that of limpet-fido.service.
var systemSocket = "/run/limpet-fido/socket" // but in tests

// find returns the socket to connect to: of the user's own token, or of the machine's,
// whichever runs. At a socket that was left behind nobody answers.
func (s fidoSocket) find() (string, error) {
	path, err := s.path()
	if err != nil || s != "" {
		return path, err
	}
	for _, there := range []string{path, systemSocket} {
		if conn, err := net.Dial("unix", there); err == nil {
			conn.Close()
			return there, nil
		}
	}
	return path, nil
}

// dial returns the way to the running token.
func (s fidoSocket) dial() (*control.Client, error) {
	path, err := s.find()
	if err != nil {
		return nil, err
	}
	c, err := control.Dial(path)
	if err != nil {
		return nil, withHint(err, "limpet fido run is the token: it must run")
	}
	return c, nil
}

type fidoToken struct {
	software  string
	datagram  string
	addr      netip.AddrPort // which datagram says, later with the port that was free
	uhid      bool
	prompt    string
	verify    string
	system    bool
	tpm       fidoVault
	socket    fidoSocket
	logLevel  slog.Level
	logFormat string
	ready     sync.Once
}

// keysInTPM is what a token of the TPM says of its keys.
const keysInTPM = "in the TPM"

const (
	promptAgent    = "agent"
	promptTerminal = "terminal"

	verifyPIN    = "pin"
	verifyPolkit = "polkit"
)

func fidoRun() *cobra.Command {
	var f fidoToken
	cmd := &cobra.Command{
		Use:   "run",
		Short: "be a security token, until it is ended",
		Long: `Run is a security token. On Linux it appears as a USB device (/dev/uhid), which the
user of the process must be able to write to. With --datagram it is reached by
datagrams of one report each instead: for programs in tests, and for virtual
machines. Every user of this machine can send some.

  limpet fido run
  limpet fido run --datagram 127.0.0.1:8111

Keys are in the TPM; limpet fido setup says how well that protects them. With
--insecure-software they are in files of DIR, and the flag says what that is worth:
who copies the files has every key that was made without a PIN, and can try PINs for
the others.

  limpet fido run --insecure-software DIR --datagram 127.0.0.1:8111

As a service of the machine (limpet-fido.service of the package) it runs as a user of
its own that alone may use the TPM, with --system: it belongs to whoever sits at the
machine. When that is somebody else, it is unplugged, so to say, and plugged in again.

Before a key is made or used, you are asked: by limpet fido agent, in your session;
or with --prompt terminal where this command runs. Three wrong PINs in a row, and it
takes no further one before it is started again; eight, and only a reset helps.

With --verify polkit your password of this machine, or your finger where that is set
up, takes the place of the PIN once that was right: for 12 hours, and until the token
ends, somebody else sits down, the PIN changes, or the dialog was refused three times
in a row. Meanwhile what the PIN unlocked is in the memory of the process, and the
process decides, not the TPM. It takes --system.`,
		Args: nothing,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd.Context()) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.software, "insecure-software", "", "`directory` for keys that are in files, and can be copied")
	flags.StringVar(&f.datagram, "datagram", "", "loopback `address` that takes reports as datagrams; port 0 takes a free one")
	yesNoVar(cmd, &f.uhid, "uhid", "be a USB device (default, unless there is --datagram)")
	yesNoVar(cmd, &f.system, "system", "be the token of whoever sits at this machine, as systemd-logind knows it: the agent and commands of that user count")
	choiceVar(cmd, &f.prompt, "prompt", "who asks you", promptAgent, promptTerminal)
	choiceVar(cmd, &f.verify, "verify", "what verifies you once the PIN was right", verifyPIN, verifyPolkit)
	f.tpm.flags(cmd)
	f.socket.flag(cmd)
	logFlags(cmd, &f.logLevel, &f.logFormat)
	settings(cmd, "log-level", "log-format", "verify")
	return cmd
}

// vault opens what keeps the token's keys. It returns how it does that, and where the
// token's own file is.
func (f *fidoToken) vault() (vault fido.Vault, keys, dir string, err error) {
	if f.software == "" {
		c, err := f.tpm.config()
		if err != nil {
			return nil, "", "", err
		}
		v, err := tpmvault.Open(c)
		if err != nil {
			return nil, "", "", err
		}
		return v, keysInTPM, c.Dir, nil
	}
	v, err := softvault.Open(f.software)
	if err != nil {
		return nil, "", "", err
	}
	return v, "in files, which can be copied", f.software, nil
}

func (f *fidoToken) run(ctx context.Context) (err error) {
	log := logger(f.logLevel, f.logFormat)
	if f.verify == verifyPolkit && !f.system {
		return usage("--verify polkit needs --system: polkit lets a token of the machine say which site its dialog is about, and no other")
	}
	if f.datagram != "" {
		f.addr, err = netip.ParseAddrPort(f.datagram)
		if err != nil || !f.addr.Addr().IsLoopback() {
			return usage("--datagram must be 127.0.0.1:PORT or [::1]:PORT: a token is for this machine")
		}
	}
	vault, keys, dir, err := f.vault()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, vault.Close()) }()
	user := func(context.Context) (int, error) { return os.Getuid(), nil }
	listen := listenPrivate
	if f.system {
		user, listen = seat.ActiveUser, listenPublic
	}
	desk := control.NewDesk(log, user)
	cfg := fido.Config{Vault: vault, Prompt: desk, Keys: keys, File: filepath.Join(dir, "credentials"), Logger: log}
	if f.prompt == promptTerminal {
		cfg.Prompt = prompt.NewTerminal(os.Stdin, os.Stderr)
	}
	if f.verify == verifyPolkit {
		cfg.Verify = polkit.New(seat.ActiveSession)
	}
	token, err := fido.New(ctx, cfg)
	if err != nil {
		return err
	}
	path, err := f.socket.path()
	if err != nil {
		return err
	}
	listener, err := listen(path)
	if err != nil {
		return fmt.Errorf("token's socket: %w", err)
	}
	defer listener.Close()
	note("keys are %s (%s)", keys, dir)
	defer stopping()
	serving, fail := context.WithCancelCause(ctx)
	var parts sync.WaitGroup
	parts.Go(func() { fail(desk.Serve(serving, listener, token)) })
	parts.Go(func() {
		if f.system {
			fail(f.eachUser(serving, token, desk, log))
		} else {
			fail(f.plugged(serving, token, log))
		}
	})
	parts.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return context.Cause(serving)
}

// eachUser has the token plugged in anew for whoever sits at the machine: programs of
// the one before may have its device open. While nobody can say who sits there it is
// not plugged in.
func (f *fidoToken) eachUser(ctx context.Context, token *fido.Token, desk *control.Desk, log *slog.Logger) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	for blind := false; ; {
		err := seat.Watch(ctx, func(ctx context.Context, uid int) {
			blind = false
			log.Info("plugged in for who sits at the machine", "user", uid)
			desk.Change(uid)
			if err := f.plugged(ctx, token, log); err != nil {
				fail(err)
			}
			desk.Change(seat.Nobody)
			token.Forget()
		})
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !blind {
			log.Error("the token is unplugged until it is known who sits at the machine", "error", err)
			blind = true
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// plugged has hosts see the token, until ctx is done or that fails.
func (f *fidoToken) plugged(ctx context.Context, token *fido.Token, log *slog.Logger) error {
	var transports []ctaphid.Transport
	defer func() {
		for _, t := range transports {
			t.Close()
		}
	}()
	where := "as a USB device"
	if f.datagram != "" {
		hosts, err := ctaphid.ListenDatagrams(f.addr)
		if err != nil {
			return err
		}
		transports = append(transports, hosts)
		f.addr = hosts.Addr()
		where = "listening on " + f.addr.String()
	}
	if f.datagram == "" || f.uhid { // last, since hosts see it at once
		device, err := uhid.Open()
		if err != nil {
			return withHint(err, "the user must be able to write to /dev/uhid; or use --datagram")
		}
		transports = append(transports, device)
	}
	token.Appear()
	f.ready.Do(func() {
		if f.datagram != "" && f.uhid {
			note("as a USB device")
		}
		note("a security token, %s", where)
		ready(where)
	})
	serving, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var hosts sync.WaitGroup
	for _, t := range transports {
		hosts.Go(func() { fail(ctaphid.Serve(serving, t, token, log)) })
	}
	hosts.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return context.Cause(serving)
}

func fidoAgent() *cobra.Command {
	var socket fidoSocket
	var kind string
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "ask you what the token wants to know",
		Long: `Agent runs in your session and asks you before the token registers or signs in: by a
notification of the desktop with buttons, by pinentry, or on the terminal, whichever
works first. A question says which site it is about, and goes away after 30 seconds
or when the site gives up. When the token ends, the agent waits until it is back, or
another one runs.

  limpet fido agent
  limpet fido agent --prompt terminal`,
		Args: nothing,
		RunE: func(cmd *cobra.Command, _ []string) error { return attend(cmd.Context(), socket, kind) },
	}
	choiceVar(cmd, &kind, "prompt", "how you are asked", "auto", "desktop", "pinentry", promptTerminal)
	socket.flag(cmd)
	return cmd
}

func attend(ctx context.Context, socket fidoSocket, kind string) error {
	var p fido.Prompt
	var err error
	name := kind
	switch kind {
	case "desktop":
		p, err = prompt.NewDesktop(ctx)
	case "pinentry":
		p, err = prompt.NewPinentry()
	case promptTerminal:
		p = prompt.NewTerminal(os.Stdin, os.Stderr)
	default:
		p, name, err = prompt.Choose(ctx)
	}
	if err != nil {
		return err
	}
	for was := false; ; {
		path, err := socket.find() // another one may run by now
		if err != nil {
			return err
		}
		there := false
		err = control.Attend(ctx, path, p, func() {
			if there = true; was {
				note("the token is back, at %s", path)
				return
			}
			note("listening on %s for questions, which are asked by %s", path, name)
			ready("asks by " + name)
		})
		switch {
		case ctx.Err() != nil:
			return nil
		case there:
			was = true
			note("the token has gone: waiting until it is back")
		case !was:
			return withHint(err, "limpet fido run is the token: it must run")
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}
