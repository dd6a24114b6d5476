package main

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"syscall"
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

// TestNoneRuns: no socket, and one that was left behind, say that no token runs; what
// cannot be seen does not.
func TestNoneRuns(t *testing.T) {
	dir, err := os.MkdirTemp("", "fido-") // a socket's name has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	machines := systemSocket
	defer func() { systemSocket = machines }()
	none, left, other, link := filepath.Join(dir, "none"), filepath.Join(dir, "left"), filepath.Join(dir, "other"), filepath.Join(dir, "link")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: left})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	o, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: other})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	if err := os.Symlink(link, link); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		own, machines string
		want          error
	}{
		{none, filepath.Join(dir, "none", "socket"), nil},
		{left, left, nil},
		{other, none, syscall.EPROTOTYPE},
		{none, link, syscall.ELOOP},
		{none, filepath.Join(left, "socket"), syscall.ENOTDIR},
	} {
		systemSocket = test.machines
		if err := noneRuns(t.Context(), tpmvault.Config{}, fidoSocket(test.own)); !errors.Is(err, test.want) {
			t.Errorf("%s, %s: %v", test.own, test.machines, err)
		}
	}
}
