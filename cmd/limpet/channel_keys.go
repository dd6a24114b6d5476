package main

import (
	"context"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/hwkey/tpmkey"
	"github.com/limpet-auth/limpet/keyring"
	"github.com/limpet-auth/limpet/proof"
)

type channelKeys struct {
	clients    clientsFlag
	secretFile string
	newSecret  string
	tpmKey     string
	public     string
	inTPM      bool
	keeper     keeper // of the server's copies
}

const keySources = `A key is one of: --new-secret, a secret that is made now and written to a file for
the client; --secret-file, one that the client has already; --public, the client's
public key on P-256, in PEM, as limpet key show prints it. With --in-tpm the
server's copy of a secret is kept by the server's TPM; --tpm-key is a secret that
it keeps already, as a TSS2 PEM file.

` + secretHelp

func channelKeysCommand() *cobra.Command {
	var k channelKeys
	cmd := group("keys", "list and change the keys that a server knows its clients by", `Keys edits the file of clients' keys that limpet channel serve reads. A server sees
each change within a second, also on connections that are open. A client has one
key, or two while it goes from one to the next:

  limpet channel keys add billing --new-secret secret       version 1
  limpet channel keys rotate billing --new-secret secret2   1 and 2 are good
  limpet channel keys retire billing                        2 is good
  limpet channel keys revoke billing                        the client is gone

The file can be read by its owner only, or it is refused.`)
	list := &cobra.Command{
		Use:   "list",
		Short: "list the clients and their keys",
		Long: `List shows the keys of all clients, by name, newest first: version, kind (secret,
secret-in-tpm, public-key), when it was added, and of a public key its thumbprint
(RFC 7638).

  limpet channel keys list`,
		Args: nothing,
		RunE: func(*cobra.Command, []string) error { return k.list() },
	}
	add := &cobra.Command{
		Use:   "add ID",
		Short: "give a client its first key",
		Long: `Add gives a new client its first key.

` + keySources + `

  limpet channel keys add billing --new-secret secret
  limpet channel keys add billing --secret-file secret --in-tpm
  limpet channel keys add billing --public billing.pem`,
		Args: exactly(1, "the ID of one client"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return k.give(cmd.Context(), args[0], (*keyring.List).Add, "added %s")
		},
	}
	rotate := &cobra.Command{
		Use:   "rotate ID",
		Short: "give a client its next key",
		Long: `Rotate gives a client its next key. The one before stays good until limpet channel
keys retire or the next rotate; one before that is dropped.

` + keySources + `

  limpet channel keys rotate billing --new-secret secret2`,
		Args: exactly(1, "the ID of one client"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return k.give(cmd.Context(), args[0], (*keyring.List).Rotate, "rotated %s: the key before is good until limpet channel keys retire")
		},
	}
	retire := &cobra.Command{
		Use:   "retire ID",
		Short: "drop a client's keys but the newest",
		Long: `Retire drops all of a client's keys but the newest: the end of a rotation.

  limpet channel keys retire billing`,
		Args: exactly(1, "the ID of one client"),
		RunE: func(_ *cobra.Command, args []string) error {
			return k.drop(args[0], (*keyring.List).Retire, "dropped the keys of %s but the newest")
		},
	}
	revoke := &cobra.Command{
		Use:   "revoke ID",
		Short: "drop all of a client's keys",
		Long: `Revoke drops all of a client's keys. Within a second it is admitted nowhere, not
on connections that are open either.

  limpet channel keys revoke billing`,
		Args: exactly(1, "the ID of one client"),
		RunE: func(_ *cobra.Command, args []string) error {
			return k.drop(args[0], (*keyring.List).Revoke, "revoked %s")
		},
	}
	for _, sub := range []*cobra.Command{add, rotate} {
		f := sub.Flags()
		f.StringVar(&k.newSecret, "new-secret", "", "`file` to write a new secret to, which must not exist; - for standard output")
		f.StringVar(&k.secretFile, "secret-file", "", "`file` with the secret, - for standard input")
		f.StringVar(&k.tpmKey, "tpm-key", "", "TSS2 PEM `file` with a secret in the server's TPM")
		f.StringVar(&k.public, "public", "", "`file` with the public key, - for standard input")
		f.BoolVar(&k.inTPM, "in-tpm", false, "keep the server's copy of the secret in its TPM")
		k.keeper.tpmFlag(sub)
	}
	for _, sub := range []*cobra.Command{list, add, rotate, retire, revoke} {
		k.clients.flag(sub)
		cmd.AddCommand(sub)
	}
	return cmd
}

func (k *channelKeys) list() error {
	path, err := k.clients.path()
	if err != nil {
		return err
	}
	l, err := keyring.Read(path)
	if err != nil {
		return noClients(err)
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "CLIENT\tVERSION\tKIND\tCREATED\tTHUMBPRINT")
	for _, key := range l.Keys {
		kind, thumbprint := "secret", "-"
		switch {
		case key.InTPM():
			kind = "secret-in-tpm"
		case key.Public != nil:
			public, err := proof.NewPublicKey(proof.ECDSAP256, key.Public)
			if err != nil {
				return err
			}
			sum := public.Thumbprint()
			kind, thumbprint = "public-key", base64.RawURLEncoding.EncodeToString(sum[:])
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\n", key.ID, key.Version, kind, when(key.Created), thumbprint)
	}
	return w.Flush()
}

// noClients advises on a file of keys that is not there.
func noClients(err error) error {
	if missing(err) {
		return withHint(err, "limpet channel keys add ID --new-secret FILE")
	}
	return err
}

// give adds a key to the file. done is what is told then.
func (k *channelKeys) give(ctx context.Context, id string, put func(*keyring.List, string, *keyring.Key) error, done string) error {
	sources := 0
	for _, s := range []string{k.newSecret, k.secretFile, k.tpmKey, k.public} {
		if s != "" {
			sources++
		}
	}
	if sources != 1 {
		return usage("a key is one of --new-secret, --secret-file, --tpm-key and --public")
	}
	if k.inTPM && k.newSecret == "" && k.secretFile == "" {
		return usage("--in-tpm goes with --new-secret and --secret-file")
	}
	if err := keyring.CheckID(id); err != nil {
		return &usageError{err}
	}
	path, err := k.clients.path()
	if err != nil {
		return err
	}
	edit := func(key *keyring.Key) error {
		err := keyring.Edit(path, func(l *keyring.List) error { return put(l, id, key) })
		if errors.Is(err, keyring.ErrNotFound) {
			return withHint(err, "limpet channel keys add %s", id)
		}
		if err == nil {
			note(done, id)
		}
		return err
	}
	switch {
	case k.public != "":
		key, err := readPublic(k.public)
		if err != nil {
			return fmt.Errorf("public key: %w", err)
		}
		return edit(key)
	case k.tpmKey != "":
		pem, err := readTPMKey(k.tpmKey)
		if err != nil {
			return fmt.Errorf("TPM key: %w", err)
		}
		return edit(keyring.TPMKey(pem))
	case k.newSecret != "":
		secret := newShared()
		defer clear(secret)
		return giveOut(k.newSecret, secret, func() error { return k.keep(ctx, id, secret, edit) })
	}
	secret, err := readShared(k.secretFile)
	if err != nil {
		return err
	}
	defer clear(secret)
	return k.keep(ctx, id, secret, edit)
}

// keep has a secret added to the file, as it is or as the TPM keeps it.
func (k *channelKeys) keep(ctx context.Context, id string, secret []byte, edit func(*keyring.Key) error) error {
	if !k.inTPM {
		return edit(&keyring.Key{Secret: secret})
	}
	pem, err := k.keeper.tpmSecret(ctx, secret, "client "+id)
	if err != nil {
		return err
	}
	return edit(keyring.TPMKey(pem))
}

// drop takes keys out of the file. done is what is told then.
func (k *channelKeys) drop(id string, change func(*keyring.List, string) error, done string) error {
	path, err := k.clients.path()
	if err != nil {
		return err
	}
	if _, err := os.Stat(path); err != nil {
		return noClients(err) // Edit would make a directory for it
	}
	err = keyring.Edit(path, func(l *keyring.List) error { return change(l, id) })
	if errors.Is(err, keyring.ErrNotFound) {
		return withHint(err, "limpet channel keys list")
	}
	if err == nil {
		note(done, id)
	}
	return err
}

// readTPMKey reads a key file with a secret in the TPM. Whether that is the TPM here
// shows when the key is used.
func readTPMKey(path string) ([]byte, error) {
	pem, err := readBounded(path, maxKeyFile)
	if err != nil {
		return nil, err
	}
	d, err := tpmkey.DescribeKey(pem)
	switch {
	case err != nil:
		return nil, err
	case d.Unusable != nil:
		return nil, d.Unusable
	case d.Algorithm != hwkey.HMACSHA256:
		return nil, errors.New("it is a key pair, and a secret is wanted")
	}
	return pem, nil
}

// readPublic reads a public key in PEM. What stands before it is explanation
// (RFC 7468, 5.2).
func readPublic(path string) (*keyring.Key, error) {
	text, err := readBounded(path, maxKeyFile)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	switch {
	case block == nil:
		return nil, errors.New("it is not PEM")
	case block.Type != "PUBLIC KEY":
		return nil, fmt.Errorf("it is PEM of type %.40q, want PUBLIC KEY", block.Type)
	}
	public, err := keyring.ParsePublic(block.Bytes)
	if err != nil {
		return nil, err
	}
	return &keyring.Key{Public: public}, nil
}
