//go:build unix

package tpmvault

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/limpet-auth/limpet/fido"
	"github.com/limpet-auth/limpet/fido/vaulttest"
)

// TestVaultKilled ends the process at each TPM command of each operation, before the
// command and after it, and looks at what the next process has.
func TestVaultKilled(t *testing.T) {
	t.Parallel()
	old, next := vaulttest.PIN("1234"), vaulttest.PIN("5678")
	for _, op := range []struct {
		name    string
		pin     bool // is set before
		lasting bool // changes what is in the TPM or in the file
		run     func(r *rig, k *vaulttest.Key) error
	}{
		{"first use", false, true, nil},
		{"SetPIN", false, true, func(r *rig, _ *vaulttest.Key) error { return r.SetPIN(r.Context(), old) }},
		{"the first of a process", true, false, func(r *rig, _ *vaulttest.Key) error {
			r.reopenWith(r.fuse)
			_, err := r.Unlock(r.Context(), old)
			return err
		}},
		{"ChangePIN", true, true, func(r *rig, _ *vaulttest.Key) error { return r.ChangePIN(r.Context(), old, next) }},
		{"Reset", true, true, func(r *rig, _ *vaulttest.Key) error { return r.Reset(r.Context()) }},
		{"Create", true, false, func(r *rig, _ *vaulttest.Key) error {
			_, err := vaulttest.Create(r.Context(), r.Vault, "b.example", nil)
			return err
		}},
		{"CreateSecret", false, false, func(r *rig, _ *vaulttest.Key) error {
			_, err := r.CreateSecret(r.Context(), vaulttest.Tie("b.example"), nil)
			return err
		}},
		{"Sign", false, false, func(r *rig, k *vaulttest.Key) error { return k.Sign(r.Context(), r.Vault, nil) }},
		{"Count", false, false, func(r *rig, _ *vaulttest.Key) error {
			c, err := r.Count(r.Context())
			r.last = max(r.last, c)
			return err
		}},
	} {
		modes := []fuse{{}}
		if op.lasting {
			modes = []fuse{{}, {after: true}, {after: true, again: true}}
		}
		for _, mode := range modes {
			t.Run(fmt.Sprintf("%s/after=%v,again=%v", op.name, mode.after, mode.again), func(t *testing.T) {
				t.Parallel()
				r := newRig(t)
				if op.pin {
					r.setPIN("1234")
				}
				for n := 0; !killed(r, op.run, op.pin, mode, n); n++ {
					switch {
					case n == 200:
						t.Fatal("it never ends")
					case op.run == nil:
						r.Close()
						r = newRig(t)
					case !op.pin:
						r.must(r.Reset(t.Context()))
					}
				}
			})
		}
	}
}

// TestBrokenOffChange: after a change of the PIN that was broken off, before it reached
// the index or after, the right PIN is taken at any count of wrong ones, also if
// the process is ended at each command of proving it; and the eighth wrong one blocks.
func TestBrokenOffChange(t *testing.T) {
	t.Parallel()
	old, next := vaulttest.PIN("1234"), vaulttest.PIN("5678")
	for _, reached := range []bool{false, true} {
		for _, wrong := range []int{pinLimit - 2, pinLimit - 1} {
			t.Run(fmt.Sprintf("reached=%v,wrong=%d", reached, wrong), func(t *testing.T) {
				t.Parallel()
				r := newRig(t)
				ctx := t.Context()
				r.setPIN("1234")
				k := r.create("a.example", r.unlock("1234"))
				right, other := old, next
				if reached {
					right, other = next, old
				}
				breakOff := func() {
					t.Helper()
					r.must(r.do(ctx, func() error {
						auth, err := r.prove(old)
						if err == nil {
							err = r.prepareChange(auth, next)
						}
						if err == nil && reached {
							err = r.changeIndex(auth, authOf(next, r.state.PIN.Next.Salt))
						}
						return err
					}))
					r.countUp(wrong)
					r.must(dictionaryAttackLockReset(r.bus)) // before the last try the old PIN costs one of the lockout's
					r.reopen()
					r.wantPIN(true, (pinLimit-wrong+1)/2)
				}
				for n := 0; ; n++ {
					for _, after := range []bool{false, true} {
						breakOff()
						r.reopenWith(fuse{left: n, after: after})
						_, err := r.Unlock(ctx, right)
						done := !r.fuse.blown
						if done {
							r.must(err)
						}
						r.reopen()
						u, err := r.Unlock(ctx, right)
						if err != nil {
							t.Fatalf("command %d, after=%v: %v", n, after, err)
						}
						r.mustSign(k, u)
						r.wantPIN(true, pinLimit)
						if reached {
							r.must(r.ChangePIN(ctx, next, old))
						}
						if !done {
							continue
						}
						// Wrong ones.
						breakOff()
						for n := (pinLimit - wrong + 1) / 2; n > 0; n-- {
							r.wantPIN(true, n)
							_, err := r.Unlock(ctx, other)
							if n > 1 {
								r.wantErr(err, fido.ErrPINInvalid)
							} else {
								r.wantErr(err, fido.ErrPINBlocked)
							}
						}
						r.wantPIN(true, 0)
						return
					}
				}
			})
		}
	}
}

// countUp has the index count wrong PINs, as those of another program.
func (r *rig) countUp(n int) {
	r.Helper()
	pin := pinIndex(pinHandle).named(true)
	for range n {
		_, err := tpm2.NVRead{AuthHandle: tpm2.AuthHandle{Handle: pin.Handle, Name: pin.Name, Auth: tpm2.PasswordAuth([]byte("wrong"))}, NVIndex: pin, Size: 8}.Execute(r.bus)
		if !errors.Is(err, tpm2.TPMRCBadAuth) && !errors.Is(err, tpm2.TPMRCAuthFail) {
			r.Fatal(err)
		}
	}
}

// killed runs an operation with the process ended at its nth command, and reports
// true if it has fewer.
func killed(r *rig, run func(*rig, *vaulttest.Key) error, pin bool, f fuse, n int) (done bool) {
	r.Helper()
	ctx := r.Context()
	var up, uv *vaulttest.Key
	if run == nil {
		run = func(r *rig, _ *vaulttest.Key) error {
			_, err := vaulttest.Create(ctx, r.Vault, "b.example", nil)
			return err
		}
	} else {
		k := r.create("a.example", nil)
		up = &k
		if pin {
			k := r.create("a.example", r.unlock("1234"))
			uv = &k
		}
		r.step()
	}
	f.left = n
	r.fuse = f
	err := run(r, up)
	done = !r.fuse.blown
	if done && err != nil {
		r.Fatal(err)
	}
	if f.again && err != nil && n > 0 { // the first is the greeting
		r.Errorf("command %d: a connection that broke once: %v", n, err)
	}
	if !f.again || done || err != nil {
		r.reopen()
	}

	// What the next process has.
	set, retries, err := r.PIN(ctx)
	r.must(err)
	r.step()
	reset := false
	if up != nil {
		err := up.Sign(ctx, r.Vault, nil)
		reset = errors.Is(err, fido.ErrNoKey)
		if err != nil && !reset {
			r.Fatalf("command %d: %v", n, err)
		}
	}
	r.mustSign(r.create("c.example", nil), nil)
	if !set {
		if pin && !reset {
			r.Fatalf("command %d: the PIN is gone", n)
		}
		r.setPIN("1234")
	}
	if retries < 3 {
		r.Errorf("command %d: %d tries are left", n, retries)
	}
	var works []string
	for _, p := range []string{"1234", "5678"} {
		u, err := r.Unlock(ctx, vaulttest.PIN(p))
		if errors.Is(err, fido.ErrPINInvalid) {
			continue
		}
		if err != nil {
			r.Fatalf("command %d: PIN %s: %v", n, p, err)
		}
		works = append(works, p)
		if uv != nil && !reset {
			r.mustSign(*uv, u)
		}
		r.mustSign(r.create("d.example", u), u)
	}
	if len(works) != 1 {
		r.Fatalf("command %d: the PIN is %v", n, works)
	}
	if works[0] != "1234" {
		r.must(r.ChangePIN(ctx, vaulttest.PIN(works[0]), vaulttest.PIN("1234")))
	}
	r.unlock("1234")
	r.wantPIN(true, vaulttest.Retries)
	r.wantFailures(0)
	return done
}
