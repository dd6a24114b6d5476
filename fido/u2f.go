package fido

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"io"
	"math/big"
	"time"
)

// CTAP1, which is U2F: FIDO U2F Raw Message Formats 1.2.
const (
	u2fRegister     = 0x01
	u2fAuthenticate = 0x02
	u2fVersion      = 0x03

	u2fCheck       = 0x07
	u2fEnforce     = 0x03
	u2fDontEnforce = 0x08

	u2fParams = 64 // challenge and application
)

// word is how an answer ends: ISO 7816-4's SW1 and SW2.
type word uint16

const (
	wordOK              word = 0x9000
	wordWrongLength     word = 0x6700
	wordNotSatisfied    word = 0x6985 // the user has to act, and the host to ask again
	wordNotAllowed      word = 0x6986
	wordWrongData       word = 0x6a80
	wordWrongParameters word = 0x6a86
	wordUnknown         word = 0x6d00
	wordWrongClass      word = 0x6e00
	wordFailed          word = 0x6f00
)

// question is what a user is asked for a U2F request. Its host asks for the answer
// again and again, with the same request.
type question struct {
	request [32]byte
	lapse   *time.Timer // since the host last asked
	done    chan struct{}
	allowed bool // once done
}

// questionLapse is how long a question stands when its host does not ask any more.
const questionLapse = 2 * time.Second

// Message answers a U2F message at once: while the user is asked, with words that
// have the host come again.
func (t *Token) Message(ctx context.Context, channel uint32, request []byte) []byte {
	answer, w := t.message(ctx, channel, request)
	if w != wordOK {
		answer = nil
	}
	return binary.BigEndian.AppendUint16(answer, uint16(w))
}

func (t *Token) message(ctx context.Context, channel uint32, request []byte) ([]byte, word) {
	instruction, p1, data, w := splitAPDU(request)
	if w != wordOK {
		return nil, w
	}
	select {
	case t.turn <- struct{}{}:
		defer t.end()
	default: // another request has the token, and waits for the user perhaps
		return nil, wordNotSatisfied
	}
	x := &transaction{context.WithoutCancel(ctx), ctx, channel, func(bool) {}}
	if t.current(x.ctx) != nil {
		return nil, wordFailed
	}
	switch {
	case t.state.AlwaysUV && instruction != u2fVersion: // CTAP 2.1, section 7.2
		return nil, wordNotAllowed
	case instruction == u2fVersion:
		if len(data) > 0 {
			return nil, wordWrongLength
		}
		return []byte("U2F_V2"), wordOK
	case instruction == u2fRegister:
		if len(data) != u2fParams {
			return nil, wordWrongLength
		}
		app := data[32:]
		if w := t.ask(request, Request{Operation: Register, App: app}); w != wordOK {
			return nil, w
		}
		return t.result(t.register(x, [32]byte(app), data[:32]))
	case instruction == u2fAuthenticate:
		if len(data) < u2fParams+1 || len(data) != u2fParams+1+int(data[u2fParams]) {
			return nil, wordWrongLength
		}
		return t.authenticate(x, p1, request, data)
	}
	return nil, wordUnknown
}

func (t *Token) result(answer []byte, err error) ([]byte, word) {
	if err != nil {
		t.log.Error("limpet: fido: a U2F request failed", "error", err)
		return nil, wordFailed
	}
	return answer, wordOK
}

// splitAPDU reads a command: CLA INS P1 P2, then the length of the data, the data, and
// the length that the host expects; lengths in one byte or, after a zero, in two.
func splitAPDU(b []byte) (instruction, p1 byte, data []byte, w word) {
	if len(b) < 4 {
		return 0, 0, nil, wordWrongLength
	}
	if b[0] != 0 {
		return 0, 0, nil, wordWrongClass
	}
	instruction, p1 = b[1], b[2]
	rest := b[4:]
	switch {
	case len(rest) <= 1, len(rest) == 3 && rest[0] == 0: // no data, or none and a length that is expected
		return instruction, p1, nil, wordOK
	case rest[0] == 0 && len(rest) < 3:
		return 0, 0, nil, wordWrongLength
	case rest[0] == 0: // extended
		n := int(binary.BigEndian.Uint16(rest[1:]))
		rest = rest[3:]
		if len(rest) != n && len(rest) != n+2 {
			return 0, 0, nil, wordWrongLength
		}
		return instruction, p1, rest[:n], wordOK
	}
	n := int(rest[0])
	rest = rest[1:]
	if len(rest) != n && len(rest) != n+1 {
		return 0, 0, nil, wordWrongLength
	}
	return instruction, p1, rest[:n], wordOK
}

// ask returns wordOK once for each time that the user allowed a request.
func (t *Token) ask(request []byte, r Request) word {
	id := sha256.Sum256(request)
	if q := t.u2f; q != nil {
		if q.request != id {
			return wordNotSatisfied // it is another host's turn
		}
		q.lapse.Reset(questionLapse)
		select {
		case <-q.done:
		default:
			return wordNotSatisfied
		}
		if !q.allowed {
			return wordFailed // until the host gives up
		}
		q.lapse.Stop()
		t.u2f = nil
		return wordOK
	}
	ctx, cancel := context.WithTimeout(context.Background(), promptTimeout)
	q := &question{request: id, done: make(chan struct{})}
	q.lapse = time.AfterFunc(questionLapse, func() {
		cancel()
		t.turn <- struct{}{}
		defer t.end()
		if t.u2f == q {
			t.u2f = nil
		}
	})
	t.u2f = q
	go func() {
		defer cancel()
		defer close(q.done)
		err := t.consent(&transaction{host: ctx, waiting: func(bool) {}}, r)
		q.allowed = err == nil
	}()
	return wordNotSatisfied
}

// vaultKey signs with a credential's key.
type vaultKey struct {
	t      *Token
	x      *transaction
	c      *credential
	public *ecdsa.PublicKey
}

func (k *vaultKey) Public() crypto.PublicKey { return k.public }

func (k *vaultKey) Sign(_ io.Reader, digest []byte, _ crypto.SignerOpts) ([]byte, error) {
	return k.t.vault.Sign(k.x.ctx, k.c.tie, k.c.handle, nil, [32]byte(digest))
}

// register makes a key, and a certificate for it that the key signs itself: one that
// all tokens share would say no more, and could be copied.
func (t *Token) register(x *transaction, app [32]byte, challenge []byte) ([]byte, error) {
	c, public, err := t.create(x, app, protectOptional, nil)
	if err != nil {
		return nil, err
	}
	xy, err := point(public)
	if err != nil {
		return nil, err
	}
	serial := make([]byte, 16)
	rand.Read(serial)
	serial[0] = serial[0]&0x7f | 0x40 // positive, of one length
	key := &vaultKey{t, x, c, public}
	template := &x509.Certificate{
		SerialNumber:          new(big.Int).SetBytes(serial),
		Subject:               pkix.Name{CommonName: "Limpet FIDO token"},
		NotBefore:             time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:              time.Date(2049, 12, 31, 0, 0, 0, 0, time.UTC),
		BasicConstraintsValid: true, // and no authority
		SignatureAlgorithm:    x509.ECDSAWithSHA256,
	}
	certificate, err := x509.CreateCertificate(nil, template, template, public, key)
	if err != nil {
		return nil, err
	}
	uncompressed := append([]byte{4}, xy...)
	signed := append([]byte{0}, app[:]...)
	signed = append(signed, challenge...)
	signed = append(signed, c.id...)
	signed = append(signed, uncompressed...)
	digest := sha256.Sum256(signed)
	sig, err := key.Sign(nil, digest[:], nil)
	if err != nil {
		return nil, err
	}
	answer := append([]byte{5}, uncompressed...)
	answer = append(answer, byte(len(c.id)))
	answer = append(answer, c.id...)
	answer = append(answer, certificate...)
	return append(answer, sig...), nil
}

func (t *Token) authenticate(x *transaction, p1 byte, request, data []byte) ([]byte, word) {
	challenge, app, id := data[:32], [32]byte(data[32:64]), data[u2fParams+1:]
	if p1 != u2fCheck && p1 != u2fEnforce && p1 != u2fDontEnforce {
		return nil, wordWrongParameters
	}
	c, err := t.lookup(x, app, bytes.Clone(id))
	if errors.Is(err, ErrNoKey) || err == nil && c.level() == protectRequired {
		return nil, wordWrongData
	}
	if err != nil {
		return t.result(nil, err)
	}
	presence := byte(0)
	switch p1 {
	case u2fCheck:
		return nil, wordNotSatisfied
	case u2fEnforce:
		r := Request{Operation: Authenticate, App: app[:]}
		if c.stored != nil {
			r.RPID, r.RPName, r.Account = c.stored.RPID, c.stored.RPName, c.stored.Name
		}
		if w := t.ask(request, r); w != wordOK {
			return nil, w
		}
		presence = flagUP
	}
	count, err := t.vault.Count(x.ctx)
	if err != nil {
		return t.result(nil, err)
	}
	answer := binary.BigEndian.AppendUint32([]byte{presence}, count)
	signed := append(app[:], answer...)
	sig, err := t.vault.Sign(x.ctx, c.tie, c.handle, nil, sha256.Sum256(append(signed, challenge...)))
	return t.result(append(answer, sig...), err)
}
