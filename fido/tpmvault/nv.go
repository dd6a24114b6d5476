package tpmvault

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/limpet-auth/limpet/internal/tpm"
)

// The vault's places in the TPM's memory, among those that are the owner's to
// give (TCG Registry of Reserved TPM 2.0 Handles and Localities). One TPM has one
// vault.
const (
	countHandle tpm2.TPMHandle = 0x01800F1C // steps of the signature counter
	genHandle   tpm2.TPMHandle = 0x01800F1D // generation: a counter that Reset steps
	pinHandle   tpm2.TPMHandle = 0x01800F1E // tries of the PIN

	// Defined and removed, to see whether that works: the first that is free.
	firstTrial tpm2.TPMHandle = 0x01800F1F
	lastTrial  tpm2.TPMHandle = 0x01800F22
)

const pinLimit = 8 // wrong PINs in a row; CTAP 2.1, section 6.5

// index is a place in the TPM's memory.
type index tpm2.TPMSNVPublic

// counterIndex is a counter that whoever may use the TPM reads and steps; nobody can
// set it back, not even by making it again: the TPM goes on from the highest value
// that any of its counters had.
func counterIndex(h tpm2.TPMHandle) index {
	return index{NVIndex: h, NameAlg: tpm2.TPMAlgSHA256, DataSize: 8, Attributes: tpm2.TPMANV{
		NT: tpm2.TPMNTCounter, OwnerWrite: true, OwnerRead: true, AuthWrite: true, AuthRead: true, NoDA: true}}
}

// pinIndex counts wrong PINs. It is written once: who could write its count
// again could go on guessing. A policy alone lets
// it be written, while it never was, its PIN be changed, by who has that, and the
// count be read, also where the owner has a password.
func pinIndex(h tpm2.TPMHandle) index {
	return index{NVIndex: h, NameAlg: tpm2.TPMAlgSHA256, DataSize: 8, Attributes: tpm2.TPMANV{
		NT: tpm2.TPMNTPinFail, OwnerRead: true, AuthRead: true, PolicyRead: true, PolicyWrite: true, NoDA: true},
		AuthPolicy: tpm2.TPM2BDigest{Buffer: digest(tpm2.PolicyOr{PHashList: pinBranches})}}
}

// pinBranches are the ways of using the PIN's index other than proving the PIN.
var pinBranches = tpm2.TPMLDigest{Digests: []tpm2.TPM2BDigest{
	{Buffer: digest(tpm2.PolicyCommandCode{Code: tpm2.TPMCCNVChangeAuth}, authValue{})},
	{Buffer: digest(tpm2.PolicyCommandCode{Code: tpm2.TPMCCNVWrite}, tpm2.PolicyNVWritten{WrittenSet: false})},
	{Buffer: digest(tpm2.PolicyCommandCode{Code: tpm2.TPMCCNVRead})},
}}

// byBranch runs f with a session that satisfies the branch for a command; more is
// what that branch asks beside the command's code.
func (v *Vault) byBranch(cc tpm2.TPMCC, more func(policy tpm2.TPMHandle) error, f func(policy *session) error) error {
	policy, err := v.policySession()
	if err != nil {
		return err
	}
	if _, err = (tpm2.PolicyCommandCode{PolicySession: policy.handle, Code: cc}).Execute(v.conn); err == nil && more != nil {
		err = more(policy.handle)
	}
	if err == nil {
		_, err = tpm2.PolicyOr{PolicySession: policy.handle, PHashList: pinBranches}.Execute(v.conn)
	}
	if err == nil {
		err = f(policy)
	}
	if err != nil {
		v.endPolicy() // it is half-way through
	}
	return err
}

// authValue is TPM2_PolicyAuthValue as a policy calculator takes it.
type authValue struct{}

func (authValue) Update(p *tpm2.PolicyCalculator) error { return p.Update(tpm2.TPMCCPolicyAuthValue) }

// digest returns the digest of a policy.
func digest(commands ...tpm2.PolicyCommand) []byte {
	p, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
	for _, c := range commands {
		err = errors.Join(err, c.Update(p))
	}
	if err != nil {
		panic(err) // cannot be: SHA-256 is linked in, and the commands are ours
	}
	return p.Hash().Digest
}

// named returns the index as commands name it; written: it has been written.
func (i index) named(written bool) tpm2.NamedHandle {
	i.Attributes.Written = written
	public := tpm2.TPMSNVPublic(i)
	name, err := tpm2.NVName(&public)
	if err != nil {
		panic(err) // cannot be: SHA-256 is linked in
	}
	return tpm2.NamedHandle{Handle: i.NVIndex, Name: *name}
}

// look tells whether the index is there and was written. An index of other
// software in its place is an error.
func (v *Vault) look(i index) (there, written bool, err error) {
	rsp, err := tpm2.NVReadPublic{NVIndex: i.NVIndex}.Execute(v.conn)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return false, false, nil
	}
	if err != nil {
		return false, false, tpm.Words("looking for the vault's place in the TPM's memory", err)
	}
	public, err := rsp.NVPublic.Contents()
	if err != nil {
		return false, false, tpm.Words("looking for the vault's place in the TPM's memory", err)
	}
	written = public.Attributes.Written
	name, err := tpm2.NVName(public)
	if err != nil || string(name.Buffer) != string(i.named(written).Name.Buffer) {
		return true, written, fmt.Errorf("other software has something else at %#x in the TPM's memory: remove that (tpm2_nvreadpublic shows it, tpm2_nvundefine %#x removes it), if nobody needs it", uint32(i.NVIndex), uint32(i.NVIndex))
	}
	return true, written, nil
}

// define makes the index.
func (v *Vault) define(i index, auth []byte) error {
	hmac, err := v.hmacSession()
	if err != nil {
		return err
	}
	_, err = tpm2.NVDefineSpace{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: hmac.secret(nil)},
		Auth:       tpm2.TPM2BAuth{Buffer: auth},
		PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic(i)),
	}.Execute(v.conn)
	return defineWords(err)
}

func defineWords(err error) error {
	if errors.Is(err, tpm2.TPMRCNVSpace) {
		return fmt.Errorf("the TPM's memory is full (the vault needs three places of some 100 bytes): tpm2_nvreadpublic lists what is in it, tpm2_nvundefine removes what nobody needs: %w", err)
	}
	return ownerWords("making a place in the TPM's memory", err)
}

func (v *Vault) undefine(i index, written bool) error {
	hmac, err := v.hmacSession()
	if err != nil {
		return err
	}
	_, err = tpm2.NVUndefineSpace{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: hmac.with(nil)},
		NVIndex:    i.named(written),
	}.Execute(v.conn)
	return ownerWords("removing a place in the TPM's memory", err)
}

// checkRemovable is an error if the index is there and the owner has a password,
// without which it cannot be removed.
func (v *Vault) checkRemovable(i index) error {
	there, _, err := v.look(i)
	if err != nil || !there {
		return err
	}
	p, err := tpm.Properties(v.conn, tpm2.TPMPTPermanent)
	if err != nil {
		return tpm.Words("asking the TPM about its state", err)
	}
	if p[tpm2.TPMPTPermanent]&ownerAuthSet != 0 {
		return &ownerError{"removing a place in the TPM's memory", errors.New("nothing was changed")}
	}
	return nil
}

// Bits of TPMA_PERMANENT (TPM 2.0 Library Part 2, 8.6).
const (
	ownerAuthSet   = 1 << 0
	lockoutAuthSet = 1 << 2
	inLockout      = 1 << 9
)

// counter makes sure that a counter is there and has a value, and returns it.
func (v *Vault) counter(h tpm2.TPMHandle) (uint64, error) {
	i := counterIndex(h)
	there, written, err := v.look(i)
	if err != nil {
		return 0, err
	}
	if !there {
		if err := v.define(i, nil); err != nil {
			return 0, err
		}
	}
	if !written {
		if err := v.increment(i, false); err != nil {
			return 0, err
		}
	}
	return v.readCounter(i)
}

func (v *Vault) increment(i index, written bool) error {
	hmac, err := v.hmacSession()
	if err != nil {
		return err
	}
	at := i.named(written)
	_, err = tpm2.NVIncrement{AuthHandle: tpm2.AuthHandle{Handle: at.Handle, Name: at.Name, Auth: hmac.with(nil)}, NVIndex: at}.Execute(v.conn)
	if err != nil {
		return tpm.Words("stepping a counter", err)
	}
	return nil
}

func (v *Vault) readCounter(i index) (uint64, error) {
	hmac, err := v.hmacSession()
	if err != nil {
		return 0, err
	}
	at := i.named(true)
	rsp, err := tpm2.NVRead{AuthHandle: tpm2.AuthHandle{Handle: at.Handle, Name: at.Name, Auth: hmac.with(nil)}, NVIndex: at, Size: 8}.Execute(v.conn)
	if err != nil {
		return 0, tpm.Words("reading a counter", err)
	}
	if len(rsp.Data.Buffer) != 8 {
		return 0, errors.New("reading a counter: the TPM's answer has another size")
	}
	return binary.BigEndian.Uint64(rsp.Data.Buffer), nil
}

// ownerWords is tpm.Words for what is the TPM owner's to do.
func ownerWords(doing string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, tpm2.TPMRCBadAuth) {
		return &ownerError{doing, err}
	}
	return tpm.Words(doing, err)
}

// ownerError: the owner hierarchy has a password.
type ownerError struct {
	doing string
	err   error
}

func (e *ownerError) Unwrap() error { return e.err }

func (e *ownerError) Error() string {
	return e.doing + ": the TPM has an owner password, and this program takes none: whoever has it can empty it for the set-up " +
		"(tpm2_changeauth -c owner -p file:-, which asks for it) and set it again afterwards (tpm2_changeauth -c owner file:-); " +
		"a first PIN and a reset need it empty too: " + e.err.Error()
}
