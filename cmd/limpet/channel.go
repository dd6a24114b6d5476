package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/limpet-auth/limpet/channel"
)

func channelCommand() *cobra.Command {
	cmd := group("channel", "authenticate programs with tokens that live for one TLS connection", `Channel authenticates programs, which have no user to log in. An API key in a file
is copied once and works for ever; here the key is in the client's TPM, and what
crosses the wire is derived from it and from the TLS connection that it is sent
on. Sniffed, logged or stolen, it works on that one connection only.

  limpet channel demo                                       shows that, in a minute

  limpet channel keys add billing --new-secret secret       at the server
  limpet channel serve
  limpet tpm import-hmac --secret-file secret               at the client
  limpet channel get --client billing --key ID https://api.example.com/

A client has a secret that it shares with the server, in its TPM or in a file, or
a key pair (limpet key create) of which the server has the public half. Both ends
speak limpet's own profile, on TLS 1.3, or with --profile sample that of a public
sample, for peers that cannot be changed.`)
	cmd.AddCommand(
		channelDemoCommand(),
		channelServeCommand(),
		channelGetCommand(),
		keysCommand(clientKeys),
	)
	return cmd
}

var profiles = map[string]channel.Profile{"limpet": channel.Limpet, "sample": channel.Sample}

func profileFlag(cmd *cobra.Command, profile *string) {
	choiceVar(cmd, profile, "profile", "the protocol", "limpet", "sample")
}

var (
	formWords = []string{"token", "jwt", "jwe"}
	forms     = map[string]channel.Form{"token": channel.Token, "jwt": channel.JWT, "jwe": channel.JWE}
)

// formList is a flag that takes several forms, with commas or one after the
// other. None are all.
type formList []channel.Form

func (l *formList) Type() string { return "words" }
func (l *formList) String() string {
	words := make([]string, len(*l))
	for i, f := range *l {
		words[i] = f.String()
	}
	return strings.Join(words, ",")
}

func (l *formList) Set(text string) error {
	for word := range strings.SplitSeq(text, ",") {
		f, ok := forms[strings.TrimSpace(word)]
		if !ok {
			return fmt.Errorf("must be of %s", strings.Join(formWords, ", "))
		}
		*l = append(*l, f)
	}
	return nil
}
