//go:build unix

package tpmvault

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/limpet-auth/limpet/fido"
	"github.com/limpet-auth/limpet/fido/vaulttest"
	"github.com/limpet-auth/limpet/limpettest"
)

// rig is a vault with its TPM, on a bus that others use too.
type rig struct {
	*testing.T
	bus  *limpettest.TPMBus
	tpm  io.ReadWriteCloser
	dir  string
	last uint32 // count

	*Vault
	fuse fuse
}

// fuse ends a process's way to the TPM at its nth command from when it was set.
type fuse struct {
	left  int  // commands; -1 for no end
	after bool // the last command reaches the TPM, and its answer is lost
	again bool // there is a way again at once
	blown bool
}

var errBlown = errors.New("the connection is gone")

func newRig(t *testing.T) *rig {
	r := &rig{T: t, bus: limpettest.NewTPMBus(t), dir: t.TempDir(), fuse: fuse{left: -1}}
	t.Cleanup(func() {
		if r.Vault != nil {
			r.Close()
		}
	})
	r.reopen()
	return r
}

// reopen is another process with the same files and TPM.
func (r *rig) reopen() { r.Helper(); r.reopenWith(fuse{left: -1}) }

func (r *rig) reopenWith(f fuse) {
	r.Helper()
	if r.Vault != nil {
		r.fuse = fuse{left: -1}
		r.Close()
	}
	r.fuse = f
	v, err := openAgain(Config{Dir: r.dir, Dial: r.dial})
	r.must(err)
	r.Vault = v
}

// openAgain opens a vault that was closed. A process that another test starts at the
// moment holds all locks of this one until it is its own.
func openAgain(c Config) (*Vault, error) {
	for range 100 {
		v, err := Open(c)
		if !errors.Is(err, ErrInUse) {
			return v, err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return Open(c)
}

// dial connects a process to the TPM, which goes on: what the one before had loaded
// is flushed, as the kernel does it.
func (r *rig) dial(ctx context.Context) (io.ReadWriteCloser, error) {
	if r.fuse.blown && !r.fuse.again {
		return nil, errBlown
	}
	if r.tpm == nil {
		rw, err := r.bus.Dial(ctx)
		if err != nil {
			return nil, err
		}
		r.tpm = rw
	}
	r.flushAll()
	return &fused{r.tpm, r}, nil
}

func (r *rig) flushAll() {
	r.Helper()
	for _, first := range []uint32{0x80000000, 0x02000000} { // transient objects, loaded sessions
		rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 64}.Execute(r.bus)
		r.must(err)
		list, err := rsp.CapabilityData.Data.Handles()
		r.must(err)
		for _, h := range list.Handle {
			_, err := tpm2.FlushContext{FlushHandle: h}.Execute(r.bus)
			r.must(err)
		}
	}
}

// powerCut ends the process and the TPM.
func (r *rig) powerCut() {
	r.Helper()
	r.fuse = fuse{blown: true}
	r.bus.TPM.PowerOff()
	r.tpm = nil
	r.reopen()
}

type fused struct {
	io.ReadWriteCloser
	rig *rig
}

func (f *fused) Close() error { return nil }

func (f *fused) Write(b []byte) (int, error) {
	u := &f.rig.fuse
	if u.left == 0 && !u.blown {
		u.blown, u.left = true, -1
		if u.after {
			f.ReadWriteCloser.Write(b)
			f.ReadWriteCloser.Read(make([]byte, 4096))
		}
		return 0, errBlown
	}
	if u.left > 0 {
		u.left--
	}
	return f.ReadWriteCloser.Write(b)
}

func (r *rig) must(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

func (r *rig) wantErr(err, want error) {
	r.Helper()
	if !errors.Is(err, want) {
		r.Errorf("error %v, want %v", err, want)
	}
}

func (r *rig) create(rp string, u fido.Unlocked) vaulttest.Key {
	r.Helper()
	k, err := vaulttest.Create(r.Context(), r.Vault, rp, u)
	r.must(err)
	return k
}

func (r *rig) mustSign(k vaulttest.Key, u fido.Unlocked) {
	r.Helper()
	r.must(k.Sign(r.Context(), r.Vault, u))
}

func (r *rig) unlock(pin string) fido.Unlocked {
	r.Helper()
	u, err := r.Unlock(r.Context(), vaulttest.PIN(pin))
	r.must(err)
	return u
}

func (r *rig) setPIN(pin string) {
	r.Helper()
	r.must(r.SetPIN(r.Context(), vaulttest.PIN(pin)))
}

func (r *rig) wantPIN(set bool, retries int) {
	r.Helper()
	s, n, err := r.PIN(r.Context())
	if err != nil || s != set || n != retries {
		r.Errorf("PIN: %v, %d tries, %v; want %v, %d", s, n, err, set, retries)
	}
}

func (r *rig) step() {
	r.Helper()
	c, err := r.Count(r.Context())
	r.must(err)
	if c <= r.last {
		r.Fatalf("the counter went from %d to %d", r.last, c)
	}
	r.last = c
}

// property returns one of the TPM's, asked by another program.
func (r *rig) property(p tpm2.TPMPT) uint32 {
	r.Helper()
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(p), PropertyCount: 1}.Execute(r.bus)
	r.must(err)
	list, err := rsp.CapabilityData.Data.TPMProperties()
	r.must(err)
	return list.TPMProperty[0].Value
}

// wantFailures checks the counter of wrong passwords that all programs share.
func (r *rig) wantFailures(n uint32) {
	r.Helper()
	if got := r.property(tpm2.TPMPTLockoutCounter); got != n {
		r.Errorf("the TPM's lockout counter is %d, want %d", got, n)
	}
}
