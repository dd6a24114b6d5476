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
	"github.com/limpet-auth/limpet/client"
	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/internal/authserver"
	"github.com/limpet-auth/limpet/proof"
)

func demoCommand() *cobra.Command {
	d := demo{out: os.Stdout}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "log in, be robbed, and see that the loot is worthless",
		Long: `Demo starts an auth server on this machine, logs alice in with a key of this
device, and then plays a thief who has her session token and a record of her
traffic. It ends with a table of what was tried and what came of it.

  limpet demo
  limpet demo --tpm unix:/run/swtpm/sock

Everything happens in a temporary directory, which is removed at the end. The
exit code is 0 only if each line of the table came out as it should.`,
		Args: nothing,
		RunE: func(cmd *cobra.Command, _ []string) error { return d.run(cmd.Context()) },
	}
	cmd.Flags().StringVar(&d.keeper.tpm, "tpm", "", "`address` of the TPM: /dev/…, unix:PATH or tcp:HOST:PORT (default: this machine's)")
	settings(cmd, "tpm")
	return cmd
}

type demo struct {
	keeper keeper      // of the owner's keys
	rule   limpet.Rule // the server's; tests break a defence with it
	out    io.Writer

	base     *url.URL // of the server
	token    string
	recorder recorder // the owner's traffic
	results  []result
}

// result is a line of the table.
type result struct {
	who, tried string
	want, got  outcome
}

// outcome is a status and the reason of a refusal.
type outcome struct {
	code   int
	reason proof.Reason
}

func (o outcome) String() string {
	if o.code == 0 {
		return "no answer"
	}
	return fmt.Sprintf("%d %s", o.code, cmp.Or(string(o.reason), http.StatusText(o.code)))
}

func (d *demo) printf(format string, args ...any) { fmt.Fprintf(d.out, format, args...) }

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
	return d.table()
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
	keys, err := d.keystore(ctx)
	if err != nil {
		return err
	}
	defer closeKeystore(keys)
	c := client.New(keys)
	defer c.Close()
	d.recorder.base = http.DefaultTransport
	owner := &http.Client{Transport: c.Transport(&d.recorder)}

	d.printf("\nAlice registers, logs in and works.\n")
	password := []byte(rand.Text())
	if _, err := postCredentials(ctx, owner, d.base.JoinPath("register"), "alice", password); err != nil {
		return fmt.Errorf("register: %w", err)
	}
	if d.token, err = postCredentials(ctx, owner, d.base.JoinPath("login"), "alice", password); err != nil {
		return fmt.Errorf("login: %w", err)
	}
	ok := outcome{200, ""}
	d.try(ctx, owner, "owner", "a request that introduces an ephemeral key", ok, http.MethodGet, "/authenticated", nil)
	d.try(ctx, owner, "owner", "a request proven by that key", ok, http.MethodGet, "/authenticated", nil)
	d.try(ctx, owner, "owner", "another one, with a body", ok, http.MethodPost, "/authenticated", nil)

	d.printf("\nA thief has copied her token and all of her traffic.\n")
	if err := d.thief(ctx, filepath.Join(dir, "thief")); err != nil {
		return err
	}

	d.printf("\nAlice is not disturbed, and logs out.\n")
	d.try(ctx, owner, "owner", "a proven request", ok, http.MethodGet, "/authenticated", nil)
	d.try(ctx, owner, "owner", "logs out", ok, http.MethodPost, "/logout", nil)
	d.try(ctx, owner, "owner", "a proven request after the logout", outcome{401, proof.SessionEnded}, http.MethodGet, "/authenticated", nil)
	return ctx.Err()
}

// keystore opens the best keystore of this machine and tells why it is that one.
func (d *demo) keystore(ctx context.Context) (hwkey.Keystore, error) {
	list, err := d.keeper.candidates(keyAuto)
	if err != nil {
		return nil, err
	}
	// A keyring would keep an entry for a directory that is gone.
	list[1] = softCandidate(d.keeper.softDir())
	keys, findings, err := hwkey.Auto(ctx, list...)
	d.printf("\nWhat could keep Alice's device key:\n")
	for _, f := range findings {
		d.printf("  %s\n", plain(errors.New(f.String())))
		if f.Chosen && f.Level == hwkey.Software {
			d.printf("  Software keys are worth less: who copies the key file too, has the session.\n")
		}
	}
	return keys, err
}

// try makes a request with the owner's token and notes what came of it. header
// replaces headers.
func (d *demo) try(ctx context.Context, c *http.Client, who, tried string, want outcome, method, path string, header http.Header) *http.Response {
	resp, got := d.send(ctx, c, method, path, header)
	d.note(result{who, tried, want, got})
	return resp
}

func (d *demo) note(r result) {
	d.results = append(d.results, r)
	what := "admitted"
	if r.got.code > 299 {
		what = "refused: " + r.got.reason.Message()
	}
	if r.got.code == 0 {
		what = "no answer"
	}
	d.printf("  %-5s  %-52s  %s\n", r.who, r.tried, what)
}

func (d *demo) send(ctx context.Context, c *http.Client, method, path string, header http.Header) (*http.Response, outcome) {
	var body io.Reader
	if method == http.MethodPost {
		body = bytes.NewReader([]byte(`{"amount":1}`))
	}
	req, err := http.NewRequestWithContext(ctx, method, d.base.JoinPath(path).String(), body)
	if err != nil {
		return nil, outcome{}
	}
	req.Header.Set("Authorization", "Bearer "+d.token)
	for name, values := range header {
		req.Header[name] = values
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, outcome{}
	}
	got := outcome{resp.StatusCode, client.Reason(resp)}
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(text))
	return resp, got
}

// table prints the results, and fails unless all are as they should be.
func (d *demo) table() error {
	d.printf("\n")
	w := tabwriter.NewWriter(d.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "WHO\tTRIED\tEXPECTED\tHAPPENED\t")
	wrong := 0
	for _, r := range d.results {
		mark := "ok"
		if r.want != r.got {
			mark = "WRONG"
			wrong++
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", r.who, r.tried, r.want, r.got, mark)
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	if wrong > 0 {
		d.printf("\n%d of %d lines did not come out as they should.\n", wrong, len(d.results))
		return silent(exitFailure)
	}
	d.printf("\nAll %d lines came out as they should: a stolen session is worth nothing elsewhere.\n", len(d.results))
	return nil
}
