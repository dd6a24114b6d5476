package tpmkey

import (
	"github.com/google/go-tpm/tpm2"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/internal/tpm"
)

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
		return tpm.ECDSAP256, true
	case hwkey.RSA2048:
		return tpm2.TPMTPublicParms{Type: tpm2.TPMAlgRSA, Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{
			KeyBits: 2048,
			Scheme: tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgRSAPSS,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSAPSS, &tpm2.TPMSSigSchemeRSAPSS{HashAlg: tpm2.TPMAlgSHA256})},
		})}, true
	}
	return tpm2.TPMTPublicParms{}, false
}
