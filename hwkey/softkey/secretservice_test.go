package softkey_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/hwkey/softkey"
	"github.com/limpet-auth/limpet/limpettest"
)

// insideBus is set in the process that runs under a session bus of its own with
// a keyring daemon.
const insideBus = "LIMPET_TEST_INSIDE_BUS"

// TestSecretService runs TestSecretServiceInside against a real GNOME Keyring
// on a private session bus.
func TestSecretService(t *testing.T) {
	for _, name := range []string{"dbus-run-session", "gnome-keyring-daemon"} {
		if _, err := exec.LookPath(name); err != nil {
			const words = "%s is not installed: this test needs a real Secret Service (Debian, Ubuntu: apt-get install --no-install-recommends dbus dbus-daemon gnome-keyring)"
			if os.Getenv("CI") != "" {
				t.Fatalf(words, name)
			}
			t.Skipf(words, name)
		}
	}
	home := t.TempDir()
	runtimeDir, err := os.MkdirTemp("", "bus-") // short: it holds sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(runtimeDir) })
	script := `printf password | gnome-keyring-daemon --unlock --components=secrets >/dev/null 2>&1
exec "$0" -test.run '^TestSecretServiceInside$' -test.v`
	cmd := exec.Command("dbus-run-session", "--", "sh", "-c", script, os.Args[0])
	cmd.Env = append(os.Environ(), insideBus+"=1", "HOME="+home, "XDG_DATA_HOME="+filepath.Join(home, "data"), "XDG_RUNTIME_DIR="+runtimeDir)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestSecretServiceInside") {
		t.Fatalf("%v\n%s", err, out)
	}
}

func TestSecretServiceInside(t *testing.T) {
	if os.Getenv(insideBus) == "" {
		t.Skip("TestSecretService runs this test under a session bus of its own")
	}
	limpettest.Keystore(t, all, func(t *testing.T, dir string) hwkey.Keystore { return open(t, dir, softkey.SecretService()) })

	t.Run("a copy without the keyring", func(t *testing.T) {
		dir := t.TempDir()
		open(t, dir, softkey.SecretService())
		header := filepath.Join(dir, "keystore.json")
		data, err := os.ReadFile(header)
		if err != nil {
			t.Fatal(err)
		}
		// The id under which this keyring has nothing.
		_, after, _ := strings.Cut(string(data), `"id": "`)
		id, _, _ := strings.Cut(after, `"`)
		if err := os.WriteFile(header, []byte(strings.Replace(string(data), id, "ANOTHER", 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := softkey.Open(t.Context(), dir, softkey.SecretService()); !errors.Is(err, softkey.ErrWrongSecret) {
			t.Errorf("error %v, want ErrWrongSecret", err)
		}
	})

	t.Run("candidate prefers it", func(t *testing.T) {
		_, findings, err := hwkey.Auto(t.Context(), softkey.Candidate(filepath.Join(t.TempDir(), "keys")))
		if err != nil || !strings.Contains(findings[0].Reason, "Secret Service") {
			t.Errorf("findings %v, error %v", findings, err)
		}
	})
}
