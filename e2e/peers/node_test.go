package peers_test

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
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
	if _, err := exec.LookPath("npm"); err != nil {
		return fmt.Errorf("npm is not installed (Debian, Ubuntu: apt-get install --no-install-recommends npm): %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "npm", "ci").CombinedOutput(); err != nil {
		return fmt.Errorf("npm ci in e2e/peers: %w\n%s", err, out)
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

// needNode makes sure of Node.js and the packages.
func needNode(t *testing.T) {
	t.Helper()
	out, err := exec.Command("node", "--version").Output()
	version, _, _ := strings.Cut(strings.TrimPrefix(string(out), "v"), ".")
	if major, _ := strconv.Atoi(version); err != nil || major < oldestNode {
		words := fmt.Sprintf("Node.js %d or newer is not installed: this test needs it (Debian 13, Ubuntu 26.04 or newer: apt-get install --no-install-recommends nodejs npm; others: https://nodejs.org/)", oldestNode)
		if os.Getenv("CI") != "" {
			t.Fatal(words)
		}
		t.Skip(words)
	}
	if err := installed(); err != nil {
		t.Fatal("the packages that this test needs cannot be installed: ", err)
	}
}

// known is done when this process has read the programs: go test then knows that
// results are of these programs, and runs changed ones anew.
var known sync.Once

// program is a running program of this folder.
type program struct {
	in     io.WriteCloser
	out    *json.Decoder
	stderr bytes.Buffer
}

// start starts a program that trusts the certificate of server.
func start(t *testing.T, name string, server *httptest.Server) *program {
	t.Helper()
	needNode(t)
	known.Do(func() {
		sources, _ := filepath.Glob("*.mjs")
		for _, source := range sources {
			if _, err := os.ReadFile(source); err != nil {
				t.Fatal(err)
			}
		}
	})
	root := filepath.Join(t.TempDir(), "root.pem")
	if err := os.WriteFile(root, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	p := new(program)
	cmd := exec.CommandContext(ctx, "node", "--no-warnings", name)
	cmd.Env = append(os.Environ(), "NODE_EXTRA_CA_CERTS="+root)
	cmd.Stderr = &p.stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.out = json.NewDecoder(out)
	if p.in, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		defer cancel()
		p.in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, &p.stderr)
		}
	})
	return p
}

// question is what a program is asked.
type question map[string]any

// ask asks a program to do op, and reads its answer into answer unless that is
// nil. A program that fails to is the end of the test.
func (p *program) ask(t *testing.T, op string, q question, answer any) {
	t.Helper()
	all := question{"op": op}
	maps.Copy(all, q)
	line, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	var raw json.RawMessage
	if _, err = p.in.Write(append(line, '\n')); err == nil {
		err = p.out.Decode(&raw)
	}
	if err != nil {
		t.Fatalf("%s: the program has ended: %v", op, err)
	}
	var failed struct{ Error string }
	if err := json.Unmarshal(raw, &failed); err != nil || failed.Error != "" {
		t.Fatalf("%s: %v%s", op, err, failed.Error)
	}
	if answer == nil {
		return
	}
	if err := json.Unmarshal(raw, answer); err != nil {
		t.Fatalf("%s: %v in %s", op, err, raw)
	}
}
