package tpmkey

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/limpet-auth/limpet/hwkey"
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

// do runs f, a whole sequence of commands, with the TPM to itself. What a TPM
// that others use too, or that was reset, does to a sequence is put right here,
// and f is run again, so f must be safe to repeat.
func (ks *Keystore) do(ctx context.Context, f func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case ks.lock <- struct{}{}:
		defer func() { <-ks.lock }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := ctx.Err(); err != nil {
		return err // the lock came too late: a command would only be broken off
	}
	var reconnected, restarted, yielded, swept bool
	pause := 20 * time.Millisecond
	for {
		if err := ks.connect(ctx); err != nil {
			return err
		}
		err := f()
		if err == nil {
			return nil
		}
		var rc tpm2.TPMRC
		var broken *linkError
		switch {
		case ks.link.failed != nil:
			ks.disconnect()
			if !errors.As(err, &broken) || reconnected {
				return err
			}
			reconnected = true
		case !errors.As(err, &rc):
			ks.endSessions() // their nonces may be out of step with the TPM's
			return err
		case stale(err) && !restarted:
			restarted = true
			ks.forget()
		case outOfObjects(err) && len(ks.resident) > 0:
			ks.evict()
		case outOfSessions(err) && !yielded:
			yielded = true
			ks.endSessions() // one is enough for f
		case (outOfObjects(err) || outOfSessions(err)) && ks.exclusive && !swept:
			swept = true
			ks.sweep()
		case (outOfObjects(err) || outOfSessions(err)) && pause < time.Second:
			// Another program may be about to free what it holds.
			select {
			case <-time.After(pause):
				pause *= 2
			case <-ctx.Done():
				return err
			}
		default:
			return err
		}
	}
}

// connect makes sure there is a connection that works.
func (ks *Keystore) connect(ctx context.Context) error {
	if ks.link != nil && ks.link.failed == nil {
		ks.link.ctx = ctx
		return nil
	}
	rw, exclusive, err := ks.dial(ctx)
	if err != nil {
		return err
	}
	ks.exclusive = exclusive
	ks.link = &link{rw: rw, ctx: ctx, wait: firstWait, counts: &ks.counts}
	if ks.properties, err = properties(ks.link, tpm2.TPMPTFamilyIndicator); errors.Is(err, tpm2.TPMRCInitialize) {
		// A software TPM that nobody has started up.
		if _, err = (tpm2.Startup{StartupType: tpm2.TPMSUClear}).Execute(ks.link); err == nil {
			ks.properties, err = properties(ks.link, tpm2.TPMPTFamilyIndicator)
		}
	}
	if err != nil {
		ks.disconnect()
		var link *linkError
		var timeout interface{ Timeout() bool }
		if errors.As(err, &link) && errors.As(err, &timeout) && timeout.Timeout() {
			return fmt.Errorf("the TPM does not answer: another program may hold it (swtpm serves one connection at a time): %w", err)
		}
		return words("greeting the TPM", err)
	}
	ks.link.wait = commandWait
	leftover := ks.leftover
	ks.leftover = nil
	for _, h := range leftover {
		ks.flush(h)
	}
	return nil
}

// disconnect closes the connection. What was loaded over it is flushed over the
// next one, if it is still there then.
func (ks *Keystore) disconnect() {
	if ks.link == nil {
		return
	}
	ks.link.rw.Close()
	for _, o := range ks.resident {
		ks.leftover = append(ks.leftover, o.handle)
	}
	for _, s := range ks.sessions {
		if s != nil {
			ks.leftover = append(ks.leftover, s.Handle())
		}
	}
	ks.link, ks.sessions, ks.resident = nil, [ways]*session{}, nil
	clear(ks.parents)
	ks.generation++
}

// forget flushes all that is loaded and drops all that was saved.
func (ks *Keystore) forget() {
	for _, o := range ks.resident {
		ks.flush(o.handle)
	}
	ks.endSessions()
	ks.resident = nil
	clear(ks.parents)
	ks.generation++
}

// sweep flushes every loaded object and session: on a connection that nobody
// shares they are the remains of programs that ended without doing so.
func (ks *Keystore) sweep() {
	ks.forget()
	for _, first := range []tpm2.TPMHandle{0x80000000, 0x02000000} { // transient objects, loaded sessions
		rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: uint32(first), PropertyCount: 64}.Execute(ks.link)
		if err != nil {
			return
		}
		handles, err := rsp.CapabilityData.Data.Handles()
		if err != nil {
			return
		}
		for _, h := range handles.Handle {
			ks.flush(h)
		}
	}
}

// flush unloads an object or session, also when the call that loaded it was
// cancelled. What a broken connection does not let through is flushed over the
// next one; any other failure means that it was gone.
func (ks *Keystore) flush(h tpm2.TPMHandle) {
	ctx := ks.link.ctx
	ks.link.ctx = context.WithoutCancel(ctx)
	tpm2.FlushContext{FlushHandle: h}.Execute(ks.link)
	ks.link.ctx = ctx
	if ks.link.failed != nil {
		ks.leftover = append(ks.leftover, h)
	}
}

func (ks *Keystore) endSessions() {
	for w := range ways {
		ks.endSession(w)
	}
}

func (ks *Keystore) endSession(w way) {
	if s := ks.sessions[w]; s != nil {
		ks.flush(s.Handle())
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
		if rsp, err := (tpm2.ContextSave{SaveHandle: o.handle}).Execute(ks.link); err == nil {
			o.saved = &rsp.Context
		}
	}
	ks.flush(o.handle)
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
		rsp, err := tpm2.ContextLoad{Context: *o.saved}.Execute(ks.link)
		if err == nil {
			o.handle = tpm2.TPMHandle(rsp.LoadedHandle)
			ks.resident = append(ks.resident, o)
			return nil
		}
		if outOfObjects(err) {
			return words("loading the key", err)
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
		}.Execute(ks.link)
		if errors.Is(err, tpm2.TPMRCIntegrity) {
			return lost("the TPM does not know this key: it was cleared, replaced, or the file is damaged (%w)", err)
		}
		if rejected(err) {
			return lost("the TPM refuses this key: the file is damaged (%w)", err)
		}
		if err != nil {
			return words("loading the key", err)
		}
		if !bytes.Equal(rsp.Name.Buffer, o.record.name.Buffer) {
			ks.flush(rsp.ObjectHandle)
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
		defer ks.flush(at)
	}
	name := hex.EncodeToString(p.name.Buffer)
	if pin != "" && pin != name {
		return lost("its parent key in the TPM is another one now: the TPM was cleared or replaced, or something between this program and the TPM pretends to be it")
	}
	if !ks.sessions[w].fits(pin) {
		// One for all commands: it saves two commands for each.
		ks.endSession(w)
		s, _, err := tpm2.HMACSession(ks.link, tpm2.TPMAlgSHA256, 16, w.encryption(), tpm2.Salted(at, *p.public))
		if err != nil {
			return words("starting a session", err)
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
		if p != nil && (usableParent(p.public) || pin == "" || pin == hex.EncodeToString(p.name.Buffer)) {
			return p, h, nil
		}
		if h != srkHandle {
			return nil, 0, lost("its parent key %#x is not in the TPM any more", uint32(h))
		}
		// The SRK is the primary key, made persistent; it can be made again.
	}
	if p := ks.parents[tpm2.TPMRHOwner]; p != nil && p.saved != nil {
		rsp, err := tpm2.ContextLoad{Context: *p.saved}.Execute(ks.link)
		if err == nil {
			return p, tpm2.TPMHandle(rsp.LoadedHandle), nil
		}
		if outOfObjects(err) {
			return nil, 0, words("loading the parent key", err)
		}
	}
	rsp, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		InPublic:      tpm2.New2B(primaryTemplate),
	}.Execute(ks.link)
	if errors.Is(err, tpm2.TPMRCBadAuth) {
		return nil, 0, fmt.Errorf("making the parent key: the TPM has an owner password, which this program does not have: whoever has it can make a storage key for all programs with tpm2_createprimary -C o -P PASSWORD -g sha256 -G ecc -c srk.ctx && tpm2_evictcontrol -C o -P PASSWORD -c srk.ctx %#x: %w", uint32(srkHandle), err)
	}
	if err != nil {
		return nil, 0, words("making the parent key", err)
	}
	if p, err = newParent(&rsp.OutPublic); err != nil {
		ks.flush(rsp.ObjectHandle)
		return nil, 0, err
	}
	if saved, err := (tpm2.ContextSave{SaveHandle: rsp.ObjectHandle}).Execute(ks.link); err == nil {
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
	rsp, err := tpm2.ReadPublic{ObjectHandle: h}.Execute(ks.link)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, nil
	}
	if err != nil {
		return nil, words("reading the parent key", err)
	}
	p, err := newParent(&rsp.OutPublic)
	if err != nil {
		return nil, err
	}
	if !storageKey(p.public) {
		return nil, nil
	}
	ks.parents[h] = p
	return p, nil
}

func newParent(b *tpm2.TPM2BPublic) (*parent, error) {
	public, err := b.Contents()
	if err != nil {
		return nil, words("reading the parent key", err)
	}
	name, err := tpm2.ObjectName(public)
	if err != nil {
		return nil, words("reading the parent key", err)
	}
	return &parent{public: public, name: *name}, nil
}

// chooseParent returns what new keys are made under: the storage key that the
// machine shares, if there is one, or else the owner's primary key.
func (ks *Keystore) chooseParent() (tpm2.TPMHandle, error) {
	p, err := ks.persistentParent(srkHandle)
	if err != nil || p == nil || !usableParent(p.public) {
		return tpm2.TPMRHOwner, err
	}
	return srkHandle, nil
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
	}.Execute(ks.link)
	if err != nil {
		return nil, words("signing", err)
	}
	return &rsp.Signature, nil
}

// hmac computes HMAC-SHA256 with a key (TPM 2.0 Library Part 3, 15.5).
func (ks *Keystore) hmac(k *hmacKey, message []byte) ([]byte, error) {
	if most := ks.properties[tpm2.TPMPTInputBuffer]; most != 0 && len(message) > int(most) {
		return nil, fmt.Errorf("a message of %d bytes, and this TPM takes at most %d: hash it first", len(message), most)
	}
	if err := ks.bring(&k.object); err != nil {
		return nil, err
	}
	rsp, err := tpm2.Hmac{
		Handle:  tpm2.AuthHandle{Handle: k.handle, Name: k.record.name, Auth: ks.sessions[both]},
		Buffer:  tpm2.TPM2BMaxBuffer{Buffer: message},
		HashAlg: tpm2.TPMAlgSHA256, // a key without a scheme has none to fall back to
	}.Execute(ks.link)
	switch {
	case errors.Is(err, tpm2.TPMRCCommandCode):
		return nil, fmt.Errorf("%w: this TPM does not have TPM2_HMAC (%w)", hwkey.ErrUnsupported, err)
	case err != nil:
		return nil, words("computing an HMAC", err)
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
		}.Execute(ks.link)
		if rejected(err) {
			return fmt.Errorf("%w: this TPM does not make such keys (%w)", hwkey.ErrUnsupported, err)
		}
		if err != nil {
			return words("making the key", err)
		}
		public, err := rsp.OutPublic.Contents()
		if err != nil {
			return words("making the key", err)
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
