package tpmvault

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/sha256"
	"errors"

	"github.com/google/go-tpm/tpm2"

	"github.com/limpet-auth/limpet/fido"
	"github.com/limpet-auth/limpet/internal/tpm"
)

// A handle is
//
//	kind (1 byte) | objects | MAC (16 bytes)
//
// where an object is the length of its private area (1 byte), the private area,
// which its parent in the TPM encrypted, and what the template does not say of
// its public area: a point (64 bytes) or a hash (32 bytes). A key is one object,
// a pair of secrets two: for users who were not verified, and for those who were.
type kind byte

const (
	keyUP    kind = 1 // for anybody
	keyUV    kind = 2 // for those who have the PIN
	secretUP kind = 3
	secretUV kind = 4
)

const macSize = 16

// errShortPoint: some TPMs leave out leading zeros of coordinates. From a handle
// the public area could not be made again as they hash it; one key in 128 is so.
var errShortPoint = errors.New("the TPM makes keys with short coordinates only")

func (k kind) uv() bool     { return k == keyUV || k == secretUV }
func (k kind) secret() bool { return k == secretUP || k == secretUV }

// object is a public and a private area as the TPM takes them.
type object struct {
	public  tpm2.TPMTPublic
	private []byte
}

func (o object) name() (tpm2.TPM2BName, error) {
	name, err := tpm2.ObjectName(&o.public)
	if err != nil {
		return tpm2.TPM2BName{}, err
	}
	return *name, nil
}

func (b blob) object() (object, error) {
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](b.Public)
	if err != nil || len(b.Private) == 0 || len(b.Private) > 1024 || public.NameAlg != tpm2.TPMAlgSHA256 {
		return object{}, errors.New("a key in it is none")
	}
	return object{*public, b.Private}, nil
}

func (o object) blob() blob { return blob{tpm2.Marshal(o.public), o.private} }

// marshalHandle returns a handle of these objects, tied to tie under key.
func marshalHandle(key []byte, tie [32]byte, k kind, objects ...object) ([]byte, error) {
	b := []byte{byte(k)}
	for _, o := range objects {
		if len(o.private) > 255 {
			return nil, errors.New("this TPM's keys do not fit into a handle")
		}
		b = append(b, byte(len(o.private)))
		b = append(b, o.private...)
		if k.secret() {
			unique, err := o.public.Unique.KeyedHash()
			if err != nil || len(unique.Buffer) != sha256.Size {
				return nil, errors.New("the TPM made another kind of key")
			}
			b = append(b, unique.Buffer...)
		} else {
			point, err := o.public.Unique.ECC()
			if err != nil {
				return nil, errors.New("the TPM made another kind of key")
			}
			if len(point.X.Buffer) != 32 || len(point.Y.Buffer) != 32 {
				return nil, errShortPoint
			}
			b = append(append(b, point.X.Buffer...), point.Y.Buffer...)
		}
	}
	b = append(b, handleMAC(key, tie, b)...)
	if most := map[bool]int{false: fido.MaxHandle, true: fido.MaxSecretHandle}[k.secret()]; len(b) > most {
		return nil, errors.New("this TPM's keys do not fit into a handle")
	}
	return b, nil
}

func handleMAC(key []byte, tie [32]byte, b []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(tie[:])
	h.Write(b)
	return h.Sum(nil)[:macSize]
}

// parseHandle returns what a handle holds, or fido.ErrNoKey if it is not of this
// key and tie. Nothing of it is looked at before the MAC is right.
func parseHandle(key []byte, tie [32]byte, handle []byte, secret bool) (kind, []object, error) {
	if len(handle) <= 1+macSize || len(handle) > fido.MaxSecretHandle {
		return 0, nil, fido.ErrNoKey
	}
	body, mac := handle[:len(handle)-macSize], handle[len(handle)-macSize:]
	if !hmac.Equal(mac, handleMAC(key, tie, body)) {
		return 0, nil, fido.ErrNoKey
	}
	return parseObjects(body, secret)
}

func parseObjects(body []byte, secret bool) (kind, []object, error) {
	k := kind(body[0])
	if k < keyUP || k > secretUV || k.secret() != secret {
		return 0, nil, fido.ErrNoKey
	}
	count, unique := 1, 64
	if secret {
		count, unique = 2, 32
	}
	var objects []object
	for rest := body[1:]; len(rest) > 0; {
		n := int(rest[0])
		if n == 0 || len(rest) < 1+n+unique {
			return 0, nil, fido.ErrNoKey
		}
		o := object{public: keyTemplate(secret), private: rest[1 : 1+n]}
		id := rest[1+n : 1+n+unique]
		if secret {
			o.public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BDigest{Buffer: id})
		} else {
			o.public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
				X: tpm2.TPM2BECCParameter{Buffer: id[:32]}, Y: tpm2.TPM2BECCParameter{Buffer: id[32:]}})
		}
		objects = append(objects, o)
		rest = rest[1+n+unique:]
	}
	if len(objects) != count {
		return 0, nil, fido.ErrNoKey
	}
	return k, objects, nil
}

// keyTemplate returns the public area of keys or secrets, but for what is unique.
func keyTemplate(secret bool) tpm2.TPMTPublic {
	if secret {
		return tpm.HMACKey(false)
	}
	return tpm.SigningKey(tpm.ECDSAP256)
}

// publicKey returns the public half of a key, which is a point of the curve.
func publicKey(o object) (*ecdsa.PublicKey, error) {
	point, err := o.public.Unique.ECC()
	if err != nil {
		return nil, errors.New("the TPM made another kind of key")
	}
	b := append([]byte{4}, point.X.Buffer...)
	return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append(b, point.Y.Buffer...))
}
