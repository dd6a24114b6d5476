package main

import (
	"context"

	"github.com/spf13/cobra"
)

func handshakeKeygen() *cobra.Command {
	var k keeper
	var device bool
	var kind string
	cmd := &cobra.Command{
		Use:   "keygen",
		Short: "make a secret, or a device key",
		Long: `Keygen writes a new secret to standard output: 43 characters that stand for 256
random bits, and the end of the line. Keep it in a file that only its owner can
read, and delete that when both ends have it in their keyrings.

With --device it makes a device key instead, as limpet key create does, and writes
its public half to standard output, in PEM, for the keyrings of peers. Its ID, for
--device-key, goes to standard error.

  (umask 077; limpet handshake keygen >secret)
  limpet handshake keygen --device >web.pem`,
		Args: nothing,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if device {
				return k.createPublic(cmd.Context(), kind)
			}
			return printSecret()
		},
	}
	yesNoVar(cmd, &device, "device", "make a device key")
	choiceVar(cmd, &kind, "key", "what keeps the device key", keyAuto, keyTPM, keySoftware)
	k.flags(cmd)
	settings(cmd, "key")
	return cmd
}

func printSecret() error {
	if err := checkNewSecret("-"); err != nil {
		return withHint(err, "(umask 077; limpet handshake keygen >secret)")
	}
	secret := newShared()
	defer clear(secret)
	return writeNew("-", append(secret, '\n'))
}

// createPublic makes a key pair and prints its public half.
func (k *keeper) createPublic(ctx context.Context, kind string) error {
	info, public, err := k.make(ctx, kind, "handshake")
	if err != nil {
		return err
	}
	note("its ID, for --device-key, is %s", info.ID)
	return printPublic(public)
}
