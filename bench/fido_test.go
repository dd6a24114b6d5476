package bench

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/limpet-auth/limpet/fido"
	"github.com/limpet-auth/limpet/fido/tpmvault"
	"github.com/limpet-auth/limpet/limpettest"
)

// BenchmarkFIDO counts and times what a token's operations cost a software TPM, for
// a process that has its connection. peers is what other tokens of this kind, which
// derive a parent from each handle, do for one authentication: two times
// CreatePrimary, Load and Sign, of which the first is to see whether the handle is
// theirs.
func BenchmarkFIDO(b *testing.B) {
	ctx := context.Background()
	v, err := tpmvault.Open(tpmvault.Config{Dial: limpettest.SoftTPM(b).Dial, Dir: b.TempDir()})
	fatal(b, err)
	defer v.Close()
	pin := [16]byte(make([]byte, 16))
	fatal(b, v.SetPIN(ctx, pin))
	var u fido.Unlocked
	u, err = v.Unlock(ctx, pin)
	fatal(b, err)
	tie, digest := [32]byte{1}, sha256.Sum256([]byte("what is signed"))
	up, _, err := v.Create(ctx, tie, nil)
	fatal(b, err)
	uv, _, err := v.Create(ctx, tie, u)
	fatal(b, err)
	upSecret, err := v.CreateSecret(ctx, tie, nil)
	fatal(b, err)
	_, err = v.Count(ctx)
	fatal(b, err)
	authenticate := func(handle []byte, u fido.Unlocked) error {
		if _, err := v.Verified(ctx, tie, handle); err != nil {
			return err
		}
		if _, err := v.Count(ctx); err != nil {
			return err
		}
		_, err := v.Sign(ctx, tie, handle, u, digest)
		return err
	}
	for _, op := range []struct {
		name string
		do   func() error
	}{
		{"check-only", func() error { _, err := v.Verified(ctx, tie, up); return err }},
		{"authenticate", func() error { return authenticate(up, nil) }},
		{"authenticate-verified", func() error { return authenticate(uv, u) }},
		{"pin", func() error { _, err := v.Unlock(ctx, pin); return err }},
		{"register", func() error { _, _, err := v.Create(ctx, tie, nil); return err }},
		{"register-verified", func() error { _, _, err := v.Create(ctx, tie, u); return err }},
		{"hmac-secret", func() error { _, err := v.Secret(ctx, tie, upSecret, nil, digest[:]); return err }},
	} {
		b.Run(op.name, func(b *testing.B) {
			before := v.Commands()
			n := 0
			for b.Loop() {
				fatal(b, op.do())
				n++
			}
			total := 0
			after := v.Commands()
			for name, c := range after {
				total += c - before[name]
			}
			perOp := func(c int) float64 { return float64(c) / float64(n) }
			report(b, map[string]float64{
				"commands/op": perOp(total), "loads/op": perOp(after["Load"] - before["Load"]), "signs/op": perOp(after["Sign"] - before["Sign"]),
				"primaries/op": perOp(after["CreatePrimary"] - before["CreatePrimary"]),
			})
		})
	}
	b.Run("peers-authenticate", peersAuthenticate)
}

func peersAuthenticate(b *testing.B) {
	rw, err := limpettest.SoftTPM(b).Dial(context.Background())
	fatal(b, err)
	defer rw.Close()
	p := &plain{rw: rw}
	digest := sha256.Sum256([]byte("what is signed"))
	parent := func() *tpm2.CreatePrimaryResponse {
		rsp, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(p)
		fatal(b, err)
		return rsp
	}
	flush := func(h tpm2.TPMHandle) {
		_, err := tpm2.FlushContext{FlushHandle: h}.Execute(p)
		fatal(b, err)
	}
	primary := parent()
	made, err := tpm2.Create{ParentHandle: tpm2.NamedHandle{Handle: primary.ObjectHandle, Name: primary.Name}, InPublic: tpm2.New2B(tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, SignEncrypt: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256, Scheme: tpm2.TPMTECCScheme{
			Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})}}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{}),
	})}.Execute(p)
	fatal(b, err)
	flush(primary.ObjectHandle)
	p.commands, p.primaries = 0, 0
	n := 0
	for b.Loop() {
		for range 2 {
			primary := parent()
			key, err := tpm2.Load{ParentHandle: tpm2.NamedHandle{Handle: primary.ObjectHandle, Name: primary.Name},
				InPrivate: made.OutPrivate, InPublic: made.OutPublic}.Execute(p)
			fatal(b, err)
			_, err = tpm2.Sign{KeyHandle: tpm2.NamedHandle{Handle: key.ObjectHandle, Name: key.Name}, Digest: tpm2.TPM2BDigest{Buffer: digest[:]},
				InScheme:   tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256})},
				Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull}}.Execute(p)
			fatal(b, err)
			flush(key.ObjectHandle)
			flush(primary.ObjectHandle)
		}
		n++
	}
	report(b, map[string]float64{"commands/op": float64(p.commands) / float64(n), "loads/op": 2, "signs/op": 2, "primaries/op": float64(p.primaries) / float64(n)})
}

// plain is a connection without sessions, as the peers' is.
type plain struct {
	rw                  io.ReadWriter
	commands, primaries int
}

func (p *plain) Send(command []byte) ([]byte, error) {
	p.commands++
	if tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])) == tpm2.TPMCCCreatePrimary {
		p.primaries++
	}
	if _, err := p.rw.Write(command); err != nil {
		return nil, err
	}
	b := make([]byte, 4096)
	n, err := io.ReadAtLeast(p.rw, b, 10)
	if err != nil {
		return nil, err
	}
	size := int(binary.BigEndian.Uint32(b[2:]))
	if n < size {
		_, err = io.ReadFull(p.rw, b[n:size])
	}
	return b[:size], err
}

func fatal(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}
