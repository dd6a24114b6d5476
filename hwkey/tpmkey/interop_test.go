//go:build unix

package tpmkey_test

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/hwkey/tpmkey"
	"github.com/limpet-auth/limpet/limpettest"
)

// tools runs a program of tpm2-tools or openssl in dir on the TPM at addr.
func tools(t *testing.T, dir, addr, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	tcti := "swtpm:path=" + strings.TrimPrefix(addr, "unix:")
	cmd.Env = append(os.Environ(), "TPM2TOOLS_TCTI="+tcti, "TPM2OPENSSL_TCTI="+tcti)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// needProvider asks OpenSSL for its TPM provider, which wants to see a TPM.
func needProvider(t *testing.T, addr string) {
	t.Helper()
	const words = "the TPM provider of OpenSSL is not installed: this test needs it (Debian, Ubuntu: apt-get install --no-install-recommends openssl tpm2-openssl)"
	cmd := exec.Command("openssl", "list", "-providers", "-provider", "tpm2")
	cmd.Env = append(os.Environ(), "TPM2OPENSSL_TCTI=swtpm:path="+strings.TrimPrefix(addr, "unix:"))
	if cmd.Run() == nil {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal(words)
	}
	t.Skip(words)
}

func needTools(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("tpm2_load"); err != nil {
		t.Fatal("tpm2-tools are not installed: this test needs them (Debian, Ubuntu: apt-get install --no-install-recommends tpm2-tools)")
	}
}

// stripMetadata removes the line that other software does not write.
func stripMetadata(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data[:bytes.Index(data, []byte("Limpet: "))], 0o600); err != nil {
		t.Fatal(err)
	}
}

// OpenSSL's TPM provider signs with the keys in our files, and tpm2-tools read
// them (tpm2_load of 5.4 documents -r FILE.pem and refuses it).
func TestOthersReadOurFile(t *testing.T) {
	needTools(t)
	for _, alg := range supported {
		t.Run(string(alg), func(t *testing.T) {
			addr := limpettest.SoftTPMAt(t, "unix")
			dir := t.TempDir()
			ks := tpmkey.New(tpmkey.Config{Addr: addr, Dir: dir})
			key, err := ks.Create(t.Context(), hwkey.CreateOptions{Algorithm: alg, Label: "-----BEGIN \"trouble\"-----"})
			if err != nil {
				t.Fatal(err)
			}
			ks.Close()
			file := key.Info().ID + ".tpm"
			needProvider(t, addr)
			tools(t, dir, addr, "tpm2_print", "-t", "TSSPRIVKEY_OBJ", "-f", "pem", file)
			der, err := x509.MarshalPKIXPublicKey(key.Public())
			if err != nil {
				t.Fatal(err)
			}
			write := func(name string, data []byte) {
				if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			write("public.pem", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
			write("message", []byte("message"))
			options := []string{"-rawin", "-digest", "sha256", "-in", "message"}
			if alg == hwkey.RSA2048 {
				options = append(options, "-pkeyopt", "rsa_padding_mode:pss")
			}
			tools(t, dir, addr, "openssl", append([]string{"pkeyutl", "-provider", "tpm2", "-provider", "default",
				"-inkey", file, "-sign", "-out", "signature"}, options...)...)
			tools(t, dir, addr, "openssl", append([]string{"pkeyutl", "-verify", "-pubin", "-inkey", "public.pem",
				"-sigfile", "signature"}, options...)...)
		})
	}
}

// We sign with keys that tpm2-tools made and wrote.
func TestWeReadToolsFile(t *testing.T) {
	needTools(t)
	addr := limpettest.SoftTPMAt(t, "unix")
	dir := t.TempDir()
	tools(t, dir, addr, "tpm2_createprimary", "-Q", "-C", "o", "-g", "sha256", "-G", "ecc256:null:aes128cfb", "-c", "parent.ctx",
		"-a", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt") // template H-2
	const signOnly = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign"
	for id, args := range map[string][]string{
		"ecdsa": {"-G", "ecc:ecdsa"},
		"ecc":   {"-G", "ecc"},
		"pss":   {"-G", "rsa2048:rsapss:null", "-a", signOnly},
		"rsa":   {"-G", "rsa2048"},
		"da":    {"-G", "ecc", "-a", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign"},
		"p384":  {"-G", "ecc384"},
		"ssa":   {"-G", "rsa2048:rsassa:null", "-a", signOnly},
		"loose": {"-G", "ecc", "-a", "sensitivedataorigin|userwithauth|sign"},
		"hmac":  {"-G", "hmac"},
		"aes":   {"-G", "aes128"},
	} {
		tools(t, dir, addr, "tpm2_create", append([]string{"-Q", "-C", "parent.ctx", "-u", "public", "-r", "private"}, args...)...)
		tools(t, dir, addr, "tpm2_flushcontext", "-t")
		tools(t, dir, addr, "tpm2_flushcontext", "-l")
		tools(t, dir, addr, "tpm2_encodeobject", "-C", "0x40000001", "-u", "public", "-r", "private", "-o", id+".tpm")
	}
	ks := tpmkey.New(tpmkey.Config{Addr: addr, Dir: dir})
	defer ks.Close()
	for _, id := range []string{"ecdsa", "ecc", "pss", "rsa", "da"} {
		key, err := ks.Load(t.Context(), id)
		if err != nil {
			t.Error(err)
			continue
		}
		sign(t, key)
		key.Close()
	}
	for _, id := range []string{"p384", "ssa", "loose", "hmac", "aes"} {
		if _, err := ks.Load(t.Context(), id); !errors.Is(err, hwkey.ErrUnsupported) {
			t.Errorf("%s: error %v, want ErrUnsupported", id, err)
		}
	}
}
