package main

import (
	"context"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/hwkey/tpmkey"
	"github.com/limpet-auth/limpet/keyring"
	"github.com/limpet-auth/limpet/proof"
)

// keyringFile is a file with the keys that peers are known by, and how the commands
// that read and edit it speak of it.
type keyringFile struct {
	command string // that edits it
	name    string // of its flag, and of the file in the state's directory
	peer    string // what its peers are called
	example string // the name of one
	about   string // of command

	path string // "" for the default one
}

var clientKeys = keyringFile{command: "limpet channel keys", name: "clients", peer: "client", example: "billing",
	about: `Keys edits the file of clients' keys that limpet channel serve reads. A server sees
each change within a second, also on connections that are open. A client has one
key, or two while it goes from one to the next:`}

var peerKeys = keyringFile{command: "limpet handshake keys", name: "keyring", peer: "peer", example: "web",
	about: `Keys edits the keyring: the file of peers' keys that limpet handshake listen and
dial read. They see each change within a second; connections that are open stay
open. Each end has the other in its keyring, and both count versions alike. A peer
has one key, or two while both ends go from one to the next, the server first:`}

func (f *keyringFile) flag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.path, f.name, "", fmt.Sprintf("`file` with the %ss' keys (default $XDG_STATE_HOME/limpet/%s.json)", f.peer, f.name))
	settings(cmd, f.name)
}

// file returns where the file is.
func (f *keyringFile) file() (string, error) {
	if f.path != "" {
		return f.path, nil
	}
	dir, err := stateDir()
	if err != nil {
		return "", withHint(fmt.Errorf("no place for the %ss' keys: %w", f.peer, err), "name a file with --%s", f.name)
	}
	return filepath.Join(dir, f.name+".json"), nil
}

// open opens the file with what a TPM does for it.
func (f *keyringFile) open(tpm *tpmkey.Keystore, log *slog.Logger) (*keyring.Ring, error) {
	path, err := f.file()
	if err != nil {
		return nil, err
	}
	ring, err := keyring.Open(path, keyring.Options{OpenTPM: tpm.OpenHMAC, Logger: log})
	if err != nil {
		return nil, f.advise(err)
	}
	return ring, nil
}

// advise advises on a file that is not there.
func (f *keyringFile) advise(err error) error {
	if missing(err) {
		return withHint(err, "%s add ID --new-secret FILE", f.command)
	}
	return err
}

const tpmWait = 15 * time.Second // for the TPM to answer

// tryTPM has the TPM use a secret of the ring's that is in it, and returns which; nil
// if there is none.
func tryTPM(ctx context.Context, ring *keyring.Ring) (*keyring.Key, error) {
	key := ring.InTPM()
	if key == nil {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, tpmWait)
	defer cancel()
	_, err := key.HMAC(ctx, nil)
	return key, err
}

// examine tells early, and in the log only, that the TPM does not do what keys in
// the ring need: it may come back while the server runs.
func examine(ctx context.Context, log *slog.Logger, ring *keyring.Ring) {
	if key, err := tryTPM(ctx, ring); err != nil {
		log.Warn("limpet: secrets in the TPM cannot be used", "key", key, "why", err)
	}
}

// words fills in the names.
func (f *keyringFile) words(text string) string {
	return strings.NewReplacer("{keys}", f.command, "{peer}", f.peer, "{name}", f.example).Replace(text)
}

// keyringEditor is the command that edits such a file.
type keyringEditor struct {
	keyringFile
	secretFile string
	newSecret  string
	tpmKey     string
	public     string
	inTPM      bool
	keeper     keeper // of the copies here
}

const keySources = `A key is one of: --new-secret, a secret that is made now and written to a file for
the {peer}; --secret-file, one that the {peer} has already; --public, the {peer}'s
public key on P-256, in PEM, as limpet key show prints it. With --in-tpm the copy
of a secret that stays here is kept by this machine's TPM; --tpm-key is a secret
that it keeps already, as a TSS2 PEM file.

` + secretHelp

// keysCommand makes the command that edits such a file.
func keysCommand(r keyringFile) *cobra.Command {
	k := &keyringEditor{keyringFile: r}
	cmd := group("keys", r.words("list and change the keys that {peer}s are known by"), r.words(r.about+`

  {keys} add {name} --new-secret secret       version 1
  {keys} rotate {name} --new-secret secret2   1 and 2 are good
  {keys} retire {name}                        2 is good
  {keys} revoke {name}                        the {peer} is gone

The file can be read by its owner only, or it is refused.`))
	list := &cobra.Command{
		Use:   "list",
		Short: "list the {peer}s and their keys",
		Long: `List shows the keys of all {peer}s, by name, newest first: version, kind (secret,
secret-in-tpm, public-key), when it was added, and of a public key its thumbprint
(RFC 7638).

  {keys} list`,
		Args: nothing,
		RunE: func(*cobra.Command, []string) error { return k.list() },
	}
	add := &cobra.Command{
		Use:   "add ID",
		Short: "give a {peer} its first key",
		Long: `Add gives a new {peer} its first key.

` + keySources + `

  {keys} add {name} --new-secret secret
  {keys} add {name} --secret-file secret --in-tpm
  {keys} add {name} --public {name}.pem`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return k.give(cmd.Context(), args[0], (*keyring.List).Add, "added %s")
		},
	}
	rotate := &cobra.Command{
		Use:   "rotate ID",
		Short: "give a {peer} its next key",
		Long: `Rotate gives a {peer} its next key. The one before stays good until retire or the
next rotate; one before that is dropped.

` + keySources + `

  {keys} rotate {name} --new-secret secret2`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return k.give(cmd.Context(), args[0], (*keyring.List).Rotate, "rotated %s: the key before is good until "+r.command+" retire")
		},
	}
	retire := &cobra.Command{
		Use:   "retire ID",
		Short: "drop a {peer}'s keys but the newest",
		Long: `Retire drops all of a {peer}'s keys but the newest: the end of a rotation.

  {keys} retire {name}`,
		RunE: func(_ *cobra.Command, args []string) error {
			return k.drop(args[0], (*keyring.List).Retire, "dropped the keys of %s but the newest")
		},
	}
	revoke := &cobra.Command{
		Use:   "revoke ID",
		Short: "drop all of a {peer}'s keys",
		Long: `Revoke drops all of a {peer}'s keys. Within a second it is admitted nowhere.

  {keys} revoke {name}`,
		RunE: func(_ *cobra.Command, args []string) error {
			return k.drop(args[0], (*keyring.List).Revoke, "revoked %s")
		},
	}
	for _, sub := range []*cobra.Command{add, rotate} {
		f := sub.Flags()
		f.StringVar(&k.newSecret, "new-secret", "", "`file` to write a new secret to, which must not exist; - for standard output")
		f.StringVar(&k.secretFile, "secret-file", "", "`file` with the secret, - for standard input")
		f.StringVar(&k.tpmKey, "tpm-key", "", "TSS2 PEM `file` with a secret in this machine's TPM")
		f.StringVar(&k.public, "public", "", "`file` with the public key, - for standard input")
		f.BoolVar(&k.inTPM, "in-tpm", false, "keep the copy of the secret that stays here in the TPM")
		k.keeper.tpmFlag(sub)
	}
	for _, sub := range []*cobra.Command{list, add, rotate, retire, revoke} {
		sub.Short, sub.Long = r.words(sub.Short), r.words(sub.Long)
		if sub.Args == nil {
			sub.Args = exactly(1, "the ID of one "+r.peer)
		}
		k.flag(sub)
		cmd.AddCommand(sub)
	}
	return cmd
}

func (k *keyringEditor) list() error {
	path, err := k.file()
	if err != nil {
		return err
	}
	l, err := keyring.Read(path)
	if err != nil {
		return k.advise(err)
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%s\tVERSION\tKIND\tCREATED\tTHUMBPRINT\n", strings.ToUpper(k.peer))
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

// give adds a key to the file. done is what is told then.
func (k *keyringEditor) give(ctx context.Context, id string, put func(*keyring.List, string, *keyring.Key) error, done string) error {
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
	path, err := k.file()
	if err != nil {
		return err
	}
	edit := func(key *keyring.Key) error {
		err := keyring.Edit(path, func(l *keyring.List) error { return put(l, id, key) })
		if errors.Is(err, keyring.ErrNotFound) {
			return withHint(err, "%s add %s", k.command, id)
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
func (k *keyringEditor) keep(ctx context.Context, id string, secret []byte, edit func(*keyring.Key) error) error {
	if !k.inTPM {
		return edit(&keyring.Key{Secret: secret})
	}
	pem, err := k.keeper.tpmSecret(ctx, secret, k.peer+" "+id)
	if err != nil {
		return err
	}
	return edit(keyring.TPMKey(pem))
}

// drop takes keys out of the file. done is what is told then.
func (k *keyringEditor) drop(id string, change func(*keyring.List, string) error, done string) error {
	path, err := k.file()
	if err != nil {
		return err
	}
	if _, err := os.Stat(path); err != nil {
		return k.advise(err) // Edit would make a directory for it
	}
	err = keyring.Edit(path, func(l *keyring.List) error { return change(l, id) })
	if errors.Is(err, keyring.ErrNotFound) {
		return withHint(err, "%s list", k.command)
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
