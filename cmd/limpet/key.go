package main

import (
	"cmp"
	"context"
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
	cmd := group("key", "list, show and delete this device's keys", `Key shows the device keys that limpet login made, one for each session.

  limpet key list
  limpet key show ID
  limpet key rm ID`)
	for _, sub := range []*cobra.Command{{
		Use:   "list",
		Short: "list the device keys",
		Long: `List shows the keys of all keystores, oldest first in each: ID, level, keeper,
algorithm, when it was made, and the server it was made for.

  limpet key list`,
		Args: nothing,
		RunE: func(cmd *cobra.Command, _ []string) error { return k.list(cmd.Context()) },
	}, {
		Use:   "show ID",
		Short: "show a device key and its public half",
		Long: `Show prints what is known of a key, and its public half in PEM. The key is
loaded, so that show also tells whether it can still sign.

  limpet key show ID`,
		Args: exactly(1, "the ID of one key"),
		RunE: func(cmd *cobra.Command, args []string) error { return k.show(cmd.Context(), args[0]) },
	}, {
		Use:   "rm ID",
		Short: "delete a device key",
		Long: `Rm deletes a device key. A session that is bound to it can never be used again,
here or anywhere: log in again. To end a session in order use limpet logout.

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
// false. One that cannot be opened is told and passed over.
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
			more, err = f(ks)
			closeKeystore(ks)
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

// find calls f with the keystore that has the key.
func (k *keeper) find(ctx context.Context, id string, f func(hwkey.Keystore) error) error {
	found := false
	err := k.each(ctx, func(ks hwkey.Keystore) (bool, error) {
		infos, err := ks.List(ctx)
		if err != nil || !slices.ContainsFunc(infos, func(i hwkey.Info) bool { return i.ID == id }) {
			return true, err
		}
		found = true
		return false, f(ks)
	})
	if err == nil && !found {
		return withHint(errors.New("no such key"), "limpet key list")
	}
	return err
}

func (k *keeper) show(ctx context.Context, id string) error {
	return k.find(ctx, id, func(ks hwkey.Keystore) error {
		key, err := ks.Load(ctx, id)
		if err != nil {
			return err
		}
		defer key.Close()
		der, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			return err
		}
		i := key.Info()
		fmt.Printf("id         %s\nlevel      %s\nkeeper     %s\nalgorithm  %s\ncreated    %s\nfor        %s\n",
			i.ID, i.Level, i.Detail, i.Algorithm, when(i.Created), cmp.Or(i.Label, "-"))
		return pem.Encode(os.Stdout, &pem.Block{Type: "PUBLIC KEY", Bytes: der})
	})
}

func (k *keeper) remove(ctx context.Context, id string) error {
	return k.find(ctx, id, func(ks hwkey.Keystore) error {
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
	})
}

func when(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04:05")
}
