//go:build guest

package vm

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// The tests are one story, told in the order of this file: each begins where the
// last one ended. alice sits at the machine; bob has an account there.

var (
	device string // of the token, such as /dev/hidraw0
	alice  *person
	bob    *person
	asked  *agent // alice's
)

// TestInstall does what the package's installation does, and what its user then
// has to: set the TPM up, and start the service.
func TestInstall(t *testing.T) {
	must(t, "sh", "/usr/lib/limpet-vm/postinst", "configure")
	must(t, "systemd-run", "--quiet", "--pipe", "--wait", "--property=User=limpet-fido", "--property=StateDirectory=limpet-fido", "limpet", "fido", "setup")
	alice, bob = newPerson(t, "vm-alice"), newPerson(t, "vm-bob")
	alice.sitDown(t)
	must(t, "systemctl", "start", "limpet-fido.service")

	if got := must(t, "systemctl", "show", "--property=MemorySwapMax", "--value", "limpet-fido.service"); got != "0" {
		t.Errorf("the daemon's memory can be swapped: %s", got)
	}
	if got := must(t, "stat", "-c", "%U %G %a", "/dev/uhid"); got != "root limpet-fido 660" {
		t.Errorf("/dev/uhid is %s", got)
	}
	pid := mainPID(t)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	owner, err := user.Lookup("limpet-fido")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Uid:\t" + owner.Uid + "\t" + owner.Uid, "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("the daemon's status lacks %q:\n%s", want, status)
		}
	}
	for _, name := range []string{"/dev/uhid", "/dev/tpmrm0", "/var/lib/limpet-fido"} {
		for _, p := range []*person{alice, bob} {
			if p.can("-r", name) || p.can("-w", name) || p.can("-x", name) {
				t.Errorf("%s may use %s", p.name, name)
			}
		}
	}
	findDevice(t, alice)
}

// TestAgent starts the prompt agents: alice's by the unit of her own systemd, and
// one of bob's, whom the token does not ask.
func TestAgent(t *testing.T) {
	asked = alice.attend(t)
	bobs := bob.terminal(t, "limpet", "fido", "agent", "--prompt", "terminal")
	bobs.shows("asked by")

	alice.register(t, "")
	if got := asked.questions(t); !strings.Contains(got, `Register with relying.example as "alice"? [y/N]`) {
		t.Errorf("alice was asked\n%s", got)
	}
	asked.answer.Store("n")
	x := alice.terminal(t, "fido2-cred", "-M", "-i", alice.file(t, random()+"\nrelying.example\nalice\n"+random()+"\n"), device)
	x.fails("FIDO_ERR_OPERATION_DENIED")
	asked.answer.Store("y")

	if got := alice.must(t, "limpet", "fido", "status"); !strings.Contains(got, "none") {
		t.Errorf("limpet fido status says\n%s", got)
	}
	x = bob.terminal(t, "limpet", "fido", "status")
	x.fails("the user who sits at the machine")
	x = bob.terminal(t, "limpet", "fido", "reset")
	x.fails("the user who sits at the machine")
	bobs.cmd.Process.Signal(syscall.SIGTERM)
	if out, _ := bobs.end(); strings.Contains(out, "[y/N]") {
		t.Errorf("bob was asked\n%s", out)
	}
}

// TestUdev: the rules that every Debian has take it for a security token, and give
// it to who sits at the machine, alone.
func TestUdev(t *testing.T) {
	properties := must(t, "udevadm", "info", "--query=property", device)
	for _, want := range []string{`(?m)^ID_FIDO_TOKEN=1$`, `(?m)^ID_SECURITY_TOKEN=1$`, `(?m)^CURRENT_TAGS=.*:uaccess:`} {
		if !regexp.MustCompile(want).MatchString(properties) {
			t.Errorf("udev does not say %s:\n%s", want, properties)
		}
	}
	if !alice.can("-r", device) || !alice.can("-w", device) {
		t.Errorf("alice cannot use %s", device)
	}
	if bob.can("-r", device) || bob.can("-w", device) {
		t.Errorf("bob can use %s", device)
	}
}

// TestTools has the tools of libfido2 use a token that has no PIN.
func TestTools(t *testing.T) {
	if got := alice.must(t, "fido2-token", "-L"); !strings.HasPrefix(got, device+": vendor=0x1209, product=0x0001") {
		t.Errorf("fido2-token lists %q", got)
	}
	info := alice.must(t, "fido2-token", "-I", device)
	for _, want := range []string{"U2F_V2", "FIDO_2_0", "FIDO_2_1", "hmac-secret", "credProtect", "es256", "noclientPin", "pin retries: 8"} {
		if !strings.Contains(info, want) {
			t.Errorf("fido2-token says nothing of %s:\n%s", want, info)
		}
	}
	for _, flags := range [][]string{{"-u"}, {}} { // U2F, CTAP2
		c := alice.register(t, "", flags...)
		alice.authenticate(t, c, "", flags...)
	}
}

// TestLargeBlobs moves 60 KB through the queues of the kernel, in messages as long as
// they get.
func TestLargeBlobs(t *testing.T) {
	alice.must(t, "timeout", "60", "/usr/bin/python3", "-c", `
import hashlib, os
from fido2 import cbor
from fido2.ctap2 import Ctap2, LargeBlobs
from fido2.hid import CtapHidDevice

ctap = Ctap2(next(CtapHidDevice.list_devices()))
blobs = LargeBlobs(ctap)
entries = [{1: os.urandom(60 << 10), 2: os.urandom(12), 3: 60 << 10}]
whole = cbor.encode(entries)
whole += hashlib.sha256(whole).digest()[:16]
for at in range(0, len(whole), blobs.max_fragment_length):
    ctap.large_blobs(at, set=whole[at : at + blobs.max_fragment_length], length=None if at else len(whole))
assert blobs.read_blob_array() == entries
blobs.write_blob_array([])
`)
}

// TestPIN sets one, and uses it rightly and wrongly.
func TestPIN(t *testing.T) {
	x := alice.terminal(t, "fido2-token", "-S", device)
	x.answer("Enter new PIN", "123456")
	x.answer("Enter the same PIN again", "123456")
	x.succeeds()
	if info := alice.must(t, "fido2-token", "-I", device); !strings.Contains(info, " clientPin") {
		t.Errorf("no PIN is set:\n%s", info)
	}

	verified := alice.register(t, "123456", "-v")
	alice.authenticate(t, verified, "123456", "-v")
	alice.authenticate(t, alice.register(t, ""), "")

	x = alice.terminal(t, "fido2-assert", "-G", "-v", "-i", verified.question(t), device)
	x.answer("Enter PIN", "000000")
	x.fails("FIDO_ERR_PIN_INVALID")
	if info := alice.must(t, "fido2-token", "-I", device); !strings.Contains(info, "pin retries: 7") {
		t.Errorf("a wrong PIN did not count:\n%s", info)
	}
	x = alice.terminal(t, "fido2-token", "-C", device)
	x.answer("Enter current PIN", "123456")
	x.answer("Enter new PIN", "Pincode 7")
	x.answer("Enter the same PIN again", "Pincode 7")
	x.succeeds()
	alice.authenticate(t, verified, "Pincode 7", "-v")
	if info := alice.must(t, "fido2-token", "-I", device); !strings.Contains(info, "pin retries: 8") {
		t.Errorf("the right PIN did not give back the tries:\n%s", info)
	}
}

const pin = "Pincode 7" // which TestPIN leaves

var (
	kept    *credential // until the reset
	secrets = make(map[string]string)
)

// TestDiscoverable keeps one in the token, with the secret that WebAuthn calls PRF.
func TestDiscoverable(t *testing.T) {
	kept = alice.register(t, pin, "-r", "-v", "-h")
	kept.salt = random()
	secrets["first"] = alice.authenticate(t, kept, pin, "-v", "-h")
	if again := alice.authenticate(t, kept, pin, "-v", "-h"); again != secrets["first"] || len(again) < 44 {
		t.Errorf("the secret was %q, and then %q", secrets["first"], again)
	}
	x := alice.terminal(t, "fido2-token", "-L", "-r", device)
	x.answer("Enter PIN", pin)
	if out := x.succeeds(); !strings.Contains(out, "relying.example") {
		t.Errorf("the token's relying parties are\n%s", out)
	}
}

// TestSSH makes keys that live in the token, and logs in with them.
func TestSSH(t *testing.T) {
	home := alice.home
	for _, kind := range []string{"touch", "pin"} {
		key := filepath.Join(home, ".ssh", kind)
		args := []string{"ssh-keygen", "-q", "-t", "ecdsa-sk", "-N", "", "-f", key}
		if kind == "pin" {
			args = append(args, "-O", "resident", "-O", "verify-required")
		}
		x := alice.terminal(t, args...)
		if kind == "pin" {
			x.answer("Enter PIN for authenticator", pin)
		}
		x.succeeds()
		alice.must(t, "sh", "-c", "cat ~/.ssh/"+kind+".pub >>~/.ssh/authorized_keys")
	}
	startSSHD(t)
	alice.login(t, "touch", "")
	alice.login(t, "pin", pin)
}

// restart does something that ends the daemon, and waits until it is there again
// and alice's agent too.
func restart(t *testing.T, args ...string) {
	t.Helper()
	before := mainPID(t)
	must(t, args...)
	waitFor(t, "the daemon to run again", func() bool { pid := mainPID(t); return pid != 0 && pid != before })
	findDevice(t, alice)
	waitFor(t, "the agent to come back", func() bool {
		sockets, err := os.ReadFile("/proc/net/unix") // state 03 is connected
		return err == nil && regexp.MustCompile(`(?m) 03 +\d+ /run/limpet-fido/socket$`).Match(sockets)
	})
}

// TestRestart: what was registered works after the daemon ended, and after it was
// killed, in the middle of whatever it did.
func TestRestart(t *testing.T) {
	for _, how := range [][]string{{"systemctl", "restart", "limpet-fido.service"}, {"systemctl", "kill", "--signal=KILL", "--kill-whom=main", "limpet-fido.service"}} {
		restart(t, how...)
		if secret := alice.authenticate(t, kept, pin, "-v", "-h"); secret != secrets["first"] {
			t.Errorf("the secret was %q, and is %q", secrets["first"], secret)
		}
		alice.login(t, "touch", "")
	}
}

// TestVerify: once the PIN was right, a dialog of polkit's takes its place, which asks
// for alice's password.
func TestVerify(t *testing.T) {
	const dropIn = "/etc/systemd/system/limpet-fido.service.d"
	if err := os.MkdirAll(dropIn, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dropIn+"/verify.conf", []byte("[Service]\nEnvironment=LIMPET_VERIFY=polkit\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	must(t, "systemctl", "daemon-reload")
	password := exec.Command("chpasswd")
	password.Stdin = strings.NewReader(alice.name + ":correct horse\n")
	run(t, password)
	restart(t, "systemctl", "restart", "limpet-fido.service")

	if info := alice.must(t, "fido2-token", "-I", device); !strings.Contains(info, "nouv") {
		t.Errorf("before the PIN:\n%s", info)
	}
	alice.authenticate(t, kept, pin, "-v", "-h")
	if info := alice.must(t, "fido2-token", "-I", device); strings.Contains(info, "nouv") || !strings.Contains(info, "uv retries: 3") {
		t.Errorf("after the PIN:\n%s", info)
	}
	session := must(t, "loginctl", "show-seat", "seat0", "--property=ActiveSession", "--value")
	dialogs := alice.terminal(t, "pkttyagent", "--process", must(t, "loginctl", "show-session", session, "--property=Leader", "--value"))
	waitFor(t, "polkit's agent", func() bool { return bytes.Contains(journal(), []byte("Registered Authentication Agent")) })
	// fido2-assert asks for the PIN whatever the token says.
	const host = `import base64, sys
from fido2.ctap2 import Ctap2
from fido2.hid import CtapHidDevice
used = Ctap2(next(CtapHidDevice.list_devices())).get_assertion("relying.example", bytes(32),
    [{"id": base64.b64decode(sys.argv[1]), "type": "public-key"}], options={"uv": True})
print("verified", used.auth_data.is_user_verified(), "present", used.auth_data.is_user_present())
`
	before := asked.questions(t)
	x := alice.terminal(t, "/usr/bin/python3", "-c", host, kept.id)
	dialogs.shows(`Limpet security token: Sign in to relying.example as "alice"?`)
	dialogs.answer("Password:", "correct horse")
	if out := x.succeeds(); !strings.Contains(out, "verified True present True") {
		t.Error(out)
	}
	if asked.questions(t) != before {
		t.Error("alice was asked a second time")
	}
	dialogs.cmd.Process.Kill()
	dialogs.end()
	if err := os.RemoveAll(dropIn); err != nil {
		t.Fatal(err)
	}
	must(t, "systemctl", "daemon-reload")
}

// TestReset: nothing that was registered works any more, and there is no PIN.
func TestReset(t *testing.T) {
	// A token takes it in its first ten seconds, which a busy machine may miss.
	for try := 1; ; try++ {
		restart(t, "systemctl", "restart", "limpet-fido.service")
		out, err := alice.command("fido2-token", "-R", device).CombinedOutput()
		if err == nil {
			break
		}
		if try == 5 || !bytes.Contains(out, []byte("FIDO_ERR_NOT_ALLOWED")) {
			t.Fatalf("fido2-token -R: %v\n%s\n%s", err, out, journal())
		}
	}
	if info := alice.must(t, "fido2-token", "-I", device); !strings.Contains(info, "noclientPin") {
		t.Errorf("there still is a PIN:\n%s", info)
	}
	x := alice.terminal(t, "fido2-assert", "-G", "-i", kept.question(t), device)
	x.fails("FIDO_ERR_NO_CREDENTIALS")
	if out, err := alice.command("ssh", sshFlags("touch")...).CombinedOutput(); err == nil {
		t.Errorf("the key still logs in:\n%s", out)
	}
	alice.authenticate(t, alice.register(t, ""), "")
}

// TestNextUser: bob takes alice's place, and the token is his. A program of alice's that
// has it open has nothing of that.
func TestNextUser(t *testing.T) {
	// It writes reports of zeros, which nobody answers, and reads: first what is left of
	// alice's time, and then an error instead of a wait.
	const keeps = `exec 3<>$0 && head -c 65 /dev/zero >&3 && echo open && read -r word
head -c 65 /dev/zero >&3 && echo written
timeout 10 cat <&3 >/dev/null; echo read says $?`
	old := alice.terminal(t, "sh", "-c", keeps, device)
	old.shows("open")
	asked.answer.Store("")
	before := strings.Count(asked.questions(t), "[y/N]")
	waiting := alice.terminal(t, "fido2-cred", "-M", "-i", alice.file(t, random()+"\nrelying.example\nalice\n"+random()+"\n"), device)
	waitFor(t, "alice to be asked", func() bool { return strings.Count(asked.questions(t), "[y/N]") > before })
	must(t, "systemctl", "stop", "session-of-"+alice.name+".service")
	waiting.fails("fido_dev_make_cred")
	bob.sitDown(t)
	findDevice(t, bob)
	if alice.can("-r", device) || alice.can("-w", device) {
		t.Errorf("alice can use %s", device)
	}
	bobs := bob.attend(t)
	bob.authenticate(t, bob.register(t, ""), "")
	if got := strings.Count(bobs.questions(t), "[y/N]"); got != 2 {
		t.Errorf("bob was asked %d questions, want 2", got)
	}
	old.answer("", "go on")
	if out, err := old.end(); err != nil || strings.Contains(out, "written") || !strings.Contains(out, "No such device") || !strings.Contains(out, "Input/output error") || !strings.HasSuffix(out, "read says 1\n") {
		t.Errorf("what alice had open: %v\n%s", err, out)
	}
}

// agent is what asks a person, who answers on standard input.
type agent struct {
	screen string       // file
	answer atomic.Value // none if empty
}

// attend starts the person's agent by its unit. Where there is no desktop it asks in
// a file.
func (p *person) attend(t *testing.T) *agent {
	t.Helper()
	dir := fmt.Sprintf("/run/user/%d/", p.uid)
	keyboard, a := dir+"keyboard", &agent{screen: dir + "screen"}
	a.answer.Store("y")
	p.must(t, "mkfifo", keyboard)
	const dropIn = "/etc/systemd/user/limpet-fido-agent.service.d"
	if err := os.MkdirAll(dropIn, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dropIn+"/test.conf", []byte("[Service]\nExecStart=\nExecStart=/usr/bin/limpet fido agent --prompt terminal\nStandardInput=file:%t/keyboard\nStandardError=append:%t/screen\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	keys, err := os.OpenFile(keyboard, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	p.must(t, "systemctl", "--user", "daemon-reload")
	p.must(t, "systemctl", "--user", "start", "limpet-fido-agent.service") // returns when the token knows it
	go func() {
		for answered := 0; ; time.Sleep(20 * time.Millisecond) {
			if b, _ := os.ReadFile(a.screen); bytes.Count(b, []byte("[y/N]")) > answered {
				answered++
				if word := a.answer.Load().(string); word != "" {
					fmt.Fprintln(keys, word)
				}
			}
		}
	}()
	return a
}

func (a *agent) questions(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(a.screen)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// person is a user of the machine.
type person struct {
	name, home string
	uid, gid   uint32
}

func newPerson(t *testing.T, name string) *person {
	t.Helper()
	must(t, "useradd", "--create-home", "--shell", "/bin/bash", "--password", "*", name) // not locked, for sshd
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	return &person{name, u.HomeDir, uint32(uid), uint32(gid)}
}

// sitDown gives the person a session at the machine's screen and keyboard, as a
// display manager does.
func (p *person) sitDown(t *testing.T) {
	t.Helper()
	if err := os.WriteFile("/etc/pam.d/limpet-vm", []byte("auth required pam_permit.so\naccount required pam_permit.so\nsession required pam_systemd.so\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	must(t, "systemd-run", "--quiet", "--unit=session-of-"+p.name, "--property=PAMName=limpet-vm", "--property=User="+p.name,
		"--property=TTYPath=/dev/tty1", "--property=StandardInput=tty", "--setenv=XDG_SEAT=seat0", "--setenv=XDG_SESSION_TYPE=wayland", "--setenv=XDG_SESSION_CLASS=user",
		"sleep", "infinity")
	waitFor(t, p.name+" to have a session", func() bool {
		out, err := exec.Command("loginctl", "show-seat", "seat0", "--property=ActiveSession", "--value").Output()
		if err != nil || len(bytes.TrimSpace(out)) == 0 {
			return false
		}
		out, err = exec.Command("loginctl", "show-session", string(bytes.TrimSpace(out)), "--property=Name", "--property=State").Output()
		return err == nil && strings.Contains(string(out), "Name="+p.name) && strings.Contains(string(out), "State=active")
	})
}

// command runs as the person, with nothing of root's.
func (p *person) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = p.home
	cmd.Env = []string{"HOME=" + p.home, "USER=" + p.name, "PATH=/usr/bin", "LC_ALL=C.UTF-8", fmt.Sprintf("XDG_RUNTIME_DIR=/run/user/%d", p.uid)}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: p.uid, Gid: p.gid}}
	return cmd
}

func (p *person) must(t *testing.T, args ...string) string {
	t.Helper()
	return run(t, p.command(args[0], args[1:]...))
}

func (p *person) can(what, name string) bool {
	return p.command("test", what, name).Run() == nil
}

// credential is what a relying party keeps.
type credential struct {
	id, key string // as fido2-cred prints them
	salt    string
	owner   *person
}

// question writes what fido2-assert reads, and returns the file's name.
func (c *credential) question(t *testing.T) string {
	t.Helper()
	words := random() + "\nrelying.example\n" + c.id + "\n"
	if c.salt != "" {
		words += c.salt + "\n"
	}
	return c.owner.file(t, words)
}

// file writes a file of the person's.
func (p *person) file(t *testing.T, content string) string {
	t.Helper()
	f, err := os.CreateTemp(p.home, "")
	if err == nil {
		_, err = f.WriteString(content)
	}
	if err == nil {
		err = f.Chown(int(p.uid), int(p.gid))
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// register makes a credential with fido2-cred and verifies its attestation.
func (p *person) register(t *testing.T, pin string, flags ...string) *credential {
	t.Helper()
	in := p.file(t, random()+"\nrelying.example\nalice\n"+random()+"\n")
	made := p.file(t, "")
	x := p.terminal(t, slices.Concat([]string{"fido2-cred", "-M", "-i", in, "-o", made}, flags, []string{device})...)
	if pin != "" {
		x.answer("Enter PIN", pin)
	}
	x.succeeds()
	var verify []string
	for _, flag := range flags {
		if flag == "-v" || flag == "-h" {
			verify = append(verify, flag)
		}
	}
	out := p.must(t, slices.Concat([]string{"fido2-cred", "-V", "-i", made}, verify, []string{"es256"})...)
	id, key, _ := strings.Cut(out, "\n")
	return &credential{id: id, key: p.file(t, key+"\n"), owner: p}
}

// authenticate uses a credential with fido2-assert and verifies the answer. It
// returns the secret, if flags ask for it.
func (p *person) authenticate(t *testing.T, c *credential, pin string, flags ...string) (secret string) {
	t.Helper()
	made := p.file(t, "")
	x := p.terminal(t, slices.Concat([]string{"fido2-assert", "-G", "-p", "-i", c.question(t), "-o", made}, flags, []string{device})...)
	if pin != "" {
		x.answer("Enter PIN", pin)
	}
	x.succeeds()
	var verify []string
	for _, flag := range flags {
		if flag == "-v" || flag == "-h" {
			verify = append(verify, flag)
		}
	}
	p.must(t, slices.Concat([]string{"fido2-assert", "-V", "-p", "-i", made}, verify, []string{c.key, "es256"})...)
	if !slices.Contains(flags, "-h") {
		return ""
	}
	b, err := os.ReadFile(made)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}

const sshPort = "2222"

func startSSHD(t *testing.T) {
	t.Helper()
	must(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/run/hostkey")
	must(t, "mkdir", "-p", "/run/sshd")
	must(t, "systemd-run", "--quiet", "--unit=sshd", "/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", "-h", "/run/hostkey", "-p", sshPort,
		"-o", "ListenAddress=127.0.0.1", "-o", "PasswordAuthentication=no", "-o", "KbdInteractiveAuthentication=no", "-o", "PubkeyAcceptedAlgorithms=sk-ecdsa-sha2-nistp256@openssh.com")
	waitFor(t, "sshd to listen", func() bool {
		conn, err := net.Dial("tcp", "127.0.0.1:"+sshPort)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

func sshFlags(key string) []string {
	return []string{"-i", "~/.ssh/" + key, "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR", "-o", "KexAlgorithms=curve25519-sha256", "-p", sshPort, "127.0.0.1", "echo logged in as $USER"}
}

func (p *person) login(t *testing.T, key, pin string) {
	t.Helper()
	x := p.terminal(t, append([]string{"ssh"}, sshFlags(key)...)...)
	if pin != "" {
		x.answer("Enter PIN for", pin)
	}
	if out := x.succeeds(); !strings.Contains(out, "logged in as "+p.name) {
		t.Errorf("ssh says\n%s", out)
	}
}

// findDevice waits for the token's device, with the rights that it will have.
func findDevice(t *testing.T, owner *person) {
	t.Helper()
	waitFor(t, "the token's device", func() bool {
		found, _ := filepath.Glob("/dev/hidraw*")
		if len(found) != 1 {
			return false
		}
		device = found[0]
		return owner.can("-w", device)
	})
}

func mainPID(t *testing.T) int {
	t.Helper()
	pid, err := strconv.Atoi(must(t, "systemctl", "show", "--property=MainPID", "--value", "limpet-fido.service"))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// patience is for a step on a machine that is emulated, and busy with other things.
const patience = 90 * time.Second

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for start := time.Now(); !done(); time.Sleep(50 * time.Millisecond) {
		if time.Since(start) > patience {
			t.Fatalf("waited for %s in vain\n%s", what, journal())
		}
	}
}

func must(t *testing.T, args ...string) string {
	t.Helper()
	return run(t, exec.Command(args[0], args[1:]...))
}

func run(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s\n%s", cmd, err, out, stderr.Bytes(), journal())
	}
	return strings.TrimSpace(string(out))
}

// journal is what the system has said last.
func journal() []byte {
	out, _ := exec.Command("journalctl", "--no-pager", "--lines=60", "--output=short-monotonic").CombinedOutput()
	return out
}

func random() string {
	b := make([]byte, 32)
	rand.Read(b)
	return base64.StdEncoding.EncodeToString(b)
}
