package softkey

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/hwkey/internal/keydir"
)

// CreateHMAC makes an HMAC key of 32 random bytes. See hwkey.HMACKeystore.
func (ks *Keystore) CreateHMAC(ctx context.Context, label string) (hwkey.HMACKey, error) {
	secret := make([]byte, sha256.Size)
	rand.Read(secret)
	defer clear(secret)
	return ks.storeHMAC(ctx, &record{Algorithm: hwkey.HMACSHA256, Label: label}, secret)
}

// ImportHMAC stores a secret of 16 to 128 bytes. See hwkey.HMACKeystore.
func (ks *Keystore) ImportHMAC(ctx context.Context, secret []byte, label string) (hwkey.HMACKey, error) {
	if err := keydir.CheckSecret(secret); err != nil {
		return nil, fmt.Errorf("limpet: softkey: %w", err)
	}
	return ks.storeHMAC(ctx, &record{Algorithm: hwkey.HMACSHA256, Label: label, Imported: true}, secret)
}

func (ks *Keystore) storeHMAC(ctx context.Context, r *record, secret []byte) (hwkey.HMACKey, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := ks.store(r, secret); err != nil {
		return nil, err
	}
	held := bytes.Clone(secret)
	return &hmacKey{info: r.info(), secret: &held}, nil
}

// LoadHMAC returns a stored HMAC key. See hwkey.HMACKeystore. A file that is
// damaged, was changed or belongs to another directory gives hwkey.ErrLost.
func (ks *Keystore) LoadHMAC(ctx context.Context, id string) (hwkey.HMACKey, error) {
	r, secret, err := ks.read(ctx, id)
	if err != nil {
		return nil, err
	}
	if r.Algorithm != hwkey.HMACSHA256 {
		clear(secret)
		return nil, fmt.Errorf("limpet: softkey: %w: %s is a key that signs (%s) and not an HMAC key: Load loads it", hwkey.ErrUnsupported, id, r.Algorithm)
	}
	if keydir.CheckSecret(secret) != nil {
		clear(secret)
		return nil, ks.damaged(id, errors.New("its key is not of the algorithm it names"))
	}
	return &hmacKey{info: r.info(), secret: &secret}, nil
}

// hmacKey is a secret in memory. It prints as its public description, never as
// the secret.
type hmacKey struct {
	info hwkey.Info

	mu     sync.RWMutex
	secret *[]byte // nil once closed; a pointer, because fmt prints a field of another struct without asking Format, but no deeper than that
}

func (k *hmacKey) Info() hwkey.Info { return k.info }

func (k *hmacKey) String() string {
	return fmt.Sprintf("softkey %s (%s)", k.info.ID, k.info.Algorithm)
}

// Format is String for every verb: some show what fields hold.
func (k *hmacKey) Format(f fmt.State, _ rune) { io.WriteString(f, k.String()) }

// LogValue is String: no log shows the secret.
func (k *hmacKey) LogValue() slog.Value { return slog.StringValue(k.String()) }

func (k *hmacKey) HMAC(ctx context.Context, message []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if len(message) > hwkey.MaxHMACMessage {
		return nil, fmt.Errorf("limpet: softkey: a message of %d bytes, at most %d are allowed: hash it first", len(message), hwkey.MaxHMACMessage)
	}
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.secret == nil {
		return nil, errors.New("limpet: softkey: the key is closed")
	}
	mac := hmac.New(sha256.New, *k.secret)
	mac.Write(message)
	return mac.Sum(nil), nil
}

// Close wipes the secret.
func (k *hmacKey) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.secret != nil {
		clear(*k.secret)
		k.secret = nil
	}
	return nil
}
