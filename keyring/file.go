package keyring

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/limpet-auth/limpet/internal/private"
)

const (
	maxFile     = 64 << 20 // bytes
	fileVersion = 1
)

// file is what lies on the disk.
type file struct {
	Version int      `json:"version"`
	Keys    []record `json:"keys"`
}

type record struct {
	ID      string    `json:"id"`
	Version int       `json:"version"`
	Created time.Time `json:"created"`

	// One of these.
	Secret string `json:"secret,omitempty"` // base64url
	TPM    string `json:"tpm,omitempty"`    // TSS2 private key, PEM
	Public string `json:"public,omitempty"` // SubjectPublicKeyInfo, base64url
}

// ErrNotFound means that a peer has no key.
var ErrNotFound = errors.New("limpet: keyring: no key of that name")

// CheckID tells what is wrong with a peer's name: it is 1 to 128 letters,
// digits and -._@:/+=.
func CheckID(id string) error { return prefix(checkID(id)) }

func checkID(id string) error {
	if id == "" || len(id) > MaxID {
		return fmt.Errorf("a name of %d bytes, want 1 to %d", len(id), MaxID)
	}
	for i := range len(id) {
		c := id[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || bytes.IndexByte([]byte("-._@:/+="), c) >= 0 {
			continue
		}
		return errors.New("a name with other characters than letters, digits and -._@:/+=")
	}
	return nil
}

// CheckSecret tells what is wrong with a shared secret.
func CheckSecret(secret []byte) error { return prefix(checkSecret(secret)) }

func checkSecret(secret []byte) error {
	if len(secret) < MinSecret {
		return fmt.Errorf("a secret of %d bits can be guessed: at least 128 are wanted, 256 are better", 8*len(secret))
	}
	if len(secret) > MaxSecret {
		return fmt.Errorf("a secret of %d bytes, want at most %d", len(secret), MaxSecret)
	}
	if bytes.Count(secret, secret[:1]) == len(secret) {
		return errors.New("a secret that is one byte repeated")
	}
	return nil
}

func readFile(path string) ([]*Key, error) {
	if err := private.OwnerOnly(path); err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	defer clear(data)
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s is larger than %d MiB", path, maxFile>>20)
	}
	keys, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return keys, nil
}

func parse(data []byte) ([]*Key, error) {
	var f file
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	err := d.Decode(&f)
	if _, end := d.Token(); err != nil || end != io.EOF {
		return nil, errors.New("it is not a file of keys") // the error could quote a secret
	}
	if f.Version != fileVersion {
		return nil, fmt.Errorf("its version %d is not known", f.Version)
	}
	keys := make([]*Key, 0, len(f.Keys))
	counts := make(map[string]int)
	versions := make(map[string]bool)
	for _, r := range f.Keys {
		k, err := r.key()
		if err != nil {
			return nil, err
		}
		name := fmt.Sprintf("%s %d", k.ID, k.Version)
		if counts[k.ID]++; counts[k.ID] > live || versions[name] {
			return nil, fmt.Errorf("%s has more than %d keys, or two of one version", k.ID, live)
		}
		versions[name] = true
		keys = append(keys, k)
	}
	return keys, nil
}

func (r *record) key() (*Key, error) {
	if err := checkID(r.ID); err != nil {
		return nil, err
	}
	if r.Version < 1 {
		return nil, fmt.Errorf("%s has a key of version %d", r.ID, r.Version)
	}
	k := &Key{ID: r.ID, Version: r.Version, Created: r.Created}
	switch {
	case r.Secret != "" && r.TPM == "" && r.Public == "":
		secret, err := base64.RawURLEncoding.DecodeString(r.Secret)
		if err != nil {
			return nil, fmt.Errorf("the secret of %s is not base64url", r.ID)
		}
		if err := checkSecret(secret); err != nil {
			return nil, fmt.Errorf("%s: %w", r.ID, err)
		}
		k.Secret = secret
	case r.TPM != "" && r.Secret == "" && r.Public == "":
		k.tpm = []byte(r.TPM)
	case r.Public != "" && r.Secret == "" && r.TPM == "":
		der, err := base64.RawURLEncoding.DecodeString(r.Public)
		if err != nil {
			return nil, fmt.Errorf("the public key of %s is not base64url", r.ID)
		}
		if k.Public, err = parsePublic(der); err != nil {
			return nil, fmt.Errorf("%s: %w", r.ID, err)
		}
	default:
		return nil, fmt.Errorf("%s has not one key in one entry", r.ID)
	}
	return k, nil
}

// ParsePublic reads a public key on P-256 from its SubjectPublicKeyInfo, in DER.
func ParsePublic(der []byte) (*ecdsa.PublicKey, error) {
	key, err := parsePublic(der)
	return key, prefix(err)
}

func parsePublic(der []byte) (*ecdsa.PublicKey, error) {
	key, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, errors.New("it is no public key")
	}
	public, ok := key.(*ecdsa.PublicKey)
	if !ok {
		return nil, errPublic
	}
	return public, checkPublic(public)
}

var errPublic = errors.New("the public key is not on P-256")

func checkPublic(key *ecdsa.PublicKey) error {
	if key.Curve != elliptic.P256() {
		return errPublic
	}
	if _, err := key.Bytes(); err != nil {
		return errPublic
	}
	return nil
}

func (k *Key) record() (record, error) {
	r := record{ID: k.ID, Version: k.Version, Created: k.Created, TPM: string(k.tpm)}
	if k.Secret != nil {
		r.Secret = base64.RawURLEncoding.EncodeToString(k.Secret)
	}
	if k.Public != nil {
		der, err := x509.MarshalPKIXPublicKey(k.Public)
		if err != nil {
			return r, err
		}
		r.Public = base64.RawURLEncoding.EncodeToString(der)
	}
	return r, nil
}

// List is the keys of a file that is being edited.
type List struct {
	Keys []*Key // by name, newest first
}

// TPMKey returns a key for [List.Add] whose secret is in the server's TPM, given
// its TSS2 private key in PEM.
func TPMKey(pem []byte) *Key { return &Key{tpm: bytes.Clone(pem)} }

// Add gives a peer its first key, of which Secret, Public or nothing is set (see
// [TPMKey]). The list keeps a copy.
func (l *List) Add(id string, k *Key) error {
	if err := check(id, k); err != nil {
		return prefix(err)
	}
	if len(l.of(id)) > 0 {
		return fmt.Errorf("limpet: keyring: %s has a key: rotate it, or revoke it first", id)
	}
	l.put(id, 1, k)
	return nil
}

// Rotate gives a peer its next key. The one before stays good, until the next
// rotation or [List.Retire]; one before that is dropped.
func (l *List) Rotate(id string, k *Key) error {
	if err := check(id, k); err != nil {
		return prefix(err)
	}
	of := l.of(id)
	if len(of) == 0 {
		return fmt.Errorf("%w: %s", ErrNotFound, id)
	}
	newest := of[0]
	l.keep(func(other *Key) bool { return other.ID != id || other == newest })
	l.put(id, newest.Version+1, k)
	return nil
}

// Retire drops all of a peer's keys but the newest.
func (l *List) Retire(id string) error {
	of := l.of(id)
	if len(of) == 0 {
		return fmt.Errorf("%w: %s", ErrNotFound, id)
	}
	l.keep(func(other *Key) bool { return other.ID != id || other == of[0] })
	return nil
}

// Revoke drops all of a peer's keys.
func (l *List) Revoke(id string) error {
	if len(l.of(id)) == 0 {
		return fmt.Errorf("%w: %s", ErrNotFound, id)
	}
	l.keep(func(other *Key) bool { return other.ID != id })
	return nil
}

func (l *List) of(id string) (of []*Key) {
	for _, k := range l.Keys {
		if k.ID == id {
			of = append(of, k)
		}
	}
	newestFirst(of)
	return of
}

func (l *List) keep(good func(*Key) bool) {
	l.Keys = slices.DeleteFunc(l.Keys, func(k *Key) bool { return !good(k) })
}

func (l *List) put(id string, version int, k *Key) {
	l.Keys = append(l.Keys, &Key{ID: id, Version: version, Created: time.Now().UTC().Truncate(time.Second),
		Secret: bytes.Clone(k.Secret), Public: k.Public, tpm: k.tpm})
}

// check tells what is wrong with a new key of a peer.
func check(id string, k *Key) error {
	if err := checkID(id); err != nil {
		return err
	}
	switch {
	case k.Public != nil && (k.Secret != nil || k.tpm != nil) || k.tpm != nil && k.Secret != nil:
		return errors.New("two keys in one")
	case k.Public != nil:
		return checkPublic(k.Public)
	case k.tpm != nil && len(k.tpm) == 0:
		return errors.New("a key in the TPM without its PEM")
	case k.tpm != nil:
		return nil
	}
	return checkSecret(k.Secret)
}

// Edit changes a file of keys, which it makes if there is none. No other Edit
// comes between, on Unix and Windows; servers see the file before or after. If
// change fails, the file stays as it was. Its owner stays too, and a symbolic link
// to it stays one.
func Edit(path string, change func(*List) error) error {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target // the servers may know the file by another name
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return prefix(err)
	}
	lock, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return prefix(err)
	}
	defer lock.Close() // and with it the lock
	if err := exclusively(lock); err != nil {
		return prefix(fmt.Errorf("locking %s: %w", path, err))
	}
	if err := keepOwner(lock, path); err != nil {
		return prefix(err)
	}
	var l List
	if l.Keys, err = readFile(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return prefix(err)
	}
	if err := change(&l); err != nil {
		return err
	}
	return prefix(l.write(path))
}

func (l *List) write(path string) error {
	f := file{Version: fileVersion, Keys: make([]record, 0, len(l.Keys))}
	slices.SortStableFunc(l.Keys, byName)
	for _, k := range l.Keys {
		r, err := k.record()
		if err != nil {
			return err
		}
		f.Keys = append(f.Keys, r)
	}
	data, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	data = append(data, '\n')
	defer clear(data)
	if len(data) > maxFile {
		return fmt.Errorf("the keys are more than %d MiB", maxFile>>20)
	}
	if _, err := parse(data); err != nil { // of what a change did by itself
		return err
	}
	return replace(path, data)
}

// Read returns the keys of a file, by name, newest first.
func Read(path string) (*List, error) {
	keys, err := readFile(path)
	if err != nil {
		return nil, prefix(err)
	}
	slices.SortStableFunc(keys, byName)
	return &List{Keys: keys}, nil
}

func byName(a, b *Key) int {
	if a.ID != b.ID {
		if a.ID < b.ID {
			return -1
		}
		return 1
	}
	return b.Version - a.Version
}

// replace writes a file that only its owner can read, whole or not at all. The
// caller has it locked.
func replace(path string, data []byte) error {
	unfinished := path + ".new" // one name, so that what a killed program left goes with the next edit
	if err := os.Remove(unfinished); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(unfinished, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = keepOwner(f, path) // while there is nothing in it yet
	if err == nil {
		_, err = f.Write(data)
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(unfinished, path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path)) // else a power cut could bring a revoked key back
	}
	if err != nil {
		os.Remove(unfinished)
	}
	return err
}

func prefix(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("limpet: keyring: %w", err)
}
