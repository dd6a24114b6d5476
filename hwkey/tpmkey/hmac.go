package tpmkey

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/hwkey/internal/keydir"
	"github.com/limpet-auth/limpet/internal/tpm"
)

// CreateHMAC makes an HMAC key in the TPM: 32 bytes that nobody ever sees. See
// hwkey.HMACKeystore.
func (ks *Keystore) CreateHMAC(ctx context.Context, label string) (hwkey.HMACKey, error) {
	k, err := ks.makeHMAC(ctx, nil, label)
	if err != nil {
		return nil, prefix(err)
	}
	return k, nil
}

// ImportHMAC gives the TPM a secret of 16 to 128 bytes to keep. It travels to
// the TPM encrypted, and stays there and, encrypted by it, in the key's file.
// See hwkey.HMACKeystore.
func (ks *Keystore) ImportHMAC(ctx context.Context, secret []byte, label string) (hwkey.HMACKey, error) {
	if err := keydir.CheckSecret(secret); err != nil {
		return nil, prefix(err)
	}
	k, err := ks.makeHMAC(ctx, secret, label)
	if err != nil {
		return nil, prefix(err)
	}
	return k, nil
}

// makeHMAC makes a key of the secret, or if it is nil of what the TPM draws.
func (ks *Keystore) makeHMAC(ctx context.Context, secret []byte, label string) (*hmacKey, error) {
	k := &hmacKey{object{ks: ks, id: keydir.NewID()}}
	held := secret
	if len(secret) > sha256.BlockSize {
		// RFC 2104, section 2. A TPM holds no longer ones.
		h := sha256.Sum256(secret)
		defer clear(h[:])
		held = h[:]
	}
	err := k.make(ctx, label, tpm.HMACKey(secret != nil), held, func() error { return k.trial(ctx, secret) })
	if err != nil {
		return nil, err
	}
	return k, nil
}

// LoadHMAC returns a stored HMAC key, loaded in the TPM. See hwkey.HMACKeystore
// and Load.
func (ks *Keystore) LoadHMAC(ctx context.Context, id string) (hwkey.HMACKey, error) {
	r, err := ks.read(ctx, id)
	if err != nil {
		return nil, prefix(err)
	}
	k, err := ks.loadHMAC(ctx, id, r)
	if err != nil {
		return nil, prefix(fmt.Errorf("%s: %w", ks.dir.Path(id), err))
	}
	return k, nil
}

// OpenHMAC returns the HMAC key that a file in TSS2 PEM holds, loaded in the
// TPM. The file need not be in the keystore's directory nor made by this
// package: tpm2-tools and others write such files. The key's Info has no ID.
//
// The key may have been imported, be movable to another TPM, or be shorter than
// ImportHMAC allows: its length cannot be seen. It must be for HMAC-SHA256, by
// its scheme or by having none, without a password and without a policy; others
// give hwkey.ErrUnsupported. A key of another TPM gives hwkey.ErrLost. The parent
// of a file that this package did not write is not pinned: whatever parent the
// TPM shows is trusted with what the session encrypts.
func (ks *Keystore) OpenHMAC(ctx context.Context, pem []byte) (hwkey.HMACKey, error) {
	r, err := parseRecord(pem)
	if err != nil {
		return nil, prefix(fmt.Errorf("opening a key file: %w", err))
	}
	k, err := ks.loadHMAC(ctx, "", r)
	if err != nil {
		return nil, prefix(fmt.Errorf("opening a key file: %w", err))
	}
	return k, nil
}

func (ks *Keystore) loadHMAC(ctx context.Context, id string, r *record) (*hmacKey, error) {
	if r.algorithm != hwkey.HMACSHA256 {
		return nil, fmt.Errorf("%w: it is a key that signs (%s) and not an HMAC key: Load loads it", hwkey.ErrUnsupported, r.algorithm)
	}
	k := &hmacKey{object{ks: ks, id: id, record: r}}
	if err := ks.conn.Do(ctx, func() error { return ks.bring(&k.object) }); err != nil {
		return nil, err
	}
	if r.doubtful {
		if err := k.trial(ctx, nil); err != nil {
			k.Close()
			return nil, err
		}
	}
	return k, nil
}

// MarshalHMAC returns the file of one of this package's HMAC keys in TSS2 PEM,
// to be written elsewhere and opened with OpenHMAC or by other software, on
// this TPM. What is secret in it is encrypted by the TPM.
func (ks *Keystore) MarshalHMAC(key hwkey.HMACKey) ([]byte, error) {
	k, ok := key.(*hmacKey)
	if !ok {
		return nil, prefix(fmt.Errorf("%w: the key is a %T and not one of the TPM", hwkey.ErrUnsupported, key))
	}
	data, err := k.record.marshal()
	return data, prefix(err)
}

// hmacKey is a key that computes HMACs.
type hmacKey struct{ object }

// HMAC computes HMAC-SHA256 in the TPM (TPM 2.0 Library Part 3, 15.5). While
// the key stays loaded that is one TPM command. See hwkey.HMACKey.
func (k *hmacKey) HMAC(ctx context.Context, message []byte) ([]byte, error) {
	if len(message) > hwkey.MaxHMACMessage {
		return nil, prefix(fmt.Errorf("a message of %d bytes, at most %d are allowed: hash it first", len(message), hwkey.MaxHMACMessage))
	}
	mac, err := k.hmac(ctx, message)
	return mac, prefix(err)
}

func (k *hmacKey) hmac(ctx context.Context, message []byte) (mac []byte, err error) {
	err = k.ks.conn.Do(ctx, func() error {
		if k.closed {
			return errors.New("the key is closed")
		}
		mac, err = k.ks.hmac(k, message)
		return err
	})
	return mac, err
}

// trial computes an HMAC, and if secret is not nil the same in software: a key
// that cannot be used or is not the peer's is found here and not by the peer.
func (k *hmacKey) trial(ctx context.Context, secret []byte) error {
	message := []byte("limpet: a trial of the key")
	mac, err := k.hmac(ctx, message)
	if errors.Is(err, tpm2.TPMRCBadAuth) || errors.Is(err, tpm2.TPMRCAuthFail) {
		return fmt.Errorf("%w: the key has a password, which this program does not ask for (%w)", hwkey.ErrUnsupported, err)
	}
	if err != nil || secret == nil {
		return err
	}
	want := hmac.New(sha256.New, secret)
	want.Write(message)
	if !hmac.Equal(mac, want.Sum(nil)) {
		return fmt.Errorf("%w: a trial HMAC of this TPM is wrong", hwkey.ErrUnsupported)
	}
	return nil
}
