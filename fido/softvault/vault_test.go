package softvault_test

import (
	"testing"

	"github.com/limpet-auth/limpet/fido"
	"github.com/limpet-auth/limpet/fido/softvault"
	"github.com/limpet-auth/limpet/fido/vaulttest"
)

func TestVault(t *testing.T) {
	vaulttest.Run(t, func(t *testing.T) func() (fido.Vault, error) {
		dir := t.TempDir()
		return func() (fido.Vault, error) { return softvault.Open(dir) }
	})
}
