package js_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/sdk/js"
)

// maxSize is what the SDK may weigh, compressed: a page loads it before all else.
const maxSize = 8 << 10

// TestSize: a page's visitors do not pay for more than they were promised.
func TestSize(t *testing.T) {
	for name, script := range map[string][]byte{"limpet.js": js.Source, "worker.js": js.Worker} {
		var b bytes.Buffer
		w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
		if err != nil {
			t.Fatal(err)
		}
		w.Write(script)
		w.Close()
		t.Logf("%s: %d bytes, %d compressed", name, len(script), b.Len())
		if b.Len() > maxSize || len(script) < 1000 {
			t.Errorf("%s has %d bytes compressed, want at most %d", name, b.Len(), maxSize)
		}
	}
}

// TestBuilt: what is in dist is what src says.
func TestBuilt(t *testing.T) {
	needNode(t)
	t.Parallel()
	dir := t.TempDir()
	run(t, "node", "build.mjs", dir)
	for _, name := range []string{"limpet.js", "limpet.d.ts", "worker.js"} {
		want, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		have, err := os.ReadFile(filepath.Join("dist", name))
		if err != nil || !bytes.Equal(have, want) {
			t.Errorf("dist/%s is not what src says: npm run build in sdk/js (%v)", name, err)
		}
	}
}

// TestVectors: the scripts say what limpettest/vectors says.
func TestVectors(t *testing.T) {
	needNode(t)
	t.Parallel()
	run(t, "node", "--test", "--no-warnings", "test/")
}

// needNode makes sure of Node.js and the packages.
func needNode(t *testing.T) {
	t.Helper()
	if err := exec.Command("node", "-e", "if (parseInt(process.versions.node) < 20) process.exit(1)").Run(); err != nil {
		const words = "Node.js 20 or newer is not installed: this test needs it (https://nodejs.org/)"
		if os.Getenv("CI") != "" {
			t.Fatal(words)
		}
		t.Skip(words)
	}
	installed.Do(func() {
		if _, err := os.Stat("node_modules/.package-lock.json"); err != nil {
			run(t, "npm", "ci")
		}
	})
	// go test is to know what its result is of.
	for _, pattern := range []string{"*.json", "*.mjs", "src/*", "test/*", "../../limpettest/vectors/httpsig.json"} {
		names, _ := filepath.Glob(pattern)
		for _, name := range names {
			if _, err := os.ReadFile(name); err != nil {
				t.Fatal(err)
			}
		}
	}
}

var installed sync.Once

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}
