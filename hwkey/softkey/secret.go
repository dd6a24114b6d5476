package softkey

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"

	"golang.org/x/crypto/argon2"

	"github.com/limpet-auth/limpet/hwkey/internal/keydir"
	"github.com/limpet-auth/limpet/internal/private"
)

var (
	// ErrWrongSecret means that the passphrase is wrong, or that the Secret
	// Service or the key file holds the key of another directory. The keys are
	// not lost.
	ErrWrongSecret = errors.New("softkey: the passphrase or key does not fit this directory")

	// ErrOtherSecret means that the directory was made with another kind of
	// secret than the one it was opened with.
	ErrOtherSecret = errors.New("softkey: the directory is locked in another way")
)

// Secret is where the key to a directory comes from. It never prints what it
// holds.
type Secret struct {
	kind kind

	// get returns the 32-byte key of the directory whose header is h. create
	// means that h is new: get may add to it and store what it must.
	get func(ctx context.Context, dir string, h *header, create bool) ([]byte, error)
}

// kind names a secret in the header of a directory.
type kind string

const (
	passphraseKind    kind = "passphrase"
	secretServiceKind kind = "secret-service"
	keyFileKind       kind = "key-file"
)

func (k kind) words() string {
	switch k {
	case passphraseKind:
		return "a passphrase"
	case secretServiceKind:
		return "the desktop's Secret Service"
	case keyFileKind:
		return "a key file"
	}
	return "something this version does not know"
}

// String says what kind of secret it is.
func (s Secret) String() string { return s.kind.words() }

// GoString is String: no verb prints the secret.
func (s Secret) GoString() string { return s.String() }

// LogValue is String: no log shows the secret.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// Passphrase derives the key with Argon2id (RFC 9106). This takes 64 MiB and
// some tenths of a second, once for each Open. The keystore does not keep the
// passphrase; the caller may clear it after Open.
func Passphrase(passphrase []byte) Secret {
	return Secret{passphraseKind, func(_ context.Context, _ string, h *header, create bool) ([]byte, error) {
		if len(passphrase) == 0 {
			return nil, errors.New("the passphrase is empty")
		}
		if create {
			// RFC 9106, section 4: the second recommended option.
			h.Argon2id = &argon2id{Salt: make([]byte, 16), Time: 3, Memory: 64 << 10, Threads: 4}
			rand.Read(h.Argon2id.Salt)
		}
		a := h.Argon2id
		if err := a.check(); err != nil {
			return nil, err
		}
		return argon2.IDKey(passphrase, a.Salt, a.Time, a.Memory, a.Threads, keySize), nil
	}}
}

// KeyFile reads the key from a file of 32 random bytes that only its owner can
// read, and makes it with a new directory. An empty path means the file
// "unlock.key" in the directory itself.
//
// This is for machines with neither a person to type a passphrase nor a Secret
// Service. It protects against a copy of the one file without the other: a
// backup of the keys, say, that leaves the key file out. Whoever can read both
// files has the keys.
func KeyFile(path string) Secret {
	return Secret{keyFileKind, func(_ context.Context, dir string, _ *header, create bool) ([]byte, error) {
		path := path
		if path == "" {
			path = filepath.Join(dir, "unlock.key")
		}
		if create {
			key := make([]byte, keySize)
			rand.Read(key)
			err := keydir.Dir{Name: filepath.Dir(path)}.WriteNew(filepath.Base(path), key)
			if err == nil {
				return key, nil
			}
			if !errors.Is(err, fs.ErrExist) {
				return nil, err
			}
		}
		return readKeyFile(path)
	}}
}

func readKeyFile(path string) ([]byte, error) {
	if err := private.OwnerOnly(path); err != nil {
		return nil, err
	}
	key, err := keydir.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if len(key) != keySize {
		return nil, fmt.Errorf("the key file %s has %d bytes, want %d", path, len(key), keySize)
	}
	return key, nil
}

const (
	keySize    = 32
	headerName = "keystore.json"
	checkText  = "limpet softkey header 1" // sealed in the header: tells a wrong secret from a damaged file
)

// header is the file that says how a directory is locked.
type header struct {
	Version  int       `json:"version"` // 1
	Kind     kind      `json:"unlocked_by"`
	ID       string    `json:"id"` // random; names the directory in the Secret Service
	Argon2id *argon2id `json:"argon2id,omitempty"`
	Nonce    []byte    `json:"nonce"`
	Check    []byte    `json:"check"` // checkText sealed with the directory's key
}

// argon2id are the parameters of RFC 9106.
type argon2id struct {
	Salt    []byte `json:"salt"`
	Time    uint32 `json:"time"`       // passes
	Memory  uint32 `json:"memory_kib"` // KiB
	Threads uint8  `json:"threads"`
}

// check bounds what a changed header can make us spend, and how weak it can
// make a derivation.
func (a *argon2id) check() error {
	if a == nil || len(a.Salt) < 16 || len(a.Salt) > 64 || a.Time < 1 || a.Time > 16 ||
		a.Memory < 8<<10 || a.Memory > 1<<20 || a.Threads < 1 || a.Threads > 16 {
		return errors.New("the Argon2id parameters are out of bounds")
	}
	return nil
}

// unlock returns the cipher of the files in dir. It makes the header if there
// is none.
func unlock(ctx context.Context, dir keydir.Dir, secret Secret) (cipher.AEAD, error) {
	if secret.get == nil {
		return nil, errors.New("no secret given")
	}
	h, err := readHeader(dir.Name)
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeHeader(ctx, dir, secret); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		h, err = readHeader(dir.Name) // ours, or that of a process that was faster
	}
	if err != nil {
		return nil, err
	}
	if h.Kind != secret.kind {
		return nil, fmt.Errorf("%w: %s was made with %s, not %s", ErrOtherSecret, dir.Name, h.Kind.words(), secret)
	}
	key, err := secret.get(ctx, dir.Name, h, false)
	if err != nil {
		return nil, err
	}
	aead := newAEAD(key)
	if len(h.Nonce) != aead.NonceSize() {
		return nil, damaged(dir.Name)
	}
	if _, err := aead.Open(nil, h.Nonce, h.Check, []byte(checkText)); err != nil {
		return nil, fmt.Errorf("%w: %s", ErrWrongSecret, dir.Name)
	}
	return aead, nil
}

func makeHeader(ctx context.Context, dir keydir.Dir, secret Secret) error {
	ids, err := dir.IDs()
	if err != nil {
		return err
	}
	if len(ids) > 0 {
		return fmt.Errorf("%w; without it its %d keys cannot be opened", damaged(dir.Name), len(ids))
	}
	h := &header{Version: 1, Kind: secret.kind, ID: keydir.NewID()}
	key, err := secret.get(ctx, dir.Name, h, true)
	if err != nil {
		return err
	}
	aead := newAEAD(key)
	h.Nonce = make([]byte, aead.NonceSize())
	rand.Read(h.Nonce)
	h.Check = aead.Seal(nil, h.Nonce, nil, []byte(checkText))
	data, err := json.MarshalIndent(h, "", "  ")
	if err != nil {
		return err
	}
	return dir.WriteNew(headerName, append(data, '\n'))
}

func readHeader(dir string) (*header, error) {
	data, err := keydir.ReadFile(filepath.Join(dir, headerName))
	if err != nil {
		return nil, err
	}
	var h header
	if err := json.Unmarshal(data, &h); err != nil {
		return nil, damaged(dir)
	}
	if h.Version != 1 {
		return nil, fmt.Errorf("%s has version %d, which this program does not know", filepath.Join(dir, headerName), h.Version)
	}
	if !keydir.ValidID(h.ID) || !slices.Contains([]kind{passphraseKind, secretServiceKind, keyFileKind}, h.Kind) {
		return nil, damaged(dir)
	}
	return &h, nil
}

func damaged(dir string) error {
	return fmt.Errorf("%s is missing or damaged: restore it, or remove %s and log in again", filepath.Join(dir, headerName), dir)
}

// newAEAD returns AES-256-GCM and clears key.
func newAEAD(key []byte) cipher.AEAD {
	block, err := aes.NewCipher(key)
	clear(key)
	if err != nil {
		panic(err) // key has keySize bytes
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err) // AES has the right block size
	}
	return aead
}
