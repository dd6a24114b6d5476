package tpmkey

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"time"

	keyfile "github.com/foxboron/go-tpm-keyfiles"
	"github.com/google/go-tpm/tpm2"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/hwkey/internal/keydir"
)

// record is what one key file holds. The file is a TSS2 PRIVATE KEY in PEM,
// which other TPM software reads too (draft-bottomley-tpm2-keys). What Limpet
// adds stands in a line after it, which PEM readers skip as explanatory text
// (RFC 7468, section 2; before it, tpm2-tools would not see that it is PEM).
type record struct {
	meta    metadata
	parent  tpm2.TPMHandle // TPM_RH_OWNER for the primary key of template H-2, or persistent
	public  tpm2.TPM2BPublic
	private tpm2.TPM2BPrivate // encrypted by the parent

	// doubtful is set if the file says that the key has a password. Other
	// software says so of keys without one too (tpm2-tools 5.4).
	doubtful bool

	// Derived from public.
	algorithm hwkey.Algorithm
	key       crypto.PublicKey // nil for an HMAC key
	imported  bool
	name      tpm2.TPM2BName
}

// way returns which way the commands with the key are encrypted.
func (r *record) way() way {
	if r.algorithm == hwkey.HMACSHA256 {
		return both
	}
	return in
}

// metadata is the line after the PEM block. A file made by other software has
// none.
type metadata struct {
	Label   string    `json:"label,omitempty"`
	Created time.Time `json:"created"`

	// Parent is the name of the parent key, in hex: a hash of its public area.
	// Pinned here, it makes a swapped parent an error. Without it whatever
	// parent the TPM shows is trusted.
	Parent string `json:"parent"`
}

const metadataPrefix = "Limpet: "

func (r *record) marshal() ([]byte, error) {
	var b bytes.Buffer
	key := keyfile.NewTPMKey(keyfile.OIDLoadableKey, r.public, r.private, keyfile.WithParent(r.parent))
	key.EmptyAuth = true
	if err := keyfile.Encode(&b, key); err != nil {
		return nil, err
	}
	if r.meta == (metadata{}) {
		return b.Bytes(), nil // read from a file of other software
	}
	line, err := json.Marshal(r.meta)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(&b, "%s%s\n", metadataPrefix, line)
	return b.Bytes(), nil
}

// decode reads a key file, of whatever key it is.
func decode(data []byte) (*keyfile.TPMKey, metadata, error) {
	var meta metadata
	if len(data) > keydir.MaxFile {
		return nil, meta, fmt.Errorf("it has more than %d bytes", keydir.MaxFile)
	}
	if _, line, ok := bytes.Cut(data, []byte("\n"+metadataPrefix)); ok {
		if err := json.Unmarshal(line, &meta); err != nil {
			return nil, meta, errors.New("its last line is damaged")
		}
		if err := keydir.CheckLabel(meta.Label); err != nil {
			return nil, meta, err
		}
		// A SHA-256 name; what a damaged pin allows must not be everything.
		if b, err := hex.DecodeString(meta.Parent); err != nil || len(b) != 2+32 {
			return nil, meta, errors.New("its last line names no parent key")
		}
	}
	// The reader of the library accepts what other writers get wrong: TRUE
	// written as 01, and emptyAuth FALSE for a key without a password.
	key, err := keyfile.Decode(data)
	if err != nil {
		return nil, meta, fmt.Errorf("it is not a TSS2 key file: %w", err)
	}
	return key, meta, nil
}

// parseRecord reads a key file. The error wraps hwkey.ErrUnsupported if the file
// is whole but its key is not one this package uses.
func parseRecord(data []byte) (*record, error) {
	key, meta, err := decode(data)
	if err != nil {
		return nil, err
	}
	return newRecord(key, meta)
}

func newRecord(key *keyfile.TPMKey, meta metadata) (*record, error) {
	if !key.Keytype.Equal(keyfile.OIDLoadableKey) {
		return nil, fmt.Errorf("%w: the file holds no loadable key", hwkey.ErrUnsupported)
	}
	if len(key.Policy) > 0 || len(key.AuthPolicy) > 0 {
		return nil, fmt.Errorf("%w: the key has a policy", hwkey.ErrUnsupported)
	}
	r := &record{meta: meta, parent: key.Parent, public: key.Pubkey, private: key.Privkey, doubtful: !key.EmptyAuth}
	if r.parent != tpm2.TPMRHOwner && !persistent(r.parent) {
		return nil, fmt.Errorf("%w: its parent key %#x is neither the owner's nor persistent", hwkey.ErrUnsupported, uint32(r.parent))
	}
	if err := r.derive(); err != nil {
		return nil, err
	}
	return r, nil
}

// derive sets what follows from the public area, and refuses keys that this
// package does not use.
func (r *record) derive() error {
	public, err := r.public.Contents()
	if err != nil {
		return errors.New("its public area is damaged")
	}
	a := public.ObjectAttributes
	r.imported = !a.SensitiveDataOrigin
	// A secret for HMAC is shared with a peer; that it came from outside or can
	// be moved is no fault.
	if public.Type != tpm2.TPMAlgKeyedHash && (!a.FixedTPM || !a.FixedParent || r.imported) {
		return fmt.Errorf("%w: the key was not made in the TPM or can leave it", hwkey.ErrUnsupported)
	}
	// A policy of a key that can be used without it may let it be moved.
	if len(public.AuthPolicy.Buffer) > 0 && (!a.UserWithAuth || public.Type == tpm2.TPMAlgKeyedHash) {
		return fmt.Errorf("%w: the key has a policy", hwkey.ErrUnsupported)
	}
	if !a.SignEncrypt || a.Restricted || !a.UserWithAuth {
		return fmt.Errorf("%w: the key does not sign what it is given", hwkey.ErrUnsupported)
	}
	switch public.Type {
	case tpm2.TPMAlgECC:
		r.algorithm = hwkey.ECDSAP256
		r.key, err = publicP256(public)
	case tpm2.TPMAlgRSA:
		r.algorithm = hwkey.RSA2048
		r.key, err = publicRSA2048(public)
	case tpm2.TPMAlgKeyedHash:
		r.algorithm = hwkey.HMACSHA256
		err = checkHMACSHA256(public)
	default:
		return fmt.Errorf("%w: the key is neither ECC nor RSA nor HMAC", hwkey.ErrUnsupported)
	}
	if err != nil {
		return err
	}
	name, err := tpm2.ObjectName(public)
	if err != nil {
		return fmt.Errorf("%w: the key's name algorithm", hwkey.ErrUnsupported)
	}
	r.name = *name
	return nil
}

// checkHMACSHA256 refuses keyed hash objects that do not compute HMAC-SHA256. A
// key without a scheme computes what it is told to.
func checkHMACSHA256(public *tpm2.TPMTPublic) error {
	parms, err := public.Parameters.KeyedHashDetail()
	if err != nil {
		return errors.New("its public area is damaged")
	}
	switch parms.Scheme.Scheme {
	case tpm2.TPMAlgNull:
		return nil
	case tpm2.TPMAlgHMAC:
		scheme, err := parms.Scheme.Details.HMAC()
		if err != nil {
			return errors.New("its public area is damaged")
		}
		if scheme.HashAlg != tpm2.TPMAlgSHA256 {
			return fmt.Errorf("%w: the key's hash is %s and not SHA-256", hwkey.ErrUnsupported, algorithmName(scheme.HashAlg))
		}
		return nil
	}
	return fmt.Errorf("%w: the key's scheme is %s and not HMAC", hwkey.ErrUnsupported, algorithmName(parms.Scheme.Scheme))
}

func publicP256(public *tpm2.TPMTPublic) (*ecdsa.PublicKey, error) {
	parms, err := public.Parameters.ECCDetail()
	if err != nil {
		return nil, errors.New("its public area is damaged")
	}
	point, err := public.Unique.ECC()
	if err != nil {
		return nil, errors.New("its public area is damaged")
	}
	if parms.CurveID != tpm2.TPMECCNistP256 {
		return nil, fmt.Errorf("%w: the key's curve is not P-256", hwkey.ErrUnsupported)
	}
	if s := parms.Scheme.Scheme; s != tpm2.TPMAlgNull && s != tpm2.TPMAlgECDSA {
		return nil, fmt.Errorf("%w: the key's scheme is not ECDSA", hwkey.ErrUnsupported)
	}
	x, y := point.X.Buffer, point.Y.Buffer
	if len(x) > 32 || len(y) > 32 {
		return nil, errors.New("its public point is damaged")
	}
	b := make([]byte, 65)
	b[0] = 4 // uncompressed
	copy(b[33-len(x):33], x)
	copy(b[65-len(y):], y)
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), b)
	if err != nil {
		return nil, errors.New("its public point is not on the curve")
	}
	return key, nil
}

func publicRSA2048(public *tpm2.TPMTPublic) (*rsa.PublicKey, error) {
	parms, err := public.Parameters.RSADetail()
	if err != nil {
		return nil, errors.New("its public area is damaged")
	}
	modulus, err := public.Unique.RSA()
	if err != nil {
		return nil, errors.New("its public area is damaged")
	}
	if s := parms.Scheme.Scheme; s != tpm2.TPMAlgNull && s != tpm2.TPMAlgRSAPSS {
		return nil, fmt.Errorf("%w: the key's scheme is not PSS", hwkey.ErrUnsupported)
	}
	key := &rsa.PublicKey{N: new(big.Int).SetBytes(modulus.Buffer), E: 65537}
	if key.N.BitLen() != 2048 || parms.Exponent != 0 && parms.Exponent != 65537 {
		return nil, fmt.Errorf("%w: the key is not RSA-2048 with exponent 65537", hwkey.ErrUnsupported)
	}
	return key, nil
}

// persistent tells whether h is in the range of persistent objects.
func persistent(h tpm2.TPMHandle) bool { return h>>24 == 0x81 }
