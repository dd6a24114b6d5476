package polkit_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/limpet-auth/limpet/fido"
	"github.com/limpet-auth/limpet/fido/polkit"
	"github.com/limpet-auth/limpet/fido/seat"
)

// What TestPolkit runs as.
const (
	mode      = "LIMPET_TEST_POLKIT"
	inside    = "inside"     // with files of its own
	anAgent   = "agent"      // a desktop's, in alice's session
	asService = "as someone" // verifies alice

	alice, fidoUser, nobody = 42421, 42422, 65534
	session                 = "c7"
	password                = "correct horse"
)

var register = fido.Request{Operation: fido.Register, RPID: "example.com", RPName: "<i>Example</i>", Account: "alice"}

// TestPolkit has the real polkitd ask an agent, who has PAM check the password. The
// bus and what systemd-logind would say are in a mount namespace: nothing of the
// machine's own is touched.
func TestPolkit(t *testing.T) {
	switch os.Getenv(mode) {
	case anAgent:
		attend(t)
		return
	case asService:
		leader, _ := strconv.ParseUint(os.Getenv("LIMPET_TEST_LEADER"), 10, 32)
		v := polkit.New(func(context.Context) (seat.Session, error) {
			return seat.Session{ID: session, UID: alice, Leader: uint32(leader)}, nil
		})
		fmt.Println("result:", v.Verify(t.Context(), session, register))
		return
	case inside:
	default:
		for _, program := range []string{polkitd, helper, "/usr/bin/dbus-daemon"} {
			if _, err := os.Stat(program); err != nil {
				if os.Getenv("CI") != "" {
					t.Fatal(err)
				}
				t.Skip(err)
			}
		}
		command := []string{"unshare", "--mount", "--propagation", "private", "env", mode + "=" + inside, os.Args[0], "-test.run", "^TestPolkit$", "-test.v"}
		if os.Getuid() != 0 {
			command = append([]string{"sudo", "-n"}, command...)
			if out, err := exec.Command("sudo", "-n", "true").CombinedOutput(); err != nil && os.Getenv("CI") == "" {
				t.Skipf("polkit's helper and mount namespaces need root: %v, %s", err, out)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, command[0], command[1:]...)
		cmd.WaitDelay = time.Second
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	broker := furnish(t)
	sessionIs(t, "active")
	start(t, exec.Command(polkitd, "--no-debug"))
	bus, err := dbus.ConnectSystemBus()
	if err != nil {
		t.Fatal(err)
	}
	defer bus.Close()
	waitFor(t, "polkitd", func() bool {
		var there bool
		err := bus.BusObject().Call("org.freedesktop.DBus.NameHasOwner", 0, "org.freedesktop.PolicyKit1").Store(&there)
		return err == nil && there
	})
	leader := exec.Command("sleep", "infinity")
	start(t, leader)
	join(t, leader)
	t.Setenv("LIMPET_TEST_LEADER", strconv.Itoa(leader.Process.Pid))
	active := seat.Session{ID: session, UID: alice, Leader: uint32(leader.Process.Pid)}
	v := polkit.New(func(context.Context) (seat.Session, error) { return active, nil })
	verify := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		return v.Verify(ctx, session, register)
	}

	if err := verify(); err == nil || !strings.Contains(err.Error(), "no authentication agent") {
		t.Errorf("without an agent: %v", err)
	}
	a := newAgent(t)
	const asked = "Limpet security token: Register with example.com (calls itself \"\ufffdi\ufffdExample\ufffd/i\ufffd\") as \"alice\"?"
	for _, test := range []struct {
		what, answer string
		want         error
	}{
		{"the password", password, nil},
		{"a wrong one", "wrong", fido.ErrNotVerified},
		{"the password, asked again", password, nil},
		{"dismissed", dismiss, fido.ErrDismissed},
	} {
		go a.answer(t, asked, test.answer)
		if err := verify(); !errors.Is(err, test.want) || test.want == nil && err != nil {
			t.Errorf("%s: %v, want %v", test.what, err, test.want)
		}
		a.answered(t)
	}

	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		a.says(t, asked)
		cancel()
	}()
	if err := v.Verify(ctx, session, register); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	a.says(t, "cancelled")
	fmt.Fprintln(a.in, dismiss)

	// The service's user may ask, and say what it is about; others may not.
	for uid, want := range map[uint32]string{fidoUser: "result: <nil>", nobody: "Only trusted callers"} {
		if uid == fidoUser {
			go a.answer(t, asked, password)
		}
		out, err := as(uid, asService).CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("as user %d: %v, %s, want %s", uid, err, out, want)
		}
		if uid == fidoUser {
			a.answered(t)
		}
	}

	sessionIs(t, "online") // another one is active
	if err := verify(); !errors.Is(err, fido.ErrNotVerified) {
		t.Errorf("in the background: %v", err)
	}
	if err := v.Verify(t.Context(), "c8", register); err == nil || errors.Is(err, fido.ErrNotVerified) {
		t.Errorf("another session: %v", err)
	}
	broker.Process.Kill()
	if err := verify(); err == nil || errors.Is(err, fido.ErrNotVerified) {
		t.Errorf("without a bus: %v", err)
	}
}

const (
	polkitd = "/usr/lib/polkit-1/polkitd"
	helper  = "/usr/lib/polkit-1/polkit-agent-helper-1"
)

// furnish makes the namespace's files: three users, the action, a system bus.
func furnish(t *testing.T) (broker *exec.Cmd) {
	t.Helper()
	os.Unsetenv("DBUS_SYSTEM_BUS_ADDRESS")
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	crypted, err := exec.Command("openssl", "passwd", "-6", password).Output()
	if err != nil {
		t.Fatal(err)
	}
	for name, line := range map[string]string{
		"/etc/passwd": fmt.Sprintf("limpet-alice:x:%d:%d::/:/bin/sh\nlimpet-fido:x:%d:%d::/:/bin/sh\n", alice, alice, fidoUser, fidoUser),
		"/etc/shadow": fmt.Sprintf("limpet-alice:%s:20000::::::\n", bytes.TrimSpace(crypted)),
	} {
		before, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var kept []byte
		for line := range bytes.Lines(before) {
			if !bytes.HasPrefix(line, []byte("limpet-")) {
				kept = append(kept, line...)
			}
		}
		over(t, filepath.Join(dir, filepath.Base(name)), name, string(kept)+line)
	}
	policy, err := os.ReadFile("../../packaging/polkit/io.github.limpet-auth.limpet.policy")
	if err != nil {
		t.Fatal(err)
	}
	actions := filepath.Join(dir, "actions")
	if err := os.Mkdir(actions, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(actions, "io.github.limpet-auth.limpet.policy"), policy, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(actions, "/usr/share/polkit-1/actions", "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", "/run", "tmpfs", 0, "mode=755"); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"/run/dbus", "/run/systemd/sessions", "/run/systemd/seats", "/run/systemd/users", "/run/systemd/machines"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	broker = exec.Command("dbus-daemon", "--system", "--nofork", "--nopidfile")
	start(t, broker)
	waitFor(t, "the bus", func() bool {
		_, err := os.Stat("/run/dbus/system_bus_socket")
		return err == nil
	})
	return broker
}

// over lays a file with a content over another.
func over(t *testing.T, with, name, content string) {
	t.Helper()
	fi, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(with, []byte(content), fi.Mode()); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(with, name, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
}

// sessionIs writes what systemd-logind does of alice's session at seat0.
func sessionIs(t *testing.T, state string) {
	t.Helper()
	active := 0
	if state == "active" {
		active = 1
	}
	for name, content := range map[string]string{
		"sessions/" + session:          fmt.Sprintf("UID=%d\nUSER=limpet-alice\nACTIVE=%d\nSTATE=%s\nREMOTE=0\nTYPE=wayland\nCLASS=user\nSEAT=seat0\n", alice, active, state),
		fmt.Sprintf("users/%d", alice): fmt.Sprintf("NAME=limpet-alice\nSTATE=%s\nDISPLAY=%s\nSESSIONS=%s\nSEATS=seat0\n", state, session, session),
		"seats/seat0":                  fmt.Sprintf("ACTIVE=%s\nACTIVE_UID=%d\nSESSIONS=%s\nUIDS=%d\n", session, alice, session, alice),
	} {
		if err := os.WriteFile("/run/systemd/"+name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func start(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// as runs this test in another mode, as a user.
func as(uid uint32, what string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", "-test.run", "^TestPolkit$")
	cmd.Env = append(os.Environ(), mode+"="+what)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	return cmd
}

// agent is alice's desktop, which says what it is asked in lines.
type agent struct {
	in    io.Writer
	lines *bufio.Scanner
	was   string // what it said last
	done  chan struct{}
}

const dismiss = "\x1b"

func newAgent(t *testing.T) *agent {
	t.Helper()
	cmd := as(alice, anAgent)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	join(t, cmd)
	fmt.Fprintln(in)
	a := &agent{in: in, lines: bufio.NewScanner(out), done: make(chan struct{})}
	a.says(t, "registered")
	return a
}

// join makes a process one of the session, which is told by its control group.
func join(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	where := fmt.Sprintf("/user.slice/user-%d.slice/session-%s.scope\n", alice, session)
	over(t, filepath.Join(t.TempDir(), "cgroup"), fmt.Sprintf("/proc/%d/cgroup", cmd.Process.Pid), "1:name=systemd:"+where+"0::"+where)
}

func (a *agent) says(t *testing.T, words string) {
	for a.lines.Scan() {
		switch got := a.lines.Text(); {
		case got == "cancelled" && a.was == got: // polkit says it again when who asked has hung up
		case got != words:
			t.Errorf("the agent says %q, want %q", got, words)
			return
		default:
			a.was = got
			return
		}
	}
	t.Errorf("the agent has gone: %v", a.lines.Err())
}

func (a *agent) answer(t *testing.T, question, line string) {
	a.says(t, question)
	fmt.Fprintln(a.in, line)
	a.done <- struct{}{}
}

func (a *agent) answered(t *testing.T) {
	t.Helper()
	select {
	case <-a.done:
	case <-time.After(10 * time.Second):
		t.Fatal("nothing was asked")
	}
}

// dialogs is an org.freedesktop.PolicyKit1.AuthenticationAgent.
type dialogs struct{ answers *bufio.Scanner }

func (d *dialogs) BeginAuthentication(_, message, _ string, _ map[string]string, cookie string, _ []identity) *dbus.Error {
	fmt.Println(message)
	if !d.answers.Scan() {
		os.Exit(1)
	}
	answer := d.answers.Text()
	if answer == dismiss {
		return dbus.NewError("org.freedesktop.PolicyKit1.Error.Cancelled", nil)
	}
	cmd := exec.Command(helper, "limpet-alice")
	cmd.Stdin = strings.NewReader(cookie + "\n" + answer + "\n")
	cmd.Stderr = os.Stderr
	if out, err := cmd.Output(); err != nil && !strings.Contains(string(out), "FAILURE") {
		fmt.Printf("%v: %s\n", err, out)
	}
	return nil
}

func (d *dialogs) CancelAuthentication(string) *dbus.Error {
	fmt.Println("cancelled")
	return nil
}

type identity struct {
	Kind    string
	Details map[string]dbus.Variant
}

// attend is the agent's process.
func attend(t *testing.T) {
	answers := bufio.NewScanner(os.Stdin)
	answers.Scan() // it is in its session
	bus, err := dbus.ConnectSystemBus()
	if err != nil {
		t.Fatal(err)
	}
	const where = "/org/limpet/Agent"
	if err := bus.Export(&dialogs{answers}, where, "org.freedesktop.PolicyKit1.AuthenticationAgent"); err != nil {
		t.Fatal(err)
	}
	subject := identity{"unix-session", map[string]dbus.Variant{"session-id": dbus.MakeVariant(session)}}
	err = bus.Object("org.freedesktop.PolicyKit1", "/org/freedesktop/PolicyKit1/Authority").
		Call("org.freedesktop.PolicyKit1.Authority.RegisterAuthenticationAgent", 0, subject, "C", where).Err
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("registered")
	select {}
}
