package tpmkey

import (
	"context"
	"crypto"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"

	"github.com/google/go-tpm/tpm2"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/internal/tpm"
)

// Sign signs a SHA-256 digest. While the key stays loaded that is one TPM
// command. See hwkey.Key.
func (k *key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts != nil && opts.HashFunc() != crypto.SHA256 {
		return nil, fmt.Errorf("limpet: tpmkey: %s signs with SHA-256, not with %v", k.record.algorithm, opts.HashFunc())
	}
	if len(digest) != crypto.SHA256.Size() {
		return nil, fmt.Errorf("limpet: tpmkey: a digest of %d bytes, want %d", len(digest), crypto.SHA256.Size())
	}
	sig, err := k.sign(context.Background(), digest)
	return sig, prefix(err)
}

func (k *key) sign(ctx context.Context, digest []byte) (sig []byte, err error) {
	err = k.ks.conn.Do(ctx, func() error {
		if k.closed {
			return errors.New("the key is closed")
		}
		s, err := k.ks.sign(k, digest)
		if err != nil {
			return err
		}
		sig, err = encode(k.record.algorithm, s)
		return err
	})
	return sig, err
}

// encode turns the TPM's signature into the usual form of its algorithm.
func encode(alg hwkey.Algorithm, s *tpm2.TPMTSignature) ([]byte, error) {
	if alg == hwkey.RSA2048 {
		sig, err := s.Signature.RSAPSS()
		if err != nil {
			return nil, errors.New("the TPM made another kind of signature")
		}
		return sig.Sig.Buffer, nil
	}
	return tpm.ECDSASignature(s)
}

// trial signs and verifies in software: some TPMs have an odd PSS.
func (k *key) trial(ctx context.Context) error {
	digest := make([]byte, crypto.SHA256.Size())
	sig, err := k.sign(ctx, digest)
	if tpm.Rejected(err) {
		return fmt.Errorf("%w: this TPM does not sign with PSS (%w)", hwkey.ErrUnsupported, err)
	}
	if err != nil {
		return err
	}
	if rsa.VerifyPSS(k.record.key.(*rsa.PublicKey), crypto.SHA256, digest, sig, nil) != nil {
		return fmt.Errorf("%w: a trial signature of this TPM does not verify", hwkey.ErrUnsupported)
	}
	return nil
}
