package fido

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"slices"
	"time"
)

// assertion is what getAssertion asks for.
type assertion struct {
	clientData []byte
	rpHash     [32]byte
	up, uv     bool
	listed     bool // the host knows the credentials' IDs
	several    bool // the user is to choose
	salts      []byte
	shared     *shared // that the salts came under
	blob       bool
	blobKey    bool
	unlocked   Unlocked
}

// assertions are the credentials that getNextAssertion goes on with.
type assertions struct {
	assertion
	channel uint32
	left    []*credential
	lapse   *time.Timer
}

const nextTimeout = 30 * time.Second // between two of them

// getAssertion answers CTAP 2.1, section 6.2.
func (t *Token) getAssertion(x *transaction, a *args) (map[int]any, error) {
	param, hasParam, protocol, err := t.pinParams(a, 6, 7)
	if hasParam && len(param) == 0 && *a.err == nil {
		return nil, t.touchOnly(x)
	}
	if err != nil {
		return nil, err
	}
	q := assertion{up: true}
	rpID := required[string](a, 1)
	q.clientData = required[[]byte](a, 2)
	options, _ := a.within(5)
	if up, has := optional[bool](options, "up"); has {
		q.up = up
	}
	uv, _ := optional[bool](options, "uv")
	_, hasRK := optional[bool](options, "rk")
	if *a.err != nil {
		return nil, *a.err
	}
	ids, err := credentialIDs(a, 3)
	if err != nil {
		return nil, err
	}
	list, _ := optional[[]any](a, 3)
	q.listed = len(list) > 0
	switch {
	case len(q.clientData) != sha256.Size:
		return nil, statusInvalidLength
	case len(rpID) > maxRPID:
		return nil, statusLimitExceeded
	case uv && !hasParam && !t.canVerify():
		return nil, statusInvalidOption
	case hasRK:
		return nil, statusUnsupportedOption
	}
	if err := t.assertionExtensions(&q, a); err != nil {
		return nil, err
	}
	builtIn := !hasParam && (uv || t.state.AlwaysUV && q.up && t.holds())
	switch {
	case hasParam && !t.pinSet:
		return nil, statusPINNotSet
	case hasParam:
		if err := t.authorizeFor(rpID, protocol, param, q.clientData, mayGetAssertion); err != nil {
			return nil, err
		}
		q.uv, q.unlocked = true, t.session.unlocked
	case builtIn:
		q.uv = true
	case t.state.AlwaysUV && q.up:
		return nil, statusPINRequired
	}
	q.rpHash = sha256.Sum256([]byte(rpID))
	usable, err := t.usable(x, &q, ids)
	if err != nil && !builtIn {
		return nil, err
	}
	q.several = len(usable) > 1
	r := Request{Operation: Authenticate, RPID: rpID, Accounts: len(usable)}
	if len(usable) > 0 && usable[0].stored != nil {
		r.RPName = usable[0].stored.RPName
		if !q.several {
			r.Account = usable[0].stored.Name
		}
	}
	switch {
	case builtIn: // whoever is verified is there, and is shown the request
		var refused error
		if q.unlocked, refused = t.verifyFor(x, r); refused != nil {
			err = refused // before it is told whether there is a credential
		}
	case q.up:
		err = t.consent(x, r)
	}
	if err != nil {
		return nil, err
	}
	if q.up {
		t.consumed()
	}
	answer, err := t.assert(x, &q, usable[0])
	if err != nil || !q.several {
		return answer, err
	}
	answer[5] = len(usable)
	t.remember(&assertions{assertion: q, channel: x.channel, left: usable[1:]})
	return answer, nil
}

// assertionExtensions reads what else getAssertion is asked for.
func (t *Token) assertionExtensions(q *assertion, a *args) error {
	in, _ := a.within(4)
	q.blob, _ = optional[bool](in, "credBlob")
	blobKey, has := optional[bool](in, "largeBlobKey")
	if has && !blobKey {
		return statusInvalidOption
	}
	q.blobKey = blobKey
	secret, has := in.within("hmac-secret")
	if *a.err != nil || !has {
		return *a.err
	}
	if !q.up {
		return statusUnsupportedOption
	}
	key := secret.requiredWithin(1)
	salts, mac := required[[]byte](secret, 2), required[[]byte](secret, 3)
	protocol, hasProtocol := optional[int64](secret, 4)
	if *a.err != nil {
		return *a.err
	}
	if !hasProtocol {
		protocol = 1 // hosts of CTAP 2.0
	}
	if protocol != 1 && protocol != 2 {
		return statusInvalidParameter
	}
	var err error
	if q.shared, err = t.agree(protocol, key); err != nil {
		return err
	}
	if err := q.shared.verify(salts, mac); err != nil {
		return err
	}
	if q.salts, err = q.shared.decrypt(salts); err != nil {
		return err
	}
	if len(q.salts) != 32 && len(q.salts) != 64 {
		return statusInvalidLength
	}
	return nil
}

// usable returns the credentials that may answer: at least one. Of those whose IDs
// the host knows, one will do.
func (t *Token) usable(x *transaction, q *assertion, ids [][]byte) ([]*credential, error) {
	if !q.listed {
		found, err := t.discover(x, q.rpHash)
		if err != nil {
			return nil, err
		}
		usable := slices.DeleteFunc(slices.Clone(found), func(c *credential) bool { return !q.uv && c.level() > protectOptional })
		if len(usable) == 0 {
			return nil, t.noneFor(found)
		}
		return usable, nil
	}
	var locked []*credential
	for _, id := range ids {
		c, err := t.lookup(x, q.rpHash, id)
		switch {
		case errors.Is(err, ErrNoKey):
		case err != nil:
			return nil, err
		case q.uv || c.level() < protectRequired:
			return []*credential{c}, nil
		default:
			locked = append(locked, c)
		}
	}
	return nil, t.noneFor(locked)
}

// noneFor says why credentials cannot be used without the PIN: nothing, if their
// protection was asked for, since nobody is to learn that they are there; that it is
// required, if they have it only because their user was verified when they were made.
func (t *Token) noneFor(locked []*credential) error {
	for _, c := range locked {
		if c.uv && int(c.kind&idProtection) == protectOptional {
			return statusPINRequired
		}
	}
	return statusNoCredentials
}

// assert answers with one credential.
func (t *Token) assert(x *transaction, q *assertion, c *credential) (map[int]any, error) {
	flags := byte(0)
	if q.up {
		flags |= flagUP
	}
	if q.uv {
		flags |= flagUV
	}
	said := map[string]any{}
	if q.salts != nil && c.secrets != nil {
		var secrets []byte
		for salt := range slices.Chunk(q.salts, 32) {
			secret, err := t.vault.Secret(x.ctx, c.secretTie(q.rpHash), c.secrets, q.unlocked, salt)
			if err != nil {
				return nil, err
			}
			secrets = append(secrets, secret[:]...)
		}
		said["hmac-secret"] = q.shared.encrypt(secrets)
		clear(secrets)
	}
	if q.blob {
		said["credBlob"] = []byte{}
		if c.stored != nil {
			said["credBlob"] = append([]byte{}, c.stored.Blob...)
		}
	}
	data, err := t.authData(x, q.rpHash, flags, nil, said)
	if err != nil {
		return nil, err
	}
	sig, err := t.sign(x, c, q.unlocked, data, q.clientData)
	if err != nil {
		return nil, err
	}
	answer := map[int]any{1: map[string]any{"id": c.id, "type": "public-key"}, 2: data, 3: sig}
	if s := c.stored; s != nil {
		answer[4] = s.user(q.uv && q.several)
		if q.blobKey && s.BlobKey != nil {
			answer[7] = bytes.Clone(s.BlobKey)
		}
	}
	return answer, nil
}

// nextAssertion answers CTAP 2.1, section 6.3.
func (t *Token) nextAssertion(x *transaction) (map[int]any, error) {
	n := t.next
	if n == nil || n.channel != x.channel {
		t.forgetNext()
		return nil, statusNotAllowed
	}
	c := n.left[0]
	n.left = n.left[1:]
	n.lapse.Reset(nextTimeout)
	if len(n.left) == 0 {
		t.forgetNext()
	}
	return t.assert(x, &n.assertion, c)
}

// remember keeps what getNextAssertion goes on with, for as long as CTAP has it.
func (t *Token) remember(n *assertions) {
	n.lapse = time.AfterFunc(nextTimeout, func() {
		t.turn <- struct{}{}
		defer t.end()
		if t.next == n {
			t.forgetNext()
			t.settle()
		}
	})
	t.next = n
}

func (t *Token) forgetNext() {
	if t.next != nil {
		t.next.lapse.Stop()
		t.next = nil
	}
}
