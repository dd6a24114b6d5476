package fido_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/fido"
	"github.com/limpet-auth/limpet/fido/ctaphid"
	"github.com/limpet-auth/limpet/fido/softvault"
)

// user answers as the relying party's name says.
type user struct{}

func (user) Ask(ctx context.Context, r fido.Request) (bool, error) {
	switch {
	case r.RPID == "deny.example", strings.Contains(r.Text(), "dededede"):
		return false, nil
	case r.RPID == "wait.example":
		<-ctx.Done()
		return false, ctx.Err()
	case r.RPID == "broken.example":
		return false, errors.New("the prompt is broken")
	}
	return true, nil
}

// plug starts a token of what is in dir, and returns the port that it answers on, and
// what ends it.
func plug(t *testing.T, dir string) (port string, unplug func()) {
	t.Helper()
	return plugAt(t, dir, time.Now().Add(time.Hour)) // which leaves a slow machine time to reset it
}

func plugAt(t *testing.T, dir string, started time.Time) (port string, unplug func()) {
	t.Helper()
	return plugWith(t, dir, started, nil)
}

func plugWith(t *testing.T, dir string, started time.Time, verifier fido.Verifier) (port string, unplug func()) {
	t.Helper()
	vault, err := softvault.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	token, err := fido.New(t.Context(), fido.Config{Vault: vault, Prompt: user{}, Verify: verifier, File: filepath.Join(dir, "credentials"), Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	token.StartedAt(started)
	hosts, err := ctaphid.ListenDatagrams(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- ctaphid.Serve(ctx, hosts, token, log) }()
	unplugged := false
	unplug = func() {
		if unplugged {
			return
		}
		unplugged = true
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := vault.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(unplug)
	return strconv.Itoa(int(hosts.Addr().Port())), unplug
}

// python runs a scenario of testdata/peer.py, and returns what it prints.
func python(t *testing.T, port, scenario string, more ...string) string {
	t.Helper()
	wantPython(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, interpreter, append([]string{"testdata/peer.py", port, scenario}, more...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", scenario, err, out)
	}
	return string(out)
}

const interpreter = "/usr/bin/python3" // Debian's, which has Debian's fido2

func wantPython(t *testing.T) {
	t.Helper()
	if out, err := exec.Command(interpreter, "-c", "import fido2.ctap2").CombinedOutput(); err != nil {
		if os.Getenv("CI") == "" {
			t.Skipf("python3-fido2 is not installed: %v", err)
		}
		t.Fatalf("python3-fido2: %v\n%s", err, out)
	}
}

// TestPython has python3-fido2 try the whole command set.
func TestPython(t *testing.T) {
	for _, scenario := range []string{"basics", "cancel", "pins", "discoverable", "extensions", "blobs", "u2f"} {
		t.Run(scenario, func(t *testing.T) {
			t.Parallel()
			port, _ := plug(t, t.TempDir())
			python(t, port, scenario)
		})
	}
}

// TestWrongPINs: three wrong PINs, and no further try before a restart; eight, and
// only a reset helps.
func TestWrongPINs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, tries := range []int{8, 5, 2} {
		want := filepath.Join(t.TempDir(), "want")
		if err := os.WriteFile(want, fmt.Appendf(nil, `{"tries": %d}`, tries), 0o600); err != nil {
			t.Fatal(err)
		}
		port, unplug := plug(t, dir)
		python(t, port, "wrong_pins", want)
		unplug()
	}
}

// TestSecrets: hmac-secret gives the same after a restart, and something else for each
// credential, salt and kind of verification.
func TestSecrets(t *testing.T) {
	t.Parallel()
	dir, kept := t.TempDir(), filepath.Join(t.TempDir(), "kept")
	for range 2 {
		port, unplug := plug(t, dir)
		python(t, port, "secrets", kept)
		unplug()
	}
}

// TestLibfido2 has libfido2 try what OpenSSH, systemd, PAM and others use of it.
func TestLibfido2(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("/usr/include/fido.h"); err != nil && os.Getenv("CI") == "" {
		t.Skip("libfido2-dev is not installed")
	}
	program := filepath.Join(t.TempDir(), "libfido2")
	if out, err := exec.Command("gcc", "-Wall", "-Werror", "-o", program, "testdata/libfido2.c", "-lfido2").CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	port, _ := plug(t, t.TempDir())
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, program, port).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// TestLateReset: a host can reset a token just after its start only.
func TestLateReset(t *testing.T) {
	t.Parallel()
	port, _ := plugAt(t, t.TempDir(), time.Now().Add(-11*time.Second))
	python(t, port, "late_reset")
}

// TestKill9 kills a token while a host makes and uses credentials, again and again:
// what it had answered holds, and its counter does not go back.
func TestKill9(t *testing.T) {
	const inside = "LIMPET_TEST_TOKEN"
	if dir := os.Getenv(inside); dir != "" {
		port, _ := plug(t, dir)
		fmt.Printf("port %s\n", port)
		select {}
	}
	t.Parallel()
	wantPython(t)
	dir, said := t.TempDir(), filepath.Join(t.TempDir(), "said")
	for round := range 6 {
		token := exec.Command(os.Args[0], "-test.run", "^TestKill9$")
		token.Env = append(os.Environ(), inside+"="+dir, "GORACE=atexit_sleep_ms=20")
		out, err := token.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := token.Start(); err != nil {
			t.Fatal(err)
		}
		var port string
		if _, err := fmt.Fscanf(out, "port %s\n", &port); err != nil {
			t.Fatal(err)
		}
		if round > 0 {
			if n := python(t, port, "survived", said); n == "0\n" {
				t.Error("the token was dead before it said anything")
			}
		}
		host := exec.Command(interpreter, "testdata/peer.py", port, "endless", said)
		if err := host.Start(); err != nil {
			t.Fatal(err)
		}
		before := size(said)
		for end := time.Now().Add(time.Minute); size(said) == before; { // it begins
			if time.Now().After(end) {
				t.Fatal("nothing is made")
			}
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(time.Duration(rand.IntN(200)) * time.Millisecond)
		token.Process.Kill()
		token.Wait()
		host.Process.Kill()
		host.Wait()
	}
}

func size(path string) int64 {
	fi, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return fi.Size()
}
