package fido

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"errors"
	"slices"
)

// A credential's ID begins with a byte that says what it is. The rest is the
// vault's handle; or, if there are secrets for hmac-secret, the length of that, the
// handle and the secrets' handle. The vault ties the key to the first byte and to the
// relying party, and the secrets to the key, so nothing of an ID can be changed.
//
//	bits 7, 6   01
//	bit 5       discoverable: in the token's file, without which it does not work
//	bit 4       has secrets
//	bits 3, 2   00
//	bits 1, 0   credProtect's level, 1 to 3
const (
	idForm         = 0x40
	idFormMask     = 0xcc
	idDiscoverable = 0x20
	idSecrets      = 0x10
	idProtection   = 0x03
)

// Levels of protection: CTAP 2.1, section 12.1.
const (
	protectOptional = 1 // usable without verification
	protectListed   = 2 // without verification by those alone who know its ID
	protectRequired = 3 // with verification only
)

// credential is a credential that works here for its relying party.
type credential struct {
	kind    byte
	handle  []byte
	secrets []byte // nil without
	tie     [32]byte
	id      []byte
	uv      bool // the vault wants the PIN
	stored  *stored
}

// level returns how the credential is protected: the vault's word counts as much as
// what was asked for when it was made.
func (c *credential) level() int {
	if c.uv {
		return protectRequired
	}
	return int(c.kind & idProtection)
}

func tie(what string, kind byte, rpHash [32]byte, more []byte) [32]byte {
	b := append([]byte("limpet fido "+what+"\x00"), kind)
	return sha256.Sum256(append(append(b, rpHash[:]...), more...))
}

func (c *credential) secretTie(rpHash [32]byte) [32]byte {
	return tie("secret", c.kind, rpHash, c.handle)
}

// split takes an ID apart.
func split(id []byte) (*credential, bool) {
	if len(id) < 2 || len(id) > maxID {
		return nil, false
	}
	c := &credential{kind: id[0], handle: id[1:], id: id}
	if c.kind&idFormMask != idForm || c.kind&idProtection == 0 {
		return nil, false
	}
	if c.kind&idSecrets != 0 {
		n := int(id[1])
		if len(id) <= 2+n {
			return nil, false
		}
		c.handle, c.secrets = id[2:2+n], id[2+n:]
	}
	return c, true
}

// lookup returns the credential of an ID, or ErrNoKey if it is none of this token's
// for the relying party.
func (t *Token) lookup(x *transaction, rpHash [32]byte, id []byte) (*credential, error) {
	c, valid := split(id)
	if !valid {
		return nil, ErrNoKey
	}
	if c.kind&idDiscoverable != 0 {
		at := t.state.find(id)
		if at < 0 || t.state.Credentials[at].rpHash() != rpHash {
			return nil, ErrNoKey
		}
		c.stored = t.state.Credentials[at]
	}
	c.tie = tie("credential", c.kind, rpHash, nil)
	var err error
	c.uv, err = t.vault.Verified(x.ctx, c.tie, c.handle)
	return c, err
}

// discover returns the discoverable credentials for a relying party, newest first.
func (t *Token) discover(x *transaction, rpHash [32]byte) ([]*credential, error) {
	var found []*credential
	for _, s := range slices.Backward(t.state.Credentials) {
		if s.rpHash() != rpHash {
			continue
		}
		switch c, err := t.lookup(x, rpHash, s.ID); {
		case err == nil:
			found = append(found, c)
		case !errors.Is(err, ErrNoKey):
			return nil, err
		}
	}
	return found, nil
}

// create makes a credential's key, and with it its ID.
func (t *Token) create(x *transaction, rpHash [32]byte, kind byte, u Unlocked) (*credential, *ecdsa.PublicKey, error) {
	c := &credential{kind: kind | idForm, uv: u != nil}
	c.tie = tie("credential", c.kind, rpHash, nil)
	handle, public, err := t.vault.Create(x.ctx, c.tie, u)
	if err != nil {
		return nil, nil, err
	}
	if len(handle) == 0 || len(handle) > MaxHandle {
		return nil, nil, errors.New("limpet: fido: the vault's handle is too long")
	}
	c.handle = handle
	c.id = append([]byte{c.kind}, handle...)
	if c.kind&idSecrets != 0 {
		c.secrets, err = t.vault.CreateSecret(x.ctx, c.secretTie(rpHash), u)
		if err != nil {
			return nil, nil, err
		}
		if len(c.secrets) == 0 || len(c.secrets) > MaxSecretHandle {
			return nil, nil, errors.New("limpet: fido: the vault's handle of secrets is too long")
		}
		c.id = append([]byte{c.kind, byte(len(handle))}, handle...)
		c.id = append(c.id, c.secrets...)
	}
	return c, public, nil
}

// point returns x and y of a public key.
func point(public *ecdsa.PublicKey) ([]byte, error) {
	b, err := public.Bytes()
	if err != nil {
		return nil, err
	}
	return b[1:], nil
}
