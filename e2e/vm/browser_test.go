//go:build linux && amd64 && browser && !guest

package vm

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestBrowser runs Chromium in the virtual machine. It is not among the tests that
// run by default: it takes three minutes or more.
func TestBrowser(t *testing.T) {
	needPrograms(t)
	var missing []string
	for _, name := range []string{"chromium", "Xvfb", "xdotool", "node", "npm"} {
		if _, err := exec.LookPath(name); err != nil {
			missing = append(missing, name)
		}
	}
	if missing != nil {
		t.Fatalf("not installed: %s. This test needs apt-get install --no-install-recommends chromium fonts-dejavu-core xvfb xdotool, and Node.js 20 or newer with npm", strings.Join(missing, ", "))
	}
	machine{
		limit:  25 * time.Minute,
		memory: 4096,
		tests:  "-test.run=^(TestInstall|TestBrowser)",
		last:   "TestBrowser",
		more:   addBrowser,
	}.run(t)
}

// addBrowser puts the scripts of ../browser into the layer, with their packages and
// Node.js: where these are here the machine's users may not be able to read them.
func addBrowser(t *testing.T, layer string) {
	t.Helper()
	there := filepath.Join(layer, "usr/lib/limpet-vm/browser")
	packages := exec.Command("npm", "ci")
	packages.Dir = "../browser"
	output(t, packages)
	if err := os.CopyFS(there, os.DirFS("../browser")); err != nil {
		t.Fatal(err)
	}
	node, err := exec.LookPath("node")
	if err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(there, "node"), 0o755, read(t, node))
}
