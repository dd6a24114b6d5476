//go:build unix

package tpmkey_test

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/limpettest"
)

// bus stands between the keystore and its TPM.
type bus struct{ *limpettest.TPMBus }

func newBus(t *testing.T) *bus { return &bus{limpettest.NewTPMBus(t)} }

// answer is a response that is nothing but a code.
func answer(rc tpm2.TPMRC) []byte {
	b := binary.BigEndian.AppendUint32([]byte{0x80, 0x01}, 10)
	return binary.BigEndian.AppendUint32(b, uint32(rc))
}

// loadForeign loads an object as another program would.
func (b *bus) loadForeign(t *testing.T) tpm2.TPMHandle {
	t.Helper()
	rsp, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHNull, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(b)
	if err != nil {
		t.Fatal(err)
	}
	return rsp.ObjectHandle
}

// startForeign starts a session as another program would.
func (b *bus) startForeign(t *testing.T) tpm2.TPMHandle {
	t.Helper()
	s, _, err := tpm2.HMACSession(b, tpm2.TPMAlgSHA256, 16)
	if err != nil {
		t.Fatal(err)
	}
	return s.Handle()
}

// startForeignFails checks that there is no room for a session.
func (b *bus) startForeignFails(t *testing.T) {
	t.Helper()
	if _, _, err := tpm2.HMACSession(b, tpm2.TPMAlgSHA256, 16); !errors.Is(err, tpm2.TPMRCSessionMemory) {
		t.Errorf("error %v, want the TPM to be full of sessions", err)
	}
}

func (b *bus) flushForeign(t *testing.T, h tpm2.TPMHandle) {
	t.Helper()
	if _, err := (tpm2.FlushContext{FlushHandle: h}).Execute(b); err != nil {
		t.Fatal(err)
	}
}

// loaded returns the transient objects and the sessions that the TPM holds.
func (b *bus) loaded(t *testing.T) (objects, sessions []tpm2.TPMHandle) {
	t.Helper()
	list := func(first uint32) []tpm2.TPMHandle {
		rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 64}.Execute(b)
		if err != nil {
			t.Fatal(err)
		}
		handles, err := rsp.CapabilityData.Data.Handles()
		if err != nil {
			t.Fatal(err)
		}
		return handles.Handle
	}
	return list(0x80000000), list(0x02000000)
}

// Nobody on the bus reads what is signed, or changes a bit unseen.
func TestBus(t *testing.T) {
	b := newBus(t)
	ks := open(t, b.Dial)
	key := create(t, ks, hwkey.ECDSAP256)
	digest := sha256.Sum256([]byte("message"))
	b.Log.Reset()
	if _, err := key.Sign(nil, digest[:], crypto.SHA256); err != nil {
		t.Fatal(err)
	}
	if b.Log.Len() == 0 || bytes.Contains(b.Log.Bytes(), digest[:]) {
		t.Errorf("the digest is among the %d bytes on the bus", b.Log.Len())
	}
	b.flipBits(t, signingKeys, usableKey(key))
}

// Nobody on the bus reads an imported secret, the messages or the HMACs, or
// changes a bit unseen.
func TestHMACBus(t *testing.T) {
	long := bytes.Repeat([]byte("0123456789"), 12)
	hashed := sha256.Sum256(long) // what the TPM gets to hold
	message := []byte("an exporter that is good for one connection")
	for _, secret := range [][]byte{hmacSecret, long} {
		b := newBus(t)
		ks := open(t, b.Dial)
		key, err := ks.ImportHMAC(t.Context(), secret, "")
		if err != nil {
			t.Fatal(err)
		}
		id := key.Info().ID
		ks.Close()
		if key, err = ks.LoadHMAC(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		mac, err := key.HMAC(t.Context(), message)
		if err != nil {
			t.Fatal(err)
		}
		if b.Log.Len() == 0 {
			t.Fatal("nothing was heard on the bus")
		}
		for what, secret := range map[string][]byte{"secret": secret, "hashed secret": hashed[:], "message": message, "HMAC": mac} {
			for i := 0; i+8 <= len(secret); i += 8 {
				if bytes.Contains(b.Log.Bytes(), secret[i:i+8]) {
					t.Errorf("bytes %d to %d of the %s are on the bus", i, i+8, what)
				}
			}
		}
	}

	b := newBus(t)
	key := hmacKeys.create(t, open(t, b.Dial))
	b.flipBits(t, hmacKeys, key)

	// Nor while a secret is imported.
	ks := open(t, b.Dial)
	for _, what := range []string{"command", "answer"} {
		for i := 14; i < 400; i += 7 {
			size := 0
			change := func(cc tpm2.TPMCC, c []byte) []byte {
				if cc == tpm2.TPMCCCreate {
					if size = len(c); i < size {
						c[i] ^= 1
					}
				}
				return c
			}
			if what == "answer" {
				b.Response = change
			} else {
				b.Command = func(cc tpm2.TPMCC, c []byte) []byte { change(cc, c); return nil }
			}
			_, err := ks.ImportHMAC(t.Context(), hmacSecret, "")
			b.Command, b.Response = nil, nil
			if i < size && err == nil {
				t.Errorf("byte %d of the %s of %d bytes changed unseen", i, what, size)
			}
		}
	}
	hmacKeys.create(t, ks).mustWork(t)
}

// flipBits changes a bit in commands that use a key, and in answers to them.
func (b *bus) flipBits(t *testing.T, kind kind, key usable) {
	t.Helper()
	flip := func(what string, i int) {
		var size int
		change := func(cc tpm2.TPMCC, r []byte) []byte {
			if cc == kind.command {
				if size = len(r); i < size {
					r[i] ^= 1
				}
			}
			return r
		}
		if what == "answer" {
			b.Response = change
		} else {
			b.Command = func(cc tpm2.TPMCC, r []byte) []byte { change(cc, r); return nil }
		}
		err := key.use()
		b.Command, b.Response = nil, nil
		if i < size && (err == nil || errors.Is(err, errWrong)) {
			t.Errorf("byte %d of the %s of %d bytes changed unseen: error %v", i, what, size, err)
		}
		key.mustWork(t)
	}
	for i := 10; i < 200; i += 3 { // the header is a code and sizes, see TestOddAnswers
		flip("answer", i)
	}
	// The command's header and handle: it fails or is another command. From the
	// session on, every byte counts. A handle or session that is not there is
	// put right by the retry, which this change spoils again.
	for i := 14; i < 120; i += 3 {
		flip("command", i)
	}
}

// An interposer shows a parent of its own, to learn what is said to it.
func TestParentSwapped(t *testing.T) {
	for _, persistent := range []bool{false, true} {
		t.Run(fmt.Sprint("persistent ", persistent), func(t *testing.T) {
			b := newBus(t)
			ks := open(t, b.Dial)
			ks.Describe(t.Context())
			if persistent {
				persist(t, b, nil, tpm2.ECCSRKTemplate)
			}
			ks.Close()
			key := create(t, ks, hwkey.ECDSAP256)
			sign(t, key)

			swapped := 0
			b.Response = func(cc tpm2.TPMCC, r []byte) []byte {
				// The parent's public point ends in the attacker's.
				rsp, err := b.attackersParent(cc, r)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(rsp, r) {
					swapped++
				}
				return rsp
			}
			ks.Close()
			_, err := ks.Load(t.Context(), key.Info().ID)
			if !errors.Is(err, hwkey.ErrLost) || swapped == 0 {
				t.Errorf("error %v, want ErrLost; swapped %d times", err, swapped)
			}
			wantWords(t, err, "parent key", "another one")
			// Even without a pin: the TPM cannot read the session's salt.
			if _, err := ks.Create(t.Context(), hwkey.CreateOptions{}); err == nil {
				t.Error("made a key under the attacker's parent")
			}
			b.Response = nil
			ks.Close()
			again, err := ks.Load(t.Context(), key.Info().ID)
			if err != nil {
				t.Fatal(err)
			}
			sign(t, again)
		})
	}
}

// attackersParent puts another valid point into answers that show a parent.
func (b *bus) attackersParent(cc tpm2.TPMCC, response []byte) ([]byte, error) {
	if cc != tpm2.TPMCCReadPublic && cc != tpm2.TPMCCCreatePrimary || binary.BigEndian.Uint32(response[6:]) != 0 {
		return response, nil
	}
	rsp, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHNull, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(sender(b.SendHeld))
	if err != nil {
		return nil, err
	}
	if _, err := b.SendHeld(flushCommand(rsp.ObjectHandle)); err != nil {
		return nil, err
	}
	attacker := tpm2.Marshal(rsp.OutPublic) // both are ECC P-256 storage keys and have one size
	i := bytes.Index(response, attacker[:20])
	if i < 0 {
		return response, nil
	}
	response = bytes.Clone(response)
	copy(response[i:], attacker)
	return response, nil
}

type sender func([]byte) ([]byte, error)

func (s sender) Send(b []byte) ([]byte, error) { return s(b) }

func flushCommand(h tpm2.TPMHandle) []byte {
	b := []byte{0x80, 0x01, 0, 0, 0, 14, 0, 0, 1, 0x65}
	return binary.BigEndian.AppendUint32(b, uint32(h))
}
