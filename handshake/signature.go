package handshake

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
)

// statement is what is signed. It begins with words that nothing else of
// Limpet's begins with, which say whose signature it is.
func statement(purpose string, transcript []byte) []byte {
	b := make([]byte, 0, len(purpose)+1+maxTranscript)
	b = append(append(b, purpose...), 0)
	return append(b, transcript...)
}

// sign returns 64 bytes: an Ed25519 signature, or r‖s of ECDSA P-256 over
// SHA-256.
func sign(signer crypto.Signer, purpose string, transcript []byte) ([]byte, error) {
	message := statement(purpose, transcript)
	if _, ok := signer.Public().(ed25519.PublicKey); ok {
		sig, err := signer.Sign(rand.Reader, message, crypto.Hash(0))
		if err != nil || len(sig) != signatureSize {
			return nil, fmt.Errorf("signing: %w", orElse(err, "not an Ed25519 signature"))
		}
		return sig, nil
	}
	sum := sha256.Sum256(message)
	der, err := signer.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	var rs struct{ R, S *big.Int }
	if rest, err := asn1.Unmarshal(der, &rs); err != nil || len(rest) > 0 || !fits(rs.R) || !fits(rs.S) {
		return nil, errors.New("signing: not an ECDSA P-256 signature")
	}
	sig := make([]byte, signatureSize)
	rs.R.FillBytes(sig[:signatureSize/2])
	rs.S.FillBytes(sig[signatureSize/2:])
	return sig, nil
}

func fits(n *big.Int) bool { return n.Sign() > 0 && n.BitLen() <= 8*signatureSize/2 }

func orElse(err error, text string) error {
	if err != nil {
		return err
	}
	return errors.New(text)
}

func verify(public crypto.PublicKey, purpose string, transcript, sig []byte) bool {
	message := statement(purpose, transcript)
	switch public := public.(type) {
	case ed25519.PublicKey:
		return len(public) == ed25519.PublicKeySize && ed25519.Verify(public, message, sig)
	case *ecdsa.PublicKey:
		r, s := new(big.Int).SetBytes(sig[:signatureSize/2]), new(big.Int).SetBytes(sig[signatureSize/2:])
		der, err := asn1.Marshal(struct{ R, S *big.Int }{r, s})
		if err != nil {
			return false
		}
		sum := sha256.Sum256(message)
		return ecdsa.VerifyASN1(public, sum[:], der)
	}
	return false
}
