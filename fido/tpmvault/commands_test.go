//go:build unix

package tpmvault

import (
	"maps"
	"testing"

	"github.com/limpet-auth/limpet/fido"
	"github.com/limpet-auth/limpet/fido/vaulttest"
)

// TestTPMCommands counts what each operation costs the TPM, once the process has its
// connection.
func TestTPMCommands(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	tie, salt := vaulttest.Tie("a.example"), make([]byte, 32)
	r.setPIN("1234")
	var u fido.Unlocked
	u = r.unlock("1234")
	up, uv := r.create("a.example", nil), r.create("a.example", u)
	secret, err := r.CreateSecret(ctx, tie, nil)
	r.must(err)
	uvSecret, err := r.CreateSecret(ctx, tie, u)
	r.must(err)
	r.step()
	for _, op := range []struct {
		name string
		do   func() error
		want map[string]int
	}{
		{"PIN", func() error { _, _, err := r.PIN(ctx); return err },
			map[string]int{"PolicyCommandCode": 1, "PolicyOR": 1, "NV_Read": 1}},
		{"Verified", func() error { _, err := up.Verified(ctx, r.Vault); return err }, map[string]int{}},
		{"Seal", func() error { _, err := r.Seal(ctx, salt); return err }, map[string]int{}},
		{"Count", func() error { _, err := r.Count(ctx); return err }, map[string]int{}},
		{"Sign", func() error { return up.Sign(ctx, r.Vault, nil) },
			map[string]int{"PolicyNV": 1, "Load": 1, "Sign": 1, "FlushContext": 1}},
		{"Unlock", func() (err error) { u, err = r.Unlock(ctx, vaulttest.PIN("1234")); return err },
			map[string]int{"PolicyNV": 1, "PolicySecret": 1, "PolicyAuthValue": 1, "Load": 1, "FlushContext": 1}},
		{"Sign, verified", func() error { return uv.Sign(ctx, r.Vault, u) },
			map[string]int{"PolicyNV": 1, "PolicySecret": 1, "PolicyAuthValue": 1, "Load": 1, "Sign": 1, "FlushContext": 1}},
		{"Sign again", func() error { return up.Sign(ctx, r.Vault, u) },
			map[string]int{"PolicyNV": 1, "Load": 1, "Sign": 1, "FlushContext": 1}},
		{"Create", func() error { _, err := vaulttest.Create(ctx, r.Vault, "a.example", nil); return err },
			map[string]int{"PolicyNV": 1, "Create": 1}},
		{"Create, verified", func() error { _, err := vaulttest.Create(ctx, r.Vault, "a.example", u); return err },
			map[string]int{"PolicyNV": 1, "PolicySecret": 1, "PolicyAuthValue": 1, "Create": 1}},
		{"Secret", func() error { _, err := r.Secret(ctx, tie, secret, nil, salt); return err },
			map[string]int{"PolicyNV": 1, "Load": 1, "HMAC": 1, "FlushContext": 1}},
		{"Secret, verified", func() error { _, err := r.Secret(ctx, tie, uvSecret, u, salt); return err },
			map[string]int{"PolicyNV": 1, "PolicySecret": 1, "PolicyAuthValue": 1, "Load": 1, "HMAC": 1, "FlushContext": 1}},
		{"255 of 256 signatures are counted without the TPM", func() error {
			for range 256 {
				r.step()
			}
			return nil
		}, map[string]int{"NV_Increment": 1, "NV_Read": 1}},
	} {
		before := r.Commands()
		if err := op.do(); err != nil {
			t.Errorf("%s: %v", op.name, err)
			continue
		}
		got := r.Commands()
		for name, n := range before {
			if got[name] -= n; got[name] == 0 {
				delete(got, name)
			}
		}
		if !maps.Equal(got, op.want) {
			t.Errorf("%s: %v, want %v", op.name, got, op.want)
		}
	}
}
