package limpet

import (
	"crypto/aes"
	"crypto/cipher"
	"fmt"
)

// sealer encrypts what is secret in a stored value with AES-256-GCM under a
// key that lives outside the store: a stolen store is not a stolen session.
// The record's store key is authenticated along with it, so that a sealed
// secret cannot be moved to another record.
type sealer struct{ aead cipher.AEAD }

func newSealer(key []byte) (*sealer, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("limpet: seal key: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("limpet: seal key: %w", err)
	}
	return &sealer{aead}, nil
}

func (s *sealer) seal(storeKey string, secret []byte) []byte {
	return s.aead.Seal(nil, nil, secret, []byte("limpet seal 1\x00"+storeKey))
}

func (s *sealer) open(storeKey string, sealed []byte) ([]byte, error) {
	return s.aead.Open(nil, nil, sealed, []byte("limpet seal 1\x00"+storeKey))
}
