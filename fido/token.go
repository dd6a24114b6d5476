package fido

import (
	"context"
	"crypto/ecdh"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"
)

// AAGUID tells relying parties the kind of token. It is a random number that stands
// for Limpet: 451794c1-22b0-40a9-babd-4be2bb8a4817.
var AAGUID = [16]byte{0x45, 0x17, 0x94, 0xc1, 0x22, 0xb0, 0x40, 0xa9, 0xba, 0xbd, 0x4b, 0xe2, 0xbb, 0x8a, 0x48, 0x17}

// Config is what a Token is made of.
type Config struct {
	Vault  Vault
	Prompt Prompt
	Verify Verifier     // may be nil: then the PIN alone verifies the user
	Keys   string       // how the vault keeps keys, in words for their owner
	File   string       // where discoverable credentials, large blobs and settings are, sealed by the vault
	Logger *slog.Logger // nil for slog.Default
}

// Token is a security token. It answers one request at a time.
type Token struct {
	vault    Vault
	prompt   Prompt
	verifier Verifier
	keys     string
	file     string
	log      *slog.Logger

	appeared atomic.Pointer[time.Time] // nil before

	turn   chan struct{} // whose request is answered
	asking chan struct{} // who asks the user

	complained time.Time // that this is not possible; belongs to who asks

	// The rest belongs to who has the turn.
	state      state
	pinSet     bool
	stale      bool // a reset failed: the vault may have others
	mismatches int  // wrong PINs since the last right one, or since the start
	agreement  [3]*ecdh.PrivateKey
	session    *session
	held       *held
	next       *assertions
	rps        *listing[string]
	creds      *listing[*stored]
	blob       *upload
	u2f        *question
}

// New returns a token of what its vault and file hold. Say when hosts can reach it:
// see [Token.Appear].
func New(ctx context.Context, cfg Config) (*Token, error) {
	t := &Token{
		vault: cfg.Vault, prompt: cfg.Prompt, verifier: cfg.Verify, keys: cfg.Keys, file: cfg.File, log: cfg.Logger,
		turn: make(chan struct{}, 1), asking: make(chan struct{}, 1),
	}
	if t.log == nil {
		t.log = slog.Default()
	}
	t.newAgreement(1)
	t.newAgreement(2)
	// First, whether the vault is usable at all: the file is put aside if it is not
	// this vault's, and a vault that is out of order knows none.
	var err error
	if t.pinSet, _, err = t.vault.PIN(ctx); err != nil {
		return nil, err
	}
	if err := t.load(ctx); err != nil {
		return nil, err
	}
	return t, nil
}

// transaction is a request on its way through the token.
type transaction struct {
	ctx     context.Context // for the vault: what has been allowed is not left half done
	host    context.Context // done when the host cancels or goes away
	channel uint32
	waiting func(bool)
}

// Commands of CTAP2.
const (
	cmdMakeCredential   = 0x01
	cmdGetAssertion     = 0x02
	cmdGetInfo          = 0x04
	cmdClientPIN        = 0x06
	cmdReset            = 0x07
	cmdGetNextAssertion = 0x08
	cmdCredentials      = 0x0a
	cmdSelection        = 0x0b
	cmdLargeBlobs       = 0x0c
	cmdConfig           = 0x0d

	cmdPreview = 0x41 // of cmdCredentials, which libfido2 1.12 sends in its place to every token
)

// CBOR answers a CTAP2 request of a channel: a status, and what was asked for.
// Waiting is told when the token begins and ends to wait for the user. If ctx is
// done while it waits, the answer says that the request was cancelled.
func (t *Token) CBOR(ctx context.Context, channel uint32, request []byte, waiting func(bool)) []byte {
	if len(request) == 0 {
		return []byte{byte(statusInvalidLength)}
	}
	if err := t.begin(ctx); err != nil {
		return []byte{byte(statusCancelled)}
	}
	defer t.end()
	x := &transaction{context.WithoutCancel(ctx), ctx, channel, waiting}
	answer, err := t.command(x, request[0], request[1:])
	t.settle()
	if err != nil {
		return []byte{byte(t.statusOf(err, request[0]))}
	}
	if answer == nil {
		return []byte{byte(ok)}
	}
	return append([]byte{byte(ok)}, encode(answer)...)
}

func (t *Token) begin(ctx context.Context) error {
	select {
	case t.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t *Token) end() { <-t.turn }

// command answers a request with a map, or nothing.
func (t *Token) command(x *transaction, cmd byte, data []byte) (map[int]any, error) {
	// What continues an earlier request is void once another one comes between.
	switch {
	case cmd == cmdGetNextAssertion:
		t.rps, t.creds = nil, nil
	case cmd == cmdCredentials || cmd == cmdPreview:
		t.forgetNext()
	default:
		t.forgetNext()
		t.rps, t.creds = nil, nil
	}
	if cmd != cmdLargeBlobs {
		t.blob = nil
	}
	if err := t.current(x.ctx); err != nil && cmd != cmdGetInfo && cmd != cmdReset {
		return nil, statusOther
	}
	switch cmd { // those without parameters
	case cmdGetInfo, cmdReset, cmdGetNextAssertion, cmdSelection:
		if len(data) > 0 {
			return nil, statusInvalidLength
		}
	}
	switch cmd {
	case cmdGetInfo:
		return t.info(), nil
	case cmdReset:
		return nil, t.reset(x)
	case cmdGetNextAssertion:
		return t.nextAssertion(x)
	case cmdSelection:
		return nil, t.consent(x, Request{Operation: Select})
	}
	f, known := map[byte]func(*transaction, *args) (map[int]any, error){
		cmdMakeCredential: t.makeCredential,
		cmdGetAssertion:   t.getAssertion,
		cmdClientPIN:      t.clientPIN,
		cmdCredentials:    t.manage,
		cmdPreview:        t.manage,
		cmdLargeBlobs:     t.largeBlobs,
		cmdConfig:         t.configure,
	}[cmd]
	if !known {
		return nil, statusInvalidCommand
	}
	a, err := parse(data)
	if err != nil {
		return nil, err
	}
	return f(x, a)
}

// statusOf returns what a host is told of an error.
func (t *Token) statusOf(err error, cmd byte) status {
	var s status
	switch {
	case errors.As(err, &s):
		return s
	case errors.Is(err, ErrPINInvalid):
		return statusPINInvalid
	case errors.Is(err, ErrPINBlocked):
		return statusPINBlocked
	case errors.Is(err, ErrNoKey):
		return statusNoCredentials
	case errors.Is(err, ErrLocked):
		t.letGo() // or the vault does not take it any more
		return statusPINRequired
	}
	t.log.Error("limpet: fido: a request failed", "command", cmd, "error", err)
	return statusOther
}

// settle forgets what the PIN unlocked as soon as nothing can need it any more.
func (t *Token) settle() {
	if t.session != nil && !t.session.verified && t.next == nil {
		t.lockSession()
	}
}

// Limits.
const (
	// What hosts are told. Of what they send at once Linux keeps 31 reports for the
	// token, and a host is not held up: a message of 1200 bytes is 21. Three
	// credentials find room in one.
	maxMessage  = 1200
	usualInList = 3

	maxList        = 64 // credentials in a list
	maxID          = 2 + MaxHandle + MaxSecretHandle
	maxCredentials = 1000
	maxBlobs       = 64 << 10
	maxCredBlob    = 32
	maxMinPINRPs   = 16
	maxRPID        = 255
	maxUserID      = 64
	maxName        = 64
	minPIN         = 4 // characters
	maxPIN         = 63
)

const es256 = -7

// info answers getInfo: CTAP 2.1, section 6.4.
func (t *Token) info() map[int]any {
	versions := []string{"FIDO_2_0", "FIDO_2_1"}
	if !t.state.AlwaysUV {
		versions = append([]string{"U2F_V2"}, versions...)
	}
	options := map[string]bool{
		"rk": true, "up": true, "plat": false, "clientPin": t.pinSet, "pinUvAuthToken": true,
		"credMgmt": true, "authnrCfg": true, "setMinPINLength": true, "largeBlobs": true,
		"alwaysUv": t.state.AlwaysUV, "makeCredUvNotRqd": !t.state.AlwaysUV,
	}
	if t.verifier != nil {
		options["uv"] = t.holds()
	}
	return map[int]any{
		0x01: versions,
		0x02: []string{"credBlob", "credProtect", "hmac-secret", "largeBlobKey", "minPinLength"},
		0x03: AAGUID[:],
		0x04: options,
		0x05: maxMessage,
		0x06: []int{2, 1},
		0x07: usualInList,
		0x08: maxID,
		0x09: []string{"usb"},
		0x0a: []map[string]any{{"alg": es256, "type": "public-key"}},
		0x0b: maxBlobs,
		0x0c: t.state.ForceChange,
		0x0d: t.state.minPIN(),
		0x0e: 1,
		0x0f: maxCredBlob,
		0x10: maxMinPINRPs,
		0x14: maxCredentials - len(t.state.Credentials),
	}
}

// resetWindow is how long after it appeared a host may reset the token: CTAP 2.1, section 6.6.
const resetWindow = 10 * time.Second

// reset answers a host that wants everything deleted.
func (t *Token) reset(x *transaction) error {
	if at := t.appeared.Load(); at == nil || time.Since(*at) > resetWindow {
		return statusNotAllowed
	}
	if err := t.consent(x, Request{Operation: Reset}); err != nil {
		return err
	}
	return t.wipe(x.ctx)
}

// wipe makes everything worthless: first in the vault, after which the file cannot
// be opened any more. If it fails the token goes on with what the vault has then.
func (t *Token) wipe(ctx context.Context) error {
	t.endSession()
	t.letGo()
	t.newAgreement(1)
	t.newAgreement(2)
	err := t.vault.Reset(ctx)
	if err == nil {
		t.pinSet, t.mismatches = false, 0
		err = t.save(ctx, state{})
	}
	if t.stale = err != nil; t.stale {
		t.current(ctx) // it logs
		return fmt.Errorf("limpet: fido: reset: %w", err)
	}
	return nil
}

// current reads what the vault and the file have, after a reset that failed. As long
// as that is not possible nothing is done with what they had before.
func (t *Token) current(ctx context.Context) error {
	if !t.stale {
		return nil
	}
	before := t.state
	t.state = state{}
	pinSet, _, err := t.vault.PIN(ctx)
	if err == nil {
		err = t.load(ctx)
	}
	if err != nil {
		t.state = before
		t.log.Error("limpet: fido: a reset failed, and what it left cannot be read", "error", err)
		return fmt.Errorf("limpet: fido: a reset failed, and what it left cannot be read: %w", err)
	}
	t.pinSet, t.stale = pinSet, false
	if !pinSet {
		t.mismatches = 0
	}
	return nil
}
