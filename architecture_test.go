package limpet_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Arrows run one way: each package may import these of ours, directly or
// through others, and no more.
var imports = map[string][]string{
	"proof":                 {},
	"proof/httpsig":         {"proof"},
	"proof/hwsign":          {"proof"},
	"proof/internal/jose":   {"proof"},
	"proof/dpop":            {"proof", "proof/internal/jose"},
	"proof/dbsc":            {"proof", "proof/internal/jose"},
	"oauth":                 {"proof"},
	"sdk/js":                {},
	"web":                   {},
	"internal/replay":       {},
	"internal/incoming":     {"proof"},
	"internal/outgoing":     {"internal/weakmap", "proof"},
	"internal/private":      {},
	"internal/relay":        {},
	"internal/weakmap":      {},
	"internal/tpm":          {},
	"store/memstore":        {"internal/replay"},
	"store/boltstore":       {"internal/replay"},
	"store/redisstore":      {},
	"hwkey":                 {},
	"hwkey/internal/keydir": {"hwkey"},
	"hwkey/softkey":         {"internal/private", "hwkey", "hwkey/internal/keydir"},
	"hwkey/tpmkey":          {"hwkey", "hwkey/internal/keydir", "internal/tpm"},
	"fido/tpmvault":         {"fido", "internal/private", "internal/tpm"},
	"fido/vaulttest":        {"fido", "internal/private"},
	"fido/seat":             {},
	"fido/seat/seattest":    {},
	"fido/polkit":           {"fido", "fido/seat", "internal/private"},
	"keyring":               {"hwkey", "internal/private"},
	"handshake":             {"hwkey", "internal/private", "keyring"},
	"":                      {"internal/incoming", "internal/weakmap", "proof", "proof/httpsig", "proof/hwsign", "proof/dpop", "proof/dbsc", "proof/internal/jose", "sdk/js"},
	"channel":               {"hwkey", "internal/incoming", "internal/outgoing", "internal/private", "internal/replay", "internal/weakmap", "keyring", "proof", "proof/httpsig"},
	"client":                {"hwkey", "internal/outgoing", "internal/weakmap", "proof", "proof/httpsig", "proof/hwsign", "proof/dpop", "proof/internal/jose"},
	"limpettest":            {"", "internal/incoming", "internal/weakmap", "hwkey", "proof", "proof/httpsig", "proof/hwsign", "proof/dpop", "proof/dbsc", "proof/internal/jose", "sdk/js"},
	"fido":                  {"internal/private"},
	"fido/ctaphid":          {},
	"fido/uhid":             {"fido/ctaphid"},
	"fido/softvault":        {"fido", "internal/private"},
	"fido/control":          {"fido", "internal/private"},
	"fido/prompt":           {"fido", "internal/private"},
	"limpettest/vectors":    {},
	"internal/admin":        {"", "internal/incoming", "internal/weakmap", "proof", "proof/httpsig", "proof/hwsign", "proof/dpop", "proof/dbsc", "proof/internal/jose", "sdk/js", "web"},
	"internal/telemetry":    {"", "internal/incoming", "internal/weakmap", "proof", "proof/httpsig", "proof/hwsign", "proof/dpop", "proof/dbsc", "proof/internal/jose", "sdk/js"},
	"internal/gatewaybench": {"client", "hwkey", "hwkey/internal/keydir", "hwkey/softkey", "internal/outgoing", "internal/private", "internal/weakmap", "proof", "proof/httpsig", "proof/hwsign", "proof/dpop", "proof/internal/jose"},
	"internal/authserver":   {"", "internal/incoming", "internal/weakmap", "proof", "proof/httpsig", "proof/hwsign", "proof/dpop", "proof/dbsc", "proof/internal/jose", "sdk/js", "web"},
	"agent":                 {"client", "hwkey", "internal/incoming", "internal/outgoing", "internal/private", "internal/relay", "internal/weakmap", "proof", "proof/httpsig", "proof/hwsign", "proof/dpop", "proof/internal/jose"},
	"gateway":               {"", "internal/incoming", "internal/relay", "internal/weakmap", "proof", "proof/httpsig", "proof/hwsign", "proof/dpop", "proof/dbsc", "proof/internal/jose", "sdk/js"},
	"gateway/extauthz":      {"", "gateway", "internal/incoming", "internal/relay", "internal/weakmap", "proof", "proof/httpsig", "proof/hwsign", "proof/dpop", "proof/dbsc", "proof/internal/jose", "sdk/js"},
	"cmd/limpet":            {"*"},
}

// The library must not drag heavy modules into its users' builds.
var light = []string{"", "proof", "proof/httpsig", "proof/hwsign", "proof/dpop", "proof/dbsc", "client", "hwkey", "keyring", "handshake", "store/memstore"}

const module = "github.com/limpet-auth/limpet"

func TestImportDirections(t *testing.T) {
	seen := map[string]bool{}
	for _, line := range goList(t, "-f", "{{.ImportPath}}", "./...") {
		pkg := strings.TrimPrefix(strings.TrimPrefix(line, module), "/")
		if strings.HasPrefix(pkg, "e2e") {
			continue // tests only, imported by nobody
		}
		allowed, ok := imports[pkg]
		if !ok {
			t.Errorf("package %q is not in the picture: add it to the table and to docs/architecture.md", pkg)
			continue
		}
		seen[pkg] = true
		for _, dep := range goList(t, "-deps", "-f", "{{.ImportPath}}", "./"+pkg) {
			own, ours := strings.CutPrefix(dep, module)
			own = strings.TrimPrefix(own, "/")
			if ours && own != pkg && !slices.Contains(allowed, own) && !slices.Contains(allowed, "*") {
				t.Errorf("%q imports %q", pkg, own)
			}
			if !ours && slices.Contains(light, pkg) && strings.Contains(strings.Split(dep, "/")[0], ".") {
				t.Errorf("%q pulls in %s", pkg, dep)
			}
			if pkg == "gateway" && strings.HasPrefix(dep, "google.golang.org/") {
				t.Errorf("%q pulls in %s, which is for gateway/extauthz", pkg, dep)
			}
		}
	}
	for pkg := range imports {
		if !seen[pkg] {
			t.Errorf("package %q is in the picture and not in the tree", pkg)
		}
	}
}

func TestNoRoomsWithoutPurpose(t *testing.T) {
	for _, line := range goList(t, "-f", "{{.ImportPath}}", "./...") {
		for _, part := range strings.Split(line, "/") {
			if slices.Contains([]string{"util", "utils", "common", "helper", "helpers", "types", "models", "misc", "manager"}, part) {
				t.Errorf("%s: %q says nothing of what it holds", line, part)
			}
		}
	}
}

func goList(t *testing.T, args ...string) []string {
	t.Helper()
	out, err := exec.Command("go", append([]string{"list"}, args...)...).Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	return strings.Fields(string(out))
}

// The threat model names the tests that prove its answers. They must exist.
func TestThreatModelNamesRealTests(t *testing.T) {
	doc, err := os.ReadFile("docs/threat-model.md")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, depth := range []string{"*/*_test.go", "*/*/*_test.go"} {
		more, err := filepath.Glob(depth)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, more...)
	}
	tests := map[string]bool{}
	for _, file := range files {
		src, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(t `).FindAllStringSubmatch(string(src), -1) {
			tests[m[1]] = true
		}
	}
	names := regexp.MustCompile("`(Test\\w+)`").FindAllStringSubmatch(string(doc), -1)
	if len(names) < 30 {
		t.Errorf("only %d tests are named", len(names))
	}
	for _, m := range names {
		if !tests[m[1]] {
			t.Errorf("the threat model names %s, which does not exist", m[1])
		}
	}
}
