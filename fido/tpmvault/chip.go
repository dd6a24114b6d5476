package tpmvault

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/limpet-auth/limpet/fido"
	"github.com/limpet-auth/limpet/internal/tpm"
)

// maxResident is how many parents stay loaded. A TPM, and the kernel's resource
// manager for each process, hold at least three objects; one is left for a key.
const maxResident = 2

// storageKey is the key that the whole machine shares.
type storageKey struct {
	handle tpm2.TPMHandle
	public *tpm2.TPMTPublic
	name   tpm2.TPM2BName
}

// parent is a storage key of the vault's under the shared one.
type parent struct {
	object
	named  tpm2.TPM2BName
	uv     bool // proving the PIN is part of using it
	index  bool // the PIN's index is part of that
	handle tpm2.TPMHandle
	saved  *tpm2.TPMSContext // loads without the storage key; nil if there is none
}

var (
	// errOutdated: the generation is over. That is another token's doing, a file from
	// a backup, or a TPM that was cleared.
	errOutdated = fmt.Errorf("%w: the TPM has begun another generation since these files were written (a reset, or files from before one): "+
		"nothing of them works any more, a reset makes a new token", fido.ErrNoKey)
	errOtherTPM = fmt.Errorf("%w: the TPM's storage key is not the one that these files were made with: it was cleared or is another TPM, or "+
		"something between this program and the TPM pretends to be it; nothing of them works here, a reset makes a new token", fido.ErrNoKey)
)

// do runs f, a sequence of commands, once the vault is known to be this TPM's.
// See tpm.Conn.Do.
func (v *Vault) do(ctx context.Context, f func() error) error {
	var verdict error
	err := v.conn.Do(ctx, func() error {
		verdict = nil
		err := v.ready()
		if err == nil {
			err = f()
		}
		for _, e := range verdicts {
			if errors.Is(err, e) {
				verdict, err = err, nil
			}
		}
		return err
	})
	return cmp.Or(err, verdict)
}

// verdicts are errors that no repetition and no new session mends.
var verdicts = []error{fido.ErrNoKey, fido.ErrLocked, fido.ErrPINInvalid, fido.ErrPINBlocked, errParentLocked, errClosed}

// ready makes or finds the vault. It costs commands once for each connection.
func (v *Vault) ready() error {
	if v.closed {
		return errClosed
	}
	if v.isReady {
		return nil
	}
	if v.state == nil {
		there, written, err := v.look(counterIndex(genHandle))
		if err != nil {
			return err
		}
		if err := v.provision(&state{Joined: there && written}); err != nil {
			return err
		}
	}
	if err := v.findStorageKey(false); err != nil {
		return err
	}
	if !bytes.Equal(v.srk.name.Buffer, v.state.SRK) {
		return errOtherTPM
	}
	there, written, err := v.look(counterIndex(genHandle))
	if err != nil {
		return err
	}
	if !there || !written {
		return errOutdated
	}
	generation, err := v.readCounter(counterIndex(genHandle))
	if err != nil {
		return err
	}
	switch {
	case v.state.Resetting && generation == v.state.Generation:
		s := v.state.copy() // it did not come to it
		s.Resetting = false
		err = v.save(s)
	case v.state.Resetting:
		err = v.renew()
	case generation != v.state.Generation:
		err = errOutdated
	}
	if err != nil {
		return err
	}
	if v.up == nil {
		if v.up, err = newParent(v.state.UP, false, false); err != nil {
			return err
		}
	}
	if v.sealKey == nil {
		if err := v.deriveKeys(); err != nil {
			return err
		}
	}
	v.isReady = true
	return nil
}

// provision makes a vault under the TPM's present generation, with what s keeps of
// the one before.
func (v *Vault) provision(s *state) error {
	if err := v.findStorageKey(true); err != nil {
		return err
	}
	generation, err := v.counter(genHandle)
	if err != nil {
		return err
	}
	count, err := v.counter(countHandle)
	if err != nil {
		return err
	}
	base := s.CountBase
	if base == 0 || base > count {
		base = count // the first step comes before the first use
	}
	v.makeRoom()
	up, err := v.makeParent(upPolicy(generation), nil)
	if err != nil {
		return err
	}
	s = &state{Version: 1, SRK: v.srk.name.Buffer, Generation: generation, Joined: s.Joined, CountBase: base, UP: up.blob()}
	p, err := newParent(s.UP, false, false)
	if err != nil {
		return err
	}
	root, err := v.create(p, generation, nil, true)
	if err != nil {
		return err
	}
	v.drop(p)
	s.Root = root.blob()
	return v.save(s)
}

// findStorageKey reads the storage key that the machine shares, and makes it if
// there is none and create is true.
func (v *Vault) findStorageKey(create bool) error {
	if v.srk != nil {
		return nil
	}
	rsp, err := tpm2.ReadPublic{ObjectHandle: tpm.SRKHandle}.Execute(v.conn)
	var shown *tpm2.TPM2BPublic
	switch {
	case err == nil:
		shown = &rsp.OutPublic
	case !errors.Is(err, tpm2.TPMRCHandle):
		return tpm.Words("reading the storage key", err)
	case !create:
		return errOtherTPM
	default:
		made, err := v.makeStorageKey()
		if err != nil {
			return err
		}
		_, err = tpm2.EvictControl{
			Auth:             tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
			ObjectHandle:     tpm2.NamedHandle{Handle: made.ObjectHandle, Name: made.Name},
			PersistentHandle: tpm.SRKHandle,
		}.Execute(v.conn)
		v.conn.Flush(made.ObjectHandle)
		if err != nil {
			return ownerWords("keeping the storage key", err)
		}
		shown = &made.OutPublic
	}
	public, name, err := tpm.Public(shown)
	if err != nil {
		return err
	}
	if !tpm.UsableParent(public) {
		return fmt.Errorf("the key at %#x in the TPM is not a storage key for all programs: it can leave the TPM, or its password counts towards the lockout", uint32(tpm.SRKHandle))
	}
	v.srk = &storageKey{tpm.SRKHandle, public, name}
	return nil
}

func (v *Vault) makeStorageKey() (*tpm2.CreatePrimaryResponse, error) {
	made, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		InPublic:      tpm2.New2B(tpm.PrimaryTemplate),
	}.Execute(v.conn)
	if err != nil {
		return nil, ownerWords("making the storage key", err)
	}
	return made, nil
}

// withStorageKey runs f with sessions, where there is no storage key with one that is
// not kept.
func (v *Vault) withStorageKey(f func() error) error {
	if v.srk != nil {
		return f()
	}
	made, err := v.makeStorageKey()
	if err != nil {
		return err
	}
	defer v.conn.Flush(made.ObjectHandle)
	public, name, err := tpm.Public(&made.OutPublic)
	if err != nil {
		return err
	}
	v.srk = &storageKey{made.ObjectHandle, public, name}
	defer func() {
		(*loaded)(v).EndSessions()
		v.srk = nil
	}()
	return f()
}

// hmacSession returns the session that all commands share, policySession the one
// that proves policies.
func (v *Vault) hmacSession() (*session, error)   { return v.session(&v.hmac, tpm2.TPMSEHMAC) }
func (v *Vault) policySession() (*session, error) { return v.session(&v.policy, tpm2.TPMSEPolicy) }

func (v *Vault) session(s **session, kind tpm2.TPMSE) (_ *session, err error) {
	if *s == nil {
		*s, err = startSession(v.conn, kind, v.srk)
	}
	return *s, err
}

func (v *Vault) endPolicy() {
	if v.policy != nil {
		v.conn.Flush(v.policy.handle)
		v.policy = nil
	}
}

// policyNV is the part of both parents' policies that dies with the generation.
func policyNV(generation uint64) tpm2.PolicyNV {
	return tpm2.PolicyNV{
		NVIndex:   counterIndex(genHandle).named(true),
		OperandB:  tpm2.TPM2BOperand{Buffer: binary.BigEndian.AppendUint64(nil, generation)},
		Operation: tpm2.TPMEOEq,
	}
}

func upPolicy(generation uint64) []byte { return digest(policyNV(generation)) }

// uvPolicy asks for the PIN twice: by the index, which counts, and by the parent's
// own authValue, which an index of the same name does not have.
func uvPolicy(generation uint64, withIndex bool) []byte {
	if !withIndex {
		return digest(policyNV(generation), authValue{})
	}
	return digest(policyNV(generation), tpm2.PolicySecret{AuthHandle: pinIndex(pinHandle).named(true)}, authValue{})
}

// What the TPM says of an authValue. Errors with these are its verdict, and no
// trouble.
var (
	errIndexRefuses  = errors.New("the PIN's index refuses the PIN")
	errIndexBlocked  = errors.New("the PIN's index takes no PIN any more")
	errParentRefuses = errors.New("the parent key refuses the PIN")
	errParentLocked  = errors.New("the TPM is locked")
)

// authorized runs f with a session that satisfies p's policy, good for one command.
func (v *Vault) authorized(p *parent, generation uint64, auth []byte, f func(use) error) (err error) {
	hmac, err := v.hmacSession()
	if err != nil {
		return err
	}
	policy, err := v.policySession()
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			v.endPolicy() // it is half-way through
		}
	}()
	gen := counterIndex(genHandle).named(true)
	nv := policyNV(generation)
	nv.AuthHandle = tpm2.AuthHandle{Handle: gen.Handle, Name: gen.Name, Auth: hmac.with(nil)}
	nv.PolicySession = policy.handle
	if _, err := nv.Execute(v.conn); errors.Is(err, tpm2.TPMRCPolicy) {
		return errOutdated
	} else if err != nil {
		return tpm.Words("proving the generation", err)
	}
	if !p.uv {
		return f(policy.with(nil))
	}
	if p.index {
		pin := pinIndex(pinHandle).named(true)
		_, err := tpm2.PolicySecret{
			AuthHandle:    tpm2.AuthHandle{Handle: pin.Handle, Name: pin.Name, Auth: hmac.with(auth)},
			PolicySession: policy.handle,
		}.Execute(v.conn)
		switch {
		case errors.Is(err, tpm2.TPMRCBadAuth), errors.Is(err, tpm2.TPMRCAuthFail):
			return errIndexRefuses
		case errors.Is(err, tpm2.TPMRCAuthUnavailable), errors.Is(err, tpm2.TPMRCHandle):
			return errIndexBlocked // used up; or somebody removed the index
		case err != nil:
			return tpm.Words("proving the PIN", err)
		}
	}
	if _, err := (tpm2.PolicyAuthValue{PolicySession: policy.handle}).Execute(v.conn); err != nil {
		return tpm.Words("proving the PIN", err)
	}
	return f(policy.with(auth))
}

// makeParent makes a storage key under the shared one; with auth, proving that is
// part of its policy, and failing to counts towards the TPM's lockout.
func (v *Vault) makeParent(policy, auth []byte) (object, error) {
	hmac, err := v.hmacSession()
	if err != nil {
		return object{}, err
	}
	template := tpm.PrimaryTemplate
	template.ObjectAttributes.UserWithAuth = false
	template.ObjectAttributes.NoDA = auth == nil
	template.AuthPolicy = tpm2.TPM2BDigest{Buffer: policy}
	rsp, err := tpm2.Create{
		ParentHandle: tpm2.AuthHandle{Handle: tpm.SRKHandle, Name: v.srk.name, Auth: hmac.secret(nil)},
		InSensitive:  tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{UserAuth: tpm2.TPM2BAuth{Buffer: auth}}},
		InPublic:     tpm2.New2B(template),
	}.Execute(v.conn)
	if err != nil {
		return object{}, tpm.Words("making a parent key", err)
	}
	return made(rsp, template)
}

// made returns what TPM2_Create made, if it is of the template.
func made(rsp *tpm2.CreateResponse, template tpm2.TPMTPublic) (object, error) {
	public, err := rsp.OutPublic.Contents()
	if err != nil {
		return object{}, tpm.Words("making a key", err)
	}
	template.Unique = public.Unique
	if !bytes.Equal(tpm2.Marshal(template), tpm2.Marshal(public)) {
		return object{}, errors.New("making a key: the TPM made another kind of key")
	}
	return object{*public, rsp.OutPrivate.Buffer}, nil
}

// create makes a key or a secret under p.
func (v *Vault) create(p *parent, generation uint64, auth []byte, secret bool) (o object, err error) {
	if err := v.bring(p); err != nil {
		return object{}, err
	}
	template := keyTemplate(secret)
	err = v.authorized(p, generation, auth, func(policy use) error {
		rsp, err := tpm2.Create{
			ParentHandle: tpm2.AuthHandle{Handle: p.handle, Name: p.named, Auth: policy},
			InPublic:     tpm2.New2B(template),
		}.Execute(v.conn)
		if err != nil {
			return p.words("making a key", err)
		}
		o, err = made(rsp, template)
		return err
	})
	return o, err
}

// with runs f with o loaded under p.
func (v *Vault) with(p *parent, auth []byte, o object, f func(key tpm2.NamedHandle) error) error {
	if err := v.bring(p); err != nil {
		return err
	}
	var key tpm2.NamedHandle
	err := v.authorized(p, v.state.Generation, auth, func(policy use) error {
		rsp, err := tpm2.Load{
			ParentHandle: tpm2.AuthHandle{Handle: p.handle, Name: p.named, Auth: policy},
			InPrivate:    tpm2.TPM2BPrivate{Buffer: o.private},
			InPublic:     tpm2.New2B(o.public),
		}.Execute(v.conn)
		if tpm.Rejected(err) {
			return fmt.Errorf("%w: the TPM does not know it (%v)", fido.ErrNoKey, err)
		}
		if err != nil {
			return p.words("loading a key", err)
		}
		key = tpm2.NamedHandle{Handle: rsp.ObjectHandle, Name: rsp.Name}
		return nil
	})
	if err != nil {
		return err
	}
	defer v.conn.Flush(key.Handle)
	return f(key)
}

// words is tpm.Words for a command that p's policy authorizes.
func (p *parent) words(doing string, err error) error {
	if p.uv && (errors.Is(err, tpm2.TPMRCAuthFail) || errors.Is(err, tpm2.TPMRCBadAuth)) {
		return errParentRefuses
	}
	if p.uv && errors.Is(err, tpm2.TPMRCLockout) {
		return fmt.Errorf("%w: %w", errParentLocked, tpm.Words(doing, err))
	}
	return tpm.Words(doing, err)
}

// deriveKeys gets this generation's own keys out of the TPM: a key for the MACs of
// handles and one for Seal.
func (v *Vault) deriveKeys() error {
	root, err := v.state.Root.object()
	if err != nil {
		return err
	}
	return v.with(v.up, nil, root, func(key tpm2.NamedHandle) error {
		secret, err := v.mac(key, []byte("limpet fido vault"))
		if err != nil {
			return err
		}
		defer clear(secret)
		macKey, err := hkdf.Key(sha256.New, secret, nil, "handles", 32)
		if err != nil {
			return err
		}
		sealKey, err := hkdf.Key(sha256.New, secret, nil, "files", 32)
		v.macKey, v.sealKey = macKey, sealKey
		return err
	})
}

// mac computes HMAC-SHA256 with a loaded key, encrypted both ways.
func (v *Vault) mac(key tpm2.NamedHandle, message []byte) ([]byte, error) {
	hmac, err := v.hmacSession()
	if err != nil {
		return nil, err
	}
	both := hmac.secret(nil)
	both.out = true
	rsp, err := tpm2.Hmac{
		Handle:  tpm2.AuthHandle{Handle: key.Handle, Name: key.Name, Auth: both},
		Buffer:  tpm2.TPM2BMaxBuffer{Buffer: message},
		HashAlg: tpm2.TPMAlgSHA256,
	}.Execute(v.conn)
	if err != nil {
		return nil, tpm.Words("computing an HMAC", err)
	}
	if len(rsp.OutHMAC.Buffer) != sha256.Size {
		return nil, errors.New("computing an HMAC: the TPM's answer has another size")
	}
	return rsp.OutHMAC.Buffer, nil
}

func newParent(b blob, uv, withIndex bool) (*parent, error) {
	o, err := b.object()
	if err != nil {
		return nil, err
	}
	name, err := o.name()
	if err != nil {
		return nil, err
	}
	return &parent{object: o, named: name, uv: uv, index: withIndex}, nil
}

// bring makes sure that p is loaded.
func (v *Vault) bring(p *parent) error {
	if i := slices.Index(v.resident, p); i >= 0 {
		v.resident = append(slices.Delete(v.resident, i, i+1), p)
		return nil
	}
	for len(v.resident) >= maxResident {
		v.evict()
	}
	if p.saved != nil {
		rsp, err := tpm2.ContextLoad{Context: *p.saved}.Execute(v.conn)
		if err == nil {
			p.handle = tpm2.TPMHandle(rsp.LoadedHandle)
			v.resident = append(v.resident, p)
			return nil
		}
		if tpm.OutOfObjects(err) {
			return tpm.Words("loading a parent key", err)
		}
		p.saved = nil
	}
	hmac, err := v.hmacSession()
	if err != nil {
		return err
	}
	rsp, err := tpm2.Load{
		ParentHandle: tpm2.AuthHandle{Handle: tpm.SRKHandle, Name: v.srk.name, Auth: hmac.with(nil)},
		InPrivate:    tpm2.TPM2BPrivate{Buffer: p.private},
		InPublic:     tpm2.New2B(p.public),
	}.Execute(v.conn)
	if tpm.Rejected(err) {
		return fmt.Errorf("%w: the TPM does not know the parent key: the vault's file is damaged (%v)", fido.ErrNoKey, err)
	}
	if err != nil {
		return tpm.Words("loading a parent key", err)
	}
	p.handle = rsp.ObjectHandle
	v.resident = append(v.resident, p)
	v.parents = append(v.parents, p)
	return nil
}

// evict unloads the parent that was not used for longest. Its context is saved
// once; it stays good until the TPM is reset.
func (v *Vault) evict() {
	p := v.resident[0]
	v.resident = v.resident[1:]
	if p.saved == nil {
		if rsp, err := (tpm2.ContextSave{SaveHandle: p.handle}).Execute(v.conn); err == nil {
			p.saved = &rsp.Context
		}
	}
	v.conn.Flush(p.handle)
}

// drop unloads p for good.
func (v *Vault) drop(p *parent) {
	if p == nil {
		return
	}
	if i := slices.Index(v.resident, p); i >= 0 {
		v.resident = slices.Delete(v.resident, i, i+1)
		v.conn.Flush(p.handle)
	}
	v.parents = slices.DeleteFunc(v.parents, func(q *parent) bool { return p == q })
}

// makeRoom unloads all: to make a key under the shared one takes two places.
func (v *Vault) makeRoom() {
	for len(v.resident) > 0 {
		v.evict()
	}
}

// loaded is a Vault as the tpm.Conn sees it.
type loaded Vault

func (l *loaded) Evict() bool {
	if len(l.resident) == 0 {
		return false
	}
	(*Vault)(l).evict()
	return true
}

func (l *loaded) EndSessions() {
	for _, s := range []**session{&l.hmac, &l.policy} {
		if *s != nil {
			l.conn.Flush((*s).handle)
			*s = nil
		}
	}
}

func (l *loaded) Forget() {
	for _, h := range l.Gone() {
		l.conn.Flush(h)
	}
}

func (l *loaded) Gone() (handles []tpm2.TPMHandle) {
	for _, p := range l.resident {
		handles = append(handles, p.handle)
	}
	for _, s := range []*session{l.hmac, l.policy} {
		if s != nil {
			handles = append(handles, s.handle)
		}
	}
	for _, p := range l.parents {
		p.saved = nil
	}
	l.resident, l.parents, l.hmac, l.policy, l.srk = nil, nil, nil, nil, nil
	l.isReady = false
	return handles
}
