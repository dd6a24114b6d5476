package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/keyring"
)

func handshakeKeygen() *cobra.Command {
	var k keeper
	var device bool
	var kind string
	cmd := &cobra.Command{
		Use:   "keygen",
		Short: "make a secret, or a device key",
		Long: `Keygen writes a new secret to standard output: 256 random bits, base64url. Keep
it in a file that only its owner can read, until both peers have it in their
keyrings.

With --device it makes a device key instead, in the TPM if there is one, and
writes its public half to standard output, in PEM, for the keyrings of peers. Its
ID, for --device-key, goes to standard error.

  (umask 077; limpet handshake keygen > secret)
  limpet handshake keygen --device > web.pem`,
		Args: nothing,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if device {
				return k.makeDeviceKey(cmd.Context(), kind)
			}
			_, err := fmt.Println(base64.RawURLEncoding.EncodeToString(keyring.NewSecret()))
			return err
		},
	}
	yesNoVar(cmd, &device, "device", "make a device key")
	choiceVar(cmd, &kind, "key", "what keeps the device key", keyAuto, keyTPM, keySoftware)
	k.flags(cmd)
	settings(cmd, "key")
	return cmd
}

func (k *keeper) makeDeviceKey(ctx context.Context, kind string) error {
	state, err := stateDir()
	if err != nil {
		return err
	}
	k.dir = state
	ks, _, err := k.choose(ctx, kind)
	if err != nil {
		return err
	}
	defer closeKeystore(ks)
	key, err := ks.Create(ctx, hwkey.CreateOptions{Algorithm: hwkey.ECDSAP256, Label: "handshake"})
	if err != nil {
		return err
	}
	defer key.Close()
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	note("made device key %s of level %s", key.Info().ID, key.Info().Level)
	return pem.Encode(os.Stdout, &pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

func handshakeKeys() *cobra.Command {
	cmd := group("keys", "the keys of peers", `Keys edits the keyring: the keys by which peers are known. Servers see a change
within a second.

A peer has up to two keys, so that it can go from one to the next: rotate at both
ends, the server first, and retire the old one when nobody uses it. Versions
count alike at both ends.

  limpet handshake keys list
  limpet handshake keys add web --secret-file secret
  limpet handshake keys add web --public-file web.pem
  limpet handshake keys rotate web --secret-file new-secret
  limpet handshake keys retire web
  limpet handshake keys revoke web`)
	var path string
	list := &cobra.Command{
		Use:   "list",
		Short: "list the keys of peers",
		Long: `List shows the peers, the versions and kinds of their keys, newest first, and when
they were added. No secret is shown.

  limpet handshake keys list`,
		Args: nothing,
		RunE: func(*cobra.Command, []string) error { return listKeys(path) },
	}
	keyringFlag(list, &path)
	cmd.AddCommand(list)
	for _, c := range []struct {
		use, short, long string
		edit             func(l *keyring.List, peer string, key *keyring.Key) error
		key              bool
	}{
		{"add PEER", "add a peer with its first key", "Add gives a peer its first key, a secret or a public key from a file.",
			func(l *keyring.List, peer string, key *keyring.Key) error { return l.Add(peer, key) }, true},
		{"rotate PEER", "give a peer its next key", "Rotate gives a peer its next key; the one before stays good, one before that does not.",
			func(l *keyring.List, peer string, key *keyring.Key) error { return l.Rotate(peer, key) }, true},
		{"retire PEER", "drop all keys of a peer but the newest", "Retire drops all keys of a peer but the newest.",
			func(l *keyring.List, peer string, _ *keyring.Key) error { return l.Retire(peer) }, false},
		{"revoke PEER", "drop all keys of a peer", "Revoke drops all keys of a peer. It cannot connect any more; connections that are\nopen stay so.",
			func(l *keyring.List, peer string, _ *keyring.Key) error { return l.Revoke(peer) }, false},
	} {
		var path, secretFile, publicFile string
		sub := &cobra.Command{
			Use:   c.use,
			Short: c.short,
			Long:  c.long + "\n\n  limpet handshake keys " + c.use,
			Args:  exactly(1, "the name of a peer"),
			RunE: func(_ *cobra.Command, args []string) error {
				key := new(keyring.Key)
				if c.key {
					var err error
					if key, err = readKey(secretFile, publicFile); err != nil {
						return err
					}
				}
				path, err := keyringPath(path)
				if err != nil {
					return err
				}
				return keyring.Edit(path, func(l *keyring.List) error { return c.edit(l, args[0], key) })
			},
		}
		keyringFlag(sub, &path)
		if c.key {
			sub.Flags().StringVar(&secretFile, "secret-file", "", "`file` with a secret in base64url, as keygen writes it; - for standard input")
			sub.Flags().StringVar(&publicFile, "public-file", "", "`file` with a public key in PEM, as keygen --device writes it; - for standard input")
		}
		cmd.AddCommand(sub)
	}
	return cmd
}

// readKey reads a key from one of two files.
func readKey(secretFile, publicFile string) (*keyring.Key, error) {
	switch {
	case (secretFile == "") == (publicFile == ""):
		return nil, usage("needs --secret-file or --public-file")
	case secretFile != "":
		text, err := readSecret(secretFile)
		if err != nil {
			return nil, fmt.Errorf("secret: %w", err)
		}
		secret := make(keyring.Secret, base64.RawURLEncoding.DecodedLen(len(text)))
		if _, err := base64.RawURLEncoding.Decode(secret, text); err != nil {
			return nil, errors.New("secret: it is not base64url") // the error would tell where
		}
		clear(text)
		return &keyring.Key{Secret: secret}, nil
	}
	text, err := readBounded(publicFile, maxSecret)
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "PUBLIC KEY" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("public key: it is not one public key in PEM")
	}
	public, err := keyring.ParsePublic(block.Bytes)
	if err != nil {
		return nil, err
	}
	return &keyring.Key{Public: public}, nil
}

func listKeys(path string) error {
	path, err := keyringPath(path)
	if err != nil {
		return err
	}
	l, err := keyring.Read(path)
	if err != nil && !missing(err) {
		return err
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "PEER\tVERSION\tKIND\tADDED")
	if l != nil {
		for _, k := range l.Keys {
			kind := "secret"
			switch {
			case k.Public != nil:
				kind = "public key"
			case k.InTPM():
				kind = "secret in the TPM"
			}
			fmt.Fprintf(w, "%s\t%d\t%s\t%s\n", k.ID, k.Version, kind, when(k.Created))
		}
	}
	return w.Flush()
}
