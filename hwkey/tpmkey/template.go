package tpmkey

import (
	"github.com/google/go-tpm/tpm2"

	"github.com/limpet-auth/limpet/hwkey"
)

// srkHandle is where a machine keeps its shared ECC or RSA storage root key
// (TCG TPM v2.0 Provisioning Guidance, 7.8).
const srkHandle tpm2.TPMHandle = 0x81000001

var aes128CFB = tpm2.TPMTSymDefObject{
	Algorithm: tpm2.TPMAlgAES,
	KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(128)),
	Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
}

// primaryTemplate is template H-2 of the TCG EK Credential Profile: the parent
// that the TSS2 key format means by TPM_RH_OWNER. Its unique field has length
// zero; 32 zero bytes would make another key.
var primaryTemplate = tpm2.TPMTPublic{
	Type:    tpm2.TPMAlgECC,
	NameAlg: tpm2.TPMAlgSHA256,
	ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true,
		NoDA: true, Restricted: true, Decrypt: true},
	Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{Symmetric: aes128CFB, CurveID: tpm2.TPMECCNistP256}),
	Unique:     tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{}),
}

// storageKey tells whether keys can be loaded under a key found in the TPM.
func storageKey(public *tpm2.TPMTPublic) bool {
	a := public.ObjectAttributes
	if !a.UserWithAuth || !a.Restricted || !a.Decrypt || a.SignEncrypt {
		return false
	}
	return public.NameAlg == tpm2.TPMAlgSHA256 && (public.Type == tpm2.TPMAlgECC || public.Type == tpm2.TPMAlgRSA)
}

// usableParent tells whether a storage key is as good a parent for new keys as
// the primary key: it never leaves this TPM and has no password that counts
// towards the lockout.
func usableParent(public *tpm2.TPMTPublic) bool {
	a := public.ObjectAttributes
	return storageKey(public) && a.FixedTPM && a.FixedParent && a.SensitiveDataOrigin && a.NoDA
}

// scheme returns the one signature scheme of an algorithm.
func scheme(alg hwkey.Algorithm) tpm2.TPMTSigScheme {
	hash := &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256}
	if alg == hwkey.RSA2048 {
		return tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgRSAPSS, Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgRSAPSS, hash)}
	}
	return tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgECDSA, hash)}
}

// parameters returns the type and parameters of a key that signs, which hold it
// to its one scheme.
func parameters(alg hwkey.Algorithm) (tpm2.TPMTPublicParms, bool) {
	switch alg {
	case hwkey.ECDSAP256:
		return tpm2.TPMTPublicParms{Type: tpm2.TPMAlgECC, Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			CurveID: tpm2.TPMECCNistP256,
			Scheme: tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})},
		})}, true
	case hwkey.RSA2048:
		return tpm2.TPMTPublicParms{Type: tpm2.TPMAlgRSA, Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{
			KeyBits: 2048,
			Scheme: tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgRSAPSS,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSAPSS, &tpm2.TPMSSigSchemeRSAPSS{HashAlg: tpm2.TPMAlgSHA256})},
		})}, true
	}
	return tpm2.TPMTPublicParms{}, false
}

// keyTemplate returns the template of a device key. noDA: a locked-out TPM goes
// on signing with it.
func keyTemplate(parms tpm2.TPMTPublicParms) tpm2.TPMTPublic {
	t := tpm2.TPMTPublic{
		Type:    parms.Type,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true,
			NoDA: true, SignEncrypt: true},
		Parameters: parms.Parameters,
		Unique:     tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{}),
	}
	if parms.Type == tpm2.TPMAlgRSA {
		t.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{})
	}
	return t
}

// hmacTemplate returns the template of an HMAC key.
func hmacTemplate(imported bool) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgKeyedHash,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: !imported, UserWithAuth: true,
			NoDA: true, SignEncrypt: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{
			Scheme: tpm2.TPMTKeyedHashScheme{Scheme: tpm2.TPMAlgHMAC,
				Details: tpm2.NewTPMUSchemeKeyedHash(tpm2.TPMAlgHMAC, &tpm2.TPMSSchemeHMAC{HashAlg: tpm2.TPMAlgSHA256})},
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BDigest{}),
	}
}
