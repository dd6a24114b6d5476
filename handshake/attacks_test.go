package handshake

import (
	"context"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// messages are those of one handshake.
type messages struct{ greeting, hello, answer []byte }

// exchangeMessages runs a handshake by hand. edit may change each message before
// the other end sees it.
func exchangeMessages(t *testing.T, srv, cli *Config, edit func(m *messages, last string)) (m messages, s *server, c *client, serverErr, clientErr error) {
	t.Helper()
	s, c = &server{cfg: srv}, &client{cfg: cli}
	m.greeting = s.greet(nil)
	edit(&m, "greeting")
	if m.hello, clientErr = c.prove(t.Context(), nil, m.greeting); clientErr != nil {
		return m, s, c, nil, clientErr
	}
	edit(&m, "hello")
	if m.answer, serverErr = s.answer(t.Context(), nil, m.hello); serverErr != nil {
		return m, s, c, serverErr, nil
	}
	edit(&m, "answer")
	return m, s, c, nil, c.confirm(m.answer)
}

// kinds are handshakes of every suite.
func kinds(t *testing.T) map[string]func() (srv, cli *Config) {
	p256, ed := newECDSA(t), newEd25519(t)
	return map[string]func() (*Config, *Config){
		"HMAC-SHA256": pair,
		"HMAC-SHA512": func() (*Config, *Config) { s, c := pair(); c.SHA512 = true; return s, c },
		"signatures":  func() (*Config, *Config) { return signed(p256, ed) },
	}
}

// Every bit of every message counts.
func TestBitFlip(t *testing.T) {
	for name, configs := range kinds(t) {
		srv, cli := configs()
		whole, _, _, serverErr, clientErr := exchangeMessages(t, srv, cli, func(*messages, string) {})
		if serverErr != nil || clientErr != nil {
			t.Fatal(name, serverErr, clientErr)
		}
		flips := 1
		if name != "signatures" {
			flips = 8
		}
		for _, which := range []string{"greeting", "hello", "answer"} {
			size := map[string]int{"greeting": len(whole.greeting), "hello": len(whole.hello), "answer": len(whole.answer)}[which]
			for i := range size {
				for bit := range flips {
					_, _, _, serverErr, clientErr := exchangeMessages(t, srv, cli, func(m *messages, last string) {
						b := map[string][]byte{"greeting": m.greeting, "hello": m.hello, "answer": m.answer}[which]
						if last == which {
							b[i] ^= 1 << ((i + bit) % 8)
						}
					})
					if serverErr == nil && clientErr == nil {
						t.Fatalf("%s: byte %d of the %s does not count", name, i, which)
					}
					if which == "hello" && serverErr == nil {
						t.Fatalf("%s: the server admits byte %d of the %s", name, i, which)
					}
				}
			}
		}
	}
}

// The same on a connection: whichever byte is changed on its way, in whichever
// direction, both ends never end up with a connection.
func TestBitFlipOnTheWire(t *testing.T) {
	srv, cli := pair()
	whole, _, _, _, _ := exchangeMessages(t, srv, cli, func(*messages, string) {})
	// pass copies and changes the byte at an offset.
	pass := func(to, from net.Conn, at int) {
		defer to.Close()
		b := make([]byte, 1)
		for i := 0; ; i++ {
			if _, err := from.Read(b); err != nil {
				return
			}
			if i == at {
				b[0] ^= 1 << (i % 8)
			}
			if _, err := to.Write(b); err != nil {
				return
			}
		}
	}
	synctest.Test(t, func(t *testing.T) {
		for direction, size := range []int{len(whole.greeting) + len(whole.answer), len(whole.hello)} {
			for at := range size {
				a, inner := net.Pipe()
				outer, b := net.Pipe()
				offsets := [2]int{-1, -1}
				offsets[direction] = at
				go pass(inner, outer, offsets[0])
				go pass(outer, inner, offsets[1])
				e := meet(a, b, srv, cli)
				if e.clientErr == nil {
					t.Errorf("direction %d, byte %d: the client is satisfied", direction, at)
				}
				// The server is done before its answer is changed.
				if answered := direction == 0 && at >= len(whole.greeting); !answered && e.serverErr == nil {
					t.Errorf("direction %d, byte %d: the server is satisfied", direction, at)
				}
				for _, c := range []net.Conn{a, b, inner, outer} {
					c.Close()
				}
			}
		}
	})
}

// A message that is cut short, at any byte, or goes on, is refused by both ends.
func TestTruncatedMessage(t *testing.T) {
	for name, configs := range kinds(t) {
		srv, cli := configs()
		whole, _, c, _, _ := exchangeMessages(t, srv, cli, func(*messages, string) {})
		for i := range whole.hello {
			if _, err := parseHello(whole.hello[:i]); err == nil {
				t.Errorf("%s: %d bytes of a hello", name, i)
			}
		}
		if _, err := parseHello(append(whole.hello, 0)); err == nil {
			t.Errorf("%s: a hello and a byte", name)
		}
		for i := range whole.answer {
			if _, err := parseAnswer(c.suite, whole.answer[:i]); err == nil {
				t.Errorf("%s: %d bytes of an answer", name, i)
			}
		}
		for i := range whole.greeting {
			if _, err := parseGreeting(whole.greeting[:i]); err == nil {
				t.Errorf("%s: %d bytes of a greeting", name, i)
			}
		}
		// And on a connection that ends there.
		synctest.Test(t, func(t *testing.T) {
			for i := range whole.hello {
				a, b := net.Pipe()
				go func() {
					io.ReadFull(a, make([]byte, greetingSize))
					a.Write(whole.hello[:i])
					a.Close()
				}()
				if c, err := Server(t.Context(), b, srv); c != nil || err == nil {
					t.Errorf("%s: admitted after %d bytes", name, i)
				}
			}
			for i := range whole.answer {
				a, b := net.Pipe()
				go func() {
					b.Write(whole.greeting)
					io.ReadFull(b, make([]byte, len(whole.hello)))
					b.Write(whole.answer[:i])
					b.Close()
				}()
				if c, err := Client(t.Context(), a, cli); c != nil || !errors.Is(err, ErrRefused) {
					t.Errorf("%s: %d bytes of an answer: %v", name, i, err)
				}
			}
		})
	}
}

// What an end has said itself is no proof of the other end.
func TestReflection(t *testing.T) {
	srv, cli := pair()

	// A client is given its own proof for an answer.
	_, _, _, serverErr, clientErr := exchangeMessages(t, srv, cli, func(m *messages, last string) {
		if last == "answer" {
			copy(m.answer[headerSize:], m.hello[len(m.hello)-proofSize:])
		}
	})
	if serverErr != nil || !errors.Is(clientErr, ErrUnauthenticated) {
		t.Error("reflected proof:", clientErr)
	}

	// A server that is a client too is connected to itself: the attacker passes
	// everything on between its two connections.
	both := *srv
	both.Peer = "web"
	for _, id := range []string{"db", "web"} {
		both.ID, both.Peer = id, map[string]string{"db": "web", "web": "db"}[id]
		e := piped(&both, &both)
		e.refused(t)
	}

	// The same message comes back as it is.
	a, b := net.Pipe()
	go io.Copy(b, b)
	if _, err := Client(t.Context(), a, &Config{ID: "web", Peer: "db", Keys: srv.Keys, Timeout: 50 * time.Millisecond}); err == nil {
		t.Error("an echo is admitted")
	}
}

// Two servers have the same secret; what is meant for one is passed on to the
// other.
func TestRelay(t *testing.T) {
	srv, cli := pair()
	cache := *srv
	cache.ID = "cache"
	piped(&cache, cli).refused(t)
	for _, configs := range kinds(t) {
		srv, cli := configs()
		other := *srv
		other.ID = "cache"
		if _, _, _, err, _ := exchangeMessages(t, &other, cli, func(*messages, string) {}); !errors.Is(err, ErrUnauthenticated) {
			t.Error(err)
		}
	}
}

// Old messages prove nothing.
func TestReplay(t *testing.T) {
	for name, configs := range kinds(t) {
		srv, cli := configs()
		old, _, _, _, _ := exchangeMessages(t, srv, cli, func(*messages, string) {})
		s := &server{cfg: srv}
		s.greet(nil)
		if _, err := s.answer(t.Context(), nil, old.hello); !errors.Is(err, ErrUnauthenticated) {
			t.Errorf("%s: an old hello: %v", name, err)
		}
		c := &client{cfg: cli}
		if _, err := c.prove(t.Context(), nil, old.greeting); err != nil {
			t.Fatal(err)
		}
		if err := c.confirm(old.answer); !errors.Is(err, ErrUnauthenticated) {
			t.Errorf("%s: an old answer: %v", name, err)
		}
	}
}

// A tag under a shared secret that is used elsewhere too is none here.
func TestDomainSeparation(t *testing.T) {
	labels := []string{forClient, forServer, forSession, forClientRecords, forServerRecords}
	k := keys{suite: hmacSHA256}
	seen := map[[32]byte]string{}
	for _, label := range labels {
		if len(label)+1 > 64 {
			t.Errorf("%q does not fit", label)
		}
		sum := k.expand(label)
		if other, ok := seen[sum]; ok {
			t.Errorf("%q is %q", label, other)
		}
		seen[sum] = label
	}
	if !strings.HasPrefix(string((&transcript{}).begun().bytes()), "limpet handshake 1\x00") {
		t.Error("the transcript does not begin with words of its own")
	}
}

func (t *transcript) begun() *transcript {
	t.begin(nil, nil, nil)
	return t
}

// A stranger gets the same messages at the same time, whomever they claim to be.
func TestUnknownPeerLooksKnown(t *testing.T) {
	device, own := newECDSA(t), newECDSA(t)
	slow := func(ctx context.Context, message []byte) ([]byte, error) {
		time.Sleep(60 * time.Millisecond) // a TPM
		return hardware(secretA)(ctx, message)
	}
	synctest.Test(t, func(t *testing.T) {
		srv, _ := pair()
		srv.Signer = own
		srv.Keys = func(peer string) []Key {
			return map[string][]Key{
				"known": {{Version: 1, Secret: secretA}}, "tpm": {{Version: 1, HMAC: slow}}, "device": {{Public: &device.PublicKey}},
				"broken": {{Version: 1, HMAC: func(context.Context, []byte) ([]byte, error) { return nil, context.DeadlineExceeded }}},
			}[peer]
		}
		thief := newECDSA(t)
		seen := map[string]bool{}
		for _, id := range []string{"known", "tpm", "broken", "device", "nobody"} {
			for _, target := range []string{"db", "elsewhere"} {
				for _, cli := range []*Config{
					{ID: id, Peer: target, Keys: Shared(secretB)},
					{ID: id, Peer: target, Keys: only(target, Key{Public: &own.PublicKey}), Signer: &liar{thief, &device.PublicKey}},
				} {
					began := time.Now()
					e := piped(srv, cli)
					if e.serverErr == nil || id != "broken" && !errors.Is(e.serverErr, ErrUnauthenticated) {
						t.Errorf("%s: %v", id, e.serverErr)
					}
					seen[fmt.Sprint(time.Since(began), e.clientErr)] = true
				}
			}
		}
		// Garbage too.
		for _, garbage := range []string{"GET / HTTP/1.1\r\n\r\n", strings.Repeat("\xff", maxMessage), "\x00\x02\x01\x02", "\x00\x00"} {
			began := time.Now()
			a, b := net.Pipe()
			go Server(t.Context(), b, srv)
			io.ReadFull(a, make([]byte, greetingSize))
			a.Write([]byte(garbage))
			if n, err := io.Copy(io.Discard, a); n != 0 || err != nil || time.Since(began) != refusalDelay {
				t.Errorf("%.8q: %d bytes after %v, %v", garbage, n, time.Since(began), err)
			}
		}
		if len(seen) != 1 {
			t.Errorf("they can be told apart: %v", seen)
		}
	})
}

// Slow peers and silent ones are dropped at the deadline, both ways.
func TestSlowDrip(t *testing.T) {
	srv, cli := pair()
	whole, _, _, _, _ := exchangeMessages(t, srv, cli, func(*messages, string) {})
	for wire, first := range map[Wire][]byte{Limpet: whole.hello, Classic: make([]byte, 16), ClassicSHA256: make([]byte, 32), Python: append([]byte{0, 0, 0, 40}, make([]byte, 40)...)} {
		for _, send := range []int{0, 1, len(first) - 1} {
			synctest.Test(t, func(t *testing.T) {
				srv := &Config{ID: "db", Peer: "any", Keys: Shared(secretA), Wire: wire, Logger: srv.Logger}
				a, b := net.Pipe()
				go func() {
					go io.Copy(io.Discard, a)
					for i := range send {
						if _, err := a.Write(first[i : i+1]); err != nil {
							return
						}
						time.Sleep(time.Second)
					}
				}()
				began := time.Now()
				_, err := Server(t.Context(), b, srv)
				if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) != DefaultTimeout {
					t.Errorf("wire %d, %d bytes: %v after %v", wire, send, err, time.Since(began))
				}
				a.Close()
				time.Sleep(time.Second)
			})
		}
		synctest.Test(t, func(t *testing.T) {
			cli := &Config{ID: "web", Peer: "any", Keys: Shared(secretA), Wire: wire, Logger: srv.Logger, Timeout: 2 * time.Second}
			a, b := net.Pipe()
			defer b.Close()
			began := time.Now()
			if _, err := Client(t.Context(), a, cli); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) != 2*time.Second {
				t.Errorf("wire %d: %v after %v", wire, err, time.Since(began))
			}
		})
	}
}

// Frames that are too long are refused by their length, whatever follows.
func TestOversizedFrames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for wire, header := range map[Wire]string{Limpet: "\xff\xff", Python: "\x00\x00\x01\x01"} {
			srv := &Config{ID: "db", Peer: "any", Keys: Shared(secretA), Wire: wire, Timeout: time.Hour}
			a, b := net.Pipe()
			go io.Copy(io.Discard, a)
			go a.Write([]byte(header))
			began := time.Now()
			if _, err := Server(t.Context(), b, srv); !errors.Is(err, errMessage) || time.Since(began) > refusalDelay {
				t.Errorf("wire %d: %v after %v", wire, err, time.Since(began))
			}
		}
		srv := &Config{ID: "db", Peer: "any", Keys: Shared(secretA), Wire: Python, Timeout: time.Hour}
		a, b := net.Pipe()
		go io.Copy(io.Discard, a)
		go a.Write([]byte("\xff\xff\xff\xff\x00\x00\x00\x01\x00\x00\x00\x00")) // −1, then a longer length
		if _, err := Server(t.Context(), b, srv); !errors.Is(err, errMessage) {
			t.Error(err)
		}
	})
}

// A client that does not wait for the answer is refused: what it sends would be
// taken for authentic.
func TestEarlyData(t *testing.T) {
	srv, cli := pair()
	a, b := net.Pipe()
	go func() {
		defer a.Close()
		greeting := make([]byte, greetingSize)
		io.ReadFull(a, greeting)
		c := &client{cfg: cli}
		hello, _ := c.prove(context.Background(), nil, greeting)
		a.Write(append(hello, "data"...))
	}()
	if _, err := Server(t.Context(), b, srv); !errors.Is(err, errMessage) {
		t.Error(err)
	}
}

// Points of small order and ones that are not agreed on give no key.
func TestBadPoints(t *testing.T) {
	for name, point := range map[string][]byte{"zero": make([]byte, 32), "one": append([]byte{1}, make([]byte, 31)...)} {
		srv, cli := signed(newEd25519(t), newEd25519(t))
		s := &server{cfg: srv}
		greeting := s.greet(nil)
		c := &client{cfg: cli}
		hello, err := c.prove(t.Context(), nil, greeting)
		if err != nil {
			t.Fatal(err)
		}
		h, err := parseHello(hello)
		if err != nil {
			t.Fatal(err)
		}
		copy(h.point, point)
		c.begin(greeting, h.signed, nil)
		sig, err := sign(cli.Signer, forClient, c.bytes())
		if err != nil {
			t.Fatal(err)
		}
		copy(h.proof, sig)
		if _, err := s.answer(t.Context(), nil, hello); !errors.Is(err, errMessage) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := publicID(&newECDSA(t).PublicKey); err != nil {
		t.Error(err)
	}
	bad := newECDSA(t).PublicKey
	bad.Curve = elliptic.P384()
	if _, err := publicID(&bad); err == nil {
		t.Error("a key on another curve has a name")
	}
}

// Many at once on one configuration.
func TestConcurrent(t *testing.T) {
	srv, cli := pair()
	srv.Records, cli.Records = true, true
	sessions := make([][32]byte, 64)
	var wg sync.WaitGroup
	for i := range sessions {
		wg.Go(func() {
			e := piped(srv, cli)
			e.agree(t, srv, cli)
			sessions[i] = e.client.SessionID()
		})
	}
	wg.Wait()
	slices.SortFunc(sessions, func(a, b [32]byte) int { return slices.Compare(a[:], b[:]) })
	if len(slices.Compact(sessions)) != 64 {
		t.Error("two sessions have one ID")
	}
}

// Garbage of any length never gets in, nor does it stop a server.
func TestGarbage(t *testing.T) {
	srv, _ := pair()
	synctest.Test(t, func(t *testing.T) {
		for n := range 3 * maxMessage {
			garbage := make([]byte, n)
			rand.Read(garbage)
			a, b := net.Pipe()
			go io.Copy(io.Discard, a)
			go func() { a.Write(garbage); a.Close() }()
			if c, err := Server(t.Context(), b, srv); err == nil || c != nil {
				t.Fatalf("%d bytes: admitted", n)
			}
			a.Close()
		}
	})
}

// On Python's wire a client that connects twice does not authenticate an attacker
// who has one of its connections answer the challenge of the other.
func TestPythonReflection(t *testing.T) {
	cfg := &Config{Peer: "any", Keys: Shared(secretA), Wire: Python, Logger: slog.New(slog.DiscardHandler)}
	dial := func() (attacker net.Conn, done chan error) {
		attacker, conn := net.Pipe()
		attacker.SetDeadline(time.Now().Add(5 * time.Second))
		done = make(chan error, 1)
		go func() {
			_, err := Client(t.Context(), conn, cfg)
			done <- err
		}()
		return attacker, done
	}
	first, firstDone := dial()
	defer first.Close()
	second, secondDone := dial()
	defer second.Close()

	writeFrame(first, []byte(pythonChallenge+"{sha256}"+strings.Repeat("x", pythonRandom)))
	if _, _, err := readFrame(first); err != nil { // whatever it is, it is right
		t.Fatal(err)
	}
	writeFrame(first, []byte(pythonWelcome))
	challenge, _, err := readFrame(first)
	if err != nil {
		t.Fatal(err)
	}
	writeFrame(second, challenge)
	if answer, _, err := readFrame(second); err == nil {
		writeFrame(first, answer)
		readFrame(first)
		t.Fatal("the attacker has an answer, and with it the client says", <-firstDone)
	}
	if err := <-secondDone; !errors.Is(err, ErrUnauthenticated) {
		t.Error("the second connection:", err)
	}
	first.Close()
	if err := <-firstDone; err == nil {
		t.Error("the first connection: no error")
	}
}
