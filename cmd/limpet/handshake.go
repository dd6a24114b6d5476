package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/limpet-auth/limpet/handshake"
	"github.com/limpet-auth/limpet/hwkey/tpmkey"
	"github.com/limpet-auth/limpet/keyring"
)

const handshakeHelp = `
A secret is shared by two peers: each has it in its keyring under the other's
name, as it is or (keys add --in-tpm) in its TPM. Or each has a device key, and
the other's public half in its keyring.

  limpet handshake keys add web --new-secret secret      # on the server, db
  limpet handshake listen --id db :7000 --forward 127.0.0.1:5432

  limpet handshake keys add db --secret-file secret      # on the client, web
  limpet handshake dial --id web --peer db db.internal:7000 --forward 127.0.0.1:5432

Nothing is encrypted. With --records, which is the default, nobody can change,
add or cut off what is sent; both ends must have the same.`

func handshakeCommand() *cobra.Command {
	cmd := group("handshake", "authenticate both ends of TCP connections", `Handshake has two programs authenticate each other over TCP, for those who need
to know who is calling and not to hide what is said. With --forward neither
program has to be changed.
`+handshakeHelp)
	cmd.AddCommand(handshakeListen(), handshakeDial(), handshakeKeygen(), keysCommand(peerKeys))
	return cmd
}

// end is what listen and dial have in common.
type end struct {
	id, peer  string
	keyring   keyringFile
	deviceKey string
	forward   string
	wire      string
	records   bool
	md5       bool
	keeper    keeper
	log       serve // --log-level and --log-format
}

var handshakeWires = map[string]handshake.Wire{"limpet": handshake.Limpet, "classic": handshake.Classic,
	"classic-sha256": handshake.ClassicSHA256, "python": handshake.Python}

func (e *end) flags(cmd *cobra.Command, peer, forward string) {
	e.records = true
	f := cmd.Flags()
	f.StringVar(&e.id, "id", "", "this end's `name`")
	f.StringVar(&e.peer, "peer", "", peer)
	e.keyring = peerKeys
	e.keyring.flag(cmd)
	f.StringVar(&e.deviceKey, "device-key", "", "`ID` of the device key that proves this end to peers with public keys")
	f.StringVar(&e.forward, "forward", "", forward)
	choiceVar(cmd, &e.wire, "wire", "what is spoken; the others prove less than limpet", "limpet", "classic", "classic-sha256", "python")
	yesNoVar(cmd, &e.records, "records", "authenticate every byte, not only the beginning; wire limpet only")
	yesNoVar(cmd, &e.md5, "md5", "admit Python before 3.12 on wire python")
	e.keeper.flags(cmd)
	logFlags(cmd, &e.log.logLevel, &e.log.logFormat)
	settings(cmd, "log-level", "log-format")
}

// with calls f with the configuration that the flags make.
func (e *end) with(ctx context.Context, f func(handshake.Config) error) error {
	cfg := handshake.Config{ID: e.id, Peer: e.peer, Wire: handshakeWires[e.wire], MD5: e.md5,
		Logger: logger(e.log.logLevel, e.log.logFormat)}
	if cfg.Wire == handshake.Limpet {
		if e.id == "" {
			return usage("--id must name this end")
		}
		if err := keyring.CheckID(e.id); err != nil {
			return usage("--id: %w", err)
		}
		cfg.Records = e.records
	} else if e.peer == "" {
		return usage("--wire %s needs --peer: whose secret in the keyring it is", e.wire)
	}
	if e.md5 && cfg.Wire != handshake.Python {
		return usage("--md5 is for --wire python")
	}
	if e.deviceKey != "" && cfg.Wire != handshake.Limpet {
		return usage("--device-key is for --wire limpet: the others know secrets only")
	}
	tpm := tpmkey.New(e.keeper.tpmConfig())
	defer tpm.Close()
	if e.deviceKey != "" {
		ks, _, err := e.keeper.find(ctx, e.deviceKey)
		if err != nil {
			return err
		}
		defer closeKeystore(ks)
		key, err := ks.Load(ctx, e.deviceKey)
		if err != nil {
			return err
		}
		defer key.Close()
		cfg.Signer = key
		if t, ok := ks.(*tpmkey.Keystore); ok {
			tpm = t // swtpm serves one connection at a time
		}
	}
	ring, err := e.keyring.open(tpm, cfg.Logger)
	if err != nil {
		return err
	}
	defer ring.Close()
	if err := e.checkPeer(ring); err != nil {
		return err
	}
	examine(ctx, cfg.Logger, ring)
	cfg.Keys = handshake.FromRing(ring)
	return f(cfg)
}

// checkPeer tells before a connection is made what no connection to the peer can
// do without.
func (e *end) checkPeer(ring *keyring.Ring) error {
	if e.peer == "" {
		return nil
	}
	live := ring.Lookup(e.peer)
	switch {
	case len(live) == 0:
		return withHint(fmt.Errorf("no key of %s is in the keyring", e.peer), "limpet handshake keys add %s --secret-file FILE", e.peer)
	case live[0].Public != nil && e.wire != "limpet":
		return fmt.Errorf("%s is known by a public key, and wire %s knows secrets only", e.peer, e.wire)
	case live[0].Public != nil && e.deviceKey == "":
		return withHint(fmt.Errorf("%s is known by a public key, so this end needs --device-key", e.peer), "limpet handshake keygen --device makes one")
	}
	return nil
}

func handshakeListen() *cobra.Command {
	var e end
	cmd := &cobra.Command{
		Use:   "listen ADDRESS",
		Short: "take connections whose peers prove themselves",
		Long: `Listen takes connections on ADDRESS, has their peers prove themselves, and proves
itself to them. With --forward each becomes a plain connection to HOST:PORT;
without, the first one is connected to standard input and output.

Peers that cannot be changed may speak another wire; the log says what each lacks:
  classic, classic-sha256  a Go tutorial's: the client never learns who the server
                           is, and challenge and answer can be passed on by others
  python                   that of multiprocessing.connection: it names nobody
They have no names: --peer says whose secret in the keyring it is.
` + handshakeHelp,
		Args: exactly(1, "the address to listen on"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if e.peer != "" && handshakeWires[e.wire] == handshake.Limpet {
				return usage("--peer is for the other wires: on wire limpet peers tell their names, and all in the keyring are admitted")
			}
			return e.with(cmd.Context(), func(cfg handshake.Config) error { return e.listen(cmd.Context(), cfg, args[0]) })
		},
	}
	e.flags(cmd, "on wires other than limpet, the `name` of the peer whose secret it is", "connect each peer to `HOST:PORT`")
	return cmd
}

func (e *end) listen(ctx context.Context, cfg handshake.Config, address string) error {
	inner, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("cannot listen: %w", err)
	}
	l, err := handshake.NewListener(inner, cfg)
	if err != nil {
		inner.Close()
		return err
	}
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	note("listening on %s", l.Addr())
	if e.forward == "" {
		conn, err := l.Accept()
		if err != nil {
			return ended(ctx, err)
		}
		l.Close() // nobody else
		if peer := conn.(*handshake.Conn).PeerID(); peer != "" {
			note("connected to %s", peer)
		}
		return stdio(ctx, conn)
	}
	return serveConns(ctx, cfg.Logger, l, func(conn net.Conn) {
		log := cfg.Logger.With("peer", conn.(*handshake.Conn).PeerID())
		plain, err := dialPlain(ctx, e.forward)
		if err != nil {
			log.Error("limpet: forward", "why", err)
			reset(conn)
			return
		}
		log.Info("limpet: connected")
		if err := splice(conn, plain); err != nil {
			log.Warn("limpet: connection broken", "why", err)
		}
	})
}

func handshakeDial() *cobra.Command {
	var e end
	cmd := &cobra.Command{
		Use:   "dial ADDRESS",
		Short: "connect to a server that proves itself",
		Long: `Dial connects to ADDRESS and has both ends prove themselves. With --forward it
takes plain connections on HOST:PORT and gives each one of its own to ADDRESS;
without, the one connection is standard input and output.
` + handshakeHelp,
		Args: exactly(1, "the address of the server"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if e.peer == "" {
				return usage("--peer must name the server")
			}
			return e.with(cmd.Context(), func(cfg handshake.Config) error { return e.dial(cmd.Context(), cfg, args[0]) })
		},
	}
	e.flags(cmd, "the `name` of the server", "take connections on `HOST:PORT`, which should be of this machine only")
	return cmd
}

func (e *end) dial(ctx context.Context, cfg handshake.Config, address string) error {
	d := &handshake.Dialer{Config: cfg}
	connect := func() (*handshake.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		return d.Dial(ctx, "tcp", address)
	}
	if e.forward == "" {
		conn, err := connect()
		if errors.Is(err, handshake.ErrRefused) {
			return withHint(err, "both ends need each other's key, a secret in the same version, --records and --wire alike; the server's log says what is wrong")
		}
		if err != nil {
			return err
		}
		return stdio(ctx, conn)
	}
	l, err := net.Listen("tcp", e.forward)
	if err != nil {
		return fmt.Errorf("cannot listen: %w", err)
	}
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	note("listening on %s", l.Addr())
	return serveConns(ctx, cfg.Logger, l, func(plain net.Conn) {
		conn, err := connect()
		if err != nil {
			cfg.Logger.Error("limpet: dial", "why", err)
			reset(plain)
			return
		}
		if err := splice(conn, plain); err != nil {
			cfg.Logger.Warn("limpet: connection broken", "why", err)
		}
	})
}

const acceptAgain = time.Second // later, when out of file descriptors

// serveConns handles connections until ctx is done, then lets go of them. If no
// more can come it lets go of those that are left after a while.
func serveConns(ctx context.Context, log *slog.Logger, l net.Listener, handle func(net.Conn)) error {
	held, release := context.WithCancel(ctx)
	defer release()
	var conns sync.WaitGroup
	defer conns.Wait()
	for {
		conn, err := l.Accept()
		if t, ok := errors.AsType[interface {
			error
			Temporary() bool
		}](err); ok && t.Temporary() && ctx.Err() == nil {
			log.Error("limpet: cannot accept, trying again", "why", err)
			select {
			case <-time.After(acceptAgain):
			case <-ctx.Done():
			}
			continue
		}
		if err != nil {
			time.AfterFunc(drain, release)
			return ended(ctx, err) // of held this may not be true yet
		}
		conns.Go(func() {
			defer context.AfterFunc(held, func() { reset(conn) })()
			handle(conn)
		})
	}
}

// ended is nil if ctx is why.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func dialPlain(ctx context.Context, address string) (net.Conn, error) {
	return (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp", address)
}

// splice copies both ways until both are over. What did not end as the peer said
// is not made to look complete: the other side is reset.
func splice(a, b net.Conn) error {
	var wg sync.WaitGroup
	var errs [2]error
	for i, way := range [2][2]net.Conn{{a, b}, {b, a}} {
		wg.Go(func() {
			_, err := io.Copy(way[1], way[0])
			if err == nil {
				err = way[1].(interface{ CloseWrite() error }).CloseWrite()
			}
			if err != nil {
				errs[i] = err
				reset(a)
				reset(b)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs[0], errs[1], closed(a.Close()), closed(b.Close()))
}

// closed is an error of Close, unless it is that it was closed already.
func closed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// reset ends a connection so that its peer can tell that from an orderly end.
func reset(conn net.Conn) {
	if c, ok := conn.(*handshake.Conn); ok {
		conn = c.Conn
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	conn.Close()
}

// stdio connects standard input and output with a connection, until both ends have
// said all they have to say.
func stdio(ctx context.Context, conn net.Conn) error {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { reset(conn) })()
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(conn, os.Stdin)
		if err == nil {
			err = conn.(*handshake.Conn).CloseWrite()
		}
		sent <- err
	}()
	if _, err := io.Copy(os.Stdout, conn); err != nil {
		return ended(ctx, err) // and do not wait for more input
	}
	select {
	case err := <-sent:
		return err
	case <-ctx.Done():
		return nil
	}
}
