package jose

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"

	"github.com/limpet-auth/limpet/proof"
)

// NewHeader returns the JOSE header of a JWT of type typ that carries its key and
// is signed with alg.
func NewHeader(typ string, alg proof.Algorithm, pub *proof.PublicKey) ([]byte, error) {
	pub, err := pub.As(alg)
	if err != nil {
		return nil, err
	}
	type jwk struct {
		Kty string `json:"kty"`
		Crv string `json:"crv,omitempty"`
		X   string `json:"x,omitempty"`
		Y   string `json:"y,omitempty"`
		N   string `json:"n,omitempty"`
		E   string `json:"e,omitempty"`
	}
	header := struct {
		Typ string `json:"typ"`
		Alg string `json:"alg"`
		JWK jwk    `json:"jwk"`
	}{Typ: typ}
	b64, b := Base64.EncodeToString, pub.Bytes()
	switch alg {
	case proof.ECDSAP256:
		header.Alg = "ES256"
		header.JWK = jwk{Kty: "EC", Crv: "P-256", X: b64(b[1:33]), Y: b64(b[33:])}
	case proof.Ed25519:
		header.Alg = "EdDSA"
		header.JWK = jwk{Kty: "OKP", Crv: "Ed25519", X: b64(b)}
	case proof.RSAPKCS1, proof.RSAPSS:
		header.Alg = "RS256"
		if alg == proof.RSAPSS {
			header.Alg = "PS256"
		}
		parsed, err := x509.ParsePKIXPublicKey(b)
		if err != nil {
			return nil, err
		}
		key, ok := parsed.(*rsa.PublicKey)
		if !ok {
			return nil, errors.New("not an RSA key")
		}
		header.JWK = jwk{Kty: "RSA", N: b64(key.N.Bytes()), E: b64(big.NewInt(int64(key.E)).Bytes())}
	default:
		return nil, fmt.Errorf("%s makes no JWT", alg)
	}
	return json.Marshal(header)
}

// Sign returns the JWT of a header and a payload, signed by key with alg.
func Sign(key crypto.Signer, alg proof.Algorithm, header, payload []byte) (string, error) {
	signed := Base64.EncodeToString(header) + "." + Base64.EncodeToString(payload)
	sig, err := SignInput(key, alg, []byte(signed))
	if err != nil {
		return "", err
	}
	return signed + "." + Base64.EncodeToString(sig), nil
}

// SignInput signs in the forms of RFC 7518, 3 and RFC 8037, 3.1.
func SignInput(key crypto.Signer, alg proof.Algorithm, message []byte) ([]byte, error) {
	if alg == proof.Ed25519 {
		return key.Sign(rand.Reader, message, crypto.Hash(0))
	}
	sum := sha256.Sum256(message)
	var opts crypto.SignerOpts = crypto.SHA256
	if alg == proof.RSAPSS {
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}
	}
	sig, err := key.Sign(rand.Reader, sum[:], opts)
	if err != nil || alg != proof.ECDSAP256 {
		return sig, err
	}
	return proof.RawECDSA(sig)
}
