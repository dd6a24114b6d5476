package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/internal/admin"
)

// registry is where sessions are listed and revoked: a running server's admin
// socket, or a guard on the store.
type registry interface {
	List(ctx context.Context, f admin.Filter, yield func(*limpet.Binding) bool) error
	Show(ctx context.Context, id limpet.ID) (*limpet.Binding, error)
	Revoke(ctx context.Context, id limpet.ID) error
	RevokeAll(ctx context.Context, f admin.Filter) (int, error)
}

type sessions struct {
	store       storeFlag
	access      storeAccess
	adminSocket string
	filter      admin.Filter
	level       string
	json        bool
}

const anyLevel = "any"

func sessionCommand() *cobra.Command {
	var s sessions
	cmd := group("session", "list, show, revoke and watch the sessions of a server", `Session lists, shows and revokes the sessions of a server or gateway on this
machine: through the admin socket if it runs, else in its store. A store in Redis
can be reached from any machine. Watch needs a running one.

  limpet session list
  limpet session show ID
  limpet session revoke ID
  limpet session revoke --user alice
  limpet session watch`)
	list := &cobra.Command{
		Use:   "list",
		Short: "list the sessions that are neither over nor revoked",
		Long: `List shows the live sessions of a server, oldest first. The ID of a session is the
hash of its token: it can be shown, and the token cannot be found from it. The key
is the thumbprint (RFC 7638) of the device key.

  limpet session list
  limpet session list --store bolt:/var/lib/limpet/server.db
  limpet session list --store redis://HOST --store-password-file redis.txt
  limpet session list --user alice --level software
  limpet session list --json

With --json it is one object a line, in no order; times are unix seconds.`,
		Args: nothing,
		RunE: func(cmd *cobra.Command, _ []string) error { return s.list(cmd.Context()) },
	}
	show := &cobra.Command{
		Use:   "show ID",
		Short: "show a session, also one that is over",
		Long: `Show tells what is known of a session, also of one that is over or was revoked.

  limpet session show ID
  limpet session show ID --json`,
		Args: exactly(1, "the ID of one session"),
		RunE: func(cmd *cobra.Command, args []string) error { return s.show(cmd.Context(), args[0]) },
	}
	revoke := &cobra.Command{
		Use:   "revoke [ID | --user NAME | --key THUMBPRINT]",
		Short: "end a session, or all of a user's or a device key's",
		Long: `Revoke ends a session at once, or all sessions of a user or of a device key; with
--level only those of that level.

  limpet session revoke ID
  limpet session revoke --user alice
  limpet session revoke --key THUMBPRINT
  limpet session revoke --user alice --level none`,
		RunE: func(cmd *cobra.Command, args []string) error { return s.revoke(cmd.Context(), args) },
	}
	watch := &cobra.Command{
		Use:   "watch",
		Short: "show what a running server decides, as it decides it",
		Long: `Watch shows the decisions of a running server or gateway until it is interrupted:
what is admitted and what is refused and why, and sessions that are bound, replaced
and revoked. Who a request is from is only known of one that is admitted, so
--user, --key and --level show no refused ones. If more happens than can be shown,
a line says how much is missing.

  limpet session watch
  limpet session watch --user alice
  limpet session watch --json | jq 'select(.result == "refused")'`,
		Args: nothing,
		RunE: func(cmd *cobra.Command, _ []string) error { return s.watch(cmd.Context()) },
	}
	for _, sub := range []*cobra.Command{list, show, revoke, watch} {
		sub.Flags().Var(&s.store, "store", "the server's store, bolt:PATH or the URL of a Redis (default bolt:$XDG_STATE_HOME/limpet/server.db)")
		sub.Flags().StringVar(&s.adminSocket, "admin-socket", "", "`path` of the server's admin socket (default PATH.admin beside the store)")
		settings(sub, "store", "admin-socket")
		if sub != watch {
			s.access.flags(sub)
			settings(sub, "store-password-file", "store-ca-file", "store-cert-file", "store-key-file")
		}
		if sub != show {
			sub.Flags().StringVar(&s.filter.User, "user", "", "only sessions of the user with this `name`")
			sub.Flags().StringVar(&s.filter.Key, "key", "", "only sessions of the device key with this `thumbprint`")
			choiceVar(sub, &s.level, "level", "only sessions of this level", anyLevel, "none", "software", "browser", "hardware", "hardware-attested")
		}
		if sub != revoke {
			yesNoVar(sub, &s.json, "json", "JSON, for programs")
		}
		sub.PreRun = func(*cobra.Command, []string) {
			if s.level != anyLevel {
				s.filter.Level = limpet.Level(s.level)
			}
		}
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
	takesID := func(a string) bool { return a == "revoke" || a == "show" }
	if at := slices.Index(args[:i], "session"); at < 0 || !slices.ContainsFunc(args[at:i], takesID) {
		return args
	}
	// A key's thumbprint looks the same.
	if args[i-1] == "--key" {
		return args
	}
	return slices.Concat(args[:i], args[i+1:], []string{"--", args[i]})
}

// open opens the registry.
func (s *sessions) open(ctx context.Context) (registry, io.Closer, error) {
	none := io.NopCloser(nil)
	if s.adminSocket != "" {
		server, err := admin.Dial(s.adminSocket)
		return server, none, err
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
	if server, err := admin.Dial(path + adminSuffix); err == nil {
		return server, none, nil
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
	guard, err := limpet.New(limpet.Config{Session: limpet.Bearer(), Store: store, Logger: logger(slog.LevelWarn, "text")})
	if err != nil {
		closer.Close()
		return nil, nil, err
	}
	return admin.Sessions{Guard: guard}, closer, nil
}

func (s *sessions) list(ctx context.Context) (err error) {
	from, closer, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closer.Close()) }()
	if s.json {
		var told error
		err = from.List(ctx, s.filter, func(b *limpet.Binding) bool {
			told = printJSON(b)
			return told == nil
		})
		return errors.Join(err, told)
	}
	var all []*limpet.Binding
	err = from.List(ctx, s.filter, func(b *limpet.Binding) bool {
		all = append(all, b)
		return true
	})
	if err != nil {
		return err
	}
	slices.SortFunc(all, func(a, b *limpet.Binding) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.Session.String(), b.Session.String()))
	})
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SESSION\tUSER\tLEVEL\tCREATED\tEXPIRES\tKEY")
	for _, b := range all {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", b.Session, shown(b.User), b.Level, when(b.Created), when(b.Expires), b.Key)
	}
	return w.Flush()
}

func printJSON(b *limpet.Binding) error {
	text, err := admin.Describe(b)
	if err == nil {
		_, err = fmt.Printf("%s\n", text)
	}
	return err
}

// shown is text of others, without what a terminal would take for a command.
func shown(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, text)
}

func (s *sessions) show(ctx context.Context, text string) (err error) {
	id, err := limpet.ParseID(text)
	if err != nil {
		return &usageError{err}
	}
	from, closer, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closer.Close()) }()
	b, err := from.Show(ctx, id)
	if err != nil {
		return err
	}
	if s.json {
		return printJSON(b)
	}
	state := "live"
	switch {
	case !b.Ended.IsZero():
		state = "revoked " + when(b.Ended)
	case !time.Now().Before(b.Expires):
		state = "over"
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "%s\t%s\n", name, value)
		}
	}
	line("session", b.Session.String())
	if b.Root != (limpet.ID{}) {
		line("login's", b.Root.String())
	}
	line("user", shown(b.User))
	line("level", string(b.Level))
	line("key", b.Key)
	line("created", when(b.Created))
	line("expires", when(b.Expires))
	line("state", state)
	return w.Flush()
}

func (s *sessions) revoke(ctx context.Context, args []string) (err error) {
	var id limpet.ID
	chosen := s.filter.User != "" || s.filter.Key != ""
	switch {
	case len(args) > 1 || len(args) == 1 && s.filter != (admin.Filter{}) || len(args) == 0 && !chosen:
		return usage("revoke takes the ID of one session, or --user or --key")
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
	if chosen {
		n, err = from.RevokeAll(ctx, s.filter)
	} else {
		err = from.Revoke(ctx, id)
	}
	if err != nil {
		return err
	}
	fmt.Printf("revoked %d\n", n)
	return nil
}

func (s *sessions) watch(ctx context.Context) error {
	socket := s.adminSocket
	if socket == "" {
		path, err := s.store.path()
		if err != nil {
			return err
		}
		if path == "" {
			return usage("the admin socket is not beside this store: say where, with --admin-socket")
		}
		socket = path + adminSuffix
	}
	server, err := admin.Dial(socket)
	if err != nil {
		return withHint(err, "a server must run: name its --admin-socket, or its --store")
	}
	var told error
	err = server.Watch(ctx, s.filter, func(d *admin.Decision) bool {
		if s.json {
			told = json.NewEncoder(os.Stdout).Encode(d)
		} else {
			told = printDecision(d)
		}
		return told == nil
	})
	if ctx.Err() != nil {
		return nil // as it was meant to end
	}
	if err == nil && told == nil {
		err = errors.New("the server has ended")
	}
	return errors.Join(err, told)
}

func printDecision(d *admin.Decision) error {
	if d.Lost > 0 {
		note("%d decisions are missing here", d.Lost)
	}
	words := []string{d.Time.Local().Format("15:04:05.000"), string(d.Result)}
	add := func(name, value string) {
		if value != "" {
			words = append(words, name+shown(value))
		}
	}
	add("", d.Reason)
	add("", d.Cause)
	add("", d.Method)
	add("", d.Path)
	if d.Method != "" {
		add("by=", string(d.Format))
	}
	add("session=", d.Session)
	add("user=", d.User)
	add("level=", string(d.Level))
	add("client=", d.Client)
	_, err := fmt.Println(strings.Join(words, " "))
	return err
}
