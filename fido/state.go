package fido

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/fxamacker/cbor/v2"

	"github.com/limpet-auth/limpet/internal/private"
)

// state is what the token keeps in its file.
type state struct {
	Credentials []*stored `cbor:"1,keyasint,omitempty"` // oldest first
	AlwaysUV    bool      `cbor:"2,keyasint,omitempty"`
	MinPIN      int       `cbor:"3,keyasint,omitempty"` // 0 for minPIN
	MinPINRPs   []string  `cbor:"4,keyasint,omitempty"` // who are told it
	ForceChange bool      `cbor:"5,keyasint,omitempty"`
	PINLength   int       `cbor:"6,keyasint,omitempty"`
	Blobs       []byte    `cbor:"7,keyasint,omitempty"` // nil for noBlobs
}

// stored is a discoverable credential. It is never changed, but replaced.
type stored struct {
	ID          []byte `cbor:"1,keyasint"`
	RPID        string `cbor:"2,keyasint"`
	RPName      string `cbor:"3,keyasint,omitempty"`
	UserID      []byte `cbor:"4,keyasint"`
	Name        string `cbor:"5,keyasint,omitempty"`
	DisplayName string `cbor:"6,keyasint,omitempty"`
	Point       []byte `cbor:"7,keyasint"` // x and y of the public key
	Blob        []byte `cbor:"8,keyasint,omitempty"`
	BlobKey     []byte `cbor:"9,keyasint,omitempty"`
}

func (s *stored) rpHash() [32]byte { return sha256.Sum256([]byte(s.RPID)) }

func (s *stored) user(names bool) map[string]any {
	u := map[string]any{"id": s.UserID}
	if names && s.Name != "" {
		u["name"] = s.Name
	}
	if names && s.DisplayName != "" {
		u["displayName"] = s.DisplayName
	}
	return u
}

func (s *state) minPIN() int { return max(s.MinPIN, minPIN) }

// find returns the place of a credential, -1 if it is not there.
func (s *state) find(id []byte) int {
	return slices.IndexFunc(s.Credentials, func(c *stored) bool { return string(c.ID) == string(id) })
}

const maxFile = 8 << 20

// load reads the file. One that the vault cannot open any more, because it has been
// reset or is another than before, is put aside: what was in it works no more.
func (t *Token) load(ctx context.Context) error {
	fi, err := os.Stat(t.file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("limpet: fido: %w", err)
	}
	if fi.Size() > maxFile {
		return fmt.Errorf("limpet: fido: %s is too long", t.file)
	}
	sealed, err := os.ReadFile(t.file)
	if err != nil {
		return fmt.Errorf("limpet: fido: %w", err)
	}
	plain, err := t.vault.Open(ctx, sealed)
	if errors.Is(err, ErrNoKey) {
		return t.putAside()
	}
	if err == nil {
		err = cbor.Unmarshal(plain, &t.state)
	}
	if err != nil {
		return fmt.Errorf("limpet: fido: %s: %w", t.file, err)
	}
	return nil
}

const maxAside = 100 // files

// putAside renames the file. Others that were put aside stay: it may have been the
// vault that was wrong, and not they.
func (t *Token) putAside() error {
	for n := 1; n <= maxAside; n++ {
		aside := t.file + ".worthless"
		if n > 1 {
			aside += fmt.Sprintf(".%d", n)
		}
		_, err := os.Lstat(aside)
		if err == nil {
			continue
		}
		if errors.Is(err, fs.ErrNotExist) {
			t.log.Warn("limpet: fido: the credentials were sealed by another vault, or before a reset: they are put aside", "file", aside)
			err = os.Rename(t.file, aside)
		}
		if err != nil {
			return fmt.Errorf("limpet: fido: %w", err)
		}
		return nil
	}
	return fmt.Errorf("limpet: fido: %s was sealed by another vault, or before a reset, and %d such files are there already: delete those that nobody needs", t.file, maxAside)
}

// save makes next the state, in the file first.
func (t *Token) save(ctx context.Context, next state) error {
	sealed, err := t.vault.Seal(ctx, encode(next))
	if err == nil {
		err = private.Write(t.file, sealed)
	}
	if err != nil {
		return fmt.Errorf("limpet: fido: %w", err)
	}
	t.state = next
	return nil
}
