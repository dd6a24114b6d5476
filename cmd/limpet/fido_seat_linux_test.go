package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/fido"
	"github.com/limpet-auth/limpet/fido/control"
	"github.com/limpet-auth/limpet/fido/seat"
	"github.com/limpet-auth/limpet/fido/seat/seattest"
)

// undecided is a user who does not answer.
type undecided struct{ asked, gone chan struct{} }

func (u undecided) Ask(ctx context.Context, _ fido.Request) (bool, error) {
	u.asked <- struct{}{}
	<-ctx.Done()
	u.gone <- struct{}{}
	return false, ctx.Err()
}

// exchange sends a CTAPHID message of one report, and returns the next answer's
// command and data that is not a keepalive.
func exchange(hosts net.Conn, channel uint32, cmd byte, data ...byte) (byte, []byte, error) {
	report := make([]byte, 64)
	binary.BigEndian.PutUint32(report, channel)
	report[4] = 0x80 | cmd
	binary.BigEndian.PutUint16(report[5:], uint16(len(data)))
	copy(report[7:], data)
	hosts.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := hosts.Write(report); err != nil {
		return 0, nil, err
	}
	for {
		if _, err := hosts.Read(report); err != nil {
			return 0, nil, err
		}
		if report[4] != 0x80|0x3b {
			n := min(int(binary.BigEndian.Uint16(report[5:])), 57)
			return report[4] &^ 0x80, report[7 : 7+n], nil
		}
	}
}

// TestSystemToken: the machine's token is plugged in anew for the next user, and
// unplugged while nobody can tell who that is.
func TestSystemToken(t *testing.T) {
	logind := seattest.Start(t)
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", logind.Address)
	logind.Sit(os.Getuid())
	free, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	addr := free.LocalAddr().String()
	free.Close()
	dir, err := os.MkdirTemp("", "fido-") // a socket's name has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "run", "socket")
	token := fidoToken{software: filepath.Join(dir, "keys"), datagram: addr, socket: fidoSocket(socket), prompt: promptAgent, system: true, logFormat: "text"}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- token.run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()

	var hosts net.Conn
	until := func(what string, there bool) (channel uint32) {
		t.Helper()
		for start := time.Now(); time.Since(start) < 20*time.Second; time.Sleep(10 * time.Millisecond) {
			var err error
			if hosts, err = net.Dial("udp", addr); err != nil { // each time, lest it hear old answers
				t.Fatal(err)
			}
			t.Cleanup(func() { hosts.Close() })
			cmd, data, err := exchange(hosts, 0xffffffff, 6, 1, 2, 3, 4, 5, 6, 7, 8)
			if there && err == nil && cmd == 6 && bytes.HasPrefix(data, []byte{1, 2, 3, 4, 5, 6, 7, 8}) {
				return binary.BigEndian.Uint32(data[8:])
			}
			if !there && errors.Is(err, syscall.ECONNREFUSED) {
				return 0
			}
		}
		t.Fatalf("%s: plugged in is not %v", what, there)
		return 0
	}
	channel := until("at first", true)
	u := undecided{make(chan struct{}, 1), make(chan struct{}, 1)}
	there := make(chan struct{})
	go control.Attend(ctx, socket, u, func() { close(there) })
	wait := func(what string, c chan struct{}) {
		t.Helper()
		select {
		case <-c:
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: in vain", what)
		}
	}
	wait("the agent", there)
	selection := func() {
		t.Helper()
		report := make([]byte, 64)
		binary.BigEndian.PutUint32(report, channel)
		copy(report[4:], []byte{0x90, 0, 1, 0x0b})
		if _, err := hosts.Write(report); err != nil {
			t.Fatal(err)
		}
		wait("to be asked", u.asked)
	}

	logind.Sit(os.Getuid()) // another session changes nothing
	selection()
	logind.Sit(seat.Nobody)
	wait("the question to be taken back", u.gone)
	next := until("with nobody", true)
	if cmd, data, err := exchange(hosts, channel, 0x10, 4); err != nil || cmd != 0x3f || !bytes.Equal(data, []byte{0x0b}) {
		t.Errorf("the channel of before: command %#x, %x, %v", cmd, data, err)
	}
	if cmd, data, err := exchange(hosts, next, 0x10, 4); err != nil || cmd != 0x10 || data[0] != 0 {
		t.Errorf("the new channel: command %#x, %x, %v", cmd, data, err)
	}

	for what, breaks := range map[string]func(){"another logind": logind.Replace, "no bus": logind.Stop} {
		old := until(what+", before", true)
		logind.Sit(os.Getuid())
		for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
			if cmd, _, _ := exchange(hosts, old, 0x10, 4); cmd == 0x3f {
				break
			}
			if time.Since(start) > 20*time.Second {
				t.Fatal("the channel of before still works")
			}
		}
		channel = until(what, true)
		selection()
		breaks()
		wait(what+": the question to be taken back", u.gone)
		until(what, false)
		if what == "no bus" {
			if c, err := control.Dial(socket); err != nil {
				t.Error(err)
			} else if _, err := c.Status(t.Context()); os.Getuid() != 0 && !errors.Is(err, control.ErrNobody) {
				t.Errorf("a command of who may sit there: %v", err)
			}
			logind.Restart()
		}
		until(what+", and again", true)
	}
}

// TestSystemTokenUnpluggable: what cannot be plugged in ends, for systemd to start it again.
func TestSystemTokenUnpluggable(t *testing.T) {
	logind := seattest.Start(t)
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", logind.Address)
	taken, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	dir := t.TempDir()
	token := fidoToken{software: filepath.Join(dir, "keys"), datagram: taken.LocalAddr().String(), socket: fidoSocket(filepath.Join(dir, "run", "s")), system: true, logFormat: "text", logLevel: slog.LevelError}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := token.run(ctx); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("it ended with %v", err)
	}
}

// TestAgentFindsAnother: an agent whose token has gone takes the one that is there now.
func TestAgentFindsAnother(t *testing.T) {
	dir, err := os.MkdirTemp("", "fido-") // a socket's name has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	t.Setenv("XDG_RUNTIME_DIR", dir)
	machines := systemSocket
	defer func() { systemSocket = machines }()
	systemSocket = filepath.Join(dir, "machines")
	own := filepath.Join(dir, "limpet", "fido")
	if err := os.Mkdir(filepath.Dir(own), 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	for i, path := range []string{systemSocket, own, systemSocket} {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			go func() { ended <- attend(ctx, "", promptTerminal) }()
		}
		l.SetDeadline(time.Now().Add(10 * time.Second))
		for {
			conn, err := l.Accept()
			if err != nil {
				t.Fatalf("%s, time %d: %v", path, i, err)
			}
			conn.SetDeadline(time.Now().Add(10 * time.Second))
			line, err := bufio.NewReader(conn).ReadString('\n')
			if err == nil && line == `{"do":"attend"}`+"\n" {
				io.WriteString(conn, "{}\n")
				conn.Close()
				break
			}
			conn.Close() // it only looks whether there is one
		}
		l.Close()
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
