package fido

import (
	"bytes"
	"crypto/sha256"
	"slices"
)

// Subcommands of credentialManagement: CTAP 2.1, section 6.8.
const (
	manageMetadata    = 1
	manageRPs         = 2
	manageNextRP      = 3
	manageCredentials = 4
	manageNext        = 5
	manageDelete      = 6
	manageUpdate      = 7
)

// listing is what a host reads one by one.
type listing[T any] struct {
	channel uint32
	left    []T
}

// take returns the next one.
func (l *listing[T]) take(channel uint32) (v T, ok bool) {
	if l == nil || l.channel != channel || len(l.left) == 0 {
		return v, false
	}
	v, l.left = l.left[0], l.left[1:]
	return v, true
}

// manage answers CTAP 2.1, section 6.8.
func (t *Token) manage(x *transaction, a *args) (map[int]any, error) {
	sub := required[int64](a, 1)
	if *a.err != nil {
		return nil, *a.err
	}
	switch sub {
	case manageNextRP:
		rpID, there := t.rps.take(x.channel)
		if !there {
			return nil, statusNotAllowed
		}
		return describeRP(t.nameOf(rpID), rpID), nil
	case manageNext:
		s, there := t.creds.take(x.channel)
		if !there {
			return nil, statusNotAllowed
		}
		return t.describe(x, s)
	}
	t.rps, t.creds = nil, nil
	if sub < manageMetadata || sub > manageUpdate {
		return nil, statusInvalidSubcommand
	}
	params, _ := a.within(2)
	param, has, protocol, err := t.pinParams(a, 4, 3)
	switch {
	case *a.err != nil:
		return nil, *a.err
	case !has:
		return nil, statusPINRequired
	case err != nil:
		return nil, err
	}
	message := []byte{byte(sub)}
	if params.members != nil {
		message = append(message, encode(params.members)...)
	}
	var rpHash, id []byte // what it is about
	switch sub {
	case manageCredentials:
		rpHash = required[[]byte](params, 1)
	case manageDelete, manageUpdate:
		descriptor := params.requiredWithin(2)
		id = required[[]byte](descriptor, "id")
	}
	if *a.err != nil {
		return nil, *a.err
	}
	if err := t.authorize(protocol, param, message, mayManage); err != nil {
		return nil, err
	}
	if only := t.session.rpID; only != "" { // a session for one relying party sees no other
		sum := sha256.Sum256([]byte(only))
		at := t.state.find(id)
		switch sub {
		case manageMetadata, manageRPs:
			return nil, statusPINAuthInvalid
		case manageCredentials:
			if !bytes.Equal(sum[:], rpHash) {
				return nil, statusPINAuthInvalid
			}
		default:
			if at >= 0 && t.state.Credentials[at].RPID != only {
				return nil, statusPINAuthInvalid
			}
		}
	}
	switch sub {
	case manageMetadata:
		n := len(t.state.Credentials)
		return map[int]any{1: n, 2: maxCredentials - n}, nil
	case manageRPs:
		var ids []string
		for _, s := range t.state.Credentials {
			if !slices.Contains(ids, s.RPID) {
				ids = append(ids, s.RPID)
			}
		}
		if len(ids) == 0 {
			return nil, statusNoCredentials
		}
		t.rps = &listing[string]{x.channel, ids[1:]}
		answer := describeRP(t.nameOf(ids[0]), ids[0])
		answer[5] = len(ids)
		return answer, nil
	case manageCredentials:
		var found []*stored
		for _, s := range t.state.Credentials {
			if sum := s.rpHash(); bytes.Equal(sum[:], rpHash) {
				found = append(found, s)
			}
		}
		if len(found) == 0 {
			return nil, statusNoCredentials
		}
		answer, err := t.describe(x, found[0])
		if err != nil {
			return nil, err
		}
		t.creds = &listing[*stored]{x.channel, found[1:]}
		answer[9] = len(found)
		return answer, nil
	case manageDelete:
		return nil, t.remove(x.ctx, id)
	}
	at := t.state.find(id)
	if at < 0 {
		return nil, statusNoCredentials
	}
	target := t.state.Credentials[at]
	user := params.requiredWithin(3)
	userID := required[[]byte](user, "id")
	name, _ := optional[string](user, "name")
	display, _ := optional[string](user, "displayName")
	if *a.err != nil {
		return nil, *a.err
	}
	if !bytes.Equal(userID, target.UserID) {
		return nil, statusInvalidParameter
	}
	changed := *target
	changed.Name, changed.DisplayName = short(name), short(display)
	next := t.state
	next.Credentials = slices.Clone(next.Credentials)
	next.Credentials[at] = &changed
	return nil, t.save(x.ctx, next)
}

func describeRP(name, id string) map[int]any {
	rp := map[string]any{"id": id}
	if name != "" {
		rp["name"] = name
	}
	sum := sha256.Sum256([]byte(id))
	return map[int]any{3: rp, 4: sum[:]}
}

// nameOf returns what a relying party called itself last.
func (t *Token) nameOf(rpID string) string {
	for _, s := range slices.Backward(t.state.Credentials) {
		if s.RPID == rpID {
			return s.RPName
		}
	}
	return ""
}

func (t *Token) describe(x *transaction, s *stored) (map[int]any, error) {
	c, err := t.lookup(x, s.rpHash(), s.ID)
	if err != nil {
		return nil, err
	}
	answer := map[int]any{
		6:  s.user(true),
		7:  map[string]any{"id": s.ID, "type": "public-key"},
		8:  publicKey(es256, s.Point),
		10: c.level(),
	}
	if s.BlobKey != nil {
		answer[11] = s.BlobKey
	}
	return answer, nil
}
