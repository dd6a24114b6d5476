package fido

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"unicode/utf8"
)

// Flags of authenticator data: WebAuthn, section 6.1.
const (
	flagUP = 0x01
	flagUV = 0x04
	flagAT = 0x40
	flagED = 0x80
)

// creation is what makeCredential asks for.
type creation struct {
	clientData  []byte
	rpID        string
	rpName      string
	user        stored // whose account it is
	noStatement bool
	rk          bool
	protection  int64 // 0 if none was asked for
	secrets     bool
	blob        []byte
	hasBlob     bool
	blobKey     bool
	minPIN      bool
}

// makeCredential answers CTAP 2.1, section 6.1.
func (t *Token) makeCredential(x *transaction, a *args) (map[int]any, error) {
	param, hasParam, protocol, err := t.pinParams(a, 8, 9)
	if hasParam && len(param) == 0 && *a.err == nil {
		return nil, t.touchOnly(x)
	}
	if err != nil {
		return nil, err
	}
	var c creation
	c.clientData = required[[]byte](a, 1)
	rp, user := a.requiredWithin(2), a.requiredWithin(3)
	c.rpID = required[string](rp, "id")
	c.rpName, _ = optional[string](rp, "name")
	c.user.UserID = required[[]byte](user, "id")
	c.user.Name, _ = optional[string](user, "name")
	c.user.DisplayName, _ = optional[string](user, "displayName")
	for _, entity := range []*args{rp, user} {
		optional[string](entity, "icon") // CTAP 2.0's, which is not kept
	}
	algorithms := required[[]any](a, 4)
	if *a.err != nil {
		return nil, *a.err
	}
	switch {
	case len(c.clientData) != sha256.Size, len(c.user.UserID) > maxUserID, c.rpID == "":
		return nil, statusInvalidLength
	case len(c.rpID) > maxRPID:
		return nil, statusLimitExceeded
	}
	known := false
	a.each(algorithms, func(p *args) {
		kind, alg := required[string](p, "type"), required[int64](p, "alg")
		known = known || kind == "public-key" && alg == es256
	})
	if *a.err != nil {
		return nil, *a.err
	}
	if !known {
		return nil, statusUnsupportedAlgorithm
	}
	options, _ := a.within(7)
	c.rk, _ = optional[bool](options, "rk")
	up, hasUP := optional[bool](options, "up")
	uv, _ := optional[bool](options, "uv")
	formats, _ := optional[[]any](a, 11)
	_, enterprise := optional[int64](a, 10)
	excluded, err := credentialIDs(a, 5)
	if err != nil {
		return nil, err
	}
	if err := c.extensions(a); err != nil {
		return nil, err
	}
	switch {
	case hasUP && !up, uv && !hasParam && !t.canVerify():
		return nil, statusInvalidOption
	case enterprise:
		return nil, statusInvalidParameter
	}
	c.noStatement = len(formats) > 0 && formats[0] == "none"

	r := Request{Operation: Register, RPID: c.rpID, RPName: c.rpName, Account: c.user.Name}
	builtIn := !hasParam && (uv || t.state.AlwaysUV && t.holds())
	var unlocked Unlocked
	switch {
	case hasParam && !t.pinSet:
		return nil, statusPINNotSet
	case hasParam:
		if err := t.authorizeFor(c.rpID, protocol, param, c.clientData, mayMakeCredential); err != nil {
			return nil, err
		}
		unlocked = t.session.unlocked
	case builtIn:
		if unlocked, err = t.verifyFor(x, r); err != nil {
			return nil, err
		}
	case t.state.AlwaysUV, t.pinSet && c.rk:
		return nil, statusPINRequired
	}
	rpHash := sha256.Sum256([]byte(c.rpID))
	isExcluded, err := t.excludes(x, rpHash, excluded, unlocked != nil)
	if err != nil {
		return nil, err
	}
	if !builtIn { // else whoever was verified was there, and was shown the request
		err = t.consent(x, r)
	}
	switch {
	case errors.Is(err, statusCancelled):
		return nil, err
	case isExcluded: // whatever the user said
		return nil, statusCredentialExcluded
	case err != nil:
		return nil, err
	}
	t.consumed()
	return t.make(x, &c, rpHash, unlocked)
}

// credentialIDs reads a list of credentials.
func credentialIDs(a *args, key any) (ids [][]byte, err error) {
	list, _ := optional[[]any](a, key)
	if len(list) > maxList {
		return nil, statusLimitExceeded
	}
	a.each(list, func(d *args) {
		kind, id := required[string](d, "type"), required[[]byte](d, "id")
		if kind == "public-key" {
			ids = append(ids, id)
		}
	})
	return ids, *a.err
}

// extensions reads what else makeCredential is asked for.
func (c *creation) extensions(a *args) error {
	in, _ := a.within(6)
	var has bool
	if c.protection, has = optional[int64](in, "credProtect"); has && (c.protection < protectOptional || c.protection > protectRequired) {
		return statusInvalidOption
	}
	c.secrets, _ = optional[bool](in, "hmac-secret")
	c.blob, c.hasBlob = optional[[]byte](in, "credBlob")
	c.minPIN, _ = optional[bool](in, "minPinLength")
	if c.blobKey, has = optional[bool](in, "largeBlobKey"); has && (!c.blobKey || !c.rk) && *a.err == nil {
		return statusInvalidOption
	}
	return *a.err
}

// excludes reports whether one of the IDs is of a credential here, which the host
// may know of.
func (t *Token) excludes(x *transaction, rpHash [32]byte, ids [][]byte, verified bool) (bool, error) {
	for _, id := range ids {
		c, err := t.lookup(x, rpHash, id)
		if errors.Is(err, ErrNoKey) {
			continue
		}
		if err != nil {
			return false, err
		}
		// One whose protection was asked for is hidden; one that is protected because
		// its user was verified is not, lest there be two.
		if int(c.kind&idProtection) == protectRequired && !verified {
			continue
		}
		return true, nil
	}
	return false, nil
}

// make makes a credential, which has been allowed.
func (t *Token) make(x *transaction, c *creation, rpHash [32]byte, u Unlocked) (map[int]any, error) {
	kept := slices.Clone(t.state.Credentials)
	if c.rk {
		kept = slices.DeleteFunc(kept, func(s *stored) bool {
			return s.RPID == c.rpID && bytes.Equal(s.UserID, c.user.UserID)
		})
		if len(kept) >= maxCredentials {
			return nil, statusKeyStoreFull
		}
	}
	kind := byte(max(c.protection, protectOptional))
	if c.rk {
		kind |= idDiscoverable
	}
	if c.secrets {
		kind |= idSecrets
	}
	cred, public, err := t.create(x, rpHash, kind, u)
	if err != nil {
		return nil, err
	}
	xy, err := point(public)
	if err != nil {
		return nil, err
	}

	flags := byte(flagUP | flagAT)
	if u != nil {
		flags |= flagUV
	}
	said := map[string]any{}
	if c.protection != 0 {
		said["credProtect"] = cred.level()
	}
	if c.secrets {
		said["hmac-secret"] = true
	}
	keepBlob := c.hasBlob && c.rk && len(c.blob) <= maxCredBlob
	if c.hasBlob {
		said["credBlob"] = keepBlob
	}
	if c.minPIN && slices.Contains(t.state.MinPINRPs, c.rpID) {
		said["minPinLength"] = t.state.minPIN()
	}
	attested := append([]byte(nil), AAGUID[:]...)
	attested = binary.BigEndian.AppendUint16(attested, uint16(len(cred.id)))
	attested = append(attested, cred.id...)
	attested = append(attested, encode(publicKey(es256, xy))...)
	data, err := t.authData(x, rpHash, flags, attested, said)
	if err != nil {
		return nil, err
	}
	answer := map[int]any{1: "none", 2: data, 3: map[string]any{}}
	if !c.noStatement {
		sig, err := t.sign(x, cred, u, data, c.clientData)
		if err != nil {
			return nil, err
		}
		answer[1], answer[3] = "packed", map[string]any{"alg": es256, "sig": sig}
	}
	if c.rk {
		s := c.user
		s.ID, s.RPID, s.RPName, s.Point = cred.id, c.rpID, short(c.rpName), xy
		s.Name, s.DisplayName = short(s.Name), short(s.DisplayName)
		if keepBlob {
			s.Blob = c.blob
		}
		if c.blobKey {
			s.BlobKey = make([]byte, 32)
			rand.Read(s.BlobKey)
			answer[5] = s.BlobKey
		}
		next := t.state
		next.Credentials = append(kept, &s)
		if err := t.save(x.ctx, next); err != nil {
			return nil, err
		}
	}
	return answer, nil
}

// authData makes authenticator data, and steps the counter.
func (t *Token) authData(x *transaction, rpHash [32]byte, flags byte, attested []byte, said map[string]any) ([]byte, error) {
	count, err := t.vault.Count(x.ctx)
	if err != nil {
		return nil, err
	}
	if len(said) > 0 {
		flags |= flagED
	}
	data := append(rpHash[:], flags)
	data = binary.BigEndian.AppendUint32(data, count)
	data = append(data, attested...)
	if len(said) > 0 {
		data = append(data, encode(said)...)
	}
	return data, nil
}

func (t *Token) sign(x *transaction, c *credential, u Unlocked, data, clientData []byte) ([]byte, error) {
	if !c.uv {
		u = nil // not needed
	}
	return t.vault.Sign(x.ctx, c.tie, c.handle, u, sha256.Sum256(append(bytes.Clone(data), clientData...)))
}

// short cuts a name off where a character ends.
func short(s string) string {
	if len(s) <= maxName {
		return s
	}
	s = s[:maxName]
	for !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return strings.Clone(s)
}
