package handshake

import (
	"context"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
)

// The protocol, without the connection that it runs on: each end turns the
// messages of the other into its own.
//
//	server: greeting   a nonce
//	client: hello      who it is, whom it means, a nonce, a proof over all that
//	server: answer     a proof over all that
//
// The client proves itself first. A stranger gets nothing of a server but random
// bytes: no MAC, no signature, no work of its TPM for signatures, no word on
// whose keys there are.

// transcript is all that has been said, as it was sent, behind words of this
// protocol's own, and the TLS connection that it was said on.
type transcript struct {
	b [maxTranscript]byte
	n int
}

const (
	transcriptLabel = "limpet handshake 1\x00"

	// maxTranscript is room for all messages, the exporter and what goes before
	// a transcript that is signed, rounded up. A TPM takes 1024 bytes (see
	// hwkey.MaxHMACMessage).
	maxTranscript = 640
)

func (t *transcript) add(b []byte) { t.n += copy(t.b[t.n:], b) }

func (t *transcript) begin(greeting, signed, exported []byte) {
	t.n = copy(t.b[:], transcriptLabel)
	t.add(greeting)
	t.add(signed)
	t.add(exported)
}

func (t *transcript) bytes() []byte { return t.b[:t.n] }

type client struct {
	cfg      *Config
	exported []byte // of the TLS connection; nil if it does not matter
	keys
	transcript
	ephemeral *ecdh.PrivateKey // with signatures
}

// prove appends the hello to b, given the server's greeting.
func (c *client) prove(ctx context.Context, b, greeting []byte) ([]byte, error) {
	if _, err := parseGreeting(greeting); err != nil {
		return nil, err
	}
	live := c.cfg.Keys(c.cfg.Peer)
	if len(live) == 0 {
		return nil, errors.New("no key of that server is known")
	}
	key := &live[0]
	h := hello{flags: c.cfg.flags(), suite: hmacSHA256}
	switch {
	case key.Public != nil && key.secret() || key.Public == nil && !key.secret():
		return nil, errors.New("a key that has not one of Secret, HMAC and Public")
	case key.Public != nil:
		h.suite = signatures
		if err := c.agree(&h); err != nil {
			return nil, err
		}
	case c.cfg.SHA512:
		h.suite = hmacSHA512
	}
	if h.suite != signatures {
		h.keyID = key.id()
	}
	c.suite = h.suite
	var nonce [nonceSize]byte
	rand.Read(nonce[:]) // never fails
	h.nonce = nonce[:]
	start := len(b)
	b = h.append(b, c.cfg.ID, c.cfg.Peer)
	c.begin(greeting, b[start:], c.exported)
	if h.suite == signatures {
		sig, err := sign(c.cfg.Signer, forClient, c.bytes())
		if err != nil {
			return nil, err
		}
		c.add(sig)
		return append(b, sig...), nil
	}
	if err := key.derive(ctx, c.cfg, c.suite, c.bytes(), &c.secret); err != nil {
		return nil, err
	}
	proof := c.expand(forClient)
	return append(b, proof[:]...), nil
}

// agree makes the client's ephemeral key. A signature proves who is there; only
// an agreement gives both ends keys in common.
func (c *client) agree(h *hello) (err error) {
	if c.cfg.Signer == nil {
		return errors.New("the server is known by a public key, and this end has no device key to sign with")
	}
	if h.keyID, err = publicID(c.cfg.Signer.Public()); err != nil {
		return err
	}
	if c.ephemeral, err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
		return err
	}
	h.point = c.ephemeral.PublicKey().Bytes()
	return nil
}

// confirm checks the server's answer.
func (c *client) confirm(message []byte) error {
	a, err := parseAnswer(c.suite, message)
	if err != nil {
		return err
	}
	if c.suite == signatures {
		key := find(c.cfg.Keys(c.cfg.Peer), a.keyID, c.suite)
		if key == nil {
			return ErrUnauthenticated
		}
		c.add(a.signed)
		if !verify(key.Public, forServer, c.bytes(), a.signature) {
			return ErrUnauthenticated
		}
		if err := c.share(c.ephemeral, a.point, c.bytes()); err != nil {
			return err
		}
	}
	want := c.expand(forServer)
	if subtle.ConstantTimeCompare(want[:], a.proof) != 1 {
		return ErrUnauthenticated
	}
	return nil
}

// share sets the secret of the handshake from a key agreement: HKDF of the
// agreed value, without salt, and the transcript.
func (k *keys) share(ephemeral *ecdh.PrivateKey, point, transcript []byte) error {
	peer, err := ecdh.X25519().NewPublicKey(point)
	if err != nil {
		return errMessage
	}
	z, err := ephemeral.ECDH(peer) // fails for points of small order
	if err != nil {
		return errMessage
	}
	defer clear(z)
	secret, err := hkdf.Key(sha256.New, z, nil, string(transcript), sha256.Size)
	if err != nil {
		return err
	}
	copy(k.secret[:], secret)
	clear(secret)
	return nil
}

type server struct {
	cfg      *Config
	exported []byte
	greeting [greetingSize]byte
	peer     string // once it has proven itself
	keys
	transcript
}

// greet appends the greeting to b.
func (s *server) greet(b []byte) []byte {
	g := appendHeader(s.greeting[:0], greetingSize, kindGreeting)
	rand.Read(s.greeting[len(g):]) // never fails
	return append(b, s.greeting[:]...)
}

// Why a client is refused is for the log: the client cannot tell one from the
// other.
var (
	errNotKnown = fmt.Errorf("%w: it names a peer or a key that is not known here", ErrUnauthenticated)
	errProof    = fmt.Errorf("%w: its proof is wrong", ErrUnauthenticated)
)

// answer checks the client's hello and appends the answer to b. It takes as long
// for every peer whose proof does not hold, and looks at the rest after the proof.
func (s *server) answer(ctx context.Context, b, message []byte) ([]byte, error) {
	h, err := parseHello(message)
	if err != nil {
		return nil, err
	}
	peer := string(h.client)
	key := find(s.cfg.Keys(peer), h.keyID, h.suite)
	known := key != nil
	if !known {
		key = decoys()[h.suite]
	}
	s.suite = h.suite
	s.begin(s.greeting[:], h.signed, s.exported)
	var holds bool
	if s.suite == signatures {
		holds = verify(key.Public, forClient, s.bytes(), h.proof)
	} else {
		if err := key.derive(ctx, s.cfg, s.suite, s.bytes(), &s.secret); err != nil {
			return nil, err
		}
		want := s.expand(forClient)
		holds = subtle.ConstantTimeCompare(want[:], h.proof) == 1
	}
	switch {
	case !known:
		return nil, errNotKnown
	case !holds:
		return nil, errProof
	case string(h.server) != s.cfg.ID:
		return nil, fmt.Errorf("%w: it means another server", ErrUnauthenticated)
	case peer == s.cfg.ID:
		return nil, fmt.Errorf("%w: it has this server's own name", ErrUnauthenticated)
	case h.flags != s.cfg.flags():
		return nil, fmt.Errorf("%w: Records or Channel are not set as here", ErrUnauthenticated)
	}
	start := len(b)
	b = appendHeader(b, s.suite.answerSize(), kindAnswer)
	if s.suite == signatures {
		if b, err = s.sign(b, start, &h); err != nil {
			return nil, err
		}
	}
	proof := s.expand(forServer)
	s.peer = peer
	return append(b, proof[:]...), nil
}

// sign appends the server's signature and what goes with it, and sets the secret.
func (s *server) sign(b []byte, start int, h *hello) ([]byte, error) {
	if s.cfg.Signer == nil {
		return nil, errors.New("a client is known by a public key, and this end has no device key to sign with")
	}
	id, err := publicID(s.cfg.Signer.Public())
	if err != nil {
		return nil, err
	}
	ephemeral, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	b = append(append(b, id[:]...), ephemeral.PublicKey().Bytes()...)
	s.add(h.proof)
	s.add(b[start:])
	if err := s.share(ephemeral, h.point, s.bytes()); err != nil {
		return nil, err
	}
	sig, err := sign(s.cfg.Signer, forServer, s.bytes())
	if err != nil {
		return nil, err
	}
	return append(b, sig...), nil
}
