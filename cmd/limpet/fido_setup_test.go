package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/limpet-auth/limpet/fido/tpmvault"
)

// TestMachinesToken: the service's directory counts where the TPM is the machine's.
func TestMachinesToken(t *testing.T) {
	none, dir := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "tpm.json"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		tpm, mine, machines string
		want                bool
	}{
		{"", "/root/token", dir, true},
		{"/dev/tpm0", "/root/token", dir, true},
		{"unix:/run/swtpm", "/root/token", dir, false},
		{"", dir + "/", dir, false},
		{"", "/root/token", none, false},
		{"", "/root/token", filepath.Join(none, "none"), false},
	} {
		if got := machinesToken(tpmvault.Config{Addr: test.tpm, Dir: test.mine}, test.machines); got != test.want {
			t.Errorf("%+v: %v", test, got)
		}
	}
}
