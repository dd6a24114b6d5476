package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/limpet-auth/limpet/agent"
	"github.com/limpet-auth/limpet/hwkey"
)

const agentListen = "127.0.0.1:9000"

type agentFlags struct {
	to        string
	listen    string
	logins    []string
	logouts   []string
	as        string
	key       string
	wire      string
	caCert    string
	keeper    keeper
	logLevel  slog.Level
	logFormat string
}

func agentCommand() *cobra.Command {
	var a agentFlags
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "add proofs to the requests of programs that cannot be changed",
		Long: `Agent is a proxy on this machine between a program that cannot be changed (curl, an
old tool, a browser) and an app whose sessions are bound to device keys, such as
one behind limpet gateway. Give the program the agent's address in place of the
app's:

  limpet agent --to https://app.example.com
  curl -c jar -d username=alice -d password=secret http://127.0.0.1:9000/login
  curl -b jar http://127.0.0.1:9000/orders

A login that passes through gets a new device key, in the TPM if there is one that
works, else in an encrypted file. The program keeps its cookies or its token as
ever, and the agent proves the requests that carry them, also after a restart.
Without this machine they are worthless. --login says which requests are logins;
it must name the routes that the gateway was told of.

For programs that have no login of their own, --as lends them the session that
limpet login has made:

  limpet login --url https://app.example.com --user alice
  limpet agent --to https://app.example.com --listen unix:/run/user/1000/limpet/app --as alice
  curl --unix-socket /run/user/1000/limpet/app http://localhost/orders

An address of 127.0.0.1 can be reached by every user of this machine, a Unix socket
by you alone; so --as needs one. Web pages of other sites are refused at both.

SIGINT and SIGTERM end the agent when the requests in flight are answered, after 10
seconds at the latest.`,
		Args: nothing,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.run(cmd.Context()) },
	}
	f := cmd.Flags()
	f.StringVar(&a.to, "to", "", "the app, as https://`host`; http only on this machine")
	f.StringVar(&a.listen, "listen", agentListen, "`address` to listen on: 127.0.0.1:PORT, [::1]:PORT or unix:PATH; port 0 takes a free one")
	f.StringSliceVar(&a.logins, "login", []string{"POST /login"}, "`route` of a login; can be repeated")
	f.StringSliceVar(&a.logouts, "logout", []string{"POST /logout"}, "`route` of a logout; can be repeated")
	f.StringVar(&a.as, "as", "", "user `name` of a limpet login, whose session is lent to requests that bring none; needs unix:PATH")
	choiceVar(cmd, &a.key, "key", "what keeps new device keys", keyAuto, keyTPM, keySoftware)
	choiceVar(cmd, &a.wire, "wire", "how requests of new sessions are proven", "httpsig", "hw-sign")
	f.StringVar(&a.caCert, "cacert", "", "`file` with the certificates to trust, in PEM (default: the system's)")
	a.keeper.flags(cmd)
	logFlags(cmd, &a.logLevel, &a.logFormat)
	settings(cmd, "to", "listen", "login", "logout", "key", "wire", "cacert", "log-level", "log-format")
	return cmd
}

// run serves until ctx is done.
func (a *agentFlags) run(ctx context.Context) (err error) {
	if a.to == "" {
		return usage("agent needs --to")
	}
	to, err := url.Parse(a.to)
	if err != nil {
		return usage("--to is not of the form https://host:port")
	}
	cfg := agent.Config{To: to, Logins: a.logins, Logouts: a.logouts, Wire: wires[a.wire]}
	if err := agent.Check(cfg); err != nil {
		return &usageError{err}
	}
	path, isSocket := strings.CutPrefix(a.listen, "unix:")
	if !isSocket {
		addr, err := netip.ParseAddrPort(a.listen)
		if err != nil || !addr.Addr().IsLoopback() {
			return usage("--listen must be 127.0.0.1:PORT, [::1]:PORT or unix:PATH: an agent acts for whoever reaches it")
		}
		if a.as != "" {
			return usage("--as needs --listen unix:PATH: every user of this machine can reach %s", a.listen)
		}
	} else if path == "" {
		return usage("--listen: unix: needs the path of a socket")
	}
	over := newTransport()
	over.DisableCompression = true // answers pass as they are
	over.MaxIdleConnsPerHost = over.MaxIdleConns
	if a.caCert != "" {
		over.TLSClientConfig = new(tls.Config)
		if over.TLSClientConfig.RootCAs, err = readRoots(a.caCert); err != nil {
			return err
		}
	}
	dir, err := stateDir()
	if err != nil {
		return err
	}
	a.keeper.dir = dir
	log := logger(a.logLevel, a.logFormat)
	cfg.Base, cfg.Logger, cfg.State = over, log, agentState(dir, origin(to))
	keys, finding, err := a.keeper.choose(ctx, a.key)
	if err != nil {
		return err
	}
	defer closeKeystore(keys)
	cfg.Keys, cfg.Kind = keys, keyTPM
	if finding.Level == hwkey.Software {
		cfg.Kind = keySoftware
	}
	var others []hwkey.Keystore
	defer func() {
		for _, keys := range others {
			closeKeystore(keys)
		}
	}()
	cfg.Open = func(kind string) (hwkey.Keystore, error) {
		keys, err := a.keeper.open(ctx, kind)
		if err == nil {
			others = append(others, keys)
		}
		return keys, err
	}
	if a.as != "" {
		s, err := findSession(dir, origin(to), a.as)
		if err != nil {
			return err
		}
		cfg.As = &agent.Login{Session: s.Session, Keys: keys, Token: s.Token}
		if s.Keystore != cfg.Kind || s.TPM != a.keeper.tpm && cfg.Kind == keyTPM {
			its := a.keeper
			if cfg.As.Keys, err = s.keystore(ctx, &its); err != nil {
				return err
			}
			defer closeKeystore(cfg.As.Keys)
		}
	}
	made, err := agent.New(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, made.Close()) }()
	var listener net.Listener
	where := a.listen
	if isSocket {
		listener, err = listenPrivate(path)
	} else {
		listener, err = net.Listen("tcp", a.listen)
	}
	if err != nil {
		return err
	}
	defer listener.Close()
	handler, err := made.On(listener.Addr())
	if err != nil {
		return err
	}
	if !isSocket {
		where = "http://" + listener.Addr().String()
	}
	note("new logins get keys of level %s (%s: %s)", finding.Level, finding.Name, finding.Reason)
	note("listening on %s for %s", where, origin(to))
	return serveAll(ctx, log, map[net.Listener]*http.Server{agent.Listener(listener): agent.NewServer(handler, log)})
}

// agentState returns the file in which the agent for an app remembers sessions.
func agentState(dir, app string) string {
	sum := sha256.Sum256([]byte(app))
	return filepath.Join(dir, "agent", base64.RawURLEncoding.EncodeToString(sum[:16])+".json")
}
