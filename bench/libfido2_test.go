package bench

import (
	"context"
	"io"
	"log/slog"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/limpet-auth/limpet/fido"
	"github.com/limpet-auth/limpet/fido/ctaphid"
	"github.com/limpet-auth/limpet/fido/softvault"
	"github.com/limpet-auth/limpet/fido/tpmvault"
	"github.com/limpet-auth/limpet/limpettest"
)

// BenchmarkLibfido2 times what a program that uses libfido2 waits for, from its call
// to the answer: of a token that has its keys in a software TPM, and of one that has
// them in files. Reports go over a datagram socket; the user says yes at once.
func BenchmarkLibfido2(b *testing.B) {
	program := filepath.Join(b.TempDir(), "roundtrip")
	if out, err := exec.Command("gcc", "-Wall", "-Werror", "-O2", "-o", program, "testdata/roundtrip.c", "-lfido2").CombinedOutput(); err != nil {
		b.Fatalf("gcc, with libfido2-dev: %v\n%s", err, out)
	}
	for _, kind := range []string{"tpm", "software"} {
		b.Run(kind, func(b *testing.B) {
			port := plugIn(b, kind)
			for _, op := range []string{"info", "register", "register-verified", "authenticate", "authenticate-verified", "hmac-secret"} {
				b.Run(op, func(b *testing.B) {
					out, err := exec.Command(program, port, op, strconv.Itoa(b.N)).CombinedOutput()
					if err != nil {
						b.Fatalf("%v\n%s", err, out)
					}
					ns, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
					fatal(b, err)
					report(b, map[string]float64{"ns/op": ns})
				})
			}
		})
	}
}

// plugIn starts a token, and returns the port that it answers on.
func plugIn(b *testing.B, kind string) string {
	dir := b.TempDir()
	var vault fido.Vault
	if kind == "tpm" {
		v, err := tpmvault.Open(tpmvault.Config{Dial: limpettest.SoftTPM(b).Dial, Dir: dir})
		fatal(b, err)
		b.Cleanup(func() { v.Close() })
		vault = v
	} else {
		v, err := softvault.Open(dir)
		fatal(b, err)
		b.Cleanup(func() { v.Close() })
		vault = v
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	ctx, cancel := context.WithCancel(context.Background())
	token, err := fido.New(ctx, fido.Config{Vault: vault, Prompt: yes{}, File: filepath.Join(dir, "credentials"), Logger: log})
	fatal(b, err)
	hosts, err := ctaphid.ListenDatagrams(netip.MustParseAddrPort("127.0.0.1:0"))
	fatal(b, err)
	done := make(chan error, 1)
	go func() { done <- ctaphid.Serve(ctx, hosts, token, log) }()
	b.Cleanup(func() {
		cancel()
		fatal(b, <-done)
	})
	return strconv.Itoa(int(hosts.Addr().Port()))
}

// yes is a user who is quick.
type yes struct{}

func (yes) Ask(context.Context, fido.Request) (bool, error) { return true, nil }
