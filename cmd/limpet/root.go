package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// run runs the command line and returns the exit code.
func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends what does not listen to the first
	harden()
	root := newRoot()
	root.SetArgs(dashed(args))
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil {
		return report(cmd, err)
	}
	return exitOK
}

func newRoot() *cobra.Command {
	root := group("limpet", "bind login sessions to a device key that cannot be copied", `Limpet binds login sessions to a device key that cannot leave the hardware:
a copied session token is worthless anywhere else.

  limpet demo      shows what that means, in a minute
  limpet serve     runs the reference auth server
  limpet gateway   stands in front of an app that knows nothing of it
  limpet login     logs in to one, with a key of this device
  limpet request   makes requests that prove possession of the key
  limpet agent     adds proofs to the requests of programs that cannot be changed
  limpet handshake authenticates both ends of TCP connections
  limpet fido      is a security token for browsers and OpenSSH, with its keys in the TPM

Programs, which have no user to log in, get tokens that live for one connection:

  limpet channel   serves and makes requests with them
  limpet tpm       keeps their secrets in the TPM

Settings come from flags, then from environment variables (--log-level is
LIMPET_LOG_LEVEL), then from a YAML file (log-level: debug), by default
$XDG_CONFIG_HOME/limpet/config.yaml. Passwords, passphrases and shared secrets
come from files or the terminal, never from flags or the environment: other
programs of the same user can read those.
`+exitHelp)
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	root.PersistentFlags().String("config", "", "settings `file` (default $XDG_CONFIG_HOME/limpet/config.yaml, if it exists)")
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error { return settle(cmd) }
	root.AddCommand(
		demoCommand(),
		serveCommand(),
		gatewayCommand(),
		agentCommand(),
		benchCommand(),
		loginCommand(),
		requestCommand(),
		logoutCommand(),
		keyCommand(),
		channelCommand(),
		tpmCommand(),
		handshakeCommand(),
		fidoCommand(),
		sessionCommand(),
		doctorCommand(),
		manCommand(),
		versionCommand(),
	)
	// Cobra's own commands take an unknown name for a wish for help.
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		switch c.Name() {
		case "help":
			c.Args = func(_ *cobra.Command, args []string) error {
				about, rest, err := root.Find(args)
				if err != nil {
					return &usageError{err}
				}
				return onlyCommands(about, rest)
			}
		case "completion":
			c.Args, c.RunE = onlyCommands, showHelp
		}
	}
	return root
}

// group makes a command that only has subcommands.
func group(use, short, long string) *cobra.Command {
	return &cobra.Command{
		Use:   use,
		Short: short,
		Long:  long,
		Args:  onlyCommands,
		RunE:  showHelp,

		SuggestionsMinimumDistance: 2,
	}
}

// onlyCommands tells the first argument, which is not a subcommand of cmd.
func onlyCommands(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	err := usage("unknown command %q", args[0])
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		return withHint(err, "did you mean %s?", strings.Join(near, " or "))
	}
	return err
}

func showHelp(cmd *cobra.Command, _ []string) error { return cmd.Help() }

// exactly takes n arguments.
func exactly(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return usage("%s takes %s, got %d arguments", cmd.CommandPath(), what, len(args))
		}
		return nil
	}
}

var nothing = exactly(0, "no arguments")

// oneOf is a flag that takes one of a few words.
type oneOf struct {
	value *string
	words []string
}

// choiceVar adds a flag that takes one of a few words; the first is the default.
func choiceVar(cmd *cobra.Command, value *string, name, usage string, words ...string) {
	*value = words[0]
	cmd.Flags().Var(&oneOf{value, words}, name, usage+": "+strings.Join(words, ", "))
	if err := cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // no such flag, or twice
	}
}

func (o *oneOf) String() string { return *o.value }
func (o *oneOf) Type() string   { return "word" }
func (o *oneOf) Set(s string) error {
	for _, word := range o.words {
		if s == word {
			*o.value = s
			return nil
		}
	}
	return fmt.Errorf("must be one of %s", strings.Join(o.words, ", "))
}

// yesNo is a flag that is true where it stands, and also takes false.
type yesNo bool

// yesNoVar adds a flag that is false by default.
func yesNoVar(cmd *cobra.Command, value *bool, name, usage string) {
	cmd.Flags().VarPF((*yesNo)(value), name, "", usage).NoOptDefVal = "true"
}

func (y *yesNo) String() string { return strconv.FormatBool(bool(*y)) }
func (y *yesNo) Type() string   { return "bool" }
func (y *yesNo) Set(s string) error {
	v, err := strconv.ParseBool(s)
	if err != nil {
		return errors.New("must be true or false")
	}
	*y = yesNo(v)
	return nil
}
