package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/limpet-auth/limpet/client"
	"github.com/limpet-auth/limpet/proof"
)

type logout struct {
	url, user string
	keeper    keeper
}

func logoutCommand() *cobra.Command {
	var l logout
	cmd := &cobra.Command{
		Use:   "logout",
		Short: "end a session and delete its device key",
		Long: `Logout ends a session at the server, then deletes its token and its device key
here. If the server says that the session is over already, or the device key is
lost, they are deleted all the same; if the server cannot be reached, or refuses
for another reason, they stay.

  limpet logout
  limpet logout --url https://auth.example.com --user alice`,
		Args: nothing,
		RunE: func(cmd *cobra.Command, _ []string) error { return l.run(cmd.Context()) },
	}
	cmd.Flags().StringVar(&l.url, "url", "", "`URL` of the server, if logged in at several")
	cmd.Flags().StringVar(&l.user, "user", "", "user `name`, if several are logged in there (default: the latest)")
	settings(cmd, "url", "user")
	l.keeper.flags(cmd)
	return cmd
}

func (l *logout) run(ctx context.Context) error {
	state, err := stateDir()
	if err != nil {
		return err
	}
	l.keeper.dir = state
	where := ""
	if l.url != "" {
		u, err := serverURL(l.url)
		if err != nil {
			return err
		}
		where = origin(u)
	}
	s, err := findSession(state, where, l.user)
	if err != nil {
		return err
	}
	keys, err := s.keystore(ctx, &l.keeper)
	if err != nil {
		return err
	}
	defer closeKeystore(keys)
	c := client.New(keys)
	defer c.Close()
	if err := c.Restore(ctx, s.Session); err != nil {
		return err
	}
	switch err := s.endAtServer(ctx, newHTTPClient(c.Transport(newTransport()))); {
	case errors.Is(err, client.ErrKeyGone):
		note("the device key is lost; at the server the session ends when its time is over")
	case errors.Is(err, errOver):
		note("the session was over already")
	case err != nil:
		return fmt.Errorf("logout: %w", err)
	}
	if err := s.forget(ctx, state, keys); err != nil {
		return err
	}
	note("logged out at %s as %s", s.Session.Origin, s.User)
	return nil
}

var errOver = errors.New("the server does not know the session")

// alive are the reasons of a 401 that do not mean that the session is over.
var alive = []proof.Reason{proof.ClockSkew, proof.Stale, proof.NoChannel, proof.NonceWeak}

func (s *savedSession) endAtServer(ctx context.Context, c *http.Client) error {
	base, err := url.Parse(s.URL)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base.JoinPath("logout").String(), nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+s.Token)
	resp, err := c.Do(req)
	if err != nil {
		return withoutURL(err)
	}
	defer resp.Body.Close()
	switch reason := client.Reason(resp); {
	case resp.StatusCode == http.StatusUnauthorized && !slices.Contains(alive, reason):
		return errOver
	case resp.StatusCode > 299:
		return refused(resp)
	}
	return nil
}
