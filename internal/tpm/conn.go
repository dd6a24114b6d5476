// Package tpm talks to a TPM 2.0 that other programs use too: where it is, one
// sequence of commands after the other, and what to do when it is busy, full,
// reset or gone.
package tpm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// Conn is a connection to one TPM. It connects when it is first needed and
// again when the connection broke. Inside Do it is a transport.TPM.
type Conn struct {
	// Addr names the TPM in words.
	Addr string

	// Properties are those that are fixed for the TPM, once Do has called its function.
	Properties map[tpm2.TPMPT]uint32

	dial   func(context.Context) (rw io.ReadWriteCloser, exclusive bool, err error)
	holder Holder
	counts counts
	lock   chan struct{} // held over each whole sequence of commands; guards what follows, and what the holder has loaded

	link      *link
	exclusive bool // nobody else can talk to the TPM meanwhile
	leftover  []tpm2.TPMHandle
}

// Holder is who has objects and sessions loaded over a Conn. It flushes them
// with Flush. The Conn calls it within Do and Close only.
type Holder interface {
	// Evict makes room by unloading one object, and reports false if it has none.
	Evict() bool

	// EndSessions flushes all sessions.
	EndSessions()

	// Forget flushes all that is loaded and drops all that was saved.
	Forget()

	// Gone is Forget for a connection that is gone: what it returns is flushed
	// over the next one, if it is still there then.
	Gone() []tpm2.TPMHandle
}

// New returns a connection to the TPM at addr: "/dev/...", "unix:PATH",
// "tcp:HOST:PORT", "" for this machine's; or, if dial is set, to what that
// returns.
func New(addr string, dialer func(context.Context) (io.ReadWriteCloser, error), holder Holder) *Conn {
	c := &Conn{Addr: cmp.Or(addr, "the default device"), holder: holder, lock: make(chan struct{}, 1)}
	c.dial = func(ctx context.Context) (io.ReadWriteCloser, bool, error) { return dial(ctx, addr) }
	if dialer != nil {
		c.Addr = "a connection of the program's"
		c.dial = func(ctx context.Context) (io.ReadWriteCloser, bool, error) {
			rw, err := dialer(ctx)
			return rw, false, err
		}
	}
	return c
}

// Send sends a command of the sequence that Do runs. It is link.Send.
func (c *Conn) Send(command []byte) ([]byte, error) { return c.link.Send(command) }

// maxEvicted is how often room is made for one sequence. A TPM holds three objects.
const maxEvicted = 4

// Do runs f, a whole sequence of commands, with the TPM to itself. What a TPM
// that others use too, or that was reset, does to a sequence is put right here,
// and f is run again, so f must be safe to repeat.
func (c *Conn) Do(ctx context.Context, f func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case c.lock <- struct{}{}:
		defer func() { <-c.lock }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := ctx.Err(); err != nil {
		return err // the lock came too late: a command would only be broken off
	}
	var reconnected, restarted, yielded, swept bool
	evicted := 0
	pause := 20 * time.Millisecond
	for {
		if err := c.connect(ctx); err != nil {
			return err
		}
		err := f()
		if err == nil {
			return nil
		}
		var rc tpm2.TPMRC
		var broken *LinkError
		switch {
		case c.link.failed != nil:
			c.disconnect()
			if !errors.As(err, &broken) || reconnected {
				return err
			}
			reconnected = true
		case !errors.As(err, &rc):
			c.holder.EndSessions() // their nonces may be out of step with the TPM's
			return err
		case Stale(err) && !restarted:
			restarted = true
			c.holder.Forget()
		case OutOfObjects(err) && evicted < maxEvicted && c.holder.Evict():
			evicted++ // f may load it again
		case OutOfSessions(err) && !yielded:
			yielded = true
			c.holder.EndSessions() // one is enough for f
		case (OutOfObjects(err) || OutOfSessions(err)) && c.exclusive && !swept:
			swept = true
			c.sweep()
		case (OutOfObjects(err) || OutOfSessions(err)) && pause < time.Second:
			// Another program may be about to free what it holds.
			select {
			case <-time.After(pause):
				pause *= 2
			case <-ctx.Done():
				return err
			}
		default:
			return err
		}
	}
}

// connect makes sure there is a connection that works.
func (c *Conn) connect(ctx context.Context) error {
	if c.link != nil && c.link.failed == nil {
		c.link.ctx = ctx
		return nil
	}
	rw, exclusive, err := c.dial(ctx)
	if err != nil {
		return err
	}
	c.exclusive = exclusive
	c.link = &link{rw: rw, ctx: ctx, wait: firstWait, counts: &c.counts}
	if c.Properties, err = Properties(c, tpm2.TPMPTFamilyIndicator); errors.Is(err, tpm2.TPMRCInitialize) {
		// A software TPM that nobody has started up.
		if _, err = (tpm2.Startup{StartupType: tpm2.TPMSUClear}).Execute(c); err == nil {
			c.Properties, err = Properties(c, tpm2.TPMPTFamilyIndicator)
		}
	}
	if err != nil {
		c.disconnect()
		var link *LinkError
		var timeout interface{ Timeout() bool }
		if errors.As(err, &link) && errors.As(err, &timeout) && timeout.Timeout() {
			return fmt.Errorf("the TPM does not answer: another program may hold it (swtpm serves one connection at a time): %w", err)
		}
		return Words("greeting the TPM", err)
	}
	c.link.wait = commandWait
	leftover := c.leftover
	c.leftover = nil
	for _, h := range leftover {
		c.Flush(h)
	}
	return nil
}

// disconnect closes the connection. What was loaded over it is flushed over the
// next one, if it is still there then.
func (c *Conn) disconnect() {
	if c.link == nil {
		return
	}
	c.link.rw.Close()
	c.leftover = append(c.leftover, c.holder.Gone()...)
	c.link = nil
}

// sweep flushes every loaded object and session: on a connection that nobody
// shares they are the remains of programs that ended without doing so.
func (c *Conn) sweep() {
	c.holder.Forget()
	for _, first := range []tpm2.TPMHandle{0x80000000, 0x02000000} { // transient objects, loaded sessions
		rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: uint32(first), PropertyCount: 64}.Execute(c)
		if err != nil {
			return
		}
		handles, err := rsp.CapabilityData.Data.Handles()
		if err != nil {
			return
		}
		for _, h := range handles.Handle {
			c.Flush(h)
		}
	}
}

// Flush unloads an object or session, also when the call that loaded it was
// cancelled. What a broken connection does not let through is flushed over the
// next one; any other failure means that it was gone.
func (c *Conn) Flush(h tpm2.TPMHandle) {
	ctx := c.link.ctx
	c.link.ctx = context.WithoutCancel(ctx)
	tpm2.FlushContext{FlushHandle: h}.Execute(c)
	c.link.ctx = ctx
	if c.link.failed != nil {
		c.leftover = append(c.leftover, h)
	}
}

// Locked runs f, which sends no command but Flush, while no sequence runs.
func (c *Conn) Locked(f func()) {
	c.lock <- struct{}{}
	defer func() { <-c.lock }()
	f()
}

// Close frees all that is loaded in the TPM and closes the connection. A later
// Do connects anew.
func (c *Conn) Close() {
	c.Locked(func() {
		if c.link != nil {
			c.holder.Forget()
			c.disconnect()
		}
	})
}

// Commands returns how many commands of each name were sent, repeats included.
func (c *Conn) Commands() map[string]int {
	c.counts.mu.Lock()
	defer c.counts.mu.Unlock()
	return maps.Clone(c.counts.byName)
}
