//go:build linux

// Command init is the first process of the virtual machine. It makes a root of
// layers that are directories of the host, which stay as they are: writes go to
// memory. Then it becomes systemd.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// removed are files of the host by which the guest would do what is the host's, or
// take long.
var removed = []string{
	"/.dockerenv", // systemd would take the guest for a container
	"/etc/crypttab",
	"/etc/fstab",
	"/etc/gshadow", // which the host's user may not be able to read
	"/etc/modules",
	"/etc/modules-load.d",
	"/etc/shadow",
	"/etc/systemd/system",
	"/etc/systemd/user",
	"/etc/udev/rules.d",
	"/usr/lib/systemd/system-generators", // and the others: programs that systemd starts at each reload
	"/usr/lib/systemd/system-environment-generators",
	"/usr/lib/systemd/user-generators",
	"/usr/lib/systemd/user-environment-generators",
}

func main() {
	if err := start(); err != nil {
		fmt.Println("init:", err)
	}
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// start returns on errors only.
func start() error {
	if err := mount("devtmpfs", "/dev", "devtmpfs", ""); err != nil {
		return err
	}
	modules, err := os.ReadFile("/modules")
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(modules)) {
		if err := load(name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if err := mount("memory", "/memory", "tmpfs", "size=60%"); err != nil {
		return err
	}
	for _, dir := range []string{"/memory/upper", "/memory/work"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	layers := strings.Split(os.Getenv("layers"), ":") // from the kernel's command line
	for i, tag := range layers {
		layers[i] = "/layers/" + tag
		if err := mount(tag, layers[i], "9p", "trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro"); err != nil {
			return err
		}
	}
	if err := mount("root", "/root", "overlay", "lowerdir="+strings.Join(layers, ":")+",upperdir=/memory/upper,workdir=/memory/work"); err != nil {
		return err
	}
	for _, name := range removed {
		if err := os.RemoveAll("/root" + name); err != nil {
			return err
		}
	}
	for _, name := range []string{"/etc/gshadow", "/etc/shadow"} {
		if err := os.WriteFile("/root"+name, nil, 0o600); err != nil {
			return err
		}
	}
	for _, dir := range []string{"/dev", "/proc", "/sys", "/run", "/tmp"} {
		if err := os.MkdirAll("/root"+dir, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("/dev", "/root/dev", "", unix.MS_MOVE, ""); err != nil {
		return err
	}
	for _, dir := range []string{"/run", "/tmp"} {
		if err := mount("tmpfs", "/root"+dir, "tmpfs", "mode=755"); err != nil {
			return err
		}
	}
	if err := os.Chdir("/root"); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return err
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	if err := os.Chmod("/tmp", 0o1777); err != nil {
		return err
	}
	return syscall.Exec("/lib/systemd/systemd", []string{"systemd", "--unit=" + os.Getenv("unit")}, []string{"PATH=/usr/sbin:/usr/bin"})
}

func mount(source, target, kind, options string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(source, target, kind, 0, options); err != nil {
		return fmt.Errorf("mount %s on %s: %w", kind, target, err)
	}
	return nil
}

func load(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	flags := 0
	if filepath.Ext(name) != ".ko" {
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	return unix.FinitModule(int(f.Fd()), "", flags)
}
