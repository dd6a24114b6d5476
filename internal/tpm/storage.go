package tpm

import (
	"github.com/google/go-tpm/tpm2"
)

// SRKHandle is where a machine keeps its shared ECC or RSA storage root key
// (TCG TPM v2.0 Provisioning Guidance, 7.8).
const SRKHandle tpm2.TPMHandle = 0x81000001

// AES128CFB is what storage keys encrypt with.
var AES128CFB = tpm2.TPMTSymDefObject{
	Algorithm: tpm2.TPMAlgAES,
	KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(128)),
	Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
}

// PrimaryTemplate is template H-2 of the TCG EK Credential Profile: the parent
// that the TSS2 key format means by TPM_RH_OWNER. Its unique field has length
// zero; 32 zero bytes would make another key.
var PrimaryTemplate = tpm2.TPMTPublic{
	Type:    tpm2.TPMAlgECC,
	NameAlg: tpm2.TPMAlgSHA256,
	ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true,
		NoDA: true, Restricted: true, Decrypt: true},
	Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{Symmetric: AES128CFB, CurveID: tpm2.TPMECCNistP256}),
	Unique:     tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{}),
}

// StorageKey tells whether keys can be loaded under a key found in the TPM.
func StorageKey(public *tpm2.TPMTPublic) bool {
	a := public.ObjectAttributes
	if !a.UserWithAuth || !a.Restricted || !a.Decrypt || a.SignEncrypt {
		return false
	}
	return public.NameAlg == tpm2.TPMAlgSHA256 && (public.Type == tpm2.TPMAlgECC || public.Type == tpm2.TPMAlgRSA)
}

// UsableParent tells whether a storage key is as good a parent for new keys as
// the primary key: it never leaves this TPM and has no password that counts
// towards the lockout.
func UsableParent(public *tpm2.TPMTPublic) bool {
	a := public.ObjectAttributes
	return StorageKey(public) && a.FixedTPM && a.FixedParent && a.SensitiveDataOrigin && a.NoDA
}

// Public returns a public area that the TPM showed, and its name.
func Public(b *tpm2.TPM2BPublic) (*tpm2.TPMTPublic, tpm2.TPM2BName, error) {
	public, err := b.Contents()
	if err != nil {
		return nil, tpm2.TPM2BName{}, Words("reading a key", err)
	}
	name, err := tpm2.ObjectName(public)
	if err != nil {
		return nil, tpm2.TPM2BName{}, Words("reading a key", err)
	}
	return public, *name, nil
}
