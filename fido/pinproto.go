package fido

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
)

// PIN/UV auth protocols one and two: CTAP 2.1, sections 6.5.6 and 6.5.7.

// shared is what a host and the token have agreed on.
type shared struct {
	protocol int64
	mac, aes []byte
}

func (t *Token) newAgreement(protocol int64) {
	t.agreement[protocol] = must(ecdh.P256().GenerateKey(rand.Reader))
}

// publicKey returns a P-256 key as a COSE_Key (RFC 9053, section 7.1.1).
func publicKey(alg int, point []byte) map[int]any {
	return map[int]any{1: 2, 3: alg, -1: 1, -2: point[:32], -3: point[32:]}
}

// agree derives what the host that sent a COSE_Key has derived too.
func (t *Token) agree(protocol int64, key *args) (*shared, error) {
	kty, crv := required[int64](key, 1), required[int64](key, -1)
	x, y := required[[]byte](key, -2), required[[]byte](key, -3)
	alg, hasAlg := optional[int64](key, 3)
	if *key.err != nil {
		return nil, *key.err
	}
	if kty != 2 || crv != 1 || hasAlg && alg != -25 || len(x) != 32 || len(y) != 32 {
		return nil, statusInvalidParameter
	}
	peer, err := ecdh.P256().NewPublicKey(append(append([]byte{4}, x...), y...))
	if err != nil {
		return nil, statusInvalidParameter
	}
	z, err := t.agreement[protocol].ECDH(peer)
	if err != nil {
		return nil, statusInvalidParameter
	}
	if protocol == 1 {
		sum := sha256.Sum256(z)
		return &shared{protocol, sum[:], sum[:]}, nil
	}
	derive := func(info string) []byte { return must(hkdf.Key(sha256.New, z, make([]byte, 32), info, 32)) }
	return &shared{protocol, derive("CTAP2 HMAC key"), derive("CTAP2 AES key")}, nil
}

func (s *shared) encrypt(plain []byte) []byte {
	block := must(aes.NewCipher(s.aes))
	iv := make([]byte, aes.BlockSize)
	var out []byte
	if s.protocol == 2 {
		rand.Read(iv)
		out = append(out, iv...)
	}
	sealed := make([]byte, len(plain))
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(sealed, plain)
	return append(out, sealed...)
}

func (s *shared) decrypt(sealed []byte) ([]byte, error) {
	iv := make([]byte, aes.BlockSize)
	if s.protocol == 2 {
		if len(sealed) < aes.BlockSize {
			return nil, statusInvalidParameter
		}
		iv, sealed = sealed[:aes.BlockSize], sealed[aes.BlockSize:]
	}
	if len(sealed) == 0 || len(sealed)%aes.BlockSize != 0 {
		return nil, statusInvalidParameter
	}
	plain := make([]byte, len(sealed))
	cipher.NewCBCDecrypter(must(aes.NewCipher(s.aes)), iv).CryptBlocks(plain, sealed)
	return plain, nil
}

// verify checks what a host has authenticated with the shared secret.
func (s *shared) verify(message, param []byte) error {
	return verify(s.protocol, s.mac, message, param)
}

func verify(protocol int64, key, message, param []byte) error {
	mac := hmac.New(sha256.New, key)
	mac.Write(message)
	sum := mac.Sum(nil)
	if protocol == 1 {
		sum = sum[:16]
	}
	if !hmac.Equal(sum, param) {
		return statusPINAuthInvalid
	}
	return nil
}
