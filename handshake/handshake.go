// Package handshake lets both ends of a connection prove who they are before
// the first byte of the application, with a shared secret or with device keys.
// It is for processes that need to know who is calling, not to hide what is
// said: nothing is encrypted. It works on any [net.Conn], also inside TLS or on
// a Unix socket.
//
//	keys := handshake.FromRing(ring)
//	l, err := handshake.NewListener(inner, handshake.Config{ID: "db", Keys: keys})
//	conn, err := l.Accept() // conn.(*handshake.Conn).PeerID() has proven itself
//
//	d := handshake.Dialer{Config: handshake.Config{ID: "web", Peer: "db", Keys: keys}}
//	conn, err := d.Dial(ctx, "tcp", "db.internal:7000")
//
// The handshake authenticates the connection at its beginning. Whoever can
// change packets after it (a router, another process in the path) takes the
// connection over unnoticed, unless [Config.Records] is set, which authenticates
// every byte. Even then everybody on the path can read along. Who needs that to
// be impossible needs TLS; [Config.Channel] ties a handshake to it.
//
// docs/wire.md states the bytes.
package handshake

import (
	"context"
	"crypto"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/limpet-auth/limpet/keyring"
)

// Wire is what is spoken on a connection. Both ends must be set to the same.
type Wire int

const (
	// Limpet is this package's own wire: mutual, for one server by name, with a
	// session ID.
	Limpet Wire = iota

	// Classic is the wire of a widely copied Go tutorial: the server sends 16
	// letters and digits, the client answers with their HMAC-MD5. The client
	// never learns who the server is, not even that it was admitted; whoever
	// sits in between can pass challenge and answer on and take the connection.
	// For peers that cannot be changed.
	Classic

	// ClassicSHA256 is Classic with HMAC-SHA256. It lacks the same.
	ClassicSHA256

	// Python is the wire of Python's multiprocessing.connection, with an
	// authkey. It is mutual, but names nobody: whoever sits between two
	// processes with one secret can connect any of them to any other.
	Python
)

// DefaultTimeout is how long a handshake may take.
const DefaultTimeout = 5 * time.Second

var (
	// ErrUnauthenticated means that the peer has not proven that it is who it
	// has to be.
	ErrUnauthenticated = errors.New("limpet: handshake: the peer has not proven itself")

	// ErrRefused means that the peer ended the handshake. It does not say why;
	// its log does.
	ErrRefused = errors.New("limpet: handshake: the peer refused, or went away")
)

// Config says who this end is and whom it knows. It is not changed while in use.
type Config struct {
	// ID is this end's name, by the rules of [keyring.CheckID]. A peer never has
	// the same.
	ID string

	// Peer is the name of the server that a client means to reach; another one
	// with the same secret is refused. On the wires that have no names, it is
	// what Keys is asked for at both ends, and what a server calls whoever knows
	// that secret.
	Peer string

	// Keys returns the live keys of a peer, newest first: [FromRing], [Shared]. It
	// is called by many handshakes at once, and by strangers with names of theirs.
	// On Limpet's wire with shared secrets it is asked by both ends for the
	// secret they share with the other, by the other's name.
	Keys func(peer string) []Key

	// Signer is this end's own key where ends prove themselves by signatures:
	// an hwkey.Key, or another key for ECDSA P-256 or Ed25519. Its public half
	// is what the other end's Keys returns.
	Signer crypto.Signer

	// SHA512 makes a client use HMAC-SHA512 in place of HMAC-SHA256. Servers
	// take both. A secret in a TPM has HMAC-SHA256 only.
	SHA512 bool

	// Records authenticates every byte after the handshake too, and the end of the
	// connection. Without it, whoever can change packets can take the connection
	// over, and nobody notices. Both ends must want it. It costs up to 64 KiB of
	// memory in each direction. Limpet's wire only.
	Records bool

	// Channel ties the handshake to the TLS 1.3 connection that it runs in, so
	// that whoever ends TLS in between is found out. Both ends must want it.
	// Limpet's wire only.
	Channel bool

	Wire Wire // what is spoken; the default is Limpet's own

	// MD5 admits peers on Python's wire that are older than 3.12, which can do
	// nothing but HMAC-MD5. Then peers of every version may fall back to it.
	MD5 bool

	Timeout time.Duration // of the whole handshake; default DefaultTimeout

	Logger *slog.Logger // told of refused connections, in a bounded number of lines; default slog.Default()
}

// Conn is a connection whose peer has proven itself.
type Conn struct {
	net.Conn
	peer    string
	session [sessionSize]byte
	records *records // nil without
}

// PeerID returns the peer's name. It is empty for a client on a Classic wire,
// which knows nothing of its server.
func (c *Conn) PeerID() string { return c.peer }

// SessionID returns 32 bytes that both ends have in common and no other
// connection has. They are not secret. On wires other than Limpet's they are
// zero.
func (c *Conn) SessionID() [32]byte { return c.session }

// Read reads what the peer has sent. With Config.Records it fails with
// [ErrTampered] if that is not what comes out, and with [ErrTruncated] if it
// ends too early: io.EOF is the peer's own word then.
func (c *Conn) Read(p []byte) (int, error) {
	if c.records == nil {
		return c.Conn.Read(p)
	}
	return c.records.read(p)
}

// Write sends p. With Config.Records an error is for good, also that of a deadline.
func (c *Conn) Write(p []byte) (int, error) {
	if c.records == nil {
		return c.Conn.Write(p)
	}
	return c.records.write(p)
}

// CloseWrite tells the peer that nothing more comes. The other direction stays.
func (c *Conn) CloseWrite() error {
	if c.records != nil {
		if err := c.records.end(); err != nil {
			return err
		}
	}
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	if c.records != nil {
		return nil // the peer knows by the record
	}
	return errors.New("limpet: handshake: this kind of connection cannot be closed by halves")
}

// Close closes the connection. With Config.Records the peer learns that this was
// the end, unless a Write is still going on.
func (c *Conn) Close() error {
	if c.records != nil {
		c.records.endNow()
	}
	return c.Conn.Close()
}

// Client proves this end to a server on conn and has the server prove itself. If
// it fails, conn is closed.
func Client(ctx context.Context, conn net.Conn, cfg *Config) (*Conn, error) {
	if err := cfg.check(true); err != nil {
		conn.Close()
		return nil, err
	}
	warnRarely(cfg)
	return cfg.within(ctx, conn, clients[cfg.Wire])
}

// Server has a client on conn prove itself, and proves this end to it. If it
// fails, conn is closed. A server that anybody can connect to wants a [Listener]
// as well, which bounds how many there are at a time.
func Server(ctx context.Context, conn net.Conn, cfg *Config) (*Conn, error) {
	if err := cfg.check(false); err != nil {
		conn.Close()
		return nil, err
	}
	warnRarely(cfg)
	return cfg.within(ctx, conn, servers[cfg.Wire])
}

// side runs one end's part of a handshake.
type side func(ctx context.Context, conn net.Conn, cfg *Config) (*Conn, error)

var (
	clients = map[Wire]side{Limpet: clientLimpet, Classic: clientClassic, ClassicSHA256: clientClassic, Python: clientPython}
	servers = map[Wire]side{Limpet: serverLimpet, Classic: serverClassic, ClassicSHA256: serverClassic, Python: serverPython}
)

// check tells what is wrong with a configuration.
func (cfg *Config) check(client bool) error {
	wrong := func(format string, args ...any) error {
		return fmt.Errorf("limpet: handshake: config: "+format, args...)
	}
	if cfg.Keys == nil {
		return wrong("no Keys")
	}
	if cfg.Wire < Limpet || cfg.Wire > Python {
		return wrong("unknown Wire")
	}
	if cfg.MD5 && cfg.Wire != Python {
		return wrong("MD5 is a matter of Python's wire only")
	}
	if cfg.Wire != Limpet {
		if cfg.Records || cfg.Channel || cfg.SHA512 || cfg.Signer != nil {
			return wrong("Records, Channel, SHA512 and Signer are for Limpet's own wire only")
		}
		return nil
	}
	if err := keyring.CheckID(cfg.ID); err != nil {
		return wrong("ID: %w", err)
	}
	if client {
		if err := keyring.CheckID(cfg.Peer); err != nil {
			return wrong("Peer: %w", err)
		}
		if cfg.Peer == cfg.ID {
			return wrong("ID and Peer are the same")
		}
	}
	return nil
}

func (cfg *Config) logger() *slog.Logger {
	if cfg.Logger != nil {
		return cfg.Logger
	}
	return slog.Default()
}

func (cfg *Config) timeout() time.Duration {
	if cfg.Timeout > 0 {
		return cfg.Timeout
	}
	return DefaultTimeout
}

// within runs a handshake until the deadline at the latest. The connection then
// has no deadline.
func (cfg *Config) within(ctx context.Context, conn net.Conn, run side) (_ *Conn, err error) {
	defer func() {
		if err != nil {
			abort(conn)
		}
	}()
	deadline := time.Now().Add(cfg.timeout())
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, wrap(err)
	}
	stop := func() bool { return true }
	if ctx.Done() != nil {
		stop = context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	}
	c, err := run(ctx, conn, cfg)
	if !stop() {
		err = context.Cause(ctx)
	}
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if err != nil {
		return nil, wrap(err)
	}
	return c, nil
}

// abort closes a connection at once, without the farewell of TLS, which can take
// seconds.
func abort(conn net.Conn) {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	conn.Close()
}

// wrap puts our name before an error that has none.
func wrap(err error) error {
	if err == nil || errors.Is(err, ErrUnauthenticated) || errors.Is(err, ErrRefused) {
		return err
	}
	return fmt.Errorf("limpet: handshake: %w", err)
}

// exporterLabel is that of the TLS keying material in a transcript (RFC 5705,
// RFC 8446, 7.5); it has no context.
const exporterLabel = "EXPORTER-limpet-handshake"

// export returns the 32 bytes that are the TLS connection's alone.
func export(ctx context.Context, conn net.Conn) ([]byte, error) {
	t, ok := conn.(*tls.Conn)
	if !ok {
		return nil, errors.New("no TLS connection, and Channel is wanted")
	}
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	state := t.ConnectionState()
	if state.Version < tls.VersionTLS13 {
		return nil, errors.New("not TLS 1.3, and Channel is wanted")
	}
	return state.ExportKeyingMaterial(exporterLabel, nil, exportedSize)
}

// exchange is the memory of one handshake.
type exchange struct {
	in, out [maxMessage + 1]byte
	client  client
	server  server
}

var exchanges = sync.Pool{New: func() any { return new(exchange) }}

// done wipes the keys and lets others have the memory.
func (x *exchange) done() {
	x.client, x.server = client{}, server{}
	exchanges.Put(x)
}

func clientLimpet(ctx context.Context, conn net.Conn, cfg *Config) (*Conn, error) {
	x := exchanges.Get().(*exchange)
	defer x.done()
	c := &x.client
	c.cfg = cfg
	if cfg.Channel {
		var err error
		if c.exported, err = export(ctx, conn); err != nil {
			return nil, err
		}
	}
	greeting := x.in[:greetingSize]
	if _, err := io.ReadFull(conn, greeting); err != nil {
		return nil, refused(err)
	}
	hello, err := c.prove(ctx, x.out[:0], greeting)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write(hello); err != nil {
		return nil, refused(err)
	}
	// The server's first record may follow at once: not a byte more is read.
	answer := x.in[:c.suite.answerSize()]
	if _, err := io.ReadFull(conn, answer); err != nil {
		return nil, refused(err)
	}
	if err := c.confirm(answer); err != nil {
		return nil, err
	}
	return c.keys.conn(conn, cfg.Peer, cfg.Records, true)
}

// refused is what an error of the connection means to a client, unless it is a
// deadline.
func refused(err error) error {
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		return err
	}
	return fmt.Errorf("%w: %w", ErrRefused, err)
}

func serverLimpet(ctx context.Context, conn net.Conn, cfg *Config) (*Conn, error) {
	x := exchanges.Get().(*exchange)
	defer x.done()
	s := &x.server
	s.cfg = cfg
	if cfg.Channel {
		var err error
		if s.exported, err = export(ctx, conn); err != nil {
			return nil, err
		}
	}
	if _, err := conn.Write(s.greet(x.out[:0])); err != nil {
		return nil, err
	}
	hello, began, err := readHello(conn, x.in[:])
	if err == nil {
		var answer []byte
		if answer, err = s.answer(ctx, x.out[:0], hello); err == nil {
			if _, err := conn.Write(answer); err != nil {
				return nil, err
			}
			return s.keys.conn(conn, s.peer, cfg.Records, false)
		}
	}
	linger(ctx, began, err)
	return nil, err
}

// refusalDelay is how long after its first byte a client is refused, whatever
// the reason: how long the look at its name and its proof took does not show.
const refusalDelay = 100 * time.Millisecond

// linger waits until a client may see that it is refused. Who is gone already, or
// has let the deadline pass, sees nothing.
func linger(ctx context.Context, began time.Time, why error) {
	if _, broken := errors.AsType[errHeard](why); broken {
		return
	}
	wait := time.NewTimer(time.Until(began.Add(refusalDelay)))
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-ctx.Done():
	}
}

// readHello reads the client's message, which nothing may follow before the
// server has answered. began is when it began to come.
func readHello(conn net.Conn, buf []byte) (hello []byte, began time.Time, err error) {
	n := 0
	for {
		m, err := conn.Read(buf[n:])
		if m > 0 && n == 0 {
			began = time.Now()
		}
		n += m
		if n >= 2 {
			want := messageSize(buf)
			switch {
			case want > maxMessage || n > want:
				return nil, began, errMessage
			case n == want:
				return buf[:n], began, nil
			}
		}
		if err == io.EOF && n > 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, began, errHeard{err, n > 0}
		}
	}
}

// errHeard is an error of the connection, and whether something had come on it.
type errHeard struct {
	error
	heard bool
}

func (e errHeard) Unwrap() error { return e.error }
