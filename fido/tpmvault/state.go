package tpmvault

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/limpet-auth/limpet/internal/private"
)

const (
	stateFile = "tpm.json"
	lockFile  = "tpm.lock"
	maxState  = 64 << 10 // bytes
)

// state is what the vault's file holds: keys that the TPM encrypted, and nothing
// secret. It is written before each step that the TPM cannot undo, so that
// whatever ends the program leaves a file that fits the TPM.
type state struct {
	Version    int    `json:"version"` // 1
	SRK        []byte `json:"srk"`     // name of the storage key that all is under
	Generation uint64 `json:"generation"`
	Joined     bool   `json:"joined,omitempty"` // the generation was there before: other files may be of it
	CountBase  uint64 `json:"countBase"`        // of the NV counter, when the vault was first made

	UP   blob      `json:"up"`   // parent of keys that anybody may use
	Root blob      `json:"root"` // HMAC key under it: what the vault's own keys derive from
	PIN  *pinState `json:"pin,omitempty"`

	// Resetting: the generation may have ended already.
	Resetting bool `json:"resetting,omitempty"`
}

// pinState is the PIN's. Without a parent in Current it is only about to be set.
type pinState struct {
	// Lockout: this TPM has no PIN index, tries count towards its lockout.
	Lockout bool       `json:"lockout,omitempty"`
	Current pinParent  `json:"current"`
	Next    *pinParent `json:"next,omitempty"` // a change that may or may not have reached the TPM
}

// pinParent is the parent of keys that need the PIN.
type pinParent struct {
	Salt   []byte `json:"salt"` // makes the PIN an authValue
	Parent blob   `json:"parent"`
	Probe  blob   `json:"probe"` // key under it that proves the PIN
}

func (s *state) pinSet() bool { return s.PIN != nil && s.PIN.Current.Parent.Private != nil }

// lockout tells whether a PIN is set that no index counts.
func (s *state) lockout() bool { return s != nil && s.pinSet() && s.PIN.Lockout }

// blob is an object as TPM2_Load takes it.
type blob struct {
	Public  []byte `json:"public"`
	Private []byte `json:"private"`
}

// readState returns the state, nil if there is no file.
func readState(dir string) (*state, error) {
	path := filepath.Join(dir, stateFile)
	fi, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if fi.Size() > maxState {
		return nil, fmt.Errorf("%s has more than %d bytes", path, maxState)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	s, err := parseState(data)
	if err != nil {
		return nil, fmt.Errorf("%s is damaged (put the last copy back, or remove it and reset the token): %w", path, err)
	}
	return s, nil
}

func parseState(data []byte) (*state, error) {
	s := new(state)
	if err := json.Unmarshal(data, s); err != nil {
		return nil, errors.New("it is not what a vault writes")
	}
	if s.Version != 1 {
		return nil, fmt.Errorf("its version is %d, want 1", s.Version)
	}
	blobs := []blob{s.UP, s.Root}
	if s.pinSet() {
		blobs = append(blobs, s.PIN.Current.Parent, s.PIN.Current.Probe)
		if s.PIN.Next != nil {
			blobs = append(blobs, s.PIN.Next.Parent, s.PIN.Next.Probe)
		}
	}
	for _, b := range blobs {
		if _, err := b.object(); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// save writes the state; only then it is the vault's.
func (v *Vault) save(s *state) error {
	data, err := json.MarshalIndent(s, "", "\t")
	if err != nil {
		return err
	}
	err = private.Write(filepath.Join(v.dir, stateFile), append(data, '\n'))
	if err != nil {
		return fmt.Errorf("the vault's file: %w", err)
	}
	v.state = s
	return nil
}

// copy returns a state to change and save.
func (s *state) copy() *state {
	c := *s
	if s.PIN != nil {
		p := *s.PIN
		c.PIN = &p
	}
	return &c
}
