// Package softkey keeps device keys and HMAC keys in encrypted files. It is the
// degraded level, hwkey.Software: for machines without a security chip, or
// where the chip cannot be used.
//
// The private keys and secrets lie in a directory that only its owner can read, each in a
// file of its own, sealed with AES-256-GCM. The key to the files comes from one
// [Secret]: a passphrase, the desktop's Secret Service, or a key file. A copy of
// the files without the secret is worthless. Unlike a hardware key, a copy with
// the secret is as good as the original, and while the keystore is open the
// keys are in the process's memory.
package softkey

import (
	"cmp"
	"context"
	"crypto"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/hwkey/internal/keydir"
)

const detail = "file" // hwkey.Info.Detail of every key

// Keystore keeps keys as encrypted files in one directory. Other processes may
// have the same directory open.
type Keystore struct {
	dir  keydir.Dir
	aead cipher.AEAD
}

// Open opens the keystore in dir with its secret. If dir holds none yet, Open
// makes one that this secret opens from then on. An empty dir means
// $XDG_STATE_HOME/limpet/keys/soft, with the default of ~/.local/state.
//
// The error is ErrWrongSecret if the secret is of the right kind and does not
// fit, ErrOtherSecret if the directory was made with another kind of secret.
// ctx bounds the wait for the Secret Service and its prompt.
func Open(ctx context.Context, dir string, secret Secret) (*Keystore, error) {
	if dir == "" {
		state, err := keydir.State()
		if err != nil {
			return nil, fmt.Errorf("limpet: softkey: no directory for the keys: %w", err)
		}
		dir = filepath.Join(state, "keys", "soft")
	}
	ks := &Keystore{dir: keydir.Dir{Name: dir, Ext: ".softkey"}}
	var err error
	if ks.aead, err = unlock(ctx, ks.dir, secret); err != nil {
		return nil, fmt.Errorf("limpet: softkey: %w", err)
	}
	return ks, nil
}

// Candidate returns the keystore in dir for hwkey.Auto. A directory that exists
// is opened with the secret of its kind; a new one is made with the first of
// the secrets that works. Without secrets, they are SecretService and KeyFile.
func Candidate(dir string, secrets ...Secret) hwkey.Candidate {
	if len(secrets) == 0 {
		secrets = []Secret{SecretService(), KeyFile("")}
	}
	return hwkey.Candidate{
		Name:  "encrypted file",
		Level: hwkey.Software,
		Open: func(ctx context.Context) (hwkey.Keystore, string, error) {
			var errs []error
			for _, secret := range secrets {
				ks, err := Open(ctx, dir, secret)
				if err == nil {
					return ks, fmt.Sprintf("%s, unlocked by %s", ks.dir.Name, secret), nil
				}
				errs = append(errs, err)
				if errors.Is(err, ErrWrongSecret) {
					break // the directory is of this kind, no other secret opens it
				}
			}
			return nil, "", errors.Join(errs...)
		},
	}
}

// record is what one file holds. All but the sealed part is readable without
// the secret, and authenticated by it.
type record struct {
	Version   int             `json:"version"` // 1
	ID        string          `json:"id"`
	Algorithm hwkey.Algorithm `json:"algorithm"`
	Label     string          `json:"label,omitempty"`
	Created   int64           `json:"created"` // Unix time, s
	Imported  bool            `json:"imported,omitempty"`
	Nonce     []byte          `json:"nonce"`
	Sealed    []byte          `json:"sealed"` // AES-256-GCM; PKCS #8, or of an HMAC key the secret itself
}

func (r *record) info() hwkey.Info {
	return hwkey.Info{ID: r.ID, Level: hwkey.Software, Detail: detail, Algorithm: r.Algorithm, Label: r.Label,
		Created: time.Unix(r.Created, 0), Imported: r.Imported}
}

// associated returns the associated data of the sealed part: every other field,
// each with its length, so that no two records share it.
func (r *record) associated() []byte {
	b := []byte("limpet softkey 1")
	for _, field := range []string{r.ID, string(r.Algorithm), r.Label} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(field)))
		b = append(b, field...)
	}
	b = binary.BigEndian.AppendUint64(b, uint64(r.Created))
	if r.Imported {
		b = append(b, "imported"...)
	}
	return b
}

func parseRecord(id string, data []byte) (*record, error) {
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, errors.New("it is not a key file")
	}
	if r.Version != 1 {
		return nil, fmt.Errorf("its version %d is not known", r.Version)
	}
	if r.ID != id {
		return nil, errors.New("it was made under another name")
	}
	if err := keydir.CheckLabel(r.Label); err != nil {
		return nil, err
	}
	return &r, nil
}

// Create makes a new key. See hwkey.Keystore.
func (ks *Keystore) Create(ctx context.Context, opts hwkey.CreateOptions) (hwkey.Key, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	alg := cmp.Or(opts.Algorithm, hwkey.ECDSAP256)
	signer, err := generate(alg)
	if err != nil {
		return nil, fmt.Errorf("limpet: softkey: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(signer)
	if err != nil {
		return nil, fmt.Errorf("limpet: softkey: %w", err)
	}
	defer clear(der)
	r := record{Algorithm: alg, Label: opts.Label}
	if err := ks.store(&r, der); err != nil {
		return nil, err
	}
	return newKey(r.info(), signer), nil
}

// store completes a new record, seals what is secret in it and writes its file.
func (ks *Keystore) store(r *record, secret []byte) error {
	if err := keydir.CheckLabel(r.Label); err != nil {
		return fmt.Errorf("limpet: softkey: %w", err)
	}
	r.Version, r.ID, r.Created = 1, keydir.NewID(), time.Now().Unix()
	r.Nonce = make([]byte, ks.aead.NonceSize())
	rand.Read(r.Nonce)
	r.Sealed = ks.aead.Seal(nil, r.Nonce, secret, r.associated())
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("limpet: softkey: %w", err)
	}
	if err := ks.dir.Write(r.ID, append(data, '\n')); err != nil {
		return fmt.Errorf("limpet: softkey: storing the key: %w", err)
	}
	return nil
}

func generate(alg hwkey.Algorithm) (crypto.Signer, error) {
	switch alg {
	case hwkey.ECDSAP256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case hwkey.RSA2048:
		return rsa.GenerateKey(rand.Reader, 2048)
	case hwkey.Ed25519:
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	case hwkey.HMACSHA256:
		return nil, fmt.Errorf("%w: an HMAC key does not sign: CreateHMAC makes it", hwkey.ErrUnsupported)
	}
	return nil, hwkey.ErrUnsupported
}

// Load returns a stored key. See hwkey.Keystore. A file that is damaged, was
// changed or belongs to another directory gives hwkey.ErrLost.
func (ks *Keystore) Load(ctx context.Context, id string) (hwkey.Key, error) {
	r, der, err := ks.read(ctx, id)
	if err != nil {
		return nil, err
	}
	defer clear(der)
	if r.Algorithm == hwkey.HMACSHA256 {
		return nil, fmt.Errorf("limpet: softkey: %w: %s is an HMAC key and does not sign: LoadHMAC loads it", hwkey.ErrUnsupported, id)
	}
	signer, err := r.signer(der)
	if err != nil {
		return nil, ks.damaged(id, err)
	}
	return newKey(r.info(), signer), nil
}

// read returns the record of a key and, unsealed, what is secret in it. The
// caller clears that.
func (ks *Keystore) read(ctx context.Context, id string) (*record, []byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	data, err := ks.dir.Read(id)
	if err != nil {
		return nil, nil, fmt.Errorf("limpet: softkey: loading a key: %w", err)
	}
	r, err := parseRecord(id, data)
	if err != nil {
		return nil, nil, ks.damaged(id, err)
	}
	secret, err := ks.open(r)
	if err != nil {
		return nil, nil, ks.damaged(id, err)
	}
	return r, secret, nil
}

func (ks *Keystore) damaged(id string, err error) error {
	return fmt.Errorf("limpet: softkey: %w: %s is damaged: %w", hwkey.ErrLost, ks.dir.Path(id), err)
}

// open unseals what is secret in a record and proves the rest of it genuine.
func (ks *Keystore) open(r *record) ([]byte, error) {
	if len(r.Nonce) != ks.aead.NonceSize() {
		return nil, errors.New("its nonce has the wrong size")
	}
	secret, err := ks.aead.Open(nil, r.Nonce, r.Sealed, r.associated())
	if err != nil {
		return nil, errors.New("its contents were changed")
	}
	return secret, nil
}

// signer returns the private key in der if it is of the record's algorithm.
func (r *record) signer(der []byte) (crypto.Signer, error) {
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, errors.New("it holds no private key")
	}
	switch key := key.(type) {
	case *ecdsa.PrivateKey:
		if r.Algorithm == hwkey.ECDSAP256 && key.Curve == elliptic.P256() {
			return key, nil
		}
	case *rsa.PrivateKey:
		if r.Algorithm == hwkey.RSA2048 && key.N.BitLen() == 2048 {
			return key, nil
		}
	case ed25519.PrivateKey:
		if r.Algorithm == hwkey.Ed25519 {
			return key, nil
		}
	}
	return nil, errors.New("its key is not of the algorithm it names")
}

// List describes all keys, oldest first. A damaged file is listed with its ID
// alone.
func (ks *Keystore) List(ctx context.Context) ([]hwkey.Info, error) {
	ids, err := ks.dir.IDs()
	if err != nil {
		return nil, fmt.Errorf("limpet: softkey: listing the keys: %w", err)
	}
	var infos []hwkey.Info
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		data, err := ks.dir.Read(id)
		if errors.Is(err, hwkey.ErrNotFound) {
			continue // deleted meanwhile
		}
		info := hwkey.Info{ID: id, Level: hwkey.Software, Detail: detail}
		if err == nil {
			if r, err := parseRecord(id, data); err == nil {
				info = r.info()
			}
		}
		infos = append(infos, info)
	}
	slices.SortFunc(infos, func(a, b hwkey.Info) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID))
	})
	return infos, ctx.Err()
}

// Delete removes a key's file. See hwkey.Keystore. Keys that are loaded go on
// signing until they are closed.
func (ks *Keystore) Delete(ctx context.Context, id string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := ks.dir.Remove(id); err != nil {
		return fmt.Errorf("limpet: softkey: deleting a key: %w", err)
	}
	return nil
}

// key is a private key in memory. It prints as its public description, never
// as the key.
type key struct {
	info   hwkey.Info
	public crypto.PublicKey
	signer atomic.Pointer[crypto.Signer] // nil once closed
}

func newKey(info hwkey.Info, signer crypto.Signer) *key {
	k := &key{info: info, public: signer.Public()}
	k.signer.Store(&signer)
	return k
}

func (k *key) Info() hwkey.Info         { return k.info }
func (k *key) Public() crypto.PublicKey { return k.public }
func (k *key) String() string           { return fmt.Sprintf("softkey %s (%s)", k.info.ID, k.info.Algorithm) }

// Close forgets the private key.
func (k *key) Close() error {
	k.signer.Store(nil)
	return nil
}

func (k *key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	signer := k.signer.Load()
	if signer == nil {
		return nil, errors.New("limpet: softkey: the key is closed")
	}
	hash := crypto.SHA256
	if k.info.Algorithm == hwkey.Ed25519 {
		hash = crypto.Hash(0)
	}
	if opts != nil && opts.HashFunc() != hash {
		return nil, fmt.Errorf("limpet: softkey: %s signs with %v, not with %v", k.info.Algorithm, hash, opts.HashFunc())
	}
	if hash != 0 && len(digest) != hash.Size() {
		return nil, fmt.Errorf("limpet: softkey: a digest of %d bytes, want %d", len(digest), hash.Size())
	}
	opts = hash
	if k.info.Algorithm == hwkey.RSA2048 {
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash}
	}
	sig, err := (*signer).Sign(rand.Reader, digest, opts)
	if err != nil {
		return nil, fmt.Errorf("limpet: softkey: signing: %w", err)
	}
	return sig, nil
}
