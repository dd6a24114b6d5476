package fido

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"time"
	"unicode/utf8"
)

// Subcommands of clientPIN: CTAP 2.1, section 6.5.5.
const (
	subRetries              = 1
	subKeyAgreement         = 2
	subSetPIN               = 3
	subChangePIN            = 4
	subToken                = 5
	subTokenByUV            = 6
	subUVRetries            = 7
	subTokenWithPermissions = 9
)

// Permissions of a token that stands for a right PIN, or a verified user: CTAP 2.1, section 6.5.5.7.
const (
	mayMakeCredential = 0x01
	mayGetAssertion   = 0x02
	mayManage         = 0x04
	mayWriteBlobs     = 0x10
	mayConfigure      = 0x20

	everyPermission = mayMakeCredential | mayGetAssertion | mayManage | mayWriteBlobs | mayConfigure
)

// How long such a token is good for.
const (
	unusedSession = 30 * time.Second
	maxSession    = 10 * time.Minute
)

// session is what a right PIN gave to a host.
type session struct {
	protocol    int64
	token       [32]byte
	permissions int64
	rpID        string // that it is for, once there is one
	verified    bool   // until a credential was made or used
	used        bool
	began       time.Time
	unlocked    Unlocked
	ends        [2]*time.Timer
}

func (t *Token) endSession() {
	if s := t.session; s != nil {
		for _, end := range s.ends {
			end.Stop()
		}
		t.session = nil
		t.release(s.unlocked)
	}
	t.forgetNext()
}

// unlock checks a PIN's hash. After three wrong ones in a row there is no further try
// before the token starts again, so that no program can use up all of them unseen.
func (t *Token) unlock(ctx context.Context, hash [16]byte) (Unlocked, error) {
	if t.mismatches >= 3 {
		return nil, statusPINAuthBlocked
	}
	u, err := t.vault.Unlock(ctx, hash)
	if err == nil {
		t.hold(ctx, u)
	}
	return u, t.tried(err)
}

// tried counts a wrong PIN.
func (t *Token) tried(err error) error {
	switch {
	case err == nil:
		t.mismatches = 0
	case errors.Is(err, ErrPINInvalid):
		if t.mismatches++; t.mismatches >= 3 {
			return statusPINAuthBlocked
		}
	}
	return err
}

// clientPIN answers CTAP 2.1, section 6.5.5.
func (t *Token) clientPIN(x *transaction, a *args) (map[int]any, error) {
	sub := required[int64](a, 2)
	if *a.err != nil {
		return nil, *a.err
	}
	if sub == subRetries {
		_, retries, err := t.vault.PIN(x.ctx)
		return map[int]any{3: retries, 4: t.mismatches >= 3}, err
	}
	builtIn := sub == subTokenByUV || sub == subUVRetries
	switch sub {
	case subKeyAgreement, subSetPIN, subChangePIN, subToken, subTokenWithPermissions, subTokenByUV, subUVRetries:
	default:
		return nil, statusInvalidSubcommand
	}
	switch {
	case builtIn && t.verifier == nil:
		return nil, statusInvalidSubcommand
	case sub == subUVRetries && !t.holds():
		return map[int]any{5: 0}, nil
	case sub == subUVRetries:
		return map[int]any{5: t.held.left}, nil
	}
	protocol := required[int64](a, 1)
	if *a.err != nil {
		return nil, *a.err
	}
	if protocol != 1 && protocol != 2 {
		return nil, statusInvalidParameter
	}
	if sub == subKeyAgreement {
		point := t.agreement[protocol].PublicKey().Bytes()[1:]
		return map[int]any{1: publicKey(-25, point)}, nil
	}
	key := a.requiredWithin(3)
	var param, newPIN, hash []byte
	if sub == subSetPIN || sub == subChangePIN {
		param, newPIN = required[[]byte](a, 4), required[[]byte](a, 5)
	}
	if sub != subSetPIN && !builtIn {
		hash = required[[]byte](a, 6)
	}
	permissions, hasPermissions := optional[int64](a, 9)
	rpID, hasRPID := optional[string](a, 10)
	if *a.err != nil {
		return nil, *a.err
	}
	switch sub {
	case subToken:
		if hasPermissions || hasRPID {
			return nil, statusInvalidParameter
		}
		permissions = mayMakeCredential | mayGetAssertion
	case subTokenWithPermissions, subTokenByUV:
		switch {
		case !hasPermissions:
			return nil, statusMissingParameter
		case permissions <= 0:
			return nil, statusInvalidParameter
		case permissions&^everyPermission != 0, builtIn && permissions&mayConfigure != 0:
			return nil, statusUnauthorized
		case permissions&(mayMakeCredential|mayGetAssertion) != 0 && !hasRPID:
			return nil, statusMissingParameter
		}
	}
	if sub == subSetPIN && t.pinSet {
		return nil, statusPINAuthInvalid
	}
	switch {
	case builtIn && !t.pinSet:
		return nil, statusNotAllowed
	case sub != subSetPIN && !t.pinSet:
		return nil, statusPINNotSet
	}
	s, err := t.agree(protocol, key)
	if err != nil {
		return nil, err
	}
	switch sub {
	case subSetPIN:
		if err := s.verify(newPIN, param); err != nil {
			return nil, err
		}
		plain, err := s.padded(newPIN)
		if err != nil {
			return nil, err
		}
		defer clear(plain)
		return nil, t.firstPIN(x.ctx, plain)
	case subChangePIN:
		if err := s.verify(append(bytes.Clone(newPIN), hash...), param); err != nil {
			return nil, err
		}
		plain, err := s.padded(newPIN)
		if err != nil {
			return nil, err
		}
		defer clear(plain)
		old, err := s.pinHash(hash)
		if err == nil {
			err = t.newPIN(x.ctx, old, plain)
		}
		t.wrongPIN(protocol, err)
		return nil, err
	}
	var u Unlocked
	if builtIn {
		r := Request{Operation: Verify, RPID: rpID}
		if rpID == "" || permissions&mayManage != 0 {
			r.Operation = Manage
		}
		if u, err = t.verify(x, r); err != nil {
			return nil, err
		}
	} else {
		entered, err := s.pinHash(hash)
		if err != nil {
			return nil, err
		}
		if u, err = t.unlock(x.ctx, entered); err != nil {
			t.wrongPIN(protocol, err)
			return nil, err
		}
		if t.state.ForceChange {
			t.release(u)
			if sub == subToken {
				return nil, statusPINInvalid // what hosts of CTAP 2.0 understand
			}
			return nil, statusPINPolicy
		}
	}
	t.endSession()
	t.session = &session{
		protocol: protocol, permissions: permissions, rpID: rpID,
		verified: true, began: time.Now(), unlocked: u,
	}
	if permissions&(mayMakeCredential|mayGetAssertion) == 0 {
		t.lockSession() // the rest needs no key
	}
	rand.Read(t.session.token[:])
	t.expire(t.session)
	return map[int]any{2: s.encrypt(t.session.token[:])}, nil
}

// wrongPIN makes a new key agreement necessary for a further try.
func (t *Token) wrongPIN(protocol int64, err error) {
	var s status
	if errors.Is(err, ErrPINInvalid) || errors.As(err, &s) && s == statusPINAuthBlocked {
		t.newAgreement(protocol)
	}
}

// expire ends a session when its time is over, also if nobody asks.
func (t *Token) expire(s *session) {
	end := func() {
		t.turn <- struct{}{}
		defer t.end()
		if t.session == s && t.lapsed() {
			t.endSession()
		}
	}
	s.ends = [2]*time.Timer{time.AfterFunc(unusedSession, end), time.AfterFunc(maxSession, end)}
}

// lapsed reports whether the session's time is over.
func (t *Token) lapsed() bool {
	age := time.Since(t.session.began)
	return age >= maxSession || age >= unusedSession && !t.session.used
}

func (s *shared) pinHash(sealed []byte) (hash [16]byte, err error) {
	plain, err := s.decrypt(sealed)
	if err == nil && len(plain) != len(hash) {
		err = statusInvalidParameter
	}
	if err != nil {
		return hash, err
	}
	copy(hash[:], plain)
	clear(plain)
	return hash, nil
}

// padded decrypts a new PIN, and takes off its zeros.
func (s *shared) padded(sealed []byte) ([]byte, error) {
	plain, err := s.decrypt(sealed)
	if err == nil && len(plain) != maxPIN+1 {
		err = statusInvalidParameter
	}
	return bytes.TrimRight(plain, "\x00"), err
}

// checkPIN tells whether a new PIN is as it must be.
func (t *Token) checkPIN(pin []byte) error {
	if !utf8.Valid(pin) || utf8.RuneCount(pin) < t.state.minPIN() || len(pin) > maxPIN || bytes.IndexByte(pin, 0) >= 0 {
		return statusPINPolicy
	}
	return nil
}

func hashPIN(pin []byte) (hash [16]byte) {
	sum := sha256.Sum256(pin)
	copy(hash[:], sum[:])
	return hash
}

// firstPIN sets the first PIN.
func (t *Token) firstPIN(ctx context.Context, pin []byte) error {
	if err := t.checkPIN(pin); err != nil {
		return err
	}
	if err := t.vault.SetPIN(ctx, hashPIN(pin)); err != nil {
		return err
	}
	t.pinSet, t.mismatches = true, 0
	return t.pinIs(ctx, pin)
}

// newPIN replaces the PIN.
func (t *Token) newPIN(ctx context.Context, old [16]byte, pin []byte) error {
	if t.mismatches >= 3 {
		return statusPINAuthBlocked
	}
	if err := t.checkPIN(pin); err != nil {
		return err
	}
	if t.state.ForceChange && old == hashPIN(pin) {
		return statusPINPolicy
	}
	t.endSession()
	t.letGo()
	if err := t.tried(t.vault.ChangePIN(ctx, old, hashPIN(pin))); err != nil {
		return err
	}
	return t.pinIs(ctx, pin)
}

// pinIs remembers how long the PIN is, which decides whether it is to be changed when
// longer ones are asked for.
func (t *Token) pinIs(ctx context.Context, pin []byte) error {
	next := t.state
	next.PINLength, next.ForceChange = utf8.RuneCount(pin), false
	return t.save(ctx, next)
}

// authorize checks a host's pinUvAuthParam over message for one of the permissions.
func (t *Token) authorize(protocol int64, param, message []byte, permission int64) error {
	s := t.session
	if s == nil || t.lapsed() || s.protocol != protocol {
		return statusPINAuthInvalid
	}
	if err := verify(protocol, s.token[:], message, param); err != nil {
		return err
	}
	if s.permissions&permission == 0 {
		return statusPINAuthInvalid
	}
	s.used = true
	return nil
}

// authorizeFor is authorize for a relying party, of which a session has one.
func (t *Token) authorizeFor(rpID string, protocol int64, param, message []byte, permission int64) error {
	if err := t.authorize(protocol, param, message, permission); err != nil {
		return err
	}
	if t.session.rpID != "" && t.session.rpID != rpID || !t.session.verified {
		return statusPINAuthInvalid
	}
	t.session.rpID = rpID
	return nil
}

// consumed ends what a session was good for but writing large blobs, once the user
// has been asked about a credential.
func (t *Token) consumed() {
	if t.session != nil {
		t.session.verified = false
		t.session.permissions &= mayWriteBlobs
	}
}

// pinParams are the members by which a request shows that the PIN was right.
func (t *Token) pinParams(a *args, param, protocol any) (p []byte, has bool, number int64, err error) {
	p, has = optional[[]byte](a, param)
	number, hasProtocol := optional[int64](a, protocol)
	switch {
	case *a.err != nil:
		err = *a.err
	case !has:
	case !hasProtocol:
		err = statusMissingParameter
	case number != 1 && number != 2:
		err = statusInvalidParameter
	}
	return p, has, number, err
}

// touchOnly answers a host that sends an empty pinUvAuthParam to have the user choose
// a token.
func (t *Token) touchOnly(x *transaction) error {
	if err := t.consent(x, Request{Operation: Select}); err != nil {
		return err
	}
	if t.pinSet {
		return statusPINInvalid
	}
	return statusPINNotSet
}
