package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/channel"
	"github.com/limpet-auth/limpet/client"
	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/internal/authserver"
	"github.com/limpet-auth/limpet/proof"
)

func demoCommand() *cobra.Command {
	d := demo{stage: stage{out: os.Stdout}}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "log in, be robbed, and see that the loot is worthless",
		Long: `Demo starts an auth server on this machine, logs alice in with a key of this
device, and then plays a thief who has her session token, sits on the line to
the server, and can hold her requests back. It ends with a table of what was
tried and what came of it.

  limpet demo
  limpet demo --tpm unix:/run/swtpm/sock

The last line of the thief's succeeds: it shows what the older hw-sign wire does
not prevent. Everything happens in a temporary directory, which is removed at
the end. The exit code is 0 only if each line of the table came out as told.`,
		Args: nothing,
		RunE: func(cmd *cobra.Command, _ []string) error { return d.run(cmd.Context()) },
	}
	d.keeper.tpmFlag(cmd)
	return cmd
}

type demo struct {
	stage
	keeper keeper      // of the owner's keys
	rule   limpet.Rule // the server's; tests break a defence with it

	base  *url.URL // of the server
	token string
	line  wiretap // between the owner and the server
}

// stage is what demos are played on.
type stage struct {
	out     io.Writer
	results []result
}

// result is a line of the table.
type result struct {
	who, tried string
	want, got  outcome
	weak       bool // it should not be so, and is: the protocol cannot prevent it
}

// outcome is a status and the reason of a refusal.
type outcome struct {
	code   int
	reason proof.Reason
}

func (o outcome) String() string {
	if o.code == 0 {
		return cmp.Or(string(o.reason), "no answer")
	}
	return fmt.Sprintf("%d %s", o.code, cmp.Or(string(o.reason), http.StatusText(o.code)))
}

func (s *stage) printf(format string, args ...any) { fmt.Fprintf(s.out, format, args...) }

func (d *demo) run(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", "limpet-demo-") // mode 0700
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	stop, err := d.serve(filepath.Join(dir, "server.db"))
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	defer stop()
	err = d.play(ctx, dir)
	if ctx.Err() != nil {
		return errors.New("demo: interrupted")
	}
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	return d.table("All %d lines came out as told: a stolen session is worth nothing elsewhere.\n" +
		"The one marked weak is the hw-sign wire's; limpet login uses it only with --wire hw-sign.\n")
}

// serve starts the auth server.
func (d *demo) serve(path string) (stop func(), err error) {
	store, closer, err := openStore(path)
	if err != nil {
		return nil, err
	}
	log := slog.New(slog.DiscardHandler)
	server, err := authserver.New(authserver.Config{Store: store, Rule: d.rule, Logger: log})
	if err != nil {
		closer.Close()
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		closer.Close()
		return nil, err
	}
	d.base = &url.URL{Scheme: "http", Host: l.Addr().String()}
	d.printf("An auth server listens on %s.\n", d.base)
	srv := newHTTPServer(server, log)
	go srv.Serve(l)
	return func() { srv.Close(); closer.Close() }, nil
}

func (d *demo) play(ctx context.Context, dir string) error {
	d.keeper.dir = filepath.Join(dir, "owner")
	keys, err := d.keystore(ctx, &d.keeper, "Alice's device key")
	if err != nil {
		return err
	}
	defer closeKeystore(keys)
	c := client.New(keys)
	defer c.Close()
	d.line.base = http.DefaultTransport
	owner := &http.Client{Transport: c.Transport(&d.line)}

	d.printf("\nAlice registers, logs in and works.\n")
	password := []byte(rand.Text())
	if _, err := postCredentials(ctx, owner, d.base.JoinPath("register"), "alice", password); err != nil {
		return fmt.Errorf("register: %w", err)
	}
	if d.token, err = postCredentials(ctx, owner, d.base.JoinPath("login"), "alice", password); err != nil {
		return fmt.Errorf("login: %w", err)
	}
	look := d.request(http.MethodGet, "/authenticated", "")
	d.try(ctx, owner, "owner", "a request with a new ephemeral key", admitted, look)
	d.try(ctx, owner, "owner", "a request proven by that key", admitted, look)
	d.try(ctx, owner, "owner", "another one, with a body", admitted, d.request(http.MethodPost, "/echo", "a note"))

	if err := d.thief(ctx, filepath.Join(dir, "thief"), owner); err != nil {
		return err
	}

	d.printf("\nAlice is not disturbed, and logs out.\n")
	d.try(ctx, owner, "owner", "a proven request", admitted, look)
	d.try(ctx, owner, "owner", "logs out", admitted, d.request(http.MethodPost, "/logout", ""))
	d.try(ctx, owner, "owner", "a proven request after the logout", outcome{401, proof.SessionEnded}, look)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return d.hwSign(ctx, keys, password)
}

// hwSign shows what the hw-sign wire does not prevent.
func (d *demo) hwSign(ctx context.Context, keys hwkey.Keystore, password []byte) (err error) {
	d.printf("\nWhat hw-sign clients do not get: their proofs are not for one method, path or body, so one\n" +
		"that is caught before it is spent can be moved. Alice logs in with --wire hw-sign.\n")
	c := client.New(keys)
	c.Wire = client.HWSign
	defer c.Close()
	owner := &http.Client{Transport: c.Transport(&d.line)}
	if d.token, err = postCredentials(ctx, owner, d.base.JoinPath("login"), "alice", password); err != nil {
		return fmt.Errorf("login on hw-sign: %w", err)
	}
	d.try(ctx, owner, "owner", "a request on hw-sign", admitted, d.request(http.MethodGet, "/authenticated", ""))
	_, err = d.hold(ctx, owner, d.request(http.MethodPost, "/echo/pay?to=bob", payment), func(caught message) bool {
		moved := caught.altered(func(m *message) { m.target = "/echo/other?to=mallory" })
		_, got := send(ctx, new(http.Client), d.base, moved)
		d.note(result{"thief", "an unspent hw-sign proof, on another path", admitted, got, true})
		return true
	})
	return err
}

var (
	admitted = outcome{code: 200}
	stopped  = outcome{reason: "stopped by the client"} // which found that its token can be of no use
)

const payment = `{"amount":1}`

// keystore opens the best keystore of this machine and tells why it is that one.
func (s *stage) keystore(ctx context.Context, k *keeper, what string) (hwkey.Keystore, error) {
	list, err := k.candidates(keyAuto)
	if err != nil {
		return nil, err
	}
	// A keyring would keep an entry for a directory that is gone.
	list[1] = softCandidate(k.softDir())
	keys, findings, err := hwkey.Auto(ctx, list...)
	s.printf("\nWhat could keep %s:\n", what)
	for _, f := range findings {
		s.printf("  %s\n", plain(errors.New(f.String())))
		if f.Chosen && f.Level == hwkey.Software {
			s.printf("  Software keys are worth less: who copies the key file too, has the key.\n")
		}
	}
	return keys, err
}

// request returns a request with the owner's token.
func (d *demo) request(method, target, body string) message {
	return message{method: method, target: target, host: d.base.Host, body: []byte(body),
		header: http.Header{"Authorization": {"Bearer " + d.token}}}
}

// try makes a request and notes what came of it.
func (d *demo) try(ctx context.Context, c *http.Client, who, tried string, want outcome, m message) *http.Response {
	resp, got := send(ctx, c, d.base, m)
	d.note(result{who: who, tried: tried, want: want, got: got})
	return resp
}

func (s *stage) note(r result) {
	s.results = append(s.results, r)
	what := "admitted"
	if r.got.code > 299 {
		what = "refused"
		if r.got.reason != proof.NoClient { // which is all that a channel's peer is told
			what += ": " + r.got.reason.Message()
		}
	}
	if r.got.code == 0 {
		what = r.got.String()
	}
	s.printf("  %-5s  %-50s  %s\n", r.who, r.tried, what)
}

// send sends a request. The answer's body is read, and can be read again.
func send(ctx context.Context, c *http.Client, base *url.URL, m message) (*http.Response, outcome) {
	req, err := http.NewRequestWithContext(ctx, m.method, base.String()+m.target, bytes.NewReader(m.body))
	if err != nil {
		return nil, outcome{}
	}
	req.Host, req.Header = m.host, m.header.Clone()
	resp, err := c.Do(req)
	if errors.Is(err, channel.ErrTLSElsewhere) {
		return nil, stopped
	}
	if err != nil {
		return nil, outcome{}
	}
	got := outcome{resp.StatusCode, client.Reason(resp)}
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(text))
	return resp, got
}

// table prints the results, and fails unless all are as they should be. The last
// words are told how many there are.
func (s *stage) table(last string) error {
	s.printf("\n")
	w := tabwriter.NewWriter(s.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "WHO\tTRIED\tEXPECTED\tHAPPENED\t")
	wrong := 0
	for _, r := range s.results {
		mark := "ok"
		switch {
		case r.want != r.got:
			mark = "WRONG"
			wrong++
		case r.weak:
			mark = "weak"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", r.who, r.tried, r.want, r.got, mark)
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	if wrong > 0 {
		s.printf("\n%d of %d lines did not come out as told.\n", wrong, len(s.results))
		return silent(exitFailure)
	}
	s.printf("\n"+last, len(s.results))
	return nil
}
