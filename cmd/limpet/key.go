package main

import (
	"cmp"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/limpet-auth/limpet/hwkey"
)

func keyCommand() *cobra.Command {
	var k keeper
	cmd := group("key", "make, list, show and delete this device's keys", `Key makes, shows and deletes the keys of this device: the device keys that limpet
login makes, one for each session, and the keys of limpet channel and limpet
handshake, which are key pairs (limpet key create) or secrets (limpet tpm
import-hmac).

  limpet key create --label billing
  limpet key list
  limpet key show ID
  limpet key rm ID`)
	var kind, label string
	create := &cobra.Command{
		Use:   "create",
		Short: "make a device key for limpet channel or limpet handshake",
		Long: `Create makes a key pair on P-256, in the TPM if there is one that works, else in
an encrypted file, and prints its ID. It is for limpet channel get --key and
limpet handshake --device-key: the other end is given the public half, so nothing
that is stolen there is of use.

  limpet key create --label billing
  limpet key show ID >billing.pem
  limpet channel keys add billing --public billing.pem    # at the server
  limpet channel get --client billing --key ID https://api.example.com/`,
		Args: nothing,
		RunE: func(cmd *cobra.Command, _ []string) error { return k.create(cmd.Context(), kind, label) },
	}
	choiceVar(create, &kind, "key", "what keeps the key", keyAuto, keyTPM, keySoftware)
	create.Flags().StringVar(&label, "label", "", "what the key is for, in a few `words`")
	settings(create, "key")
	for _, sub := range []*cobra.Command{create, {
		Use:   "list",
		Short: "list the keys",
		Long: `List shows the keys of all keystores, oldest first in each: ID, level, keeper,
algorithm, when it was made, and the server it was made for or its label. Keys
of algorithm hmac-sha256 are secrets, the others key pairs.

  limpet key list`,
		Args: nothing,
		RunE: func(cmd *cobra.Command, _ []string) error { return k.list(cmd.Context()) },
	}, {
		Use:   "show ID",
		Short: "show a key and its public half",
		Long: `Show prints what is known of a key, and its public half in PEM; a secret has
none. The key is loaded, so that show also tells whether it can still be used.

  limpet key show ID`,
		Args: exactly(1, "the ID of one key"),
		RunE: func(cmd *cobra.Command, args []string) error { return k.show(cmd.Context(), args[0]) },
	}, {
		Use:   "rm ID",
		Short: "delete a key",
		Long: `Rm deletes a key. A session that is bound to it can never be used again, here or
anywhere: log in again. To end a session in order use limpet logout. What a
server knows of the key stays: see limpet channel keys revoke and limpet handshake
keys revoke.

  limpet key rm ID`,
		Args: exactly(1, "the ID of one key"),
		RunE: func(cmd *cobra.Command, args []string) error { return k.remove(cmd.Context(), args[0]) },
	}} {
		k.flags(sub)
		cmd.AddCommand(sub)
	}
	return cmd
}

// each calls f with every keystore that has been used here, until f returns
// false; that keystore stays open. One that cannot be opened is told and passed
// over.
func (k *keeper) each(ctx context.Context, f func(hwkey.Keystore) (bool, error)) error {
	state, err := stateDir()
	if err != nil {
		return err
	}
	k.dir = state
	failed := 0
	for _, kind := range []string{keyTPM, keySoftware} {
		if kind == keySoftware {
			if _, err := os.Stat(k.softDir()); missing(err) {
				continue
			}
		}
		ks, err := k.open(ctx, kind)
		more := true
		if err == nil {
			if more, err = f(ks); more {
				closeKeystore(ks)
			}
		}
		if err != nil {
			note("%s", plain(err))
			failed++
		}
		if !more {
			break
		}
	}
	if failed > 0 {
		return silent(exitFailure)
	}
	return nil
}

func (k *keeper) list(ctx context.Context) error {
	var all []hwkey.Info
	err := k.each(ctx, func(ks hwkey.Keystore) (bool, error) {
		infos, err := ks.List(ctx)
		all = append(all, infos...)
		return true, err
	})
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tLEVEL\tKEEPER\tALGORITHM\tCREATED\tFOR")
	for _, i := range all {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", i.ID, i.Level, i.Detail, cmp.Or(string(i.Algorithm), "damaged"), when(i.Created), cmp.Or(i.Label, "-"))
	}
	return errors.Join(err, w.Flush())
}

// find returns the keystore that has the key, and what it says of the key.
func (k *keeper) find(ctx context.Context, id string) (found hwkey.Keystore, info hwkey.Info, err error) {
	err = k.each(ctx, func(ks hwkey.Keystore) (bool, error) {
		infos, err := ks.List(ctx)
		if err != nil {
			return true, err
		}
		i := slices.IndexFunc(infos, func(i hwkey.Info) bool { return i.ID == id })
		if i < 0 {
			return true, nil
		}
		found, info = ks, infos[i]
		return false, nil
	})
	if found != nil {
		return found, info, nil // of the others enough was told
	}
	if err == nil {
		err = withHint(errors.New("no such key"), "limpet key list")
	}
	return nil, info, err
}

func (k *keeper) create(ctx context.Context, kind, label string) error {
	info, _, err := k.make(ctx, kind, label)
	if err != nil {
		return err
	}
	_, err = fmt.Println(info.ID)
	return err
}

// make makes a key pair in the best keystore of a kind.
func (k *keeper) make(ctx context.Context, kind, label string) (info hwkey.Info, public crypto.PublicKey, err error) {
	if k.dir, err = stateDir(); err != nil {
		return info, nil, err
	}
	ks, finding, err := k.choose(ctx, kind)
	if err != nil {
		return info, nil, err
	}
	defer closeKeystore(ks)
	key, err := ks.Create(ctx, hwkey.CreateOptions{Label: label})
	if err != nil {
		return info, nil, err
	}
	defer key.Close()
	note("made a key of level %s (%s: %s)", finding.Level, finding.Name, finding.Reason)
	return key.Info(), key.Public(), nil
}

func (k *keeper) show(ctx context.Context, id string) error {
	ks, info, err := k.find(ctx, id)
	if err != nil {
		return err
	}
	defer closeKeystore(ks)
	if info.Algorithm == hwkey.HMACSHA256 {
		key, err := loadHMAC(ctx, ks, id)
		if err != nil {
			return err
		}
		defer key.Close()
		if err := printInfo(key.Info()); err != nil {
			return err
		}
		note("a secret has no public half")
		return nil
	}
	key, err := ks.Load(ctx, id)
	if err != nil {
		return err
	}
	defer key.Close()
	if err := printInfo(key.Info()); err != nil {
		return err
	}
	return printPublic(key.Public())
}

func printPublic(public crypto.PublicKey) error {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return err
	}
	return pem.Encode(os.Stdout, &pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

func printInfo(i hwkey.Info) error {
	_, err := fmt.Printf("id         %s\nlevel      %s\nkeeper     %s\nalgorithm  %s\ncreated    %s\nfor        %s\n",
		i.ID, i.Level, i.Detail, i.Algorithm, when(i.Created), cmp.Or(i.Label, "-"))
	if err == nil && i.Algorithm == hwkey.HMACSHA256 {
		_, err = fmt.Printf("made       %s\n", origins[i.Imported])
	}
	return err
}

// origins says of a secret who may have it, by whether it was imported.
var origins = map[bool]string{false: "by the keeper: nobody knows the secret", true: "elsewhere, and imported: others may have the secret"}

func loadHMAC(ctx context.Context, ks hwkey.Keystore, id string) (hwkey.HMACKey, error) {
	secrets, ok := ks.(hwkey.HMACKeystore)
	if !ok {
		return nil, hwkey.ErrUnsupported
	}
	return secrets.LoadHMAC(ctx, id)
}

func (k *keeper) remove(ctx context.Context, id string) error {
	ks, _, err := k.find(ctx, id)
	if err != nil {
		return err
	}
	defer closeKeystore(ks)
	if err := ks.Delete(ctx, id); err != nil {
		return err
	}
	sessions, _ := savedSessions(k.dir)
	for _, s := range sessions {
		if s.Session.Key == id {
			note("the session at %s as %s can no longer be used", s.Session.Origin, s.User)
		}
	}
	return nil
}

func when(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04:05")
}
