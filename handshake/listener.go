package handshake

import (
	"container/list"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Bounds of a Listener.
const (
	// MaxPending is how many connections may be in a handshake at a time. One
	// more takes the place of the one that has been waiting longest: peers that
	// hold a key are done in milliseconds, whoever is not makes room.
	MaxPending = 1024

	// MaxPendingPerAddress is the same for one IPv4 address or IPv6 /64.
	MaxPendingPerAddress = 64

	// maxReady is how many connections may wait for Accept.
	maxReady = MaxPending

	// freeFailures is how many handshakes in a row may fail before an address
	// has to wait. The wait doubles with each failure after that.
	freeFailures = 8
	minBackOff   = 100 * time.Millisecond
	maxBackOff   = 10 * time.Second

	// maxAddresses is how many addresses are remembered for their failures.
	maxAddresses = 4096
)

// Listener accepts connections whose peers have proven themselves. It runs the
// handshakes of many at once, each within Config.Timeout.
//
// At most [MaxPending] run at a time, [MaxPendingPerAddress] of them from one
// address. After eight failures in a row an address is not listened to for a
// tenth of a second, and twice as long after each one more, up to 10 seconds;
// then, or when it succeeds, it is forgotten. Connecting and saying nothing is no
// failure. Connections that are not over IP have no address.
type Listener struct {
	inner net.Listener
	cfg   Config
	side  side
	log   *refusals
	ready chan *Conn
	done  chan struct{} // closed when nothing is accepted any more
	tasks sync.WaitGroup

	mu        sync.Mutex
	err       error // why nothing is accepted any more
	pending   list.List
	addresses map[netip.Addr]*address
}

// pending is a connection in its handshake.
type pending struct {
	conn    net.Conn
	from    netip.Addr // the zero value if it has none
	address *address   // nil if it has none
	element *list.Element
}

// address is what is known of a remote address.
type address struct {
	pending  int
	failures int       // in a row
	until    time.Time // when it is listened to again
	forget   time.Time // when its failures do not count any more
}

// NewListener returns a listener that has whoever connects to inner prove
// themselves. It takes connections from now on, and closes inner when it is
// closed itself.
func NewListener(inner net.Listener, cfg Config) (*Listener, error) {
	if err := cfg.check(false); err != nil {
		return nil, err
	}
	warn(&cfg)
	l := &Listener{inner: inner, cfg: cfg, side: servers[cfg.Wire], log: newRefusals(cfg.logger()),
		ready: make(chan *Conn, maxReady), done: make(chan struct{}), addresses: make(map[netip.Addr]*address)}
	l.tasks.Go(l.run)
	return l, nil
}

// Accept returns the next connection, a *[Conn].
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.ready:
		return c, nil
	default:
	}
	select {
	case c := <-l.ready:
		return c, nil
	case <-l.done:
		l.mu.Lock()
		defer l.mu.Unlock()
		return nil, l.err
	}
}

// Addr returns the address that is listened on.
func (l *Listener) Addr() net.Addr { return l.inner.Addr() }

// Close stops listening and closes the connections that Accept has not returned.
func (l *Listener) Close() error {
	err := l.inner.Close()
	l.stop(net.ErrClosed)
	l.tasks.Wait()
	for {
		select {
		case c := <-l.ready:
			c.Close()
		default:
			return err
		}
	}
}

// stop ends the handshakes that are going on.
func (l *Listener) stop(why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return
	}
	l.err = why
	close(l.done)
	for e := l.pending.Front(); e != nil; e = e.Next() {
		abort(e.Value.(*pending).conn)
	}
}

func (l *Listener) run() {
	var wait time.Duration
	var told time.Time // connections that are let go of in between begin it anew
	for {
		conn, err := l.inner.Accept()
		if err == nil {
			wait = 0
			if p := l.admit(conn); p != nil {
				l.tasks.Go(func() { l.handshake(p) })
			}
			continue
		}
		// Out of file descriptors, or the like, is over soon.
		if ne, ok := errors.AsType[net.Error](err); !ok || !temporary(ne) {
			l.stop(err)
			return
		}
		wait = min(max(2*wait, 5*time.Millisecond), time.Second)
		if now := time.Now(); now.Sub(told) >= logInterval {
			told = now
			l.cfg.logger().Error("limpet: handshake: cannot accept, trying again", "why", err, "in", wait)
		}
		select {
		case <-time.After(wait):
		case <-l.done:
			return
		}
	}
}

// temporary asks what net/http asks too; there is nothing better.
func temporary(err net.Error) bool {
	t, ok := err.(interface{ Temporary() bool })
	return ok && t.Temporary()
}

// admit gives a connection one of the places for handshakes, or closes it.
func (l *Listener) admit(conn net.Conn) *pending {
	p := &pending{conn: conn, from: source(conn.RemoteAddr())}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		abort(conn)
		return nil
	}
	if p.from.IsValid() {
		if p.address = l.address(p.from); p.address == nil {
			abort(conn)
			return nil
		}
		if p.address.pending >= MaxPendingPerAddress {
			for e := l.pending.Front(); e != nil; e = e.Next() {
				if e.Value.(*pending).address == p.address {
					l.evict(e)
					break
				}
			}
		}
		p.address.pending++
	}
	if l.pending.Len() >= MaxPending {
		l.evict(l.pending.Front())
	}
	p.element = l.pending.PushBack(p)
	return p
}

// address returns what is known of an address, nil if it has to wait. l.mu is
// held.
func (l *Listener) address(from netip.Addr) *address {
	now := time.Now()
	a := l.addresses[from]
	if a != nil && now.Before(a.until) {
		return nil
	}
	if a == nil {
		l.forget(now)
		a = new(address)
		l.addresses[from] = a
	}
	return a
}

// forget makes room for one address more. l.mu is held.
func (l *Listener) forget(now time.Time) {
	if len(l.addresses) < maxAddresses+MaxPending {
		return
	}
	looks := 16
	var idle netip.Addr
	for from, a := range l.addresses { // in no order
		if a.pending == 0 {
			idle = from
		}
		if looks--; a.pending == 0 && (looks <= 0 || now.After(a.forget)) {
			break
		}
	}
	delete(l.addresses, idle)
}

// evict ends the handshake that has been waiting longest. l.mu is held.
func (l *Listener) evict(e *list.Element) {
	p := e.Value.(*pending)
	l.remove(p)
	abort(p.conn)
}

// remove frees a connection's place, and reports whether it had one. l.mu is
// held.
func (l *Listener) remove(p *pending) bool {
	if p.element == nil {
		return false
	}
	l.pending.Remove(p.element)
	p.element = nil
	if p.address != nil {
		p.address.pending--
		if p.address.pending == 0 && p.address.failures == 0 {
			delete(l.addresses, p.from)
		}
	}
	return true
}

func (l *Listener) handshake(p *pending) {
	ctx := context.Background() // the connection is closed to end it
	remote := p.conn.RemoteAddr()
	c, err := l.cfg.within(ctx, p.conn, l.side)
	evicted := !l.settle(p, err)
	select {
	case <-l.done: // and that is why
		if err == nil {
			c.Close()
		}
		return
	default:
	}
	if evicted {
		if err == nil {
			c.Close()
		}
		l.log.log(ctx, remote, errEvicted)
		return
	}
	if err != nil {
		if e, ok := errors.AsType[errHeard](err); !ok || e.heard || !errors.Is(err, io.EOF) {
			l.log.log(ctx, remote, err) // all but health checks, which connect and leave
		}
		return
	}
	select {
	case l.ready <- c:
	default:
		l.log.log(ctx, remote, errFull)
		c.Close()
	}
}

var (
	errEvicted = errors.New("too many connections in their handshake")
	errFull    = errors.New("too many connections wait for Accept")
)

// settle frees the place of a connection whose handshake is over and counts how
// it went. It reports whether the connection still had its place.
func (l *Listener) settle(p *pending, err error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	had := p.element != nil && l.err == nil
	if a := p.address; a != nil && had {
		if err == nil {
			a.failures = 0
		} else if suspicious(err) {
			a.fail(time.Now())
		}
	}
	l.remove(p)
	return had
}

// forgetAfter is how long failures count.
const forgetAfter = time.Minute

// fail counts a failure.
func (a *address) fail(now time.Time) {
	if now.After(a.forget) {
		a.failures = 0
	}
	a.failures++
	a.forget = now.Add(forgetAfter)
	if over := a.failures - freeFailures; over >= 0 {
		a.until = now.Add(min(minBackOff<<min(over, 16), maxBackOff))
	}
}

// suspicious tells failures that speak of the peer from those that speak of the
// network, of a health check or of this end.
func suspicious(err error) bool {
	if e, ok := errors.AsType[errHeard](err); ok {
		return e.heard
	}
	return errors.Is(err, ErrUnauthenticated) || errors.Is(err, errMessage) || errors.Is(err, errMD5)
}

// source returns the part of an address that one party is taken to have: an IPv4
// address or an IPv6 /64. The zero value is what has none.
func source(addr net.Addr) netip.Addr {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	ip := tcp.AddrPort().Addr().Unmap().WithZone("")
	if ip.Is6() {
		prefix, err := ip.Prefix(64)
		if err != nil {
			return netip.Addr{}
		}
		return prefix.Addr()
	}
	return ip
}
