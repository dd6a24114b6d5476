package tpmkey

import (
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	keyfile "github.com/foxboron/go-tpm-keyfiles"
	"github.com/google/go-tpm/tpm2"

	"github.com/limpet-auth/limpet/hwkey"
)

// KeyDescription is what a key file in TSS2 PEM says about its key. None of it
// is secret and none of it is proven: only the TPM that loads the key knows.
type KeyDescription struct {
	Format    string          // "loadable", "importable" or "sealed": what the TPM does with it
	Kind      string          // type and scheme in the TCG's words, such as "keyedHash HMAC-SHA256"
	Algorithm hwkey.Algorithm // what this package uses the key for; empty if for nothing
	Unusable  error           // why it is for nothing; nil if it is

	// Parent is the handle of the storage key it was made under: 0x40000001
	// (TPM_RH_OWNER) means the owner's primary key of template H-2, 0x81...
	// a persistent one. ParentName is its name in hex if the file pins it.
	Parent     uint32
	ParentName string

	Name       string   // a hash of the public area in hex, with which the TPM names the key
	Attributes []string // in the TCG's words, such as "fixedTPM" (TPM 2.0 Library Part 2, 8.3)
	Imported   bool     // not drawn by the TPM: others may have it
	Fixed      bool     // never leaves the TPM it was made in or imported to
	NoLockout  bool     // goes on working while the TPM is in lockout

	// EmptyAuth is false if the file says that the key has a password.
	// tpm2-tools 5.4 says so of every key.
	EmptyAuth bool
	Policy    bool // whether using the key takes more than a password, such as PCR values

	Label   string    // of a file of this package
	Created time.Time // of a file of this package; otherwise zero
}

// DescribeKey describes a key file in TSS2 PEM, whoever made it and whatever key
// it holds, without asking a TPM. The error says why it is not such a file.
func DescribeKey(pem []byte) (KeyDescription, error) {
	key, meta, err := decode(pem)
	if err != nil {
		return KeyDescription{}, prefix(err)
	}
	public, err := key.Pubkey.Contents()
	if err != nil {
		return KeyDescription{}, prefix(errors.New("its public area is damaged"))
	}
	a := public.ObjectAttributes
	d := KeyDescription{
		Format:     "loadable",
		Kind:       kind(public),
		Parent:     uint32(key.Parent),
		ParentName: meta.Parent,
		Attributes: attributes(a),
		Imported:   !a.SensitiveDataOrigin,
		Fixed:      a.FixedTPM && a.FixedParent,
		NoLockout:  a.NoDA,
		EmptyAuth:  key.EmptyAuth,
		Policy:     len(key.Policy) > 0 || len(key.AuthPolicy) > 0 || len(public.AuthPolicy.Buffer) > 0,
		Label:      meta.Label,
		Created:    meta.Created,
	}
	switch {
	case key.Keytype.Equal(keyfile.OIDImportableKey):
		d.Format = "importable"
	case key.Keytype.Equal(keyfile.OIDSealedKey):
		d.Format = "sealed"
	}
	if name, err := tpm2.ObjectName(public); err == nil {
		d.Name = hex.EncodeToString(name.Buffer)
	}
	if r, err := newRecord(key, meta); err != nil {
		d.Unusable = err
	} else {
		d.Algorithm = r.algorithm
	}
	return d, nil
}

// attributes names the attributes that are set, in the order of their bits.
func attributes(a tpm2.TPMAObject) []string {
	var names []string
	for _, bit := range []struct {
		set  bool
		name string
	}{
		{a.FixedTPM, "fixedTPM"},
		{a.STClear, "stClear"},
		{a.FixedParent, "fixedParent"},
		{a.SensitiveDataOrigin, "sensitiveDataOrigin"},
		{a.UserWithAuth, "userWithAuth"},
		{a.AdminWithPolicy, "adminWithPolicy"},
		{a.FirmwareLimited, "firmwareLimited"},
		{a.NoDA, "noDA"},
		{a.EncryptedDuplication, "encryptedDuplication"},
		{a.Restricted, "restricted"},
		{a.Decrypt, "decrypt"},
		{a.SignEncrypt, "sign"},
		{a.X509Sign, "x509sign"},
	} {
		if bit.set {
			names = append(names, bit.name)
		}
	}
	return names
}

// kind says what type of key it is, and what its scheme if it has one.
func kind(public *tpm2.TPMTPublic) string {
	words := algorithmName(public.Type)
	switch public.Type {
	case tpm2.TPMAlgKeyedHash:
		parms, err := public.Parameters.KeyedHashDetail()
		if err != nil || parms.Scheme.Scheme == tpm2.TPMAlgNull {
			break
		}
		words += " " + algorithmName(parms.Scheme.Scheme)
		if scheme, err := parms.Scheme.Details.HMAC(); err == nil {
			words += "-" + algorithmName(scheme.HashAlg)
		}
	case tpm2.TPMAlgECC:
		parms, err := public.Parameters.ECCDetail()
		if err != nil {
			break
		}
		switch parms.CurveID {
		case tpm2.TPMECCNistP256:
			words += " P-256"
		case tpm2.TPMECCNistP384:
			words += " P-384"
		case tpm2.TPMECCNistP521:
			words += " P-521"
		default:
			words += fmt.Sprintf(" curve %#x", uint16(parms.CurveID))
		}
		if parms.Scheme.Scheme != tpm2.TPMAlgNull {
			words += " " + algorithmName(parms.Scheme.Scheme)
		}
	case tpm2.TPMAlgRSA:
		parms, err := public.Parameters.RSADetail()
		if err != nil {
			break
		}
		words += fmt.Sprintf("-%d", parms.KeyBits)
		if parms.Scheme.Scheme != tpm2.TPMAlgNull {
			words += " " + algorithmName(parms.Scheme.Scheme)
		}
	}
	return words
}

// algorithmName names an algorithm of the TCG's registry.
func algorithmName(alg tpm2.TPMAlgID) string {
	if name, ok := algorithmNames[alg]; ok {
		return name
	}
	return fmt.Sprintf("algorithm %#x", uint16(alg))
}

var algorithmNames = map[tpm2.TPMAlgID]string{
	tpm2.TPMAlgRSA:       "RSA",
	tpm2.TPMAlgSHA1:      "SHA1",
	tpm2.TPMAlgHMAC:      "HMAC",
	tpm2.TPMAlgKeyedHash: "keyedHash",
	tpm2.TPMAlgXOR:       "XOR",
	tpm2.TPMAlgSHA256:    "SHA256",
	tpm2.TPMAlgSHA384:    "SHA384",
	tpm2.TPMAlgSHA512:    "SHA512",
	tpm2.TPMAlgRSASSA:    "RSASSA",
	tpm2.TPMAlgRSAPSS:    "RSAPSS",
	tpm2.TPMAlgECDSA:     "ECDSA",
	tpm2.TPMAlgECDAA:     "ECDAA",
	tpm2.TPMAlgECC:       "ECC",
	tpm2.TPMAlgSymCipher: "symmetric cipher",
}
