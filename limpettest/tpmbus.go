//go:build unix

package limpettest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"sync"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

// TPMBus stands between a program and its software TPM. It can look at and change
// what passes, and lets a test send commands of its own, as another program on the
// same TPM would: it is a transport.TPM.
type TPMBus struct {
	TPM *TPM

	Log      bytes.Buffer                                  // all bytes of both directions
	Command  func(cc tpm2.TPMCC, b []byte) (answer []byte) // may change b; a non-nil answer goes back instead of the TPM's
	Response func(cc tpm2.TPMCC, b []byte) []byte          // returns what the program gets
	Piece    int                                           // if not 0, bytes given to one Read

	mu sync.Mutex
	rw io.ReadWriteCloser
}

// NewTPMBus returns a bus with a new TPM.
func NewTPMBus(t testing.TB) *TPMBus { return &TPMBus{TPM: SoftTPM(t)} }

// Dial powers the TPM up and returns the program's connection through the bus.
func (b *TPMBus) Dial(ctx context.Context) (io.ReadWriteCloser, error) {
	rw, err := b.TPM.Dial(ctx)
	if err != nil {
		return nil, err
	}
	return b.Tap(rw), nil
}

// Tap puts the bus on a connection to a TPM, and returns the program's end.
func (b *TPMBus) Tap(rw io.ReadWriteCloser) io.ReadWriteCloser {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rw = rw
	return &tap{bus: b, rw: rw}
}

// Send is the other program's.
func (b *TPMBus) Send(command []byte) ([]byte, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.SendHeld(command)
}

// SendHeld is Send for Command and Response, which are called while the program's
// command is under way.
func (b *TPMBus) SendHeld(command []byte) ([]byte, error) { return exchange(b.rw, command) }

// tap is the program's connection.
type tap struct {
	bus     *TPMBus
	rw      io.ReadWriteCloser
	pending bytes.Buffer
}

func (p *tap) Write(command []byte) (int, error) {
	b := p.bus
	b.mu.Lock()
	defer b.mu.Unlock()
	n := len(command)
	cc := tpm2.TPMCC(binary.BigEndian.Uint32(command[6:]))
	b.Log.Write(command)
	command = bytes.Clone(command)
	var answer []byte
	if b.Command != nil {
		answer = b.Command(cc, command)
	}
	if answer == nil {
		var err error
		if answer, err = exchange(p.rw, command); err != nil {
			return 0, err
		}
	}
	b.Log.Write(answer)
	if b.Response != nil {
		answer = b.Response(cc, answer)
	}
	p.pending.Write(answer)
	return n, nil
}

func (p *tap) Read(buf []byte) (int, error) {
	if n := p.bus.Piece; n > 0 && len(buf) > n {
		buf = buf[:n]
	}
	return p.pending.Read(buf)
}

func (p *tap) Close() error { return p.rw.Close() }

func exchange(rw io.ReadWriter, command []byte) ([]byte, error) {
	if rw == nil {
		return nil, errors.New("not connected")
	}
	if _, err := rw.Write(command); err != nil {
		return nil, err
	}
	b := make([]byte, 10)
	if _, err := io.ReadFull(rw, b); err != nil {
		return nil, err
	}
	b = append(b, make([]byte, binary.BigEndian.Uint32(b[2:])-10)...)
	_, err := io.ReadFull(rw, b[10:])
	return b, err
}
