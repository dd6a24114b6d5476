//go:build unix

package tpmvault

import (
	"testing"

	"github.com/limpet-auth/limpet/fido"
	"github.com/limpet-auth/limpet/fido/vaulttest"
	"github.com/limpet-auth/limpet/limpettest"
)

func TestVault(t *testing.T) {
	t.Parallel()
	vaulttest.Run(t, func(t *testing.T) func() (fido.Vault, error) {
		c := Config{Dial: limpettest.SoftTPM(t).Dial, Dir: t.TempDir()}
		return func() (fido.Vault, error) { return openAgain(c) }
	})
}
