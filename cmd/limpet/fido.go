package main

import "github.com/spf13/cobra"

func fidoCommand() *cobra.Command {
	cmd := group("fido", "a FIDO2 and U2F security token in software", `Fido is a security token, as browsers and OpenSSH use one, that is a program with its
keys in the TPM:

  limpet fido setup   makes the TPM fit for one
  limpet fido status  shows what the TPM protects it from`)
	cmd.AddCommand(fidoSetup(), fidoTPMStatus())
	return cmd
}
