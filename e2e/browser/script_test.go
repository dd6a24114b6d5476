package browser_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

const oldestNode = 20

// installed makes sure of the packages, once.
var installed = sync.OnceValue(func() error {
	want, err := locked("package-lock.json")
	if err != nil {
		return err
	}
	if have, err := locked(filepath.Join("node_modules", ".package-lock.json")); err == nil && maps.Equal(have, want) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "npm", "ci").CombinedOutput(); err != nil {
		return fmt.Errorf("npm ci in e2e/browser: %w\n%s", err, out)
	}
	return nil
})

// locked reads which packages a lock file has, by their digests.
func locked(name string) (map[string]string, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var file struct {
		Packages map[string]struct{ Integrity string }
	}
	if err := json.Unmarshal(b, &file); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	digests := make(map[string]string)
	for path, p := range file.Packages {
		if path != "" { // this folder
			digests[path] = p.Integrity
		}
	}
	return digests, nil
}

// needChromium makes sure of Node.js, Chromium and the packages, and returns
// where Chromium is.
func needChromium(t *testing.T) string {
	t.Helper()
	missing := func(words string) {
		t.Helper()
		if os.Getenv("CI") != "" {
			t.Fatal(words)
		}
		t.Skip(words)
	}
	out, err := exec.Command("node", "--version").Output()
	version, _, _ := strings.Cut(strings.TrimPrefix(string(out), "v"), ".")
	if major, _ := strconv.Atoi(version); err != nil || major < oldestNode {
		missing(fmt.Sprintf("Node.js %d or newer is not installed: this test needs it (Debian 13, Ubuntu 26.04 or newer: apt-get install --no-install-recommends nodejs npm; others: https://nodejs.org/)", oldestNode))
	}
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			if err := installed(); err != nil {
				t.Fatal("the packages that this test needs cannot be installed: ", err)
			}
			return path
		}
	}
	missing("Chromium is not installed: this test needs it (Debian: apt-get install --no-install-recommends chromium fonts-dejavu-core)")
	return ""
}

// known is done when this process has read the scripts: go test then knows that
// results are of these scripts, and runs changed ones anew.
var known sync.Once

// run runs a script of this folder with env beside the test's own environment,
// and fails the test if the scenario does not hold. server's certificate is
// trusted; nil if there is no TLS.
func run(t *testing.T, script string, server *httptest.Server, env map[string]string) {
	t.Helper()
	chromium := needChromium(t)
	known.Do(func() {
		sources, _ := filepath.Glob("*.mjs")
		for _, source := range sources {
			if _, err := os.ReadFile(source); err != nil {
				t.Fatal(err)
			}
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "node", "--no-warnings", script)
	// Asked to end, the script ends its Chromium too.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	cmd.Env = append(os.Environ(),
		"LIMPET_CHROMIUM="+chromium,
		"LIMPET_ARTIFACTS="+t.ArtifactDir(),
		"LIMPET_PROFILE="+t.TempDir())
	if server != nil {
		spki := sha256.Sum256(server.Certificate().RawSubjectPublicKeyInfo)
		cmd.Env = append(cmd.Env, "LIMPET_SPKI="+base64.StdEncoding.EncodeToString(spki[:]))
	}
	for name, value := range env {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if out.Len() > 0 {
		t.Logf("%s:\n%s", script, &out)
	}
	if err != nil {
		t.Fatalf("%s: %v", script, err)
	}
}
