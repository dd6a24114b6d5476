package handshake

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/md5"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// pythons are all python3 of this machine, a program for each version.
func pythons(t *testing.T) []string {
	t.Helper()
	var found []string
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		found = append(found, filepath.Join(dir, "python3"))
	}
	if home, err := os.UserHomeDir(); err == nil {
		more, _ := filepath.Glob(filepath.Join(home, ".pyenv/versions/*/bin/python3"))
		found = append(found, more...)
	}
	versions := map[string]string{}
	for _, path := range found {
		if out, err := exec.Command(path, "-c", "import sys; print(sys.version_info[:3])").Output(); err == nil && versions[string(out)] == "" {
			versions[string(out)] = path
		}
	}
	if len(versions) == 0 {
		t.Fatal("there is no python3, which these tests talk to: install it")
	}
	var paths []string
	for _, path := range versions {
		paths = append(paths, path)
	}
	slices.Sort(paths)
	return paths
}

// peer is testdata/peer.py, running.
type peer struct {
	in           io.Writer
	out          *bufio.Scanner
	major, minor int
}

func startPeer(t *testing.T, python string) *peer {
	t.Helper()
	cmd := exec.Command(python, "testdata/peer.py")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Process.Kill(); cmd.Wait() })
	p := &peer{in: in, out: bufio.NewScanner(out)}
	if _, err := fmt.Sscan(p.line(t), new(string), &p.major, &p.minor); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *peer) line(t *testing.T) string {
	t.Helper()
	if !p.out.Scan() {
		t.Fatal("the peer has ended:", p.out.Err())
	}
	return p.out.Text()
}

func (p *peer) do(format string, args ...any) { fmt.Fprintf(p.in, format+"\n", args...) }

// dialTo has the peer connect to a server of ours, and tells both results.
func (p *peer) dialTo(t *testing.T, srv *Config, how string, secret []byte, talk func(net.Conn) error) (string, error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p.do(how+" %x", strings.TrimPrefix(l.Addr().String(), "127.0.0.1:"), secret)
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c, err := Server(t.Context(), conn, srv)
	if err == nil {
		defer c.Close()
		if c.PeerID() != srv.Peer {
			t.Errorf("the peer is %q", c.PeerID())
		}
		err = talk(c)
	}
	return p.line(t), err
}

// dialed has a client of ours connect to the peer.
func (p *peer) dialed(t *testing.T, cli *Config, how string, secret []byte, talk func(net.Conn) error) (string, error) {
	t.Helper()
	p.do(how+" %x", secret)
	var port int
	if _, err := fmt.Sscan(p.line(t), new(string), &port); err != nil {
		t.Fatal(err)
	}
	c, err := (&Dialer{Config: *cli}).Dial(t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err == nil {
		defer c.Close()
		err = talk(c)
	}
	return p.line(t), err
}

// pythonTalk is Connection.send_bytes and recv_bytes.
func pythonTalk(c net.Conn) error {
	if err := writeFrame(c, []byte("world")); err != nil {
		return err
	}
	var size [4]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return err
	}
	got := make([]byte, binary.BigEndian.Uint32(size[:]))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello world" {
		return fmt.Errorf("%q, %w", got, err)
	}
	return nil
}

func TestPythonPeers(t *testing.T) {
	for _, python := range pythons(t) {
		p := startPeer(t, python)
		t.Logf("%s: %d.%d", python, p.major, p.minor)
		old := p.major == 3 && p.minor < 12
		for _, md5 := range []bool{false, true} {
			for _, right := range []bool{true, false} {
				cfg := &Config{Peer: "workers", Keys: Shared(secretA), Wire: Python, MD5: md5, Logger: slog.New(slog.DiscardHandler)}
				secret := secretA
				if !right {
					secret = secretB
				}
				admitted := right && (md5 || !old)
				for name, run := range map[string]func(*testing.T, *Config, string, []byte, func(net.Conn) error) (string, error){
					"dial %s": p.dialTo, "listen": p.dialed,
				} {
					said, err := run(t, cfg, name, secret, pythonTalk)
					if (err == nil) != admitted || (said == "ok") != admitted {
						t.Errorf("%d.%d, MD5 %v, right authkey %v, %s: it says %q, we %v", p.major, p.minor, md5, right, name, said, err)
					}
					if err != nil && !right && !errors.Is(err, ErrUnauthenticated) && !errors.Is(err, ErrRefused) && !errors.Is(err, errMD5) {
						t.Error(err)
					}
				}
			}
		}
	}
}

// frames is a scripted peer.
func frames(payloads ...string) []byte {
	var b []byte
	for _, p := range payloads {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(p))), p...)
	}
	return b
}

// Both generations and their mixture, without a Python: what each sends is known,
// its answer to our challenge is computed here.
func TestPythonGenerations(t *testing.T) {
	tag := func(digest string, message []byte) string {
		mac := hmac.New(digests[digest], secretA)
		mac.Write(message)
		return string(mac.Sum(nil))
	}
	for _, c := range []struct {
		name   string
		answer func(challenge []byte) string // to what follows #CHALLENGE#
		md5    bool
		ok     bool
	}{
		{"modern", func(m []byte) string { return "{sha256}" + tag("sha256", m) }, false, true},
		{"another digest", func(m []byte) string { return "{sha3_384}" + tag("sha3_384", m) }, false, true},
		{"old", func(m []byte) string { return tag("md5", m) }, true, true},
		{"old, not wanted", func(m []byte) string { return tag("md5", m) }, false, false},
		{"MD5 by its name", func(m []byte) string { return "{md5}" + tag("md5", m) }, true, true},
		{"MD5 by its name, not wanted", func(m []byte) string { return "{md5}" + tag("md5", m) }, false, false},
		{"not what is asked", func(m []byte) string { return "{sha256}" + tag("sha256", m[8:]) }, true, false},
		{"truncated", func(m []byte) string { return "{sha256}" + tag("sha256", m)[:16] }, true, false},
		{"MD5 for SHA-256", func(m []byte) string { return "{sha256}" + tag("md5", m) }, true, false},
		{"unknown digest", func(m []byte) string { return "{sha1}" + tag("md5", m) }, true, false},
		{"nothing", func(m []byte) string { return "" }, true, false},
		{"the challenge", func(m []byte) string { return string(m) }, true, false},
		{"too long", func(m []byte) string { return strings.Repeat("x", maxFrame+1) }, true, false},
	} {
		cfg := &Config{Peer: "workers", Keys: Shared(secretA), Wire: Python, MD5: c.md5, Logger: slog.New(slog.DiscardHandler)}
		a, b := net.Pipe()
		go func() {
			defer a.Close()
			challenge, _, err := readFrame(a)
			if err != nil {
				return
			}
			writeFrame(a, []byte(c.answer(challenge[len(pythonChallenge):])))
			if verdict, _, _ := readFrame(a); string(verdict) != pythonWelcome {
				return
			}
			a.Write(frames(pythonChallenge + "{sha256}" + strings.Repeat("r", 40)))
			if got, _, _ := readFrame(a); string(got) != "{sha256}"+tag("sha256", []byte("{sha256}"+strings.Repeat("r", 40))) {
				t.Errorf("%s: our answer is %q", c.name, got)
			}
			a.Write(frames(pythonWelcome))
			io.Copy(io.Discard, a)
		}()
		if _, err := Server(t.Context(), b, cfg); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
		b.Close()
	}
}

// What our client answers to challenges, with vectors of Python 3.11 and 3.13
// for the secret "0123456789abcdef0123456789abcdef".
func TestPythonVectors(t *testing.T) {
	for _, c := range []struct {
		challenge string
		md5       bool
		want      string // hex; "" if it is refused
	}{
		{"01234567890123456789", true, pythonVectorOld},
		{"01234567890123456789", false, ""},
		{"{sha256}0123456789012345678901234567890123456789", false, "7b7368613235367d" + pythonVectorSHA256},
		{"{sha3_256}0123456789012345678901234567890123456789", false, "7b736861335f3235367d" + pythonVectorSHA3},
		{"{md5}0123456789012345678901234567890123456789", false, ""},
		{"{sha1}0123456789012345678901234567890123456789", true, ""},
		{"{sha256}", true, ""},
		{"0123456789", true, ""},
		{"0123456789012345", true, ""}, // shorter than Python's own
		{"", true, ""},
		{strings.Repeat("x", 200), true, ""},
	} {
		cfg := &Config{Peer: "workers", Keys: Shared(secretA), Wire: Python, MD5: c.md5, Logger: slog.New(slog.DiscardHandler), Timeout: time.Second}
		a, b := net.Pipe()
		go Client(t.Context(), a, cfg)
		b.Write(frames(pythonChallenge + c.challenge))
		got, _, _ := readFrame(b)
		if hex.EncodeToString(got) != c.want {
			t.Errorf("%s, MD5 %v: %x", c.challenge, c.md5, got)
		}
		b.Close()
	}
	// A client that is told it failed, and one that is not told anything.
	for _, verdict := range []string{pythonFailure, "", "#WELCOME", pythonChallenge} {
		cfg := &Config{Peer: "workers", Keys: Shared(secretA), Wire: Python, Logger: slog.New(slog.DiscardHandler), Timeout: time.Second}
		a, b := net.Pipe()
		go func() {
			b.Write(frames(pythonChallenge + "{sha256}0123456789012345678901234567890123456789"))
			readFrame(b)
			b.Write(frames(verdict))
		}()
		if _, err := Client(t.Context(), a, cfg); !errors.Is(err, ErrRefused) {
			t.Errorf("%q: %v", verdict, err)
		}
	}
}

// MD5 is off by default at both ends, whatever the peer proposes.
func TestMD5IsOffByDefault(t *testing.T) {
	mac := hmac.New(md5.New, secretA)
	challenge := append([]byte("{sha256}"), bytes.Repeat([]byte{1}, 40)...)
	mac.Write(challenge)
	for on, want := range map[bool]error{false: errMD5, true: nil} {
		cfg := &Config{Peer: "workers", Keys: Shared(secretA), Wire: Python, MD5: on}
		if err := checkPython(t.Context(), cfg, challenge, mac.Sum(nil)); !errors.Is(err, want) {
			t.Errorf("MD5 %v: %v", on, err)
		}
	}
}

const (
	pythonVectorOld    = "2a00f01c548df624fb211ad19ea869f9"
	pythonVectorSHA256 = "0465d5479e7a8e9df6b35da5e43dee254dd0bc3c6c884f22fd3ada0d419f5231"
	pythonVectorSHA3   = "528390a6862e06181b8e904e47316828cdbfbe37b2b7f767deaa2342b39e3d08"
)
