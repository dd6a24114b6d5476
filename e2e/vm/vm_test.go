//go:build linux && amd64 && !guest

package vm

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

// TestGuest runs the guest's tests in a virtual machine.
func TestGuest(t *testing.T) {
	needPrograms(t)
	machine{
		// Far more than it takes: a minute on a slow machine with nothing else to do,
		// several on one that is busy.
		limit:  8 * time.Minute,
		memory: 1536,
		tests:  "-test.skip=^TestBrowser",
		last:   "TestDisk",
	}.run(t)
}

// machine is a virtual machine that runs the guest's tests.
type machine struct {
	limit  time.Duration
	memory int                              // MiB
	tests  string                           // which of them, as a flag of theirs
	last   string                           // that must pass
	more   func(t *testing.T, layer string) // puts more into the layer; may be nil
}

func (m machine) run(t *testing.T) {
	t.Helper()
	sources(t)
	dir := t.TempDir()
	packages := output(t, exec.Command("./packages"))
	kernels, err := filepath.Glob(filepath.Join(packages, "boot", "vmlinuz-*"))
	if err != nil || len(kernels) != 1 {
		t.Fatalf("kernels %q, want one: %v", kernels, err)
	}
	_, version, _ := strings.Cut(filepath.Base(kernels[0]), "-")

	initrd := filepath.Join(dir, "initrd")
	if err := os.WriteFile(initrd, initramfs(t, packages, version), 0o600); err != nil {
		t.Fatal(err)
	}
	layer := filepath.Join(dir, "layer")
	install(t, layer, m)

	tpm, err := os.MkdirTemp("", "swtpm-") // a socket's name has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(tpm)
	ctx, cancel := context.WithTimeout(t.Context(), m.limit)
	defer cancel()
	socket := filepath.Join(tpm, "ctrl")
	swtpm := exec.CommandContext(ctx, "swtpm", "socket", "--tpm2", "--tpmstate", "dir="+tpm,
		"--ctrl", "type=unixio,path="+socket, "--flags", "not-need-init,startup-clear", "--terminate")
	var swtpmSays bytes.Buffer
	swtpm.Stdout, swtpm.Stderr = &swtpmSays, &swtpmSays
	if err := swtpm.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		swtpm.Process.Kill()
		swtpm.Wait()
	}()
	for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(socket); err == nil {
			break
		}
		if time.Since(start) > time.Minute {
			t.Fatal("swtpm does not listen")
		}
	}

	console, results := filepath.Join(dir, "console"), filepath.Join(dir, "results")
	qemu := exec.CommandContext(ctx, "qemu-system-x86_64",
		"-machine", "q35,sata=off", "-accel", "tcg,thread=multi", "-cpu", "Nehalem", "-smp", "2", "-m", strconv.Itoa(m.memory),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-serial", "file:"+console, "-serial", "file:"+results,
		"-kernel", kernels[0], "-initrd", initrd,
		"-append", "console=ttyS0 quiet panic=-1 mitigations=off rdinit=/init systemd.show_status=no unit=limpet-vm.service layers=layer:packages:host",
		"-chardev", "socket,id=tpm,path="+socket, "-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0",
		"-object", "rng-random,id=rng0,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng0",
		"-virtfs", share("layer", layer), "-virtfs", share("packages", packages), "-virtfs", share("host", "/"))
	qemu.WaitDelay = 10 * time.Second
	start := time.Now()
	said, err := qemu.CombinedOutput()
	if state := qemu.ProcessState; state != nil {
		t.Logf("the machine ran for %.1f s, and took %.1f s of CPU", time.Since(start).Seconds(), (state.UserTime() + state.SystemTime()).Seconds())
	}
	if err != nil {
		t.Errorf("qemu: %v\n%s%s", err, said, swtpmSays.Bytes())
	}
	result := strings.ReplaceAll(read(t, results), "\r", "")
	t.Log("\n" + result)
	if !regexp.MustCompile(`(?m)^PASS$`).MatchString(result) || !strings.Contains(result, "--- PASS: "+m.last) {
		t.Errorf("the guest's tests did not pass; its console:\n%s", read(t, console))
	}
}

// needPrograms makes sure of what runs here and of what runs in the guest, which
// has the programs of this machine.
func needPrograms(t *testing.T) {
	t.Helper()
	var missing []string
	for _, name := range []string{"qemu-system-x86_64", "swtpm", "apt-get", "dpkg-deb", "depmod", "modprobe", "/lib/systemd/systemd", "/lib/systemd/systemd-logind", "/lib/systemd/systemd-udevd", "dbus-daemon", "fido2-token", "fido2-cred", "fido2-assert", "ssh", "ssh-keygen", "/usr/lib/polkit-1/polkitd", "pkttyagent", "pamtester", "cryptsetup", "systemd-cryptenroll", "/lib/systemd/systemd-cryptsetup"} {
		if _, err := exec.LookPath(name); err != nil {
			missing = append(missing, name)
		}
	}
	if exec.Command("/usr/bin/python3", "-c", "import fido2").Run() != nil {
		missing = append(missing, "python3-fido2")
	}
	if found, _ := filepath.Glob("/lib/*/security/pam_u2f.so"); found == nil {
		missing = append(missing, "pam_u2f.so")
	}
	if missing == nil {
		return
	}
	words := fmt.Sprintf("not installed: %s. This test needs Debian, and apt-get install --no-install-recommends qemu-system-x86 swtpm kmod systemd udev tpm-udev dbus libpam-systemd polkitd fido2-tools python3-fido2 openssh-client libpam-u2f pamtester cryptsetup-bin, after Debian 12 systemd-cryptsetup too", strings.Join(missing, ", "))
	if os.Getenv("CI") != "" {
		t.Fatal(words)
	}
	t.Skip(words)
}

// sources reads what the guest's programs are built from: go test then knows that
// results are of these, and does not repeat old ones.
func sources(t *testing.T) {
	t.Helper()
	err := filepath.WalkDir("../..", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "node_modules" || d.Name() == ".git" || d.Name() == "dist"):
			return filepath.SkipDir
		case filepath.Ext(name) == ".go" || filepath.Base(name) == "go.mod" || filepath.Base(name) == "packages":
			_, err = os.ReadFile(name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// share is qemu's for a directory that the guest can mount by tag.
func share(tag, dir string) string {
	return "local,readonly=on,security_model=none,multidevs=remap,mount_tag=" + tag + ",path=" + dir
}

// initramfs returns the archive with init and the modules it needs to reach the
// root. Its format is newc of the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
func initramfs(t *testing.T, packages, version string) []byte {
	t.Helper()
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", filepath.Join(t.TempDir(), "init"), "./init")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	output(t, build)
	var archive bytes.Buffer
	add := func(name string, mode int, content []byte) {
		fmt.Fprintf(&archive, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
			0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0, name)
		archive.Write(make([]byte, -archive.Len()&3))
		archive.Write(content)
		archive.Write(make([]byte, -archive.Len()&3))
	}
	add("init", 0o100755, []byte(read(t, build.Args[4])))
	var modules []string
	seen := make(map[string]bool)
	for _, module := range []string{"virtio_pci", "virtio_rng", "9pnet_virtio", "9p", "overlay"} {
		for line := range strings.Lines(output(t, exec.Command("modprobe", "-d", packages, "-S", version, "--show-depends", module))) {
			if _, file, found := strings.Cut(strings.TrimSpace(line), "insmod "); found && !seen[file] {
				seen[file] = true
				name := filepath.Base(file)
				modules = append(modules, name)
				add(name, 0o100644, []byte(read(t, file)))
			}
		}
	}
	add("modules", 0o100644, []byte(strings.Join(modules, "\n")))
	add("TRAILER!!!", 0, nil)
	return archive.Bytes()
}

// unit runs the guest's tests that a flag names, and ends the machine.
const unit = `[Unit]
SuccessAction=poweroff-force
FailureAction=poweroff-force
Wants=systemd-logind.service
After=systemd-logind.service

[Service]
Type=oneshot
Environment=HOME=/root PATH=/usr/sbin:/usr/bin
ExecStart=/usr/lib/limpet-vm/guest.test -test.v -test.failfast %s
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS1
`

// install fills the layer with what the package for Debian has, the binary, and
// the guest's tests.
func install(t *testing.T, layer string, m machine) {
	t.Helper()
	put := func(name string, mode os.FileMode, content string) {
		t.Helper()
		put(t, filepath.Join(layer, name), mode, content)
	}
	var pack struct {
		Contents []struct {
			Src, Dst string
			FileInfo struct{ Mode os.FileMode } `yaml:"file_info"`
		}
		Scripts map[string]string
	}
	if err := yaml.Unmarshal([]byte(read(t, "../../packaging/nfpm.yaml")), &pack); err != nil {
		t.Fatal(err)
	}
	for _, file := range pack.Contents {
		if strings.HasPrefix(file.Src, "packaging/") {
			put(file.Dst, file.FileInfo.Mode, read(t, "../../"+file.Src))
		}
	}
	put("/usr/lib/limpet-vm/postinst", 0o755, read(t, "../../"+pack.Scripts["postinstall"]))
	put("/usr/lib/systemd/system/limpet-vm.service", 0o644, fmt.Sprintf(unit, m.tests))
	put("/usr/lib/sysusers.d/limpet-vm.conf", 0o644, "u sshd - - /run/sshd\n") // which sshd wants
	for _, args := range [][]string{
		{"build", "-trimpath", "-tags", "grpcnotrace", "-o", layer + "/usr/bin/limpet", "../../cmd/limpet"},
		{"test", "-c", "-tags", "guest", "-o", layer + "/usr/lib/limpet-vm/guest.test", "."},
	} {
		build := exec.Command("go", args...)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		output(t, build)
	}
	if m.more != nil {
		m.more(t, layer)
	}
	// Whatever the umask was: these are the guest's directories.
	err := filepath.WalkDir(layer, func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			err = os.Chmod(name, 0o755)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func put(t *testing.T, name string, mode os.FileMode, content string) {
	t.Helper()
	err := os.MkdirAll(filepath.Dir(name), 0o755)
	if err == nil {
		err = os.WriteFile(name, []byte(content), mode)
	}
	if err == nil {
		err = os.Chmod(name, mode)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func output(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, stderr.Bytes())
	}
	return strings.TrimSpace(string(out))
}
