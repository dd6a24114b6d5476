package tpm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"

	"github.com/google/go-tpm/tpm2"
)

const (
	headerSize  = 10   // of a command and of a response: tag, size, code
	maxResponse = 4096 // bytes; TPM_PT_MAX_RESPONSE_SIZE of all TPMs known is at most this
	retryFor    = 5 * time.Second
	firstWait   = 5 * time.Second // for the first answer on a connection
	commandWait = 3 * time.Minute // for any other: making an RSA key takes a slow chip a minute
)

// LinkError means that the connection to the TPM failed, and nothing about the
// TPM itself.
type LinkError struct{ err error }

func (e *LinkError) Error() string { return e.err.Error() }
func (e *LinkError) Unwrap() error { return e.err }

// link is one connection to a TPM. It is not safe for concurrent use: the
// Conn's lock is held over whole sequences of commands.
type link struct {
	rw     io.ReadWriteCloser
	ctx    context.Context // of the call that holds the lock
	wait   time.Duration   // for one answer
	counts *counts
	failed error // once set, requests and answers may be out of step
}

// Send sends a command and returns the answer. It sends a command again that
// the TPM was too busy to take (TPM 2.0 Library Part 1, 39.4): the TPM has not
// begun it, so that the bytes, nonces included, are still good.
func (l *link) Send(command []byte) ([]byte, error) {
	deadline := time.Now().Add(retryFor)
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, 640*time.Millisecond) {
		if err := l.ctx.Err(); err != nil {
			return nil, err
		}
		response, err := l.exchange(command)
		if err != nil {
			return nil, err
		}
		switch responseCode(response) {
		case tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting, tpm2.TPMRCNVRate:
		default:
			return response, nil
		}
		if time.Now().Add(pause).After(deadline) {
			return response, nil // the caller reports the code
		}
		select {
		case <-time.After(pause):
		case <-l.ctx.Done():
			return nil, l.ctx.Err()
		}
	}
}

// exchange sends one command and reads one answer.
func (l *link) exchange(command []byte) ([]byte, error) {
	if l.failed != nil {
		return nil, &LinkError{l.failed}
	}
	l.counts.add(command)
	if conn, ok := l.rw.(interface{ SetDeadline(time.Time) error }); ok {
		conn.SetDeadline(time.Now().Add(l.wait)) // a device has none; the kernel bounds its commands
		stop := context.AfterFunc(l.ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
		defer stop()
	}
	response, err := l.transfer(command)
	switch {
	case err == nil:
		return response, nil
	case errors.Is(err, syscall.ENOMEM):
		// The kernel's resource manager keeps three objects for a process and
		// fails the read when a command makes a fourth.
		return code(tpm2.TPMRCObjectMemory), nil
	case l.ctx.Err() != nil:
		l.failed = l.ctx.Err()
		return nil, l.failed
	}
	l.failed = err
	return nil, &LinkError{err}
}

func (l *link) transfer(command []byte) ([]byte, error) {
	if _, err := l.rw.Write(command); err != nil {
		return nil, err
	}
	// A device gives the whole answer to one read, a socket may give it in
	// pieces.
	buf := make([]byte, maxResponse)
	n := 0
	for want := headerSize; n < want; {
		m, err := l.rw.Read(buf[n:])
		n += m
		if n >= headerSize {
			size := binary.BigEndian.Uint32(buf[2:])
			if size < headerSize || size > maxResponse {
				return nil, fmt.Errorf("the answer claims a size of %d bytes", size)
			}
			want = int(size)
		}
		if n > want {
			return nil, errors.New("the answer is longer than its size says")
		}
		if n < want && err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	return buf[:n], nil
}

func responseCode(response []byte) tpm2.TPMRC {
	return tpm2.TPMRC(binary.BigEndian.Uint32(response[6:]))
}

// code returns an answer that is nothing but a response code.
func code(rc tpm2.TPMRC) []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMSTNoSessions))
	b = binary.BigEndian.AppendUint32(b, headerSize)
	return binary.BigEndian.AppendUint32(b, uint32(rc))
}

// counts counts the commands sent, by name.
type counts struct {
	mu     sync.Mutex
	byName map[string]int
}

func (c *counts) add(command []byte) {
	cc := tpm2.TPMCC(binary.BigEndian.Uint32(command[6:]))
	name, ok := commandNames[cc]
	if !ok {
		name = fmt.Sprintf("command %#x", uint32(cc))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byName == nil {
		c.byName = make(map[string]int)
	}
	c.byName[name]++
}

// commandNames has the commands that Limpet sends.
var commandNames = map[tpm2.TPMCC]string{
	tpm2.TPMCCContextLoad:         "ContextLoad",
	tpm2.TPMCCContextSave:         "ContextSave",
	tpm2.TPMCCCreate:              "Create",
	tpm2.TPMCCCreatePrimary:       "CreatePrimary",
	tpm2.TPMCCEvictControl:        "EvictControl",
	tpm2.TPMCCFlushContext:        "FlushContext",
	tpm2.TPMCCGetCapability:       "GetCapability",
	tpm2.TPMCCHMAC:                "HMAC",
	tpm2.TPMCCHierarchyChanegAuth: "HierarchyChangeAuth",
	tpm2.TPMCCLoad:                "Load",
	tpm2.TPMCCNVChangeAuth:        "NV_ChangeAuth",
	tpm2.TPMCCNVDefineSpace:       "NV_DefineSpace",
	tpm2.TPMCCNVIncrement:         "NV_Increment",
	tpm2.TPMCCNVRead:              "NV_Read",
	tpm2.TPMCCNVReadPublic:        "NV_ReadPublic",
	tpm2.TPMCCNVUndefineSpace:     "NV_UndefineSpace",
	tpm2.TPMCCNVWrite:             "NV_Write",
	tpm2.TPMCCObjectChangeAuth:    "ObjectChangeAuth",
	tpm2.TPMCCPolicyAuthValue:     "PolicyAuthValue",
	tpm2.TPMCCPolicyCommandCode:   "PolicyCommandCode",
	tpm2.TPMCCPolicyNV:            "PolicyNV",
	tpm2.TPMCCPolicyNvWritten:     "PolicyNvWritten",
	tpm2.TPMCCPolicyOR:            "PolicyOR",
	tpm2.TPMCCPolicySecret:        "PolicySecret",
	tpm2.TPMCCReadPublic:          "ReadPublic",
	tpm2.TPMCCSign:                "Sign",
	tpm2.TPMCCStartAuthSession:    "StartAuthSession",
	tpm2.TPMCCStartup:             "Startup",
	tpm2.TPMCCTestParms:           "TestParms",
}
