package handshake

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/limpet-auth/limpet/keyring"
)

// The published pairs of challenge and answer.
func TestClassicPublishedPairs(t *testing.T) {
	for _, c := range []struct {
		secret, challenge, answer string
		ok                        bool
	}{
		{"GolangIsAwesome!", "iIFO2H2vHpSrwB6S", "G3lkRXxCYToGapXzdaoovQ==", true},
		{"GolangIsAwesome!", "Zqm6axXwzkYP0UP0", "y4E8I4MTjdZFgjna6WRYDA==", true},
		{"GolangIsTerrible!", "Zqm6axXwzkYP0UP0", "TM4Jicrrvxjs829JD0wWsw==", false}, // refused by who has the other
	} {
		cfg := &Config{Peer: "tutorial", Keys: Shared([]byte(c.secret)), Wire: Classic, Logger: slog.New(slog.DiscardHandler)}
		a, b := net.Pipe()
		go Client(t.Context(), a, cfg)
		b.Write([]byte(c.challenge))
		answer := make([]byte, 16)
		if _, err := io.ReadFull(b, answer); err != nil || base64.StdEncoding.EncodeToString(answer) != c.answer {
			t.Errorf("%s: %x, %v", c.challenge, answer, err)
		}
		want := error(nil)
		if !c.ok {
			want = ErrUnauthenticated
		}
		server := &Config{Peer: "tutorial", Keys: Shared([]byte("GolangIsAwesome!"))}
		if err := anyTag(t.Context(), server, "md5", []byte(c.challenge), answer); !errors.Is(err, want) {
			t.Errorf("%s: %v", c.challenge, err)
		}
	}
}

func classicTalk(c net.Conn) error {
	if _, err := c.Write([]byte("world")); err != nil {
		return err
	}
	got := make([]byte, len("hello world"))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello world" {
		return fmt.Errorf("%q, %w", got, err)
	}
	return nil
}

// A peer of the classic wire that somebody else has written.
func TestClassicPeers(t *testing.T) {
	for _, python := range pythons(t)[:1] {
		p := startPeer(t, python)
		for wire, digest := range map[Wire]string{Classic: "md5", ClassicSHA256: "sha256"} {
			for _, right := range []bool{true, false} {
				secret := secretA
				if !right {
					secret = secretB
				}
				cfg := &Config{Peer: "tutorial", Keys: Shared(secretA), Wire: wire, Logger: slog.New(slog.DiscardHandler)}
				said, err := p.dialTo(t, cfg, "classic-dial %s "+digest, secret, classicTalk)
				if (err == nil) != right || (said == "ok") != right {
					t.Errorf("%s client, right secret %v: it says %q, we %v", digest, right, said, err)
				}
				said, err = p.dialed(t, cfg, "classic-listen "+digest, secret, func(c net.Conn) error {
					if id := c.(*Conn).PeerID(); id != "" {
						t.Errorf("a server that has proven nothing is called %q", id)
					}
					return classicTalk(c)
				})
				// Our client learns of a refusal when it reads.
				if (err == nil) != right || (said == "ok") != right {
					t.Errorf("%s server, right secret %v: it says %q, we %v", digest, right, said, err)
				}
			}
		}
	}
}

// A peer in a shell, with OpenSSL for the HMAC.
func TestClassicShellPeer(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("bash is not installed: this test needs it")
		}
		t.Skip("no bash here; Python speaks this wire in TestClassicPeers")
	}
	for _, right := range []bool{true, false} {
		inner, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l, _ := newTestListener(t, inner, &Config{Peer: "tutorial", Keys: Shared([]byte("GolangIsAwesome!")), Wire: Classic})
		host, port, _ := net.SplitHostPort(l.Addr().String())
		secret := map[bool]string{true: "GolangIsAwesome!", false: "GolangIsTerrible!"}[right]
		cmd := exec.Command(bash, "-c", `
			exec 3<>/dev/tcp/$1/$2
			challenge=$(head -c 16 <&3)
			printf %s "$challenge" | openssl dgst -md5 -mac HMAC -macopt key:$3 -binary >&3
			head -c 5 <&3`, "peer", host, port, secret)
		var out bytes.Buffer
		cmd.Stdout = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if right {
			c, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			c.Write([]byte("hello"))
			c.Close()
		}
		cmd.Wait()
		if want := map[bool]string{true: "hello"}[right]; out.String() != want {
			t.Errorf("right secret %v: %q", right, out.String())
		}
		l.Close()
	}
}

// A client is nobody's oracle: it answers what such a server sends, and no
// challenge of anything else.
func TestClassicChallenges(t *testing.T) {
	for _, challenge := range []string{"0123456789abcde\x00", "0123456789abcde\n", "{sha256}01234567", "limpet handshake", "0123456789abcdé"} {
		cfg := &Config{Peer: "tutorial", Keys: Shared(secretA), Wire: Classic, Logger: slog.New(slog.DiscardHandler)}
		a, b := net.Pipe()
		go func() { b.Write([]byte(challenge)); io.Copy(io.Discard, b) }()
		if _, err := Client(t.Context(), a, cfg); !errors.Is(err, errMessage) {
			t.Errorf("%q: %v", challenge, err)
		}
		b.Close()
	}
	counts := map[byte]int{}
	for range 4000 {
		var c [classicSize]byte
		classicChallenge(c[:])
		if checkChallenge(c[:]) != nil {
			t.Fatalf("%q", c)
		}
		for _, letter := range c {
			counts[letter]++
		}
	}
	// 64,000 letters: 1032 of each, give or take 32.
	for letter, n := range counts {
		if n < 1032-8*32 || n > 1032+8*32 {
			t.Errorf("%c comes %d times", letter, n)
		}
	}
	if len(counts) != len(letters) {
		t.Errorf("%d letters", len(counts))
	}
}

// During a rotation both keys are good on the wires that do not name them.
func TestRotationWithoutNames(t *testing.T) {
	for _, wire := range []Wire{Classic, ClassicSHA256, Python} {
		srv := &Config{Peer: "workers", Wire: wire, Logger: slog.New(slog.DiscardHandler),
			Keys: only("workers", Key{Version: 2, Secret: secretB}, Key{Version: 1, Secret: secretA})}
		for name, c := range map[string]struct {
			secret keyring.Secret
			ok     bool
		}{"new": {secretB, true}, "old": {secretA, true}, "none": {keyring.NewSecret(), false}} {
			cli := &Config{Peer: "workers", Wire: wire, Keys: Shared(c.secret), Logger: srv.Logger}
			if wire == Python && name == "old" {
				// The server's own answer is with its newest; an old client refuses that.
				continue
			}
			if e := piped(srv, cli); (e.serverErr == nil) != c.ok {
				t.Errorf("wire %d, %s: %v", wire, name, e.serverErr)
			}
		}
		srv.Keys = only("nobody")
		cli := &Config{Peer: "workers", Wire: wire, Keys: Shared(secretA), Logger: srv.Logger}
		if e := piped(srv, cli); e.serverErr == nil || errors.Is(e.serverErr, ErrUnauthenticated) {
			t.Errorf("wire %d, no key: %v", wire, e.serverErr)
		}
	}
}

// Who opts in to a wire is told what it lacks, once, and not as often as
// strangers connect.
func TestWarnings(t *testing.T) {
	for wire, want := range map[Wire]string{Limpet: "", Classic: "never learns", ClassicSHA256: "never learns", Python: "names nobody"} {
		mem := newMemory()
		srv := &Config{ID: "db", Peer: "x", Keys: Shared(secretA), Wire: wire}
		l, log := newTestListener(t, mem, srv)
		if got := log.String(); (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("wire %d: %s", wire, got)
		}
		for i := range 5 {
			c, err := Client(t.Context(), mem.dial(fmt.Sprintf("192.0.2.%d", i)), &Config{ID: "w", Peer: "db", Keys: Shared(secretA), Wire: wire, Logger: slog.New(slog.DiscardHandler)})
			if err != nil && wire == Limpet {
				t.Error(err)
			}
			if c != nil {
				c.Close()
			}
		}
		l.Close()
		if wire != Limpet && strings.Count(log.String(), "proves less") != 1 {
			t.Errorf("wire %d: %s", wire, log.String())
		}
	}
}

// Classic and Python over TLS: nothing of theirs is in the way.
func TestOtherWiresOverTLS(t *testing.T) {
	for _, wire := range []Wire{Classic, ClassicSHA256, Python} {
		cfg := &Config{Peer: "x", Keys: Shared(secretA), Wire: wire, Logger: slog.New(slog.DiscardHandler)}
		a, b := tlsPair(t, tls.VersionTLS13)
		e := meet(a, b, cfg, cfg)
		if e.clientErr != nil || e.serverErr != nil {
			t.Fatal(e.clientErr, e.serverErr)
		}
		talk(t, e.client, e.server)
	}
}
