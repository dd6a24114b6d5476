package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/internal/authserver"
)

// registry is where sessions are listed and revoked: a running server's admin
// socket, or a guard on the store.
type registry interface {
	Sessions(ctx context.Context, yield func(*limpet.Binding) bool) error
	Revoke(ctx context.Context, session limpet.ID) error
	RevokeUser(ctx context.Context, user string) (int, error)
}

type sessions struct {
	store       storeFlag
	access      storeAccess
	adminSocket string
	user        string
}

func sessionCommand() *cobra.Command {
	var s sessions
	cmd := group("session", "list and revoke the sessions of a server", `Session lists and revokes the sessions of a server on this machine: through the
admin socket if the server runs, else in its store. A store in Redis can be
reached from any machine.

  limpet session list
  limpet session revoke ID
  limpet session revoke --user alice`)
	list := &cobra.Command{
		Use:   "list",
		Short: "list the sessions that are neither over nor revoked",
		Long: `List shows the live sessions of a server, oldest first. The ID of a session is the
hash of its token: it can be shown, and the token cannot be found from it.

  limpet session list
  limpet session list --store bolt:/var/lib/limpet/server.db
  limpet session list --store redis://HOST --store-password-file redis.txt
  limpet session list --user alice`,
		Args: nothing,
		RunE: func(cmd *cobra.Command, _ []string) error { return s.list(cmd.Context()) },
	}
	revoke := &cobra.Command{
		Use:   "revoke [ID | --user NAME]",
		Short: "end a session, or all of a user's",
		Long: `Revoke ends a session at once, or all sessions of a user.

  limpet session revoke ID
  limpet session revoke --user alice`,
		RunE: func(cmd *cobra.Command, args []string) error { return s.revoke(cmd.Context(), args) },
	}
	for _, sub := range []*cobra.Command{list, revoke} {
		sub.Flags().Var(&s.store, "store", "the server's store, bolt:PATH or the URL of a Redis (default bolt:$XDG_STATE_HOME/limpet/server.db)")
		s.access.flags(sub)
		sub.Flags().StringVar(&s.adminSocket, "admin-socket", "", "`path` of the server's admin socket (default PATH.admin beside the store)")
		sub.Flags().StringVar(&s.user, "user", "", "only sessions of the user with this `name`")
		settings(sub, "store", "store-password-file", "store-ca-file", "store-cert-file", "store-key-file", "admin-socket")
		cmd.AddCommand(sub)
	}
	return cmd
}

// dashed puts a session ID that begins with a dash, as one in 64 does, where no
// flag is looked for.
func dashed(args []string) []string {
	i := slices.IndexFunc(args, func(a string) bool {
		_, err := limpet.ParseID(a)
		return err == nil && a[0] == '-'
	})
	if i < 0 || slices.Contains(args, "--") {
		return args
	}
	if at := slices.Index(args[:i], "session"); at < 0 || !slices.Contains(args[at:i], "revoke") {
		return args
	}
	return slices.Concat(args[:i], args[i+1:], []string{"--", args[i]})
}

// open opens the registry.
func (s *sessions) open(ctx context.Context) (registry, io.Closer, error) {
	none := io.NopCloser(nil)
	if s.adminSocket != "" {
		admin, err := authserver.DialAdmin(s.adminSocket)
		return admin, none, err
	}
	if s.store.remote() {
		store, err := s.store.openRemote(ctx, &s.access, logger(slog.LevelError, "text")) // warnings are for the server
		if err != nil {
			return nil, nil, err
		}
		return onStore(store, store)
	}
	path, err := s.store.path()
	if err != nil {
		return nil, nil, err
	}
	if path == "" {
		return nil, nil, usage("a store in memory is reached through --admin-socket only")
	}
	if admin, err := authserver.DialAdmin(path + adminSuffix); err == nil {
		return admin, none, nil
	}
	if _, err := os.Stat(path); err != nil { // opening would make one
		return nil, nil, withHint(fmt.Errorf("no store: %w", err), "name the server's with --store bolt:PATH, or its --admin-socket")
	}
	store, closer, err := openStore(path)
	if err != nil {
		return nil, nil, err
	}
	return onStore(store, closer)
}

// onStore returns the registry in a store, and what closes that.
func onStore(store limpet.Store, closer io.Closer) (registry, io.Closer, error) {
	server, err := authserver.New(authserver.Config{Store: store})
	if err != nil {
		closer.Close()
		return nil, nil, err
	}
	return server, closer, nil
}

func (s *sessions) list(ctx context.Context) (err error) {
	from, closer, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closer.Close()) }()
	var all []*limpet.Binding
	err = from.Sessions(ctx, func(b *limpet.Binding) bool {
		if s.user == "" || b.User == s.user {
			all = append(all, b)
		}
		return true
	})
	if err != nil {
		return err
	}
	slices.SortFunc(all, func(a, b *limpet.Binding) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.Session.String(), b.Session.String()))
	})
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SESSION\tUSER\tLEVEL\tCREATED\tEXPIRES")
	for _, b := range all {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", b.Session, b.User, b.Level, when(b.Created), when(b.Expires))
	}
	return w.Flush()
}

func (s *sessions) revoke(ctx context.Context, args []string) (err error) {
	var id limpet.ID
	switch {
	case len(args) > 1 || len(args) == 1 && s.user != "" || len(args) == 0 && s.user == "":
		return usage("revoke takes the ID of one session, or --user")
	case len(args) == 1:
		if id, err = limpet.ParseID(args[0]); err != nil {
			return &usageError{err}
		}
	}
	from, closer, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closer.Close()) }()
	n := 1
	if s.user != "" {
		n, err = from.RevokeUser(ctx, s.user)
	} else {
		err = from.Revoke(ctx, id)
	}
	if err != nil {
		return err
	}
	fmt.Printf("revoked %d\n", n)
	return nil
}
