package tpmkey

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/internal/tpm"
)

// maxResident is how many keys stay loaded. A TPM, and the kernel's resource
// manager for each process, hold at least three objects; one is left for the
// parent.
const maxResident = 2

// parent is a storage key that device keys are made under.
type parent struct {
	public *tpm2.TPMTPublic
	name   tpm2.TPM2BName
	saved  *tpm2.TPMSContext // of a primary key: loads faster than it is made again
}

// loaded is a Keystore as the tpm.Conn sees it.
type loaded Keystore

func (l *loaded) EndSessions() { (*Keystore)(l).endSessions() }

func (l *loaded) Evict() bool {
	if len(l.resident) == 0 {
		return false
	}
	(*Keystore)(l).evict()
	return true
}

func (l *loaded) Forget() {
	for _, h := range l.Gone() {
		l.conn.Flush(h)
	}
}

func (l *loaded) Gone() (handles []tpm2.TPMHandle) {
	for _, o := range l.resident {
		handles = append(handles, o.handle)
	}
	for _, s := range l.sessions {
		if s != nil {
			handles = append(handles, s.Handle())
		}
	}
	l.sessions, l.resident = [ways]*session{}, nil
	clear(l.parents)
	l.generation++
	return handles
}

func (ks *Keystore) endSessions() {
	for w := range ways {
		ks.endSession(w)
	}
}

func (ks *Keystore) endSession(w way) {
	if s := ks.sessions[w]; s != nil {
		ks.conn.Flush(s.Handle())
		ks.sessions[w] = nil
	}
}

// evict makes room by unloading the key that was not used for longest. Its
// context is saved once; it stays good until the TPM is reset.
func (ks *Keystore) evict() {
	o := ks.resident[0]
	ks.resident = ks.resident[1:]
	if o.saved == nil || o.generation != ks.generation {
		o.saved, o.generation = nil, ks.generation
		if rsp, err := (tpm2.ContextSave{SaveHandle: o.handle}).Execute(ks.conn); err == nil {
			o.saved = &rsp.Context
		}
	}
	ks.conn.Flush(o.handle)
}

// bring makes sure that o is loaded and that there is a session to use it with.
func (ks *Keystore) bring(o *object) error {
	if i := slices.Index(ks.resident, o); i >= 0 {
		ks.resident = append(slices.Delete(ks.resident, i, i+1), o)
		if ks.sessions[o.record.way()].fits(o.record.meta.Parent) {
			return nil
		}
		return ks.withParent(o.record.parent, o.record.meta.Parent, o.record.way(), func(*parent, tpm2.TPMHandle) error { return nil })
	}
	for len(ks.resident) >= maxResident {
		ks.evict()
	}
	if o.saved != nil && o.generation == ks.generation && ks.sessions[o.record.way()].fits(o.record.meta.Parent) {
		rsp, err := tpm2.ContextLoad{Context: *o.saved}.Execute(ks.conn)
		if err == nil {
			o.handle = tpm2.TPMHandle(rsp.LoadedHandle)
			ks.resident = append(ks.resident, o)
			return nil
		}
		if tpm.OutOfObjects(err) {
			return tpm.Words("loading the key", err)
		}
		o.saved = nil
	}
	return ks.load(o)
}

// load loads o from its file's contents.
func (ks *Keystore) load(o *object) error {
	return ks.withParent(o.record.parent, o.record.meta.Parent, o.record.way(), func(p *parent, h tpm2.TPMHandle) error {
		rsp, err := tpm2.Load{
			ParentHandle: tpm2.AuthHandle{Handle: h, Name: p.name, Auth: ks.sessions[o.record.way()]},
			InPrivate:    o.record.private,
			InPublic:     o.record.public,
		}.Execute(ks.conn)
		if errors.Is(err, tpm2.TPMRCIntegrity) {
			return lost("the TPM does not know this key: it was cleared, replaced, or the file is damaged (%w)", err)
		}
		if tpm.Rejected(err) {
			return lost("the TPM refuses this key: the file is damaged (%w)", err)
		}
		if err != nil {
			return tpm.Words("loading the key", err)
		}
		if !bytes.Equal(rsp.Name.Buffer, o.record.name.Buffer) {
			ks.conn.Flush(rsp.ObjectHandle)
			return errors.New("loading the key: the TPM loaded another one")
		}
		o.handle = rsp.ObjectHandle
		ks.resident = append(ks.resident, o)
		return nil
	})
}

// way says which way the first parameter of a session's commands is encrypted.
// Each key keeps to its one way, so that a program which uses one kind of keys
// takes one of the TPM's few sessions.
type way int

const (
	in   way = iota // into the TPM; signatures are no secret, and TPM2_Sign cannot encrypt them
	both            // and back: an HMAC is as good as a password
	ways
)

func (w way) encryption() tpm2.AuthOption {
	if w == both {
		return tpm2.AESEncryption(128, tpm2.EncryptInOut)
	}
	return tpm2.AESEncryption(128, tpm2.EncryptIn)
}

// session is salted to a parent: only the TPM that holds it can take part.
type session struct {
	tpm2.Session
	parent string // its name, in hex
}

// fits tells whether the session will do for a key that pins a parent, or for
// one that pins none. A key that does must not be used in a session that a key
// without a pin led to: whatever showed itself as that key's parent reads it.
func (s *session) fits(pin string) bool {
	return s != nil && (pin == "" || pin == s.parent)
}

// withParent runs f with the parent loaded at a handle and with a session of
// this way. pin is the name that the parent must have, in hex; empty for any.
func (ks *Keystore) withParent(h tpm2.TPMHandle, pin string, w way, f func(*parent, tpm2.TPMHandle) error) error {
	p, at, err := ks.parent(h, pin)
	if err != nil {
		return err
	}
	if !persistent(at) {
		defer ks.conn.Flush(at)
	}
	name := hex.EncodeToString(p.name.Buffer)
	if pin != "" && pin != name {
		return lost("its parent key in the TPM is another one now: the TPM was cleared or replaced, or something between this program and the TPM pretends to be it")
	}
	if !ks.sessions[w].fits(pin) {
		// One for all commands: it saves two commands for each.
		ks.endSession(w)
		s, _, err := tpm2.HMACSession(ks.conn, tpm2.TPMAlgSHA256, 16, w.encryption(), tpm2.Salted(at, *p.public))
		if err != nil {
			return tpm.Words("starting a session", err)
		}
		ks.sessions[w] = &session{s, name}
	}
	return f(p, at)
}

// parent returns the parent that a key file names, and the handle it is loaded
// at: its own if it is persistent, or one that the caller flushes. pin is as
// for withParent.
func (ks *Keystore) parent(h tpm2.TPMHandle, pin string) (p *parent, at tpm2.TPMHandle, err error) {
	if persistent(h) {
		p, err = ks.persistentParent(h)
		if err != nil {
			return nil, 0, err
		}
		// A key of other software may have a parent under which this package
		// makes none.
		if p != nil && (tpm.UsableParent(p.public) || pin == "" || pin == hex.EncodeToString(p.name.Buffer)) {
			return p, h, nil
		}
		if h != tpm.SRKHandle {
			return nil, 0, lost("its parent key %#x is not in the TPM any more", uint32(h))
		}
		// The SRK is the primary key, made persistent; it can be made again.
	}
	if p := ks.parents[tpm2.TPMRHOwner]; p != nil && p.saved != nil {
		rsp, err := tpm2.ContextLoad{Context: *p.saved}.Execute(ks.conn)
		if err == nil {
			return p, tpm2.TPMHandle(rsp.LoadedHandle), nil
		}
		if tpm.OutOfObjects(err) {
			return nil, 0, tpm.Words("loading the parent key", err)
		}
	}
	rsp, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		InPublic:      tpm2.New2B(tpm.PrimaryTemplate),
	}.Execute(ks.conn)
	if errors.Is(err, tpm2.TPMRCBadAuth) {
		return nil, 0, fmt.Errorf("making the parent key: the TPM has an owner password, which this program does not have: whoever has it can make a storage key for all programs with tpm2_createprimary -C o -P PASSWORD -g sha256 -G ecc -c srk.ctx && tpm2_evictcontrol -C o -P PASSWORD -c srk.ctx %#x: %w", uint32(tpm.SRKHandle), err)
	}
	if err != nil {
		return nil, 0, tpm.Words("making the parent key", err)
	}
	if p, err = newParent(&rsp.OutPublic); err != nil {
		ks.conn.Flush(rsp.ObjectHandle)
		return nil, 0, err
	}
	if saved, err := (tpm2.ContextSave{SaveHandle: rsp.ObjectHandle}).Execute(ks.conn); err == nil {
		p.saved = &saved.Context
	}
	ks.parents[tpm2.TPMRHOwner] = p
	return p, rsp.ObjectHandle, nil
}

// persistentParent returns the storage key at a persistent handle, nil if there
// is none.
func (ks *Keystore) persistentParent(h tpm2.TPMHandle) (*parent, error) {
	if p := ks.parents[h]; p != nil {
		return p, nil
	}
	rsp, err := tpm2.ReadPublic{ObjectHandle: h}.Execute(ks.conn)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, nil
	}
	if err != nil {
		return nil, tpm.Words("reading the parent key", err)
	}
	p, err := newParent(&rsp.OutPublic)
	if err != nil {
		return nil, err
	}
	if !tpm.StorageKey(p.public) {
		return nil, nil
	}
	ks.parents[h] = p
	return p, nil
}

func newParent(b *tpm2.TPM2BPublic) (*parent, error) {
	public, name, err := tpm.Public(b)
	if err != nil {
		return nil, err
	}
	return &parent{public: public, name: name}, nil
}

// chooseParent returns what new keys are made under: the storage key that the
// machine shares, if there is one, or else the owner's primary key.
func (ks *Keystore) chooseParent() (tpm2.TPMHandle, error) {
	p, err := ks.persistentParent(tpm.SRKHandle)
	if err != nil || p == nil || !tpm.UsableParent(p.public) {
		return tpm2.TPMRHOwner, err
	}
	return tpm.SRKHandle, nil
}

// sign signs a SHA-256 digest with a key.
func (ks *Keystore) sign(k *key, digest []byte) (*tpm2.TPMTSignature, error) {
	if err := ks.bring(&k.object); err != nil {
		return nil, err
	}
	rsp, err := tpm2.Sign{
		KeyHandle:  tpm2.AuthHandle{Handle: k.handle, Name: k.record.name, Auth: ks.sessions[in]},
		Digest:     tpm2.TPM2BDigest{Buffer: digest},
		InScheme:   scheme(k.record.algorithm),
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
	}.Execute(ks.conn)
	if err != nil {
		return nil, tpm.Words("signing", err)
	}
	return &rsp.Signature, nil
}

// hmac computes HMAC-SHA256 with a key (TPM 2.0 Library Part 3, 15.5).
func (ks *Keystore) hmac(k *hmacKey, message []byte) ([]byte, error) {
	if most := ks.conn.Properties[tpm2.TPMPTInputBuffer]; most != 0 && len(message) > int(most) {
		return nil, fmt.Errorf("a message of %d bytes, and this TPM takes at most %d: hash it first", len(message), most)
	}
	if err := ks.bring(&k.object); err != nil {
		return nil, err
	}
	rsp, err := tpm2.Hmac{
		Handle:  tpm2.AuthHandle{Handle: k.handle, Name: k.record.name, Auth: ks.sessions[both]},
		Buffer:  tpm2.TPM2BMaxBuffer{Buffer: message},
		HashAlg: tpm2.TPMAlgSHA256, // a key without a scheme has none to fall back to
	}.Execute(ks.conn)
	switch {
	case errors.Is(err, tpm2.TPMRCCommandCode):
		return nil, fmt.Errorf("%w: this TPM does not have TPM2_HMAC (%w)", hwkey.ErrUnsupported, err)
	case err != nil:
		return nil, tpm.Words("computing an HMAC", err)
	case len(rsp.OutHMAC.Buffer) != sha256.Size:
		return nil, fmt.Errorf("computing an HMAC: the TPM answered with %d bytes, want %d", len(rsp.OutHMAC.Buffer), sha256.Size)
	}
	return rsp.OutHMAC.Buffer, nil
}

// makeKey makes a key in the TPM and returns what its file will hold. secret is
// what the key is to be; nil for what the TPM draws.
func (ks *Keystore) makeKey(template tpm2.TPMTPublic, secret []byte) (*record, error) {
	h, err := ks.chooseParent()
	if err != nil {
		return nil, err
	}
	r := &record{parent: h}
	w := in
	if template.Type == tpm2.TPMAlgKeyedHash {
		w = both
	}
	var sensitive tpm2.TPM2BSensitiveCreate
	if secret != nil {
		sensitive.Sensitive = &tpm2.TPMSSensitiveCreate{Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: secret})}
	}
	return r, ks.withParent(h, "", w, func(p *parent, at tpm2.TPMHandle) error {
		rsp, err := tpm2.Create{
			ParentHandle: tpm2.AuthHandle{Handle: at, Name: p.name, Auth: ks.sessions[w]},
			InSensitive:  sensitive, // encrypted on the bus: it is the first parameter
			InPublic:     tpm2.New2B(template),
		}.Execute(ks.conn)
		if tpm.Rejected(err) {
			return fmt.Errorf("%w: this TPM does not make such keys (%w)", hwkey.ErrUnsupported, err)
		}
		if err != nil {
			return tpm.Words("making the key", err)
		}
		public, err := rsp.OutPublic.Contents()
		if err != nil {
			return tpm.Words("making the key", err)
		}
		made := template
		made.Unique = public.Unique
		if !bytes.Equal(tpm2.Marshal(made), tpm2.Marshal(public)) {
			return errors.New("making the key: the TPM made another kind of key")
		}
		r.public, r.private = rsp.OutPublic, rsp.OutPrivate
		r.meta.Parent = hex.EncodeToString(p.name.Buffer)
		return r.derive()
	})
}

func lost(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{hwkey.ErrLost}, args...)...)
}
