package control_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/limpet-auth/limpet/fido"
	"github.com/limpet-auth/limpet/fido/control"
	"github.com/limpet-auth/limpet/fido/softvault"
)

// asRoot reports whether a test is to go on here: being other users takes root, and
// without it the test runs by sudo where it must.
func asRoot(t *testing.T) bool {
	t.Helper()
	if os.Getuid() == 0 {
		return true
	}
	if os.Getenv("CI") == "" {
		t.Skip("being other users takes root")
	}
	if out, err := exec.CommandContext(t.Context(), "sudo", "-n", os.Args[0], "-test.run=^"+t.Name()+"$").CombinedOutput(); err != nil {
		t.Fatalf("being other users takes root: %v\n%s", err, out)
	}
	return false
}

// machine starts a token that belongs to whoever owner says, or nobody, -1, with a
// socket for all users.
func machine(t *testing.T, owner *atomic.Int64, logTo io.Writer) (path string, desk *control.Desk) {
	t.Helper()
	dir, err := os.MkdirTemp("", "fido-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	vault, err := softvault.Open(filepath.Join(dir, "vault"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { vault.Close() })
	log := slog.New(slog.NewTextHandler(logTo, nil))
	desk = control.NewDesk(log, func(context.Context) (int, error) {
		if uid := int(owner.Load()); uid >= 0 {
			return uid, nil
		}
		return 0, errors.New("nobody is there")
	})
	desk.Change(int(owner.Load()))
	token, err := fido.New(t.Context(), fido.Config{Vault: vault, Prompt: desk, File: filepath.Join(dir, "vault", "credentials"), Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(dir, "socket")
	l, err := net.Listen("unix", path)
	if err == nil {
		err = errors.Join(os.Chmod(dir, 0o755), os.Chmod(path, 0o666))
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- desk.Serve(ctx, l, token) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return path, desk
}

// as does something as another user: on a thread of its own, since the kernel has the
// user of each thread apart.
func as(t *testing.T, uid int, do func() error) error {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
			done <- errno
			return
		}
		done <- do()
	}()
	return <-done
}

// connect connects as a user and sends a line, if there is one.
func connect(t *testing.T, path string, uid int, line string) net.Conn {
	t.Helper()
	var conn net.Conn
	err := as(t, uid, func() error {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		file := os.NewFile(uintptr(fd), "")
		defer file.Close()
		if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
			return err
		}
		conn, err = net.FileConn(file)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	io.WriteString(conn, line) // may be hung up on already
	return conn
}

// answered returns the first bytes that come, and whether some do.
func answered(conn net.Conn) (string, bool) {
	b := make([]byte, 4096)
	n, err := conn.Read(b)
	return string(b[:n]), err == nil
}

const (
	alice, bob = 4000, 4001
	stranger   = 100000 // and those after it: subordinate users

	status = `{"do":"status"}` + "\n"
	agent  = `{"do":"attend"}` + "\n"
)

// TestUsers: the socket tells users apart by what the kernel says of them.
func TestUsers(t *testing.T) {
	if !asRoot(t) {
		return
	}
	t.Parallel()
	var owner atomic.Int64
	owner.Store(alice)
	path, _ := machine(t, &owner, io.Discard)
	for uid, obeyed := range map[int]bool{0: true, alice: true, bob: false} {
		if got, ok := answered(connect(t, path, uid, status)); !ok || (got == `{"error":"elsewhere"}`+"\n") == obeyed {
			t.Errorf("user %d: %q", uid, got)
		}
	}
}

// TestPlaces: whoever takes all places, by whatever they send or do not send, root and
// the token's user get one, and what they have they keep.
func TestPlaces(t *testing.T) {
	if !asRoot(t) {
		return
	}
	t.Parallel()
	for what, line := range map[string]string{"say nothing": "", "are agents": agent, "command": status} {
		var owner atomic.Int64
		owner.Store(alice)
		path, desk := machine(t, &owner, io.Discard)
		first := connect(t, path, alice, agent)
		if _, ok := answered(first); !ok {
			t.Fatal("no agent is taken")
		}
		const crowd = 80
		fill := func() {
			for i := range crowd {
				connect(t, path, stranger+i, line)
			}
		}
		fill()
		for i := range 4 {
			for _, uid := range []int{alice, 0} {
				if got, ok := answered(connect(t, path, uid, status)); !ok {
					t.Errorf("%d others %s: user %d, time %d, is shut out: %q", crowd, what, uid, i, got)
				}
			}
		}
		if _, ok := answered(connect(t, path, alice, agent)); !ok {
			t.Errorf("%d others %s: no agent is taken", crowd, what)
		}

		// The next user.
		owner.Store(bob)
		desk.Change(bob)
		fill()
		if got, ok := answered(connect(t, path, bob, status)); !ok {
			t.Errorf("%d others %s: the next user is shut out: %q", crowd, what, got)
		}
	}
}

// TestOwnPlaces: a user gets eight, and room when one of them is free again; others
// are not concerned.
func TestOwnPlaces(t *testing.T) {
	if !asRoot(t) {
		return
	}
	t.Parallel()
	var owner atomic.Int64
	owner.Store(alice)
	path, _ := machine(t, &owner, io.Discard)
	var conns []net.Conn
	for range 8 {
		conn := connect(t, path, alice, agent)
		if _, ok := answered(conn); !ok {
			t.Fatal("refused")
		}
		conns = append(conns, conn)
	}
	if got, ok := answered(connect(t, path, alice, status)); ok {
		t.Errorf("a ninth: %q", got)
	}
	if _, ok := answered(connect(t, path, 0, status)); !ok {
		t.Error("root is shut out")
	}
	conns[3].Close()
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		if _, ok := answered(connect(t, path, alice, status)); ok {
			break
		}
		if time.Since(start) > 10*time.Second {
			t.Fatal("a place does not become free")
		}
	}
}

// TestChange: what the user before was asked is taken back, and what that user asked
// for ends.
func TestChange(t *testing.T) {
	if !asRoot(t) {
		return
	}
	t.Parallel()
	for _, uid := range []int{alice, 0} { // who asks for it
		var owner atomic.Int64
		owner.Store(alice)
		path, desk := machine(t, &owner, io.Discard)
		asked := connect(t, path, alice, agent)
		if _, ok := answered(asked); !ok {
			t.Fatal("no agent is taken")
		}
		reset := connect(t, path, uid, `{"do":"reset"}`+"\n")
		if got, ok := answered(asked); !ok || got != `{"ask":1,"request":{"operation":"reset"}}`+"\n" {
			t.Fatalf("asked %q", got)
		}
		bobs := connect(t, path, bob, agent)
		if _, ok := answered(bobs); !ok {
			t.Fatal("bob's agent is not taken")
		}
		owner.Store(bob)
		desk.Change(bob)
		if got, ok := answered(asked); !ok || got != `{"withdraw":1}`+"\n" {
			t.Errorf("the question is not taken back: %q", got)
		}
		fmt.Fprintln(asked, `{"answer":1,"allowed":true}`)
		want := `{"error":"elsewhere"}`
		if uid == 0 {
			want = `{"error":"not-allowed"}`
		}
		if got, ok := answered(reset); !ok || got != want+"\n" {
			t.Errorf("user %d is told %q", uid, got)
		}
		allowed := make(chan bool, 1)
		go func() {
			ok, err := desk.Ask(t.Context(), fido.Request{Operation: fido.Reset})
			allowed <- ok && err == nil
		}()
		if got, ok := answered(bobs); !ok || got != `{"ask":2,"request":{"operation":"reset"}}`+"\n" {
			t.Fatalf("bob is asked %q", got)
		}
		fmt.Fprintln(bobs, `{"answer":2,"allowed":true}`)
		if !<-allowed {
			t.Error("bob's answer does not count")
		}
	}
}

// TestNobody: who is there while the token is nobody's, as it is for a moment between
// two users, is told to try again.
func TestNobody(t *testing.T) {
	if !asRoot(t) {
		return
	}
	t.Parallel()
	var owner atomic.Int64
	owner.Store(-1)
	path, desk := machine(t, &owner, io.Discard)
	const nobody = `{"error":"nobody"}` + "\n"
	if got, _ := answered(connect(t, path, bob, status)); got != nobody {
		t.Errorf("nobody sits there: %q", got)
	}
	owner.Store(bob) // which the desk has not heard yet
	asked := connect(t, path, bob, agent)
	if _, ok := answered(asked); !ok {
		t.Fatal("no agent is taken")
	}
	reset := connect(t, path, bob, `{"do":"reset"}`+"\n")
	if _, ok := answered(asked); !ok {
		t.Fatal("bob is not asked")
	}
	desk.Change(bob)
	if got, _ := answered(reset); got != nobody {
		t.Errorf("now bob does: %q", got)
	}
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	owner.Store(-1)
	if err := as(t, bob, func() error {
		c, err := control.Dial(path)
		if err == nil {
			_, err = c.Status(t.Context())
		}
		return err
	}); !errors.Is(err, control.ErrNobody) {
		t.Errorf("a client is told %v", err)
	}
}

// TestDeaf: nobody waits for an agent that does not read.
func TestDeaf(t *testing.T) {
	t.Parallel()
	var owner atomic.Int64
	owner.Store(int64(os.Getuid()))
	path, desk := machine(t, &owner, io.Discard)
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, agent)
	if _, ok := answered(conn); !ok {
		t.Fatal("no agent is taken")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 2000 { // more than a socket holds
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Microsecond)
			if _, err := desk.Ask(ctx, fido.Request{RPName: strings.Repeat("x", 300)}); errors.Is(err, control.ErrNoAgent) {
				cancel()
				return
			}
			cancel()
		}
	}()
	select {
	case <-done:
	case <-time.After(9 * time.Second):
		t.Error("who asks waits for it")
	}
}

// lines are what is logged.
type lines chan string

func (l lines) Write(b []byte) (int, error) { l <- string(b); return len(b), nil }

// TestAgentsAreLogged: those of root and of the user who sits there, and not what
// anybody else can do without end.
func TestAgentsAreLogged(t *testing.T) {
	if !asRoot(t) {
		return
	}
	t.Parallel()
	var owner atomic.Int64
	owner.Store(alice)
	log := make(lines, 100)
	path, _ := machine(t, &owner, log)
	for _, uid := range []int{bob, stranger, alice, 0} {
		conn := connect(t, path, uid, agent)
		if _, ok := answered(conn); !ok {
			t.Fatal("no agent is taken")
		}
		conn.Close()
		if uid != alice && uid != 0 {
			continue
		}
		for _, what := range []string{"is there", "has gone"} {
			want := fmt.Sprintf("msg=\"a prompt agent %s\" user=%d\n", what, uid)
			if got := <-log; !strings.HasSuffix(got, want) {
				t.Errorf("logged: %q, want %q", got, want)
			}
		}
	}
}
