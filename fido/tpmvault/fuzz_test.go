package tpmvault

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/limpet-auth/limpet/internal/tpm"
)

// sample returns an object such as TPMs make.
func sample(secret bool) object {
	o := object{public: keyTemplate(secret), private: bytes.Repeat([]byte{7}, 126)}
	if secret {
		o.public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BDigest{Buffer: make([]byte, 32)})
	} else {
		o.public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)}, Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)}})
	}
	return o
}

// FuzzHandle parses handles, with a MAC that is right and without one.
func FuzzHandle(f *testing.F) {
	key, tie := make([]byte, 32), [32]byte{1}
	for _, k := range []kind{keyUP, keyUV, secretUP, secretUV} {
		objects := []object{sample(k.secret())}
		if k.secret() {
			objects = append(objects, sample(true))
		}
		b, err := marshalHandle(key, tie, k, objects...)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, k.secret())
		f.Add(b[:len(b)-macSize], k.secret())
	}
	f.Add([]byte{}, false)
	f.Fuzz(func(t *testing.T, b []byte, secret bool) {
		parseHandle(key, tie, b, secret)
		if len(b) == 0 {
			return
		}
		k, objects, err := parseObjects(b, secret)
		if err != nil {
			return
		}
		again, err := marshalHandle(key, tie, k, objects...)
		if err != nil {
			return // too long
		}
		if !bytes.Equal(again[:len(again)-macSize], b) {
			t.Errorf("%x came back as %x", b, again)
		}
		if _, _, err := parseHandle(key, tie, again, secret); err != nil {
			t.Errorf("what was made does not parse: %v", err)
		}
	})
}

// FuzzState parses the vault's file.
func FuzzState(f *testing.F) {
	parent := object{public: tpm.PrimaryTemplate, private: []byte{1}}.blob()
	probe := sample(true).blob()
	s := &state{Version: 1, SRK: []byte{1}, Generation: 1, UP: parent, Root: probe,
		PIN: &pinState{Current: pinParent{[]byte{1}, parent, probe}, Next: &pinParent{[]byte{2}, parent, probe}}}
	data, err := json.Marshal(s)
	if err != nil {
		f.Fatal(err)
	}
	if _, err := parseState(data); err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"version":1}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := parseState(data)
		if err != nil {
			return
		}
		if _, err := newParent(s.UP, false, false); err != nil {
			t.Errorf("the parent is none: %v", err)
		}
	})
}
