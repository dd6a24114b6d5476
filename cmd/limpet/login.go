package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/limpet-auth/limpet/client"
	"github.com/limpet-auth/limpet/hwkey"
)

type login struct {
	url          string
	user         string
	passwordFile string
	register     bool
	key          string
	wire         string
	keeper       keeper
}

func loginCommand() *cobra.Command {
	var l login
	cmd := &cobra.Command{
		Use:   "login",
		Short: "log in to a server with a key of this device",
		Long: `Login makes a new device key, logs in, and keeps the session for limpet request.
The key is kept by the TPM if there is one that works, else in an encrypted
file, and login says which and why. The password comes from a file, standard
input or the terminal.

  limpet login --url https://auth.example.com --user alice
  limpet login --url http://127.0.0.1:28280 --user alice --register
  pass show auth | limpet login --url https://auth.example.com --user alice --password-file -

Requests are proven by HTTP message signatures, unless the server speaks hw-sign
only: then say --wire hw-sign. A proof on that wire is not for one method, path
and body, so who catches a request before it arrives can make another of it.

  limpet login --url https://old.example.com --user alice --wire hw-sign

Several sessions can exist at once, one for each server and user.`,
		Args: nothing,
		RunE: func(cmd *cobra.Command, _ []string) error { return l.run(cmd.Context()) },
	}
	f := cmd.Flags()
	f.StringVar(&l.url, "url", "", "`URL` of the server; /login is added")
	f.StringVar(&l.user, "user", "", "user `name`")
	f.StringVar(&l.passwordFile, "password-file", "", "`file` with the password, - for standard input (default: ask on the terminal)")
	f.BoolVar(&l.register, "register", false, "make the account first")
	choiceVar(cmd, &l.key, "key", "what keeps the device key", keyAuto, keyTPM, keySoftware)
	choiceVar(cmd, &l.wire, "wire", "how requests of the session are proven", "httpsig", "hw-sign")
	settings(cmd, "url", "user", "password-file", "key", "wire")
	l.keeper.flags(cmd)
	return cmd
}

var wires = map[string]client.Wire{"httpsig": client.HTTPSig, "hw-sign": client.HWSign}

func (l *login) run(ctx context.Context) error {
	if l.url == "" || l.user == "" {
		return usage("login needs --url and --user")
	}
	base, err := serverURL(l.url)
	if err != nil {
		return err
	}
	state, err := stateDir()
	if err != nil {
		return err
	}
	l.keeper.dir = state
	password, err := l.password(ctx)
	if err != nil {
		return err
	}
	keys, finding, err := l.keeper.choose(ctx, l.key)
	if err != nil {
		return err
	}
	defer closeKeystore(keys)

	c := client.New(keys)
	c.Wire = wires[l.wire]
	defer c.Close()
	httpClient := newHTTPClient(c.Transport(newTransport()))
	if l.register {
		if _, err := postCredentials(ctx, httpClient, base.JoinPath("register"), l.user, password); err != nil {
			return fmt.Errorf("register: %w", err)
		}
	}
	token, err := postCredentials(ctx, httpClient, base.JoinPath("login"), l.user, password)
	if err != nil {
		return fmt.Errorf("login: %w", err)
	}
	sessions := c.Sessions()
	switch {
	case token == "":
		return errors.New("login: the server's answer has no token")
	case len(sessions) == 0:
		return withHint(errors.New("login: the server did not bind the session to the device key"),
			"--wire hw-sign is for servers that do not know HTTP message signatures")
	}
	s := &savedSession{URL: base.String(), User: l.user, Token: token, Keystore: keyTPM, TPM: l.keeper.tpm,
		Created: time.Now().UTC(), Session: sessions[0]}
	if finding.Level == hwkey.Software {
		s.Keystore, s.TPM = keySoftware, ""
	}
	old, _ := findSession(state, s.Session.Origin, s.User)
	if err := s.save(state); err != nil {
		return err
	}
	if old != nil && old.Keystore == s.Keystore {
		keys.Delete(ctx, old.Session.Key) // nobody has a use for it now
	}
	note("logged in at %s as %s, bound to a key of level %s (%s: %s)", s.Session.Origin, l.user, finding.Level, finding.Name, finding.Reason)
	return nil
}

func (l *login) password(ctx context.Context) ([]byte, error) {
	if l.passwordFile != "" {
		password, err := readSecret(l.passwordFile)
		if err != nil {
			return nil, fmt.Errorf("password: %w", err)
		}
		return password, nil
	}
	terminal := int(os.Stdin.Fd())
	before, err := term.GetState(terminal)
	if err != nil {
		return nil, usage("no terminal to ask for the password: use --password-file")
	}
	fmt.Fprintf(os.Stderr, "password of %s: ", l.user)
	// Reading does not end with ctx, but then the terminal must be as before.
	stop := context.AfterFunc(ctx, func() {
		term.Restore(terminal, before)
		fmt.Fprintln(os.Stderr)
		os.Exit(exitFailure)
	})
	password, err := term.ReadPassword(terminal)
	stop()
	fmt.Fprintln(os.Stderr)
	if err == nil && len(password) == 0 {
		err = errors.New("it is empty")
	}
	if err != nil {
		return nil, fmt.Errorf("password: %w", err)
	}
	return password, nil
}

const maxAnswer = 64 << 10 // bytes of an answer to register, login and logout

// postCredentials returns the token in the answer, if there is one.
func postCredentials(ctx context.Context, c *http.Client, u *url.URL, user string, password []byte) (token string, err error) {
	body, err := json.Marshal(map[string]string{"username": user, "password": string(password)})
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.Do(req)
	if err != nil {
		return "", withoutURL(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return "", refused(resp)
	}
	var answer struct{ Token string }
	if text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer)); err == nil {
		json.Unmarshal(text, &answer) // the answer to /register has no token
	}
	return answer.Token, nil
}

// refused says why a server refused, as far as it says so in words that are
// known; a server's own text does not go to the terminal.
func refused(resp *http.Response) error {
	err := fmt.Errorf("the server answers %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	reason := client.Reason(resp)
	if reason == "" || !isWord(string(reason)) {
		return err
	}
	err = fmt.Errorf("%w: %s", err, reason)
	if hint := hints[string(reason)]; hint != "" {
		return withHint(err, "%s", hint)
	}
	return err
}

// isWord tells a reason from text that could move the cursor.
func isWord(s string) bool {
	for _, c := range []byte(s) {
		if c != '_' && (c < 'a' || c > 'z') {
			return false
		}
	}
	return len(s) <= 40
}

var hints = map[string]string{
	"user_exists":      "log in without --register, or take another name",
	"proof_required":   "the session is bound to the key of another device: log in here",
	"proof_invalid":    "log in again",
	"session_required": "log in again",
	"session_unbound":  "this server wants a device key: log in again",
	"session_ended":    "log in again",
	"clock_skew":       "set this machine's clock",
	"too_many_logins":  "wait a minute",
	"level_too_low":    "log in with --key tpm",

	"challenge_required": "hw-sign cannot do that: log in with --wire httpsig",
	"client_required":    "that is for programs: limpet channel get",
	"channel_required":   "that takes https and limpet login --wire httpsig",
}

// withoutURL drops what http.Client puts before an error: the method and URL,
// which the user knows.
func withoutURL(err error) error {
	if e := (*url.Error)(nil); errors.As(err, &e) {
		err = e.Err
	}
	if errors.Is(err, client.ErrKeyGone) {
		return withHint(err, "log in again")
	}
	return err
}
