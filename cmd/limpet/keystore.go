package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/hwkey/softkey"
	"github.com/limpet-auth/limpet/hwkey/tpmkey"
)

// Kinds of keystores, as --key and session files name them.
const (
	keyAuto     = "auto"
	keyTPM      = "tpm"
	keySoftware = "software"
)

// keeper says which keystores there are: the values of --tpm and
// --passphrase-file, and where the files are.
type keeper struct {
	dir            string // of the state
	tpm            string // address of the TPM; "" for this machine's
	passphraseFile string
}

func (k *keeper) flags(cmd *cobra.Command) {
	k.tpmFlag(cmd)
	cmd.Flags().StringVar(&k.passphraseFile, "passphrase-file", "", "`file` with the passphrase of software keys, - for standard input\n(default: the desktop's keyring, or a key file beside the keys)")
	settings(cmd, "passphrase-file")
}

func (k *keeper) tpmFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&k.tpm, "tpm", "", "`address` of the TPM: /dev/…, unix:PATH or tcp:HOST:PORT (default: this machine's)")
	settings(cmd, "tpm")
}

func (k *keeper) softDir() string { return filepath.Join(k.dir, "keys", "soft") }

func (k *keeper) tpmConfig() tpmkey.Config {
	return tpmkey.Config{Addr: k.tpm, Dir: filepath.Join(k.dir, "keys", "tpm")}
}

// candidates returns the keystores of a kind, best first.
func (k *keeper) candidates(kind string) ([]hwkey.Candidate, error) {
	var list []hwkey.Candidate
	if kind != keySoftware {
		list = append(list, tpmkey.Candidate(k.tpmConfig()))
	}
	if kind == keyTPM {
		return list, nil
	}
	secrets, err := k.secrets()
	return append(list, softkey.Candidate(k.softDir(), secrets...)), err
}

// secrets returns what software keys are locked with. The passphrase comes from
// a file: an environment variable is there to read for every program of the
// user, and for all that the command's shell starts.
func (k *keeper) secrets() ([]softkey.Secret, error) {
	if k.passphraseFile == "" {
		return nil, nil // softkey's own choice
	}
	text, err := readSecret(k.passphraseFile)
	if err != nil {
		return nil, fmt.Errorf("passphrase: %w", err)
	}
	return []softkey.Secret{softkey.Passphrase(text)}, nil
}

// choose opens the best keystore of a kind and says on standard error why it is
// not a better one.
func (k *keeper) choose(ctx context.Context, kind string) (hwkey.Keystore, hwkey.Finding, error) {
	list, err := k.candidates(kind)
	if err != nil {
		return nil, hwkey.Finding{}, err
	}
	ks, findings, err := hwkey.Auto(ctx, list...)
	if err != nil {
		return nil, hwkey.Finding{}, k.advise(err)
	}
	for _, f := range findings {
		if f.Chosen {
			return ks, f, nil
		}
		note("%s: %s", f.Name, plain(f.Err))
	}
	panic("limpet: hwkey.Auto chose none and gave no error")
}

// open opens the keystore that a session's key is in.
func (k *keeper) open(ctx context.Context, kind string) (hwkey.Keystore, error) {
	if kind == keyTPM {
		return tpmkey.New(k.tpmConfig()), nil
	}
	if _, err := os.Stat(k.softDir()); err != nil {
		return nil, fmt.Errorf("software keys: %w", err) // Open would make an empty keystore
	}
	secrets, err := k.secrets()
	if err != nil {
		return nil, err
	}
	ks, _, err := softkey.Candidate(k.softDir(), secrets...).Open(ctx)
	if err != nil {
		return nil, k.advise(err)
	}
	return ks, nil
}

func (k *keeper) advise(err error) error {
	switch {
	case errors.Is(err, softkey.ErrWrongSecret):
		return withHint(err, "is it another passphrase that locks these keys?")
	case errors.Is(err, softkey.ErrOtherSecret):
		return withHint(err, "give the passphrase with --passphrase-file, or leave that out if there is none")
	case errors.Is(err, hwkey.ErrNoKeystore):
		return withHint(err, "limpet doctor says what is missing")
	}
	return err
}

// closeKeystore frees what a keystore holds in the TPM.
func closeKeystore(ks hwkey.Keystore) {
	if c, ok := ks.(interface{ Close() error }); ok {
		c.Close()
	}
}

const maxSecret = 4 << 10 // bytes of a file with a password or passphrase

// readSecret reads a secret from a file, "-" for standard input. One end of
// line at its end does not belong to it.
func readSecret(path string) ([]byte, error) {
	text, err := readBounded(path, maxSecret)
	if err != nil {
		return nil, err
	}
	text = bytes.TrimSuffix(text, []byte("\n"))
	text = bytes.TrimSuffix(text, []byte("\r"))
	if len(text) == 0 {
		return nil, errors.New("it is empty")
	}
	return text, nil
}
