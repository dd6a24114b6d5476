package handshake

import (
	"bytes"
	"context"
	"crypto"
	"flag"
	"log/slog"
	"testing"

	"pgregory.net/rapid"

	"github.com/limpet-auth/limpet/keyring"
)

// world is many sessions of honest peers at once, and an attacker who carries
// every message: drops, repeats, reorders and reflects them, passes them on to
// others, puts parts of one into another, and makes messages of its own under
// names and keys of its choice. The attacker, mallory, is a peer like others too,
// with keys of its own.
type world struct {
	servers []*serverRun
	clients []*clientRun
	pool    [3][][]byte // every greeting, hello and answer there has been

	keys    func(from, to string) []Key // what from knows of to
	signers map[string]crypto.Signer
}

const mallory = "mallory"

var honest = []string{"anna", "ben", "db", "cache"}

type serverRun struct {
	server
	hello []byte // what was admitted
	over  bool
}

type clientRun struct {
	client
	greeting []byte
	hello    []byte // nil before the greeting has come
	done     bool   // whether the answer was admitted
	over     bool
}

// newWorld draws what proves the peers: one secret of all honest ones, a secret
// of each two, or keys of their own.
func newWorld(t *rapid.T) *world {
	w := &world{signers: map[string]crypto.Signer{}}
	var secrets = map[[2]string]keyring.Secret{}
	secret := func(a, b string) keyring.Secret {
		name := [2]string{min(a, b), max(a, b)}
		if secrets[name] == nil {
			secrets[name] = keyring.NewSecret()
		}
		return secrets[name]
	}
	switch rapid.SampledFrom([]string{"group", "pairs", "signatures"}).Draw(t, "keys") {
	case "group":
		group := keyring.NewSecret()
		w.keys = func(from, to string) []Key {
			if from == mallory || to == mallory {
				return []Key{{Version: 1, Secret: secret(from, to)}}
			}
			return []Key{{Version: 1, Secret: group}}
		}
	case "pairs":
		w.keys = func(from, to string) []Key { return []Key{{Version: 1, Secret: secret(from, to)}} }
	case "signatures":
		for _, id := range append([]string{mallory}, honest...) {
			w.signers[id] = newEd25519(propertyTB{})
		}
		w.keys = func(from, to string) []Key {
			if w.signers[to] == nil {
				return nil
			}
			return []Key{{Public: w.signers[to].Public()}}
		}
	}
	return w
}

type propertyTB struct{ testing.TB }

func (w *world) config(id, peer string) *Config {
	return &Config{ID: id, Peer: peer, Signer: w.signers[id], Logger: slog.New(slog.DiscardHandler),
		Keys: func(of string) []Key { return w.keys(id, of) }}
}

// message draws a message of a kind, as it was or with something done to it.
func (w *world) message(t *rapid.T, kind int) []byte {
	from := w.pool[kind]
	if rapid.IntRange(0, 9).Draw(t, "other kind") == 0 {
		from = w.pool[rapid.IntRange(0, 2).Draw(t, "kind")]
	}
	if len(from) == 0 {
		t.Skip("nothing was said yet")
	}
	b := bytes.Clone(rapid.SampledFrom(from).Draw(t, "message"))
	switch rapid.IntRange(0, 5).Draw(t, "meddling") {
	case 0: // a part of another one
		other := rapid.SampledFrom(from).Draw(t, "other")
		i := rapid.IntRange(0, len(b)).Draw(t, "from")
		j := rapid.IntRange(i, len(b)).Draw(t, "to")
		if j <= len(other) {
			copy(b[i:j], other[i:j])
		}
	case 1: // the proof of another one, which is at its end
		proofs := w.pool[rapid.IntRange(1, 2).Draw(t, "of kind")]
		if len(proofs) == 0 {
			break
		}
		other := rapid.SampledFrom(proofs).Draw(t, "proof of")
		n := rapid.SampledFrom([]int{proofSize, signatureSize}).Draw(t, "proof size")
		if n < len(b) && n < len(other) {
			copy(b[len(b)-n:], other[len(other)-n:])
		}
	case 2:
		b[rapid.IntRange(0, len(b)-1).Draw(t, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
	}
	return b
}

func (w *world) say(kind int, b []byte) { w.pool[kind] = append(w.pool[kind], bytes.Clone(b)) }

func TestNoInterleavingAuthenticates(t *testing.T) {
	// More than rapid's own 100 runs of 30 steps, which miss a relay now and then.
	for name, value := range map[string]string{"rapid.checks": "1500", "rapid.steps": "50", "rapid.nofailfile": "true"} {
		if err := flag.Set(name, value); err != nil {
			t.Fatal(err)
		}
	}
	ctx := context.Background()
	admitted := 0
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		anyone := append([]string{mallory, "nobody"}, honest...)
		t.Repeat(map[string]func(*rapid.T){
			"server": func(t *rapid.T) {
				s := new(serverRun)
				s.cfg = w.config(rapid.SampledFrom(honest).Draw(t, "server"), "")
				w.say(0, s.greet(nil))
				w.servers = append(w.servers, s)
			},
			"client": func(t *rapid.T) {
				id := rapid.SampledFrom(honest).Draw(t, "client")
				peer := rapid.SampledFrom(append([]string{mallory}, honest...)).Filter(func(p string) bool { return p != id }).Draw(t, "to")
				c := new(clientRun)
				c.cfg = w.config(id, peer)
				w.clients = append(w.clients, c)
			},
			"greeting": func(t *rapid.T) {
				c := draw(t, w.clients, func(c *clientRun) bool { return c.hello == nil && !c.over })
				greeting := w.message(t, 0)
				hello, err := c.prove(ctx, nil, greeting)
				if err != nil {
					c.over = true
					return
				}
				c.greeting, c.hello = greeting, bytes.Clone(hello)
				w.say(1, hello)
			},
			"hello": func(t *rapid.T) {
				s := draw(t, w.servers, func(s *serverRun) bool { return !s.over })
				hello := w.message(t, 1)
				s.over = true
				if answer, err := s.answer(ctx, nil, hello); err == nil {
					s.hello = hello
					w.say(2, answer)
				}
			},
			"answer": func(t *rapid.T) {
				c := draw(t, w.clients, func(c *clientRun) bool { return c.hello != nil && !c.over })
				answer := w.message(t, 2)
				c.over = true
				c.done = c.confirm(answer) == nil
			},
			// A handshake that nobody meddles with, so that there is something to
			// steal.
			"honest": func(t *rapid.T) {
				s := draw(t, w.servers, func(s *serverRun) bool { return !s.over })
				c := draw(t, w.clients, func(c *clientRun) bool { return c.hello == nil && !c.over && c.cfg.Peer == s.cfg.ID })
				c.greeting = bytes.Clone(s.greeting[:])
				hello, err := c.prove(ctx, nil, c.greeting)
				if err != nil {
					t.Fatal(err)
				}
				c.hello = bytes.Clone(hello)
				w.say(1, hello)
				answer, err := s.answer(ctx, nil, hello)
				if err != nil {
					t.Fatal(err)
				}
				s.hello, s.over, c.over, c.done = c.hello, true, true, true
				w.say(2, answer)
				if err := c.confirm(answer); err != nil {
					t.Fatal(err)
				}
				admitted++
			},
			// What mallory says, under any name, with a key of its own.
			"forged hello": func(t *rapid.T) {
				target := rapid.SampledFrom(honest).Draw(t, "target")
				cfg := w.config(mallory, target)
				cfg.ID = rapid.SampledFrom(anyone).Draw(t, "name")
				c := &client{cfg: cfg}
				if hello, err := c.prove(ctx, nil, w.message(t, 0)); err == nil {
					w.say(1, hello)
				}
			},
			"forged answer": func(t *rapid.T) {
				hello := w.message(t, 1)
				h, err := parseHello(hello)
				if err != nil {
					t.Skip("nothing to answer")
				}
				cfg := w.config(mallory, "")
				cfg.ID = string(h.server)
				s := &server{cfg: cfg}
				if copy(s.greeting[:], w.message(t, 0)) != greetingSize {
					t.Skip("not a greeting")
				}
				if answer, err := s.answer(ctx, nil, hello); err == nil {
					w.say(2, answer)
				}
			},
			"": w.check,
		})
	})
	if admitted == 0 {
		t.Error("nobody was ever admitted: the test tests nothing")
	}
	t.Logf("%d honest handshakes", admitted)
}

func draw[T any](t *rapid.T, from []T, fits func(T) bool) T {
	var some []T
	for _, one := range from {
		if fits(one) {
			some = append(some, one)
		}
	}
	if len(some) == 0 {
		t.Skip("there is none")
	}
	return some[rapid.IntRange(0, len(some)-1).Draw(t, "which")]
}

// check is what holds after every step.
func (w *world) check(t *rapid.T) {
	sessions := map[[32]byte]*serverRun{}
	for _, s := range w.servers {
		if s.hello == nil {
			continue
		}
		id := s.expand(forSession)
		if sessions[id] != nil {
			t.Fatal("two server sessions have one ID")
		}
		sessions[id] = s
		if s.peer == mallory {
			continue
		}
		// The peer has said this, to this server, about this greeting.
		found := false
		for _, c := range w.clients {
			found = found || c.cfg.ID == s.peer && c.cfg.Peer == s.cfg.ID && bytes.Equal(c.hello, s.hello) && bytes.Equal(c.greeting, s.greeting[:])
		}
		if !found {
			t.Fatalf("%s takes somebody for %s", s.cfg.ID, s.peer)
		}
	}
	clients := map[[32]byte]bool{}
	for _, c := range w.clients {
		if !c.done {
			continue
		}
		id := c.expand(forSession)
		if clients[id] {
			t.Fatal("two client sessions have one ID")
		}
		clients[id] = true
		if c.cfg.Peer == mallory {
			continue
		}
		s := sessions[id]
		if s == nil || s.cfg.ID != c.cfg.Peer || s.peer != c.cfg.ID {
			t.Fatalf("%s takes somebody for %s", c.cfg.ID, c.cfg.Peer)
		}
	}
}
