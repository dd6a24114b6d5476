package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/hwkey/tpmkey"
)

func tpmCommand() *cobra.Command {
	var t tpmHMAC
	cmd := group("tpm", "put shared secrets into the TPM, and look at TPM key files", `Tpm puts secrets into this machine's TPM, which computes with them and never gives
them out: they are the keys of limpet channel and limpet handshake. A key lies
encrypted in a file that only this TPM can use, TSS2 PEM, which tpm2-tools and
other TPM software read and write too.

  limpet tpm import-hmac --secret-file secret
  limpet tpm create-hmac --secret-out secret
  limpet tpm show ID`)
	importHMAC := &cobra.Command{
		Use:   "import-hmac",
		Short: "put a shared secret into the TPM",
		Long: `Import-hmac gives the TPM a secret to keep that is shared with a server, and
prints the ID of its key; with --out it writes the key to a file instead. Delete
the file with the secret then: it works anywhere, the key only here.

` + secretHelp + `

  limpet tpm import-hmac --secret-file secret --label 'billing at api.example.com'
  ssh server limpet channel keys add billing --new-secret - | limpet tpm import-hmac --secret-file -
  limpet tpm import-hmac --secret-file secret --out billing.pem`,
		Args: nothing,
		RunE: func(cmd *cobra.Command, _ []string) error { return t.importHMAC(cmd.Context()) },
	}
	importHMAC.Flags().StringVar(&t.secretFile, "secret-file", "", "`file` with the secret, - for standard input")
	createHMAC := &cobra.Command{
		Use:   "create-hmac",
		Short: "make a new secret in the TPM",
		Long: `Create-hmac makes a new secret, and prints the ID of its key; with --out it
writes the key to a file instead.

Without --secret-out the TPM makes the secret and nobody ever knows it, so it is
good only where one TPM is at both ends. With --secret-out it is made here, put
into the TPM, and written to a file for the other end's limpet channel keys add or
limpet handshake keys add: 43 characters that stand for 256 random bits.

  limpet tpm create-hmac --secret-out secret
  limpet tpm create-hmac --secret-out - | ssh server limpet channel keys add billing --secret-file -
  limpet tpm create-hmac --label 'only here'`,
		Args: nothing,
		RunE: func(cmd *cobra.Command, _ []string) error { return t.createHMAC(cmd.Context()) },
	}
	createHMAC.Flags().StringVar(&t.secretOut, "secret-out", "", "`file` to write the secret to, which must not exist; - for standard output")
	show := &cobra.Command{
		Use:   "show FILE|ID",
		Short: "say what a TPM key file is",
		Long: `Show says in words what a key file in TSS2 PEM says about its key, whoever wrote
it and whatever key it holds. It asks no TPM, so none of it is proven. The key
can also be one of limpet key list, by its ID.

  limpet tpm show billing.pem`,
		Args: exactly(1, "one file, or the ID of one key"),
		RunE: func(_ *cobra.Command, args []string) error { return t.show(args[0]) },
	}
	for _, sub := range []*cobra.Command{importHMAC, createHMAC} {
		sub.Flags().StringVar(&t.label, "label", "", "what the key is for, in a few `words`")
		sub.Flags().StringVar(&t.out, "out", "", "`file` to write the key to, in TSS2 PEM, which must not exist; - for standard output\n(default: the directory of this user's keys)")
		t.keeper.tpmFlag(sub)
	}
	cmd.AddCommand(importHMAC, createHMAC, show)
	return cmd
}

type tpmHMAC struct {
	keeper                            keeper
	secretFile, secretOut, label, out string
}

func (t *tpmHMAC) importHMAC(ctx context.Context) error {
	if t.secretFile == "" {
		return usage("import-hmac needs --secret-file")
	}
	if err := checkNew(t.out); err != nil {
		return err
	}
	secret, err := readShared(t.secretFile)
	if err != nil {
		return err
	}
	defer clear(secret)
	if err := t.put(ctx, secret); err != nil {
		return err
	}
	if t.secretFile != "-" {
		note("delete %s now: whoever has that file has the secret", t.secretFile)
	}
	return nil
}

func (t *tpmHMAC) createHMAC(ctx context.Context) error {
	if t.out == "-" && t.secretOut == "-" {
		return usage("--out and --secret-out cannot both be standard output")
	}
	if err := checkNew(t.out); err != nil {
		return err
	}
	if t.secretOut == "" {
		if err := t.put(ctx, nil); err != nil {
			return err
		}
		note("nobody knows the secret: it is good only where this TPM is at both ends")
		return nil
	}
	secret := newShared()
	defer clear(secret)
	return giveOut(t.secretOut, secret, func() error { return t.put(ctx, secret) })
}

// put puts a secret into the TPM, nil for one that the TPM makes, and tells the ID
// or writes the key's file.
func (t *tpmHMAC) put(ctx context.Context, secret []byte) error {
	if t.out != "" {
		pem, err := t.keeper.tpmSecret(ctx, secret, t.label)
		if err != nil {
			return err
		}
		if err := writeNew(t.out, pem); err != nil {
			return fmt.Errorf("key file: %w", err)
		}
		return nil
	}
	state, err := stateDir()
	if err != nil {
		return err
	}
	t.keeper.dir = state
	ks := tpmkey.New(t.keeper.tpmConfig())
	defer ks.Close()
	key, err := putHMAC(ctx, ks, secret, t.label)
	if err != nil {
		return err
	}
	defer key.Close()
	if t.secretOut == "-" { // where the secret goes, and nothing else
		note("made the key %s", key.Info().ID)
		return nil
	}
	_, err = fmt.Println(key.Info().ID)
	return err
}

func putHMAC(ctx context.Context, ks hwkey.HMACKeystore, secret []byte, label string) (hwkey.HMACKey, error) {
	if secret == nil {
		return ks.CreateHMAC(ctx, label)
	}
	return ks.ImportHMAC(ctx, secret, label)
}

// tpmSecret puts a secret into the TPM, nil for one that the TPM makes, and
// returns its key file. The directory of keys does not get it.
func (k *keeper) tpmSecret(ctx context.Context, secret []byte, label string) (pem []byte, err error) {
	dir, err := os.MkdirTemp("", "limpet-key-") // mode 0700
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	ks := tpmkey.New(tpmkey.Config{Addr: k.tpm, Dir: dir})
	defer ks.Close()
	key, err := putHMAC(ctx, ks, secret, label)
	if err != nil {
		return nil, err
	}
	defer key.Close()
	return ks.MarshalHMAC(key)
}

const maxKeyFile = 64 << 10 // bytes of a key file

// isFile tells the name of a file from the ID of a key.
func isFile(arg string) bool {
	_, err := os.Stat(arg)
	return err == nil || strings.ContainsAny(arg, `/\.`)
}

func (t *tpmHMAC) show(arg string) error {
	path := arg
	if !isFile(arg) {
		state, err := stateDir()
		if err != nil {
			return err
		}
		t.keeper.dir = state
		path = filepath.Join(t.keeper.tpmConfig().Dir, arg+".tpm")
		if _, err := os.Stat(path); err != nil {
			return withHint(errors.New("no such file, and no such key in the TPM"), "limpet key list")
		}
	}
	pem, err := readBounded(path, maxKeyFile)
	if err != nil {
		return err
	}
	d, err := tpmkey.DescribeKey(pem)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return describeKey(d)
}

func describeKey(d tpmkey.KeyDescription) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	line := func(what, format string, args ...any) { fmt.Fprintf(w, "%s\t%s\n", what, fmt.Sprintf(format, args...)) }
	line("type", "%s", d.Kind)
	switch {
	case d.Unusable != nil:
		line("for limpet", "of no use: %s", plain(d.Unusable))
	case d.Algorithm == hwkey.HMACSHA256:
		line("for limpet", "a secret (%s)", d.Algorithm)
	default:
		line("for limpet", "a device key (%s)", d.Algorithm)
	}
	line("made", "%s", map[bool]string{false: "in the TPM, which gives it to nobody",
		true: "outside, and imported: others may have the secret"}[d.Imported])
	if d.Format != "loadable" {
		line("format", "%s", d.Format)
	}
	line("works", "%s", map[bool]string{false: "in one TPM, and in others that it is moved to", true: "in one TPM, and can never leave it"}[d.Fixed])
	line("lockout", "%s", map[bool]string{false: "a TPM in lockout refuses it", true: "of no concern to it"}[d.NoLockout])
	switch {
	case d.Policy:
		line("to use it", "a policy must be met")
	case !d.EmptyAuth:
		line("to use it", "a password is needed, says the file (tpm2-tools 5.4 says so of every key)")
	default:
		line("to use it", "no password is needed")
	}
	line("attributes", "%s", strings.Join(d.Attributes, ", "))
	line("name", "%s", cmp.Or(d.Name, "-"))
	line("parent", "%s", parentWords(d.Parent))
	if d.ParentName != "" {
		line("parent name", "%s", d.ParentName)
	}
	if !d.Created.IsZero() {
		line("created", "%s", when(d.Created))
	}
	if d.Label != "" {
		line("label", "%s", d.Label)
	}
	return w.Flush()
}

func parentWords(handle uint32) string {
	switch {
	case handle == 0x40000001: // TPM_RH_OWNER
		return "the owner's primary key of template H-2 (0x40000001)"
	case handle>>24 == 0x81:
		return fmt.Sprintf("the persistent key %#x", handle)
	}
	return fmt.Sprintf("%#x", handle)
}
