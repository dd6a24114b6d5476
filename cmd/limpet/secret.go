package main

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"

	"github.com/limpet-auth/limpet/internal/private"
	"github.com/limpet-auth/limpet/keyring"
)

// What a file with a shared secret is, for all commands that read one.
const secretHelp = `A file with a shared secret is taken as it is, byte for byte; only if it is one
line of text, the end of that line does not belong to the secret. Nothing is
decoded: a secret that is written in base64 or hexadecimal is those characters.
It must have 16 to 128 bytes that nobody can guess.`

// readShared reads a secret that is shared with a peer, "-" for standard input.
func readShared(path string) ([]byte, error) {
	data, err := readBounded(path, maxSecret)
	if err != nil {
		return nil, fmt.Errorf("secret: %w", err)
	}
	secret, err := sharedIn(data)
	if err == nil {
		err = keyring.CheckSecret(secret)
	}
	if err != nil {
		return nil, fmt.Errorf("secret: %w", err)
	}
	if path != "-" {
		if err := private.OwnerOnly(path); err != nil {
			note("%v", err) // some platforms hand out their secrets like this
		}
	}
	return secret, nil
}

// sharedIn returns the secret that a file's content is.
func sharedIn(data []byte) ([]byte, error) {
	if !isText(data) {
		return data, nil
	}
	line, ended := bytes.CutSuffix(data, []byte("\n"))
	if ended {
		line = bytes.TrimSuffix(line, []byte("\r"))
	}
	switch {
	case len(line) == 0:
		return nil, errors.New("it is empty")
	case bytes.ContainsAny(line, "\r\n"):
		return nil, errors.New("it has several lines: a secret is one line of text, or binary")
	}
	return line, nil
}

// isText tells text from random bytes, of which 16 are text by chance once in
// many millions, and then few end in an end of line.
func isText(data []byte) bool {
	return utf8.Valid(data) && bytes.IndexFunc(data, func(r rune) bool { return !unicode.IsPrint(r) && !strings.ContainsRune("\t\r\n", r) }) < 0
}

// newShared returns a new secret: 256 random bits as 43 characters, so that it is
// the same to all programs, in whatever way they read it.
func newShared() []byte {
	return []byte(base64.RawURLEncoding.EncodeToString(keyring.NewSecret()))
}

// toPipe reports whether what is written to path goes to standard output.
func toPipe(path string) bool { return path == "-" }

// checkNew refuses a path that cannot become a new file, before anything is done.
func checkNew(path string) error {
	if toPipe(path) {
		return nil
	}
	if _, err := os.Lstat(path); err == nil {
		return existsAlready(path)
	}
	return nil
}

// checkNewSecret is checkNew for a secret, which does not go to a terminal.
func checkNewSecret(path string) error {
	if toPipe(path) && term.IsTerminal(int(os.Stdout.Fd())) {
		return usage("a secret is not written to a terminal: name a file, or use a pipe")
	}
	return checkNew(path)
}

func existsAlready(path string) error {
	return fmt.Errorf("%s exists, and is not overwritten", path)
}

// writeNew writes a new file that only its owner can read, or to standard output
// for "-".
func writeNew(path string, data []byte) error {
	if toPipe(path) {
		_, err := os.Stdout.Write(data)
		return err
	}
	err := createFile(path, data)
	if errors.Is(err, fs.ErrExist) {
		return existsAlready(path)
	}
	return err
}

// giveOut writes a new secret for a peer to path once use has accepted it. A file
// is there before, lest a secret be in use that nobody has.
func giveOut(path string, secret []byte, use func() error) error {
	if err := checkNewSecret(path); err != nil {
		return err
	}
	if toPipe(path) {
		if err := use(); err != nil {
			return err
		}
		if err := writeNew(path, secret); err != nil {
			return fmt.Errorf("secret: %w", err)
		}
		return nil
	}
	if err := writeNew(path, secret); err != nil {
		return fmt.Errorf("secret: %w", err)
	}
	if err := use(); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	note("bring %s to the other end, and delete it: whoever has that file has the secret", path)
	return nil
}
