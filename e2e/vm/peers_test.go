//go:build guest

package vm

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// These begin where TestNextUser ended: bob sits at the machine, and says yes.

// mapping prints a line for pam_u2f, as docs/fido.md has it.
const mapping = `
random() { head -c 32 /dev/urandom | base64; }
{ random; echo pam://vm; echo $USER; random; } | fido2-cred -M $1 | fido2-cred -V es256 |
	{ read -r id; echo "$USER:$id,$(openssl pkey -pubin -outform DER | tail -c 64 | base64 -w 0),es256,+presence"; }
`

// TestPAM has pam_u2f let bob in, by a credential that fido2-cred made: Debian's
// pamu2fcfg 1.1.0 makes none with a token whose attestation has no certificate.
func TestPAM(t *testing.T) {
	const file = "/etc/limpet-u2f"
	if err := os.WriteFile("/etc/pam.d/limpet-u2f", []byte("auth required pam_u2f.so authfile="+file+" origin=pam://vm\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	login := func(line string) error {
		if err := os.WriteFile(file, []byte(line+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		return exec.Command("pamtester", "limpet-u2f", bob.name, "authenticate").Run()
	}
	one, other := bob.must(t, "sh", "-c", mapping, "sh", device), bob.must(t, "sh", "-c", mapping, "sh", device)
	if err := login(one); err != nil {
		t.Errorf("pam_u2f: %v\n%s\n%s", err, one, journal())
	}
	id, _, _ := strings.Cut(one, ",")
	_, key, _ := strings.Cut(other, ",")
	if login(id+","+key) == nil {
		t.Error("pam_u2f takes a signature by another key")
	}
}

// TestDisk has systemd open an encrypted disk with what it gets of the token's
// hmac-secret.
func TestDisk(t *testing.T) {
	const disk, name, password = "/tmp/disk", "limpet-vm", "a password that does not count"
	if err := os.WriteFile("/tmp/password", []byte(password), 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, "truncate", "--size=32M", disk)
	must(t, "cryptsetup", "luksFormat", "--batch-mode", "--type=luks2", "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000", "--key-file=/tmp/password", disk)
	enroll := exec.Command("systemd-cryptenroll", "--fido2-device=auto", "--fido2-with-client-pin=no", disk)
	enroll.Env = append(os.Environ(), "PASSWORD="+password)
	run(t, enroll)
	must(t, "/lib/systemd/systemd-cryptsetup", "attach", name, disk, "-", "fido2-device=auto,headless=1")
	if _, err := os.Stat("/dev/mapper/" + name); err != nil {
		t.Error(err)
	}
	must(t, "/lib/systemd/systemd-cryptsetup", "detach", name)
}
